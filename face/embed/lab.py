"""The lab's two recognisers, for its drawn people: 128 numbers, not normalised (``lab/README.md``)."""

from __future__ import annotations

from ..lab import JUDGE_RECOGNISER, RECOGNISER
from . import CatalogueEmbedder, Preprocessing, embedders

for _card in (RECOGNISER, JUDGE_RECOGNISER):
    embedders.add(_card.name, CatalogueEmbedder(_card, Preprocessing(), 128))
