"""Adapters in a whole U-Net, against numbers computed with the authors' own attention processors, on diffusers.

The tiny U-Nets have the layouts of SD1.5 (16 cross-attention layers) and SDXL (70). The same fixtures run in ComfyUI's
own U-Net class in ``test_comfy_adapters.py``.
"""

import re
from dataclasses import dataclass
from functools import lru_cache
from types import SimpleNamespace

import pytest
import torch
from likeness.engine import diffusers_host
from likeness.engine.diffusers_host import attention_run, layout_of
from likeness.face.adapters import Choices, Evidence, load
from likeness.face.adapters._checkpoint import read
from likeness.face.adapters._layers import keys_and_values
from likeness.face.attention import Tokens, apply
from likeness.tests.golden_data import controlnet, fixture, unet


@dataclass
class Chunk:
    """A conditioning of several pictures, as the engine's sampler describes it."""

    size: int
    index: int = 0
    entry: dict = None
    area: tuple = None

    def __post_init__(self):
        self.entry = self.entry or {}


def tokens_of(one, evidences):
    """One person a row."""
    return torch.cat([one.project(evidence, Choices())[0] for evidence in evidences])


def shared(one, positive):
    return Tokens(positive, None, one.keys, one.values)


def run(base, gold, applied, changes=None, lora=1.0, **more):
    """The U-Net's answer to the fixture's inputs; every row is a picture with a person of its own."""
    net, x = unet(base), gold.inputs
    found = {} if changes is None else dict(diffusers_host._changes(changes, layout_of(net)[1]))
    handles = diffusers_host._low_rank(net, found, lora)
    if "pooled_text" in x:
        more["added_cond_kwargs"] = {"text_embeds": x["pooled_text"], "time_ids": x["time_ids"]}
    model = SimpleNamespace(dtype=torch.float32)
    shape = x["sample"].shape
    try:
        with attention_run(net, applied, model, [[{}]], shape) as acting, torch.no_grad():
            acting.begin([Chunk(len(x["sample"]))], 1.0, 500.0, shape)
            return net(x["sample"], x["timesteps"], x["text"], **more).sample
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("base", ["sd15", "sdxl"])
def test_the_host_itself_is_the_authors(base):
    gold = fixture(f"unet_{base}")
    gold.close(run(base, gold, []), "noise_pred")


@pytest.mark.parametrize("base", ["sd15", "sdxl"])
@pytest.mark.parametrize(
    ("output", "settings", "lora"),
    [
        ("noise_pred_scale_1.0", {}, 1.0),
        ("noise_pred_scale_0.6", {"strength": 0.6}, 1.0),
        ("noise_pred_scale_0.0_lora_only", {"layer_weights": "0:0"}, 1.0),
        ("noise_pred_scale_1.0_lora_0.5", {}, 0.5),
    ],
)
def test_faceid_with_its_lora(base, output, settings, lora):
    gold = fixture(f"unet_{base}_faceid")
    one = load(gold.checkpoint)
    positive = tokens_of(one, [Evidence(vector[None]) for vector in gold.inputs["id_embeds"]])
    gold.close(positive, "tokens")
    applied = apply("faceid", shared(one, positive), layout_of(unet(base))[0], **settings)
    gold.close(run(base, gold, [applied], one, lora), output)


@pytest.mark.parametrize("strength", [1.0, 0.6])
def test_portrait_with_several_pictures(strength):
    gold = fixture("unet_sd15_portrait")
    one = load(gold.checkpoint)
    positive = tokens_of(one, [Evidence(vectors) for vectors in gold.inputs["id_embeds"]])
    gold.close(positive, "tokens")
    applied = apply("portrait", shared(one, positive), layout_of(unet("sd15"))[0], strength=strength)
    gold.close(run("sd15", gold, [applied]), f"noise_pred_scale_{strength}")


@pytest.mark.parametrize(
    ("which", "output"),
    [
        ((0, 1), "noise_pred_both"),
        ((1, 0), "noise_pred_both"),
        ((0,), "noise_pred_only_one"),
        ((1,), "noise_pred_only_two"),
    ],
)
def test_two_adapters_add_up_in_either_order(which, output):
    gold = fixture("unet_sd15_two_adapters")
    layout = layout_of(unet("sd15"))[0]
    both = []
    for name, strength in zip(("one", "two"), gold.config["scales"], strict=True):
        keys, values = keys_and_values(read(gold.folder / f"adapter_{name}.safetensors"))
        tokens = Tokens(gold.inputs[f"tokens_{name}"], None, keys, values)
        both.append(apply(name, tokens, layout, strength=strength))
    gold.close(run("sd15", gold, [both[n] for n in which]), output)


@lru_cache
def pulid():
    gold = fixture("unet_sdxl_pulid")
    one = load(gold.folder / "checkpoint.safetensors")
    known, layers, split = gold.inputs["id_cond"].flatten(1), gold.numbered("vit_hidden"), gold.config["id_dim"]
    positive = tokens_of(
        one,
        [
            Evidence(
                known[n : n + 1, :split], known[n : n + 1, None, split:], None, tuple(h[n : n + 1] for h in layers)
            )
            for n in range(len(known))
        ],
    )
    return gold, one, positive


@pytest.mark.parametrize("output", ["plain_zero0", "plain_zero8", "ortho_zero16", "ortho_v2_zero8", "ortho_v2_zero20"])
def test_pulid_in_all_its_modes(output):
    gold, one, positive = pulid()
    gold.close(positive, "id_tokens")
    mode, zeros = re.fullmatch(r"(\w+)_zero(\d+)", output).groups()
    applied = apply(
        "pulid",
        shared(one, positive),
        layout_of(unet("sdxl"))[0],
        strength=gold.config["id_scale"],
        mode=mode,
        zeros=int(zeros),
    )
    gold.close(run("sdxl", gold, [applied]), f"noise_pred_{output}")


@pytest.mark.parametrize(("adapter", "control"), [(True, True), (True, False), (False, True)])
def test_instantid_with_its_controlnet(adapter, control):
    gold = fixture("unet_sdxl_instantid")
    one = load(gold.folder / "ip-adapter.bin", "instantid")
    positive = tokens_of(one, [Evidence(vector.flatten()[None]) for vector in gold.inputs["id_embeds"]])
    gold.close(positive, "id_tokens")
    x, more = gold.inputs, {}
    if control:
        # As a pipeline runs it: told the text, the ControlNet gets the identity's tokens by the hook.
        net, pipe = controlnet("unet_sdxl_instantid"), _Pipe()
        hook = diffusers_host._instead_of_text(pipe, shared(one, positive))
        handle = net.register_forward_pre_hook(hook, with_kwargs=True)
        with torch.no_grad():
            down, mid = net(
                x["sample"],
                x["timesteps"],
                x["text"],
                x["control_image"],
                gold.config["controlnet_scale"],
                added_cond_kwargs={"text_embeds": x["pooled_text"], "time_ids": x["time_ids"]},
                return_dict=False,
            )
        handle.remove()
        for n, residual in enumerate(down):
            gold.close(residual, f"control_down_{n}")
        gold.close(mid, "control_mid")
        more = {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}
    applied = apply("instantid", shared(one, positive), layout_of(unet("sdxl"))[0], strength=gold.config["ip_scale"])
    answer = run("sdxl", gold, [applied] if adapter else [], **more)
    name = "" if adapter and control else "_adapter_only" if adapter else "_controlnet_only"
    gold.close(answer, f"noise_pred{name}")


class _Pipe:
    do_classifier_free_guidance = False
