"""The host of the nodes while the engine runs them: where files lie, and to whom progress and stops belong."""

from __future__ import annotations

import logging
import threading
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ..face.errors import BadInput
from ..face.host import ROOT, Progress, StandaloneHost

if TYPE_CHECKING:
    from torch import Tensor

    from ..face.adapters import IdAdapter
    from ..face.adapters._evidence import Encoder
    from ..face.attention import Applied
    from ..face.attention.sites import Layout
    from ..face.cure.layers import SelfLayers
    from ..face.cure.run import Hook
    from ..nodes.host import Control, Sampling, Way

log = logging.getLogger(__name__)


class Interrupted(BaseException):
    """The user stopped the run. Not an ``Exception``, so that a node's ``except Exception`` lets it pass."""


@dataclass(frozen=True)
class Blocker:
    """A value that stops every node it reaches: silently, or with ``message`` as an error of the first of them."""

    message: str | None = None


class Listener(Protocol):
    """Whoever watches a run: a websocket client, the command line, nobody."""

    def event(self, name: str, data: dict[str, Any]) -> None:
        """One of ComfyUI's messages; ``name`` is its type."""
        ...

    def preview(self, node_id: str, picture: Any) -> None:
        """A PIL picture of what the node is doing."""
        ...

    def text(self, node_id: str, text: str) -> None:
        """A line to show on the node."""
        ...


class Silent:
    """The listener nobody needs to be."""

    def event(self, name: str, data: dict[str, Any]) -> None:
        return

    def preview(self, node_id: str, picture: Any) -> None:
        return

    def text(self, node_id: str, text: str) -> None:
        return


@dataclass
class Running:
    """One prompt while it runs: what a node's progress, texts and stops refer to."""

    prompt_id: str
    listener: Listener
    stop: threading.Event
    states: dict[str, dict[str, Any]] = field(default_factory=dict)
    """ComfyUI's ``progress_state`` record of every node that has begun."""
    prompt: dict[str, Any] = field(default_factory=dict)

    def check(self) -> None:
        if self.stop.is_set():
            raise Interrupted

    def state(self, node_id: str, value: float, total: float, state: str) -> None:
        """Note how far a node is, and tell the listener about all that have begun."""
        self.states[node_id] = {
            "value": value,
            "max": total,
            "state": state,
            "node_id": node_id,
            "prompt_id": self.prompt_id,
            "display_node_id": node_id,
            "parent_node_id": None,
            "real_node_id": node_id,
        }
        self.listener.event("progress_state", {"prompt_id": self.prompt_id, "nodes": self.states})


# Threads and tasks each see the node that they themselves are running.
_running: ContextVar[tuple[Running, str] | None] = ContextVar("running", default=None)


@contextmanager
def running(run: Running, node_id: str) -> Generator[None]:
    """Inside, the host's progress, texts and interrupts are those of ``node_id`` in ``run``."""
    token = _running.set((run, node_id))
    try:
        yield
    finally:
        _running.reset(token)


@dataclass
class _NodeProgress:
    total: int
    done: int = 0

    def update(self, steps: int = 1, preview: Any = None) -> None:
        self.done = min(self.done + steps, self.total)
        if (now := _running.get()) is None:
            return
        run, node_id = now
        run.check()
        run.state(node_id, self.done, self.total, "running")
        data = {"value": self.done, "max": self.total, "prompt_id": run.prompt_id, "node": node_id}
        run.listener.event("progress", data)
        if preview is not None:
            run.listener.preview(node_id, preview)


MODEL_FOLDERS = {
    "checkpoints": ("checkpoints", "diffusers"),
    "clip_vision": ("clip_vision",),
    "controlnet": ("controlnet",),
    "diffusion_models": ("diffusion_models", "unet"),
    "loras": ("loras",),
    "text_encoders": ("text_encoders", "clip"),
    "vae": ("vae",),
}
"""Kinds of generation models, and what their folders are called, in ComfyUI's manner."""


