"""Judges of attributes: what nobody can tell is not judged, and never present."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from likeness.face.cure import judge as judging
from likeness.face.cure.judge import (
    Evidence,
    Verdict,
    age_gender,
    choices,
    classifier,
    clip,
    expression,
    judge_all,
    parser,
)
from likeness.face.cure.judge._words import negated, words
from likeness.face.cure.words import Attribute
from likeness.face.errors import BadInput, BadModelFile, MissingModel
from likeness.face.host import STANDALONE, StandaloneHost
from likeness.face.image import load_picture
from likeness.face.models import catalogue, status
from likeness.face.parse import LABELS
from likeness.face.types import Face, Faces
from likeness.tests import tiny, tiny_diffusion

SIZE = 128
PICTURE = torch.rand(SIZE, SIZE, 3, generator=torch.Generator().manual_seed(1))
POINTS = np.array([[52, 56], [76, 56], [64, 70], [54, 82], [74, 82]], np.float32)
FACE = Face(np.array([40, 36, 88, 98], np.float32), POINTS, 0.9)
FACES = Faces(((FACE,),), ((SIZE, SIZE),))
NOBODY = Faces(((),), ((SIZE, SIZE),))
HAIR = Attribute("red hair", "hair", "hair", ("hair",))
LAUGH = Attribute("laughing", "expression", abstract=True)


def attribute(text, *labels, **more):
    return Attribute(text, "any", labels=labels, **more)


@pytest.fixture
def host(tmp_path):
    (tmp_path / "likeness").mkdir()
    return StandaloneHost(models=tmp_path)


def one(host, wanted, faces=FACES, picture=PICTURE, **more):
    return judge_all(picture[None], [wanted], faces=faces, host=host, **more)[0][0]


def open_mouth(face, gap):
    """``face`` with a mesh whose mouth is open by ``gap`` of the eye distance, and whose eyes are open."""
    mesh = np.zeros((468, 3), np.float32)
    for corner, x in ((33, -40), (133, -20), (362, 20), (263, 40)):
        mesh[corner] = (x, 0, 0)
    for _, lower in ((82, 87), (13, 14), (312, 317)):
        mesh[lower] = (0, gap * 60, 0)
    for _, lower in ((160, 144), (159, 145), (158, 153), (385, 380), (386, 374), (387, 373)):
        mesh[lower] = (0, 0.1 * 60, 0)
    return replace(face, landmarks={468: mesh})


def test_what_no_judge_knows_is_not_judged(host):
    told = one(host, attribute("glorbous"))
    assert told.present is None and told.score is None and told.judge == "" and told.details


@given(st.text(max_size=30))
def test_without_a_network_nothing_is_present_but_what_the_mesh_measures(text):
    host = StandaloneHost(models=Path("/nowhere"))
    assert one(host, attribute(text)).present is None


def test_without_a_face_everything_of_a_face_is_not_judged_and_says_so(host):
    for wanted in (HAIR, LAUGH, attribute("young"), attribute("no glasses", "glasses")):
        told = one(host, wanted, NOBODY, similarity=Space({}))
        assert told.present is None and "no face" in told.details


def test_no_attribute_and_several_pictures(host):
    faces = Faces(((FACE,), ()), ((SIZE, SIZE),) * 2)
    assert judge_all(torch.stack([PICTURE] * 2), [], faces=faces, host=host) == ((), ())
    rows = judge_all(torch.stack([PICTURE] * 2), [HAIR, LAUGH], faces=faces, host=host)
    assert [len(row) for row in rows] == [2, 2]


def test_an_unknown_judge_is_refused(host):
    with pytest.raises(BadInput, match="no judge called 'oracle'"):
        one(host, HAIR, judges=["oracle"])
    assert choices(host) == ["auto", "mesh", "age-gender", "clip"]


# Words


def test_words_and_negations():
    assert words("a very angry-looking man's hat") == ("angry", "man", "hat")
    assert negated("no round glasses") == "round glasses" and negated("without a hat") == "a hat"
    assert negated("nordic hat") is None and negated("no") is None


class Says:
    """A judge for the tests: answers from a table."""

    def __init__(self, rank, table):
        self.rank, self.table = rank, table

    def names(self, host):
        return [f"says{self.rank}"]

    def judge(self, name, picture, face, wanted, evidence, host):
        told = self.table.get(wanted.text)
        return told and replace(told, attribute=wanted.text, judge=name)


@pytest.mark.parametrize(
    ("first", "second", "present"),
    [
        (Verdict("", True, 0.9), Verdict("", False, 0.1), True),  # the first that answers all of it
        (Verdict("", True, 0.9, unsaid=("curly",)), Verdict("", True, 0.7), True),
        (Verdict("", True, 0.9, unsaid=("curly",)), Verdict("", True, 0.7, unsaid=("red",)), True),
        (Verdict("", True, 0.9, unsaid=("curly",)), Verdict("", False, 0.2), False),
        (Verdict("", True, 0.9, unsaid=("curly",)), None, None),
        (Verdict("", True, 0.9, unsaid=("curly",)), Verdict("", True, 0.9, unsaid=("curly",)), None),
        (Verdict("", True, 0.9, unsaid=("curly",)), Verdict("", None, details="dark"), None),
        (Verdict("", None, details="dark"), Verdict("", True, 0.8), True),
        (None, None, None),
    ],
)
def test_verdicts_are_joined_as_three_valued_logic_joins_them(monkeypatch, host, first, second, present):
    text = "curly red hair"
    entries = [Says(2, {text: second}), Says(1, {text: first})]
    monkeypatch.setattr(judging, "judges", entries)
    told = one(host, attribute(text))
    assert told.present is present and (told.score is None) == (present is None)
    assert not (present and told.unsaid)
    negative = one(host, attribute(f"no {text}"))
    assert negative.present is (None if present is None else not present)


# Networks


def celeba(path, values):
    """A classifier that answers ``values`` (40,) whatever it sees."""
    return constant(path, [1, 3, 64, 64], values)


def constant(path, shape, values):
    helper, base = tiny.helper, tiny._constant
    nodes = [
        helper.make_node("GlobalAveragePool", ["x"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["mean"]),
        helper.make_node("Gemm", ["mean", "w", "b"], ["y"]),
    ]
    constants = [base("w", np.zeros((shape[1], len(values)))), base("b", np.array(values))]
    graph = helper.make_graph(nodes, "tiny", [tiny._info("x", shape)], [tiny._info("y", [1, len(values)])], constants)
    return tiny._save(graph, path)


def forty(**odds):
    logits = np.full(40, -3.0)
    for name, value in odds.items():
        logits[classifier.NAMES.index(name)] = value
    return logits


def test_a_classifier_of_forty_attributes(host, tmp_path):
    assert len(classifier.NAMES) == 40
    celeba(tmp_path / "likeness" / "celeba_tiny.onnx", forty(Eyeglasses=2, Black_Hair=3, Wavy_Hair=1, Smiling=2))
    assert one(host, attribute("glasses", "glasses")).present is True
    assert one(host, attribute("a hat", "hat")).present is False
    assert one(host, attribute("wavy black hair", "hair")).score == pytest.approx(1 / (1 + np.exp(-1)))
    assert one(host, attribute("bearded")).present is True  # No_Beard is unlikely
    # Curls, laughing and a round rim are beyond the forty; that there is no hat is not.
    for text in ("curly black hair", "laughing", "round glasses", "sunglasses"):
        assert one(host, attribute(text), judges="celeba_tiny").present is None, text
    assert one(host, attribute("beanie"), judges="celeba_tiny").present is False
    celeba(tmp_path / "likeness" / "celeba_tiny.onnx", forty(Young=3))
    assert one(host, attribute("old"), judges="celeba_tiny").present is False
    assert one(host, attribute("20 years old"), judges="celeba_tiny").present is None


def test_probabilities_and_logits_are_told_apart(tmp_path):
    from likeness.face.session import OnnxModel

    odds = np.linspace(0, 1, 40)
    model = OnnxModel(celeba(tmp_path / "celeba_a.onnx", odds))
    assert classifier.probabilities(model, PICTURE, FACE) == pytest.approx(odds, abs=1e-6)
    model = OnnxModel(celeba(tmp_path / "celeba_b.onnx", odds * 9 - 4))
    assert classifier.probabilities(model, PICTURE, FACE) == pytest.approx(1 / (1 + np.exp(4 - odds * 9)), abs=1e-6)


@pytest.mark.parametrize(
    ("name", "shape", "count", "wanted"),
    [
        ("celeba_other", [1, 3, 64, 64], 39, attribute("glasses", "glasses")),
        ("celeba_grey", [1, 1, 64, 64], 40, attribute("glasses", "glasses")),
        ("emotion-ferplus-8", [1, 1, 64, 64], 7, LAUGH),
        ("emotion-ferplus-8", [1, 3, 64, 64], 8, LAUGH),
        ("enet_b0_8_best", [1, 3, 224, 224], 12, LAUGH),
    ],
)
def test_another_network_of_that_name_is_refused(host, tmp_path, name, shape, count, wanted):
    constant(tmp_path / "likeness" / f"{name}.onnx", shape, np.zeros(count))
    with pytest.raises(BadModelFile, match=r"another model.*likeness folder"):
        one(host, wanted)


@pytest.mark.parametrize(
    ("name", "shape", "order", "extra"),
    [
        ("emotion-ferplus-8", [1, 1, 64, 64], expression.FERPLUS, 0),
        ("enet_b0_8_best_afew", [1, 3, 224, 224], expression.HSEMOTION, 0),
        ("hsemotion_mtl", [1, 3, 64, 64], expression.HSEMOTION, 2),
    ],
)
def test_expression_networks(host, tmp_path, name, shape, order, extra):
    logits = [6.0 if part == "happiness" else 0.0 for part in order] + [9.0] * extra
    constant(tmp_path / "likeness" / f"{name}.onnx", shape, logits)
    assert one(host, attribute("smiling", abstract=True)).present is True
    assert one(host, attribute("very angry looking", abstract=True)).present is False
    # Laughing is a happy face with an open mouth: without landmarks nobody can say, with a shut one it is missing.
    assert one(host, LAUGH).present is None
    for gap, present in ((0.2, True), (0.0, False)):
        faces = Faces(((open_mouth(FACE, gap),),), FACES.sizes)
        assert one(host, LAUGH, faces).present is present
    assert one(host, attribute("crying", abstract=True)).present is False


def test_the_mesh_tells_only_what_it_measures(host):
    wide, between, shut = (Faces(((open_mouth(FACE, gap),),), FACES.sizes) for gap in (0.2, 0.085, 0.0))
    wanted = attribute("mouth open", "mouth")
    assert [one(host, wanted, faces).present for faces in (wide, between, shut)] == [True, None, False]
    assert one(host, attribute("closed eyes"), wide).present is False
    assert one(host, LAUGH, wide).present is None
    assert one(host, LAUGH, shut).present is False
    assert one(host, attribute("smiling"), wide).present is None
    assert one(host, wanted).present is None


def test_age_and_gender_that_the_face_carries(host):
    faces = Faces(((replace(FACE, age=66.0, gender="male"),),), FACES.sizes)
    for text, present in (
        ("old man", True),
        ("elderly", True),
        ("young", False),
        ("old woman", False),
        ("65 years old", True),
        ("30 years old", False),
        ("tall man", None),
    ):
        assert one(host, attribute(text, abstract=True), faces).present is present, text
    near = Faces(((replace(FACE, age=36.0, gender="male"),),), FACES.sizes)
    assert one(host, attribute("young"), near).present is None
    assert "no network" in one(host, attribute("young")).details


def test_an_age_network_is_asked_where_the_face_carries_none(monkeypatch, host):
    asked = []

    class Network:
        def guess(self, picture, faces):
            asked.append(len(faces))
            return [age_gender.Guess(70.0, "female")]

    def network(name, host):
        if name == "first":
            raise MissingModel("the network", "age.onnx", [], "Fetch it.")
        return Network()

    monkeypatch.setattr(age_gender, "choices", lambda host: ["first", "second"])
    monkeypatch.setattr(age_gender, "network", network)
    rows = judge_all(PICTURE[None], [attribute("old woman"), attribute("young")], faces=FACES, host=host)
    assert [told.present for told in rows[0]] == [True, False] and asked == [1]


@pytest.mark.weights
def test_the_mesh_on_photographs():
    if missing := [c.name for c in catalogue.select("default") if status(c, STANDALONE) == "missing"]:
        pytest.skip(f"the models {', '.join(missing)} are not fetched: likeness models fetch default")
    folder = Path(__file__).resolve().parent.parent / "workflows" / "photos"
    for name, open_ in (("obama", True), ("macron", False)):
        picture, _ = load_picture(folder / f"{name}.jpg")
        told = judge_all(picture, [attribute("mouth open"), attribute("eyes closed")], judges="mesh")
        assert [verdict.present for verdict in told[0]] == [open_, False]


@pytest.mark.weights
def test_the_catalogues_network_on_photographs():
    """Two laugh, one is earnest."""
    if missing := [
        c.name for c in catalogue if c.name in ("yunet", "mesh", "expression") and status(c, STANDALONE) == "missing"
    ]:
        pytest.skip(f"the models {', '.join(missing)} are not fetched: likeness models fetch default expression")
    folder = Path(__file__).resolve().parent.parent / "workflows" / "photos"
    wanted = [
        attribute(text, "expression", abstract=True) for text in ("laughing happily", "neutral expression", "angry")
    ]
    for name, expected in (
        ("obama", [True, False, False]),
        ("ardern", [True, False, False]),
        ("macron", [False, True, False]),
    ):
        picture, _ = load_picture(folder / f"{name}.jpg")
        told = judge_all(picture, wanted, judges="expression")
        assert [verdict.present for verdict in told[0]] == expected, name


# Parser


@pytest.fixture
def parsed(monkeypatch, host, tmp_path):
    """A parser that answers whatever labels and picture the test puts into the returned dictionary."""
    (tmp_path / "likeness" / "bisenet_tiny.onnx").touch()
    state = {"labels": torch.zeros(512, 512, dtype=torch.int64)}
    monkeypatch.setattr(parser, "parse", lambda picture, face, name, host: state["labels"])
    return state


def labelled(**boxes):
    labels = torch.zeros(512, 512, dtype=torch.int64)
    labels[150:400, 150:360] = LABELS.index("skin")
    for name, (top, bottom, left, right) in boxes.items():
        labels[top:bottom, left:right] = LABELS.index(name)
    return labels


def test_a_parser_sees_things_by_their_area(host, parsed):
    parsed["labels"] = labelled(hair=(50, 150, 150, 360), glasses=(200, 202, 200, 204))
    assert one(host, attribute("hair", "hair")).present is True
    assert one(host, attribute("bald")).present is False
    assert one(host, attribute("glasses", "glasses")).present is False  # specks
    assert one(host, attribute("sunglasses", "glasses")).present is False
    assert one(host, attribute("curly hair", "hair")).present is None
    parsed["labels"] = labelled()
    assert one(host, attribute("bald")).present is True
    assert one(host, attribute("curly hair", "hair")).present is False
    parsed["labels"] = labelled(hat=(50, 150, 150, 360), glasses=(200, 260, 180, 330))
    assert one(host, attribute("bald")).present is None  # under the hat
    assert one(host, attribute("glasses", "glasses")).present is True
    assert one(host, attribute("aviator sunglasses", "glasses")).present is None
    assert one(host, attribute("sunglasses", "glasses")).present is True
    parsed["labels"] = labelled(glasses=(200, 260, 180, 330), **{"left eye": (220, 240, 200, 230)})
    assert one(host, attribute("sunglasses", "glasses")).present is False  # eyes are to be seen through them
    parsed["labels"] = torch.zeros(512, 512, dtype=torch.int64)
    assert one(host, attribute("glasses", "glasses")).present is None


@pytest.mark.parametrize(
    ("rgb", "present", "missing"),
    [
        (0x17130F, "black", "blonde"),
        (0x4A3020, "brown", "blonde"),
        (0xC8A870, "blonde", "black"),
        (0xA01818, "red", "brown"),
        (0x8A8886, "grey", "red"),
        (0x24509C, "blue", "green"),
    ],
)
def test_hair_has_a_colour(host, parsed, rgb, present, missing):
    parsed["labels"] = labelled(hair=(50, 150, 150, 360))
    picture = torch.tensor([rgb >> 16, rgb >> 8 & 255, rgb & 255]).float().expand(SIZE, SIZE, 3) / 255
    told = one(host, attribute(f"{present} hair", "hair"), picture=picture)
    assert told.present is True and told.judge == "bisenet_tiny"
    assert one(host, attribute(f"{missing} hair", "hair"), picture=picture).present is False
    assert one(host, attribute(f"long {present} hair", "hair"), picture=picture).present is None
    assert one(host, attribute(f"long {missing} hair", "hair"), picture=picture).present is False


def test_a_colour_between_two_is_not_judged():
    dark, light = (torch.tensor([parser.COLOURS["hair"][name][0]]) for name in ("black", "brown"))
    rgb = torch.stack([(v >> s & 255).float().mean() for v in (dark,) for s in (16, 8, 0)])
    other = torch.stack([(v >> s & 255).float().mean() for v in (light,) for s in (16, 8, 0)])
    labs = [parser.to_lab((rgb * (1 - t) + other * t) / 255) for t in np.linspace(0, 1, 41)]
    told = [parser.nearest(lab, "hair", "black")[0] for lab in labs]
    assert told[0] > 0.5 and told[-1] < 0.5 and None in told


def test_small_eyes_have_no_colour(host, parsed):
    labels = labelled()
    labels[230:250, 190:230] = LABELS.index("left eye")
    parsed["labels"] = labels
    assert one(host, attribute("blue eyes", "left eye", "right eye")).present is None


# Text and pictures


class Space:
    """A similarity of the test's own: by sentence the cosine to every picture."""

    name = "space"

    def __init__(self, cosines, trouble=""):
        self.cosines, self.trouble = cosines, trouble

    def image(self, picture):
        return torch.tensor([1.0, 0.0])

    def text(self, sentence):
        value = self.cosines.get(sentence, 0.2)
        return torch.tensor([value, (1 - value**2) ** 0.5])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number_is_not_judged(host, value, monkeypatch):
    space = Space({})
    monkeypatch.setattr(space, "image", lambda picture: torch.tensor([value, 0.0]))
    told = one(host, HAIR, similarity=space)
    assert told.present is None and told.score is None and "no numbers" in told.details

    class Broken:
        def names(self, host):
            return ["broken"]

        def judge(self, name, picture, face, attribute, evidence, host):
            return Verdict(attribute.text, value >= 0.5, value, name)

    monkeypatch.setattr(judging, "_there", lambda host: [("broken", Broken())])
    told = one(host, HAIR)
    assert told.present is None and told.score is None and "no number" in told.details


