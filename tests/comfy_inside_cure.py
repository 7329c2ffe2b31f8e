"""Checks of the cure in ComfyUI's own process, called as ``comfy_inside`` is; ``test_comfy_cure`` starts it."""

import gc
import weakref
from functools import lru_cache
from weakref import ref

# ruff: isort: off
import comfy_inside as inside  # first: it makes ComfyUI and the pack importable

# ruff: isort: on
import comfy.sample
import comfy.samplers
import folder_paths  # noqa: F401  (by it the pack knows that it is in ComfyUI)
import torch
from comfy_inside import conditioning, near, patcher, predicted, same, tokens_of
from likeness.face.adapters import Evidence, load
from likeness.face.attention import Tokens, apply
from likeness.face.cure import run as cure
from likeness.face.cure.tape import FULL, HALF, NONE, Plan
from likeness.face.errors import BadInput
from likeness.nodes import cure as nodes
from likeness.nodes.comfy import curing, patching
from likeness.tests.golden_data import fixture

import nodes as comfy_nodes

inside.CHECKS.clear()
check = inside.check

P_UNCOND, F_UNCOND, P_COND, F_COND = range(4)
SAMPLERS = ("euler", "euler_ancestral", "heun", "dpmpp_2m", "ddim")


def layers(base="sd15"):
    return curing.layers_of(patcher(base))[0]


