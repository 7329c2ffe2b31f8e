"""A chain of layers as an ONNX file. torch's own exporter needs packages that nothing else here needs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from torch import nn

OPSET = 17


def write(
    file: Path,
    side: int,
    outputs: Mapping[str, tuple[nn.Sequential, list[int]]],
    about: Mapping[str, str],
) -> None:
    """``file`` with the input ``image`` (N, 3, side, side) and each chain's answer under its name, of the shape
    (N, *shape). Weights are stored in float16; every product is computed in float32."""
    nodes: list[Any] = []
    weights: list[Any] = []
    for name, (chain, shape) in outputs.items():
        last = "image"
        for number, layer in enumerate(chain):
            here = f"{name}.{number}"
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                inputs = [last]
                for kind in ("weight", "bias"):
                    array = getattr(layer, kind).detach().numpy().astype(np.float16)
                    weights.append(numpy_helper.from_array(array, f"{here}.{kind}"))
                    nodes.append(
                        helper.make_node("Cast", [f"{here}.{kind}"], [f"{here}.{kind}.f"], to=TensorProto.FLOAT)
                    )
                    inputs.append(f"{here}.{kind}.f")
                if isinstance(layer, nn.Linear):
                    nodes.append(helper.make_node("Gemm", inputs, [here], transB=1))
                else:
                    pad = [int(p) for p in layer.padding] * 2
                    strides, dilations = list(layer.stride), list(layer.dilation)
                    nodes.append(
                        helper.make_node("Conv", inputs, [here], strides=strides, dilations=dilations, pads=pad)
                    )
            elif isinstance(layer, nn.ReLU):
                nodes.append(helper.make_node("Relu", [last], [here]))
            elif isinstance(layer, nn.Flatten):
                nodes.append(helper.make_node("Flatten", [last], [here]))
            else:
                raise TypeError(f"a {type(layer).__name__} has no place in such a file")
            last = here
        del shape
        nodes.append(helper.make_node("Identity", [last], [name]))
    given = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, side, side])
    answers = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", *shape]) for name, (_, shape) in outputs.items()
    ]
    graph = helper.make_graph(nodes, "lab", [given], answers, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
    helper.set_model_props(model, dict(about))
    onnx.checker.check_model(model)
    file.write_bytes(model.SerializeToString())
