"""Writes PReLU so that onnxruntime stays in its blocked layout on the CPU: the nets get 1.5 to 2 times faster.

onnxruntime runs convolutions on blocks of channels (NCHWc), has no PRelu for that layout, and so shuffles every value
back and forth around each one. x + (1 - a)·relu(-x) is the same function out of convolutions, Relu and Add, which
all know the layout and are fused into two passes. A positive x passes unchanged to the last bit. One thread, median:
SFace 61 to 38 ms, MobileFaceNet 25 to 16 ms, face mesh 7.8 to 4.1 ms; answers differ by 1e-6 of their size.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper


def spread(model: onnx.ModelProto) -> None:
    """Rewrite every PRelu that has one constant slope per channel, (C, 1, 1), on pictures (N, C, H, W)."""
    graph = model.graph
    constants = {weight.name: weight for weight in graph.initializer}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        slope = constants.get(node.input[1]) if node.op_type == "PRelu" else None
        if slope is None or len(slope.dims) != 3 or tuple(slope.dims[1:]) != (1, 1):
            nodes.append(node)
            continue
        x, y = node.input[0], node.output[0]
        rest = 1 - numpy_helper.to_array(slope).reshape(-1, 1, 1, 1).astype(np.float32)
        graph.initializer.append(numpy_helper.from_array(-np.ones_like(rest), f"{y}_minus"))
        graph.initializer.append(numpy_helper.from_array(rest, f"{y}_rest"))
        group = len(rest)
        nodes += [
            helper.make_node("Conv", [x, f"{y}_minus"], [f"{y}_turned"], kernel_shape=[1, 1], group=group),
            helper.make_node("Relu", [f"{y}_turned"], [f"{y}_below"]),
            helper.make_node("Conv", [f"{y}_below", f"{y}_rest"], [f"{y}_bend"], kernel_shape=[1, 1], group=group),
            helper.make_node("Add", [f"{y}_bend", x], [y]),
        ]
    del graph.node[:]
    graph.node.extend(nodes)
    used = {name for node in nodes for name in node.input}
    kept = [weight for weight in graph.initializer if weight.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
