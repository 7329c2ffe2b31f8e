"""Face masks and the filters under them: edges lie where they are asked to be."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from likeness.face.draw import fill
from likeness.face.errors import BadInput, MissingModel
from likeness.face.filters import gaussian_blur, grow
from likeness.face.landmarks import landmark, topology
from likeness.face.masks import KINDS, PARTS, drawable, mask, mask_each
from likeness.face.types import Face, Faces
from likeness.tests.photos import found, picture
from scipy import ndimage


def oval_mesh(x, y, radius):
    """A mesh of which the oval is a circle, with eyes, lips and the rest as smaller circles inside."""
    mesh = np.full((468, 3), (x, y, 0), np.float32)
    for ring, dx, dy, size in (
        (topology.OVAL, 0, 0, 1.0),
        (topology.LEFT_EYE, -0.4, -0.3, 0.15),
        (topology.RIGHT_EYE, 0.4, -0.3, 0.15),
        (topology.LEFT_BROW, -0.4, -0.6, 0.1),
        (topology.RIGHT_BROW, 0.4, -0.6, 0.1),
        (topology.NOSE, 0, 0, 0.15),
        (topology.LIPS_OUTER, 0, 0.5, 0.3),
        (topology.LIPS_INNER, 0, 0.5, 0.15),
    ):
        angle = np.linspace(0, 2 * np.pi, len(ring), endpoint=False)
        mesh[list(ring), 0] = x + radius * (dx + size * np.sin(angle))
        mesh[list(ring), 1] = y + radius * (dy - size * np.cos(angle))
    return mesh


def face_at(x, y, radius=60.0, mesh=True):
    box = np.array([x - radius, y - radius, x + radius, y + radius], np.float32)
    points = np.full((5, 2), (x, y), np.float32)
    return Face(box, points, 0.9, landmarks={468: oval_mesh(x, y, radius)} if mesh else {})


def one(*groups, size=(240, 320)):
    return Faces(tuple(tuple(group) for group in groups), (size,) * len(groups))


def crossing(row):
    """Where a falling row of values passes 0.5, between pixels."""
    last = int(np.nonzero(row >= 0.5)[0][-1])
    return last + (row[last] - 0.5) / (row[last] - row[last + 1])


CENTRED = one([face_at(160, 120)])


@given(st.lists(st.tuples(st.floats(-20, 60), st.floats(-20, 60)), min_size=3, max_size=3))
@settings(max_examples=30, deadline=None)
def test_a_filled_triangle_has_its_area(corners):
    (ax, ay), (bx, by), (cx, cy) = corners
    area = abs((bx - ax) * (cy - ay) - (by - ay) * (cx - ax)) / 2
    cover = fill(np.array(corners) + 40, 140, 140)
    # A flat edge may fall between two of the eight lines by which a row of pixels is measured.
    wide = max(ax, bx, cx) - min(ax, bx, cx)
    assert float(cover.sum(dtype=torch.float64)) == pytest.approx(area, abs=0.5 + wide / 16 + 0.002 * area)
    assert cover.min() >= 0 and cover.max() <= 1


def test_fill_covers_pixels_around_whole_centres():
    expected = torch.zeros(5, 6)
    expected[1:3, 1:4] = torch.tensor([[0.25, 0.5, 0.25]] * 2)
    assert torch.equal(fill(np.array([[1, 1], [3, 1], [3, 2], [1, 2]]), 5, 6), expected)
    assert torch.equal(fill(np.array([[-9, -9], [99, -9], [99, 99], [-9, 99]]), 5, 6), torch.ones(5, 6))
    assert not fill(np.array([[90, 90], [99, 90], [99, 99]]), 5, 6).any()


def test_fill_of_a_part_equals_the_part_of_a_fill():
    polygon = np.array([[3.3, 4.1], [30.2, 9.7], [22.5, 33.3], [-6.1, 20.2]])
    assert torch.equal(fill(polygon, 40, 40)[7:30, 5:25], fill(polygon - (5, 7), 23, 20))


@pytest.mark.parametrize("sigma", [0.3, 1, 2.5, 4.2, 7, 15])
def test_blur_is_the_gaussian(sigma):
    noise = torch.rand(70, 90, generator=torch.Generator().manual_seed(1))
    exact = ndimage.gaussian_filter(noise.numpy(), sigma, mode="nearest")
    assert (gaussian_blur(noise, sigma) - torch.from_numpy(exact)).abs().max() < 0.02
    batch = torch.stack([noise, 1 - noise])[None]
    assert torch.allclose(gaussian_blur(batch, sigma)[0, 0], gaussian_blur(noise, sigma), atol=1e-6)
    assert torch.equal(gaussian_blur(noise, 0), noise)


@pytest.mark.parametrize("pixels", [-7, -2, 1, 3, 12])
def test_grow_takes_the_extreme_of_a_disc(pixels):
    noise = torch.rand(60, 50, generator=torch.Generator().manual_seed(2))
    r = abs(pixels)
    y, x = np.mgrid[-r : r + 1, -r : r + 1]
    disc = x * x + y * y <= r * r
    if pixels > 0:
        exact = ndimage.grey_dilation(noise.numpy(), footprint=disc, mode="constant", cval=0)
    else:
        exact = ndimage.grey_erosion(noise.numpy(), footprint=disc, mode="constant", cval=1)
    assert np.abs(grow(noise, pixels).numpy() - exact).max() < 1e-4


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pixels", [-10, 0, 10, 25])
def test_growth_moves_the_edge_by_its_pixels(kind, pixels):
    found = mask(CENTRED, kind, grow=pixels)[0].numpy()
    for row in (found[120, 160:], found[120, 160::-1], found[120:, 160], found[120::-1, 160]):
        assert crossing(row) == pytest.approx(60 + pixels, abs=1)
    if kind != "box":
        slanted = np.array([found[120 + i, 160 + i] for i in range(100)])
        assert crossing(slanted) * 2**0.5 == pytest.approx(60 + pixels, abs=1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("feather", [6, 12, 24])
def test_a_feather_is_a_falling_ramp_of_its_width_and_half_at_the_edge(kind, feather):
    row = mask(CENTRED, kind, feather=feather)[0, 120, 160:].numpy()
    assert (np.diff(row) <= 1e-6).all()
    assert crossing(row) == pytest.approx(60, abs=1)
    ramp = ((row > 0.025) & (row < 0.975)).sum()
    assert ramp == pytest.approx(feather, abs=2)


@given(
    st.sampled_from(KINDS), st.floats(-30, 30), st.floats(0, 40), st.floats(-50, 370), st.floats(-50, 290),
    st.lists(st.sampled_from(PARTS), min_size=1),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_a_mask_stays_within_0_and_1_wherever_the_face_lies(kind, pixels, feather, x, y, parts):
    found = mask(one([face_at(x, y)], []), kind, parts, pixels, feather)
    assert found.shape == (2, 240, 320) and found.min() >= 0 and found.max() <= 1 and not found[1].any()


def test_a_face_cut_by_the_border_is_not_eroded_or_softened_there():
    inside = mask(one([face_at(160, 120)]), "hull", grow=-8, feather=12)[0]
    cut = mask(one([face_at(160, 120)], size=(120, 320)), "hull", grow=-8, feather=12)[0]
    assert (cut - inside[:120]).abs().max() < 0.02
    left = mask(one([face_at(0, 120)]), "hull", grow=-8, feather=12)[0]
    assert (left[:, :160] - inside[:, 160:]).abs().max() < 0.02


def test_a_face_beyond_the_border_grows_into_the_picture():
    row = mask(one([face_at(-63, 120)]), "hull", grow=10)[0, 120].numpy()
    assert crossing(row) == pytest.approx(7, abs=1)
    soft = mask(one([face_at(-63, 120)]), "hull", feather=24)[0, 120]
    assert 0.1 < soft[0] < 0.4 and not mask(one([face_at(-63, 120)]), "hull").any()


def test_no_face_gives_zeros_and_the_batch_keeps_its_length():
    assert torch.equal(mask(one([], [], [])), torch.zeros(3, 240, 320))
    assert mask_each(one([], [])).shape == (0, 240, 320)


def test_each_face_has_its_mask_and_the_union_is_theirs():
    faces = one([face_at(60, 60, 30), face_at(80, 70, 30)], [], [face_at(200, 100, 50)])
    for kind in KINDS:
        each = mask_each(faces, kind, grow=3, feather=8)
        union = mask(faces, kind, grow=3, feather=8)
        assert each.shape == (3, 240, 320)
        assert torch.equal(union[0], torch.maximum(each[0], each[1])) and torch.equal(union[2], each[2])


def test_parts_make_up_the_oval_without_seams():
    whole = mask(CENTRED, "parts", ["oval"])
    pieces = mask(CENTRED, "parts", ["mouth", "eyes", "lips", "skin", "brows"])
    assert (whole - pieces).abs().max() < 0.01
    assert torch.equal(mask(CENTRED, "parts", ["skin", "oval"]), whole)
    lips, inner, skin = (mask(CENTRED, "parts", [part])[0] for part in ("lips", "mouth", "skin"))
    assert inner[150, 160] == 1 and lips[150, 160] == 0 and lips[164, 160] == 1 and skin[164, 160] == 0


def test_a_hull_uses_the_densest_landmarks():
    face = face_at(160, 120)
    small = np.array([[150, 110], [170, 110], [160, 130]], np.float32)
    assert torch.equal(mask(one([replace(face, landmarks={**face.landmarks, 68: small})])), mask(CENTRED))
    assert mask(one([replace(face, landmarks={68: small})])).sum() == pytest.approx(200, abs=2)


def test_missing_landmarks_are_named_with_the_remedy():
    bare = one([face_at(100, 100, mesh=False)])
    with pytest.raises(BadInput, match="Switch landmarks on, leave that face out"):
        mask(bare, "hull")
    with pytest.raises(BadInput, match=r"a face has none: .* Set landmarks to mesh"):
        mask(bare, "parts", ["eyes"])
    assert mask(bare, "box").any()


@pytest.mark.parametrize("kind", ["hull", "parts"])
def test_a_face_without_landmarks_leaves_nothing_where_that_is_allowed(kind):
    bare, whole = face_at(40, 100, mesh=False), face_at(150, 100)
    both = one([bare, whole])
    assert torch.equal(mask(both, kind, strict=False), mask(one([whole]), kind))
    each = mask_each(both, kind, strict=False)
    assert len(each) == 2 and not each[0].any() and each[1].any()
    assert [drawable(face, kind) for face in (bare, whole)] == [False, True] and drawable(bare, "box")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("ear",), "choose one of box, hull, parts"),
        (("parts", ["ear"]), "is made of skin, .* got ear"),
        (("parts", []), "got none of them"),
        (("box", (), 1000), "grows by -256 to 256"),
        (("box", (), 0, float("nan")), "feathered over 0 to 256"),
    ],
)
def test_settings_that_cannot_be_are_refused_with_a_sentence(arguments, words):
    with pytest.raises(BadInput, match=words):
        mask(CENTRED, *arguments)


def test_pictures_of_several_sizes_are_refused():
    with pytest.raises(BadInput, match="2 sizes"):
        mask(Faces(((), ()), ((10, 10), (20, 20))))


@pytest.mark.weights
@pytest.mark.parametrize("name", ["person_a_1", "person_b_1"])
def test_masks_of_a_photograph_lie_on_its_face(name):
    image, faces = picture(name), found(name)
    try:
        faces = landmark(image, faces)
    except MissingModel as error:
        pytest.skip(str(error))
    (face,) = faces[0]
    left, right, nose, *_ = face.points.round().astype(int)
    whole, eyes, skin, mouth = (mask(faces, "parts", [part])[0] for part in ("oval", "eyes", "skin", "mouth"))
    assert 0.5 < float(whole.sum()) / face.area < 1.2
    assert float(mask(faces, "hull")[0].sum()) >= float(whole.sum())
    for x, y in (left, right):
        assert eyes[y - 4 : y + 5, x - 4 : x + 5].max() > 0.9 and eyes[y + 30, x] == 0
    assert skin[nose[1], nose[0]] == 1 and eyes[nose[1], nose[0]] == 0
    # In one photograph the mouth is closed, in the other it laughs.
    assert (float(mouth.sum()) / face.area > 0.02) == (name == "person_b_1")
