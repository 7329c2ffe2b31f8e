"""From a prompt to CLIP's tokens with weights, in ComfyUI's form: sections of 77 (id, weight, number of the word).

Byte-pair encoding is that of openai/CLIP simple_tokenizer.py (MIT), with the normalisation that transformers 5 gives
it; the vocabulary is data and lies in a file.
"""

from __future__ import annotations

import gzip
import json
import math
import re
import threading
import unicodedata
import zlib
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from ...face.errors import BadInput, BadModelFile, MissingModel
from ...face.host import ROOT, Host
from ...face.vocabulary import CARD

SECTION = 77
"""Tokens that CLIP reads at once, start and end included."""
_MERGES = 49152 - 256 - 2
_SPECIAL = ("<|startoftext|>", "<|endoftext|>")
_LONG = 8
"""A word of so many tokens may be cut at the end of a section; a shorter one goes to the next as a whole."""

Token = tuple[Any, ...]
"""(id, weight) or (id, weight, word); the id of an embedding is its vector."""


class Vocabulary:
    """Pieces of words and their ids, and the order in which pieces are joined."""

    def __init__(self, ids: dict[str, int], merges: Sequence[tuple[str, str]], name: str) -> None:
        self.ids, self.name = ids, name
        self._ranks = {pair: rank for rank, pair in enumerate(merges)}
        try:
            self.start, self.end = (ids[piece] for piece in _SPECIAL)
        except KeyError as error:
            raise BadModelFile(f"{name} is no CLIP vocabulary: it has no {error}") from error
        self._split = _splitter()
        self._word = lru_cache(maxsize=4096)(self._encode_word)

    def __len__(self) -> int:
        return max(self.ids.values()) + 1

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without start and end."""
        # Half of a character (an emoji that was cut in two) has no bytes.
        text = text.encode("utf-8", "replace").decode()
        text = " ".join(unicodedata.normalize("NFC", text).lower().split())
        found: list[int] = []
        for part in re.split(f"({'|'.join(map(re.escape, _SPECIAL))})", text):
            if part in _SPECIAL:
                found.append(self.ids[part])
            else:
                found += [token for word in self._split.findall(part) for token in self._word(word)]
        return found

    def _encode_word(self, word: str) -> tuple[int, ...]:
        pieces = [_BYTES[byte] for byte in word.encode()]
        pieces[-1] += "</w>"
        while len(pieces) > 1:
            pairs = set(pairwise(pieces))
            first = min(pairs, key=lambda pair: self._ranks.get(pair, len(self._ranks)))
            if first not in self._ranks:
                break
            joined: list[str] = []
            for piece in pieces:
                if joined and (joined[-1], piece) == first:
                    joined[-1] += piece
                else:
                    joined.append(piece)
            pieces = joined
        return tuple(self.ids.get(piece, self.end) for piece in pieces)


def _splitter() -> Any:
    # Comes with diffusers; Python's own re does not know what a letter is in every script.
    import regex

    return regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+")


def _byte_letters() -> dict[int, str]:
    """A printable character for every byte: itself where it is printable, else one from 256 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(others)}


_BYTES = _byte_letters()


def read_vocabulary(path: Path) -> Vocabulary:
    """From OpenAI's merges file (``.txt.gz``) or a folder with ``vocab.json`` and ``merges.txt`` or ``tokenizer.json``.

    Raises BadModelFile.
    """
    try:
        if path.is_file():
            with gzip.open(path, "rt", encoding="utf-8") as file:
                return _from_merges(_pairs(file.read().split("\n")[1 : _MERGES + 1]), path.name)
        if (path / "vocab.json").is_file() and (path / "merges.txt").is_file():
            ids = json.loads((path / "vocab.json").read_text("utf-8"))
            return Vocabulary(ids, _pairs((path / "merges.txt").read_text("utf-8").split("\n")[1:]), path.name)
        model = json.loads((path / "tokenizer.json").read_text("utf-8"))["model"]
        lines = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
        return Vocabulary(model["vocab"], _pairs(lines), path.name)
    except (OSError, EOFError, ValueError, KeyError, TypeError, zlib.error) as error:
        raise BadModelFile(f"{path} holds no vocabulary that can be read ({error}); get it again") from error


def _pairs(lines: Iterable[str]) -> list[tuple[str, str]]:
    return [(a, b) for a, _, b in (line.strip().partition(" ") for line in lines) if b]


