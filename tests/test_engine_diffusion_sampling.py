"""Laws of sampling: noise, schedules, samplers, guidance, masks, LoRAs, ControlNets; two threads; stopping."""

import math
import threading
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from likeness.engine.diffusion import acting, guidance, load
from likeness.engine.diffusion.lora import parse
from likeness.engine.diffusion.model import LowRank, Model, WeightPatch, patched, running, view
from likeness.engine.diffusion.sample import Settings, noise, sample
from likeness.engine.diffusion.samplers import SAMPLERS
from likeness.engine.diffusion.sampling import ALWAYS, SCHEDULES, Sampling, discrete, schedule
from likeness.face.errors import BadInput, BadModelFile
from likeness.tests import tiny_diffusion as tiny

CPU = torch.device("cpu")
SETTINGS = Settings(seed=3, steps=3, cfg=5.0, sampler="euler", scheduler="normal")
EMPTY = {"samples": torch.zeros(1, 4, 8, 8)}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return tiny.fill_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def sd15(models):
    return load.checkpoint(models / "checkpoints" / "tiny_sd15.safetensors", CPU)[0]


@pytest.fixture(scope="module")
def sdxl(models):
    return load.checkpoint(models / "checkpoints" / "tiny_sdxl.safetensors", CPU)[0]


def text(model, seed=0, tokens=77, **more):
    draw = torch.Generator().manual_seed(seed)
    wide = model.unet.config["cross_attention_dim"]
    data = {"pooled_output": torch.randn(1, 64, generator=draw)} if model.family == "sdxl" else {}
    return [[torch.randn(1, tokens, wide, generator=draw), {**data, **more}]]


def run(model, positive=None, negative=None, latent=None, **changes):
    """Samples of a run; the prompts are the same if none are given."""
    positive, negative = positive or text(model, 1), negative or text(model, 2)
    return sample(model, positive, negative, latent or EMPTY, replace(SETTINGS, **changes))["samples"]


def close(ours, theirs, tolerance=2e-4):
    """Equal but for rounding, which sampling makes larger."""
    assert ours.shape == theirs.shape
    assert float((ours - theirs).norm() / theirs.norm()) <= tolerance


def differs(ours, theirs, least=5e-3):
    """Not equal, by more than any rounding."""
    assert float((ours - theirs).norm() / theirs.norm()) > least


class Listens:
    """Stands for attention adapters: hears what is told before every call of the U-Net."""

    def __init__(self, monkeypatch):
        self.heard, self.unets, self.open = [], [], 0
        monkeypatch.setattr(acting.importlib, "import_module", lambda name, package: self)

    @contextmanager
    def attention_run(self, unet, attention, model, conditionings, shape):
        self.unets.append(unet)
        self.conditionings, self.shape = conditionings, shape
        self.open += 1
        try:
            yield self
        finally:
            self.open -= 1

    def begin(self, chunks, sigma, timestep, latent_shape):
        self.heard.append((chunks, sigma, timestep, latent_shape))


# Levels and schedules


def test_the_levels_are_those_of_stable_diffusion():
    sampling = discrete()
    assert len(sampling.sigmas) == 1000
    assert sampling.sigma_min == pytest.approx(0.029168, abs=1e-5)
    assert sampling.sigma_max == pytest.approx(14.6146, abs=1e-3)


def test_zero_snr_levels_keep_the_first_and_end_in_noise():
    plain, rescaled = discrete(), discrete(zero_snr=True)
    assert rescaled.sigma_min == pytest.approx(plain.sigma_min, rel=1e-4)
    assert rescaled.sigma_max == pytest.approx((1 / 4.8973451890853435e-08 - 1) ** 0.5, rel=1e-4)


def test_a_timestep_and_its_level_are_inverse():
    sampling = discrete()
    steps = torch.arange(0, 1000, 37)
    assert torch.equal(sampling.timestep(sampling.sigma(steps)), steps)
    between = sampling.sigma(torch.tensor(10.5))
    assert float(between) == pytest.approx(math.sqrt(float(sampling.sigmas[10] * sampling.sigmas[11])), rel=1e-5)


def test_half_way_between_two_levels_the_more_exact_logarithm_decides():
    sampling = discrete()
    places = torch.arange(999) + 0.5
    chosen = sampling.timestep(sampling.sigma(places))
    assert set((chosen - places).abs().tolist()) == {0.5}
    # Logarithms of rounded levels would decide otherwise here and there; ComfyUI's are of exact ones.
    exact = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    kept = torch.cumprod(1 - exact, dim=0)
    assert torch.equal(sampling.log_sigmas, (((1 - kept) / kept) ** 0.5).log().float())


