"""Laws of the plane geometry, tried on many cases and against slow twins."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from likeness.face.errors import BadInput
from likeness.face.geometry import (
    ARCFACE_112,
    FFHQ_512,
    arcface_template,
    hull,
    inverse,
    iou,
    letterbox,
    quarter_turns,
    resize,
    similarity,
    square,
    suppress,
    transform,
    warp,
)
from likeness.face.types import Face
from scipy import ndimage

angles = st.floats(-np.pi, np.pi)
scales = st.floats(0.05, 20)
shifts = st.tuples(st.floats(-500, 500), st.floats(-500, 500))
seeds = st.integers(0, 2**32 - 1)


def moving(angle, scale, shift):
    a, b = scale * np.cos(angle), scale * np.sin(angle)
    return np.array([[a, -b, shift[0]], [b, a, shift[1]]])


def random_points(seed, count=5, spread=100):
    return np.random.default_rng(seed).uniform(-spread, spread, (count, 2))


def boxes_of(seed, count=12, side=100):
    random = np.random.default_rng(seed)
    corner = random.uniform(0, side, (count, 2))
    return np.concatenate([corner, corner + random.uniform(1, side / 2, (count, 2))], 1)


@given(angles, scales, shifts, st.sampled_from([ARCFACE_112, FFHQ_512]))
def test_similarity_finds_the_movement_that_was_made(angle, scale, shift, template):
    matrix = moving(angle, scale, shift)
    points = template @ inverse(matrix)[:, :2].T + inverse(matrix)[:, 2]
    assert similarity(points, template) == pytest.approx(matrix, rel=1e-6, abs=1e-6 * max(1, scale))


@given(seeds)
def test_similarity_is_the_least_squares_one(seed):
    points, template = random_points(seed), ARCFACE_112
    x, y = points.T
    one, nil = np.ones(5), np.zeros(5)
    system = np.concatenate([np.stack([x, -y, one, nil], 1), np.stack([y, x, nil, one], 1)])
    a, b, tx, ty = np.linalg.lstsq(system, template.T.ravel(), rcond=None)[0]
    assume(a * a + b * b > 1e-6)
    assert similarity(points, template) == pytest.approx(np.array([[a, -b, tx], [b, a, ty]]), rel=1e-6, abs=1e-6)


@given(angles, scales, shifts, seeds)
def test_aligning_and_unaligning_brings_points_back(angle, scale, shift, seed):
    matrix, points = moving(angle, scale, shift), random_points(seed).astype(np.float32)
    back = transform(inverse(matrix), transform(matrix, points))
    assert np.abs(back - points).max() < 1e-3 * max(1, 1 / scale)


@given(st.floats(-0.6, 0.6), st.floats(0.8, 1.5), seeds)
@settings(max_examples=15)
def test_aligning_and_unaligning_a_smooth_picture_brings_it_back(angle, scale, seed):
    y, x = torch.meshgrid(torch.arange(120.0), torch.arange(150.0), indexing="ij")
    phase = np.random.default_rng(seed).uniform(0, 6, 3)
    picture = torch.stack([torch.sin(x / 17 + phase[i]) * torch.cos(y / 13 + i) for i in range(3)], -1)
    matrix = moving(angle, scale, (0, 0))
    matrix[:, 2] = 100 - matrix[:, :2] @ (75, 60)
    crop = warp(picture, matrix[None], (200, 200))[0].permute(1, 2, 0)
    back = warp(crop, inverse(matrix)[None], (120, 150))[0].permute(1, 2, 0)
    assert (back - picture)[40:80, 55:95].abs().max() < 0.02


@pytest.mark.parametrize(
    "points", [np.full((5, 2), 7.0), np.full((5, 2), np.nan), [[1, 2]] * 4 + [[np.inf, 2]], ARCFACE_112 * 1e200]
)
def test_points_that_cannot_be_aligned_are_refused(points):
    with pytest.raises(BadInput, match="coincide or are not finite"):
        similarity(points, ARCFACE_112)


def test_mirrored_points_that_no_turn_can_match_are_refused():
    cross = np.array([[-1, 0], [1, 0], [0, -1], [0, 1]], float)
    with pytest.raises(BadInput, match="mirrored"):
        similarity(cross * (1, -1), cross)


def test_templates_come_in_the_sizes_of_the_recognisers():
    assert np.array_equal(arcface_template(224), ARCFACE_112 * 2)
    assert arcface_template(256) == pytest.approx((ARCFACE_112 + np.array([8, 0])) * 2)
    with pytest.raises(BadInput, match="a multiple of 112 or of 128 pixels, not 200"):
        arcface_template(200)


@given(st.integers(0, 7), st.integers(1, 9), st.integers(1, 9), st.data())
def test_quarter_turns_follow_the_lit_pixel(turns, height, width, data):
    y, x = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    picture = torch.zeros(height, width)
    picture[y, x] = 1
    turned = torch.rot90(picture, turns)
    expected = torch.nonzero(turned)[0].flip(0).numpy()
    assert np.array_equal(quarter_turns(np.array([[x, y]]), turns, height, width)[0], expected)
    back = quarter_turns(quarter_turns(np.array([[x, y]]), turns, height, width), -turns, *turned.shape)
    assert np.array_equal(back[0], (x, y))


@given(seeds, st.floats(0.1, 8), st.floats(0.1, 8), st.integers(50, 500))
def test_boxes_and_points_follow_flips_and_scales(seed, sx, sy, width):
    box = boxes_of(seed, 1)[0].astype(np.float32)
    face = Face(box, random_points(seed).astype(np.float32), 0.5, {468: np.ones((468, 3), np.float32)})

    def flip(points):
        return np.stack([width - 1 - points[:, 0], points[:, 1]], 1)

    flipped = face.moved(flip)
    assert flipped.box == pytest.approx([width - 1 - box[2], box[1], width - 1 - box[0], box[3]])
    assert (flipped.width, flipped.height) == pytest.approx((face.width, face.height), rel=1e-3)
    assert flipped.moved(flip).points == pytest.approx(face.points, abs=1e-3)
    scaled = face.moved(lambda points: points * (sx, sy))
    assert scaled.box == pytest.approx(box * (sx, sy, sx, sy), rel=1e-5)
    assert scaled.area == pytest.approx(face.area * sx * sy, rel=1e-3)
    assert scaled.landmarks[468][0] == pytest.approx((sx, sy, 1))
    assert np.array_equal(face.landmarks[468], np.ones((468, 3)))


@given(angles, scales, shifts, seeds)
def test_a_moved_box_holds_the_moved_face(angle, scale, shift, seed):
    matrix = moving(angle, scale, shift)
    box = boxes_of(seed, 1)[0].astype(np.float32)
    inside = np.random.default_rng(seed).uniform(box[:2], box[2:], (5, 2)).astype(np.float32)
    moved = Face(box, inside, 0.5).moved(lambda points: transform(matrix, points))
    slack = 1e-3 * max(1, scale)
    assert (moved.points >= moved.box[:2] - slack).all() and (moved.points <= moved.box[2:] + slack).all()


@given(seeds, st.floats(0.1, 0.9), st.sampled_from([0.0, 1.0]))
def test_suppression_keeps_the_best_is_idempotent_and_ignores_the_order(seed, overlap, pixel):
    random = np.random.default_rng(seed)
    boxes = boxes_of(seed, 15)
    scores = random.permutation(15) / 15 + 0.01
    keep = suppress(boxes, scores, overlap, pixel)
    assert keep[0] == scores.argmax() and (np.diff(scores[keep]) < 0).all() and len(set(keep)) == len(keep)
    assert np.array_equal(suppress(boxes[keep], scores[keep], overlap, pixel), np.arange(len(keep)))
    order = random.permutation(15)
    assert np.array_equal(order[suppress(boxes[order], scores[order], overlap, pixel)], keep)
    if pixel == 0:
        for i in set(range(15)) - set(keep.tolist()):
            better = keep[scores[keep] > scores[i]]
            assert iou(boxes[i], boxes[better]).max() > overlap
        for n, i in enumerate(keep[1:], 1):
            assert iou(boxes[i], boxes[keep[:n]]).max() <= overlap + 1e-9


def test_suppression_of_nothing_is_nothing():
    assert len(suppress(np.zeros((0, 4)), np.zeros(0), 0.5)) == 0
    same = np.array([[0, 0, 10, 10]] * 3, float)
    assert suppress(same, np.array([0.5, 0.9, 0.7]), 0.4).tolist() == [1]


@given(seeds)
def test_overlap_is_symmetric_and_one_with_itself(seed):
    boxes = boxes_of(seed, 6)
    table = np.stack([iou(box, boxes) for box in boxes])
    assert table == pytest.approx(table.T) and np.diag(table) == pytest.approx(1)
    assert (table >= 0).all() and (table <= 1 + 1e-12).all()
    assert not iou(np.array([5.0, 5, 5, 5]), boxes).any()


@given(st.integers(1, 60), st.integers(1, 60), st.integers(4, 40), st.integers(4, 40))
def test_a_letterboxed_picture_fills_one_side_and_its_factors_are_true(h, w, height, width):
    canvas, (fx, fy) = letterbox(torch.ones(h, w, 3), height, width)
    assert canvas.shape == (1, 3, height, width)
    lit = canvas[0, 0] > 0
    rows, columns = int(lit.any(1).sum()), int(lit.any(0).sum())
    assert (columns, rows) == (round(fx * w), round(fy * h))
    assert rows == height or columns == width
    assert lit[:rows, :columns].all() and lit.sum() == rows * columns
    exact = min(height / h, width / w)
    for part, full in ((columns, w), (rows, h)):
        assert part == max(1, int(exact * full + 1e-9))


def test_resizing_to_the_own_size_changes_nothing():
    picture = torch.rand(20, 30, 3)
    assert torch.equal(resize(picture, 20, 30)[0].permute(1, 2, 0), picture)


@given(seeds)
def test_a_square_holds_the_box_and_has_its_centre(seed):
    box = boxes_of(seed, 1)[0]
    x, y, side = square(box, 1.5)
    assert (x, y) == pytest.approx(((box[0] + box[2]) / 2, (box[1] + box[3]) / 2))
    assert side == pytest.approx(1.5 * max(box[2] - box[0], box[3] - box[1]))


@given(seeds, st.integers(3, 40))
def test_a_hull_holds_all_points_and_turns_one_way(seed, count):
    points = np.round(random_points(seed, count, 10), 1)
    corners = hull(points)
    assume(len(corners) > 2)
    for a, b in zip(corners, np.roll(corners, -1, 0), strict=True):
        side = (b - a)[0] * (points - a)[:, 1] - (b - a)[1] * (points - a)[:, 0]
        assert (side >= -1e-9).all()
    assert {tuple(c) for c in corners} <= {tuple(p) for p in points}


def reference_warp(picture, matrix, size, border):
    """Bilinear sampling by scipy, one channel at a time, over the whole picture."""
    ys, xs = np.mgrid[: size[0], : size[1]].astype(float)
    back = inverse(matrix)
    x = back[0, 0] * xs + back[0, 1] * ys + back[0, 2]
    y = back[1, 0] * xs + back[1, 1] * ys + back[1, 2]
    mode = {"zeros": "grid-constant", "border": "nearest"}[border]
    channels = [ndimage.map_coordinates(picture[..., c].numpy(), [y, x], order=1, mode=mode) for c in range(3)]
    return torch.from_numpy(np.stack(channels))


@given(angles, st.floats(0.2, 5), st.floats(-30, 110), st.floats(-30, 90), st.sampled_from(["zeros", "border"]), seeds)
def test_warp_is_the_slow_bilinear_one_wherever_the_crop_lies(angle, scale, x, y, border, seed):
    picture = torch.rand(60, 80, 3, generator=torch.Generator().manual_seed(seed))
    matrix = moving(angle, scale, (0, 0))
    matrix[:, 2] = np.array([15.5, 11.5]) - matrix[:, :2] @ (x, y)
    crop = warp(picture, matrix[None], (24, 32), border)
    assert crop.shape == (1, 3, 24, 32)
    assert (crop[0] - reference_warp(picture, matrix, (24, 32), border)).abs().max() < 1e-3


@given(angles, st.floats(0.3, 3), st.floats(-20, 100), st.floats(-20, 80), seeds)
@settings(max_examples=25)
@pytest.mark.parametrize("border", ["zeros", "border"])
@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_warp_reads_only_the_region_and_answers_as_the_whole_picture(mode, border, angle, scale, x, y, seed):
    picture = torch.rand(60, 80, 3, generator=torch.Generator().manual_seed(seed))
    matrix = moving(angle, scale, (0, 0))
    matrix[:, 2] = np.array([11.5, 11.5]) - matrix[:, :2] @ (x, y)
    theta = inverse(matrix)
    ys, xs = torch.meshgrid(torch.arange(24.0), torch.arange(24.0), indexing="ij")
    gx, gy = (theta[i, 0] * xs + theta[i, 1] * ys + theta[i, 2] for i in (0, 1))
    grid = torch.stack([(2 * gx + 1) / 80 - 1, (2 * gy + 1) / 60 - 1], -1)[None].float()
    whole = F.grid_sample(picture.permute(2, 0, 1)[None], grid, mode=mode, padding_mode=border, align_corners=False)
    assert (warp(picture, matrix[None], (24, 24), border, mode) - whole).abs().max() < 2e-3


def test_many_warps_are_the_single_ones_and_none_is_none():
    picture = torch.rand(40, 50, 3)
    matrices = np.stack([moving(0.1 * i, 1 + i, (i, -i)) for i in range(3)])
    together = warp(picture, matrices, (10, 12))
    assert torch.equal(together, torch.cat([warp(picture, m[None], (10, 12)) for m in matrices]))
    assert warp(picture, matrices[:0], (10, 12)).shape == (0, 3, 10, 12)
    assert warp(picture[..., :1], matrices, (10, 12)).shape == (3, 1, 10, 12)


def test_moving_a_face_leaves_the_original_alone():
    face = Face(np.arange(4, dtype=np.float32), np.ones((5, 2), np.float32), 0.5)
    moved = replace(face, label="x").moved(lambda points: points + 3)
    assert moved.label == "x" and moved.box.tolist() == [3, 4, 5, 6] and face.box.tolist() == [0, 1, 2, 3]