def half_mask(size=32):
    mask = torch.zeros(1, size, size)
    mask[:, : size // 2, size // 4 :] = 1
    return mask


# The authors' numbers


def answer(gold, base, rows, hook, run, model=None):
    """What the U-Net says to some of the fixture's rows, [negative, positive], while the hook acts."""
    x = {name: t[rows] if t.shape[0] == 4 else t for name, t in gold.inputs.items()}
    session = curing.Session((hook,), [run], None, 0, 1.0, {"positive": 0})
    more = {curing.SESSION: session}
    model = curing.put(model or patcher(base), hook)
    return predicted(model, x, cond_or_uncond=(1, 0), uuids=("negative", "positive"), more=more)


def cured_rows(gold, base, omega, models=(None, None)):
    known = layers(base)
    plan = Plan(0, (1, *gold.inputs["sample"].shape[1:]), "euler", (1.0, 0.0), "", "", ref(patcher(base).model))
    recording = cure.Recording(known.choose("authors"), known, FULL)
    record = recording.begin(plan, float)
    foundation = answer(gold, base, [F_UNCOND, F_COND], recording, record, models[0])
    reading = cure.Curing(record.tape, known, gold.inputs["mask"][:, 0].float(), omega)
    person = answer(gold, base, [P_UNCOND, P_COND], reading, reading.begin(plan, float), models[1])
    return torch.stack([person[0], foundation[0], person[1], foundation[1]])


@check
def golden_sd15_and_sdxl():
    for base in ("sd15", "sdxl"):
        gold = fixture(f"fasa_unet_{base}")
        assert list(layers(base).choose("authors")) == gold.config["layer_idx"]
        for omega in ("1.5", "0.5"):
            gold.close(cured_rows(gold, base, float(omega)), f"noise_pred_omega_{omega}")


@check
def golden_beside_an_adapter():
    gold = fixture("fasa_unet_sd15_portrait")
    one = load(fixture("unet_sd15_portrait").checkpoint)

    def shown(row):
        sides = [gold.inputs["id_embeds"][n].reshape(-1, gold.config["id_dim"]) for n in (row, P_UNCOND)]
        positive, negative = (tokens_of(one, [Evidence(side)]).positive for side in sides)
        tokens = Tokens(positive, negative, one.keys, one.values)
        known = patching.layout_of(patcher("sd15"))[0]
        return patching.apply(patcher("sd15"), apply("portrait", tokens, known, strength=gold.config["ip_scale"]))

    for omega in ("1.5", "0.5"):
        rows = cured_rows(gold, "sd15", float(omega), (shown(F_COND), shown(P_COND)))
        gold.close(rows, f"noise_pred_omega_{omega}")


# A tape and the paired run


def drawn(model, batch=1, twice=False, sampler="euler", cfg=7.0, steps=3, seed=1, scheduler="normal", denoise=1.0,
          latent=None, positive=None, size=16):  # fmt: skip
    """Samples of a run of ``batch`` pictures; ``twice``: each of them again behind them, from the same noise."""
    latent = torch.zeros(batch, 4, size, size) if latent is None else latent
    noise = comfy.sample.prepare_noise(latent, seed)
    if twice:
        latent, noise = latent.repeat(2, 1, 1, 1), noise.repeat(2, 1, 1, 1)
    made = comfy.samplers.KSampler(model, steps, "cpu", sampler, scheduler, denoise, model.model_options)
    options = {}
    if sampler == "euler_ancestral":
        # It draws for the whole batch; in a paired run the second half gets what the first has.
        draw = torch.Generator().manual_seed(9)
        shape = (batch, *latent.shape[1:])
        options["noise_sampler"] = lambda a, b: torch.randn(shape, generator=draw).repeat(1 + twice, 1, 1, 1)
    solver = comfy.samplers.ksampler("euler" if sampler == "ddim" else sampler, options)
    return comfy.sample.sample_custom(
        model, noise, cfg, solver, made.sigmas, positive or conditioning(1, BASE), conditioning(2, BASE), latent,
        disable_pbar=True, seed=seed,
    )  # fmt: skip


BASE = "sd15"


def shown(*strength):
    return patching.apply(patcher(BASE), identity(strength or (1.0,)))


@lru_cache
def identity(strength):
    known, g = patching.layout_of(patcher(BASE))[0], torch.Generator().manual_seed(5)
    scale = known.context**-0.5
    weights = [torch.randn(s.width, known.context, generator=g) * scale for s in known.sites for _ in range(2)]
    tokens = torch.randn(1, 4, known.context, generator=g)
    return apply("somebody", Tokens(tokens, tokens, weights[::2], weights[1::2]), known, strength=strength)


def recorded(batch=1, keep=FULL, mask=None, model=None, words=False, **changes):
    model = model or patcher(BASE)
    known = layers(BASE)
    recording = cure.Recording(known.choose("authors"), known, keep, mask, words)
    samples = drawn(curing.put(model, recording), batch, **changes)
    (tape,) = recording.done
    if keep == NONE:
        tape.source = (model, changes.get("positive") or conditioning(1, BASE), conditioning(2, BASE))
    return tape, samples


def cured(tape, mask=None, model=None, omega=1.5, **more):
    mask = half_mask() if mask is None else mask
    return curing.put(model or shown(), cure.Curing(tape, layers(BASE), mask, omega, **more))


def split(function):
    """Run with positive and negative in calls of their own, as ComfyUI does where memory is short."""
    original = comfy.samplers.can_concat_cond
    comfy.samplers.can_concat_cond = lambda a, b: a is b
    try:
        return function()
    finally:
        comfy.samplers.can_concat_cond = original


@check
def a_tape_is_the_paired_run():
    worst = 0.0
    for sampler in SAMPLERS:
        for batch, cfg, apart in ((1, 7.0, False), (3, 7.0, False), (3, 7.0, True), (1, 1.0, False)):

            def both(sampler=sampler, batch=batch, cfg=cfg):
                changes = {"sampler": sampler, "cfg": cfg}
                paired = cure.Paired(layers(), layers().choose("authors"), half_mask(), 1.5)
                model = curing.put(shown(*(0.0,) * batch, *(1.0,) * batch), paired)
                pair = drawn(model, batch, twice=True, **changes)
                tape, foundation = recorded(batch, **changes)
                found = near(foundation, pair[:batch], 1e-4)
                return max(found, near(drawn(cured(tape), batch, **changes), pair[batch:], 1e-4))

            worst = max(worst, split(both) if apart else both())
    off = drawn(shown())
    tape, _ = recorded()
    assert not torch.allclose(drawn(cured(tape)), off, atol=1e-2)
    return f"worst {worst:.1e}"


@check
def a_tape_is_the_paired_run_on_sdxl():
    global BASE
    BASE = "sdxl"
    identity.cache_clear()
    # The fixture's network is in ComfyUI's plain class, which makes no vector of sizes.
    vector = inside.adm(fixture("unet_sdxl").inputs)[:1]
    patcher("sdxl").model.encode_adm = lambda **_: vector
    try:
        paired = cure.Paired(layers("sdxl"), layers("sdxl").choose("authors"), half_mask(), 1.5)
        pair = drawn(curing.put(shown(0.0, 1.0), paired), twice=True)
        tape, foundation = recorded()
        near(foundation, pair[:1], 1e-4)
        return f"{near(drawn(cured(tape)), pair[1:], 1e-4):.1e}"
    finally:
        BASE = "sd15"
        identity.cache_clear()


@check
def smaller_tapes_say_the_same():
    whole, _ = recorded()
    expected = drawn(cured(whole))
    for keep, limit in ((HALF, 3e-2), (NONE, 1e-5)):
        tape, _ = recorded(keep=keep)
        assert tape.nbytes == (whole.nbytes // 4 if keep == HALF else 0)
        near(drawn(cured(tape)), expected, limit)


@check
def latents_only_needs_equal_weights():
    """Refused before the first step, also where the cure begins later."""
    tape, _ = recorded(keep=NONE)
    changed = cured(tape, model=patching.apply(inside.lora(0.5), identity((1.0,))), start=0.6)
    changed.set_model_unet_function_wrapper(lambda *_: (_ for _ in ()).throw(AssertionError("a step was taken")))
    try:
        drawn(changed)
    except BadInput as error:
        assert "different weights" in str(error)
    else:
        raise AssertionError("a model with other weights was accepted")


@check
def a_tape_is_let_go_without_a_search_for_circles():
    gc.collect()
    gc.disable()
    try:
        for keep in (FULL, NONE):
            tape, _ = recorded(keep=keep)
            drawn(cured(tape))
            held = weakref.ref(tape)
            del tape
            assert held() is None, keep
    finally:
        gc.enable()


@check
def sizes_that_do_not_halve_are_the_paired_run():
    for height, width in ((13, 9), (26, 18)):
        latent, mask = torch.zeros(1, 4, height, width), torch.ones(1, height * 8, width * 8)
        mask[:, :, : width * 4] = 0
        tape, _ = recorded(latent=latent)
        paired = cure.Paired(layers(), layers().choose("authors"), mask, 1.5)
        pair = drawn(curing.put(shown(0.0, 1.0), paired), twice=True, latent=latent)
        near(drawn(cured(tape, mask), latent=latent), pair[1:], 1e-4)


@check
def inpainting_is_cured_under_the_same_mask_only():
    still = torch.ones(1, 128, 128)
    still[:, :64] = 0
    begun = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))

    def by_node(model, mask):
        latent = {"samples": begun} if mask is None else {"samples": begun, "noise_mask": mask}
        sides = conditioning(1), conditioning(2)
        return comfy_nodes.KSampler().sample(model, *WIDGETS.values(), *sides, latent, 0.7)[0]["samples"]

    recording = cure.Recording(layers().choose("authors"), layers(), FULL)
    by_node(curing.put(patcher("sd15"), recording), still)
    tape = recording.done[0]
    out = by_node(cured(tape), still)
    near(out[:, :, :8], begun[:, :, :8], 1e-5)
    assert not torch.allclose(out, by_node(shown(), still), atol=1e-2)
    for mask, said in ((None, "an inpainting mask, and this one has none"), (1 - still, "another inpainting mask")):
        try:
            by_node(cured(tape), mask)
        except BadInput as error:
            assert said in str(error), error
        else:
            raise AssertionError("it was accepted")


