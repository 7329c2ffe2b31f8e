"""The geometric swapper: a reference picture's face drawn over the target's, mesh to mesh. No learned weights.

The target keeps its pose, its expression and its light; the reference gives the texture. Both are known as the 468
points of MediaPipe's face mesh. What covers the target's face (hair, a hand) stays; what covers the reference's is not
copied but taken from the other half of the face; the inside of an open mouth and shut eyes are the target's own.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..analyse import with_mesh
from ..errors import BadInput
from ..host import Host
from ..landmarks.topology import (
    LEFT_BROW,
    LEFT_EYE,
    LIPS_INNER,
    LIPS_OUTER,
    MIRROR,
    NOSE,
    OVAL,
    RIGHT_BROW,
    RIGHT_EYE,
    TRIANGLES,
)
from ..types import Array, Face, Faces, Identity, Person, Reference
from . import Patch, Settings, swappers
from .colour import blur, match_grain, reach, relight, resize, smooth, to_lab, to_rgb, toned
from .occlusion import covered, distance, step, strangeness
from .warp import facing, rasterise, sample, shrink

POINTS = 468
LIGHT = 0.16
"""The sigma of what counts as light and complexion rather than as a feature, in parts of the face's width."""
WORKING = 224
"""Masks and light are worked out with the face's longer side at most so many pixels: they are smooth anyway."""

LEFT_CHEEK, RIGHT_CHEEK, BROW_TOP, CHIN, LIP_TOP, LIP_BOTTOM = 234, 454, 10, 152, 13, 14
LIPS_BETWEEN = (
    (62, 183, 42, 41, 38, 12, 268, 271, 272, 407, 292, 325, 319, 403, 316, 15, 86, 179, 89, 96),
    (76, 184, 74, 73, 72, 11, 302, 303, 304, 408, 306, 307, 320, 404, 315, 16, 85, 180, 90, 77),
)
"""The rows of lip points between ``LIPS_INNER`` and ``LIPS_OUTER``, in the same order."""
SHUT = 0.85
"""An eye counts as shut if its middle is at least so light, in parts of the skin around it."""
WIDER = 1.15
"""The outline of both meshes is moved out by this factor: it lies inside the face, and what is drawn ends in a soft rim
within it, which would leave jaw and temples to the target."""
OPEN = 0.02
"""A mouth counts as open from this gap between the inner lips on, in parts of the face's width."""


@dataclass(frozen=True, eq=False)
class _Regions:
    """Signed distances on the working grid, (h, w) float32 in parts of the face's width, positive inside."""

    oval: Array
    left_eye: Array
    right_eye: Array
    brows: Array
    nose: Array
    lips: Array
    mouth: Array
    """The inside of the lips."""
    pixel: float
    """A pixel of the grid in the same unit."""

    @property
    def eyes(self) -> Array:
        return np.maximum(self.left_eye, self.right_eye)

    @property
    def skin(self) -> Tensor:
        """(h, w) 0 or 1: where nothing but skin is expected."""
        features = (self.eyes > -0.09) | (self.brows > -0.04) | (self.lips > -0.02) | (self.nose > 0)
        return torch.from_numpy(((self.oval > 0.02) & ~features).astype(np.float32))

    @property
    def plain(self) -> Tensor:
        """(h, w) 0 or 1: skin, the nose included."""
        # The mesh tends to lie above the brow, so what is between it and the eye is brow too.
        features = np.maximum(np.maximum(self.eyes + 0.09, self.brows + 0.03), self.lips + 0.015)
        return 1 - step(features, -0.01, 0.01)

    @property
    def protected(self) -> Tensor:
        """(h, w) bool: features that differ from skin without hiding it."""
        kept = (self.eyes > -0.09) | (self.brows > -0.015) | (self.lips > -0.04) | (self.nose > -0.03)
        return torch.from_numpy(kept & (self.oval > 0.05))


