"""From an identity to what an adapter takes: its vectors, and what an image encoder sees of its pictures.

Every format's crop and normalisation is its authors'; where the most used packs do otherwise, the recipe ``popular``
does as they do. An encoder runs only for a format that uses its answer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..embed import align
from ..errors import BadInput, BadModelFile, MissingModel
from ..geometry import FFHQ_512, similarity, transform, warp
from ..host import STANDALONE, Host
from ..parse import AUTO, enclosed, parse, where
from ..types import Person, Reference
from . import AUTHORS, NOTHING, POPULAR, Evidence, Feature, IdAdapter, vectors_of
from ._checkpoint import read
from ._eva import eva
from .consistentid import REGIONS
from .photomaker import PhotoMakerText

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
PHOTOMAKER_SIDE = 224

WHITE = ("background", "cloth", "hat", "left ear", "right ear", "earring", "neck", "necklace")
"""What PuLID paints over (1aa2fc7 pulid/pipeline_v1_1.py: bg_label)."""
GREY = (0.299, 0.587, 0.114)

EVA = "EVA02_CLIP_L_336"
"""How the published file's name begins."""


@dataclass(frozen=True, eq=False)
class Encoder:
    """An image encoder that a host brings."""

    look: Callable[[Tensor], Tensor]
    """Normalised pixels (R, 3, S, S) to the tokens (R, T, C) before its last layer."""
    source: Any
    """The model behind it: answers are remembered as long as it is the same."""


def normalise(pixels: Tensor) -> Tensor:
    """Pixels (R, 3, S, S) in [0, 1] as CLIP takes them."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (CLIP_MEAN, CLIP_STD))
    return (pixels - mean) / std


def fitted(pictures: Tensor, side: int) -> Tensor:
    """(R, 3, side, side): ``pictures`` (R, 3, S, S) scaled as CLIP's own preprocessing scales, bicubic, antialiased."""
    if pictures.shape[-1] == side:
        return pictures
    return F.interpolate(pictures, (side, side), mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)


def head(reference: Reference) -> Tensor:
    """(1, 3, S, S): the reference picture, which is square and shows the head with hair and chin."""
    return reference.image.permute(2, 0, 1)[None]


def box(reference: Reference) -> Tensor:
    """(1, 3, S, S): the square around the face's box, black beyond the picture."""
    x1, y1, x2, y2 = (float(v) for v in reference.face.box)
    side = max(x2 - x1, y2 - y1, 1.0)
    size = max(1, round(side))
    matrix = np.array([[[size / side, 0, 0], [0, size / side, 0]]], np.float64)
    matrix[0, :, 2] = size / 2 - np.array([(x1 + x2) / 2, (y1 + y2) / 2]) * size / side
    return warp(reference.image, matrix, (size, size))


def whitened(reference: Reference, host: Host = STANDALONE, parser: str = AUTO) -> Tensor:
    """(1, 3, 512, 512): the aligned face in grey, everything that is not face or hair painted white (PuLID)."""
    matrix = similarity(reference.face.points, FFHQ_512)
    picture = warp(reference.image, matrix[None], (512, 512))
    face = reference.face.moved(lambda points: transform(matrix, points))
    labels = parse(picture[0].permute(1, 2, 0), face, parser, host=host)
    grey = (picture * torch.tensor(GREY)[:, None, None]).sum(1, keepdim=True).expand(-1, 3, -1, -1)
    return torch.where(where(labels, WHITE)[None, None] > 0, torch.ones_like(grey), grey)


def cut(feature: Feature, references: tuple[Reference, ...], recipe: str, host: Host) -> Tensor:
    """(R, 3, S, S) normalised pixels of the ``references`` for the encoder."""
    shown: list[Tensor] = []
    for reference in references:
        if feature.crop == "aligned":
            crop = align(reference.image, [reference.face], feature.size)
            # The authors' own example hands InsightFace's picture on as it is: blue, green, red.
            crop = crop if recipe == POPULAR else crop.flip(1)
        elif feature.crop == "whitened":
            # As the torchvision does that the authors pin: tensors are neither smoothed nor kept in range.
            crop = F.interpolate(whitened(reference, host), (feature.size,) * 2, mode="bicubic", align_corners=False)
        else:
            crop = box(reference) if feature.crop == "box" else head(reference)
        shown.append(normalise(fitted(crop, feature.size)))
    return torch.cat(shown)