def test_percents_count_from_noise_to_picture():
    sampling = discrete()
    assert sampling.percent_to_sigma(0) == ALWAYS > sampling.sigma_max
    assert sampling.percent_to_sigma(1) == 0
    assert sampling.percent_to_sigma(0.5) == pytest.approx(float(sampling.sigma(torch.tensor(499.5))), rel=1e-6)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("steps", [1, 4, 20])
def test_every_schedule_descends_to_zero(name, steps):
    sigmas = SCHEDULES[name](discrete(), steps)
    assert sigmas.dtype == torch.float32
    assert sigmas[-1] == 0 and (sigmas.diff() < 0).all()
    assert sigmas[0] <= discrete().sigma_max * (1 + 1e-6)
    if name != "ddim_uniform":
        assert len(sigmas) == steps + 1


def test_the_schedules_have_their_closed_forms():
    sampling, n = discrete(), 8
    levels, top, bottom = sampling.sigmas, sampling.sigma_max, sampling.sigma_min
    closed = {
        "karras": [(top ** (1 / 7) + i / (n - 1) * (bottom ** (1 / 7) - top ** (1 / 7))) ** 7 for i in range(n)],
        "exponential": [top * (bottom / top) ** (i / (n - 1)) for i in range(n)],
        "simple": [float(levels[999 - 125 * i]) for i in range(n)],
        "ddim_uniform": [float(levels[1 + 125 * i]) for i in reversed(range(n))],
        "normal": [float(sampling.sigma(torch.tensor(999 * (1 - i / (n - 1))))) for i in range(n)],
        "sgm_uniform": [float(sampling.sigma(torch.tensor(999 * (1 - i / n)))) for i in range(n)],
    }
    assert closed.keys() == SCHEDULES.keys()
    for name, wanted in closed.items():
        torch.testing.assert_close(SCHEDULES[name](sampling, n)[:-1], torch.tensor(wanted), rtol=2e-5, atol=1e-6)


def test_denoising_less_takes_the_end_of_a_longer_schedule():
    sampling = discrete()
    assert torch.equal(schedule(sampling, "normal", 6, 0.6), SCHEDULES["normal"](sampling, 10)[-7:])
    assert torch.equal(schedule(sampling, "normal", 6, 0.99995), SCHEDULES["normal"](sampling, 6))
    assert len(schedule(sampling, "normal", 6, 0.0)) == 0


# Samplers, on a problem whose answer is known: data with unit variance, so that the best guess is x / (1 + sigma²)


LEVELS = Sampling(torch.linspace(0.1, 10, 50), torch.linspace(0.1, 10, 50).log())


def ideal(x, sigma):
    return x / (1 + sigma**2)


def solved(name, steps):
    sigmas = torch.cat([SCHEDULES["karras"](LEVELS, steps)[:-1].double()])
    start = torch.tensor([1.0, -2.0], dtype=torch.float64)
    none = lambda *_: None  # noqa: E731
    found = SAMPLERS[name](ideal, start, sigmas, none, lambda: torch.zeros(2, dtype=torch.float64))
    exact = start * ((1 + sigmas[-1] ** 2) / (1 + sigmas[0] ** 2)) ** 0.5
    return float((found - exact).norm() / exact.norm())


@pytest.mark.parametrize(("name", "order"), [("euler", 1), ("ddim", 1), ("heun", 2), ("dpmpp_2m", 2)])
def test_samplers_converge_with_their_order(name, order):
    coarse, fine = solved(name, 40), solved(name, 80)
    assert coarse < 0.1
    # Twice the steps leave a half of the error, or a quarter.
    assert math.log2(coarse / fine) == pytest.approx(order, abs=0.35)


def test_a_second_order_sampler_is_the_better_one():
    assert max(solved("heun", 20), solved("dpmpp_2m", 20)) < solved("euler", 20) / 3


def test_the_last_step_of_every_sampler_is_the_models_answer():
    goal = torch.tensor([3.0, -1.0])
    sigmas = torch.tensor([5.0, 2.0, 0.0])
    for name, sampler in SAMPLERS.items():
        seen = []
        out = sampler(
            lambda x, s: goal, torch.ones(2) * 5, sigmas, lambda n, x, d, seen=seen: seen.append(n), lambda: 0
        )
        torch.testing.assert_close(out, goal, msg=name)
        assert seen == [0, 1]


def test_only_the_ancestral_sampler_asks_for_noise():
    for name, sampler in SAMPLERS.items():
        asked = []
        sampler(
            ideal, torch.ones(2), torch.tensor([3.0, 2.0, 1.0, 0.0]), lambda *_: None, lambda a=asked: a.append(1) or 0
        )
        assert len(asked) == (2 if name == "euler_ancestral" else 0), name


