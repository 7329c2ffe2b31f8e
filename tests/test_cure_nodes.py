"""Foundation Pass, Cure Attributes and Abstract Attribute Guidance in the engine, on tiny random models."""

from pathlib import Path

import pytest
import torch
from likeness.engine.core.generation import KSampler
from likeness.engine.diffusion import load
from likeness.engine.host import EngineHost, Interrupted
from likeness.face.cure import guidance
from likeness.face.cure.tape import ANSWERS, FULL, HALF, KEEPS, NONE
from likeness.face.errors import BadInput
from likeness.nodes import cure
from likeness.nodes import host as hosts
from likeness.tests import tiny_diffusion as tiny

WIDGETS = {"seed": 3, "steps": 4, "cfg": 5.0, "sampler_name": "euler", "scheduler": "normal"}
PASS = {**WIDGETS, "denoise": 1.0, "keep": FULL, "layers": "authors", "budget": 8.0, "words": True}
CURE = {"strength": 1.0, "method": cure.ATTENTION, "omega": -1.0, "omega_mode": "additive", "start": -1.0, "end": 1.0}
EMPTY = {"samples": torch.zeros(1, 4, 8, 8)}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    models = tiny.fill_models(tmp_path_factory.mktemp("models"))
    hosts.use(EngineHost([], Path("out"), Path("out/temp"), models))
    yield models
    hosts.use(None)


@pytest.fixture(scope="module", params=["sd15", "sdxl"])
def model(request, world):
    return load.checkpoint(world / "checkpoints" / f"tiny_{request.param}.safetensors", torch.device("cpu"))[0]


@pytest.fixture(scope="module")
def sd15(world):
    return load.checkpoint(world / "checkpoints" / "tiny_sd15.safetensors", torch.device("cpu"))[0]


def text(model, seed):
    draw = torch.Generator().manual_seed(seed)
    pooled = {"pooled_output": torch.randn(1, 64, generator=draw)} if model.family == "sdxl" else {}
    return [[torch.randn(1, 77, model.unet.config["cross_attention_dim"], generator=draw), pooled]]


def prompts(model):
    return {"positive": text(model, 1), "negative": text(model, 2)}


def recorded(model, **changes):
    """LATENT, tape and details of a foundation pass."""
    given = {"latent_image": EMPTY, **prompts(model), **PASS, **changes}
    return cure.FoundationPass().run(model, **given)["result"]


def sampled(model, seed=1, **changes):
    """What KSampler makes of another prompt, which stands for a person."""
    sides = {"positive": text(model, seed), "negative": text(model, 2)}
    return KSampler().sample(model, latent_image=EMPTY, **sides, **{**WIDGETS, **changes})[0]["samples"]


def cured(model, tape, mask, **changes):
    return cure.CureAttributes().run(model, tape, mask, **{**CURE, **changes})["result"]


def near(ours, theirs, limit=1e-5):
    assert float((ours - theirs).norm() / theirs.norm()) <= limit


def test_a_foundation_pass_draws_what_ksampler_draws(model):
    latent, tape, said = recorded(model)
    near(latent["samples"], sampled(model))
    assert len(tape.evaluations) == 4 and tape.maps.shape[-1] == 77
    assert f"{len(tape.layers)} layers" in said and "4 evaluations" in said


def test_the_cure_reads_the_foundation(model):
    _, tape, _ = recorded(model)
    changed, said = cured(model, tape, torch.ones(1, 64, 64))
    assert f"{len(tape.layers)} layers" in said and "100 % of the picture" in said
    assert ("+1.5" if model.family == "sdxl" else "+0.5") in said
    off, on = sampled(model, 5), sampled(changed, 5)
    assert float((on - off).norm() / off.norm()) > 1e-3


def test_more_omega_changes_more(sd15):
    _, tape, _ = recorded(sd15)
    off = sampled(sd15, 5)
    away = [
        float((sampled(cured(sd15, tape, torch.ones(1, 8, 8), omega=omega)[0], 5) - off).norm()) for omega in (0, 1, 4)
    ]
    assert away == sorted(away)


def test_nothing_to_cure_passes_the_model_on_and_says_so(sd15):
    _, tape, _ = recorded(sd15)
    for mask, strength, why in (
        (torch.zeros(1, 8, 8), 1.0, "the mask is empty"),
        (torch.ones(1, 8, 8), 0.0, "strength 0"),
    ):
        for method in cure.METHODS:
            changed, said = cured(sd15, tape, mask, strength=strength, method=method)
            assert changed is sd15
            assert why in said and "nothing is cured" in said


