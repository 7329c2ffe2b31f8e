"""Embedding: the default network on real photographs, and what every recognition file must keep to."""

import time
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from likeness.face.embed import CHUNK, align, choices, contract, embed, embedders, network
from likeness.face.errors import BadInput, BadModelFile, MissingModel
from likeness.face.geometry import arcface_template
from likeness.face.host import STANDALONE, StandaloneHost
from likeness.face.image import to_uint8
from likeness.face.types import Face, Faces, cosine
from likeness.tests.photos import DIFFERENT, SAME, SHA256, found, picture
from onnx import TensorProto, helper, numpy_helper


def face_at(x=20.0, y=20.0, size=60.0):
    """A face of ``size`` pixels whose points lie as the template has them."""
    points = (arcface_template(112) / 112 * size + [x, y]).astype(np.float32)
    return Face(np.array([x, y, x + size, y + size], np.float32), points, 0.9)


def batch(*faces_per_picture, side=128, seed=0):
    """Random pictures with these faces in them."""
    image = torch.rand(len(faces_per_picture), side, side, 3, generator=torch.Generator().manual_seed(seed))
    return image, Faces(tuple(tuple(f) for f in faces_per_picture), ((side, side),) * len(faces_per_picture))


def write_recogniser(path, *, dimension=512, channels_last=False, free=True, lead=(), apart=False, bgr=None, side=112):
    """A file with a recogniser's outside: mean colour of each of 4x4 tiles, through a fixed random matrix.

    ``lead`` are operators in front that change nothing. ``apart``: a second output with each vector's length.
    """
    n = "N" if free else 1
    shape = [n, side, side, 3] if channels_last else [n, 3, side, side]
    nodes, value = [], "input"
    if channels_last:
        nodes.append(helper.make_node("Transpose", [value], ["nchw"], perm=[0, 3, 1, 2]))
        value = "nchw"
    weights = np.random.default_rng(5).standard_normal((48, dimension)).astype(np.float32)
    consts = {"w": weights, "zero": np.float32(0), "one": np.float32(1), "flat": np.array([-1, 48], np.int64)}
    for i, op in enumerate(lead):
        nodes.append(helper.make_node(op, [value, "zero" if op == "Sub" else "one"], [f"lead{i}"]))
        value = f"lead{i}"
    k = side // 4
    nodes += [
        helper.make_node("AveragePool", [value], ["pool"], kernel_shape=[k, k], strides=[k, k]),
        helper.make_node("Reshape", ["pool", "flat"], ["row"]),
        helper.make_node("MatMul", ["row", "w"], ["raw" if apart else "out"]),
    ]
    outputs = [helper.make_tensor_value_info("out", TensorProto.FLOAT, [n, dimension])]
    if apart:
        nodes += [
            helper.make_node("ReduceL2", ["raw"], ["norm"], axes=[1], keepdims=1),
            helper.make_node("Div", ["raw", "norm"], ["out"]),
        ]
        outputs.append(helper.make_tensor_value_info("norm", TensorProto.FLOAT, [n, 1]))
    graph = helper.make_graph(
        nodes,
        "recogniser",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, shape)],
        outputs,
        [numpy_helper.from_array(np.asarray(v), name) for name, v in consts.items()],
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), str(path))
    return path


@pytest.fixture
def host(tmp_path):
    return StandaloneHost(models=tmp_path)


def default_or_skip(name="sface"):
    try:
        return network(name)
    except MissingModel as error:
        pytest.skip(str(error))


@pytest.mark.weights
@pytest.mark.parametrize(("name", "same", "different"), [("sface", 0.58, 0.30), ("mobilefacenet", 0.70, 0.35)])
def test_the_same_person_is_near_and_other_people_are_far(name, same, different):
    """The wrong colour order gives 0.55 with SFace, so the order is what this holds."""
    net = default_or_skip(name)
    vectors = {
        photo: embed(picture(photo), found(photo), name)[0][0].embedding(net.contract).vector for photo in SHA256
    }
    assert min(cosine(vectors[a], vectors[b]) for a, b in SAME) >= same
    assert max(cosine(vectors[a], vectors[b]) for a, b in DIFFERENT) <= different


@pytest.mark.weights
def test_a_batch_answers_as_single_pictures_do():
    net = default_or_skip()
    image, faces = batch([face_at(10, 10), face_at(50, 40, 70)], [], [face_at(30, 5, 90)])
    together = embed(image, faces)
    for i in range(3):
        alone = embed(image[i : i + 1], Faces((faces[i],), ((128, 128),)))
        assert len(alone[0]) == len(together[i])
        for a, b in zip(alone[0], together[i], strict=True):
            assert cosine(a.embedding(net.contract).vector, b.embedding(net.contract).vector) > 0.99999