# Laws


@check
def an_empty_mask_and_a_closed_window_are_off():
    tape, _ = recorded()
    off = drawn(shown())
    same(drawn(cured(tape, torch.zeros(1, 8, 8))), off)
    same(drawn(cured(tape, start=1.0)), off)


@check
def recording_changes_nothing():
    near(recorded()[1], drawn(patcher("sd15")), 1e-6)


@check
def the_incoming_model_is_unchanged():
    model = shown()
    before = drawn(model)
    tape, _ = recorded()
    cured(tape, model=model)
    same(drawn(model), before)


@check
def an_adapter_may_come_before_or_after_the_cure():
    tape, _ = recorded()
    first = drawn(cured(tape))
    same(drawn(patching.apply(cured(tape, model=patcher("sd15")), identity((1.0,)))), first)


@check
def an_adapter_stays_active():
    tape, _ = recorded()
    assert not torch.allclose(drawn(cured(tape)), drawn(cured(tape, model=patcher("sd15"))), atol=1e-2)


@check
def an_older_patch_keeps_the_rows_that_are_not_cured():
    tape, _ = recorded()
    calls = []

    def older(q, k, v, extra_options):
        calls.append(len(q))
        attention, _ = patching.attention_function()
        return attention(q, k, v, extra_options["n_heads"])

    model = shown()
    for key in curing.layers_of(model)[1]:
        model.set_model_attn1_replace(older, *key)
    near(drawn(cured(tape, model=model)), drawn(cured(tape)), 1e-5)
    assert set(calls) == {2}, "the older patch did not get the whole batch"
    assert len(calls) == 16 * 3


