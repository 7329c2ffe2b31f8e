"""The lab's files with random weights: what comes with the pack, and what is installed of it.

Sizes, names and metadata are those of ``lab.export``; only nothing was trained.
"""

import gzip
import json
from dataclasses import replace
from functools import cache
from hashlib import sha256

from likeness.engine.diffusion import layout
from likeness.face import fetch, lab
from likeness.face.models import ShippedSource, catalogue
from likeness.lab import export
from likeness.lab.adapters import CONTROLNET, HINTS
from likeness.lab.autoencoder import AUTOENCODER
from likeness.lab.base import TEXT, UNET
from likeness.tests import tiny_diffusion as tiny

START, END = 49406, 49407
IDS = [*range(0, 1200, 3), START, END]
"""CLIP's numbers of the tokens that the text encoder knows."""


@cache
def parts(rows, seed=0):
    """U-Net, VAE and text encoder under diffusers' names. Shared: change no tensor."""
    text = tiny.text_encoder(TEXT.width, TEXT.layers, rows, seed=seed, inner=TEXT.inner)
    return tiny.unet(UNET, seed), tiny.vae(AUTOENCODER, seed), text


@cache
def controlnet():
    """Under diffusers' names. Shared: change no tensor."""
    return tiny.controlnet(CONTROLNET, hints=HINTS)


def save_vocabulary(path):
    """The tiny vocabulary, filled up to the size of CLIP's with byte pairs that no text has."""
    pairs = tiny.merges()
    pairs += [(f"\u00b6{number}", "\u00b6") for number in range(END + 1 - 514 - len(pairs))]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress("\n".join(["#version: 0.2", *map(" ".join, pairs)]).encode() + b"\n"))


def write(weights, ids=IDS):
    """The checkpoint and the ControlNet as they come with the pack."""
    weights.mkdir(parents=True, exist_ok=True)
    unet, vae, text = parts(len(ids))
    base = tiny.under("unet.", unet) | tiny.under("text.", text)
    export._write(weights / "base.safetensors", export.checkpoint(base, vae), export.metadata(ids))
    names, said = layout.to_ldm("controlnet", controlnet()), {"config": json.dumps({"controlnet": CONTROLNET})}
    export._write(weights / "controlnet.safetensors", {names[n]: t for n, t in controlnet().items()}, said)


def ship(monkeypatch, pack, ids=IDS):
    """Let the pack in the folder ``pack`` come with the files, and let the catalogue know it."""
    folder = pack / lab.WEIGHTS
    write(folder, ids)
    monkeypatch.setattr(fetch, "ROOT", pack)
    for name, card in [("CHECKPOINT", lab.CHECKPOINT), ("CONTROLNET", lab.CONTROLNET)]:
        file = folder / ("base.safetensors" if name == "CHECKPOINT" else "controlnet.safetensors")
        source = ShippedSource(f"{lab.WEIGHTS}/{file.name}", sha256(file.read_bytes()).hexdigest())
        card = replace(card, source=source, size=file.stat().st_size, note="")
        monkeypatch.setattr(lab, name, card)
        monkeypatch.setitem(catalogue._cards, card.name, card)


def install(host, weights):
    """Both files where ``likeness models fetch lab`` puts them; answers their paths."""
    from likeness.face.convert.tokens import convert

    found = []
    for kind, name, file in (
        ("checkpoints", "base", lab.CHECKPOINT.file),
        ("controlnet", "controlnet", lab.CONTROLNET.file),
    ):
        data = (weights / f"{name}.safetensors").read_bytes()
        path = host.folders(kind)[0] / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(convert([data]) if name == "base" else data)
        found.append(path)
    return found
