"""Plane geometry of faces: templates, the similarity that aligns, warping, boxes, suppression of doubles.

A *matrix* is ``(2, 3)`` float64, ``[A | t]``, and maps column points: ``A p + t``. Pixel centres lie on whole
numbers, as in OpenCV and in every published template.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import BadInput
from .types import Array

ARCFACE_112 = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]], np.float64
)
"""Where the five points lie in the 112 px crop of every ArcFace-trained network. insightface utils/face_align.py."""

FFHQ_512 = (
    np.array(
        [
            [0.37691676, 0.46864664],
            [0.62285697, 0.46912813],
            [0.50123859, 0.61331904],
            [0.39308822, 0.72541100],
            [0.61150205, 0.72490465],
        ],
        np.float64,
    )
    * 512
)
"""The same in the 512 px crop of restorers and FFHQ-trained swappers. facexlib utils/face_restoration_helper.py."""


def arcface_template(size: int) -> Array:
    """(5, 2) points for an ArcFace crop of ``size`` pixels.

    Multiples of 112 scale the template; multiples of 128 scale by 1/128 and shift by 8 px of 128
    (insightface utils/face_align.py: estimate_norm). Raises BadInput for other sizes.
    """
    if size % 112 == 0:
        return ARCFACE_112 * (size / 112)
    if size % 128 == 0:
        return (ARCFACE_112 + np.array([8.0, 0.0])) * (size / 128)
    raise BadInput(f"an ArcFace crop measures a multiple of 112 or of 128 pixels, not {size}")


def similarity(points: Array, template: Array) -> Array:
    """The similarity (rotation, one scale, shift) that takes ``points`` (N, 2) nearest to ``template`` (N, 2).

    Least squares over all points (Umeyama 1991 without reflection), not RANSAC: with a 3 px threshold on five points
    RANSAC drops those that an expression or a turned head has moved, and the crop jumps.
    """
    source, target = np.asarray(points, np.float64), np.asarray(template, np.float64)
    source_mean, target_mean = source.mean(0), target.mean(0)
    with np.errstate(over="ignore", invalid="ignore"):
        s, d = source - source_mean, target - target_mean
        spread = float((s * s).sum())
    if not np.isfinite(spread) or spread == 0:
        raise BadInput("the points to align all coincide or are not finite")
    a = float((s * d).sum()) / spread
    b = float((s[:, 0] * d[:, 1] - s[:, 1] * d[:, 0]).sum()) / spread
    if not np.isfinite(a + b) or a * a + b * b < 1e-18:
        raise BadInput("no rotation and scale takes these points to the template; they are mirrored or not finite")
    linear = np.array([[a, -b], [b, a]])
    return np.column_stack([linear, target_mean - linear @ source_mean])


def inverse(matrix: Array) -> Array:
    """The matrix that undoes ``matrix``."""
    linear = np.linalg.inv(matrix[:, :2])
    return np.column_stack([linear, -linear @ matrix[:, 2]])


def transform(matrix: Array, points: Array) -> Array:
    """``points`` (N, 2) moved by ``matrix``, float32."""
    return (np.asarray(points, np.float64) @ matrix[:, :2].T + matrix[:, 2]).astype(np.float32)


def warp(
    picture: Tensor, matrices: Array, size: tuple[int, int], border: str = "zeros", mode: str = "bilinear"
) -> Tensor:
    """Crops ``(N, C, h, w)`` of ``picture`` (H, W, C): pixel p of crop n shows the picture at ``inverse(m[n]) p``.

    ``matrices`` is (N, 2, 3) from picture to crop; ``size`` is (height, width); bilinear (or ``mode`` bicubic), no
    antialiasing, as the networks were trained. ``border``: ``zeros`` or ``border`` (repeat the edge). Works on the part
    of the picture that the crops show, so the cost does not depend on the picture's size.
    """
    height, width = size
    linear = np.linalg.inv(matrices[:, :, :2])
    shift = -(linear @ matrices[:, :, 2:])
    back = np.concatenate([linear, shift], 2)
    corners = np.array([[0, 0, 1], [width - 1, 0, 1], [0, height - 1, 1], [width - 1, height - 1, 1]], np.float64)
    crops: list[Tensor] = []
    ys, xs = torch.arange(height, dtype=torch.float32)[:, None], torch.arange(width, dtype=torch.float32)[None]
    h, w = picture.shape[:2]
    for m in back:
        seen = corners @ m.T
        # A margin of two pixels, so that the patch's own border is never sampled unless it is the picture's.
        x1, y1 = (int(max(0, min(v - 2, limit - 1))) for v, limit in zip(np.floor(seen.min(0)), (w, h), strict=True))
        x2, y2 = (int(max(1, min(v + 3, limit))) for v, limit in zip(np.ceil(seen.max(0)), (w, h), strict=True))
        x2, y2 = max(x2, x1 + 1), max(y2, y1 + 1)
        patch = picture[y1:y2, x1:x2].permute(2, 0, 1)[None]
        # grid_sample wants [-1, 1] over the pixel areas (align_corners=False): pixel i lies at (2 i + 1) / n - 1. That
        # is folded into the matrix, so that each coordinate takes one addition a pixel.
        (ax, bx, cx), (ay, by, cy) = (
            (2 * row[0] / n, 2 * row[1] / n, (2 * (row[2] - start) + 1) / n - 1)
            for row, start, n in ((m[0], x1, x2 - x1), (m[1], y1, y2 - y1))
        )
        gx, gy = float(ax) * xs + (float(bx) * ys + float(cx)), float(ay) * xs + (float(by) * ys + float(cy))
        grid = torch.stack([gx, gy], -1)[None]
        crops.append(F.grid_sample(patch, grid, mode=mode, padding_mode=border, align_corners=False))
    return torch.cat(crops) if crops else torch.zeros(0, picture.shape[2], height, width)


def resize(picture: Tensor, height: int, width: int) -> Tensor:
    """``picture`` (H, W, 3) as ``(1, 3, height, width)``, bilinear without antialiasing (OpenCV's INTER_LINEAR)."""
    nchw = picture.permute(2, 0, 1)[None]
    if tuple(nchw.shape[2:]) == (height, width):
        return nchw
    return F.interpolate(nchw, (height, width), mode="bilinear", align_corners=False)


def letterbox(picture: Tensor, height: int, width: int) -> tuple[Tensor, tuple[float, float]]:
    """``picture`` scaled to fit ``(1, 3, height, width)``, in the upper left corner, the rest 0.

    Also answers the factors ``(x, y)`` from picture to canvas pixels. Sizes are cut to whole pixels the way InsightFace
    does it (model_zoo/retinaface.py: detect), so that its boxes and ours agree.
    """
    h, w = picture.shape[:2]
    # Divided by the ratio, not multiplied by its inverse: the last bit decides whole numbers.
    if h / w > height / width:
        new_height, new_width = height, max(1, int(height / (h / w)))
    else:
        new_height, new_width = max(1, int(width * (h / w))), width
    scaled = resize(picture, new_height, new_width)
    canvas = F.pad(scaled, (0, width - new_width, 0, height - new_height))
    return canvas, (new_width / w, new_height / h)


def iou(box: Array, boxes: Array) -> Array:
    """Overlap of ``box`` (4,) with each of ``boxes`` (N, 4), intersection over union, 0 to 1."""
    overlap = np.minimum(box[2:], boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2])
    inside = np.prod(np.clip(overlap, 0, None), 1)
    areas = np.prod(np.clip(boxes[:, 2:] - boxes[:, :2], 0, None), 1)
    union = areas + max(float(np.prod(np.clip(box[2:] - box[:2], 0, None))), 0.0) - inside
    return np.divide(inside, union, out=np.zeros_like(inside), where=union > 0)


