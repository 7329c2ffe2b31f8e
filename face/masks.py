"""Masks of faces: their box, their outline, or parts of them, grown and feathered by pixels.

Everything is drawn on the region of one face and laid into the picture, so the picture's size costs nothing but the
empty mask.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from math import ceil

import numpy as np
import torch
from torch import Tensor

from . import filters, geometry
from .draw import fill
from .errors import BadInput
from .landmarks import topology
from .types import Array, Face, Faces

KINDS = ("box", "hull", "parts")

_EYES = (topology.LEFT_EYE, topology.RIGHT_EYE)
_BROWS = (topology.LEFT_BROW, topology.RIGHT_BROW)
_OUTLINES: dict[str, tuple[tuple[Sequence[int], ...], tuple[Sequence[int], ...]]] = {
    "skin": ((topology.OVAL,), (*_EYES, *_BROWS, topology.LIPS_OUTER)),
    "eyes": (_EYES, ()),
    "brows": (_BROWS, ()),
    "nose": ((topology.NOSE,), ()),
    "lips": ((topology.LIPS_OUTER,), (topology.LIPS_INNER,)),
    "mouth": ((topology.LIPS_INNER,), ()),
    "oval": ((topology.OVAL,), ()),
}
"""Per part the mesh outlines that it has, and those cut out of it."""

PARTS = tuple(_OUTLINES)
"""``skin`` is the oval without eyes, brows and lips, the nose included; ``mouth`` is what shows between the lips."""

FURTHEST = 256
"""Masks grow, shrink and soften by at most so many pixels."""


def mask(
    faces: Faces,
    kind: str = "hull",
    parts: Iterable[str] = ("oval",),
    grow: float = 0.0,
    feather: float = 0.0,
    strict: bool = True,
) -> Tensor:
    """One mask per picture with all its faces: (B, H, W) in [0, 1]; zeros where there is no face.

    ``kind``: ``box``; ``hull``, the convex hull of the densest landmarks; ``parts``, the union of ``parts`` (see PARTS)
    by the 468-point mesh. The edge then moves out by ``grow`` whole pixels (in, if negative) and becomes a ramp about
    ``feather`` pixels wide, which is 0.5 at the edge. A face cut by the picture's border stays whole beyond it.
    Raises BadInput for unknown kinds and parts, for pictures of several sizes, and, if ``strict``, for a face without
    the landmarks; else such a face leaves nothing (``drawable`` tells which).
    """
    parts = _checked(faces, kind, parts, grow, feather)
    height, width = faces.sizes[0] if faces.sizes else (0, 0)
    result = torch.zeros(len(faces), height, width)
    for i, group in enumerate(faces):
        for face in group:
            if strict or drawable(face, kind):
                _lay(result[i], _outlines(face, kind, parts), grow, feather)
    return result


def mask_each(
    faces: Faces,
    kind: str = "hull",
    parts: Iterable[str] = ("oval",),
    grow: float = 0.0,
    feather: float = 0.0,
    strict: bool = True,
) -> Tensor:
    """As ``mask``, but one mask per face: (N, H, W), picture by picture in the order of ``faces``."""
    parts = _checked(faces, kind, parts, grow, feather)
    height, width = faces.sizes[0] if faces.sizes else (0, 0)
    result = torch.zeros(faces.count, height, width)
    for one, face in zip(result, (face for group in faces for face in group), strict=True):
        if strict or drawable(face, kind):
            _lay(one, _outlines(face, kind, parts), grow, feather)
    return result


def drawable(face: Face, kind: str) -> bool:
    """Whether ``face`` has the landmarks from which a mask of this ``kind`` is drawn."""
    return kind == "box" or 468 in face.landmarks or (kind == "hull" and _densest(face) is not None)


def _densest(face: Face) -> Array | None:
    return face.landmarks.get(468, face.landmarks.get(106, face.landmarks.get(68)))


def _lay(picture: Tensor, outlines: list[tuple[int, Array]], grow: float, feather: float) -> None:
    """Draw one face into ``picture`` (H, W), in place, over what is there."""
    height, width = picture.shape
    reach = ceil(abs(grow) + feather) + 2
    corners = np.concatenate([outline for _, outline in outlines])
    # Drawn as far beyond the border as grow and feather can see, so that the border is not taken for an edge.
    limit = (width + reach, height + reach)
    left, top = (int(v) for v in np.clip(np.floor(corners.min(0)) - reach, -reach, limit))
    right, bottom = (int(v) for v in np.clip(np.ceil(corners.max(0)) + reach + 1, -reach, limit))
    x1, y1, x2, y2 = max(left, 0), max(top, 0), min(right, width), min(bottom, height)
    if x2 <= x1 or y2 <= y1:
        return
    patch = torch.zeros(bottom - top, right - left)
    for sign, outline in outlines:
        # Neighbours that share an edge cover its pixels in parts, so sums leave no seam where maxima would.
        patch.add_(fill(outline - (left, top), *patch.shape), alpha=sign).clamp_(0, 1)
    patch = filters.grow(patch, grow)
    # From a fortieth to thirty-nine fortieths, a Gaussian's ramp is four sigma wide.
    patch = filters.gaussian_blur(patch, feather / 4).clamp_(0, 1)
    region = picture[y1:y2, x1:x2]
    torch.maximum(region, patch[y1 - top : y2 - top, x1 - left : x2 - left], out=region)


def _outlines(face: Face, kind: str, parts: Sequence[str]) -> list[tuple[int, Array]]:
    """Closed outlines (N, 2) in pixels, each to be added (1) or cut out (-1), in this order."""
    if kind == "box":
        x1, y1, x2, y2 = face.box
        return [(1, np.array([[x1, y1], [x2, y1], [x2, y2], [x1, y2]], np.float64))]
    if kind == "hull":
        dense = _densest(face)
        if dense is None:
            raise BadInput(
                "a hull mask needs dense landmarks, and a face only has its five points: no landmarks were looked for, "
                "or their network saw no face there. Switch landmarks on, leave that face out, or choose the box."
            )
        return [(1, geometry.hull(dense[:, :2]))]
    if 468 not in face.landmarks:
        has = ", ".join(f"{scheme} points" for scheme in sorted(face.landmarks)) or "none"
        raise BadInput(
            f"masks of parts need the 468-point mesh; a face has {has}: the mesh was not looked for, or its network "
            "saw no face there. Set landmarks to mesh, leave that face out, or choose the hull or the box."
        )
    return list(_part_outlines(face.landmarks[468][:, :2].astype(np.float64), parts))


def _part_outlines(mesh: Array, parts: Sequence[str]) -> Iterator[tuple[int, Array]]:
    # Skin comes first, since it cuts out what other parts put back; within the oval it adds nothing but its own edge.
    for part in (part for part in PARTS if part in parts and not (part == "skin" and "oval" in parts)):
        added, cut = _OUTLINES[part]
        yield from ((1, mesh[list(ring)]) for ring in added)
        yield from ((-1, mesh[list(ring)]) for ring in cut)


def _checked(faces: Faces, kind: str, parts: Iterable[str], grow: float, feather: float) -> tuple[str, ...]:
    """The parts without doubles; BadInput where the settings cannot be carried out."""
    parts = tuple(dict.fromkeys(parts))
    if kind not in KINDS:
        raise BadInput(f"there is no face mask {kind!r}; choose one of {', '.join(KINDS)}")
    unknown = [part for part in parts if part not in PARTS]
    if kind == "parts" and (unknown or not parts):
        raise BadInput(f"a mask of parts is made of {', '.join(PARTS)}; got {', '.join(unknown) or 'none of them'}")
    if not abs(grow) <= FURTHEST or not 0 <= feather <= FURTHEST:
        raise BadInput(
            f"a mask grows by -{FURTHEST} to {FURTHEST} pixels and is feathered over 0 to {FURTHEST}; got {grow} and "
            f"{feather}. For larger pictures scale the mask afterwards."
        )
    if len(set(faces.sizes)) > 1:
        raise BadInput(
            f"one batch of masks has one size, but the faces come from pictures of {len(set(faces.sizes))} sizes. "
            "Make the masks picture by picture."
        )
    return parts
