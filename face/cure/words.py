"""The attributes that a prompt asks for, and the tokens that stand for them.

``split`` reads a prompt with nothing but ``vocabulary.json``: names of things, the adjectives that belong to them, and
what stands between. ``parse_list`` takes a user's own list. ``places`` asks the text encoder's own tokenizer which
tokens a phrase is made of, and finds these among the prompt's.
"""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..prompt import TextEncoder


@dataclass(frozen=True)
class Attribute:
    """One thing that a prompt asks for: ``curly red hair``, ``round glasses``, ``laughing``."""

    text: str
    """As the prompt says it."""
    kind: str
    """Its entry in the vocabulary: ``hair``, ``glasses``, ``expression``, …"""
    word: str = ""
    """The word of ``text`` that names the thing itself: ``hair``, ``glasses``; empty where it names none."""
    labels: tuple[str, ...] = ()
    """Labels of ``face.parse`` that show where it is; empty where a parser cannot see it."""
    parts: tuple[str, ...] = ()
    """Parts of ``face.masks.PARTS`` that show where it is; empty where the mesh cannot see it."""
    abstract: bool = False
    """Whether it has no place of its own (an expression, an age), so that no mask can hold it."""
    strength: float = 1.0
    """How much of it is wanted, 0 to 1."""


OTHER = "other"
"""The kind of what a user lists and the vocabulary does not know."""


def split(prompt: str) -> tuple[Attribute, ...]:
    """The attributes in ``prompt``, in its order, each once; none where the vocabulary knows none.

    Adjectives stay with their noun, also across *and*, and across a comma where nothing but adjectives stands there
    (``red, curly hair``; ``long hair, red``). Weights, brackets, LoRA tags and BREAK are markup, not text. What is
    denied (``no glasses``, ``without a hat``) is no attribute; nor is what every face has, unless something is said of
    it (``eyes``, but ``blue eyes``).
    """
    text = _without_markup(prompt)
    return _each_once(found.attribute for found in _find(text, bare=False) if not found.negated)


def parse_list(text: str) -> tuple[Attribute, ...]:
    """A user's own list, one a line or with commas between; ``curly red hair: 0.6`` has a strength, kept in 0 to 1.

    An entry is one attribute, with its own words, or several where the vocabulary finds several in it. What it does not
    know is of the kind ``other``, with its last word as the word. What an entry denies is left out.
    """
    attributes: list[Attribute] = []
    for entry in re.split(r"[,;\n\r，、；]", _without_markup(text)):
        wanted, strength = _strength(" ".join(entry.split()).lstrip("-*•· "))
        words = _WORD.findall(wanted)
        if not any(letter.isalpha() for letter in wanted):
            continue
        found = _find(wanted, bare=True)
        if len(found) == 1 and not found[0].negated:
            attributes.append(replace(found[0].attribute, text=wanted, strength=strength))
        elif found:
            attributes += [replace(one.attribute, strength=strength) for one in found if not one.negated]
        else:
            attributes.append(Attribute(wanted, OTHER, word=words[-1], strength=strength))
    return _each_once(attributes)


def without(prompt: str, attributes: Iterable[Attribute]) -> str:
    """``prompt`` without the words of ``attributes``, and without the commas, brackets and small words left alone by
    them; as it was where it does not hold any. Of *old man* the man stays."""
    people, left = _vocabulary().sets["people"], prompt
    for attribute in attributes:
        told = _WORD.findall(attribute.text)
        while len(told) > 1 and _folded(told[-1]) in people:
            told.pop()
        if phrase := r"[\W_]+".join(re.escape(word) for word in told):
            left = re.sub(rf"(?<!\w){phrase}(?!\w)", "", left, flags=re.IGNORECASE)
    if left == prompt:
        return prompt
    before = ""
    while before != left:
        before = left
        for dangling in (
            r"[(\[{]\s*(?::\s*[\d.]*)?\s*[)\]}]",  # (:1.2), ()
            r"\b(?:and|or|but|while|with|is|looks?|looking|has|having|an?|the|his|her|their)\s*(?=[,.;)\]]|$)",
            r"^\s*(?:and|or|but)\b",
            r"\s+(?=[,.;)\]])",
            r",(?=\s*[,.;)\]])",
            r"^[\s,;]+|[\s,;]+$",
            r"(?<=\s)\s+",
        ):
            left = re.sub(dangling, "", left, flags=re.IGNORECASE)
    return left