# Noise


def test_noise_is_comfyuis():
    wanted = torch.randn((2, 4, 8, 8), generator=torch.Generator("cpu").manual_seed(7))
    assert torch.equal(noise(torch.zeros(2, 4, 8, 8), 7), wanted)
    assert noise(torch.zeros(1, 4, 2, 2), 2**64 - 1).shape == (1, 4, 2, 2)


def test_a_latent_keeps_the_noise_of_its_number():
    one = [noise(torch.zeros(1, 4, 8, 8), 7, [n]) for n in range(4)]
    several = noise(torch.zeros(3, 4, 8, 8), 7, [2, 0, 2])
    assert torch.equal(several, torch.cat([one[2], one[0], one[2]]))
    assert torch.equal(noise(torch.zeros(4, 4, 8, 8), 7, range(4)), torch.cat(one))


def test_the_same_seed_gives_the_same_latents(sd15):
    assert torch.equal(run(sd15), run(sd15))
    differs(run(sd15), run(sd15, seed=4))
    assert torch.equal(run(sd15, sampler="euler_ancestral"), run(sd15, sampler="euler_ancestral"))


def test_the_callers_random_numbers_are_left_alone(sd15):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    run(sd15, sampler="euler_ancestral")
    assert torch.equal(torch.get_rng_state(), before)


# Guidance


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_batched_and_split_are_the_same(family, request):
    model = request.getfixturevalue(family)
    latent = {"samples": torch.zeros(2, 4, 8, 12)}
    together, apart = (run(model, latent=latent, batched=batched) for batched in (True, False))
    close(together, apart)


def test_prompts_of_unequal_length_are_split(sd15, monkeypatch):
    heard = Listens(monkeypatch)
    run(replace(sd15, attention=("x",)), text(sd15, 1), text(sd15, 2, tokens=154), steps=1)
    assert [[chunk.index for chunk in chunks] for chunks, *_ in heard.heard] == [[0], [1]]
    assert [chunks[0].evaluation for chunks, *_ in heard.heard] == [0, 0]


def test_without_guidance_the_negative_is_not_looked_at(sd15, monkeypatch):
    heard = Listens(monkeypatch)
    model = replace(sd15, attention=("x",))
    plain = run(model, negative=text(sd15, 2), cfg=1.0)
    assert torch.equal(plain, run(model, negative=text(sd15, 9), cfg=1.0))
    assert all([c.index for c in chunks] == [0] for chunks, *_ in heard.heard)


def test_guidance_goes_from_the_negative_through_the_positive(sd15):
    model, x, sigma = sd15, torch.randn(1, 4, 8, 8), torch.tensor(3.0)
    guides = [guidance.entries(text(sd15, n), n, model, x.shape) for n in (0, 1)]

    def denoised(cfg):
        with torch.no_grad():
            return guidance.Denoiser(model, model.unet, guidance.NoAttention(), guides, cfg)(x, sigma)

    one, two, three = (denoised(cfg) for cfg in (1.0, 2.0, 3.0))
    close(three - two, two - one)


def test_the_adapters_hear_before_every_call_what_goes_through(sd15, monkeypatch):
    heard = Listens(monkeypatch)
    positive = [*text(sd15, 1, mine="kept"), *text(sd15, 2, other=[1])]
    latent = {"samples": torch.zeros(2, 4, 8, 8)}
    run(replace(sd15, attention=("x",)), positive, text(sd15, 3), latent, sampler="heun", steps=2)
    assert heard.open == 0
    assert heard.shape == (2, 4, 8, 8)
    assert [len(guide) for guide in heard.conditionings] == [2, 1]
    # Two steps of Heun are three evaluations, and the three entries agree in shape.
    assert [chunks[0].evaluation for chunks, *_ in heard.heard] == [0, 1, 2]
    for chunks, sigma, timestep, shape in heard.heard:
        assert [(c.index, c.size) for c in chunks] == [(0, 2), (0, 2), (1, 2)]
        assert chunks[0].entry["mine"] == "kept" and chunks[1].entry["other"] == [1]
        assert isinstance(sigma, float) and isinstance(timestep, float)
        assert timestep == float(sd15.sampling.timestep(torch.tensor(sigma)))
        assert shape == (6, 4, 8, 8)


