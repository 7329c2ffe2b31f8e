"""What a prompt says of a portrait, and CLIP's tokens of it.

A prompt names some attributes in any order and leaves the others open; that something is not wanted can be named too.
The words are few, so the text encoder is trained on a table of their tokens alone; ``full`` gives them their places in
CLIP's vocabulary, where every tokenizer looks for them.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch

from ..engine.diffusion.tokens import SECTION, Vocabulary, vocabulary
from .world import ATTRIBUTES, Values

BEGINNING = "a portrait of a person"
CLIP_TOKENS = 49408
"""Rows of the table of tokens in every checkpoint with CLIP's vocabulary; the last two begin and end a text."""

_NONE = {"glasses": "no glasses", "hat": "no hat", "beard": "no beard", "earrings": "no earrings"}
_SAID = {
    "cap": "a cap", "beanie": "a beanie", "beard": "a beard", "moustache": "a moustache", "day": "day light",
    "evening": "evening light",
}  # fmt: skip


def phrase(attribute: str, value: str) -> str:
    """How a prompt says one value: ``red hair``, ``hair in a bun``, ``no hat``, ``blue background``."""
    if value == "none":
        return _NONE[attribute]
    if attribute == "background":
        return f"{value} background"
    if attribute in ("hair", "style"):
        return "hair in a bun" if value == "bun" else f"{value} hair"
    return _SAID.get(value, value)


def prompt(what: Values, number: int, named: Collection[str]) -> str:
    """The prompt for portrait ``number`` that names these attributes, in their order."""
    said = {name: ATTRIBUTES[name][int(what[name][number])] for name in named}
    clauses: list[str] = []
    for name, value in said.items():
        if name in ("hair", "style") and "hair" in said and "style" in said:
            # Colour and style share a noun.
            if name == next(n for n in said if n in ("hair", "style")):
                bun = said["style"] == "bun"
                clauses.append(f"{said['hair']} hair in a bun" if bun else f"{said['style']} {said['hair']} hair")
        else:
            clauses.append(phrase(name, value))
    return ", ".join([BEGINNING, *clauses])


class Words:
    """Tokens of prompts, as places in the small table: those of its words, then *start* and *end*."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self._encode = cache(self._encoded)
        texts = [phrase(name, value) for name, values in ATTRIBUTES.items() for value in values]
        self.ids = sorted({token for text in [BEGINNING, ",", *texts] for token in vocabulary.encode(text)})
        """CLIP's ids of the table's rows but the last two."""
        self._place = {token: place for place, token in enumerate(self.ids)}
        self.size = len(self.ids) + 2

    def _encoded(self, text: str) -> tuple[int, ...]:
        return tuple(self._place[token] for token in self.vocabulary.encode(text))

    def tokens(self, texts: Sequence[str]) -> torch.Tensor:
        """(N, 77) places in the table; what is left of a section is filled with *end*, as SD1.5 does."""
        out = np.full((len(texts), SECTION), self.size - 1, np.int64)
        out[:, 0] = self.size - 2
        for row, text in enumerate(texts):
            found: list[int] = []
            for number, clause in enumerate(text.split(", ") if text else ()):
                found += [*(self._encode(",") if number else ()), *self._encode(clause)]
            out[row, 1 : 1 + len(found)] = found
        return torch.from_numpy(out)

    def full(self, table: torch.Tensor) -> torch.Tensor:
        """The table with CLIP's 49,408 rows; a word that was never learned says nothing."""
        out = table.new_zeros(CLIP_TOKENS, table.shape[1])
        out[self.ids] = table[: len(self.ids)]
        out[-2:] = table[-2:]
        return out


def words(file: Path) -> Words:
    """Of CLIP's vocabulary in OpenAI's file, ``bpe_simple_vocab_16e6.txt.gz``."""
    return Words(vocabulary([file]))
