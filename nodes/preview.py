"""Pictures and lines that a node shows on itself.

Which of them it shows, a class says in ``SHOWS``: ``images``, ``text``, or both. The editor's files leave room for it;
the lines are drawn by ``web/likeness.js``.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from ..face.image import to_uint8
from .host import host

LIMIT = 16
"""More pictures than this are not written for a preview."""
SIDE = 1024
"""Previews are scaled down to this many pixels, so that a batch of 4K frames does not fill the disk."""


def preview(image: Tensor, text: Iterable[str] = ()) -> dict[str, Any]:
    """The ``ui`` part of a node's answer: ``image`` (B, H, W, 3) as temporary PNGs, and lines of text.

    Where faces were swapped or people drawn before the node or in it, the PNGs say so in their metadata.
    """
    folder = host().folders("temp")[0]
    folder.mkdir(parents=True, exist_ok=True)
    tag = secrets.token_hex(6)
    marks = PngInfo()
    if mark := host().mark():
        marks.add_text("Likeness", mark)
    files = [_write(picture, folder / f"likeness_{tag}_{n:03}.png", marks) for n, picture in enumerate(image[:LIMIT])]
    lines = list(text)
    if len(image) > LIMIT:
        lines.append(f"the first {LIMIT} of {len(image)} are shown")
    return {"images": files, **({"text": lines} if lines else {})}


def _write(picture: Tensor, path: Path, marks: PngInfo) -> dict[str, str]:
    shown = Image.fromarray(to_uint8(picture))
    shown.thumbnail((SIDE, SIDE))
    shown.save(path, pnginfo=marks, compress_level=1)
    return {"filename": path.name, "subfolder": "", "type": "temp"}
