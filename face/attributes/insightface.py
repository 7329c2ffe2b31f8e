"""The age and gender network of InsightFace's model packs (genderage.onnx)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ..errors import BadInput
from ..host import Host
from ..packs import ask, packs
from ..session import OnnxModel
from ..types import Face
from . import Guess, annotators

SIZE = 96


@dataclass(frozen=True)
class GenderAge:
    """The network opened."""

    model: OnnxModel

    def guess(self, picture: Tensor, faces: Sequence[Face]) -> list[Guess]:
        """Three numbers a face: odds of female and male, age / 100. model_zoo/attribute.py: Attribute.get."""
        _, answers = ask(self.model, picture, faces, SIZE)
        return [Guess(float(np.round(a[2] * 100)), "male" if a[1] > a[0] else "female") for a in answers]


@dataclass(frozen=True)
class _Entry:
    def names(self, host: Host) -> list[str]:
        return [name for name, pack in packs(host).items() if pack.genderage]

    def open(self, name: str, host: Host) -> GenderAge:
        found = {pack_name: pack.genderage for pack_name, pack in packs(host).items() if pack.genderage}
        path = found.get(name) or next(iter(found.values()), None)
        if path is None:
            folders = ", ".join(str(folder) for folder in host.folders("insightface"))
            raise BadInput(
                f"no model pack with an age and gender network was found in: {folders}. Put a pack such as buffalo_l "
                "there, as a folder of .onnx files, or choose age-gender."
            )
        return GenderAge(OnnxModel(path, host))


annotators.add("insightface", _Entry())
