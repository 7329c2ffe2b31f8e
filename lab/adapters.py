"""Identity adapters for the lab's base model, trained as the published ones were: to draw the reference again.

The base stays as it is. The adapter is given what the recogniser sees of a portrait and learns to draw that very
portrait, so whatever the recogniser's vector tells, it learns to use: who somebody is, and what the person wears.
Names of tensors are those of the published files, and the projectors that the pack reads such files with are used in
training, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from ..face.adapters._net import Net
from ..face.adapters._projectors import mlp, resampler
from ..face.keypoints import keypoints_image
from . import nets
from .base import CHANNELS, SIDE, UNET, WIDTH, Base, fold, noised, read, scenes, timesteps
from .fit import Task
from .text import words
from .world import Values

Tensor = torch.Tensor

TOKENS = 4
HIDDEN = 384
RANK = 4
"""Of FaceID's changes of the base's own attention weights."""
INNER, DEPTH = 128, 2
"""Of InstantID's resampler."""
HINTS = [8, 8, 16, 32]
"""Channels between the picture of five points and the ControlNet's first layer."""
CONTROLNET: dict[str, Any] = {
    **{k: v for k, v in UNET.items() if k not in ("sample_size", "out_channels", "up_block_types")},
    "conditioning_embedding_out_channels": HINTS,
}

UNPROMPTED, UNKNOWN = 0.3, 0.05
"""How often the prompt is empty, and how often nobody is shown."""
MOST_NAMED = 4
"""Captions of photographs name little of what is in them; so do the prompts here."""


class Low(nn.Module):
    """``up @ down``, zero at first."""

    def __init__(self, wide: int, out: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(wide, RANK, bias=False), nn.Linear(RANK, out, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.down(x))


class Layer(nn.Module):
    """What an adapter adds to one attention layer."""

    def __init__(self, attention: Any, cross: bool, low: bool) -> None:
        super().__init__()
        width = attention.to_q.out_features
        if cross:
            self.to_k_ip = nn.Linear(WIDTH, width, bias=False)
            self.to_v_ip = nn.Linear(WIDTH, width, bias=False)
            nn.init.zeros_(self.to_v_ip.weight)
        if low:
            self.to_q_lora, self.to_out_lora = Low(width, width), Low(width, width)
            self.to_k_lora, self.to_v_lora = (Low(attention.to_k.in_features, width) for _ in range(2))


class Processor:
    """Attention with an adapter's layer: decoupled cross-attention (Ye et al. 2023, arXiv 2308.06721, equation 4)."""

    def __init__(self, layer: Layer, shown: dict[str, Tensor]) -> None:
        self.layer, self.shown = layer, shown

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, *_: Any, **__: Any
    ) -> Tensor:
        own, x = self.layer, hidden_states
        context = x if encoder_hidden_states is None else encoder_hidden_states
        q, k, v = attn.to_q(x), attn.to_k(context), attn.to_v(context)
        if hasattr(own, "to_q_lora"):
            q, k, v = q + own.to_q_lora(x), k + own.to_k_lora(context), v + own.to_v_lora(context)
        out = _attend(q, k, v, attn.heads)
        if hasattr(own, "to_k_ip"):
            tokens = self.shown["tokens"]
            out = out + _attend(q, own.to_k_ip(tokens), own.to_v_ip(tokens), attn.heads)
        answer = attn.to_out[0](out)
        return answer + own.to_out_lora(out) if hasattr(own, "to_q_lora") else answer


def _attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class Adapter(nn.Module):
    """Attached to a frozen base. ``state_dict`` of what is trained has the names of a published file."""

    def __init__(self, base: Base, low: bool) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self._shown: dict[str, Tensor] = {}
        layers: list[Layer] = []
        processors: dict[str, Processor] = {}
        unet: Any = base.unet
        # diffusers' order, which is that of the published files: down, up, middle; self-attention first.
        for name in unet.attn_processors:
            attention = unet.get_submodule(name.removesuffix(".processor"))
            layers.append(Layer(attention, name.endswith("attn2.processor"), low))
            processors[name] = Processor(layers[-1], self._shown)
        unet.set_attn_processor(processors)
        self.ip_adapter = nn.ModuleList(layers)

    def tokens(self, vectors: Tensor) -> Tensor:
        """(N, T, 64) of the recogniser's vectors (N, V)."""
        raise NotImplementedError

    def net(self) -> Net:
        prefix = "image_proj."
        return Net({n.removeprefix(prefix): p for n, p in self.named_parameters() if n.startswith(prefix)})

    def answer(self, noisy: Tensor, t: Tensor, text: Tensor, vectors: Tensor, hints: Tensor) -> Tensor:
        del hints
        self._shown["tokens"] = self.tokens(vectors)
        return self.base.unet(noisy, t, text).sample  # pyright: ignore[reportCallIssue]


class FaceID(Adapter):
    """tencent-ailab/IP-Adapter 62e4af9 ip_adapter/ip_adapter_faceid.py."""

    def __init__(self, base: Base, vector: int) -> None:
        super().__init__(base, low=True)
        self.image_proj = nn.Module()
        entrance = nn.Linear(vector, HIDDEN)
        self.image_proj.proj = nn.Sequential(entrance, nn.GELU(), nn.Linear(HIDDEN, TOKENS * WIDTH))
        self.image_proj.norm = nn.LayerNorm(WIDTH)
        # A vector of length 1 has small entries; so its directions differ from the first step on.
        nn.init.normal_(entrance.weight)

    def tokens(self, vectors: Tensor) -> Tensor:
        return mlp(self.net(), F.normalize(vectors, dim=-1))


