"""Detection: every face of the photographs found and none invented, whatever the picture's size, turn and crop."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from likeness.face import detect as stage
from likeness.face.detect import choices, detect, detectors, mtcnn, retinaface
from likeness.face.detect._plumbing import canvas, ceil_to, cells, shrunk
from likeness.face.errors import BadImage, BadInput, BadModelFile, MissingModel
from likeness.face.geometry import quarter_turns
from likeness.face.host import STANDALONE, StandaloneHost
from likeness.face.models import catalogue, find
from likeness.tests import tiny
from likeness.tests.photos import FACES, SHA256, picture


def ready(detector):
    """Skip unless the detector's files are there."""
    for card in catalogue.select(detector):
        try:
            find(card, STANDALONE)
        except MissingModel as error:
            pytest.skip(str(error))


def scaled(image, factor):
    return F.interpolate(image.permute(0, 3, 1, 2), scale_factor=factor, mode="bilinear").permute(0, 2, 3, 1)


def one(faces):
    (found,) = faces
    (face,) = found
    return face


@pytest.fixture
def yunet():
    ready("yunet")
    return "yunet"


@pytest.fixture
def empty_host(tmp_path):
    return StandaloneHost(tmp_path)


@pytest.mark.parametrize("detector", ["yunet", "centerface", "mtcnn"])
@pytest.mark.parametrize("name", SHA256)
def test_every_photograph_has_its_one_face_where_it_is(detector, name):
    ready(detector)
    face = one(detect(picture(name), detector))
    box, points, _ = FACES[name]
    expected, width = np.array(points).reshape(5, 2), box[2] - box[0]
    assert np.abs(face.centre - np.array([box[0] + box[2], box[1] + box[3]]) / 2).max() < 0.12 * width
    assert np.abs(face.points - expected).max() < 0.16 * width
    assert 0.5 <= face.confidence <= 1


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_a_turned_picture_gives_the_same_face_turned_back(yunet, turns):
    image = picture("person_b_1")
    upright, turned = one(detect(image, yunet)), one(detect(torch.rot90(image, turns, (1, 2)), yunet))
    expected = upright.moved(lambda p: quarter_turns(p, turns, *image.shape[1:3]))
    assert np.abs(turned.box - expected.box).max() < 4
    assert np.abs(turned.points - expected.points).max() < 4


def test_a_close_up_is_found_with_a_margin_around_it(yunet):
    x1, y1, x2, y2 = (int(v) for v in FACES["person_b_1"][0])
    close = scaled(picture("person_b_1")[:, y1 + 40 : y2 - 30, x1 + 25 : x2 - 25], 3.0)
    assert detect(close, yunet, minimum=0.9, retry=False).count == 0
    face = one(detect(close, yunet, minimum=0.9))
    expected = (np.array(FACES["person_b_1"][1]).reshape(5, 2) - [x1 + 25, y1 + 40]) * 3
    assert np.abs(face.points - expected).max() < 60
    assert face.box[0] < 20
    assert face.box[2] > close.shape[2] - 20


def test_a_mirrored_picture_gives_the_mirrored_points(yunet):
    image = picture("person_a_2")
    plain, mirrored = one(detect(image, yunet)), one(detect(image.flip(2), yunet))
    swapped = mirrored.points[[1, 0, 2, 4, 3]]
    swapped[:, 0] = image.shape[2] - 1 - swapped[:, 0]
    assert np.abs(swapped - plain.points).max() < 0.06 * plain.width


@pytest.mark.parametrize("detector", ["yunet", "centerface", "mtcnn"])
@pytest.mark.parametrize("size", [(1, 1), (40, 20000), (20000, 40), (5, 33)])
def test_any_size_works_and_gives_no_face(detector, size):
    ready(detector)
    noise = torch.rand(1, *size, 3, generator=torch.Generator().manual_seed(1))
    faces = detect(noise, detector)
    assert len(faces) == 1
    assert faces.count == 0
    assert faces.sizes == (size,)


def test_retrying_a_long_picture_allocates_no_more_than_a_few_canvases(yunet, monkeypatch):
    largest = []
    real = F.pad
    monkeypatch.setattr(stage.F, "pad", lambda x, *a, **k: largest.append(real(x, *a, **k)) or largest[-1])
    detect(torch.zeros(1, 20000, 40, 3), yunet, size=640)
    assert largest
    assert max(x.numel() for x in largest) <= 3 * 1280 * 1281