class EngineHost(StandaloneHost):
    """``nodes.host.NodeHost`` for the engine. Pictures are looked up in every input folder, in order."""

    def __init__(self, inputs: list[Path], output: Path, temp: Path, models: Path | None = None) -> None:
        super().__init__(models)
        self._places = {"input": inputs, "output": [output], "temp": [temp]}

    def folders(self, kind: str) -> list[Path]:
        if kind in MODEL_FOLDERS:
            roots = [self.models()]
            if ROOT.parent.name == "custom_nodes":
                roots.append(ROOT.parent.parent / "models")
            return list(dict.fromkeys(root / name for root in roots for name in MODEL_FOLDERS[kind]))
        return self._places.get(kind) or super().folders(kind)

    def device(self) -> Any:
        """The torch device that diffusion models run on."""
        import torch

        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def providers(self) -> list[str]:
        import onnxruntime

        there = onnxruntime.get_available_providers()
        return [name for name in ("CUDAExecutionProvider", "CPUExecutionProvider") if name in there]

    def progress(self, total: int) -> Progress:
        return _NodeProgress(max(total, 1))

    def check_interrupt(self) -> None:
        if (now := _running.get()) is not None:
            now[0].check()

    def send_text(self, text: str, node_id: str | None) -> None:
        if (now := _running.get()) is not None:
            now[0].listener.text(node_id or now[1], text)

    def blocker(self, message: str | None) -> Any:
        return Blocker(message)

    def mark(self) -> str | None:
        now = _running.get()
        if now is None:
            return None
        from ..nodes.saving import mark_of
        from .registry import classes

        return mark_of(now[0].prompt, (now[1],), classes())

    # Diffusion models; loaded when asked for, so that a run without them needs no diffusers.

    def layout(self, model: Any) -> Layout:
        return self._diffusers().layout_of(model.unet)[0]

    def apply_identity(self, model: Any, applied: Applied) -> Any:
        return replace(model, attention=(*model.attention, applied))

    def change_weights(self, model: Any, adapter: IdAdapter, strength: float) -> Any:
        return self._diffusers().change_weights(model, adapter, strength)

    def encoder(self, clip_vision: Any) -> Encoder:
        return self._diffusers().encoder(clip_vision)

    def with_control(self, positive: Any, negative: Any, control: Control, width: int) -> tuple[Any, Any]:
        found = control.net.net.config["cross_attention_dim"]
        if found != width:
            raise BadInput(
                f"this ControlNet reads text {found} wide, but the identity's tokens are {width} wide: it belongs to "
                "another base model. Load InstantID's own ControlNet."
            )
        one, node = control, import_module(".core.generation", __package__).ControlNetApplyAdvanced()
        return node.apply_controlnet(positive, negative, one.net, one.image, one.strength, one.start, one.end, one.vae)

    def lab_model(self, path: Path) -> tuple[Any, Any, Any]:
        return self._load().checkpoint(path, self.device(), self._vocabularies())

    def lab_controlnet(self, path: Path) -> Any:
        return self._load().controlnet(path, self.device())

    def _load(self) -> Any:
        return import_module(".diffusion.load", __package__)

    def _vocabularies(self) -> Any:
        return import_module(".diffusion.tokens", __package__).vocabulary_places(self)

    def self_layers(self, model: Any) -> SelfLayers:
        return import_module(".diffusion.hooks", __package__).layers_of(model.unet)[0]

    def with_hook(self, model: Any, hook: Hook) -> Any:
        return replace(model, hooks=(*model.hooks, hook))

    def hooks(self, model: Any) -> Any:
        return model.hooks

    def dtype(self, model: Any) -> Any:
        return model.dtype

    def samplers(self) -> tuple[list[str], list[str]]:
        generation = import_module(".core.generation", __package__)
        return list(generation.SAMPLERS), list(generation.SCHEDULES)

    def sample(self, model: Any, positive: Any, negative: Any, latent: Any, sampling: Sampling) -> Any:
        one, node = sampling, import_module(".core.generation", __package__).KSampler()
        widgets = one.seed, one.steps, one.cfg, one.sampler, one.scheduler
        return node.sample(model, *widgets, positive, negative, latent, one.denoise)[0]

    def sigmas(self, model: Any, sampling: Sampling) -> Tensor:
        levels = import_module(".diffusion.sampling", __package__).schedule
        return levels(model.sampling, sampling.scheduler, sampling.steps, sampling.denoise)

    def solve(self, model: Any, positive: Any, negative: Any, latent: Any, way: Way) -> Any:
        return import_module(".core.generation", __package__).solved(model, positive, negative, latent, way)

    @staticmethod
    def _diffusers() -> Any:
        return import_module(".diffusers_host", __package__)
