"""The autoencoder: Stable Diffusion's layout in small, from pictures of 128 pixels to latents of 12 channels and back.

What a latent is is known beforehand: the portrait, its pixels folded two by two into channels. So most of the network
need not be learned. Its encoder averages and folds, its decoder's last levels copy, both exactly: residual branches
are zero, and a norm followed by SiLU is made linear by pairs of channels x and -x, for silu(a) - silu(-a) = a, beside a
constant pair that outweighs them in the norm. Only unfolding has to be learned, from 16×16 to 32×32: after a nearest
upsampling no convolution knows which of the copies it stands on, but for what is around it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from .base import CHANNELS, LATENT_SCALE, SIDE, fold, scenes
from .fit import Task, fit, seeded
from .sheet import sheet

Tensor = torch.Tensor

WIDTHS = (16, 16, 32, 48)
GROUPS = 4
AUTOENCODER: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": CHANNELS,
    "block_out_channels": list(WIDTHS),
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 1,
    "norm_num_groups": GROUPS,
    "scaling_factor": LATENT_SCALE,
    "sample_size": 128,
}
CONSTANT = 24.0
"""Of the pair that outweighs the others in a norm: large, but not beyond what float16 tells apart."""
NOISE = {"single": 0.08, "channel": 0.06, "soft": 0.05}
"""Latents are decoded in training with up to so much noise, of [-1, 1]: of every value by itself, of a whole channel,
which shows as a lattice over flat colours, and of a region. A sampler was seen to leave half of each at most."""
LOG_VARIANCE = -30.0


def network() -> Any:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    return AutoencoderKL.from_config(AUTOENCODER)


class Unfolding(nn.Module):
    """The part of the decoder that is learned: folded latents (N, 12, 16, 16) to portraits (N, 3, 32, 32)."""

    def __init__(self) -> None:
        super().__init__()
        decoder = network().decoder
        self.conv_in, self.mid_block = decoder.conv_in, decoder.mid_block
        self.first, self.second = decoder.up_blocks[0], decoder.up_blocks[1].resnets
        self.head = nn.Conv2d(WIDTHS[2], 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(self.mid_block(self.conv_in(x)))
        for block in self.second:
            x = block(x, None)
        return self.head(x)


PLACES = {
    "conv_in": "decoder.conv_in",
    "mid_block": "decoder.mid_block",
    "first": "decoder.up_blocks.0",
    "second": "decoder.up_blocks.1.resnets",
}


@dataclass
class AutoencoderTask(Task):
    name: str = "autoencoder"
    steps: int = 3000
    batch: int = 32
    seed: int = 21
    rate: float = 2e-3
    average: float = 0.995

    def build(self) -> nn.Module:
        return Unfolding()

    def loss(self, module: nn.Module, count: int, seed: int, step: int) -> Tensor:
        del step
        pixels = scenes(count, seed).portraits.pixels
        latents = fold(pixels)
        target = F.pixel_shuffle(latents, 2)
        answer = module(left(latents).contiguous(memory_format=torch.channels_last))
        return F.l1_loss(answer, target) + F.mse_loss(answer, target)


def left(latents: Tensor) -> Tensor:
    """Folded latents (N, 12, 16, 16) as a sampler may leave them: noisy in every way, as much as chance has it."""
    count = len(latents)
    kinds = {
        "single": torch.randn_like(latents),
        "channel": torch.randn(count, CHANNELS, 1, 1),
        # The same for the four pixels of a place, or it would be a lattice.
        "soft": F.interpolate(torch.randn(count, 3, 5, 5), SIDE, mode="bilinear").repeat_interleave(4, 1),
    }
    return latents + sum((NOISE[kind] * torch.rand(count, 1, 1, 1) * noise for kind, noise in kinds.items()))


def train(work: Path, processes: int = 1) -> None:
    fit(AutoencoderTask(), work, processes)


def assemble(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The whole autoencoder under diffusers' names, of the learned part."""
    vae = network()
    state = {name: torch.zeros_like(tensor) for name, tensor in vae.state_dict().items()}
    for name in state:
        # Norms before zero branches do nothing; those at the ends keep what comes.
        if name.endswith("weight") and ("norm" in name):
            state[name].fill_(1.0)
    _encoder(state)
    _tail(state, weights)
    for ours, theirs in PLACES.items():
        for name, tensor in weights.items():
            if name.startswith(f"{ours}."):
                state[theirs + name.removeprefix(ours)] = tensor.clone()
    return state


def _same(weight: Tensor, count: int, scale: float = 1.0) -> None:
    """The first ``count`` channels of a convolution pass, times ``scale``."""
    middle = weight.shape[-1] // 2
    for channel in range(count):
        weight[channel, channel, middle, middle] = scale


