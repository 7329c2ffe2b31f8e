"""The cure in the engine: a tape against the published paired run, and the laws of both."""

import gc
import math
import weakref
from dataclasses import replace
from types import SimpleNamespace
from weakref import ref

import pytest
import torch
from likeness.engine.diffusers_host import layout_of
from likeness.engine.diffusion import load
from likeness.engine.diffusion.hooks import layers_of
from likeness.engine.diffusion.model import running
from likeness.engine.diffusion.sample import Settings, noise, sample
from likeness.engine.diffusion.samplers import SAMPLERS
from likeness.face.attention import Tokens, apply
from likeness.face.cure import run as cure
from likeness.face.cure.attention import plain, reference
from likeness.face.cure.tape import FULL, HALF, NONE, Plan, Slabs, Tape, View, predicted_bytes
from likeness.face.errors import BadInput
from likeness.tests import tiny_diffusion as tiny

CPU = torch.device("cpu")
SETTINGS = Settings(seed=3, steps=3, cfg=7.0, sampler="euler", scheduler="normal")


# A tape and the paired run


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tiny.fill_models(tmp_path_factory.mktemp("models"))
    return {f: load.checkpoint(folder / "checkpoints" / f"tiny_{f}.safetensors", CPU)[0] for f in ("sd15", "sdxl")}


def text(model, seed):
    draw = torch.Generator().manual_seed(seed)
    pooled = {"pooled_output": torch.randn(1, 64, generator=draw)} if model.family == "sdxl" else {}
    return [[torch.randn(1, 77, model.unet.config["cross_attention_dim"], generator=draw), pooled]]


def person(model, *strength):
    """An adapter with tokens out of nowhere; one strength a picture."""
    layout, draw = layout_of(model.unet)[0], torch.Generator().manual_seed(5)
    scale = layout.context**-0.5
    weights = [torch.randn(s.width, layout.context, generator=draw) * scale for s in layout.sites for _ in range(2)]
    tokens = torch.randn(1, 4, layout.context, generator=draw)
    return apply("somebody", Tokens(tokens, tokens, weights[::2], weights[1::2]), layout, strength=strength or (1.0,))


