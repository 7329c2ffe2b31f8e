"""Tracking: the same person keeps one number, through crossings, gaps and cuts."""

from dataclasses import replace
from functools import partial
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from likeness.face.errors import BadInput
from likeness.face.track import assign
from likeness.face.track import track as track_by
from likeness.face.types import Contract, Embedding, Face, Faces

CONTRACT = Contract("toy", "ab" * 32, 16, False, "arcface-112 RGB 0..255")
track = partial(track_by, contract=CONTRACT)


def vector(person, seed=0, noise=0.15):
    """A look of ``person``: near his own direction, which has nothing of the others'."""
    base = np.eye(16, dtype=np.float32)[person]
    return (10 * (base + noise * np.random.default_rng(seed).standard_normal(16))).astype(np.float32)


def face(x, y=50.0, size=40.0, person=None, seed=0, dense=False):
    embeddings = () if person is None else (Embedding(vector(person, seed), CONTRACT),)
    box = np.array([x, y, x + size, y + size], np.float32)
    points = np.array([[x, y]] * 5, np.float32) + np.arange(10, dtype=np.float32).reshape(5, 2)
    landmarks = {68: np.full((68, 2), x, np.float32)} if dense else {}
    return Face(box, points, 0.9, landmarks, embeddings=embeddings)


def film(*frames):
    return Faces(tuple(tuple(f) for f in frames), ((200, 400),) * len(frames))


def numbers(tracked):
    return [[f.track for f in found] for found in tracked]


@given(
    rows=st.integers(0, 4),
    columns=st.integers(0, 4),
    values=st.lists(st.integers(-3, 9), min_size=16, max_size=16),
)
@settings(max_examples=200, deadline=None)
def test_the_assignment_is_the_best_there_is(rows, columns, values):
    gain = np.array(values[: rows * columns], float).reshape(rows, columns)
    pairs = assign(gain)
    assert len({r for r, _ in pairs}) == len({c for _, c in pairs}) == len(pairs)
    assert all(gain[p] > 0 for p in pairs)
    n = max(rows, columns)
    padded = np.zeros((n, n))
    padded[:rows, :columns] = np.maximum(gain, 0)
    best = max(sum(padded[i, p[i]] for i in range(n)) for p in permutations(range(n)))
    assert sum(gain[p] for p in pairs) == pytest.approx(best)


@pytest.mark.parametrize("with_embeddings", [True, False])
def test_two_people_walking_past_each_other_at_a_distance_keep_their_numbers(with_embeddings):
    p, q = (0, 1) if with_embeddings else (None, None)
    frames = []
    for t in range(20):
        a, b = face(10 + 10 * t, 20, person=p, seed=t), face(210 - 10 * t, 120, person=q, seed=100 + t)
        frames.append([a, b] if t % 2 else [b, a])
    assert numbers(track(film(*frames))) == [[1, 0] if t % 2 else [0, 1] for t in range(20)]


def test_two_people_crossing_on_one_line_are_told_apart_by_their_embeddings():
    frames = [
        [face(10 + 12 * t, person=0, seed=t), face(240 - 12 * t, person=1, seed=50 + t)][:: -1 if t > 9 else 1]
        for t in range(20)
    ]
    tracked = track(film(*frames))
    for t, found in enumerate(numbers(tracked)):
        assert found == ([0, 1] if t <= 9 else [1, 0])


def test_crossing_without_embeddings_follows_the_motion():
    frames = [[face(10 + 12 * t), face(240 - 12 * t)] for t in range(20)]
    assert numbers(track(film(*frames))) == [[0, 1]] * 20


def test_somebody_hidden_for_a_while_keeps_the_number_and_for_too_long_gets_a_new_one():
    def hidden(frames):
        shown = [[face(100, person=0, seed=1)], [face(104, person=0, seed=2)]]
        return film(*shown, *[[]] * frames, [face(110 + 4 * frames, person=0, seed=3)])

    assert numbers(track(hidden(5), gap=5))[-1] == [0]
    assert numbers(track(hidden(6), gap=5))[-1] == [1]
    assert numbers(track(hidden(1), gap=0))[-1] == [1]