@check
def a_token_cutting_patch_is_named():
    tape, _ = recorded()
    model = shown()
    model.set_model_attn1_patch(lambda q, k, v, extra: (q, k[:, ::2], v[:, ::2]))
    try:
        drawn(cured(tape, model=model))
    except BadInput as error:
        assert "cuts or merges tokens" in str(error)
    else:
        raise AssertionError("nothing was said")


@check
def a_patch_that_merges_queries_is_no_hindrance():
    """As the one that ComfyUI brings (ToMe): fewer ask, all are there to be read."""
    tape, _ = recorded()
    model = shown()
    model.set_model_attn1_patch(lambda q, k, v, extra: (q[:, ::2], k, v))
    model.set_model_attn1_output_patch(lambda out, extra: out.repeat_interleave(2, 1))
    assert not torch.allclose(drawn(cured(tape, model=model)), drawn(model), atol=1e-2)


@check
def a_guider_that_hides_its_answers_is_named():
    import comfy_extras.nodes_custom_sampler as custom

    tape, _ = recorded()
    latent = torch.zeros(1, 4, 16, 16)
    noise, solver = comfy.sample.prepare_noise(latent, 1), comfy.samplers.ksampler("euler", {})
    sigmas = comfy.samplers.KSampler(patcher("sd15"), 3, "cpu", "euler", "normal", 1.0, {}).sigmas

    def guided(model, kind, conds, *cfg):
        guider = kind(model)
        guider.set_conds(*map(conditioning, conds))
        if cfg:
            guider.set_cfg(*cfg)
        return guider.sample(noise, latent, solver, sigmas, seed=1, disable_pbar=True)

    three = custom.Guider_DualCFG, (1, 4, 2), 5.0, 3.0
    assert not torch.allclose(guided(cured(tape), *three), guided(shown(), *three), atol=1e-2)
    same(guided(cured(tape), custom.Guider_Basic, (1,)), drawn(cured(tape), cfg=1.0))
    try:
        guided(curing.put(shown(), cure.Blending(tape, torch.ones(1, 16, 16))), *three)
    except BadInput as error:
        assert "Guider_DualCFG does not show its answers" in str(error)
    else:
        raise AssertionError("nothing was blended, and nothing said")


