"""How strongly an adapter acts in each part of the network.

The fifteen weight types and the ``layer: weight`` lists are those that people know from ComfyUI_IPAdapter_plus (cubiq,
9d076a3); layers are counted there by spatial transformer in the order of the forward pass (SD1.5: 0 to 15, SDXL: 0 to
10), and so they are here. Written anew from their behaviour.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import isfinite

from ..errors import BadInput
from .sites import Layout

LINEAR = "linear"
WEIGHT_TYPES = (
    LINEAR,
    "ease in",
    "ease out",
    "ease in-out",
    "reverse in-out",
    "weak input",
    "weak output",
    "weak middle",
    "strong middle",
    "style transfer",
    "composition",
    "strong style transfer",
    "style and composition",
    "style transfer precise",
    "composition precise",
)

WEAK = 0.2
"""What is left of the weight in a part that a type makes weak."""
FLOOR = 0.05
"""What an ease leaves at its weak end."""

# Where style and composition are decided, found by switching single layers on and off
# (for SDXL: InstantStyle, Wang et al. 2024, arXiv 2404.02733).
SDXL_BLOCKS, SDXL_STYLE, SDXL_COMPOSITION = 11, 6, 3
SD15_STYLE: tuple[int, ...] = (0, 1, 2, 3, 9, 10, 11, 12, 13, 14, 15)
SD15_MIDDLE: tuple[int, ...] = (6, 7, 8)
SD15_COMPOSITION: Mapping[int, float] = {4: 0.25, 5: 1.0}


@dataclass(frozen=True)
class SiteWeights:
    """What a weight type means for one model."""

    weights: tuple[float, ...]
    """One factor a site; 0 leaves the adapter out there."""
    swapped: frozenset[int] = frozenset()
    """Sites at which the identity is given to the unconditional rows instead, which pushes away from it."""


def _ease(shape: Callable[[float], float]) -> Callable[[float], float]:
    return lambda at: FLOOR + (1 - FLOOR) * shape(at)


EASES: dict[str, Callable[[float], float]] = {
    # ``at`` is the block's number over the number of blocks, 0 to just below 1.
    "ease in": _ease(lambda at: 1 - at),
    "ease out": _ease(lambda at: at),
    "ease in-out": _ease(lambda at: 1 - abs(2 * at - 1)),
    "reverse in-out": _ease(lambda at: abs(2 * at - 1)),
}

PARTS: dict[str, tuple[str, ...]] = {
    # Which parts are weak.
    "weak input": ("down",),
    "weak middle": ("mid",),
    "weak output": ("up",),
    "strong middle": ("down", "up"),
}


def _chosen(kind: str, sdxl: bool) -> tuple[dict[int, float], frozenset[int]]:
    """Factors by block for the types that pick blocks, and the blocks at which the sides are swapped."""
    every = range(SDXL_BLOCKS if sdxl else 16)
    composition = {SDXL_COMPOSITION: 1.0} if sdxl else dict(SD15_COMPOSITION)
    style = {SDXL_STYLE: 1.0} if sdxl else dict.fromkeys(SD15_STYLE, 1.0)
    if kind == "style transfer":
        return style, frozenset()
    if kind == "composition":
        return composition, frozenset()
    if kind == "strong style transfer":
        return {n: 1.0 for n in every if n not in composition}, frozenset()
    if kind == "style and composition":
        return style | composition, frozenset()
    if kind == "style transfer precise":
        return style | composition, frozenset(composition)
    rest = dict.fromkeys(every, 0.1) | {SDXL_STYLE: 1.0} if sdxl else style | dict.fromkeys(SD15_MIDDLE, 0.1)
    return rest | composition, frozenset(every) - frozenset(composition)


def site_weights(layout: Layout, kind: str = LINEAR, layers: str = "") -> SiteWeights:
    """The factors for every site of ``layout``. ``layers``, e.g. ``"3:2.5, 6:1"``, names blocks and replaces ``kind``.

    Raises BadInput for an unknown type, a list that cannot be read, or blocks that the model does not have.
    """
    if kind not in WEIGHT_TYPES:
        raise BadInput(f"there is no weight type {kind!r}. Known: {', '.join(WEIGHT_TYPES)}")
    count = layout.blocks
    swapped: frozenset[int] = frozenset()
    if layers.strip():
        blocks = _parsed(layers, count)
    elif kind in EASES:
        blocks = {n: EASES[kind](n / count) for n in range(count)}
    elif kind == LINEAR:
        return SiteWeights((1.0,) * len(layout.sites))
    elif kind in PARTS:
        weak = PARTS[kind]
        return SiteWeights(tuple(WEAK if site.part in weak else 1.0 for site in layout.sites))
    else:
        if count not in (SDXL_BLOCKS, 16):
            raise BadInput(
                f"the weight type {kind!r} names blocks of SD1.5 (16) and SDXL (11), but this model has {count}. "
                "Use another type, or say the blocks in the layer weights."
            )
        blocks, swapped = _chosen(kind, count == SDXL_BLOCKS)
    return SiteWeights(
        tuple(blocks.get(site.block, 0.0) for site in layout.sites),
        frozenset(n for n, site in enumerate(layout.sites) if site.block in swapped),
    )


def _parsed(text: str, count: int) -> dict[int, float]:
    blocks: dict[int, float] = {}
    for part in filter(None, (piece.strip() for piece in text.replace("\n", ",").split(","))):
        name, _, value = part.partition(":")
        try:
            block, weight = int(name), float(value)
            if not isfinite(weight):
                raise ValueError
        except ValueError:
            raise BadInput(
                f"layer weights are pairs of a block and its weight, such as 3:2.5, 6:1; {part!r} is none"
            ) from None
        if not 0 <= block < count:
            raise BadInput(f"layer weights name block {block}, but this model's blocks are 0 to {count - 1}")
        blocks[block] = weight
    return blocks
