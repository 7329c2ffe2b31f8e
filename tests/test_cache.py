"""A file is opened once however many ask; what is in use is never freed; a picture is looked at once."""

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from likeness.face.cache import AnalysisCache, ModelCache
from likeness.face.errors import BadModelFile
from likeness.face.session import OnnxModel

onnx = pytest.importorskip("onnx")


def net(path: Path, kind="Relu"):
    """A network of one operator on (N, 4)."""
    helper, shape = onnx.helper, ["N", 4]
    value = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node(kind, ["x"], ["y"])], "g", value[:1], value[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    return path


def test_eight_threads_open_a_file_once(tmp_path):
    cache = ModelCache(1 << 30)
    path = net(tmp_path / "a.onnx")
    start = threading.Barrier(8)
    answers = []

    def ask():
        start.wait()
        for _ in range(20):
            answers.append(OnnxModel(path, cache=cache).run({"x": np.full((2, 4), -1.0, np.float32)})[0].max())

    threads = [threading.Thread(target=ask) for _ in range(8)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert len(answers) == 160 and max(answers) == 0
    assert [(m.name, m.opened, m.in_use) for m in cache.held()] == [("a.onnx", 1, 0)]


def test_a_replaced_file_is_opened_anew(tmp_path):
    cache = ModelCache(1 << 30)
    model = OnnxModel(net(tmp_path / "a.onnx"), cache=cache)
    x = {"x": np.full((1, 4), -1.0, np.float32)}
    assert model.run(x)[0].max() == 0
    net(tmp_path / "b.onnx", "Neg").replace(tmp_path / "a.onnx")
    assert model.run(x)[0].max() == 1


def test_the_least_recently_used_goes_first_and_nothing_in_use_goes():
    cache = ModelCache(25)
    loads = []

    def load(name):
        def opened():
            loads.append(name)
            return name, 10

        return opened

    for name in "abab":
        with cache.lease(name, load(name)):
            pass
    with cache.lease("a", load("a")):
        with cache.lease("c", load("c")):
            assert {m.name for m in cache.held()} == {"a", "c"}, "b was used last and must go"
        with cache.lease("b", load("b")) as b:
            assert b == "b" and {m.name for m in cache.held()} == {"a", "b"}, "a is in use and must stay"
        assert cache.free() == 10 and [m.name for m in cache.held()] == ["a"]
    assert loads == ["a", "b", "c", "b"]
    assert cache.free() == 10 and cache.held() == []


def test_freeing_while_it_runs_takes_nothing_away():
    cache = ModelCache(0)
    inside, freed = threading.Event(), threading.Event()
    seen = []

    def user():
        with cache.lease("m", lambda: (["alive"], 10)) as model:
            inside.set()
            freed.wait(10)
            seen.append(list(model))

    thread = threading.Thread(target=user)
    thread.start()
    inside.wait(10)
    assert cache.free() == 0 and len(cache.held()) == 1
    freed.set()
    thread.join()
    assert seen == [["alive"]] and cache.held() == [], "with a budget of nothing, nothing idle stays"


def test_a_failed_opening_is_tried_again():
    cache = ModelCache(100)

    def fails():
        raise BadModelFile("cut off")

    with pytest.raises(BadModelFile), cache.lease("m", fails):
        pass
    with cache.lease("m", lambda: ("model", 1)) as model:
        assert model == "model"


@pytest.mark.parametrize("cut", [0, 1, 10, 60])
def test_a_truncated_onnx_file_is_a_sentence(tmp_path, cut):
    path = net(tmp_path / "a.onnx")
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(BadModelFile, match=r"a\.onnx .* is not a whole ONNX file.*again"):
        OnnxModel(path).run({"x": np.zeros((1, 4), np.float32)})


def test_what_a_net_does_not_take_is_a_sentence(tmp_path):
    with pytest.raises(BadModelFile, match=r"could not run on x \(1, 5\) float32; it declares x \(None, 4\)"):
        OnnxModel(net(tmp_path / "a.onnx")).run({"x": np.zeros((1, 5), np.float32)})


def test_the_signature_is_read_without_the_weights(tmp_path):
    model = OnnxModel(net(tmp_path / "a.onnx"))
    assert [(p.name, p.shape) for p in model.signature.inputs] == [("x", (None, 4))]
    assert model.signature.lead == ("Relu",)


def test_analyses_are_computed_once_and_in_one_call():
    cache, asked = AnalysisCache(4), []

    def compute(places):
        asked.append(places)
        return [f"r{p}" for p in places]

    assert cache.get_many(["a", "b", "a"], compute) == ["r0", "r1", "r0"]
    assert cache.get_many(["b", "c", "a"], compute) == ["r1", "r1", "r0"]
    assert asked == [[0, 1], [1]]
    cache.get_many(list("defg"), compute)
    cache.get_many(["a"], compute)
    assert asked[-1] == [0], "only as many are held as were allowed"


def test_a_picture_is_looked_at_once_and_a_batch_as_a_batch(monkeypatch):
    from likeness.face import analyse as analysing
    from likeness.face.types import Faces

    looked = []

    def detect(image, *_, **__):
        looked.append(len(image))
        return Faces(((),) * len(image), ((8, 8),) * len(image), "toy")

    monkeypatch.setattr(analysing._detect, "detect", detect)
    look, cache = analysing.Look(landmarker="none"), AnalysisCache(9)
    image = torch.rand(3, 8, 8, 3, generator=torch.Generator().manual_seed(0))
    assert len(analysing.analyse(image, look, cache=cache)) == 3
    assert len(analysing.analyse(image[[2, 0]], look, cache=cache)) == 2
    analysing.analyse(image[:1], analysing.Look(landmarker="none", size=320), cache=cache)
    assert looked == [3, 1]
