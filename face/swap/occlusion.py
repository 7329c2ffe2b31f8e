"""What of an oval is really face: hair, background, a hand or a microphone that reach into it are not.

No network: the skin's colour is a smooth surface over the face, and what differs much from it *and hangs together
with the outside* covers the face. The second condition is what keeps shadows, nostrils, creases, spots and brows.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..types import Array
from .colour import blur, surface


def distance(polygon: Array, height: int, width: int) -> Array:
    """(height, width) float32: pixels to the outline of ``polygon`` (N, 2 or 3), positive inside, else negative."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    nearest = np.full((height, width), np.inf, np.float32)
    inside = np.zeros((height, width), np.bool_)
    corners = polygon[:, :2].astype(np.float32)
    for (x1, y1), (x2, y2) in zip(corners, np.roll(corners, -1, 0), strict=True):
        ex, ey = x2 - x1, y2 - y1
        along = np.clip(((x - x1) * ex + (y - y1) * ey) / max(float(ex * ex + ey * ey), 1e-9), 0, 1)
        np.minimum(nearest, (x - x1 - along * ex) ** 2 + (y - y1 - along * ey) ** 2, out=nearest)
        if y1 != y2:
            inside ^= ((y1 > y) != (y2 > y)) & (x < ex * (y - y1) / ey + x1)
    nearest = np.sqrt(nearest)
    return np.where(inside, nearest, -nearest)


def step(values: Array, low: float, high: float) -> Tensor:
    """0 at ``low``, 1 at ``high``, smooth between (3t² - 2t³) and constant beyond, as a float32 tensor.

    Where the two are one it is a hard edge: 1 above it.
    """
    t = np.clip((values - low) / (high - low), 0, 1) if low != high else values > low
    return torch.from_numpy((t * t * (3 - 2 * t)).astype(np.float32))


def strangeness(lab: Tensor, skin: Tensor) -> Tensor:
    """(h, w): how far each pixel of ``lab`` (h, w, 3) is from the smooth surface through the ``skin`` (h, w).

    About 1 is ordinary, over 3 is something else. Lightness counts by ratio, so that a shadow of half the light is
    still skin, while hair and background differ in colour too.
    """
    expected = surface(lab, skin)
    light = expected[..., 0].clamp_min(5)
    above = lab[..., 0] - light
    # A level on top: of what is nearly black a ratio is mostly noise.
    lightness = above / (torch.where(above < 0, 0.16, 0.25) * light + 1)
    colour = (lab[..., 1:] - expected[..., 1:]) / 6
    return (lightness**2 + (colour**2).sum(-1)).sqrt()


def connected(seeds: Array, ground: Array) -> Array:
    """What of ``ground`` hangs together, edge to edge, with one of the ``seeds`` on it; all (h, w) bool."""
    reached = seeds & ground
    count = -1
    while (now := int(reached.sum())) > count:
        count = now
        for _ in range(8):
            grown = reached.copy()
            grown[1:] |= reached[:-1]
            grown[:-1] |= reached[1:]
            grown[:, 1:] |= reached[:, :-1]
            grown[:, :-1] |= reached[:, 1:]
            reached = grown & ground
    return reached


def opened(field: Array, radius: int) -> Array:
    """``field`` (h, w, bool) without what is thinner than twice ``radius`` pixels: ragged rims and stray hairs."""
    size, cover = 2 * radius + 1, torch.from_numpy(field.astype(np.float32))[None, None]
    return (F.max_pool2d(-F.max_pool2d(-cover, size, 1, radius), size, 1, radius) > 0.5)[0, 0].numpy()


def covered(strange: Tensor, oval: Array, protected: Tensor, soft: float, thin: float) -> Tensor:
    """(h, w) in [0, 1]: where something covers the face.

    ``strange`` (h, w) as above; ``oval`` (h, w) the distance to the face's outline in parts of its width;
    ``protected`` (h, w, bool) features that are never taken for a cover; ``soft`` the softness of the answer and
    ``thin`` the radius of what is too thin to count, both in pixels.
    Hysteresis: from what is very strange near the outline over all that is rather strange and touches it.
    """
    ground = ((strange > 2.6) & ~protected).numpy() & (oval > -0.1)
    cover = opened(connected((strange > 3.4).numpy() & (oval < 0.03), ground), round(thin))
    # Opening cuts thin bridges, which leaves islands. But a cover comes in from outside, and what it leaves of the face
    # are broad pieces with a feature in them.
    outside = oval < 0
    face = connected(protected.numpy(), ~cover & ~outside)
    face = ~connected(outside, ~face) & ~outside
    face = connected(protected.numpy(), opened(face, round(2.5 * thin)))
    hidden = torch.from_numpy((~face & (cover | ~outside)).astype(np.float32))[None, None]
    # Grown by a third of its softness, so that most of the soft rim lies outside of the cover.
    rim = max(1, round(soft / 3))
    return blur(F.max_pool2d(hidden, 2 * rim + 1, 1, rim)[0, 0, ..., None], max(soft, 0.7))[..., 0]
