"""Launch plans: what a Triton launch works out anew every time, kept from one call to the next.

Triton's launcher in Python binds and specialises some forty arguments at every call: about 18 µs, which is most of what
a fused kernel saves on a small layer. A compiled kernel called at once takes 3, and finding it here 7 (host time, with
a driver that launches nothing: ``tests/kernels_compiled.py launch``). A layer is called alike at every step, so its
plan is found by all that it depends on: device, dtypes, shapes, strides, alignment, and what the caller adds.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

from torch import Tensor

ALIGNMENT = 16
"""Bytes. Triton compiles another kernel for pointers that are not multiples of it."""


class Plan:
    """One way to launch a kernel; only the tensors' addresses and ``scale`` differ from call to call."""

    def __init__(
        self,
        kernel: Any,
        grid: tuple[int, int, int],
        settled: Sequence[Any],
        constants: dict[str, Any],
        options: dict[str, Any],
    ) -> None:
        """``kernel`` (``triton.jit``) takes tensors, ``settled``, scale, then ``constants``, in this order."""
        self._kernel = kernel
        self._grid = grid
        self._settled = settled
        self._constants = constants
        self._options = options
        self._compiled: Any = None

    def launch(self, tensors: Sequence[Tensor], scale: float) -> None:
        """Run on the current stream of the current device, which must be the tensors'."""
        arguments = (*tensors, *self._settled, scale)
        if self._compiled is None:
            # Compiles, or finds compiled, and launches; answers the compiled kernel (the interpreter has none).
            self._compiled = self._kernel[self._grid](*arguments, **self._constants, **self._options)
        else:
            self._compiled[self._grid](*arguments, *self._constants.values())


class Plans:
    """Plans by what they depend on; safe to share between threads, where both may make the same one."""

    def __init__(self, limit: int = 512) -> None:
        self._limit = limit
        self._plans: dict[Hashable, Plan] = {}

    def get(self, tensors: Sequence[Tensor], rest: Hashable, make: Callable[[], Plan]) -> Plan:
        """The plan for tensors like these and ``rest``, made by ``make`` if there is none."""
        alike = [(t.dtype, t.shape, t.stride(), t.data_ptr() % ALIGNMENT == 0) for t in tensors]
        key = (tensors[0].device, rest, *alike)
        plan = self._plans.get(key)
        if plan is None:
            if len(self._plans) >= self._limit:
                # Sizes that never come back, as in a batch of pictures of all shapes; Triton keeps what it compiled.
                self._plans.clear()
            plan = self._plans[key] = make()
        return plan

    def __len__(self) -> int:
        return len(self._plans)
