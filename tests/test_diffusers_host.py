"""Adapters on diffusers' pipelines: every layer is reached, and what was put on can be taken off."""

import gc
import weakref
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from likeness.engine import diffusers_host as host
from likeness.face import adapters, attention
from likeness.face.applying import Options
from likeness.face.errors import BadInput, ContractMismatch
from likeness.tests import tiny_adapters, tiny_diffusion
from likeness.tests.test_adapters import identity

WIDTHS = {"sd15": [32] * 2 + [64] * 10 + [32] * 3 + [64], "sdxl": [64] * 70}
SIDE = 64


def module(kind, config, tensors):
    import diffusers

    net = getattr(diffusers, kind).from_config(config)
    net.load_state_dict(tensors)
    return net.eval()


def pipeline(family, control=False):
    import diffusers

    config = tiny_diffusion.SDXL if family == "sdxl" else tiny_diffusion.SD15
    parts = {
        "vae": module("AutoencoderKL", tiny_diffusion.vae_config(), tiny_diffusion.vae(tiny_diffusion.vae_config())),
        "unet": module("UNet2DConditionModel", tiny_diffusion.ups(config), tiny_diffusion.unet(config)),
        "scheduler": diffusers.DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False, steps_offset=1),
        "text_encoder": None,
        "tokenizer": None,
    }
    if control:
        hints = {"conditioning_embedding_out_channels": [16, 32, 96, 256]}
        parts["controlnet"] = module("ControlNetModel", {**config, **hints}, tiny_diffusion.controlnet(config))
    if family == "sdxl":
        kind = diffusers.StableDiffusionXLControlNetPipeline if control else diffusers.StableDiffusionXLPipeline
        pipe = kind(**parts, text_encoder_2=None, tokenizer_2=None)
    else:
        pipe = diffusers.StableDiffusionPipeline(
            **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
        )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def drawn(pipe, steps=2, guidance=5.0, pictures=1, **more):
    """The latent that the pipeline makes of one prompt and one seed."""
    r = torch.Generator().manual_seed(3)
    width = pipe.unet.config.cross_attention_dim
    prompt = {"prompt_embeds": torch.randn(1, 77, width, generator=r)}
    prompt["negative_prompt_embeds"] = torch.randn(1, 77, width, generator=r)
    if hasattr(pipe, "text_encoder_2"):
        prompt["pooled_prompt_embeds"] = torch.randn(1, 64, generator=r)
        prompt["negative_pooled_prompt_embeds"] = torch.randn(1, 64, generator=r)
    size = {"height": SIDE, "width": SIDE, "num_inference_steps": steps, "guidance_scale": guidance}
    return pipe(**prompt, **size, num_images_per_prompt=pictures, generator=r, output_type="latent", **more).images


@pytest.fixture(scope="module", params=["sd15", "sdxl"])
def pipe(request):
    return pipeline(request.param)


@pytest.fixture
def sd15():
    return pipeline("sd15")


def family(pipe):
    return "sdxl" if hasattr(pipe, "text_encoder_2") else "sd15"


@pytest.fixture
def adapter(tmp_path):
    def make(name, of, seed=0):
        xl = of == "sdxl"
        nested = tiny_adapters.make(name, widths=WIDTHS[of], context=128 if xl else 64, seed=seed)
        return adapters.load(tiny_adapters.write(tmp_path / f"{name}{of}{seed}.safetensors", nested), name)

    return make


@pytest.fixture(autouse=True)
def clean(request):
    yield
    if "pipe" in request.fixturenames:
        host.remove(request.getfixturevalue("pipe"))


def hooks(net):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in net.modules())


def test_every_cross_attention_layer_is_reached(pipe):
    layout, names = host.layout_of(pipe.unet)
    assert len(layout.sites) == len(names) == (70 if family(pipe) == "sdxl" else 16)
    assert set(names) == {n.removesuffix(".processor") for n in pipe.unet.attn_processors if "attn2" in n}


def test_every_layer_gets_its_share(pipe, adapter, monkeypatch):
    heard = set()
    add = attention.Call.add
    monkeypatch.setattr(attention.Call, "add", lambda self, n, *rest: (heard.add(n), add(self, n, *rest))[1])
    host.apply(adapter("faceid-portrait", family(pipe)), identity(), pipe)
    drawn(pipe, 1)
    assert heard == set(range(len(host.layout_of(pipe.unet)[1])))


