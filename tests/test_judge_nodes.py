"""Judge Attributes and Attribute Report, as a graph would call them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from likeness.face.cure import report
from likeness.face.cure.judge import Verdict
from likeness.face.cure.words import Attribute, parse_list
from likeness.face.errors import BadInput
from likeness.face.report import BAD, GOOD, GREY
from likeness.face.score import Limits
from likeness.face.types import Face, Faces, FaceScore
from likeness.nodes import host as hosts
from likeness.nodes.judge import AttributeReport, JudgeAttributes, Verdicts, listed
from likeness.nodes.score import Scores
from PIL import Image

SIZE = 96
POINTS = np.array([[40, 40], [60, 40], [50, 52], [42, 62], [58, 62]], np.float32)
FACE = Face(np.array([30, 25, 70, 75], np.float32), POINTS, 0.9, age=70.0, gender="male")
FACES = Faces(((FACE,), ()), ((SIZE, SIZE),) * 2)
IMAGE = torch.rand(2, SIZE, SIZE, 3)


@pytest.fixture(autouse=True)
def _host(tmp_path):
    hosts.use(hosts.StandaloneNodeHost(tmp_path / "models", tmp_path))
    yield
    hosts.use(None)


def judged(text, image=IMAGE, faces=FACES, read_as="list", **more):
    return JudgeAttributes().run(image, text, read_as, "auto", faces, **more)


def verdicts(*states):
    """One picture a row of states."""
    wanted = tuple(Attribute(f"thing {n}", "any") for n in range(len(states[0])))
    rows = tuple(
        tuple(
            Verdict(a.text, p, None if p is None else 0.9 * p + 0.05, "clip") for a, p in zip(wanted, row, strict=True)
        )
        for row in states
    )
    return Verdicts(wanted, rows)


def test_a_batch_with_and_without_a_face_is_judged():
    answer = judged("elderly, young, blue mood")
    told, missing, unjudged, everything, details = answer["result"]
    assert [v.present for v in told.pictures[0]] == [True, False, None]
    assert [v.present for v in told.pictures[1]] == [None] * 3
    assert (missing, unjudged, everything) == ("young", "elderly, blue mood", False)
    record = json.loads(details)
    assert record["missing"] == ["young"] and len(record["pictures"]) == 2
    assert "no face in the picture" in answer["ui"]["text"][0]


def test_all_present_only_where_everything_was_found():
    one = Faces(((FACE,),), ((SIZE, SIZE),))
    assert judged("elderly", IMAGE[:1], one)["result"][3] is True
    assert judged("elderly, blue mood", IMAGE[:1], one)["result"][3] is False
    assert judged("elderly")["result"][3] is False


def test_a_prompt_is_split_and_one_without_attributes_is_told_so():
    told = judged("portrait of an old man with curly red hair, laughing", read_as="prompt")["result"][0]
    assert {a.kind for a in told.attributes} >= {"hair", "expression"}
    answer = judged("", read_as="prompt")
    assert answer["result"][1:4] == ("", "", True) and "no attribute" in answer["ui"]["text"][0]


def test_what_is_missing_can_be_read_again_as_a_list():
    wanted = (
        Attribute("red, curly hair", "hair", "hair", ("hair",)),
        Attribute("round glasses", "glasses", "glasses", ("glasses",), strength=0.6),
    )
    again = parse_list(listed(wanted))
    assert [(a.text, a.kind, a.strength) for a in again] == [
        ("red curly hair", "hair", 1),
        ("round glasses", "glasses", 0.6),
    ]


def test_half_a_clip_is_refused():
    with pytest.raises(BadInput, match="clip is connected and clip_vision is not"):
        judged("red hair", clip=object())


def scores(*values, judge="sface", flags=()):
    records = tuple(
        FaceScore(i, 0, 0.5, True, person="Ada", similarity=v, judge=judge, flags=flags) for i, v in enumerate(values)
    )
    return Scores(records, len(values), Limits())


def pixels(image, colour):
    return int((image[0] * 255).round().eq(torch.tensor(colour, dtype=torch.float32)).all(-1).sum())


def test_the_report_is_drawn_and_written(tmp_path):
    before, after = verdicts((False, None), (True, False)), verdicts((True, None), (True, False))
    answer = AttributeReport().run(
        IMAGE, before, IMAGE, after, "Cured", "likeness/cure", scores(0.7, 0.6), scores(0.69, 0.61)
    )
    sheet, record = answer["result"]
    assert sheet.shape[0] == 1 and pixels(sheet, GOOD) > 50 and pixels(sheet, BAD) > 50
    found = json.loads(record)
    assert found["summary"]["present"] == {"before": 1, "after": 2}
    assert found["summary"]["not_judged"] == {"before": 1, "after": 1}
    assert found["pictures"][0]["similarity"] == {"before": 0.7, "after": 0.69}
    assert found["pictures"][0]["attributes"][0]["before"]["present"] is False
    (saved,) = answer["ui"]["images"]
    file = next(Path(tmp_path).rglob(saved["filename"]))
    assert Image.open(file).size == (sheet.shape[2], sheet.shape[1])
    assert json.loads(file.with_suffix(".json").read_text()) == found
    assert "missing → present" in answer["ui"]["text"][0] and "0.70 → 0.69" in answer["ui"]["text"][0]


def test_not_judged_is_drawn_neither_as_present_nor_as_missing():
    black = torch.zeros(1, SIZE, SIZE, 3)
    blank = report.side(black, verdicts((None, None)).pictures)
    sheet = report.sheet(blank, blank)
    assert pixels(sheet, GOOD) == pixels(sheet, BAD) == 0 and pixels(sheet, GREY) > 50


def test_a_judge_that_took_part_is_named_so():
    told = verdicts((True,), (True,))
    doubted = scores(0.7, 0.6, flags=("judge_drove_swap",))
    sides = [report.side(IMAGE, told.pictures, doubted.records)] * 2
    assert report.to_json(*sides)["similarity_judge"] == {"model": "sface", "took_part": True}
    free = [report.side(IMAGE, told.pictures, scores(0.7, 0.6).records)] * 2
    assert not torch.equal(report.sheet(*sides), report.sheet(*free))


@pytest.mark.parametrize("count", [1, 3, 60])
def test_any_number_of_pictures_makes_a_sheet(count):
    told = verdicts(*[(True, False, None)] * count)
    one = report.side(torch.rand(count, 8, 6, 3), told.pictures)
    sheet = report.sheet(one, one, most=8)
    assert sheet.shape[0] == 1 and 0.2 < sheet.shape[2] / sheet.shape[1] < 6


def test_pictures_and_verdicts_of_other_batches_are_refused():
    told = verdicts((True,), (True,))
    with pytest.raises(BadInput, match="verdicts are those of 2 pictures"):
        report.side(IMAGE[:1], told.pictures)
    with pytest.raises(BadInput, match="need as many from before"):
        report.sheet(report.side(IMAGE[:1], told.pictures[:1]), report.side(IMAGE, told.pictures))
    with pytest.raises(BadInput, match="scores are those of 1 picture"):
        AttributeReport().run(IMAGE, told, IMAGE, told, "", "likeness/cure", scores(0.5))
