"""What an ONNX file takes and gives, read without its weights.

A pack's files are told apart by their inputs and outputs. Opening a session for that would read hundreds of megabytes;
walking the protobuf and stepping over the tensors reads a few kilobytes. Field numbers: onnx/onnx.proto.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from .errors import BadModelFile

_GRAPH = 7
_NODE, _INITIALIZER, _INPUT, _OUTPUT = 1, 5, 11, 12
_LEAD_NODES = 8
"""As many operator names are kept as InsightFace looks at (model_zoo/arcface_onnx.py)."""


@dataclass(frozen=True)
class Port:
    """One input or output."""

    name: str
    shape: tuple[int | None, ...]
    """None where the size is free."""


@dataclass(frozen=True)
class Signature:
    """A network's outside."""

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    lead: tuple[str, ...]
    """The first operators' names, in order."""


class _Cut(Exception):
    """The file ends inside a field."""


def _varint(file: BinaryIO) -> int:
    value = shift = 0
    while True:
        byte = file.read(1)
        if not byte or shift > 63:
            raise _Cut
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return value
        shift += 7


def _fields(file: BinaryIO, end: int) -> Iterator[tuple[int, int, int]]:
    """(field number, wire type, length or value) up to ``end``; length-delimited content is stepped over if unread."""
    while file.tell() < end:
        tag = _varint(file)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            yield number, wire, _varint(file)
        elif wire == 2:
            length = _varint(file)
            stop = file.tell() + length
            if stop > end:
                raise _Cut
            yield number, wire, length
            file.seek(stop)
        elif wire in (1, 5):
            yield number, wire, 0
            file.seek(8 if wire == 1 else 4, 1)
        else:
            raise _Cut


def _text(file: BinaryIO, length: int) -> str:
    return file.read(length).decode("utf-8", "replace")


def _sub(file: BinaryIO, length: int) -> Iterator[tuple[int, int, int]]:
    return _fields(file, file.tell() + length)


def _port(file: BinaryIO, length: int) -> Port:
    """ValueInfoProto: name 1, type 2 -> tensor_type 1 -> shape 2 -> dim 1 -> dim_value 1 or dim_param 2."""
    name, shape = "", []
    for number, _, size in _sub(file, length):
        if number == 1:
            name = _text(file, size)
        elif number == 2:
            for kind, _, kind_size in _sub(file, size):
                if kind != 1:
                    continue
                for part, _, part_size in _sub(file, kind_size):
                    if part != 2:
                        continue
                    for dim, _, dim_size in _sub(file, part_size):
                        if dim == 1:
                            values = [v for n, wire, v in _sub(file, dim_size) if n == 1 and wire == 0]
                            shape.append(values[0] if values and 0 < values[0] < 1 << 31 else None)
    return Port(name, tuple(shape))


def _read(path: Path) -> Signature:
    size = path.stat().st_size
    inputs: list[Port] = []
    outputs: list[Port] = []
    lead: list[str] = []
    initializers: set[str] = set()
    found = False
    with path.open("rb") as file:
        for number, wire, length in _fields(file, size):
            if number != _GRAPH or wire != 2:
                continue
            found = True
            for part, part_wire, part_size in _sub(file, length):
                if part_wire != 2:
                    continue
                if part == _NODE and len(lead) < _LEAD_NODES:
                    lead.extend(_text(file, s) for n, _, s in _sub(file, part_size) if n == 4)
                elif part == _INITIALIZER:
                    # TensorProto.name is field 8; old exporters list initializers among the inputs as well.
                    initializers.update(_text(file, s) for n, w, s in _sub(file, part_size) if n == 8 and w == 2)
                elif part == _INPUT:
                    inputs.append(_port(file, part_size))
                elif part == _OUTPUT:
                    outputs.append(_port(file, part_size))
    if not found or not outputs:
        raise _Cut
    return Signature(tuple(p for p in inputs if p.name not in initializers), tuple(outputs), tuple(lead))


_known: dict[tuple[str, int, int], Signature] = {}
_lock = threading.Lock()


def signature(path: Path) -> Signature:
    """The signature of the file at ``path``; read once as long as the file does not change.

    Raises BadModelFile if the file is not ONNX or is cut off.
    """
    state = path.stat()
    key = (str(path), state.st_mtime_ns, state.st_size)
    with _lock:
        if key not in _known:
            try:
                _known[key] = _read(path)
            except _Cut as error:
                raise BadModelFile(
                    f"{path} ({state.st_size} bytes) is not a whole ONNX file: it is cut off or is something else. "
                    "Delete it and fetch or copy it again."
                ) from error
        return _known[key]