def nothing(feature: Feature, recipe: str) -> Tensor:
    """(1, 3, S, S): what the encoder is shown for the unconditional rows: zeros, or in packs a black picture."""
    blank = torch.zeros(1, 3, feature.size, feature.size)
    return normalise(blank) if recipe == POPULAR else blank


def regions(reference: Reference, size: int, host: Host) -> dict[str, Tensor]:
    """Per part of ConsistentID (1, 3, S, S) normalised pixels: the picture, black but for the part's own pixels.

    What a part encloses is its own: the face has eyes and mouth.
    """
    labels = parse(reference.image, reference.face, host=host)
    found: dict[str, Tensor] = {}
    for part, names in REGIONS:
        masks = (where(labels, (name,)) for name in names)
        mask = next((mask for mask in masks if bool(mask.any())), None)
        if mask is not None:
            found[part] = normalise(fitted(head(reference) * enclosed(mask), size))
    return found


def eva_file(host: Host = STANDALONE) -> Path:
    """Where EVA-CLIP's file lies; MissingModel names the folders."""
    folders = [*host.folders("clip_vision"), *host.folders("likeness")]
    for folder in folders:
        for path in sorted(folder.glob(f"{EVA}*")) if folder.is_dir() else ():
            if path.suffix in (".pt", ".bin", ".safetensors"):
                return path
    raise MissingModel(
        "PuLID",
        f"{EVA}_psz14_s6B.pt",
        folders,
        "It is published as QuanSun/EVA-CLIP (MIT): copy it into one of these folders.",
    )


def _eva_tensors(path: Path) -> dict[str, Tensor]:
    groups = read(path).groups
    tensors = groups.get("visual") or {
        f"{group}.{name}" if name else group: tensor
        for group, inner in groups.items()
        for name, tensor in inner.items()
    }
    if "patch_embed.proj.weight" not in tensors or "rope.freqs_cos" not in tensors:
        raise BadModelFile(f"{path.name} is not EVA02-CLIP-L; use EVA02_CLIP_L_336_psz14_s6B.pt of QuanSun/EVA-CLIP")
    return dict(tensors)


def evidence(
    adapter: IdAdapter,
    person: Person,
    encoder: Encoder | None = None,
    *,
    recipe: str,
    host: Host = STANDALONE,
    words: bool = True,
) -> Evidence:
    """What ``adapter`` takes of ``person``. ``encoder``: the one that its feature names, where that is a CLIP.

    ``words``: for its prompt writer; else for its projector. Nothing is looked at that the one asked does not use.
    Raises BadInput where the encoder is missing or another one, MissingModel where PuLID's is.
    """
    vectors = vectors_of(person, adapter)
    if isinstance(adapter.text, PhotoMakerText):
        shown = [normalise(fitted(head(r), PHOTOMAKER_SIDE)) for r in person.references]
        return Evidence(vectors, pixels=torch.cat(shown))
    feature = adapter.feature
    if feature is None:
        return Evidence(vectors)
    in_words = words and adapter.text is not None
    pixels = cut(feature, person.references[:1] if in_words else person.references, recipe, host)
    if feature.encoder.startswith("eva02"):
        tensors = _eva_tensors(eva_file(host))
        answers = [eva(tensors, one[None]) for one in pixels]
        pooled = torch.cat([answer[0] for answer in answers])[:, None]
        layers = tuple(torch.cat(layer) for layer in zip(*(answer[1] for answer in answers), strict=True))
        return Evidence(vectors, pooled, None, layers)
    if encoder is None:
        raise BadInput(
            f"{adapter.title} needs an image encoder ({feature.encoder}, its tokens {feature.width} wide) to look at "
            "the person's pictures: connect a CLIP vision model."
        )
    see = encoder.look
    seen = see(pixels)
    if seen.shape[-1] != feature.width:
        raise BadInput(
            f"{adapter.title} was trained on {feature.encoder}, whose tokens are {feature.width} wide; those of the "
            f"connected image encoder are {seen.shape[-1]}. Load the other one."
        )
    seen, unseen = seen.float().cpu(), None
    if feature.blank and recipe == AUTHORS:
        unseen = torch.zeros_like(seen[:1])
    elif in_words or recipe != NOTHING:
        unseen = see(nothing(feature, recipe)).float().cpu()
    if not in_words:
        return Evidence(vectors, seen, unseen)
    shown = regions(person.references[0], feature.size, host)
    return Evidence(vectors, seen, unseen, regions={part: see(one)[0].float().cpu() for part, one in shown.items()})