def test_the_adapters_get_a_network_of_the_runs_own(sd15, monkeypatch):
    heard = Listens(monkeypatch)
    before = sd15.unet.attn_processors
    run(replace(sd15, attention=("x",)), steps=1)
    (unet,) = heard.unets
    assert unet is not sd15.unet
    assert all(a is b for a, b in zip(unet.parameters(), sd15.unet.parameters(), strict=True))
    assert sd15.unet.attn_processors == before


def test_several_entries_are_averaged(sd15):
    one, two = text(sd15, 1), text(sd15, 2)
    x, sigma = torch.randn(1, 4, 8, 8), torch.tensor(2.0)

    def answer(conditioning):
        guides = [guidance.entries(conditioning, 0, sd15, x.shape)]
        with torch.no_grad():
            return guidance.Denoiser(sd15, sd15.unet, guidance.NoAttention(), guides, 1.0).predict(guides, x, sigma)[0]

    close(answer(one + two), (answer(one) + answer(two)) / 2)
    heavy = [[one[0][0], {"strength": 3.0}], two[0]]
    close(answer(heavy), (3 * answer(one) + answer(two)) / 4)
    mask = torch.zeros(1, 64, 64)
    mask[..., 32:] = 1
    sides = [[one[0][0], {"mask": mask}], [two[0][0], {"mask": 1 - mask}]]
    both = answer(sides)
    close(both[..., 5:], answer(one)[..., 5:])
    close(both[..., :3], answer(two)[..., :3])


def test_a_full_mask_or_area_is_no_mask(sd15):
    plain = run(sd15)
    masked = text(sd15, 1, mask=torch.ones(1, 16, 16))
    area = text(sd15, 1, area=(8, 8, 0, 0))
    part = text(sd15, 1, area=("percentage", 1.0, 1.0, 0.0, 0.0))
    for positive in (masked, area, part):
        close(run(sd15, positive), plain)


def test_a_window_of_nothing_leaves_nothing(sd15):
    x = torch.randn(1, 4, 8, 8)
    guides = [guidance.entries(text(sd15, start_percent=0.5, end_percent=0.6), 0, sd15, x.shape)]
    denoiser = guidance.Denoiser(sd15, sd15.unet, guidance.NoAttention(), guides, 1.0)
    assert not denoiser(x, torch.tensor(14.0)).any()
    with torch.no_grad():
        assert denoiser(x, sd15.sampling.sigma(torch.tensor(450.0))).any()


def test_an_area_gets_an_opposite_with_the_others_text(sd15):
    shape = (1, 4, 16, 16)
    positive = guidance.entries(text(sd15, 1, area=(8, 8, 4, 4)), 0, sd15, shape)
    negative = guidance.entries(text(sd15, 2, whose="negative"), 1, sd15, shape)
    first, second = guidance.opposed([positive, negative])
    assert len(first) == 1 and len(second) == 2
    assert second[1].area == (8, 8, 4, 4)
    assert second[1].text is negative[0].text
    assert second[1].data["whose"] == "negative" and second[1].index == 1


def test_a_batch_is_as_good_as_its_parts(sd15):
    both = run(sd15, latent={"samples": torch.zeros(2, 4, 8, 8)})
    single = [run(sd15, latent={**EMPTY, "batch_index": [n]}) for n in (0, 1)]
    indexed = run(sd15, latent={"samples": torch.zeros(2, 4, 8, 8), "batch_index": [0, 1]})
    close(indexed, torch.cat(single))
    assert both.shape == indexed.shape


# Latents


def test_no_denoising_changes_nothing(sd15):
    latent = {"samples": torch.randn(1, 4, 8, 8), "mine": 1}
    out = sample(sd15, text(sd15, 1), text(sd15, 2), latent, replace(SETTINGS, denoise=0.0))
    assert torch.equal(out["samples"], latent["samples"]) and out["mine"] == 1
    for changes in ({"start": 3}, {"end": 0}):
        assert torch.equal(run(sd15, latent=latent, **changes), latent["samples"])


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_what_the_mask_keeps_is_kept(sd15, sampler):
    latent = {"samples": torch.randn(2, 4, 8, 8), "noise_mask": torch.zeros(1, 1, 64, 64)}
    latent["noise_mask"][..., :32] = 1
    out = run(sd15, latent=latent, sampler=sampler)
    close(out[..., 5:], latent["samples"][..., 5:])
    differs(out[..., :3], latent["samples"][..., :3])


def test_an_empty_mask_keeps_everything_and_a_full_one_nothing(sd15):
    latent = {"samples": torch.randn(1, 4, 8, 8)}
    kept = run(sd15, latent={**latent, "noise_mask": torch.zeros(1, 1, 8, 8)})
    close(kept, latent["samples"])
    free = run(sd15, latent={**latent, "noise_mask": torch.ones(1, 1, 8, 8)})
    close(free, run(sd15, latent=latent))


