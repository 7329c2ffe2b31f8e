"""The piecewise-affine warp: which point of one mesh lies under each pixel of another.

The pixels under a mesh are drawn once (``rasterise``); any values that its vertices carry (where they lie in another
picture, how visible they are) then spread over the pixels by ``Raster.spread``, linear within a triangle and
continuous between triangles, so that there are no cracks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..types import Array


@dataclass(frozen=True, eq=False)
class Raster:
    """A triangle mesh drawn on a grid of pixels."""

    triangle: Array
    """(h, w) int32: the nearest triangle under the pixel's centre, -1 where there is none."""
    corners: Array
    """(n, 3) int: the three vertices of the triangle under each covered pixel, in the order of ``covered``."""
    weights: Array
    """(n, 3) float32: the barycentric weights of those vertices, 0 to 1, summing to 1."""

    @property
    def covered(self) -> Array:
        """(h, w) bool."""
        return self.triangle >= 0

    def spread(self, values: Array, outside: float = 0.0) -> Array:
        """``values`` (V, C) of the vertices as (h, w, C) float32 over the pixels; ``outside`` where no triangle is."""
        out = np.full((*self.triangle.shape, values.shape[1]), outside, np.float32)
        gathered = values.astype(np.float32)[self.corners]
        out[self.covered] = np.einsum("nk,nkc->nc", self.weights, gathered)
        return out


def facing(points: Array, triangles: Array) -> Array:
    """(T,) twice the signed area of each triangle of ``points`` (V, 2+); positive as MediaPipe's mesh faces us."""
    a, b, c = (points[triangles[:, k], :2].astype(np.float64) for k in range(3))
    u, v = b - a, c - a
    return u[:, 0] * v[:, 1] - u[:, 1] * v[:, 0]


def rasterise(points: Array, triangles: Array, height: int, width: int) -> Raster:
    """The mesh ``points`` (V, 2 or 3: x, y and depth, smaller is nearer) drawn on ``height`` by ``width`` pixels.

    Pixel (0, 0) has its centre at 0, 0. Where triangles overlap, as on a turned head, the nearest wins. All triangles
    are tried at once on the pixels of their own boxes, which costs about three times the mesh's area.
    """
    xy = points[:, :2].astype(np.float64)
    corner = xy[triangles]
    area = facing(points, triangles)
    low = np.maximum(np.ceil(corner.min(1)).astype(np.int64), 0)
    high = np.minimum(np.floor(corner.max(1)).astype(np.int64), [width - 1, height - 1])
    size = np.clip(high - low + 1, 0, None)
    usable = (np.abs(area) > 1e-9) & (size.prod(1) > 0)
    # Far ones first: a later write to the same pixel wins.
    depth = points[triangles, 2].mean(1) if points.shape[1] > 2 else np.zeros(len(triangles))
    order = np.flatnonzero(usable)
    order = order[np.argsort(-depth[order], kind="stable")]
    low, size, count = low[order], size[order], size[order].prod(1)
    which = np.repeat(np.arange(len(order)), count)
    step = np.arange(int(count.sum())) - np.repeat(np.cumsum(count) - count, count)
    x = low[which, 0] + step % size[which, 0]
    y = low[which, 1] + step // size[which, 0]
    a, b, c = (corner[order, k] for k in range(3))
    inverse_area = 1.0 / area[order]

    def weight(p: Array, q: Array) -> Array:
        """The barycentric weight of the corner opposite to the edge from p to q."""
        ex, ey = (q - p)[:, 0] * inverse_area, (q - p)[:, 1] * inverse_area
        return ex[which] * (y - p[which, 1]) - ey[which] * (x - p[which, 0])

    wa, wb = weight(b, c), weight(c, a)
    wc = 1.0 - wa - wb
    # A little slack, so that a pixel exactly on an edge belongs to a triangle whatever the rounding.
    inside = np.flatnonzero((wa >= -1e-6) & (wb >= -1e-6) & (wc >= -1e-6))
    picked = np.full(height * width, -1, np.int64)
    picked[y[inside] * width + x[inside]] = inside
    hit = picked[picked >= 0]
    triangle = np.full(height * width, -1, np.int32)
    triangle[picked >= 0] = order[which[hit]]
    weights = np.clip(np.stack([wa[hit], wb[hit], wc[hit]], 1), 0, 1).astype(np.float32)
    return Raster(triangle.reshape(height, width), triangles[order[which[hit]]], weights)


def sample(picture: Tensor, where: Tensor, mode: str = "bilinear") -> Tensor:
    """``picture`` (H, W, C) read at ``where`` (h, w, 2: x, y in pixels), as (h, w, C); the border repeats."""
    height, width = picture.shape[:2]
    scale = torch.tensor([2 / width, 2 / height])
    grid = (where * scale + (scale / 2 - 1))[None]
    nchw = picture.permute(2, 0, 1)[None]
    read = F.grid_sample(nchw, grid, mode=mode, padding_mode="border", align_corners=False)
    return read[0].permute(1, 2, 0)


def shrink(picture: Tensor, factor: float) -> Tensor:
    """``picture`` (H, W, C) made ``factor`` (at least 1) times smaller without aliasing; unchanged below 1.05."""
    if factor < 1.05:
        return picture
    height, width = (max(2, round(n / factor)) for n in picture.shape[:2])
    nchw = picture.permute(2, 0, 1)[None]
    small = F.interpolate(nchw, (height, width), mode="bilinear", align_corners=False, antialias=True)
    return small[0].permute(1, 2, 0)