def test_a_batch_gives_what_its_pictures_give_alone(yunet, monkeypatch):
    a = picture("person_a_2")[:, :880, :680]
    b = picture("person_b_2")[:, :880, :680]
    batch = torch.cat([a, torch.zeros_like(a), b])
    monkeypatch.setattr(stage, "CHUNK_PIXELS", 2 * 640 * 640)
    faces = detect(batch, yunet)
    assert [len(found) for found in faces] == [1, 0, 1]
    for found, alone in zip((faces[0], faces[2]), (a, b), strict=True):
        assert np.abs(found[0].box - one(detect(alone, yunet)).box).max() < 1e-2
        assert np.abs(found[0].points - one(detect(alone, yunet)).points).max() < 1e-2


def test_progress_counts_every_picture_and_an_interrupt_stops(yunet, monkeypatch):
    class Stop(Exception):
        pass

    class Impatient(StandaloneHost):
        def __init__(self):
            super().__init__()
            self.done = 0

        def progress(self, total):
            self.total = total
            return self

        def update(self, steps=1, preview=None):
            self.done += steps

        def check_interrupt(self):
            if self.done >= 2:
                raise Stop

    monkeypatch.setattr(stage, "CHUNK_PIXELS", 1)
    here = Impatient()
    with pytest.raises(Stop):
        detect(torch.zeros(4, 64, 64, 3), yunet, retry=False, host=here)
    assert (here.total, here.done) == (4, 2)


def test_sixty_faces_are_found_and_sorted_largest_first(yunet):
    tile = picture("person_b_1")[0, 60:660, 120:620]
    small = F.interpolate(tile.permute(2, 0, 1)[None], (120, 100), mode="area")[0].permute(1, 2, 0)
    wall = small.repeat(6, 10, 1)[None]
    found = detect(wall, yunet, size=1024)[0]
    assert len(found) == 60
    assert [f.area for f in found] == sorted((f.area for f in found), reverse=True)


def test_a_face_cut_by_the_border_keeps_its_whole_box(yunet):
    x1, _, x2, _ = FACES["person_a_2"][0]
    cut = picture("person_a_2")[:, :, int(x1 + 0.3 * (x2 - x1)) :]
    face = one(detect(cut, yunet, minimum=0.5))
    assert face.box[0] < 0


def test_small_faces_get_points_as_good_as_large_ones(yunet):
    image = picture("person_b_1")
    small = F.interpolate(image.permute(0, 3, 1, 2), scale_factor=0.25, mode="area").permute(0, 2, 3, 1)
    wide = torch.zeros(1, 900, 1600, 3)
    wide[:, 300 : 300 + small.shape[1], 700 : 700 + small.shape[2]] = small
    expected = one(detect(image, yunet)).points / 4 + [700, 300]
    face = one(detect(wide, yunet))
    assert np.abs(face.points - expected).max() < 0.07 * face.width
    net = replace(stage.network(yunet), closer=False)
    (plain,) = net.find(wide, 640, 0.8)
    assert np.abs(plain.points[0] - expected).max() > np.abs(face.points - expected).max()


def test_minimum_and_smallest_leave_faces_out(yunet):
    image = picture("person_a_2")
    assert detect(image, yunet, minimum=0.99).count == 0
    width = one(detect(image, yunet)).width
    assert detect(image, yunet, smallest=width - 1).count == 1
    assert detect(image, yunet, smallest=width + 1).count == 0


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"minimum": 1.5}, "minimum confidence must lie between 0 and 1; got 1.5"),
        ({"minimum": float("nan")}, "minimum confidence must lie between 0 and 1"),
        ({"size": 8}, "detection size must lie between 32 and 4096 pixels; got 8"),
        ({"size": 100000}, "detection size must lie between"),
        ({"detector": "yunnet"}, "no detector called 'yunnet'"),
    ],
)
def test_settings_out_of_range_are_refused_with_a_sentence(settings, sentence):
    with pytest.raises(BadInput, match=sentence):
        detect(torch.zeros(1, 8, 8, 3), **settings)


def test_nan_in_a_picture_is_refused():
    image = torch.zeros(1, 8, 8, 3)
    image[0, 3, 3, 1] = float("nan")
    with pytest.raises(BadImage, match="1 values that are NaN or infinite"):
        detect(image)


@pytest.mark.parametrize("detector", ["yunet", "centerface", "mtcnn"])
def test_a_missing_default_file_names_the_command(empty_host, detector):
    with pytest.raises(MissingModel, match=f"models fetch {detector}"):
        detect(torch.zeros(1, 8, 8, 3), detector, host=empty_host)


