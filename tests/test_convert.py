"""Converters: what comes out computes what went in, on tiny networks built here and on the real files."""

import json

import numpy as np
import pytest
import torch
from likeness.face.convert import convert
from likeness.face.convert.flatbuffer import read
from likeness.face.convert.fold import dequantise
from likeness.face.errors import BadInput, BadModelFile
from likeness.face.host import ROOT
from torch.nn import functional as F

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
flatbuffers = pytest.importorskip("flatbuffers")

FLOAT = onnx.TensorProto.FLOAT


def rng(seed=0):
    return np.random.default_rng(seed)


def run(data, value):
    """The outputs of an ONNX file for one input, on one thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(data, options)
    return session.run(None, {session.get_inputs()[0].name: value})


def operators(data):
    return [node.op_type for node in onnx.load_from_string(data).graph.node]


# fold


def quantised(codes, scale, zero):
    """conv(x, reshape(dequantise(codes))), then a head reshaped to (1, -1, 4), the way OpenCV Zoo's files are."""
    helper, numpy = onnx.helper, onnx.numpy_helper
    constants = {
        "codes": codes,
        "scale": scale,
        "zero": zero,
        "shape": np.array([4, 2, 3, 3], np.int64),
        "head": np.array([1, -1, 4], np.int64),
        "nobody_reads_me": np.zeros(3, np.float32),
    }
    nodes = [
        helper.make_node("DequantizeLinear", ["codes", "scale", "zero"], ["flat"], axis=1, block_size=9),
        helper.make_node("Reshape", ["flat", "shape"], ["weight"]),
        helper.make_node("Conv", ["x", "weight"], ["mapped"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        helper.make_node("Dropout", ["mapped"], ["dropped"]),
        helper.make_node("Transpose", ["dropped"], ["last"], perm=[0, 2, 3, 1]),
        helper.make_node("Reshape", ["last", "head"], ["y"]),
    ]
    inputs = [
        helper.make_tensor_value_info("x", FLOAT, [1, 2, 6, 6]),
        helper.make_tensor_value_info("weight_before_quantisation", FLOAT, [4, 2, 3, 3]),
    ]
    graph = helper.make_graph(
        nodes,
        "quantised",
        inputs,
        [helper.make_tensor_value_info("y", FLOAT, [1, 36, 4])],
        [numpy.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return model.SerializeToString()


@pytest.fixture(scope="module")
def blocks():
    random = rng()
    codes = random.integers(-128, 128, (4, 18)).astype(np.int8)
    scale = random.uniform(0.01, 0.1, (4, 2)).astype(np.float32)
    zero = random.integers(-5, 5, (4, 2)).astype(np.int8)
    return codes, scale, zero


def test_blocks_are_dequantised_one_scale_each(blocks):
    codes, scale, zero = blocks
    result = dequantise(codes, scale, zero, 1, 9)
    for row in range(4):
        for column in range(18):
            block = column // 9
            expected = (float(codes[row, column]) - float(zero[row, block])) * float(scale[row, block])
            assert result[row, column] == pytest.approx(expected, rel=1e-6)


def test_the_last_block_may_be_short():
    codes = np.array([[1, 2, 3, 4, 5]], np.int8)
    scale = np.array([[1, 10, 100]], np.float32)
    assert dequantise(codes, scale, None, 1, 2).tolist() == [[1, 2, 30, 40, 500]]


@pytest.mark.parametrize(("axis", "expected"), [(0, [[1, 2], [30, 40]]), (1, [[1, 20], [3, 40]])])
def test_without_blocks_there_is_a_scale_a_row_or_one_in_all(axis, expected):
    codes = np.array([[1, 2], [3, 4]], np.int8)
    assert dequantise(codes, np.array([1, 10], np.float32), None, axis, 0).tolist() == expected
    assert dequantise(codes, np.array(2, np.float32), None, axis, 0).tolist() == [[2, 4], [6, 8]]


def test_folding_equals_the_dequantised_mathematics(blocks):
    data = convert("fold N 2 H W", [quantised(*blocks)])
    x = rng(1).normal(size=(1, 2, 6, 6)).astype(np.float32)
    weight = torch.from_numpy(dequantise(*blocks, 1, 9).reshape(4, 2, 3, 3))
    expected = F.conv2d(torch.from_numpy(x), weight, padding=1).permute(0, 2, 3, 1).reshape(1, -1, 4)
    np.testing.assert_allclose(run(data, x)[0], expected.numpy(), atol=1e-4)


def test_folding_leaves_no_quantisation_and_nothing_unread(blocks):
    data = convert("fold N 2 H W", [quantised(*blocks)])
    model = onnx.load_from_string(data)
    assert operators(data) == ["Conv", "Transpose", "Reshape"]
    assert [value.name for value in model.graph.input] == ["x"]
    assert {weight.name for weight in model.graph.initializer} == {"weight", "head"}
    assert all(w.data_type in (FLOAT, onnx.TensorProto.INT64) for w in model.graph.initializer)
    assert max(opset.version for opset in model.opset_import) <= 17


def test_a_freed_batch_equals_its_pictures_one_by_one(blocks):
    data = convert("fold N 2 H W", [quantised(*blocks)])
    x = rng(2).normal(size=(3, 2, 10, 4)).astype(np.float32)
    together = run(data, x)[0]
    assert together.shape == (3, 40, 4)
    np.testing.assert_array_equal(together, np.concatenate([run(data, x[i : i + 1])[0] for i in range(3)]))


def test_converting_twice_gives_the_same_bytes(blocks):
    source = quantised(*blocks)
    assert convert("fold N 2 H W", [source]) == convert("fold N 2 H W", [source])


def test_a_quantised_value_that_is_computed_is_refused():
    helper = onnx.helper
    graph = helper.make_graph(
        [
            helper.make_node("QuantizeLinear", ["x", "scale"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "scale"], ["y"]),
        ],
        "computed",
        [helper.make_tensor_value_info("x", FLOAT, [1, 4])],
        [helper.make_tensor_value_info("y", FLOAT, [1, 4])],
        [onnx.numpy_helper.from_array(np.array(0.1, np.float32), "scale")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    with pytest.raises(BadModelFile, match="on computed values cannot be folded"):
        convert("fold N 4", [model.SerializeToString()])


@pytest.mark.parametrize("part", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("recipe", ["fold N 2 H W", "shapes N 2 H W", "tflite"])
def test_a_truncated_file_is_refused(blocks, recipe, part):
    data = quantised(*blocks)
    with pytest.raises(BadModelFile, match="fetch"):
        convert(recipe, [data[: int(len(data) * part)]])


def test_an_unknown_converter_is_named():
    with pytest.raises(BadInput, match="no converter called 'melt'"):
        convert("melt N", [b""])


# shapes


def test_declared_sizes_become_free():
    helper = onnx.helper
    kernel = onnx.numpy_helper.from_array(rng().normal(size=(2, 3, 3, 3)).astype(np.float32), "k")
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "k"], ["y"], kernel_shape=[3, 3], pads=[1, 1, 1, 1])],
        "fixed",
        [
            helper.make_tensor_value_info("x", FLOAT, [10, 3, 32, 32]),
            helper.make_tensor_value_info("k", FLOAT, [2, 3, 3, 3]),
        ],
        [helper.make_tensor_value_info("y", FLOAT, [10, 2, 32, 32])],
        [kernel],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 9)], ir_version=4)
    data = convert("shapes N 3 H W", [model.SerializeToString()])
    assert run(data, np.zeros((2, 3, 64, 96), np.float32))[0].shape == (2, 2, 64, 96)
    assert [value.name for value in onnx.load_from_string(data).graph.input] == ["x"]


# tflite


class Lite:
    """Writes a .tflite file operator by operator; field numbers as in tensorflow/lite/schema/schema.fbs."""

    def __init__(self, shape):
        self.builder = flatbuffers.Builder(1 << 12)
        self.shapes, self.buffers, self.codes, self.steps = [shape], [b""], [], []
        self.where, self.kinds = [0], {}

    def constant(self, value):
        value = np.ascontiguousarray(value)
        self.shapes.append(value.shape)
        self.buffers.append(value.tobytes())
        self.where.append(len(self.buffers) - 1)
        if value.dtype == np.int32:
            self.kinds[len(self.shapes) - 1] = 2
        return len(self.shapes) - 1

    def step(self, code, inputs, shape, *options):
        """``options``: (number, "int8" or "int32", value). Answers the output's number."""
        self.shapes.append(shape)
        self.where.append(0)
        self.codes += [code] if code not in self.codes else []
        self.steps.append((self.codes.index(code), inputs, len(self.shapes) - 1, options))
        return len(self.shapes) - 1

    def _table(self, slots):
        b = self.builder
        b.StartObject(8)
        for number, kind, value in slots:
            if kind == "offset":
                b.PrependUOffsetTRelativeSlot(number, value, 0)
            else:
                getattr(b, f"Prepend{kind.capitalize()}Slot")(number, value, 0)
        return b.EndObject()

    def _tables(self, offsets):
        b = self.builder
        b.StartVector(4, len(offsets), 4)
        for offset in reversed(offsets):
            b.PrependUOffsetTRelative(offset)
        return b.EndVector()

    def _ints(self, values):
        return self.builder.CreateNumpyVector(np.array(values, np.int32))

    def bytes(self, output):
        b = self.builder
        buffers = []
        for data in self.buffers:
            slots = [(0, "offset", b.CreateByteVector(data))] if data else []
            buffers.append(self._table(slots))
        tensors = []
        for i, (shape, buffer) in enumerate(zip(self.shapes, self.where, strict=True)):
            dims, name = self._ints(shape), b.CreateString(f"value{i}")
            slots = [(0, "offset", dims), (1, "int8", self.kinds.get(i, 0)), (2, "uint32", buffer), (3, "offset", name)]
            tensors.append(self._table(slots))
        steps = []
        for code, inputs, out, options in self.steps:
            table, ins, outs = self._table(options), self._ints(inputs), self._ints([out])
            slots = [(0, "uint32", code), (1, "offset", ins), (2, "offset", outs), (4, "offset", table)]
            steps.append(self._table(slots))
        body = [self._tables(tensors), self._ints([0]), self._ints([output]), self._tables(steps)]
        graph = self._table([(i, "offset", value) for i, value in enumerate(body)])
        codes = self._tables([self._table([(0, "int8", code)]) for code in self.codes])
        graphs, data = self._tables([graph]), self._tables(buffers)
        b.Finish(self._table([(1, "offset", codes), (2, "offset", graphs), (4, "offset", data)]), b"TFL3")
        return bytes(b.Output())


def lite_network(seed=0):
    """(.tflite bytes, the same in torch): every operator that is converted, 2x7x7x3 in, 5 numbers out."""
    random = rng(seed)

    def numbers(*shape):
        return random.normal(size=shape).astype(np.float32)

    conv, conv_bias, depth, depth_bias = numbers(4, 3, 3, 3), numbers(4), numbers(1, 3, 3, 4), numbers(4)
    slope, prelu = numbers(4), numbers(1, 1, 4)
    last, last_bias = numbers(5, 2, 2, 6), numbers(5)
    same, valid = ((0, "int8", 0), (0, "int8", 1))
    two, one = ((1, "int32", 2), (2, "int32", 2)), ((1, "int32", 1), (2, "int32", 1))

    net = Lite((2, 7, 7, 3))
    c = net.constant
    x = net.step(3, [0, c(conv), c(conv_bias)], (2, 4, 4, 4), same, *two, (3, "int8", 1))
    x = net.step(4, [x, c(depth), c(depth_bias)], (2, 4, 4, 4), same, *one, (3, "int32", 1))
    positive = net.step(19, [x], (2, 4, 4, 4))
    size = net.step(101, [x], (2, 4, 4, 4))
    below = net.step(41, [x, size], (2, 4, 4, 4))
    bent = net.step(18, [c(slope), below], (2, 4, 4, 4))
    y = net.step(0, [positive, bent], (2, 4, 4, 4))
    y = net.step(54, [y, c(prelu)], (2, 4, 4, 4))
    y = net.step(0, [y, x], (2, 4, 4, 4))
    y = net.step(17, [y], (2, 2, 2, 4), same, *two, (3, "int32", 2), (4, "int32", 2))
    pads = np.array([[0, 0], [0, 0], [0, 0], [0, 2]], np.int32)
    y = net.step(34, [y, c(pads)], (2, 2, 2, 6))
    y = net.step(3, [y, c(last), c(last_bias)], (2, 1, 1, 5), valid, *one)
    y = net.step(22, [y, c(np.array([2, 5], np.int32))], (2, 5))

    def torch_kernel(value):
        return torch.from_numpy(value).permute(0, 3, 1, 2)

    def truth(value):
        t = torch.from_numpy(value)
        # TensorFlow's SAME for 7 -> 4 at stride 2: one pixel on either side.
        a = F.conv2d(F.pad(t, (1, 1, 1, 1)), torch_kernel(conv), torch.from_numpy(conv_bias), stride=2).relu()
        kernel = torch.from_numpy(depth).permute(3, 0, 1, 2)
        a = F.conv2d(F.pad(a, (1, 1, 1, 1)), kernel, torch.from_numpy(depth_bias), groups=4)
        b = a.relu() + torch.from_numpy(slope).view(-1, 1, 1) * (a - a.abs())
        b = F.prelu(b, torch.from_numpy(prelu).reshape(-1)) + a
        b = F.pad(F.max_pool2d(b, 2), (0, 0, 0, 0, 0, 2))
        return F.conv2d(b, torch_kernel(last), torch.from_numpy(last_bias)).flatten(1).numpy()

    return net.bytes(y), truth


def test_a_tflite_network_computes_the_same_as_onnx():
    source, truth = lite_network()
    data = convert("tflite", [source])
    x = rng(5).normal(size=(4, 3, 7, 7)).astype(np.float32)
    (answer,) = run(data, x)
    assert answer.shape == (4, 5)
    np.testing.assert_allclose(answer, truth(x), rtol=1e-4, atol=1e-4)


def test_the_five_step_prelu_becomes_one():
    data = convert("tflite", [lite_network()[0]])
    assert not {"Abs", "Sub", "Mul"} & set(operators(data))


def test_a_tflite_network_is_declared_channels_first_with_a_free_batch():
    model = onnx.load_from_string(convert("tflite", [lite_network()[0]]))
    ports = [*model.graph.input, *model.graph.output]
    shapes = [[d.dim_param or d.dim_value for d in port.type.tensor_type.shape.dim] for port in ports]
    assert shapes == [["N", 3, 7, 7], ["N", 5]]
    assert max(opset.version for opset in model.opset_import) <= 17


def test_the_odd_pixel_of_same_padding_is_at_the_end():
    # 4 -> 2 with a kernel of 3 at stride 2 needs one pixel in all.
    net = Lite((1, 4, 4, 1))
    kernel = np.arange(9, dtype=np.float32).reshape(1, 3, 3, 1)
    y = net.step(3, [0, net.constant(kernel)], (1, 2, 2, 1), (0, "int8", 0), (1, "int32", 2), (2, "int32", 2))
    ones = net.constant(np.ones((1, 2, 2, 1), np.float32))
    y = net.step(3, [y, ones], (1, 1, 1, 1), (0, "int8", 1), (1, "int32", 1), (2, "int32", 1))
    x = rng().normal(size=(1, 1, 4, 4)).astype(np.float32)
    inner = F.conv2d(F.pad(torch.from_numpy(x), (0, 1, 0, 1)), torch.arange(9.0).view(1, 1, 3, 3), stride=2)
    assert run(convert("tflite", [net.bytes(y)]), x)[0].item() == pytest.approx(inner.sum().item(), rel=1e-4)


def test_an_operator_that_is_not_known_is_refused_by_number():
    net = Lite((1, 2, 2, 3))
    y = net.step(14, [0], (1, 2, 2, 3))
    with pytest.raises(BadModelFile, match="operator number 14"):
        convert("tflite", [net.bytes(y)])


def test_a_damaged_tflite_file_never_ends_in_another_error():
    source, _ = lite_network()
    random = rng(7)
    refused = 0
    for _ in range(200):
        data = bytearray(source)
        for at in random.integers(8, len(data), 6):
            data[at] = random.integers(256)
        try:
            read(bytes(data))
        except BadModelFile:
            refused += 1
    assert refused > 0


# face-api


def faceapi_files(seed=0):
    """Weights and manifest of a narrow network in the published layout, half of them quantised."""
    random = rng(seed)
    shapes, before = {}, 3
    for i, width in enumerate((4, 6, 8, 10)):
        for k in range(4):
            name, source = f"dense{i}/conv{k}", before if k == 0 else width
            if (i, k) == (0, 0):
                shapes[f"{name}/filters"] = (3, 3, 3, width)
            else:
                shapes[f"{name}/depthwise_filter"] = (3, 3, source, 1)
                shapes[f"{name}/pointwise_filter"] = (1, 1, source, width)
            shapes[f"{name}/bias"] = (width,)
        before = width
    shapes |= {"fc/weights": (10, 7), "fc/bias": (7,)}
    entries, data, truth = [], b"", {}
    for i, (name, shape) in enumerate(shapes.items()):
        entry = {"name": name, "shape": list(shape), "dtype": "float32"}
        if i % 2:
            codes = random.integers(0, 256, shape).astype(np.uint8)
            scale, least = 0.004, -0.5
            entry["quantization"] = {"dtype": "uint8", "scale": scale, "min": least}
            truth[name] = (codes.astype(np.float32) * scale + least).astype(np.float32)
            data += codes.tobytes()
        else:
            truth[name] = random.normal(size=shape).astype(np.float32) * 0.3
            data += truth[name].tobytes()
        entries.append(entry)
    return data, json.dumps([{"weights": entries, "paths": ["x.bin"]}]).encode(), truth


def faceapi_truth(weights, image):
    """face-api.js' denseBlock4 and fully connected layer, in torch."""
    w = {name: torch.from_numpy(value) for name, value in weights.items()}

    def same(x, stride):
        return F.pad(x, (0, 1, 0, 1) if stride == 2 else (1, 1, 1, 1))

    def separable(x, name, stride):
        depth = w[f"{name}/depthwise_filter"].permute(2, 3, 0, 1)
        wide = F.conv2d(same(x, stride), depth, stride=stride, groups=len(depth))
        return F.conv2d(wide, w[f"{name}/pointwise_filter"].permute(3, 2, 0, 1), w[f"{name}/bias"])

    x = (torch.from_numpy(image) - torch.tensor([122.782, 117.001, 104.298]).view(3, 1, 1)) / 255
    for i in range(4):
        if i == 0:
            kernel = w["dense0/conv0/filters"].permute(3, 2, 0, 1)
            out1 = F.conv2d(same(x, 2), kernel, w["dense0/conv0/bias"], stride=2).relu()
        else:
            out1 = separable(x, f"dense{i}/conv0", 2).relu()
        out2 = separable(out1, f"dense{i}/conv1", 1)
        out3 = separable((out1 + out2).relu(), f"dense{i}/conv2", 1)
        out4 = separable((out1 + out2 + out3).relu(), f"dense{i}/conv3", 1)
        x = (out1 + out2 + out3 + out4).relu()
    return (F.avg_pool2d(x, 7, 2).flatten(1) @ w["fc/weights"] + w["fc/bias"]).numpy()


def test_a_faceapi_network_computes_what_its_source_says():
    data, manifest, weights = faceapi_files()
    image = rng(3).uniform(0, 255, (2, 3, 112, 112)).astype(np.float32)
    expected = faceapi_truth(weights, image)
    (answer,) = run(convert("faceapi landmarks", [data, manifest]), image)
    np.testing.assert_allclose(answer, expected, rtol=1e-3, atol=1e-3)
    (chances,) = run(convert("faceapi expression", [data, manifest]), image)
    np.testing.assert_allclose(chances.sum(1), 1, atol=1e-5)
    assert (chances.argmax(1) == expected.argmax(1)).all()


def test_weights_that_do_not_fit_their_manifest_are_refused():
    data, manifest, _ = faceapi_files()
    with pytest.raises(BadModelFile, match="describes"):
        convert("faceapi landmarks", [data + b"more", manifest])
    with pytest.raises(BadModelFile, match="do not fit"):
        convert("faceapi landmarks", [data[:-5], manifest])


# PReLU


def bent(slope, rank=4):
    """PRelu alone, before and after the rewriting."""
    helper = onnx.helper
    shape = ["N", len(slope), "H", "W"][:rank]
    graph = helper.make_graph(
        [helper.make_node("PRelu", ["x", "slope"], ["y"])],
        "bent",
        [helper.make_tensor_value_info("x", FLOAT, shape)],
        [helper.make_tensor_value_info("y", FLOAT, shape)],
        [onnx.numpy_helper.from_array(np.float32(slope).reshape(-1, *[1] * (rank - 2)), "slope")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 16)], ir_version=8)
    return model.SerializeToString(), convert(f"shapes {' '.join(map(str, shape))}", [model.SerializeToString()])


