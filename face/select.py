"""Choosing faces: which of those found are meant. The batch length never changes; a picture may end up without a face.

What happens to a picture without a face is decided here too (``settle``) as booleans; the pixels are the nodes' affair.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from types import MappingProxyType

from .errors import BadInput, NoFace
from .identity import nearest, required
from .types import Face, Faces, Identity

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
    threshold: float = 0.36,
    margin: float = 0,
    one_each: bool = False,
) -> Faces:
    """``faces`` without those not meant, in ``order``. First the filters, then the order, then ``indices``, ``limit``.

    ``smallest``, ``largest``: a box's longer side in pixels. ``youngest``, ``oldest``: years, both included.
    ``confidence``: the detector's, at least. 0 switches each of these off, and ``limit`` (faces a picture) too.
    ``tracks``: numbers of tracked people, written as ``indices`` are; faces that were never tracked don't pass.
    ``identity``: only faces whose nearest person has a cosine of at least ``threshold`` (0.36 is what OpenCV Zoo gives
    for SFace) and lies ``margin`` before the second; they are labelled with the name. ``one_each``: of several faces
    taken for one person in a picture only the nearest. Faces of unknown age or gender don't pass an age or gender
    filter: nothing says that they are meant.

    Raises ContractMismatch if ``identity`` is given and a face lacks an embedding of its contract.
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
            names = recognise(left, identity, threshold, margin, one_each)
            left = tuple(replace(face, label=who) for face, who in zip(left, names, strict=True) if who is not None)
        left = sorted(left, key=ORDERS[order])
        left = [left[i] for i in parse_indices(indices, len(left))]
        return tuple(left[:limit] if limit > 0 else left)

    return faces.with_images(tuple(chosen(found) for found in faces))


def name(
    faces: Faces, identity: Identity, *, threshold: float = 0.36, margin: float = 0, one_each: bool = True
) -> Faces:
    """All of ``faces``, those that are somebody of ``identity`` labelled with the name; for the rest see ``select``."""
    return faces.with_images(
        tuple(
            tuple(
                replace(face, label=label)
                for face, label in zip(found, recognise(found, identity, threshold, margin, one_each), strict=True)
            )
            for found in faces
        )
    )


def recognise(
    found: tuple[Face, ...], identity: Identity, threshold: float, margin: float, one_each: bool
) -> list[str | None]:
    """For each face of one picture the name of whom of ``identity`` it is, or None."""
    labels: list[str | None] = []
    similarities: list[float] = []
    for face in found:
        person, similarity, lead = nearest(required(face, identity.contract, "selecting by identity"), identity)
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