@check
def entries_of_a_time_and_of_an_area_read_their_own():
    """Two positive prompts side by side, and one that is exchanged half way."""
    left, right = conditioning(1), conditioning(3)
    for entry, x in ((left[0][1], 0), (right[0][1], 8)):
        entry |= {"area": (16, 8, 0, x), "strength": 1.0, "set_area_to_bounds": False}
    early, late = conditioning(1), conditioning(3)
    early[0][1] |= {"start_percent": 0.0, "end_percent": 0.4}
    late[0][1] |= {"start_percent": 0.4, "end_percent": 1.0}
    for positive in ([*left, *right], [*early, *late]):
        tape, foundation = recorded(positive=positive)
        ordinals = {ordinal for _, ordinal, _ in tape._blocks}
        assert ordinals == ({0, 1} if positive[0] is left[0] else {0}), ordinals
        # Without a person, and with ω that only doubles what is there, the run is the foundation's.
        near(drawn(cured(tape, torch.ones(1, 16, 16), patcher("sd15"), 0.0), positive=positive), foundation, 1e-4)
        out = drawn(cured(tape), positive=positive)
        assert not torch.allclose(out, drawn(shown(), positive=positive), atol=1e-2)


@check
def prompts_of_other_parts_than_the_foundations_are_cured():
    left, right = conditioning(1), conditioning(3)
    for entry, x in ((left[0][1], 0), (right[0][1], 8)):
        entry |= {"area": (16, 8, 0, x), "strength": 1.0, "set_area_to_bounds": False}
    whole, both = conditioning(1), [*left, *right]
    for theirs, mine in ((whole, both), (both, whole), (whole, [*left, *conditioning(4)]), (right, both)):
        tape, _ = recorded(positive=theirs)
        out = drawn(cured(tape, torch.ones(1, 16, 16)), positive=mine)
        assert torch.isfinite(out).all()
        assert not torch.allclose(out, drawn(shown(), positive=mine), atol=1e-2)
    # Nothing of the mask lies in what the person's part draws, or in what the foundation's saw.
    mask = torch.zeros(1, 16, 16)
    mask[:, :, 8:] = 1
    for theirs, mine, where in ((whole, left, mask), (right, whole, 1 - mask)):
        tape, _ = recorded(positive=theirs)
        same(drawn(cured(tape, where), positive=mine), drawn(shown(), positive=mine))


@check
def latents_only_tells_the_parts_of_a_prompt_apart():
    positive = [*conditioning(1), *conditioning(3)]
    positive[1][1] |= {"area": (16, 8, 0, 8), "strength": 1.0, "set_area_to_bounds": False}
    whole, _ = recorded(2, positive=positive)
    latents, _ = recorded(2, positive=positive, keep=NONE)
    near(drawn(cured(latents), 2, positive=positive), drawn(cured(whole), 2, positive=positive), 1e-5)


@check
def anothers_function_before_guidance_is_called():
    tape, _ = recorded()
    model, told = shown(), []
    model.set_model_sampler_pre_cfg_function(lambda args: told.append(1) or [2 * out for out in args["conds_out"]])
    doubled = drawn(cured(tape, model=model))
    assert len(told) == 3
    assert not torch.allclose(doubled, drawn(cured(tape)), atol=1e-2)


@check
def the_look_at_the_words_adds_up():
    tape, samples = recorded(words=True)
    assert tape.maps.shape[0] == 1 and tape.maps.shape[-1] == 7
    assert torch.allclose(tape.maps.sum(-1), torch.ones(tape.maps.shape[:-1]), atol=1e-4)
    assert float(tape.maps.std()) > 0
    same(samples, recorded()[1])


@check
def blending_is_the_foundation_where_it_is_all():
    tape, foundation = recorded()
    whole = curing.put(shown(), cure.Blending(tape, torch.ones(1, 16, 16), 1.0, 0.0))
    near(drawn(whole), foundation, 1e-4)
    nowhere = curing.put(shown(), cure.Blending(tape, torch.zeros(1, 16, 16)))
    near(drawn(nowhere), drawn(shown()), 1e-5)