def test_prelu_in_parts_is_prelu():
    # Real slopes lie between -9.4 and 8.9; 1 is where the bend vanishes.
    before, after = bent([0.25, -0.8, 0.0, 1.0, 1.5, -9.4, 8.9])
    assert "PRelu" not in operators(after)
    x = rng(4).normal(size=(2, 7, 5, 6)).astype(np.float32) * 100
    (old,), (new,) = run(before, x), run(after, x)
    np.testing.assert_array_equal(new[x >= 0], old[x >= 0])
    np.testing.assert_allclose(new, old, rtol=1e-5, atol=1e-4)


def test_prelu_on_vectors_is_left_alone():
    assert operators(bent([0.25, 0.5], rank=2)[1]) == ["PRelu"]


# The real files


def real(name):
    path = ROOT / "models" / "likeness" / name
    if not path.is_file():
        pytest.skip(f"no model {path}; fetch it with `likeness models fetch`")
    return path.read_bytes()


@pytest.mark.weights
@pytest.mark.parametrize(
    ("name", "size"),
    [("yunet.onnx", (96, 128)), ("sface.onnx", (112, 112)), ("face_mesh.onnx", (192, 192))],
)
def test_two_pictures_at_once_equal_one_and_one(name, size):
    data = real(name)
    x = rng(1).uniform(0, 1, (2, 3, *size)).astype(np.float32)
    x *= 1 if name == "face_mesh.onnx" else 255
    apart = [run(data, x[i : i + 1]) for i in range(2)]
    for together, *single in zip(run(data, x), *apart, strict=True):
        np.testing.assert_allclose(together, np.concatenate(single), rtol=1e-5, atol=1e-4)


@pytest.mark.weights
@pytest.mark.parametrize("name", ["yunet.onnx", "sface.onnx", "face_mesh.onnx"])
def test_the_default_models_are_float32_and_old_enough(name):
    model = onnx.load_from_string(real(name))
    assert {w.data_type for w in model.graph.initializer} <= {FLOAT, onnx.TensorProto.INT64}
    assert max(opset.version for opset in model.opset_import) <= 17
    assert "PRelu" not in [node.op_type for node in model.graph.node]
