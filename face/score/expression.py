"""How far mouth and eyes are open, and how the head is turned: what an edit should have left as it was."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from ..types import Array, Face, Pose


@dataclass(frozen=True)
class _Gaps:
    """Index pairs of one landmark scheme; upper point first, viewer's left and right."""

    mouth: tuple[tuple[int, int], ...]
    left_eye: tuple[tuple[int, int], ...]
    right_eye: tuple[tuple[int, int], ...]
    left_corners: tuple[int, int]
    right_corners: tuple[int, int]


_SCHEMES: Mapping[int, _Gaps] = MappingProxyType(
    {
        # MediaPipe's canonical face model: inner lips, eyelids, eye corners.
        468: _Gaps(
            mouth=((82, 87), (13, 14), (312, 317)),
            left_eye=((160, 144), (159, 145), (158, 153)),
            right_eye=((385, 380), (386, 374), (387, 373)),
            left_corners=(33, 133),
            right_corners=(362, 263),
        ),
        # iBUG 300-W.
        68: _Gaps(
            mouth=((61, 67), (62, 66), (63, 65)),
            left_eye=((37, 41), (38, 40)),
            right_eye=((43, 47), (44, 46)),
            left_corners=(36, 39),
            right_corners=(42, 45),
        ),
    }
)


@dataclass(frozen=True)
class Openings:
    """How far things are open, in parts of the distance between the eyes' centres (about 63 mm in adults)."""

    mouth: float
    """Between the inner lips: under .05 closed, .2 to .3 a broad smile that shows teeth."""
    left_eye: float
    """Between the lids of the viewer's left eye: about .1 open, under .045 closed."""
    right_eye: float

    def change(self, other: Openings) -> float:
        """Mean absolute difference of the three."""
        return (
            abs(self.mouth - other.mouth) + abs(self.left_eye - other.left_eye) + abs(self.right_eye - other.right_eye)
        ) / 3


def openings(face: Face) -> Openings | None:
    """The openings of ``face``, from 468 landmarks or else 68; None if it has neither or they are degenerate.

    With 468 points distances are measured in space, so that a turned head does not look wide-eyed: its eye distance
    shrinks in the picture, its lids' gap does not.
    """
    for scheme, gaps in _SCHEMES.items():
        if scheme in face.landmarks:
            points = np.asarray(face.landmarks[scheme], np.float64)
            between = _centre(points, gaps.right_corners) - _centre(points, gaps.left_corners)
            unit = float(np.linalg.norm(between))
            if not np.isfinite(points).all() or unit == 0:
                continue
            return Openings(
                *(_gap(points, pairs) / unit for pairs in (gaps.mouth, gaps.left_eye, gaps.right_eye)),
            )
    return None


def expression_error(face: Face, target: Face) -> float | None:
    """Mean change of mouth and eyes between two faces, in parts of the eye distance; None without landmarks.

    Both are measured in one landmark scheme: schemes place lids and lips differently.
    """
    for scheme in _SCHEMES:
        if scheme in face.landmarks and scheme in target.landmarks:
            a, b = (openings(_only(f, scheme)) for f in (face, target))
            if a is not None and b is not None:
                return a.change(b)
    return None


def opened_or_closed(face: Face, target: Face) -> bool:
    """Whether an eye or the mouth is open in one face and shut in the other; False without landmarks.

    The mean change is blind to a wink: a shut eye moves its lids by a twelfth of the eye distance, and two things out
    of three stayed as they were. What is neither clearly open nor clearly shut is not counted.
    """
    shared = next((s for s in _SCHEMES if s in face.landmarks and s in target.landmarks), None)
    if shared is None:
        return False
    a, b = (openings(_only(f, shared)) for f in (face, target))
    if a is None or b is None:
        return False
    return (
        _flipped(a.mouth, b.mouth, 0.05, 0.12)
        or _flipped(a.left_eye, b.left_eye, 0.045, 0.075)
        or _flipped(a.right_eye, b.right_eye, 0.045, 0.075)
    )


def _flipped(a: float, b: float, shut: float, wide: float) -> bool:
    return min(a, b) < shut and max(a, b) > wide


def pose_error(pose: Pose, target: Pose) -> float:
    """The one angle, in degrees, by which a head in ``target`` has to turn to come into ``pose``; 0 to 180.

    The geodesic distance of the two rotations: for one changed axis its difference, for small changes of several the
    root of the sum of squares; it does not break where yaw, pitch and roll trade places.
    """
    turn = _rotation(pose).T @ _rotation(target)
    # arctan2 of sine and cosine: arccos alone loses everything below a tenth of a degree.
    sine = np.linalg.norm([turn[2, 1] - turn[1, 2], turn[0, 2] - turn[2, 0], turn[1, 0] - turn[0, 1]]) / 2
    return float(np.degrees(np.arctan2(sine, (np.trace(turn) - 1) / 2)))


def _rotation(pose: Pose) -> Array:
    """(3, 3) Rz Ry Rx with the signs of ``face.pose``: yaw and pitch are taken against the axes."""
    x, y, z = np.radians([-pose.pitch, -pose.yaw, pose.roll])
    about_x = np.array([[1, 0, 0], [0, np.cos(x), -np.sin(x)], [0, np.sin(x), np.cos(x)]])
    about_y = np.array([[np.cos(y), 0, np.sin(y)], [0, 1, 0], [-np.sin(y), 0, np.cos(y)]])
    about_z = np.array([[np.cos(z), -np.sin(z), 0], [np.sin(z), np.cos(z), 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


def _only(face: Face, scheme: int) -> Face:
    return Face(face.box, face.points, face.confidence, {scheme: face.landmarks[scheme]})


def _centre(points: Array, pair: tuple[int, int]) -> Array:
    return (points[pair[0]] + points[pair[1]]) / 2


def _gap(points: Array, pairs: tuple[tuple[int, int], ...]) -> float:
    upper, lower = (points[[pair[i] for pair in pairs]] for i in (0, 1))
    return float(np.linalg.norm(upper - lower, axis=1).mean())
