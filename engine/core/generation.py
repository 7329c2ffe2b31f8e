"""Loaders, prompts, conditioning, latents and samplers, as ComfyUI has them: forms over ``engine.diffusion``."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ...face.errors import BadInput, MissingModel
from ...nodes.host import Way, host
from ..diffusion import load
from ..diffusion.control import ControlNet
from ..diffusion.model import Model
from ..diffusion.preview import preview
from ..diffusion.sample import Levels, Settings, sample
from ..diffusion.samplers import SAMPLERS
from ..diffusion.sampling import SCHEDULES
from ..diffusion.tensors import resize
from ..diffusion.text import CLIP
from ..diffusion.tokens import vocabulary_places
from ..diffusion.vae import VAE
from ..diffusion.vision import CLIPVision, VisionOutput
from ..diffusion.weights import SUFFIXES
from ..files import contained
from ..host import EngineHost

MAX_SIDE = 16384
"""ComfyUI's limit on a side, in pixels."""
MAX_SEED = 0xFFFFFFFFFFFFFFFF
Conditioning = list[list[Any]]
Latent = dict[str, Any]


def _host() -> EngineHost:
    """The engine's host; in a plain script, one with the usual folders."""
    found = host()
    return found if isinstance(found, EngineHost) else EngineHost([], Path("out"), Path("out/temp"))


def names(kind: str) -> list[str]:
    """What a loader's combo lists: files of weights, and folders in diffusers' layout, in the folders of one kind."""
    found: set[str] = set()
    for folder in _host().folders(kind):
        for place, folders, files in os.walk(folder, followlinks=True):
            here = Path(place)
            if here != folder and {"model_index.json", "config.json"} & set(files):
                found.add(here.relative_to(folder).as_posix())
            if "model_index.json" in files:
                # A whole checkpoint: what is inside is no checkpoint of its own.
                folders.clear()
                continue
            # A file in a folder with a configuration has the name that it has in ComfyUI as well.
            found |= {(here / name).relative_to(folder).as_posix() for name in files if name.lower().endswith(SUFFIXES)}
    return sorted(found)


def find(kind: str, name: str, what: str) -> Path:
    """The file or folder that ``name`` means, in the first folder that has it. Raises MissingModel."""
    folders = _host().folders(kind)
    for folder in folders:
        path = contained(folder, name)
        if path.exists():
            return path
    known = names(kind)
    remedy = f"There are: {', '.join(known)}." if known else "There is none yet."
    raise MissingModel(what, name, folders, f"{remedy} Copy it there; nothing is downloaded.")


def _found(kind: str, name: str | None, what: str) -> bool | str:
    """For VALIDATE_INPUTS: whether the file is there, else what is missing and where it belongs."""
    try:
        # A linked name is not known before the run.
        return name is None or find(kind, name, what).exists()
    except (BadInput, MissingModel) as error:
        return str(error)


def _needed(value: Any, what: str, node: str) -> Any:
    if value is None:
        raise BadInput(f"the checkpoint brings no {what}: wire one into its place with the node {node}")
    return value


class CheckpointLoaderSimple:
    """Loads a checkpoint: one file in the original layout, or a folder in diffusers' layout."""

    CATEGORY = "loaders"
    DESCRIPTION = "Loads a diffusion model checkpoint, diffusion models are used to denoise latents."
    RETURN_TYPES = ("MODEL", "CLIP", "VAE")
    OUTPUT_TOOLTIPS = (
        "The model used for denoising latents.",
        "The CLIP model used for encoding text prompts.",
        "The VAE model used for encoding and decoding images to and from latent space.",
    )
    FUNCTION = "load_checkpoint"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        tip = {"tooltip": "The name of the checkpoint (model) to load."}
        return {"required": {"ckpt_name": (names("checkpoints"), tip)}}

    @classmethod
    def VALIDATE_INPUTS(cls, ckpt_name: str | None) -> bool | str:
        return _found("checkpoints", ckpt_name, "Load Checkpoint")

    def load_checkpoint(self, ckpt_name: str) -> tuple[Model, CLIP | None, VAE | None]:
        path = find("checkpoints", ckpt_name, "Load Checkpoint")
        return load.checkpoint(path, _host().device(), vocabulary_places(_host()))


