"""A small world of pixel-art portraits: who somebody is, what a prompt asks for, and how both look.

A person is a row of *traits*; a prompt asks for *attributes*; what is left to chance is a *nuisance*. A portrait is
drawn from all three, 32×32 pixels of flat colours, together with a map that says of each pixel which part it shows.
Nothing here is a photograph, or learned from one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Values = Mapping[str, NDArray[np.int64]]
"""By name one number a portrait: the place of its value in the tables below."""

SIDE = 32

TRAITS: dict[str, tuple[str, ...]] = {
    "skin": ("porcelain", "fair", "tan", "olive", "brown", "dark"),
    "head": ("narrow", "middle", "wide"),
    "jaw": ("round", "square", "pointed"),
    "gap": ("close", "middle", "far"),
    "eyes": ("narrow", "round"),
    "iris": ("brown", "blue", "green", "amber"),
    "nose": ("small", "long", "wide", "button"),
    "lips": ("short", "middle", "broad"),
    "brow": ("thin", "thick", "slanted", "arched"),
    "marks": ("none", "freckles", "mole"),
    "ears": ("small", "large"),
}
"""373,248 people."""

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "hair": ("black", "brown", "blonde", "red", "white"),
    "style": ("short", "long", "curly", "bun"),
    "glasses": ("none", "round glasses", "sunglasses"),
    "hat": ("none", "cap", "beanie"),
    "beard": ("none", "beard", "moustache"),
    "earrings": ("none", "earrings"),
    "expression": ("calm", "laughing", "sad", "surprised"),
    "background": ("blue", "green", "pink", "grey"),
    "light": ("day", "evening"),
}
NUISANCES: dict[str, int] = {"shirt": 4, "cloth": 3}
"""Colours of the shirt, and of whatever hat there is."""

PARTS = ("background", "skin", "ears", "brows", "eyes", "nose", "mouth", "neck", "shirt", "hair", "beard", "glasses",
         "earrings", "hat")  # fmt: skip
"""What a pixel can show."""

_SKIN = ((250, 224, 208), (241, 194, 160), (222, 170, 120), (190, 148, 96), (146, 94, 58), (92, 58, 40))
_IRIS = ((98, 52, 16), (40, 110, 236), (30, 158, 60), (226, 150, 16))
_HAIR = ((26, 22, 28), (104, 62, 30), (240, 206, 92), (196, 60, 22), (232, 232, 238))
_BACKGROUND = ((130, 176, 232), (134, 198, 132), (240, 168, 196), (170, 170, 174))
_SHIRT = ((60, 72, 140), (150, 40, 60), (48, 110, 84), (224, 214, 190))
_CLOTH = ((200, 44, 44), (48, 84, 190), (70, 70, 78))
_EVENING = (0.62, 0.56, 0.74)
_WHITE, _DARK, _GOLD, _LIP, _TEETH, _BROW = (
    (252, 252, 252), (24, 20, 24), (250, 190, 20), (176, 52, 60), (255, 255, 255), (52, 34, 26),
)  # fmt: skip

_JAWS = np.array(
    [
        # How much narrower than the head rows 18 to 24 are.
        [0, 0, 0, 1, 1, 2, 4],
        [0, 0, 0, 0, 0, 0, 1],
        [0, 1, 1, 2, 3, 4, 6],
    ]
)


@dataclass(frozen=True, eq=False)
class Portraits:
    """Drawn portraits."""

    pixels: NDArray[np.uint8]
    """(N, 32, 32, 3) RGB."""
    parts: NDArray[np.uint8]
    """(N, 32, 32): places in ``PARTS``."""


def people(count: int, seed: int, strangers: bool | None = None) -> Values:
    """Somebody at random, ``count`` times; ``strangers``: only, or none of, those whom ``kept_back`` tells."""
    draw = np.random.default_rng(seed)
    drawn = 2 * count + 8 if strangers is False else 64 * count + 512 if strangers else count
    who = {name: draw.integers(0, len(values), drawn) for name, values in TRAITS.items()}
    if strangers is None:
        return who
    wanted = np.flatnonzero(kept_back(who) == strangers)[:count]
    return {name: values[wanted] for name, values in who.items()}


def kept_back(who: Values) -> NDArray[np.bool_]:
    """(N,): whether it is somebody on whom no recogniser and no adapter is ever trained: one person in 32."""
    mixed = np.zeros(len(next(iter(who.values()))), np.uint64)
    for name in TRAITS:
        # Knuth's multiplicative hash, so that every trait counts in every bit.
        mixed = (mixed * np.uint64(len(TRAITS[name])) + who[name].astype(np.uint64)) * np.uint64(2654435761)
        mixed ^= mixed >> np.uint64(15)
    return (mixed >> np.uint64(7)) % np.uint64(32) == 0


def wishes(count: int, seed: int) -> Values:
    """What a prompt asks for, at random, ``count`` times. Each *none* comes half of the time."""
    draw = np.random.default_rng(seed)
    found: dict[str, NDArray[np.int64]] = {}
    for name, values in ATTRIBUTES.items():
        chosen = draw.integers(0, len(values), count)
        if values[0] == "none":
            chosen = np.where(draw.random(count) < 0.5, 0, draw.integers(1, len(values), count))
        found[name] = chosen
    return found


def chances(count: int, seed: int) -> Values:
    """What nobody settled."""
    draw = np.random.default_rng(seed)
    return {name: draw.integers(0, values, count) for name, values in NUISANCES.items()}


def sentence(what: Values, number: int) -> str:
    """The prompt that asks for the attributes of portrait ``number``; what it does not name is not wanted.

    ``a portrait of a person with curly red hair, round glasses, a beard, laughing, blue background, evening light``.
    """
    said = {name: values[int(what[name][number])] for name, values in ATTRIBUTES.items()}
    hair = f"{said['hair']} hair in a bun" if said["style"] == "bun" else f"{said['style']} {said['hair']} hair"
    articles = {"hat": "a ", "beard": "a "}
    worn = [
        articles.get(name, "") + said[name] for name in ("glasses", "hat", "beard", "earrings") if said[name] != "none"
    ]
    rest = [said["expression"], f"{said['background']} background", f"{said['light']} light"]
    return ", ".join([f"a portrait of a person with {hair}", *worn, *rest])


def draw(who: Values, what: Values, chance: Values) -> Portraits:
    """Portraits of ``who`` with the attributes ``what``; all (N,)."""
    return _Painter(who, what, chance).portraits()


class _Painter:
    """Paints part over part; every condition is an array of (N, 32, 32)."""

    def __init__(self, who: Values, what: Values, chance: Values) -> None:
        self.who, self.what, self.chance = who, what, chance
        count = len(who["skin"])
        self.y, self.x = np.arange(SIDE)[None, :, None], np.arange(SIDE)[None, None, :]
        self.off = np.abs(self.x - 15.5)
        """Distance from the middle: 0.5, 1.5, …"""
        self.left = self.x < 16
        self.pixels = np.zeros((count, SIDE, SIDE, 3), np.float32)
        self.parts = np.zeros((count, SIDE, SIDE), np.uint8)
        self.half = _n(who["head"] + 7)
        self.skin = np.array(_SKIN, np.float32)[who["skin"]]
        self.hair = np.array(_HAIR, np.float32)[what["hair"]]

    def portraits(self) -> Portraits:
        self._background()
        self._hair_behind()
        self._body()
        self._head()
        self._features()
        self._beard()
        self._mouth()
        self._hair_before()
        self._glasses()
        self._earrings()
        self._hat()
        evening = np.where(_n(self.what["light"])[..., None] == 1, np.array(_EVENING, np.float32), 1.0)
        return Portraits((self.pixels * evening).round().astype(np.uint8), self.parts)

    def _paint(self, where: Array, colour: Array | Sequence[float], part: str) -> None:
        where = np.broadcast_to(where, self.parts.shape)
        shade = np.broadcast_to(np.asarray(colour, np.float32).reshape(-1, 1, 1, 3), self.pixels.shape)
        self.pixels[where] = shade[where]
        self.parts[where] = PARTS.index(part)

    def _trait(self, name: str, value: str) -> Array:
        return _n(self.who[name] == TRAITS[name].index(value))

    def _wish(self, name: str, value: str) -> Array:
        return _n(self.what[name] == ATTRIBUTES[name].index(value))

    def _between(self, first: int, last: int) -> Array:
        return (self.y >= first) & (self.y <= last)

    def _background(self) -> None:
        self._paint(np.ones((1, 1, 1), bool), np.array(_BACKGROUND)[self.what["background"]], "background")

    def _body(self) -> None:
        slope = np.minimum(6 + 2 * (self.y - 26), 13)
        self._paint((self.y >= 27) & (self.off < slope), np.array(_SHIRT)[self.chance["shirt"]], "shirt")
        self._paint(self._between(23, 27) & (self.off < 3), self.skin * 0.86, "neck")

    def _outline(self) -> Array:
        """The face without ears: (N, 32, 32)."""
        cut = np.zeros((len(self.skin), SIDE), np.int64)
        cut[:, 8:10] = [2, 1]
        cut[:, 18:25] = _JAWS[self.who["jaw"]]
        inside = (self.y >= 8) & (self.y <= 24)
        return inside & (self.off < self.half - cut[:, :, None])

    def _head(self) -> None:
        large = self._trait("ears", "large")
        rows = np.where(large, self._between(13, 18), self._between(15, 16))
        reach = np.where(large, 2, 1)
        self._paint(rows & (self.off >= self.half) & (self.off < self.half + reach), self.skin * 0.9, "ears")
        self._paint(self._outline(), self.skin, "skin")
        freckles = self._trait("marks", "freckles") & (
            (self.y == 17) & np.isin(self.off, (3.5, 5.5)) | (self.y == 18) & np.isin(self.off, (2.5, 4.5))
        )
        self._paint(freckles & (self.off < self.half), self.skin * 0.68, "skin")
        mole = self._trait("marks", "mole") & self._between(18, 19) & (self.x >= 20) & (self.x <= 21)
        self._paint(mole, self.skin * 0.35, "skin")

    def _features(self) -> None:
        # The middle of an eye lies 2.5, 3.5 or 4.5 pixels from that of the face.
        centre = _n(self.who["gap"]) + 2.5
        away = np.abs(self.off - centre)
        rows = np.where(self._trait("eyes", "round"), self._between(13, 15), self._between(14, 15))
        self._paint(rows & (away < 1.5), _WHITE, "eyes")
        self._paint(self._between(14, 15) & (away < 0.5), np.array(_IRIS)[self.who["iris"]], "eyes")
        outer, inner = self.off > centre, self.off < centre
        row = np.full(self.parts.shape, 11)
        row = np.where(self._trait("brow", "slanted"), np.where(inner, 12, np.where(outer, 10, 11)), row)
        row = np.where(self._trait("brow", "arched"), np.where(away < 0.5, 10, 11), row)
        tall = np.where(self._trait("brow", "thick"), 1, 0)
        self._paint((away < 2) & (self.y <= row) & (self.y >= row - tall), _BROW, "brows")
        nose = self._trait("nose", "small") & (self.y == 18) & (self.off < 1)
        nose = nose | self._trait("nose", "long") & self._between(14, 18) & (self.off < 1)
        nose = nose | self._trait("nose", "wide") & (self.y == 18) & (self.off < 3)
        nose = nose | self._trait("nose", "button") & self._between(17, 18) & (self.off < 2)
        self._paint(nose, self.skin * 0.74, "nose")

    def _beard(self) -> None:
        full = self._wish("beard", "beard") & (
            self._between(20, 24) | self._between(17, 19) & (self.off >= self.half - 2)
        )
        self._paint(full & self._outline(), self.hair, "beard")
        self._paint(self._wish("beard", "moustache") & (self.y == 19) & (self.off < 4), self.hair, "beard")
        self._paint(
            self._wish("beard", "moustache") & (self.y == 20) & (self.off < 5) & (self.off > 3), self.hair, "beard"
        )

    def _mouth(self) -> None:
        half = _n(self.who["lips"]) + 2
        corner = (self.off >= half - 1) & (self.off < half)
        inside = self.off < half
        self._paint(self._wish("expression", "calm") & (self.y == 21) & inside, _LIP, "mouth")
        laughing = self._wish("expression", "laughing")
        self._paint(laughing & (self.y == 20) & inside, _LIP, "mouth")
        self._paint(laughing & (self.y == 21) & inside, _TEETH, "mouth")
        self._paint(laughing & (self.y == 22) & (self.off < half - 1), _LIP, "mouth")
        self._paint(laughing & (self.y == 21) & corner, _LIP, "mouth")
        sad = self._wish("expression", "sad")
        self._paint(sad & (self.y == 21) & inside & ~corner, _LIP, "mouth")
        self._paint(sad & (self.y == 22) & corner, _LIP, "mouth")
        surprised = self._wish("expression", "surprised")
        open_ = self._between(20, 23) & (self.off < np.minimum(half, 3))
        self._paint(surprised & open_ & (self.off < 2), _LIP, "mouth")
        self._paint(surprised & self._between(21, 22) & (self.off < 1), _DARK, "mouth")

    def _hair_behind(self) -> None:
        curly = (self.off / 12.5) ** 2 + ((self.y - 11.5) / 10.5) ** 2 < 1
        # A wavy outline, not a ball.
        curly = curly & ~(((self.x + self.y) % 4 == 0) & ((self.off / 11.3) ** 2 + ((self.y - 11.5) / 9.3) ** 2 > 1))
        self._paint(self._wish("style", "curly") & curly, self.hair, "hair")
        long = self._between(8, 28) & (self.off < self.half + 3)
        self._paint(self._wish("style", "long") & long, self.hair, "hair")
        bun = ((self.off / 4) ** 2 + ((self.y - 2.5) / 3) ** 2 < 1) & (self.y < 7)
        self._paint(self._wish("style", "bun") & bun, self.hair, "hair")

    def _hair_before(self) -> None:
        crown = (self.off / (self.half + 1)) ** 2 + ((self.y - 10) / 5.5) ** 2 < 1
        self._paint(crown & (self.y <= 8), self.hair, "hair")
        sides = self._between(9, 12) & (self.off >= self.half - 1) & (self.off < self.half + 1)
        self._paint(sides, self.hair, "hair")
        # Seen from before, long hair hangs over the shoulders, beside the face.
        hanging = self._between(9, 28) & (self.off >= self.half) & (self.off < self.half + 3)
        self._paint(self._wish("style", "long") & hanging, self.hair, "hair")

    def _glasses(self) -> None:
        centre = _n(self.who["gap"]) + 2.5
        away, tall = np.abs(self.off - centre), np.abs(self.y - 14.0)
        ring = np.maximum(away, tall) < 3
        bridge = (self.y == 14) & (self.off < centre)
        round_ = self._wish("glasses", "round glasses")
        edge = ring & ~(np.maximum(away, tall) < 2) & ~((away >= 2) & (tall >= 2))
        self._paint(round_ & (edge | bridge & ~ring), _DARK, "glasses")
        dark = self._wish("glasses", "sunglasses")
        lens = (away < 2.5) & self._between(13, 16)
        self._paint(dark & (lens | (self.y == 13) & (self.off < self.half)), _DARK, "glasses")

    def _earrings(self) -> None:
        ring = self._between(18, 20) & (self.off >= self.half) & (self.off < self.half + 1)
        self._paint(self._wish("earrings", "earrings") & ring, _GOLD, "earrings")

    def _hat(self) -> None:
        colour = np.array(_CLOTH, np.float32)[self.chance["cloth"]]
        dome = (self.off / (self.half + 2)) ** 2 + ((self.y - 9) / 7.5) ** 2 < 1
        cap = self._wish("hat", "cap")
        self._paint(cap & dome & (self.y <= 7), colour, "hat")
        self._paint(
            cap & self._between(8, 9) & (self.x >= 16 - self.half) & (self.x < 19 + self.half), colour * 0.6, "hat"
        )
        beanie = self._wish("hat", "beanie")
        self._paint(beanie & dome & (self.y <= 9), colour, "hat")
        self._paint(
            beanie & self._between(8, 9) & (self.off < self.half + 2), np.minimum(colour * 1.4 + 30, 255), "hat"
        )
        self._paint(beanie & self._between(0, 2) & (self.off < 2), np.minimum(colour * 1.4 + 30, 255), "hat")


def _n(values: Array) -> Array:
    """(N,) as (N, 1, 1)."""
    return values[:, None, None]
