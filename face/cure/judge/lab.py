"""The lab's judge: a network that reads the nine attributes of its drawn people, and sees no photograph rightly."""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor

from ...errors import MissingModel
from ...host import Host
from ...lab import ATTRIBUTES, NAME, portrait
from ...models import find
from ...session import OnnxModel
from ...types import Face
from ..words import Attribute
from . import Evidence, Verdict, judges
from ._words import words

SAID: dict[str, tuple[str, str]] = {
    "sunglasses": ("glasses", "sunglasses"),
    "round": ("glasses", "round glasses"),
    "happy": ("expression", "laughing"),
    "earring": ("earrings", "earrings"),
    "mustache": ("beard", "moustache"),
}
"""Words for a head's value beside its own name."""
NOUNS = {
    "hair": (),
    "glasses": ("round glasses", "sunglasses"),
    "hat": ("cap", "beanie"),
    "light": (),
    "background": (),
}
"""What names a thing: any of these values is one; empty: everybody has it."""


class _Lab:
    rank = 10

    def names(self, host: Host) -> list[str]:
        try:
            find(ATTRIBUTES, host)
        except MissingModel:
            return []
        return [NAME]

    def judge(
        self, name: str, picture: Tensor, face: Face | None, attribute: Attribute, evidence: Evidence, host: Host
    ) -> Verdict | None:
        def look() -> dict[str, tuple[list[str], Tensor]]:
            model = OnnxModel(find(ATTRIBUTES, host), host)
            heads: dict[str, list[str]] = json.loads(model.metadata()["heads"])
            answer: Any = model.run({"image": (portrait(picture) * 2 - 1).numpy()})[0][0]
            odds = torch.from_numpy(answer).split([len(values) for values in heads.values()])
            return {head: (values, part.softmax(0)) for (head, values), part in zip(heads.items(), odds, strict=True)}

        seen = evidence.once(NAME, look)
        scores: list[float] = []
        told: list[str] = []
        unsaid: list[str] = []
        for word in words(attribute.text):
            found = _claim(word, attribute.kind, seen)
            if found is None:
                unsaid.append(word)
            elif found[1]:
                head, values = found
                names, odds = seen[head]
                scores.append(float(sum(odds[names.index(value)] for value in values)))
                told.append(f"{head} is {names[int(odds.argmax())]}")
        if not scores:
            return None
        worst = min(scores)
        details = ", ".join(dict.fromkeys(told))
        return Verdict(attribute.text, worst >= 0.5, worst, NAME, details, tuple(unsaid))


def _claim(word: str, kind: str, seen: dict[str, tuple[list[str], Tensor]]) -> tuple[str, tuple[str, ...]] | None:
    """The head that speaks of a word and the values that fit it; none of them where everybody does."""
    if word in NOUNS:
        return word, NOUNS[word]
    if word in SAID:
        head, value = SAID[word]
        return head, (value,)
    order = ("hair", "style") if kind == "hair" else ("glasses", "hat", "beard", "earrings", "expression")
    # Colours are of hair or of the background, by what is spoken of.
    for head in (*order, "background", "light", "hair", "style"):
        if word in seen[head][0]:
            return head, (word,)
    return None


judges.add(NAME, _Lab())