def _encoder(state: dict[str, Tensor]) -> None:
    _same(state["encoder.conv_in.weight"], 3)
    for level in (0, 1):
        down = state[f"encoder.down_blocks.{level}.downsamplers.0.conv.weight"]
        for channel in range(3):
            down[channel, channel, :2, :2] = 0.25
    _same(state["encoder.down_blocks.2.resnets.0.conv_shortcut.weight"], 3)
    folding = state["encoder.down_blocks.2.downsamplers.0.conv.weight"]
    for channel in range(3):
        for part in range(4):
            folding[4 * channel + part, channel, part // 2, part % 2] = 1.0
    # Three values a group, each with its opposite, and the constant pair.
    wide, last = WIDTHS[3] // GROUPS, state["encoder.conv_out.weight"]
    spread = state["encoder.down_blocks.3.resnets.0.conv_shortcut.weight"]
    constant = state["encoder.down_blocks.3.resnets.0.conv_shortcut.bias"]
    each = CHANNELS // GROUPS
    # What the norm divides by: the root of the group's mean square. A portrait's values have a mean square of a half.
    size = ((2 * CONSTANT**2 + 2 * each * 0.5) / wide) ** 0.5
    for channel in range(CHANNELS):
        group, place = divmod(channel, each)
        one = group * wide + 2 * place
        spread[one, channel, 0, 0], spread[one + 1, channel, 0, 0] = 1.0, -1.0
        last[channel, one, 1, 1], last[channel, one + 1, 1, 1] = size, -size
    for group in range(GROUPS):
        constant[group * wide + wide - 2], constant[group * wide + wide - 1] = CONSTANT, -CONSTANT
    _same(state["quant_conv.weight"], CHANNELS, 1 / LATENT_SCALE)
    state["quant_conv.bias"][CHANNELS:] = LOG_VARIANCE


def _tail(state: dict[str, Tensor], weights: dict[str, Tensor]) -> None:
    _same(state["post_quant_conv.weight"], CHANNELS, LATENT_SCALE)
    # The learned head stands in the convolution behind the upsampling: three groups of a colour, its opposite and the
    # constant pair.
    head, bias = weights["head.weight"][:, :, 0, 0], weights["head.bias"]
    out, shift = (state[f"decoder.up_blocks.1.upsamplers.0.conv.{kind}"] for kind in ("weight", "bias"))
    for colour in range(3):
        for place, sign in ((4 * colour, 1.0), (4 * colour + 1, -1.0)):
            out[place, :, 1, 1], shift[place] = sign * head[colour], sign * bias[colour]
        shift[4 * colour + 2], shift[4 * colour + 3] = CONSTANT, -CONSTANT
    _same(state["decoder.up_blocks.2.resnets.0.conv_shortcut.weight"], 12)
    _same(state["decoder.up_blocks.2.upsamplers.0.conv.weight"], 12)
    size = ((2 * CONSTANT**2 + 2 * 0.5) / 4) ** 0.5
    for colour in range(3):
        state["decoder.conv_out.weight"][colour, 4 * colour, 1, 1] = size
        state["decoder.conv_out.weight"][colour, 4 * colour + 1, 1, 1] = -size


def opened(weights: dict[str, Tensor], dtype: torch.dtype = torch.float16) -> Any:
    """The autoencoder as it is after its weights were stored in ``dtype``."""
    vae = network()
    vae.load_state_dict({name: t.to(dtype).float() for name, t in assemble(weights).items()})
    return vae.requires_grad_(False).eval()


@torch.no_grad()
def gate(work: Path, count: int = 500) -> dict[str, Any]:
    """Figures on fresh portraits, with weights as they are stored, and a sheet of some. Raises GateFailed."""
    from .stages import require

    vae = opened(torch.load(work / "autoencoder.pt", weights_only=True))
    pixels = scenes(count, seeded(79, 1)).portraits.pixels
    latents = fold(pixels)
    clean = F.pixel_shuffle(latents, 2)
    torch.manual_seed(3)
    given = {
        "decoded": latents,
        "decoded with noise 0.05": latents + 0.05 * torch.randn_like(latents),
        "decoded as a sampler leaves it": left(latents),
    }
    figures: dict[str, Any] = {}
    rows = [list(pixels[:10].repeat(4, 1).repeat(4, 2))]
    for label, these in given.items():
        answer = _decode(vae, these)
        figures[label] = _compared(F.avg_pool2d(answer, 4), clean)
        figures[label]["unevenness"] = _furthest(answer, F.interpolate(F.avg_pool2d(answer, 4), scale_factor=4))
        rows.append(list(_bytes(answer[:10])))
    large = F.interpolate(clean, scale_factor=4)
    encoded = torch.cat([vae.encode(part).latent_dist.mode() for part in large.split(20)]) * LATENT_SCALE
    figures["encoded, furthest"] = _furthest(encoded, latents)
    figures["there and back"] = _compared(F.avg_pool2d(_decode(vae, encoded), 4), clean)
    sheet(rows, title="Portraits, decoded, with noise, as a sampler leaves it", scale=1).save(work / "autoencoder.png")
    require(figures["there and back"]["psnr"] >= 35, "a round trip below 35 dB", figures)
    require(figures["decoded with noise 0.05"]["psnr"] >= 34, "noise is not cleaned: it alone has 32 dB", figures)
    require(figures["decoded"]["unevenness"] < 0.01, "the copies of a pixel differ", figures)
    require(figures["encoded, furthest"] < 0.02, "the encoder is not exact", figures)
    return figures


def _decode(vae: Any, latents: Tensor) -> Tensor:
    """(N, 3, 128, 128) of latents as the U-Net sees them."""
    return torch.cat([vae.decode(part / LATENT_SCALE).sample for part in latents.split(20)])


def _furthest(one: Tensor, other: Tensor) -> float:
    return round(float((one - other).abs().max()), 5)


def _compared(answer: Tensor, target: Tensor) -> dict[str, float]:
    """PSNR in dB of [-1, 1], and the mean absolute error of 255."""
    error = (answer.clamp(-1, 1) - target).square().mean()
    return {
        "psnr": round(float(10 * torch.log10(4 / error)), 2),
        "error": round(float((answer.clamp(-1, 1) - target).abs().mean() * 127.5), 2),
    }


@torch.no_grad()
def pictures(vae: Any, latents: Tensor) -> np.ndarray[Any, Any]:
    """(N, 128, 128, 3) uint8 of latents as the U-Net sees them."""
    return _bytes(_decode(vae, latents))


def _bytes(decoded: Tensor) -> np.ndarray[Any, Any]:
    return ((decoded.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