@pytest.mark.weights
def test_a_face_cut_by_the_border_and_a_rescaled_one_are_still_the_person():
    net = default_or_skip()
    image, faces = picture("person_b_2"), found("person_b_2")
    whole = embed(image, faces)[0][0].embedding(net.contract).vector

    half = torch.nn.functional.interpolate(image.permute(0, 3, 1, 2), scale_factor=0.5, mode="area").permute(0, 2, 3, 1)
    smaller = replace(faces.map(lambda _, f: f.moved(lambda p: (p + 0.5) / 2 - 0.5)), sizes=(tuple(half.shape[1:3]),))
    assert cosine(whole, embed(half, smaller)[0][0].embedding(net.contract).vector) > 0.9

    cut = image[:, :, 240:]
    moved = replace(
        faces.map(lambda _, f: f.moved(lambda p: p - np.array([240, 0], np.float32))), sizes=(tuple(cut.shape[1:3]),)
    )
    assert float(moved[0][0].box[0]) < 0
    assert cosine(whole, embed(cut, moved)[0][0].embedding(net.contract).vector) > 0.8


def test_a_picture_without_faces_stays_in_the_batch(host):
    write_recogniser(host.folders("likeness")[0] / "edgeface_s.onnx")
    image, faces = batch([], [face_at()], [])
    embedded = embed(image, faces, "edgeface", host=host)
    assert [len(found) for found in embedded] == [0, 1, 0]
    assert embed(*batch([], []), "edgeface", host=host).count == 0


def test_what_is_embedded_already_is_left_alone_and_other_contracts_are_kept(host):
    folder = host.folders("likeness")[0]
    write_recogniser(folder / "edgeface_s.onnx")
    write_recogniser(folder / "adaface_a.onnx", lead=("Mul",))
    image, faces = batch([face_at()])
    once = embed(image, faces, "edgeface", host=host)
    twice = embed(image, once, "edgeface", host=host)
    assert twice[0][0] is once[0][0]
    both = embed(image, once, "adaface", host=host)[0][0]
    assert len(both.embeddings) == 2 and both.embeddings[0] is once[0][0].embeddings[0]


@pytest.mark.parametrize("free", [True, False])
@pytest.mark.parametrize("channels_last", [True, False])
def test_the_layout_and_the_batch_are_read_off_the_file(host, free, channels_last):
    folder = host.folders("likeness")[0]
    write_recogniser(folder / "edgeface_plain.onnx")
    write_recogniser(folder / "edgeface_other.onnx", free=free, channels_last=channels_last)
    image, faces = batch(*[[face_at(5 + i, 7)] for i in range(CHUNK + 3)])
    plain = embed(image, faces, "edgeface_plain", host=host)
    other = embed(image, faces, "edgeface_other", host=host)
    for a, b in zip(plain, other, strict=True):
        assert np.allclose(a[0].embeddings[0].vector, b[0].embeddings[0].vector, atol=1e-4)
        assert a[0].embeddings[0].contract != b[0].embeddings[0].contract


def test_adaface_gets_blue_first_and_its_two_outputs_become_one_raw_vector(host):
    folder = host.folders("likeness")[0]
    write_recogniser(folder / "edgeface_rgb.onnx")
    write_recogniser(folder / "adaface_two.onnx", apart=True)
    image, faces = batch([face_at()])
    rgb = embed(image.flip(-1), faces, "edgeface", host=host)[0][0].embeddings[0]
    bgr = embed(image, faces, "adaface", host=host)[0][0].embeddings[0]
    assert np.allclose(rgb.vector, bgr.vector, atol=1e-4)
    assert not bgr.contract.unit and "BGR" in bgr.contract.preprocessing
    write_recogniser(folder / "adaface_one.onnx")
    one = embed(image, faces, "adaface_one", host=host)[0][0].embeddings[0]
    assert one.contract.unit and np.linalg.norm(one.vector) == pytest.approx(1, abs=1e-5)


def test_user_files_are_offered_by_name_and_another_kind_of_file_is_refused(host):
    folder = host.folders("likeness")[0]
    assert choices(host) == ["sface", "mobilefacenet", "lab", "lab-judge"]
    with pytest.raises(BadInput, match=r"adaface\*\.onnx"):
        contract("adaface", host)
    write_recogniser(folder / "AdaFace_ir101.onnx")
    write_recogniser(folder / "edgeface_small.onnx", dimension=128)
    assert set(choices(host)) == {"sface", "mobilefacenet", "AdaFace_ir101", "edgeface_small", "lab", "lab-judge"}
    assert contract("AdaFace_ir101", host).model == "AdaFace_ir101"
    with pytest.raises(BadModelFile, match="512"):
        embed(*batch([face_at()]), "edgeface_small", host=host)
    (folder / "edgeface_small.onnx").write_bytes(b"not a network")
    with pytest.raises(BadModelFile):
        contract("edgeface_small", host)
    with pytest.raises(BadInput, match="no embedder called 'nobody'"):
        contract("nobody", host)
    with pytest.raises(MissingModel, match="fetch sface"):
        contract("sface", host)


