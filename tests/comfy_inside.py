"""Checks that run in ComfyUI's own process and interpreter; ``test_comfy_adapters`` starts it and reads the answers.

Called with the folder of ComfyUI, that of the most used adapter pack (or ``-``), and the names of the checks to run
(all without any). One line of JSON a check: its name, whether it held, and what it has to say.
"""

import copy
import gc
import importlib.util
import json
import sys
import traceback
from functools import lru_cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COMFY, PEER = Path(sys.argv[1]), sys.argv[2]
WANTED = sys.argv[3:]
sys.argv = [str(COMFY / "main.py"), "--cpu", "--use-pytorch-cross-attention"]
sys.path.insert(0, str(COMFY))

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()
import comfy.context_windows  # noqa: E402
import comfy.controlnet  # noqa: E402
import comfy.ldm.modules.attention as attention  # noqa: E402
import comfy.model_base  # noqa: E402
import comfy.model_management as memory  # noqa: E402
import comfy.model_patcher  # noqa: E402
import comfy.sample  # noqa: E402
import comfy.samplers  # noqa: E402
import comfy.supported_models  # noqa: E402
import torch  # noqa: E402
from comfy.cldm.cldm import ControlNet  # noqa: E402
from comfy.ldm.modules.diffusionmodules.util import timestep_embedding  # noqa: E402
from safetensors.torch import load_file  # noqa: E402


def by_path(name, folder):
    """A package from its folder, as ComfyUI loads packs."""
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


by_path("likeness", ROOT)
from likeness.face.adapters import Choices, Evidence, load  # noqa: E402
from likeness.face.adapters._checkpoint import read  # noqa: E402
from likeness.face.adapters._layers import keys_and_values  # noqa: E402
from likeness.face.attention import NEGATIVE, POSITIVE, Tokens, apply, marked  # noqa: E402
from likeness.nodes.comfy import patching  # noqa: E402
from likeness.tests.golden_data import fixture, host_weights  # noqa: E402

CHECKS = {}


def check(function):
    CHECKS[function.__name__] = function
    return function


@lru_cache
def patcher(base):
    """The tiny U-Net of a base in ComfyUI's own class, as a MODEL. Shared: nobody may change it."""
    folder = fixture(f"unet_{base}").folder
    arguments = json.loads((folder / "original_unet_args.json").read_text())
    config = {"image_size": 32, "use_checkpoint": False, "legacy": False, **arguments}
    known = (comfy.supported_models.SDXL if base == "sdxl" else comfy.supported_models.SD15)(config)
    # ComfyUI fixes the heads of the published models; the fixture has its own.
    for name in ("num_heads", "num_head_channels"):
        known.unet_config[name] = arguments.get(name, -1)
    known.set_inference_dtype(torch.float32, None)
    model = comfy.model_base.BaseModel(known, comfy.model_base.ModelType.EPS, device="cpu")
    names = json.loads((folder / "ldm_key_map.json").read_text())
    weights = host_weights(base)
    model.diffusion_model.load_state_dict({ldm: weights[name] for ldm, name in names.items()})
    return comfy.model_patcher.ModelPatcher(model.eval(), torch.device("cpu"), torch.device("cpu"))


def adm(x):
    """SDXL's vector: the pooled text, then every size as sines."""
    ids = x["time_ids"]
    width = (fixture("unet_sdxl").inputs["adm_vector"].shape[1] - x["pooled_text"].shape[1]) // ids.shape[1]
    return torch.cat([x["pooled_text"], timestep_embedding(ids.flatten().float(), width).reshape(len(ids), -1)], 1)


def predicted(model, x, control=None, cond_or_uncond=(0,), uuids=(None,), more=None):
    """What the U-Net predicts for a fixture's inputs, through ComfyUI's ``apply_model`` and all its wrappers."""
    base = model.model
    sigma = base.model_sampling.sigma(x["timesteps"].float())
    scale = (1 + sigma**2).sqrt()[:, None, None, None]
    options = dict(model.model_options["transformer_options"])
    options |= {"cond_or_uncond": list(cond_or_uncond), "uuids": list(uuids), "sigmas": sigma, **(more or {})}
    given = {"c_crossattn": x["text"], "transformer_options": options}
    if "pooled_text" in x:
        given["y"] = adm(x)
    if control is not None:
        given["control"] = control
    memory.load_models_gpu([model])
    model.pre_run()
    with torch.inference_mode():
        noisy = x["sample"] * scale
        clean = base.apply_model(noisy, sigma, **given)
        return (noisy - clean) / sigma[:, None, None, None]


def tokens_of(one, evidences):
    return Tokens(torch.cat([one.project(e, Choices())[0] for e in evidences]), None, one.keys, one.values)


def layout(base):
    return patching.layout_of(patcher(base))[0]


