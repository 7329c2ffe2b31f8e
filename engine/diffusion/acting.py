"""What acts in a run besides the network itself: identity adapters, and the cure's hooks."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...face.cure.run import Run as HookRun
from ...face.cure.run import Writing
from ...face.cure.tape import Plan, Tape
from .guidance import Denoiser, Entry, NoAttention, Run, entries, opposed
from .hooks import Hooks, Processor, cross_layers_of, layers_of, listen
from .model import Model, running


@contextmanager
def attention(unet: Any, model: Model, guides: Sequence[Sequence[Entry]], shape: Sequence[int]) -> Generator[Run]:
    """Inside, the model's attention adapters work in ``unet``, which must be the run's own."""
    if not model.attention:
        yield NoAttention()
        return
    # Only then: the adapters' host is a part of its own.
    host = importlib.import_module("..diffusers_host", __package__)
    conditionings = [[entry.data for entry in guide] for guide in guides]
    with host.attention_run(unet, model.attention, model, conditionings, tuple(shape)) as run:
        yield run


@contextmanager
def hooked(
    unet: Any, model: Model, plan: Callable[[], Plan], shape: Sequence[int], check: Callable[[], None]
) -> Generator[Hooks]:
    """Inside, the model's hooks act in ``unet``, which must be the run's own. Raises BadInput before the first step."""
    if not model.hooks:
        yield Hooks()
        return
    settled, runs, hooks, well = plan(), list[HookRun](), Hooks(), False
    with ExitStack() as stack:
        try:
            runs += [hook.begin(settled, model.sampling.percent_to_sigma) for hook in model.hooks]
            hooks.runs, hooks.again = runs, _Again(stack, shape, check)
            _attend(unet, hooks, [(hook.layers, run) for hook, run in zip(model.hooks, runs, strict=True)])
            _listen(unet, hooks, [(hook.sites, run) for hook, run in zip(model.hooks, runs, strict=True)])
            yield hooks
            well = True
        finally:
            for run in runs:
                run.end(well)
            hooks.close()


def _attend(unet: Any, hooks: Hooks, acting: Sequence[tuple[frozenset[int], HookRun]]) -> None:
    """Put what acts in self-attention layers on them."""
    layers = sorted(frozenset[int]().union(*(wanted for wanted, _ in acting)))
    names = layers_of(unet)[1] if layers else []
    for layer in layers:
        hooks.acting[layer] = [run for wanted, run in acting if layer in wanted]
        unet.get_submodule(names[layer]).processor = Processor(hooks, layer)


def _listen(unet: Any, hooks: Hooks, hearing: Sequence[tuple[frozenset[int], HookRun]]) -> None:
    """Let hear who wants to hear of cross-attention layers."""
    sites = sorted(frozenset[int]().union(*(wanted for wanted, _ in hearing)))
    names = cross_layers_of(unet) if sites else []
    for site in sites:
        hooks.hearing[site] = [run for wanted, run in hearing if site in wanted]
        listen(unet.get_submodule(names[site]), hooks, site)


@dataclass(eq=False)
class _Again:
    """Asks the foundation model about a latent of its own run once more, its positive side alone."""

    stack: ExitStack
    shape: Sequence[int]
    check: Callable[[], None]
    _denoiser: Denoiser | None = None

    def __call__(self, tape: Tape, number: int, sigma: float, latent: Tensor) -> None:
        # A tape without keys brings along whom to ask, see ``EngineHost.sample``.
        model, positive, negative = tape.source
        writing = Writing(tape, layers_of(model.unet)[0])
        if self._denoiser is None:
            hooks = Hooks()
            self.stack.callback(hooks.close)
            unet = self.stack.enter_context(running(model, own=True))
            guides = opposed([entries(c, n, model, self.shape) for n, c in enumerate((positive, negative))])
            run = self.stack.enter_context(attention(unet, model, guides, self.shape))
            self._denoiser = Denoiser(model, unet, run, guides, 1.0, check=self.check, hooks=hooks)
        _attend(self._denoiser.unet, self._denoiser.hooks, [(frozenset(tape.layers), writing)])
        self._denoiser.evaluations = number
        self._denoiser.predict(self._denoiser.guides[:1], latent, torch.tensor(sigma))
