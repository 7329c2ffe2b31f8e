"""How judges cut a face out of its picture."""

from __future__ import annotations

import torch
from torch import Tensor

from ...crop import crop
from ...types import Array, Face, Faces
from ._words import Claim

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's pixels."""


def head(picture: Tensor, face: Face, size: int, margin: float = 0.5, *, align: bool = True) -> tuple[Tensor, Face]:
    """The square (size, size, 3) round the face of ``picture`` (H, W, 3), and the face in its pixels.

    ``margin`` is what is added on every side, in parts of the box; ``align`` turns the head upright.
    """
    height, width = int(picture.shape[0]), int(picture.shape[1])
    cut = crop(picture[None], Faces(((face,),), ((height, width),)), margin=margin, size=size, align=align)
    return cut.images[0], cut.faces[0][0]


def imagenet(picture: Tensor) -> Array:
    """(1, 3, H, W) float32 from ``picture`` (H, W, 3), normalised as for ImageNet."""
    x = (picture - torch.tensor(MEAN)) / torch.tensor(STD)
    return x.permute(2, 0, 1)[None].contiguous().numpy()


def told(claims: list[Claim[float]]) -> float:
    """The score of several claims together, each in [0, 1]: the weakest.

    One that cannot settle its words counts only where it refutes them, or where there is no other.
    """
    sure = [claim.value for claim in claims if claim.whole]
    doubts = [claim.value for claim in claims if not claim.whole]
    return min([*sure, *(value for value in doubts if value < 0.5 or not sure)], default=1.0)
