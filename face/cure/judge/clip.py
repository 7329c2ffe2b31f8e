"""Text-image similarity through the host's own CLIP: it knows every word, and is calibrated for none.

*a photo of a person with red hair* is held against *a photo of a person*, and against what else could be there where
that is known (other colours, the opposite). The score is the softmax, at CLIP's temperature 100, of the wanted
sentence and the best of the others (Radford et al. 2021, arXiv 2103.00020 §3.1). It is **uncalibrated**: a hint for
what no network was trained on, weak on counting, left and right, small things and negations. So it is asked last.

The two sides must end in one space. A text encoder as it lies in an SD1.5 checkpoint has no projection: its numbers
have the picture's width and mean something else, and nothing is judged with it. SDXL's larger encoder has one and fits
CLIP-ViT-bigG (1280 numbers); OpenAI's whole CLIP-L fits CLIP-ViT-L (768).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ...errors import BadInput
from ...host import Host
from ...types import Face
from ..words import Attribute
from . import Evidence, Similarity, Verdict, facial, judges
from ._look import head

BASE = "a photo of a person"
TEMPERATURE = 100.0
"""CLIP's learned logit scale, which training clips there."""
MARGIN = 0.6
"""Added round the face's box on every side: hair and hat belong to it."""
SIDE = 448
"""Pixels of the square handed over; encoders scale it down."""

COLOURS: Mapping[str, tuple[str, ...]] = {
    "hair": ("black", "brown", "blonde", "red", "grey", "white", "blue", "green", "pink"),
    "eyes": ("brown", "blue", "green"),
    "": ("black", "white", "red", "blue", "green", "yellow", "brown"),
}
"""What else something could be, by the word it stands with; the last for everything else."""

OPPOSITES: Mapping[str, str] = {
    "long": "short", "short": "long", "curly": "straight", "wavy": "straight", "straight": "curly", "young": "old",
    "old": "young", "elderly": "young", "man": "woman", "woman": "man", "male": "female", "female": "male",
    "open": "closed", "closed": "open", "smiling": "serious", "laughing": "serious", "happy": "sad", "sad": "happy",
    "angry": "calm", "frowning": "smiling", "surprised": "calm", "crying": "smiling", "thick": "thin", "thin": "thick",
    "round": "square", "bushy": "thin",
}  # fmt: skip
"""The word that is put in its place for a contrast."""

PEOPLE = frozenset({"person", "man", "woman", "boy", "girl", "child", "kid", "toddler", "baby", "infant", "teenager"})
STATES = frozenset({"bald", "blonde", "blond", "brunette", "ginger", "unshaven"})
"""What somebody is, and does not wear."""
VOWELS = ("a", "e", "i", "o", "u", "8", "11", "18")


@dataclass(frozen=True, eq=False)
class ClipSimilarity:
    """A CLIP and a CLIP_VISION, ComfyUI's or the engine's, as one ``Similarity``. Sentences are encoded once."""

    clip: Any
    clip_vision: Any
    name: str = "clip"
    trouble: str = ""
    _texts: dict[str, Tensor] = field(default_factory=dict[str, Tensor])

    def image(self, picture: Tensor) -> Tensor:
        return _embedded(self.clip_vision, picture)

    def text(self, sentence: str) -> Tensor:
        if sentence not in self._texts:
            pooled = _pooled(self.clip, sentence)
            if pooled is None:
                raise BadInput("this CLIP answers no pooled text to compare a picture with; connect one that does")
            self._texts[sentence] = pooled
        return self._texts[sentence]


def similarity(clip: Any, clip_vision: Any) -> ClipSimilarity:
    """``clip`` and ``clip_vision`` as one. Where they do not fit each other, ``trouble`` says why; nothing is raised.

    Both are asked as code written against ComfyUI asks them: ``clip.encode_from_tokens(clip.tokenize(text),
    return_pooled=True)`` and ``clip_vision.encode_image(image).image_embeds``.
    """
    made = ClipSimilarity(clip, clip_vision)
    return ClipSimilarity(clip, clip_vision, trouble=_trouble(made))