def _strength(entry: str) -> tuple[str, float]:
    """``text: 0.5`` as its two parts; 1 where no number stands behind the last colon."""
    text, colon, number = entry.rpartition(":")
    try:
        value = float(number)
    except ValueError:
        return entry, 1.0
    return (text.strip(), min(max(value, 0.0), 1.0)) if colon and math.isfinite(value) else (entry, 1.0)


def _each_once(attributes: Iterable[Attribute]) -> tuple[Attribute, ...]:
    first: dict[str, Attribute] = {}
    for attribute in attributes:
        first.setdefault(_folded(attribute.text), attribute)
    return tuple(first.values())


# The vocabulary


@dataclass(frozen=True)
class _Kind:
    """One entry of ``kinds``; the file says what its fields mean."""

    name: str
    adjectives: frozenset[str]
    after: frozenset[tuple[str, ...]]
    labels: tuple[str, ...]
    parts: tuple[str, ...]
    everyone: bool
    abstract: bool
    person: bool


@dataclass(frozen=True)
class _Vocabulary:
    names: Mapping[tuple[str, ...], _Kind]
    alone: Mapping[tuple[str, ...], _Kind]
    ignored: frozenset[tuple[str, ...]]
    sets: Mapping[str, frozenset[str]]
    """Words by their grammar: articles, openers, negations, …"""
    taken: frozenset[str]
    """Words that are never an adjective which the vocabulary merely does not know."""
    styles: frozenset[tuple[str, ...]]


_LISTS = ("articles", "openers", "negations", "joiners", "is", "function", "people", "praise", "degrees", "shades")


@lru_cache(maxsize=1)
def _vocabulary() -> _Vocabulary:
    data: dict[str, Any] = json.loads(Path(__file__).with_name("vocabulary.json").read_text("utf-8"))
    names: dict[tuple[str, ...], _Kind] = {}
    alone: dict[tuple[str, ...], _Kind] = {}
    for name, entry in data["kinds"].items():
        adjectives: set[str] = set()
        for word in entry["adjectives"]:
            adjectives.update(data[word[1:]] if word.startswith("@") else [word])
        kind = _Kind(
            name,
            frozenset(adjectives),
            frozenset(tuple(phrase.split()) for phrase in entry.get("after", [])),
            tuple(entry.get("labels", [])),
            tuple(entry.get("parts", [])),
            entry.get("everyone", False),
            entry.get("abstract", False),
            entry.get("person", False),
        )
        for phrases, table in ((entry["names"], names), (entry.get("alone", []), alone)):
            for phrase in phrases:
                for form in _forms(phrase):
                    table.setdefault(form, kind)
    sets = {name: frozenset(data[name]) for name in _LISTS}
    taken = {word for name in _LISTS if name not in ("praise", "shades") for word in data[name]}
    taken |= {word for form in names for word in form if len(form) == 1}
    return _Vocabulary(
        names,
        alone,
        frozenset(tuple(phrase.split()) for phrase in data["ignored"]),
        sets,
        frozenset(taken),
        frozenset(tuple(phrase.split()) for phrase in data["styles"]),
    )


def _forms(phrase: str) -> list[tuple[str, ...]]:
    """A phrase in the singular and, unless it ends with s, in the plural."""
    *front, last = phrase.split()
    if last.endswith("s"):
        return [(*front, last)]
    if last.endswith(("ch", "sh", "x", "z")):
        plural = f"{last}es"
    else:
        plural = f"{last[:-1]}ies" if re.search(r"[^aeiou]y$", last) else f"{last}s"
    return [(*front, last), (*front, plural)]


# Prompts as words

