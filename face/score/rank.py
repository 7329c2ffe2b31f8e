"""The best pictures of a batch, and those that are good enough."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from ..errors import BadInput
from ..types import FaceScore

KEYS = ("score", "similarity", "quality", "copy_paste", "pose_error", "expression_error")
"""What can be ranked by."""

LOWER_IS_BETTER = frozenset({"copy_paste", "pose_error", "expression_error"})

NEEDS: Mapping[str, str] = MappingProxyType(
    {
        "similarity": "an identity",
        "copy_paste": "an identity and further pictures of the person as references",
        "pose_error": "the faces of the target with their pose",
        "expression_error": "the faces of the target with the same landmarks as these, the mesh or 68 points",
    }
)
"""What must be given for a measure to be taken; the others need nothing."""

PASSED = "passed"
"""The key that gates by the verdict, whatever the numbers."""


@dataclass(frozen=True)
class Gate:
    """A batch divided in two."""

    mask: tuple[bool, ...]
    """Per picture, whether it passed."""
    passed: tuple[int, ...]
    """Numbers of the pictures that did, in order."""
    failed: tuple[int, ...]
    """Numbers of those that did not."""


def per_picture(scores: Sequence[FaceScore], key: str = "score", pictures: int | None = None) -> list[float | None]:
    """Every picture's value: that of its best face. None where no face has one.

    ``pictures`` is the batch's length, by default as many as the scores speak of.
    """
    _known(key, KEYS)
    values: list[float | None] = [None] * _count(scores, pictures)
    for record in scores:
        value = getattr(record, key)
        if record.face is None or value is None or math.isnan(value):
            continue
        old = values[record.image]
        if old is None or _rank(value, key) > _rank(old, key):
            values[record.image] = float(value)
    return values


def best_of(
    scores: Sequence[FaceScore], top_k: int = 1, key: str = "score", *, pictures: int | None = None
) -> list[int]:
    """The numbers of the ``top_k`` best pictures, best first; of equals the earlier comes first.

    A picture counts as its best face; one without a value comes last. Fewer pictures than asked for are all returned.
    Raises BadInput for an unknown key or fewer than one.
    """
    if top_k < 1:
        raise BadInput(f"the number of pictures to keep must be at least 1; got {top_k}")
    values = per_picture(scores, key, pictures)
    # Python's sort is stable, so that equals keep their order.
    return sorted(range(len(values)), key=lambda i: -_rank(values[i], key))[:top_k]


def gate(
    scores: Sequence[FaceScore], threshold: float | None = None, key: str = "score", *, pictures: int | None = None
) -> Gate:
    """Which pictures have a face that reaches ``threshold``: at least it, or at most for errors and copy-paste.

    ``key`` ``passed`` (and no threshold) asks for a face that passed. A picture without a value fails; if that are all
    pictures with a face, nothing was measured, and BadInput says what it needs.
    """
    _known(key, (*KEYS, PASSED))
    if key == PASSED or threshold is None:
        mask = [False] * _count(scores, pictures)
        for record in scores:
            mask[record.image] |= record.passed
    else:
        limit, values = _rank(threshold, key), per_picture(scores, key, pictures)
        if all(value is None for value in values) and any(record.face is not None for record in scores):
            raise BadInput(
                f"nothing can be gated by {key}, because it was not measured on any face: it needs "
                f"{NEEDS.get(key, 'faces')}. Give that to Score Faces, or gate by another value."
            )
        mask = [value is not None and _rank(value, key) >= limit for value in values]
    return Gate(
        tuple(mask),
        tuple(i for i, kept in enumerate(mask) if kept),
        tuple(i for i, kept in enumerate(mask) if not kept),
    )


def _rank(value: float | None, key: str) -> float:
    if value is None:
        return -math.inf
    return -value if key in LOWER_IS_BETTER else value


def _count(scores: Sequence[FaceScore], pictures: int | None) -> int:
    needed = max((record.image for record in scores), default=-1) + 1
    if pictures is None:
        return needed
    if pictures < needed:
        raise BadInput(f"the scores speak of {needed} pictures, but the batch has {pictures}. Score this very batch.")
    return pictures


def _known(key: str, keys: Sequence[str]) -> None:
    if key not in keys:
        raise BadInput(f"scores cannot be ordered by {key!r}. Known: {', '.join(keys)}.")
