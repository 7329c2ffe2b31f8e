"""Selecting faces: orders, places, filters, by identity; and pictures with nobody left."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from likeness.face.errors import BadInput, ContractMismatch, NoFace
from likeness.face.select import ORDERS, POLICIES, name, parse_indices, select, settle
from likeness.face.types import Contract, Embedding, Face, Faces, Identity, Person

CONTRACT = Contract("toy", "ab" * 32, 3, False, "arcface-112 RGB 0..255")
ANNA, BEN = np.array([1, 0, 0], np.float32), np.array([0, 1, 0], np.float32)
PEOPLE = Identity(CONTRACT, (Person("anna", ANNA[None]), Person("ben", BEN[None])))


def face(x=0.0, y=0.0, size=10.0, confidence=0.9, vector=None, **facts):
    embeddings = () if vector is None else (Embedding(np.asarray(vector, np.float32), CONTRACT),)
    box = np.array([x, y, x + size, y + size], np.float32)
    return Face(box, np.zeros((5, 2), np.float32), confidence, embeddings=embeddings, **facts)


def faces(*pictures):
    return Faces(tuple(tuple(p) for p in pictures), ((100, 200),) * len(pictures), "yunet, minimum confidence 0.8")


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ("large-small", [1, 0, 2]),
        ("small-large", [2, 0, 1]),
        ("left-right", [2, 1, 0]),
        ("right-left", [0, 1, 2]),
        ("top-bottom", [1, 2, 0]),
        ("bottom-top", [0, 2, 1]),
        ("best-worst", [2, 0, 1]),
        ("worst-best", [1, 0, 2]),
    ],
)
def test_the_eight_orders(order, expected):
    found = [face(150, 80, 20, 0.8), face(50, 10, 40, 0.7), face(5, 50, 10, 0.9)]
    chosen = select(faces(found), order=order)[0]
    assert [next(i for i, f in enumerate(found) if f is c) for c in chosen] == expected
    assert set(ORDERS) >= {order} and len(ORDERS) == 8


def test_equal_faces_keep_their_order():
    found = [face(), face(), face()]
    for order in ORDERS:
        assert all(a is b for a, b in zip(select(faces(found), order=order)[0], found, strict=True))


@pytest.mark.parametrize(
    ("text", "places"),
    [
        ("", [0, 1, 2, 3, 4]),
        (" ", [0, 1, 2, 3, 4]),
        ("0", [0]),
        ("0,2-4,-1", [0, 2, 3, 4]),
        ("-1, 0", [4, 0]),
        ("4-2", [4, 3, 2]),
        ("-2--1", [3, 4]),
        ("1--1", [1, 2, 3, 4]),
        ("7", []),
        ("-9", []),
        ("0-99999999999", [0, 1, 2, 3, 4]),
        ("2,2,1", [2, 1]),
    ],
)
def test_places_are_read_as_written(text, places):
    assert parse_indices(text, 5) == places


@pytest.mark.parametrize("text", ["a", "1,,2", "1;2", "1-2-3", "1.5", "--1", ","])
def test_places_that_cannot_be_read_are_refused_even_where_nobody_is(text):
    with pytest.raises(BadInput, match="0,2-4,-1"):
        select(faces([]), indices=text)


@given(text=st.text("0123456789-, ", max_size=12), count=st.integers(0, 8))
@settings(max_examples=200, deadline=None)
def test_places_are_always_among_those_that_are_there(text, count):
    try:
        places = parse_indices(text, count)
    except BadInput:
        return
    assert len(set(places)) == len(places) and all(0 <= p < count for p in places)


def kept(**settings):
    """Which of these five pass, by their age."""
    found = [
        face(size=10, age=10.0, gender="female"),
        face(size=20, age=20.0, gender="male"),
        face(size=30, age=30.0, gender="female", confidence=0.4),
        face(size=40, age=40.0, gender="male"),
        face(size=50),
    ]
    return [f.age for f in select(faces(found), order="small-large", **settings)[0]]


def test_sizes_ages_gender_and_confidence_filter():
    assert kept() == [10, 20, 30, 40, None]
    assert kept(smallest=20, largest=40) == [20, 30, 40]
    assert kept(youngest=20) == [20, 30, 40]
    assert kept(oldest=20) == [10, 20]
    assert kept(youngest=20, oldest=30, gender="female") == [30]
    assert kept(gender="male") == [20, 40]
    assert kept(confidence=0.5) == [10, 20, 40, None]
    assert kept(limit=2) == [10, 20]
    assert kept(gender="female", indices="1", limit=5) == [30]


def test_a_face_whose_age_or_gender_nobody_knows_passes_no_such_filter():
    assert None not in kept(oldest=120) and None not in kept(gender="female")
    assert None in kept(smallest=1)


def test_tracked_people_are_chosen_by_number():
    found = [face(track=0), face(x=1, track=1), face(x=2, track=2), face(x=3)]
    assert [f.track for f in select(faces(found), tracks="0,2", order="left-right")[0]] == [0, 2]
    assert [f.track for f in select(faces(found), tracks="-1")[0]] == [2]


@pytest.mark.parametrize(
    ("settings", "remedy"),
    [
        ({"gender": "male"}, "by gender, but no face carries one. Switch attributes on"),
        ({"youngest": 20}, "by age, but no face carries one. Switch attributes on"),
        ({"oldest": 20}, "by age"),
        ({"tracks": "0"}, "by track, but no face carries one. Put Track Faces before"),
    ],
)
def test_to_choose_by_what_was_never_measured_is_a_sentence_and_not_nobody(settings, remedy):
    with pytest.raises(BadInput, match=remedy):
        select(faces([face()], []), **settings)
    assert select(faces([], []), **settings).count == 0


def test_who_somebody_is_is_decided_once_for_a_track():
    # The second frame is blurred, the third was filled in by tracking; on another track stands a stranger.
    blurred, ghost = face(vector=[0.3, 0, 1], track=0), face(track=0, confidence=0.0)
    stranger = face(x=50, vector=[0.1, 0, 1], track=1)
    frames = faces([face(vector=[1, 0.1, 0], track=0), stranger], [blurred, stranger], [ghost], [])
    assert [len(found) for found in select(frames, identity=PEOPLE, threshold=0.5)] == [1, 1, 1, 0]
    assert [[f.label for f in found] for found in name(frames, PEOPLE, threshold=0.5)] == [
        ["anna", ""],
        ["anna", ""],
        ["anna"],
        [],
    ]
    alone = frames.map(lambda _, f: replace(f, track=None))
    seen = faces(*alone.images[:2])
    assert [len(found) for found in select(seen, identity=PEOPLE, threshold=0.5)] == [1, 0]


def test_limits_that_let_nothing_pass_are_refused():
    for wrong in ({"smallest": 9, "largest": 3}, {"youngest": 40, "oldest": 20}):
        with pytest.raises(BadInput, match="nothing can pass"):
            select(faces([]), **wrong)
    with pytest.raises(BadInput, match="large-small"):
        select(faces([]), order="biggest")
    with pytest.raises(BadInput, match="gender"):
        select(faces([]), gender="f")


def test_only_those_who_are_somebody_of_the_identity_pass_and_get_the_name():
    found = [face(vector=[3, 1, 0]), face(x=20, vector=[0, 5, 0]), face(x=40, vector=[0, 0, 1])]
    chosen = select(faces(found, []), identity=PEOPLE, order="left-right", threshold=0.5)
    assert [f.label for f in chosen[0]] == ["anna", "ben"] and chosen[1] == ()
    only = Identity(CONTRACT, (PEOPLE.people[1],))
    assert [f.label for f in select(faces(found), identity=only, threshold=0.5)[0]] == ["ben"]


def test_a_face_between_two_people_is_nobody_if_a_margin_is_asked():
    between = face(vector=[1, 0.9, 0])
    assert select(faces([between]), identity=PEOPLE, threshold=0.5)[0][0].label == "anna"
    assert select(faces([between]), identity=PEOPLE, threshold=0.5, margin=0.1)[0] == ()


def test_each_person_is_in_a_picture_once_if_asked():
    found = [face(size=50, vector=[3, 2, 0]), face(x=20, vector=[3, 1, 0]), face(x=40, vector=[0, 1, 0])]
    chosen = select(faces(found), identity=PEOPLE, order="left-right", threshold=0.5, one_each=True)
    assert [(f.label, float(f.box[0])) for f in chosen[0]] == [("anna", 20), ("ben", 40)]
    assert len(select(faces(found), identity=PEOPLE, threshold=0.5)[0]) == 3


def test_naming_keeps_every_face_and_names_only_those_known():
    found = [face(vector=[0, 0, 1]), face(size=50, vector=[3, 2, 0]), face(x=20, vector=[3, 1, 0])]
    named = name(faces(found, []), PEOPLE, threshold=0.5)
    assert [f.label for f in named[0]] == ["", "", "anna"] and named[1] == ()
    assert [f.label for f in name(faces(found), PEOPLE, threshold=0.5, one_each=False)[0]] == ["", "anna", "anna"]


def test_faces_without_the_identitys_embedding_are_a_sentence():
    with pytest.raises(ContractMismatch, match="Embed the faces with toy first"):
        select(faces([face()]), identity=PEOPLE)
    other = replace(CONTRACT, digest="cd" * 32)
    wrong = replace(face(), embeddings=(Embedding(ANNA, other),))
    with pytest.raises(ContractMismatch, match="selecting by identity"):
        select(faces([wrong]), identity=PEOPLE)
    assert select(faces([], []), identity=PEOPLE).count == 0


@given(sizes=st.lists(st.lists(st.floats(1, 90), max_size=4), min_size=1, max_size=5), limit=st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_the_batch_length_never_changes(sizes, limit):
    batch = faces(*[[face(size=s) for s in picture] for picture in sizes])
    chosen = select(batch, smallest=30, limit=limit)
    assert len(chosen) == len(batch) and chosen.sizes == batch.sizes
    assert settle(chosen, "skip") == tuple(len(found) > 0 for found in chosen)


def test_the_policy_error_names_the_picture_and_the_others_only_say_which():
    chosen = faces([face()], [], [])
    for policy in POLICIES[1:]:
        assert settle(chosen, policy) == (True, False, False)
    with pytest.raises(NoFace, match=r"image 2 of 3 \(and in 1 more\) \(200×100, yunet"):
        settle(chosen, "error")
    assert settle(faces([face()]), "error") == (True,)
    with pytest.raises(BadInput, match="pass through"):
        settle(chosen, "ignore")
