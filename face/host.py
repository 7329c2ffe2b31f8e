"""What the library needs from whoever runs it: ComfyUI, our engine, or a plain script."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Protocol

ROOT = Path(__file__).resolve().parent.parent

ADAPTER_FOLDERS = ("ipadapter", "instantid", "pulid", "photomaker")
"""Where other packs keep adapter files, in ComfyUI's models folder."""


class Progress(Protocol):
    """A running count of finished steps; ``update`` also raises if the user stopped the run."""

    def update(self, steps: int = 1, preview: Any = None) -> None:
        """Count ``steps`` more; ``preview`` is an optional PIL picture to show meanwhile."""
        ...


class Host(Protocol):
    """The library's whole view of the world around it."""

    def folders(self, kind: str) -> list[Path]:
        """Folders of one kind, the first being where new files go.

        Kinds: ``likeness`` (catalogue models), ``insightface`` (model packs), ``identities``
        (saved identities), ``adapters`` (identity adapters), ``clip_vision`` (image encoders),
        ``checkpoints``, ``controlnet``, ``input``, ``output``, ``temp``. They need not exist.
        """
        ...

    def providers(self) -> list[str]:
        """onnxruntime execution providers in the order wished for."""
        ...

    def make_room(self, nbytes: int) -> None:
        """Free device memory before something of that size is loaded."""
        ...

    def progress(self, total: int) -> Progress:
        """Begin a count of ``total`` steps."""
        ...

    def check_interrupt(self) -> None:
        """Raise the host's own exception if the user stopped the run. Never swallow it."""
        ...


class _Silent:
    def update(self, steps: int = 1, preview: Any = None) -> None:
        return


class StandaloneHost:
    """The host of scripts and tests: silent, on the CPU, models in one folder.

    Models lie in ``LIKENESS_MODELS`` if set; else in ComfyUI's ``models`` if this checkout lies in
    ``custom_nodes``; else in the checkout's own ``models``; for an installed wheel in ``~/.cache/likeness``.
    """

    def __init__(self, models: Path | None = None, work: Path | None = None) -> None:
        self._models, self._work = models, work

    def models(self) -> Path:
        """The folder that holds ``likeness/`` and ``insightface/``."""
        if self._models is not None:
            return self._models
        if setting := os.environ.get("LIKENESS_MODELS"):
            return Path(setting).expanduser()
        if ROOT.parent.name == "custom_nodes":
            return ROOT.parent.parent / "models"
        if (ROOT / "pyproject.toml").is_file():
            return ROOT / "models"
        return Path.home() / ".cache" / "likeness" / "models"

    def folders(self, kind: str) -> list[Path]:
        models, work = self.models(), self._work or Path.cwd()
        known = {
            "likeness": [models / "likeness"],
            "insightface": [models / "insightface" / "models"],
            "identities": [models / "likeness" / "identities", models / "reactor" / "faces"],
            "adapters": [models / "likeness" / "adapters", *(models / name for name in ADAPTER_FOLDERS)],
            "clip_vision": [models / "clip_vision"],
            "checkpoints": [models / "checkpoints"],
            "controlnet": [models / "controlnet"],
            "input": [work / "input"],
            "output": [work / "out"],
            "temp": [work / "out" / "temp"],
        }
        return known[kind]

    def providers(self) -> list[str]:
        return ["CPUExecutionProvider"]

    def make_room(self, nbytes: int) -> None:
        return

    def progress(self, total: int) -> Progress:
        return _Silent()

    def check_interrupt(self) -> None:
        return


STANDALONE = StandaloneHost()
