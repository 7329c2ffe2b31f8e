"""How a head is turned, in degrees, from whatever points there are; signs as in ``types.Pose``.

Axes: x right, y down, z away from the camera. A head's rotation is read as roll after yaw after pitch, so turning the
picture by an angle adds it to the roll and leaves yaw and pitch as they are.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from .geometry import ARCFACE_112
from .types import Array, Pose

_EYES, _MOUTH = ARCFACE_112[:2].mean(0), ARCFACE_112[3:].mean(0)
_SPAN = float((_MOUTH - _EYES)[1] / (ARCFACE_112[1] - ARCFACE_112[0])[0])
"""From the eyes to the mouth in the ArcFace template, in distances between the eyes."""
_DROP = float((ARCFACE_112[2] - _EYES)[1] / (_MOUTH - _EYES)[1])
"""From the eyes to the nose there, in parts of the way from the eyes to the mouth."""


def angles(rotation: Array) -> tuple[float, float, float]:
    """Rotations about x, y and z in degrees, for ``rotation`` (3, 3) = Rz Ry Rx, as in InsightFace.

    insightface utils/transform.py: matrix2angle.
    """
    across = float(np.hypot(rotation[0, 0], rotation[1, 0]))
    if across < 1e-6:
        about_x, about_z = np.arctan2(-rotation[1, 2], rotation[1, 1]), 0.0
    else:
        about_x = np.arctan2(rotation[2, 1], rotation[2, 2])
        about_z = np.arctan2(rotation[1, 0], rotation[0, 0])
    about_y = np.arctan2(-rotation[2, 0], across)
    return float(np.degrees(about_x)), float(np.degrees(about_y)), float(np.degrees(about_z))


def pose_of_rotation(rotation: Array) -> Pose:
    """The pose for the ``rotation`` (3, 3) that takes the head looking straight ahead to the one in the picture."""
    about_x, about_y, about_z = angles(rotation)
    # Looking ahead is -z: a positive turn about y takes it to the viewer's left, one about x downwards.
    return Pose(yaw=-about_y, pitch=-about_x, roll=about_z)


def rigid_rotation(model: Array, shape: Array) -> Array:
    """The rotation (3, 3) that takes ``model`` (N, 3) nearest to ``shape`` (N, 3), whatever its size and place.

    Orthogonal Procrustes without reflection (Schönemann 1966; Umeyama 1991).
    """
    a, b = model - model.mean(0), shape - shape.mean(0)
    u, _, vt = np.linalg.svd(b.T @ a)
    return u @ np.diag([1.0, 1.0, np.sign(np.linalg.det(u @ vt))]) @ vt


def affine_rotation(model: Array, points: Array) -> Array:
    """The rotation (3, 3) of an affine camera that shows ``model`` (N, 3) at ``points`` (N, 2 or more).

    Least squares for the two rows that make x and y, each normalised; the third is their cross product. Depth in
    ``points`` is not used. insightface utils/transform.py: estimate_affine_matrix_3d23d, P2sRt.
    """
    homogeneous = np.column_stack([model, np.ones(len(model))])
    camera = np.linalg.lstsq(homogeneous, np.asarray(points[:, :2], np.float64), rcond=None)[0].T[:, :3]
    x, y = (row / max(float(np.linalg.norm(row)), 1e-12) for row in camera)
    return np.stack([x, y, np.cross(x, y)])


@lru_cache(maxsize=1)
def _rigid() -> Array:
    """Numbers of the mesh points that no expression moves: all but the mouth, the lids and the lower face.

    Imported late, because ``landmarks`` itself imports this file.
    """
    from .landmarks.topology import LEFT_EYE, MEAN, NOSE_TIP, RIGHT_EYE

    moving = MEAN[:, 1] > MEAN[NOSE_TIP, 1] + 0.05
    moving[[*LEFT_EYE, *RIGHT_EYE]] = True
    return np.flatnonzero(~moving)


def pose_of_mesh(mesh: Array) -> Pose:
    """The pose for 468 points with depth, ``mesh`` (468, 3) pixels: the mean head laid over them in space."""
    from .landmarks.topology import MEAN

    rows = _rigid()
    return pose_of_rotation(rigid_rotation(MEAN[rows], np.asarray(mesh[rows], np.float64)))


def pose_of_68(points: Array) -> Pose:
    """The pose for 68 points, (68, 2 or 3) pixels: the affine camera under which the mean head falls on them."""
    from .landmarks.topology import FROM_68, MEAN

    return pose_of_rotation(affine_rotation(MEAN[list(FROM_68)], points))


@lru_cache(maxsize=1)
def _nose() -> float:
    """How far the mean head's nose tip stands out of the plane of eyes and mouth, in distances between the eyes."""
    from .landmarks.topology import LEFT_EYE, LEFT_MOUTH, MEAN, NOSE_TIP

    eye, mouth, nose = MEAN[list(LEFT_EYE)].mean(0), MEAN[LEFT_MOUTH], MEAN[NOSE_TIP]
    share = (nose[1] - eye[1]) / (mouth[1] - eye[1])
    plane = eye[2] + share * (mouth[2] - eye[2])
    return float((plane - nose[2]) / (2 * abs(eye[0])))


def pose_of_five(points: Array) -> Pose:
    """A coarse pose for the five points (5, 2): where the nose lies between eyes and mouth tells how it points.

    The face whose points are the ArcFace template looks straight ahead. Yaw and roll are as good as the points, within
    about ten degrees; pitch is no more than a hint.
    """
    p = np.asarray(points, np.float64)
    eyes, mouth = (p[0] + p[1]) / 2, (p[3] + p[4]) / 2
    across = p[1] - p[0]
    length = float(np.hypot(across[0], across[1]))
    if not np.isfinite(length) or length == 0:
        return Pose(0.0, 0.0, 0.0)
    right = across / length
    down = np.array([-right[1], right[0]])
    nose = p[2] - eyes
    span = max(float((mouth - eyes) @ down), 1e-6 * length)
    yaw = np.degrees(np.arctan2(float(nose @ right) / length, _nose()))
    # Looking up lifts the nose tip against the plane of eyes and mouth.
    pitch = np.degrees(np.arctan2((_DROP - float(nose @ down) / span) * _SPAN, _nose()))
    return Pose(float(yaw), float(pitch), float(np.degrees(np.arctan2(right[1], right[0]))))
