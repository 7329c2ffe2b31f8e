"""Old, young, a child, a man, a woman: from what the face carries, else from an age and gender network that is there.

The networks err by about five years; within ``MARGIN`` of a border they are not believed. A gender is a network's guess
from looks.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from torch import Tensor

from ...attributes import Guess, choices, network
from ...errors import MissingModel
from ...host import Host
from ...types import Face
from ..words import Attribute
from . import Evidence, Verdict, judges
from ._look import told
from ._words import Claim, table, words

WORDS = table(
    {
        "baby/infant": (0, 4),
        "toddler": (0, 6),
        "child/kid": (0, 14),
        "boy/girl": (0, 30),
        "teenage/teenager/teen/teenaged": (11, 21),
        "young/youthful": (0, 35),
        "adult/grown": (18, 120),
        "middle age/aged": (38, 62),
        "old/elderly/senior": (60, 120),
        "grandmother/grandma/grandfather/grandpa": (55, 120),
    },
)
"""Years from and to. *girl* is said of young women, too."""

GENDERS = table(
    {
        "man/male/boy/gentleman/grandfather/grandpa/masculine": "male",
        "woman/female/girl/lady/grandmother/grandma/feminine": "female",
    }
)

MARGIN = 3.0
SPAN = 10.0
"""Years from a border over which the score goes from 0.5 to the end."""
NUMBER = re.compile(r"\b(\d{1,3})[ -]*(?:years?|yo|y/o)\b|\baged?[ -]+(\d{1,3})\b", re.IGNORECASE)
NEAR = 8.0
"""*a 60 years old man* may be guessed so many years older or younger."""


@dataclass(frozen=True)
class _AgeGender:
    rank = 14

    def names(self, host: Host) -> list[str]:
        return ["age-gender"]

    def judge(
        self, name: str, picture: Tensor, face: Face | None, attribute: Attribute, evidence: Evidence, host: Host
    ) -> Verdict | None:
        ages, genders, unsaid = _read(attribute.text)
        if not (ages or genders) or face is None:
            return None
        guess = evidence.once("age-gender", lambda: guessed(picture, face, host))
        if guess is None:
            details = "the face carries neither age nor gender, and no network for them is installed"
            return Verdict(attribute.text, None, judge=name, details=details)
        inside = [_inside(guess.age, low, high) for low, high in ages]
        same = [1.0 if guess.gender == wanted else 0.0 for wanted in genders]
        score = told([Claim((), value, True) for value in [*inside, *same]])
        details = f"about {guess.age:.0f} years, {guess.gender}, as the network guesses"
        if 0.0 not in same and any(abs(value - 0.5) < MARGIN / (2 * SPAN) for value in inside):
            return Verdict(attribute.text, None, judge=name, details=f"too near to the border: {details}")
        return Verdict(attribute.text, score >= 0.5, score, name, details, unsaid)


def _read(text: str) -> tuple[list[tuple[float, float]], list[str], tuple[str, ...]]:
    """Ages from and to, genders, and the words that speak of neither."""
    ages: list[tuple[float, float]] = []
    if number := NUMBER.search(text):
        years = float(number[1] or number[2])
        ages.append((years - NEAR, years + NEAR))
        text = text.replace(number[0], " ")
        # In "sixty years old" the last word says nothing more.
        text = re.sub(r"\bold\b", " ", text, count=1)
    claims, rest = WORDS.read(text)
    ages += [(float(claim.value[0]), float(claim.value[1])) for claim in claims]
    genders, other = GENDERS.read(text)
    there = set(rest) & set(other)
    return ages, [claim.value for claim in genders], tuple(word for word in words(text) if word in there)


def _inside(age: float, low: float, high: float) -> float:
    """0.5 at a border, 1 at ``SPAN`` years inside, 0 as far outside; a range without a border below has none."""
    far = min(age - low if low > 0 else SPAN, high - age if high < 120 else SPAN)
    return min(1.0, max(0.0, 0.5 + far / (2 * SPAN)))


def guessed(picture: Tensor, face: Face, host: Host) -> Guess | None:
    """Age and gender of ``face``: its own where it carries both, else the first network's whose files are there."""
    if face.age is not None and face.gender is not None:
        return Guess(face.age, face.gender)
    for name in choices(host):
        try:
            return network(name, host).guess(picture, [face])[0]
        except MissingModel:
            continue
    return None


judges.add("age-gender", _AgeGender())