class UNETLoader:
    """Loads a diffusion model alone."""

    CATEGORY = "advanced/loaders"
    RETURN_TYPES = ("MODEL",)
    FUNCTION = "load_unet"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"unet_name": (names("diffusion_models"),), "weight_dtype": (load.WEIGHT_TYPES,)}}

    @classmethod
    def VALIDATE_INPUTS(cls, unet_name: str | None) -> bool | str:
        return _found("diffusion_models", unet_name, "Load Diffusion Model")

    def load_unet(self, unet_name: str, weight_dtype: str) -> tuple[Model]:
        path = find("diffusion_models", unet_name, "Load Diffusion Model")
        return (load.diffusion_model(path, _host().device(), weight_dtype),)


class VAELoader:
    """Loads a VAE."""

    CATEGORY = "loaders"
    RETURN_TYPES = ("VAE",)
    FUNCTION = "load_vae"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"vae_name": (names("vae"),)}}

    @classmethod
    def VALIDATE_INPUTS(cls, vae_name: str | None) -> bool | str:
        return _found("vae", vae_name, "Load VAE")

    def load_vae(self, vae_name: str) -> tuple[VAE]:
        return (load.vae(find("vae", vae_name, "Load VAE"), _host().device()),)


class CLIPLoader:
    """Loads the text encoder of SD1.5."""

    CATEGORY = "advanced/loaders"
    DESCRIPTION = "[Recipes]\n\nstable_diffusion: clip-l"
    RETURN_TYPES = ("CLIP",)
    FUNCTION = "load_clip"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {"clip_name": (names("text_encoders"),), "type": (["stable_diffusion"],)},
            "optional": {"device": (["default", "cpu"], {"advanced": True})},
        }

    @classmethod
    def VALIDATE_INPUTS(cls, clip_name: str | None) -> bool | str:
        return _found("text_encoders", clip_name, "Load CLIP")

    def load_clip(self, clip_name: str, type: str = "stable_diffusion", device: str = "default") -> tuple[CLIP]:
        return (_text_encoders([clip_name], device),)


class DualCLIPLoader:
    """Loads the two text encoders of SDXL."""

    CATEGORY = "advanced/loaders"
    DESCRIPTION = "[Recipes]\n\nsdxl: clip-l, clip-g"
    RETURN_TYPES = ("CLIP",)
    FUNCTION = "load_clip"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        listed = names("text_encoders")
        return {
            "required": {"clip_name1": (listed,), "clip_name2": (listed,), "type": (["sdxl"],)},
            "optional": {"device": (["default", "cpu"], {"advanced": True})},
        }

    @classmethod
    def VALIDATE_INPUTS(cls, clip_name1: str | None, clip_name2: str | None) -> bool | str:
        said = [_found("text_encoders", name, "Load CLIP") for name in (clip_name1, clip_name2)]
        return next((one for one in said if one is not True), True)

    def load_clip(self, clip_name1: str, clip_name2: str, type: str, device: str = "default") -> tuple[CLIP]:
        return (_text_encoders([clip_name1, clip_name2], device),)


def _text_encoders(files: list[str], device: str) -> CLIP:
    paths = [find("text_encoders", file, "Load CLIP") for file in files]
    chosen = torch.device("cpu") if device == "cpu" else _host().device()
    return load.text_encoders(paths, chosen, vocabulary_places(_host()))


class CLIPSetLastLayer:
    """Reads the text encoder at an earlier layer."""

    CATEGORY = "conditioning"
    RETURN_TYPES = ("CLIP",)
    FUNCTION = "set_last_layer"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        layer = {"default": -1, "min": -24, "max": -1, "step": 1}
        return {"required": {"clip": ("CLIP",), "stop_at_clip_layer": ("INT", layer)}}

    def set_last_layer(self, clip: CLIP | None, stop_at_clip_layer: int) -> tuple[CLIP]:
        other = _needed(clip, "text encoder", "Load CLIP").clone()
        other.clip_layer(stop_at_clip_layer)
        return (other,)


