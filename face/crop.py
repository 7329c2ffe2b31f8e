"""Faces cut out as pictures of their own, and put back where they came from without touching anything else.

A crop taken at native size from an upright square is a copy, pixel for pixel; every other crop is resampled once on
the way out and once on the way back, antialiased both times, and only inside its region.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import atan2, ceil, cos, degrees, sin

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from . import geometry
from .draw import fill
from .errors import BadInput
from .image import as_image, as_mask, check_faces
from .types import Array, Face, Faces

TEMPLATES: dict[str, Callable[[int], Array] | None] = {
    "box": None,
    "arcface": geometry.arcface_template,
    "ffhq": lambda size: geometry.FFHQ_512 * (size / 512),
}
"""How a face sits in its crop: by its box, or with its five points where a family of networks expects them."""

BLENDS = ("replace", "change")
EMPTY_SIZE = 512
LARGEST = 8192


@dataclass(frozen=True, eq=False)
class Crops:
    """Faces cut out of a batch of pictures, with what it takes to put them back."""

    images: Tensor
    """(N, S, S, 3) float32 RGB in [0, 1]; N is 0 where there was no face."""
    faces: Faces
    """N pictures with one face each, in pixels of ``images``."""
    masks: Tensor
    """(N, S, S) in [0, 1]: the face's box, as it lies in its crop."""
    matrices: Array
    """(N, 2, 3) float64, from the picture's to the crop's pixels."""
    sources: tuple[int, ...]
    """(N,) which picture of the batch each crop was cut from."""
    sizes: tuple[tuple[int, int], ...]
    """(height, width) of every picture of the batch."""

    def __len__(self) -> int:
        return len(self.sources)

    @property
    def size(self) -> int:
        """S, the side of a crop in pixels."""
        return int(self.images.shape[1])


@dataclass(frozen=True)
class _Frame:
    """The square of the picture that a crop shows."""

    x: float
    y: float
    side: float
    angle: float
    """Clockwise, in radians."""

    def matrix(self, size: int, scale: float) -> Array:
        a, b, middle = scale * cos(self.angle), scale * sin(self.angle), (size - 1) / 2
        linear = np.array([[a, b], [-b, a]])
        return np.column_stack([linear, np.array([middle, middle]) - linear @ np.array([self.x, self.y])])


def crop(
    image: Tensor,
    faces: Faces,
    *,
    margin: float = 0.5,
    size: int = 512,
    align: bool = False,
    template: str = "box",
) -> Crops:
    """Every face of ``image`` (B, H, W, 3) as a square picture, in the order of ``faces``.

    With ``template`` ``box`` the square has the box's longer side and ``margin`` times as much again on each of its
    sides, and is turned with the head if ``align``; ``arcface`` and ``ffhq`` are the aligned squares that recognisers
    and restorers were trained on, and have no margin. ``size`` is the side in pixels; 0 keeps the picture's own
    scale, and then all crops are as large as the largest needs. What lies beyond the picture repeats its edge.
    Raises BadInput for settings that cannot be.
    """
    image = as_image(image)
    check_faces(image, faces)
    if template not in TEMPLATES:
        raise BadInput(f"there is no crop template {template!r}; choose one of {', '.join(TEMPLATES)}")
    if not 0 <= size <= LARGEST:
        raise BadInput(
            f"a crop's size lies between 1 and {LARGEST} pixels, or is 0 for the picture's own scale; got {size}"
        )
    if not 0 <= margin <= 10:
        raise BadInput(f"a crop's margin lies between 0 and 10 times the box; got {margin}")
    found = [(picture, face) for picture, group in enumerate(faces) for face in group]
    frames = [_frame(face, template, margin, align, size or 512) for _, face in found]
    side = size or min(LARGEST, max((ceil(frame.side - 1e-6) for frame in frames), default=EMPTY_SIZE))
    images, masks, moved, matrices = [], [], [], []
    for (picture, face), frame in zip(found, frames, strict=True):
        matrix = frame.matrix(side, side / frame.side if size else 1.0)
        if size == 0 and frame.angle == 0:
            matrix[:, 2] = np.round(matrix[:, 2])
        images.append(_resample(image[picture], matrix, side).clamp_(0, 1))
        masks.append(fill(geometry.transform(matrix, _corners(face)), side, side))
        moved.append((_moved(face, matrix, frame.angle),))
        matrices.append(matrix)
    return Crops(
        images=torch.stack(images) if images else torch.zeros(0, side, side, 3),
        faces=Faces(tuple(moved), ((side, side),) * len(moved), faces.origin),
        masks=torch.stack(masks) if masks else torch.zeros(0, side, side),
        matrices=np.stack(matrices) if matrices else np.zeros((0, 2, 3)),
        sources=tuple(picture for picture, _ in found),
        sizes=faces.sizes,
    )


