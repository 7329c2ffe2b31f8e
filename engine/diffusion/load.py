"""From files and folders to what nodes pass on. Every network is loaded once and shared; nothing is downloaded.

A checkpoint is one file with ldm's names, or a folder in diffusers' layout; a network alone is a file with either's
names, or a folder with a configuration. What the tensors cannot tell, a configuration file beside them may, or the
metadata of a safetensors file (``weights.said``).
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

from ...face.errors import BadInput, BadModelFile, MissingPackage
from . import clip, config, layout, weights
from .control import ControlNet
from .layout import Kind
from .lora import Lora, parse
from .model import Model
from .sampling import Sampling, discrete
from .shelf import SHELF, stamp
from .text import CLIP
from .vae import VAE
from .vision import CLIPVision
from .weights import Tensors, fill, nested, some

Device = torch.device
Config = dict[str, Any]
M = TypeVar("M", bound=torch.nn.Module)

_UNET, _VAE, _CONTROL = "model.diffusion_model.", "first_stage_model.", "control_model."
_TEXT = "cond_stage_model.transformer."
_TEXT_XL, _TEXT_XL_2 = "conditioner.embedders.0.transformer.", "conditioner.embedders.1.model."
_FLOAT8 = {"fp8_e4m3fn": torch.float8_e4m3fn, "fp8_e5m2": torch.float8_e5m2}
_SMALL_VAE = 4_000_000
"""Parameters; published ones have 84 million."""
WEIGHT_TYPES = ["default", *_FLOAT8]
_IN_FOLDERS = ("diffusion_pytorch_model", "model")
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def compute_type(device: Device) -> torch.dtype:
    """In which U-Nets and ControlNets compute."""
    return torch.float16 if device.type == "cuda" else torch.float32


def vae_type(device: Device, parameters: int) -> torch.dtype:
    """In which VAEs compute; SDXL's overflows in float16. A small one is exact at no cost."""
    if parameters < _SMALL_VAE:
        return torch.float32
    return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float32


def checkpoint(path: Path, device: Device, vocabularies: Sequence[Path] = ()) -> tuple[Model, CLIP | None, VAE | None]:
    """Model, text encoders and VAE of a checkpoint; None for what it does not bring. Raises BadModelFile."""
    if path.is_dir():
        return _folder(path, device, vocabularies)
    tensors = weights.read(path)
    text: dict[str, clip.TextTower] = {}
    known = weights.said(path, "text")
    if encoder := nested(tensors, _TEXT_XL):
        text["l"] = _text(path, encoder, device, "l")
        text["g"] = _text(path, nested(tensors, _TEXT_XL_2), device, "g")
    elif encoder := nested(tensors, _TEXT):
        text["l"] = _text(path, encoder, device, "l", known)
    unet = nested(tensors, _UNET)
    if not unet:
        raise BadModelFile(
            f"{path.name} is no checkpoint: nothing in it is called {_UNET}… Its tensors are called {some(tensors)}. "
            "Load a U-Net alone with Load Diffusion Model, a LoRA with Load LoRA, a VAE with Load VAE."
        )
    known = weights.said(path, "unet")
    model = _model(path, unet, device, known, pooled=_pooled(text), sampling=_sampling(tensors, path.name))
    _agree(model, text, path.name)
    autoencoder = nested(tensors, _VAE)
    return (
        model,
        CLIP(text, vocabularies) if text else None,
        _vae(path, autoencoder, device, weights.said(path, "vae")) if autoencoder else None,
    )


def diffusion_model(path: Path, device: Device, weight_type: str = "default", known: Config | None = None) -> Model:
    """A U-Net alone. ``weight_type`` rounds its weights as ComfyUI's option of that name does."""
    tensors, said = _open(path, "unet")
    sampling = _sampling(tensors, path.name)
    tensors = nested(tensors, _UNET) or {n: t for n, t in tensors.items() if n not in _MARKS}
    return _model(path, tensors, device, {**said, **(known or {})}, weight_type=weight_type, sampling=sampling)


def vae(path: Path, device: Device) -> VAE:
    """A VAE alone, or that of a whole checkpoint."""
    tensors, known = _open(path, "vae")
    return _vae(path, nested(tensors, _VAE) or tensors, device, known)


def text_encoders(paths: Sequence[Path], device: Device, vocabularies: Sequence[Path] = ()) -> CLIP:
    """One file of CLIP-L for SD1.5; CLIP-L and CLIP-G, in either order, for SDXL."""
    found: dict[str, clip.TextTower] = {}
    for path in paths:
        tensors, known = _open(path, "text")
        # CLIP-G is the one of open_clip's layout or with a projection and more layers than CLIP-L's twelve.
        large = (
            "transformer.resblocks.0.ln_1.weight" in tensors or "text_model.encoder.layers.30.mlp.fc1.weight" in tensors
        )
        name = "g" if large or (len(paths) == 2 and known.get("hidden_act") == "gelu") else "l"
        found[name] = _text(path, tensors, device, name, known)
    if tuple(sorted(found, reverse=True)) not in {("l",), ("l", "g")} or len(found) != len(paths):
        raise BadInput(
            f"{' and '.join(path.name for path in paths)} are not the text encoders that belong together: SD1.5 wants "
            "one CLIP-L, SDXL one CLIP-L and one CLIP-G"
        )
    return CLIP({name: found[name] for name in ("l", "g") if name in found}, vocabularies)


