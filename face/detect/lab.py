"""The lab's detector: its drawn people fill their square pictures, so there is one face in each, or none."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ..host import Host
from ..lab import NAME, PARTS, SIDE, portrait
from ..models import find
from ..parse.lab import ORDER, parts
from . import detectors
from ._plumbing import Found, collect

HEAD = tuple(ORDER.index(part) for part in ("skin", "left brow", "left eye", "nose", "mouth", "beard", "glasses"))
"""What the box is drawn around."""
LEAST = 40
"""Pixels of these, of 1024, without which there is nobody."""
BLANK = 0.03
"""The least standard deviation of the middle of a picture that shows anybody; every portrait has more."""


@dataclass(frozen=True)
class LabDetector:
    host: Host
    minimum: float = 0.5
    sure: float = 0.0

    def find(self, pictures: Tensor, size: int, minimum: float) -> list[Found]:
        return [self._one(picture, minimum) for picture in pictures]

    def _one(self, picture: Tensor, minimum: float) -> Found:
        # The network never saw a picture without anybody, and dreams somebody into a blank one, with a border or not.
        if float(portrait(picture)[..., 8:24, 8:24].std()) < BLANK:
            return collect([], [], [])
        maps, points = parts(picture, self.host)
        odds, labels = maps.softmax(0).max(0)
        head = np.isin(labels.numpy(), HEAD)
        scale = picture.shape[0] / SIDE
        rows, columns = np.nonzero(head)
        score = float(odds.mean())
        if len(rows) < LEAST or score < minimum:
            return collect([], [], [])
        box = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1], np.float32) * scale
        # Points are in pixels of 128, whose middles lie on whole numbers.
        times = picture.shape[0] / 128
        places = (points.numpy() + 0.5) * times - 0.5
        return Found(box[None], places[None].astype(np.float32), np.array([score], np.float32))


class _Entry:
    def names(self, host: Host) -> list[str]:
        return [NAME]

    def open(self, name: str, host: Host) -> LabDetector:
        find(PARTS, host)
        return LabDetector(host)


detectors.add(NAME, _Entry())
