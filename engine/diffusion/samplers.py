"""The steps from noise to picture: one function per method, all with one signature.

``denoise(x, sigma)`` answers the latent without noise; ``sigmas`` descend; ``watch(step, x, denoised)`` is called once
a step; ``noise()`` gives fresh noise of the latent's shape. They follow crowsonkb/k-diffusion sampling.py (MIT), as
ComfyUI does.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

Tensor = torch.Tensor
Denoise = Callable[[Tensor, Tensor], Tensor]
Watch = Callable[[int, Tensor, Tensor], None]
Noise = Callable[[], Tensor]
Sampler = Callable[[Denoise, Tensor, Tensor, Watch, Noise], Tensor]


def euler(denoise: Denoise, x: Tensor, sigmas: Tensor, watch: Watch, noise: Noise) -> Tensor:
    """Karras et al. 2022 (arXiv 2206.00364), algorithm 2, without its second order."""
    for step in range(len(sigmas) - 1):
        sigma, following = sigmas[step], sigmas[step + 1]
        denoised = denoise(x, sigma)
        watch(step, x, denoised)
        x = x + (x - denoised) / sigma * (following - sigma)
    return x


def euler_ancestral(denoise: Denoise, x: Tensor, sigmas: Tensor, watch: Watch, noise: Noise) -> Tensor:
    """Euler steps that go further down than they should, and back up with fresh noise."""
    for step in range(len(sigmas) - 1):
        sigma, following = sigmas[step], sigmas[step + 1]
        denoised = denoise(x, sigma)
        watch(step, x, denoised)
        up = torch.minimum(following, (following**2 * (sigma**2 - following**2) / sigma**2) ** 0.5)
        down = (following**2 - up**2) ** 0.5
        if down == 0:
            x = denoised
        else:
            x = x + (x - denoised) / sigma * (down - sigma) + noise() * up
    return x


def heun(denoise: Denoise, x: Tensor, sigmas: Tensor, watch: Watch, noise: Noise) -> Tensor:
    """Karras et al. 2022, algorithm 2: two evaluations a step, but one in the last."""
    for step in range(len(sigmas) - 1):
        sigma, following = sigmas[step], sigmas[step + 1]
        denoised = denoise(x, sigma)
        watch(step, x, denoised)
        slope = (x - denoised) / sigma
        if following != 0:
            ahead = x + slope * (following - sigma)
            slope = (slope + (ahead - denoise(ahead, following)) / following) / 2
        x = x + slope * (following - sigma)
    return x


def dpmpp_2m(denoise: Denoise, x: Tensor, sigmas: Tensor, watch: Watch, noise: Noise) -> Tensor:
    """DPM-Solver++(2M) (Lu et al. 2022, arXiv 2211.01095, algorithm 2)."""
    earlier: Tensor | None = None
    for step in range(len(sigmas) - 1):
        sigma, following = sigmas[step], sigmas[step + 1]
        denoised = denoise(x, sigma)
        watch(step, x, denoised)
        towards = denoised
        if earlier is not None and following != 0:
            # Steps in the logarithm of the signal-to-noise ratio; r is the last one over this one.
            r = (sigmas[step - 1].log() - sigma.log()) / (sigma.log() - following.log())
            towards = (1 + 1 / (2 * r)) * denoised - (1 / (2 * r)) * earlier
        x = following / sigma * x + (1 - following / sigma) * towards
        earlier = denoised
    return x


SAMPLERS: dict[str, Sampler] = {
    "euler": euler,
    "euler_ancestral": euler_ancestral,
    "heun": heun,
    "dpmpp_2m": dpmpp_2m,
    # Without fresh noise a DDIM step is an Euler step (Song et al. 2020, arXiv 2010.02502); inpainting differs, see
    # sample.
    "ddim": euler,
}
"""By ComfyUI's names, in its order."""
