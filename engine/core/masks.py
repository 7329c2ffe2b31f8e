"""Masks, and pasting by mask, as ComfyUI's nodes of the same names do it."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from .images import MAX_SIZE, resize

OPERATIONS = ["multiply", "add", "subtract", "and", "or", "xor"]
PLACE = {"default": 0, "min": 0, "max": MAX_SIZE, "step": 1}
SIDE = {"default": 512, "min": 1, "max": MAX_SIZE, "step": 1}


def flat(mask: torch.Tensor) -> torch.Tensor:
    """A mask as ``(B, H, W)``, whatever leading axes it has."""
    return mask.reshape(-1, *mask.shape[-2:])


class MaskToImage:
    """The mask as a grey image."""

    CATEGORY = "mask"
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "mask_to_image"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"mask": ("MASK",)}}

    def mask_to_image(self, mask: torch.Tensor) -> tuple[Any]:
        return (flat(mask)[..., None].expand(-1, -1, -1, 3),)


class ImageToMask:
    """One channel of the image as a mask."""

    CATEGORY = "mask"
    RETURN_TYPES = ("MASK",)
    FUNCTION = "image_to_mask"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"image": ("IMAGE",), "channel": (["red", "green", "blue", "alpha"],)}}

    def image_to_mask(self, image: torch.Tensor, channel: str) -> tuple[Any]:
        index = ["red", "green", "blue", "alpha"].index(channel)
        # An image without alpha is opaque everywhere.
        return (image[..., index] if index < image.shape[-1] else torch.ones(image.shape[:3]),)


class InvertMask:
    """What was outside is inside."""

    CATEGORY = "mask"
    RETURN_TYPES = ("MASK",)
    FUNCTION = "invert"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"mask": ("MASK",)}}

    def invert(self, mask: torch.Tensor) -> tuple[Any]:
        return (1.0 - mask,)


class SolidMask:
    """A mask of one value."""

    CATEGORY = "mask"
    RETURN_TYPES = ("MASK",)
    FUNCTION = "solid"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "value": ("FLOAT", {"default": 1.0, "min": 0.0, "max": 1.0, "step": 0.01}),
                "width": ("INT", SIDE),
                "height": ("INT", SIDE),
            }
        }

    def solid(self, value: float, width: int, height: int) -> tuple[Any]:
        return (torch.full((1, height, width), value),)


class MaskComposite:
    """Puts one mask onto another at a place; what hangs over the border is cut off."""

    CATEGORY = "mask"
    RETURN_TYPES = ("MASK",)
    FUNCTION = "combine"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "destination": ("MASK",),
                "source": ("MASK",),
                "x": ("INT", PLACE),
                "y": ("INT", PLACE),
                "operation": (OPERATIONS,),
            }
        }

    def combine(self, destination: torch.Tensor, source: torch.Tensor, x: int, y: int, operation: str) -> tuple[Any]:
        out, patch = flat(destination).clone(), flat(source)
        right, bottom = min(x + patch.shape[-1], out.shape[-1]), min(y + patch.shape[-2], out.shape[-2])
        if right <= x or bottom <= y:
            return (out,)
        there, patch = out[:, y:bottom, x:right], patch[:, : bottom - y, : right - x]
        bits, patch_bits = there.round().bool(), patch.round().bool()
        new = {
            "multiply": lambda: there * patch,
            "add": lambda: there + patch,
            "subtract": lambda: there - patch,
            "and": lambda: (bits & patch_bits).float(),
            "or": lambda: (bits | patch_bits).float(),
            "xor": lambda: (bits ^ patch_bits).float(),
        }[operation]()
        out[:, y:bottom, x:right] = new
        return (out.clamp(0, 1),)


class GrowMask:
    """Grows the mask by pixels, or shrinks it if negative; tapered corners make a diamond of the square."""

    CATEGORY = "mask"
    RETURN_TYPES = ("MASK",)
    FUNCTION = "expand_mask"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "mask": ("MASK",),
                "expand": ("INT", {"default": 0, "min": -MAX_SIZE, "max": MAX_SIZE, "step": 1}),
                "tapered_corners": ("BOOLEAN", {"default": True}),
            }
        }

    def expand_mask(self, mask: torch.Tensor, expand: int, tapered_corners: bool) -> tuple[Any]:
        # Erosion is the dilation of the negative.
        out = flat(mask if expand >= 0 else -mask)[:, None]
        steps = abs(expand)
        if not tapered_corners:
            # A square window of any size is separable, and as many steps of 3×3 at once.
            steps = min(steps, max(out.shape[-2:]))
            out = F.max_pool2d(out, (2 * steps + 1, 1), 1, (steps, 0)) if steps else out
            out = F.max_pool2d(out, (1, 2 * steps + 1), 1, (0, steps)) if steps else out
        else:
            for _ in range(min(steps, sum(out.shape[-2:]))):
                across, down = F.max_pool2d(out, (1, 3), 1, (0, 1)), F.max_pool2d(out, (3, 1), 1, (1, 0))
                out = torch.maximum(across, down)
        return ((out if expand >= 0 else -out)[:, 0],)


class FeatherMask:
    """Fades the mask out towards the four borders of its picture."""

    CATEGORY = "mask"
    RETURN_TYPES = ("MASK",)
    FUNCTION = "feather"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "mask": ("MASK",),
                "left": ("INT", PLACE),
                "top": ("INT", PLACE),
                "right": ("INT", PLACE),
                "bottom": ("INT", PLACE),
            }
        }

    def feather(self, mask: torch.Tensor, left: int, top: int, right: int, bottom: int) -> tuple[Any]:
        out = flat(mask).clone()
        height, width = out.shape[-2:]

        def ramp(size: int, start: int, end: int) -> torch.Tensor:
            weights, start, end = torch.ones(size), min(start, size), min(end, size)
            weights[:start] *= (torch.arange(start) + 1) / max(start, 1)
            # ComfyUI counts from the far border as 0, -1, -2…, so the first of these falls on the near border.
            weights[-torch.arange(end)] *= (torch.arange(end) + 1) / max(end, 1)
            return weights

        return (out * ramp(width, left, right) * ramp(height, top, bottom)[:, None],)


class ImageCompositeMasked:
    """Pastes the source onto the destination where the mask is 1; the mask is scaled to the source."""

    CATEGORY = "image"
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "composite"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "destination": ("IMAGE",),
                "source": ("IMAGE",),
                "x": ("INT", PLACE),
                "y": ("INT", PLACE),
                "resize_source": ("BOOLEAN", {"default": False}),
            },
            "optional": {"mask": ("MASK",)},
        }

    def composite(
        self,
        destination: torch.Tensor,
        source: torch.Tensor,
        x: int,
        y: int,
        resize_source: bool,
        mask: torch.Tensor | None = None,
    ) -> tuple[Any]:
        under, over = destination.movedim(-1, 1).clone(), source.movedim(-1, 1)
        channels = min(under.shape[1], over.shape[1])
        height, width = under.shape[-2:]
        if resize_source:
            over = F.interpolate(over, size=(height, width), mode="bilinear")
        over = over.repeat(-(-len(under) // len(over)), 1, 1, 1)[: len(under)]
        if mask is None:
            weight = torch.ones(len(under), 1, *over.shape[-2:])
        else:
            weight = resize(flat(mask)[:, None], over.shape[-1], over.shape[-2], "bilinear")
            weight = weight.repeat(-(-len(under) // len(weight)), 1, 1, 1)[: len(under)]
        right, bottom = min(x + over.shape[-1], width), min(y + over.shape[-2], height)
        if right > x and bottom > y:
            over, weight = over[:, :channels, : bottom - y, : right - x], weight[..., : bottom - y, : right - x]
            there = under[:, :channels, y:bottom, x:right]
            under[:, :channels, y:bottom, x:right] = weight * over + (1 - weight) * there
        return (under.movedim(1, -1),)


NODES: dict[str, type] = {
    node.__name__: node
    for node in (
        MaskToImage,
        ImageToMask,
        InvertMask,
        SolidMask,
        MaskComposite,
        GrowMask,
        FeatherMask,
        ImageCompositeMasked,
    )
}
TITLES = {
    "MaskToImage": "Convert Mask to Image",
    "ImageToMask": "Convert Image to Mask",
    "InvertMask": "InvertMask",
    "SolidMask": "SolidMask",
    "MaskComposite": "MaskComposite",
    "GrowMask": "GrowMask",
    "FeatherMask": "FeatherMask",
    "ImageCompositeMasked": "ImageCompositeMasked",
}
