"""Builds face-api.js networks as ONNX from their quantised weights and the architecture of their source.

Source: github.com/vladmandic/face-api, src/faceFeatureExtractor, src/faceLandmarkNet, src/faceExpressionNet (MIT).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from ..errors import BadModelFile
from .shapes import IR, OPSET

Array = NDArray[Any]
MEAN = (122.782, 117.001, 104.298)
"""What the networks subtract from R, G and B (0 to 255) before dividing by 255."""


def convert(files: Sequence[bytes], arguments: Sequence[str]) -> onnx.ModelProto:
    """``faceapi landmarks|expression``: files are the weights and their manifest.

    Input ``image`` (N, 3, 112, 112) RGB 0 to 255. Output ``landmarks`` (N, 136), x and y in turn, 0 to 1 of the
    crop; or ``expression`` (N, 7) probabilities.
    """
    weights = unpack(files[0], files[1])
    return _build(weights, arguments[0])


def unpack(data: bytes, manifest: bytes) -> dict[str, Array]:
    """Weights by name as float32, from the one shard of a tfjs weights manifest."""
    weights: dict[str, Array] = {}
    at = 0
    try:
        for entry in (entry for group in json.loads(manifest) for entry in group["weights"]):
            coding = entry.get("quantization")
            kind = np.dtype(coding["dtype"] if coding else entry["dtype"])
            count = int(np.prod(entry["shape"]))
            raw = np.frombuffer(data, kind.newbyteorder("<"), count, at).astype(np.float32)
            at += count * kind.itemsize
            if coding and "scale" in coding:
                raw = (raw * coding["scale"] + coding["min"]).astype(np.float32)
            weights[entry["name"]] = raw.reshape(entry["shape"])
    except (ValueError, KeyError, TypeError) as error:
        raise BadModelFile(f"weights and manifest do not fit ({error}); fetch the model again") from error
    if at != len(data):
        raise BadModelFile(f"the manifest describes {at} bytes of weights, the file has {len(data)}")
    return weights


def _build(weights: Mapping[str, Array], output: str) -> onnx.ModelProto:
    nodes: list[onnx.NodeProto] = []
    constants: dict[str, Array] = {}

    def constant(name: str, value: Array) -> str:
        constants[name] = value.astype(np.float32)
        return name

    def add(kind: str, inputs: Sequence[str], name: str, **options: Any) -> str:
        nodes.append(helper.make_node(kind, list(inputs), [name], **options))
        return name

    def conv(x: str, name: str, kernel: Array, bias: Array | None, stride: int, group: int = 1) -> str:
        size = kernel.shape[2]
        # SAME padding of an even side: the odd pixel comes last.
        pads = [0, 0, 1, 1] if stride == 2 else [size // 2] * 4
        inputs = [x, constant(f"{name}.weight", kernel)] + ([] if bias is None else [constant(f"{name}.bias", bias)])
        return add("Conv", inputs, name, kernel_shape=[size, size], strides=[stride] * 2, pads=pads, group=group)

    def separable(x: str, name: str, stride: int) -> str:
        depth = weights[f"{name}/depthwise_filter"].transpose(2, 3, 0, 1)
        point = weights[f"{name}/pointwise_filter"].transpose(3, 2, 0, 1)
        wide = conv(x, f"{name}.depth", depth, None, stride, len(depth))
        return conv(wide, f"{name}.point", point, weights[f"{name}/bias"], 1)

    mean = constant("mean", np.array(MEAN).reshape(1, 3, 1, 1))
    scale = constant("scale", np.array(1 / 255))
    x = add("Mul", [add("Sub", ["image", mean], "centred"), scale], "scaled")
    for i in range(4):
        block = f"dense{i}"
        if i == 0:
            kernel = weights["dense0/conv0/filters"].transpose(3, 2, 0, 1)
            first = conv(x, "dense0/conv0", kernel, weights["dense0/conv0/bias"], 2)
        else:
            first = separable(x, f"{block}/conv0", 2)
        total = add("Relu", [first], f"{block}.0")
        inner = total
        for k in (1, 2, 3):
            total = add("Add", [total, separable(inner, f"{block}/conv{k}", 1)], f"{block}.sum{k}")
            inner = add("Relu", [total], f"{block}.{k}")
        x = inner
    x = add("Flatten", [add("GlobalAveragePool", [x], "pooled")], "features")
    matrix, bias = constant("fc.weight", weights["fc/weights"]), constant("fc.bias", weights["fc/bias"])
    answer = add("Gemm", [x, matrix, bias], "logits" if output == "expression" else output)
    if output == "expression":
        add("Softmax", [answer], output, axis=1)

    size = int(weights["fc/bias"].size)
    body = helper.make_graph(
        nodes,
        "face-api",
        [helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, ["N", 3, 112, 112])],
        [helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, ["N", size])],
        [numpy_helper.from_array(np.ascontiguousarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(body, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR)
