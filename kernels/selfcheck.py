"""The check that a fused kernel passes on the user's own machine before its first result is used.

We had no GPU to execute ours on: for most users this comparison is the only one that it ever gets. Once per kind of
call (device, dtype, head dimension, operation, masked, keys of a branch) a small case is computed by ``eager`` in
float32 and by the kernel, twice, so that the kept launch plan is tried too. A difference beyond rounding, or any
exception (no C compiler for Triton's launcher, no memory), turns the backend off for the session, with one warning.
"""

from __future__ import annotations

import logging
import threading
from types import ModuleType

import torch
from torch import Tensor

from . import eager
from .call import Call

log = logging.getLogger(__name__)

TOLERANCE = {torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""The largest difference, as a share of the largest value. Rounding makes about 1e-3 and 1e-2 of it."""

_lock = threading.Lock()
_passed: set[tuple[str, Call]] = set()
_failed: dict[str, str] = {}


def refusal(name: str, backend: ModuleType, call: Call) -> str | None:
    """Why ``backend`` must not be used in this session; None once it has computed a call like this one rightly."""
    with _lock:
        if name in _failed:
            return _failed[name]
        if (name, call) in _passed:
            return None
        try:
            wrong = _compare(backend, call)
        except Exception as error:
            wrong = f"its self-check failed with {type(error).__name__}: {str(error).partition(chr(10))[0]}"
        if wrong is None:
            _passed.add((name, call))
        else:
            _failed[name] = wrong
            log.warning("attention backend %s is off for this session, eager takes its place: %s", name, wrong)
        return wrong


def pending(name: str, call: Call) -> bool:
    """Whether ``refusal`` would have to compute something first."""
    return name not in _failed and (name, call) not in _passed


def forget() -> None:
    """Check anew at the next use."""
    with _lock:
        _passed.clear()
        _failed.clear()


def _compare(backend: ModuleType, call: Call) -> str | None:
    """None, or the difference in a line."""
    heads, batch, queries, lengths = 2, 2, 80, [call.keys, 5]
    # A generator of its own: the user's seed gives the user's picture.
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(call.device, call.dtype)

    width = heads * call.head_dim
    q, k, v, out = (
        draw(batch, queries, width),
        draw(batch, 77, width),
        draw(batch, 77, width),
        draw(batch, queries, width),
    )
    id_k, id_v = draw(batch, sum(lengths), width), draw(batch, sum(lengths), width)
    weight = torch.tensor([[0.8, -0.5], [0.0, 1.2]], device=call.device)
    mask = None
    if call.masked:
        mask = torch.rand(len(lengths), batch, queries, generator=generator)
        mask[0, :, :64] = 0  # a whole tile that the first branch leaves alone
        mask = mask.to(call.device)

    def compute(module: ModuleType, dtype: torch.dtype) -> Tensor:
        rest = (id_k.to(dtype), id_v.to(dtype), lengths, weight, heads, mask)
        if call.op == "decoupled_attention":
            return module.decoupled_attention(q.to(dtype), k.to(dtype), v.to(dtype), *rest)
        result = out.to(dtype, copy=True)
        module.add_identity_attention_(result, q.to(dtype), *rest)
        return result

    with torch.no_grad(), torch.autocast(call.device.type, enabled=False):
        expected = compute(eager, torch.float32)
        limit = TOLERANCE.get(call.dtype, 1e-4)
        for _ in range(2):
            error = float((compute(backend, call.dtype).float() - expected).abs().max() / expected.abs().max())
            if not error <= limit:  # NaN is wrong, too
                return f"its self-check ({call.op}, {call.dtype}, head dimension {call.head_dim}) is off by {error:.1g}"
    return None
