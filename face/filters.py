"""Soft masks made larger, smaller and softer: a disc-shaped grow and a Gaussian blur, both cheap on one thread."""

from __future__ import annotations

from math import ceil, isqrt

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import BadInput
from .types import Array

WHOLE = 65535


def gaussian_blur(mask: Tensor, sigma: float) -> Tensor:
    """``mask`` (…, H, W) convolved with a Gaussian of ``sigma`` pixels, its edge pixels repeated outside.

    Within 1/50 of the exact convolution: a wide Gaussian is computed on a grid of half a sigma, whose averaging and
    interpolation are taken off its variance, so that the cost hardly depends on sigma. Below 0.1 nothing changes.
    """
    if not 0 <= sigma < float("inf"):
        raise BadInput(f"a blur needs a sigma of 0 or more pixels; got {sigma}")
    if sigma < 0.1 or mask.numel() == 0:
        return mask
    height, width = mask.shape[-2:]
    field = mask.to(torch.float32).reshape(-1, 1, height, width)
    step = max(1, int(sigma / 2))
    if step == 1:
        return _blur_rows(_blur_rows(field, sigma).mT, sigma).mT.reshape(mask.shape)
    border = ceil(3 * sigma / step) * step
    field = F.pad(field, (border, border + -width % step, border, border + -height % step), mode="replicate")
    # A box of n pixels has the variance (n² - 1) / 12, linear interpolation over n pixels adds about n² / 6.
    rest = (sigma**2 - (step**2 - 1) / 12 - step**2 / 6) ** 0.5 / step
    field = _blur_rows(_blur_rows(F.avg_pool2d(field, step), rest).mT, rest).mT
    field = F.interpolate(field, scale_factor=step, mode="bilinear", align_corners=False)
    return field[..., border : border + height, border : border + width].reshape(mask.shape)


def _blur_rows(field: Tensor, sigma: float) -> Tensor:
    """Blur (N, 1, H, W) down its columns: whole rows are added, which is faster than a convolution of one channel."""
    radius = max(1, ceil(3 * sigma))
    kernel = np.exp(-0.5 * (np.arange(radius + 1) / sigma) ** 2)
    kernel /= kernel[0] + 2 * kernel[1:].sum()
    height = field.shape[-2]
    padded = F.pad(field, (0, 0, radius, radius), mode="replicate").numpy()
    total = padded[..., radius : radius + height, :] * np.float32(kernel[0])
    pair = np.empty_like(total)
    for i in range(1, radius + 1):
        np.add(padded[..., radius - i : radius - i + height, :], padded[..., radius + i : radius + i + height, :], pair)
        pair *= np.float32(kernel[i])
        total += pair
    return torch.from_numpy(total)


def grow(mask: Tensor, pixels: float) -> Tensor:
    """``mask`` (H, W) in [0, 1] with its edge moved outwards by ``pixels``, inwards if negative; rounded to whole ones.

    The largest (smallest) value within a disc: soft edges keep their profile, round shapes stay round. The picture's
    own border counts as neither inside nor outside. Only the part around the mask is worked on.
    """
    radius = round(abs(pixels))
    rows, columns = (torch.nonzero(mask.amax(axis))[:, 0] for axis in (1, 0))
    if radius == 0 or len(rows) == 0:
        return mask
    top, left = (max(0, int(v[0]) - radius) for v in (rows, columns))
    bottom, right = (int(v[-1]) + radius + 1 for v in (rows, columns))
    part = (mask[top:bottom, left:right].numpy() * WHOLE + 0.5).astype(np.uint16)
    part = _dilate(part, radius) if pixels > 0 else WHOLE - _dilate(WHOLE - part, radius)
    grown = torch.zeros_like(mask)
    grown[top:bottom, left:right] = torch.from_numpy(part.astype(np.float32) / WHOLE)
    return grown


def _dilate(field: Array, radius: int) -> Array:
    """The largest value of (H, W) uint16 within a disc, 0 outside.

    A disc is a stack of horizontal runs. From its rim to its middle the runs only become longer, so the maximum over a
    run comes from that over the one before, shifted both ways.
    """
    height, width = field.shape
    run = np.zeros((height, width + 2 * radius), field.dtype)
    run[:, radius : radius + width] = field
    other, reach = np.zeros_like(run), 0
    most = np.zeros((height + 2 * radius, width), field.dtype)
    for dy in range(radius, -1, -1):
        half = isqrt(radius**2 - dy**2)
        while reach < half:
            step = min(half - reach, max(reach, 1))
            other[:] = run
            np.maximum(other[:, step:], run[:, :-step], out=other[:, step:])
            np.maximum(other[:, :-step], run[:, step:], out=other[:, :-step])
            run, other, reach = other, run, reach + step
        middle = run[:, radius : radius + width]
        for row in {radius - dy, radius + dy}:
            np.maximum(most[row : row + height], middle, out=most[row : row + height])
    return most[radius : radius + height]
