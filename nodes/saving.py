"""Where output nodes write: numbered files inside the output folder, never outside; and the mark of edited pictures."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..face.errors import BadInput
from .host import host

SWAPPED, DRAWN = "edited: faces swapped", "generated: a person drawn from an identity"
"""What a PNG's text ``Likeness`` says of a picture in which somebody wears another's face, or was never there."""


def numbered(prefix: str, ending: str) -> tuple[Path, str]:
    """A new file, the next free ``prefix_00001_`` + ``ending`` in the output folder, and its subfolder there.

    Raises BadInput for a prefix that leads out of the folder, or that no file can have.
    """
    root = host().folders("output")[0].resolve()
    try:
        target = (root / prefix).resolve()
    except ValueError as error:
        raise BadInput(
            f"the file name prefix {prefix!r} holds what no file name can: {error}. Leave it out."
        ) from error
    if not target.is_relative_to(root) or target == root or not target.name:
        raise BadInput(f"the file name prefix {prefix!r} leads out of the output folder {root}; name a place inside it")
    path = reserve(target.parent, target.name, ending)
    return path, target.parent.relative_to(root).as_posix().removeprefix(".")


def reserve(folder: Path, name: str, ending: str) -> Path:
    """An empty new file ``name_00001_`` + ``ending`` with the next free number; nobody else gets the same one.

    The folder is made if need be. Raises BadInput where nothing can be written.
    """
    pattern = re.compile(re.escape(name) + r"_(\d+)_?.*\.\w+", re.IGNORECASE)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        taken = (pattern.fullmatch(entry) for entry in os.listdir(folder))
        number = max((int(match[1]) for match in taken if match), default=0) + 1
        while True:
            path = folder / f"{name}_{number:05}_{ending}"
            try:
                path.touch(exist_ok=False)
                return path
            except FileExistsError:
                # Another process counts in this folder, too.
                number += 1
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise BadInput(
            f"{name[:40]!r} cannot be written in {folder}: {why}. Choose another file name prefix or output folder."
        ) from error


def mark_of(prompt: Mapping[str, Any], node_ids: Iterable[str], known: Mapping[str, Any]) -> str | None:
    """What nodes of an API prompt, or those that feed them, do to whose face is seen; None for nothing.

    The classes that do something (``known``, by their id) say what in their attribute MARK.
    """
    marks: set[str] = set()
    found = set(node_ids)
    todo = list(found)
    while todo:
        node = prompt.get(todo.pop(), {})
        if mark := getattr(known.get(node.get("class_type", "")), "MARK", None):
            marks.add(mark)
        links = [value for value in node.get("inputs", {}).values() if isinstance(value, list) and len(value) == 2]
        feeding = {str(source) for source, _ in links} - found
        found |= feeding
        todo += feeding
    return "; ".join(sorted(marks)) or None
