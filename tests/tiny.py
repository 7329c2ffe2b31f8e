"""Small ONNX files in the published layouts: random networks, and real default models wrapped as parts of a pack."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = [helper.make_opsetid("", 17)]


def _save(graph: onnx.GraphProto, path: Path) -> Path:
    model = helper.make_model(graph, opset_imports=OPSET, ir_version=8)
    onnx.checker.check_model(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, str(path))
    return path


def _constant(name: str, value: object, dtype: type = np.float32) -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(value, dtype), name)


def _info(name: str, shape: list[int | str | None]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def scrfd(
    path: Path, outputs: int = 9, *, size: tuple[int, int] | None = None, batched: bool = False, seed: int = 0
) -> Path:
    """A random network with the outside of SCRFD: ``outputs`` of 6, 9, 10 or 15; ``size`` (h, w) fixes the input.

    ``batched``: outputs (B, rows, width), else (rows, width). A colourful picture has many "faces".
    """
    rng = np.random.default_rng(seed)
    strides, anchors = ((8, 16, 32), 2) if outputs < 10 else ((8, 16, 32, 64, 128), 1)
    widths = (1, 4, 10)[: outputs // len(strides)]
    nodes: list[onnx.NodeProto] = []
    constants: list[onnx.TensorProto] = []
    outs: list[onnx.ValueInfoProto] = []
    for width in widths:
        for stride in strides:
            name = f"{ {1: 'score', 4: 'bbox', 10: 'kps'}[width] }_{stride}"
            kernel = rng.normal(0, {1: 4.0, 4: 0.3, 10: 0.5}[width], (anchors * width, 3, 1, 1))
            bias = np.full(anchors * width, {1: -1.0, 4: 1.6, 10: 0.2}[width])
            shape = [0, -1, width] if batched else [-1, width]
            constants += [
                _constant(f"{name}_w", kernel),
                _constant(f"{name}_b", bias),
                _constant(f"{name}_s", shape, np.int64),
            ]
            nodes += [
                helper.make_node("AveragePool", ["x"], [f"{name}_p"], kernel_shape=[stride] * 2, strides=[stride] * 2),
                helper.make_node("Conv", [f"{name}_p", f"{name}_w", f"{name}_b"], [f"{name}_c"]),
                helper.make_node("Transpose", [f"{name}_c"], [f"{name}_t"], perm=[0, 2, 3, 1]),
                helper.make_node("Reshape", [f"{name}_t", f"{name}_s"], [name if width > 1 else f"{name}_r"]),
            ]
            if width == 1:
                nodes.append(helper.make_node("Sigmoid", [f"{name}_r"], [name]))
            outs.append(_info(name, ["N", None, width] if batched else [None, width]))
    height, width_in = size or ("H", "W")
    inputs = [_info("x", ["N" if batched else 1, 3, height, width_in])]
    return _save(helper.make_graph(nodes, "scrfd", inputs, outs, constants), path)


def network(
    path: Path, inputs: list[tuple[str, list[int | str]]], outputs: list[tuple[str, list[int]]], seed: int = 0
) -> Path:
    """A random network: each output (N, …) is a fixed random map of the mean colour of the first input."""
    rng = np.random.default_rng(seed)
    nodes = [
        helper.make_node("GlobalAveragePool", [inputs[0][0]], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["mean"]),
    ]
    constants: list[onnx.TensorProto] = []
    for name, shape in outputs:
        count = int(np.prod(shape))
        constants += [
            _constant(f"{name}_w", rng.normal(0, 0.3, (int(inputs[0][1][1]), count))),
            _constant(f"{name}_b", rng.normal(0, 0.3, count)),
            _constant(f"{name}_s", [-1, *shape], np.int64),
        ]
        nodes += [
            helper.make_node("Gemm", ["mean", f"{name}_w", f"{name}_b"], [f"{name}_g"]),
            helper.make_node("Reshape", [f"{name}_g", f"{name}_s"], [name]),
        ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [_info(name, list(shape)) for name, shape in inputs],
        [_info(name, ["N", *shape]) for name, shape in outputs],
        constants,
    )
    return _save(graph, path)


def landmarks106(path: Path, seed: int = 0) -> Path:
    """The outside of InsightFace's 2d106det.onnx."""
    return network(path, [("data", ["N", 3, 192, 192])], [("fc1", [212])], seed)