def test_similarity_holds_the_attribute_against_none_and_against_others(host):
    wanted = "a photo of a person with red hair"
    assert one(host, HAIR, similarity=Space({wanted: 0.25})).present is True
    assert one(host, HAIR, similarity=Space({wanted: 0.15})).present is False
    # Like "a person" it may be, but more like black hair.
    told = one(host, HAIR, similarity=Space({wanted: 0.25, "a photo of a person with black hair": 0.27}))
    assert told.present is False and "uncalibrated" in told.details
    assert told.score == pytest.approx(1 / (1 + np.exp(2)), abs=0.01)


@pytest.mark.parametrize(
    ("wanted", "first", "against"),
    [
        (LAUGH, "a photo of a person laughing", "a photo of a person serious"),
        (HAIR, "a photo of a person with red hair", "a photo of a person with brown hair"),
        (attribute("bald", "hair"), "a photo of a person who is bald", "a photo of a person"),
        (Attribute("Old", "age", abstract=True), "a photo of an Old person", "a photo of a young person"),
        (Attribute("60 year old man", "age"), "a photo of a 60 year old man", "a photo of a 60 year old woman"),
        (attribute(""), "a photo of a person with ", "a photo of a person"),
    ],
)
def test_sentences_and_what_they_are_held_against(wanted, first, against):
    found = clip.sentences(wanted)
    assert found[0] == first and against in found[1:] and not any("year young" in other for other in found)