def faceid(base, **settings):
    """The FaceID fixture applied, with the adapter and the fixture."""
    gold = fixture(f"unet_{base}_faceid")
    one = load(gold.checkpoint)
    tokens = tokens_of(one, [Evidence(vector[None]) for vector in gold.inputs["id_embeds"]])
    return gold, one, apply("faceid", tokens, layout(base), **settings)


def same(a, b):
    assert torch.equal(a, b), f"differ by {float((a - b).abs().max()):.2e}"


def near(a, b, limit):
    worst = float((a - b).abs().max() / b.abs().max())
    assert worst <= limit, f"differ by {worst:.2e} of the largest value, more than {limit:g}"
    return worst


# The authors' numbers


@check
def golden_hosts():
    for base in ("sd15", "sdxl"):
        gold = fixture(f"unet_{base}")
        gold.close(predicted(patcher(base), gold.inputs), "noise_pred")
    near(adm(gold.inputs), gold.inputs["adm_vector"], 1e-5)


@check
def golden_faceid():
    for base in ("sd15", "sdxl"):
        for output, settings, lora in (
            ("noise_pred_scale_1.0", {}, 1.0),
            ("noise_pred_scale_0.6", {"strength": 0.6}, 1.0),
            ("noise_pred_scale_0.0_lora_only", {"layer_weights": "0:0"}, 1.0),
            ("noise_pred_scale_1.0_lora_0.5", {}, 0.5),
        ):
            gold, one, applied = faceid(base, **settings)
            model = patching.change_weights(patching.apply(patcher(base), applied), one, lora)
            gold.close(predicted(model, gold.inputs), output)
        # The weights are back: ComfyUI patches them in place and restores them for the next model.
        gold = fixture(f"unet_{base}")
        gold.close(predicted(patcher(base), gold.inputs), "noise_pred")


@check
def golden_portrait():
    gold = fixture("unet_sd15_portrait")
    one = load(gold.checkpoint)
    tokens = tokens_of(one, [Evidence(vectors) for vectors in gold.inputs["id_embeds"]])
    for strength in (1.0, 0.6):
        model = patching.apply(patcher("sd15"), apply("portrait", tokens, layout("sd15"), strength=strength))
        gold.close(predicted(model, gold.inputs), f"noise_pred_scale_{strength}")


def two_adapters():
    gold = fixture("unet_sd15_two_adapters")
    both = []
    for name, strength in zip(("one", "two"), gold.config["scales"], strict=True):
        keys, values = keys_and_values(read(gold.folder / f"adapter_{name}.safetensors"))
        tokens = Tokens(gold.inputs[f"tokens_{name}"], None, keys, values)
        both.append(apply(name, tokens, layout("sd15"), strength=strength))
    return gold, both


@check
def golden_two_adapters_in_either_order():
    gold, both = two_adapters()
    for which, output in (((0, 1), "both"), ((1, 0), "both"), ((0,), "only_one"), ((1,), "only_two")):
        model = patcher("sd15")
        for n in which:
            model = patching.apply(model, both[n])
        gold.close(predicted(model, gold.inputs), f"noise_pred_{output}")


@check
def golden_pulid():
    gold = fixture("unet_sdxl_pulid")
    one = load(gold.folder / "checkpoint.safetensors")
    known, layers, split = gold.inputs["id_cond"].flatten(1), gold.numbered("vit_hidden"), gold.config["id_dim"]
    rows = [slice(n, n + 1) for n in range(len(known))]
    tokens = tokens_of(
        one, [Evidence(known[r, :split], known[r, None, split:], None, tuple(h[r] for h in layers)) for r in rows]
    )
    for mode, zeros in (("plain", 0), ("plain", 8), ("ortho", 16), ("ortho_v2", 8), ("ortho_v2", 20)):
        applied = apply("pulid", tokens, layout("sdxl"), strength=gold.config["id_scale"], mode=mode, zeros=zeros)
        model = patching.apply(patcher("sdxl"), applied)
        gold.close(predicted(model, gold.inputs), f"noise_pred_{mode}_zero{zeros}")


