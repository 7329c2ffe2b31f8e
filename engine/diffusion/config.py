"""Sizes and family of a network, deduced from the shapes of its tensors (diffusers names).

What shapes cannot tell is the convention of the family, unless a configuration that came with the weights says it: the
number of attention heads (SD1.5 has 8 of them everywhere, SDXL makes them 64 wide) and how wide SDXL's six size numbers
are embedded (256, or what the width of the pooled text leaves of the vector they end in).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ...face.errors import BadModelFile

Shapes = Mapping[str, torch.Tensor]
Config = dict[str, Any]

SD15, SDXL = "sd15", "sdxl"
SUPPORTED = "supported are SD1.5 and SDXL; for others use ComfyUI: likeness run FILE --server URL"
_HEADS = 8
_HEAD_WIDTH = 64
_SIZES = 6
"""Numbers that tell an SDXL U-Net the size and crop of the picture."""
_SIZE_WIDTH = 256


def unet(tensors: Shapes, name: str, known: Config | None = None, pooled: int | None = None) -> tuple[str, Config]:
    """Family and ``UNet2DConditionModel`` arguments.

    ``known``: the configuration that came with the weights, which has the last word. ``pooled``: width of the pooled
    text of the encoder that goes with it, if that is known. Raises BadModelFile for what is neither SD1.5 nor SDXL.
    """
    if "conv_in.weight" not in tensors or "conv_out.weight" not in tensors:
        raise BadModelFile(f"{name} holds no U-Net of Stable Diffusion that can be recognised; {SUPPORTED}")
    family, config = _encoder(tensors, name, known or {}, pooled)
    config["out_channels"] = tensors["conv_out.weight"].shape[0]
    attended = ["CrossAttn" in kind for kind in config["down_block_types"]]
    config["up_block_types"] = tuple("CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attended))
    config |= _said(known)
    if config["in_channels"] != config["out_channels"]:
        raise BadModelFile(
            f"{name} takes {config['in_channels']} channels and gives {config['out_channels']}: it is an inpainting or "
            f"editing model. Use the plain model with a noise mask; {SUPPORTED}"
        )
    return family, config


def controlnet(tensors: Shapes, name: str, known: Config | None = None) -> tuple[str, Config]:
    """Family and ``ControlNetModel`` arguments."""
    family, config = _encoder(tensors, name, known or {}, None)
    convs = "controlnet_cond_embedding.blocks.{}.weight"
    widths = [tensors["controlnet_cond_embedding.conv_in.weight"].shape[0]]
    while (conv := convs.format(2 * len(widths) - 1)) in tensors:
        widths.append(tensors[conv].shape[0])
    config["conditioning_channels"] = tensors["controlnet_cond_embedding.conv_in.weight"].shape[1]
    config["conditioning_embedding_out_channels"] = tuple(widths)
    return family, config | _said(known)


def vae(tensors: Shapes, name: str, known: Config | None = None) -> Config:
    """``AutoencoderKL`` arguments."""
    if "encoder.conv_in.weight" not in tensors or "post_quant_conv.weight" not in tensors:
        raise BadModelFile(
            f"{name} holds no VAE of Stable Diffusion 1.5 or SDXL; a TAESD or another kind cannot be used"
        )
    widths = _widths(tensors, "encoder.down_blocks")
    config = {
        "in_channels": tensors["encoder.conv_in.weight"].shape[1],
        "out_channels": tensors["decoder.conv_out.weight"].shape[0] if "decoder.conv_out.weight" in tensors else 3,
        "latent_channels": tensors["post_quant_conv.weight"].shape[1],
        "block_out_channels": tuple(widths),
        "down_block_types": ("DownEncoderBlock2D",) * len(widths),
        "up_block_types": ("UpDecoderBlock2D",) * len(widths),
        "layers_per_block": _numbered(tensors, "encoder.down_blocks.0.resnets.{}.conv1.weight"),
    }
    return config | _said(known)


def _encoder(tensors: Shapes, name: str, known: Config, pooled: int | None) -> tuple[str, Config]:
    """What U-Nets and ControlNets have in common."""
    widths = _widths(tensors, "down_blocks")
    depths = [_depth(tensors, f"down_blocks.{level}.attentions.0") for level in range(len(widths))]
    middle = _depth(tensors, "mid_block.attentions.0")
    keys = [key for key in tensors if key.endswith("attn2.to_k.weight")]
    if not widths or not middle or not keys:
        raise BadModelFile(f"{name} has no attention where Stable Diffusion has it; {SUPPORTED}")
    added = tensors.get("add_embedding.linear_1.weight")
    linear = tensors["mid_block.attentions.0.proj_in.weight"].ndim == 2
    context = tensors[keys[0]].shape[1]
    if linear is not (added is not None) or (context == 1280 and added is not None):
        kind = "Stable Diffusion 2" if added is None else "the SDXL refiner" if linear else "a variant of SDXL"
        raise BadModelFile(f"{name} looks like {kind} (text {context} wide); {SUPPORTED}")
    config: Config = {
        "in_channels": tensors["conv_in.weight"].shape[1],
        "block_out_channels": tuple(widths),
        "layers_per_block": _numbered(tensors, "down_blocks.0.resnets.{}.conv1.weight"),
        "down_block_types": tuple("CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in depths),
        # diffusers gives the middle block the depth of the last level, which need not have attention of its own.
        "transformer_layers_per_block": (*(depth or 1 for depth in depths[:-1]), middle),
        "cross_attention_dim": context,
        "use_linear_projection": linear,
    }
    if added is None:
        return SD15, config | {"attention_head_dim": _HEADS}
    wide = added.shape[1]
    size_width = known.get("addition_time_embed_dim") or _size_width(wide, pooled, name)
    return SDXL, config | {
        # In diffusers the word means the number of heads.
        "attention_head_dim": tuple(max(width // _HEAD_WIDTH, 1) for width in widths),
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": size_width,
        "projection_class_embeddings_input_dim": wide,
    }


def _size_width(wide: int, pooled: int | None, name: str) -> int:
    left = wide - pooled if pooled is not None else _SIZES * _SIZE_WIDTH
    if left <= 0 or left % _SIZES or left >= wide:
        raise BadModelFile(
            f"{name} takes a vector of {wide} numbers beside the text, which is not a pooled text"
            f"{f' of {pooled}' if pooled is not None else ''} and {_SIZES} embedded sizes. Its configuration is "
            "needed: give it as a diffusers folder."
        )
    return left // _SIZES


def _said(known: Config | None) -> Config:
    """A configuration file without its remarks about itself, in the form that the classes take."""
    return {k: tuple(v) if isinstance(v, list) else v for k, v in (known or {}).items() if not k.startswith("_")}


def _widths(tensors: Shapes, blocks: str) -> list[int]:
    pattern = blocks + ".{}.resnets.0.conv1.weight"
    return [tensors[pattern.format(level)].shape[0] for level in range(_numbered(tensors, pattern))]


def _depth(tensors: Shapes, transformer: str) -> int:
    return _numbered(tensors, transformer + ".transformer_blocks.{}.norm1.weight")


def _numbered(tensors: Shapes, pattern: str) -> int:
    number = 0
    while pattern.format(number) in tensors:
        number += 1
    return number