def test_every_way_of_keeping_serves_its_cure(sd15):
    _, whole, _ = recorded(sd15)
    expected = sampled(cured(sd15, whole, torch.ones(1, 8, 8))[0], 5)
    for keep, limit in ((HALF, 3e-2), (NONE, 1e-5)):
        _, tape, _ = recorded(sd15, keep=keep)
        near(sampled(cured(sd15, tape, torch.ones(1, 8, 8))[0], 5), expected, limit)
    _, tape, _ = recorded(sd15, keep=ANSWERS)
    blended = {"method": cure.BLENDING}
    near(
        sampled(cured(sd15, tape, torch.ones(1, 8, 8), **blended)[0], 5),
        sampled(cured(sd15, whole, torch.ones(1, 8, 8), **blended)[0], 5),
    )
    with pytest.raises(BadInput, match="only the model's answers"):
        cured(sd15, tape, torch.ones(1, 8, 8))


def test_a_tape_beyond_the_budget_is_refused_before_the_run(sd15, monkeypatch):
    monkeypatch.setattr(EngineHost, "sample", lambda *_: pytest.fail("a step was taken"))
    with pytest.raises(BadInput, match=r"more than the budget of 0\.0001 GB") as refused:
        recorded(sd15, budget=0.0001)
    for smaller in (*KEEPS[1:3], "mask", "fewer layers", "raise the budget"):
        assert smaller in str(refused.value)


def test_the_size_is_said_before_the_run_and_is_true(sd15, monkeypatch):
    said = []
    monkeypatch.setattr(EngineHost, "send_text", lambda self, line, node: said.append(line))
    monkeypatch.setattr(EngineHost, "sample", lambda *_: said.append("sampling") or EMPTY)
    with pytest.raises(BadInput, match="nothing was sampled"):
        recorded(sd15)
    assert said[1] == "sampling"
    monkeypatch.undo()
    _, tape, details = recorded(sd15)
    promised = said[0].removeprefix("tape: ").split(" for ")[0]
    assert details.endswith(f"{promised} held") and tape.nbytes > 0


def test_an_interrupt_leaves_no_tape(sd15, monkeypatch):
    calls, tapes = [], []

    def stop(self):
        calls.append(1)
        if len(calls) > 3:
            raise Interrupted

    begin = cure.Recording.begin
    monkeypatch.setattr(cure.Recording, "begin", lambda self, *told: tapes.append(begin(self, *told)) or tapes[-1])
    monkeypatch.setattr(EngineHost, "check_interrupt", stop)
    with pytest.raises(Interrupted):
        recorded(sd15)
    assert tapes[0].tape.nbytes == 0 and not tapes[0].hook.done


@pytest.mark.parametrize("layers", ["50-69", "x", "9-3", ""])
def test_layers_that_are_not_there_are_named(sd15, layers):
    with pytest.raises(BadInput, match="16 self-attention layers"):
        recorded(sd15, layers=layers)


def test_layers_can_be_chosen(sd15):
    assert recorded(sd15, layers="3, 10-12")[1].layers == (3, 10, 11, 12)
    assert recorded(sd15, layers="up blocks")[1].layers == tuple(range(7, 16))
    assert recorded(sd15, layers="all")[1].layers == tuple(range(16))


@pytest.mark.parametrize(
    "latent",
    [
        {},
        {"samples": torch.zeros(0, 4, 8, 8)},
        {"samples": torch.zeros(4, 8, 8)},
        {"samples": torch.zeros(1, 4, 1, 8, 8)},
    ],
)
def test_a_latent_that_is_none_is_refused_with_a_sentence(sd15, latent):
    with pytest.raises(BadInput, match="a LATENT must hold samples"):
        recorded(sd15, latent_image=latent)


BAD_MASKS = [
    (torch.full((1, 64, 64), float("nan")), "or NaN"),
    (torch.full((1, 64, 64), 2.0), "from 0 to 1"),
    (torch.ones(1, 64, 256), "same proportions"),
    (torch.ones(3, 64, 64), "3 masks for 1 pictures"),
    (torch.ones(0, 64, 64), "a picture at least"),
    (torch.ones(64), "a picture at least"),
]


