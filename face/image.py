"""The one image convention and the only converters out of it.

An *image* is a torch tensor ``(B, H, W, 3)``, float32, RGB, in [0, 1], on the CPU: ComfyUI's own. A *picture*
is one of them, ``(H, W, 3)``. A *mask* is ``(B, H, W)`` in [0, 1]. Models that want BGR, uint8 or CHW convert
at their own door.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .errors import BadImage, BadInput
from .types import Array, Faces

MAX_PIXELS = 100_000_000
"""A file with more pixels than this is refused before it is decoded: as float32 RGB it would take 1.2 GB."""

MAX_FRAMES_BYTES = 8 << 30
"""An animated file whose frames would take more than this as float32 RGB is refused before it is decoded."""


BEYOND = 1.0
"""How far a value may lie outside [0, 1] and still be taken for overshoot; more is another range."""

DAMAGE = (OSError, SyntaxError, ValueError, EOFError, KeyError, IndexError, TypeError, OverflowError, struct.error)
"""What Pillow raises over damaged files, depending on the format and on where the damage lies."""


def as_image(value: Any, what: str = "image") -> Tensor:
    """``value`` as an image: ``(B, H, W, 3)`` float32 on the CPU, in [0, 1].

    Takes ``(B, H, W, C)`` or ``(H, W, C)`` with C 1 (grey), 3 or 4 (alpha is dropped), any float type or
    uint8. Values outside [0, 1] by at most ``BEYOND``, as decoders and resamplers leave them, are clipped.
    Raises BadImage for anything else, and for NaN or infinity.
    """
    if not isinstance(value, Tensor):
        raise BadImage(f"{what} must be an image tensor of shape (batch, height, width, 3); got {type(value).__name__}")
    image = value.detach()
    if image.ndim == 3:
        image = image[None]
    if image.ndim != 4 or image.shape[-1] not in (1, 3, 4) or 0 in image.shape:
        raise BadImage(
            f"{what} must have the shape (batch, height, width, 3) with nothing empty; got {tuple(value.shape)}. "
            "If the channels come first, move them last."
        )
    if image.dtype == torch.uint8:
        image = image.to(torch.float32) / 255
    elif not image.is_floating_point():
        raise BadImage(f"{what} must hold float values in [0, 1] or uint8; got {image.dtype}")
    image = image.to(device="cpu", dtype=torch.float32)
    # One pass tells all: least and largest value carry NaN and infinity through.
    low, high = (float(v) for v in torch.aminmax(image))
    if not (math.isfinite(low) and math.isfinite(high)):
        bad = int((~torch.isfinite(image)).sum())
        raise BadImage(
            f"{what} holds {bad} values that are NaN or infinite, of {image.numel()}. They usually come from a VAE or "
            "a model in half precision: decode in float32 or bfloat16."
        )
    if low < -BEYOND or high > 1 + BEYOND:
        raise BadImage(
            f"{what} holds values from {low:g} to {high:g} where 0 to 1 was expected. If they are meant as 0 to 255, "
            "divide them by 255."
        )
    image = image.expand(*image.shape[:3], 3) if image.shape[-1] == 1 else image[..., :3]
    return image.clamp(0, 1) if low < 0 or high > 1 else image


def as_mask(value: Any, batch: int, height: int, width: int, what: str = "mask") -> Tensor:
    """``value`` as a ``(batch, height, width)`` float32 mask; one mask serves the whole batch. BadImage otherwise."""
    if not isinstance(value, Tensor):
        raise BadImage(f"{what} must be a mask tensor of shape (batch, height, width); got {type(value).__name__}")
    mask = value.detach().to(device="cpu", dtype=torch.float32)
    mask = mask[None] if mask.ndim == 2 else mask
    if mask.ndim != 3 or tuple(mask.shape[1:]) != (height, width) or mask.shape[0] not in (1, batch):
        raise BadImage(
            f"{what} must have the shape ({batch}, {height}, {width}) or (1, {height}, {width}), as its image; "
            f"got {tuple(value.shape)}. Scale the mask to the image first."
        )
    if not bool(torch.isfinite(mask.sum(dtype=torch.float64))):
        raise BadImage(f"{what} holds NaN or infinite values")
    return mask.clamp(0, 1).expand(batch, height, width)


def check_faces(image: Tensor, faces: Faces) -> None:
    """Raise BadInput unless ``faces`` were found in pictures of the number and sizes of ``image`` (B, H, W, 3)."""
    batch, height, width = (int(n) for n in image.shape[:3])
    if len(faces) != batch:
        raise BadInput(
            f"the faces come from {len(faces)} pictures, but the image has {batch}. Connect the image in which the "
            "faces were detected."
        )
    wrong = next((size for size in faces.sizes if size != (height, width)), None)
    if wrong is not None:
        raise BadInput(
            f"the faces were found in pictures of {wrong[1]}×{wrong[0]} pixels, but the image has {width}×{height}. "
            "Connect the image in which the faces were detected, or detect them again after scaling."
        )


def to_uint8(picture: Tensor) -> Array:
    """A picture or mask in [0, 1] as a uint8 array of the same shape, rounded."""
    return (picture * 255).round_().clamp_(0, 255).to(torch.uint8).numpy()


def from_uint8(array: Array) -> Tensor:
    """A uint8 array as float32 in [0, 1], shape kept."""
    return torch.from_numpy(np.ascontiguousarray(array)).to(torch.float32) / 255


def content_hash(picture: Tensor) -> str:
    """A digest of the pixels and the shape: equal for equal pictures, whoever loaded them."""
    data = np.ascontiguousarray(picture.numpy())
    digest = hashlib.blake2b(repr(data.shape).encode(), digest_size=16)
    digest.update(data.data)
    return digest.hexdigest()


def load_picture(path: Path) -> tuple[Tensor, Tensor | None]:
    """Read a picture file: image ``(B, H, W, 3)`` and mask ``(B, H, W)`` = 1 - alpha, or None without alpha.

    Upright after its EXIF orientation; grey, palette, 16-bit, CMYK and alpha files become 8-bit RGB; an animated file
    becomes a batch of its frames. Raises BadImage for what is not a picture, is cut off or is too large to decode.
    """
    from PIL import Image, ImageOps, ImageSequence, UnidentifiedImageError

    try:
        with Image.open(path) as file:
            width, height = file.size
            # The second picture of an MPO (phones write them) is a depth map or the other eye's view, no next frame.
            frames = 1 if file.format == "MPO" else getattr(file, "n_frames", 1)
            if width * height > MAX_PIXELS or width * height * 12 * frames > MAX_FRAMES_BYTES:
                raise BadImage(
                    f"{path.name} has {frames} × {width}×{height} pixels; at most {MAX_PIXELS // 1_000_000} million a "
                    f"frame and {MAX_FRAMES_BYTES >> 30} GB decoded are read. Scale it down first."
                )
            pictures: list[Array] = []
            masks: list[Array] = []
            for frame in itertools.islice(ImageSequence.Iterator(file), frames):
                upright = ImageOps.exif_transpose(frame)
                if pictures and upright.size != pictures[0].shape[1::-1]:
                    continue  # a thumbnail among the pages of a TIFF
                has_alpha = "A" in upright.getbands() or "transparency" in upright.info
                if upright.mode.startswith("I"):
                    # PIL clips 16-bit grey to white when it converts; the upper byte is what is meant.
                    grey = np.asarray(upright, np.float32)
                    if grey.size and float(grey.max()) > 65535:
                        raise BadImage(
                            f"{path.name} holds values up to {int(grey.max())}, in 32 bits of unknown range. Save it "
                            "with 8 or 16 bits."
                        )
                    upright = Image.fromarray(np.clip(grey / 257 + 0.5, 0, 255).astype(np.uint8), "L")
                elif upright.mode == "F":
                    raise BadImage(f"{path.name} holds float values of unknown range. Save it with 8 or 16 bits.")
                pictures.append(np.asarray(upright.convert("RGB")))
                if has_alpha:
                    masks.append(255 - np.asarray(upright.convert("RGBA").getchannel("A")))
    except BadImage:
        raise
    except Image.DecompressionBombError as error:
        raise BadImage(f"{path.name} is too large to decode ({error}). Scale it down first.") from error
    except UnidentifiedImageError as error:
        raise BadImage(
            f"{path.name} is not a picture that can be read. Save it as PNG, JPEG or WebP; if it has such a name "
            "already, it holds something else."
        ) from error
    except FileNotFoundError as error:
        raise BadImage(f"there is no file {path}") from error
    except (IsADirectoryError, PermissionError) as error:
        raise BadImage(f"{path} cannot be opened as a file ({error.strerror})") from error
    except DAMAGE as error:
        raise BadImage(f"{path.name} is damaged or cut off ({error}). Copy or save it again.") from error
    image = from_uint8(np.stack(pictures))
    return image, (from_uint8(np.stack(masks)) if len(masks) == len(pictures) else None)
