"""What detectors share: the canvas a picture is laid on, grids of cells, and the suppression of doubles."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..geometry import resize, suppress
from ..host import Host
from ..onnx_file import Signature
from ..types import Array

MEAN_POINTS = np.array([[0.31, 0.41], [0.69, 0.41], [0.50, 0.60], [0.34, 0.77], [0.66, 0.77]], np.float32)
"""(5, 2) where the points of an upright frontal face lie in its box, as parts of it: for networks without points."""


@dataclass(frozen=True, eq=False)
class Found:
    """The faces of one picture as a network sees them, best first."""

    boxes: Array
    """(N, 4) float32 x1, y1, x2, y2 in pixels."""
    points: Array
    """(N, 5, 2) float32 pixels, in the order of ``Face.points``."""
    scores: Array
    """(N,) float32, 0 to 1."""

    def __len__(self) -> int:
        return len(self.scores)

    def scaled(self, x: float, y: float) -> Found:
        """The same in a picture ``x`` times as wide and ``y`` times as high."""
        factors = np.array([x, y], np.float32)
        return Found(self.boxes * np.tile(factors, 2), self.points * factors, self.scores)

    def without_doubles(self, overlap: float, pixel: float = 0.0) -> Found:
        """Greedy suppression (``geometry.suppress``); rows that are not finite go, too."""
        if not len(self):
            return self
        sound = np.isfinite(self.boxes).all(1) & np.isfinite(self.points).all((1, 2))
        boxes, points, scores = self.boxes[sound], self.points[sound], self.scores[sound]
        keep = suppress(boxes, scores, overlap, pixel)
        return Found(boxes[keep], points[keep], scores[keep])


def collect(boxes: list[Array], points: list[Array], scores: list[Array]) -> Found:
    """One record of the rows that the levels of a pyramid gave; no level may have given any."""
    if not scores:
        return Found(np.zeros((0, 4), np.float32), np.zeros((0, 5, 2), np.float32), np.zeros(0, np.float32))
    return Found(
        np.concatenate(boxes).astype(np.float32, copy=False),
        np.concatenate(points).reshape(-1, 5, 2).astype(np.float32, copy=False),
        np.concatenate(scores).astype(np.float32, copy=False),
    )


def ceil_to(value: int, multiple: int) -> int:
    """The least multiple that is not smaller than ``value``."""
    return -(-value // multiple) * multiple


def shrunk(height: int, width: int, size: int) -> tuple[int, int]:
    """(height, width) with the longer side at most ``size``, never enlarged, never below 1."""
    scale = min(1.0, size / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def canvas(pictures: Tensor, inner: tuple[int, int], outer: tuple[int, int], *, bgr: bool = False) -> Array:
    """``pictures`` (B, H, W, 3) in [0, 1] as ``(B, 3, *outer)`` float32 in 0..255: scaled to ``inner``, the rest 0.

    The scaled picture lies in the upper left corner; bilinear without antialiasing, as the networks' own code does, and
    within a grey level of it.
    """
    height, width = inner
    out = np.empty((len(pictures), 3, *outer), np.float32)
    out[:, :, height:] = 0
    out[:, :, :height, width:] = 0
    for target, picture in zip(out, pictures, strict=True):
        planes = target[::-1] if bgr else target
        same = tuple(picture.shape[:2]) == inner
        if same or picture.shape[1] > 2 * width:
            inside = planes[:, :height, :width]
            inside[...] = resize(picture, height, width)[0].numpy()
            np.multiply(inside, np.float32(255), out=inside)
        else:
            planes[:, :height, :width] = _resized(picture, height, width)
    return out


def _resized(picture: Tensor, height: int, width: int) -> Array:
    """(3, height, width) uint8: ``picture`` (H, W, 3) scaled bilinearly.

    torch scales float pictures with three interleaved channels one number at a time, and detection would spend a fifth
    of its time on it. Weighted sums of whole rows and the columns of uint8 pictures are vectorised.
    """
    rows, columns = picture.shape[:2]
    if rows > 1:
        at = ((torch.arange(height) + 0.5) * (rows / height) - 0.5).clamp_(0, rows - 1)
        upper = at.long().clamp_(max=rows - 2)
        lower = (at - upper) * 255
        picture = F.embedding_bag(
            torch.stack([upper, upper + 1], 1),
            picture.reshape(rows, -1),
            per_sample_weights=torch.stack([255 - lower, lower], 1),
            mode="sum",
        )
    else:
        picture = picture.reshape(1, -1).expand(height, -1) * 255
    levels = np.empty((height, columns * 3), np.uint8)
    np.add(picture.numpy(), np.float32(0.5), out=levels, casting="unsafe")
    # Seen as (1, 3, height, columns) it is channels-last, the layout of the fast kernel.
    seen = torch.from_numpy(levels).view(1, height, columns, 3).permute(0, 3, 1, 2)
    return F.interpolate(seen, (height, width), mode="bilinear")[0].numpy()


@lru_cache(maxsize=64)
def cells(height: int, width: int, anchors: int = 1) -> Array:
    """(height * width * anchors, 2) float32 column and row of each cell, row by row, each given ``anchors`` times."""
    rows, columns = np.mgrid[:height, :width]
    grid = np.stack([columns, rows], -1).reshape(-1, 2).astype(np.float32)
    return np.repeat(grid, anchors, 0)


def describe(found: Signature) -> str:
    """A signature in words for error messages."""
    takes = ", ".join(f"{p.name} {p.shape}" for p in found.inputs) or "none"
    gives = ", ".join(f"{p.name} {p.shape}" for p in found.outputs[:4]) + (", …" if len(found.outputs) > 4 else "")
    return f"inputs {takes}; {len(found.outputs)} outputs {gives}"


def own_files(host: Host, prefixes: tuple[str, ...]) -> list[Path]:
    """The user's ``.onnx`` files in the ``likeness`` folders whose names begin with one of ``prefixes``, sorted."""
    found: list[Path] = []
    for folder in host.folders("likeness"):
        names = sorted(os.listdir(folder)) if folder.is_dir() else []
        found += [folder / n for n in names if n.endswith(".onnx") and n.lower().startswith(prefixes)]
    return found