def uncrop(
    image: Tensor,
    crops: Crops,
    edited: Tensor,
    mask: Tensor | None = None,
    *,
    feather: float = 16.0,
    blend: str = "replace",
) -> Tensor:
    """``image`` (B, H, W, 3) with ``edited`` (N, S, S, 3) put back where ``crops`` were cut out, later over earlier.

    ``mask`` (N or 1, S, S) says which part of each crop to take, else all of it; towards the crop's own border it
    fades out over ``feather`` pixels of the crop. ``edited`` may have another size than the crops. ``blend``
    ``replace`` puts the edited pixels in; ``change`` adds only what differs from the crop, so that detail finer than
    the crop survives and an unedited crop changes nothing at any size. Where the mask is 0 every pixel keeps its bits.
    Raises BadInput or BadImage where the pieces don't fit together.
    """
    image = as_image(image)
    if blend not in BLENDS:
        raise BadInput(f"there is no blend {blend!r}; choose one of {', '.join(BLENDS)}")
    if not 0 <= feather < float("inf"):
        raise BadInput(f"the feather is 0 or more pixels; got {feather}")
    sizes = ((int(image.shape[1]), int(image.shape[2])),) * len(image)
    if sizes != crops.sizes:
        raise BadInput(
            f"the crops were cut out of {_shapes(crops.sizes)}, but the image to put them back into is "
            f"{_shapes(sizes)}. Connect the image that Crop Faces was given, or one of the same size."
        )
    if len(crops) == 0:
        return image
    edited = as_image(edited, "the edited crops")
    if len(edited) != len(crops) or edited.shape[1] != edited.shape[2]:
        raise BadInput(
            f"{len(crops)} square crops went out, but {len(edited)} pictures of {edited.shape[2]}×{edited.shape[1]} "
            "pixels came back. Return one square picture for every crop, in the same order."
        )
    weights = _weights(crops, mask, int(edited.shape[1]), feather)
    result = image.clone()
    for i, source in enumerate(crops.sources):
        content = edited[i]
        if blend == "change":
            content = content - _resample(crops.images[i], _rescaled(_IDENTITY, crops.size, len(content)), len(content))
        _put(result[source], content, weights[i], crops.matrices[i], add=blend == "change")
    return result


_IDENTITY = np.eye(2, 3)


def _put(picture: Tensor, content: Tensor, weight: Tensor, matrix: Array, add: bool) -> None:
    """Blend ``content`` into ``picture`` (H, W, 3), in place, on the region that the crop shows."""
    height, width = picture.shape[:2]
    side = len(weight)
    back = geometry.inverse(matrix)
    ends = np.array([[0, 0], [side, 0], [side, side], [0, side]]) - 0.5
    seen = geometry.transform(back, ends)
    left, top = (int(v) for v in np.clip(np.floor(seen.min(0)), 0, (width, height)))
    right, bottom = (int(v) for v in np.clip(np.ceil(seen.max(0)) + 1, 0, (width, height)))
    if right <= left or bottom <= top:
        return
    back[:, 2] -= (left, top)
    region = picture[top:bottom, left:right]
    share = _resample(weight[..., None], back, region.shape[:2], inside_only=True)
    # From the content's own pixels, which may be finer or coarser than the crop's.
    new = _resample(content, geometry.inverse(_rescaled(geometry.inverse(back), side, len(content))), region.shape[:2])
    new = (region + new if add else new).clamp_(0, 1)
    region.copy_(torch.lerp(region, new, share))


