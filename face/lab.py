"""The lab's files in the catalogue: a small world of drawn people that comes with the pack (``lab/README.md``).

Its networks know nothing but that world. They are never chosen by themselves: not by ``auto``, and not for photographs.
"""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import BadInput
from .host import Host
from .models import Kind, ModelCard, ShippedSource, catalogue, find

NAME, JUDGE = "lab", "lab-judge"
"""Its two recognisers: the one that adapters are given vectors of, and one that took no part."""
OWN = frozenset({NAME, JUDGE})
HEADER = 1 << 26
"""Bytes that the head of a safetensors file has at most."""
SIDE = 32
"""Pixels of a portrait's side, as it was drawn."""


def of_the_lab(name: str) -> bool:
    """Whether it is one of the lab's networks."""
    return name in OWN


def portrait(picture: Tensor) -> Tensor:
    """(1, 3, 32, 32): a picture (H, W, 3) of the lab as it was drawn. Raises BadInput unless it is a square."""
    height, width = picture.shape[:2]
    if height != width or height < SIDE:
        raise BadInput(
            f"the lab's networks look at the lab's pictures: squares of {SIDE} pixels or more, 128 as they are drawn; "
            f"got {width}×{height}. For photographs choose another."
        )
    return F.interpolate(picture[..., :3].permute(2, 0, 1)[None].float(), (SIDE, SIDE), mode="area")


def label_map(parts: Tensor, height: int, width: int) -> Tensor:
    """Whole numbers (32, 32) at a picture's size."""
    return F.interpolate(parts[None, None].float(), (height, width), mode="nearest")[0, 0].to(torch.int64)


WEIGHTS = "lab/weights"
"""The folder of the pack that the files come in."""
FILES: dict[str, tuple[int, str]] = {
    "base.safetensors": (
        14_135_558,
        "edf0c3f4f30d763e68f597a0e62384f7ad45967d9dfb7c16eaf090a38e5b1b33",
    ),
    "controlnet.safetensors": (
        2_764_472,
        "be0c3c36535327d652dc77af678000367cf12aeb00d895353846de02859fa5b7",
    ),
    "faceid.safetensors": (
        659_752,
        "9000891400b09031dd5c207878d354eb38d8afe08d492f187c625959a9701d42",
    ),
    "instantid.safetensors": (
        805_184,
        "e956734e63ffb56f43f2ec07301cd819e8b275e34f23c956f8ad18d35a94c60f",
    ),
    "lab_judge.onnx": (
        369_603,
        "3fca44bae400aff731248a00d6a5bb0f5ad3692ef40b1a01f07cccb44a90cb8e",
    ),
    "lab_parts.onnx": (
        312_741,
        "5321633dede9ef1406f0473e8b169475c5fca8a59a1125526334b115f05a044c",
    ),
    "lab_recogniser.onnx": (
        520_566,
        "7ffb92a663046531ad8ae50359249f661a42d595709e17ed4f740fcf413edc54",
    ),
    "lab_recogniser_judge.onnx": (
        473_257,
        "f55619d800bc6a15ec31cd3c904512f941a80398e103873a90292e1a302d3938",
    ),
}
"""By name in ``WEIGHTS`` the size in bytes once installed, and the sha256 of what comes with the pack. All there is to
do for a new file is to put it there and to enter it here, as ``lab.export.entries`` says."""
CARDS: dict[str, ModelCard] = {}
"""By name in ``WEIGHTS``."""

INSTALLED = "230bf67d3cf98171237f2fc6efda41ef79dc637ffa3193efd27dd45546048325"
"""sha256 of the checkpoint with the whole table of tokens."""

_ABOUT = "Of the lab's drawn people, nobody else"
_ABSENT = "This copy of the pack came without it; it is trained by: make lab."


