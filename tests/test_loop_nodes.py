"""Cure Sampler and Closed Loop on tiny weights: they equal the separate nodes, and cure no more than is missing."""

import json
from dataclasses import replace
from types import SimpleNamespace
from weakref import ref

import pytest
import torch
from likeness.engine.core import CORE
from likeness.engine.diffusers_host import layout_of
from likeness.engine.diffusion.shelf import SHELF
from likeness.engine.host import Blocker, EngineHost, Interrupted
from likeness.face.attention import Tokens, apply
from likeness.face.cure import words
from likeness.face.cure.judge import Verdict
from likeness.face.cure.report import beside
from likeness.face.cure.run import Curing
from likeness.face.cure.tape import ANSWERS, NONE, Plan, Tape
from likeness.face.errors import BadImage, BadInput
from likeness.face.types import Faces, FaceScore
from likeness.nodes import NODE_CLASS_MAPPINGS, loop
from likeness.nodes import host as hosts
from likeness.nodes.cure import BLENDING, GUIDANCE
from likeness.tests import tiny_diffusion as tiny

PROMPT = "a photo of a man with a red hat by the sea, smiling"
HAT, SMILE = words.split(PROMPT)
SAMPLER = {"cfg": 8.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return tiny.fill_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(autouse=True)
def place(models, tmp_path):
    hosts.use(EngineHost([tmp_path / "input"], tmp_path / "output", tmp_path / "temp", models))
    yield tmp_path
    hosts.use(None)
    SHELF.free()


def call(kind, **inputs):
    node = {**CORE, **NODE_CLASS_MAPPINGS}[kind]
    declared = {**node.INPUT_TYPES()["required"], **node.INPUT_TYPES().get("optional", {})}
    defaults = (
        {name: entry[1]["default"] for name, entry in declared.items() if "default" in entry[1:][0]}
        if kind.startswith("Like")
        else {}
    )
    answer = getattr(node(), node.FUNCTION)(**{**defaults, **inputs})
    return answer if isinstance(answer, dict) else {"result": answer}


def person(model):
    """An adapter with tokens out of nowhere."""
    layout, draw = layout_of(model.unet)[0], torch.Generator().manual_seed(5)
    scale = layout.context**-0.5
    weights = [torch.randn(s.width, layout.context, generator=draw) * scale for s in layout.sites for _ in range(2)]
    tokens = torch.randn(1, 4, layout.context, generator=draw)
    shown = apply("somebody", Tokens(tokens, tokens, weights[::2], weights[1::2]), layout, strength=1.0)
    return replace(model, attention=(shown,))


@pytest.fixture
def wires():
    """What both nodes are wired with."""
    model, clip, vae = call("CheckpointLoaderSimple", ckpt_name="tiny_sd15.safetensors")["result"]
    positive, negative = (call("CLIPTextEncode", clip=clip, text=text)["result"][0] for text in (PROMPT, "blurry"))
    latent = {"samples": torch.zeros(1, 4, 8, 8)}
    return {
        "model": model, "person_model": person(model), "positive": positive, "negative": negative, "vae": vae,
        "latent_image": latent, "clip": clip, "prompt": PROMPT, "source": "cross-attention", "steps": 3, "seed": 5,
        **SAMPLER,
    }  # fmt: skip


def cure(wires, **changes):
    """latent, image, foundation, uncured, mask, details; and the lines that the node shows."""
    answer = call("LikenessCureSampler", **{**wires, **changes})
    *rest, details = answer["result"]
    return SimpleNamespace(
        **dict(zip(("latent", "image", "foundation", "uncured", "mask"), rest, strict=True)),
        details=json.loads(details), told="\n".join(answer["ui"]["text"]), images=answer["ui"]["images"],
    )  # fmt: skip


def in_parts(wires, strength=1.0, mask=None):
    """The same with the separate nodes."""
    same = {key: wires[key] for key in ("seed", "steps", "negative", "positive", "latent_image")}
    latent, tape, _ = call("LikenessFoundationPass", model=wires["model"], **same, **SAMPLER)["result"]
    image = wires["vae"].decode(latent["samples"])
    own = {} if mask is None else {"mask": mask}
    found = call(
        "LikenessAttributeMasks",
        image=image,
        prompt=PROMPT,
        tape=tape,
        clip=wires["clip"],
        source=wires["source"],
        **own,
    )
    curing = call(
        "LikenessCureAttributes", model=wires["person_model"], tape=tape, mask=found["result"][0], strength=strength
    )
    sampled = [
        call("KSampler", model=m, **same, **SAMPLER)["result"][0] for m in (curing["result"][0], wires["person_model"])
    ]
    return image, found["result"][0], *sampled


def test_one_node_equals_the_separate_ones(wires):
    one, (foundation, mask, latent, plain) = cure(wires), in_parts(wires)
    assert torch.equal(one.latent["samples"], latent["samples"]) and torch.equal(one.mask, mask) and mask.any()
    assert torch.equal(one.foundation, foundation)
    assert torch.equal(one.uncured, wires["vae"].decode(plain["samples"]))
    assert torch.equal(one.image, wires["vae"].decode(latent["samples"]))
    assert not torch.equal(one.image, one.uncured) and not torch.equal(one.foundation, one.uncured)
    assert one.details["cured"] is True and "ω" in one.told
    assert [entry["source"] for entry in one.details["attributes"]] == ["cross-attention", None]
    # The three side by side, and the coloured mask.
    assert len(one.images) == 2


def test_strength_zero_gives_the_uncured_picture_and_says_so(wires):
    one = cure(wires, strength=0.0)
    assert torch.equal(one.image, one.uncured) and not one.details["cured"]
    assert "strength 0" in one.told and loop.NOT_CURED in one.told


def test_an_empty_mask_gives_the_uncured_picture_and_says_so(wires, monkeypatch):
    runs = counted(monkeypatch)
    one = cure(wires, prompt="a photo of a man")
    assert torch.equal(one.image, one.uncured) and not one.mask.any() and not one.details["cured"]
    assert "the mask is empty" in one.told and "finds no attribute" in one.told
    assert len(runs) == 2, "the plain picture is drawn once"
    without = cure(wires, prompt="a photo of a man", show_uncured=False)
    assert torch.equal(without.image, one.image)
    assert isinstance(without.uncured, Blocker) and without.uncured.message == loop.NO_UNCURED


def test_the_uncured_picture_is_drawn_only_if_wanted(wires, monkeypatch):
    runs = counted(monkeypatch)
    with_it = cure(wires)
    assert len(runs) == 3
    without = cure(wires, show_uncured=False)
    assert len(runs) == 5 and torch.equal(with_it.image, without.image)
    assert isinstance(without.uncured, Blocker)


def test_the_users_mask_joins_or_replaces(wires):
    mine = torch.zeros(1, 64, 64)
    mine[:, 40:, :20] = 1
    joined, alone = cure(wires, mask=mine), cure(wires, mask=mine, own_mask="replaces")
    assert torch.equal(joined.mask, in_parts(wires, mask=mine)[1]) and torch.equal(alone.mask, mine)
    assert torch.equal(joined.image, wires["vae"].decode(in_parts(wires, mask=mine)[2]["samples"]))
    # A tape that keeps only what is inside serves as well.
    whole = cure(wires, mask=mine, own_mask="replaces", prompt="a photo of a man")
    assert (alone.latent["samples"] - whole.latent["samples"]).abs().max() < 1e-5
    full, short = (one.details["tape"].split("; ")[-1] for one in (joined, alone))
    assert float(short.split()[0]) < float(full.split()[0]) / 2
    # The paper's ω reads what is outside, too, and needs all of the tape.
    assert cure(wires, mask=mine, own_mask="replaces", omega_mode="multiplicative").details["cured"]
    with pytest.raises(BadImage, match="other proportions"):
        cure(wires, mask=mine[:, :32], own_mask="replaces")


def test_a_batch_is_cured_each_in_its_own_mask(wires):
    wires["latent_image"] = {"samples": torch.zeros(2, 4, 8, 8)}
    one = cure(wires)
    assert len(one.image) == len(one.mask) == 2 and not torch.equal(one.mask[0], one.mask[1])
    assert torch.equal(one.latent["samples"], in_parts(wires)[2]["samples"])


def test_what_cannot_be_is_refused_before_anything_is_drawn(wires, monkeypatch):
    layers = hosts.host().self_layers(wires["model"])
    plan = Plan(0, (1, 4, 8, 8), "euler", (1.0, 0.0), "", "", ref(wires["model"].unet))
    once = Curing(Tape(plan, (), len(layers.layers)), layers, torch.ones(1, 8, 8), 0.5)
    twice = hosts.host().with_hook(wires["person_model"], once)
    runs = counted(monkeypatch)
    for changes, sentence in (
        ({"vae": None}, "there is no VAE"),
        ({"clip": None}, "needs the CLIP"),
        ({"keep": ANSWERS}, "serves noise blending only"),
        ({"sampler_name": "dpm_adaptive"}, "chooses its own steps"),
        ({"start": 0.8, "end": 0.5}, "start not after end"),
        ({"budget": 1e-6}, "more than the budget"),
        ({"latent_image": {}}, "a LATENT must hold samples"),
        ({"latent_image": {}, "mask": torch.ones(1, 64, 64)}, "a LATENT must hold samples"),
        ({"faces": Faces(((), ()), ((64, 64),) * 2)}, "the faces come from 2 pictures, but 1 are drawn"),
        ({"person_model": twice}, "cured already"),
    ):
        for node in ("LikenessCureSampler", "LikenessClosedLoop"):
            with pytest.raises(BadInput, match=sentence):
                call(node, **{**wires, **changes})
    for changes, sentence in (
        ({"clip": None, "source": "auto"}, "“smiling” has no place .* needs the CLIP"),
        ({"clip": None, "source": "auto", "abstract": False, "clip_vision": object()}, "clip is not"),
        ({"judges": "nobody"}, "there is no judge called 'nobody'"),
        ({"method": GUIDANCE, "mask": torch.ones(1, 64, 64)}, "the wired mask would mean nothing"),
        ({"method": GUIDANCE, "clip": None, "source": "auto", "abstract": False}, "guidance needs the CLIP"),
    ):
        with pytest.raises(BadInput, match=sentence):
            call("LikenessClosedLoop", **{**wires, **changes})
    assert not runs


@pytest.mark.parametrize(
    "changes", [{"keep": NONE}, {"keep": ANSWERS, "method": BLENDING}, {"omega_mode": "multiplicative"}]
)
def test_other_ways_of_curing_change_the_picture(wires, changes):
    one = cure(wires, **changes, mask=torch.ones(1, 64, 64), source="mesh", start=-1.0)
    assert one.details["cured"] and not torch.equal(one.image, one.uncured)


# The loop


def counted(monkeypatch):
    """The models that were sampled, in order."""
    runs, original = [], EngineHost.sample
    monkeypatch.setattr(
        EngineHost, "sample", lambda self, model, *more: runs.append(model) or original(self, model, *more)
    )
    return runs


class Judged:
    """A judge that says of every look what a list says; True, False or None per attribute text."""

    def __init__(self, monkeypatch, *looks):
        self.looks, self.asked = list(looks), []
        monkeypatch.setattr(loop.judging, "judge_all", self)

    def __call__(self, pictures, attributes, **_):
        if not attributes:
            return ((),) * len(pictures)
        states = self.looks[min(len(self.asked), len(self.looks) - 1)]
        self.asked.append(pictures)
        rows = states if isinstance(states, list) else [states] * len(pictures)
        return tuple(
            tuple(Verdict(a.text, row[a.text], None if row[a.text] is None else 0.9, "fake") for a in attributes)
            for row in rows
        )


def looped(wires, **changes):
    answer = call("LikenessClosedLoop", **{**wires, **changes})
    *rest, record = answer["result"]
    names = ("image", "latent", "before", "mask", "sheet", "all_present")
    return SimpleNamespace(
        **dict(zip(names, rest, strict=True)), record=json.loads(record), told="\n".join(answer["ui"]["text"])
    )


def states(hat, smile):
    return {"red hat": hat, "smiling": smile}


def test_the_prompts_attributes_are_these():
    assert (HAT.text, SMILE.text, HAT.abstract, SMILE.abstract) == ("red hat", "smiling", False, True)


def test_if_everything_is_there_nothing_more_is_drawn(wires, monkeypatch):
    runs = counted(monkeypatch)
    Judged(monkeypatch, states(True, True))
    one = looped(wires)
    assert runs == [wires["person_model"]], "no foundation pass is run"
    assert one.all_present is True and torch.equal(one.image, one.before) and not one.mask.any()
    assert "nothing is missing" in one.told


def test_not_judged_is_neither_present_nor_cured(wires, monkeypatch):
    runs = counted(monkeypatch)
    Judged(monkeypatch, states(True, None))
    one = looped(wires)
    assert len(runs) == 1 and one.all_present is False
    settings = one.record["settings"]
    assert settings["not_judged"] == ["smiling"] and settings["missing"] == []
    assert "smiling not judged" in one.told and "not judged: smiling" in settings["stopped"]


def test_cure_unjudged_cures_it_once(wires, monkeypatch):
    runs = counted(monkeypatch)
    Judged(monkeypatch, states(None, True))
    one = looped(wires, cure_unjudged=True, rounds=4)
    assert [r["cured"] for r in one.record["settings"]["rounds"]] == [[], ["red hat"]] and len(runs) == 3


def test_only_what_is_missing_is_cured_as_the_cure_sampler_does(wires, monkeypatch):
    Judged(monkeypatch, states(False, True), states(True, True))
    one = looped(wires)
    same = cure(wires, attributes="red hat")
    assert torch.equal(one.image, same.image) and torch.equal(one.latent["samples"], same.latent["samples"])
    assert torch.equal(one.mask, same.mask) and torch.equal(one.before, same.uncured)
    assert one.all_present and one.record["settings"]["rounds"][1]["cured"] == ["red hat"]
    assert "missing → present" in one.told and len(one.sheet) == 1 and "smiling, no mask" not in one.told


def test_what_has_no_place_is_cured_by_guidance_without_a_foundation_pass(wires, monkeypatch):
    runs = counted(monkeypatch)
    Judged(monkeypatch, states(True, False), states(True, True))
    one = looped(wires, gamma=0.7)
    assert len(runs) == 1 and not one.mask.any() and not torch.equal(one.image, one.before)
    template = call("CLIPTextEncode", clip=wires["clip"], text="a photo of a man with a red hat by the sea")["result"][
        0
    ]
    same = {key: wires[key] for key in ("seed", "steps", "negative")}
    start = {"latent_image": wires["latent_image"], "positive": wires["positive"]}
    plain = call("KSampler", model=wires["person_model"], **same, **start, **SAMPLER)["result"][0]
    texts = {"template": template, "attribute": wires["positive"]}
    down = {key: value for key, value in SAMPLER.items() if key != "denoise"}
    guided = call(
        "LikenessAbstractAttributeGuidance", model=wires["model"], latent=plain, **texts, **same, **down, gamma=0.7
    )
    same = guided["result"][0]
    assert torch.equal(one.latent["samples"], same["samples"])
    Judged(monkeypatch, states(True, False))
    off = looped(wires, abstract=False)
    assert torch.equal(off.image, off.before) and "the switch abstract is off" in off.told


def test_guidance_takes_what_has_a_place_as_it_takes_what_has_none(wires, monkeypatch):
    runs = counted(monkeypatch)
    Judged(monkeypatch, states(False, True), states(True, True))
    one = looped(wires, method=GUIDANCE, gamma=0.7, abstract=False)
    assert len(runs) == 1, "no foundation pass, and no second run with the person"
    assert not one.mask.any() and not torch.equal(one.image, one.before)
    assert "red hat: guidance, gamma 0.7" in one.told
    Judged(monkeypatch, states(False, False), states(True, True))
    both = looped(wires, method=GUIDANCE, abstract=False)
    assert "smiling: has no place, and the switch abstract is off" in both.told
    assert "red hat: guidance" in both.told


def test_still_missing_is_cured_stronger(wires, monkeypatch):
    runs = counted(monkeypatch)
    Judged(monkeypatch, states(False, False), states(False, True), states(True, True))
    one = looped(wires, stronger=2.0)
    assert len(runs) == 4, "uncured, foundation once, two rounds"
    assert [r["cured"] for r in one.record["settings"]["rounds"]] == [
        [],
        ["red hat", "smiling"],
        ["red hat", "smiling"],
    ]
    first, second = (note for note in one.record["settings"]["notes"] if "red hat: attention" in note)
    assert "ω +0.5 " in first and "ω +1.19315 " in second  # ln 2 more
    assert torch.equal(one.mask, cure(wires, attributes="red hat").mask), "a mask stays within 1"


def test_a_second_round_that_gains_nothing_ends_it_and_the_best_is_kept(wires, monkeypatch):
    Judged(monkeypatch, states(False, True), states(False, True))
    one = looped(wires, rounds=5)
    assert "round 1 gained nothing" in one.told and torch.equal(one.image, one.before)
    assert one.record["settings"]["best"] == [0] and not one.mask.any()


def test_strength_zero_and_no_rounds_leave_the_pictures(wires, monkeypatch):
    for changes in ({"strength": 0.0}, {"rounds": 0}, {"strength": 0.0, "method": GUIDANCE}):
        runs = counted(monkeypatch)
        Judged(monkeypatch, states(False, False))
        one = looped(wires, **changes)
        assert torch.equal(one.image, one.before) and len(runs) == 1
        monkeypatch.undo()


def test_of_a_batch_every_picture_keeps_its_best_round(wires, monkeypatch):
    wires["latent_image"] = {"samples": torch.zeros(2, 4, 8, 8)}
    there, gone = states(True, True), states(False, True)
    Judged(monkeypatch, [gone, there], [there, gone])
    one = looped(wires)
    same = cure(wires, attributes="red hat")
    assert one.record["settings"]["best"] == [1, 0] and one.all_present
    assert torch.equal(one.image, torch.stack([same.image[0], same.uncured[1]]))
    kept = [same.latent["samples"][0], in_parts(wires)[3]["samples"][1]]
    assert torch.equal(one.latent["samples"], torch.stack(kept))
    assert one.mask[0].any() and not one.mask[1].any()


def test_the_likeness_is_measured_before_and_after_and_decides_between_equals(wires, monkeypatch):
    asked = []

    def score_images(pictures, identity, *, drivers, host):
        assert drivers == (identity.contract,)
        asked.append(pictures)
        value = 0.5 + len(asked) / 10
        flags = ("judge_drove_swap",)
        return [
            FaceScore(0, n, 0.5, True, person="Ada", similarity=value - n / 4, judge="sface", flags=flags)
            for n in (1, 0)
        ]

    monkeypatch.setattr(loop.scoring, "score_images", score_images)
    monkeypatch.setattr(loop.scoring, "appointed", lambda *_, **__: None)
    Judged(monkeypatch, states(False, True), states(False, True))
    one = looped(wires, identity=SimpleNamespace(contract="arcface"))
    assert one.record["pictures"][0]["similarity"] == {"before": 0.6, "after": 0.7}
    assert one.record["similarity_judge"] == {"model": "sface", "took_part": True}
    assert one.record["settings"]["best"] == [1] and "similarity 0.60 → 0.70 (sface)" in one.told


def test_without_attributes_it_draws_and_says_so(wires):
    one = looped(wires, prompt="a photo of a man")
    assert torch.equal(one.image, one.before) and "no attribute was found" in one.told


# Ends


@pytest.mark.parametrize("node", ["LikenessCureSampler", "LikenessClosedLoop"])
@pytest.mark.parametrize("late", [0, 1, 2])
def test_an_interrupt_leaves_no_tape(wires, monkeypatch, node, late):
    tapes, begin = [], Tape.__init__
    monkeypatch.setattr(Tape, "__init__", lambda self, *a, **k: begin(self, *a, **k) or tapes.append(self))
    Judged(monkeypatch, states(False, True))
    cured = []

    def check(self):
        held = [tape for tape in tapes if tape.nbytes]
        # In the foundation pass, after it, and in the run that reads it.
        if held and (late == 0 or (held[0].maps is not None and (cured.append(1) or len(cured) > late * 2))):
            raise Interrupted

    monkeypatch.setattr(EngineHost, "check_interrupt", check)
    with pytest.raises(Interrupted):
        call(node, **wires)
    assert tapes and not any(tape.nbytes or tape.evaluations or tape.maps is not None for tape in tapes)


def test_nothing_is_held_after_a_run_that_went_well(wires, monkeypatch):
    tapes, begin = [], Tape.__init__
    monkeypatch.setattr(Tape, "__init__", lambda self, *a, **k: begin(self, *a, **k) or tapes.append(self))
    cure(wires)
    assert len(tapes) == 1 and tapes[0].nbytes == 0


# Helpers


def test_pictures_lie_beside_each_other_under_their_names():
    one, other = torch.zeros(2, 64, 48, 3), torch.ones(2, 64, 48, 3)
    sheet = beside([("a", one), ("b", other)])
    assert len(sheet) == 2 and sheet[:, 18:, :48].sum() == 0 and (sheet[:, 18:82, -48:] == 1).all()


@pytest.mark.parametrize(
    ("prompt", "template"),
    [
        ("a woman in a garden, laughing, soft light", "a woman in a garden, soft light"),
        ("photo of a smiling woman, (laughing:1.3), red hair", "photo of a woman, red hair"),
        ("happy and laughing man with red hair", "man with red hair"),
        ("a man with a big   smile", "a man"),
        ("portrait of an elderly man, red hat", "portrait of an man, red hat"),
        ("a man,  red hat", "a man,  red hat"),
    ],
)
def test_a_template_is_the_prompt_without_the_attribute(prompt, template):
    abstract = [a for a in words.split(prompt) if a.abstract]
    assert words.without(prompt, abstract) == template
