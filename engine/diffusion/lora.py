"""LoRA files of every usual layout, as patches for a U-Net and for text encoders.

A name in a file is a module's path in one of several spellings, and the role of the tensor. The spellings follow from
the network, so they are made from it and looked up; what is in the file and in no network is not silently dropped.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch

from ...face.errors import BadInput, BadModelFile
from . import layout
from .model import LowRank, Model, WeightPatch
from .text import CLIP
from .weights import Tensors, some

log = logging.getLogger(__name__)

_ROLES = {
    # kohya-ss/sd-scripts, and LyCORIS' LoCon
    ".lora_up.weight": "up",
    ".lora_down.weight": "down",
    ".lora_mid.weight": "mid",
    ".alpha": "alpha",
    # PEFT
    ".lora_B.weight": "up",
    ".lora_A.weight": "down",
    ".lora_B.default.weight": "up",
    ".lora_A.default.weight": "down",
    # diffusers, from the oldest on
    "_lora.up.weight": "up",
    "_lora.down.weight": "down",
    ".lora.up.weight": "up",
    ".lora.down.weight": "down",
    ".lora_linear_layer.up.weight": "up",
    ".lora_linear_layer.down.weight": "down",
}
_OTHER_KINDS = {
    ".hada_w1_a": "LoHa",
    ".lokr_w1": "LoKr",
    ".dora_scale": "DoRA",
    ".oft_blocks": "OFT",
    ".a1.weight": "GLoRA",
    ".diff": "full differences",
    ".diff_b": "full differences",
    ".w_norm": "full differences",
    ".set_weight": "full weights",
}


@dataclass(frozen=True, eq=False)
class Lora:
    """The low-rank changes in a file, by the names that it gives to modules."""

    changes: Mapping[str, LowRank]
    name: str

    def apply(
        self, model: Model | None, clip: CLIP | None, strength: float, clip_strength: float
    ) -> tuple[Model | None, CLIP | None]:
        """Both with the changes that concern them. Raises BadInput if nothing does, or if something does not fit."""
        ours: dict[str, LowRank] = {}
        texts: dict[str, LowRank] = {}
        known = {} if model is None else _unet_names(model.unet)
        written = {} if clip is None else _text_names(clip.towers)
        for name, change in self.changes.items():
            if name in known:
                ours[known[name]] = change
            elif name in written:
                texts[written[name]] = change
        unused = [name for name in self.changes if name not in known and name not in written]
        if not ours and not texts:
            family = model.family if model is not None else clip.family if clip is not None else "any"
            raise BadInput(
                f"{self.name} changes nothing of this {family} model: its {len(self.changes)} modules are called "
                f"{some(self.changes)}. It was made for another base model."
            )
        if unused:
            log.warning("%s: %d modules are of neither the model nor CLIP: %s", self.name, len(unused), some(unused))
        if model is not None and ours:
            model = model.with_lora(WeightPatch(ours, strength, self.name))
        if clip is not None and texts:
            clip = clip.with_lora(WeightPatch(texts, clip_strength, self.name))
        return model, clip


def parse(tensors: Tensors, name: str) -> Lora:
    """Raises BadModelFile for a file of another kind, or one that is cut off."""
    parts: dict[str, dict[str, torch.Tensor]] = {}
    unknown: list[str] = []
    for key, tensor in tensors.items():
        suffix = next((suffix for suffix in _ROLES if key.endswith(suffix)), None)
        if suffix is None:
            unknown.append(key)
        else:
            parts.setdefault(key.removesuffix(suffix), {})[_ROLES[suffix]] = tensor
    for ending, kind in _OTHER_KINDS.items():
        if any(key.endswith(ending) for key in unknown):
            raise BadModelFile(
                f"{name} is a LyCORIS file with {kind}, of which only LoRA and LoCon are read here. Run the file on "
                "ComfyUI: likeness run FILE --server URL"
            )
    if not parts:
        raise BadModelFile(f"{name} is no LoRA: its tensors are called {some(tensors)}")
    halves = [base for base, found in parts.items() if "up" not in found or "down" not in found]
    if halves:
        raise BadModelFile(
            f"{name} lacks one half of {len(halves)} changes ({some(halves)}): it is cut off; get it again"
        )
    if unknown:
        log.warning("%s: %d tensors are no part of a LoRA: %s", name, len(unknown), some(unknown))
    return Lora({base: _change(found) for base, found in parts.items()}, name)


def _change(found: Mapping[str, torch.Tensor]) -> LowRank:
    down = found["down"]
    scale = float(found["alpha"]) / len(down) if "alpha" in found else 1.0
    return LowRank(found["up"], down, scale, found.get("mid"))


def _unet_names(unet: torch.nn.Module) -> dict[str, str]:
    """{a module's spelling in some layout: its path}."""
    weights = [name for name in unet.state_dict() if name.endswith(".weight")]
    ldm = layout.to_ldm("unet", weights)
    found: dict[str, str] = {}
    for weight in weights:
        path = weight.removesuffix(".weight")
        # diffusers' first layout put the change into the attention's processor.
        processor = path.replace(".to_", ".processor.to_").removesuffix(".0" if path.endswith("to_out.0") else "\0")
        for spelling in (path, processor):
            found |= {
                f"{prefix}{spelling}": path for prefix in ("", "unet.", "base_model.model.", "unet.base_model.model.")
            }
        for prefix in ("lora_unet_", "lycoris_"):
            found[prefix + path.replace(".", "_")] = path
        if weight in ldm:
            original = ldm[weight].removesuffix(".weight")
            found["lora_unet_" + original.replace(".", "_")] = path
            found["diffusion_model." + original] = path
    return found


def _text_names(towers: torch.nn.ModuleDict) -> dict[str, str]:
    found: dict[str, str] = {}
    for tower, module in towers.items():
        number = list(towers).index(tower) + 1
        flat = [f"lora_te{number}_", *(["lora_te_"] if number == 1 else [])]
        dotted = ["text_encoder_2."] if number == 2 else ["text_encoder.", "base_model.model."]
        dotted += [f"text_encoders.clip_{tower}.transformer.", *(f"{prefix}base_model.model." for prefix in dotted)]
        for path in _paths(module.state_dict()):
            found |= {prefix + path.replace(".", "_"): f"{tower}.{path}" for prefix in flat}
            found |= {prefix + path: f"{tower}.{path}" for prefix in dotted}
    return found


def _paths(names: Iterable[str]) -> list[str]:
    return [name.removesuffix(".weight") for name in names if name.endswith(".weight")]
