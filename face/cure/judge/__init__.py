"""Is an attribute in a picture? Whoever can tell is asked; where nobody can, the answer is *not judged*.

To add a judge is to add a file that enters a ``Judge`` into ``judges``.

An attribute such as *curly red hair* says several things, and few judges see all of them: a parser sees hair and that
it is red, not that it curls. So a judge names the words that it cannot speak to (``Verdict.unsaid``), and the verdicts
are joined as three-valued logic joins them: missing as soon as one judge misses a part, present once every word has
been found by somebody, not judged in between.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar

from torch import Tensor

from ...errors import BadInput
from ...host import STANDALONE, Host
from ...image import as_image, check_faces
from ...lab import NAME, of_the_lab
from ...registry import Registry
from ...types import Face, Faces
from ..words import OTHER, Attribute
from ._words import negated, words

T = TypeVar("T")

AUTO = "auto"
"""Everybody who is there, in the order of their ranks."""

ELSEWHERE = frozenset({"cloth", "background"})
"""Labels that are to be seen without a face."""


@dataclass(frozen=True)
class Verdict:
    """What one judge says of one attribute in one picture."""

    attribute: str
    """The attribute's text."""
    present: bool | None
    """None: not judged."""
    score: float | None = None
    """0 to 1, 0.5 being where ``present`` turns; None where not judged."""
    judge: str = ""
    """Who said it; empty where nobody could."""
    details: str = ""
    """Why, in a few words."""
    unsaid: tuple[str, ...] = ()
    """Words of the attribute of which the judge cannot tell. What ``judge_all`` calls present has none left."""

    def to_json(self) -> dict[str, Any]:
        """Plain values, ready for ``json.dumps``; ``present`` null means not judged."""
        return {
            "attribute": self.attribute,
            "present": self.present,
            "score": self.score,
            "judge": self.judge or None,
            "details": self.details,
            "unsaid": list(self.unsaid),
        }


class Similarity(Protocol):
    """A network that lays pictures and sentences into one space, as CLIP does; ``clip.similarity`` makes one."""

    @property
    def name(self) -> str: ...

    @property
    def trouble(self) -> str:
        """Why the two sides cannot be compared, in a few words; empty if they can."""
        ...

    def image(self, picture: Tensor) -> Tensor:
        """(D,) of ``picture`` (H, W, 3)."""
        ...

    def text(self, sentence: str) -> Tensor:
        """(D,) of ``sentence``."""
        ...


@dataclass(frozen=True, eq=False)
class Evidence:
    """What there is to judge one picture by besides its pixels, and what the judges have seen in it so far."""

    similarity: Similarity | None = None
    seen: dict[Any, Any] = field(default_factory=dict[Any, Any])

    def once(self, key: Any, look: Callable[[], T]) -> T:
        """``look()``, kept under ``key``: a network looks once at a picture, however many attributes are asked for."""
        if key not in self.seen:
            self.seen[key] = look()
        return self.seen[key]


class Judge(Protocol):
    """One kind of judge."""

    @property
    def rank(self) -> int:
        """Lower is asked first. 10: trained for just this, or a measurement; 20: sees where the thing is; 30: trained
        on many attributes at once; 90: compares with words."""
        ...

    def names(self, host: Host) -> list[str]:
        """What is there of this kind now."""
        ...

    def judge(
        self, name: str, picture: Tensor, face: Face | None, attribute: Attribute, evidence: Evidence, host: Host
    ) -> Verdict | None:
        """What ``name`` says of ``attribute`` in ``picture`` (H, W, 3); ``face`` in its pixels.

        None: it knows no such attribute. A verdict that is *not judged*: it does, but cannot tell here; why is in
        ``details``. BadModelFile for a file that is no such network.
        """
        ...


judges: Registry[Judge] = Registry("judge of attributes", __name__, __path__)


def _there(host: Host) -> list[tuple[str, Judge]]:
    return [(name, entry) for entry in sorted(judges, key=lambda entry: entry.rank) for name in entry.names(host)]


def choices(host: Host = STANDALONE) -> list[str]:
    """Names for a combo box: everybody, then the judges that are there, in the order in which they are asked; the lab's
    last, who is never asked but by name."""
    names = dict.fromkeys(name for name, _ in _there(host))
    return [AUTO, *sorted(names, key=of_the_lab)]


