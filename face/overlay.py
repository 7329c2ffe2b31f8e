"""Detections drawn over pictures so that a person can read them, on a thumbnail as well as on a 4K frame."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from torch import Tensor

from .image import as_image, check_faces, from_uint8, to_uint8
from .landmarks import topology
from .types import Array, Face, Faces

Colour = tuple[int, int, int]

PALETTE: tuple[Colour, ...] = (
    (86, 180, 233),
    (230, 159, 0),
    (0, 158, 115),
    (240, 228, 66),
    (204, 121, 167),
    (213, 94, 0),
    (0, 114, 178),
)
"""Seven colours that stay apart for any kind of colour vision. Okabe and Ito 2008, Color Universal Design."""

HALO: Colour = (16, 16, 16)
POINT_COLOURS: tuple[Colour, ...] = ((255, 80, 80), (90, 220, 90), (90, 150, 255), (255, 230, 60), (255, 100, 255))
"""Left eye, right eye, nose, left and right mouth corner."""

_RINGS: tuple[Sequence[int], ...] = (
    topology.OVAL,
    topology.LEFT_EYE,
    topology.RIGHT_EYE,
    topology.LEFT_BROW,
    topology.RIGHT_BROW,
    topology.LIPS_OUTER,
    topology.LIPS_INNER,
)


def draw(
    image: Tensor,
    faces: Faces,
    *,
    boxes: bool = True,
    points: bool = True,
    landmarks: bool = False,
    ids: bool = True,
    confidence: bool = True,
    names: bool = True,
    ages: bool = True,
    labels: bool = True,
) -> Tensor:
    """``image`` (B, H, W, 3) with its faces marked; pixels that nothing is drawn on keep their bits.

    A colour belongs to a person: to the track over the frames, else to the name, else to the face's place in its
    picture. ``ids`` writes the track's number, or the place (both from 0); ``ages`` age and gender, where known;
    without ``labels`` nothing is written. ``landmarks`` draws the mesh as thin lines, other schemes as dots. Lines and
    letters grow with the picture and with the face.
    """
    image = as_image(image)
    check_faces(image, faces)
    people = sorted({face.label for group in faces for face in group if face.label})
    result = image.clone()
    for picture, group in zip(result, faces, strict=True):
        if not group:
            continue
        canvas = _Canvas(picture, group)
        marks = [(face, _colour(face, place, people)) for place, face in enumerate(group)]
        for face, colour in marks:
            if landmarks:
                _draw_landmarks(canvas, face, colour)
            if boxes:
                canvas.box(face.box, colour, canvas.line(face))
            if points:
                for point, hue in zip(face.points, POINT_COLOURS, strict=True):
                    canvas.dot(point, hue, 1.6 * canvas.line(face))
        # Labels last, so that no line runs through them; the largest face chooses its place first.
        for place, (face, colour) in sorted(enumerate(marks), key=lambda item: -item[1][0].area):
            text = _text(face, place, ids=ids, confidence=confidence, names=names, ages=ages)
            if labels and text:
                canvas.label(face, text, colour)
        canvas.onto(picture)
    return result


def _colour(face: Face, place: int, people: Sequence[str]) -> Colour:
    if face.track is not None:
        return PALETTE[face.track % len(PALETTE)]
    return PALETTE[(people.index(face.label) if face.label else place) % len(PALETTE)]


def _text(face: Face, place: int, *, ids: bool, confidence: bool, names: bool, ages: bool) -> str:
    """``#2 Ada  0.93  34 female``, as far as it is known and asked for."""
    words: list[str] = []
    if ids:
        words.append(f"#{place if face.track is None else face.track}")
    if names and face.label:
        words.append(face.label)
    if confidence:
        words.append(f"{face.confidence:.2f}")
    if ages:
        words += [str(round(face.age))] if face.age is not None else []
        words += [face.gender] if face.gender else []
    return "  ".join(words)


def _draw_landmarks(canvas: _Canvas, face: Face, colour: Colour) -> None:
    width = canvas.line(face)
    for scheme, dense in face.landmarks.items():
        if scheme == 468:
            canvas.strokes(dense[_edges(), :2], colour, 0.35 * width, 130)
            for ring in _RINGS:
                canvas.strokes(dense[None, [*ring, ring[0]], :2], colour, 0.7 * width, 230)
        else:
            for point in dense[:, :2]:
                canvas.dot(point, colour, 0.7 * width)


@lru_cache(maxsize=1)
def _edges() -> Array:
    """(E, 2) the mesh's lines, each once."""
    triangles = topology.TRIANGLES
    pairs = np.concatenate([triangles[:, [0, 1]], triangles[:, [1, 2]], triangles[:, [2, 0]]])
    return np.unique(np.sort(pairs, 1), axis=0)


@dataclass(frozen=True)
class _Area:
    """A rectangle in pixels of the picture."""

    x1: float
    y1: float
    x2: float
    y2: float

    def overlaps(self, other: _Area) -> bool:
        return self.x1 < other.x2 and other.x1 < self.x2 and self.y1 < other.y2 and other.y1 < self.y2


