"""The base model: a text-to-image latent diffusion model of Stable Diffusion 1.5's layout, in small.

U-Net and text encoder are trained together on fresh portraits. A latent is the portrait itself, its pixels folded two
by two into channels, so that the autoencoder, which is trained apart, has nothing to lose.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from ..engine.diffusion import clip
from ..engine.diffusion.sampling import discrete, schedule
from .fit import Task, seeded
from .text import prompt, words
from .world import ATTRIBUTES, Portraits, Values, chances, draw, people, wishes

Tensor = torch.Tensor

CHANNELS, SIDE = 12, 16
"""Of a latent."""
WIDTH = 64
"""Of the text."""
TEXT = clip.Sizes(width=WIDTH, layers=2, inner=256, heads=1, quick=True)
LATENT_SCALE = 0.18215
"""Stable Diffusion's: what the U-Net sees of a latent of the autoencoder."""
UNET: dict[str, Any] = {
    "sample_size": SIDE,
    "in_channels": CHANNELS,
    "out_channels": CHANNELS,
    "block_out_channels": [32, 64, 64, 64],
    "layers_per_block": 2,
    "norm_num_groups": 8,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    "cross_attention_dim": WIDTH,
    # diffusers' word for the number of heads.
    "attention_head_dim": 4,
}
"""Groups and heads are fewer than Stable Diffusion's 32 and 8, which would leave a group one channel: its mean, and
with it every flat colour, would be normed away."""

SAMPLING = discrete("v", zero_snr=True)
_KEPT = 1 / (1 + SAMPLING.sigmas.double() ** 2)
UNNAMED = 0.1
"""How often a prompt is empty, for classifier-free guidance."""


def fold(pixels: np.ndarray[Any, Any]) -> Tensor:
    """(N, 32, 32, 3) uint8 as the U-Net sees it: (N, 12, 16, 16) in [-1, 1]."""
    return F.pixel_unshuffle(torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1, 2)