def controlnet(path: Path, device: Device) -> ControlNet:
    """A ControlNet with ldm's or diffusers' names."""
    tensors, known = _open(path, "controlnet")
    tensors = nested(tensors, _CONTROL) or tensors
    if "lora_controlnet" in tensors:
        raise BadModelFile(f"{path.name} is a control LoRA; load the whole ControlNet that it was made from")
    tensors = _renamed("controlnet", tensors)
    if "controlnet_cond_embedding.conv_in.weight" not in tensors or "conv_in.weight" not in tensors:
        raise BadModelFile(f"{path.name} is no ControlNet for SD1.5 or SDXL: its tensors are called {some(tensors)}")
    family, sizes = config.controlnet(tensors, path.name, known)
    # The one published ControlNet whose residuals are averaged over the picture says so in its name alone.
    sizes.setdefault("global_pool_conditions", path.stem.removesuffix("_fp16").endswith("_shuffle"))
    dtype = compute_type(device)
    net = _shelved(path, "controlnet", "ControlNetModel", sizes, tensors, dtype, device)
    return ControlNet(net, family)


def clip_vision(path: Path, device: Device) -> CLIPVision:
    """A CLIP image encoder with transformers' or open_clip's names."""
    tensors, known = _open(path, "vision")
    tensors = clip.vision_tensors(tensors)

    def load() -> clip.VisionTower:
        tower = clip.vision_tower(tensors, path.name, known.get("vision_config", known))
        fill(tower, tensors, clip.STORED, device, path.name)
        return tower

    return CLIPVision(SHELF.get((*stamp(path), str(device), "vision"), load))


def lora(path: Path) -> Lora:
    """Raises BadModelFile for a file of another kind."""
    return parse(weights.read(path), path.name)


def _model(
    path: Path,
    tensors: Tensors,
    device: Device,
    known: Config | None = None,
    *,
    sampling: Sampling,
    pooled: int | None = None,
    weight_type: str = "default",
) -> Model:
    tensors = _renamed("unet", tensors)
    family, sizes = config.unet(tensors, path.name, known, pooled)
    if weight_type in _FLOAT8:
        tensors = {name: tensor.to(_FLOAT8[weight_type]) for name, tensor in tensors.items()}
    dtype = compute_type(device)
    unet = _shelved(path, f"unet {weight_type}", "UNet2DConditionModel", sizes, tensors, dtype, device)
    return Model(unet, family, sampling, dtype)


def _vae(path: Path, tensors: Tensors, device: Device, known: Config | None = None) -> VAE:
    tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("loss.")}
    tensors = _renamed("vae", tensors)
    for name in [name for name in tensors if ".mid_block.attentions.0." in name]:
        head, old, kind = name.rsplit(".", 2)
        tensor = tensors.pop(name)
        # ldm has 1×1 convolutions where diffusers has matrices.
        tensors[f"{head}.{_OLD_ATTENTION.get(old, old)}.{kind}"] = tensor[..., 0, 0] if tensor.ndim == 4 else tensor
    sizes = config.vae(tensors, path.name, known)
    dtype = vae_type(device, sum(tensor.numel() for tensor in tensors.values()))
    return VAE(_shelved(path, "vae", "AutoencoderKL", sizes, tensors, dtype, device))


def _text(path: Path, tensors: Tensors, device: Device, name: str, known: Config | None = None) -> clip.TextTower:
    tensors = clip.text_tensors(tensors)

    def load() -> clip.TextTower:
        tower = clip.text_tower(tensors, path.name, quick=name == "l", known=known)
        fill(tower, tensors, clip.STORED, device, path.name)
        return tower

    return SHELF.get((*stamp(path), str(device), "text", name), load)


def _shelved(
    path: Path, kind: str, name: str, sizes: Config, tensors: Tensors, dtype: torch.dtype, device: Device
) -> Any:
    """The network of a file, of diffusers' class ``name``; from memory if it is there."""

    def load() -> Any:
        try:
            diffusers: Any = importlib.import_module("diffusers")
        except ImportError as error:
            raise MissingPackage(
                f"to generate pictures the engine needs the package diffusers ({error}); install it with: "
                f"{sys.executable} -m pip install diffusers"
            ) from error
        kind = getattr(diffusers, name)
        try:
            with torch.device("meta"):
                module = kind.from_config(sizes)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RuntimeError) as error:
            raise BadModelFile(
                f"{path.name} comes with a configuration of which no {name} can be made ({error}): it is damaged, or "
                "of another network. Get the file again, as a whole."
            ) from error
        fill(module, tensors, dtype, device, path.name)
        return module

    # The configuration is part of the key: a caller may know more than the file tells.
    return SHELF.get((*stamp(path), kind, str(dtype), str(device), json.dumps(sizes, sort_keys=True)), load)


