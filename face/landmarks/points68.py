"""The 68 points of the iBUG scheme by face-api.js (github.com/vladmandic/face-api, MIT)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ..errors import BadModelFile
from ..host import Host
from ..models import ModelCard, PackageSource, catalogue, find
from ..pose import pose_of_68
from ..session import OnnxModel
from ..types import Face
from . import Marks, crops, landmarkers, to_picture, upright_square

CARD = catalogue.add(
    ModelCard(
        name="landmarks68",
        kind="landmarker",
        file="landmarks68.onnx",
        licence="MIT",
        commercial=True,
        size=1435697,
        source=PackageSource(
            "npm",
            "@vladmandic/face-api",
            "1.7.15",
            "tgz",
            "package/model/face_landmark_68_model.bin",
            "4611ef65c87d836d03d684b30eec4d195d8b219fa1dd58fc58945831c6b9299b",
            more=(
                (
                    "package/model/face_landmark_68_model-weights_manifest.json",
                    "ca4886639f86e99b39fed0c155f81b63317225773bd9616716e887b0153389c9",
                ),
            ),
        ),
        convert="faceapi landmarks",
        converted="47be3a54ed796aed3531499e9ffd39a7bc15a173fd0207065e481be7a5a4a8df",
        about="face-api.js landmarks: 68 points (github.com/vladmandic/face-api).",
    )
)

SIZE = 112
GROW = 1.1
"""The crop is so many times the detector's box; against the mesh it does better than 1.0."""


@dataclass(frozen=True)
class Points68:
    """The network opened."""

    model: OnnxModel
    scheme: int = 68

    def mark(self, picture: Tensor, faces: Sequence[Face]) -> list[Marks | None]:
        """68 points of each face, and the pose they tell."""
        matrices = np.stack([upright_square(face, SIZE, GROW, turned=True) for face in faces])
        # RGB [0, 1] -> [0, 255]; mean and scale are inside the graph.
        batch = crops(picture, matrices, SIZE).mul_(255).numpy()
        answers = self.model.run_batch("image", batch)[0].reshape(len(faces), 68, 2) * SIZE
        points = [to_picture(matrix, answer) for matrix, answer in zip(matrices, answers, strict=True)]
        return [Marks(shape, pose_of_68(shape)) for shape in points]


@dataclass(frozen=True)
class _Entry:
    def names(self, host: Host) -> list[str]:
        return [CARD.name]

    def open(self, name: str, host: Host) -> Sequence[Points68]:
        model = OnnxModel(find(CARD, host), host)
        if [port.name for port in model.signature.inputs] != ["image"] or model.signature.outputs[0].shape[-1] != 136:
            raise BadModelFile(
                f"{model.path} is not the 68-point network, which takes `image` and answers 136 numbers a face. Delete "
                "it and fetch it again."
            )
        return [Points68(model)]


landmarkers.add("landmarks68", _Entry())