class CLIPTextEncode:
    """Encodes a prompt."""

    CATEGORY = "conditioning"
    DESCRIPTION = (
        "Encodes a text prompt using a CLIP model into an embedding that can be used to guide the diffusion model "
        "towards generating specific images."
    )
    RETURN_TYPES = ("CONDITIONING",)
    OUTPUT_TOOLTIPS = ("A conditioning containing the embedded text used to guide the diffusion model.",)
    FUNCTION = "encode"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        text = {"multiline": True, "dynamicPrompts": True, "tooltip": "The text to be encoded."}
        clip = {"tooltip": "The CLIP model used for encoding the text."}
        return {"required": {"text": ("STRING", text), "clip": ("CLIP", clip)}}

    def encode(self, clip: CLIP | None, text: str) -> tuple[Conditioning]:
        encoder = _needed(clip, "text encoder", "Load CLIP")
        return (encoder.encode_from_tokens_scheduled(encoder.tokenize(text)),)


def with_values(conditioning: Conditioning, values: dict[str, Any]) -> Conditioning:
    """A CONDITIONING of its own with more keys in every entry."""
    return [[text, {**data, **values}] for text, data in conditioning]


class ConditioningCombine:
    """Both conditionings side by side: their answers are averaged."""

    CATEGORY = "conditioning"
    RETURN_TYPES = ("CONDITIONING",)
    FUNCTION = "combine"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"conditioning_1": ("CONDITIONING",), "conditioning_2": ("CONDITIONING",)}}

    def combine(self, conditioning_1: Conditioning, conditioning_2: Conditioning) -> tuple[Conditioning]:
        return (conditioning_1 + conditioning_2,)


class ConditioningConcat:
    """The second conditioning's first text behind every text of the first."""

    CATEGORY = "conditioning"
    RETURN_TYPES = ("CONDITIONING",)
    FUNCTION = "concat"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"conditioning_to": ("CONDITIONING",), "conditioning_from": ("CONDITIONING",)}}

    def concat(self, conditioning_to: Conditioning, conditioning_from: Conditioning) -> tuple[Conditioning]:
        more = conditioning_from[0][0]
        return ([[torch.cat((text, more), 1), data.copy()] for text, data in conditioning_to],)


class ConditioningSetArea:
    """Limits a conditioning to a rectangle, in pixels."""

    CATEGORY = "conditioning"
    RETURN_TYPES = ("CONDITIONING",)
    FUNCTION = "append"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        side = {"default": 64, "min": 64, "max": MAX_SIDE, "step": 8}
        place = {"default": 0, "min": 0, "max": MAX_SIDE, "step": 8}
        return {
            "required": {
                "conditioning": ("CONDITIONING",),
                "width": ("INT", side),
                "height": ("INT", side),
                "x": ("INT", place),
                "y": ("INT", place),
                "strength": ("FLOAT", {"default": 1.0, "min": 0.0, "max": 10.0, "step": 0.01}),
            }
        }

    def append(
        self, conditioning: Conditioning, width: int, height: int, x: int, y: int, strength: float
    ) -> tuple[Conditioning]:
        area = (height // 8, width // 8, y // 8, x // 8)
        values = {"area": area, "strength": strength, "set_area_to_bounds": False}
        return (with_values(conditioning, values),)


class ConditioningSetMask:
    """Limits a conditioning to where the mask is 1."""

    CATEGORY = "conditioning"
    RETURN_TYPES = ("CONDITIONING",)
    FUNCTION = "append"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "conditioning": ("CONDITIONING",),
                "mask": ("MASK",),
                "strength": ("FLOAT", {"default": 1.0, "min": 0.0, "max": 10.0, "step": 0.01}),
                "set_cond_area": (["default", "mask bounds"],),
            }
        }

    def append(
        self, conditioning: Conditioning, mask: torch.Tensor, set_cond_area: str, strength: float
    ) -> tuple[Conditioning]:
        mask = mask[None] if mask.ndim == 2 else mask
        bounds = set_cond_area != "default"
        return (with_values(conditioning, {"mask": mask, "set_area_to_bounds": bounds, "mask_strength": strength}),)


