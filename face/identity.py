"""Faces to a person, and a face back to the nearest person."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch.nn.functional as F

from .combine import combine_vectors
from .errors import BadInput, ContractMismatch, NoFace
from .image import as_image, check_faces
from .types import Array, Contract, Embedding, Face, Faces, Identity, Person, Reference, normalised

RECOGNISED = 0.36
"""Least cosine at which a face is taken for a person, where the caller says nothing else: SFace's, by OpenCV Zoo."""

HEAD = 2.2
"""Side of a reference crop in box sides: hair, ears and chin are in it, which image encoders want."""

REFERENCE_SIDE = 1024
"""References are never larger than this: about 465 px from brow to chin, 12 MB in memory."""


def head_crop(image: Any, face: Face) -> Reference:
    """The head of ``face`` cut out of a picture ``image`` (H, W, 3), square, with all the face's coordinates moved.

    Black where the square reaches over the picture's border. Larger squares are scaled down, smaller ones left.
    """
    side = max(1, round(HEAD * max(face.width, face.height)))
    left, top = (round(float(c) - side / 2) for c in face.centre)
    height, width = image.shape[:2]
    x1, y1, x2, y2 = max(0, left), max(0, top), min(width, left + side), min(height, top + side)
    if x1 >= x2 or y1 >= y2:
        raise BadInput(
            f"a face at {[round(float(v)) for v in face.box]} lies outside its picture of {width}×{height} pixels. "
            "Detect the faces in this very picture."
        )
    crop = image[y1:y2, x1:x2].permute(2, 0, 1)[None]
    if side <= REFERENCE_SIDE:
        scale, crop = 1.0, F.pad(crop, (x1 - left, left + side - x2, y1 - top, top + side - y2))
    else:
        # Scale the seen part first: a face that fills a very large picture would otherwise be padded at full size.
        scale = REFERENCE_SIDE / side
        a, b = round((x1 - left) * scale), round((y1 - top) * scale)
        c, d = max(a + 1, round((x2 - left) * scale)), max(b + 1, round((y2 - top) * scale))
        crop = F.interpolate(crop, (d - b, c - a), mode="bilinear", antialias=True).clamp(0, 1)
        crop = F.pad(crop, (a, REFERENCE_SIDE - c, b, REFERENCE_SIDE - d))

    def into(points: Array) -> Array:
        # Pixel centres lie on whole numbers; scaling keeps the pixels' areas, so half a pixel has to be minded.
        return ((points - np.array([left, top], np.float32) + 0.5) * scale - 0.5).astype(np.float32)

    moved = face.moved(into)
    dense = {
        scheme: np.concatenate([p[:, :2], p[:, 2:] * np.float32(scale)], 1) for scheme, p in moved.landmarks.items()
    }
    return Reference(crop[0].permute(1, 2, 0).contiguous(), replace(moved, landmarks=dense))


def identify(
    image: Any,
    faces: Faces,
    *,
    contract: Contract,
    name: str = "person",
    combine: str = "mean",
    weights: Sequence[float] | None = None,
    references: bool = True,
) -> Identity:
    """One person from all ``faces`` of ``image`` (B, H, W, 3), which must carry an embedding under ``contract``.

    ``combine``: mean, median, quality, nfc or concat (``face.combine``). ``weights``: one per face in the order of
    pictures and faces; by default the detector's confidences for ``quality``, equal else. ``references``: keep a crop
    of every head in memory, for swappers and image encoders. Raises NoFace without a face.
    """
    image = as_image(image)
    check_faces(image, faces)
    if faces.count == 0:
        raise NoFace(
            f"no face in any of the {len(faces)} pictures of {name!r} ({faces.origin or 'given faces'}), so there is "
            "nobody to identify. Lower the minimum confidence, crop closer, or give another picture."
        )
    found = [(i, face) for i, of_picture in enumerate(faces) for face in of_picture]
    vectors = np.stack([required(face, contract, f"{name!r}").vector for _, face in found])
    if weights is None and combine == "quality":
        weights = [max(face.confidence, 1e-3) for _, face in found]
    crops = tuple(head_crop(image[i], face) for i, face in found) if references else ()
    return Identity(contract, (Person(name, combine_vectors(vectors, combine, weights), crops),))


def required(face: Face, contract: Contract, what: str) -> Embedding:
    """The face's embedding under ``contract``; ContractMismatch with a sentence that begins with ``what`` without."""
    embedding = face.embedding(contract)
    if embedding is None:
        carried = ", ".join(str(e.contract) for e in face.embeddings) or "none"
        raise ContractMismatch(
            f"{what}: a face needs an embedding of {contract}, but carries {carried}. "
            f"Embed the faces with {contract.model} first."
        )
    return embedding


def _one_contract(identities: Sequence[Identity], what: str) -> Contract:
    if not identities:
        raise BadInput(f"{what} needs at least one identity")
    first = identities[0].contract
    for other in identities[1:]:
        first.require(other.contract, what)
    return first


def combine(
    identities: Sequence[Identity],
    method: str = "mean",
    *,
    name: str | None = None,
    weights: Sequence[float] | None = None,
) -> Identity:
    """One person made of everybody in ``identities``, who are taken to be the same (or are to be blended).

    Each person counts once, however many vectors he has, unless ``weights`` (one per person) says otherwise. Named
    ``name``, or as the first. Raises ContractMismatch for vectors of different networks.
    """
    contract = _one_contract(identities, "combining identities")
    people = [person for identity in identities for person in identity.people]
    if not people:
        raise BadInput("combining identities needs at least one person; all of the identities are empty")
    if weights is not None and len(weights) != len(people):
        raise BadInput(f"{len(people)} people need as many weights; got {len(weights)}")
    shares = np.concatenate(
        [
            np.full(len(person.vectors), weight / len(person.vectors))
            for person, weight in zip(people, weights or [1.0] * len(people), strict=True)
        ]
    )
    vectors = combine_vectors(np.concatenate([person.vectors for person in people]), method, shares)
    references = tuple(reference for person in people for reference in person.references)
    return Identity(contract, (Person(name or people[0].name, vectors, references),))


def merge(identities: Sequence[Identity]) -> Identity:
    """Everybody of ``identities`` side by side, for *who is who*. A name that comes again gets a number.

    Raises ContractMismatch for vectors of different networks.
    """
    contract = _one_contract(identities, "merging identities")
    taken: Counter[str] = Counter()
    people: list[Person] = []
    for person in (person for identity in identities for person in identity.people):
        name, number = person.name, 1
        while taken[name]:
            number += 1
            name = f"{person.name} {number}"
        taken[name] += 1
        people.append(replace(person, name=name))
    return Identity(contract, tuple(people))


def nearest(embedding: Embedding, identity: Identity) -> tuple[Person, float, float]:
    """Who of ``identity`` the face is: the person, the cosine to him, and how far the second person lies behind.

    Of several vectors of a person the nearest counts. With one person the margin is 2, the most a cosine can fall.
    Raises ContractMismatch for another network's embedding, BadInput for an identity with nobody in it.
    """
    identity.contract.require(embedding.contract, "comparing a face with an identity")
    if not identity.people:
        raise BadInput("the identity holds nobody to compare with")
    unit = normalised(embedding.vector)
    similarities = np.array([float((person.unit @ unit).max()) for person in identity.people])
    best = int(similarities.argmax())
    others = np.delete(similarities, best)
    margin = float(similarities[best] - others.max()) if others.size else 2.0
    return identity.people[best], float(similarities[best]), margin