class _Canvas:
    """A copy of one picture, drawn on finer than its pixels so that edges are smooth. All measures are its pixels."""

    def __init__(self, picture: Tensor, faces: Sequence[Face]) -> None:
        from PIL import Image, ImageDraw

        self.height, self.width = (int(n) for n in picture.shape[:2])
        self.unit = max(1.0, min(self.height, self.width) / 400)
        self.fine = 4 if max(self.height, self.width) <= 1024 else 2 if max(self.height, self.width) <= 2560 else 1
        self.before = Image.fromarray(to_uint8(picture))
        self.after = self.before.resize((self.width * self.fine, self.height * self.fine), Image.Resampling.NEAREST)
        self.pen = ImageDraw.Draw(self.after, "RGBA")
        self.boxes = [face.box for face in faces]
        self.labels: list[_Area] = []

    def line(self, face: Face) -> float:
        """How thick lines around ``face`` are: by its size, within what the picture bears."""
        return float(np.clip(face.height / 60, 0.8, 1.5 * self.unit))

    def _at(self, xy: Array) -> Array:
        """Pixel coordinates (…, 2), centres whole, as the canvas's; kept near the picture, where Pillow is at ease."""
        far = np.array([self.width, self.height]) * 3
        return (np.clip(xy, -far, far) + 0.5) * self.fine - 0.5

    def box(self, box: Array, colour: Colour, width: float) -> None:
        """A frame in ``colour`` with a dark halo, so that it shows on any ground."""
        for hue, thick in ((HALO, width + max(1.0, 0.5 * width)), (colour, width)):
            x1, y1, x2, y2 = self._at(box.reshape(2, 2)).ravel().tolist()
            half = thick * self.fine / 2
            self.pen.rectangle(
                (x1 - half, y1 - half, max(x1, x2) + half, max(y1, y2) + half),
                outline=hue,
                width=max(1, round(2 * half)),
            )

    def dot(self, centre: Array, colour: Colour, radius: float) -> None:
        x, y = self._at(centre).tolist()
        for hue, size in ((HALO, radius + max(0.5, 0.25 * radius)), (colour, radius)):
            reach = size * self.fine
            self.pen.ellipse((x - reach, y - reach, x + reach, y + reach), fill=hue)

    def strokes(self, lines: Array, colour: Colour, width: float, alpha: int) -> None:
        """Lines (L, N, 2) of N points each, let through by ``alpha`` of 255."""
        for line in self._at(lines).reshape(len(lines), -1).tolist():
            self.pen.line(line, fill=(*colour, alpha), width=max(1, round(width * self.fine)))

    def label(self, face: Face, text: str, colour: Colour) -> None:
        """``text`` on a plate beside the face's box, inside the picture and clear of other labels if there is room."""
        size = float(np.clip(face.height * 0.13, 9 * self.unit**0.8, 16 * self.unit))
        font, pad = _font(max(6, round(size * self.fine))), 0.25 * size
        wide, high = self.pen.textlength(text, font) / self.fine + 2 * pad, 1.1 * size + pad
        if wide > self.width:
            size *= max(0.3, self.width / wide)
            font, pad = _font(max(6, round(size * self.fine))), 0.25 * size
            wide, high = self.pen.textlength(text, font) / self.fine + 2 * pad, 1.1 * size + pad
        plate = self._place(face, wide, high)
        self.labels.append(plate)
        corners = [v * self.fine for v in (plate.x1, plate.y1, plate.x2, plate.y2)]
        self.pen.rounded_rectangle(corners, radius=pad * self.fine, fill=colour)
        # Luminance by ITU-R BT.601; every colour of the palette keeps a contrast of at least 4 to 1 with this ink.
        ink = HALO if 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] > 100 else (255, 255, 255)
        middle = (corners[1] + corners[3]) / 2
        self.pen.text((corners[0] + pad * self.fine, middle), text, fill=ink, font=font, anchor="lm")

    def _place(self, face: Face, wide: float, high: float) -> _Area:
        """The first free place: above the box, below it, inside at its top or foot, stacked below; rather on a face
        than on another label."""
        x1, y1, x2, y2 = (float(v) for v in face.box)
        gap = self.line(face)
        spots = [
            *((x, y) for y in (y1 - gap - high, y2 + gap) for x in (x1 - gap, x2 + gap - wide)),
            *((x1 + gap, y) for y in (y1 + gap, y2 - gap - high)),
            *((x1 - gap, y2 + gap + n * high) for n in range(1, 6)),
        ]
        pushed = [(y, self._within(x, y, wide, high)) for x, y in spots]
        # Above or below, a place that had to be pushed back into the picture would lie on the face itself.
        tries = [area for y, area in pushed if y == area.y1] or [pushed[0][1]]
        others = [_Area(*map(float, other)) for other in self.boxes if other is not face.box]
        for taken in ([*self.labels, *others], self.labels):
            for area in tries:
                if not any(area.overlaps(other) for other in taken):
                    return area
        return tries[0]

    def _within(self, x: float, y: float, wide: float, high: float) -> _Area:
        """A plate of this size at (x, y), or as near to it as the picture's borders allow."""
        left, top = max(0.0, min(x, self.width - wide)), max(0.0, min(y, self.height - high))
        return _Area(left, top, min(left + wide, self.width), min(top + high, self.height))

    def onto(self, picture: Tensor) -> None:
        """Take over what was drawn into ``picture`` (H, W, 3), in place."""
        drawn = np.asarray(self.after.reduce(self.fine))
        red, green, blue = np.moveaxis(drawn != np.asarray(self.before), -1, 0)
        changed = np.nonzero(red | green | blue)
        picture[changed] = from_uint8(drawn[changed])


@lru_cache(maxsize=64)
def _font(size: int) -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(size)