def _renamed(kind: Kind, tensors: Tensors) -> Tensors:
    """Under diffusers' names, if they are not already; what has no name there keeps its own, to be refused later."""
    if any(name.startswith(("down_blocks.", "encoder.down_blocks.")) for name in tensors):
        return dict(tensors)
    names = layout.to_diffusers(kind, tensors)
    return {names.get(name, name): tensor for name, tensor in tensors.items()}


_MARKS = ("v_pred", "ztsnr")
"""Tensors that say something by being there."""


def _sampling(tensors: Mapping[str, Any], name: str) -> Sampling:
    if any(mark.startswith("edm_") for mark in tensors):
        raise BadModelFile(f"{name} samples in EDM's way (Playground 2.5 and its kin), which is not supported here")
    return discrete("v" if "v_pred" in tensors else "eps", zero_snr="ztsnr" in tensors)


def _pooled(text: Mapping[str, clip.TextTower]) -> int | None:
    """Width of the pooled text that an SDXL U-Net gets."""
    projection = text["g"].text_projection if "g" in text else None
    return None if projection is None else projection.out_features


def _agree(model: Model, text: Mapping[str, clip.TextTower], name: str) -> None:
    wide = sum(tower.width for tower in text.values())
    if text and wide != model.unet.config["cross_attention_dim"]:
        raise BadModelFile(
            f"{name} holds text encoders {wide} wide and a U-Net that reads text "
            f"{model.unet.config['cross_attention_dim']} wide: it was put together of two models"
        )


def _open(path: Path, part: str) -> tuple[Tensors, Config]:
    """Tensors and configuration of a folder, or of a file, if it is called as in such a folder or brings its own."""
    if path.is_dir():
        return _folder_weights(path), _json(path / "config.json")
    beside = _json(path.with_name("config.json")) if path.stem in _IN_FOLDERS else {}
    return weights.read(path), {**beside, **weights.said(path, part)}


def _folder(path: Path, device: Device, vocabularies: Sequence[Path]) -> tuple[Model, CLIP | None, VAE | None]:
    if not (path / "unet").is_dir():
        raise BadModelFile(f"{path.name} is no checkpoint folder in diffusers' layout: it has no folder unet")
    text: dict[str, clip.TextTower] = {}
    for name, part in (("l", "text_encoder"), ("g", "text_encoder_2")):
        if (path / part).is_dir():
            known = _json(path / part / "config.json")
            text[name] = _text(path / part, _folder_weights(path / part), device, name, known)
    known = _json(path / "unet" / "config.json")
    sampling = _scheduled(_json(path / "scheduler" / "scheduler_config.json"), path.name)
    model = _model(path / "unet", _folder_weights(path / "unet"), device, known, sampling=sampling)
    _agree(model, text, path.name)
    autoencoder = None
    if (path / "vae").is_dir():
        known = _json(path / "vae" / "config.json")
        autoencoder = _vae(path / "vae", _folder_weights(path / "vae"), device, known)
    return model, CLIP(text, [path / "tokenizer", *vocabularies]) if text else None, autoencoder


def _scheduled(known: Config, name: str) -> Sampling:
    """The noise levels that a folder's scheduler names; Stable Diffusion's own where it says nothing."""
    kinds = {"epsilon": "eps", "v_prediction": "v"}
    kind, betas = known.get("prediction_type", "epsilon"), known.get("beta_schedule", "scaled_linear")
    if kind not in kinds or betas != "scaled_linear":
        raise BadModelFile(
            f"{name} predicts {kind} with {betas} betas; supported are epsilon and v_prediction with scaled_linear ones"
        )
    return discrete(
        kinds[kind],  # pyright: ignore[reportArgumentType]
        known.get("beta_start", 0.00085),
        known.get("beta_end", 0.012),
        known.get("num_train_timesteps", 1000),
        bool(known.get("rescale_betas_zero_snr", False)),
    )


def _folder_weights(folder: Path) -> Tensors:
    """All weights in a folder: the plain file before an fp16 one, safetensors before pickles, pieces put together."""
    files = [file for suffix in weights.SUFFIXES for file in sorted(folder.glob(f"*{suffix}"))]
    for wanted in (weights.SAFE, weights.PICKLED):
        some_kind = [file for file in files if file.suffix in wanted]
        plain = [file for file in some_kind if not file.stem.split("-of-")[0].rsplit("-", 1)[0].endswith(".fp16")]
        for chosen in (plain, some_kind):
            if chosen:
                return {name: tensor for file in chosen for name, tensor in weights.read(file).items()}
    raise BadModelFile(f"{folder.parent.name}/{folder.name} holds no weights: get the folder again, as a whole")


def _json(file: Path) -> Config:
    if not file.is_file():
        return {}
    try:
        found: Any = json.loads(file.read_text("utf-8"))
    except ValueError as error:
        raise BadModelFile(f"{file.parent.name}/{file.name} is no JSON ({error}): get the folder again") from error
    return found if isinstance(found, dict) else {}