_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
_PIECE = re.compile(rf"(?P<word>{_WORD.pattern})|(?P<soft>[,，、])|(?P<join>[&/+])|(?P<hard>[.;:!?|\n\r。；…])")


@dataclass(frozen=True)
class _Piece:
    """A word in the form in which the vocabulary has it, ``,`` for a comma, empty for a stop."""

    word: str
    start: int
    end: int

    @property
    def stops(self) -> bool:
        return self.word in ("", ",")


def _without_markup(prompt: str) -> str:
    """The prompt's text: no weights, brackets, LoRA tags and embeddings."""
    text = unicodedata.normalize("NFC", prompt)
    text = re.sub(r"<[\w-]+:[^<>]*>|\bembedding:\S+", " ", text)
    text = re.sub(r":\s*[-+]?(?:\d+(?:\.\d*)?|\.\d+)\s*(?=[)\]])", " ", text)
    text = re.sub(r"[\\(){}\[\]]", " ", text)
    return re.sub(r"\bBREAK\b", "\n", text)


def _folded(text: str) -> str:
    return re.sub(r"'s$", "", text.casefold().replace("’", "'"))


def _pieces(text: str) -> list[_Piece]:
    written = {"word": _folded, "soft": lambda _: ",", "join": lambda _: "and", "hard": lambda _: ""}
    return [_Piece(written[m.lastgroup or ""](m[0]), m.start(), m.end()) for m in _PIECE.finditer(text)]


# From words to attributes


@dataclass(frozen=True)
class _Found:
    first: int
    """The piece at which it begins."""
    end: int
    """The piece behind it."""
    attribute: Attribute
    negated: bool


def _find(text: str, bare: bool) -> list[_Found]:
    """All attributes in ``text``, in its order; with ``bare`` also those that every face has."""
    return _Reader(text, bare).read()


