"""RetinaFace (Deng, Guo, Zhou, Yu, Kotsia and Zafeiriou 2019, arXiv 1905.00641) in the widely exported PyTorch form.

Sources: github.com/biubug6/Pytorch_Retinaface@b984b4b (MIT code), facexlib. Its weights come in many exports, so a user
brings one: ``retinaface*.onnx`` in the ``likeness`` folder, with the outputs loc (N, 4), conf (N, 2) after softmax and
landm (N, 10), in any order.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from torch import Tensor

from ..errors import BadModelFile, MissingModel
from ..host import Host
from ..onnx_file import Signature
from ..session import OnnxModel
from ..types import Array
from . import detectors
from ._plumbing import Found, canvas, ceil_to, describe, own_files, shrunk

PREFIXES = ("retinaface",)
STRIDES = (8, 16, 32)
SIDES = ((16, 32), (64, 128), (256, 512))
"""Of the square anchors at each stride, in pixels. data/config.py: cfg_re50, cfg_mnet."""
VARIANCE = (0.1, 0.2)
MEAN_BGR = np.array([104.0, 117.0, 123.0], np.float32)
OVERLAP, PIXEL = 0.4, 1.0


@lru_cache(maxsize=32)
def priors(height: int, width: int) -> Array:
    """(rows, 4) float32 centre x, centre y, width, height of the anchors of a canvas, in parts of it.

    layers/functions/prior_box.py: row by row, at each cell's centre, the smaller anchor first.
    """
    levels: list[Array] = []
    for stride, sides in zip(STRIDES, SIDES, strict=True):
        rows, columns = np.mgrid[: -(-height // stride), : -(-width // stride)]
        centres = np.stack([(columns + 0.5) * stride / width, (rows + 0.5) * stride / height], -1).reshape(-1, 1, 2)
        sizes = np.array([[side / width, side / height] for side in sides])
        anchors = np.concatenate([centres.repeat(len(sides), 1), np.tile(sizes, (len(centres), 1, 1))], -1)
        levels.append(anchors.reshape(-1, 4))
    return np.concatenate(levels).astype(np.float32)


def decode(loc: Array, landm: Array, anchors: Array, height: int, width: int) -> tuple[Array, Array]:
    """Boxes (N, 4) and points (N, 5, 2) in pixels of the canvas. utils/box_utils.py: decode, decode_landm."""
    centres, sizes = anchors[:, :2], anchors[:, 2:]
    extent = np.array([width, height], np.float32)
    centre = centres + loc[:, :2] * VARIANCE[0] * sizes
    half = sizes * np.exp(loc[:, 2:] * VARIANCE[1]) / 2
    boxes = np.concatenate([(centre - half) * extent, (centre + half) * extent], 1)
    points = (centres[:, None] + landm.reshape(-1, 5, 2) * VARIANCE[0] * sizes[:, None]) * extent
    return boxes, points


def found_in(loc: Array, conf: Array, landm: Array, height: int, width: int, minimum: float) -> Found:
    """The faces of one canvas without doubles, in its pixels, from the network's answers for every anchor."""
    rows = np.flatnonzero(conf[:, 1] > minimum)
    boxes, points = decode(loc[rows], landm[rows], priors(height, width)[rows], height, width)
    return Found(boxes, points, conf[rows, 1]).without_doubles(OVERLAP, PIXEL)


def ports(found: Signature) -> list[str] | None:
    """Names of the outputs loc, conf and landm, told by their width; None if they are not all there."""
    names = {port.shape[-1]: port.name for port in found.outputs if port.shape}
    if len(found.inputs) != 1 or len(found.outputs) != 3 or not {4, 2, 10} <= set(names):
        return None
    return [names[4], names[2], names[10]]


@dataclass(frozen=True)
class RetinaFace:
    """The network opened."""

    model: OnnxModel
    outputs: list[str]
    fixed: tuple[int, int] | None
    """Height and width of the input, where the file fixes them."""
    minimum: float = 0.8
    sure: float = 0.0

    def find(self, pictures: Tensor, size: int, minimum: float) -> list[Found]:
        height, width = pictures.shape[1:3]
        side = min(self.fixed) if self.fixed else size
        inner = shrunk(height, width, side)
        outer = self.fixed or (ceil_to(inner[0], 32), ceil_to(inner[1], 32))
        batch = canvas(pictures, inner, outer, bgr=True) - MEAN_BGR[:, None, None]
        loc, conf, landm = self._run(batch)
        back = width / inner[1], height / inner[0]
        return [found_in(loc[i], conf[i], landm[i], *outer, minimum).scaled(*back) for i in range(len(pictures))]

    def _run(self, batch: Array) -> list[Array]:
        signature = self.model.signature
        name = signature.inputs[0].name
        if signature.inputs[0].shape[0] is None and all(len(port.shape) == 3 for port in signature.outputs):
            return self.model.run({name: batch}, self.outputs)
        parts = [self.model.run({name: batch[i : i + 1]}, self.outputs) for i in range(len(batch))]
        return [np.stack([part.reshape(-1, part.shape[-1]) for part in column]) for column in zip(*parts, strict=True)]


def open_file(path: Path, host: Host) -> RetinaFace:
    """The network in the file at ``path``. Raises BadModelFile if it is another kind."""
    model = OnnxModel(path, host)
    names = ports(model.signature)
    if names is None:
        raise BadModelFile(
            f"{path} is not RetinaFace in its PyTorch form, whose three outputs are 4, 2 and 10 wide; it has "
            f"{describe(model.signature)}. InsightFace's own det_*.onnx files belong to the detector scrfd."
        )
    height, width = model.signature.inputs[0].shape[2:]
    return RetinaFace(model, names, (height, width) if height and width else None)


@dataclass(frozen=True)
class _Entry:
    def names(self, host: Host) -> list[str]:
        return ["retinaface"] if own_files(host, PREFIXES) else []

    def open(self, name: str, host: Host) -> RetinaFace:
        files = own_files(host, PREFIXES)
        if not files:
            raise MissingModel(
                "the detector retinaface",
                "retinaface*.onnx",
                host.folders("likeness"),
                "Export it from github.com/biubug6/Pytorch_Retinaface, or take a file that others exported, and copy "
                "it there.",
            )
        return open_file(files[0], host)


detectors.add("retinaface", _Entry())
