"""Small drawing: polygons as soft masks, with exact coverage at the edges."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .types import Array

ROWS = 8
"""Scan lines per pixel row; along a line, coverage is exact to 1/256 of a pixel."""


def fill(polygon: Array, height: int, width: int) -> Tensor:
    """The part of every pixel that lies inside ``polygon`` (N, 2): (height, width), 0 to 1, pixel centres whole.

    Vertices may lie outside the picture. Scan conversion by signed coverage: an edge adds, to the pixel it crosses,
    what lies right of it and 1 to all further ones, with the sign of its direction; the running sum is the coverage.
    Where the outline winds around more than once is inside as well.
    """
    corners = np.asarray(polygon, np.float64) + 0.5
    limit = np.array([width, height])
    left, top = (int(v) for v in np.clip(np.floor(corners.min(0)), 0, limit))
    right, bottom = (int(v) for v in np.clip(np.ceil(corners.max(0)), 0, limit))
    cover = torch.zeros(height, width)
    if right > left and bottom > top:
        cover[top:bottom, left:right] = _fill(corners - (left, top), bottom - top, right - left)
    return cover


def _fill(corners: Array, height: int, width: int) -> Tensor:
    """As ``fill``, over the whole of (height, width); pixel (0, 0) covers [0, 1] x [0, 1]."""
    x1, y1 = corners.T
    x2, y2 = np.roll(corners, -1, 0).T
    # Scan line k lies at y = (k + 0.5) / ROWS; an edge crosses the lines from first to last - 1.
    first, last = (
        np.ceil(np.clip(end(y1, y2), 0, height) * ROWS - 0.5).astype(np.int64) for end in (np.minimum, np.maximum)
    )
    crossed = last - first
    edge = np.repeat(np.arange(len(x1)), crossed)
    line = np.arange(len(edge)) - np.repeat(np.cumsum(crossed) - crossed, crossed) + first[edge]
    along = ((line + 0.5) / ROWS - y1[edge]) / (y2 - y1)[edge]
    x = np.clip(x1[edge] + along * (x2 - x1)[edge], 0, width)
    # Counted in whole 256ths, so that what one edge adds another takes away without a rest.
    x256 = np.round(x * 256).astype(np.int32)
    column = x256 // 256
    inside = (column + 1) * 256 - x256
    sign = np.sign(y2 - y1)[edge].astype(np.int32)
    cover = np.zeros((height, width + 2), np.int32)
    np.add.at(cover, (line // ROWS, column), sign * inside)
    np.add.at(cover, (line // ROWS, column + 1), sign * (256 - inside))
    np.cumsum(cover, 1, out=cover)
    return torch.from_numpy(cover[:, :width]).abs().clamp_(max=256 * ROWS) / (256 * ROWS)
