"""A registry that fills itself from the files of a folder: to add one is to add a file."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterable, Iterator
from difflib import get_close_matches
from typing import Generic, TypeVar

from .errors import BadInput

T = TypeVar("T")


class Registry(Generic[T]):
    """Named entries of one kind, in the order in which their files sort.

    Files are imported on first use, so that importing the pack stays cheap. A file that fails to
    import fails loudly.
    """

    def __init__(self, kind: str, package: str, path: Iterable[str]) -> None:
        self.kind = kind
        self._package, self._path = package, list(path)
        self._entries: dict[str, T] = {}
        self._discovered = False

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator: enter the decorated object under ``name``."""

        def enter(entry: T) -> T:
            return self.add(name, entry)

        return enter

    def add(self, name: str, entry: T) -> T:
        """Enter ``entry`` under ``name``; a name is taken once."""
        if name in self._entries:
            raise BadInput(f"two {self.kind}s are both called {name!r}; rename one of the files that register it")
        self._entries[name] = entry
        return entry

    def _discover(self) -> None:
        if self._discovered:
            return
        self._discovered = True
        try:
            for module in sorted(pkgutil.iter_modules(self._path), key=lambda m: m.name):
                if not module.name.startswith("_"):
                    importlib.import_module(f"{self._package}.{module.name}")
        except BaseException:
            self._discovered = False
            raise

    def names(self) -> list[str]:
        self._discover()
        return list(self._entries)

    def __iter__(self) -> Iterator[T]:
        self._discover()
        return iter(list(self._entries.values()))

    def __contains__(self, name: object) -> bool:
        self._discover()
        return name in self._entries

    def __getitem__(self, name: str) -> T:
        self._discover()
        if name in self._entries:
            return self._entries[name]
        near = get_close_matches(name, self._entries, 1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise BadInput(f"there is no {self.kind} called {name!r}. Known: {', '.join(self._entries)}.{hint}")