class ConditioningSetTimestepRange:
    """Limits a conditioning to a part of the sampling."""

    CATEGORY = "advanced/conditioning"
    RETURN_TYPES = ("CONDITIONING",)
    FUNCTION = "set_range"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "conditioning": ("CONDITIONING",),
                "start": ("FLOAT", {"default": 0.0, "min": 0.0, "max": 1.0, "step": 0.001}),
                "end": ("FLOAT", {"default": 1.0, "min": 0.0, "max": 1.0, "step": 0.001}),
            }
        }

    def set_range(self, conditioning: Conditioning, start: float, end: float) -> tuple[Conditioning]:
        return (with_values(conditioning, {"start_percent": start, "end_percent": end}),)


class ConditioningZeroOut:
    """The same conditioning with all its numbers 0."""

    CATEGORY = "advanced/conditioning"
    RETURN_TYPES = ("CONDITIONING",)
    FUNCTION = "zero_out"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"conditioning": ("CONDITIONING",)}}

    def zero_out(self, conditioning: Conditioning) -> tuple[Conditioning]:
        out: Conditioning = []
        for text, data in conditioning:
            pooled = data.get("pooled_output")
            values = {} if pooled is None else {"pooled_output": torch.zeros_like(pooled)}
            out.append([torch.zeros_like(text), {**data, **values}])
        return (out,)


class EmptyLatentImage:
    """Latents of nothing, to be filled."""

    CATEGORY = "latent"
    DESCRIPTION = "Create a new batch of empty latent images to be denoised via sampling."
    RETURN_TYPES = ("LATENT",)
    OUTPUT_TOOLTIPS = ("The empty latent image batch.",)
    FUNCTION = "generate"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        side = {"default": 512, "min": 16, "max": MAX_SIDE, "step": 8}
        count = {"default": 1, "min": 1, "max": 4096, "tooltip": "The number of latent images in the batch."}
        return {
            "required": {
                "width": ("INT", {**side, "tooltip": "The width of the latent images in pixels."}),
                "height": ("INT", {**side, "tooltip": "The height of the latent images in pixels."}),
                "batch_size": ("INT", count),
            }
        }

    def generate(self, width: int, height: int, batch_size: int = 1) -> tuple[Latent]:
        return ({"samples": torch.zeros(batch_size, 4, height // 8, width // 8)},)


SCALINGS = ["nearest-exact", "bilinear", "area", "bicubic"]


class LatentUpscale:
    """Scales latents to a size in pixels; a side of 0 follows from the other one and the aspect ratio."""

    CATEGORY = "latent"
    RETURN_TYPES = ("LATENT",)
    FUNCTION = "upscale"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        side = {"default": 512, "min": 0, "max": MAX_SIDE, "step": 8}
        return {
            "required": {
                "samples": ("LATENT",),
                "upscale_method": (SCALINGS,),
                "width": ("INT", side),
                "height": ("INT", side),
                "crop": (["disabled", "center"],),
            }
        }

    def upscale(self, samples: Latent, upscale_method: str, width: int, height: int, crop: str) -> tuple[Latent]:
        if width == 0 and height == 0:
            return (samples,)
        old = samples["samples"]
        # Neither side may become less than 8 latent pixels.
        width = max(64, width or round(old.shape[-1] * max(64, height) / old.shape[-2]))
        height = max(64, height or round(old.shape[-2] * width / old.shape[-1]))
        scaled = resize(old, height // 8, width // 8, upscale_method, crop == "center")
        return ({**samples, "samples": scaled},)


class SetLatentNoiseMask:
    """Only where the mask is 1 the latent will be changed."""

    CATEGORY = "latent/inpaint"
    RETURN_TYPES = ("LATENT",)
    FUNCTION = "set_mask"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"samples": ("LATENT",), "mask": ("MASK",)}}

    def set_mask(self, samples: Latent, mask: torch.Tensor) -> tuple[Latent]:
        return ({**samples, "noise_mask": mask.reshape(-1, 1, *mask.shape[-2:])},)


class VAEEncode:
    """Pictures to latents."""

    CATEGORY = "latent"
    RETURN_TYPES = ("LATENT",)
    FUNCTION = "encode"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"pixels": ("IMAGE",), "vae": ("VAE",)}}

    def encode(self, vae: VAE | None, pixels: torch.Tensor) -> tuple[Latent]:
        return ({"samples": _needed(vae, "VAE", "Load VAE").encode(pixels, host().check_interrupt)},)


