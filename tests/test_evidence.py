"""What image encoders are shown of a person: each format's own cut, colours and normalisation."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from likeness.face.adapters import AUTHORS, POPULAR, Feature, IdAdapter, _evidence, photomaker
from likeness.face.adapters._evidence import CLIP_MEAN, CLIP_STD, Encoder, cut, evidence, nothing, regions
from likeness.face.parse import LABELS, enclosed, where
from likeness.face.types import Face, Person, Reference

SIDE = 60
FIVE = np.array([[22, 24], [38, 24], [30, 32], [24, 40], [36, 40]], np.float32)


def reference(seed=0):
    """Red everywhere, the face's box green in its middle."""
    picture = torch.zeros(SIDE, SIDE, 3)
    picture[..., 0] = 1
    picture[20:40, 25:35] = torch.tensor([0.0, 1.0, 0.0])
    return Reference(picture + 0.001 * seed, Face(np.array([20, 15, 40, 45], np.float32), FIVE, 0.9))


def plain(pixels):
    """Pixels as they were before CLIP's normalisation."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (CLIP_MEAN, CLIP_STD))
    return pixels * std + mean


def shown(crop, recipe=AUTHORS, size=30):
    return plain(cut(Feature("clip-h", crop, size, 8), (reference(),), recipe, _evidence.STANDALONE))


def labelled(monkeypatch, labels):
    monkeypatch.setattr(_evidence, "parse", lambda picture, face, *_, **__: labels)


def test_an_aligned_crop_is_blue_green_red_as_the_authors_hand_it_over():
    authors, popular = (shown("aligned", recipe, 112) for recipe in (AUTHORS, POPULAR))
    torch.testing.assert_close(authors, popular.flip(1))
    corner = popular[0, :, 0, 0]
    assert corner[0] > 0.9 and corner[2] < 0.1, "packs hand it over as it is: red"


def test_a_head_is_the_whole_reference_and_a_box_the_square_around_the_face():
    whole = shown("head", size=SIDE)
    torch.testing.assert_close(whole[0], reference().image.permute(2, 0, 1), atol=1e-5, rtol=0)
    # The box is 20 by 30; the square around it begins at (15, 15).
    around = shown("box", size=30)
    torch.testing.assert_close(around, whole[:, :, 15:45, 15:45], atol=1e-4, rtol=0)


def test_whitened_is_grey_where_the_face_is_and_white_elsewhere(monkeypatch):
    labels = torch.full((512, 512), LABELS.index("background"))
    labels[:, :256], labels[:256, 256:] = LABELS.index("skin"), LABELS.index("hair")
    labels[300:400, 300:400] = LABELS.index("left ear")
    labelled(monkeypatch, labels)
    found = shown("whitened", size=512)
    assert torch.allclose(found[:, 0], found[:, 1], atol=1e-5) and torch.allclose(found[:, 0], found[:, 2], atol=1e-5)
    assert torch.allclose(found[0, :, 260:, 260:], torch.ones(()), atol=1e-5)
    # The nose is on the template's middle: green, whose share of grey is 0.587.
    assert found[0, 0, 300, 250] == pytest.approx(0.587, abs=1e-3)
    # Scaled without smoothing, so that a hard edge overshoots.
    smaller = shown("whitened", size=336)
    expected = F.interpolate(_evidence.whitened(reference()), (336, 336), mode="bicubic")
    torch.testing.assert_close(smaller, expected, atol=1e-5, rtol=0)
    assert float(smaller.max()) > 1.001


def test_nothing_is_zeros_behind_the_normalisation_or_a_black_picture():
    feature = Feature("clip-h", "head", 8, 4)
    assert not nothing(feature, AUTHORS).any()
    torch.testing.assert_close(plain(nothing(feature, POPULAR)), torch.zeros(1, 3, 8, 8), atol=1e-6, rtol=0)


def test_a_region_is_the_picture_in_its_own_place_and_black_elsewhere(monkeypatch):
    labels = torch.zeros(SIDE, SIDE, dtype=torch.int64)
    labels[10:50, 15:45] = LABELS.index("skin")
    labels[20:24, 32:40] = LABELS.index("right eye")
    labels[44:47, 20:40] = LABELS.index("lower lip")
    labelled(monkeypatch, labels)
    found = regions(reference(), SIDE, _evidence.STANDALONE)
    # Only the second of a pair is there: it stands for the part. There are neither ears nor nose.
    assert list(found) == ["face", "eyes", "mouth"]
    picture = reference().image.permute(2, 0, 1)
    eye, face = plain(found["eyes"])[0], plain(found["face"])[0]
    inside = where(labels, ["right eye"]).bool()
    torch.testing.assert_close(eye[:, inside], picture[:, inside], atol=1e-5, rtol=0)
    assert float(eye[:, ~inside].abs().max()) < 1e-5
    torch.testing.assert_close(face[:, inside], picture[:, inside], atol=1e-5, rtol=0)
    assert float(face[:, :10].abs().max()) < 1e-5


def test_what_a_mask_encloses_is_filled_and_what_is_open_is_not():
    ring = torch.zeros(7, 9)
    ring[1:6, 2:8] = 1
    ring[3, 4:6] = 0
    filled = ring.clone()
    filled[3, 4:6] = 1
    assert torch.equal(enclosed(ring), filled)
    ring[3, 6:8] = 0
    assert torch.equal(enclosed(ring), ring)
    # A way round corners is a way out; a diagonal step is none.
    maze = torch.tensor([[1, 1, 1, 1, 1], [1, 0, 1, 0, 0], [1, 0, 1, 0, 1], [1, 0, 0, 0, 1], [1, 1, 1, 1, 1]]).float()
    assert torch.equal(enclosed(maze), maze)
    diagonal = torch.tensor([[1, 1, 1, 0], [1, 0, 1, 1], [1, 1, 0, 1], [0, 1, 1, 1]]).float()
    assert enclosed(diagonal)[1, 1] == enclosed(diagonal)[2, 2] == 1


def test_photomakers_own_encoder_gets_every_picture_normalised(tmp_path):
    adapter = IdAdapter("photomaker", "x", tmp_path, lambda *_: None, text=photomaker.PhotoMakerText({}))
    person = Person("p", np.zeros((1, 4), np.float32), (reference(), reference(5)))
    pixels = evidence(adapter, person, recipe=AUTHORS).pixels
    assert pixels.shape == (2, 3, 224, 224)
    corner = plain(pixels)[:, :, 0, 0]
    torch.testing.assert_close(corner, torch.tensor([[1.0, 0, 0], [1, 0.005, 0.005]]), atol=1e-4, rtol=0)


@pytest.mark.parametrize("count", [1, 2])
def test_every_picture_of_a_person_is_looked_at(tmp_path, count):
    adapter = IdAdapter("plus-face", "x", tmp_path, lambda *_: None, feature=Feature("clip-h", "head", 16, 4))
    person = Person("p", np.zeros((1, 4), np.float32), tuple(reference(n) for n in range(count)))
    seen = evidence(
        adapter, person, Encoder(lambda x: x.flatten(2)[:, :, :4], SimpleNamespace()), recipe=AUTHORS, words=False
    ).seen
    assert seen.shape == (count, 3, 4) and len({float(row.sum()) for row in seen}) == count
