"""The score of faces: similarity, quality and what became of pose and expression, in one record a face."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..errors import BadInput
from ..geometry import iou
from ..identity import nearest, required
from ..image import as_image, check_faces
from ..types import Contract, Embedding, Face, Faces, FaceScore, Identity, Person, normalised
from .copy_paste import copy_paste
from .expression import expression_error, opened_or_closed, pose_error
from .judge import threshold
from .quality import quality

FAILURES = (
    "no_face",
    "no_judge",
    "low_similarity",
    "low_quality",
    "pose_changed",
    "expression_changed",
    "copy_paste",
)
"""The flags that keep a face from passing; all others are only worth knowing."""


@dataclass(frozen=True)
class Limits:
    """What a face must reach to pass."""

    similarity: float | None = None
    """Least cosine; None: the judge's own (``judge.threshold``)."""
    quality: float = 0.5
    """Least quality, 0 to 1."""
    pose: float = 10.0
    """Most degrees that the head may have turned against the target."""
    expression: float = 0.04
    """Most mean change of mouth and eyes, in parts of the eye distance: twice what the landmarks tremble by, or the
    mouth opened by 8 mm. An eye or a mouth that went from open to shut is told at any limit."""
    copy_paste: float = 0.5
    """Highest copy-paste measure."""


@dataclass(frozen=True)
class Weights:
    """How much each measure counts in the overall score; what could not be measured is left out of the mean."""

    similarity: float = 0.6
    quality: float = 0.2
    pose: float = 0.1
    expression: float = 0.1


def likeness(similarity: float, same: float) -> float:
    """A cosine on the scale of the score: 0 at 0 and below, 0.5 at the threshold ``same``, 1 at 1, straight between."""
    if similarity < same:
        return max(0.0, 0.5 * similarity / same) if same > 0 else 0.0
    return min(1.0, 0.5 + 0.5 * (similarity - same) / max(1 - same, 1e-6))


def agreement(error: float, limit: float) -> float:
    """An error on the scale of the score: 1 at 0, 0.5 at ``limit``, 0 at twice that."""
    return max(0.0, 1 - error / (2 * max(limit, 1e-6)))


def score(
    image: Any,
    faces: Faces,
    identity: Identity | None = None,
    *,
    judge: Contract | None = None,
    drivers: Collection[Contract] = frozenset(),
    target: Faces | None = None,
    references: Sequence[Embedding] | Mapping[str, Sequence[Embedding]] | None = None,
    limits: Limits | None = None,
    weights: Weights | None = None,
) -> list[FaceScore]:
    """One record for every face of ``image`` (B, H, W, 3), in order; a picture without a face has one that says so.

    With an ``identity`` each face is compared with the nearest person of it. The faces must carry embeddings of the
    identity's contract; ``judge`` is that contract, said again so that a mix-up is refused, or, without an identity,
    the one whose length is reported. ``drivers`` are the contracts that steered the edit: if the judge is among them,
    the flag ``judge_drove_swap`` says that its similarity is to be doubted. ``target`` are the faces of the picture
    before the edit, found again by their place: they give the changes of pose and expression. ``references`` are
    embeddings of further pictures, by person if there are several: they give the copy-paste measure.

    The overall score is the weighted mean of ``likeness``, quality and the two ``agreement``s, over what was measured.
    Raises ContractMismatch for faces or references embedded by another network, BadInput for faces of other pictures.
    Never raises for want of a face; a face without any embedding gets ``no_judge``.
    """
    image = as_image(image)
    limits, weights = limits or Limits(), weights or Weights()
    check_faces(image, faces)
    if target is not None and len(target) not in (1, len(faces)):
        raise BadInput(
            f"{len(faces)} pictures need as many targets, or one for all; got the faces of {len(target)} pictures"
        )
    contract = identity.contract if identity is not None else judge
    if identity is not None and judge is not None:
        judge.require(identity.contract, "scoring against an identity")
    name = identity.contract.model if identity is not None and identity.people else None
    records: list[FaceScore] = []
    for i, found in enumerate(faces):
        if not found:
            records.append(FaceScore(i, None, 0.0, False, judge=name, flags=("no_face",)))
            continue
        at = 0 if target is not None and len(target) == 1 else i
        before = _pairs(found, faces.sizes[i], target[at], target.sizes[at]) if target is not None else None
        for j, face in enumerate(found):
            box = (float(face.box[0]), float(face.box[1]), float(face.box[2]), float(face.box[3]))
            measured = quality(image[i], face, contract=contract)
            record = FaceScore(i, j, 0.0, False, quality=measured.score, parts=measured.parts, box=box)
            flags = [*measured.flags]
            if identity is not None:
                record = _compared(record, face, identity, references)
                if record.similarity is None:
                    flags.append("no_judge")
                elif identity.contract in drivers:
                    flags.append("judge_drove_swap")
            if before is not None:
                old = before.get(j)
                if old is None:
                    flags.append("no_target_face")
                else:
                    record = _changed(record, face, old)
                    if opened_or_closed(face, old):
                        flags.append("expression_changed")
            records.append(_judged(record, flags, identity, limits, weights))
    return records