def test_without_a_face_only_what_is_beside_it_is_compared(host):
    shirt = attribute("red shirt", "cloth")
    assert one(host, shirt, NOBODY, similarity=Space({"a photo of a person with red shirt": 0.3})).present is True
    assert one(host, shirt, NOBODY).present is None
    sword = Attribute("a sword", "other", "sword")
    assert one(host, sword, NOBODY, similarity=Space({"a photo of a person with a sword": 0.3})).present is True


class FakeText:
    """A CLIP that answers ``projected`` numbers, from ``plain`` of them."""

    def __init__(self, plain, projected, matrix=True):
        self.plain, self.projected, self.matrix, self.calls = plain, projected, matrix, 0

    def tokenize(self, text):
        return text

    def encode_from_tokens(self, tokens, return_pooled=False):
        self.calls += 1
        seed = torch.Generator().manual_seed(len(tokens))
        vector = torch.randn(1, self.plain, generator=seed)
        if return_pooled == "unprojected" or not self.matrix:
            return None, vector
        return None, vector @ torch.randn(self.plain, self.projected, generator=seed)


class FakeVision:
    def __init__(self, width, item=False):
        self.width, self.item = width, item

    def encode_image(self, image):
        embeds = image.mean().expand(1, self.width)
        if self.item:
            return {"image_embeds": embeds}
        return type("Output", (), {"image_embeds": embeds})()


