"""A whole run: noise, schedule, sampler, inpainting, from LATENT to LATENT, as ComfyUI's KSampler."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import ref

import torch

from ...face.cure.tape import Plan, digest
from ...face.errors import BadInput
from .acting import attention, hooked
from .guidance import Conditioning, Denoiser, entries, opposed
from .model import Model, running
from .samplers import SAMPLERS, Sampler
from .sampling import SCHEDULES, schedule
from .tensors import repeat_to, resize

Tensor = torch.Tensor
Latent = dict[str, Any]
"""ComfyUI's: {"samples": (B, C, h, w)}, perhaps with "noise_mask": (b, 1, H, W) in [0, 1] and "batch_index": [int]."""

LATENT_SCALE = {"sd15": 0.18215, "sdxl": 0.13025}
"""What latents are multiplied by before the U-Net sees them (CompVis/stable-diffusion; Podell et al. 2023)."""


@dataclass(frozen=True)
class Settings:
    """The widgets of KSampler and KSamplerAdvanced."""

    seed: int
    steps: int
    cfg: float
    sampler: str
    scheduler: str
    denoise: float = 1.0
    """Share of the way that is gone, at the end of it."""
    start: int = 0
    """The first step that is taken."""
    end: int = 10_000
    """The first step that is not."""
    add_noise: bool = True
    finish: bool = True
    """Whether the last step goes to no noise at all, even if ``end`` cuts the schedule short."""
    batched: bool = True
    """See ``Denoiser.batched``."""


def noise(samples: Tensor, seed: int, batch_index: Sequence[int] | None = None) -> Tensor:
    """Noise of the latents' shape, from a generator on the CPU whatever the device.

    ``batch_index`` tells which latents of a larger batch these are: each gets the noise that it had there.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    if batch_index is None:
        return torch.randn(samples.shape, generator=generator)
    drawn = [torch.randn((1, *samples.shape[1:]), generator=generator) for _ in range(max(batch_index) + 1)]
    return torch.cat([drawn[index] for index in batch_index])


Progress = Callable[[int, int, Tensor], None]
Levels = tuple[Tensor, Sampler | None] | None
"""Noise levels of one's own, and perhaps a way along them."""


def _nobody(done: int, steps: int, denoised: Tensor) -> None:
    return


def _nothing() -> None:
    return


@torch.no_grad()
def sample(
    model: Model,
    positive: Conditioning,
    negative: Conditioning,
    latent: Latent,
    settings: Settings,
    progress: Progress = _nobody,
    check: Callable[[], None] = _nothing,
    levels: Levels = None,
) -> Latent:
    """A LATENT like ``latent`` with other samples, float32 on the CPU.

    ``progress(done, steps, denoised)`` is called after every step; ``check`` before every call of the U-Net, and may
    raise; ``levels`` takes the place of the settings' schedule and sampler. Raises BadInput before the first step for
    what does not belong together.
    """
    samples = _checked(model, latent, settings)
    sigmas, method = (_sigmas(model, settings), None) if levels is None else levels
    if len(sigmas) < 2:
        return {**latent, "samples": samples}

    device, scale = model.device, LATENT_SCALE[model.family]
    index = latent.get("batch_index")
    start = noise(samples, settings.seed, index) if settings.add_noise else torch.zeros_like(samples)
    start, clean = start.to(device), (samples * scale).to(device)
    guides = opposed([entries(c, n, model, samples.shape) for n, c in enumerate((positive, negative))])
    fresh = torch.Generator(device).manual_seed(settings.seed)
    steps = len(sigmas) - 1

    def plan() -> Plan:
        """Worked out only for a model with hooks, which compare it."""
        levels = tuple(map(float, sigmas))
        marks, mask = (digest(start), digest(clean)), latent.get("noise_mask")
        inpainted = "" if mask is None else digest(mask)
        return Plan(settings.seed, tuple(samples.shape), settings.sampler, levels, *marks, ref(model.unet), inpainted)

    with (
        running(model) as unet,
        attention(unet, model, guides, samples.shape) as run,
        hooked(unet, model, plan, samples.shape, check) as hooks,
    ):
        denoiser = Denoiser(model, unet, run, guides, settings.cfg, settings.batched, check, hooks)
        out = (method or SAMPLERS[settings.sampler])(
            _inpainting(denoiser, model, latent.get("noise_mask"), start, clean, settings),
            model.sampling.noisy(clean, start, sigmas[0]),
            sigmas,
            lambda step, _, denoised: progress(step + 1, steps, denoised),
            lambda: torch.randn(clean.shape, generator=fresh, device=device),
        )
    return {**latent, "samples": (out.float() / scale).cpu()}


def _checked(model: Model, latent: Latent, settings: Settings) -> Tensor:
    """The samples, with as many channels as the model has: an empty latent takes any number."""
    for kind, name, known in (("sampler", settings.sampler, SAMPLERS), ("scheduler", settings.scheduler, SCHEDULES)):
        if name not in known:
            raise BadInput(f"there is no {kind} {name!r} here. Known: {', '.join(known)}")
    samples: Any = latent.get("samples")
    channels = model.unet.config["in_channels"]
    if isinstance(samples, Tensor) and samples.ndim == 4 and samples.shape[1] != channels and not samples.any():
        samples = repeat_to(samples, channels, 1)
    if not isinstance(samples, Tensor) or samples.ndim != 4 or samples.shape[1] != channels:
        came = tuple(samples.shape) if isinstance(samples, Tensor) else type(samples).__name__
        raise BadInput(
            f"this {model.family} model takes latents (B, {channels}, h, w), got {came}: encode the picture with the "
            "VAE of the same checkpoint, or begin with Empty Latent Image"
        )
    index = latent.get("batch_index")
    if index is not None and len(index) != len(samples):
        raise BadInput(f"the latent has {len(samples)} samples and a batch_index of {len(index)}: they must agree")
    return samples.float().cpu()


def _sigmas(model: Model, settings: Settings) -> Tensor:
    sigmas = schedule(model.sampling, settings.scheduler, settings.steps, settings.denoise)
    if settings.end < len(sigmas) - 1:
        sigmas = sigmas[: settings.end + 1]
        if settings.finish:
            sigmas[-1] = 0
    return sigmas[settings.start :] if settings.start < len(sigmas) - 1 else sigmas[:0]


def _inpainting(
    denoiser: Denoiser, model: Model, noise_mask: Tensor | None, start: Tensor, clean: Tensor, settings: Settings
) -> Callable[[Tensor, Tensor], Tensor]:
    """A denoiser that keeps ``clean`` where the mask is 0: shown noisy to the model, and put back after it."""
    if noise_mask is None:
        return denoiser
    height, width = clean.shape[-2:]
    mask = resize(noise_mask.reshape(-1, 1, *noise_mask.shape[-2:]).float(), height, width, "bilinear")
    mask = repeat_to(mask, len(clean)).to(clean)
    around = start
    if settings.sampler == "ddim":
        # ComfyUI's ddim draws other noise for what is kept.
        around = noise(start, (settings.seed + 1) % 2**64).to(start)

    def inpaint(x: Tensor, sigma: Tensor) -> Tensor:
        kept = model.sampling.noisy(clean, around, sigma, full=False)
        return denoiser(x * mask + kept * (1 - mask), sigma) * mask + clean * (1 - mask)

    return inpaint
