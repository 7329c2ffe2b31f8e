"""Several vectors of one person to one: pure mathematics on (N, D) arrays.

A recogniser's vector has a direction, which is the person, and a length, which is how sure the network is. All methods
but ``concat`` average directions, so that one loud vector cannot drown the others, and give the result the average
length: consumers of raw vectors (IP-Adapter FaceID, ReActor) then get a magnitude of the kind they were trained on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import MappingProxyType

import numpy as np

from .errors import BadInput
from .types import Array, normalised

FAR = 1000.0
"""What Pose2ID puts on the diagonal of its distances, so that nobody is his own neighbour."""


def neighbours(features: Array, k1: int = 2, k2: int = 2) -> list[Array]:
    """Per row of ``features`` (N, D) the indices of its mutual neighbours.

    j is a neighbour of i if j is among the ``k1`` rows nearest to i, and i among the ``k2`` nearest to j (squared
    Euclidean). Pose2ID, arXiv 2503.00938; github.com/yuanc3/Pose2ID@0fea3b3 NFC.py.
    """
    x = np.asarray(features, np.float64)
    lengths = (x * x).sum(1)
    distance = lengths[:, None] + lengths - 2 * x @ x.T
    np.fill_diagonal(distance, FAR)
    rank = np.argsort(distance, axis=1, kind="stable")[:, :k1]
    return [np.array([j for j in near if i in rank[j, :k2]], int) for i, near in enumerate(rank)]


def centralise(features: Array, k1: int = 2, k2: int = 2) -> Array:
    """Neighbour feature centralisation: every row plus the sum of its mutual ``neighbours``. Not renormalised."""
    found = neighbours(features, k1, k2)
    return np.stack([row + features[near].sum(0) for row, near in zip(features, found, strict=True)])


def _with_length(direction: Array, lengths: Array, weights: Array) -> Array:
    """(1, D): ``direction`` with the weighted mean of ``lengths``."""
    return normalised(direction[None]) * np.float32(np.average(lengths, weights=weights))


def _mean(vectors: Array, weights: Array) -> Array:
    return _with_length(weights @ normalised(vectors), np.linalg.norm(vectors, axis=1), weights)


def _median(vectors: Array, weights: Array) -> Array:
    """Component by component over the directions: a stray picture among several moves it little. Ignores weights."""
    lengths = np.linalg.norm(vectors, axis=1)
    return normalised(np.median(normalised(vectors), axis=0)[None]) * np.float32(np.median(lengths))


def _quality(vectors: Array, weights: Array) -> Array:
    """The mean, weighted by each vector's own length.

    A recogniser answers a blurred, dark or turned face with a shorter vector (MagFace, arXiv 2103.06627; AdaFace,
    arXiv 2204.00964); with unit vectors only ``weights`` decides.
    """
    return _mean(vectors, weights * np.linalg.norm(vectors, axis=1))


def _nfc(vectors: Array, weights: Array) -> Array:
    """The mean of the centralised directions, without those that are nobody's mutual neighbour (from three on).

    The nearest two of all are always each other's neighbours, so something is left. Four pictures are the fewest among
    which one can be alone.
    """
    k = min(2, len(vectors) - 1)
    if k == 0:
        return _mean(vectors, weights)
    unit = normalised(vectors)
    found = neighbours(unit, k, k)
    keep = np.array([len(near) > 0 or len(vectors) < 3 for near in found])
    tight = normalised(centralise(unit, k, k))
    lengths = np.linalg.norm(vectors, axis=1)
    return _with_length(weights[keep] @ tight[keep], lengths[keep], weights[keep])


def _concat(vectors: Array, weights: Array) -> Array:
    """All of them, for consumers that take several."""
    return vectors


METHODS: MappingProxyType[str, Callable[[Array, Array], Array]] = MappingProxyType(
    {"mean": _mean, "median": _median, "quality": _quality, "nfc": _nfc, "concat": _concat}
)
"""By name: (N, D) raw vectors and (N,) positive weights to (1, D), or (N, D) for ``concat``."""


def combine_vectors(vectors: Array, method: str = "mean", weights: Sequence[float] | Array | None = None) -> Array:
    """(M, D) float32 of ``vectors`` (N, D) of one person; M is 1 but for ``concat``.

    ``weights`` (N,) say how much each counts, default equal; not negative, one at least positive. Raises BadInput for
    an unknown method, for weights that don't fit, and for vectors without a direction.
    """
    if method not in METHODS:
        raise BadInput(f"there is no way of combining called {method!r}. Known: {', '.join(METHODS)}.")
    vectors = np.asarray(vectors, np.float32)
    if vectors.ndim != 2 or len(vectors) == 0:
        raise BadInput(f"combining needs at least one vector as (N, D); got {vectors.shape}")
    given = np.ones(len(vectors)) if weights is None else np.asarray(weights, np.float64)
    if given.shape != (len(vectors),) or not np.isfinite(given).all() or (given < 0).any() or given.sum() == 0:
        raise BadInput(
            f"{len(vectors)} vectors need as many weights, none negative and not all zero; got {given.tolist()}"
        )
    counted = given > 0
    normalised(vectors)  # Refuses a vector without a direction, whatever the method.
    return METHODS[method](vectors[counted], given[counted]).astype(np.float32)