@check
def golden_instantid_with_its_controlnet():
    gold = fixture("unet_sdxl_instantid")
    one = load(gold.folder / "ip-adapter.bin", "instantid")
    x = gold.inputs
    tokens = tokens_of(one, [Evidence(vector.flatten()[None]) for vector in x["id_embeds"]])
    arguments = json.loads((fixture("unet_sdxl").folder / "original_unet_args.json").read_text())
    for name in ("out_channels", "transformer_depth_output"):
        del arguments[name]
    net = ControlNet(image_size=32, use_checkpoint=False, hint_channels=3, dtype=torch.float32, **arguments)
    names = json.loads((gold.folder / "controlnet_ldm_key_map.json").read_text())
    weights = load_file(gold.folder / "controlnet.safetensors")
    net.load_state_dict({ldm: weights[name].float() for ldm, name in names.items()})
    patching.check_control(comfy.controlnet.ControlNet(net), tokens.context)
    control = comfy.controlnet.ControlNet(net, load_device=torch.device("cpu"))
    hint = x["control_image"] if x["control_image"].shape[1] == 3 else x["control_image"].movedim(-1, 1)
    control.set_cond_hint(hint, gold.config["controlnet_scale"])
    model = patcher("sdxl")
    sigma = model.model.model_sampling.sigma(x["timesteps"].float())
    control.pre_run(model.model, model.model.model_sampling.percent_to_sigma)
    noisy = x["sample"] * (1 + sigma**2).sqrt()[:, None, None, None]
    given = {"c_crossattn": x["text"], "crossattn_controlnet": tokens.positive, "y": adm(x)}
    with torch.inference_mode():
        residuals = control.get_control(noisy, sigma, given, 1, {})

    def fresh():
        return {part: list(tensors) for part, tensors in residuals.items()}

    applied = patching.apply(model, apply("instantid", tokens, layout("sdxl"), strength=gold.config["ip_scale"]))
    gold.close(predicted(applied, x), "noise_pred_adapter_only")
    gold.close(predicted(model, x, fresh()), "noise_pred_controlnet_only")
    gold.close(predicted(applied, x, fresh()), "noise_pred")


# The laws of design §5


@check
def every_site_is_hit_exactly_once():
    for base, count in (("sd15", 16), ("sdxl", 70)):
        gold, _, applied = faceid(base)
        model = patching.apply(patcher(base), applied)
        hits, original = [], patching.Call.add

        def counted(self, site, *rest, hits=hits, original=original):
            hits.append(site)
            return original(self, site, *rest)

        patching.Call.add = counted
        try:
            predicted(model, gold.inputs)
        finally:
            patching.Call.add = original
        assert sorted(hits) == list(range(count)), f"{base}: {len(hits)} hits, {len(set(hits))} sites"


@check
def the_incoming_model_is_unchanged():
    gold, one, applied = faceid("sd15")
    model = patcher("sd15").clone()
    before, options = predicted(model, gold.inputs), copy.deepcopy(model.model_options)
    patched = patching.change_weights(patching.apply(model, applied), one, 1.0)
    assert model.model_options == options and not model.patches
    assert not torch.equal(predicted(patched, gold.inputs), before)
    same(predicted(model, gold.inputs), before)
    again = patching.apply(patched, apply("more", applied.tokens, layout("sd15")))
    assert len(patched.model_options["transformer_options"][patching.APPLIED]) == 1
    assert len(again.model_options["transformer_options"][patching.APPLIED]) == 2


@check
def weight_zero_everywhere_is_bit_identical():
    for base in ("sd15", "sdxl"):
        gold, _, applied = faceid(base, strength=0.0)
        same(predicted(patching.apply(patcher(base), applied), gold.inputs), predicted(patcher(base), gold.inputs))


def reachable(value, seen=None):
    """Bytes of all tensors that can be reached from a value, each storage once."""
    seen = {} if seen is None else seen
    stack, known = [value], set()
    while stack:
        one = stack.pop()
        if id(one) in known or isinstance(one, (str, bytes, int, float, type)) or one is None:
            continue
        known.add(id(one))
        if isinstance(one, torch.Tensor):
            seen[one.untyped_storage().data_ptr()] = one.untyped_storage().nbytes()
        elif isinstance(one, dict):
            stack += [*one.keys(), *one.values()]
        elif isinstance(one, (list, tuple, set)):
            stack += list(one)
        elif hasattr(one, "__dict__") and type(one).__module__.startswith("likeness"):
            stack += list(vars(one).values())
    return seen


@check
def clones_share_the_weights():
    _, _, applied = faceid("sd15")
    model = patching.apply(patcher("sd15"), applied)
    alone = sum(reachable(model.model_options).values())
    clones = [model]
    for _ in range(3):
        clones.append(clones[-1].clone())
    together = {}
    for one in clones:
        reachable(one.model_options, together)
    ratio = sum(together.values()) / alone
    assert alone > 100_000 and ratio == 1.0, f"{ratio:.2f} times the bytes"
    return f"{alone} bytes, after three clones {ratio:.2f} times"


def half_text(q, k, v, extra):
    """A foreign patch: the text at half its strength."""
    return attention.optimized_attention(q, k, v, extra["n_heads"]) * 0.5


