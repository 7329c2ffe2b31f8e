"""The lab's checkpoint as ComfyUI's own MODEL, CLIP, VAE and CONTROL_NET.

ComfyUI tells models by the published sizes and takes the rest, heads and groups of the norms, from a table of those.
Here both come from the file: its tensors and the configuration in its metadata. What comes out is made of ComfyUI's own
classes, so that every sampler, patch, LoRA and ControlNet node treats it as any other.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Generator, Sequence
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
import comfy.supported_models
import comfy.utils
import folder_paths
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import TimestepEmbedSequential

from ...face.errors import BadModelFile

Config = dict[str, Any]
Tensors = dict[str, torch.Tensor]

_UNET, _VAE = "model.diffusion_model.", "first_stage_model."
_TEXT = "cond_stage_model.transformer.text_model."
GROUPS, HEADS = 32, 8
"""Of a norm and of an attention layer, where nothing else is said: diffusers' defaults, and ComfyUI's only values."""
_OWN = {"clip_l.logit_scale", "clip_l.transformer.text_projection.weight", "model_sampling.sigmas"}
"""What ComfyUI's classes have beside what is in a file."""
_building = threading.Lock()


def checkpoint(path: Path) -> tuple[Any, Any, Any]:
    """MODEL, CLIP and VAE. Raises BadModelFile."""
    tensors, told = _read(path)
    for part in ("unet", "vae", "text"):
        if not isinstance(told.get(part), dict):
            raise BadModelFile(f"{path.name} does not tell the configuration of its {part} in its metadata")
    for prefix in (_UNET, _VAE, _TEXT):
        if not any(name.startswith(prefix) for name in tensors):
            raise BadModelFile(f"{path.name} is no whole checkpoint: nothing in it is called {prefix}…")
    model, clip = _model(path, tensors, told["unet"]), _clip(path, tensors, told["text"])
    return model, clip, _vae(path, tensors, told["vae"])


def controlnet(path: Path) -> Any:
    """CONTROL_NET of a file under ldm's names. Raises BadModelFile."""
    tensors, told = _read(path)
    known = told.get("controlnet")
    if not isinstance(known, dict) or "input_hint_block.0.weight" not in tensors:
        raise BadModelFile(f"{path.name} is no ControlNet that tells its configuration in its metadata")
    config = _detected(path, tensors, "")
    config.pop("out_channels", None)
    groups, heads = _unet_numbers(path, known, config)
    dtype = memory.unet_dtype(supported_dtypes=[torch.float16, torch.float32])
    device, offload = memory.get_torch_device(), memory.unet_offload_device()
    cast = memory.unet_manual_cast(dtype, device)
    operations = comfy.ops.pick_operations(dtype, cast)
    net = comfy.cldm.cldm.ControlNet(
        **config,
        num_heads=heads,
        num_head_channels=-1,
        hint_channels=tensors["input_hint_block.0.weight"].shape[1],
        operations=operations,
        dtype=dtype,
        device=offload,
    )
    # ComfyUI's has the published widths between the picture and the first layer.
    net.input_hint_block = _hints(tensors, operations, dtype, offload)
    _regroup(net, groups)
    _whole(path, net, tensors)
    net.load_state_dict(tensors)
    return comfy.controlnet.ControlNet(net, load_device=device, manual_cast_dtype=cast)


def _read(path: Path) -> tuple[Tensors, Config]:
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


def _detected(path: Path, tensors: Tensors, prefix: str) -> Config:
    """ComfyUI's configuration of a U-Net or ControlNet, as far as shapes tell it."""
    try:
        config: Any = comfy.model_detection.detect_unet_config(tensors, prefix)
    except (LookupError, ArithmeticError, TypeError, AttributeError) as error:
        raise BadModelFile(f"{path.name}: tensors of its U-Net are missing ({error}): get it again") from error
    if not config or "model_channels" not in config or config.get("context_dim") is None:
        raise BadModelFile(f"{path.name} holds no U-Net of Stable Diffusion 1.5's layout that can be recognised")
    return config


def _number(path: Path, known: Config, key: str, usual: int, widths: Sequence[int]) -> int:
    """A number that the file tells, which must divide what it divides."""
    found = known.get(key, usual)
    if not isinstance(found, int) or found < 1 or any(width % found for width in widths):
        raise BadModelFile(
            f"{path.name} tells {key} {found!r} in its metadata, which does not divide {', '.join(map(str, widths))}: "
            "it is damaged. Get it again."
        )
    return found


def _unet_numbers(path: Path, known: Config, config: Config) -> tuple[int, int]:
    """Groups of the norms and heads of the attention layers."""
    widths = sorted({config["model_channels"] * times for times in config["channel_mult"]})
    groups = _number(path, known, "norm_num_groups", GROUPS, widths)
    # diffusers' word for the number of heads.
    return groups, _number(path, known, "attention_head_dim", HEADS, widths)


