"""Scaling, cropping and batching of images, as ComfyUI's nodes of the same names do it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from ...face.errors import BadInput

METHODS = ["nearest-exact", "bilinear", "area", "bicubic", "lanczos"]
MAX_SIZE = 16384
"""ComfyUI's limit on a side, in pixels."""


def resize(samples: torch.Tensor, width: int, height: int, method: str, crop: str = "disabled") -> torch.Tensor:
    """Scale ``(B, C, H, W)`` to ``height`` × ``width``; ``center`` first crops it to the wanted aspect ratio."""
    if crop == "center":
        old_height, old_width = samples.shape[-2:]
        x = y = 0
        if old_width / old_height > width / height:
            x = round((old_width - old_width * (width / height) / (old_width / old_height)) / 2)
        else:
            y = round((old_height - old_height * (old_width / old_height) / (width / height)) / 2)
        samples = samples[..., y : old_height - y, x : old_width - x]
    if method == "lanczos":
        return _lanczos(samples, width, height)
    return F.interpolate(samples, size=(height, width), mode=method)


def _lanczos(samples: torch.Tensor, width: int, height: int) -> torch.Tensor:
    """Pillow's Lanczos filter with its antialiasing, on 8-bit pixels, as ComfyUI has it."""
    from PIL import Image

    out = torch.empty(*samples.shape[:2], height, width)
    for index, sample in enumerate(samples):
        pixels = (sample.movedim(0, -1) * 255).clamp(0, 255).to(torch.uint8).numpy()
        picture = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
        scaled = np.asarray(picture.resize((width, height), Image.Resampling.LANCZOS), np.float32) / 255
        out[index] = torch.from_numpy(scaled.reshape(height, width, -1)).movedim(-1, 0)
    return out


def scale_image(image: torch.Tensor, width: int, height: int, method: str, crop: str = "disabled") -> torch.Tensor:
    """``resize`` for ``(B, H, W, C)``."""
    return resize(image.movedim(-1, 1), width, height, method, crop).movedim(1, -1)


class ImageScale:
    """Scales to a size; a side of 0 follows from the other one and the aspect ratio."""

    CATEGORY = "image/upscaling"
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "upscale"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        side = {"default": 512, "min": 0, "max": MAX_SIZE, "step": 1}
        return {
            "required": {
                "image": ("IMAGE",),
                "upscale_method": (METHODS,),
                "width": ("INT", side),
                "height": ("INT", side),
                "crop": (["disabled", "center"],),
            }
        }

    def upscale(self, image: torch.Tensor, upscale_method: str, width: int, height: int, crop: str) -> tuple[Any]:
        if width == 0 and height == 0:
            return (image,)
        old_height, old_width = image.shape[1:3]
        width = width or max(1, round(old_width * height / old_height))
        height = height or max(1, round(old_height * width / old_width))
        return (scale_image(image, width, height, upscale_method, crop),)


class ImageScaleBy:
    """Scales both sides by one factor."""

    CATEGORY = "image/upscaling"
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "upscale"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "image": ("IMAGE",),
                "upscale_method": (METHODS,),
                "scale_by": ("FLOAT", {"default": 1.0, "min": 0.01, "max": 8.0, "step": 0.01}),
            }
        }

    def upscale(self, image: torch.Tensor, upscale_method: str, scale_by: float) -> tuple[Any]:
        height, width = (max(1, round(side * scale_by)) for side in image.shape[1:3])
        return (scale_image(image, width, height, upscale_method),)


class ImageCrop:
    """Cuts a rectangle out, moved and shortened so that it lies inside the image."""

    CATEGORY = "image/transform"
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "crop"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        side = {"default": 512, "min": 1, "max": MAX_SIZE, "step": 1}
        place = {"default": 0, "min": 0, "max": MAX_SIZE, "step": 1}
        return {
            "required": {
                "image": ("IMAGE",),
                "width": ("INT", side),
                "height": ("INT", side),
                "x": ("INT", place),
                "y": ("INT", place),
            }
        }

    def crop(self, image: torch.Tensor, width: int, height: int, x: int, y: int) -> tuple[Any]:
        x, y = min(x, image.shape[2] - 1), min(y, image.shape[1] - 1)
        return (image[:, y : y + height, x : x + width],)


