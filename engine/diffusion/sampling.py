"""The noise levels a model was trained on, and the schedules that choose some of them, as ComfyUI has them.

A level is told by its sigma: a noisy latent is ``x = latent + sigma * noise``, and the network sees ``x`` scaled to
unit variance. (Karras et al. 2022, arXiv 2206.00364; the discrete levels are DDPM's, Ho et al. 2020, arXiv 2006.11239.)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

Tensor = torch.Tensor
Prediction = Literal["eps", "v"]

ALWAYS = 999_999_999.9
"""The sigma that stands for "from the very beginning", above any real one."""


@dataclass(frozen=True, eq=False)
class Sampling:
    """What a model predicts and at which levels."""

    sigmas: Tensor
    """(T,) float32 on the CPU, ascending: the level of every training timestep."""
    log_sigmas: Tensor
    """(T,) float32: their logarithms, of levels that were not rounded yet: schedules like to fall half way between two
    levels, and then the last bit decides which timestep the network is told."""
    prediction: Prediction = "eps"
    """Whether the network answers with the noise or with the velocity (Salimans and Ho 2022, arXiv 2202.00512)."""

    @property
    def sigma_min(self) -> float:
        return float(self.sigmas[0])

    @property
    def sigma_max(self) -> float:
        return float(self.sigmas[-1])

    def timestep(self, sigma: Tensor) -> Tensor:
        """The index of the nearest level, by logarithm; the shape of ``sigma`` is kept."""
        distance = sigma.cpu().float().log().reshape(-1) - self.log_sigmas[:, None]
        return distance.abs().argmin(dim=0).view(sigma.shape)

    def sigma(self, timestep: Tensor) -> Tensor:
        """The level at a timestep that may lie between two: its logarithm is interpolated."""
        place = timestep.float().clamp(0, len(self.sigmas) - 1)
        low, high, share = place.floor().long(), place.ceil().long(), place.frac()
        return ((1 - share) * self.log_sigmas[low] + share * self.log_sigmas[high]).exp()

    def percent_to_sigma(self, percent: float) -> float:
        """The level at a fraction of the way from noise to picture; at both ends one that lies beyond all others."""
        if percent <= 0:
            return ALWAYS
        if percent >= 1:
            return 0.0
        return float(self.sigma(torch.tensor((1 - percent) * 999.0)))

    def scaled(self, x: Tensor, sigma: Tensor) -> Tensor:
        """A noisy latent as the network wants to see it."""
        return x / (sigma**2 + 1) ** 0.5

    def denoised(self, x: Tensor, answer: Tensor, sigma: Tensor) -> Tensor:
        """The latent without noise that the network's answer to ``x`` means."""
        if self.prediction == "eps":
            return x - answer * sigma
        return x / (sigma**2 + 1) - answer * sigma / (sigma**2 + 1) ** 0.5

    def noisy(self, latent: Tensor, noise: Tensor, sigma: Tensor, full: bool = True) -> Tensor:
        """A latent at a level. With ``full`` the highest one has the variance the model was trained on, as if the
        latent had some itself.
        """
        level = float(sigma)
        top = full and (math.isclose(self.sigma_max, level, rel_tol=1e-5) or level > self.sigma_max)
        return latent + noise * ((1 + sigma**2) ** 0.5 if top else sigma)


def discrete(
    prediction: Prediction = "eps",
    start: float = 0.00085,
    end: float = 0.012,
    steps: int = 1000,
    zero_snr: bool = False,
) -> Sampling:
    """Stable Diffusion's levels: betas whose square roots are evenly spaced.

    ``zero_snr``: rescaled so that the last level is (all but) pure noise (Lin et al. 2023, arXiv 2305.08891,
    algorithm 1).
    """
    betas = torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float64) ** 2
    kept = torch.cumprod(1 - betas, dim=0)
    sigmas = ((1 - kept) / kept) ** 0.5
    if zero_snr:
        root = kept.sqrt()
        first, last = root[0].clone(), root[-1].clone()
        kept = ((root - last) * first / (first - last)) ** 2
        # Not zero, which would be an infinite sigma, but ComfyUI's number for it: a sigma of about 4500.
        kept[-1] = 4.8973451890853435e-08
        sigmas = ((1 - kept) / kept) ** 0.5
    return Sampling(sigmas.float(), sigmas.log().float(), prediction)


Schedule = Callable[[Sampling, int], Tensor]


def _ended(sigmas: list[float]) -> Tensor:
    return torch.tensor([*sigmas, 0.0], dtype=torch.float32)


def simple(sampling: Sampling, steps: int) -> Tensor:
    """Every so manieth level, from the top."""
    stride = len(sampling.sigmas) / steps
    return _ended([float(sampling.sigmas[-(1 + int(step * stride))]) for step in range(steps)])


def normal(sampling: Sampling, steps: int) -> Tensor:
    """Evenly spaced timesteps, both ends included."""
    return _ended(_evenly(sampling, steps))


def sgm_uniform(sampling: Sampling, steps: int) -> Tensor:
    """Evenly spaced timesteps without the last one."""
    return _ended(_evenly(sampling, steps + 1)[:-1])


def _evenly(sampling: Sampling, count: int) -> list[float]:
    timesteps = torch.linspace(len(sampling.sigmas) - 1, 0, count)
    return [float(sampling.sigma(timestep)) for timestep in timesteps]


def karras(sampling: Sampling, steps: int, rho: float = 7.0) -> Tensor:
    """Evenly spaced in the rho-th root (Karras et al. 2022, equation 5)."""
    low, high = sampling.sigma_min ** (1 / rho), sampling.sigma_max ** (1 / rho)
    ramp = torch.linspace(0, 1, steps)
    return torch.cat([(high + ramp * (low - high)) ** rho, torch.zeros(1)])


def exponential(sampling: Sampling, steps: int) -> Tensor:
    """Evenly spaced in the logarithm."""
    ramp = torch.linspace(math.log(sampling.sigma_max), math.log(sampling.sigma_min), steps)
    return torch.cat([ramp.exp(), torch.zeros(1)])


def ddim_uniform(sampling: Sampling, steps: int) -> Tensor:
    """Every so manieth level, from the bottom, as in DDIM; it can have a step more than asked for."""
    stride = max(len(sampling.sigmas) // steps, 1)
    return _ended([float(sigma) for sigma in sampling.sigmas[1::stride]][::-1])


SCHEDULES: dict[str, Schedule] = {
    "simple": simple,
    "sgm_uniform": sgm_uniform,
    "karras": karras,
    "exponential": exponential,
    "ddim_uniform": ddim_uniform,
    "normal": normal,
}
"""By ComfyUI's names, in its order."""


def schedule(sampling: Sampling, name: str, steps: int, denoise: float = 1.0) -> Tensor:
    """(steps + 1,) descending sigmas that end in 0; with ``denoise`` < 1 the last of a longer schedule; empty for 0."""
    if denoise <= 0:
        return torch.zeros(0)
    if denoise > 0.9999:
        return SCHEDULES[name](sampling, steps)
    return SCHEDULES[name](sampling, int(steps / denoise))[-(steps + 1) :]