def _from_merges(merges: list[tuple[str, str]], name: str) -> Vocabulary:
    letters = sorted(_BYTES.values(), key=lambda letter: (ord(letter) >= 256, ord(letter)))
    pieces = [*letters, *(f"{letter}</w>" for letter in letters), *(a + b for a, b in merges), *_SPECIAL]
    return Vocabulary({piece: number for number, piece in enumerate(pieces)}, merges, name)


def vocabulary_places(host: Host) -> list[Path]:
    """Where a vocabulary may lie for checkpoints that bring none: ours, or that of the ComfyUI we live in."""
    places = [folder / CARD.file for folder in host.folders("likeness")]
    if ROOT.parent.name == "custom_nodes":
        places.append(ROOT.parent.parent / "comfy" / "sd1_tokenizer")
    return places


_read: dict[tuple[Path, int], Vocabulary] = {}
_reading = threading.Lock()


def vocabulary(places: Iterable[Path]) -> Vocabulary:
    """The first vocabulary there is, read once. Raises MissingModel, which says how to get one."""
    places = list(places)
    for place in places:
        if place.exists():
            key = (place, place.stat().st_mtime_ns)
            with _reading:
                if key not in _read:
                    _read[key] = read_vocabulary(place)
                return _read[key]
    remedy = f"Run: likeness models fetch {CARD.name}. Or use a checkpoint in diffusers' layout, which brings its own."
    raise MissingModel("the text encoder", CARD.file, [place.parent for place in places], remedy)


# ComfyUI's language of weights: (word) is 1.1, (word:1.3) is 1.3, brackets nest, \( and \) are brackets to be drawn.

_OPEN, _CLOSE = "\0\2", "\0\1"


def weighted(text: str) -> list[tuple[str, float]]:
    """A prompt as its parts and their weights."""
    text = text.replace("\\)", _CLOSE).replace("\\(", _OPEN)
    return [(part.replace(_CLOSE, ")").replace(_OPEN, "("), weight) for part, weight in _weighted(text, 1.0)]


def _weighted(text: str, weight: float) -> list[tuple[str, float]]:
    found: list[tuple[str, float]] = []
    for part in _bracketed(text):
        if len(part) < 2 or part[0] != "(" or part[-1] != ")":
            found.append((part, weight))
            continue
        inner, new = part[1:-1], weight * 1.1
        head, colon, tail = inner.rpartition(":")
        if colon and head:
            with suppress(ValueError):
                inner, new = head, float(tail)
            if not math.isfinite(new):
                raise BadInput(f"the prompt weighs a part with {tail.strip()}, which would leave a picture of nothing")
        found += _weighted(inner, new)
    return found


def _bracketed(text: str) -> list[str]:
    """The text cut before every outermost ``(`` and after its ``)``."""
    parts: list[str] = []
    current, depth = "", 0
    for letter in text:
        if letter == "(":
            if depth == 0 and current:
                parts.append(current)
                current = ""
            depth += 1
        current += letter
        if letter == ")":
            depth -= 1
            if depth == 0:
                parts.append(current)
                current = ""
    return [*parts, current] if current else parts


def tokenize(vocabulary: Vocabulary, text: str, pad: int, weights: bool = True) -> list[list[Token]]:
    """A prompt as sections of 77 (id, weight, word); word 0 is start, end and padding. Raises BadInput."""
    groups: list[list[tuple[int, float]]] = []
    for part, weight in weighted(text) if weights else [(text, 1.0)]:
        if part.startswith("embedding:") or " embedding:" in part or "\nembedding:" in part:
            raise BadInput(
                "the prompt names an embedding (textual inversion), which the headless engine does not read. Write the "
                "words out, or run the file on ComfyUI: likeness run FILE --server URL"
            )
        groups.append([(token, weight) for token in vocabulary.encode(part)])

    sections: list[list[Token]] = [[(vocabulary.start, 1.0, 0)]]
    end, padding = (vocabulary.end, 1.0, 0), (pad, 1.0, 0)
    for number, group in enumerate(groups, start=1):
        tokens: list[Token] = [(token, weight, number) for token, weight in group]
        while tokens:
            section = sections[-1]
            room = SECTION - 1 - len(section)
            if len(tokens) <= room:
                section += tokens
                break
            if len(group) >= _LONG:
                section += tokens[:room]
                tokens = tokens[room:]
            sections.append([(vocabulary.start, 1.0, 0)])
    return [[*section, end, *[padding] * (SECTION - 1 - len(section))] for section in sections]