def half_mask(size=32):
    mask = torch.zeros(1, size, size)
    mask[:, : size // 2, size // 4 :] = 1
    return mask


def drawn(model, hooks=(), strength=(), batch=1, twice=False, latent=None, **changes):
    """Samples of a run of ``batch`` pictures; ``twice``: each of them again behind them, from the same noise."""
    model = replace(model, hooks=tuple(hooks), attention=(person(model, *strength),) if strength else ())
    numbers = list(range(batch)) * (2 if twice else 1)
    latent = latent or {"samples": torch.zeros(len(numbers), 4, 8, 8), "batch_index": numbers}
    settings = replace(SETTINGS, **changes)
    return sample(model, text(model, 1), text(model, 2), latent, settings)["samples"]


def recorded(model, batch=1, keep=FULL, mask=None, which="authors", strength=(), **changes):
    """A tape of a run without the person, and its samples."""
    layers = layers_of(model.unet)[0]
    recording = cure.Recording(layers.choose(which), layers, keep, mask)
    samples = drawn(model, [recording], strength, batch, **changes)
    (tape,) = recording.done
    if keep == NONE:
        tape.source = (model, text(model, 1), text(model, 2))
    return tape, samples


def curing(model, tape, mask=None, omega=1.5, **more):
    return cure.Curing(tape, layers_of(model.unet)[0], half_mask() if mask is None else mask, omega, **more)


def near(ours, theirs, limit=1e-4):
    error = float((ours - theirs).norm() / theirs.norm())
    assert error <= limit, f"{error:.2e}"


def differs(ours, theirs, least=1e-3):
    assert float((ours - theirs).norm() / theirs.norm()) > least


@pytest.fixture
def same_step_noise(monkeypatch):
    """Ancestral samplers draw for the whole batch; in a paired run the second half gets what the first has."""

    ancestral = SAMPLERS["euler_ancestral"]

    def of(batch):
        def repeated(denoise, x, sigmas, watch, noise):
            draw, shape = torch.Generator().manual_seed(9), (batch, *x.shape[1:])
            step = lambda: torch.randn(shape, generator=draw).repeat(len(x) // batch, 1, 1, 1)  # noqa: E731
            return ancestral(denoise, x, sigmas, watch, step)

        monkeypatch.setitem(SAMPLERS, "euler_ancestral", repeated)

    return of


@pytest.mark.parametrize("sampler", ["euler", "euler_ancestral", "heun", "dpmpp_2m", "ddim"])
@pytest.mark.parametrize(("batch", "cfg", "batched"), [(1, 7.0, True), (3, 7.0, True), (3, 7.0, False), (1, 1.0, True)])
def test_a_tape_is_the_paired_run(models, same_step_noise, sampler, batch, cfg, batched):
    same_step_noise(batch)
    model, changes = models["sd15"], {"sampler": sampler, "cfg": cfg, "batched": batched}
    layers = layers_of(model.unet)[0]
    paired = cure.Paired(layers, layers.choose("authors"), half_mask(), 1.5)
    both = drawn(model, [paired], (0.0,) * batch + (1.0,) * batch, batch, twice=True, **changes)
    tape, foundation = recorded(model, batch, **changes)
    near(foundation, both[:batch])
    with_tape = drawn(model, [curing(model, tape)], (1.0,) * batch, batch, **changes)
    near(with_tape, both[batch:])
    differs(with_tape, drawn(model, (), (1.0,) * batch, batch, **changes))


def test_sdxl_too(models):
    model = models["sdxl"]
    layers = layers_of(model.unet)[0]
    paired = cure.Paired(layers, layers.choose("authors"), half_mask(), 1.5)
    both = drawn(model, [paired], (0.0, 1.0), twice=True)
    tape, _ = recorded(model)
    near(drawn(model, [curing(model, tape)], (1.0,)), both[1:])


# Three bits of mantissa are wrong by 3 % on average.
@pytest.mark.parametrize("keep", [HALF, NONE])
def test_smaller_tapes_say_the_same(models, keep):
    model = models["sd15"]
    whole, _ = recorded(model)
    tape, _ = recorded(model, keep=keep)
    assert tape.nbytes == (whole.nbytes // 4 if keep == HALF else 0)
    expected = drawn(model, [curing(model, whole)], (1.0,))
    near(drawn(model, [curing(model, tape)], (1.0,)), expected, 3e-2 if keep == HALF else 1e-5)


def test_latents_only_asks_the_foundation_with_its_own_weights(models):
    """A LoRA on one side only: what is computed again has that of the foundation."""
    from likeness.engine.diffusion.model import LowRank, WeightPatch

    model = models["sd15"]
    path = layers_of(model.unet)[1][-1] + ".to_k"
    size = model.unet.get_submodule(path).weight.shape
    change = WeightPatch({path: LowRank(torch.randn(size[0], 2), torch.randn(2, size[1]))}, 1.0)
    whole, _ = recorded(model)
    tape, _ = recorded(model, keep=NONE)
    changed = model.with_lora(change)
    expected = drawn(changed, [curing(changed, whole)], (1.0,))
    near(drawn(changed, [curing(changed, tape)], (1.0,)), expected, 1e-5)


def test_latents_only_asks_again_where_the_cure_acts(models, monkeypatch):
    model = models["sd15"]
    tape, _ = recorded(model, keep=NONE, steps=6)
    asked, begin = [], cure.CuringRun.evaluate

    def evaluate(self, number, sigma, latent, again):
        begin(self, number, sigma, latent, lambda *told: asked.append(told[1]) or again(*told))

    monkeypatch.setattr(cure.CuringRun, "evaluate", evaluate)
    drawn(model, [curing(model, tape, start=0.3, end=0.7)], (1.0,), steps=6)
    levels = [noted.sigma for noted in tape.evaluations]
    low, high = (model.sampling.percent_to_sigma(percent) for percent in (0.7, 0.3))
    assert asked == [n for n, sigma in enumerate(levels) if low <= sigma <= high] and 0 < len(asked) < 6


def test_a_mask_known_beforehand_keeps_less_and_says_the_same(models):
    model, masks = models["sd15"], half_mask()
    smaller = masks.clone()
    smaller[:, :8] = 0
    tape, _ = recorded(model, mask=masks)
    whole, _ = recorded(model)
    assert tape.nbytes < 0.6 * whole.nbytes
    near(
        drawn(model, [curing(model, tape, smaller)], (1.0,)),
        drawn(model, [curing(model, whole, smaller)], (1.0,)),
        1e-5,
    )
    with pytest.raises(BadInput, match="reaches beyond"):
        curing(model, tape, torch.ones(1, 32, 32))
    with pytest.raises(BadInput, match="additive"):
        curing(model, tape, smaller, mode="multiplicative")


def test_masks_of_different_size_in_one_batch(models):
    """Each picture is cured as if it were alone."""
    model, masks = models["sd15"], torch.cat([half_mask(), torch.zeros(1, 32, 32), torch.ones(1, 32, 32)])
    tape, _ = recorded(model, 3)
    together = drawn(model, [curing(model, tape, masks)], (1.0,) * 3, 3)
    for n in range(3):
        latent = {"samples": torch.zeros(n + 1, 4, 8, 8)}
        alone, _ = recorded(model, latent=latent)
        one = drawn(model, [curing(model, alone, masks[n : n + 1])], (1.0,), latent=latent)
        near(together[n : n + 1], one[n:], 1e-5)


def test_bytes_are_as_predicted(models):
    for family, sampler, batch, keep in (("sd15", "heun", 2, FULL), ("sdxl", "euler", 1, HALF)):
        model = models[family]
        layers = layers_of(model.unet)[0]
        count = {"heun": 5, "euler": 3}[sampler]
        for mask in (None, half_mask()):
            tape, _ = recorded(model, batch, keep, mask, sampler=sampler)
            said = predicted_bytes(layers, tape.layers, (batch, 4, 8, 8), count, torch.float32, keep, mask)
            assert tape.nbytes == said


# Laws


def test_an_empty_mask_is_off(models):
    model = models["sd15"]
    tape, _ = recorded(model)
    off = drawn(model, (), (1.0,))
    assert torch.equal(drawn(model, [curing(model, tape, torch.zeros(1, 8, 8))], (1.0,)), off)


def test_a_window_that_never_opens_is_off(models):
    model = models["sd15"]
    tape, _ = recorded(model)
    off = drawn(model, (), (1.0,))
    assert torch.equal(drawn(model, [curing(model, tape, start=1.0)], (1.0,)), off)
    differs(drawn(model, [curing(model, tape, end=0.4)], (1.0,)), drawn(model, [curing(model, tape)], (1.0,)))


def test_both_ends_of_a_window_are_in_it(models):
    model = models["sd15"]
    tape, _ = recorded(model)
    run = curing(model, tape, start=0.2, end=0.8).begin(tape.plan, lambda percent: 10 - 10 * percent)
    assert [run.acts(sigma) for sigma in (8.1, 8, 5, 2, 1.9)] == [False, True, True, True, False]


def test_recording_changes_nothing(models):
    model = models["sd15"]
    near(recorded(model)[1], drawn(model), 1e-6)


def test_the_foundations_rows_are_never_changed(models):
    model = models["sd15"]
    layers = layers_of(model.unet)[0]
    paired = cure.Paired(layers, layers.choose("authors"), half_mask(), 1.5)
    near(drawn(model, [paired], (0.0, 1.0), twice=True)[:1], drawn(model), 1e-5)


def test_an_adapter_stays_active(models):
    """The official hook replaces cross-attention, too, and switches the person off."""
    model = models["sd15"]
    tape, _ = recorded(model)
    hook = [curing(model, tape)]
    differs(drawn(model, hook, (1.0,)), drawn(model, hook))


def test_strength_is_gradual(models):
    model = models["sd15"]
    tape, _ = recorded(model)
    off, whole = (drawn(model, [curing(model, tape, half_mask() * share)], (1.0,)) for share in (0.0, 1.0))
    steps = [drawn(model, [curing(model, tape, half_mask() * share)], (1.0,)) for share in (1e-4, 0.1, 0.5)]
    away = [float((one - off).norm()) for one in (*steps, whole)]
    assert away == sorted(away)
    assert away[0] < 0.05 * away[-1]


def test_cond_entries_with_areas_read_their_own_part(models):
    model = models["sd15"]
    left, right = (
        [[t, {**d, "area": area}] for t, d in text(model, n)] for n, area in ((1, (8, 4, 0, 0)), (6, (8, 4, 0, 4)))
    )
    layers = layers_of(model.unet)[0]
    recording = cure.Recording(layers.choose("authors"), layers, FULL)
    latent = {"samples": torch.zeros(1, 4, 8, 8)}
    sample(replace(model, hooks=(recording,)), left + right, text(model, 2), latent, SETTINGS)
    cured, off, elsewhere = (
        sample(
            replace(model, hooks=(curing(model, recording.done[0], mask),), attention=(person(model),)),
            left + right,
            text(model, 2),
            latent,
            SETTINGS,
        )["samples"]
        for mask in (left_mask(1.0), left_mask(0.0), 1 - left_mask(1.0))
    )
    differs(cured, off)
    differs(cured, elsewhere)


def part(which):
    """A half of a latent of 8×8 as a conditioning's area, and as fractions of the picture."""
    return ((8, 4, 0, 0), (0, 0, 1, 0.5)) if which == "left" else ((8, 4, 0, 4), (0, 0.5, 1, 1))


@pytest.mark.parametrize("mode", ["additive", "multiplicative"])
@pytest.mark.parametrize("mine", ["left", "whole"])
@pytest.mark.parametrize("theirs", ["whole", "left", "right"])
def test_an_area_on_one_side_only_reads_the_keys_where_they_are(models, mine, theirs, mode):
    """One call of one layer, against the equation over the foundation's own grid."""
    model, layer = models["sd15"], 15
    layers = layers_of(model.unet)[0]
    sizes = {
        "whole": ((8, 8), (0.0, 0.0, 1.0, 1.0)),
        "left": ((8, 4), part("left")[1]),
        "right": ((8, 4), part("right")[1]),
    }
    own, grid = (math.prod(sizes[which][0]) for which in (mine, theirs))
    plan = Plan(3, (1, 4, 8, 8), "euler", (1.0, 0.0), "", "", ref(model.unet))
    tape, mask = Tape(plan, (layer,), 16, FULL), torch.rand(1, 8, 8)
    mask[mask < 0.5] = 0
    width = layers.layers[layer].width
    key, value = torch.randn(1, grid, width), torch.randn(1, grid, width)
    tape.write(0, View(0, *sizes[theirs]), layer, (0,), key, value)
    q, k, v = (torch.randn(1, own, width) for _ in range(3))
    run = curing(model, tape, mask, mode=mode).begin(plan, model.sampling.percent_to_sigma)
    now = cure.Now(0, 1.0, (0,), (0,), sizes[mine][0], (sizes[mine][1],))
    out = run.attend(layer, q, k, v, 4, now, lambda q, k, v: plain(q, k, v, 4))
    wanted = mask.clone()
    if mine == "left":
        wanted[:, :, 4:] = 0
    columns = {"whole": wanted, "left": wanted[:, :, :4], "right": wanted[:, :, 4:]}[theirs].flatten(1)
    if own == grid:
        slow = reference(q, k, v, key, value, columns, 1.5, 4, mode)
    else:
        slow = uneven(q, k, v, key, value, columns, mode)
    assert torch.allclose(out.double(), slow, atol=1e-4)


def uneven(q, k, v, key, value, columns, mode):
    """The same equation where the foundation has more or fewer keys than the person."""
    q, k, v, key, value = (t.double().unflatten(2, (4, -1)).transpose(1, 2) for t in (q, k, v, key, value))
    own, borrowed = (q @ t.transpose(-1, -2) / math.sqrt(q.shape[-1]) for t in (k, key))
    share = columns.double()[:, None, None, :]
    borrowed = borrowed + 1.5 + share.log() if mode == "additive" else borrowed * (1.5 * share)
    weights = torch.cat([own, borrowed], -1).softmax(-1)
    return (weights @ torch.cat([v, value], -2)).transpose(1, 2).flatten(2)


def test_prompts_of_other_parts_than_the_foundations_are_cured(models):
    """An area on the person's side, or on the foundation's, alone; and another number of parts."""
    model = models["sd15"]
    halves = [
        [[t, {**d, "area": part(which)[0]}] for t, d in text(model, n)] for n, which in ((1, "left"), (6, "right"))
    ]
    layers = layers_of(model.unet)[0]
    whole, both = text(model, 1), halves[0] + halves[1]
    for theirs, mine in ((whole, both), (both, whole), (whole, halves[0] + text(model, 7)), (halves[1], both)):
        recording = cure.Recording(layers.choose("authors"), layers, FULL)
        draw = {"latent": {"samples": torch.zeros(1, 4, 8, 8)}, "settings": SETTINGS, "negative": text(model, 2)}
        sample(replace(model, hooks=(recording,)), theirs, **draw)
        hooks = (curing(model, recording.done[0], torch.ones(1, 8, 8)),)
        cured, off = (sample(replace(model, hooks=h, attention=(person(model),)), mine, **draw) for h in (hooks, ()))
        differs(cured["samples"], off["samples"])
        assert bool(cured["samples"].isfinite().all())


def test_the_part_of_the_same_area_is_read():
    plan = Plan(0, (1, 4, 8, 8), "euler", (1.0, 0.0), "", "", ref(SimpleNamespace))
    tape = Tape(plan, (0,), 1, FULL)
    whole, left, right = (0.0, 0.0, 1.0, 1.0), part("left")[1], part("right")[1]
    for ordinal, area in enumerate((whole, left, right)):
        tape.write(0, View(ordinal, (1, 1), area), 0, (0,), torch.zeros(1, 1, 1), torch.zeros(1, 1, 1))
    read = lambda ordinal, area: tape.view(0, ordinal, 0, area).ordinal  # noqa: E731
    assert [read(0, left), read(1, right), read(5, whole)] == [1, 2, 0]
    assert read(1, (0.0, 0.6, 1.0, 0.9)) == 0, "of several that cover it equally, the first"
    assert read(2, (0.0, 0.6, 1.0, 0.9)) == 2, "or that of the same number"
    assert tape.view(1, 0, 0, whole) is None


def test_a_tape_is_let_go_without_a_search_for_circles(models):
    model = models["sd15"]
    gc.collect()
    gc.disable()
    try:
        for keep in (FULL, NONE):
            tape, _ = recorded(model, keep=keep)
            drawn(model, [curing(model, tape)], (1.0,))
            held = weakref.ref(tape)
            del tape
            assert held() is None
    finally:
        gc.enable()


def test_eight_bits_hold_small_numbers_too():
    plan = Plan(0, (1, 4, 8, 8), "euler", (1.0, 0.0), "", "", ref(SimpleNamespace))
    for size in (1.0, 1e-6, 0.0):
        draw = torch.Generator().manual_seed(1)
        tape, x = Tape(plan, (0,), 1, HALF), torch.randn(1, 4, 8, generator=draw).mul(size).half()
        tape.write(0, View(0, (2, 2), (0.0, 0.0, 1.0, 1.0)), 0, (0,), x, x)
        key, value = tape.read(0, 0, 0, (0,), x)
        assert torch.allclose(key.float(), x.float(), atol=float(x.abs().max()) * 0.04 + 1e-7)
        assert torch.equal(key, value)


def test_what_a_layer_says_first_is_kept():
    """A host asks twice in one evaluation for guidance by a perturbed answer."""
    plan, whole = Plan(0, (2, 4, 8, 8), "euler", (1.0, 0.0), "", "", ref(SimpleNamespace)), (0.0, 0.0, 1.0, 1.0)
    tape, x = Tape(plan, (0,), 1, FULL), torch.randn(1, 4, 8)
    tape.write(0, View(0, (2, 2), whole), 0, (0,), x, x)
    size = tape.nbytes
    tape.write(0, View(0, (2, 2), whole), 0, (0,), -x, -x)
    assert torch.equal(tape.read(0, 0, 0, (0,), x)[0], x) and tape.nbytes == size
    tape.write(0, View(0, (2, 2), whole), 0, (1,), -x, -x)
    assert torch.equal(tape.read(0, 0, 0, (1, 0), x)[0], torch.cat([-x, x]))


def test_a_cleared_tape_holds_nothing(models):
    tape, _ = recorded(models["sd15"], keep=NONE)
    tape.maps = torch.zeros(1)
    tape.clear()
    assert tape.nbytes == 0 and not tape.evaluations and tape.maps is None and tape.source is None


def test_memory_is_taken_in_large_pieces_and_shared_by_nobody():
    slabs, whole = Slabs(4096, pinned=False), [(2, 3, 5), (7,), (1,), (2000,), (1, 3), (300,)]
    kinds = torch.float16, torch.float8_e4m3fn, torch.float32, torch.bfloat16
    taken = [slabs.take(shape, kind) for kind in kinds for shape in whole]
    for number, one in enumerate(taken):
        one.copy_(torch.full(one.shape, float(number)))
    assert all(bool((one.float() == number).all()) for number, one in enumerate(taken))
    assert all(one.data_ptr() % one.element_size() == 0 and one.is_contiguous() for one in taken)
    pieces = {one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in taken}
    assert set(pieces.values()) <= {4096, 8000}, "larger things have a piece of their own"
    assert len(pieces) < len(taken) / 2


def test_memory_that_cannot_be_pinned_is_taken_all_the_same(monkeypatch):
    empty = torch.empty

    def refused(*size, pin_memory=False, **more):
        if pin_memory:
            raise RuntimeError("out of pinned memory")
        return empty(*size, **more)

    monkeypatch.setattr(torch, "empty", refused)
    assert Slabs().take((4, 4), torch.float16).shape == (4, 4)


def test_only_the_first_positive_prompts_words_are_heard(models):
    layers = layers_of(models["sd15"].unet)[0]
    plan = Plan(0, (1, 4, 8, 8), "euler", (1.0, 0.0), "", "", ref(models["sd15"].unet))
    site = min(layers.word_sites())
    level = next(layer.level for layer in layers.layers if layer.site == site)
    tokens = (8 >> level) ** 2
    q, k = torch.randn(3, tokens, 8), torch.randn(3, 5, 8)
    run = cure.Recording((), layers, FULL, words=True).begin(plan, float)
    run.hear(site, q, k, 2, cure.Now(0, 1.0, (1, None, 0), (0,), (8, 8)))
    run.end(well=True)
    rows = (t[2:].unflatten(2, (2, 4)).transpose(1, 2) for t in (q, k))
    query, key = rows
    expected = (query @ key.transpose(-1, -2) / 2).softmax(-1).mean(1)
    assert torch.allclose(run.tape.maps.flatten(1, 2), expected, atol=1e-6)


def left_mask(value):
    mask = torch.zeros(1, 32, 32)
    mask[:, :, :16] = value
    return mask


# Blending


def test_blending_everywhere_and_all_the_time_is_the_foundation(models):
    model = models["sd15"]
    tape, foundation = recorded(model)
    whole = cure.Blending(tape, torch.ones(1, 8, 8), factor=1.0, start=0.0)
    near(drawn(model, [whole], (1.0,)), foundation, 1e-5)
    nowhere = cure.Blending(tape, torch.zeros(1, 8, 8))
    near(drawn(model, [nowhere], (1.0,)), drawn(model, (), (1.0,)), 1e-5)


def test_blending_is_the_first_versions_equation(models):
    """At one evaluation: 0.25 of the person's noise and 0.75 of the foundation's, inside the mask."""
    model = models["sd15"]
    tape, _ = recorded(model)
    run = cure.Blending(tape, half_mask(), start=0.0).begin(tape.plan, model.sampling.percent_to_sigma)
    noted, own = tape.evaluations[1], torch.randn(1, 4, 8, 8)
    latent = torch.randn(1, 4, 8, 8)
    positive, negative = run.answered(1, noted.sigma, latent, own, own)
    mask = torch.nn.functional.interpolate(half_mask()[:, None], (8, 8))
    for answered, theirs in ((positive, noted.positive), (negative, noted.negative)):
        own_noise, noise = (latent - own) / noted.sigma, (noted.latent - theirs) / noted.sigma
        expected = (1 - 0.75 * mask) * own_noise + 0.75 * mask * noise
        assert torch.allclose((latent - answered) / noted.sigma, expected, atol=1e-4)


# Refusals


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seed": 4}, "another seed: 3, this one has 4"),
        ({"steps": 4}, "another number of steps: 3, this one has 4"),
        ({"sampler": "dpmpp_2m"}, "another sampler: euler, this one uses dpmpp_2m"),
        ({"scheduler": "karras"}, "another scheduler"),
        ({"denoise": 0.5}, "another scheduler or denoise"),
        ({"latent": {"samples": torch.zeros(1, 4, 8, 8), "noise_mask": torch.ones(1, 64, 64)}}, "no inpainting mask"),
        (
            {"latent": {"samples": torch.zeros(1, 4, 8, 16)}},
            "another size: its latent is 1 of 64×64, this one 1 of 128×64",
        ),
        ({"latent": {"samples": torch.ones(1, 4, 8, 8)}}, "another picture to start from"),
    ],
)
def test_a_tape_of_another_run_is_refused_before_the_first_step(models, changes, said, monkeypatch):
    model = models["sd15"]
    tape, _ = recorded(model)
    monkeypatch.setattr("likeness.engine.diffusion.guidance.Denoiser._call", None)
    for hook in (curing(model, tape), cure.Blending(tape, half_mask())):
        with pytest.raises(BadInput, match=said):
            drawn(model, [hook], (1.0,), **changes)


def test_a_tape_of_another_checkpoint_is_refused(models):
    tape, _ = recorded(models["sd15"])
    twin = replace(models["sd15"], unet=running_copy(models["sd15"]))
    with pytest.raises(BadInput, match="another checkpoint"):
        drawn(twin, [curing(twin, tape)])
    with pytest.raises(BadInput, match="70"):
        curing(models["sdxl"], tape)


def running_copy(model):
    with running(model, own=True) as twin:
        return twin


def test_inpainting_is_cured_under_the_same_mask_only(models):
    model, still = models["sd15"], torch.ones(1, 64, 64)
    still[:, :32] = 0
    latent = {"samples": torch.randn(1, 4, 8, 8), "noise_mask": still}
    tape, _ = recorded(model, latent=latent)
    out = drawn(model, [curing(model, tape)], (1.0,), latent=latent)
    assert torch.allclose(out[:, :, :4], latent["samples"][:, :, :4], atol=1e-4)
    differs(out, drawn(model, (), (1.0,), latent=latent))
    for mask, said in ((None, "an inpainting mask, and this one has none"), (1 - still, "another inpainting mask")):
        with pytest.raises(BadInput, match=said):
            drawn(model, [curing(model, tape)], (1.0,), latent={**latent, "noise_mask": mask})


@pytest.mark.parametrize("mask", [torch.zeros(1, 8, 32), torch.zeros(2, 8, 8), torch.full((1, 8, 8), 2.0)])
def test_an_unfitting_mask_is_refused(models, mask):
    tape, _ = recorded(models["sd15"])
    with pytest.raises(BadInput, match="mask"):
        curing(models["sd15"], tape, mask)


def test_an_adaptive_sampler_is_refused():
    plan = Plan(0, (1, 4, 8, 8), "dpm_adaptive", (1.0, 0.0), "", "", ref(SimpleNamespace))
    with pytest.raises(BadInput, match="chooses its own steps"):
        plan.refuse_adaptive()


def test_an_interrupt_leaves_no_tape(models):
    model = models["sd15"]
    layers = layers_of(model.unet)[0]
    tapes = []

    class Stops(cure.Recording):
        def begin(self, plan, to_sigma):
            tapes.append(super().begin(plan, to_sigma).tape)
            return cure.RecordingRun(tapes[-1], self.model_layers, self)

    recording = Stops(layers.choose("authors"), layers, FULL)

    def stop(done, steps, denoised):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        hooked = replace(model, hooks=(recording,))
        sample(hooked, text(model, 1), text(model, 2), {"samples": torch.zeros(1, 4, 8, 8)}, SETTINGS, stop)
    assert recording.done == []
    assert tapes[0].nbytes == 0 and not tapes[0].evaluations


def test_noise_is_the_same_for_both_rows():
    both = noise(torch.zeros(2, 4, 8, 8), 3, [0, 0])
    assert torch.equal(both[0], both[1])


# Words


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_the_look_at_the_words_is_the_softmax_of_every_layer(models, family):
    """One evaluation, against diffusers' own attention scores."""
    model, seen = models[family], []
    layers = layers_of(model.unet)[0]
    with running(model, own=True) as twin:
        for site in layers.word_sites():
            attention = twin.get_submodule(layout_of(twin)[1][site])

            def look(module, inputs, more, attention=attention):
                q = attention.head_to_batch_dim(attention.to_q(inputs[0]))
                k = attention.head_to_batch_dim(attention.to_k(more["encoder_hidden_states"]))
                seen.append(attention.get_attention_scores(q, k).mean(0))

            attention.register_forward_pre_hook(look, with_kwargs=True)
        recording = cure.Recording(layers.choose("authors"), layers, FULL, words=True)
        drawn(replace(model, unet=twin), [recording], steps=1, cfg=1.0)
    maps = recording.done[0].maps
    assert maps.shape[0] == 1 and maps.shape[-1] == 77
    assert torch.allclose(maps.sum(-1), torch.ones(maps.shape[:-1]), atol=1e-5)
    assert torch.allclose(maps[0].flatten(0, 1), torch.stack(seen).mean(0), atol=1e-5)
