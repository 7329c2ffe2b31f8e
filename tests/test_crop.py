"""Crop and uncrop: what comes back is what went out, and nothing else is touched."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from likeness.face.crop import crop, uncrop
from likeness.face.errors import BadImage, BadInput
from likeness.face.geometry import ARCFACE_112, arcface_template, similarity, transform, warp
from likeness.face.types import Face, Faces, Pose


def face_at(x, y, size=60.0, lean=0.0):
    """A face whose box is centred on (x, y), leaning clockwise by ``lean`` degrees."""
    a = np.radians(lean)
    turn = np.array([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]])
    points = ((ARCFACE_112 - 56) * size / 112) @ turn.T + (x, y)
    half = size / 2
    box = np.array([x - half, y - half, x + half, y + half], np.float32)
    return Face(box, points.astype(np.float32), 0.9, pose=Pose(0, 0, lean))


def picture(height=200, width=260, batch=1, seed=0):
    return torch.rand(batch, height, width, 3, generator=torch.Generator().manual_seed(seed))


def smooth(height=200, width=260):
    y, x = torch.meshgrid(torch.arange(height) / 23, torch.arange(width) / 31, indexing="ij")
    return torch.stack([x.sin(), y.cos(), (x + y).sin()], -1)[None] / 2 + 0.5


def one(*groups, size=(200, 260)):
    return Faces(tuple(tuple(group) for group in groups), (size,) * len(groups))


FACES = one([face_at(90, 80), face_at(150.4, 120.3, 72, 25), face_at(250, 190, 50)])


def test_an_unedited_upright_crop_of_native_size_comes_back_bit_equal():
    image = picture()
    crops = crop(image, FACES, size=0)
    assert len(crops) == 3
    assert torch.equal(uncrop(image, crops, crops.images), image)
    assert torch.equal(uncrop(image, crops, crops.images, feather=0), image)


@pytest.mark.parametrize("template", ["box", "arcface", "ffhq"])
@pytest.mark.parametrize("size", [0, 112, 256])
@pytest.mark.parametrize("align", [False, True])
def test_an_unedited_crop_changes_nothing_when_only_changes_are_put_back(template, size, align):
    image = picture()
    crops = crop(image, FACES, size=size, align=align, template=template)
    assert torch.equal(uncrop(image, crops, crops.images, blend="change"), image)


@pytest.mark.parametrize("blend", ["replace", "change"])
@pytest.mark.parametrize(("size", "align"), [(0, False), (0, True), (64, False), (256, True)])
def test_outside_of_the_crops_and_where_the_mask_is_zero_every_pixel_keeps_its_bits(blend, size, align):
    image = picture()
    crops = crop(image, one([face_at(100, 100, 50, 20)]), size=size, align=align)
    edited = 1 - crops.images
    result = uncrop(image, crops, edited, blend=blend, feather=4)
    changed = (result != image).any(-1)[0]
    assert changed[100, 100]
    reach = 50 * (2**0.5 if align else 1) + 2
    rows, columns = torch.nonzero(changed).T
    assert rows.min() >= 100 - reach and rows.max() <= 100 + reach
    assert columns.min() >= 100 - reach and columns.max() <= 100 + reach
    assert torch.equal(uncrop(image, crops, edited, torch.zeros(1, crops.size, crops.size)), image)


def test_a_mask_limits_what_is_put_back():
    image = picture()
    crops = crop(image, one([face_at(100, 100, 50)]), size=0, margin=0)
    mask = torch.zeros(1, crops.size, crops.size)
    mask[:, 10:20, 10:30] = 1
    result = uncrop(image, crops, torch.zeros_like(crops.images), mask, feather=0)
    expected = image.clone()
    x, y = (-crops.matrices[0, :, 2]).astype(int)
    expected[:, y + 10 : y + 20, x + 10 : x + 30] = 0
    assert torch.equal(result, expected)


@pytest.mark.parametrize("size", [100, 256, 400])
def test_a_smooth_picture_survives_the_round_trip_at_other_sizes(size):
    image = smooth()
    crops = crop(image, FACES, size=size, align=True)
    assert (uncrop(image, crops, crops.images) - image).abs().max() < 0.02


def test_edited_crops_may_come_back_larger_or_smaller():
    image = smooth()
    crops = crop(image, FACES, size=128)
    for size in (64, 128, 300):
        edited = torch.nn.functional.interpolate(
            crops.images.permute(0, 3, 1, 2), (size, size), mode="bicubic", antialias=True
        ).permute(0, 2, 3, 1)
        for blend in ("replace", "change"):
            assert (uncrop(image, crops, edited, blend=blend) - image).abs().max() < 0.02
        assert uncrop(image, crops, edited, torch.ones(1, size, size)).shape == image.shape


def test_shrinking_a_crop_averages_instead_of_skipping_pixels():
    image = torch.zeros(1, 400, 400, 3)
    image[:, ::2] = 1
    crops = crop(image, one([face_at(200, 200, 300)], size=(400, 400)), size=64, margin=0)
    assert (crops.images[0, 8:-8, 8:-8] - 0.5).abs().max() < 0.1


def test_faces_and_boxes_move_into_their_crops():
    crops = crop(picture(), FACES, size=256, margin=0.5)
    assert crops.images.shape == (3, 256, 256, 3) and crops.masks.shape == (3, 256, 256)
    for (moved,), mask in zip(crops.faces, crops.masks, strict=True):
        assert moved.box == pytest.approx([63.5, 63.5, 191.5, 191.5], abs=0.01)
        assert mask.sum() == pytest.approx(128**2, rel=1e-3) and mask[128, 128] == 1 and mask[20, 20] == 0


def test_aligned_crops_are_upright_and_the_pose_follows():
    crops = crop(picture(), one([face_at(120, 100, 60, 25)]), size=256, align=True)
    (moved,) = crops.faces[0]
    left, right = moved.points[:2]
    level = ARCFACE_112[1] - ARCFACE_112[0]
    assert np.arctan2(*(right - left)[::-1]) == pytest.approx(np.arctan2(*level[::-1]), abs=1e-4)
    assert moved.pose.roll == pytest.approx(0, abs=0.01)


@pytest.mark.parametrize("size", [112, 128, 224, 512])
def test_the_arcface_template_is_the_recognisers_own_crop(size):
    faces = one([face_at(120, 100, 150, -12)])
    crops = crop(picture(), faces, size=size, template="arcface")
    expected = similarity(faces[0][0].points, arcface_template(size))
    assert crops.matrices[0] == pytest.approx(expected, abs=1e-3)
    if np.hypot(*expected[:, 0]) < 1:
        return
    straight = warp(smooth()[0], expected[None], (size, size), "border")[0].permute(1, 2, 0)
    assert (crop(smooth(), faces, size=size, template="arcface").images[0] - straight).abs().max() < 0.02


def test_native_crops_share_the_size_of_the_largest():
    crops = crop(picture(), one([face_at(90, 80, 30), face_at(150, 100, 61)]), size=0, margin=0.25)
    assert crops.size == 92
    assert np.allclose(crops.matrices[:, :, :2], np.eye(2))


def test_crops_reach_over_the_border_with_its_edge_repeated():
    image = picture()
    crops = crop(image, one([face_at(5, 5, 60)]), size=0)
    x, y = (-crops.matrices[0, :, 2]).astype(int)
    assert x < 0 and torch.equal(crops.images[0, -y, :-x], image[0, 0, :1].expand(-x, 3))
    far = crop(image, one([face_at(1000, 1000, 60)]), size=64)
    assert torch.equal(uncrop(image, far, far.images * 0), image)


def test_of_overlapping_faces_the_later_lies_on_top():
    image = picture()
    crops = crop(image, one([face_at(100, 100), face_at(120, 100)]), size=0)
    edited = torch.stack([torch.zeros_like(crops.images[0]), torch.ones_like(crops.images[0])])
    assert (uncrop(image, crops, edited, feather=0)[0, 100, 110] == 1).all()


def test_crops_of_a_batch_know_their_pictures():
    image = picture(batch=3)
    crops = crop(image, one([face_at(90, 80)], [], [face_at(50, 50), face_at(150, 100)]), size=64)
    assert crops.sources == (0, 2, 2) and len(crops.faces) == 3
    result = uncrop(image, crops, 1 - crops.images)
    assert torch.equal(result[1], image[1]) and not torch.equal(result[2], image[2])


def test_no_face_gives_no_crops_and_the_same_picture():
    image = picture(batch=2)
    for size in (0, 96):
        crops = crop(image, one([], []), size=size)
        assert len(crops) == 0 and crops.images.shape[0] == 0 and crops.masks.shape[0] == 0
        assert torch.equal(uncrop(image, crops, crops.images), image)


def test_depth_is_scaled_with_the_crop():
    mesh = np.zeros((468, 3), np.float32)
    mesh[:, 2] = 7
    faces = one([replace(face_at(100, 100, 64), landmarks={468: mesh})])
    (moved,) = crop(picture(), faces, size=256, margin=0).faces[0]
    assert moved.landmarks[468][:, 2] == pytest.approx(28)
    assert mesh[0, 2] == 7


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"template": "oval"}, "choose one of box, arcface, ffhq"),
        ({"size": -1}, "between 1 and"),
        ({"size": 100000}, "between 1 and"),
        ({"margin": float("nan")}, "margin"),
        ({"template": "arcface", "size": 100}, "multiple of 112 or of 128"),
    ],
)
def test_a_crop_that_cannot_be_is_refused_with_a_sentence(setting, words):
    with pytest.raises(BadInput, match=words):
        crop(picture(), FACES, **setting)


def test_pieces_that_do_not_fit_together_are_refused_with_a_sentence():
    image = picture()
    crops = crop(image, FACES, size=64)
    with pytest.raises(BadInput, match="come from 1 pictures, but the image has 2"):
        crop(picture(batch=2), FACES)
    with pytest.raises(BadInput, match="found in pictures of 260×200"):
        crop(picture(100, 100), FACES)
    with pytest.raises(BadInput, match=r"cut out of 1 pictures of 260×200.*1 pictures of 100×100"):
        uncrop(picture(100, 100), crops, crops.images)
    with pytest.raises(BadInput, match="3 square crops went out, but 2 pictures of 64×64"):
        uncrop(image, crops, crops.images[:2])
    with pytest.raises(BadInput, match="3 pictures of 32×64"):
        uncrop(image, crops, crops.images[:, :, :32])
    with pytest.raises(BadImage, match="mask for the crops must have the shape"):
        uncrop(image, crops, crops.images, torch.ones(1, 10, 10))
    with pytest.raises(BadInput, match="choose one of replace, change"):
        uncrop(image, crops, crops.images, blend="mix")
    with pytest.raises(BadInput, match="an empty box"):
        crop(image, one([replace(face_at(9, 9), box=np.zeros(4, np.float32))]))


def test_moved_points_and_pixels_agree():
    image = torch.zeros(1, 200, 260, 3)
    image[0, 90:93, 110:113] = 1
    spot = np.array([[111.0, 91.0]])
    for template, align in (("box", False), ("box", True), ("ffhq", False)):
        crops = crop(image, one([face_at(120, 100, 60, 15)]), size=448, align=align, template=template)
        x, y = transform(crops.matrices[0], spot)[0]
        weight = crops.images[0, ..., 0]
        ys, xs = torch.meshgrid(torch.arange(448.0), torch.arange(448.0), indexing="ij")
        assert float((weight * xs).sum() / weight.sum()) == pytest.approx(x, abs=0.3)
        assert float((weight * ys).sum() / weight.sum()) == pytest.approx(y, abs=0.3)
