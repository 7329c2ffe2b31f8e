"""Making a warped face look as if it stood in the target's light.

All in CIE L*a*b* (D65), because there lightness and colour may be moved apart and equal steps look equal.
Light and complexion vary slowly over a face, features do not: what is slow comes from the target, what is fine from
the source.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..filters import gaussian_blur

_XYZ = torch.tensor(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
_RGB = torch.linalg.inv(_XYZ)
_WHITE = torch.tensor([0.95047, 1.0, 1.08883])


def to_lab(rgb: Tensor) -> Tensor:
    """sRGB (..., 3) in [0, 1] as L* 0 to 100, a* and b* about -100 to 100 (IEC 61966-2-1, CIE 15)."""
    linear = torch.where(rgb <= 0.04045, rgb / 12.92, ((rgb.clamp_min(0) + 0.055) / 1.055) ** 2.4)
    xyz = linear @ _XYZ.T / _WHITE
    f = torch.where(xyz > 0.008856, xyz.clamp_min(1e-6) ** (1 / 3), xyz * 7.787 + 16 / 116)
    return torch.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], -1)


def to_rgb(lab: Tensor) -> Tensor:
    """The reverse of ``to_lab``, clipped to [0, 1]."""
    y = (lab[..., 0] + 16) / 116
    f = torch.stack([y + lab[..., 1] / 500, y, y - lab[..., 2] / 200], -1)
    xyz = torch.where(f > 0.206893, f**3, (f - 16 / 116) / 7.787) * _WHITE
    linear = (xyz @ _RGB.T).clamp(0, 1)
    return torch.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear.clamp_min(1e-8) ** (1 / 2.4) - 0.055)


def blur(values: Tensor, sigma: float) -> Tensor:
    """``values`` (h, w, C) blurred by a Gaussian of ``sigma`` pixels."""
    return gaussian_blur(values.permute(2, 0, 1), sigma).permute(1, 2, 0)


def resize(values: Tensor, height: int, width: int) -> Tensor:
    """``values`` (h, w, C) as (height, width, C): bilinear, without aliasing where it shrinks."""
    if values.shape[:2] == (height, width):
        return values
    planes = values.permute(2, 0, 1)[None]
    smaller = height < values.shape[0] or width < values.shape[1]
    planes = F.interpolate(planes, (height, width), mode="bilinear", align_corners=False, antialias=smaller)
    return planes[0].permute(1, 2, 0)


def smooth(values: Tensor, weight: Tensor, sigma: float) -> Tensor:
    """``values`` (h, w, C) averaged over a Gaussian neighbourhood in which ``weight`` (h, w) counts.

    Where nothing near counts, the neighbourhood is three times as wide, and where that is empty too it is everything
    (a normalised convolution).
    """
    everything = (values * weight[..., None]).sum((0, 1)) / weight.sum().clamp_min(1e-6)
    out = torch.zeros_like(values)
    left = torch.ones_like(weight)[..., None]
    for widen in (1.0, 3.0):
        spread = blur(torch.cat([values * weight[..., None], weight[..., None]], -1), sigma * widen)
        total = spread[..., -1:]
        trust = (total / 0.1).clamp(0, 1)
        out = out + left * trust * spread[..., :-1] / total.clamp_min(1e-6)
        left = left * (1 - trust)
    return out + left * everything


def surface(values: Tensor, weight: Tensor, rounds: int = 6) -> Tensor:
    """A quadratic surface (h, w, C) through ``values`` (h, w, C) where ``weight`` (h, w) is over 0.5, robustly.

    Iteratively reweighted least squares with Tukey's biweight, starting from the median, so that hair, glasses or a
    hand over part of the face do not bend it.
    """
    h, w, channels = values.shape
    y, x = torch.meshgrid(torch.linspace(-1, 1, h), torch.linspace(-1, 1, w), indexing="ij")
    basis = torch.stack([torch.ones_like(x), x, y, x * y, x * x, y * y], -1).double()
    chosen = weight > 0.5
    rows, seen = basis[chosen], values[chosen].double()
    if len(rows) < 32:
        return values.mean((0, 1)).expand(h, w, channels)
    # Little data in a corner must not throw the curved terms far off: a ridge holds them.
    ridge = torch.diag(torch.tensor([1e-6, 1e-2, 1e-2, 2e-2, 2e-2, 2e-2], dtype=torch.float64)) * len(rows)
    centre = seen.median(0).values
    residual = seen - centre
    fit = torch.zeros(basis.shape[-1], channels, dtype=torch.float64)
    for _ in range(rounds):
        spread = (1.4826 * residual.abs().median(0).values).clamp_min(1.0)
        distance = ((residual / spread) ** 2).mean(1).sqrt()
        trust = (1 - (distance / 3.5).clamp(0, 1) ** 2) ** 2
        weighted = rows * trust[:, None]
        fit = torch.linalg.solve(weighted.T @ rows + ridge, weighted.T @ (seen - centre))
        residual = seen - centre - rows @ fit
    return (centre + basis @ fit).float()


def match_grain(source: Tensor, target: Tensor, where: Tensor, on: Tensor, sigma: float) -> Tensor:
    """``source`` with its finest detail no stronger than ``target``'s; all (h, w, 3) L*a*b*.

    The detail is what a Gaussian of ``sigma`` pixels takes away. It is measured ``where`` (h, w, bool) and changed as
    far as ``on`` (h, w, 1), 0 to 1, says: grain and compression noise of one camera stand out in another's picture.
    """
    if int(where.sum()) < 64:
        return source
    fine_source, fine_target = source - blur(source, sigma), target - blur(target, sigma)
    have = fine_source[where].abs().mean(0).clamp_min(0.05)
    want = fine_target[where].abs().mean(0).clamp_min(0.05)
    # Only ever less: made stronger, a soft picture's noise would pass for pores.
    gain = (want / have).clamp(0.25, 1)
    return source + fine_source * (gain - 1) * on


@dataclass(frozen=True, eq=False)
class Reach:
    """How far detail may stand out of the skin around it, in levels of L*a*b*: soft limits."""

    highlight: float
    crease: float
    colour: Tensor
    """(2,) for a* and b*."""


def reach(detail: Tensor) -> Reach:
    """The limits that fit the ``detail`` (N, 3) of somebody's skin, with room for another's."""
    if len(detail) < 64:
        return Reach(8.0, 14.0, torch.tensor([8.0, 8.0]))
    low, high = torch.quantile(detail, 0.02, 0), torch.quantile(detail, 0.98, 0)
    colour = torch.maximum(-low, high)[1:].clamp(3, 8)
    return Reach(float(high[0].clamp(4, 30)), float((-1.5 * low[0]).clamp(14, 40)), colour)


def relight(
    source: Tensor, slow_source: Tensor, slow_target: Tensor, skin: Tensor, flesh: Tensor, tint: Tensor, limit: Reach
) -> Tensor:
    """``source`` moved from its own slow part to the target's; all (h, w, 3) L*a*b*.

    Lightness keeps black black and white white: what is darker than the skin around it scales towards 0, what is
    lighter towards 100. So brows do not turn grey on a lighter skin, and eyes do not burn out. Colour is added in
    proportion to lightness off the ``skin`` (h, w, 1), and only as far as ``tint`` (h, w, 1) says (eyes are not skin).
    On the skin detail is held to ``limit``: shine and hard shadows belong to the light left behind; its colour also on
    ``flesh`` (h, w, 1), which takes in the lids and the brows.
    """
    light, dark = slow_target[..., :1], slow_source[..., :1]
    detail = source - slow_source
    bound = torch.where(detail[..., :1] > 0, limit.highlight, limit.crease)
    bound = torch.cat([bound, limit.colour.expand(*bound.shape[:2], 2)], -1)
    on = torch.cat([skin, flesh, flesh], -1)
    detail = detail + (bound * torch.tanh(detail / bound) - detail) * on
    below = ((light + 8) / (dark + 8)).clamp(0.6, 1.6)
    # On skin a lighter face would enlarge every spot and crease of a darker one.
    below = torch.minimum(below, 1.6 - 0.6 * skin)
    above = ((108 - light) / (108 - dark)).clamp(0.6, 1.4)
    step = detail[..., :1]
    lightness = light + torch.where(step < 0, step * below, step * above)
    share = (source[..., :1] / dark.clamp_min(1)).clamp(0, 1)
    share = torch.maximum(share, skin) * tint
    colour = slow_source[..., 1:] + detail[..., 1:] + (slow_target[..., 1:] - slow_source[..., 1:]) * share
    return torch.cat([lightness, colour], -1)


def toned(source: Tensor, target: Tensor) -> Tensor:
    """``source`` (H, W, 3) without colours of its own as far as ``target`` (h, w, 3) has none; both L*a*b*.

    In a grey or toned picture colour follows from lightness: what is left of a* and b* beside a quadratic in L* is
    noise. In a photograph it is 5 levels and more.
    """
    seen = target.reshape(-1, 3).double()
    powers = torch.stack([torch.ones_like(seen[:, 0]), seen[:, 0] / 100, (seen[:, 0] / 100) ** 2], -1)
    # A ridge too weak to be seen, since a flat picture alone would leave the curve undetermined.
    normal = powers.T @ powers + 1e-6 * len(seen) * torch.eye(3, dtype=torch.float64)
    tone = torch.linalg.solve(normal, powers.T @ seen[:, 1:])
    left = float((seen[:, 1:] - powers @ tone).square().sum(1).mean().sqrt())
    t = min(max((left - 0.7) / 1.3, 0.0), 1.0)
    if t == 1:
        return source
    light = source[..., :1] / 100
    bare = torch.cat([torch.ones_like(light), light, light**2], -1) @ tone.float()
    return torch.cat([source[..., :1], bare + (source[..., 1:] - bare) * t], -1)