@check
def a_foreign_patch_is_chained_whether_it_came_first_or_later():
    gold, _, applied = faceid("sd15")
    model = patcher("sd15").clone()
    key = ("input", 4)
    model.set_model_attn2_replace(half_text, *key)
    foreign = predicted(model, gold.inputs)
    both = predicted(patching.apply(model, applied), gold.inputs)
    ours = predicted(patching.apply(patcher("sd15"), applied), gold.inputs)
    assert not torch.equal(both, ours) and not torch.equal(both, foreign)
    zero = apply("zero", applied.tokens, layout("sd15"), strength=0.0)
    same(predicted(patching.apply(model, zero), gold.inputs), foreign)
    # With the index in its key, as for deeper transformers, it is found and chained as well.
    model = patcher("sd15").clone()
    model.set_model_attn2_replace(half_text, *key, 0)
    near(predicted(patching.apply(model, applied), gold.inputs), both, 1e-6)
    # One key for all of a deeper transformer's layers: ours are looked for first, so each has to hold it.
    gold, _, zero = faceid("sdxl", strength=0.0)
    deep = next(key[:2] for key in patching.layout_of(patcher("sdxl"))[1] if key[2] > 0)
    model = patcher("sdxl").clone()
    model.set_model_attn2_replace(half_text, *deep)
    foreign = predicted(model, gold.inputs)
    assert not torch.equal(foreign, predicted(patcher("sdxl"), gold.inputs))
    same(predicted(patching.apply(model, zero), gold.inputs), foreign)


@check
def a_foreign_patch_with_weights_is_moved_and_makes_room():
    class Weighted:
        moved = []

        def __call__(self, *given):
            return half_text(*given)

        def to(self, where):
            self.moved.append(where)
            return self

        def models(self):
            return ["its model"]

    model = patcher("sd15").clone()
    model.set_model_attn2_replace(Weighted(), "input", 4)
    model = patching.apply(model, faceid("sd15")[2])
    model.model_patches_to(torch.float16)
    assert Weighted.moved == [torch.float16] and model.model_patches_models() == ["its model"]


@check
def another_pack_can_add_its_own_onto_ours():
    gold, _, applied = faceid("sd15")
    model = patching.apply(patcher("sd15"), applied)
    plain = predicted(model, gold.inputs)
    clone = model.clone()
    found = clone.model_options["transformer_options"]["patches_replace"]["attn2"][("input", 4)]
    found.add(lambda out, q, k, v, extra, factor, **_: out * factor, factor=1.0, sigma_start=1e9, sigma_end=0.0)
    added = predicted(clone, gold.inputs)
    assert not torch.equal(added, plain)
    same(predicted(clone.clone(), gold.inputs), added)
    same(predicted(model, gold.inputs), plain)
    found.added[0] = (found.added[0][0], {**found.added[0][1], "sigma_start": 0.0})
    same(predicted(clone, gold.inputs), plain)


@check
def ours_inside_a_foreign_patch_adds_only_once():
    gold, _, applied = faceid("sd15")
    model = patching.apply(patcher("sd15"), applied).clone()
    replaced = model.model_options["transformer_options"]["patches_replace"]["attn2"]
    inner = replaced[("input", 4)]
    model.set_model_attn2_replace(lambda q, k, v, extra: inner(q, k, v, extra), "input", 4)
    more = apply("more", applied.tokens, layout("sd15"), strength=0.5)
    wrapped = predicted(patching.apply(model, more), gold.inputs)
    straight = predicted(patching.apply(patching.apply(patcher("sd15"), applied), more), gold.inputs)
    near(wrapped, straight, 1e-5)


@check
def an_attention_override_of_the_user_keeps_the_text():
    gold, _, applied = faceid("sd15")
    model = patching.apply(patcher("sd15"), applied)
    calls = []

    def override(function, *args, **kwargs):
        calls.append(1)
        return function(*args, **kwargs)

    answer = predicted(model, gold.inputs, more={"optimized_attention_override": override})
    assert len(calls) == 32, f"{len(calls)} calls of 32"
    near(answer, predicted(model, gold.inputs), 1e-6)


# Sampling


def conditioning(seed, base="sd15", rows=1):
    g = torch.Generator().manual_seed(seed)
    x = fixture(f"unet_{base}").inputs
    data = {}
    if base == "sdxl":
        data["pooled_output"] = torch.randn(1, x["pooled_text"].shape[1], generator=g)
    return [[torch.randn(rows, 7, x["text"].shape[-1], generator=g), data]]


def sampled(model, positive, negative, cfg=4.0, batch=1, steps=3, size=16, seed=1, **more):
    latent = torch.zeros(batch, 4, size, size)
    noise = comfy.sample.prepare_noise(latent, seed)
    return comfy.sample.sample(
        model, noise, steps, cfg, "euler", "normal", positive, negative, latent, seed=seed, disable_pbar=True, **more
    )


@lru_cache
def person(rows=1, strength=1.0, **settings):
    """FaceID's tokens as the sampler needs them: one person for all pictures, with an opposite."""
    gold = fixture("unet_sd15_faceid")
    one = load(gold.checkpoint)
    pairs = [one.project(Evidence(vector[None]), Choices()) for vector in gold.inputs["id_embeds"][:rows]]
    positive = torch.cat([pair[0] for pair in pairs])
    tokens = Tokens(positive, pairs[0][1], one.keys, one.values)
    return apply("person", tokens, layout("sd15"), strength=strength, **settings)


