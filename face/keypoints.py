"""The picture of five points that InstantID's ControlNet was trained on.

InstantID 2145b67 pipeline_stable_diffusion_xl_instantid.py: draw_kps. Its OpenCV calls (ellipse2Poly, fillConvexPoly,
circle) are redrawn here from the same whole numbers, so that no OpenCV is needed.
"""

from __future__ import annotations

from math import atan2, degrees

import numpy as np
import torch
from torch import Tensor

from .errors import BadInput
from .types import Array, Faces

COLOURS = ((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (255, 0, 255))
"""RGB of left eye, right eye, nose, left and right mouth corner."""
LIMBS = ((0, 2), (1, 2), (3, 2), (4, 2))
HALF_WIDTH = 4
RADIUS = 10
DIM = 0.6
"""The limbs are so much darker than the points."""

_DEGREES = np.radians(np.arange(361))
# OpenCV's table of sines has seven digits, in float32.
_SIN, _COS = (np.round(f(_DEGREES), 7).astype(np.float32).astype(np.float64) for f in (np.sin, np.cos))


def keypoints_image(points: Array, height: int, width: int) -> Tensor:
    """Five points (5, 2), or those of several faces (N, 5, 2), in pixels as a picture (height, width, 3) on black.

    Line width and radius are InstantID's, 8 and 10 pixels at any size. Faces overlap in their order.
    Raises BadInput for points of another shape or that are not finite.
    """
    faces = np.asarray(points, np.float32)
    faces = faces[None] if faces.ndim == 2 else faces
    if faces.ndim != 3 or faces.shape[1:] != (5, 2) or not np.isfinite(faces).all():
        raise BadInput(f"a keypoints picture is drawn from finite points of shape (5, 2); got {np.shape(points)}")
    canvas = np.zeros((height, width, 3), np.uint8)
    for face in faces:
        for first, last in LIMBS:
            _limb(canvas, face[[first, last]], COLOURS[first])
    canvas = (canvas * DIM).astype(np.uint8)
    for face in faces:
        for (x, y), colour in zip(face, COLOURS, strict=True):
            _disc(canvas, int(x), int(y), colour)
    return torch.from_numpy(canvas).to(torch.float32) / 255


def draw(faces: Faces) -> Tensor:
    """One keypoints picture for every picture of ``faces``, all of one size: (B, H, W, 3), black without a face."""
    if len(set(faces.sizes)) > 1:
        raise BadInput("one batch of keypoints pictures has one size, but the faces come from pictures of several")
    height, width = faces.sizes[0] if faces.sizes else (0, 0)
    pictures = [keypoints_image(_stacked([f.points for f in group]), height, width) for group in faces]
    return torch.stack(pictures) if pictures else torch.zeros(0, height, width, 3)


def _stacked(points: list[Array]) -> Array:
    return np.stack(points) if points else np.zeros((0, 5, 2), np.float32)


def _limb(canvas: Array, ends: Array, colour: tuple[int, int, int]) -> None:
    """A thin ellipse from the first to the last of ``ends`` (2, 2), filled."""
    x, y = ends[:, 0], ends[:, 1]
    length = float(((x[0] - x[1]) ** 2 + (y[0] - y[1]) ** 2) ** 0.5)
    angle = int(degrees(atan2(y[0] - y[1], x[0] - x[1]))) % 360
    along, across = int(length / 2) * _COS, HALF_WIDTH * _SIN
    outline = np.stack(
        [
            int(np.mean(x)) + along * _COS[angle] - across * _SIN[angle],
            int(np.mean(y)) + along * _SIN[angle] + across * _COS[angle],
        ],
        1,
    )
    _fill_convex(canvas, np.rint(outline).astype(np.int64), colour)


def _fill_convex(canvas: Array, polygon: Array, colour: tuple[int, int, int]) -> None:
    """The rows between the outermost pixels of a convex polygon (N, 2) of whole numbers, its outline included."""
    height, width = canvas.shape[:2]
    outline = np.concatenate([_lines(polygon), _sides(polygon)])
    top = outline[:, 1].min()
    rows = int(outline[:, 1].max() - top + 1)
    left, right = np.full(rows, np.iinfo(np.int64).max), np.full(rows, np.iinfo(np.int64).min)
    np.minimum.at(left, outline[:, 1] - top, outline[:, 0])
    np.maximum.at(right, outline[:, 1] - top, outline[:, 0])
    for row in range(max(0, top), min(height, top + rows)):
        canvas[row, max(0, left[row - top]) : max(0, min(width, right[row - top] + 1))] = colour


def _lines(polygon: Array) -> Array:
    """The pixels (M, 2) of the polygon's edges, from the left end to the right; halves go towards the left end."""
    start, end = polygon, np.roll(polygon, -1, 0)
    swap = (end[:, 0] < start[:, 0])[:, None]
    start, end = np.where(swap, end, start), np.where(swap, start, end)
    way = end - start
    length = np.abs(way).max(1)
    edge, step = _counted(length + 1)
    # ceil(step |way| / length - 1/2) in whole numbers
    far = -((length[edge, None] - 2 * step[:, None] * np.abs(way[edge])) // np.maximum(2 * length[edge, None], 1))
    return start[edge] + np.sign(way[edge]) * far


def _sides(polygon: Array) -> Array:
    """The pixels (M, 2) where the rows cross the polygon's edges, by OpenCV's steps of 1/65536 pixel."""
    start, end = polygon, np.roll(polygon, -1, 0)
    up = (end[:, 1] < start[:, 1])[:, None]
    start, end = np.where(up, end, start), np.where(up, start, end)
    width, height = (end - start).T
    edge, step = _counted(height)
    twice = 2 * np.maximum(height, 1)
    slope = np.trunc(((width << 17) + height) / twice).astype(np.int64)
    return np.stack([start[edge, 0] + ((step * slope[edge] + (1 << 15)) >> 16), start[edge, 1] + step], 1)


def _counted(counts: Array) -> tuple[Array, Array]:
    """For counts (2, 3): which one, 0 0 1 1 1, and its number, 0 1 0 1 2."""
    which = np.repeat(np.arange(len(counts)), counts)
    return which, np.arange(len(which)) - np.repeat(np.cumsum(counts) - counts, counts)


def _disc(canvas: Array, x: int, y: int, colour: tuple[int, int, int]) -> None:
    """The pixels of OpenCV's filled circle, drawn by its error-accumulating steps."""
    height, width = canvas.shape[:2]
    dx, dy, error, plus, minus = RADIUS, 0, 0, 1, 2 * RADIUS - 1
    while dx >= dy:
        for row, half in ((y - dy, dx), (y + dy, dx), (y - dx, dy), (y + dx, dy)):
            if 0 <= row < height:
                canvas[row, max(0, x - half) : max(0, min(width, x + half + 1))] = colour
        dy += 1
        error += plus
        plus += 2
        if error > 0:
            error -= minus
            dx -= 1
            minus -= 2