class ImageBatch:
    """Joins two batches; the second is scaled and cropped to the size of the first."""

    CATEGORY = "image"
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "batch"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"image1": ("IMAGE",), "image2": ("IMAGE",)}}

    def batch(self, image1: torch.Tensor, image2: torch.Tensor) -> tuple[Any]:
        if image1.shape[-1] != image2.shape[-1]:
            # What has no alpha is opaque.
            image1, image2 = (F.pad(i, (0, 1), value=1.0) if i.shape[-1] == 3 else i for i in (image1, image2))
        if image1.shape[1:3] != image2.shape[1:3]:
            image2 = scale_image(image2, image1.shape[2], image1.shape[1], "bilinear", "center")
        return (torch.cat((image1, image2)),)


class RepeatImageBatch:
    """Repeats the whole batch."""

    CATEGORY = "image/batch"
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "repeat"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"image": ("IMAGE",), "amount": ("INT", {"default": 1, "min": 1, "max": 4096})}}

    def repeat(self, image: torch.Tensor, amount: int) -> tuple[Any]:
        return (image.repeat(amount, 1, 1, 1),)


class ImageFromBatch:
    """Takes a run of images out of a batch, as far as there are any."""

    CATEGORY = "image/batch"
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "frombatch"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "image": ("IMAGE",),
                "batch_index": ("INT", {"default": 0, "min": 0, "max": 4095}),
                "length": ("INT", {"default": 1, "min": 1, "max": 4096}),
            }
        }

    def frombatch(self, image: torch.Tensor, batch_index: int, length: int) -> tuple[Any]:
        first = min(len(image) - 1, batch_index)
        return (image[first : first + length].clone(),)


class ImageInvert:
    """The negative of the image."""

    CATEGORY = "image"
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "invert"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"image": ("IMAGE",)}}

    def invert(self, image: torch.Tensor) -> tuple[Any]:
        return (1.0 - image,)


class EmptyImage:
    """A batch of one colour, given as 0xRRGGBB."""

    CATEGORY = "image"
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "generate"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        side = {"default": 512, "min": 1, "max": MAX_SIZE, "step": 1}
        return {
            "required": {
                "width": ("INT", side),
                "height": ("INT", side),
                "batch_size": ("INT", {"default": 1, "min": 1, "max": 4096}),
                "color": ("INT", {"default": 0, "min": 0, "max": 0xFFFFFF, "step": 1, "display": "color"}),
            }
        }

    def generate(self, width: int, height: int, batch_size: int = 1, color: int = 0) -> tuple[Any]:
        if (size := width * height * batch_size * 12) > 8 << 30:
            raise BadInput(
                f"an empty image of {batch_size} × {width}×{height} would take {size >> 30} GB; ask for less"
            )
        rgb = torch.tensor([color >> 16 & 255, color >> 8 & 255, color & 255]) / 255
        return (rgb.expand(batch_size, height, width, 3).clone(),)


NODES: dict[str, type] = {
    node.__name__: node
    for node in (
        ImageScale,
        ImageScaleBy,
        ImageCrop,
        ImageBatch,
        RepeatImageBatch,
        ImageFromBatch,
        ImageInvert,
        EmptyImage,
    )
}
TITLES = {
    "ImageScale": "Upscale Image",
    "ImageScaleBy": "Upscale Image By",
    "ImageCrop": "Image Crop",
    "ImageBatch": "Batch Images",
    "RepeatImageBatch": "RepeatImageBatch",
    "ImageFromBatch": "ImageFromBatch",
    "ImageInvert": "Invert Image",
    "EmptyImage": "EmptyImage",
}
