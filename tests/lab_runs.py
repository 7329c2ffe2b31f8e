"""What is made of the lab's checkpoint in both hosts, by the nodes of the one or the other, to be compared."""

import torch
from likeness.face.attention import Tokens
from likeness.nodes.cure import cured, foundation
from likeness.nodes.host import Sampling

PROMPTS = ("a portrait of a person, long red hair, round glasses", "a portrait of a (person:1.3), blue background", "")
SIDE = 128
REFUSED = {
    "published.safetensors": "BadInput: there is no published.safetensors among",
    "control.safetensors": "BadModelFile: control.safetensors does not tell the configuration of its unet",
    "broken.safetensors": "BadModelFile: broken.safetensors cannot be read",
    "cut.safetensors": "BadModelFile: cut.safetensors cannot be read",
    "groups.safetensors": "BadModelFile: groups.safetensors tells norm_num_groups 7",
    "heads.safetensors": "BadModelFile: heads.safetensors tells attention_head_dim 'four'",
    "text_heads.safetensors": "BadModelFile: text_heads.safetensors tells num_attention_heads 0",
    "vae_groups.safetensors": "BadModelFile: vae_groups.safetensors tells norm_num_groups 5",
    "unet_part.safetensors": "BadModelFile: unet_part.safetensors: 1 of its tensors",
    "text_part.safetensors": "BadModelFile: text_part.safetensors: 1 of its tensors",
    "vae_part.safetensors": "BadModelFile: vae_part.safetensors: 1 of its tensors",
    "no_vae.safetensors": "BadModelFile: no_vae.safetensors is no whole checkpoint",
}
"""What ComfyUI's loader says to files that are none of the lab's, or not whole."""


def tokens(layout):
    """Of an adapter out of nowhere, the same in every process."""
    draw = torch.Generator().manual_seed(5)
    scale = layout.context**-0.5
    weights = [torch.randn(s.width, layout.context, generator=draw) * scale for s in layout.sites for _ in range(2)]
    found = torch.randn(1, 4, layout.context, generator=draw)
    return Tokens(found, found, weights[::2], weights[1::2])


def waves():
    y, x = torch.meshgrid(torch.linspace(0, 9, SIDE), torch.linspace(0, 7, SIDE), indexing="ij")
    return (torch.stack([torch.sin(x + y), torch.cos(x - y), torch.sin(x * y / 3)], -1) / 2 + 0.5)[None]


def points():
    hint = torch.zeros(1, SIDE, SIDE, 3)
    hint[:, 40:60, 30:50, 0] = 1.0
    hint[:, 40:60, 80:100, 2] = 1.0
    return hint


def everything(nodes, model, clip, vae, control, shown):
    """Tensors by name. ``nodes``: the host's, by the names that ComfyUI gives them; ``shown(model, strength)``: the
    MODEL with an adapter."""

    def call(kind, *inputs, **more):
        node = nodes[kind]
        return getattr(node(), node.FUNCTION)(*inputs, **more)[0]

    def sample(model, positive, negative, latent, sampler="euler", scheduler="sgm_uniform", denoise=1.0, cfg=1.5):
        answer = call(
            "KSampler", model, 7, 5, cfg, sampler, scheduler, positive, negative, latent, denoise=denoise
        )  # fmt: skip
        return answer["samples"]

    out = {}
    conds = [call("CLIPTextEncode", clip, text) for text in PROMPTS]
    for number, cond in enumerate(conds):
        out[f"text {number}"] = cond[0][0]
    out["text skipped"] = call("CLIPTextEncode", call("CLIPSetLastLayer", clip, -2), PROMPTS[0])[0][0]
    positive, other, negative = conds
    empty = call("EmptyLatentImage", SIDE, SIDE, 2)
    for sampler, scheduler in (("euler", "sgm_uniform"), ("dpmpp_2m", "karras"), ("euler_ancestral", "normal")):
        out[f"samples {sampler}"] = sample(model, positive, negative, empty, sampler, scheduler)
    encoded = {"samples": vae.encode(waves())}
    out["latent of a picture"] = encoded["samples"]
    out["picture of a latent"] = vae.decode(out["samples euler"])
    out["samples of a picture"] = sample(model, positive, negative, encoded, denoise=0.6)
    masked = call("SetLatentNoiseMask", encoded, waves()[..., 0])
    out["samples in a mask"] = sample(model, positive, negative, masked, denoise=0.8)
    node = nodes["ControlNetApplyAdvanced"]
    sides = getattr(node(), node.FUNCTION)(positive, negative, control, points(), 0.8, 0.0, 1.0)
    out["samples steered"] = sample(model, *sides, empty)
    lora = nodes["LoraLoader"]
    tuned, tuned_clip = getattr(lora(), lora.FUNCTION)(model, clip, "both.safetensors", 0.9, 0.7)
    out["samples tuned"] = sample(tuned, positive, negative, empty)
    out["text tuned"] = call("CLIPTextEncode", tuned_clip, PROMPTS[0])[0][0]
    person = shown(model, 0.8)
    out["samples with a person"] = sample(person, positive, negative, empty)
    settings = Sampling(7, 5, 1.5, "euler", "sgm_uniform", 1.0)
    latent, tape, _ = foundation(model, positive, negative, empty, settings)
    out["samples of the foundation"] = latent["samples"]
    mask = torch.zeros(1, SIDE, SIDE)
    mask[:, : SIDE // 2] = 1.0
    out["samples cured"] = sample(cured(person, tape, mask)[0], other, negative, empty)
    out["samples after all"] = sample(model, positive, negative, empty)
    return out
