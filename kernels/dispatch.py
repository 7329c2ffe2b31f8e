"""Which implementation takes a call, and why the faster ones do not.

The backends are tried from fast to slow; each states what it asks for as a list of rules, and a refusal names the first
that is not met. ``use_backend`` or the environment variable ``LIKENESS_ATTENTION`` (a backend's name, or ``auto``)
forces one: forced, it is used or the call is an error, never another in its place.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any, NamedTuple

import torch

from . import call as calls
from . import eager, reference, selfcheck
from .call import Call
from .errors import NoBackend

log = logging.getLogger(__name__)

VARIABLE = "LIKENESS_ATTENTION"


class Machine(NamedTuple):
    """What is known of a CUDA device."""

    platform: str
    """``CUDA`` or ``ROCm``."""
    capability: tuple[int, int]


@cache
def machine(device: torch.device) -> Machine:
    """The facts about ``device``, which must be a CUDA device."""
    return Machine("ROCm" if torch.version.hip else "CUDA", torch.cuda.get_device_capability(device))


@cache
def triton_version() -> tuple[int, ...] | str:
    """Triton's (major, minor), or why it cannot be imported."""
    try:
        version: str = import_module("triton").__version__
        return tuple(int(part) for part in version.split(".")[:2])
    except Exception as error:  # a broken installation raises anything
        return f"none ({error})"


class Rule(NamedTuple):
    """One thing that a backend asks for."""

    asks: str
    found: Callable[[Call], object]
    met: Callable[[Any], bool]

    def refusal(self, call: Call) -> str | None:
        """Why not, in a line; None if the rule is met."""
        found = self.found(call)
        return None if self.met(found) else f"needs {self.asks}, got {found}"


@dataclass(frozen=True)
class Backend:
    """One implementation of both operations."""

    load: Callable[[], ModuleType]
    """The module that has them; asked for when the rules are met."""
    rules: tuple[Rule, ...] = ()
    checked: bool = False
    """Whether it must pass ``selfcheck`` before it is used."""


@cache
def _triton_attention() -> ModuleType:
    return import_module(".triton_attention", __package__)


TRITON = (
    Rule("a CUDA device", lambda c: c.device.type, lambda kind: kind == "cuda"),
    Rule("NVIDIA's CUDA (ROCm is untested)", lambda c: machine(c.device).platform, lambda name: name == "CUDA"),
    Rule("compute capability (8, 0) or higher", lambda c: machine(c.device).capability, lambda cc: cc >= (8, 0)),
    Rule("float16 or bfloat16", lambda c: c.dtype, lambda dtype: dtype in (torch.float16, torch.bfloat16)),
    Rule("a head dimension of 8 to 160 in steps of 8", lambda c: c.head_dim, lambda d: d % 8 == 0 and 8 <= d <= 160),
    Rule("tensors with a last stride of 1", lambda c: c.dense or "others", lambda dense: dense is True),
    Rule("tensors aligned to 16 bytes", lambda c: c.aligned or "others", lambda aligned: aligned is True),
    Rule("batch rows of less than 2^31 elements", lambda c: c.near or "longer ones", lambda near: near is True),
    # Before 3.3 a compiled kernel is called without its constants, which the launch plans pass.
    Rule("Triton 3.3 or later", lambda c: triton_version(), lambda v: isinstance(v, tuple) and v >= (3, 3)),
)
BACKENDS = {
    "triton": Backend(_triton_attention, TRITON, checked=True),
    "eager": Backend(lambda: eager),
    "reference": Backend(lambda: reference),
}
"""From fast to slow. Eager takes every call, so that the reference is used only when asked for."""


@dataclass(frozen=True)
class Choice:
    """The answer of ``explain``."""

    backend: str
    refused: dict[str, str] = field(default_factory=dict[str, str])
    """Why not, by name, for each faster backend."""
    asked: bool = False
    """Whether it was forced, so that no other was considered."""

    def __str__(self) -> str:
        taken = f"{self.backend}, as asked" if self.asked else self.backend
        return "; ".join([taken, *(f"not {name}: {reason}" for name, reason in self.refused.items())])


_asked: ContextVar[str | None] = ContextVar("likeness_attention", default=None)
_choices: dict[tuple[str, Call], Choice] = {}
_said: set[str] = set()


@contextmanager
def use_backend(name: str) -> Generator[None]:
    """Within the block, and in this thread only, take this backend, or ``auto``; nests; goes before the environment.

    NoBackend at once if there is none of that name, and at a call that the backend cannot take.
    """
    token = _asked.set(_known(name, "use_backend"))
    try:
        yield
    finally:
        _asked.reset(token)


def explain(op: Callable[..., Any], /, *arguments: Any, **options: Any) -> Choice:
    """What ``op``, one of this package's two functions, would take for these arguments, and why nothing faster.

    ``str()`` of the answer is one line. Runs the self-check if it is due. Errors as the call itself.
    """
    return choose(getattr(calls, op.__name__)(*arguments, **options))


def run(op: str, *arguments: Any) -> Any:
    """Carry out the operation of this name by the backend that is chosen for it."""
    chosen = choose(getattr(calls, op)(*arguments))
    return getattr(BACKENDS[chosen.backend].load(), op)(*arguments)


def choose(call: Call) -> Choice:
    """The backend for a call; NoBackend if one is forced that refuses."""
    name = _asked.get() or _known(os.environ.get(VARIABLE) or "auto", VARIABLE)
    known = _choices.get((name, call))
    if known is not None:
        return known
    refused: dict[str, str] = {}
    settled = True
    for candidate in BACKENDS if name == "auto" else (name,):
        reason, final = _refusal(candidate, call)
        settled &= final
        if reason is None:
            choice = Choice(candidate, refused, name != "auto")
            break
        refused[candidate] = reason
    else:
        reasons = "; ".join(f"{candidate}: {reason}" for candidate, reason in refused.items())
        raise NoBackend(f"no attention backend can take this call: {reasons}")
    if settled:
        _choices[name, call] = choice
    _say(choice)
    return choice


def forget() -> None:
    """Decide and check everything anew."""
    _choices.clear()
    _said.clear()
    selfcheck.forget()


def _refusal(name: str, call: Call) -> tuple[str | None, bool]:
    """Why the backend does not take the call, or None; and whether that will be the answer next time, too."""
    backend = BACKENDS[name]
    reason = next((reason for rule in backend.rules if (reason := rule.refusal(call))), None)
    if reason is not None or not backend.checked:
        return reason, True
    # Where the tensors lie makes no other kernel; that they lie well is settled by now.
    kind = call._replace(dense=True, aligned=True, near=True)
    if selfcheck.pending(name, kind) and torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
        return "its self-check is due, and cannot run while a CUDA graph is captured", False
    try:
        module = backend.load()
    except Exception as error:
        return f"cannot be imported: {error}", True
    return selfcheck.refusal(name, module, kind), True


def _known(name: str, where: str) -> str:
    if name != "auto" and name not in BACKENDS:
        raise NoBackend(f"{where} takes one of auto, {', '.join(BACKENDS)}; got {name!r}")
    return name


def _say(choice: Choice) -> None:
    line = str(choice)
    if line not in _said:
        _said.add(line)
        log.info("identity attention: %s", line)