def test_what_is_put_on_can_be_taken_off(pipe, adapter):
    state = {name: tensor.clone() for name, tensor in pipe.unet.state_dict().items()}
    processors, before, count = dict(pipe.unet.attn_processors), drawn(pipe), hooks(pipe.unet)
    host.apply(adapter("faceid", family(pipe)), identity(), pipe)
    assert not torch.allclose(drawn(pipe), before, atol=1e-3)
    host.remove(pipe)
    assert torch.equal(drawn(pipe), before)
    assert hooks(pipe.unet) == count and pipe.unet.attn_processors == processors
    assert all(torch.equal(tensor, state[name]) for name, tensor in pipe.unet.state_dict().items())
    host.remove(pipe)


def test_strength_zero_changes_nothing(pipe, adapter):
    before, count = drawn(pipe), hooks(pipe.unet)
    host.apply(adapter("faceid", family(pipe)), identity(), pipe, 0)
    assert torch.equal(drawn(pipe), before) and hooks(pipe.unet) == count


def test_two_adapters_may_be_put_on_in_either_order(pipe, adapter):
    pair = [adapter("faceid-portrait", family(pipe), seed) for seed in (0, 1)]
    found = []
    for order in (pair, pair[::-1]):
        for one in order:
            host.apply(one, identity(), pipe, 0.7)
        found.append(drawn(pipe))
        host.remove(pipe)
    assert torch.allclose(*found, atol=1e-4)
    host.apply(pair[0], identity(), pipe, 0.7)
    assert not torch.allclose(drawn(pipe), found[0], atol=1e-3)


def test_identities_are_prepared_once_a_run(pipe, adapter, monkeypatch):
    made = []
    call = attention._Preparation.call
    monkeypatch.setattr(attention._Preparation, "call", lambda self: (made.append(1), call(self))[1])
    host.apply(adapter("faceid-portrait", family(pipe)), identity(), pipe)
    drawn(pipe, steps=3)
    assert len(made) == 1


def test_outside_its_window_an_adapter_does_nothing(sd15, adapter):
    before = drawn(sd15)
    # Two steps look at timesteps 501 and 1, which are the fractions 0.5 and 1.
    host.apply(adapter("faceid-portrait", "sd15"), identity(), sd15, start=0.0, end=0.3)
    assert torch.equal(drawn(sd15), before)
    host.remove(sd15)
    host.apply(adapter("faceid-portrait", "sd15"), identity(), sd15, start=0.3, end=0.6)
    inside = drawn(sd15)
    host.remove(sd15)
    host.apply(adapter("faceid-portrait", "sd15"), identity(), sd15)
    assert not torch.allclose(inside, before, atol=1e-3) and not torch.allclose(inside, drawn(sd15), atol=1e-4)


