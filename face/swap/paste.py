"""Putting an aligned crop back into its frame, InsightFace's way, at the cost of the face and not of the frame.

The recipe (insightface model_zoo/inswapper.py: INSwapper.get) warps the crop and a white square over the whole frame,
then erodes and blurs that frame. But the square's image is a convex shape: each row of it is an interval. Thresholding
and eroding it is arithmetic on the intervals' ends; blurring it along the rows is two look-ups in the kernel's running
sum; what remains is so smooth that it is computed on a coarse grid and interpolated, to within 1/255.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import BadInput
from ..geometry import inverse
from ..types import Array

WHITE = 20 / 255
"""What counts as inside the warped square, as in the recipe."""


@dataclass(frozen=True, eq=False)
class PasteMask:
    """How much of the crop shows, where it shows at all."""

    alpha: Tensor
    """(h, w) float32 in [0, 1]."""
    x: int
    y: int
    """Where its first pixel lies in the frame."""


def paste_back(frame: Tensor, crop: Tensor, matrix: Array) -> Tensor:
    """A copy of ``frame`` (H, W, 3) with ``crop`` (h, w, 3) blended in; see ``paste_back_``."""
    return paste_back_(frame.clone(), crop, matrix)


def paste_back_(frame: Tensor, crop: Tensor, matrix: Array) -> Tensor:
    """``frame`` (H, W, 3) with ``crop`` (h, w, 3) blended in, in place; both uint8, or both float32 in [0, 1].

    ``matrix`` (2, 3) is the one that cut the crop: from the frame's pixels to the crop's. Any order of the channels.
    Within 2/255 of InsightFace's ``INSwapper.get(..., paste_back=True)``. BadInput if the types or shapes disagree.
    """
    if frame.dtype != crop.dtype or frame.dtype not in (torch.uint8, torch.float32):
        raise BadInput(f"frame and crop must both be uint8 or both float32; got {frame.dtype} and {crop.dtype}")
    if frame.ndim != 3 or crop.ndim != 3 or frame.shape[2] != crop.shape[2] or min(crop.shape[:2]) < 2:
        raise BadInput(
            f"frame and crop must have the shapes (H, W, C) and (h, w, C); got {tuple(frame.shape)} and "
            f"{tuple(crop.shape)}"
        )
    found = paste_mask((frame.shape[0], frame.shape[1]), (crop.shape[0], crop.shape[1]), matrix)
    if found is None:
        return frame
    alpha, (height, width) = found.alpha, found.alpha.shape
    warped = _warp_back(crop, matrix, found)
    region = frame[found.y : found.y + height, found.x : found.x + width].numpy()
    shown, drawn = alpha.numpy(), warped.numpy()
    for channel in range(drawn.shape[0]):
        # One channel at a time stays in the processor's cache; numpy casts as it goes.
        below, plane = region[..., channel], drawn[channel]
        plane -= below
        plane *= shown
        plane += below
        if frame.dtype == torch.uint8:
            # To the nearest: where the crop shows alone, that is what the recipe does too.
            plane += 0.5
        np.copyto(below, plane, casting="unsafe")
    return frame


def _warp_back(crop: Tensor, matrix: Array, where: PasteMask) -> Tensor:
    """(C, h, w) float32: ``crop`` as the frame shows it in the region of ``where``."""
    height, width = where.alpha.shape
    size = np.array([crop.shape[1], crop.shape[0]], np.float64)
    # In float64 up to here: the two parts of the grid are then added in float32. grid_sample wants [-1, 1].
    x, y = np.arange(width) + where.x, np.arange(height) + where.y
    across = matrix[:, 0] * x[:, None] * 2 / size
    down = ((matrix[:, 1] * y[:, None] + matrix[:, 2]) * 2 + 1) / size - 1
    grid = torch.from_numpy(across.astype(np.float32))[None] + torch.from_numpy(down.astype(np.float32))[:, None]
    planes = crop.permute(2, 0, 1)[None].to(torch.float32)
    return F.grid_sample(planes, grid[None], mode="bilinear", padding_mode="zeros", align_corners=False)[0]


def paste_mask(frame: tuple[int, int], crop: tuple[int, int], matrix: Array) -> PasteMask | None:
    """The recipe's mask for a frame and a crop of these (height, width); None where nothing of the crop shows."""
    rows, left, right = _square(frame, crop, matrix)
    if len(rows) == 0:
        return None
    height, width = frame
    size = int(np.sqrt(float(rows[-1] - rows[0]) * float(right.max() - left.min())))
    rows, left, right = _erode(rows, left, right, max(size // 10, 10), frame)
    radius = max(size // 20, 5)
    if len(rows) == 0:
        return None
    # Between points so near to one another a blurred edge is as good as straight, within 0.7 / 255.
    stride = max(1, int(0.43 * _sigma(radius)))
    kernel = _gaussian(radius, stride)
    x1, x2 = max(0, int(left.min()) - radius), min(width, int(right.max()) + radius + 1)
    y1, y2 = max(0, int(rows[0]) - radius), min(height, int(rows[-1]) + radius + 1)
    xs = x1 + stride * np.arange(-(-(x2 - x1 - 1) // stride) + 1)
    ys = y1 + stride * np.arange(-(-(y2 - y1 - 1) // stride) + 1)
    along = _blur_rows(left, right, xs, kernel, width)
    weights = _blur_columns(rows, ys, kernel, height)
    coarse = torch.from_numpy(weights) @ torch.from_numpy(along)
    fine = ((len(ys) - 1) * stride + 1, (len(xs) - 1) * stride + 1)
    alpha = F.interpolate(coarse[None, None], fine, mode="bilinear", align_corners=True)[0, 0]
    return PasteMask(alpha[: y2 - y1, : x2 - x1].clamp_(0, 1), x1, y1)


def _square(frame: tuple[int, int], crop: tuple[int, int], matrix: Array) -> tuple[Array, Array, Array]:
    """The rows (n,) of the frame in which the white square shows, and in each its first and last column.

    A pixel is inside where bilinear reading of a white crop on black gives more than ``WHITE``. That is the product of
    two trapezoids, which is log-concave: its rows have one interval each, which bisection finds from any point inside.
    """
    height, width = frame
    corners = np.array([[-1.0, -1], [crop[1], -1], [crop[1], crop[0]], [-1, crop[0]]])
    back = inverse(matrix)
    seen = corners @ back[:, :2].T + back[:, 2]
    y1, y2 = max(0, int(np.ceil(seen[:, 1].min()))), min(height - 1, int(np.floor(seen[:, 1].max())))
    x1, x2 = max(0, int(np.ceil(seen[:, 0].min()))), min(width - 1, int(np.floor(seen[:, 0].max())))
    if y1 > y2 or x1 > x2 or not np.isfinite(seen).all():
        empty = np.zeros(0, np.int64)
        return empty, empty, empty
    rows = np.arange(y1, y2 + 1)
    at_x, at_y = matrix[:, :1, None], matrix[:, 1:2, None] * rows + matrix[:, 2:, None]
    most = np.array([crop[1], crop[0]], np.float64)[:, None, None]

    def white(x: Array) -> Array:
        """What the pixels at ``x`` (n, rows) read."""
        place = at_x * x + at_y
        part = np.minimum(np.minimum(place + 1, most - place), 1).clip(0)
        return part[0] * part[1]

    # Along a row that function peaks at a corner of one of the trapezoids, or midway between its zeros.
    with np.errstate(divide="ignore", invalid="ignore"):
        kinks = (np.concatenate([0 * most, most - 1, 0 * most - 1, most], 1) - at_y) / at_x
    kinks = np.nan_to_num(kinks, nan=x1, posinf=x2, neginf=x1)
    enter = np.minimum(kinks[:, 2], kinks[:, 3]).max(0)
    leave = np.maximum(kinks[:, 2], kinks[:, 3]).min(0)
    tried = np.concatenate([kinks[:, :2].reshape(4, -1), (enter + leave)[None] / 2])
    tried = np.concatenate([np.floor(tried), np.ceil(tried)]).clip(x1, x2).astype(np.int64)
    values = white(tried)
    best = values.argmax(0)[None]
    shown = np.take_along_axis(values, best, 0)[0] > WHITE
    # Bisection, both ends at once: ``inside`` reads more than WHITE, ``outside`` doesn't.
    inside = np.repeat(np.take_along_axis(tried, best, 0), 2, 0)
    outside = np.repeat(np.array([[x1 - 1], [x2 + 1]]), len(rows), 1)
    for _ in range(int(x2 - x1 + 2).bit_length()):
        middle = (inside + outside) // 2
        hit = white(middle) > WHITE
        open_ = np.abs(inside - outside) > 1
        inside, outside = np.where(open_ & hit, middle, inside), np.where(open_ & ~hit, middle, outside)
    return rows[shown], inside[0][shown], inside[1][shown]


def _erode(rows: Array, left: Array, right: Array, size: int, frame: tuple[int, int]) -> tuple[Array, Array, Array]:
    """The intervals after erosion by a square of ``size``, as by cv2.erode.

    Its anchor is size // 2, and what lies outside the frame is ignored.
    """
    height, width = frame
    before, after = size // 2, size - 1 - size // 2
    first = np.where(left == 0, 0, left + before)
    last = np.where(right == width - 1, width - 1, right - after)
    # A row outside the frame never takes anything away, an empty one inside it takes everything.
    top, bottom = (before if rows[0] == 0 else 0), (after if rows[-1] == height - 1 else 0)
    first = np.concatenate([np.zeros(top, np.int64), first, np.zeros(bottom, np.int64)])
    last = np.concatenate([np.full(top, width), last, np.full(bottom, width)])
    if len(first) < size:
        return rows[:0], left[:0], right[:0]
    first = np.lib.stride_tricks.sliding_window_view(first, size).max(1)
    last = np.lib.stride_tricks.sliding_window_view(last, size).min(1)
    rows = rows[0] - top + before + np.arange(len(first))
    kept = last >= first
    return rows[kept], first[kept], last[kept]


def _sigma(radius: int) -> float:
    """What cv2.GaussianBlur takes for a kernel of 2 radius + 1 when told sigma 0."""
    return 0.3 * (radius - 1) + 0.8


def _gaussian(radius: int, stride: int) -> Array:
    """(2 radius + 1,) float64, sums to 1: cv2.getGaussianKernel(2 * radius + 1, 0), less the blur of interpolation.

    Straight lines between points ``stride`` apart blur by a variance of stride² / 6 in the mean, which is taken off.
    """
    steps = np.arange(-radius, radius + 1, dtype=np.float64)
    variance = _sigma(radius) ** 2 - (stride**2 / 6 if stride > 1 else 0)
    kernel = np.exp(-0.5 * steps**2 / variance)
    return kernel / kernel.sum()


def _blur_rows(left: Array, right: Array, xs: Array, kernel: Array, width: int) -> Array:
    """(rows, columns) float32: each row's interval, blurred, at the columns ``xs``; the frame mirrors at its border."""
    radius = len(kernel) // 2
    running = np.concatenate([[0.0], np.cumsum(kernel)]).astype(np.float32)

    def interval(first: Array, last: Array) -> Array:
        """The share of the kernel about x that falls on [first, last]."""
        high = np.clip(last[:, None] - xs + (radius + 1), 0, 2 * radius + 1)
        low = np.clip(first[:, None] - xs + radius, 0, 2 * radius + 1)
        return running[high] - running[low]

    blurred = interval(left, right)
    # Reflection without the border pixel itself (BORDER_REFLECT_101): column -1 repeats column 1.
    if left.min() <= radius:
        blurred += interval(-right, np.minimum(-left, -1))
    if right.max() >= width - 1 - radius:
        blurred += interval(np.maximum(2 * (width - 1) - right, width), 2 * (width - 1) - left)
    return blurred


def _blur_columns(rows: Array, ys: Array, kernel: Array, height: int) -> Array:
    """(len(ys), len(rows)) float32: what each of ``rows`` gives to the blurred row ``ys``; mirrored as above."""
    radius = len(kernel) // 2
    padded = np.concatenate([[0.0], kernel, [0.0]]).astype(np.float32)

    def share(at: Array) -> Array:
        return padded[np.clip(at - ys[:, None] + radius + 1, 0, 2 * radius + 2)]

    weights = share(rows)
    if rows[0] <= radius:
        weights += np.where(rows > 0, share(-rows), 0)
    if rows[-1] >= height - 1 - radius:
        mirrored = 2 * (height - 1) - rows
        weights += np.where(mirrored > height - 1, share(mirrored), 0)
    return weights
