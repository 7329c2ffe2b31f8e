"""The lab's parser: 14 parts of its drawn people, in the labels of the others, and a beard, which they do not have."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import MissingModel
from ..host import Host
from ..lab import NAME, PARTS, label_map, portrait
from ..models import find
from ..session import OnnxModel
from ..types import Face
from . import BEARD, LABELS, parsers

ORDER = (
    "background", "skin", "left ear", "left brow", "left eye", "nose", "mouth", "neck", "cloth", "hair", BEARD,
    "glasses", "earring", "hat",
)  # fmt: skip
"""Its parts in the order of the network's maps; of what comes in pairs the left one."""
PAIRS = ("ear", "brow", "eye")


def parts(picture: Tensor, host: Host) -> tuple[Tensor, Tensor]:
    """Maps (14, 32, 32) of ``picture`` (H, W, 3), logits, and its five points (5, 2) in pixels of 128."""
    model = OnnxModel(find(PARTS, host), host)
    maps, points = model.run({"image": (portrait(picture) * 2 - 1).numpy()}, ["parts", "points"])
    return torch.from_numpy(maps[0]), torch.from_numpy(points.reshape(5, 2))


class _Lab:
    def names(self, host: Host) -> list[str]:
        try:
            find(PARTS, host)
        except MissingModel:
            return []
        return [NAME]

    def parse(self, name: str, picture: Tensor, face: Face | None, host: Host) -> Tensor:
        found = parts(picture, host)[0].argmax(0)
        labels = torch.tensor([LABELS.index(part) for part in ORDER])[found]
        right = torch.arange(labels.shape[1]) >= labels.shape[1] // 2
        for thing in PAIRS:
            left, other = (LABELS.index(f"{side} {thing}") for side in ("left", "right"))
            labels = torch.where((labels == left) & right, other, labels)
        return label_map(labels, int(picture.shape[0]), int(picture.shape[1]))


parsers.add(NAME, _Lab())
