"""From trained weights to the files that come with the pack, in float16 and under the published names."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from ..engine.diffusion import layout
from ..face.convert import convert
from ..face.lab import CARDS
from . import autoencoder, nets
from .adapters import CONTROLNET
from .base import TEXT, UNET

Tensors = dict[str, torch.Tensor]
LIMIT = 16_000_000
"""Bytes of all files together."""


def export(work: Path, weights: Path, vocabulary: Path) -> dict[str, int]:
    """Write everything; sizes in bytes by file name. Raises ValueError beyond ``LIMIT``."""
    weights.mkdir(parents=True, exist_ok=True)
    trained = {name: torch.load(work / f"{name}.pt", weights_only=True) for name in ("base", "faceid", "instantid")}
    vae = autoencoder.assemble(torch.load(work / "autoencoder.pt", weights_only=True))
    _write(weights / "base.safetensors", checkpoint(trained["base"], vae), metadata(nets.tokens(vocabulary)))
    about = {"recogniser": "lab", "for": "the lab's base model"}
    for name in ("faceid", "instantid"):
        kept = {n: t for n, t in trained[name].items() if n.startswith(("image_proj.", "ip_adapter."))}
        _write(weights / f"{name}.safetensors", kept, about)
    control = _nested(trained["instantid"], "control.")
    names = layout.to_ldm("controlnet", control)
    said = {"config": json.dumps({"controlnet": CONTROLNET})}
    _write(weights / "controlnet.safetensors", {names[n]: t for n, t in control.items()}, said)
    nets.export(work, weights)
    sizes = {file.name: file.stat().st_size for file in sorted(weights.iterdir())}
    if sum(sizes.values()) > LIMIT:
        raise ValueError(f"the lab's weights take {sum(sizes.values()):,} bytes, more than {LIMIT:,}: {sizes}")
    return sizes


def entries(weights: Path) -> dict[str, tuple[int, str]]:
    """What ``face.lab.FILES`` has to say of the files in a folder: their size once installed, and their sha256."""
    found: dict[str, tuple[int, str]] = {}
    for name, card in CARDS.items():
        if (weights / name).is_file():
            data = (weights / name).read_bytes()
            installed = convert(card.convert, [data]) if card.convert else data
            found[name] = (len(installed), sha256(data).hexdigest())
    return found


def checkpoint(base: Tensors, vae: Tensors) -> Tensors:
    """A single-file checkpoint under ldm's names; its table of tokens is the small one."""
    unet, text = _nested(base, "unet."), _nested(base, "text.")
    names = {"unet": layout.to_ldm("unet", unet), "vae": layout.to_ldm("vae", vae)}
    out = {f"model.diffusion_model.{names['unet'][n]}": t for n, t in unet.items()}
    for name, tensor in vae.items():
        theirs = names["vae"][name]
        # ldm has 1×1 convolutions where diffusers has matrices.
        out[f"first_stage_model.{theirs}"] = tensor[..., None, None] if _matrix(theirs, tensor) else tensor
    out |= {f"cond_stage_model.transformer.{n}": t for n, t in text.items()}
    return {**out, "v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}


def _matrix(name: str, tensor: torch.Tensor) -> bool:
    return ".attn_1." in name and tensor.ndim == 2


def metadata(tokens: list[int]) -> dict[str, str]:
    """What shapes cannot tell, and CLIP's numbers of the small table's rows."""
    known: dict[str, Any] = {
        "unet": UNET,
        "vae": autoencoder.AUTOENCODER,
        "text": {"num_attention_heads": TEXT.heads, "hidden_act": "quick_gelu"},
    }
    return {"config": json.dumps(known), "tokens": json.dumps(tokens)}


def _nested(tensors: Tensors, prefix: str) -> Tensors:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def _write(file: Path, tensors: Tensors, about: dict[str, str]) -> None:
    save_file({n: t.to(torch.float16).contiguous() for n, t in tensors.items()}, file, about)