def _compared(
    record: FaceScore,
    face: Face,
    identity: Identity,
    references: Sequence[Embedding] | Mapping[str, Sequence[Embedding]] | None,
) -> FaceScore:
    """``record`` with the nearest person, the similarity and, where others are given, the copy-paste measure."""
    if not identity.people or not face.embeddings:
        return record
    embedding = required(face, identity.contract, "scoring against an identity")
    person, similarity, _ = nearest(embedding, identity)
    copied: float | None = None
    others = references.get(person.name, ()) if isinstance(references, Mapping) else references or ()
    for other in others:
        identity.contract.require(other.contract, "measuring copy-paste")
    if others:
        copied = copy_paste(embedding.vector, _given(person, embedding), [other.vector for other in others])
    return replace(
        record,
        person=person.name,
        similarity=max(-1.0, min(1.0, similarity)),
        judge=identity.contract.model,
        copy_paste=copied,
    )


def _given(person: Person, embedding: Embedding) -> Any:
    """The person's vector that the face may have copied: the nearest."""
    return person.vectors[int(np.argmax(person.unit @ normalised(embedding.vector)))]


def _changed(record: FaceScore, face: Face, old: Face) -> FaceScore:
    pose = pose_error(face.pose, old.pose) if face.pose is not None and old.pose is not None else None
    return replace(record, pose_error=pose, expression_error=expression_error(face, old))


def _judged(
    record: FaceScore, flags: list[str], identity: Identity | None, limits: Limits, weights: Weights
) -> FaceScore:
    """``record`` with its overall score, the flags of what is out of limits, and the verdict."""
    parts: list[tuple[float, float]] = []
    if identity is not None:
        # What should have been compared and could not be counts as unlike: nothing passes unseen.
        same = threshold(identity.contract).same if limits.similarity is None else limits.similarity
        parts.append((weights.similarity, 0.0 if record.similarity is None else likeness(record.similarity, same)))
        if record.similarity is not None and record.similarity < same:
            flags.append("low_similarity")
    if record.quality is not None:
        parts.append((weights.quality, record.quality))
        if record.quality < limits.quality:
            flags.append("low_quality")
    if record.pose_error is not None:
        parts.append((weights.pose, agreement(record.pose_error, limits.pose)))
        if record.pose_error > limits.pose:
            flags.append("pose_changed")
    if record.expression_error is not None:
        parts.append((weights.expression, agreement(record.expression_error, limits.expression)))
        if record.expression_error > limits.expression:
            flags.append("expression_changed")
    if record.copy_paste is not None and record.copy_paste > limits.copy_paste:
        flags.append("copy_paste")
    total = sum(weight for weight, _ in parts)
    overall = sum(weight * value for weight, value in parts) / total if total > 0 else 0.0
    passed = not any(flag in FAILURES for flag in flags)
    ordered = sorted(set(flags), key=lambda flag: (flag not in FAILURES, flag))
    return replace(record, score=min(1.0, max(0.0, overall)), passed=passed, flags=tuple(ordered))


def _pairs(
    found: Sequence[Face], size: tuple[int, int], before: Sequence[Face], old_size: tuple[int, int]
) -> dict[int, Face]:
    """Which face of ``before`` stands where each of ``found`` does: best overlap first, each face once.

    The picture may have been scaled meanwhile. One face in both is taken for the same wherever it stands.
    """
    if len(found) == 1 and len(before) == 1:
        return {0: before[0]}
    if not before:
        return {}
    scale = np.array([size[1] / old_size[1], size[0] / old_size[0]] * 2)
    boxes = np.stack([np.asarray(face.box, np.float64) * scale for face in before])
    overlaps = np.stack([iou(np.asarray(face.box, np.float64), boxes) for face in found])
    pairs: dict[int, Face] = {}
    taken: set[int] = set()
    for flat in np.argsort(-overlaps, axis=None, kind="stable"):
        j, k = (int(v) for v in divmod(int(flat), len(before)))
        if overlaps[j, k] < 0.1:
            break
        if j not in pairs and k not in taken:
            pairs[j] = before[k]
            taken.add(k)
    return pairs