def judge_all(
    pictures: Any,
    attributes: Sequence[Attribute],
    *,
    faces: Faces | None = None,
    judges: str | Sequence[str] = AUTO,
    similarity: Similarity | None = None,
    host: Host = STANDALONE,
) -> tuple[tuple[Verdict, ...], ...]:
    """Per picture of ``pictures`` (P, H, W, 3) one verdict an attribute, in the order of ``attributes``.

    The judges are asked in the order of ``choices``: networks trained for the one thing, and measurements on the mesh;
    face parsers; classifiers of many attributes; text-image similarity. Their verdicts are joined as said above. An
    attribute that nobody can tell of is *not judged* (``present`` None), and so is everything of a face in a picture
    without one. ``faces`` are looked for where they are not given; the first of each picture is judged.

    ``judges`` is ``auto`` or names from ``choices``; BadInput for a name that is not there. A negated attribute
    (``no glasses``) is present where the thing is missing.
    """
    image = as_image(pictures)
    asked = _chosen(judges, host)
    if faces is not None:
        check_faces(image, faces)
    if not attributes:
        return ((),) * len(image)
    if faces is None:
        from ...analyse import Look, analyse

        drawn = all(of_the_lab(name) for name, _ in asked) and bool(asked)
        faces = analyse(image, Look(NAME, landmarker="none") if drawn else Look(), host=host)
    rows: list[tuple[Verdict, ...]] = []
    for picture, found in zip(image, faces, strict=True):
        evidence = Evidence(similarity)
        face = found[0] if found else None
        row: list[Verdict] = []
        for attribute in attributes:
            host.check_interrupt()
            row.append(_judged(asked, picture, face, attribute, evidence, host))
        rows.append(tuple(row))
    return tuple(rows)


def missing(attributes: Sequence[Attribute], rows: Sequence[Sequence[Verdict]]) -> tuple[Attribute, ...]:
    """Those of ``attributes`` that are missing in at least one of the pictures; what was not judged is none of them."""
    return tuple(a for i, a in enumerate(attributes) if any(row[i].present is False for row in rows))


def unjudged(attributes: Sequence[Attribute], rows: Sequence[Sequence[Verdict]]) -> tuple[Attribute, ...]:
    """Those of ``attributes`` that were not judged in at least one picture, and were found missing in none."""
    return tuple(
        a
        for i, a in enumerate(attributes)
        if any(row[i].present is None for row in rows) and not any(row[i].present is False for row in rows)
    )


def facial(attribute: Attribute) -> bool:
    """Whether it takes a face to see it: all but clothes, the background and what the vocabulary does not know."""
    return attribute.kind != OTHER and not (attribute.labels and ELSEWHERE.issuperset(attribute.labels))


def _chosen(wanted: str | Sequence[str], host: Host) -> list[tuple[str, Judge]]:
    there = _there(host)
    names = [wanted] if isinstance(wanted, str) else list(wanted)
    if AUTO in names:
        return [(name, entry) for name, entry in there if not of_the_lab(name)]
    known = {name for name, _ in there}
    if wrong := [name for name in names if name not in known]:
        raise BadInput(
            f"there is no judge called {wrong[0]!r}. Known: {', '.join([AUTO, *known])}. Networks are files "
            "bisenet*.onnx, segface*.onnx, celeba*.onnx, emotion-ferplus*.onnx or enet_b*.onnx in the likeness folder."
        )
    return [(name, entry) for name, entry in there if name in names]


def _judged(
    asked: Sequence[tuple[str, Judge]],
    picture: Tensor,
    face: Face | None,
    attribute: Attribute,
    evidence: Evidence,
    host: Host,
) -> Verdict:
    if face is None and facial(attribute):
        return Verdict(attribute.text, None, details="no face in the picture")
    positive = negated(attribute.text)
    if positive is None:
        return _joined(asked, picture, face, attribute, evidence, host)
    told = _joined(asked, picture, face, replace(attribute, text=positive), evidence, host)
    if told.present is None or told.score is None:
        return replace(told, attribute=attribute.text)
    return replace(told, attribute=attribute.text, present=not told.present, score=1 - told.score)


def _joined(
    asked: Sequence[tuple[str, Judge]],
    picture: Tensor,
    face: Face | None,
    attribute: Attribute,
    evidence: Evidence,
    host: Host,
) -> Verdict:
    found: list[Verdict] = []
    reasons: list[str] = []
    left = set(words(attribute.text))
    for name, entry in asked:
        told = entry.judge(name, picture, face, attribute, evidence, host)
        if told is None:
            continue
        if told.score is not None and not math.isfinite(told.score):
            told = replace(told, present=None, score=None, details="answers no number")
        if told.present is None:
            reasons.append(f"{name}: {told.details}")
            continue
        if not told.present:
            return replace(told, unsaid=())
        rest = left & set(told.unsaid)
        if rest == left and left:
            reasons.append(f"{name}: {told.details}")
            continue
        found.append(told)
        left = rest
        if not left:
            return Verdict(
                attribute.text,
                True,
                min(verdict.score or 0.0 for verdict in found),
                " + ".join(verdict.judge for verdict in found),
                "; ".join(verdict.details for verdict in found if verdict.details),
            )
    said = [f"{verdict.judge}: {verdict.details}" for verdict in found]
    if not said and not reasons:
        return Verdict(attribute.text, None, details="no judge that is there knows this attribute")
    unsaid = tuple(word for word in words(attribute.text) if word in left)
    return Verdict(
        attribute.text,
        None,
        details="; ".join([*said, *reasons, f"nobody could tell: {', '.join(unsaid)}"]),
        unsaid=unsaid,
    )