def unfold(latents: Tensor) -> np.ndarray[Any, Any]:
    """The inverse of ``fold``; values beyond are cut."""
    pixels = F.pixel_shuffle(latents.float(), 2).permute(0, 2, 3, 1)
    return ((pixels + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).numpy()


def unet() -> nn.Module:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    return UNet2DConditionModel.from_config(UNET)  # pyright: ignore[reportReturnType]


def tower(size: int) -> clip.TextTower:
    """A text encoder for a table of ``size`` tokens, float32."""
    made = clip.TextTower(TEXT, size, 77, None)
    # Words differ more than places do.
    nn.init.normal_(made.text_model.embeddings.position_embedding.weight, std=0.1)
    return made


def read(text: nn.Module, tokens: Tensor) -> Tensor:
    """(N, 77, 64): the normed last state, as SD1.5 reads it."""
    unique, back = tokens.unique(dim=0, return_inverse=True)
    return text(text.embed(unique), torch.zeros(len(unique), dtype=torch.long), -1)[0][back]  # pyright: ignore[reportCallIssue]


@dataclass(frozen=True)
class Scenes:
    """Somebody each, with attributes, and a prompt that names some of them."""

    who: Values
    what: Values
    portraits: Portraits
    prompts: list[str]
    named: list[list[str]]


def scenes(count: int, seed: int, least: int = 1, most: int = len(ATTRIBUTES), strangers: bool | None = None) -> Scenes:
    """Fresh ones; every prompt names ``least`` to ``most`` attributes, in any order. ``strangers``: see ``people``."""
    who, what = people(count, seeded(seed, 1), strangers), wishes(count, seeded(seed, 2))
    draws = np.random.default_rng(seeded(seed, 3))
    names = list(ATTRIBUTES)
    named = [
        [names[place] for place in draws.permutation(len(names))[: draws.integers(least, most + 1)]]
        for _ in range(count)
    ]
    portraits = draw(who, what, chances(count, seeded(seed, 4)))
    return Scenes(who, what, portraits, [prompt(what, n, these) for n, these in enumerate(named)], named)


def noised(clean: Tensor, noise: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
    """What the U-Net sees, and the velocity it should answer (Salimans and Ho 2022, arXiv 2202.00512)."""
    kept = _KEPT[timesteps].view(-1, 1, 1, 1)
    signal, level = kept.sqrt().float(), (1 - kept).sqrt().float()
    return signal * clean + level * noise, signal * noise - level * clean


def timesteps(count: int) -> Tensor:
    """Spread so that the levels of noise come as often as under a cosine schedule (Nichol and Dhariwal 2021): Stable
    Diffusion's own spends most of its timesteps on portraits this small where hardly any noise is left."""
    place = (torch.arange(count) + torch.rand(count)) / count
    wanted = torch.cos(place.double() * torch.pi / 2) ** 2
    return torch.searchsorted(-_KEPT, -wanted).clamp(max=len(_KEPT) - 1)


class Base(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.unet, self.text = unet(), tower(size)


@dataclass
class OutlineTask(Task):
    """Everything at once: after it hair, hats, glasses, backgrounds and light follow the prompt."""

    vocabulary: Path
    name: str = "outline"
    steps: int = 3400
    batch: int = 64
    seed: int = 1
    least: int = 1
    """Attributes that a prompt names at least."""

    def build(self) -> nn.Module:
        self._words = words(self.vocabulary)
        return Base(self._words.size)

    def loss(self, module: Any, count: int, seed: int, step: int) -> Tensor:
        del step
        these = scenes(count, seed, self.least)
        prompts = [text if torch.rand(()) >= UNNAMED else "" for text in these.prompts]
        clean, t = fold(these.portraits.pixels), timesteps(count)
        noisy, target = noised(clean, torch.randn(count, CHANNELS, SIDE, SIDE), t)
        text = read(module.text, self._words.tokens(prompts))
        answer = module.unet(noisy.contiguous(memory_format=torch.channels_last), t, text).sample
        return (self.weight() * (answer - target).square()).mean()

    def weight(self) -> Tensor:
        """(16, 16) or a number: how much an error counts, by place."""
        return torch.tensor(1.0)


@dataclass
class BaseTask(OutlineTask):
    """What is small, a beard, earrings, an expression, is a small part of the whole error, and the outline's training
    ends before any of it follows the prompt. So the lower face counts more here, and prompts name more."""

    name: str = "base"
    steps: int = 3000
    batch: int = 32
    seed: int = 2
    rate: float = 1.5e-3
    least: int = 4
    folder: Path = Path()
    """Where the outline lies."""

    def build(self) -> nn.Module:
        module = super().build()
        module.load_state_dict(torch.load(self.folder / "outline.pt", weights_only=True))
        return module

    def weight(self) -> Tensor:
        found = torch.ones(SIDE, SIDE)
        for rows, columns, times in EMPHASES:
            found[rows, columns] = times
        return found / found.mean()


EMPHASES = (
    (slice(8, 13), slice(2, 14), 4.0),
    (slice(10, 12), slice(5, 11), 8.0),
    (slice(9, 11), slice(3, 5), 16.0),
    (slice(9, 11), slice(11, 13), 16.0),
)
"""Rows and columns of a latent, and how much they count: between eyes and chin, the mouth, the lobes of both ears."""


@torch.no_grad()
def sample(
    net: nn.Module, text: Tensor, empty: Tensor, seeds: list[int], guidance: float = 1.5, steps: int = 20
) -> Tensor:
    """Latents (N, 12, 16, 16) as the U-Net sees them, by Euler's method over evenly spaced timesteps.

    ``text`` and ``empty``: (N, 77, 64) of the prompts and of none.
    """
    count = len(seeds)
    sigmas = schedule(SAMPLING, "sgm_uniform", steps)
    noise = torch.cat([torch.randn(1, CHANNELS, SIDE, SIDE, generator=torch.Generator().manual_seed(s)) for s in seeds])
    x = SAMPLING.noisy(torch.zeros_like(noise), noise, sigmas[0])
    context = torch.cat([text, empty])
    for now, after in pairwise(sigmas):
        t = SAMPLING.timestep(now[None]).expand(2 * count)
        answer = net(SAMPLING.scaled(x, now).repeat(2, 1, 1, 1), t, context).sample
        wanted, plain = (SAMPLING.denoised(x, part, now) for part in answer.chunk(2))
        clean = plain + (wanted - plain) * guidance
        x = clean + (x - clean) / now * after
    return x
