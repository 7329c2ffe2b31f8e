"""Choosing faces: which of those found are meant. The batch length never changes; a picture may end up without a face.

What happens to a picture without a face is decided here too (``settle``) as booleans; the pixels are the nodes' affair.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType

import numpy as np

from .errors import BadInput, NoFace
from .identity import RECOGNISED, nearest, required
from .types import Array, Embedding, Face, Faces, Identity, Person, normalised

Match = tuple[Person, float, float]
"""Whom a face is nearest to, the cosine, and the lead over the second; see ``identity.nearest``."""

ORDERS: MappingProxyType[str, Callable[[Face], float]] = MappingProxyType(
    {
        "large-small": lambda f: -f.area,
        "small-large": lambda f: f.area,
        "left-right": lambda f: float(f.centre[0]),
        "right-left": lambda f: -float(f.centre[0]),
        "top-bottom": lambda f: float(f.centre[1]),
        "bottom-top": lambda f: -float(f.centre[1]),
        "best-worst": lambda f: -f.confidence,
        "worst-best": lambda f: f.confidence,
    }
)
"""By name what to sort by, upwards. Faces that tie stay in the order they had."""

GENDERS = ("any", "female", "male")

POLICIES = ("error", "skip", "pass through", "blank")
"""What becomes of a picture with no face left: stop with a sentence; leave it out of the result; hand it on unchanged;
put black in its place."""

_PART = re.compile(r"\s*(-?\d+)\s*(?:-\s*(-?\d+)\s*)?")


def parse_indices(text: str, count: int) -> list[int]:
    """The places meant by ``text`` among ``count`` faces, in the order written, each once.

    ``0,2-4,-1``: single places and ranges with both ends, from 0; a negative place counts from the end (-1 is the
    last). Places that are not there are left out. Nothing written means all. Raises BadInput for anything else.
    """
    if not text.strip():
        return list(range(count))
    places: list[int] = []
    for part in text.split(","):
        match = _PART.fullmatch(part)
        if match is None:
            raise BadInput(
                f"cannot read the face indices {text!r} at {part.strip()!r}. Write places from 0, ranges, or negative "
                "places from the end, with commas between: 0,2-4,-1"
            )
        first, last = match.group(1), match.group(2)
        start = int(first) + (count if first.startswith("-") else 0)
        stop = start if last is None else int(last) + (count if last.startswith("-") else 0)
        # Cut to what is there before counting, so that 0-999999999 costs nothing.
        low, high = max(0, min(start, stop)), min(count - 1, max(start, stop))
        span = range(low, high + 1)
        places.extend(span if start <= stop else reversed(span))
    return list(dict.fromkeys(places))


def select(
    faces: Faces,
    *,
    order: str = "large-small",
    indices: str = "",
    limit: int = 0,
    smallest: float = 0,
    largest: float = 0,
    youngest: float = 0,
    oldest: float = 0,
    gender: str = "any",
    confidence: float = 0,
    tracks: str = "",
    identity: Identity | None = None,
    threshold: float = RECOGNISED,
    margin: float = 0,
    one_each: bool = False,
) -> Faces:
    """``faces`` without those not meant, in ``order``. First the filters, then the order, then ``indices``, ``limit``.

    ``smallest``, ``largest``: a box's longer side in pixels. ``youngest``, ``oldest``: years, both included.
    ``confidence``: the detector's, at least. 0 switches each of these off, and ``limit`` (faces a picture) too.
    ``tracks``: numbers of tracked people, written as ``indices`` are; faces that were never tracked don't pass.
    ``identity``: only faces whose nearest person has a cosine of at least ``threshold`` and lies ``margin`` before the
    second; they are labelled with the name. Tracked faces are judged as one over all frames (``of_tracks``).
    ``one_each``: of several faces taken for one person in a picture only the nearest. Faces of unknown age or gender
    don't pass an age or gender filter: nothing says that they are meant.

    Raises BadInput where there are faces, but none of them was measured for what it is to be chosen by;
    ContractMismatch if ``identity`` is given and a face lacks an embedding of its contract.
    """
    if order not in ORDERS:
        raise BadInput(f"there is no order {order!r}. Known: {', '.join(ORDERS)}.")
    if gender not in GENDERS:
        raise BadInput(f"there is no gender {gender!r}. Known: {', '.join(GENDERS)}.")
    if (largest and smallest > largest) or (oldest and youngest > oldest):
        raise BadInput(
            f"nothing can pass: sizes {smallest:g} to {largest:g} px, ages {youngest:g} to {oldest:g}. "
            "The lower limit must not exceed the upper one; 0 switches a limit off."
        )
    parse_indices(indices, 0)
    _require_measured(
        faces,
        ("age", bool(youngest or oldest), lambda f: f.age is not None, "Switch attributes on in Detect Faces"),
        ("gender", gender != "any", lambda f: f.gender is not None, "Switch attributes on in Detect Faces"),
        ("track", bool(tracks.strip()), lambda f: f.track is not None, "Put Track Faces before"),
    )
    known = {} if identity is None else of_tracks(faces, identity)
    people = 1 + max((face.track for found in faces for face in found if face.track is not None), default=-1)
    followed = set(parse_indices(tracks, people)) if tracks.strip() else None

    def passes(face: Face) -> bool:
        if followed is not None and face.track not in followed:
            return False
        side = max(face.width, face.height)
        if side < smallest or (largest and side > largest) or face.confidence < confidence:
            return False
        if (youngest or oldest) and (face.age is None or face.age < youngest or (oldest and face.age > oldest)):
            return False
        return gender == "any" or face.gender == gender

    def chosen(found: tuple[Face, ...]) -> tuple[Face, ...]:
        left = tuple(face for face in found if passes(face))
        if identity is not None:
            names = recognise(left, identity, known, threshold, margin, one_each)
            left = tuple(replace(face, label=who) for face, who in zip(left, names, strict=True) if who is not None)
        left = sorted(left, key=ORDERS[order])
        left = [left[i] for i in parse_indices(indices, len(left))]
        return tuple(left[:limit] if limit > 0 else left)

    return faces.with_images(tuple(chosen(found) for found in faces))


def _require_measured(faces: Faces, *filters: tuple[str, bool, Callable[[Face], bool], str]) -> None:
    """Raise BadInput for a filter (what, whether it is on, whether a face has it, what to do) that no face could pass:
    what was never measured would otherwise look like nobody there."""
    everybody = [face for found in faces for face in found]
    for what, wanted, has, remedy in filters:
        if wanted and everybody and not any(has(face) for face in everybody):
            raise BadInput(f"faces are to be chosen by {what}, but no face carries one. {remedy}, or drop this filter.")


def name(
    faces: Faces, identity: Identity, *, threshold: float = RECOGNISED, margin: float = 0, one_each: bool = True
) -> Faces:
    """All of ``faces``, labelled: with a name who is somebody of ``identity``, with an empty one who is nobody of it.

    For the rest see ``select``.
    """
    known = of_tracks(faces, identity)

    def named(found: tuple[Face, ...]) -> tuple[Face, ...]:
        names = recognise(found, identity, known, threshold, margin, one_each)
        return tuple(replace(face, label=who or "") for face, who in zip(found, names, strict=True))

    return faces.with_images(tuple(named(found) for found in faces))


def of_tracks(faces: Faces, identity: Identity) -> dict[int, Match]:
    """Whom of ``identity`` the people followed through ``faces`` are nearest to, by track number.

    By the mean of all their vectors, each counting as the detector was sure of it: who somebody is does not change
    from frame to frame, but a blurred frame alone may say so.
    """
    vectors: dict[int, list[Array]] = {}
    for face in (face for found in faces for face in found if face.track is not None):
        embedding = face.embedding(identity.contract)
        # A face that tracking filled in has no confidence: nobody saw it.
        if embedding is not None and face.track is not None and face.confidence > 0:
            vectors.setdefault(face.track, []).append(normalised(embedding.vector) * face.confidence)
    return {
        track: nearest(Embedding(np.sum(of_track, 0), identity.contract), identity)
        for track, of_track in vectors.items()
    }


def match(face: Face, identity: Identity, known: Mapping[int, Match]) -> Match:
    """Whom of ``identity`` the face is nearest to: as its track is (``known``, from ``of_tracks``), else by itself.

    Raises ContractMismatch for a face without a track that lacks an embedding of the identity's contract.
    """
    if face.track is not None and face.track in known:
        return known[face.track]
    return nearest(required(face, identity.contract, "selecting by identity"), identity)


def recognise(
    found: tuple[Face, ...],
    identity: Identity,
    known: Mapping[int, Match],
    threshold: float,
    margin: float,
    one_each: bool,
) -> list[str | None]:
    """For each face of one picture the name of whom of ``identity`` it is, or None; ``known`` as for ``match``."""
    labels: list[str | None] = []
    similarities: list[float] = []
    for face in found:
        person, similarity, lead = match(face, identity, known)
        labels.append(person.name if similarity >= threshold and lead >= margin else None)
        similarities.append(similarity)
    if one_each:
        for label in {label for label in labels if label is not None}:
            own = [i for i, other in enumerate(labels) if other == label]
            best = max(own, key=lambda i: similarities[i])
            labels = [None if i in own and i != best else other for i, other in enumerate(labels)]
    return labels


def settle(faces: Faces, policy: str = "pass through", what: str = "left after selecting") -> tuple[bool, ...]:
    """Per picture whether it has a face. Under ``error`` raises NoFace where one has none.

    For the other ``POLICIES`` the caller does to the pictures marked False what the policy says.
    """
    if policy not in POLICIES:
        raise BadInput(f"there is no policy {policy!r}. Known: {', '.join(POLICIES)}.")
    kept = tuple(len(found) > 0 for found in faces)
    if policy == "error" and not all(kept):
        first = kept.index(False)
        height, width = faces.sizes[first]
        more = f" (and in {kept.count(False) - 1} more)" if kept.count(False) > 1 else ""
        raise NoFace(
            f"no face {what} in image {first + 1} of {len(faces)}{more} ({width}×{height}"
            f"{', ' + faces.origin if faces.origin else ''}). Widen the selection, lower the detector's minimum, or "
            "choose another policy than 'error'."
        )
    return kept