def _regions(points: Array, height: int, width: int, unit: float) -> _Regions:
    def to(ring: tuple[int, ...]) -> Array:
        return distance(points[list(ring)], height, width) / unit

    return _Regions(
        oval=to(OVAL),
        left_eye=to(LEFT_EYE),
        right_eye=to(RIGHT_EYE),
        brows=np.maximum(to(LEFT_BROW), to(RIGHT_BROW)),
        nose=to(NOSE),
        lips=to(LIPS_OUTER),
        mouth=to(LIPS_INNER),
        pixel=1 / unit,
    )


def face_width(points: Array) -> float:
    """Pixels across the face, hardly changed by turning the head: the larger of width and 0.8 of the height."""
    across = float(np.linalg.norm(points[LEFT_CHEEK] - points[RIGHT_CHEEK]))
    return max(across, 0.8 * float(np.linalg.norm(points[BROW_TOP] - points[CHIN])))


def gap(points: Array) -> float:
    """How far the inner lips are apart, in parts of the face's width."""
    return float(np.linalg.norm(points[LIP_TOP, :2] - points[LIP_BOTTOM, :2])) / face_width(points)


def turn_between(points: Array, other: Array) -> float:
    """Degrees between the poses of two meshes (468, 3): the rotation that best takes one to the other (Kabsch)."""
    a, b = points - points.mean(0), other - other.mean(0)
    u, _, vt = np.linalg.svd(a.astype(np.float64).T @ b)
    flip = np.diag([1.0, 1.0, float(np.sign(np.linalg.det(u @ vt)))])
    cosine = (np.trace(u @ flip @ vt) - 1) / 2
    return float(np.degrees(np.arccos(np.clip(cosine, -1, 1))))


def _mesh_of(face: Face, whose: str) -> Array:
    if POINTS not in face.landmarks:
        raise BadInput(
            f"the mesh swapper needs the {POINTS} points of a face mesh on {whose}, which carries none: it was not "
            "looked for, or the mesh network saw no face there. Embed the identity from a picture that shows the whole "
            "face."
        )
    mesh = face.landmarks[POINTS].astype(np.float32)
    if not np.isfinite(mesh).all():
        raise BadInput(f"the face mesh on {whose} holds values that are not finite; detect the faces again")
    return _widened(mesh)


def _widened(mesh: Array) -> Array:
    ring, centre = list(OVAL), mesh.mean(0)
    wide = mesh.copy()
    wide[ring] = centre + (mesh[ring] - centre) * WIDER
    return wide


def nearest_pose(person: Person, target: Array) -> Reference:
    """The reference picture in which the head is turned most like the mesh ``target`` (468, 3)."""
    whose = f"the reference picture of {person.name!r}"
    return min(person.references, key=lambda r: turn_between(_mesh_of(r.face, whose), target))


class MeshSwapper:
    """See the module."""

    needs = frozenset({"references"})

    def check(self, identity: Identity) -> None:
        """Raise BadInput if somebody of ``identity`` has no reference picture with a mesh."""
        for person in identity.people:
            if not person.references:
                raise BadInput(
                    f"{person.name!r} carries no reference picture, and the mesh swapper copies pixels. Embed the "
                    "identity from images, keeping references, or use a swapper that needs vectors only."
                )
            for reference in person.references:
                _mesh_of(reference.face, f"the reference picture of {person.name!r}")

    def look(self, image: Tensor, faces: Faces, host: Host) -> Faces:
        """``faces`` with the 468-point mesh, but for those in which the mesh network sees no face."""
        return with_mesh(image, faces, host=host)

    def __call__(self, picture: Tensor, face: Face, person: Person, settings: Settings, host: Host) -> Patch | None:
        """The patch of ``picture`` (H, W, 3) in which ``face`` looks like ``person``; None for one without a mesh."""
        if POINTS not in face.landmarks:
            return None
        target = _mesh_of(face, "the face that is swapped")
        reference = nearest_pose(person, target)
        height, width = picture.shape[:2]
        low, high = target[list(OVAL), :2].min(0), target[list(OVAL), :2].max(0)
        x1, y1 = (int(max(0, np.floor(v) - 1)) for v in low)
        x2, y2 = (int(min(limit, np.ceil(v) + 2)) for v, limit in zip(high, (width, height), strict=True))
        if x2 - x1 < 2 or y2 - y1 < 2:
            return Patch(picture[:0, :0], torch.zeros(0, 0), 0, 0)
        moved = target - np.array([x1, y1, 0], np.float32)
        pixels, mask = _draw(picture[y1:y2, x1:x2], moved, reference.image, _mesh_of(reference.face, ""), settings)
        return Patch(pixels, mask, x1, y1)


