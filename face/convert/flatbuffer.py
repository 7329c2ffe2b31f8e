"""Reads a ``.tflite`` file: a flatbuffer, walked by hand, so that no TensorFlow package is needed.

Source of the field numbers: tensorflow/lite/schema/schema.fbs (v3).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import BadModelFile

Array = NDArray[Any]
_TYPES: dict[int, type] = {0: np.float32, 1: np.float16, 2: np.int32, 3: np.uint8, 4: np.int64, 9: np.int8}


@dataclass(frozen=True)
class Table:
    """One flatbuffer table; fields are read by number, absent ones give their default."""

    data: bytes
    at: int

    def _field(self, number: int) -> int:
        vtable = self.at - _read("<i", self.data, self.at)
        if 4 + 2 * number >= _read("<H", self.data, vtable):
            return 0
        offset = _read("<H", self.data, vtable + 4 + 2 * number)
        return self.at + offset if offset else 0

    def _follow(self, number: int) -> int:
        field = self._field(number)
        return field + _read("<I", self.data, field) if field else 0

    def scalar(self, number: int, kind: str = "<i", default: Any = 0) -> Any:
        """A number, ``kind`` being its struct format."""
        field = self._field(number)
        return _read(kind, self.data, field) if field else default

    def table(self, number: int) -> Table:
        """A nested table; an absent one reads as all defaults."""
        target = self._follow(number)
        return Table(self.data, target) if target else _EMPTY

    def tables(self, number: int) -> list[Table]:
        """A vector of tables."""
        start = self._follow(number)
        if not start:
            return []
        slots = [int(slot) for slot in start + 4 + 4 * np.arange(len(self.array(number)))]
        return [Table(self.data, slot + _read("<I", self.data, slot)) for slot in slots]

    def array(self, number: int, kind: Any = np.int32) -> Array:
        """A vector of numbers."""
        start = self._follow(number)
        if not start:
            return np.zeros(0, kind)
        count = _read("<I", self.data, start)
        return np.frombuffer(self.data, kind, count, start + 4)

    def text(self, number: int) -> str:
        return self.array(number, np.uint8).tobytes().decode()


_EMPTY = Table(struct.pack("<HHi", 4, 4, 4), 4)


def _read(kind: str, data: bytes, at: int) -> Any:
    return struct.unpack_from(kind, data, at)[0]


@dataclass(frozen=True)
class Tensor:
    """A constant (``value`` is set) or a value computed by the graph."""

    name: str
    shape: tuple[int, ...]
    value: Array | None


@dataclass(frozen=True)
class Step:
    """One operator: its builtin code, tensor numbers (-1: left out) and options."""

    code: int
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: Table


@dataclass(frozen=True)
class Graph:
    tensors: list[Tensor]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    steps: list[Step]


def read(data: bytes) -> Graph:
    """The first subgraph of a ``.tflite`` file. Raises BadModelFile for anything else."""
    if data[4:8] != b"TFL3":
        raise BadModelFile("expected a .tflite file (its bytes 4 to 8 spell TFL3); fetch the model again")
    try:
        return _graph(Table(data, _read("<I", data, 0)))
    except (struct.error, ValueError, IndexError, KeyError) as error:
        raise BadModelFile(f"the .tflite file is damaged ({error}); fetch the model again") from error


def _graph(model: Table) -> Graph:
    # The code moved from a byte to an int when the list outgrew 127; the larger of the two holds.
    codes = [max(c.scalar(0, "<b"), c.scalar(3)) for c in model.tables(1)]
    body, buffers = model.tables(2)[0], model.tables(4)

    def tensor(table: Table) -> Tensor:
        shape = tuple(int(n) for n in table.array(0))
        raw = buffers[table.scalar(2, "<I")].array(0, np.uint8)
        kind = _TYPES.get(table.scalar(1, "<b"))
        if raw.size and kind is None:
            raise BadModelFile(f"the constant {table.text(3)!r} is of a type that is not read here")
        value = raw.view(kind).reshape(shape) if raw.size else None
        return Tensor(table.text(3), shape, value)

    def ints(numbers: Array) -> tuple[int, ...]:
        return tuple(int(n) for n in numbers)

    steps = [Step(codes[s.scalar(0, "<I")], ints(s.array(1)), ints(s.array(2)), s.table(4)) for s in body.tables(3)]
    return Graph([tensor(t) for t in body.tables(0)], ints(body.array(1)), ints(body.array(2)), steps)
