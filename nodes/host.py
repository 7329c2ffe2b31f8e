"""The host that runs the nodes at this moment: ComfyUI, our engine, or nobody (a plain script)."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ..face.adapters import IdAdapter
from ..face.adapters._evidence import Encoder
from ..face.attention import Applied
from ..face.attention.sites import Layout
from ..face.cure.layers import SelfLayers
from ..face.cure.run import Hook
from ..face.errors import BadInput
from ..face.host import Host, StandaloneHost


@dataclass(frozen=True)
class Sampling:
    """The widgets of a sampler."""

    seed: int
    steps: int
    cfg: float
    sampler: str
    scheduler: str
    denoise: float = 1.0


Solver = Callable[[Any, Tensor, Tensor, Any, Any], Tensor]
"""``solve(denoise, x, sigmas, watch, noise)``; see ``face.cure.guidance``."""


@dataclass(frozen=True, eq=False)
class Way:
    """A way along noise levels, up or down."""

    sigmas: Tensor
    """(steps + 1,)."""
    method: str | Solver
    """A sampler's name, or a function of one's own."""
    cfg: float
    seed: int


@dataclass(frozen=True, eq=False)
class Control:
    """A ControlNet, what it is shown, and how it acts."""

    net: Any
    image: Tensor
    """(B, H, W, 3)."""
    strength: float
    start: float
    end: float
    vae: Any = None


class NodeHost(Host, Protocol):
    """What nodes need beyond what the library needs."""

    def send_text(self, text: str, node_id: str | None) -> None:
        """Show a line on the running node, where the host has a screen."""
        ...

    def blocker(self, message: str | None) -> Any:
        """The value that stops a branch of the graph: silently for None, else with ``message`` as an error."""
        ...

    def mark(self) -> str | None:
        """What has to be written into pictures that the running node shows, if somebody in them was put there."""
        ...

    # What follows is about the host's own diffusion models, which only it understands.

    def layout(self, model: Any) -> Layout:
        """The cross-attention layers of a MODEL. BadInput for one that has none."""
        ...

    def apply_identity(self, model: Any, applied: Applied) -> Any:
        """Another MODEL, on which the adapter acts; the one that came in stays as it was."""
        ...

    def change_weights(self, model: Any, adapter: IdAdapter, strength: float) -> Any:
        """Another MODEL, with the adapter's own changes of the weights."""
        ...

    def encoder(self, clip_vision: Any) -> Encoder:
        """A CLIP_VISION as an image encoder."""
        ...

    def with_control(self, positive: Any, negative: Any, control: Control, width: int) -> tuple[Any, Any]:
        """Both conditionings with a ControlNet on them; BadInput for one that does not read tokens of that
        ``width``."""
        ...

    def lab_model(self, path: Path) -> tuple[Any, Any, Any]:
        """MODEL, CLIP and VAE of a checkpoint that tells its configuration in its metadata."""
        ...

    def lab_controlnet(self, path: Path) -> Any:
        """CONTROL_NET of a file that does."""
        ...

    def self_layers(self, model: Any) -> SelfLayers:
        """The self-attention layers of a MODEL. BadInput for one that is no U-Net."""
        ...

    def with_hook(self, model: Any, hook: Hook) -> Any:
        """Another MODEL, whose runs are recorded or cured; the one that came in stays as it was."""
        ...

    def hooks(self, model: Any) -> Sequence[Hook]:
        """What a MODEL's runs are recorded or cured by."""
        ...

    def dtype(self, model: Any) -> torch.dtype:
        """In which a MODEL computes."""
        ...

    def samplers(self) -> tuple[list[str], list[str]]:
        """The names of samplers and of schedulers."""
        ...

    def sample(self, model: Any, positive: Any, negative: Any, latent: Any, sampling: Sampling) -> Any:
        """A LATENT as KSampler gives it, with its progress and previews."""
        ...

    def sigmas(self, model: Any, sampling: Sampling) -> Tensor:
        """The noise levels that ``sample`` takes, descending to 0: mostly one more than steps; some schedulers have
        one more than they are asked for. Empty where nothing is sampled."""
        ...

    def solve(self, model: Any, positive: Any, negative: Any, latent: Any, way: Way) -> Any:
        """A LATENT that is at the end of the way, made of one that is at its beginning; no noise is put on it."""
        ...


@dataclass(frozen=True)
class Blocked:
    """What ``StandaloneHost`` nodes answer where a graph would be stopped."""

    message: str | None


class StandaloneNodeHost(StandaloneHost):
    def send_text(self, text: str, node_id: str | None) -> None:
        return

    def blocker(self, message: str | None) -> Any:
        return Blocked(message)

    def mark(self) -> str | None:
        return None

    def layout(self, model: Any) -> Layout:
        raise _nothing_to_sample_with()

    def apply_identity(self, model: Any, applied: Applied) -> Any:
        raise _nothing_to_sample_with()

    def change_weights(self, model: Any, adapter: IdAdapter, strength: float) -> Any:
        raise _nothing_to_sample_with()

    def encoder(self, clip_vision: Any) -> Encoder:
        raise _nothing_to_sample_with()

    def with_control(self, positive: Any, negative: Any, control: Control, width: int) -> tuple[Any, Any]:
        raise _nothing_to_sample_with()

    def lab_model(self, path: Path) -> tuple[Any, Any, Any]:
        raise _nothing_to_sample_with()

    def lab_controlnet(self, path: Path) -> Any:
        raise _nothing_to_sample_with()

    def self_layers(self, model: Any) -> SelfLayers:
        raise _nothing_to_sample_with()

    def with_hook(self, model: Any, hook: Hook) -> Any:
        raise _nothing_to_sample_with()

    def hooks(self, model: Any) -> Sequence[Hook]:
        raise _nothing_to_sample_with()

    def dtype(self, model: Any) -> torch.dtype:
        raise _nothing_to_sample_with()

    def samplers(self) -> tuple[list[str], list[str]]:
        # Only for the forms, which are shown to nobody here.
        return ["euler"], ["normal"]

    def sample(self, model: Any, positive: Any, negative: Any, latent: Any, sampling: Sampling) -> Any:
        raise _nothing_to_sample_with()

    def sigmas(self, model: Any, sampling: Sampling) -> Tensor:
        raise _nothing_to_sample_with()

    def solve(self, model: Any, positive: Any, negative: Any, latent: Any, way: Way) -> Any:
        raise _nothing_to_sample_with()


def _nothing_to_sample_with() -> BadInput:
    return BadInput(
        "outside of ComfyUI and the engine there is no MODEL to work on; for a diffusers pipeline use likeness.apply"
    )


_chosen: NodeHost | None = None


def use(chosen: NodeHost | None) -> None:
    """Called once by whoever runs the nodes (the engine does); None goes back to finding out."""
    global _chosen
    _chosen = chosen


def host() -> NodeHost:
    """The chosen host; inside a ComfyUI process, ComfyUI; else a plain script's."""
    if _chosen is not None:
        return _chosen
    if "folder_paths" in sys.modules and "comfy.model_management" in sys.modules:
        from .comfy.host import ComfyHost

        found: NodeHost = ComfyHost()
    else:
        found = StandaloneNodeHost()
    use(found)
    return found