def test_a_run_in_two_halves_is_the_whole(sd15):
    whole = run(sd15, steps=4, scheduler="karras")
    half = run(sd15, steps=4, scheduler="karras", end=2, finish=False)
    rest = run(sd15, latent={"samples": half}, steps=4, scheduler="karras", start=2, add_noise=False)
    close(rest, whole)


def test_an_empty_latent_may_have_any_number_of_channels(sd15):
    assert run(sd15, latent={"samples": torch.zeros(1, 16, 8, 8)}).shape == (1, 4, 8, 8)


@pytest.mark.parametrize(
    ("latent", "sentence"),
    [
        ({"samples": torch.ones(1, 16, 8, 8)}, r"takes latents \(B, 4, h, w\), got \(1, 16, 8, 8\)"),
        ({"samples": torch.ones(4, 8, 8)}, r"got \(4, 8, 8\)"),
        ({"samples": None}, "got NoneType"),
        ({"samples": torch.zeros(2, 4, 8, 8), "batch_index": [0]}, "2 samples and a batch_index of 1"),
    ],
)
def test_other_latents_are_refused(sd15, latent, sentence):
    with pytest.raises(BadInput, match=sentence):
        run(sd15, latent=latent)


def test_unknown_samplers_and_schedules_are_refused(sd15):
    with pytest.raises(BadInput, match=r"no sampler 'dpm_3'.*euler"):
        run(sd15, sampler="dpm_3")
    with pytest.raises(BadInput, match=r"no scheduler 'beta'.*karras"):
        run(sd15, scheduler="beta")


def test_another_familys_conditioning_is_refused(sd15, sdxl):
    with pytest.raises(BadInput, match=r"positive conditioning is \(1, 77, 128\) where this sd15 model reads .* 64\)"):
        run(sd15, text(sdxl, 1), text(sd15, 2))
    with pytest.raises(BadInput, match=r"negative conditioning is \(1, 77, 64\) where this sdxl model"):
        run(sdxl, text(sdxl, 1), text(sd15, 2))
    bare = [[text(sdxl, 1)[0][0], {}]]
    with pytest.raises(BadInput, match="pooled text 64 wide beside the negative conditioning, got none"):
        run(sdxl, text(sdxl, 1), bare)
    with pytest.raises(BadInput, match="begins at 128, 0, outside of the picture of 64×64"):
        run(sd15, text(sd15, 1, area=(8, 8, 0, 16)))


def test_sdxls_sizes_matter(sdxl):
    plain = run(sdxl)
    assert torch.equal(run(sdxl, text(sdxl, 1, width=64, height=64), text(sdxl, 2)), plain)
    differs(run(sdxl, text(sdxl, 1, width=640, crop_w=32), text(sdxl, 2)), plain)


# LoRA

FORMS = ["kohya", "kohya-ldm", "peft", "diffusers", "processor"]


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_every_layout_of_a_lora_means_the_same(family, request):
    model = request.getfixturevalue(family)
    unet = (tiny.tiny_sd15() if family == "sd15" else tiny.tiny_sdxl())[0]
    found = {}
    for form in FORMS:
        lora = parse(tiny.lora(unet, family, form), form)
        changed, clip = lora.apply(model, None, 0.8, 0.0)
        assert clip is None and changed is not model and not model.lora
        before = model.unet.state_dict()
        with running(changed) as net:
            found[form] = {
                name: t for name, t in net.state_dict().items() if t is not before[name] and (t != before[name]).any()
            }
    assert len(found["kohya"]) == 6
    for form in FORMS[1:]:
        assert found[form].keys() == found["kohya"].keys(), form
        for name, weight in found[form].items():
            torch.testing.assert_close(weight, found["kohya"][name], rtol=1e-5, atol=1e-6)


def patch(model, strength=1.0, seed=1, path="mid_block.attentions.0.transformer_blocks.0.attn2.to_k"):
    weight = model.unet.get_submodule(path).weight
    drawn = tiny.random({"up": (len(weight), 2), "down": (2, weight.shape[1])}, seed)
    return WeightPatch({path: LowRank(drawn["up"], drawn["down"], 0.5)}, strength, "a patch")


def test_a_patch_is_strength_times_scale_times_the_product(sd15):
    one = patch(sd15, 0.7)
    ((path, delta),) = one.deltas.items()
    with running(sd15.with_lora(one)) as net:
        wanted = sd15.unet.get_submodule(path).weight + 0.7 * 0.5 * delta.up @ delta.down
        torch.testing.assert_close(net.get_submodule(path).weight, wanted)