class _Reader:
    """One prompt, while it is read. Positions count pieces."""

    def __init__(self, text: str, bare: bool) -> None:
        self.text, self.bare = text, bare
        self.pieces = _pieces(text)
        self.known = _vocabulary()
        self.longest = max(map(len, self.known.names))

    def read(self) -> list[_Found]:
        found: list[_Found] = []
        free = at = 0  # nothing before ``free`` may be taken any more
        while at < len(self.pieces):
            if length := self._match(self.known.ignored, at):
                free = at = at + length
            elif self._match(self.known.alone, at) > max(1, self._match(self.known.names, at)):
                one = self._alone(at, set(range(free)), found)  # "30-year-old", before "old" is taken out of it
                found += [one] if one else []
                free = at = one.end if one else at + 1
            elif (one := self._named(at, free, found)) is not None:
                found.append(one)
                free = at = max(one.end, at + 1)
            else:
                at += 1
        taken = {place for one in found for place in range(one.first, one.end)}
        for at in range(len(self.pieces)):
            if at in taken or self._match(self.known.ignored, at):
                continue
            one = self._alone(at, taken, found)
            if one is not None:
                found.append(one)
                taken |= set(range(one.first, one.end))
        return sorted(found, key=lambda one: one.first)

    def _match(self, phrases: Iterable[tuple[str, ...]] | Mapping[tuple[str, ...], _Kind], at: int) -> int:
        """How many pieces from ``at`` on are the longest of ``phrases``; 0 if none."""
        for length in range(min(self.longest, len(self.pieces) - at), 0, -1):
            if tuple(piece.word for piece in self.pieces[at : at + length]) in phrases:
                return length
        return 0

    def _kind(self, at: int, length: int) -> _Kind:
        """Whose name the pieces from ``at`` on are."""
        return self.known.names[tuple(piece.word for piece in self.pieces[at : at + length])]

    def _is(self, at: int, name: str) -> bool:
        return 0 <= at < len(self.pieces) and self.pieces[at].word in self.known.sets[name]

    def _written(self, first: int, end: int) -> str:
        """The pieces from ``first`` to ``end`` as the prompt has them."""
        text = " ".join(self.text[self.pieces[first].start : self.pieces[end - 1].end].split())
        return re.sub(r"\s+(?=[,，、])", "", text)

    def _named(self, at: int, free: int, before: Sequence[_Found]) -> _Found | None:
        """The attribute whose name begins at ``at``."""
        length = self._match(self.known.names, at)
        if not length:
            return None
        kind = self._kind(at, length)
        if kind.person:
            return self._of_person(at, length, free, kind, before)
        word, end = at, at + length
        # Names in a row: "bob haircut hair", "happy smiling".
        for _ in range(2):
            more = self._match(self.known.names, end)
            if not more or kind is not self._kind(end, more):
                break
            word, end = end, end + more
        behind = end
        first, told = self._leftwards(at, free, kind)
        while more := self._match(kind.after, end):
            end, told = end + more, True
        end, more_told = self._rightwards(end, kind)
        if kind.everyone and not (self.bare or told or more_told):
            return None
        return self._made(first, end, kind, self._written(word, behind), before)

    def _of_person(self, at: int, length: int, free: int, kind: _Kind, before: Sequence[_Found]) -> _Found | None:
        """``old`` where a person is old, and not a hat or the photograph."""
        end, first = at + length, at
        while first > free and (self._is(first - 1, "degrees") or self._is(first - 1, "praise")):
            first -= 1
        person = end
        while person < min(end + 3, len(self.pieces)) and self._describes(person):
            person += 1
        belongs = self._is(person, "people")
        by_itself = (first == 0 or self.pieces[first - 1].stops) and (end == len(self.pieces) or self.pieces[end].stops)
        if not (belongs or by_itself):
            return None
        word = self._written(at, end)
        return self._made(first, end + 1 if belongs and person == end else end, kind, word, before)

    def _describes(self, at: int) -> bool:
        """Whether the word may stand between *old* and the person: it is no thing, no person and no small word."""
        word = self.pieces[at].word
        kind = self.known.names.get((word,))
        small = any(word in self.known.sets[name] for name in ("people", "function", "openers", "articles", "is"))
        return bool(word) and word != "," and not small and (kind is None or kind.abstract or word.endswith("ed"))

    def _alone(self, at: int, taken: set[int], before: Sequence[_Found]) -> _Found | None:
        """The attribute of which ``at`` tells without naming it."""
        length = self._match(self.known.alone, at)
        if not length or taken & set(range(at, at + length)):
            return None
        phrase = tuple(piece.word for piece in self.pieces[at : at + length])
        kind = self.known.alone[phrase]
        first, end = at, at + length
        while first and first - 1 not in taken and self._belongs(first - 1, kind, numbers=kind.person):
            first -= 1
        if kind.person and end not in taken and self._is(end, "people"):
            end += 1
        word = "" if phrase[-1] in kind.adjectives else self._written(at, at + length)
        return self._made(first, end, kind, word, before)

    def _made(self, first: int, end: int, kind: _Kind, word: str, before: Sequence[_Found]) -> _Found:
        seen = ((), ()) if kind.abstract else (kind.labels, kind.parts)
        attribute = Attribute(self._written(first, end), kind.name, word, *seen, abstract=kind.abstract)
        return _Found(first, end, attribute, self._negated(first, end, before))

    def _belongs(self, at: int, kind: _Kind, numbers: bool = False) -> bool:
        word = self.pieces[at].word
        return (
            word in kind.adjectives or self._is(at, "degrees") or self._is(at, "shades") or (numbers and word.isdigit())
        )

    def _leftwards(self, at: int, free: int, kind: _Kind) -> tuple[int, bool]:
        """Where the adjectives in front of ``at`` begin, and whether they say anything."""
        first, told, here = at, False, at - 1
        while here >= free:
            piece = self.pieces[here]
            if self._belongs(here, kind):
                first, told = here, told or not self._is(here, "degrees")
            elif self._is(here, "joiners"):
                if here - 1 < free or self.pieces[here - 1].word not in kind.adjectives or not told:
                    break
            elif piece.word == ",":
                begin = self._only_adjectives(here, free, kind)
                if begin is None or first == here + 1 == at:
                    break
                first, here = begin, begin
            elif not piece.stops:
                begin = self._unknown(here, free)
                if begin is not None:
                    told = told or any(not self._is(n, "praise") for n in range(begin, here + 1))
                    first = begin
                break
            else:
                break
            here -= 1
        return first, told

    def _only_adjectives(self, comma: int, free: int, kind: _Kind) -> int | None:
        """Where what stands before ``comma`` begins, if it is adjectives of ``kind`` from the stop before it on."""
        begin = comma
        while begin > free and not self.pieces[begin - 1].stops:
            begin -= 1
        if begin > 0 and begin == free and not self.pieces[begin - 1].stops:
            return None
        return begin if self._all_adjectives(begin, comma, kind) else None

    def _all_adjectives(self, begin: int, end: int, kind: _Kind) -> bool:
        words = tuple(piece.word for piece in self.pieces[begin:end])
        return (
            bool(words)
            and words not in self.known.styles
            and words[-1] in kind.adjectives
            and all(self._belongs(n, kind) or self._is(n, "joiners") for n in range(begin, end))
        )

    def _unknown(self, at: int, free: int) -> int | None:
        """Where a word or two begin that the vocabulary does not know, if *with*, *her*, … stands before them.

        One such word may also begin what stands between two commas.
        """
        for begin in (at, at - 1):
            if begin < free or self.pieces[begin].stops or self.pieces[begin].word in self.known.taken:
                return None
            front = begin - 1
            if begin == at and (front < 0 or (front >= free and self.pieces[front].stops)):
                return begin
            while front >= free and self._is(front, "articles"):
                front -= 1
            if front >= free and self._is(front, "openers"):
                return begin
        return None

    def _rightwards(self, end: int, kind: _Kind) -> tuple[int, bool]:
        """Where adjectives behind a name end: ``hair that is red``, ``long hair, red``."""
        begin = end
        if begin < len(self.pieces) and self.pieces[begin].word in ("that", "which"):
            begin += 1
        if self._is(begin, "is"):
            stop = begin + 1
            while stop < len(self.pieces) and (self._belongs(stop, kind) or self._is(stop, "joiners")):
                stop += 1
            while stop > begin + 1 and self.pieces[stop - 1].word not in kind.adjectives | self.known.sets["shades"]:
                stop -= 1
            if stop > begin + 1 and not self._match(self.known.names, stop):
                return stop, True
        if end < len(self.pieces) and self.pieces[end].word == ",":
            stop = self._next_stop(end + 1)
            if self._all_adjectives(end + 1, stop, kind) and not self._taken_by_next(end + 1, stop):
                return stop, True
        return end, False

    def _next_stop(self, at: int) -> int:
        while at < len(self.pieces) and not self.pieces[at].stops:
            at += 1
        return at

    def _taken_by_next(self, begin: int, comma: int) -> bool:
        """Whether the adjectives before ``comma`` belong to a name behind it: ``hat, red, curly hair``."""
        if comma >= len(self.pieces) or self.pieces[comma].word != ",":
            return False
        at = comma + 1
        while at < len(self.pieces) and not self.pieces[at].stops:
            if length := self._match(self.known.names, at):
                kind = self._kind(at, length)
                own = [self._belongs(n, kind) for n in range(comma + 1, at)]
                return bool(own) and all(own) and self._all_adjectives(begin, comma, kind)
            at += 1
        return False

    def _negated(self, first: int, end: int, before: Sequence[_Found]) -> bool:
        """``no glasses``, ``isn't wearing a hat``, ``without a hat or glasses``, ``makeup-free``."""
        if end < len(self.pieces) and self.pieces[end].word == "free":
            return self.text[self.pieces[end - 1].end : self.pieces[end].start] == "-"
        at = first - 1
        if self._is(at, "joiners") and self.pieces[at].word != "and":
            return any(one.negated and one.end == at for one in before)
        while at >= 0 and any(self._is(at, name) for name in ("articles", "openers", "degrees", "is")):
            at -= 1
        if at < 0:
            return False
        word = self.pieces[at].word
        return word in self.known.sets["negations"] or word.endswith("n't") or (word == "free" and at < first - 1)


