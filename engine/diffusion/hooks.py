"""The cure's hooks (``face.cure.run``) in a run of the engine: self-attention layers, questions and answers."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor

from ...face.cure.attention import plain
from ...face.cure.layers import SelfLayers, self_layers
from ...face.cure.run import Again, Now, Run, chained
from ...face.cure.tape import Tape
from .model import Chunk


def layers_of(unet: Any) -> tuple[SelfLayers, list[str]]:
    """The self-attention layers of a diffusers U-Net in call order, and the names of their modules."""
    layout, names = importlib.import_module("..diffusers_host", __package__).layout_of(unet)
    layers = self_layers(layout)
    return layers, [names[layer.site].removesuffix("attn2") + "attn1" for layer in layers.layers]


def _nobody(tape: Tape, number: int, sigma: float, latent: Tensor) -> None:
    return


def cross_layers_of(unet: Any) -> list[str]:
    """The names of its cross-attention layers, in the order of adapter files."""
    return importlib.import_module("..diffusers_host", __package__).layout_of(unet)[1]


@dataclass(eq=False)
class Hooks:
    """The hooks of one run, and the call of the network that is running."""

    runs: Sequence[Run] = ()
    again: Again | None = None
    now: Now | None = None
    acting: dict[int, Sequence[Run]] = field(default_factory=dict)
    """By self-attention layer."""
    hearing: dict[int, Sequence[Run]] = field(default_factory=dict)
    """By cross-attention layer."""

    def close(self) -> None:
        """Let everything go: the network's modules know this, and lie in circles until Python looks for those."""
        self.runs, self.again, self.now = (), None, None
        self.acting.clear()
        self.hearing.clear()

    def evaluate(self, number: int, sigma: float, latent: Tensor) -> None:
        for run in self.runs:
            run.evaluate(number, sigma, latent, self.again or _nobody)

    def call(self, chunks: Sequence[Chunk], sigma: float, latent: tuple[int, int]) -> None:
        """Told before every call of the U-Net what goes through it."""
        ordinals = tuple(chunk.number if chunk.index == 0 else None for chunk in chunks)
        areas = tuple(chunk.area for chunk in chunks)
        self.now = Now(chunks[0].evaluation, sigma, ordinals, tuple(range(chunks[0].size)), latent, areas)

    def answered(
        self, number: int, sigma: float, latent: Tensor, positive: Tensor, negative: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        for run in self.runs:
            positive, negative = run.answered(number, sigma, latent, positive, negative)
        return positive, negative

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
        """The layer's answer."""
        now = self.now
        assert now is not None
        return chained(self.acting.get(layer, ()), layer, heads, now, partial(plain, heads=heads))(q, k, v)


class Processor:
    """diffusers' attention processor for one self-attention layer of SD's U-Nets."""

    def __init__(self, hooks: Hooks, layer: int) -> None:
        self._hooks, self._layer = hooks, layer

    def __call__(self, attn: Any, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        q, k, v = attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states)
        out = self._hooks.attend(self._layer, q, k, v, attn.heads)
        return attn.to_out[1](attn.to_out[0](out))


def listen(attention: Any, hooks: Hooks, site: int) -> None:
    """Let hooks hear the queries and keys of a cross-attention layer, which must be the run's own."""
    asked: list[Tensor] = []

    def query(module: Any, inputs: Any, output: Tensor) -> None:
        asked[:] = [output]

    def key(module: Any, inputs: Any, output: Tensor) -> None:
        if asked and hooks.now is not None:
            for run in hooks.hearing.get(site, ()):
                run.hear(site, asked[0], output, attention.heads, hooks.now)

    attention.to_q.register_forward_hook(query)
    attention.to_k.register_forward_hook(key)
