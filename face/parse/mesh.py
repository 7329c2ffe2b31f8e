"""The 468-point mesh as a parser: skin, brows, eyes, nose, lips and mouth. What is outside the face is background.

It knows neither hair nor ears, glasses or hats; for these a network is needed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..draw import fill
from ..errors import BadInput
from ..host import Host
from ..landmarks import topology
from ..types import Face
from . import LABELS, MESH, parsers

_RINGS = (
    ("skin", topology.OVAL),
    ("nose", topology.NOSE),
    ("left brow", topology.LEFT_BROW),
    ("right brow", topology.RIGHT_BROW),
    ("left eye", topology.LEFT_EYE),
    ("right eye", topology.RIGHT_EYE),
    ("upper lip", topology.LIPS_OUTER),
    ("mouth", topology.LIPS_INNER),
)
"""What is drawn, one over the other."""


@dataclass(frozen=True)
class _Mesh:
    def names(self, host: Host) -> list[str]:
        return [MESH]

    def parse(self, name: str, picture: Tensor, face: Face | None, host: Host) -> Tensor:
        if face is None or 468 not in face.landmarks:
            raise BadInput(
                "parsing a face by its mesh needs the 468 points: detect the faces with landmarks set to mesh"
            )
        height, width = int(picture.shape[0]), int(picture.shape[1])
        mesh = face.landmarks[468]
        labels = torch.zeros(height, width, dtype=torch.int64)
        for part, ring in _RINGS:
            inside = fill(mesh[list(ring), :2], height, width) > 0.5
            labels[inside] = LABELS.index(part)
        # The lips are one ring; below the line between the corners they are the lower one.
        left, right = (mesh[n, :2] for n in (topology.LEFT_MOUTH, topology.RIGHT_MOUTH))
        y, x = torch.meshgrid(torch.arange(height).float(), torch.arange(width).float(), indexing="ij")
        run, rise = float(right[0] - left[0]), float(right[1] - left[1])
        below = (y - float(left[1])) * run > (x - float(left[0])) * rise
        labels[(labels == LABELS.index("upper lip")) & below] = LABELS.index("lower lip")
        return labels


parsers.add(MESH, _Mesh())