class VAEDecode:
    """Latents to pictures."""

    CATEGORY = "latent"
    DESCRIPTION = "Decodes latent images back into pixel space images."
    RETURN_TYPES = ("IMAGE",)
    OUTPUT_TOOLTIPS = ("The decoded image.",)
    FUNCTION = "decode"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "samples": ("LATENT", {"tooltip": "The latent to be decoded."}),
                "vae": ("VAE", {"tooltip": "The VAE model used for decoding the latent."}),
            }
        }

    def decode(self, vae: VAE | None, samples: Latent) -> tuple[torch.Tensor]:
        return (_needed(vae, "VAE", "Load VAE").decode(samples["samples"], host().check_interrupt),)


class LoraLoader:
    """Adds a LoRA to a model and its text encoder; several can be linked together."""

    CATEGORY = "loaders"
    DESCRIPTION = (
        "LoRAs are used to modify diffusion and CLIP models, altering the way in which latents are denoised such as "
        "applying styles. Multiple LoRA nodes can be linked together."
    )
    RETURN_TYPES = ("MODEL", "CLIP")
    OUTPUT_TOOLTIPS = ("The modified diffusion model.", "The modified CLIP model.")
    FUNCTION = "load_lora"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        strength = {"default": 1.0, "min": -100.0, "max": 100.0, "step": 0.01}
        model = "How strongly to modify the diffusion model. This value can be negative."
        clip = "How strongly to modify the CLIP model. This value can be negative."
        return {
            "required": {
                "model": ("MODEL", {"tooltip": "The diffusion model the LoRA will be applied to."}),
                "clip": ("CLIP", {"tooltip": "The CLIP model the LoRA will be applied to."}),
                "lora_name": (names("loras"), {"tooltip": "The name of the LoRA."}),
                "strength_model": ("FLOAT", {**strength, "tooltip": model}),
                "strength_clip": ("FLOAT", {**strength, "tooltip": clip}),
            }
        }

    @classmethod
    def VALIDATE_INPUTS(cls, lora_name: str | None) -> bool | str:
        return _found("loras", lora_name, "Load LoRA")

    def load_lora(
        self, model: Model, clip: CLIP | None, lora_name: str, strength_model: float, strength_clip: float
    ) -> tuple[Model | None, CLIP | None]:
        if strength_model == 0 and strength_clip == 0:
            return model, clip
        return load.lora(find("loras", lora_name, "Load LoRA")).apply(model, clip, strength_model, strength_clip)


class LoraLoaderModelOnly(LoraLoader):
    """Adds a LoRA to a model."""

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "load_lora_model_only"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        strength = {"default": 1.0, "min": -100.0, "max": 100.0, "step": 0.01}
        required = {"model": ("MODEL",), "lora_name": (names("loras"),), "strength_model": ("FLOAT", strength)}
        return {"required": required}

    def load_lora_model_only(self, model: Model, lora_name: str, strength_model: float) -> tuple[Model | None]:
        return (self.load_lora(model, None, lora_name, strength_model, 0.0)[0],)