@pytest.mark.parametrize("detector", ["yunet", "centerface"])
def test_another_kind_of_file_under_the_name_is_refused(empty_host, tmp_path, detector):
    tiny.recogniser(tmp_path / "likeness" / f"{detector}.onnx")
    with pytest.raises(BadModelFile, match=r"is not (YuNet|CenterFace)"):
        detect(torch.zeros(1, 8, 8, 3), detector, host=empty_host)


def test_choices_begin_with_the_default_and_name_no_absent_user_file(empty_host):
    assert choices(empty_host)[0] == "yunet"
    assert sorted(choices(empty_host)) == ["centerface", "lab", "mtcnn", "yunet"]
    assert set(detectors.names()) == {"yunet", "centerface", "mtcnn", "scrfd", "retinaface", "lab"}


@pytest.mark.parametrize("order", [("loc", "conf", "landm"), ("conf", "landm", "loc")])
def test_retinaface_files_work_in_any_order_of_outputs(empty_host, tmp_path, order):
    tiny.retinaface(tmp_path / "likeness" / "retinaface_tiny.onnx", order=order)
    assert "retinaface" in choices(empty_host)
    image = torch.rand(2, 90, 70, 3, generator=torch.Generator().manual_seed(3))
    faces = detect(image, "retinaface", minimum=0.3, retry=False, host=empty_host)
    alone = detect(image[1:], "retinaface", minimum=0.3, retry=False, host=empty_host)
    assert len(faces[1]) == len(alone[0]) > 0
    for a, b in zip(faces[1], alone[0], strict=True):
        assert np.abs(a.box - b.box).max() < 1e-3


def test_a_retinaface_file_of_another_kind_is_refused(empty_host, tmp_path):
    tiny.scrfd(tmp_path / "likeness" / "retinaface_10g.onnx")
    with pytest.raises(BadModelFile, match="whose three outputs are 4, 2 and 10 wide"):
        detect(torch.zeros(1, 8, 8, 3), "retinaface", host=empty_host)


def test_retinaface_anchors_cover_sizes_that_are_no_multiple_of_a_stride():
    assert len(retinaface.priors(33, 40)) == 2 * (5 * 5 + 3 * 3 + 2 * 2)


def test_a_canvas_holds_the_picture_in_its_corner_and_nothing_else():
    image = torch.rand(2, 10, 8, 3)
    out = canvas(image, (10, 8), (32, 32), bgr=True)
    assert np.abs(out[:, ::-1, :10, :8] - image.permute(0, 3, 1, 2).numpy() * 255).max() < 1e-3
    assert out[:, :, 10:].max() == out[:, :, :, 8:].max() == 0


def test_a_canvas_scales_as_opencv_does():
    cv2 = pytest.importorskip("cv2")
    pixels = np.random.default_rng(0).integers(0, 255, (90, 61, 3), np.uint8)
    image = torch.from_numpy(pixels).float()[None] / 255
    for size in ((45, 30), (64, 43), (200, 135)):
        expected = cv2.resize(pixels, size[::-1])
        assert np.abs(canvas(image, size, size)[0].transpose(1, 2, 0) - expected).max() <= 1.5


def test_sizes_shrink_but_never_grow():
    assert shrunk(100, 50, 640) == (100, 50)
    assert shrunk(1280, 640, 640) == (640, 320)
    assert shrunk(1, 20000, 640) == (1, 640)
    assert [ceil_to(v, 32) for v in (1, 32, 33)] == [32, 32, 64]


def test_cells_run_along_the_rows():
    assert cells(2, 3).tolist() == [[0, 0], [1, 0], [2, 0], [0, 1], [1, 1], [2, 1]]
    assert cells(1, 2, 2).tolist() == [[0, 0], [0, 0], [1, 0], [1, 0]]


def test_mtcnn_windows_reach_over_the_border_in_black_and_are_transposed():
    image = torch.full((3, 10, 10), 255.0)
    (crop,) = mtcnn.windows(image, np.array([[-3.0, 1.0, 10.0, 14.0]]), 12)
    assert crop.shape == (12, 12, 3)
    white = (255 - 127.5) / 128
    assert np.allclose(crop[-1, 0], white)
    assert np.allclose(crop[0, 0], -127.5 / 128)
    assert np.allclose(crop[-1, -1], -127.5 / 128)