def landmarks68(path: Path, seed: int = 0) -> Path:
    """The outside of InsightFace's 1k3d68.onnx."""
    return network(path, [("data", ["N", 3, 192, 192])], [("fc1", [3309])], seed)


def genderage(path: Path, seed: int = 0) -> Path:
    """The outside of InsightFace's genderage.onnx."""
    return network(path, [("data", ["N", 3, 96, 96])], [("fc1", [3])], seed)


def recogniser(path: Path, dimension: int = 512, seed: int = 0) -> Path:
    """The outside of InsightFace's w600k_r50.onnx."""
    return network(path, [("input.1", ["N", 3, 112, 112])], [("683", [dimension])], seed)


def swapper(path: Path, seed: int = 0) -> Path:
    """The outside of inswapper_128.onnx, near enough to be routed."""
    return network(path, [("target", [1, 3, 128, 128]), ("source", [1, 512])], [("output", [3, 128, 128])], seed)


def yunet_as_scrfd(yunet: Path, path: Path, size: tuple[int, int] | None = None) -> Path:
    """The real YuNet file dressed as a 9-output SCRFD network, which InsightFace loads as a pack's detector.

    It takes RGB (x - 127.5) / 128 and has two anchors a cell, of which the second never passes a threshold.
    """
    inner = onnx.load(str(yunet))
    graph = inner.graph
    given = graph.input[0].name
    for node in graph.node:
        node.input[:] = ["bgr" if name == given else name for name in node.input]
    constants = [
        _constant("wrap_std", 128.0),
        _constant("wrap_mean", 127.5),
        _constant("wrap_flip", [2, 1, 0], np.int64),
        _constant("wrap_zero", 0.0),
        _constant("wrap_one", 1.0),
        _constant("wrap_half", 0.5),
        _constant("wrap_01", [[[1.0, 0.0]]]),
        _constant("wrap_n1", [-1, 1], np.int64),
        _constant("wrap_n4", [-1, 4], np.int64),
        _constant("wrap_n10", [-1, 10], np.int64),
        _constant("wrap_22", [2, 2], np.int64),
        _constant("wrap_twice", [1, 1, 2], np.int64),
    ]
    make = helper.make_node
    before = [
        make("Mul", ["rgb", "wrap_std"], ["wrap_a"]),
        make("Add", ["wrap_a", "wrap_mean"], ["wrap_b"]),
        make("Gather", ["wrap_b", "wrap_flip"], ["bgr"], axis=1),
    ]
    after: list[onnx.NodeProto] = []
    for s in (8, 16, 32):
        after += [
            make("Clip", [f"cls_{s}", "wrap_zero", "wrap_one"], [f"c{s}"]),
            make("Clip", [f"obj_{s}", "wrap_zero", "wrap_one"], [f"o{s}"]),
            make("Mul", [f"c{s}", f"o{s}"], [f"p{s}"]),
            make("Sqrt", [f"p{s}"], [f"q{s}"]),
            make("Mul", [f"q{s}", "wrap_01"], [f"two{s}"]),
            make("Reshape", [f"two{s}", "wrap_n1"], [f"score_{s}"]),
            # YuNet: centre and logarithm of the size; SCRFD: distances to the four sides.
            make("Split", [f"bbox_{s}", "wrap_22"], [f"at{s}", f"log{s}"], axis=2),
            make("Exp", [f"log{s}"], [f"e{s}"]),
            make("Mul", [f"e{s}", "wrap_half"], [f"h{s}"]),
            make("Sub", [f"h{s}", f"at{s}"], [f"lt{s}"]),
            make("Add", [f"h{s}", f"at{s}"], [f"rb{s}"]),
            make("Concat", [f"lt{s}", f"rb{s}", f"lt{s}", f"rb{s}"], [f"b{s}"], axis=2),
            make("Reshape", [f"b{s}", "wrap_n4"], [f"bbox_out_{s}"]),
            make("Tile", [f"kps_{s}", "wrap_twice"], [f"k{s}"]),
            make("Reshape", [f"k{s}", "wrap_n10"], [f"kps_out_{s}"]),
        ]
    outs = [
        _info(f"{part}_{s}", [None, width])
        for part, width in (("score", 1), ("bbox_out", 4), ("kps_out", 10))
        for s in (8, 16, 32)
    ]
    height, width = size or ("H", "W")
    wrapped = helper.make_graph(
        [*before, *graph.node, *after],
        "yunet_as_scrfd",
        [_info("rgb", [1, 3, height, width])],
        outs,
        [*graph.initializer, *constants],
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    model = helper.make_model(wrapped, opset_imports=list(inner.opset_import), ir_version=inner.ir_version)
    onnx.save(model, str(path))
    return path


def make_pack(root: Path, models: Path, name: str = "yunet_sface", size: tuple[int, int] | None = None) -> Path:
    """A pack made of the real default models: ``root``/models/``name``/{det_yunet,rec_sface}.onnx; answers its folder.

    ``insightface.app.FaceAnalysis(name, root=root)`` loads it, and so do we with ``root`` as the insightface folder.
    """
    folder = root / "models" / name
    yunet_as_scrfd(models / "yunet.onnx", folder / "det_yunet.onnx", size)
    (folder / "rec_sface.onnx").write_bytes((models / "sface.onnx").read_bytes())
    return folder


def retinaface(path: Path, *, order: tuple[str, ...] = ("loc", "conf", "landm"), seed: int = 0) -> Path:
    """A random network with the outside of the PyTorch RetinaFace: loc, conf (softmaxed), landm, two anchors a cell."""
    rng = np.random.default_rng(seed)
    make = helper.make_node
    nodes: list[onnx.NodeProto] = []
    constants: list[onnx.TensorProto] = []
    for name, width in (("loc", 4), ("conf", 2), ("landm", 10)):
        constants.append(_constant(f"{name}_s", [0, -1, width], np.int64))
        parts: list[str] = []
        for stride in (8, 16, 32):
            part = f"{name}{stride}"
            constants += [
                _constant(f"{part}_w", rng.normal(0, 0.02, (2 * width, 3, 1, 1))),
                _constant(f"{part}_b", rng.normal(0, 0.3, 2 * width)),
            ]
            pool = {"kernel_shape": [stride] * 2, "strides": [stride] * 2}
            nodes += [
                make("AveragePool", ["x"], [f"{part}_p"], ceil_mode=1, **pool),
                make("Conv", [f"{part}_p", f"{part}_w", f"{part}_b"], [f"{part}_c"]),
                make("Transpose", [f"{part}_c"], [f"{part}_t"], perm=[0, 2, 3, 1]),
                make("Reshape", [f"{part}_t", f"{name}_s"], [f"{part}_r"]),
            ]
            parts.append(f"{part}_r")
        nodes.append(make("Concat", parts, [f"{name}_raw" if name == "conf" else name], axis=1))
    nodes.append(make("Softmax", ["conf_raw"], ["conf"], axis=2))
    widths = {"loc": 4, "conf": 2, "landm": 10}
    outs = [_info(name, ["N", None, widths[name]]) for name in order]
    return _save(helper.make_graph(nodes, "retinaface", [_info("x", ["N", 3, "H", "W"])], outs, constants), path)