class ControlNetLoader:
    """Loads a ControlNet in either layout."""

    CATEGORY = "loaders"
    RETURN_TYPES = ("CONTROL_NET",)
    FUNCTION = "load_controlnet"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"control_net_name": (names("controlnet"),)}}

    @classmethod
    def VALIDATE_INPUTS(cls, control_net_name: str | None) -> bool | str:
        return _found("controlnet", control_net_name, "Load ControlNet Model")

    def load_controlnet(self, control_net_name: str) -> tuple[ControlNet]:
        return (load.controlnet(find("controlnet", control_net_name, "Load ControlNet Model"), _host().device()),)


class ControlNetApply:
    """Adds a ControlNet to a conditioning, and to the negative one that it will be sampled with."""

    CATEGORY = "conditioning/controlnet"
    DEPRECATED = True
    RETURN_TYPES = ("CONDITIONING",)
    FUNCTION = "apply_controlnet"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "conditioning": ("CONDITIONING",),
                "control_net": ("CONTROL_NET",),
                "image": ("IMAGE",),
                "strength": ("FLOAT", {"default": 1.0, "min": 0.0, "max": 10.0, "step": 0.01}),
            }
        }

    def apply_controlnet(
        self, conditioning: Conditioning, control_net: ControlNet, image: torch.Tensor, strength: float
    ) -> tuple[Conditioning]:
        if strength == 0:
            return (conditioning,)
        out: Conditioning = []
        for text, data in conditioning:
            control = control_net.copy().set_cond_hint(image.movedim(-1, 1), strength)
            control.set_previous_controlnet(data.get("control"))
            out.append([text, {**data, "control": control, "control_apply_to_uncond": True}])
        return (out,)


class ControlNetApplyAdvanced:
    """Adds a ControlNet to both conditionings, for a part of the sampling."""

    CATEGORY = "conditioning/controlnet"
    RETURN_TYPES = ("CONDITIONING", "CONDITIONING")
    RETURN_NAMES = ("positive", "negative")
    FUNCTION = "apply_controlnet"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "positive": ("CONDITIONING",),
                "negative": ("CONDITIONING",),
                "control_net": ("CONTROL_NET",),
                "image": ("IMAGE",),
                "strength": ("FLOAT", {"default": 1.0, "min": 0.0, "max": 10.0, "step": 0.01}),
                "start_percent": ("FLOAT", {"default": 0.0, "min": 0.0, "max": 1.0, "step": 0.001}),
                "end_percent": ("FLOAT", {"default": 1.0, "min": 0.0, "max": 1.0, "step": 0.001}),
            },
            "optional": {"vae": ("VAE",)},
        }

    def apply_controlnet(
        self,
        positive: Conditioning,
        negative: Conditioning,
        control_net: ControlNet,
        image: torch.Tensor,
        strength: float,
        start_percent: float,
        end_percent: float,
        vae: VAE | None = None,
    ) -> tuple[Conditioning, Conditioning]:
        if strength == 0:
            return positive, negative
        # One copy for all entries with the same ControlNets before it, so that they may share a batch.
        copies: dict[ControlNet | None, ControlNet] = {}

        def controlled(conditioning: Conditioning) -> Conditioning:
            out: Conditioning = []
            for text, data in conditioning:
                before = data.get("control")
                if before not in copies:
                    window = (start_percent, end_percent)
                    copies[before] = control_net.copy().set_cond_hint(image.movedim(-1, 1), strength, window, vae=vae)
                    copies[before].set_previous_controlnet(before)
                out.append([text, {**data, "control": copies[before], "control_apply_to_uncond": False}])
            return out

        return controlled(positive), controlled(negative)


class CLIPVisionLoader:
    """Loads a CLIP image encoder."""

    CATEGORY = "loaders"
    RETURN_TYPES = ("CLIP_VISION",)
    FUNCTION = "load_clip"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"clip_name": (names("clip_vision"),)}}

    @classmethod
    def VALIDATE_INPUTS(cls, clip_name: str | None) -> bool | str:
        return _found("clip_vision", clip_name, "Load CLIP Vision")

    def load_clip(self, clip_name: str) -> tuple[CLIPVision]:
        return (load.clip_vision(find("clip_vision", clip_name, "Load CLIP Vision"), _host().device()),)