def _draw(there: Tensor, target: Array, image: Tensor, source: Array, settings: Settings) -> tuple[Tensor, Tensor]:
    """Pixels (h, w, 3) and mask (h, w) for the region ``there`` (h, w, 3), in whose pixels ``target`` lies."""
    height, width = there.shape[:2]
    unit = face_width(target)
    target_gap, source_gap = gap(target), gap(source)
    if target_gap < OPEN <= source_gap:
        # Shut lips must not show the teeth behind the source's open ones: take the texture from within the lips.
        source = source.copy()
        for row in (LIPS_INNER, *LIPS_BETWEEN):
            source[list(row)] += 0.35 * (source[list(LIPS_OUTER)] - source[list(row)])
    raster = rasterise(target, TRIANGLES, height, width)
    front = np.abs(facing(source, TRIANGLES)).sum() / max(np.abs(facing(target, TRIANGLES)).sum(), 1e-6)
    smaller = shrink(image, float(np.sqrt(front)))
    ratio = np.array([smaller.shape[1] / image.shape[1], smaller.shape[0] / image.shape[0]], np.float32)

    def texture_of(mesh: Array) -> Tensor:
        where = raster.spread((mesh[:, :2] + 0.5) * ratio - 0.5)
        return sample(smaller, torch.from_numpy(where), "bicubic").clamp(0, 1)

    texture = texture_of(source)
    # The working grid.
    scale = min(1.0, WORKING / max(height, width))
    h, w = max(2, round(height * scale)), max(2, round(width * scale))
    to_grid = np.array([w / width, h / height], np.float32)
    grid_unit = unit * float(to_grid.mean())
    regions = _regions((target[:, :2] + 0.5) * to_grid - 0.5, h, w, grid_unit)
    small_there, small_texture = to_lab(resize(there, h, w)), to_lab(resize(texture, h, w))
    thin, soft = 0.016 * grid_unit, 0.015 * grid_unit
    ours = covered(strangeness(small_there, regions.skin), regions.oval, regions.protected, soft, thin)
    theirs = covered(strangeness(small_texture, regions.skin), regions.oval, regions.protected, 2 * soft, 0.0)

    # What the reference hides on one side of the face, it may show on the other.
    outward = normals(target)[:, 2], normals(source)[:, 2]
    other = outward[1][MIRROR]
    turned = step(outward[1], 0.3, 0.05) * step(other - outward[1], 0.1, 0.3)
    hidden = torch.from_numpy(raster.spread(turned.numpy()[:, None])[..., 0])
    hidden = torch.maximum(hidden, resize(theirs[..., None], height, width)[..., 0])
    if float(hidden.max()) > 0.05:
        mirrored = texture_of(source[MIRROR])
        small_mirrored = to_lab(resize(mirrored, h, w))
        beyond = covered(strangeness(small_mirrored, regions.skin), regions.oval, regions.protected, 2 * soft, 0.0)
        better = hidden * (1 - resize(beyond[..., None], height, width)[..., 0])
        texture = texture + (mirrored - texture) * better[..., None]
        small_texture = to_lab(resize(texture, h, w))
        theirs = theirs * beyond
    clear = (1 - ours) * (1 - theirs)
    common = regions.skin * (clear > 0.95)

    # Coarse light inside, finer towards the rim, where the two pictures meet.
    inside = step(regions.oval, 0, 0.18)[..., None]
    both = torch.cat([small_there, small_texture], -1)
    slow = inside * smooth(both, common, LIGHT * grid_unit) + (1 - inside) * smooth(both, common, 0.05 * grid_unit)
    limit = reach((small_there - slow[..., :3])[common > 0.5])
    tint = 1 - 0.6 * step(regions.eyes, -0.01, 0.01)
    kept = torch.maximum(
        _mouth(regions, target_gap, source_gap, settings.mouth), _eyes(regions, small_there, small_texture)
    )
    use = clear * (1 - kept)
    flesh = 1 - step(np.maximum(regions.eyes, regions.lips), -0.01, 0.01)
    mask = step(regions.oval, 0.005, 0.005 + settings.feather)
    rim = 1 - step(regions.oval, 0.08, 0.2)
    # What the face gets of the texture, and what it keeps of itself.
    fields = resize(torch.stack([tint, regions.plain, flesh, common, use, mask, rim], -1), height, width)
    tint, plain, flesh, measured, use, mask, rim = (fields[..., k : k + 1] for k in range(7))
    slow = resize(slow, height, width)

    lab, lab_there = to_lab(texture), to_lab(there)
    lab = match_grain(lab, lab_there, measured[..., 0] > 0.9, plain, max(1.0, 0.006 * unit))
    lit = relight(lab, slow[..., 3:], slow[..., :3], plain, flesh, tint, limit)
    lab = toned(lab + (lit - lab) * settings.colour, small_there)
    # Towards the rim two things are not drawn: what the target turns away, since the mesh's far rim may lie on the
    # background, and what it shows more of than the reference does, whose ear would be stretched over the cheek.
    seen = outward[1] + (other - outward[1]) * turned.numpy()
    unseen = torch.maximum(step(outward[0], 0.15, -0.1), step(outward[0] - seen, 0.1, 0.25))
    lost = blur(torch.from_numpy(raster.spread(unseen.numpy()[:, None])), 0.03 * unit)
    return to_rgb(lab), (mask * use * (1 - lost * rim))[..., 0].clamp(0, 1)