@check
def marks_say_which_conditioning_shows_the_person():
    applied = person(mark="m")
    model = patching.apply(patcher("sd15"), applied)
    positive, negative = conditioning(1), conditioning(2)
    told = sampled(model, marked(positive, "m", POSITIVE), marked(negative, "m", NEGATIVE))
    guessed = sampled(patching.apply(patcher("sd15"), person()), positive, negative)
    same(told, guessed)
    # Nothing carries the mark: told by place, not silently off.
    same(sampled(model, positive, negative), guessed)
    # Told the other way round it is the other way round.
    swapped = sampled(model, marked(positive, "m", NEGATIVE), marked(negative, "m", POSITIVE))
    assert not torch.allclose(swapped, guessed, atol=1e-4)


@check
def a_side_that_passed_by_has_its_usual_meaning():
    model = patching.apply(patcher("sd15"), person(mark="m"))
    positive, negative = conditioning(1), conditioning(2)
    told = sampled(model, marked(positive, "m", POSITIVE), marked(negative, "m", NEGATIVE))
    same(sampled(model, marked(positive, "m", POSITIVE), negative), told)
    same(sampled(model, positive, marked(negative, "m", NEGATIVE)), told)


@check
def guidance_that_calls_one_side_alone_gets_that_side():
    positive, negative = conditioning(1), conditioning(2)

    def guided(model, positive, negative):
        def guide(args):
            # As self-attention guidance does: the unconditional side once more, and alone.
            uncond, x, sigma = args["uncond"], args["input"], args["sigma"]
            (again,) = comfy.samplers.calc_cond_batch(args["model"], [uncond], x, sigma, args["model_options"])
            seen.append((again, args["uncond_denoised"]))
            return args["denoised"]

        seen = []
        model = model.clone()
        model.set_model_sampler_post_cfg_function(guide)
        sampled(model, positive, negative, steps=1)
        return seen[0]

    near(*guided(patching.apply(patcher("sd15"), person()), positive, negative), 1e-5)
    told = marked(positive, "m", POSITIVE), marked(negative, "m", NEGATIVE)
    near(*guided(patching.apply(patcher("sd15"), person(mark="m")), *told), 1e-5)


def roles_and_masks(model, positive, negative, **more):
    """For each model call of one step: the sides in it, their roles, and the widest layers' mask."""
    seen, original = [], patching.prepare

    def noted(applied, roles, pictures, latent, device, dtype, areas=()):
        call = original(applied, roles, pictures, latent, device, dtype, areas)
        seen.append((latent, roles, areas, call.sites[0].mask))
        return call

    patching.prepare = noted
    try:
        sampled(model, positive, negative, steps=1, **more)
    finally:
        patching.prepare = original
    return seen


@check
def an_area_of_the_prompt_sees_its_part_of_the_mask():
    mask = torch.zeros(1, 128, 128)
    mask[:, :, :64] = 1
    model = patching.apply(patcher("sd15"), person(mask=mask, mark="m"))
    left, right = conditioning(1), conditioning(3)
    left[0][1]["area"], right[0][1]["area"] = (16, 8, 0, 0), ("percentage", 1.0, 0.5, 0.0, 0.5)
    positive = marked([*left, *right], "m", POSITIVE)
    seen = roles_and_masks(model, positive, marked(conditioning(2), "m", NEGATIVE))
    shown = {}
    for latent, roles, areas, found in seen:
        rows = found.expand(-1, len(roles[0]), -1)[0]
        for role, area, row in zip(roles[0], areas, rows, strict=True):
            shown[role, area and area[1]] = latent, row
    # Left and right of the prompt, ComfyUI's copies of the negative for them, and the negative itself.
    assert set(shown) == {(POSITIVE, 0.0), (POSITIVE, 0.5), (NEGATIVE, 0.0), (NEGATIVE, 0.5), (NEGATIVE, None)}, shown
    for (_, start), (latent, row) in shown.items():
        assert latent == ((16, 16) if start is None else (16, 8))
        assert float(row.mean()) == {None: 0.5, 0.0: 1.0, 0.5: 0.0}[start]


@check
def each_conditioning_can_show_another_person():
    first, second = person(mark="a"), person(strength=0.5, mark="b")
    model = patching.apply(patching.apply(patcher("sd15"), first), second)
    left, right, negative = conditioning(1), conditioning(3), conditioning(2)
    mask = torch.zeros(1, 16, 16)
    mask[:, :, :8] = 1
    for entry, region in ((left[0][1], mask), (right[0][1], 1 - mask)):
        entry |= {"mask": region, "mask_strength": 1.0, "set_area_to_bounds": False}

    def run(a, b):
        marks = [marked(left, a, POSITIVE), marked(right, b, POSITIVE)]
        return sampled(model, [*marks[0], *marks[1]], marked(marked(negative, "a", NEGATIVE), "b", NEGATIVE), steps=1)

    both, crossed = run("a", "b"), run("b", "a")
    only = sampled(model, [*marked(left, "a", POSITIVE), *right], marked(negative, "a", NEGATIVE), steps=1)
    alone = patching.apply(patcher("sd15"), first)
    same(only, sampled(alone, [*marked(left, "a", POSITIVE), *right], marked(negative, "a", NEGATIVE), steps=1))
    assert not torch.allclose(both, crossed, atol=1e-4) and not torch.allclose(both, only, atol=1e-4)


