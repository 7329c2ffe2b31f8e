"""The two names of a tensor: ldm's, of published checkpoints and of ComfyUI, and diffusers'.

The names follow from the structure, so they are made from it, for any depth and width: an ldm U-Net numbers its blocks
through (``input_blocks.7.1``), a diffusers one by level and layer (``down_blocks.2.attentions.0``). Only prefixes
differ; what is inside a transformer has one name in both. ``to_diffusers`` and ``to_ldm`` answer {given name: other
name}, and leave out names that belong to no tensor of that kind.

The correspondence itself is public: CompVis/latent-diffusion openaimodel.py and model.py on one side, huggingface/
diffusers unet_2d_condition.py, controlnet.py and autoencoder_kl.py on the other.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

Kind = Literal["unet", "controlnet", "vae"]
Names = dict[str, str]

_UNET = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "middle_block.1": "mid_block.attentions.0",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
_RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_VAE_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}


@dataclass(frozen=True)
class Structure:
    """What the numbering of blocks depends on."""

    layers: tuple[int, ...]
    """Resnets of each level on the way down; there is one more of each on the way up."""
    attended: tuple[bool, ...] = ()
    """U-Net: whether each level has attention on the way up, which decides where its upsampler stands."""
    hints: int = 0
    """ControlNet: convolutions between the picture and the first block."""


def to_diffusers(kind: Kind, names: Iterable[str]) -> Names:
    """{ldm name: diffusers name}."""
    names = set(names)
    return _translate(names, _modules(kind, _ldm_structure(kind, names)))


def to_ldm(kind: Kind, names: Iterable[str]) -> Names:
    """{diffusers name: ldm name}."""
    names = set(names)
    modules = _modules(kind, _diffusers_structure(kind, names))
    return _translate(names, {theirs: ours for ours, theirs in modules.items()})


def _translate(names: Iterable[str], modules: Names) -> Names:
    """Names whose longest prefix that names a module is that of a module with another name."""
    found: Names = {}
    for name in names:
        parts = name.split(".")
        for end in range(len(parts) - 1, 0, -1):
            if (prefix := ".".join(parts[:end])) in modules:
                found[name] = ".".join([modules[prefix], *parts[end:]])
                break
    return found


def _modules(kind: Kind, structure: Structure) -> Names:
    return {"unet": _unet, "controlnet": _controlnet, "vae": _vae}[kind](structure)


def _resnet(ldm: str, diffusers: str) -> Names:
    return {f"{ldm}.{ours}": f"{diffusers}.{theirs}" for ours, theirs in _RESNET.items()}


def _down(structure: Structure) -> Names:
    """The half that U-Nets and ControlNets share."""
    found = {
        **_UNET,
        **_resnet("middle_block.0", "mid_block.resnets.0"),
        **_resnet("middle_block.2", "mid_block.resnets.1"),
    }
    block = 1
    for level, layers in enumerate(structure.layers):
        for layer in range(layers):
            found |= _resnet(f"input_blocks.{block}.0", f"down_blocks.{level}.resnets.{layer}")
            found[f"input_blocks.{block}.1"] = f"down_blocks.{level}.attentions.{layer}"
            block += 1
        if level + 1 < len(structure.layers):
            found[f"input_blocks.{block}.0.op"] = f"down_blocks.{level}.downsamplers.0.conv"
            block += 1
    return found


def _unet(structure: Structure) -> Names:
    found, block = _down(structure), 0
    for up, level in enumerate(reversed(range(len(structure.layers)))):
        attended = structure.attended[level]
        for layer in range(structure.layers[level] + 1):
            found |= _resnet(f"output_blocks.{block}.0", f"up_blocks.{up}.resnets.{layer}")
            if attended:
                found[f"output_blocks.{block}.1"] = f"up_blocks.{up}.attentions.{layer}"
            block += 1
        if level:
            found[f"output_blocks.{block - 1}.{1 + attended}.conv"] = f"up_blocks.{up}.upsamplers.0.conv"
    return found


def _controlnet(structure: Structure) -> Names:
    found = _down(structure)
    for block in range(sum(structure.layers) + len(structure.layers)):
        found[f"zero_convs.{block}.0"] = f"controlnet_down_blocks.{block}"
    found["middle_block_out.0"] = "controlnet_mid_block"
    hints = ["conv_in", *(f"blocks.{n}" for n in range(structure.hints - 2)), "conv_out"]
    for place, name in enumerate(hints):
        # Between two convolutions of ldm's sequence stands an activation.
        found[f"input_hint_block.{2 * place}"] = f"controlnet_cond_embedding.{name}"
    return found


def _vae(structure: Structure) -> Names:
    found = {"quant_conv": "quant_conv", "post_quant_conv": "post_quant_conv"}
    top = len(structure.layers) - 1
    for half, way, more in (("encoder", "down", 0), ("decoder", "up", 1)):
        found |= {f"{half}.conv_in": f"{half}.conv_in", f"{half}.conv_out": f"{half}.conv_out"}
        found[f"{half}.norm_out"] = f"{half}.conv_norm_out"
        for place in (1, 2):
            found |= _vae_resnet(f"{half}.mid.block_{place}", f"{half}.mid_block.resnets.{place - 1}")
        for ours, theirs in _VAE_ATTENTION.items():
            found[f"{half}.mid.attn_1.{ours}"] = f"{half}.mid_block.attentions.0.{theirs}"
        for level, layers in enumerate(structure.layers):
            # On the way up diffusers counts from the smallest level, ldm from the largest.
            block = f"{half}.{way}_blocks.{top - level if more else level}"
            for layer in range(layers + more):
                found |= _vae_resnet(f"{half}.{way}.{level}.block.{layer}", f"{block}.resnets.{layer}")
            found[f"{half}.{way}.{level}.{way}sample.conv"] = f"{block}.{way}samplers.0.conv"
    return found


def _vae_resnet(ldm: str, diffusers: str) -> Names:
    names = {name: name for name in ("norm1", "conv1", "norm2", "conv2")} | {"nin_shortcut": "conv_shortcut"}
    return {f"{ldm}.{ours}": f"{diffusers}.{theirs}" for ours, theirs in names.items()}


def _ldm_structure(kind: Kind, names: set[str]) -> Structure:
    if kind == "vae":
        return Structure(_levels(names, "encoder.down.{}.block.{}.conv1.weight"))
    layers, block = [0], 1
    while True:
        if f"input_blocks.{block}.0.op.weight" in names:
            layers.append(0)
        elif f"input_blocks.{block}.0.in_layers.0.weight" in names:
            layers[-1] += 1
        else:
            break
        block += 1
    attended: list[bool] = []
    block = 0
    for count in reversed(layers):
        attended.insert(0, f"output_blocks.{block}.1.norm.weight" in names)
        block += count + 1
    hints = _count(lambda n: f"input_hint_block.{2 * n}.weight" in names)
    return Structure(tuple(layers), tuple(attended), hints)


def _diffusers_structure(kind: Kind, names: set[str]) -> Structure:
    if kind == "vae":
        return Structure(_levels(names, "encoder.down_blocks.{}.resnets.{}.conv1.weight"))
    layers = _levels(names, "down_blocks.{}.resnets.{}.conv1.weight")
    top = len(layers) - 1
    attended = tuple(f"up_blocks.{top - level}.attentions.0.norm.weight" in names for level in range(top + 1))
    hints = len({name for name in names if re.fullmatch(r"controlnet_cond_embedding\..*\.weight", name)})
    return Structure(layers, attended, hints)


def _levels(names: set[str], pattern: str) -> tuple[int, ...]:
    levels = _count(lambda level: pattern.format(level, 0) in names)
    return tuple(_count(lambda layer, level=level: pattern.format(level, layer) in names) for level in range(levels))


def _count(there: Callable[[int], bool]) -> int:
    """How many numbers from 0 on are there without a gap."""
    number = 0
    while there(number):
        number += 1
    return number
