"""The host that runs the nodes at this moment: ComfyUI, our engine, or nobody (a plain script)."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any, Protocol

from ..face.host import Host, StandaloneHost


class NodeHost(Host, Protocol):
    """What nodes need beyond what the library needs."""

    def send_text(self, text: str, node_id: str | None) -> None:
        """Show a line on the running node, where the host has a screen."""
        ...

    def blocker(self, message: str | None) -> Any:
        """The value that stops a branch of the graph: silently for None, else with ``message`` as an error."""
        ...

    def edited(self) -> bool:
        """Whether what the running node shows may be somebody wearing another's face."""
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

    def edited(self) -> bool:
        return False


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