def test_a_convolution_and_a_locon_are_patched_as_well(sd15):
    path = "down_blocks.0.resnets.0.conv1"
    weight = sd15.unet.get_submodule(path).weight
    out, wide = weight.shape[:2]
    drawn = tiny.random({"u": (out, 2, 1, 1), "d": (2, wide, 3, 3), "m": (2, 2, 3, 3), "e": (2, wide, 1, 1)})
    plain = LowRank(drawn["u"], drawn["d"]).matrix(weight)
    wanted = torch.einsum("or,rihw->oihw", drawn["u"][..., 0, 0], drawn["d"])
    torch.testing.assert_close(plain, wanted)
    between = LowRank(drawn["u"], drawn["e"], mid=drawn["m"]).matrix(weight)
    wanted = torch.einsum("or,rshw,si->oihw", drawn["u"][..., 0, 0], drawn["m"], drawn["e"][..., 0, 0])
    torch.testing.assert_close(between, wanted)
    with running(sd15.with_lora(WeightPatch({path: LowRank(drawn["u"], drawn["d"])}))) as net:
        torch.testing.assert_close(net.get_submodule(path).weight, weight + plain)


def test_strength_zero_changes_nothing_bit_for_bit(sd15):
    assert torch.equal(run(sd15.with_lora(patch(sd15, 0.0))), run(sd15))


def test_strengths_add_up_and_cancel_out(sd15):
    path = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
    twice = sd15.with_lora(patch(sd15, 0.4)).with_lora(patch(sd15), strength=0.6)
    with running(twice) as both, running(sd15.with_lora(patch(sd15))) as once:
        torch.testing.assert_close(both.get_submodule(path).weight, once.get_submodule(path).weight)
    gone = sd15.with_lora(patch(sd15, 1.0)).with_lora(patch(sd15, -1.0))
    close(run(gone), run(sd15))


def test_a_lora_changes_the_picture_and_not_the_model(sd15):
    before = {name: tensor.clone() for name, tensor in sd15.unet.state_dict().items()}
    plain = run(sd15)
    with_lora = sd15.with_lora(patch(sd15, 3.0))
    differs(run(with_lora), plain)
    assert all(torch.equal(tensor, before[name]) for name, tensor in sd15.unet.state_dict().items())
    assert torch.equal(run(sd15), plain)


def test_even_a_failed_run_leaves_the_model_as_it_was(sd15):
    before = {name: tensor.clone() for name, tensor in sd15.unet.state_dict().items()}

    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sample(sd15.with_lora(patch(sd15)), text(sd15), text(sd15), EMPTY, SETTINGS, check=stop)
    assert all(torch.equal(tensor, before[name]) for name, tensor in sd15.unet.state_dict().items())


def test_a_patch_for_another_network_is_refused(sd15, sdxl):
    with pytest.raises(BadInput, match=r"'a patch' changes nowhere\.to_k, which this network does not have"):
        sd15.with_lora(WeightPatch({"nowhere.to_k": LowRank(torch.ones(2, 2), torch.ones(2, 2))}, name="a patch"))
    with pytest.raises(BadInput, match="is 64×64 in this network: it was made for another base model"):
        sdxl.with_lora(WeightPatch({"mid_block.attentions.0.proj_in": LowRank(torch.ones(7, 2), torch.ones(2, 7))}))
    with pytest.raises(BadInput, match="does not have"):
        sd15.with_lora(WeightPatch({"mid_block.attentions": LowRank(torch.ones(2, 2), torch.ones(2, 2))}))


def test_a_lora_of_another_base_is_refused(sd15, sdxl):
    far = parse(
        {"lora_unet_double_blocks_0_qkv.lora_up.weight": torch.ones(2, 1)}
        | {"lora_unet_double_blocks_0_qkv.lora_down.weight": torch.ones(1, 2)},
        "flux.safetensors",
    )
    with pytest.raises(BadInput, match=r"flux\.safetensors changes nothing of this sd15 model: its 1 modules"):
        far.apply(sd15, None, 1.0, 0.0)
    near = parse(tiny.lora(tiny.tiny_sdxl()[0], "sdxl", names=["up_blocks.0.attentions.0.proj_in"]), "xl.safetensors")
    with pytest.raises(BadInput, match="changes nothing"):
        near.apply(sd15, None, 1.0, 0.0)