# From attributes to tokens

Token = Sequence[Any]
"""(number or embedding, weight, …)."""
Chunks = Sequence[Sequence[Token]]
"""A text as one encoder reads it: chunks of 77 tokens, each from its start to its end and padding."""

_NEAR = 8
"""Tokens within which adjectives count as standing beside a word."""


def content(chunks: Chunks) -> list[tuple[int, int | None]]:
    """The tokens of a text without starts, ends and padding: (place in the row of all chunks, number).

    The number is None for an embedding vector (textual inversion), which equals nothing. CLIP's start and end are the
    last two of its vocabulary, so the end is the start plus one.
    """
    found: list[tuple[int, int | None]] = []
    offset = 0
    for chunk in chunks:
        numbers = [_number(token) for token in chunk]
        start = numbers[0] if numbers else None
        for place, number in enumerate(numbers[1:], start=1):
            if start is not None and number == start + 1:
                break
            found.append((offset + place, number))
        offset += len(numbers)
    return found


def _number(token: Token) -> int | None:
    value = token[0]
    try:
        return int(value) if getattr(value, "ndim", 0) == 0 else None
    except (TypeError, ValueError):
        return None


def token_places(prompt: Chunks, phrase: Chunks, word: Chunks | None = None) -> tuple[int, ...]:
    """The places, in the row of all of ``prompt``'s chunks, that stand for ``word`` where it is part of ``phrase``.

    All three as one tokenizer gave them; without a word, the places of the whole phrase. Where the prompt holds the
    phrase several times, all of them. Where it holds the word but not the phrase (a list in the user's own words), the
    places of the word that have most of the phrase's other tokens beside them. Empty if it does not hold the word.
    """
    text, wanted = content(prompt), [number for _, number in content(phrase)]
    named = wanted if word is None else [number for _, number in content(word)]
    if not wanted or not named:
        return ()
    numbers = [number for _, number in text]
    offsets = _occurrences(wanted, named)[-1:]  # the noun of a phrase is its last
    places = {at + offset + n for at in _occurrences(numbers, wanted) for offset in offsets for n in range(len(named))}
    if not places:
        beside = {number for number in wanted if number is not None} - set(named)
        rated = {
            at: len(beside & set(numbers[max(0, at - _NEAR) : at + len(named) + _NEAR]))
            for at in _occurrences(numbers, named)
        }
        best = max(rated.values(), default=0)
        places = {at + n for at, score in rated.items() if score == best for n in range(len(named))}
    return tuple(text[n][0] for n in sorted(places))


