"""Folds block-quantised int8 weights into float32, once, when a model is fetched.

OpenCV Zoo's ``*_int8bq.onnx`` keep each weight as int8 blocks behind DequantizeLinear and Reshape. onnxruntime
refuses the block size these files state ("block_size must be 0 for per-tensor quantization").
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from ..errors import BadModelFile
from .shapes import IR, OPSET, declare, dims, load

Array = NDArray[Any]


def convert(files: Sequence[bytes], arguments: Sequence[str]) -> onnx.ModelProto:
    """``fold N 3 H W``: dequantise, then declare the input as ``face.convert.shapes`` does."""
    model = load(files[0])
    fold(model)
    declare(model, dims(arguments))
    return model


def dequantise(codes: Array, scale: Array, zero: Array | None, axis: int, block: int) -> Array:
    """(code - zero) · scale, one scale per ``block`` codes along ``axis``; block 0: one per row of ``axis`` or in all.

    ONNX DequantizeLinear, opset 21.
    """

    def spread(values: Array) -> Array:
        if block:
            return np.repeat(values, block, axis).take(range(codes.shape[axis]), axis)
        if values.size == 1:
            return values.reshape(())
        return values.reshape([-1 if i == axis % codes.ndim else 1 for i in range(codes.ndim)])

    centred = codes.astype(np.float32)
    if zero is not None:
        centred = centred - spread(zero).astype(np.float32)
    return (centred * spread(scale)).astype(np.float32)


def fold(model: onnx.ModelProto) -> None:
    """Compute constant DequantizeLinear, Reshape and Constant nodes away, and Dropout and Identity with them."""
    graph = model.graph
    constants: dict[str, Array] = {weight.name: numpy_helper.to_array(weight) for weight in graph.initializer}
    renamed: dict[str, str] = {}
    new: dict[str, Array] = {}
    kept: list[onnx.NodeProto] = []
    outputs = {value.name for value in graph.output}

    for node in graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = renamed.get(name, name)
        options = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        if node.op_type in ("Dropout", "Identity") and node.output[0] not in outputs:
            renamed[node.output[0]] = node.input[0]
        elif node.op_type == "Constant" and "value" in options:
            new[node.output[0]] = constants[node.output[0]] = numpy_helper.to_array(options["value"])
        elif node.op_type in ("DequantizeLinear", "Reshape") and all(name in constants for name in node.input):
            values = [constants[name] for name in node.input]
            if node.op_type == "DequantizeLinear":
                zero = values[2] if len(values) == 3 else None
                folded = dequantise(values[0], values[1], zero, options.get("axis", 1), options.get("block_size", 0))
            else:
                folded = values[0].reshape(values[1])
            new[node.output[0]] = constants[node.output[0]] = folded
        else:
            kept.append(node)

    if left := {n.op_type for n in kept} & {"DequantizeLinear", "QuantizeLinear", "QLinearConv"}:
        raise BadModelFile(f"{', '.join(sorted(left))} on computed values cannot be folded; only quantised weights can")
    del graph.node[:]
    graph.node.extend(kept)
    graph.initializer.extend(numpy_helper.from_array(np.ascontiguousarray(v), name) for name, v in new.items())
    del model.opset_import[:]
    model.opset_import.append(onnx.helper.make_opsetid("", OPSET))
    model.ir_version = IR
