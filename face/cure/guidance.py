"""Abstract attributes (an expression, an age), which have no place that a mask could show: inversion under a template
prompt, then denoising with the attribute (arXiv 2411.15277, section 3.3, "abstract attribute guidance").

Everything is textual; the identity is off both ways. The inversion is Euler's step backwards with its end point as the
unknown (DDIM inversion is its first guess), so that Euler's step forwards undoes it: the more refinements, the more
exactly. How exactly is measured, not hoped for.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..errors import BadInput

GAMMA = 0.5
"""The paper's γ: how much of the way back to noise (0.5 to 0.6 are good, section 4.1)."""

Denoise = Callable[[Tensor, Tensor], Tensor]
"""``denoise(x, sigma)``: the latent without noise behind ``x``."""
Watch = Callable[[int, Tensor, Tensor], None]


def levels(sigmas: Tensor, gamma: float) -> Tensor:
    """The last ``gamma`` of a whole schedule (steps + 1,) that descends to 0; one step at least. Raises BadInput."""
    if not 0 < gamma <= 1:
        raise BadInput(f"gamma is the fraction of the way back to noise, above 0 and at most 1; got {gamma:g}")
    steps = max(round(gamma * (len(sigmas) - 1)), 1)
    return sigmas[-(steps + 1) :]


def inversion(refinements: int) -> Callable[[Denoise, Tensor, Tensor, Watch, object], Tensor]:
    """A sampler that goes up: ``x`` of the first of ascending ``sigmas`` to that of the last."""

    def invert(denoise: Denoise, x: Tensor, sigmas: Tensor, watch: Watch, noise: object) -> Tensor:
        for step in range(len(sigmas) - 1):
            here, above = sigmas[step], sigmas[step + 1]
            start = ahead = denoised = x
            for _ in range(1 + refinements):
                denoised = denoise(ahead, above)
                ahead = start + (above - here) * (ahead - denoised) / above
            x = ahead
            watch(step, x, denoised)
        return x

    return invert


def error(back: Tensor, original: Tensor) -> float:
    """How far the way up and down leads from where it began, relative to the original."""
    return float((back - original).norm() / original.norm().clamp_min(1e-12))


def ascending(sigmas: Tensor) -> Tensor:
    """Descending levels turned round."""
    return torch.flip(sigmas, (0,))
