"""Faces to vectors: who is it, as a recognition network sees it.

To add a network is to add a file that enters an ``Embedder`` into ``embedders``.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ..errors import BadInput, BadModelFile, MissingModel
from ..geometry import arcface_template, similarity, warp
from ..host import STANDALONE, Host
from ..image import as_image, check_faces
from ..lab import of_the_lab
from ..models import ModelCard, find, weights_digest
from ..packs import explain
from ..registry import Registry
from ..session import OnnxModel
from ..types import Array, Contract, Embedding, Face, Faces, normalised

log = logging.getLogger(__name__)

CHUNK = 16
"""Faces that go through a network together: beyond it a CPU gains nothing, and a 50-layer ResNet needs 6 MB a face."""


@dataclass(frozen=True)
class Preprocessing:
    """What a network wants of the aligned crop: ``(x - mean) / scale`` for x in 0 to 255, channels in ``order``."""

    order: str = "RGB"
    """``RGB`` or ``BGR``."""
    mean: float = 127.5
    scale: float = 127.5

    def __str__(self) -> str:
        values = "0..255" if (self.mean, self.scale) == (0, 1) else f"(x-{self.mean:g})/{self.scale:g}"
        return f"{self.order} {values}"


@dataclass(frozen=True)
class Network:
    """An embedder opened: a file and how to use it. Its outside is read from the file, not asked for."""

    model: OnnxModel
    contract: Contract
    preprocessing: Preprocessing
    input: str
    size: int
    """Side of the crop in pixels."""
    channels_last: bool

    def vectors(self, crops: Tensor) -> Array:
        """(N, D) float32 for aligned RGB ``crops`` (N, 3, size, size) in [0, 1]."""
        how = self.preprocessing
        batch = (crops * (255 / how.scale)).sub_(how.mean / how.scale)
        if how.order == "BGR":
            batch = batch.flip(1)
        if self.channels_last:
            batch = batch.permute(0, 2, 3, 1)
        outputs = self.model.run_batch(self.input, np.ascontiguousarray(batch.numpy()))
        vectors = np.asarray(outputs[0], np.float32).reshape(len(crops), -1)
        if vectors.shape[1] != self.contract.dimension or not np.isfinite(vectors).all():
            raise BadModelFile(
                f"{self.model.path.name} answered {vectors.shape[1]} numbers a face, perhaps NaN or infinite, where "
                f"{self.contract.dimension} finite ones were expected. The file may be damaged; fetch or copy it again."
            )
        if len(outputs) > 1 and outputs[1].size == len(crops):
            # AdaFace's own graph answers the direction and the length apart (mk-minchul/AdaFace net.py: forward).
            return vectors * np.asarray(outputs[1], np.float32).reshape(-1, 1)
        return normalised(vectors) if self.contract.unit else vectors


@lru_cache
def _answers(model: OnnxModel, name: str, shape: tuple[int, int, int]) -> int:
    """How many numbers the network answers, learnt by asking it."""
    return int(model.run({name: np.zeros((1, *shape), np.float32)})[0].shape[-1])


def open_network(
    path: Path, name: str, preprocessing: Preprocessing, host: Host, *, dimension: int | None = None, unit: bool = False
) -> Network:
    """The recognition network in the file at ``path``, to be called ``name`` in contracts.

    ``unit``: its only output is a unit vector. Raises BadModelFile unless the file takes one picture of 3 channels and
    answers one vector (of ``dimension`` numbers, if given). Runs nothing, but where neither caller nor file knows the
    dimension.
    """
    model = OnnxModel(path, host)
    signature = model.signature
    inputs, out = signature.inputs, signature.outputs[0].shape
    shape = inputs[0].shape if inputs else ()
    channels_last = len(shape) == 4 and shape[3] == 3 and shape[1] != 3
    size = ((shape[1] if channels_last else shape[2]) if len(shape) == 4 else None) or 112
    # Exporters often leave the output's size open; a picture, a map or a single number is something else altogether.
    answers = (out[-1] or dimension or 0) if len(out) == 2 else None
    if (
        len(inputs) != 1
        or len(shape) != 4
        or (not channels_last and shape[1] != 3)
        or answers is None
        or 0 < answers < 64
        or (dimension is not None and answers != dimension)
        or (size % 112 and size % 128)
    ):
        takes = ", ".join(f"{p.name} {p.shape}" for p in inputs)
        gives = ", ".join(f"{p.name} {p.shape}" for p in signature.outputs[:3])
        raise BadModelFile(
            f"{path.name} is not a face recognition network as {name!r} needs it: expected one input (N, 3, 112, 112) "
            f"and one output (N, {dimension or 'D'}); the file has the inputs {takes or 'none'} and the outputs "
            f"{gives}. Choose another file, or another embedder for it."
        )
    answers = answers or _answers(model, inputs[0].name, (size, size, 3) if channels_last else (3, size, size))
    apart = len(signature.outputs) > 1 and signature.outputs[1].shape[-1:] == (1,)
    contract = Contract(name, weights_digest(path), answers, unit and not apart, f"arcface-{size} {preprocessing}")
    return Network(model, contract, preprocessing, inputs[0].name, size, channels_last)


class Embedder(Protocol):
    """One kind of recognition network."""

    def names(self, host: Host) -> list[str]:
        """What a user can choose of this kind now."""
        ...

    def open(self, name: str, host: Host) -> Network:
        """The network chosen by ``name``: one of ``names``, or the registry's name for the first of them."""
        ...


