"""Faces to labels: which pixel is skin, hair, eye, background.

To add a parser is to add a file that enters a ``Parser`` into ``parsers``. All answer in one set of labels, whatever
the order in which their networks were trained.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import BadInput
from ..host import STANDALONE, Host
from ..lab import of_the_lab
from ..registry import Registry
from ..types import Face

LABELS = (
    "background", "skin", "left brow", "right brow", "left eye", "right eye", "glasses", "left ear", "right ear",
    "earring", "nose", "mouth", "upper lip", "lower lip", "neck", "necklace", "cloth", "hair", "hat", "beard",
)  # fmt: skip
"""The classes of CelebAMask-HQ (Lee et al. 2020, arXiv 1907.11922) in the order of face-parsing.PyTorch. ``mouth`` is
what shows between the lips. Which side is left depends on the network: they were trained on mixed data. The last,
``beard``, is the lab's alone."""
CELEBA = LABELS[:-1]
BEARD = LABELS[-1]

MESH = "mesh"
AUTO = "auto"


class Parser(Protocol):
    """One kind of parser."""

    def names(self, host: Host) -> list[str]:
        """What a user can choose of this kind now."""
        ...

    def parse(self, name: str, picture: Tensor, face: Face | None, host: Host) -> Tensor:
        """(H, W) int64 labels of ``picture`` (H, W, 3), a head that about fills it; ``face`` in its pixels."""
        ...


parsers: Registry[Parser] = Registry("face parser", __name__, __path__)


def choices(host: Host = STANDALONE) -> list[str]:
    """Names for a combo box: networks whose files are there, then the mesh, which needs none, and the lab's."""
    found = [name for entry in parsers for name in entry.names(host)]
    return [AUTO, *sorted(found, key=lambda name: 2 if of_the_lab(name) else name == MESH)]


def automatic(host: Host = STANDALONE) -> list[str]:
    """Those that ``auto`` means."""
    return [name for name in choices(host) if name not in (AUTO, MESH) and not of_the_lab(name)]


def parse(picture: Tensor, face: Face | None, parser: str = AUTO, *, host: Host = STANDALONE) -> Tensor:
    """(H, W) int64: the label of each pixel of ``picture`` (H, W, 3), a head that about fills it.

    ``auto`` takes the first network that is there, else the mesh. Raises BadInput for an unknown parser.
    """
    known = choices(host)
    name = known[1] if parser == AUTO else parser
    for entry in parsers:
        if name in entry.names(host):
            return entry.parse(name, picture, face, host)
    raise BadInput(
        f"there is no face parser {parser!r}. Known: {', '.join(known)}. Networks are files bisenet*.onnx or "
        "segface*.onnx in the likeness folder."
    )


def where(labels: Tensor, names: Iterable[str]) -> Tensor:
    """(H, W) float32, 1 where ``labels`` (H, W) is one of ``names``."""
    wanted = torch.tensor([LABELS.index(name) for name in names])
    return torch.isin(labels, wanted).float()


def enclosed(mask: Tensor) -> Tensor:
    """``mask`` (H, W) of 0 and 1 with its holes filled: all that cannot be reached from the border without crossing it.

    Steps are to the four neighbours. Each round goes as far as it gets in the four directions, not one pixel.
    """
    wall = F.pad(mask, (1, 1, 1, 1)) > 0
    outside = ~wall
    outside[1:-1, 1:-1] = False
    count = -1
    while int(outside.sum()) != count:
        count = int(outside.sum())
        for axis in (0, 1):
            for flip in (False, True):
                outside = _swept(outside, wall, axis, flip)
    return (~outside)[1:-1, 1:-1].float()


def _swept(outside: Tensor, wall: Tensor, axis: int, flip: bool) -> Tensor:
    """``outside`` carried along ``axis`` to the next ``wall``."""
    if flip:
        return _swept(outside.flip(axis), wall.flip(axis), axis, False).flip(axis)
    order = torch.arange(outside.shape[axis]).expand_as(outside.movedim(axis, -1)).movedim(-1, axis)
    start = torch.where(outside, order, -1).cummax(axis).values
    stop = torch.where(wall, order, -1).cummax(axis).values
    return (start > stop) & ~wall
