"""Where output nodes write: numbered files inside the output folder, never outside."""

from __future__ import annotations

import re
from pathlib import Path

from ..face.errors import BadInput
from .host import host


def numbered(prefix: str, ending: str) -> tuple[Path, str]:
    """The next free ``prefix_00001_`` + ``ending`` in the output folder, and its subfolder there.

    Raises BadInput for a prefix that leads out of the folder.
    """
    root = host().folders("output")[0].resolve()
    target = (root / prefix).resolve()
    if not target.is_relative_to(root) or target == root or not target.name:
        raise BadInput(f"the file name prefix {prefix!r} leads out of the output folder {root}; name a place inside it")
    target.parent.mkdir(parents=True, exist_ok=True)
    pattern = re.compile(re.escape(target.name) + r"_(\d+)_?\.")
    taken = [int(m.group(1)) for f in target.parent.iterdir() if (m := pattern.match(f.name))]
    path = target.parent / f"{target.name}_{max(taken, default=0) + 1:05}_{ending}"
    return path, target.parent.relative_to(root).as_posix().removeprefix(".")
