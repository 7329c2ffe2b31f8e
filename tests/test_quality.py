"""The download-free quality: golden values of the published heuristic, and what ours promises beyond it."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from likeness.face.geometry import ARCFACE_112
from likeness.face.score.quality import (
    WEIGHTS,
    gray,
    laplacian_variance,
    noise_sigma,
    quality,
    reference,
)
from likeness.face.types import Contract, Embedding, Face
from likeness.tests.photos import SHA256, found, picture

SQUARE = torch.full((120, 120, 3), 128 / 255)
SQUARE[40:80, 40:80] = 1.0
BOX = np.array([30, 30, 90, 90], np.float32)


def blurred(image, sigma):
    radius = math.ceil(3 * sigma)
    kernel = torch.exp(-(torch.arange(-radius, radius + 1) ** 2) / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).view(1, 1, -1)
    x = image.permute(2, 0, 1)[:, None]
    x = F.conv2d(F.pad(x, (radius, radius, 0, 0), mode="reflect"), kernel[..., None, :])
    x = F.conv2d(F.pad(x, (0, 0, radius, radius), mode="reflect"), kernel[..., None])
    return x[:, 0].permute(1, 2, 0)


def noisy(image, sigma):
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(0))
    return (image + noise * sigma / 255).clamp(0, 1)


def photo(name="person_b_2"):
    """The head of a photograph and its face, cut out so that worsening it is quick."""
    image, face = picture(name)[0], found(name)[0][0]
    x1, y1, x2, y2 = (int(v) for v in face.box)
    x, y, side = max(0, x1 - 40), max(0, y1 - 40), max(x2 - x1, y2 - y1) + 80
    return image[y : y + side, x : x + side], face.moved(lambda p: p - np.array([x, y], np.float32))


def test_the_published_heuristic_without_points_gives_its_golden_value():
    got = reference(SQUARE, BOX, None, 0.9)
    assert got.score == pytest.approx(0.8469027791, abs=1e-6)
    assert got.flags == ("landmarks_missing",)
    assert got.parts["gradient_variance"] == pytest.approx(728.9943, abs=1e-3)


def test_the_published_heuristic_with_points_gives_its_golden_value():
    got = reference(SQUARE, BOX, ARCFACE_112, 0.9)
    assert got.score == pytest.approx(0.9270582875, abs=1e-6)
    assert got.parts["frontal"] == pytest.approx(0.9953083800, abs=1e-6)
    assert got.flags == ()


def test_too_few_points_are_told_from_none():
    assert "landmarks_incomplete" in reference(SQUARE, BOX, ARCFACE_112[:3], 0.9).flags


def test_the_weights_add_up_to_one():
    assert sum(WEIGHTS.values()) == pytest.approx(1)


@pytest.mark.parametrize("shape", [(60, 47), (1, 9), (9, 1), (1, 1), (2, 2)])
def test_the_laplacian_is_opencvs(shape):
    cv2 = pytest.importorskip("cv2")
    luminance = np.random.default_rng(0).uniform(0, 255, shape)
    assert laplacian_variance(luminance) == pytest.approx(float(cv2.Laplacian(luminance, cv2.CV_64F).var()), rel=1e-9)


def test_grey_weighs_the_channels_as_published():
    red, green, blue = (gray(torch.eye(3)[i].view(1, 1, 3))[0, 0] for i in range(3))
    assert (red, green, blue) == pytest.approx((0.299 * 255, 0.587 * 255, 0.114 * 255))


@pytest.mark.parametrize("sigma", [3.0, 12.0, 30.0])
def test_the_noise_estimate_finds_the_noise(sigma):
    noise = np.random.default_rng(0).normal(128, sigma, (200, 200))
    assert noise_sigma(noise.astype(np.float32)) == pytest.approx(sigma, rel=0.05)


@pytest.mark.parametrize("name", SHA256)
def test_a_photograph_gets_worse_with_every_step_of_blur_and_noise(name):
    image, face = photo(name)
    for worsen, steps in ((blurred, (1, 2, 4)), (noisy, (12, 25, 50))):
        scores = [quality(image, face).score, *(quality(worsen(image, step), face).score for step in steps)]
        assert scores == sorted(scores, reverse=True), worsen.__name__
        assert scores[0] > scores[-1] + 0.04


@pytest.mark.parametrize("name", ["person_b_2", "impostor_1"])
def test_what_is_wrong_is_flagged_and_a_good_photograph_is_not(name):
    image, face = photo(name)
    assert quality(image, face).flags == ()
    assert "blurry" in quality(blurred(image, 4), face).flags
    assert "noisy" in quality(noisy(image, 50), face).flags
    assert "too_dark" in quality(image * 0.2, face).flags
    assert "too_bright" in quality((image + 0.7).clamp(0, 1), face).flags
    for spoilt in (image * 0.2, (image + 0.7).clamp(0, 1)):
        assert quality(spoilt, face).score < quality(image, face).score


def test_the_published_one_takes_noise_for_sharpness_and_ours_does_not():
    image, face = photo("person_b_1")
    spoilt = noisy(image, 50)
    judged = [reference(p, face.box, face.points, face.confidence).score for p in (image, spoilt)]
    assert judged[1] >= judged[0]
    assert quality(spoilt, face).score < quality(image, face).score - 0.1


def test_the_same_face_in_a_larger_file_is_as_sharp():
    image, face = photo("person_b_2")
    large = F.interpolate(image.permute(2, 0, 1)[None], scale_factor=3, mode="bicubic")[0].permute(1, 2, 0).clamp(0, 1)
    moved = face.moved(lambda p: p * 3 + 1)
    ours = [quality(p, f).parts["sharpness"] for p, f in ((image, face), (large, moved))]
    theirs = [reference(p, f.box, f.points, 0.9).parts["sharpness"] for p, f in ((image, face), (large, moved))]
    assert ours[1] > 0.6 * ours[0]
    assert theirs[1] < 0.2 * theirs[0]


def test_a_tilted_head_counts_as_frontal_and_a_turned_one_does_not():
    turn = np.array([[np.cos(0.7), -np.sin(0.7)], [np.sin(0.7), np.cos(0.7)]])
    tilted = ((ARCFACE_112 - 56) @ turn.T + 60).astype(np.float32)
    turned = ARCFACE_112.astype(np.float32) + 4
    turned[2, 0] += 16
    straight, tilt, side = (
        quality(SQUARE, Face(BOX, points, 0.9)) for points in (ARCFACE_112.astype(np.float32), tilted, turned)
    )
    assert tilt.parts["frontal"] == pytest.approx(straight.parts["frontal"], abs=0.01)
    assert side.parts["frontal"] < 0.7
    assert "side_face" in side.flags and "side_face" not in tilt.flags


def test_small_and_doubtful_faces_are_flagged():
    small = Face(np.array([10, 10, 40, 40], np.float32), (ARCFACE_112 / 4 + 10).astype(np.float32), 0.4)
    assert {"face_too_small", "low_detection_score"} <= set(quality(SQUARE, small).flags)


def test_the_length_of_a_raw_embedding_is_a_part_and_that_of_a_unit_one_is_not():
    for unit in (False, True):
        contract = Contract("m", "0" * 64, 2, unit, "")
        face = Face(BOX, ARCFACE_112, 0.9, embeddings=(Embedding(np.array([3, 4], np.float32), contract),))
        assert quality(SQUARE, face, contract=contract).parts.get("embedding_norm") == (None if unit else 5)


numbers = st.floats(-1e4, 1e4, width=32) | st.sampled_from([math.nan, math.inf, -math.inf, 0.0])


@settings(max_examples=25, deadline=None)
@given(
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.lists(numbers, min_size=4, max_size=4),
    st.lists(numbers, min_size=10, max_size=10),
    numbers,
    st.sampled_from([0.0, 0.5, 1.0, None]),
)
def test_quality_is_finite_and_within_bounds_whatever_the_face(size, box, points, confidence, value):
    image = torch.rand(*size, 3) if value is None else torch.full((*size, 3), value)
    face = Face(np.array(box, np.float32), np.array(points, np.float32).reshape(5, 2), confidence)
    got = quality(image, face)
    assert 0 <= got.score <= 1
    assert all(math.isfinite(part) for part in got.parts.values())
    assert all(0 <= got.parts[name] <= 1 for name in WEIGHTS)
