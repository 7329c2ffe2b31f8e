"""The copy-paste measure of WithAnyone: does a picture repeat the reference, or show the person anew?

Xu et al. 2025, "WithAnyone: Towards Controllable and ID Consistent Image Generation", arXiv 2510.14975, equation 2:
``M(g | t, r) = (θ_gt - θ_gr) / max(θ_tr, ε)`` with θ the angle between two embeddings, g the generated face, r the
reference that was given to the generator, t another picture of the same person.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..errors import BadInput
from ..types import Array, normalised

EPSILON = 1e-6
"""Radians; only keeps a reference that is compared with itself from dividing by zero."""


def angle(a: Array, b: Array) -> float:
    """The angle between two (D,) vectors in radians, 0 to π; exact to 1e-7 also where the cosine is nearly 1."""
    x, y = normalised(np.asarray(a, np.float64)), normalised(np.asarray(b, np.float64))
    x, y = x.astype(np.float64), y.astype(np.float64)
    return float(2 * np.arctan2(np.linalg.norm(x - y), np.linalg.norm(x + y)))


def copy_paste(generated: Array, reference: Array, others: Sequence[Array]) -> float:
    """-1 to 1: 1 repeats the reference, 0 is as near to it as to the person's other pictures, -1 repeats one of those.

    All are (D,) embeddings of one network; ``others`` are further pictures of the person, over which the measure is
    averaged. Values of published generators lie between .08 and .36 (tables 1 and 2). Raises BadInput without others.
    """
    if not others:
        raise BadInput("the copy-paste measure needs at least one more picture of the person, beside the reference")
    near = angle(generated, reference)
    values = [(angle(generated, other) - near) / max(angle(other, reference), EPSILON) for other in others]
    return float(np.clip(np.mean(values), -1, 1))