def test_a_network_that_answers_nan_is_called_damaged(host):
    path = write_recogniser(host.folders("likeness")[0] / "edgeface_s.onnx")
    model = onnx.load(str(path))
    weights = next(t for t in model.graph.initializer if t.name == "w")
    weights.CopyFrom(numpy_helper.from_array(np.full((48, 512), np.nan, np.float32), "w"))
    onnx.save(model, str(path))
    with pytest.raises(BadModelFile, match="may be damaged"):
        embed(*batch([face_at()]), "edgeface", host=host)


def test_faces_of_another_batch_are_refused(host):
    write_recogniser(host.folders("likeness")[0] / "edgeface_s.onnx")
    image, _ = batch([face_at()])
    with pytest.raises(BadInput, match="from 2 pictures"):
        embed(image, batch([], [])[1], "edgeface", host=host)


def test_points_that_coincide_are_refused(host):
    write_recogniser(host.folders("likeness")[0] / "edgeface_s.onnx")
    image, faces = batch([replace(face_at(), points=np.zeros((5, 2), np.float32))])
    with pytest.raises(BadInput, match="coincide"):
        embed(image, faces, "edgeface", host=host)


def test_the_crop_shows_the_points_where_the_template_has_them():
    """A white dot at every point of the face must light up the template's places, and nothing else."""
    face = face_at(40, 30, 112)
    image = torch.zeros(200, 200, 3)
    face = replace(face, points=np.round(face.points))
    for x, y in face.points:
        image[int(y), int(x)] = 1
    crop = align(image, [face], 112)[0, 0]
    for x, y in arcface_template(112):
        assert crop[round(y) - 1 : round(y) + 2, round(x) - 1 : round(x) + 2].sum() > 0.5
    assert crop.sum() < 6


def test_a_packs_recogniser_is_chosen_by_the_packs_name_and_its_graph_tells_its_range(host):
    packs = host.folders("insightface")[0]
    write_recogniser(packs / "buffalo_x" / "w600k_x.onnx")
    write_recogniser(packs / "mxnet" / "rec.onnx", lead=("Sub", "Mul"))
    write_recogniser(packs / "other" / "detector.onnx", side=104)
    assert choices(host) == ["sface", "buffalo_x", "mxnet", "mobilefacenet", "lab", "lab-judge"]
    x = contract("buffalo_x", host)
    assert (x.model, x.dimension, x.unit) == ("w600k_x", 512, False)
    assert x.preprocessing == "arcface-112 RGB (x-127.5)/127.5"
    assert contract("mxnet", host).preprocessing == "arcface-112 RGB 0..255"
    assert contract("arcface", host) == x
    with pytest.raises(BadInput, match="the model pack 'other'"):
        contract("other", host)


@pytest.mark.weights
@pytest.mark.parametrize("name", ["sface", "mobilefacenet"])
def test_the_insightface_package_answers_the_same_vector_for_the_same_file(tmp_path, name):
    """Version 2.1, on the same points; it rounds the crop to 256 steps and warps in fixed point, so not bit for bit."""
    arcface_onnx = pytest.importorskip("insightface.model_zoo.arcface_onnx", reason="a development dependency")
    path = default_or_skip(name).model.path
    host = StandaloneHost(models=tmp_path)
    folder = host.folders("insightface")[0] / "pack"
    folder.mkdir(parents=True)
    (folder / "rec.onnx").write_bytes(path.read_bytes())
    peer = arcface_onnx.ArcFaceONNX(str(folder / "rec.onnx"))
    for photo in SHA256:
        image, faces = picture(photo), found(photo)
        ours = embed(image, faces, "pack", host=host)[0][0].embeddings[0].vector
        bgr = np.ascontiguousarray(to_uint8(image[0])[..., ::-1])
        theirs = peer.get(bgr, Peer(kps=faces[0][0].points))
        assert cosine(ours, theirs) >= 0.999
        assert np.linalg.norm(ours) == pytest.approx(np.linalg.norm(theirs), rel=0.02)


class Peer(dict):
    """What InsightFace takes for a face: a dictionary with attributes."""

    __getattr__ = dict.__getitem__
    __setattr__ = dict.__setitem__


@pytest.mark.parametrize("name", embedders.names())
def test_every_embedder_names_what_it_offers(name):
    """Parametrised by the registry, so that a new file is held to it at once."""
    assert all(isinstance(choice, str) for choice in embedders[name].names(STANDALONE))


def test_the_work_around_the_network_is_small(host):
    """Best of several tries, because the machine is shared; the target is 1 ms a face."""
    write_recogniser(host.folders("likeness")[0] / "edgeface_s.onnx")
    image, faces = batch([face_at(3 * i, 2 * i, 100) for i in range(16)], side=512)
    net = network("edgeface", host)
    crops = align(image[0], faces[0], 112)
    whole, bare = [], []
    for _ in range(8):
        start = time.process_time()
        embed(image, faces, "edgeface", host=host)
        middle = time.process_time()
        net.model.run_batch(net.input, crops.numpy())
        whole.append(middle - start)
        bare.append(time.process_time() - middle)
    assert (min(whole) - min(bare)) / 16 < 2e-3