# Refusals


@check
def a_tape_of_another_run_is_refused_before_the_first_step():
    tape, _ = recorded()
    for changes, said in (
        ({"seed": 4}, "another seed: 1, this one has 4"),
        ({"steps": 4}, "another number of steps: 3, this one has 4"),
        ({"sampler": "dpmpp_2m"}, "another sampler: euler, this one uses dpmpp_2m"),
        ({"scheduler": "karras"}, "another scheduler"),
        ({"latent": torch.zeros(1, 4, 16, 32)}, "another size"),
        ({"latent": torch.ones(1, 4, 16, 16)}, "another picture to start from"),
    ):
        model = cured(tape)
        model.set_model_unet_function_wrapper(lambda *_: (_ for _ in ()).throw(AssertionError("a step was taken")))
        try:
            drawn(model, **changes)
        except BadInput as error:
            assert said in str(error), f"{said!r} is not in {error}"
        else:
            raise AssertionError(f"{changes} was accepted")


@check
def an_interrupt_leaves_no_tape():
    known = layers()
    recording = cure.Recording(known.choose("authors"), known, FULL)
    tapes = []
    begin = cure.Recording.begin

    def noted(self, *told):
        run = begin(self, *told)
        tapes.append(run.tape)
        return run

    cure.Recording.begin = noted
    try:
        model = curing.put(patcher("sd15"), recording)
        calls = []

        def stop(apply, given):
            calls.append(1)
            if len(calls) == 2:
                raise KeyboardInterrupt
            return apply(given["input"], given["timestep"], **given["c"])

        model.set_model_unet_function_wrapper(stop)
        try:
            drawn(model)
        except KeyboardInterrupt:
            pass
        else:
            raise AssertionError("it did not stop")
    finally:
        cure.Recording.begin = begin
    gc.collect()
    assert recording.done == [] and tapes[0].nbytes == 0


@check
def adaptive_samplers_are_refused():
    known = layers()
    model = curing.put(patcher("sd15"), cure.Recording(known.choose("authors"), known, FULL))
    try:
        drawn(model, sampler="dpm_adaptive")
    except BadInput as error:
        assert "chooses its own steps" in str(error)
    else:
        raise AssertionError("it was accepted")


@check
def every_sampler_of_comfyui_asks_as_often_as_is_foretold():
    """For the size that is said beforehand."""
    from likeness.face.cure.tape import evaluations

    wrong = []
    for name in comfy.samplers.SAMPLER_NAMES:
        if name in ("dpm_adaptive", "ddim", "euler_ancestral"):
            continue
        try:
            solver = comfy.samplers.sampler_object(name)
            known = layers()
            recording = cure.Recording((), known, NONE)
            latent = torch.zeros(1, 4, 16, 16)
            made = comfy.samplers.KSampler(patcher("sd15"), 5, "cpu", name, "normal", 1.0, {})
            noise = comfy.sample.prepare_noise(latent, 1)
            comfy.sample.sample_custom(
                curing.put(patcher("sd15"), recording), noise, 1.0, solver, made.sigmas, conditioning(1),
                conditioning(2), latent, disable_pbar=True, seed=1,
            )  # fmt: skip
        except ImportError:
            continue
        asked, foretold = len(recording.done[0].evaluations), evaluations(name, len(made.sigmas) - 1)
        if asked != foretold:
            wrong.append(f"{name}: {asked}, not {foretold}")
    assert not wrong, "; ".join(wrong)


# The nodes


WIDGETS = {"seed": 3, "steps": 4, "cfg": 5.0, "sampler_name": "euler", "scheduler": "normal"}


def recorded_by_node(**changes):
    latent = {"samples": torch.zeros(1, 4, 16, 16)}
    given = {**WIDGETS, "denoise": 1.0, "keep": FULL, "layers": "authors", "budget": 8.0, "words": True, **changes}
    return nodes.FoundationPass().run(
        patcher("sd15"), positive=conditioning(1), negative=conditioning(2), latent_image=latent, **given
    )["result"]


