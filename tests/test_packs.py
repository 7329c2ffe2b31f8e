"""Model packs: told apart by shape, whatever the files are called."""

import os

import numpy as np
import pytest
from likeness.face import attributes, detect, landmarks
from likeness.face.errors import BadInput, BadModelFile, MissingModel
from likeness.face.host import StandaloneHost
from likeness.face.image import from_uint8
from likeness.face.packs import packs
from likeness.tests import tiny


def host(tmp_path):
    return StandaloneHost(tmp_path)


def folder(tmp_path, name="buffalo_x"):
    return tmp_path / "insightface" / "models" / name


def image(height=64, width=64):
    """Blocks of colour, to which random networks answer."""
    blocks = np.random.default_rng(0).integers(0, 255, (1, height // 16, width // 16, 3), np.uint8)
    return from_uint8(blocks.repeat(16, 1).repeat(16, 2))


@pytest.fixture
def whole(tmp_path):
    """A pack with every part under names that say nothing."""
    place = folder(tmp_path)
    tiny.scrfd(place / "a.onnx")
    tiny.recogniser(place / "b.onnx")
    tiny.landmarks106(place / "c.onnx")
    tiny.landmarks68(place / "d.onnx")
    tiny.genderage(place / "e.onnx")
    tiny.swapper(place / "f.onnx")
    return host(tmp_path)


def test_no_folder_is_no_pack(tmp_path):
    assert packs(host(tmp_path)) == {}


def test_parts_are_told_by_shape_and_not_by_name(whole):
    pack = packs(whole)["buffalo_x"]
    found = [pack.detector, pack.recogniser, pack.landmarks106, pack.landmarks68, pack.genderage, pack.swapper]
    assert [path.name for path in found] == ["a.onnx", "b.onnx", "c.onnx", "d.onnx", "e.onnx", "f.onnx"]
    assert pack.ignored == ()


def test_a_nested_folder_of_the_same_name_is_the_pack(tmp_path):
    tiny.scrfd(folder(tmp_path, "antelopev2") / "antelopev2" / "det.onnx")
    assert packs(host(tmp_path))["antelopev2"].detector.name == "det.onnx"


def test_surplus_and_strange_files_are_listed_with_a_reason(whole, tmp_path):
    place = folder(tmp_path)
    tiny.scrfd(place / "z.onnx")
    tiny.network(place / "y.onnx", [("x", ["N", 3, 50, 60])], [("out", [5])])
    (place / "x.onnx").write_bytes(b"no network at all")
    reasons = {path.name: reason for path, reason in packs(whole)["buffalo_x"].ignored}
    assert set(reasons) == {"x.onnx", "y.onnx", "z.onnx"}
    assert "a.onnx is the pack's detector already" in reasons["z.onnx"]
    assert "not a whole ONNX file" in reasons["x.onnx"]


def test_routing_reads_no_weights(whole, tmp_path, monkeypatch):
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *_, **__: pytest.fail("a session was opened"))
    assert packs(whole)["buffalo_x"].detector


@pytest.mark.parametrize("outputs", [6, 9, 10, 15])
@pytest.mark.parametrize("batched", [False, True])
def test_a_packs_detector_works_under_the_packs_name(tmp_path, outputs, batched):
    tiny.scrfd(folder(tmp_path) / "det.onnx", outputs, batched=batched)
    here = host(tmp_path)
    assert "buffalo_x" in detect.choices(here)
    pictures = image().expand(3, -1, -1, -1)
    faces = detect.detect(pictures, "buffalo_x", size=128, minimum=0.2, retry=False, host=here)
    assert [len(found) for found in faces] == [faces.count // 3] * 3
    assert faces.count > 0
    for face in faces[0]:
        assert face.points.shape == (5, 2)


def test_landmarks_and_attributes_work_under_the_packs_name(whole):
    found = detect.detect(image(), "buffalo_x", size=128, minimum=0.2, host=whole)
    assert found.count
    marked = landmarks.landmark(image(), found, "buffalo_x", host=whole)
    marked = attributes.annotate(image(), marked, "buffalo_x", host=whole)
    for face in marked[0]:
        assert face.landmarks[106].shape == (106, 2)
        assert face.landmarks[68].shape == (68, 3)
        assert face.pose is not None
        assert face.gender in ("female", "male")


def test_a_pack_without_the_part_says_which_file_it_lacks(tmp_path):
    tiny.recogniser(folder(tmp_path) / "rec.onnx")
    here = host(tmp_path)
    for call in (
        lambda: detect.detect(image(), "buffalo_x", host=here),
        lambda: landmarks.networks("buffalo_x", here),
        lambda: attributes.network("buffalo_x", here),
    ):
        with pytest.raises(BadInput, match=r"'buffalo_x'.*lacks.*rec\.onnx"):
            call()


def test_a_wrong_file_is_refused_with_both_kinds_named(tmp_path):
    # Six outputs make it a detector for the router; their widths make it none.
    tiny.network(folder(tmp_path) / "odd.onnx", [("x", ["N", 3, 64, 64])], [(f"o{i}", [7]) for i in range(6)])
    with pytest.raises(BadModelFile, match=r"odd\.onnx is not an SCRFD detector.*6 outputs"):
        detect.detect(image(), "buffalo_x", host=host(tmp_path))


def test_a_truncated_file_is_refused_with_a_sentence(tmp_path):
    path = tiny.scrfd(tmp_path / "likeness" / "scrfd_cut.onnx")
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(BadModelFile, match="not a whole ONNX file"):
        detect.detect(image(), "scrfd", host=host(tmp_path))


@pytest.mark.parametrize("name", ["scrfd", "retinaface"])
def test_a_missing_user_file_names_folder_and_remedy(tmp_path, name):
    with pytest.raises(MissingModel, match=rf"{name}\*\.onnx.*none of.*copy"):
        detect.detect(image(), name, host=host(tmp_path))
    assert name not in detect.choices(host(tmp_path))


def test_an_unknown_name_lists_what_there_is(whole):
    with pytest.raises(BadInput, match=r"no detector called 'bufalo'.*buffalo_x"):
        detect.detect(image(), "bufalo", host=whole)
