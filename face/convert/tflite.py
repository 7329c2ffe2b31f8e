"""Rewrites a ``.tflite`` network as ONNX, batch free, channels first.

Covers the operators of MediaPipe's face mesh and of MobileFaceNet; another operator is refused by name. Semantics:
tensorflow/lite/schema/schema.fbs and the TensorFlow documentation of SAME padding.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from ..errors import BadModelFile
from .flatbuffer import Graph, Step, read
from .shapes import IR, OPSET

Array = NDArray[Any]
ADD, CONV, DEPTHWISE, MAX_POOL, MUL, RELU, RESHAPE, PAD, SUB, PRELU, ABS = 0, 3, 4, 17, 18, 19, 22, 34, 41, 54, 101
_PLAIN = {ADD: "Add", MUL: "Mul", SUB: "Sub", RELU: "Relu", ABS: "Abs", PRELU: "PRelu"}


def convert(files: Sequence[bytes], arguments: Sequence[str]) -> onnx.ModelProto:
    """``tflite``: the network with NHWC values turned to NCHW and (N, 1, 1, C) outputs flattened to (N, C)."""
    return _Writer(read(files[0])).model()


class _Writer:
    """Walks the steps once, adding ONNX nodes. Every 4-D value is kept channels first."""

    def __init__(self, graph: Graph) -> None:
        self.tensors, self.graph = graph.tensors, graph
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, Array] = {}
        io = (*graph.inputs, *graph.outputs)
        self.names = {i: tensor.name if i in graph.inputs else f"t{i}" for i, tensor in enumerate(graph.tensors)}
        if any(len(self.tensors[i].shape) not in (2, 4) for i in io):
            raise BadModelFile("only networks from pictures to vectors are converted")

    def model(self) -> onnx.ModelProto:
        slopes, gone = leaky(self.graph)
        for step in self.graph.steps:
            out = step.outputs[0]
            if out in slopes:
                source, slope = slopes[out]
                doubled = self.constant(f"slope{out}", self.operand(slope) * 2)
                self.add("PRelu", [self.names[source], doubled], self.names[out])
            elif out not in gone:
                self.write(step)
        for i in self.graph.outputs:
            self.add("Flatten", [self.names[i]], self.tensors[i].name)
        body = helper.make_graph(
            self.nodes,
            "tflite",
            [self.declared(i, (3, 1, 2)) for i in self.graph.inputs],
            [self.declared(i, (-1,)) for i in self.graph.outputs],
            [numpy_helper.from_array(np.ascontiguousarray(weight), name) for name, weight in self.weights.items()],
        )
        return helper.make_model(body, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR)

    def declared(self, i: int, axes: Sequence[int]) -> onnx.ValueInfoProto:
        shape = ["N", *(self.tensors[i].shape[axis] for axis in axes)]
        return helper.make_tensor_value_info(self.tensors[i].name, onnx.TensorProto.FLOAT, shape)

    def add(self, kind: str, inputs: Sequence[str], output: str, **options: Any) -> None:
        self.nodes.append(helper.make_node(kind, list(inputs), [output], **options))

    def constant(self, name: str, value: Array) -> str:
        self.weights[name] = value
        return name

    def weight(self, i: int) -> Array:
        value = self.tensors[i].value
        if value is None:
            raise BadModelFile(f"the weight {self.tensors[i].name!r} is not a constant")
        return value

    def operand(self, i: int) -> Array:
        """A constant beside a picture, (…, C) broadcast from the right, as (C, H, W)."""
        value = self.weight(i).astype(np.float32)
        return value.reshape((1,) * (4 - value.ndim) + value.shape)[0].transpose(2, 0, 1)

    def write(self, step: Step) -> None:
        """One operator; a fused activation becomes a node of its own, which onnxruntime fuses again."""
        inputs, out = [self.names.get(i, "") for i in step.inputs], self.names[step.outputs[0]]
        options = step.options
        if step.code == CONV:
            self.convolve(step, self.weight(step.inputs[1]).transpose(0, 3, 1, 2), 1, options.scalar(3, "<b"))
        elif step.code == DEPTHWISE:
            kernel = self.weight(step.inputs[1]).transpose(3, 0, 1, 2)
            self.convolve(step, kernel, self.tensors[step.inputs[0]].shape[3], options.scalar(4, "<b"))
        elif step.code == MAX_POOL:
            kernel = (options.scalar(4), options.scalar(3))
            strides = (options.scalar(2), options.scalar(1))
            pads = self.padding(step, kernel, strides)
            self.add("MaxPool", inputs, out, kernel_shape=kernel, strides=strides, pads=pads)
            self.activate(out, options.scalar(5, "<b"))
        elif step.code in _PLAIN:
            operands = [
                name if self.tensors[i].value is None else self.constant(name, self.operand(i))
                for i, name in zip(step.inputs, inputs, strict=True)
            ]
            self.add(_PLAIN[step.code], operands, out)
            self.activate(out, options.scalar(0, "<b") if step.code in (ADD, MUL, SUB) else 0)
        elif step.code == PAD:
            # (4, 2) rows N, H, W, C to ONNX's all beginnings, then all ends, N, C, H, W.
            pads = self.weight(step.inputs[1])[[0, 3, 1, 2]].T.reshape(-1).astype(np.int64)
            self.add("Pad", [inputs[0], self.constant(f"{out}_pads", pads)], out)
        elif step.code == RESHAPE and self.tensors[step.inputs[0]].shape[1:3] == (1, 1):
            target = np.array([0, *self.tensors[step.outputs[0]].shape[1:]], np.int64)
            self.add("Reshape", [inputs[0], self.constant(f"{out}_shape", target)], out)
        else:
            raise BadModelFile(f"operator number {step.code} of the .tflite schema is not converted here")

    def convolve(self, step: Step, kernel: Array, group: int, activation: int) -> None:
        source, out = self.names[step.inputs[0]], self.names[step.outputs[0]]
        options = step.options
        dilation = 5 if step.code == DEPTHWISE else 4
        if options.scalar(dilation, default=1) != 1 or options.scalar(dilation + 1, default=1) != 1:
            raise BadModelFile("dilated convolutions are not converted here")
        strides = (options.scalar(2), options.scalar(1))
        size = (kernel.shape[2], kernel.shape[3])
        names = [source, self.constant(f"{out}_weight", kernel.astype(np.float32))]
        if len(step.inputs) > 2 and step.inputs[2] >= 0:
            names.append(self.constant(f"{out}_bias", self.weight(step.inputs[2]).astype(np.float32)))
        pads = self.padding(step, size, strides)
        self.add("Conv", names, out, kernel_shape=size, strides=strides, pads=pads, group=group)
        self.activate(out, activation)

    def padding(self, step: Step, kernel: tuple[int, int], strides: tuple[int, int]) -> list[int]:
        """TensorFlow's SAME: as much as keeps ceil(size / stride) outputs, the odd pixel at the end; or none."""
        if step.options.scalar(0, "<b") == 1:
            return [0, 0, 0, 0]
        sizes = self.tensors[step.inputs[0]].shape[1:3]
        total = [max((-(-n // s) - 1) * s + k - n, 0) for n, k, s in zip(sizes, kernel, strides, strict=True)]
        return [total[0] // 2, total[1] // 2, total[0] - total[0] // 2, total[1] - total[1] // 2]

    def activate(self, out: str, activation: int) -> None:
        if activation not in (0, 1):
            raise BadModelFile(f"fused activation number {activation} of the .tflite schema is not converted here")
        if activation == 1:
            self.nodes[-1].output[0] = f"{out}_linear"
            self.add("Relu", [f"{out}_linear"], out)


def leaky(graph: Graph) -> tuple[dict[int, tuple[int, int]], set[int]]:
    """Find relu(x) + a·(x - |x|), as exporters write PReLU: ({sum: (x, a)}, the values between).

    PReLU with slope 2a is the same number to the last bit (doubling is exact) and one pass instead of five.
    """
    makers = {step.outputs[0]: step for step in graph.steps}
    readers = Counter(i for step in graph.steps for i in step.inputs)
    found: dict[int, tuple[int, int]] = {}
    gone: set[int] = set()
    for step in graph.steps:
        made = [makers[i] for i in step.inputs if i in makers]
        if step.code != ADD or [m.code for m in made] != [RELU, MUL]:
            continue
        relu, mul = made
        source, (slope, bend) = relu.inputs[0], mul.inputs
        below = makers.get(bend)
        if below is None or below.code != SUB or below.inputs[0] != source:
            continue
        size = makers.get(below.inputs[1])
        if size is None or size.code != ABS or size.inputs != (source,):
            continue
        between = {relu.outputs[0], mul.outputs[0], bend, size.outputs[0]}
        if all(readers[i] == 1 for i in between):
            found[step.outputs[0]] = (source, slope)
            gone |= between
    return found, gone
