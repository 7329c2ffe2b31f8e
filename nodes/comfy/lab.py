"""The lab's checkpoint as ComfyUI's own MODEL, CLIP, VAE and CONTROL_NET.

ComfyUI tells models by the published sizes and takes the rest, heads and groups of the norms, from a table of those.
Here both come from the file: its tensors and the configuration in its metadata. What comes out is made of ComfyUI's own
classes, so that every sampler, patch, LoRA and ControlNet node treats it as any other.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import comfy.cldm.cldm
import comfy.controlnet
import comfy.latent_formats
import comfy.ldm.modules.diffusionmodules.model as vae_model
import comfy.model_base
import comfy.model_detection
import comfy.model_management as memory
import comfy.model_patcher
import comfy.ops
import comfy.sd
import comfy.sd1_clip
import comfy.supported_models
import comfy.utils
import folder_paths
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import TimestepEmbedSequential

from ...face.errors import BadModelFile

Config = dict[str, Any]

_UNET = "model.diffusion_model."
GROUPS = 32
"""Of a norm, where nothing else is said: diffusers' default and ComfyUI's only value."""
_building = threading.Lock()


def checkpoint(path: Path) -> tuple[Any, Any, Any]:
    """MODEL, CLIP and VAE. Raises BadModelFile."""
    tensors, told = _read(path)
    for part in ("unet", "vae", "text"):
        if not isinstance(told.get(part), dict):
            raise BadModelFile(f"{path.name} does not tell the configuration of its {part} in its metadata")
    return _model(tensors, told["unet"]), _clip(tensors, told["text"]), _vae(tensors, told["vae"])


def controlnet(path: Path) -> Any:
    """CONTROL_NET of a file under ldm's names. Raises BadModelFile."""
    tensors, told = _read(path)
    known = told.get("controlnet")
    if not isinstance(known, dict) or "input_hint_block.0.weight" not in tensors:
        raise BadModelFile(f"{path.name} is no ControlNet that tells its configuration in its metadata")
    config = comfy.model_detection.detect_unet_config(tensors, "")
    dtype = memory.unet_dtype(supported_dtypes=[torch.float16, torch.float32])
    device = memory.get_torch_device()
    cast = memory.unet_manual_cast(dtype, device)
    operations = comfy.ops.pick_operations(dtype, cast)
    config.pop("out_channels", None)
    config.update(
        num_heads=known.get("attention_head_dim", 8),
        num_head_channels=-1,
        hint_channels=tensors["input_hint_block.0.weight"].shape[1],
        operations=operations,
        dtype=dtype,
        device=memory.unet_offload_device(),
    )
    net = comfy.cldm.cldm.ControlNet(**config)
    # ComfyUI's has the published widths between the picture and the first layer.
    net.input_hint_block = _hints(tensors, operations, dtype, memory.unet_offload_device())
    _regroup(net, known)
    _fill(net, tensors, path)
    return comfy.controlnet.ControlNet(net, load_device=device, manual_cast_dtype=cast)


def _read(path: Path) -> tuple[dict[str, Any], Config]:
    try:
        tensors, metadata = comfy.utils.load_torch_file(str(path), safe_load=True, return_metadata=True)
        told = json.loads((metadata or {}).get("config", "null"))
    except Exception as error:
        raise BadModelFile(f"{path.name} cannot be read ({error}): it is cut off or something else") from error
    if not isinstance(told, dict):
        raise BadModelFile(
            f"{path.name} does not tell its configuration in its metadata: it is none of the lab's. Take Load "
            "Checkpoint, or Load ControlNet Model."
        )
    return tensors, told


def _model(tensors: dict[str, Any], known: Config) -> Any:
    class Latent(comfy.latent_formats.SD15):
        latent_channels = known["in_channels"]
        # What the published four channels look like says nothing of these.
        latent_rgb_factors = None
        taesd_decoder_name = None

    class Lab(comfy.supported_models.SD15):
        unet_extra_config = {"num_heads": known.get("attention_head_dim", 8), "num_head_channels": -1}  # noqa: RUF012
        latent_format = Latent
        sampling_settings = {"zsnr": True} if "ztsnr" in tensors else {}  # noqa: RUF012

        def model_type(self, state_dict: Any, prefix: str = "") -> Any:
            kinds = comfy.model_base.ModelType
            return kinds.V_PREDICTION if "v_pred" in tensors else kinds.EPS

        def inpaint_model(self) -> bool:
            return False

    config = Lab(comfy.model_detection.detect_unet_config(tensors, _UNET))
    size, load_device = comfy.utils.calculate_parameters(tensors, _UNET), memory.get_torch_device()
    dtype = memory.unet_dtype(model_params=size, supported_dtypes=list(config.supported_inference_dtypes))
    config.set_inference_dtype(dtype, memory.unet_manual_cast(dtype, load_device, config.supported_inference_dtypes))
    model = config.get_model(tensors, _UNET, device=memory.unet_inital_load_device(size, dtype))
    _regroup(model.diffusion_model, known)
    model.load_model_weights(dict(tensors), _UNET)
    return comfy.model_patcher.ModelPatcher(model, load_device=load_device, offload_device=memory.unet_offload_device())