@dataclass(frozen=True)
class CatalogueEmbedder:
    """A network of the catalogue. Always offered: where its file is missing, the error says how to fetch it."""

    card: ModelCard
    preprocessing: Preprocessing
    dimension: int

    def names(self, host: Host) -> list[str]:
        return [self.card.name]

    def open(self, name: str, host: Host) -> Network:
        return open_network(find(self.card, host), self.card.name, self.preprocessing, host, dimension=self.dimension)


@dataclass(frozen=True)
class FileEmbedder:
    """Networks that a user puts into the ``likeness`` folder, known by the beginning of the file name."""

    prefix: str
    preprocessing: Preprocessing
    dimension: int = 512
    unit: bool = False
    """Whether such files answer with unit vectors."""

    def _files(self, host: Host) -> dict[str, Path]:
        files = [path for folder in host.folders("likeness") for path in sorted(folder.glob("*.onnx"))]
        return {path.stem: path for path in reversed(files) if path.stem.lower().startswith(self.prefix)}

    def names(self, host: Host) -> list[str]:
        return sorted(self._files(host))

    def open(self, name: str, host: Host) -> Network:
        files = self._files(host)
        path = files.get(name) or next((files[stem] for stem in sorted(files)), None)
        if path is None:
            folders = ", ".join(str(folder) for folder in host.folders("likeness"))
            raise BadInput(
                f"the embedder {name!r} needs a file {self.prefix}*.onnx, which is in none of: {folders}. Put it "
                "there, or choose another embedder."
            )
        return open_network(path, path.stem, self.preprocessing, host, dimension=self.dimension, unit=self.unit)


embedders: Registry[Embedder] = Registry("embedder", __name__, __path__)


def choices(host: Host = STANDALONE) -> list[str]:
    """Names for a combo box: the catalogue's embedders, the user's files, the packs with a recogniser, the lab's."""
    order = ["sface", *(name for name in embedders.names() if name != "sface")]
    names = dict.fromkeys(name for entry in order for name in embedders[entry].names(host))
    return sorted(names, key=of_the_lab)


def network(embedder: str, host: Host = STANDALONE) -> Network:
    """The network behind the name ``embedder``: a registry name, or one of ``choices``. BadInput if there is none."""
    # The registry's own names first: they need no look into folders.
    if embedder in embedders:
        return embedders[embedder].open(embedder, host)
    for entry in embedders:
        if embedder in entry.names(host):
            return entry.open(embedder, host)
    raise BadInput(
        explain(embedder, "recogniser", host)
        or f"there is no embedder called {embedder!r}. Known: {', '.join(choices(host))}. A model pack must lie in "
        "models/insightface/models/<pack> and hold a recognition network."
    )


def contract(embedder: str, host: Host = STANDALONE) -> Contract:
    """What makes the vectors of ``embedder`` comparable. Reads the file's outside; opens no session."""
    return network(embedder, host).contract


def installed(host: Host = STANDALONE) -> dict[str, Contract]:
    """The embedders whose files are there and whole, by name, with their contracts; opens no session."""
    found: dict[str, Contract] = {}
    for name in choices(host):
        try:
            found[name] = contract(name, host)
        except MissingModel:
            continue
        except BadModelFile as error:
            log.warning("the embedder %s cannot be used: %s", name, error)
    return found


def align(picture: Tensor, faces: Sequence[Face], size: int) -> Tensor:
    """(N, 3, size, size) crops of ``picture`` (H, W, 3), each face's five points on the ArcFace template.

    Stays float32 from the picture to the network, so that nothing is rounded to 256 steps in between. Beyond the
    picture's border a crop is black, as in InsightFace.
    """
    template = arcface_template(size)
    return warp(picture, np.stack([similarity(face.points, template) for face in faces]), (size, size))


def embed(image: Any, faces: Faces, embedder: str = "sface", *, host: Host = STANDALONE) -> Faces:
    """``faces`` of ``image`` (B, H, W, 3), each with its embedding; those that carry it already are left alone.

    All faces of all pictures go through the network in true batches of at most ``CHUNK``.
    """
    image = as_image(image)
    check_faces(image, faces)
    net = network(embedder, host)
    todo = [(i, j) for i, found in enumerate(faces) for j, face in enumerate(found) if not face.embedding(net.contract)]
    changed = [list(found) for found in faces]
    for start in range(0, len(todo), CHUNK):
        host.check_interrupt()
        part = todo[start : start + CHUNK]
        crops = [
            align(image[i], [changed[i][j] for _, j in group], net.size) for i, group in groupby(part, lambda at: at[0])
        ]
        for (i, j), vector in zip(part, net.vectors(torch.cat(crops)), strict=True):
            face = changed[i][j]
            changed[i][j] = replace(face, embeddings=(*face.embeddings, Embedding(vector, net.contract)))
    return faces.with_images(tuple(tuple(found) for found in changed))