def _trouble(made: ClipSimilarity) -> str:
    text = _pooled(made.clip, BASE)
    if text is None:
        return "the text encoder answers no pooled text"
    picture = made.image(torch.full((64, 64, 3), 0.5))
    if len(text) != len(picture):
        return (
            f"the text encoder answers {len(text)} numbers and the image encoder {len(picture)}: they are of different "
            "CLIPs. SDXL's text encoder goes with CLIP-ViT-bigG"
        )
    plain = _pooled(made.clip, BASE, "unprojected")
    # As wide and the same: nothing was projected (ComfyUI fills a missing projection with the identity matrix).
    if plain is None or (plain.shape == text.shape and torch.allclose(plain, text, rtol=1e-3, atol=1e-5)):
        return (
            "the text encoder has no projection into the pictures' space, as in SD1.5 checkpoints; load a whole CLIP, "
            "or use SDXL's with CLIP-ViT-bigG"
        )
    return ""


def _pooled(clip: Any, sentence: str, how: bool | str = True) -> Tensor | None:
    """(D,) float32."""
    pooled = clip.encode_from_tokens(clip.tokenize(sentence), return_pooled=how)[1]
    return pooled.detach().float().cpu().reshape(-1, pooled.shape[-1])[0] if isinstance(pooled, Tensor) else None


def _embedded(clip_vision: Any, picture: Tensor) -> Tensor:
    answer = clip_vision.encode_image(picture[None])
    found = getattr(answer, "image_embeds", None)
    if found is None:
        found = answer["image_embeds"]
    return found.detach().float().cpu().reshape(-1, found.shape[-1])[0]


@dataclass(frozen=True)
class _Clip:
    rank = 90

    def names(self, host: Host) -> list[str]:
        return ["clip"]

    def judge(
        self, name: str, picture: Tensor, face: Face | None, attribute: Attribute, evidence: Evidence, host: Host
    ) -> Verdict | None:
        both = evidence.similarity
        if both is None:
            return Verdict(attribute.text, None, judge=name, details="no CLIP with a CLIP_VISION is connected")
        if both.trouble:
            return Verdict(attribute.text, None, judge=name, details=both.trouble)
        whole = face is None or not facial(attribute)

        def look() -> Tensor:
            return both.image(picture if whole or face is None else head(picture, face, SIDE, MARGIN, align=False)[0])

        seen = evidence.once(("clip", whole), look)
        wanted, *others = (cosine(seen, both, sentence) for sentence in sentences(attribute))
        if not all(map(math.isfinite, (wanted, *others))):
            return Verdict(attribute.text, None, judge=both.name, details="the CLIP answers no numbers")
        lead = TEMPERATURE * (wanted - max(others))
        score = 1 / (1 + math.exp(-max(-60.0, min(60.0, lead))))
        details = f"similarity {wanted:.3f} against {max(others):.3f}, uncalibrated"
        return Verdict(attribute.text, score >= 0.5, score, both.name, details)


def cosine(seen: Tensor, both: Similarity, sentence: str) -> float:
    """Of a picture's embedding (D,) with a sentence's. BadInput if they have different widths."""
    said = both.text(sentence)
    if said.shape != seen.shape:
        raise BadInput(
            f"the text's embedding has {said.numel()} numbers and the picture's {seen.numel()}: connect a CLIP and a "
            "CLIP_VISION of one model"
        )
    return float(torch.nn.functional.cosine_similarity(said, seen, dim=0))


def sentences(attribute: Attribute) -> list[str]:
    """What is wanted, then everything that it is held against."""
    parts = attribute.text.split()
    others = [BASE]
    colours = COLOURS[next((part.lower() for part in parts if part.lower() in COLOURS), "")]
    for i, part in enumerate(part.lower() for part in parts):
        instead = [OPPOSITES[part]] if part in OPPOSITES else []
        if i and parts[i - 1].lower().startswith("year"):
            instead = []  # "60 years old" is not the opposite of "60 years young"
        if part in COLOURS["hair"] or part in COLOURS[""]:
            instead = [colour for colour in colours if colour != part]
        others += [_sentence(attribute, " ".join([*parts[:i], word, *parts[i + 1 :]])) for word in instead]
    return [_sentence(attribute, " ".join(parts)), *dict.fromkeys(others)]


def _sentence(attribute: Attribute, text: str) -> str:
    """A sentence about somebody with ``text`` in place of the attribute's own."""
    last = text.split()[-1].lower() if text.split() else ""
    if attribute.kind == "age":
        somebody = text if last in PEOPLE else f"{text} person"
        return f"a photo of {'an' if text.lower().startswith(VOWELS) else 'a'} {somebody}"
    if attribute.abstract:
        return f"{BASE} {text}"
    return f"{BASE} who is {text}" if last in STATES or last.endswith("ed") else f"{BASE} with {text}"


judges.add("clip", _Clip())