def _clip(tensors: dict[str, Any], known: Config) -> Any:
    encoder = "cond_stage_model.transformer.text_model.encoder.layers."
    width = tensors["cond_stage_model.transformer.text_model.final_layer_norm.weight"].shape[0]
    sizes = {
        "hidden_size": width,
        "intermediate_size": tensors[f"{encoder}0.mlp.fc1.weight"].shape[0],
        "num_hidden_layers": len({n.split(".")[5] for n in tensors if n.startswith(encoder)}),
        "num_attention_heads": known.get("num_attention_heads", max(width // 64, 1)),
        "hidden_act": known.get("hidden_act", "quick_gelu"),
    }
    config = comfy.supported_models.SD15(comfy.model_detection.detect_unet_config(tensors, _UNET))
    mine = config.process_clip_state_dict(dict(tensors))
    target = config.clip_target(state_dict=tensors)
    clip = comfy.sd.CLIP(
        target,
        embedding_directory=folder_paths.get_folder_paths("embeddings"),
        tokenizer_data=mine,
        parameters=comfy.utils.calculate_parameters(mine),
        model_options={"clip_l_model_config": sizes},
    )
    clip.load_sd(mine, full_model=True)
    return clip


def _vae(tensors: dict[str, Any], known: Config) -> Any:
    mine = comfy.utils.state_dict_prefix_replace(dict(tensors), {"first_stage_model.": ""}, filter_keys=True)
    widths = known["block_out_channels"]
    settings = {
        "double_z": True, "z_channels": known["latent_channels"], "resolution": 256, "in_channels": 3, "out_ch": 3,
        "ch": widths[0], "ch_mult": [width // widths[0] for width in widths],
        "num_res_blocks": known.get("layers_per_block", 2), "attn_resolutions": [], "dropout": 0.0,
    }  # fmt: skip
    with _grouped(known.get("norm_num_groups", GROUPS)):
        vae = comfy.sd.VAE(
            sd=mine, config={"params": {"ddconfig": settings, "embed_dim": mine["post_quant_conv.weight"].shape[1]}}
        )
    vae.latent_channels = known["latent_channels"]
    return vae


@contextmanager
def _grouped(groups: int) -> Generator[None]:
    """While a VAE is built its norms have so many groups: ComfyUI's has 32 of them, and of widths that 32 does not
    divide could not be built at all."""

    class Operations(comfy.ops.disable_weight_init):
        class GroupNorm(comfy.ops.disable_weight_init.GroupNorm):
            def __init__(self, num_groups: int, *args: Any, **more: Any) -> None:
                del num_groups
                super().__init__(groups, *args, **more)

    with _building:
        usual = vae_model.ops
        vae_model.ops = Operations
        try:
            yield
        finally:
            vae_model.ops = usual


def _regroup(net: Any, known: Config) -> None:
    groups = known.get("norm_num_groups", GROUPS)
    for module in net.modules():
        if isinstance(module, torch.nn.GroupNorm):
            module.num_groups = groups


def _hints(tensors: dict[str, Any], operations: Any, dtype: Any, device: Any) -> Any:
    layers: list[Any] = []
    number = 0
    while (weight := tensors.get(f"input_hint_block.{number}.weight")) is not None:
        # Every second one behind the first two halves the sides.
        stride = 2 if number in (4, 8, 12) else 1
        layers.append(
            operations.conv_nd(
                2, weight.shape[1], weight.shape[0], 3, padding=1, stride=stride, dtype=dtype, device=device
            )
        )
        layers.append(torch.nn.SiLU())
        number += 2
    return TimestepEmbedSequential(*layers[:-1])


def _fill(net: Any, tensors: dict[str, Any], path: Path) -> None:
    missing, unexpected = net.load_state_dict(tensors, strict=False)
    if missing or unexpected:
        raise BadModelFile(f"{path.name} lacks {list(missing)[:3]} or has {list(unexpected)[:3]} too many")
