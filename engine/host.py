"""The host of the nodes while the engine runs them: where files lie, and to whom progress and stops belong."""

from __future__ import annotations

import logging
import threading
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ..face.host import Progress, StandaloneHost

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


class EngineHost(StandaloneHost):
    """``nodes.host.NodeHost`` for the engine. Pictures are looked up in every input folder, in order."""

    def __init__(self, inputs: list[Path], output: Path, temp: Path, models: Path | None = None) -> None:
        super().__init__(models)
        self._places = {"input": inputs, "output": [output], "temp": [temp]}

    def folders(self, kind: str) -> list[Path]:
        return self._places.get(kind) or super().folders(kind)

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

    def edited(self) -> bool:
        now = _running.get()
        if now is None:
            return False
        from ..nodes.saving import edits_faces
        from .registry import classes

        return edits_faces(now[0].prompt, now[1], classes())