def normals(points: Array) -> Array:
    """(V, 3) unit normals of the mesh ``points`` (V, 3) at its vertices; z is 1 where it faces the camera."""
    a, b, c = (points[TRIANGLES[:, k]].astype(np.float64) for k in range(3))
    area = np.cross(b - a, c - a)
    total = np.zeros((len(points), 3))
    for k in range(3):
        np.add.at(total, TRIANGLES[:, k], area)
    return total / np.maximum(np.linalg.norm(total, axis=1, keepdims=True), 1e-9)


def _eyes(regions: _Regions, target: Tensor, source: Tensor) -> Tensor:
    """(h, w) in [0, 1]: where the target keeps its own eyes, because they or the source's are shut.

    The mesh draws shut eyes open, so the pixels (h, w, 3, L*a*b*) decide: midway between the lids an open eye has a
    dark iris, a shut one has skin.
    """
    rings = (regions.left_eye, regions.right_eye)
    keep = torch.zeros(regions.oval.shape)
    for lab in (target, source):
        lightness = lab[..., 0].numpy()
        ratios: list[float] = []
        for ring in rings:
            core, around = ring > max(0.6 * float(ring.max()), 0.0), (ring < -0.02) & (ring > -0.06)
            if not core.any() or not around.any():
                continue
            skin = max(float(np.median(lightness[around])), 1.0)
            ratios.append(float(np.percentile(lightness[core], 20)) / skin)
        for ring, ratio in zip(rings, ratios, strict=False):
            if max(ratio, sum(ratios) / len(ratios)) > SHUT:
                keep = torch.maximum(keep, step(ring, -0.045, -0.02))
    return keep


def _mouth(regions: _Regions, target: float, source: float, mouth: str) -> Tensor:
    """(h, w) in [0, 1]: where the target keeps the inside of its own mouth; the gaps as of ``gap``.

    ``auto`` keeps it as soon as one of the two mouths is open: teeth that are drawn into another opening smear, and a
    closed mouth must not show any. Two closed mouths have no inside.
    """
    if mouth == "source" or (mouth == "auto" and max(target, source) < OPEN):
        return torch.zeros(regions.mouth.shape)
    if target < OPEN:
        return step(regions.mouth, -max(0.010, 1.2 * regions.pixel), -max(0.003, 0.3 * regions.pixel))
    return step(regions.mouth, -0.006, 0.006)


swappers.add("mesh", MeshSwapper())
