"""How the benchmarks measure: process CPU time, sides interleaved, order rotated every round, medians.

CPU time and not the clock, because a machine that does something else besides would otherwise be measured, too.
"""

from __future__ import annotations

import importlib.util
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent


def package() -> ModuleType:
    """The checkout imported as ``likeness`` by its path, as ComfyUI and the tests import it."""
    if "likeness" not in sys.modules:
        spec = importlib.util.spec_from_file_location(
            "likeness", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
        )
        if spec is None or spec.loader is None:
            raise ImportError(f"{ROOT} is not a checkout")
        module = importlib.util.module_from_spec(spec)
        sys.modules["likeness"] = module
        spec.loader.exec_module(module)
    return sys.modules["likeness"]


def interleaved(
    sides: Mapping[str, Callable[[], object]],
    rounds: int = 15,
    warm: int = 2,
    clock: Callable[[], float] = time.process_time,
) -> dict[str, float]:
    """Median seconds of each side: one call each a round, another side first in every round."""
    names = list(sides)
    for name in names * warm:
        sides[name]()
    taken: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            start = clock()
            sides[name]()
            taken[name].append(clock() - start)
    return {name: statistics.median(values) for name, values in taken.items()}


def cpu_seconds(call: Callable[[], object], rounds: int = 9) -> float:
    """Median CPU seconds of one call."""
    return interleaved({"": call}, rounds)[""]


def row(what: str, ours: float, unit: str = "ms", *, peer: float | None = None, target: str = "") -> None:
    """Print one line of the table; ``peer`` is the other side's figure, and the ratio is peer / ours."""
    line = f"{what:<58} {ours:10.2f} {unit:<5}"
    if peer is not None:
        line += f"  peer {peer:10.2f} {unit:<5}  ratio {peer / ours:6.2f}"
    print(f"{line}  {f'(target {target})' if target else ''}".rstrip(), flush=True)


def skip(what: str, reason: str) -> None:
    """Print a line for what cannot be measured here."""
    print(f"{what:<58} not measured: {reason}", flush=True)
