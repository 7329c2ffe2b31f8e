"""The 468-point mesh as data: rings of points, triangles, the mean head. Left and right are the viewer's.

The numbering is MediaPipe's (Apache-2.0; github.com/google-ai-edge/mediapipe, face_mesh_connections.py). Triangles and
mean head are our own: the network's answers on 35 faces, aligned in space by generalised Procrustes analysis and made
symmetric; over them a Delaunay triangulation that keeps the rings of the lips, the eyes, the brows and the oval.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..types import Array

OVAL = (
    10, 338, 297, 332, 284, 251, 389, 356, 454, 323, 361, 288, 397, 365, 379, 378, 400, 377,
    152, 148, 176, 149, 150, 136, 172, 58, 132, 93, 234, 127, 162, 21, 54, 103, 67, 109,
)  # fmt: skip
"""The face's outline as a closed ring, clockwise as the viewer sees it, from the top of the forehead."""

LEFT_EYE = (33, 246, 161, 160, 159, 158, 157, 173, 133, 155, 154, 153, 145, 144, 163, 7)
"""The lids' edge as a closed ring, clockwise from the outer corner; index 4 is the upper lid, 12 the lower."""
RIGHT_EYE = (263, 466, 388, 387, 386, 385, 384, 398, 362, 382, 381, 380, 374, 373, 390, 249)
"""The mirror image of ``LEFT_EYE``, so counter-clockwise."""

LEFT_BROW = (70, 63, 105, 66, 107, 55, 65, 52, 53, 46)
"""Closed ring, clockwise from the outer end: above, then below."""
RIGHT_BROW = (300, 293, 334, 296, 336, 285, 295, 282, 283, 276)

LIPS_OUTER = (61, 185, 40, 39, 37, 0, 267, 269, 270, 409, 291, 375, 321, 405, 314, 17, 84, 181, 91, 146)
"""Closed ring, clockwise from the left corner."""
LIPS_INNER = (78, 191, 80, 81, 82, 13, 312, 311, 310, 415, 308, 324, 318, 402, 317, 14, 87, 178, 88, 95)
"""Closed ring around the mouth's interior, clockwise from the left corner."""

NOSE = (168, 351, 399, 420, 279, 278, 294, 327, 326, 2, 97, 98, 64, 48, 49, 198, 174, 122)
"""Closed ring around bridge and wings, clockwise from the bridge."""

NOSE_TIP = 4
LEFT_MOUTH, RIGHT_MOUTH = 61, 291

FROM_68 = (
    162, 234, 93, 58, 172, 136, 149, 148, 152, 377, 378, 365, 397, 288, 323, 454, 389,
    71, 63, 105, 66, 107, 336, 296, 334, 293, 301,
    168, 197, 5, 4, 75, 97, 2, 326, 305,
    33, 160, 158, 133, 153, 144, 362, 385, 387, 263, 373, 380,
    61, 39, 37, 0, 267, 269, 291, 405, 314, 17, 84, 181, 78, 82, 13, 312, 308, 317, 14, 87,
)  # fmt: skip
"""For each of the 68 points of the iBUG scheme the mesh point nearest in meaning."""

_DATA = np.load(Path(__file__).with_name("mesh.npz"))

MEAN: Array = _DATA["mean"].astype(np.float64)
"""(468, 3) the mean head looking straight ahead: x right, y down, z away from the camera; the origin lies between the
eyes' outer corners, whose distance is 1."""

MIRROR: Array = _DATA["mirror"].astype(np.int64)
"""(468,) for each point the one on the other side."""

TRIANGLES: Array = _DATA["triangles"].astype(np.int64)
"""(898, 3) triangles that fill the oval, eyes and mouth included; corners clockwise as the viewer sees them. One that
runs counter-clockwise in a picture shows its back: the head hides it there."""


def _within(*rings: tuple[int, ...]) -> Array:
    return np.asarray(np.stack([np.isin(TRIANGLES, ring).all(axis=1) for ring in rings]).any(axis=0))


MOUTH: Array = _within(LIPS_INNER)
"""(898,) bool: triangles of the mouth's interior, between the lips."""

EYES: Array = _within(LEFT_EYE, RIGHT_EYE)
"""(898,) bool: triangles of the eyes' interior, between the lids."""


def five(mesh: Array) -> Array:
    """(5, 2) the points of ``Face.points`` for a mesh (468, 2 or 3): centres of the eyes, nose tip, mouth corners."""
    eyes = [mesh[list(ring), :2].mean(0) for ring in (LEFT_EYE, RIGHT_EYE)]
    return np.stack([*eyes, mesh[NOSE_TIP, :2], mesh[LEFT_MOUTH, :2], mesh[RIGHT_MOUTH, :2]]).astype(np.float32)