@pytest.mark.parametrize(("mask", "said"), BAD_MASKS)
def test_a_mask_that_is_none_is_refused_by_both_nodes(sd15, mask, said):
    with pytest.raises(BadInput, match=said):
        recorded(sd15, mask=mask)
    _, tape, _ = recorded(sd15)
    for method in cure.METHODS:
        with pytest.raises(BadInput, match=said):
            cured(sd15, tape, mask, method=method)


def test_a_model_that_is_cured_already_is_refused(sd15):
    _, tape, _ = recorded(sd15)
    once, _ = cured(sd15, tape, torch.ones(1, 8, 8))
    with pytest.raises(BadInput, match="cured already"):
        cured(once, tape, torch.ones(1, 8, 8))
    # Blending is of another kind, and goes with it.
    both, _ = cured(once, tape, torch.ones(1, 8, 8), method=cure.BLENDING)
    assert float((sampled(both, 5) - sampled(once, 5)).abs().max()) > 1e-3


# Abstract attributes


def guided(model, latent, **changes):
    given = {"template": text(model, 1), "attribute": text(model, 5), "negative": text(model, 2)}
    settings = {**WIDGETS, "gamma": 0.5, "refinements": 1, "check": True}
    return cure.AbstractAttributeGuidance().run(model, latent, **{**given, **settings, **changes})["result"]


def picture(model):
    return {"samples": sampled(model, steps=8, cfg=1.0)}


def test_the_attribute_changes_the_picture_and_the_template_hardly(sd15):
    latent = picture(sd15)
    same, error, _ = guided(sd15, latent, attribute=text(sd15, 1), cfg=1.0, steps=10, refinements=8)
    other, _, said = guided(sd15, latent, steps=10, refinements=8)
    assert guidance.error(same["samples"], latent["samples"]) == pytest.approx(error, abs=1e-4)
    assert guidance.error(other["samples"], latent["samples"]) > 3 * error
    assert "round-trip error" in said


def test_the_round_trip_gets_exact(model):
    """A step back that is repeated often enough is what a step forward undoes."""
    latent = picture(model)
    errors = [guided(model, latent, steps=20, refinements=n)[1] for n in (0, 3, 10)]
    assert errors[2] < 0.2 * errors[0]


def test_the_check_can_be_left_out(sd15):
    _, error, said = guided(sd15, picture(sd15), check=False)
    assert error == -1.0 and "not measured" in said


def test_the_inversion_is_ddims():
    """Without refinement, at the equation's own variables (arXiv 2010.02502, equation 13 backwards)."""
    sigmas = torch.tensor([0.5, 1.5])
    noise = torch.randn(1, 4, 8, 8)
    x = torch.randn(1, 4, 8, 8)
    up = guidance.inversion(0)(lambda x, sigma: x - sigma * noise, x, sigmas, lambda *_: None, None)
    kept = 1 / (1 + sigmas**2)
    z = x * kept[0].sqrt()
    clean = (z - (1 - kept[0]).sqrt() * noise) / kept[0].sqrt()
    expected = kept[1].sqrt() * clean + (1 - kept[1]).sqrt() * noise
    assert torch.allclose(up * kept[1].sqrt(), expected, atol=1e-5)


@pytest.mark.parametrize("refinements", [0, 1, 4])
def test_every_refinement_is_one_more_question_a_step(refinements):
    asked = []
    denoise = lambda x, sigma: asked.append(float(sigma)) or x * 0.5  # noqa: E731
    sigmas = torch.tensor([0.5, 1.0, 2.0])
    guidance.inversion(refinements)(denoise, torch.ones(1, 1, 2, 2), sigmas, lambda *_: None, None)
    assert asked == [1.0] * (1 + refinements) + [2.0] * (1 + refinements)


@pytest.mark.parametrize("gamma", [0.0, 1.5, float("nan")])
def test_a_gamma_out_of_range_is_refused(sd15, gamma):
    with pytest.raises(BadInput, match="gamma is the fraction"):
        guided(sd15, picture(sd15), gamma=gamma)


def test_gamma_is_a_part_of_the_schedule():
    sigmas = torch.tensor([4.0, 3, 2, 1, 0])
    assert guidance.levels(sigmas, 0.5).tolist() == [2, 1, 0]
    assert guidance.levels(sigmas, 0.7).tolist() == [3, 2, 1, 0], "the nearest number of steps"
    assert guidance.levels(sigmas, 0.01).tolist() == [1, 0]
    assert guidance.levels(sigmas, 1.0).tolist() == sigmas.tolist()