def _model(path: Path, tensors: Tensors, known: Config) -> Any:
    detected = _detected(path, tensors, _UNET)
    groups, heads = _unet_numbers(path, known, detected)

    class Latent(comfy.latent_formats.SD15):  # pyright: ignore[reportUntypedBaseClass]
        latent_channels = detected["in_channels"]

        def __init__(self) -> None:
            super().__init__()
            # What the published four channels look like says nothing of these.
            self.latent_rgb_factors, self.latent_rgb_factors_bias = _colours(self.latent_channels), None
            self.taesd_decoder_name = None

    class Lab(comfy.supported_models.SD15):  # pyright: ignore[reportUntypedBaseClass]
        unet_extra_config = {"num_heads": heads, "num_head_channels": -1}
        latent_format = Latent
        sampling_settings = {"zsnr": True} if "ztsnr" in tensors else {}

        def model_type(self, state_dict: Any, prefix: str = "") -> Any:
            kinds = comfy.model_base.ModelType
            return kinds.V_PREDICTION if "v_pred" in tensors else kinds.EPS

        def inpaint_model(self) -> bool:
            return False

    config = Lab(detected)
    size, load_device = comfy.utils.calculate_parameters(tensors, _UNET), memory.get_torch_device()
    dtype = memory.unet_dtype(model_params=size, supported_dtypes=list(config.supported_inference_dtypes))
    config.set_inference_dtype(dtype, memory.unet_manual_cast(dtype, load_device, config.supported_inference_dtypes))
    model = config.get_model(tensors, _UNET, device=memory.unet_inital_load_device(size, dtype))
    _regroup(model.diffusion_model, groups)
    _whole(path, model.diffusion_model, _under(tensors, _UNET))
    model.load_model_weights(dict(tensors), _UNET)
    return comfy.model_patcher.ModelPatcher(model, load_device=load_device, offload_device=memory.unet_offload_device())


def _colours(channels: int) -> list[list[float]]:
    """What ComfyUI's previews take the channels for: each third of them for a colour, as the engine's."""
    parts = [len(part) for part in torch.arange(channels).tensor_split(3)]
    return [
        [1 / size if place == colour else 0.0 for place in range(3)]
        for colour, size in enumerate(parts)
        for _ in range(size)
    ]


def _clip(path: Path, tensors: Tensors, known: Config) -> Any:
    encoder = f"{_TEXT}encoder.layers."
    try:
        width = tensors[f"{_TEXT}final_layer_norm.weight"].shape[0]
        inner = tensors[f"{encoder}0.mlp.fc1.weight"].shape[0]
    except KeyError as error:
        raise BadModelFile(f"{path.name}: its text encoder lacks {error}: get it again") from error
    sizes = {
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": len({name.removeprefix(encoder).split(".")[0] for name in tensors if encoder in name}),
        "num_attention_heads": _number(path, known, "num_attention_heads", max(width // 64, 1), [width]),
        "hidden_act": "quick_gelu" if known.get("hidden_act", "quick_gelu") == "quick_gelu" else "gelu",
    }
    config = comfy.supported_models.SD15({})
    mine = config.process_clip_state_dict(dict(tensors))
    clip = comfy.sd.CLIP(
        config.clip_target(state_dict=tensors),
        embedding_directory=folder_paths.get_folder_paths("embeddings"),
        tokenizer_data=mine,
        parameters=comfy.utils.calculate_parameters(mine),
        model_options={"clip_l_model_config": sizes},
    )
    _whole(path, clip.cond_stage_model, mine)
    clip.load_sd(mine, full_model=True)
    return clip


def _vae(path: Path, tensors: Tensors, known: Config) -> Any:
    mine = _under(tensors, _VAE)
    try:
        channels, latent = mine["post_quant_conv.weight"].shape[:2]
        widths = [mine[f"encoder.down.{level}.block.0.conv1.weight"].shape[0] for level in range(_levels(mine))]
        layers = len({name.split(".")[4] for name in mine if name.startswith("encoder.down.0.block.")})
        groups = _number(path, known, "norm_num_groups", GROUPS, sorted(set(widths)))
        multiples = [_number(path, {}, "", widths[0], [width]) and width // widths[0] for width in widths]
    except LookupError as error:
        raise BadModelFile(f"{path.name}: its VAE lacks {error}: get it again") from error
    settings = {
        "double_z": True, "z_channels": channels, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": widths[0],
        "ch_mult": multiples, "num_res_blocks": layers, "attn_resolutions": [], "dropout": 0.0,
    }  # fmt: skip
    with _grouped(groups):
        # It is small enough to be exact at no cost; ComfyUI would have it in bfloat16 where it can.
        vae = comfy.sd.VAE(sd=mine, config={"params": {"ddconfig": settings, "embed_dim": latent}}, dtype=torch.float32)
    _whole(path, vae.first_stage_model, mine)
    vae.latent_channels = latent
    return vae


def _levels(names: Tensors) -> int:
    return len({name.split(".")[2] for name in names if name.startswith("encoder.down.")})


@contextmanager
def _grouped(groups: int) -> Generator[None]:
    """While a VAE is built its norms have so many groups: ComfyUI's has 32 of them, and of widths that 32 does not
    divide could not be built at all."""

    class Operations(comfy.ops.disable_weight_init):  # pyright: ignore[reportUntypedBaseClass]
        class GroupNorm(comfy.ops.disable_weight_init.GroupNorm):  # pyright: ignore[reportUntypedBaseClass]
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


def _regroup(net: Any, groups: int) -> None:
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


def _under(tensors: Tensors, prefix: str) -> Tensors:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _whole(path: Path, net: Any, tensors: Tensors) -> None:
    """Raises BadModelFile unless the tensors are those of the network. ComfyUI would log it and go on."""
    wanted = {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}
    came = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    wrong = [name for name in {**wanted, **came} if wanted.get(name) != came.get(name) and not _spare(name)]
    if wrong:
        said = ", ".join(f"{name} ({came.get(name, 'missing')})" for name in wrong[:3])
        raise BadModelFile(
            f"{path.name}: {len(wrong)} of its tensors are missing, of another shape, or too many for its "
            f"configuration: {said}. It is damaged, or put together of two models: get it again."
        )


def _spare(name: str) -> bool:
    return name in _OWN or name.endswith("position_ids")
