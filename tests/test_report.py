"""The contact sheet and the JSON."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from likeness.face.errors import BadInput
from likeness.face.report import (
    BAD,
    BAR,
    GOOD,
    GREY,
    LABEL,
    MAT,
    PANEL,
    SCHEMA,
    THUMB,
    Row,
    _chip_width,
    _chips,
    _font,
    fit,
    length,
    rows,
    sheet,
    to_json,
)
from likeness.face.score import Limits
from likeness.face.types import Contract, FaceScore

JUDGE = Contract("sface", "a" * 64, 128, False, "arcface-112 RGB 0..255")
PASSED = FaceScore(
    0,
    0,
    0.8,
    True,
    person="Ada",
    similarity=0.7,
    judge="sface",
    copy_paste=0.1,
    quality=0.9,
    parts={"size": 1.0},
    pose_error=2.0,
    expression_error=0.01,
    flags=("too_bright",),
    box=(10.0, 10.0, 40.0, 40.0),
)
FAILED = replace(PASSED, score=0.2, passed=False, similarity=0.1, flags=("low_similarity",))
NOBODY = FaceScore(0, None, 0.0, False, judge="sface", flags=("no_face",))


def a_sheet(*records, shape=(50, 50), **more):
    pictures = (("source", torch.rand(*shape, 3)), ("result", torch.full((*shape, 3), 0.5)))
    return sheet([Row(pictures, (record,), "a.png") for record in records], **more)


def pixels(image, colour):
    """How many pixels of a sheet have exactly this colour."""
    return int((image[0] * 255).round().eq(torch.tensor(colour, dtype=torch.float32)).all(-1).sum())


def test_a_bar_grows_with_its_value():
    widths = [length(v, 1.0, BAR) for v in (-0.5, 0, 0.001, 0.2, 0.5, 0.9, 1, 3)]
    assert widths == sorted(widths)
    assert widths[:2] == [0, 0] and widths[2] == 2 and widths[-2:] == [BAR, BAR]
    assert [length(v, 1.0, BAR) for v in (None, math.nan)] == [0, 0]


def test_a_drawn_bar_grows_with_its_value():
    drawn = [pixels(a_sheet(replace(PASSED, similarity=s)), GOOD) for s in (0.4, 0.6, 0.8, 1.0)]
    assert drawn == sorted(drawn) and drawn[-1] - drawn[0] > 0.5 * BAR * 10


def test_passing_is_blue_and_failing_is_vermilion():
    good, bad = (a_sheet(r) for r in (PASSED, FAILED))
    assert pixels(good, GOOD) > 500 and pixels(good, BAD) == 0
    assert pixels(bad, BAD) > 100


def test_passing_and_failing_differ_without_colours():
    good = a_sheet(replace(PASSED, flags=()))
    bad = a_sheet(replace(PASSED, passed=False, flags=()))
    x = slice(16 + 16 + 2 * (THUMB + 12), 16 + 16 + 2 * (THUMB + 12) + 22)
    marks = [image[0, 58:90, x].mean(-1) < 0.9 for image in (good, bad)]
    assert (marks[0] != marks[1]).float().mean() > 0.05


@pytest.mark.parametrize("count", [0, 1, 3, 12])
def test_any_number_of_pictures_makes_a_sheet(count):
    image = a_sheet(*[(PASSED, FAILED, NOBODY)[i % 3] for i in range(count)])
    assert image.shape[0] == 1 and image.shape[-1] == 3 and image.dtype == torch.float32
    assert float(image.min()) >= 0 and float(image.max()) <= 1
    assert 0.25 < image.shape[2] / image.shape[1] < 6


def test_rows_beyond_the_most_are_counted_not_drawn():
    three, four = (a_sheet(*[PASSED] * n, most=3) for n in (3, 4))
    assert three.shape[2] == four.shape[2] and 0 < four.shape[1] - three.shape[1] < 60


@pytest.mark.parametrize("shape", [(1, 1), (8, 8), (50, 900), (900, 50), (1, 2000), (2160, 3840)])
def test_any_shape_of_picture_keeps_its_place(shape):
    assert a_sheet(PASSED, shape=shape).shape == a_sheet(PASSED).shape


def test_a_portrait_keeps_its_proportions():
    picture = torch.zeros(100, 50, 3)
    image = sheet([Row((("result", picture),), (replace(NOBODY, flags=()),))])[0]
    place = image[16 + 16 + 26 + 20 : 16 + 16 + 26 + 20 + THUMB, 16 + 16 : 16 + 16 + THUMB]
    black = (place == 0).all(-1)
    assert int(black.any(0).sum()) == THUMB // 2 and int(black.any(1).sum()) == THUMB


def test_a_small_face_is_shown_enlarged():
    picture = torch.zeros(1000, 1000, 3)
    picture[600:640, 700:740] = torch.tensor([0.0, 1.0, 0.0])
    record = replace(PASSED, box=(700.0, 600.0, 740.0, 640.0))
    place = sheet([Row((("result", picture),), (record,))])
    assert pixels(place, (0, 255, 0)) > 50 * 50
    record = replace(record, box=None)
    assert pixels(sheet([Row((("result", picture),), (record,))]), (0, 255, 0)) < 12 * 12


def test_measures_nobody_has_are_left_out():
    bare = FaceScore(0, 0, 0.9, True, quality=0.9)
    assert pixels(a_sheet(bare), GOOD) < pixels(a_sheet(PASSED), GOOD)


def test_names_are_shortened_to_their_place():
    font = _font(16)
    name = "a_very_long_name_" * 30 + "7.png"
    short = fit(name, font, 300)
    assert font.getlength(short) <= 300 and short.startswith("a_very") and short.endswith("7.png") and "…" in short
    assert fit("two\nlines", font, 300) == "two lines"
    assert a_sheet(PASSED).shape == sheet([Row((("s", None), ("r", torch.zeros(9, 9, 3))), (PASSED,), name)]).shape


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=80), st.integers(0, 400))
def test_no_text_is_wider_than_its_place(text, width):
    font = _font(14)
    short = fit(text, font, width)
    assert font.getlength(short) <= max(width, font.getlength("…"))


def test_flags_never_leave_the_panel():
    names = [f"a_flag_number_{i}_of_many" for i in range(40)]
    lines = _chips(replace(PASSED, flags=tuple(names)), PANEL)
    assert len(lines) == 3
    for line in lines:
        assert sum(_chip_width(flag) for flag in line) + 6 * (len(line) - 1) <= PANEL
    shown = [flag for line in lines for flag in line]
    assert shown[-1] == f"+{40 - len(shown) + 1}" and shown[:-1] == names[: len(shown) - 1]
    one = _chips(replace(PASSED, flags=("x" * 300,)), PANEL)
    assert one == [["x" * 300]]
    assert a_sheet(replace(PASSED, flags=("x" * 300, *names))).shape[2] == a_sheet(PASSED).shape[2]


def test_cards_do_not_reach_into_each_other():
    image = a_sheet(*[replace(PASSED, flags=tuple(f"flag_{i}" for i in range(30)))] * 4)[0]
    mat = torch.tensor(MAT, dtype=torch.float32) / 255
    empty_columns = (image - mat).abs().amax(-1).amax(0) < 1e-3
    empty_rows = (image - mat).abs().amax(-1).amax(1) < 1e-3
    # A frame of 16, and gutters of 12 between the cards.
    assert bool(empty_columns[:16].all() and empty_columns[-16:].all())
    assert int(empty_columns.sum()) >= 32 and int(empty_rows.sum()) >= 32
    assert int(empty_columns.sum()) + int(empty_rows.sum()) >= 64 + 12


def test_rows_put_each_picture_beside_its_scores():
    batch = torch.rand(3, 20, 30, 3)
    scores = [replace(PASSED, image=0), replace(NOBODY, image=1), replace(PASSED, image=2), replace(FAILED, image=2)]
    made = rows(scores, batch, source=torch.rand(1, 9, 9, 3), target=torch.rand(3, 20, 30, 3))
    assert [len(row.scores) for row in made] == [1, 1, 2]
    assert [title for title, _ in made[0].pictures] == ["source", "target", "result"]
    assert torch.equal(made[2].pictures[-1][1], batch[2])
    assert made[1].caption == "picture 2 of 3"
    assert sheet(made, title="three").shape[0] == 1


def test_rows_of_another_batch_are_refused():
    with pytest.raises(BadInput, match="beyond"):
        rows([replace(PASSED, image=3)], torch.rand(2, 9, 9, 3))
    with pytest.raises(BadInput, match="source"):
        rows([], torch.rand(3, 9, 9, 3), source=torch.rand(2, 9, 9, 3))
    with pytest.raises(BadInput, match="captions"):
        rows([], torch.rand(3, 9, 9, 3), captions=["one"])


def test_the_json_comes_back_as_it_went():
    scores = [PASSED, replace(NOBODY, image=1), replace(FAILED, image=2)]
    plain = to_json(scores, judge=JUDGE, drivers={JUDGE}, settings={"detector": "yunet"}, captions=["a", "b", "c"])
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert plain["schema"] == SCHEMA and plain["judge"]["digest"] == JUDGE.digest
    assert plain["limits"]["similarity"] == 0.363 and plain["settings"] == {"detector": "yunet"}
    assert plain["summary"] == {
        "pictures": 3,
        "faces": 2,
        "faces_passed": 1,
        "pictures_passed": 1,
        "best_picture": 0,
    }
    assert plain["pictures"][0]["faces"][0]["similarity"] == 0.7 and plain["pictures"][1]["caption"] == "b"


def test_numbers_that_json_does_not_know_become_null():
    odd = replace(PASSED, similarity=math.nan, parts={"size": math.inf, "n": np.float32(0.5)})
    plain = to_json([odd], settings={"limits": Limits(), "device": torch.device("cpu")})
    face = plain["pictures"][0]["faces"][0]
    assert face["similarity"] is None and face["parts"] == {"size": None, "n": 0.5}
    json.dumps(plain, allow_nan=False)


def test_what_nobody_gave_does_not_stand_in_the_json():
    plain = to_json([PASSED])
    assert "settings" not in plain and "caption" not in plain["pictures"][0]


def test_an_empty_report_is_one():
    assert to_json([])["summary"]["best_picture"] is None
    assert pixels(sheet([]), GREY) > 0


def test_labels_fit_beside_the_bars():
    for label in ("similarity", "quality", "copy-paste", "head turned", "expression"):
        assert _font(14).getlength(label) <= LABEL - 6