class CLIPVisionEncode:
    """Shows a picture to a CLIP image encoder."""

    CATEGORY = "conditioning"
    RETURN_TYPES = ("CLIP_VISION_OUTPUT",)
    FUNCTION = "encode"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"clip_vision": ("CLIP_VISION",), "image": ("IMAGE",), "crop": (["center", "none"],)}}

    def encode(self, clip_vision: CLIPVision, image: torch.Tensor, crop: str) -> tuple[VisionOutput]:
        return (clip_vision.encode_image(image, crop == "center", host().check_interrupt),)


def _sampled(
    model: Model,
    positive: Conditioning,
    negative: Conditioning,
    latent: Latent,
    settings: Settings,
    levels: Levels = None,
) -> Latent:
    """``sample`` under the host's progress bar, with previews."""
    bar: list[Any] = []

    def progress(done: int, steps: int, denoised: torch.Tensor) -> None:
        if not bar:
            bar.append(host().progress(steps))
        bar[0].update(1, preview(denoised, model.family))

    check: Callable[[], None] = host().check_interrupt
    return sample(model, positive, negative, latent, settings, progress, check, levels)


def solved(model: Model, positive: Conditioning, negative: Conditioning, latent: Latent, way: Way) -> Latent:
    """What ``way`` makes of a latent that is at its beginning already."""
    name, own = (way.method, None) if isinstance(way.method, str) else ("euler", way.method)
    settings = Settings(way.seed, len(way.sigmas) - 1, way.cfg, name, "normal", add_noise=False)
    return _sampled(model, positive, negative, latent, settings, (way.sigmas, own))


class KSampler:
    """Makes a latent out of noise, or out of another latent and some noise."""

    CATEGORY = "sampling"
    DESCRIPTION = "Uses the provided model, positive and negative conditioning to denoise the latent image."
    RETURN_TYPES = ("LATENT",)
    OUTPUT_TOOLTIPS = ("The denoised latent.",)
    FUNCTION = "sample"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        tips = {
            "model": "The model used for denoising the input latent.",
            "seed": "The random seed used for creating the noise.",
            "steps": "The number of steps used in the denoising process.",
            "cfg": "The Classifier-Free Guidance scale balances creativity and adherence to the prompt. Higher values "
            "result in images more closely matching the prompt however too high values will negatively impact quality.",
            "sampler_name": "The algorithm used when sampling, this can affect the quality, speed, and style of the "
            "generated output.",
            "scheduler": "The scheduler controls how noise is gradually removed to form the image.",
            "positive": "The conditioning describing the attributes you want to include in the image.",
            "negative": "The conditioning describing the attributes you want to exclude from the image.",
            "latent_image": "The latent image to denoise.",
            "denoise": "The amount of denoising applied, lower values will maintain the structure of the initial image "
            "allowing for image to image sampling.",
        }
        inputs: dict[str, tuple[Any, dict[str, Any]]] = {
            "model": ("MODEL", {}),
            "seed": ("INT", {"default": 0, "min": 0, "max": MAX_SEED, "control_after_generate": True}),
            "steps": ("INT", {"default": 20, "min": 1, "max": 10000}),
            "cfg": ("FLOAT", {"default": 8.0, "min": 0.0, "max": 100.0, "step": 0.1, "round": 0.01}),
            "sampler_name": (list(SAMPLERS), {}),
            "scheduler": (list(SCHEDULES), {}),
            "positive": ("CONDITIONING", {}),
            "negative": ("CONDITIONING", {}),
            "latent_image": ("LATENT", {}),
            "denoise": ("FLOAT", {"default": 1.0, "min": 0.0, "max": 1.0, "step": 0.01}),
        }
        return {"required": {name: (kind, {**more, "tooltip": tips[name]}) for name, (kind, more) in inputs.items()}}

    def sample(
        self,
        model: Model,
        seed: int,
        steps: int,
        cfg: float,
        sampler_name: str,
        scheduler: str,
        positive: Conditioning,
        negative: Conditioning,
        latent_image: Latent,
        denoise: float = 1.0,
    ) -> tuple[Latent]:
        settings = Settings(seed, steps, cfg, sampler_name, scheduler, denoise)
        return (_sampled(model, positive, negative, latent_image, settings),)


