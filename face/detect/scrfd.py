"""SCRFD (Guo, Deng, Lattas and Zafeiriou 2021, arXiv 2105.04714): the detectors of InsightFace's model packs.

Also every file that InsightFace's own detection class takes. The published weights are for research only, so a user
brings them: a pack in the ``insightface`` folder, or a file ``scrfd*.onnx`` or ``det_*.onnx`` in the ``likeness``
folder.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import BadModelFile, MissingModel
from ..host import Host
from ..onnx_file import Signature
from ..packs import packs
from ..session import OnnxModel
from ..types import Array
from . import detectors
from ._plumbing import MEAN_POINTS, Found, canvas, ceil_to, cells, collect, describe, own_files

log = logging.getLogger(__name__)

PREFIXES = ("scrfd", "det_")


@dataclass(frozen=True)
class Layout:
    """What the number of outputs says of a file. insightface 2.1 model_zoo/retinaface.py: _init_vars."""

    strides: tuple[int, ...]
    anchors: int
    """A cell."""
    points: bool


LAYOUTS = {
    6: Layout((8, 16, 32), 2, False),
    9: Layout((8, 16, 32), 2, True),
    10: Layout((8, 16, 32, 64, 128), 1, False),
    15: Layout((8, 16, 32, 64, 128), 1, True),
}
"""By number of outputs: all scores, then all boxes, then all points, each from the finest stride to the coarsest."""

OVERLAP, PIXEL = 0.4, 1.0
"""InsightFace's suppression: boxes as wide as x2 - x1 + 1."""


def fits(found: Signature) -> bool:
    """Whether a file has the outside of an SCRFD network."""
    widths = [port.shape[-1] for port in found.outputs if port.shape]
    layout = LAYOUTS.get(len(found.outputs))
    if layout is None or len(found.inputs) != 1 or len(found.inputs[0].shape) != 4:
        return False
    levels = len(layout.strides)
    expected = [1] * levels + [4] * levels + ([10] * levels if layout.points else [])
    return all(w is None or w == e for w, e in zip(widths, expected, strict=False))


def decode(outputs: list[Array], layout: Layout, height: int, width: int, minimum: float) -> Found:
    """Candidates of one (height, width) canvas, in its pixels, doubles included, best first.

    ``outputs``: scores (rows, 1), boxes (rows, 4) and points (rows, 10) per stride, in strides; anchors lie at the
    cells' corners, not their centres. insightface 2.1 model_zoo/retinaface.py: forward, distance2bbox, distance2kps.
    """
    levels = len(layout.strides)
    boxes: list[Array] = []
    points: list[Array] = []
    kept: list[Array] = []
    for level, stride in enumerate(layout.strides):
        scores = outputs[level].reshape(-1)
        rows = np.flatnonzero(scores >= minimum)
        at = cells(height // stride, width // stride, layout.anchors)[rows] * np.float32(stride)
        sides = outputs[level + levels].reshape(-1, 4)[rows] * np.float32(stride)
        box = np.concatenate([at - sides[:, :2], at + sides[:, 2:]], 1)
        boxes.append(box)
        if layout.points:
            shifts = outputs[level + 2 * levels].reshape(-1, 5, 2)[rows] * np.float32(stride)
            points.append(at[:, None] + shifts)
        else:
            points.append(box[:, None, :2] + MEAN_POINTS * (box[:, 2:] - box[:, :2])[:, None])
        kept.append(scores[rows])
    found = collect(boxes, points, kept)
    order = np.argsort(-found.scores, kind="stable")
    return Found(found.boxes[order], found.points[order], found.scores[order])


def letterbox(height: int, width: int, outer: tuple[int, int]) -> tuple[int, int]:
    """(height, width) scaled up or down to fit the canvas, cut to whole pixels as InsightFace cuts them."""
    if height / width > outer[0] / outer[1]:
        return outer[0], max(1, int(outer[0] / (height / width)))
    return max(1, int(outer[1] * (height / width))), outer[1]


@dataclass(frozen=True)
class SCRFD:
    """The network opened."""

    model: OnnxModel
    layout: Layout
    fixed: tuple[int, int] | None
    """Height and width of the input, where the file fixes them."""
    minimum: float = 0.5
    sure: float = 0.0

    def find(self, pictures: Tensor, size: int, minimum: float) -> list[Found]:
        height, width = pictures.shape[1:3]
        side = ceil_to(size, self.layout.strides[-1])
        outer = self.fixed or (side, side)
        inner = letterbox(height, width, outer)
        # RGB [0, 255] -> [-1, 1); the margin is black, not grey.
        batch = canvas(pictures, inner, outer)
        seen = torch.from_numpy(batch)
        torch.add(torch.tensor(-127.5 / 128), seen, alpha=1 / 128, out=seen)
        found = [decode(outputs, self.layout, *outer, minimum) for outputs in self._run(batch)]
        # InsightFace takes one factor for both axes: it suppresses doubles in the picture, after scaling.
        back = height / inner[0]
        return [f.scaled(back, back).without_doubles(OVERLAP, PIXEL) for f in found]

    def _run(self, batch: Array) -> list[list[Array]]:
        """The outputs per picture. Files whose outputs have no place for the picture's number take one at a time."""
        signature = self.model.signature
        name = signature.inputs[0].name
        if signature.inputs[0].shape[0] is None and all(len(port.shape) == 3 for port in signature.outputs):
            outputs = self.model.run({name: batch})
            return [[output[i] for output in outputs] for i in range(len(batch))]
        return [self.model.run({name: batch[i : i + 1]}) for i in range(len(batch))]


def open_file(path: Path, host: Host) -> SCRFD:
    """The network in the file at ``path``. Raises BadModelFile if it is another kind."""
    model = OnnxModel(path, host)
    found = model.signature
    if not fits(found):
        raise BadModelFile(
            f"{path} is not an SCRFD detector, which has 6, 9, 10 or 15 outputs: scores, boxes and points for each "
            f"stride; it has {describe(found)}. Choose another file, or the detector it belongs to."
        )
    layout = LAYOUTS[len(found.outputs)]
    if not layout.points:
        log.warning("%s gives boxes without points; they are guessed from the box, so crops will be less exact", path)
    height, width = found.inputs[0].shape[2:]
    return SCRFD(model, layout, (height, width) if height and width else None)


@dataclass(frozen=True)
class _Entry:
    def names(self, host: Host) -> list[str]:
        own = ["scrfd"] if own_files(host, PREFIXES) else []
        return own + [name for name, pack in packs(host).items() if pack.detector]

    def open(self, name: str, host: Host) -> SCRFD:
        found = {pack: parts.detector for pack, parts in packs(host).items() if parts.detector}
        if name in found:
            return open_file(found[name], host)
        files = own_files(host, PREFIXES) or list(found.values())
        if not files:
            raise MissingModel(
                "the detector scrfd",
                "scrfd*.onnx",
                host.folders("likeness"),
                "Its weights are for research only and are not passed on here: copy a file there, or a whole model "
                "pack such as buffalo_l into the insightface models folder.",
            )
        return open_file(files[0], host)


detectors.add("scrfd", _Entry())
