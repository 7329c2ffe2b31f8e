"""The self-attention layers of a U-Net, counted in the order in which they are called, and which of them the cure uses.

A host gives its cross-attention layers (``face.attention.sites``); every one has a self-attention before it in the same
block, so both lists say the same in another order.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..attention.sites import Layout, base_name, halved
from ..errors import BadInput

AUTHORS = "authors"
UP, ALL = "up blocks", "all"
CHOICES = (AUTHORS, UP, ALL)

RELEASED = {70: range(50, 70), 16: range(10, 16)}
"""The released code's layers (YIYANGCAI/FreeCure at f9b05a9): SDXL's last 20 of 70, SD1.x's last 6 of 16."""
OMEGA = {70: 1.5, 16: 0.5}
"""Its additive ω for them."""
PAPER_OMEGA = 2.0
"""The paper's multiplicative ω (section 4.1), for every model."""


WORD_LEVEL = 2


@dataclass(frozen=True)
class SelfLayer:
    """One self-attention layer."""

    site: int
    """The cross-attention layer of the same block, in the order of adapter files."""
    part: str
    """``down``, ``up`` or ``mid``."""
    level: int
    """How often the latent has been halved there."""
    width: int
    """Heads times width of a head."""


@dataclass(frozen=True)
class SelfLayers:
    """All of a model's, in call order."""

    layers: tuple[SelfLayer, ...]
    name: str
    """What the model is called."""

    @property
    def omega(self) -> float:
        """The authors' additive ω; that of SD1.5 for models they did not use."""
        return OMEGA.get(len(self.layers), 0.5)

    def choose(self, which: str) -> tuple[int, ...]:
        """The layers that ``which`` means: ``authors``, ``up blocks``, ``all``, or numbers as ``50-69, 3``.

        ``authors``, for a model they did not use: the last third of its layers. Raises BadInput.
        """
        count = len(self.layers)
        if which == AUTHORS:
            return tuple(RELEASED.get(count, range(count - max(count // 3, 1), count)))
        if which == UP:
            return tuple(n for n, layer in enumerate(self.layers) if layer.part == "up")
        if which == ALL:
            return tuple(range(count))
        found: set[int] = set()
        for part in which.split(","):
            match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part)
            first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, count)
            if last >= count or first > last:
                raise BadInput(
                    f"the layers must be {', '.join(CHOICES)}, or numbers from 0 to {count - 1} such as "
                    f"{count - 6}-{count - 1}, for this model has {count} self-attention layers; got {which!r}"
                )
            found |= set(range(first, last + 1))
        return tuple(sorted(found))

    def word_sites(self) -> frozenset[int]:
        """The cross-attention layers whose look at the words is kept: those of a quarter of the latent's sides, 32×32
        of 1024 pixels in SDXL, as in the first version; the deepest there are, if there are none of it."""
        levels = {layer.level for layer in self.layers}
        level = WORD_LEVEL if WORD_LEVEL in levels else max(levels)
        return frozenset(layer.site for layer in self.layers if layer.level == level and layer.part != "mid")

    def grid(self, layer: int, latent: tuple[int, int]) -> tuple[int, int]:
        """(height, width) in tokens of a layer, for a latent of that size."""
        return halved(*latent, self.layers[layer].level)


def self_layers(layout: Layout) -> SelfLayers:
    """The self-attention layers beside a host's cross-attention layers."""
    order = sorted(range(len(layout.sites)), key=lambda n: (layout.sites[n].block, n))
    sites = ((n, layout.sites[n]) for n in order)
    return SelfLayers(
        tuple(SelfLayer(n, site.part, site.level, site.width) for n, site in sites),
        base_name(len(layout.sites), layout.context),
    )