def test_a_cut_to_somebody_else_in_the_same_place_is_a_new_person():
    tracked = track(film([face(100, person=0)], [face(101, person=0, seed=1)], [face(101, person=1, seed=2)]))
    assert numbers(tracked) == [[0], [0], [1]]


def test_a_cut_to_the_same_person_elsewhere_is_the_same_person():
    frames = [[face(20, person=0), face(150, person=1)], [face(300, 10, 90, person=0, seed=4), face(90, person=1)]]
    assert numbers(track(film(*frames))) == [[0, 1], [0, 1]]


def test_a_turned_head_that_hardly_moved_stays_the_same_person():
    """An embedding only half as alike as asked for, in the very same place."""
    turned = face(101)
    look = vector(0, noise=0) + 35 * np.eye(16, dtype=np.float32)[5]
    turned = replace(turned, embeddings=(Embedding(look, CONTRACT),))
    film_ = film([face(100, person=0, seed=1)], [turned])
    assert numbers(track(film_)) == [[0], [0]]
    assert numbers(track(film([face(100, person=0, seed=1)], [turned.moved(lambda p: p + 90)]))) == [[0], [1]]


def test_faces_found_without_an_embedding_are_followed_by_overlap():
    frames = [[face(100, person=0)], [face(104)], [face(108, person=0, seed=1)]]
    assert numbers(track(film(*frames))) == [[0]] * 3


def test_empty_frames_and_an_empty_film():
    tracked = track(film([], [], [face(5)], []), fill=True)
    assert numbers(tracked) == [[], [], [0], []]
    assert track(film()).count == 0
    assert numbers(track(film([], []))) == [[], []]


def test_numbers_go_by_first_appearance_and_the_faces_order_is_kept():
    tracked = track(film([face(200)], [face(10), face(200)], [face(200), face(10), face(100)]))
    assert numbers(tracked) == [[0], [1, 0], [0, 1, 2]]
    assert [float(f.box[0]) for f in tracked[2]] == [200, 10, 100]


def test_gaps_are_filled_on_a_straight_line_if_asked():
    frames = [[face(100, person=0, dense=True)], [], [face(300, person=1)], [face(130, person=0, seed=1, dense=True)]]
    assert numbers(track(film(*frames))) == [[0], [], [1], [0]]
    filled = track(film(*frames), fill=True)
    assert numbers(filled) == [[0], [0], [1, 0], [0]]
    middle = filled[1][0]
    assert middle.box == pytest.approx([110, 50, 150, 90]) and middle.confidence == 0 and middle.embeddings == ()
    assert middle.points[0] == pytest.approx([110, 51]) and middle.landmarks[68][0] == pytest.approx([110, 110])
    assert filled[2][0] is not filled[2][1] and filled[2][0].confidence == 0.9


def test_nothing_is_filled_before_the_first_or_after_the_last_sight():
    assert numbers(track(film([], [face(5)], [], []), fill=True)) == [[], [0], [], []]


@given(seed=st.integers(0, 500), n=st.integers(1, 6))
@settings(max_examples=30, deadline=None)
def test_no_number_stands_twice_in_a_frame_and_no_face_gets_lost(seed, n):
    rng = np.random.default_rng(seed)
    frames = [
        [face(float(rng.uniform(0, 300)), person=int(rng.integers(3)), seed=int(rng.integers(99))) for _ in range(k)]
        for k in rng.integers(0, 5, n)
    ]
    tracked = track(film(*frames))
    assert [len(f) for f in tracked] == [len(f) for f in frames]
    for found in numbers(tracked):
        assert len(set(found)) == len(found) and None not in found


@pytest.mark.parametrize("wrong", [{"alike": 2}, {"overlap": -1}, {"gap": -1}])
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(BadInput, match="tracking needs"):
        track(film([face(1)]), **wrong)


def test_without_a_contract_looks_do_not_count():
    cut = film([face(100, person=0)], [face(118, person=1)])
    assert numbers(track(cut)) == [[0], [1]] and numbers(track_by(cut)) == [[0], [0]]