@check
def cfg_one_needs_no_unconditional_side():
    model = patching.apply(patcher("sd15"), person())
    out = sampled(model, conditioning(1), conditioning(2), cfg=1.0)
    same(out, sampled(model, conditioning(1), conditioning(3), cfg=1.0))


@check
def each_picture_of_a_batch_can_show_another_person():
    model = patching.apply(patcher("sd15"), person(rows=2))
    positive, negative = conditioning(1), conditioning(2)
    latent = torch.zeros(2, 4, 16, 16)
    noise = comfy.sample.prepare_noise(latent[:1], 1).repeat(2, 1, 1, 1)
    both = comfy.sample.sample(
        model, noise, 2, 3.0, "euler", "normal", positive, negative, latent, seed=1, disable_pbar=True
    )
    alone = comfy.sample.sample(
        patching.apply(patcher("sd15"), person()),
        noise[:1], 2, 3.0, "euler", "normal", positive, negative, latent[:1], seed=1, disable_pbar=True,
    )  # fmt: skip
    near(both[:1], alone, 1e-5)
    assert not torch.allclose(both[0], both[1], atol=1e-3)


@check
def a_window_of_steps_is_kept():
    positive, negative = conditioning(1), conditioning(2)
    plain = sampled(patcher("sd15"), positive, negative)
    never = sampled(patching.apply(patcher("sd15"), person(start=1.0, end=1.0)), positive, negative)
    always = sampled(patching.apply(patcher("sd15"), person()), positive, negative)
    late = sampled(patching.apply(patcher("sd15"), person(start=0.5)), positive, negative)
    early = sampled(patching.apply(patcher("sd15"), person(end=0.5)), positive, negative)
    same(never, plain)
    for a, b in ((late, plain), (late, always), (early, plain), (early, always), (early, late)):
        assert not torch.allclose(a, b, atol=1e-4)


@check
def a_mask_keeps_the_person_in_its_place():
    mask = torch.zeros(1, 128, 128)
    mask[:, :, :64] = 1
    positive, negative = conditioning(1), conditioning(2)
    plain = sampled(patcher("sd15"), positive, negative, steps=1)
    full = sampled(patching.apply(patcher("sd15"), person()), positive, negative, steps=1)
    left = sampled(patching.apply(patcher("sd15"), person(mask=mask)), positive, negative, steps=1)
    ones = sampled(patching.apply(patcher("sd15"), person(mask=torch.ones(1, 128, 128))), positive, negative, steps=1)
    none = sampled(patching.apply(patcher("sd15"), person(mask=torch.zeros(1, 128, 128))), positive, negative, steps=1)
    near(ones, full, 1e-5)
    same(none, plain)
    assert not torch.allclose(left, plain, atol=1e-3) and not torch.allclose(left, full, atol=1e-3)


@check
def a_mask_fits_layers_that_another_patch_has_shrunk():
    """As Kohya's Deep Shrink does, with the inner blocks."""
    positive, negative = conditioning(1), conditioning(2)
    mask = torch.zeros(1, 128, 128)
    mask[:, :, :64] = 1

    def shrink(h, options):
        return torch.nn.functional.interpolate(h, scale_factor=0.5) if options["block"] == ("input", 3) else h

    def grow(h, skipped, options):
        return torch.nn.functional.interpolate(h, skipped.shape[-2:]), skipped

    def shrunk(model):
        model = model.clone()
        model.set_model_input_block_patch_after_skip(shrink)
        model.set_model_output_block_patch(grow)
        return sampled(model, positive, negative)

    full = shrunk(patching.apply(patcher("sd15"), person()))
    near(shrunk(patching.apply(patcher("sd15"), person(mask=torch.ones(1, 128, 128)))), full, 1e-5)
    left = shrunk(patching.apply(patcher("sd15"), person(mask=mask)))
    assert not torch.allclose(left, full, atol=1e-3)
    assert not torch.allclose(left, shrunk(patcher("sd15")), atol=1e-3)