def suppress(boxes: Array, scores: Array, overlap: float, pixel: float = 0.0) -> Array:
    """Greedy non-maximum suppression: indices to keep, best first.

    ``boxes`` (N, 4), ``scores`` (N,); a box goes if its IoU with a better one exceeds ``overlap``. ``pixel`` 1 counts a
    box's width as x2 - x1 + 1, as py_cpu_nms and InsightFace do.
    """
    order = np.argsort(-scores, kind="stable")
    x1, y1, x2, y2 = (boxes[:, i].astype(np.float64) for i in range(4))
    areas = (x2 - x1 + pixel) * (y2 - y1 + pixel)
    keep: list[int] = []
    while order.size:
        best, rest = order[0], order[1:]
        keep.append(int(best))
        width = np.clip(np.minimum(x2[best], x2[rest]) - np.maximum(x1[best], x1[rest]) + pixel, 0, None)
        height = np.clip(np.minimum(y2[best], y2[rest]) - np.maximum(y1[best], y1[rest]) + pixel, 0, None)
        inside = width * height
        union = areas[best] + areas[rest] - inside
        order = rest[inside <= overlap * union]
    return np.array(keep, np.int64)


def hull(points: Array) -> Array:
    """The convex hull of ``points`` (N, 2): (M, 2) corners in order, float64. Andrew 1979, monotone chain."""
    ordered = np.unique(np.asarray(points, np.float64), axis=0).tolist()
    sides: list[list[list[float]]] = []
    for chain in (ordered, ordered[::-1]):
        side: list[list[float]] = []
        for x, y in chain:
            while len(side) > 1:
                (ax, ay), (bx, by) = side[-2], side[-1]
                if (bx - ax) * (y - ay) - (by - ay) * (x - ax) > 0:
                    break
                side.pop()
            side.append([x, y])
        sides.append(side[:-1])
    return np.array(sides[0] + sides[1] or ordered, np.float64)


def square(box: Array, grow: float = 1.0) -> tuple[float, float, float]:
    """Centre x, centre y and side of the square around ``box``, ``grow`` times its longer side."""
    x1, y1, x2, y2 = (float(v) for v in box)
    return (x1 + x2) / 2, (y1 + y2) / 2, max(x2 - x1, y2 - y1) * grow


def quarter_turns(points: Array, turns: int, height: int, width: int) -> Array:
    """``points`` (N, 2) of a (height, width) picture after ``torch.rot90(picture, turns)`` (counter-clockwise)."""
    x, y = points[:, 0], points[:, 1]
    turned = {
        0: (x, y),
        1: (y, width - 1 - x),
        2: (width - 1 - x, height - 1 - y),
        3: (height - 1 - y, x),
    }[turns % 4]
    return np.stack(turned, 1).astype(np.float32)
