"""LoadImage, LoadImageMask, SaveImage and PreviewImage."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch

from ...face.errors import BadImage, BadInput
from ...face.image import load_picture, to_uint8
from ...nodes.host import host
from ...nodes.saving import reserve
from ..files import annotated, contained, listing

MAX_SIDE = 16384


def find_picture(name: str) -> Path:
    """The file that LoadImage's ``name`` means: in the first folder that has it. BadInput if none does."""
    bare, kind = annotated(name)
    folders = host().folders(kind)
    for folder in folders:
        path = contained(folder, bare)
        if path.is_file():
            return path
    looked = ", ".join(str(folder) for folder in folders)
    raise BadInput(f"there is no picture {bare!r} in {looked}. Copy it there, or name another one.")


def check_header(path: Path) -> None:
    """Refuse, by its first bytes alone, what is not a picture or would take too much memory to decode."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as picture:
            width, height = picture.size
    except Image.DecompressionBombError as error:
        raise BadImage(f"{path.name} is too large to decode ({error}). Scale it down first.") from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise BadImage(
            f"{path.name} is not a picture that can be read. Give a PNG, JPEG, WebP, BMP or TIFF."
        ) from error
    if max(width, height) > MAX_SIDE:
        raise BadImage(
            f"{path.name} is {width}×{height}: a side may be at most {MAX_SIDE} pixels. Scale it down first."
        )


def digest(name: str) -> str:
    """The digest of a picture file's bytes."""
    sha = hashlib.sha256()
    with find_picture(name).open("rb") as file:
        while chunk := file.read(1 << 20):
            sha.update(chunk)
    return sha.hexdigest()


def check_name(name: Any) -> bool | str:
    """True, or why LoadImage cannot take ``name``; None is what a linked name looks like before the run."""
    if name is None:
        return True
    try:
        check_header(find_picture(str(name)))
    except (BadInput, BadImage) as error:
        return str(error)
    return True


def names() -> list[str]:
    """What the picture combo lists: every input folder, without the names that occur twice."""
    return sorted({name for folder in host().folders("input") for name in listing(folder)})


class LoadImage:
    """Loads a picture; its mask is where the picture is transparent."""

    CATEGORY = "image"
    RETURN_TYPES = ("IMAGE", "MASK")
    FUNCTION = "load_image"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"image": (names(), {"image_upload": True})}}

    def load_image(self, image: str) -> tuple[torch.Tensor, torch.Tensor]:
        path = find_picture(image)
        check_header(path)
        picture, mask = load_picture(path)
        # Without alpha ComfyUI gives this small empty mask, whatever the picture's size.
        return picture, torch.zeros(len(picture), 64, 64) if mask is None else mask

    @classmethod
    def IS_CHANGED(cls, image: str) -> str:
        return digest(image)

    @classmethod
    def VALIDATE_INPUTS(cls, image: str) -> bool | str:
        return check_name(image)


class LoadImageMask:
    """Loads one channel of a picture as a mask; alpha is inverted, so that transparent is 1."""

    CATEGORY = "mask"
    RETURN_TYPES = ("MASK",)
    FUNCTION = "load_image"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "image": (names(), {"image_upload": True}),
                "channel": (["alpha", "red", "green", "blue"],),
            }
        }

    def load_image(self, image: str, channel: str) -> tuple[torch.Tensor]:
        path = find_picture(image)
        check_header(path)
        picture, mask = load_picture(path)
        if channel == "alpha":
            return (torch.zeros(len(picture), 64, 64) if mask is None else mask,)
        return (picture[..., ("red", "green", "blue").index(channel)],)

    @classmethod
    def IS_CHANGED(cls, image: str, channel: str) -> str:
        return digest(image)

    @classmethod
    def VALIDATE_INPUTS(cls, image: str) -> bool | str:
        return check_name(image)


def save_png(
    images: torch.Tensor,
    prefix: str,
    kind: str,
    prompt: dict[str, Any] | None,
    extra: dict[str, Any] | None,
    compression: int,
) -> dict[str, Any]:
    """Write each image of the batch as PNG with the workflow inside, and say what was written as ``ui`` images."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    root = Path(os.path.normpath(host().folders(kind)[0]))
    target = contained(root, prefix)
    folder, name = (root, "image") if target == root else (target.parent, target.name)
    info = PngInfo()
    if prompt is not None:
        info.add_text("prompt", json.dumps(prompt))
    for key, value in (extra or {}).items():
        info.add_text(key, json.dumps(value))
    if mark := host().mark():
        info.add_text("Likeness", mark)
    subfolder = folder.relative_to(root).as_posix()
    saved: list[dict[str, str]] = []
    for index, image in enumerate(images):
        host().check_interrupt()
        path = reserve(folder, name.replace("%batch_num%", str(index)), ".png")
        Image.fromarray(to_uint8(image)).save(path, pnginfo=info, compress_level=compression)
        saved.append({"filename": path.name, "subfolder": "" if subfolder == "." else subfolder, "type": kind})
    return {"ui": {"images": saved}}


class SaveImage:
    """Saves the images in the output folder, numbered, with the workflow in their metadata."""

    CATEGORY = "image"
    RETURN_TYPES = ()
    OUTPUT_NODE = True
    FUNCTION = "save_images"
    DESCRIPTION = "Saves the input images to your output directory."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "images": ("IMAGE", {"tooltip": "The images to save."}),
                "filename_prefix": (
                    "STRING",
                    {"default": "ComfyUI", "tooltip": "Start of the files' names; may have a subfolder."},
                ),
            },
            "hidden": {"prompt": "PROMPT", "extra_pnginfo": "EXTRA_PNGINFO"},
        }

    def save_images(
        self,
        images: torch.Tensor,
        filename_prefix: str = "ComfyUI",
        prompt: dict[str, Any] | None = None,
        extra_pnginfo: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        return save_png(images, filename_prefix, "output", prompt, extra_pnginfo, 4)


class PreviewImage:
    """Shows the images, kept in the temporary folder only."""

    CATEGORY = "image"
    RETURN_TYPES = ()
    OUTPUT_NODE = True
    FUNCTION = "save_images"
    DESCRIPTION = "Shows the input images; they are kept in the temporary folder only."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {"images": ("IMAGE",)},
            "hidden": {"prompt": "PROMPT", "extra_pnginfo": "EXTRA_PNGINFO"},
        }

    def save_images(
        self,
        images: torch.Tensor,
        prompt: dict[str, Any] | None = None,
        extra_pnginfo: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        return save_png(images, "ComfyUI_temp", "temp", prompt, extra_pnginfo, 1)


NODES: dict[str, type] = {
    "LoadImage": LoadImage,
    "LoadImageMask": LoadImageMask,
    "SaveImage": SaveImage,
    "PreviewImage": PreviewImage,
}
TITLES = {
    "LoadImage": "Load Image",
    "LoadImageMask": "Load Image (as Mask)",
    "SaveImage": "Save Image",
    "PreviewImage": "Preview Image",
}
