"""The same ONNX files through the ``insightface`` package and through us: same faces, boxes and points."""

import warnings
from pathlib import Path

import numpy as np
import pytest
from likeness.face.attributes import annotate
from likeness.face.detect import detect
from likeness.face.detect.scrfd import open_file
from likeness.face.host import STANDALONE, StandaloneHost
from likeness.face.image import from_uint8, load_picture, to_uint8
from likeness.face.landmarks import landmark
from likeness.face.packs import packs
from likeness.tests import tiny
from likeness.tests.photos import SHA256, picture

insightface = pytest.importorskip("insightface", reason="the insightface package is not installed")
pytest.importorskip("cv2", reason="the insightface package needs OpenCV")

CPU = ["CPUExecutionProvider"]
MODELS = STANDALONE.folders("likeness")[0]


class PackHost(StandaloneHost):
    """The host whose packs lie in ``root``/models."""

    def __init__(self, root):
        super().__init__()
        self.root = root

    def folders(self, kind):
        return [self.root / "models"] if kind == "insightface" else super().folders(kind)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder with one pack: the real default models, and tiny landmark and attribute networks."""
    if not (MODELS / "yunet.onnx").is_file() or not (MODELS / "sface.onnx").is_file():
        pytest.skip(f"no yunet.onnx and sface.onnx in {MODELS}; `make demo` fetches them")
    root = tmp_path_factory.mktemp("insightface")
    folder = tiny.make_pack(root, MODELS)
    tiny.landmarks106(folder / "lm106.onnx")
    tiny.landmarks68(folder / "lm68.onnx")
    tiny.genderage(folder / "ga.onnx")
    return root


@pytest.fixture(scope="module")
def analysis(root):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from insightface.app import FaceAnalysis

        app = FaceAnalysis("yunet_sface", root=str(root), providers=CPU)
        app.prepare(0, det_thresh=0.5, det_size=(640, 640))
    return app


def peers(app, image):
    """InsightFace's faces, largest first."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        faces = app.get(np.ascontiguousarray(to_uint8(image[0])[..., ::-1]))
    return sorted(faces, key=lambda f: -(f.bbox[2] - f.bbox[0]) * (f.bbox[3] - f.bbox[1]))


def group():
    """The package's own picture of six people."""
    return load_picture(Path(insightface.__file__).parent / "data" / "images" / "t1.jpg")[0]


@pytest.mark.parametrize("name", [*SHA256, "six people"])
def test_same_faces_boxes_points_and_scores(analysis, root, name):
    image = group() if name == "six people" else picture(name)
    ours = detect(image, "yunet_sface", host=PackHost(root))[0]
    theirs = peers(analysis, image)
    assert len(ours) == len(theirs) == (6 if name == "six people" else 1)
    for a, b in zip(ours, theirs, strict=True):
        assert np.abs(a.box - b.bbox).max() < 1
        assert np.abs(a.points - b.kps).max() < 1
        assert abs(a.confidence - b.det_score) < 0.01


@pytest.mark.parametrize("scheme", [68, 106])
def test_same_dense_landmarks(analysis, root, scheme):
    image, host = group(), PackHost(root)
    ours = landmark(image, detect(image, "yunet_sface", host=host), "yunet_sface", host=host)[0]
    for a, b in zip(ours, peers(analysis, image), strict=True):
        expected = b.landmark_3d_68 if scheme == 68 else b.landmark_2d_106
        assert np.abs(a.landmarks[scheme][:, :2] - expected[:, :2]).max() < 1
        if scheme == 68:
            assert np.abs(a.landmarks[scheme][:, 2] - expected[:, 2]).max() < 1


def test_same_age_and_gender(analysis, root):
    image, host = group(), PackHost(root)
    ours = annotate(image, detect(image, "yunet_sface", host=host), "yunet_sface", host=host)[0]
    for a, b in zip(ours, peers(analysis, image), strict=True):
        assert abs(a.age - b.age) <= 1
        assert a.gender == {"M": "male", "F": "female"}[b.sex]


def test_the_router_sends_every_file_where_insightface_sends_it(analysis, root):
    pack = packs(PackHost(root))["yunet_sface"]
    theirs = {task: Path(model.model_file).name for task, model in analysis.models.items()}
    assert theirs == {
        "detection": pack.detector.name,
        "recognition": pack.recogniser.name,
        "landmark_2d_106": pack.landmarks106.name,
        "landmark_3d_68": pack.landmarks68.name,
        "genderage": pack.genderage.name,
    }


@pytest.mark.parametrize("outputs", [6, 9, 10, 15])
@pytest.mark.parametrize("size", [None, (128, 256)])
def test_every_layout_of_scrfd_decodes_alike(tmp_path, outputs, size):
    from insightface.model_zoo.retinaface import RetinaFace

    path = tiny.scrfd(tmp_path / "net.onnx", outputs, size=size)
    # As large as the canvas: resizing differs by half a grey level, to which random weights answer.
    height, width = size or (256, 256)
    blocks = np.random.default_rng(outputs).integers(0, 255, (height // 8, width // 8, 3), np.uint8)
    colours = blocks.repeat(8, 0).repeat(8, 1)
    theirs = RetinaFace(str(path))
    theirs.prepare(-1, det_thresh=0.5, input_size=(256, 256))
    expected, points = theirs.detect(np.ascontiguousarray(colours[..., ::-1]))
    (found,) = open_file(path, STANDALONE).find(from_uint8(colours)[None], 256, 0.5)
    assert len(found) == len(expected) > 3
    assert np.abs(found.scores - expected[:, 4]).max() < 1e-4
    assert np.abs(found.boxes - expected[:, :4]).max() < 0.01
    if points is not None:
        assert np.abs(found.points - points).max() < 0.01
