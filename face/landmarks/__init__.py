"""Faces to dense landmarks: 468 points with depth, 68 or 106 points, and the head's pose.

To add a network is to add a file that enters a ``Landmarker`` into ``landmarkers``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ..errors import BadInput
from ..geometry import inverse, transform, warp
from ..host import STANDALONE, Host
from ..image import as_image, check_faces
from ..packs import explain
from ..pose import pose_of_five
from ..registry import Registry
from ..types import Array, Face, Faces, Pose

CHUNK = 16
"""Faces that go through a network together."""


@dataclass(frozen=True, eq=False)
class Marks:
    """What a network says of one face."""

    points: Array
    """(scheme, 2) or (scheme, 3) float32 pixels of the picture; depth in pixels, smaller is nearer to the camera."""
    pose: Pose | None = None


class Network(Protocol):
    """A landmark network opened."""

    @property
    def scheme(self) -> int:
        """How many points it gives: 68, 106 or 468."""
        ...

    def mark(self, picture: Tensor, faces: Sequence[Face]) -> list[Marks | None]:
        """The points of each of ``faces`` of ``picture`` (H, W, 3); None where the network sees no face."""
        ...


class Landmarker(Protocol):
    """One kind of landmark network."""

    def names(self, host: Host) -> list[str]:
        """What a user can choose of this kind now."""
        ...

    def open(self, name: str, host: Host) -> Sequence[Network]:
        """The networks chosen by ``name``: a model pack may have two."""
        ...


landmarkers: Registry[Landmarker] = Registry("landmarker", __name__, __path__)


def choices(host: Host = STANDALONE) -> list[str]:
    """Names for a combo box: the catalogue's landmarkers, then the model packs that have one."""
    order = ["mesh", *(name for name in landmarkers.names() if name != "mesh")]
    return list(dict.fromkeys(name for entry in order for name in landmarkers[entry].names(host)))


def networks(landmarker: str, host: Host = STANDALONE) -> Sequence[Network]:
    """The networks behind ``landmarker``: a registry name, or one of ``choices``. BadInput if there is none."""
    if landmarker in landmarkers:
        return landmarkers[landmarker].open(landmarker, host)
    for entry in landmarkers:
        if landmarker in entry.names(host):
            return entry.open(landmarker, host)
    raise BadInput(
        explain(landmarker, "landmarks106", host)
        or f"there is no landmarker called {landmarker!r}. Known: {', '.join(choices(host))}. A model pack must lie in "
        "models/insightface/models/<pack> and hold a landmark network."
    )


def landmark(image: Any, faces: Faces, landmarker: str = "mesh", *, host: Host = STANDALONE) -> Faces:
    """``faces`` of ``image`` (B, H, W, 3), each with its dense landmarks and its pose.

    Faces that carry the landmarks already are left alone. A face that the network does not recognise as one keeps what
    it has. The pose is the network's own where it gives one, else that of the five points.
    """
    image = as_image(image)
    check_faces(image, faces)
    opened = networks(landmarker, host)
    images: list[tuple[Face, ...]] = []
    for picture, found in zip(image, faces, strict=True):
        host.check_interrupt()
        for net in opened:
            found = _marked(net, picture, found)
        images.append(tuple(f if f.pose else replace(f, pose=pose_of_five(f.points)) for f in found))
    return faces.with_images(tuple(images))


def _marked(net: Network, picture: Tensor, faces: tuple[Face, ...]) -> tuple[Face, ...]:
    changed = list(faces)
    todo = [i for i, face in enumerate(faces) if net.scheme not in face.landmarks]
    for start in range(0, len(todo), CHUNK):
        part = todo[start : start + CHUNK]
        for i, marks in zip(part, net.mark(picture, [faces[i] for i in part]), strict=True):
            if marks is not None:
                face = changed[i]
                changed[i] = replace(
                    face, landmarks={**face.landmarks, net.scheme: marks.points}, pose=marks.pose or face.pose
                )
    return tuple(changed)


def upright_square(face: Face, size: int, grow: float, *, turned: bool) -> Array:
    """The matrix from the picture to a crop of ``size`` pixels: the square around the box, ``grow`` times its side.

    ``turned``: the crop turns with the line between the eyes, so that the face stands upright in it.
    """
    x, y = (float(v) for v in face.centre)
    scale = size / max(face.width * grow, face.height * grow, 1e-3)
    dx, dy = (float(v) for v in face.points[1] - face.points[0]) if turned else (1.0, 0.0)
    length = float(np.hypot(dx, dy)) or 1.0
    a, b = scale * dx / length, -scale * dy / length
    linear = np.array([[a, -b], [b, a]])
    return np.column_stack([linear, size / 2 - linear @ np.array([x, y])])


def crops(picture: Tensor, matrices: Array, size: int) -> Tensor:
    """(N, 3, size, size) crops in [0, 1], black beyond the border."""
    return warp(picture, matrices, (size, size)) if len(matrices) else torch.zeros(0, 3, size, size)


def to_picture(matrix: Array, points: Array) -> Array:
    """``points`` (N, 2) or (N, 3) of a crop as pixels of the picture; depth scales with them."""
    moved = transform(inverse(matrix), points[:, :2])
    if points.shape[1] == 2:
        return moved
    depth = points[:, 2:] / np.sqrt(abs(np.linalg.det(matrix[:, :2])))
    return np.concatenate([moved, depth], 1).astype(np.float32)