class KSamplerAdvanced:
    """The same, from one step to another, with or without noise at both ends."""

    CATEGORY = "sampling"
    RETURN_TYPES = ("LATENT",)
    FUNCTION = "sample"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "model": ("MODEL",),
                "add_noise": (["enable", "disable"],),
                "noise_seed": ("INT", {"default": 0, "min": 0, "max": MAX_SEED, "control_after_generate": True}),
                "steps": ("INT", {"default": 20, "min": 1, "max": 10000}),
                "cfg": ("FLOAT", {"default": 8.0, "min": 0.0, "max": 100.0, "step": 0.1, "round": 0.01}),
                "sampler_name": (list(SAMPLERS),),
                "scheduler": (list(SCHEDULES),),
                "positive": ("CONDITIONING",),
                "negative": ("CONDITIONING",),
                "latent_image": ("LATENT",),
                "start_at_step": ("INT", {"default": 0, "min": 0, "max": 10000}),
                "end_at_step": ("INT", {"default": 10000, "min": 0, "max": 10000}),
                "return_with_leftover_noise": (["disable", "enable"],),
            }
        }

    def sample(
        self,
        model: Model,
        add_noise: str,
        noise_seed: int,
        steps: int,
        cfg: float,
        sampler_name: str,
        scheduler: str,
        positive: Conditioning,
        negative: Conditioning,
        latent_image: Latent,
        start_at_step: int,
        end_at_step: int,
        return_with_leftover_noise: str,
    ) -> tuple[Latent]:
        settings = Settings(
            noise_seed,
            steps,
            cfg,
            sampler_name,
            scheduler,
            start=start_at_step,
            end=end_at_step,
            add_noise=add_noise == "enable",
            finish=return_with_leftover_noise == "disable",
        )
        return (_sampled(model, positive, negative, latent_image, settings),)


TITLES = {
    "CheckpointLoaderSimple": "Load Checkpoint",
    "UNETLoader": "Load Diffusion Model",
    "VAELoader": "Load VAE",
    "CLIPLoader": "Load CLIP",
    "DualCLIPLoader": "DualCLIPLoader",
    "CLIPSetLastLayer": "CLIP Set Last Layer",
    "CLIPTextEncode": "CLIP Text Encode (Prompt)",
    "ConditioningCombine": "Conditioning (Combine)",
    "ConditioningConcat": "Conditioning (Concat)",
    "ConditioningSetArea": "Conditioning (Set Area)",
    "ConditioningSetMask": "Conditioning (Set Mask)",
    "ConditioningSetTimestepRange": "ConditioningSetTimestepRange",
    "ConditioningZeroOut": "ConditioningZeroOut",
    "EmptyLatentImage": "Empty Latent Image",
    "LatentUpscale": "Upscale Latent",
    "SetLatentNoiseMask": "Set Latent Noise Mask",
    "VAEEncode": "VAE Encode",
    "VAEDecode": "VAE Decode",
    "LoraLoader": "Load LoRA",
    "LoraLoaderModelOnly": "LoraLoaderModelOnly",
    "ControlNetLoader": "Load ControlNet Model",
    "ControlNetApply": "Apply ControlNet (OLD)",
    "ControlNetApplyAdvanced": "Apply ControlNet",
    "CLIPVisionLoader": "Load CLIP Vision",
    "CLIPVisionEncode": "CLIP Vision Encode",
    "KSampler": "KSampler",
    "KSamplerAdvanced": "KSampler (Advanced)",
}
NODES: dict[str, type] = {name: globals()[name] for name in TITLES}
