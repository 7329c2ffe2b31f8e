"""A parser's labels as evidence: is there hair, a hat, glasses, an earring, a necklace, and of what colour are they?

Presence is the label's area against that of the face itself. Colour is the median of the label's pixels, in CIE
L*a*b*, and the nearest of the colours that such a thing usually has; where another is about as near, and that happens
in coloured light, it is *not judged*. The mesh is no parser here: it sees nothing but the face.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ...host import Host
from ...parse import AUTO, MESH, choices, parse, where
from ...swap.colour import to_lab
from ...types import Face
from ..words import Attribute
from . import Evidence, Verdict, judges
from ._look import head
from ._words import words

FACE = (
    "skin",
    "left brow",
    "right brow",
    "left eye",
    "right eye",
    "glasses",
    "nose",
    "mouth",
    "upper lip",
    "lower lip",
)
EYES = ("left eye", "right eye")

SIDE = 512
"""Pixels of the square in which a head is parsed: what the networks take."""
MARGIN = 0.5
"""Half the face's box on every side, as CelebAMask-HQ shows heads."""

AREA: Mapping[str, float] = {"hair": 0.06, "hat": 0.10, "glasses": 0.03, "earring": 0.002, "necklace": 0.004}
"""Parts of the face's area from which a thing counts as there. Chosen by eye, above the specks that parsers strew."""
LEAST_FACE = 0.02
"""Parts of the square that have to be face, or else the parser does not see the face at all."""

GENERIC: Mapping[str, frozenset[str]] = {
    "hair": frozenset({"hair", "hairs", "haired"}),
    "hat": frozenset({"hat", "hats", "headwear"}),
    "glasses": frozenset({"glasses", "eyeglasses", "spectacles", "eyewear", "bespectacled"}),
    "earring": frozenset({"earring", "earrings"}),
    "necklace": frozenset({"necklace", "necklaces"}),
    "eyes": frozenset({"eye", "eyes", "eyed"}),
}
"""Words that say no more than the label does. *Beanie*, *braid* or *goggles* say more: that stays unsaid."""

NAMES: Mapping[str, str] = {
    "black": "black", "jet": "black", "raven": "black", "white": "white", "snow": "white", "grey": "grey",
    "gray": "grey", "silver": "grey", "red": "red", "ginger": "red", "copper": "red", "crimson": "red",
    "scarlet": "red", "blue": "blue", "azure": "blue", "navy": "blue", "green": "green", "emerald": "green",
    "brown": "brown", "brunette": "brown", "chestnut": "brown", "chocolate": "brown", "blonde": "blonde",
    "blond": "blonde", "golden": "blonde", "yellow": "yellow", "orange": "orange", "purple": "purple",
    "violet": "purple", "pink": "pink", "hazel": "hazel",
}  # fmt: skip
"""Words for colours, and the name under which they are looked up."""

_COMMON: Mapping[str, tuple[int, ...]] = {
    "blue": (0x24509C, 0x4F8FD0),
    "green": (0x2C7A45, 0x58B070),
    "purple": (0x6A3A8C, 0x9A62B8),
    "pink": (0xE07FAE, 0xC94F8A),
    "orange": (0xE0792A,),
    "yellow": (0xE8D44A,),
}
COLOURS: Mapping[str, Mapping[str, tuple[int, ...]]] = {
    "hair": {
        **_COMMON,
        "black": (0x17130F, 0x2A2624, 0x362C28),
        "brown": (0x4A3020, 0x6B4A30),
        "blonde": (0xC8A870, 0xA5854F, 0xE3CFA0),
        "red": (0x8C3B1E, 0xB4562C, 0xA01818),
        "grey": (0x8A8886, 0xA9A8A6, 0x6E6C6A),
        "white": (0xDADADA, 0xF0EFEC),
    },
    "eyes": {
        "black": (0x1D1512,),
        "brown": (0x4B2F1F, 0x6B4526),
        "blue": (0x6F8FAE, 0x4F7FB5),
        "green": (0x6F7F58, 0x5B7A4A),
        "grey": (0x8A9094,),
        "hazel": (0x7A6238,),
    },
    "hat": {
        **_COMMON,
        "black": (0x1A1A1A,),
        "white": (0xEAEAEA,),
        "grey": (0x8A8A8A,),
        "red": (0xB02020, 0xD03A30),
        "brown": (0x6A4526, 0x4A3020),
    },
}
"""sRGB of what the names mean on such a thing. Red hair is what people call so, and what is dyed red."""

DOUBT = 6.0
"""If another colour is nearer or farther by less than so much (ΔE*ab), nothing is said."""
SURE = 30.0
"""The difference at which the score has gone from 0.5 to the end."""
SUNGLASSES = frozenset({"sunglasses", "shades"})
SEEN_EYES = 0.006
"""Parts of the face's area: more of the eyes than this is not to be seen through dark glasses. Both open eyes together
are about 0.02."""
LEAST_PIXELS = 60
"""Of the parsed square, that a colour is read from."""
LEAST_WIDTH = 128
"""Pixels that a face has to be wide in its picture for its eyes to have a colour."""


@dataclass(frozen=True, eq=False)
class Parsed:
    """A head as a parser sees it."""

    picture: Tensor
    """(SIDE, SIDE, 3)."""
    labels: Tensor
    """(SIDE, SIDE) int64."""

    def area(self, *names: str) -> float:
        """Parts of the square."""
        return float(where(self.labels, names).mean())