def test_a_mask_confines_it(sd15, adapter):
    one, before = adapter("faceid-portrait", "sd15"), drawn(sd15)

    def masked(mask):
        host.apply(one, identity(), sd15, mask=mask)
        found = drawn(sd15)
        host.remove(sd15)
        return found

    whole = masked(None)
    assert torch.allclose(masked(torch.ones(SIDE, SIDE)), whole, atol=1e-5)
    assert torch.allclose(masked(torch.zeros(SIDE, SIDE)), before, atol=1e-5)
    half = torch.zeros(SIDE, SIDE)
    half[:, : SIDE // 2] = 1
    assert not torch.allclose(masked(half), whole, atol=1e-3)
    with pytest.raises(BadInput, match=r"the mask of .* has 32×64 pixels"):
        masked(torch.ones(64, 32))


@pytest.mark.parametrize("guidance, pictures", [(1.0, 1), (5.0, 2), (1.0, 2)])
def test_with_and_without_guidance_and_in_batches(sd15, adapter, guidance, pictures):
    before = drawn(sd15, guidance=guidance, pictures=pictures)
    host.apply(adapter("faceid-portrait", "sd15"), identity(), sd15)
    after = drawn(sd15, guidance=guidance, pictures=pictures)
    assert after.shape == before.shape and not torch.allclose(after, before, atol=1e-3)


def test_rows_are_told_apart_as_the_pipeline_lays_them_out(sd15, adapter):
    class Pipe:
        do_classifier_free_guidance = True

    class Perturbed(Pipe):
        do_perturbed_attention_guidance = True

    assert host._sides(Pipe()) == [1, 0] and host._sides(Perturbed()) == [1, 0, 0] and host._sides(object()) == [0]
    host.apply(adapter("faceid-portrait", "sd15"), identity(), sd15)
    drawn(sd15, 1)
    with pytest.raises(BadInput, match="3 rows where 2 belong to each picture"):
        sd15.unet(torch.randn(3, 4, 8, 8), 5, torch.randn(3, 77, 64))


def test_whatever_attention_processor_the_user_has_chosen_stays(sd15, adapter):
    from diffusers.models.attention_processor import AttnProcessor

    host.apply(adapter("faceid", "sd15"), identity(), sd15)
    fused = drawn(sd15)
    sd15.unet.set_attn_processor(AttnProcessor())
    assert torch.allclose(drawn(sd15), fused, atol=1e-4)
    assert all(isinstance(p, AttnProcessor) for p in sd15.unet.attn_processors.values())


def test_the_low_rank_part_has_a_strength_of_its_own(sd15, adapter):
    one, found = adapter("faceid", "sd15"), []
    for strength in (0.0, 0.5, 1.0):
        host.apply(one, identity(), sd15, lora_strength=strength)
        found.append(drawn(sd15))
        host.remove(sd15)
    assert not any(torch.allclose(a, b, atol=1e-3) for a, b in pairwise(found))


def test_the_identity_is_asked_by_the_query_of_the_changed_layer(sd15, adapter, monkeypatch):
    """The low-rank part changes the query before the identity hears it, as in the authors' processor."""
    heard, answered = [], []
    add = attention.Call.add
    monkeypatch.setattr(
        attention.Call, "add", lambda self, n, query, *rest: (heard.append(query), add(self, n, query, *rest))[1]
    )
    host.apply(adapter("faceid", "sd15"), identity(), sd15)
    first = sd15.unet.get_submodule(host.layout_of(sd15.unet)[1][0])
    first.to_q.register_forward_hook(lambda module, inputs, output: answered.append((inputs[0], output)))
    drawn(sd15, 1)
    seen, changed = answered[0]
    assert torch.equal(heard[0], changed)
    assert not torch.allclose(changed, torch.nn.functional.linear(seen, first.to_q.weight), atol=1e-3)


def test_what_does_not_fit_is_refused_and_leaves_the_pipeline_alone(sd15, adapter):
    count = hooks(sd15.unet)
    with pytest.raises(BadInput, match=r"is made for .+, but the model is"):
        host.apply(adapter("faceid-portrait", "sdxl"), identity(), sd15)
    with pytest.raises(ContractMismatch, match="w600k_r50"):
        host.apply(adapter("faceid-portrait", "sd15"), identity("glintr100"), sd15)
    with pytest.raises(BadInput, match="Identity Prompt"):
        host.apply(adapter("arc2face", "sd15"), identity("arcface", 512), sd15)
    with pytest.raises(BadInput, match="has no mode 'style'"):
        host.apply(adapter("faceid-portrait", "sd15"), identity(), sd15, options=Options(mode="style"))
    for wrong in ({"strength": float("nan")}, {"lora_strength": float("inf")}, {"mask": torch.zeros(0, 8, 8)}):
        with pytest.raises(BadInput, match=r"strength must be|the mask must"):
            host.apply(adapter("faceid", "sd15"), identity(), sd15, **wrong)
    with pytest.raises(BadInput, match="a str has no U-Net"):
        host.apply(adapter("faceid", "sd15"), identity(), "sd15")
    with pytest.raises(BadInput, match=r"holds p0, p1: apply them one by one"):
        host.apply(adapter("faceid", "sd15"), identity(people=2), sd15)
    narrow = adapter("faceid", "sd15")
    change = narrow.low_rank[4, "q"]
    changed = replace(narrow, low_rank={**narrow.low_rank, (4, "q"): replace(change, down=change.down[:, :-1])})
    with pytest.raises(BadInput, match=r"changes a layer of 64×63 weights, which this model has as 64×64"):
        host.apply(changed, identity(), sd15)
    assert hooks(sd15.unet) == count


def test_fused_projections_are_refused_where_they_would_pass_an_adapters_changes_by(sd15, adapter):
    host.apply(adapter("faceid", "sd15"), identity(), sd15)
    before = drawn(sd15)
    sd15.fuse_qkv_projections()
    with pytest.raises(BadInput, match="unfuse_qkv_projections"):
        drawn(sd15)
    sd15.unfuse_qkv_projections()
    assert torch.equal(drawn(sd15), before)
    host.remove(sd15)
    sd15.fuse_qkv_projections()
    count = hooks(sd15.unet)
    with pytest.raises(BadInput, match="unfuse_qkv_projections"):
        host.apply(adapter("faceid", "sd15"), identity(), sd15)
    assert hooks(sd15.unet) == count
    host.apply(adapter("faceid", "sd15"), identity(), sd15, lora_strength=0)


def test_a_run_that_breaks_off_leaves_nothing_behind(sd15, adapter):
    before, count = drawn(sd15), hooks(sd15.unet)
    host.apply(adapter("faceid", "sd15"), identity(), sd15)
    after = drawn(sd15)

    def stop(*_):
        raise KeyboardInterrupt

    handle = sd15.unet.up_blocks[1].register_forward_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        drawn(sd15)
    handle.remove()
    assert torch.equal(drawn(sd15), after)
    host.remove(sd15)
    assert torch.equal(drawn(sd15), before) and hooks(sd15.unet) == count


def test_strengths_of_repeated_calls_add_up(sd15, adapter):
    one = adapter("faceid", "sd15")
    host.apply(one, identity(), sd15)
    whole = drawn(sd15)
    host.remove(sd15)
    for part in (0.25, 0.75):
        host.apply(one, identity(), sd15, part, lora_strength=part)
    assert torch.allclose(drawn(sd15), whole, atol=1e-4)


def test_a_model_in_half_precision_stays_so(sd15, adapter):
    sd15.unet.to(torch.bfloat16)
    host.apply(adapter("faceid", "sd15"), identity(), sd15)
    with torch.no_grad():
        got = sd15.unet(torch.randn(1, 4, 8, 8).bfloat16(), 5, torch.randn(1, 77, 64).bfloat16(), return_dict=False)[0]
    assert got.dtype == torch.bfloat16 and bool(torch.isfinite(got).all())


def test_a_pipeline_is_not_kept_alive(adapter):
    pipe = pipeline("sd15")
    host.apply(adapter("faceid-portrait", "sd15"), identity(), pipe)
    drawn(pipe, 1)
    gone = weakref.ref(pipe)
    del pipe
    gc.collect()
    assert gone() is None


def test_instantids_controlnet_reads_the_identity_where_others_read_the_text(adapter):
    pipe, seen = pipeline("sdxl", control=True), []
    one, who = adapter("instantid", "sdxl"), identity("glintr100")
    host.apply(one, who, pipe)
    pipe.controlnet.register_forward_pre_hook(
        lambda net, args, more: seen.append(more["encoder_hidden_states"]), with_kwargs=True
    )
    points = torch.rand(1, 3, SIDE, SIDE)
    drawn(pipe, 1, image=points)
    shown = attention_tokens(one, who)
    assert torch.allclose(seen[0], torch.cat([shown.negative, shown.positive]), atol=1e-5)
    drawn(pipe, 1, image=points, guess_mode=True)
    assert torch.allclose(seen[1], shown.positive, atol=1e-5), "guessing it sees the positive rows alone"
    host.remove(pipe)
    drawn(pipe, 1, image=points)
    assert seen[2].shape == (2, 77, 128)


def test_a_controlnet_of_another_family_is_refused(adapter):
    pipe, count = pipeline("sdxl", control=True), 0
    pipe.controlnet.register_to_config(cross_attention_dim=64)
    with pytest.raises(BadInput, match=r"reads text 64 wide, InstantID's tokens are 128.*IdentityNet"):
        host.apply(adapter("instantid", "sdxl"), identity("glintr100"), pipe)
    assert hooks(pipe.unet) == hooks(pipe.controlnet) == count


def attention_tokens(adapter, who):
    from likeness.face.applying import tokens_for

    return tokens_for(adapter, who, who.people[0], None, Options())


def test_the_package_opens_the_two_functions():
    import likeness

    assert likeness.apply is host.apply and likeness.remove is host.remove
