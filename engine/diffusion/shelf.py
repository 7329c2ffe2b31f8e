"""Loaded networks, each once in the process for as long as anybody uses it, and a while longer.

``face.cache.ModelCache`` lends what is used inside one call. A diffusion model is different: it travels on sockets and
lives in the results of nodes. So what somebody still holds is found again whatever its size, and what nobody holds is
kept up to a budget of bytes, the least recently asked for going first.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any, TypeVar

import torch

T = TypeVar("T", bound=torch.nn.Module)


class Shelf:
    """Networks by key, thread-safe."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        """Bytes kept of what nobody may be using any more."""
        self._lock = threading.Lock()
        self._loading: dict[Hashable, threading.Lock] = {}
        self._alive: weakref.WeakValueDictionary[Hashable, torch.nn.Module] = weakref.WeakValueDictionary()
        self._kept: OrderedDict[Hashable, torch.nn.Module] = OrderedDict()

    def get(self, key: Hashable, load: Callable[[], T]) -> T:
        """The network under ``key``; loaded if it is not in memory. Two who ask at once load once."""
        with self._lock:
            loading = self._loading.setdefault(key, threading.Lock())
        with loading:
            module: Any = self._alive.get(key)
            if module is None:
                module = load()
            with self._lock:
                self._alive[key] = self._kept[key] = module
                self._kept.move_to_end(key)
                # The newest stays, however large: it is about to be used.
                while len(self._kept) > 1 and sum(map(nbytes, self._kept.values())) > self.budget:
                    self._kept.popitem(last=False)
        return module

    def free(self) -> int:
        """Let go of everything; what others still hold stays in memory. Answers the bytes let go of."""
        with self._lock:
            freed = sum(map(nbytes, self._kept.values()))
            self._kept.clear()
        return freed


def nbytes(module: torch.nn.Module) -> int:
    """Size of a network's weights."""
    return sum(tensor.nbytes for tensor in module.state_dict().values())


def stamp(path: Path) -> tuple[str, int, int]:
    """What tells a file or a folder on disk from another, or from its own earlier content."""
    path = path.resolve()
    files = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
    states = [file.stat() for file in files]
    return str(path), sum(s.st_size for s in states), max((s.st_mtime_ns for s in states), default=0)


def _budget() -> int:
    """8 GiB, or ``LIKENESS_DIFFUSION_CACHE_MB`` megabytes."""
    setting = os.environ.get("LIKENESS_DIFFUSION_CACHE_MB", "")
    return int(setting) << 20 if setting.isdigit() else 8 << 30


SHELF = Shelf(_budget())
