"""The two caches of a process: opened models, and analysed pictures.

Models are held once whoever asks, up to a budget of bytes; the least recently used goes first, and never one that is in
use. Analyses are held by what they were made from, so that the same picture is not looked at twice.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Generator, Hashable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Held:
    """One line of ``ModelCache.held``."""

    name: str
    nbytes: int
    in_use: int
    """How many calls are running in it now."""
    opened: int
    """How often it was opened since the process began; 1 unless it was freed in between."""


@dataclass
class _Entry:
    lock: threading.Lock = field(default_factory=threading.Lock)
    """Held while opening, so that two who ask at once open once."""
    model: Any = None
    nbytes: int = 0
    users: int = 0
    opened: int = 0


class ModelCache:
    """Opened models by key, thread-safe."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        """Bytes that idle models may take together. What is in use is never counted out."""
        self._lock = threading.Lock()
        self._entries: OrderedDict[Hashable, _Entry] = OrderedDict()

    @contextmanager
    def lease(self, key: Hashable, load: Callable[[], tuple[T, int]]) -> Generator[T]:
        """The model under ``key``, opened by ``load`` (model, bytes) if not held; never evicted meanwhile."""
        with self._lock:
            entry = self._entries.setdefault(key, _Entry())
            entry.users += 1
            self._entries.move_to_end(key)
        try:
            with entry.lock:
                if entry.model is None:
                    entry.model, entry.nbytes = load()
                    entry.opened += 1
            self._evict()
            yield entry.model
        finally:
            with self._lock:
                entry.users -= 1
            self._evict()

    def _evict(self) -> None:
        with self._lock:
            total = sum(entry.nbytes for entry in self._entries.values())
            for entry in self._entries.values():
                if total <= self.budget:
                    break
                if entry.users == 0 and entry.model is not None:
                    total -= entry.nbytes
                    entry.model, entry.nbytes = None, 0

    def held(self) -> list[Held]:
        """What is open now, least recently used first."""
        with self._lock:
            return [
                Held(str(key[0]) if isinstance(key, tuple) else str(key), e.nbytes, e.users, e.opened)
                for key, e in self._entries.items()
                if e.model is not None
            ]

    def free(self) -> int:
        """Close every idle model; answers the bytes given back."""
        with self._lock:
            idle = [e for e in self._entries.values() if e.users == 0 and e.model is not None]
            freed = sum(e.nbytes for e in idle)
            for entry in idle:
                entry.model, entry.nbytes = None, 0
            return freed


class AnalysisCache:
    """Results by key, at most ``entries`` of them, least recently used first out; thread-safe."""

    def __init__(self, entries: int) -> None:
        self._limit = entries
        self._lock = threading.Lock()
        self._results: OrderedDict[Hashable, Any] = OrderedDict()

    def get_many(self, keys: Sequence[Hashable], compute: Callable[[list[int]], Sequence[T]]) -> list[T]:
        """The result under each of ``keys``; ``compute`` is asked once for the places of all that are not held.

        Equal keys are computed once. Two threads that miss the same key at the same time both compute it: results are
        values, and waiting for one another could lock two prompts together.
        """
        with self._lock:
            held = {key: self._results[key] for key in keys if key in self._results}
            for key in held:
                self._results.move_to_end(key)
        first = {key: place for place, key in reversed(list(enumerate(keys))) if key not in held}
        places = sorted(first.values())
        if places:
            made = dict(zip((keys[place] for place in places), compute(places), strict=True))
            held |= made
            with self._lock:
                self._results |= made
                while len(self._results) > self._limit:
                    self._results.popitem(last=False)
        return [held[key] for key in keys]

    def clear(self) -> None:
        with self._lock:
            self._results.clear()


def _budget() -> int:
    """2 GiB, or ``LIKENESS_CACHE_MB`` megabytes."""
    setting = os.environ.get("LIKENESS_CACHE_MB", "")
    return int(setting) << 20 if setting.isdigit() else 2 << 30


MODELS = ModelCache(_budget())
ANALYSES = AnalysisCache(512)