@pytest.mark.parametrize(
    ("text", "vision", "trouble"),
    [
        (FakeText(8, 8), FakeVision(8), ""),
        (FakeText(8, 6), FakeVision(6, item=True), ""),
        (FakeText(8, 6), FakeVision(8), "different CLIPs"),
        (FakeText(8, 8, matrix=False), FakeVision(8), "no projection"),
    ],
)
def test_only_a_text_encoder_in_the_pictures_space_is_compared(host, text, vision, trouble):
    both = clip.similarity(text, vision)
    assert trouble in both.trouble and bool(trouble) == bool(both.trouble)
    told = one(host, HAIR, similarity=both)
    assert (told.present is None) == bool(trouble)
    if trouble:
        assert trouble in told.details
    calls = text.calls
    one(host, HAIR, similarity=both)
    assert text.calls == calls  # sentences are encoded once


def test_the_engines_encoders_are_understood(host, tmp_path):
    """SD1.5 has no projection; SDXL's larger encoder is compared with pictures of its width, and no other."""
    from likeness.engine.diffusion import load

    cpu = torch.device("cpu")
    words = [tiny_diffusion.save_vocabulary(tmp_path / "bpe_simple_vocab_16e6.txt.gz")]
    sd15, sdxl = tiny_diffusion.tiny_sd15(), tiny_diffusion.tiny_sdxl()
    small, large = (
        load.checkpoint(tiny_diffusion.save(tmp_path / name, tensors), cpu, words)[1]
        for name, tensors in (
            ("sd15.safetensors", tiny_diffusion.sd15_file(*sd15)),
            ("sdxl.safetensors", tiny_diffusion.sdxl_file(*sdxl)),
        )
    )
    narrow, fitting = (
        load.clip_vision(
            tiny_diffusion.save(tmp_path / f"{width}.safetensors", tiny_diffusion.image_encoder(projected=width)), cpu
        )
        for width in (32, 64)
    )
    assert "no projection" in clip.similarity(small, fitting).trouble
    assert "different CLIPs" in clip.similarity(large, narrow).trouble
    assert clip.similarity(large, fitting).trouble == ""
    assert one(host, HAIR, similarity=clip.similarity(large, fitting)).present is not None


def test_a_network_looks_once_at_a_picture(host, parsed, monkeypatch):
    calls = []
    monkeypatch.setattr(parser, "parse", lambda *_, **__: calls.append(1) or labelled(hair=(50, 150, 150, 360)))
    judge_all(PICTURE[None], [attribute("hair", "hair"), attribute("a hat", "hat")], faces=FACES, host=host)
    assert len(calls) == 1
    assert Evidence().once("a", lambda: 1) == 1


def test_missing_and_unjudged_over_a_batch():
    a, b, c = attribute("a"), attribute("b"), attribute("c")
    rows = (
        (Verdict("a", True, 1.0), Verdict("b", None), Verdict("c", True, 0.9)),
        (Verdict("a", False, 0.0), Verdict("b", True, 0.7), Verdict("c", True, 0.9)),
    )
    assert judging.missing([a, b, c], rows) == (a,)
    assert judging.unjudged([a, b, c], rows) == (b,)