def _occurrences(numbers: Sequence[int | None], wanted: Sequence[int | None]) -> list[int]:
    """Where ``wanted`` begins in ``numbers``; an embedding equals nothing."""
    if not wanted or None in wanted:
        return []
    whole, length = list(wanted), len(wanted)
    return [at for at in range(len(numbers) - length + 1) if list(numbers[at : at + length]) == whole]


def places(clip: TextEncoder, prompt: str, attributes: Iterable[Attribute]) -> tuple[tuple[int, ...], ...]:
    """For every attribute the places of its word in ``prompt``, as ``clip`` cuts both into tokens; empty if not there.

    Of several encoders the first that knows an answer tells: they share one vocabulary, and their states lie side by
    side in one row.
    """
    texts: Mapping[str, Chunks] = clip.tokenize(prompt)
    found: list[tuple[int, ...]] = []
    for attribute in attributes:
        phrases: Mapping[str, Chunks] = clip.tokenize(_plain(attribute.text))
        words: Mapping[str, Chunks] | None = clip.tokenize(_plain(attribute.word)) if attribute.word else None
        answers = (
            token_places(chunks, phrases[name], None if words is None else words[name])
            for name, chunks in texts.items()
            if name in phrases
        )
        found.append(next((answer for answer in answers if answer), ()))
    return tuple(found)


def _plain(text: str) -> str:
    """``text`` so that a tokenizer takes its brackets, if any, as text."""
    return re.sub(r"([()])", r"\\\1", text)
