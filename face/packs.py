"""InsightFace model packs, read as they lie in their folders: which file does what is told by its inputs and outputs.

A pack is a folder of ONNX files such as ``buffalo_l``. No file name matters, and no weights are read to tell.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
from torch import Tensor

from .errors import BadModelFile
from .geometry import warp
from .host import STANDALONE, Host
from .onnx_file import Signature, signature
from .session import OnnxModel
from .types import Array, Face

log = logging.getLogger(__name__)

Part = Literal["detector", "recogniser", "landmarks106", "landmarks68", "genderage", "swapper"]


@dataclass(frozen=True)
class Pack:
    """The files of one pack by what they do; None where it has none."""

    name: str
    folder: Path
    detector: Path | None = None
    recogniser: Path | None = None
    landmarks106: Path | None = None
    landmarks68: Path | None = None
    genderage: Path | None = None
    swapper: Path | None = None
    ignored: tuple[tuple[Path, str], ...] = ()
    """Files that are not used, each with the reason."""

    def listing(self) -> str:
        """Its files in a sentence, for error messages."""
        return ", ".join(name for name, _, _ in onnx_files(self.folder)) or "none"


def route(found: Signature) -> Part | None:
    """What a file of a pack does; None if no part of a pack looks like it.

    The rules and their order are InsightFace's (2.1 model_zoo/model_zoo.py: ModelRouter.get_model).
    """
    if len(found.outputs) >= 5:
        return "detector"
    shape = next((port.shape for port in found.inputs), ())
    if len(shape) != 4:
        return None
    height, width = shape[2:]
    if height == width == 192:
        answers = {port.shape[-1] for port in found.outputs if port.shape}
        return "landmarks106" if 212 in answers else "landmarks68" if 3309 in answers else None
    if height == width == 96:
        return "genderage"
    if len(found.inputs) == 2 and height == width == 128:
        return "swapper"
    if len(found.inputs) == 1 and height is not None and height == width and height >= 112 and height % 16 == 0:
        return "recogniser"
    return None


Files = tuple[tuple[str, int, int], ...]
"""Names of the ``.onnx`` files of a folder, each with its time of change and its size."""


def onnx_files(folder: Path) -> Files:
    """The ``.onnx`` files in ``folder``, sorted by name; none if there is no such folder."""
    try:
        with os.scandir(folder) as entries:
            found = [(e.name, e.stat().st_mtime_ns, e.stat().st_size) for e in entries if e.name.endswith(".onnx")]
    except (FileNotFoundError, NotADirectoryError):
        return ()
    return tuple(sorted(found))


@lru_cache(maxsize=64)
def _read(name: str, folder: Path, files: Files) -> Pack:
    """The pack in ``folder``. Of several files for one part the first by name is taken, as InsightFace does."""
    parts: dict[str, Path] = {}
    ignored: list[tuple[Path, str]] = []
    for path in (folder / file for file, _, _ in files):
        try:
            part = route(signature(path))
        except (BadModelFile, OSError) as error:
            log.warning("%s of the model pack %s is left out: %s", path.name, name, error)
            ignored.append((path, str(error)))
            continue
        if part is None:
            ignored.append((path, "its inputs and outputs fit no part of a pack"))
        elif part in parts:
            ignored.append((path, f"{parts[part].name} is the pack's {part} already"))
        else:
            parts[part] = path
    return Pack(name, folder, ignored=tuple(ignored), **parts)


def packs(host: Host = STANDALONE) -> dict[str, Pack]:
    """The packs in the host's ``insightface`` folders by name, sorted.

    Also finds the files one folder deeper, where some published archives put them (``antelopev2/antelopev2``). Looks at
    the folders anew every time and into a file only if it is new or has changed.
    """
    found: dict[str, Pack] = {}
    for root in host.folders("insightface"):
        try:
            with os.scandir(root) as entries:
                names = [entry.name for entry in entries if entry.is_dir()]
        except (FileNotFoundError, NotADirectoryError):
            continue
        for name in names:
            for folder in (root / name, root / name / name):
                if name not in found and (files := onnx_files(folder)):
                    found[name] = _read(name, folder, files)
    return dict(sorted(found.items()))


def explain(name: str, part: Part, host: Host) -> str | None:
    """Why the pack ``name`` cannot serve as ``part``, in a sentence; None if there is no such pack, or it can."""
    pack = packs(host).get(name)
    if pack is None or getattr(pack, part) is not None:
        return None
    needs = {
        "detector": "a detection network (one of 6, 9, 10 or 15 outputs, such as det_10g.onnx)",
        "recogniser": "a recognition network (input 3×112×112, such as w600k_r50.onnx)",
        "landmarks106": "a landmark network (input 3×192×192, such as 2d106det.onnx)",
        "landmarks68": "a landmark network (input 3×192×192, such as 1k3d68.onnx)",
        "genderage": "an age and gender network (input 3×96×96, such as genderage.onnx)",
        "swapper": "a swapper (two inputs, 3×128×128 and 512, such as inswapper_128.onnx)",
    }
    return f"the model pack {name!r} in {pack.folder} lacks {needs[part]}; its files are {pack.listing()}."


GROW = 1.5
"""The crop of the landmark and attribute networks is so many times the box's longer side."""


def ask(model: OnnxModel, picture: Tensor, faces: Sequence[Face], size: int) -> tuple[Array, Array]:
    """Matrices (N, 2, 3) to the crops of ``faces`` and the network's first answers (N, D) for them.

    The crop is the square around the box, not turned, ``size`` pixels, RGB, black beyond the border. It is normalised
    unless the graph does that itself, as exports from MXNet do; InsightFace tells by the names of the first nodes, we
    by their operators. insightface 2.1 model_zoo/landmark.py, utils/face_align.py: transform.
    """
    matrices = np.zeros((len(faces), 2, 3))
    for matrix, face in zip(matrices, faces, strict=True):
        scale = size / max(face.width * GROW, face.height * GROW, 1e-3)
        matrix[0, 0] = matrix[1, 1] = scale
        matrix[:, 2] = size / 2 - scale * face.centre
    batch = warp(picture, matrices, (size, size)).mul_(255)
    lead = model.signature.lead
    if not (("Sub" in lead and "Mul" in lead) or "BatchNormalization" in lead[:3]):
        batch = batch.sub_(127.5).mul_(1 / 128)
    answers = model.run_batch(model.signature.inputs[0].name, batch.numpy())[0]
    return matrices, answers.reshape(len(faces), -1)