@dataclass(frozen=True)
class _Parser:
    rank = 20

    def names(self, host: Host) -> list[str]:
        return [name for name in choices(host) if name not in (AUTO, MESH)]

    def judge(
        self, name: str, picture: Tensor, face: Face | None, attribute: Attribute, evidence: Evidence, host: Host
    ) -> Verdict | None:
        there = words(attribute.text)
        thing = _thing(attribute, there)
        if thing is None or face is None:
            return None
        colours = {word: NAMES[word] for word in there if word in NAMES}
        if thing == "eyes" and not colours:
            return None

        def look() -> Parsed:
            seen, moved = head(picture, face, SIDE, MARGIN)
            return Parsed(seen, parse(seen, moved, name, host=host))

        parsed = evidence.once(("parsed", name), look)
        whole = parsed.area(*FACE)
        if whole < LEAST_FACE:
            return Verdict(attribute.text, None, judge=name, details="the parser sees no face")
        said = set(GENERIC[thing])
        scores: list[float] = []
        details: list[str] = []
        if thing != "eyes":
            share = parsed.area(thing) / whole
            score = share / (share + AREA[thing])
            details.append(f"{thing} {share:.1%} of the face's area")
            if "bald" in there:
                if parsed.area("hat") / whole > AREA["hat"]:
                    return Verdict(attribute.text, None, judge=name, details="a hat may hide hair")
                return Verdict(
                    attribute.text, score <= 0.5, 1 - score, name, details[0], _unsaid(there, said | {"bald"})
                )
            if score < 0.5:
                return Verdict(attribute.text, False, score, name, details[0])
            scores.append(score)
            if dark := SUNGLASSES.intersection(there):
                eyes = parsed.area(*EYES) / whole
                scores.append(SEEN_EYES / (eyes + SEEN_EYES))
                said |= dark
                details.append(f"eyes {eyes:.1%} behind them")
                if scores[-1] < 0.5:
                    return Verdict(attribute.text, False, scores[-1], name, ", ".join(details))
        if (
            len(set(colours.values())) == 1
            and thing in COLOURS
            and (wanted := next(iter(colours.values()))) in COLOURS[thing]
        ):
            score, why = _colour(parsed, face, thing, wanted)
            details.append(why)
            if score is not None:
                if score < 0.5:
                    return Verdict(attribute.text, False, score, name, ", ".join(details))
                scores.append(score)
                said.update(colours)
        if not scores:
            return Verdict(attribute.text, None, judge=name, details=", ".join(details))
        return Verdict(attribute.text, True, min(scores), name, ", ".join(details), _unsaid(there, said))


def _unsaid(there: tuple[str, ...], said: set[str]) -> tuple[str, ...]:
    return tuple(word for word in there if word not in said)


def _thing(attribute: Attribute, there: tuple[str, ...]) -> str | None:
    """What of the labels the attribute speaks of: one of AREA or ``eyes``; None for anything else."""
    if "bald" in there:
        return "hair"
    for thing in AREA:
        if thing in attribute.labels or not GENERIC[thing].isdisjoint(there):
            return thing
    return "eyes" if not GENERIC["eyes"].isdisjoint(there) else None


def _colour(parsed: Parsed, face: Face, thing: str, wanted: str) -> tuple[float | None, str]:
    """How much ``thing`` has the colour ``wanted``, 0 to 1, and why; None where that cannot be told."""
    if thing == "eyes":
        if face.width < LEAST_WIDTH:
            return None, f"the face is {face.width:.0f} pixels wide, too small for the colour of its eyes"
        region = where(parsed.labels, EYES) > 0
    else:
        region = inner(where(parsed.labels, (thing,))) > 0
    pixels = to_lab(parsed.picture[region])
    if thing == "eyes" and len(pixels):
        # Neither the white, which is light and colourless, nor pupil and lashes, which are darkest.
        order = pixels[:, 0].argsort()
        pixels = pixels[order[int(0.2 * len(order)) : int(0.6 * len(order))]]
    if len(pixels) < LEAST_PIXELS:
        return None, f"too little of the {thing} to see a colour"
    return nearest(pixels.median(0).values, thing, wanted)


def nearest(lab: Tensor, thing: str, wanted: str) -> tuple[float | None, str]:
    """As ``_colour``, for the colour ``lab`` (3,)."""
    far: dict[str, float] = {}
    for name, values in COLOURS[thing].items():
        rgb = torch.tensor([[v >> 16, v >> 8 & 255, v & 255] for v in values]) / 255
        far[name] = float((to_lab(rgb) - lab).norm(dim=-1).min())
    other = min((name for name in far if name != wanted), key=far.__getitem__)
    lead = far[other] - far[wanted]
    if abs(lead) < DOUBT:
        return None, f"the {thing} may be {wanted} or {other}"
    return min(1.0, max(0.0, 0.5 + lead / (2 * SURE))), f"{thing}: {wanted if lead > 0 else other}"


def inner(mask: Tensor, pixels: int = 2) -> Tensor:
    """``mask`` (H, W) without its rim, where colours mix; all of it where nothing would be left."""
    size = 2 * pixels + 1
    less = -F.max_pool2d(-mask[None, None], size, 1, pixels)[0, 0]
    return less if bool(less.any()) else mask


judges.add("parser", _Parser())
