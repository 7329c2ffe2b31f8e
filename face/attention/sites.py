"""Where an adapter acts: the cross-attention layers of a U-Net, in the order in which adapter files count them.

The files count diffusers' way: the layers of all down blocks, then of all up blocks, then of the middle one (the index
in ``ip_adapter.{2 n + 1}`` is that of site n). A host reads the layout off its own model; nothing here is assumed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..errors import BadInput

KNOWN = {(16, 768): "SD1.5", (16, 1024): "SD2", (70, 2048): "SDXL", (70, 4096): "Kolors"}
"""The usual names of a U-Net with so many cross-attention layers and such a text width."""


def base_name(sites: int, context: int) -> str:
    """A U-Net in words: ``SDXL``, or what is known of it."""
    return KNOWN.get((sites, context), f"a U-Net of {sites} cross-attention layers with text {context} wide")


@dataclass(frozen=True)
class Site:
    """One cross-attention layer."""

    part: str
    """``down``, ``up`` or ``mid``."""
    block: int
    """Which spatial transformer it belongs to, counted in the order of the forward pass."""
    level: int
    """How often the latent has been halved there."""
    width: int
    """Heads times width of a head."""


@dataclass(frozen=True)
class Layout:
    """The cross-attention layers of a model."""

    sites: tuple[Site, ...]
    """In the order of adapter files."""
    context: int
    """Width of the text as the layers read it."""
    entrance: Any = None
    """The layer through which the model's text goes first, where it has one (Kolors); takes (…, wider)."""

    @property
    def name(self) -> str:
        return base_name(len(self.sites), self.context)

    @property
    def blocks(self) -> int:
        """How many spatial transformers there are: 16 in SD1.5, 11 in SDXL."""
        return 1 + max((site.block for site in self.sites), default=-1)

    def require(self, widths: tuple[int, ...], context: int, what: str) -> None:
        """Raise BadInput unless an adapter of these ``widths`` (one a site) and token width fits this model."""
        if len(widths) == len(self.sites) and context == self.context:
            wrong = [n for n, (site, width) in enumerate(zip(self.sites, widths, strict=True)) if site.width != width]
            if not wrong:
                return
            n = wrong[0]
            raise BadInput(
                f"{what} does not fit the model: at site {n} its layer is {widths[n]} wide, the model's "
                f"{self.sites[n].width}. Use the base model that the adapter was trained on."
            )
        made = base_name(len(widths), context)
        raise BadInput(
            f"{what} is made for {made}, but the model is {self.name}. Load a checkpoint of {made}, or the version of "
            f"the adapter for {self.name}."
        )


def halved(height: int, width: int, level: int) -> tuple[int, int]:
    """Size of a (height, width) latent after ``level`` halvings, each rounded up as a stride-2 convolution does."""
    for _ in range(level):
        height, width = (height + 1) // 2, (width + 1) // 2
    return height, width