def _card(
    name: str,
    kind: Kind,
    member: str,
    about: str,
    file: str = "",
    folder: str = "likeness",
    convert: str | None = None,
    converted: str | None = None,
) -> ModelCard:
    """``member``: its name in ``WEIGHTS``; ``file``: another name that it is installed under."""
    size, sha256 = FILES.get(member, (0, ""))
    CARDS[member] = ModelCard(
        name=name,
        kind=kind,
        file=file or member,
        licence="MIT",
        commercial=True,
        size=size,
        about=f"{about}. {_ABOUT}.",
        source=ShippedSource(f"{WEIGHTS}/{member}", sha256) if sha256 else None,
        convert=convert,
        converted=converted,
        folder=folder,
        group="lab",
        note="" if sha256 else _ABSENT,
    )
    return catalogue.add(CARDS[member])


PARTS = _card("lab-parts", "detector", "lab_parts.onnx", "14 parts and five points")
RECOGNISER = _card(NAME, "embedder", "lab_recogniser.onnx", "128 numbers a face, for the lab's adapters")
JUDGE_RECOGNISER = _card(JUDGE, "embedder", "lab_recogniser_judge.onnx", "128 numbers a face, to judge with")
ATTRIBUTES = _card("lab-attributes", "attributes", "lab_judge.onnx", "Nine attributes and eleven traits")
CHECKPOINT = _card(
    "lab-model", "checkpoint", "base.safetensors", "A checkpoint of SD1.5's layout in small: 12 channels, 128 pixels",
    file="lab.safetensors", folder="checkpoints", convert="tokens", converted=INSTALLED,
)  # fmt: skip
FACEID = _card(
    "lab-faceid", "adapter", "faceid.safetensors", "IP-Adapter FaceID's layout", file="lab_faceid.safetensors",
    folder="adapters",
)  # fmt: skip
INSTANTID = _card(
    "lab-instantid", "adapter", "instantid.safetensors", "InstantID's layout", file="lab_instantid.safetensors",
    folder="adapters",
)  # fmt: skip
CONTROLNET = _card(
    "lab-identitynet", "controlnet", "controlnet.safetensors", "InstantID's ControlNet for the five points",
    file="lab_identitynet.safetensors", folder="controlnet",
)  # fmt: skip


def files(kind: str, host: Host) -> dict[str, Path]:
    """Safetensors files in the folders of ``kind`` that tell their own configuration, as the lab's do, by name."""
    found: dict[str, Path] = {}
    for folder in host.folders(kind):
        for path in sorted(folder.rglob("*.safetensors")) if folder.is_dir() else ():
            state = path.stat()
            if _tells(path, state.st_mtime_ns, state.st_size):
                found.setdefault(path.relative_to(folder).as_posix(), path)
    return found


@lru_cache(maxsize=1024)
def _tells(path: Path, changed: int, size: int) -> bool:
    return "config" in metadata(path)


def metadata(path: Path) -> dict[str, str]:
    """What a safetensors file says of itself; nothing where it cannot be read. Reads no tensor."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length)) if length < HEADER else {}
    except (OSError, ValueError):
        return {}
    told = header.get("__metadata__", {}) if isinstance(header, dict) else {}
    return told if isinstance(told, dict) else {}


def choices(kind: str, card: ModelCard, host: Host) -> list[str]:
    """Names for a combo box; the lab's own is offered even where it is not installed: its error says how to get it."""
    return [card.file, *(name for name in files(kind, host) if name != card.file)]


def path_of(name: str, kind: str, card: ModelCard, host: Host) -> Path:
    """The file called ``name`` in ``choices``. Raises MissingModel or BadInput."""
    if name == card.file:
        return find(card, host)
    known = files(kind, host)
    if name not in known:
        raise BadInput(
            f"there is no {name} among the files that this loader opens: those that tell their configuration in their "
            f"metadata, as the lab's do. Known: {', '.join(choices(kind, card, host))}. For published checkpoints and "
            "ControlNets take the host's own loaders."
        )
    return known[name]
