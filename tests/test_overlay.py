"""Overlay and keypoints pictures: readable, inside the picture, and nothing else touched."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from likeness.face import keypoints
from likeness.face.errors import BadInput
from likeness.face.image import to_uint8
from likeness.face.keypoints import COLOURS, keypoints_image
from likeness.face.landmarks import topology
from likeness.face.overlay import PALETTE, draw
from likeness.face.types import Face, Faces

QUIET = {"points": False, "ids": False, "confidence": False}


def face_at(x, y, size=60.0, **more):
    half = size / 2
    box = np.array([x - half, y - half, x + half, y + half], np.float32)
    points = np.array([[-0.2, -0.1], [0.2, -0.1], [0, 0.1], [-0.15, 0.25], [0.15, 0.25]], np.float32) * size + (x, y)
    return Face(box, points.astype(np.float32), 0.87, **more)


def one(*groups, size=(240, 320)):
    return Faces(tuple(tuple(group) for group in groups), (size,) * len(groups))


def grey(batch=1, height=240, width=320):
    return torch.full((batch, height, width, 3), 0.5123)


def has_colour(picture, colour):
    return bool((to_uint8(picture) == np.array(colour, np.uint8)).all(-1).any())


def test_what_is_not_drawn_on_keeps_its_bits():
    image = torch.rand(2, 240, 320, 3)
    before = image.clone()
    result = draw(image, one([face_at(160, 120)], []))
    assert torch.equal(image, before) and torch.equal(result[1], image[1])
    assert torch.equal(result[0, 200:], image[0, 200:]) and torch.equal(result[0, :, :110], image[0, :, :110])
    for quiet in (QUIET, {"points": False, "labels": False}):
        assert torch.equal(draw(image, one([face_at(160, 120)], []), boxes=False, **quiet), image)


@pytest.mark.parametrize(
    ("switch", "face"),
    [
        ("boxes", face_at(160, 120)),
        ("points", face_at(160, 120)),
        ("ids", face_at(160, 120)),
        ("confidence", face_at(160, 120)),
        ("names", face_at(160, 120, label="Ada")),
        ("ages", face_at(160, 120, age=34.4, gender="female")),
        ("landmarks", face_at(160, 120, landmarks={68: np.full((68, 2), 150, np.float32)})),
        ("landmarks", face_at(160, 120, landmarks={468: topology.MEAN.astype(np.float32) * 40 + (160, 120, 0)})),
    ],
)
def test_every_switch_draws_something(switch, face):
    off = dict.fromkeys(("boxes", "points", "landmarks", "ids", "confidence", "names", "ages"), False)
    image = grey()
    assert torch.equal(draw(image, one([face]), **off), image)
    assert not torch.equal(draw(image, one([face]), **(off | {switch: True})), image)


@pytest.mark.parametrize("side", [128, 256, 1000, 3000])
def test_lines_and_labels_grow_with_the_picture(side):
    image = grey(1, side, side)
    faces = one([face_at(side / 2, side / 2, side / 3)], size=(side, side))
    changed = (draw(image, faces) != image).any(-1)[0]
    assert 0.01 < changed.float().mean() < 0.12
    rows = torch.nonzero(changed.any(1))[:, 0]
    label = side / 3 - int(rows[0])
    assert label > 0.02 * side


@pytest.mark.parametrize("place", [(0, 0), (320, 0), (0, 240), (320, 240), (160, 2), (-400, 900)])
def test_labels_of_faces_at_the_border_stay_whole(place):
    label = "a rather long name for one person"
    result = draw(grey(), one([face_at(*place, label=label)]), boxes=False, points=False)
    inside = draw(grey(), one([face_at(160, 120, label=label)]), boxes=False, points=False)
    plate, whole = ((to_uint8(r[0]) == np.array(PALETTE[0])).all(-1).sum() for r in (result, inside))
    assert plate == pytest.approx(whole, rel=0.15)


def test_a_label_too_long_for_the_picture_is_written_smaller():
    result = draw(grey(1, 100, 100), one([face_at(50, 50, 40, label="x" * 60)], size=(100, 100)))
    assert result.shape == (1, 100, 100, 3)


def test_a_person_keeps_the_colour_over_the_frames():
    frames = one([face_at(80, 120, track=4), face_at(240, 120, track=1)], [face_at(80, 120, track=1)])
    first, second = draw(grey(2), frames, **QUIET)
    assert has_colour(first, PALETTE[4]) and has_colour(first, PALETTE[1])
    assert has_colour(second, PALETTE[1]) and not has_colour(second, PALETTE[4])
    named = one([face_at(80, 120, label="Bo")], [face_at(80, 120, label="Al"), face_at(240, 120, label="Bo")])
    first, second = draw(grey(2), named, **QUIET, names=False)
    assert has_colour(first, PALETTE[1]) and has_colour(second, PALETTE[0]) and has_colour(second, PALETTE[1])


def test_labels_avoid_one_another():
    close = [face_at(150, 120, 60, track=0), face_at(156, 122, 58, track=1)]
    result = draw(grey(), one(close), boxes=False, points=False)
    plates = [(to_uint8(result[0]) == np.array(PALETTE[i])).all(-1).sum() for i in (0, 1)]
    alone = [
        (to_uint8(draw(grey(), one([f]), boxes=False, points=False)[0]) == np.array(PALETTE[i])).all(-1).sum()
        for i, f in enumerate(close)
    ]
    assert plates == pytest.approx(alone, rel=0.1)


def test_every_palette_colour_reads_against_its_ink():
    def luminance(colour):
        c = np.array(colour) / 255
        c = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
        return float(c @ [0.2126, 0.7152, 0.0722])

    for colour in PALETTE:
        face = face_at(500, 500, 400, track=PALETTE.index(colour))
        label = draw(grey(1, 1000, 1000), one([face], size=(1000, 1000)), boxes=False, points=False)
        inks = [ink for ink in ((16, 16, 16), (255, 255, 255)) if has_colour(label[0], ink)]
        assert len(inks) == 1
        low, high = sorted((luminance(colour), luminance(inks[0])))
        assert (high + 0.05) / (low + 0.05) >= 4


def test_faces_of_another_batch_are_refused():
    with pytest.raises(BadInput, match="come from 1 pictures, but the image has 2"):
        draw(grey(2), one([]))


def test_keypoints_are_drawn_for_every_picture_of_the_batch():
    pictures = keypoints.draw(one([face_at(160, 120, 160)], [], [face_at(80, 120), face_at(240, 120)]))
    assert pictures.shape == (3, 240, 320, 3) and not pictures[1].any()
    for colour, (x, y) in zip(COLOURS, face_at(160, 120, 160).points.astype(int), strict=True):
        assert tuple(to_uint8(pictures[0])[y, x]) == colour
    assert keypoints.draw(one()).shape[0] == 0


def test_keypoints_outside_of_the_picture_are_cut_off():
    assert keypoints_image(np.full((5, 2), -500.0), 40, 50).shape == (40, 50, 3)
    assert keypoints_image(np.full((5, 2), 20.0), 40, 50).any()
    half = keypoints_image(face_at(0, 120, 160).points, 240, 320)
    assert half.any() and not half[:, 200:].any()


@pytest.mark.parametrize("points", [np.zeros((4, 2)), np.full((5, 2), np.nan), np.zeros(5)])
def test_points_that_are_not_five_are_refused(points):
    with pytest.raises(BadInput, match="finite points of shape"):
        keypoints_image(points, 10, 10)


def test_pictures_of_several_sizes_make_no_batch_of_keypoints():
    with pytest.raises(BadInput, match="of several"):
        keypoints.draw(replace(one([], []), sizes=((1, 1), (2, 2))))
