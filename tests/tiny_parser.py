"""A face parser that goes by colour, in the outside of BiSeNet and SegFace: what it must answer can be read off."""

import numpy as np
import onnx
from likeness.face.parse.networks import MEAN, SEGFACE, STD
from onnx import TensorProto, helper, numpy_helper

RED, GREEN, BLUE = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)

BISENET = {"hair": 17, "glasses": 6, "left eye": 4, "right eye": 5, "hat": 18}
"""Numbers in zllrunning/face-parsing.PyTorch's order."""


def by_colour(path, numbers, **colours):
    """An ONNX file that says ``hair`` where a pixel is nearest to the colour given for it, background where dark.

    ``numbers``: the class of each name, in the network's own order.
    """
    weight, bias = np.zeros((19, 3, 1, 1), np.float32), np.full(19, -100, np.float32)
    # The network sees (x - mean) / std: undone in the weights, so that a logit is 2 colour·x - |colour|^2.
    for number, colour in [(0, (0.0, 0.0, 0.0)), *((numbers[n], c) for n, c in colours.items())]:
        weight[number, :, 0, 0] = 2 * np.array(colour) * STD
        bias[number] = 2 * np.dot(colour, MEAN) - np.dot(colour, colour)
    node = helper.make_node("Conv", ["x", "w", "b"], ["y"])
    sides = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, c, 512, 512]) for n, c in (("x", 3), ("y", 19))]
    constants = [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(bias, "b")]
    graph = helper.make_graph([node], "parser", sides[:1], sides[1:], constants)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    return path


def bisenet(folder, **colours):
    return by_colour(folder / "likeness" / "bisenet_tiny.onnx", BISENET, **colours)


def segface(folder, **colours):
    numbers = {name: number for number, name in enumerate(SEGFACE)}
    return by_colour(folder / "likeness" / "segface_tiny.onnx", numbers, **colours)
