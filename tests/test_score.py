"""Scores: similarity and its judge, copy-paste, pose and expression, the overall formula, best of and gate."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from likeness.face.embed import contract, embed
from likeness.face.errors import BadImage, BadInput, ContractMismatch, MissingModel
from likeness.face.identity import identify
from likeness.face.pose import pose_of_rotation
from likeness.face.score import (
    FAILURES,
    KEYS,
    Limits,
    Weights,
    agreement,
    best_of,
    choose,
    copy_paste,
    expression_error,
    gate,
    likeness,
    openings,
    pose_error,
    score,
    score_files,
    score_images,
    seen_by,
    threshold,
)
from likeness.face.types import Contract, Embedding, Face, Faces, FaceScore, Identity, Person, Pose
from likeness.tests.photos import found, path_of, picture

JUDGE = Contract("judge", "a" * 64, 4, False, "")
OTHER = Contract("other", "b" * 64, 4, False, "")
GREY = torch.full((1, 96, 96, 3), 0.5)
POINTS = np.array([[36, 40], [60, 40], [48, 52], [38, 64], [58, 64]], np.float32)


def vector(*values):
    return np.array([*values, 0, 0, 0][:4], np.float32)


def face(values=(1,), judge=JUDGE, box=(20, 16, 76, 84), **more):
    embeddings = (Embedding(vector(*values), judge),) if values is not None else ()
    return Face(np.array(box, np.float32), POINTS, 0.9, embeddings=embeddings, **more)


def faces(*pictures, size=(96, 96)):
    return Faces(tuple(tuple(p) for p in pictures), (size,) * len(pictures))


def person(name="Ada", *values, judge=JUDGE):
    return Identity(judge, (Person(name, vector(*(values or (1,)))[None]),))


def mesh(mouth=0.0, left=0.1, right=0.1, turn=0.0):
    """468 points, eyes 60 px apart, with the openings given in eye distances, turned about the vertical by degrees."""
    points = np.zeros((468, 3), np.float32)
    for (outer, inner), x in (((33, 133), -30), ((263, 362), 30)):
        points[outer, 0], points[inner, 0] = x * 1.4, x * 0.6
    for pairs, gap, x, y in (
        (((82, 87), (13, 14), (312, 317)), mouth, 0, 60),
        (((160, 144), (159, 145), (158, 153)), left, -30, 0),
        (((385, 380), (386, 374), (387, 373)), right, 30, 0),
    ):
        for upper, lower in pairs:
            points[upper], points[lower] = (x, y - gap * 30, 0), (x, y + gap * 30, 0)
    a = np.radians(turn)
    return points @ np.array([[np.cos(a), 0, -np.sin(a)], [0, 1, 0], [np.sin(a), 0, np.cos(a)]], np.float32)


def embedded(name, embedder="sface"):
    try:
        return embed(picture(name), found(name), embedder)
    except MissingModel as error:
        pytest.skip(str(error))


def identity_of(name, embedder="sface"):
    of_name = embedded(name, embedder)
    return identify(picture(name), of_name, contract=contract(embedder), name=name)


def test_the_same_picture_is_alike_to_one():
    of_b = identity_of("person_b_1")
    (record,) = score(picture("person_b_1"), embedded("person_b_1"), of_b)
    assert record.similarity == pytest.approx(1, abs=1e-4)
    assert record.score > 0.9 and record.passed and record.person == "person_b_1" and record.judge == "sface"


def test_the_same_person_passes_and_another_does_not():
    of_b = identity_of("person_b_1")
    (same,) = score(picture("person_b_2"), embedded("person_b_2"), of_b)
    (other,) = score(picture("impostor_2"), embedded("impostor_2"), of_b)
    assert same.passed and same.similarity > 0.58
    assert not other.passed and "low_similarity" in other.flags
    assert other.score < 0.4 < 0.7 < same.score


def test_another_contract_is_refused():
    with pytest.raises(ContractMismatch, match="other"):
        score(GREY, faces([face(judge=OTHER)]), person())
    with pytest.raises(ContractMismatch):
        score(GREY, faces([face()]), person(), judge=OTHER)
    with pytest.raises(ContractMismatch, match="copy-paste"):
        score(GREY, faces([face()]), person(), references=[Embedding(vector(0, 1), OTHER)])


def test_a_batch_of_another_length_is_refused():
    with pytest.raises(BadInput, match="2 pictures"):
        score(GREY, faces([], []), person())
    with pytest.raises(BadInput, match="targets"):
        score(GREY.expand(3, -1, -1, -1), faces([], [], []), target=faces([], []))


def test_no_face_is_a_record_and_the_order_of_the_batch_is_kept():
    records = score(GREY.expand(4, -1, -1, -1), faces([], [face(), face((0, 1))], [], [face((1, 1))]), person())
    assert [(r.image, r.face) for r in records] == [(0, None), (1, 0), (1, 1), (2, None), (3, 0)]
    assert [r.flags for r in records if r.face is None] == [("no_face",)] * 2
    assert all(r.score == 0 and not r.passed for r in records if r.face is None)
    assert score(GREY, faces([]))[0].flags == ("no_face",)


def test_a_face_that_cannot_be_compared_does_not_pass():
    (record,) = score(GREY, faces([face(None)]), person())
    assert "no_judge" in record.flags and not record.passed and record.similarity is None
    (nobody,) = score(GREY, faces([face()]), Identity(JUDGE, ()))
    assert "no_judge" in nobody.flags


def test_the_nearest_of_several_people_counts():
    both = Identity(JUDGE, (Person("Ada", vector(1)[None]), Person("Bob", np.stack([vector(0, 1), vector(0, 0, 1)]))))
    records = score(GREY, faces([face((5, 1)), face((0, 0, 2))]), both)
    assert [r.person for r in records] == ["Ada", "Bob"]
    assert records[1].similarity == pytest.approx(1)


def test_a_judge_that_drove_the_edit_is_flagged_and_still_may_pass():
    (record,) = score(GREY, faces([face()]), person(), drivers={JUDGE}, limits=Limits(quality=0))
    assert "judge_drove_swap" in record.flags and record.passed
    assert "judge_drove_swap" not in score(GREY, faces([face()]), person(), drivers={OTHER})[0].flags


def test_a_change_of_pose_and_expression_is_measured_against_the_face_in_the_same_place():
    before = faces(
        [
            face(None, box=(0, 0, 30, 30), pose=Pose(40, 0, 0), landmarks={468: mesh(0.3)}),
            face(None, box=(50, 50, 90, 90), pose=Pose(3, 4, 0), landmarks={468: mesh(0.1)}),
        ]
    )
    after = faces(
        [
            face(box=(102, 98, 178, 182), pose=Pose(0, 0, 0), landmarks={468: mesh(0.1) * 2}),
            face(box=(2, 1, 60, 62), pose=Pose(40, 0, 20), landmarks={468: mesh(0.3, left=0.0)}),
        ],
        size=(192, 192),
    )
    stays, changes = score(torch.full((1, 192, 192, 3), 0.5), after, person(), target=before)
    assert stays.pose_error == pytest.approx(5, abs=0.02) and stays.expression_error == pytest.approx(0, abs=1e-6)
    assert "pose_changed" not in stays.flags and "expression_changed" not in stays.flags
    assert changes.pose_error == pytest.approx(20, abs=1e-6) and changes.expression_error == pytest.approx(0.1 / 3)
    assert {"pose_changed", "expression_changed"} <= set(changes.flags) and not changes.passed
    assert changes.score < stays.score


def test_a_face_without_a_counterpart_says_so_and_one_target_serves_a_batch():
    (record,) = score(GREY, faces([face()]), person(), target=faces([]))
    assert "no_target_face" in record.flags and record.pose_error is None
    one = faces([face(None, pose=Pose(0, 0, 0))])
    batch = faces(*[[face(pose=Pose(angle, 0, 0))] for angle in (0.0, 6.0)])
    records = score(GREY.expand(2, -1, -1, -1), batch, person(), target=one)
    assert [r.pose_error for r in records] == pytest.approx([0, 6], abs=1e-6)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-80, 80), min_size=6, max_size=6))
def test_the_pose_error_is_the_angle_between_the_rotations(angles):
    def rotation(x, y, z):
        x, y, z = np.radians([x, y, z])
        rx = np.array([[1, 0, 0], [0, np.cos(x), -np.sin(x)], [0, np.sin(x), np.cos(x)]])
        ry = np.array([[np.cos(y), 0, np.sin(y)], [0, 1, 0], [-np.sin(y), 0, np.cos(y)]])
        rz = np.array([[np.cos(z), -np.sin(z), 0], [np.sin(z), np.cos(z), 0], [0, 0, 1]])
        return rz @ ry @ rx

    a, b = rotation(*angles[:3]), rotation(*angles[3:])
    expected = np.degrees(np.arccos(np.clip((np.trace(a.T @ b) - 1) / 2, -1, 1)))
    got = pose_error(pose_of_rotation(a), pose_of_rotation(b))
    assert got == pytest.approx(expected, abs=1e-4)
    assert got == pytest.approx(pose_error(pose_of_rotation(b), pose_of_rotation(a)), abs=1e-6)


def test_openings_are_read_off_the_mesh_at_any_size_and_however_the_head_is_turned():
    for points in (mesh(0.25, 0.1, 0.02), mesh(0.25, 0.1, 0.02) * 7 + 50, mesh(0.25, 0.1, 0.02, turn=40)):
        got = openings(face(None, landmarks={468: points}))
        assert (got.mouth, got.left_eye, got.right_eye) == pytest.approx((0.25, 0.1, 0.02), abs=1e-4)
    assert openings(face(None)) is None
    assert openings(face(None, landmarks={468: np.zeros((468, 3), np.float32)})) is None


def test_expressions_are_compared_in_one_scheme_only():
    sixty_eight = face(None, landmarks={68: np.random.default_rng(0).uniform(0, 90, (68, 2)).astype(np.float32)})
    assert expression_error(face(None, landmarks={468: mesh()}), sixty_eight) is None
    assert expression_error(sixty_eight, sixty_eight) == 0


def test_copy_paste_follows_the_paper():
    reference, other = vector(1), vector(0, 1)
    assert copy_paste(reference, reference, [other]) == pytest.approx(1, abs=1e-6)
    assert copy_paste(other, reference, [other]) == pytest.approx(-1, abs=1e-6)
    assert copy_paste(vector(1, 1), reference, [other]) == pytest.approx(0, abs=1e-6)
    # 30° from the reference, 60° from the other, which are 90° apart: (60 - 30) / 90.
    third = vector(math.cos(math.pi / 6), math.sin(math.pi / 6))
    assert copy_paste(third, reference, [other]) == pytest.approx(1 / 3, abs=1e-6)
    assert copy_paste(third * 9, reference * 3, [other, third]) == pytest.approx((1 / 3 - 1) / 2, abs=1e-6)
    assert copy_paste(third, reference, [reference]) == pytest.approx(0, abs=1e-6)


vectors = st.lists(st.floats(-1, 1, width=32), min_size=3, max_size=3).map(lambda v: np.array(v, np.float32))


@settings(max_examples=60, deadline=None)
@given(*[vectors.filter(lambda v: np.linalg.norm(v) > 1e-2)] * 3)
def test_copy_paste_stays_within_one(generated, reference, other):
    assert -1 <= copy_paste(generated, reference, [other]) <= 1


def test_copy_paste_is_measured_where_further_pictures_are_given():
    more = [Embedding(vector(0, 1), JUDGE)]
    (record,) = score(GREY, faces([face()]), person(), references=more)
    assert record.copy_paste == pytest.approx(1, abs=1e-6) and "copy_paste" in record.flags and not record.passed
    (named,) = score(GREY, faces([face()]), person(), references={"Bob": more})
    assert named.copy_paste is None


def test_the_scale_of_similarity_meets_a_half_at_the_threshold():
    assert [likeness(s, 0.4) for s in (-0.5, 0, 0.2, 0.4, 0.7, 1)] == pytest.approx([0, 0, 0.25, 0.5, 0.75, 1])
    assert [agreement(e, 10) for e in (0, 5, 10, 20, 90)] == pytest.approx([1, 0.75, 0.5, 0, 0])


def test_only_what_was_measured_counts():
    (record,) = score(GREY, faces([face()]))
    assert record.score == pytest.approx(record.quality) and record.similarity is None
    (compared,) = score(GREY, faces([face()]), person(), weights=Weights(1, 0, 0, 0))
    assert compared.score == pytest.approx(1)
    (empty,) = score(GREY, faces([face()]), weights=Weights(1, 0, 0, 0))
    assert empty.score == 0


cosines = st.floats(-1, 1)


@settings(max_examples=25, deadline=None)
@given(cosines, st.floats(0, 180), st.floats(0, 2), st.tuples(*[st.floats(0, 5)] * 4), st.floats(-1, 1))
def test_the_score_lies_between_zero_and_one_and_failures_explain_every_failure(cosine, turn, mouth, weight, same):
    one = face((cosine, math.sqrt(1 - cosine * cosine)), pose=Pose(turn, 0, 0), landmarks={468: mesh(mouth)})
    before = faces([face(None, pose=Pose(0, 0, 0), landmarks={468: mesh()})])
    (record,) = score(
        GREY, faces([one]), person(), target=before, weights=Weights(*weight), limits=Limits(similarity=same)
    )
    assert 0 <= record.score <= 1
    assert record.passed == (not set(record.flags) & set(FAILURES))
    json.dumps(record.to_json(), allow_nan=False)


@pytest.mark.parametrize("low", [0.1, 0.3, 0.6])
def test_more_similarity_never_lowers_the_score(low):
    records = [score(GREY, faces([face((c, math.sqrt(1 - c * c)))]), person())[0] for c in (low, low + 0.2)]
    assert records[0].score < records[1].score


def record(image, value=None, at=0, **more):
    return FaceScore(image, None if value is None else at, value or 0.0, False, **more)


def test_best_of_is_stable_and_puts_what_has_no_value_last():
    scores = [record(0, 0.5), record(1), record(2, 0.9), record(3, 0.5), record(4, 0.2), record(4, 0.9, 1)]
    assert best_of(scores, 6) == [2, 4, 0, 3, 1]
    assert best_of(scores, 2) == [2, 4]
    assert best_of([record(i, 0.5) for i in range(7)], 7) == list(range(7))
    turned = [replace(record(i, 0.5), pose_error=error) for i, error in enumerate((5.0, None, 1.0, math.nan))]
    assert best_of(turned, 4, "pose_error") == [2, 0, 1, 3]


def test_gate_divides_the_batch_in_order():
    scores = [record(0, 0.5), record(1), record(2, 0.9), record(3, 0.49999)]
    assert gate(scores, 0.5).mask == (True, False, True, False)
    assert (gate(scores, 0.5).passed, gate(scores, 0.5).failed) == ((0, 2), (1, 3))
    turned = [replace(record(i, 0.5), pose_error=error) for i, error in enumerate((5.0, 12.0, None))]
    assert gate(turned, 10, "pose_error").mask == (True, False, False)
    assert gate([replace(record(0, 0.1), passed=True), record(1, 0.9)]).mask == (True, False)
    assert gate([], pictures=2).mask == (False, False)


@pytest.mark.parametrize("key", ["similarity", "copy_paste", "pose_error", "expression_error"])
def test_to_gate_by_what_was_not_measured_is_a_sentence_and_not_nobody(key):
    with pytest.raises(BadInput, match=f"gated by {key}, because it was not measured on any face: it needs (an|the) "):
        gate([replace(record(0, 0.5), similarity=None), record(1)], 0.5, key)
    assert gate([record(0), record(1)], 0.5, key).mask == (False, False)


def test_unknown_keys_and_too_short_batches_are_refused():
    with pytest.raises(BadInput, match="beauty"):
        best_of([record(0, 0.5)], 1, "beauty")
    with pytest.raises(BadInput, match="at least 1"):
        best_of([record(0, 0.5)], 0)
    with pytest.raises(BadInput, match="batch has 1"):
        gate([record(1, 0.5)], 0.5, pictures=1)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.one_of(st.none(), st.floats(0, 1)), min_size=1, max_size=12), st.sampled_from(KEYS), st.floats(0, 1))
def test_ranking_loses_no_picture_and_the_gate_keeps_the_best(values, key, limit):
    scores = [replace(record(i, 0.5), **{key: v if v is not None else (0.0 if key == "score" else None)})
              for i, v in enumerate(values)]  # fmt: skip
    order = best_of(scores, len(values), key)
    assert sorted(order) == list(range(len(values)))
    if all(value is None for value in values) and key != "score":
        with pytest.raises(BadInput, match="was not measured"):
            gate(scores, limit, key)
        return
    divided = gate(scores, limit, key)
    assert sorted((*divided.passed, *divided.failed)) == list(range(len(values)))
    assert set(order[: len(divided.passed)]) == set(divided.passed)


def test_every_threshold_names_its_source():
    assert threshold("sface").same == 0.363
    for name in ("sface", "mobilefacenet", "w600k_r50"):
        assert 0 < threshold(name).same < 1 and threshold(name).source


def needs(*embedders):
    for name in embedders:
        try:
            contract(name)
        except MissingModel as error:
            pytest.skip(str(error))


def test_a_second_network_judges_where_there_is_one():
    needs("sface", "mobilefacenet")
    of_b = identity_of("person_b_1")
    name = choose(of_b, {of_b.contract})
    assert contract(name) != of_b.contract
    assert choose(of_b, {contract("mobilefacenet")}) != "mobilefacenet"
    without = Identity(of_b.contract, tuple(replace(p, references=()) for p in of_b.people))
    assert choose(without, {of_b.contract}) == "sface"
    with pytest.raises(BadInput, match="reference"):
        seen_by(without, "mobilefacenet")
    again = seen_by(of_b, "mobilefacenet")
    (same,) = score(picture("person_b_2"), embedded("person_b_2", "mobilefacenet"), again)
    (other,) = score(picture("impostor_1"), embedded("impostor_1", "mobilefacenet"), again)
    assert same.similarity > 0.6 > 0.4 > other.similarity


def test_pictures_are_looked_at_embedded_by_a_second_judge_and_compared_with_their_target():
    needs("sface", "mobilefacenet")
    pytest.importorskip("likeness.face.attributes")
    of_b = identity_of("person_b_1")
    image = picture("person_b_2")
    (seen,) = score_images(
        image, of_b, target=image, references=picture("person_b_1"), drivers={of_b.contract}, limits=Limits(quality=0.4)
    )
    assert seen.judge != "sface" and "judge_drove_swap" not in seen.flags
    assert seen.similarity > 0.6 and seen.passed
    assert seen.pose_error == pytest.approx(0, abs=1e-4) and seen.expression_error == pytest.approx(0, abs=1e-6)
    assert seen.copy_paste == pytest.approx(0, abs=0.05)
    (empty,) = score_images(torch.zeros(1, 64, 64, 3), of_b, embedder="sface")
    assert empty.flags == ("no_face",)


def test_files_are_compared_with_a_verdict(tmp_path):
    needs("sface")
    pytest.importorskip("likeness.face.attributes")
    b1, b2, other = (path_of(name) for name in ("person_b_1", "person_b_2", "impostor_2"))
    same = score_files(b1, b2)
    assert same["verdict"] == "same" and same["similarity"] > 0.58 and same["flags"] == []
    assert same["a"]["faces"] == 1 and same["b"]["face"]["quality"] > 0.8
    different = score_files(b1, other)
    assert different["verdict"] == "different" and different["similarity"] < 0.3
    assert score_files(b1, b2, similarity=same["similarity"] + 0.01)["verdict"] == "uncertain"
    assert same["thresholds"]["different"] < same["thresholds"]["centre"] == 0.363 < same["thresholds"]["same"]
    from PIL import Image

    Image.new("RGB", (80, 60), (90, 90, 90)).save(tmp_path / "wall.png")
    nobody = score_files(b1, tmp_path / "wall.png")
    assert nobody["verdict"] == "no_face" and nobody["flags"] == ["no_face_b"] and nobody["similarity"] is None
    for answer in (same, different, nobody):
        assert json.loads(json.dumps(answer, allow_nan=False)) == answer
    with pytest.raises(BadImage):
        score_files(b1, tmp_path / "none.png")