def _resample(picture: Tensor, matrix: Array, size: int | Sequence[int], inside_only: bool = False) -> Tensor:
    """``picture`` (H, W, C) seen through ``matrix`` (picture to result): (h, w, C), ``size`` being a side or (h, w).

    A shift by whole pixels copies. Enlarging is bicubic; shrinking averages samples no further apart than the picture's
    pixels. Beyond the picture its edge is repeated; ``inside_only`` puts 0 there and interpolates linearly.
    """
    height, width = (size, size) if isinstance(size, int) else size
    scale = float(np.sqrt(abs(np.linalg.det(matrix[:, :2]))))
    if np.array_equal(matrix, np.column_stack([np.eye(2), np.round(matrix[:, 2])])):
        rows, columns = torch.arange(height) - int(matrix[1, 2]), torch.arange(width) - int(matrix[0, 2])
        tall, wide = picture.shape[:2]
        copy = picture[rows.clamp(0, tall - 1)][:, columns.clamp(0, wide - 1)]
        if inside_only:
            copy = copy * (((rows >= 0) & (rows < tall))[:, None] & (columns >= 0) & (columns < wide))[..., None]
        return copy
    times = min(ceil(1 / scale - 0.01), max(1, LARGEST // 2 // max(height, width)))
    fine = _rescaled(matrix, 1, times)[None]
    border, mode = ("zeros", "bilinear") if inside_only else ("border", "bicubic" if times == 1 else "bilinear")
    warped = geometry.warp(picture, fine, (height * times, width * times), border, mode)
    return F.avg_pool2d(warped, times)[0].permute(1, 2, 0) if times > 1 else warped[0].permute(1, 2, 0)


def _rescaled(matrix: Array, before: int, after: int) -> Array:
    """``matrix`` into a square of ``after`` pixels instead of ``before``, whose pixel areas cover the same."""
    factor = after / before
    return np.column_stack([matrix[:, :2] * factor, (matrix[:, 2] + 0.5) * factor - 0.5])


def _weights(crops: Crops, mask: Tensor | None, edited: int, feather: float) -> Tensor:
    """(N, S, S): how much of every crop pixel is put back, 0 to 1."""
    side = crops.size
    inset = (torch.arange(side) + 0.5).minimum(side - 0.5 - torch.arange(side))
    ramp = (inset / min(feather, side / 2)).clamp_(max=1) if feather else torch.ones(side)
    ramp = ramp * ramp * (3 - 2 * ramp)
    edge = (ramp[:, None] * ramp).expand(len(crops), side, side)
    if mask is None:
        return edge
    given = edited if isinstance(mask, Tensor) and mask.shape[-1] == edited else side
    mask = as_mask(mask, len(crops), given, given, "the mask for the crops")
    if given != side:
        mask = F.interpolate(mask[:, None], (side, side), mode="bilinear", antialias=True)[:, 0]
    return edge * mask


def _frame(face: Face, template: str, margin: float, align: bool, size: int) -> _Frame:
    points = TEMPLATES[template]
    if points is None:
        x, y, side = geometry.square(face.box, 1 + 2 * margin)
        if not side > 0:
            raise BadInput("a face has an empty box, so there is nothing to crop. Detect the faces again.")
        return _Frame(x, y, side, _turn(geometry.similarity(face.points, geometry.ARCFACE_112)) if align else 0.0)
    matrix = geometry.similarity(face.points, points(size))
    centre = geometry.transform(geometry.inverse(matrix), np.full((1, 2), (size - 1) / 2))[0]
    return _Frame(float(centre[0]), float(centre[1]), size / float(np.hypot(*matrix[:, 0])), _turn(matrix))


def _turn(matrix: Array) -> float:
    """How far clockwise the head leans in the picture that ``matrix`` sets upright, in radians."""
    return atan2(-matrix[1, 0], matrix[0, 0])


def _corners(face: Face) -> Array:
    x1, y1, x2, y2 = face.box
    return np.array([[x1, y1], [x2, y1], [x2, y2], [x1, y2]])


def _moved(face: Face, matrix: Array, angle: float) -> Face:
    """``face`` in its crop; its dense landmarks' depth scales with it, and its roll is what is left of it."""
    moved = face.moved(lambda points: geometry.transform(matrix, points))
    scale = float(np.hypot(*matrix[:, 0]))
    for points in moved.landmarks.values():
        points[:, 2:] *= scale
    pose = face.pose and replace(face.pose, roll=face.pose.roll - degrees(angle))
    return replace(moved, pose=pose)


def _shapes(sizes: Sequence[tuple[int, int]]) -> str:
    """``3 pictures of 640×480``, for messages."""
    kinds = sorted({f"{width}×{height}" for height, width in sizes})
    return f"{len(sizes)} pictures of {' and '.join(kinds)}"
