"""Running an ONNX network: a light handle on a file, opened through the process's one model cache."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .cache import MODELS, ModelCache
from .errors import BadModelFile, MissingPackage
from .host import STANDALONE, Host
from .onnx_file import Signature, signature
from .types import Array

log = logging.getLogger(__name__)


def threads() -> int:
    """Threads for one network on the CPU: half the cores, at most 4.

    A diffusion host keeps the other cores busy (torch, the browser, the next prompt). These networks are small: more
    threads gain little when the machine is idle, and lose much when a core they wait for is taken.
    """
    return max(1, min(4, (os.cpu_count() or 2) // 2))


def _open(path: Path, providers: list[str]) -> tuple[Any, int]:
    try:
        import onnxruntime as ort
    except ImportError as error:
        raise MissingPackage(
            "onnxruntime is not installed. Install one build of it: `pip install onnxruntime` for the CPU, or "
            "`pip install onnxruntime-gpu` for NVIDIA cards. Never both: each overwrites the other's files."
        ) from error
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads()
    options.inter_op_num_threads = 1
    # Spinning threads make a network two to four times slower as soon as another process holds a core.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    available = ort.get_available_providers()
    wanted = [p for p in providers if p in available] or ["CPUExecutionProvider"]
    try:
        session = ort.InferenceSession(str(path), options, providers=wanted)
    except Exception as error:
        raise BadModelFile(
            f"onnxruntime {ort.__version__} cannot open {path}: the file is damaged, or newer than this onnxruntime. "
            f"Delete it and fetch or copy it again, or update onnxruntime, which says: {error}"
        ) from error
    got = session.get_providers()
    if providers and providers[0] not in got:
        log.warning(
            "%s was asked to run on %s but runs on %s; onnxruntime offers %s. For NVIDIA cards uninstall onnxruntime "
            "and install onnxruntime-gpu alone.",
            path.name,
            providers[0],
            got[0],
            ", ".join(available),
        )
    return session, path.stat().st_size


@dataclass(frozen=True)
class OnnxModel:
    """A network in a file. Costs nothing until it runs; all who name the same file share the session behind it."""

    path: Path
    host: Host = STANDALONE
    cache: ModelCache = field(default=MODELS, repr=False, compare=False)

    @property
    def signature(self) -> Signature:
        """Inputs and outputs, read without opening a session."""
        return signature(self.path)

    def _lease(self) -> Any:
        state = self.path.stat()
        providers = self.host.providers()
        key = (self.path.name, str(self.path.resolve()), state.st_mtime_ns, state.st_size, tuple(providers))

        def load() -> tuple[Any, int]:
            signature(self.path)
            self.host.make_room(state.st_size)
            return _open(self.path, providers)

        return self.cache.lease(key, load)

    def run(self, feeds: Mapping[str, Array], outputs: list[str] | None = None) -> list[Array]:
        """The outputs (all of them, in the file's order, unless named) for contiguous float32 ``feeds``."""
        with self._lease() as session:
            try:
                return session.run(outputs, {k: np.ascontiguousarray(v) for k, v in feeds.items()})
            except Exception as error:
                shapes = ", ".join(f"{k} {v.shape} {v.dtype}" for k, v in feeds.items())
                takes = ", ".join(f"{p.name} {p.shape}" for p in self.signature.inputs)
                raise BadModelFile(
                    f"{self.path.name} could not run on {shapes}; it declares {takes}. It may be another kind of model "
                    f"than it is used as: fetch or copy it again. onnxruntime says: {error}"
                ) from error

    def metadata(self) -> dict[str, str]:
        """What its maker wrote into the file."""
        with self._lease() as session:
            return dict(session.get_modelmeta().custom_metadata_map)

    def providers(self) -> list[str]:
        """Where it really runs, the first being the main one."""
        with self._lease() as session:
            return session.get_providers()

    def run_batch(self, name: str, batch: Array) -> list[Array]:
        """All outputs for ``batch`` (N, ...) on the input ``name``, in one call where the net's first size is free."""
        declared = next((p.shape[0] for p in self.signature.inputs if p.name == name and p.shape), None)
        if declared is None or declared == len(batch):
            return self.run({name: batch})
        parts = [self.run({name: batch[i : i + 1]}) for i in range(len(batch))]
        return [np.concatenate(column) for column in zip(*parts, strict=True)]