@check
def a_mask_of_other_proportions_is_refused_before_sampling():
    calls = []
    model = patching.apply(patcher("sd15"), person(mask=torch.ones(1, 64, 128)))
    original = type(model.model)._apply_model
    type(model.model)._apply_model = lambda self, *a, **k: (calls.append(1), original(self, *a, **k))[1]
    try:
        sampled(model, conditioning(1), conditioning(2))
    except Exception as error:
        assert "proportions" in str(error) and not calls, f"{error} after {len(calls)} calls"
    else:
        raise AssertionError("it sampled")
    finally:
        type(model.model)._apply_model = original


@check
def an_unfitting_adapter_is_refused():
    _, _, applied = faceid("sd15")
    for model in ("sdxl",):
        try:
            apply("faceid", applied.tokens, layout(model))
        except Exception as error:
            assert "is made for" in str(error), error
        else:
            raise AssertionError("it was applied")


@check
def other_latent_sizes_work():
    model = patching.apply(patcher("sd15"), person(mask=torch.ones(1, 104, 72)))
    latent = torch.zeros(1, 4, 13, 9)
    noise = comfy.sample.prepare_noise(latent, 1)
    out = comfy.sample.sample(
        model, noise, 1, 3.0, "euler", "normal", conditioning(1), conditioning(2), latent, seed=1, disable_pbar=True
    )
    assert torch.isfinite(out).all()


@check
def nothing_is_projected_after_the_first_step():
    applied = person.__wrapped__()
    calls = []
    linear = torch.nn.functional.linear
    widths = {tuple(key.shape) for key in applied.tokens.keys}

    def counted(x, weight, bias=None):
        if tuple(weight.shape) in widths and x.shape[-2] == applied.tokens.positive.shape[1]:
            calls.append(1)
        return linear(x, weight, bias)

    torch.nn.functional.linear = counted
    try:
        model = patching.apply(patcher("sd15"), applied)
        # 24 is no power of two: no layer of the U-Net then has as many tokens as the identity.
        sampled(model, conditioning(1), conditioning(2), steps=1, size=24)
        first = len(calls)
        sampled(model, conditioning(1), conditioning(2), steps=5, seed=2, size=24)
    finally:
        torch.nn.functional.linear = linear
    assert first == 2 * 2 * 16, f"{first} projections in the first step"
    assert len(calls) == first, f"{len(calls) - first} projections after the first step"


@check
def what_was_prepared_is_given_back_after_sampling():
    applied = person(strength=0.9)
    sampled(patching.apply(patcher("sd15"), applied), conditioning(1), conditioning(2))
    assert not applied._calls


@check
def it_compiles():
    gold, _, applied = faceid("sd15")
    model = patching.apply(patcher("sd15"), applied)
    eager = predicted(model, gold.inputs)
    compiled = model.clone()
    net = torch.compile(compiled.model.diffusion_model, backend="eager", dynamic=False)
    compiled.add_object_patch("diffusion_model", net)
    compiled.patch_model()
    try:
        near(predicted(compiled, gold.inputs), eager, 1e-5)
    finally:
        compiled.unpatch_model()


@check
def a_window_of_a_long_animation_shows_its_own_people():
    """Packs for animation send a part of the frames at a time, and say in ``ad_params`` which; ComfyUI has its own."""
    model = patching.apply(patcher("sd15"), person(rows=2))
    x = fixture("unet_sd15_faceid").inputs
    frames = {name: tensor[:1].repeat(4, *[1] * (tensor.ndim - 1)) for name, tensor in x.items()}
    whole = predicted(model, frames)
    part = {name: tensor[:3] for name, tensor in frames.items()}
    shown = predicted(model, part, more={"ad_params": {"sub_idxs": [3, 0, 1]}})
    near(shown, whole[[3, 0, 1]], 1e-5)
    assert not torch.allclose(whole[0], whole[1], atol=1e-4), "all frames show one person"
    window = comfy.context_windows.IndexListContextWindow([3, 0, 1])
    same(predicted(model, part, more={"context_window": window}), shown)


def lora(strength):
    """A clone with a LoRA on every query of the cross-attention."""
    model, g = patcher("sd15").clone(), torch.Generator().manual_seed(8)
    patches = {}
    for name, weight in model.model.state_dict().items():
        if name.endswith("attn2.to_q.weight"):
            up, down = (torch.randn(*s, generator=g) / 4 for s in ((len(weight), 2), (2, weight.shape[1])))
            patches[name] = ("diff", (up @ down,))
    model.add_patches(patches, strength)
    return model


@check
def a_lora_works_beside_it_in_either_order():
    positive, negative = conditioning(1), conditioning(2)
    before = sampled(patching.apply(lora(0.8), person()), positive, negative)
    later = patching.apply(patcher("sd15"), person())
    later.patches = lora(0.8).patches
    same(before, sampled(later, positive, negative))
    for alone in (lora(0.8), patching.apply(patcher("sd15"), person())):
        assert not torch.allclose(before, sampled(alone, positive, negative), atol=1e-3)