class Perceiver(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(INNER), nn.LayerNorm(INNER)
        self.to_q, self.to_out = (nn.Linear(INNER, INNER, bias=False) for _ in range(2))
        self.to_kv = nn.Linear(INNER, 2 * INNER, bias=False)


class Resampler(nn.Module):
    """The tensors of IP-Adapter's resampler (ip_adapter/resampler.py); ``face.adapters`` has what is done with them."""

    def __init__(self, vector: int) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.randn(1, TOKENS, INNER) / INNER**0.5)
        self.proj_in, self.proj_out = nn.Linear(vector, INNER), nn.Linear(INNER, WIDTH)
        self.norm_out = nn.LayerNorm(WIDTH)

        def forward() -> nn.Sequential:
            wide, back = nn.Linear(INNER, 2 * INNER, bias=False), nn.Linear(2 * INNER, INNER, bias=False)
            return nn.Sequential(nn.LayerNorm(INNER), wide, nn.GELU(), back)

        self.layers = nn.ModuleList(nn.ModuleList([Perceiver(), forward()]) for _ in range(DEPTH))


class InstantID(Adapter):
    """instantX-research/InstantID 2145b67: tokens of the raw vector, and a ControlNet (IdentityNet) that reads them in
    place of the text and sees a drawing of the five points."""

    def __init__(self, base: Base, vector: int) -> None:
        from diffusers.models.controlnets.controlnet import ControlNetModel

        super().__init__(base, low=False)
        self.image_proj = Resampler(vector)
        self.control: Any = ControlNetModel.from_config(CONTROLNET)
        ours, theirs = self.control.state_dict(), base.unet.state_dict()
        self.control.load_state_dict({n: theirs.get(n, t) for n, t in ours.items()})

    def tokens(self, vectors: Tensor) -> Tensor:
        return resampler(self.net(), vectors[:, None])

    def answer(self, noisy: Tensor, t: Tensor, text: Tensor, vectors: Tensor, hints: Tensor) -> Tensor:
        self._shown["tokens"] = tokens = self.tokens(vectors)
        down, mid = self.control(noisy, t, tokens, hints, return_dict=False)
        unet: Any = self.base.unet
        return unet(noisy, t, text, down_block_additional_residuals=down, mid_block_additional_residual=mid).sample


KINDS: Mapping[str, type[FaceID] | type[InstantID]] = {"faceid": FaceID, "instantid": InstantID}


@dataclass
class AdapterTask(Task):
    name: str
    vocabulary: Path
    folder: Path
    """Where the base and the recogniser lie that were trained before."""
    steps: int = 1200
    batch: int = 32
    seed: int = 5
    rate: float = 3e-3
    average: float = 0.99
    first: str = ""
    """The training that this one goes on from, more slowly; empty: from nothing."""

    @property
    def kind(self) -> str:
        return self.name.partition("_")[0]

    def build(self) -> nn.Module:
        self._words = words(self.vocabulary)
        base = Base(self._words.size)
        base.load_state_dict(torch.load(self.folder / "base.pt", weights_only=True))
        self._recogniser = nets.load(self.folder, "recogniser")
        module = KINDS[self.kind](base, nets.VECTOR)
        if self.first:
            module.load_state_dict(torch.load(self.folder / f"{self.first}.pt", weights_only=True), strict=False)
        return module

    def loss(self, module: Any, count: int, seed: int, step: int) -> Tensor:
        del step
        these = scenes(count, seed, least=0, most=MOST_NAMED, strangers=False)
        prompts = [text if torch.rand(()) >= UNPROMPTED else "" for text in these.prompts]
        clean = fold(these.portraits.pixels)
        with torch.no_grad():
            places = nets.points(these.who)
            jitter = np.random.default_rng(seed).integers(-1, 2, (count, 1, 2))
            vectors = self._recogniser(nets.crops(these.portraits.pixels, places + jitter))
            vectors = torch.where(torch.rand(count, 1) < UNKNOWN, 0.0, vectors)
            text = read(module.base.text, self._words.tokens(prompts))
        hints = drawings(places + jitter) if self.kind == "instantid" else torch.empty(0)
        noisy, target = noised(clean, torch.randn(count, CHANNELS, SIDE, SIDE), t := timesteps(count))
        noisy = noisy.contiguous(memory_format=torch.channels_last)
        return (FACE * (module.answer(noisy, t, text, vectors, hints) - target).square()).mean()


def _face() -> Tensor:
    found = torch.ones(SIDE, SIDE)
    found[4:13, 3:13] = 5.0
    return found / found.mean()


FACE = _face()
"""(16, 16): how much an error counts, by place. Who somebody is shows in few pixels."""


def drawings(places: np.ndarray[Any, Any]) -> Tensor:
    """(N, 3, 128, 128): the pictures of five points ``places`` (N, 5, 2), in pixels."""
    return torch.stack([_drawing(tuple(np.asarray(face, np.float64).round(3).reshape(-1).tolist())) for face in places])


@lru_cache(maxsize=4096)
def _drawing(face: tuple[float, ...]) -> Tensor:
    side = 8 * SIDE
    return keypoints_image(np.array(face, np.float32).reshape(5, 2), side, side).permute(2, 0, 1)


def identity(who: Values) -> tuple[tuple[int, ...], ...]:
    """Somebody's traits in a row, by which people are told apart."""
    return tuple(zip(*(map(int, values) for values in who.values()), strict=True))
