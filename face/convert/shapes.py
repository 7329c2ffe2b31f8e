"""Frees the fixed sizes that an ONNX file declares, for networks whose operators take any size."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import numpy_helper

from ..errors import BadModelFile

Dims = Sequence[int | str]

OPSET, IR = 17, 8
"""Versions that converted files are written in: what onnxruntime 1.18, the oldest we promise, reads."""


def convert(files: Sequence[bytes], arguments: Sequence[str]) -> onnx.ModelProto:
    """``shapes N 3 H W``: the same network with its input declared so; numbers stay fixed, words become free."""
    model = load(files[0])
    declare(model, dims(arguments))
    return model


def load(data: bytes) -> onnx.ModelProto:
    """Parse an ONNX file. Raises BadModelFile if it is none, or is cut off."""
    try:
        model = onnx.load_from_string(data)
        onnx.checker.check_model(model)
    except Exception as error:  # protobuf, checker and decode errors have no common root
        raise BadModelFile(f"the file is no whole ONNX model ({error}); fetch it again") from error
    return model


def dims(words: Sequence[str]) -> list[int | str]:
    return [int(word) if word.isdigit() else word for word in words]


def declare(model: onnx.ModelProto, shape: Dims) -> None:
    """Give the one input ``shape`` and let everything behind it follow; drop what the file no longer needs.

    Old exporters list weights among the inputs, which keeps onnxruntime from folding them, and carry weights
    that nothing reads. A constant reshape to ``(1, …)`` keeps the batch instead.
    """
    graph = model.graph
    constants = {weight.name: weight for weight in graph.initializer}
    used = {name for node in graph.node for name in node.input}
    inputs = [value for value in graph.input if value.name in used and value.name not in constants]
    if len(inputs) != 1:
        raise BadModelFile(f"expected a network with one input, this has {len(inputs)}")
    del graph.input[:]
    graph.input.append(onnx.helper.make_tensor_value_info(inputs[0].name, onnx.TensorProto.FLOAT, list(shape)))

    for node in graph.node:
        if node.op_type == "Reshape" and node.input[1] in constants:
            target = numpy_helper.to_array(constants[node.input[1]]).copy()
            if target[0] == 1 and isinstance(shape[0], str):
                target[0] = 0
                constants[node.input[1]].CopyFrom(numpy_helper.from_array(target.astype(np.int64), node.input[1]))

    kept = [weight for weight in graph.initializer if weight.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)

    del graph.value_info[:]
    for value in graph.output:
        rank = len(value.type.tensor_type.shape.dim)
        value.type.tensor_type.shape.CopyFrom(
            onnx.TensorShapeProto(
                dim=[
                    onnx.TensorShapeProto.Dimension(dim_param=str(shape[0]) if axis == 0 else f"{value.name}_{axis}")
                    for axis in range(rank)
                ]
            )
        )