@check
def weights_that_are_moved_in_as_they_are_needed_change_nothing():
    """Where memory is short ComfyUI casts each layer's weights at its call; a LoRA is then added at the call, too."""
    gold = fixture("unet_sd15_faceid")
    whole = predicted(patching.apply(lora(0.8), person()), gold.inputs)
    model = patching.apply(lora(0.8), person())
    load_models = memory.load_models_gpu
    memory.load_models_gpu = lambda models, *_, **__: [m.load(m.load_device, lowvram_model_memory=64) for m in models]
    try:
        model.unpatch_model(model.offload_device)
        found = predicted(model, gold.inputs)
        moved = sum(getattr(m, "comfy_cast_weights", False) for m in model.model.modules())
    finally:
        memory.load_models_gpu = load_models
        model.unpatch_model(model.offload_device)
    assert moved > 100, f"only {moved} layers were moved in at their call"
    near(found, whole, 1e-5)


# Beside the most used adapter pack


def peer():
    return by_path("ipadapter_plus", Path(PEER))


def plus_face():
    """A plus-face adapter of random weights that fits the tiny U-Net, as a file's two dictionaries."""
    g = torch.Generator().manual_seed(5)
    gold = fixture("plus_face_resampler")
    projector = dict(read(gold.checkpoint).group("image_proj"))
    layers = {}
    for n, site in enumerate(layout("sd15").sites):
        for name in ("k", "v"):
            layers[f"{2 * n + 1}.to_{name}_ip.weight"] = torch.randn(site.width, 32, generator=g) / 6
    return gold, {"image_proj": projector, "ip_adapter": layers}


@check
def beside_the_most_used_pack_in_one_graph():
    """The same adapter through their code and ours at the layers that theirs reaches; then both at once."""
    pack = sys.modules.get("ipadapter_plus") or peer()
    theirs = sys.modules["ipadapter_plus.IPAdapterPlus"]
    gold, file = plus_face()
    seen, unseen = gold.inputs["clip_embeds"][:1], gold.inputs["uncond_clip_embeds"][:1]
    width = file["image_proj"]["latents"].shape[-1]
    original = theirs.IPAdapter.init_proj_plus
    theirs.IPAdapter.init_proj_plus = lambda self: sys.modules["ipadapter_plus.image_proj_models"].Resampler(
        dim=width, depth=4, dim_head=64, heads=2, num_queries=16, embedding_dim=seen.shape[-1], output_dim=32, ff_mult=4
    )
    try:
        their_model, _ = theirs.ipadapter_execute(
            patcher("sd15").clone(), file, None, weight=0.8, pos_embed=seen, neg_embed=unseen
        )
    finally:
        theirs.IPAdapter.init_proj_plus = original
    assert pack is not None
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "plus.bin"
        torch.save(file, path)
        one = load(path, "plus-face")
        positive, negative = one.project(Evidence(torch.zeros(1, 0), seen, unseen), Choices())
    tokens = Tokens(positive, negative, one.keys, one.values)
    # Their middle block is dead (their issue 806): ours is switched off there for the comparison.
    without_middle = ",".join(f"{n}:1" for n in range(16) if n != 6)
    applied = apply("plus", tokens, layout("sd15"), strength=0.8, layer_weights=without_middle)
    ours = sampled(patching.apply(patcher("sd15"), applied), conditioning(1), conditioning(2))
    theirs_alone = sampled(their_model, conditioning(1), conditioning(2))
    worst = near(ours, theirs_alone, 1e-4)
    plain = sampled(patcher("sd15"), conditioning(1), conditioning(2))
    assert not torch.allclose(plain, ours, atol=0.05)
    other = person(strength=0.5)
    on_top = sampled(patching.apply(their_model, other), conditioning(1), conditioning(2))
    below = patching.apply(patcher("sd15"), other)
    theirs.IPAdapter.init_proj_plus = lambda self: sys.modules["ipadapter_plus.image_proj_models"].Resampler(
        dim=width, depth=4, dim_head=64, heads=2, num_queries=16, embedding_dim=seen.shape[-1], output_dim=32, ff_mult=4
    )
    try:
        above, _ = theirs.ipadapter_execute(below.clone(), file, None, weight=0.8, pos_embed=seen, neg_embed=unseen)
    finally:
        theirs.IPAdapter.init_proj_plus = original
    order = near(sampled(above, conditioning(1), conditioning(2)), on_top, 1e-4)
    assert not torch.allclose(on_top, theirs_alone, atol=0.01)
    return f"alone {worst:.1e}, in either order {order:.1e}"


def main():
    for name in WANTED or CHECKS:
        try:
            said, held = CHECKS[name](), True
        except BaseException:
            said, held = traceback.format_exc(), False
        print(json.dumps({"name": name, "held": held, "said": said}), flush=True)
        gc.collect()


if __name__ == "__main__":
    if WANTED == ["--list"]:
        print(json.dumps(list(CHECKS)))
    else:
        main()