def by_ksampler(model):
    latent = {"samples": torch.zeros(1, 4, 16, 16)}
    sides = conditioning(1), conditioning(2)
    return comfy_nodes.KSampler().sample(model, *WIDGETS.values(), *sides, latent)[0]["samples"]


@check
def the_nodes_do_the_same():
    latent, tape, said = recorded_by_node()
    near(latent["samples"], by_ksampler(patcher("sd15")), 1e-5)
    assert "6 layers" in said and "4 evaluations" in said, said
    settings = {"strength": 1.0, "method": nodes.ATTENTION, "omega": -1.0, "omega_mode": "additive"}
    model, told = nodes.CureAttributes().run(shown(), tape, torch.ones(1, 128, 128), start=-1.0, end=1.0, **settings)[
        "result"
    ]
    assert "+0.5" in told, told
    same(by_ksampler(model), by_ksampler(cured(tape, torch.ones(1, 128, 128), omega=0.5)))
    assert not torch.allclose(by_ksampler(model), by_ksampler(shown()), atol=1e-2)
    try:
        nodes.CureAttributes().run(model, tape, torch.ones(1, 128, 128), start=-1.0, end=1.0, **settings)
    except BadInput as error:
        assert "cured already" in str(error)
    else:
        raise AssertionError("a second cure was accepted")
    try:
        recorded_by_node(budget=0.0001)
    except BadInput as error:
        assert "budget" in str(error)
    else:
        raise AssertionError("it was not refused")


@check
def the_size_that_is_said_is_true_for_every_scheduler():
    """Some have one step more than they are asked for."""
    for scheduler in comfy.samplers.KSampler.SCHEDULERS:
        for sampler, denoise in (("euler", 1.0), ("dpm_2", 1.0), ("euler", 0.5)):
            changes = {"scheduler": scheduler, "sampler_name": sampler, "denoise": denoise, "steps": 7}
            _, tape, said = recorded_by_node(**changes)
            assert f"{len(tape.evaluations)} evaluations" in said, f"{changes}: {len(tape.evaluations)}, not as {said}"
            promised = said.split(" for ")[0]
            assert said.endswith(f"{promised} held"), said


@check
def the_way_up_and_down_leads_back():
    latent = {"samples": by_ksampler(patcher("sd15"))}
    given = {**WIDGETS, "steps": 12, "cfg": 1.0}

    def guided(refinements, seed):
        return nodes.AbstractAttributeGuidance().run(
            patcher("sd15"), latent, conditioning(1), conditioning(seed), conditioning(2), **given, gamma=0.5,
            refinements=refinements, check=True,
        )["result"]  # fmt: skip

    errors = [guided(n, 1)[1] for n in (0, 3, 10)]
    assert errors[2] < 0.2 * errors[0], errors
    back = guided(10, 1)[0]
    other = guided(10, 5)[0]["samples"]
    assert float((other - latent["samples"]).norm()) > 3 * float((back["samples"] - latent["samples"]).norm())
    return f"round-trip error without, with 3, with 10 refinements: {', '.join(f'{e:.1e}' for e in errors)}"


@check
def it_compiles():
    """With torch.compile around the network: recorded and cured as without."""
    tape, _ = recorded()
    expected = drawn(cured(tape))
    model = cured(tape)
    inner = model.model.diffusion_model
    compiled = torch.compile(inner, backend="eager")
    model.add_object_patch("diffusion_model", compiled)
    near(drawn(model), expected, 1e-4)
    recorder = cure.Recording(layers().choose("authors"), layers(), FULL)
    model = curing.put(patcher("sd15"), recorder)
    model.add_object_patch("diffusion_model", compiled)
    drawn(model)
    near(drawn(cured(recorder.done[0])), expected, 1e-4)


if __name__ == "__main__":
    inside.main()
