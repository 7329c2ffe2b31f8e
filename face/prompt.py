"""Prompts in which a person stands as a word: where that word's tokens lie, and how others take their place.

A text encoder here is whatever has ComfyUI's two methods (``TextEncoder``): ComfyUI's own CLIP, or the engine's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from .errors import BadInput

LENGTH = 77
"""Tokens of a chunk, its beginning and end included."""

Token = tuple[Any, float]
"""A number (or an embedding) and its weight."""
Tokens = dict[str, list[list[Token]]]
"""Per text encoder its chunks of ``LENGTH`` tokens."""


class TextEncoder(Protocol):
    """What is needed of a CLIP."""

    def tokenize(self, text: str, return_word_ids: bool = False) -> Tokens: ...

    def encode_from_tokens(self, tokens: Any, return_pooled: bool = False) -> Any:
        """(1, chunks * 77, D), with ``return_pooled`` together with the pooled answer (1, P) or None."""
        ...


@dataclass(frozen=True, eq=False)
class Written:
    """One conditioning of the answer."""

    text: Tensor
    """(1, L, D)."""
    pooled: Tensor | None
    start: float = 0.0
    end: float = 1.0
    """When it counts, as fractions of the sampling."""


def without_trigger(prompt: str, trigger: str) -> tuple[str, str]:
    """``prompt`` split after the word before ``trigger``: (up to and with that word, the rest without the trigger).

    Raises BadInput unless the trigger stands there exactly once, behind a word.
    """
    places = list(re.finditer(rf"(?<![\w-]){re.escape(trigger)}(?![\w-])", prompt))
    if len(places) != 1:
        raise BadInput(
            f"the prompt must hold the trigger word {trigger!r} exactly once, behind the word for the person, as in "
            f"“a photo of a man {trigger}”; it stands there {len(places)} times"
        )
    before, after = prompt[: places[0].start()].rstrip(), prompt[places[0].end() :]
    if not re.search(r"\w$", before):
        raise BadInput(
            f"the trigger word {trigger!r} must stand behind the word for the person, as in “a photo of a man "
            f"{trigger}”"
        )
    return before, after


def last_token_of(clip: TextEncoder, text: str) -> dict[str, int]:
    """Per text encoder the place of the last token of ``text`` in its chunk; BadInput if it is beyond the first one."""
    places: dict[str, int] = {}
    for name, chunks in clip.tokenize(text).items():
        if len(chunks) > 1:
            raise BadInput(
                "the word for the person stands too far back in the prompt: it must be among the first 75 tokens. Put "
                "it nearer to the beginning."
            )
        places[name] = length_of(chunks[0]) - 2
    return places


def length_of(chunk: Sequence[Token]) -> int:
    """Tokens of a chunk from its beginning to its end, the padding left out."""
    end = end_of(chunk)
    return next((n for n, token in enumerate(chunk) if n and token[0] == end), len(chunk) - 1) + 1


def end_of(chunk: Sequence[Token]) -> Any:
    """The number that ends a chunk.

    CLIP's beginning and end are the two last entries of its vocabulary, so the end is the beginning plus one.
    """
    return chunk[0][0] + 1


def repeated(tokens: Tokens, places: Mapping[str, int], times: int) -> Tokens:
    """``tokens`` with the token at ``places`` (per encoder, in the first chunk) standing there ``times`` times.

    What no longer fits into the chunk is cut off at its end, as PhotoMaker does.
    """
    changed: Tokens = {}
    for name, (first, *others) in tokens.items():
        place, length = places[name], length_of(first)
        kept = [*first[:place], *[first[place]] * times, *first[place + 1 : length - 1]][: LENGTH - 1]
        end = first[length - 1]
        padding = first[-1] if length < LENGTH else end
        changed[name] = [[*kept, end, *[padding] * (LENGTH - 1 - len(kept))], *others]
    return changed


def encode(clip: TextEncoder, text: str) -> tuple[Tensor, Tensor | None]:
    """``text`` as the encoder's (1, L, D) and pooled answer."""
    embedded, pooled = clip.encode_from_tokens(clip.tokenize(text), return_pooled=True)
    return embedded, pooled