def test_half_a_lora_is_refused_and_other_kinds_by_name():
    whole = tiny.lora(tiny.tiny_sd15()[0], "sd15")
    cut = {name: tensor for name, tensor in whole.items() if not name.endswith("proj_in.lora_up.weight")}
    with pytest.raises(BadModelFile, match="lacks one half of 1 changes"):
        parse(cut, "cut.safetensors")
    for name, kind in {"x.hada_w1_a": "LoHa", "x.lokr_w1": "LoKr", "x.dora_scale": "DoRA", "x.diff": "full"}.items():
        with pytest.raises(BadModelFile, match=f"LyCORIS file with {kind}"):
            parse(whole | {name: torch.ones(1)}, "other.safetensors")


def test_what_a_lora_has_for_nobody_is_told(sd15, caplog):
    text_part = tiny.text_lora(tiny.tiny_sd15()[2])
    lora = parse(tiny.lora(tiny.tiny_sd15()[0], "sd15") | text_part, "both.safetensors")
    lora.apply(sd15, None, 1.0, 0.0)
    assert "both.safetensors: 3 modules are of neither the model nor CLIP: lora_te_" in caplog.text


def test_a_view_shares_tensors_and_nothing_else(sd15):
    from diffusers.models.attention_processor import AttnProcessor

    processors = sd15.unet.attn_processors
    other = view(sd15.unet)
    assert {id(p) for p in other.parameters()} == {id(p) for p in sd15.unet.parameters()}
    other.set_attn_processor(AttnProcessor())
    handle = other.mid_block.register_forward_hook(lambda *_: None)
    other.conv_in.weight = torch.nn.Parameter(torch.zeros(1))
    assert sd15.unet.attn_processors == processors
    assert not sd15.unet.mid_block._forward_hooks
    assert sd15.unet.conv_in.weight.numel() > 1
    handle.remove()


def test_patches_are_computed_in_float32():
    layer = torch.nn.Linear(4, 4, bias=False).to(torch.float16)
    net = torch.nn.Sequential(layer)
    delta = LowRank(torch.full((4, 1), 1e-4), torch.full((1, 4), 1e-4))
    many = [WeightPatch({"0": delta}, 1e4 / 50) for _ in range(50)]
    out = patched(net, many)[0].weight
    assert out.dtype == torch.float16
    torch.testing.assert_close(out, (layer.weight.float() + 1e-4).half())


# ControlNet


@pytest.fixture(scope="module")
def control(models):
    return load.controlnet(models / "controlnet" / "tiny_sd15.safetensors", CPU)


def hinted(control, strength=1.0, window=(0.0, 1.0), size=64, count=1, seed=0):
    picture = torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed))
    return control.copy().set_cond_hint(picture, strength, window)


def steered(model, control, *, negative=None, **changes):
    return run(model, text(model, 1, control=control), negative or text(model, 2, control=control), **changes)


def test_a_controlnet_steers_by_its_strength(sd15, control):
    plain = run(sd15)
    close(steered(sd15, hinted(control, 0.0)), plain)
    weak, strong = ((steered(sd15, hinted(control, s)) - plain).norm() for s in (0.1, 1.0))
    assert 0 < weak < strong


def test_a_controlnet_outside_of_its_window_does_nothing(sd15, control):
    assert torch.equal(steered(sd15, hinted(control, 1.0, (0.6, 0.61))), run(sd15))
    first = steered(sd15, hinted(control, 1.0, (0.0, 0.3)))
    differs(first, run(sd15))
    differs(first, steered(sd15, hinted(control)))


def test_controlnets_in_a_chain_add_up(sd15, control):
    half = [hinted(control, 0.5) for _ in range(2)]
    half[1].set_previous_controlnet(half[0])
    close(steered(sd15, half[1]), steered(sd15, hinted(control)))
    assert control.previous_controlnet is None and control.cond_hint_original is None


def test_a_picture_of_another_size_is_fitted(sd15, control):
    assert torch.isfinite(steered(sd15, hinted(control, size=40))).all()


def test_a_batch_of_pictures_goes_with_the_batch_of_latents(sd15, control):
    latent = {"samples": torch.zeros(2, 4, 8, 8), "batch_index": [0, 0]}
    both = steered(sd15, hinted(control, count=2), latent=latent)
    differs(both[0], both[1])
    picture = hinted(control, count=2).cond_hint_original
    for n in (0, 1):
        alone = control.copy().set_cond_hint(picture[n : n + 1])
        single = steered(sd15, alone, latent={**EMPTY, "batch_index": [0]})
        close(single[0], both[n])


def test_a_controlnet_may_read_another_text(sd15, control):
    net = hinted(control)
    plain = steered(sd15, net)
    other = torch.randn(1, 16, 64)

    def with_text(tokens):
        return run(sd15, text(sd15, 1, control=net, cross_attn_controlnet=tokens), text(sd15, 2, control=net))

    differs(with_text(other), plain)
    close(with_text(text(sd15, 1)[0][0]), plain)


