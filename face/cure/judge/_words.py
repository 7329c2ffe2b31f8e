"""Reading an attribute's words against a judge's table."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")

FILLERS = frozenset(
    {
        *("a", "an", "the", "and", "with", "of", "in", "on", "to", "at", "his", "her", "their", "its", "some"),
        *("has", "having", "have", "is", "are", "wearing", "wears", "worn", "looking", "looks", "look"),
        *("very", "really", "quite", "rather", "extremely", "intensely", "expression", "face", "facial", "person"),
    }
)
"""Words that add nothing which a picture could show or lack."""

NEGATIONS = ("no", "without", "not", "non")


def words(text: str) -> tuple[str, ...]:
    """The words of ``text`` that say something, in lower case, in order, each once: ``a man's red-brown hat`` gives
    ``man``, ``red``, ``brown``, ``hat``."""
    found = re.findall(r"[^\W_]+", re.sub(r"['’]s\b", "", text.lower()))
    return tuple(dict.fromkeys(word for word in found if word not in FILLERS))


def negated(text: str) -> str | None:
    """``glasses`` of ``no glasses``; None for a text without a negation in front."""
    first, _, rest = text.strip().partition(" ")
    return rest.strip() if first.lower() in NEGATIONS and rest.strip() else None


@dataclass(frozen=True)
class Claim(Generic[T]):
    """What a judge has to measure for some words of an attribute."""

    words: tuple[str, ...]
    value: T
    whole: bool
    """Whether the measure settles the words; else it can only refute them: who laughs smiles, not the reverse."""


@dataclass(frozen=True)
class Table(Generic[T]):
    """Phrases and what to measure for them."""

    rows: Sequence[tuple[tuple[frozenset[str], ...], T, bool]]

    def read(self, text: str) -> tuple[list[Claim[T]], tuple[str, ...]]:
        """The claims that ``text`` makes, and the words left unsaid."""
        there = words(text)
        claims: list[Claim[T]] = []
        said: set[str] = set()
        for places, value, whole in self.rows:
            used = [next((word for word in there if word in place), None) for place in places]
            if None not in used:
                claims.append(Claim(tuple(word for word in used if word), value, whole))
                if whole:
                    said.update(word for word in used if word)
        return claims, tuple(word for word in there if word not in said)


def table(rows: Mapping[str, T], hints: Iterable[tuple[str, T]] = ()) -> Table[T]:
    """A table from phrases such as ``blond/blonde hair``: every word, or one of its alternatives, has to be there.

    Of ``hints`` the measure can refute the words, not settle them.
    """
    return Table(
        [
            (tuple(frozenset(slot.split("/")) for slot in phrase.split()), value, whole)
            for entries, whole in ((rows.items(), True), (hints, False))
            for phrase, value in entries
        ]
    )