def test_the_simple_node_gives_the_negative_the_same_controlnet(sd15, control):
    net = hinted(control)
    simple = run(sd15, text(sd15, 1, control=net, control_apply_to_uncond=True), text(sd15, 2))
    close(simple, steered(sd15, net))
    alone = run(sd15, text(sd15, 1, control=net, control_apply_to_uncond=False), text(sd15, 2))
    differs(alone, simple)


def test_another_familys_controlnet_is_refused(sd15, sdxl, control):
    with pytest.raises(BadInput, match=r"this ControlNet is for sd15 .* load a ControlNet made for sdxl"):
        run(sdxl, text(sdxl, 1, control=hinted(control)))
    with pytest.raises(BadInput, match="a ControlNet has no picture: wire it through Apply ControlNet"):
        run(sd15, text(sd15, 1, control=control))
    with pytest.raises(BadInput, match="carries a str where a ControlNet belongs"):
        run(sd15, text(sd15, 1, control="x"))
    with pytest.raises(BadInput, match=r"takes images \(B, H, W, 3\)"):
        control.copy().set_cond_hint(torch.zeros(1, 1, 8, 8))


# Half precision, as on a graphics card


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_a_network_in_half_precision_gives_nearly_the_same(models, family, request, monkeypatch):
    monkeypatch.setattr(load, "compute_type", lambda device: torch.bfloat16)
    half = load.checkpoint(models / "checkpoints" / f"tiny_{family}.safetensors", CPU)[0]
    net = hinted(load.controlnet(models / "controlnet" / f"tiny_{family}.safetensors", CPU))
    assert half.dtype == half.unet.dtype == net.net.dtype == torch.bfloat16
    full = request.getfixturevalue(family)
    out = run(half.with_lora(patch(half)), cfg=1.0)
    assert out.dtype == torch.float32
    close(out, run(full.with_lora(patch(full)), cfg=1.0), 0.2)
    assert torch.isfinite(steered(half, net)).all()


# Threads, stopping, progress


def test_two_threads_with_one_network_do_not_disturb_each_other(sd15):
    jobs = {n: sd15.with_lora(patch(sd15, 4.0, seed=n)) for n in range(2)} | {2: sd15}
    wanted = {n: run(model, seed=n) for n, model in jobs.items()}
    found, gate = {}, threading.Barrier(len(jobs))

    def work(n):
        gate.wait()
        found[n] = [run(jobs[n], seed=n) for _ in range(2)]

    threads = [threading.Thread(target=work, args=(n,)) for n in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    differs(wanted[0], wanted[1])
    for n in jobs:
        for out in found[n]:
            close(out, wanted[n])


def test_a_run_stops_before_the_next_call_of_the_network(sd15):
    calls = []

    def check():
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt

    done = []
    with pytest.raises(KeyboardInterrupt):
        settings = replace(SETTINGS, steps=20, sampler="heun")
        sample(sd15, text(sd15, 1), text(sd15, 2), EMPTY, settings, lambda n, of, _: done.append((n, of)), check)
    # The third evaluation is the second step's first; the fourth never came.
    assert done == [(1, 20), (2, 20)]


def test_progress_is_told_after_every_step(sd15):
    seen = []
    sample(sd15, text(sd15, 1), text(sd15, 2), EMPTY, SETTINGS, lambda n, of, x: seen.append((n, of, tuple(x.shape))))
    assert seen == [(n, 3, (1, 4, 8, 8)) for n in (1, 2, 3)]


def test_a_model_is_a_value(sd15):
    other = sd15.with_lora(patch(sd15))
    assert isinstance(other, Model) and other.unet is sd15.unet
    assert (len(sd15.lora), len(other.lora)) == (0, 1)
    with pytest.raises(AttributeError):
        sd15.lora = ()
    assert replace(sd15, attention=(1,)).attention == (1,) and sd15.attention == ()


def test_velocity_is_noise_by_another_name():
    eps, v = discrete("eps"), discrete("v")
    clean, gauss, sigma = torch.randn(1, 4, 2, 2), torch.randn(1, 4, 2, 2), torch.tensor(1.7)
    x = eps.noisy(clean, gauss, sigma, full=False)
    keep = 1 / (1 + sigma**2) ** 0.5
    velocity = keep * gauss - sigma * keep * clean
    torch.testing.assert_close(eps.denoised(x, gauss, sigma), clean, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(v.denoised(x, velocity, sigma), clean, atol=1e-5, rtol=1e-4)
