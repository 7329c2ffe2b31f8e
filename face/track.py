"""Following faces over a batch of frames: who is who from picture to picture.

Frame by frame every face is given to the person it fits best, by how alike the embeddings are and how much the boxes
overlap. The best assignment is exact (Jonker and Volgenant's shortest augmenting paths, 1987), so that two people who
cross are not swapped by a greedy choice. A person not seen for a few frames keeps his number.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from .errors import BadInput
from .geometry import iou
from .types import Array, Contract, Face, Faces, normalised

MEMORY = 0.8
"""Share of a person's old vector in the new one: an appearance averaged over about five frames, so that one blurred
frame does not change who he is."""


@dataclass
class _Trail:
    """One person followed so far."""

    number: int
    face: Face
    """As last seen."""
    frame: int
    speed: Array
    """(2,) pixels a frame of the box's centre."""
    vector: Array | None
    """(D,) of length 1: the average appearance."""

    def expected(self, frame: int) -> Array:
        """(4,) where the box should be now if the person went on as before."""
        # A face is not followed further than its own size: after a gap the last speed is no more than a guess.
        reach = np.float32(max(self.face.width, self.face.height))
        shift = np.clip(self.speed * (frame - self.frame), -reach, reach)
        return self.face.box + np.tile(shift, 2)


def assign(gain: Array) -> list[tuple[int, int]]:
    """The pairs (row, column) with the greatest sum of ``gain`` (R, C), each row and column at most once.

    Pairs of no gain are left out: 0 is what staying alone is worth. Exact, in cubic time.
    """
    # Whoever fits nobody stays alone; what is left is small even where many have been lost from sight.
    some_row, some_column = np.flatnonzero((gain > 0).any(1)), np.flatnonzero((gain > 0).any(0))
    if len(some_row) < gain.shape[0] or len(some_column) < gain.shape[1]:
        inner = assign(gain[np.ix_(some_row, some_column)])
        return [(int(some_row[r]), int(some_column[c])) for r, c in inner]
    rows, columns = gain.shape
    if rows == 0:
        return []
    if rows > columns:
        return sorted((r, c) for c, r in assign(gain.T))
    # One column of its own for every row, worth 0, is the choice of staying alone.
    cost = np.concatenate([-np.maximum(gain, 0), np.zeros((rows, rows))], 1).astype(np.float64)
    width = columns + rows
    row_price, column_price = np.zeros(rows + 1), np.zeros(width + 1)
    taken_by = np.zeros(width + 1, int)
    for row in range(1, rows + 1):
        taken_by[0] = row
        column = 0
        least, came_from = np.full(width + 1, np.inf), np.zeros(width + 1, int)
        visited = np.zeros(width + 1, bool)
        while taken_by[column]:
            visited[column] = True
            here = taken_by[column]
            reduced = cost[here - 1] - row_price[here] - column_price[1:]
            better = ~visited[1:] & (reduced < least[1:])
            least[1:][better], came_from[1:][better] = reduced[better], column
            following = 1 + int(np.where(visited[1:], np.inf, least[1:]).argmin())
            step = least[following]
            row_price[taken_by[visited]] += step
            column_price[visited] -= step
            least[~visited] -= step
            column = following
        while column:
            before = came_from[column]
            taken_by[column] = taken_by[before]
            column = before
    pairs = [(int(taken_by[c]) - 1, c - 1) for c in range(1, columns + 1) if taken_by[c]]
    return sorted(pair for pair in pairs if gain[pair] > 0)


def _vector(face: Face, contract: Contract | None) -> Array | None:
    embedding = face.embedding(contract) if contract else None
    return None if embedding is None else normalised(embedding.vector)


def _gain(trail: _Trail, vector: Array | None, over: float, alike: float, overlap: float) -> float:
    """How well a face with this ``vector`` that overlaps the expected box by ``over`` fits, 0 to 2; 0 is not at all.

    With embeddings the person decides: alike enough is accepted wherever it is, unlike is refused however near it
    lies, except that a face that hardly moved may look a little different (turned, blurred). Without them only
    overlap speaks, and after a camera cut nobody is followed.
    """
    if vector is None or trail.vector is None:
        return over if over >= overlap else 0.0
    cosine = float(vector @ trail.vector)
    near = over >= 0.5 and cosine >= alike / 2
    return max(cosine, 0.0) + over if cosine >= alike or near else 0.0


def track(
    faces: Faces,
    *,
    contract: Contract | None = None,
    alike: float = 0.36,
    overlap: float = 0.2,
    gap: int = 10,
    fill: bool = False,
) -> Faces:
    """``faces`` of a batch of frames, each with the number of its person, from 0 by first appearance.

    ``contract``: which embeddings to compare; None goes by overlap alone.
    ``alike``: least cosine, ``overlap``: least intersection over union that make two faces one person. ``gap``: frames
    a person may be out of sight and keep his number. ``fill``: put a face into the frames of such a gap, box and
    points on a straight line between its two ends; it stands last, with confidence 0 and no embedding, because nobody
    saw it. A film that cuts away and back gets ghosts by that, so it is off by default.
    """
    if not -1 <= alike <= 1 or not 0 <= overlap <= 1 or gap < 0:
        raise BadInput(
            f"tracking needs alike from -1 to 1, overlap from 0 to 1 and a gap of at least 0 frames; got "
            f"{alike:g}, {overlap:g} and {gap}"
        )
    trails: list[_Trail] = []
    followed: list[list[Face]] = []
    count = 0
    for frame, found in enumerate(faces):
        trails = [trail for trail in trails if frame - trail.frame <= gap + 1]
        vectors = [_vector(face, contract) for face in found]
        gain = np.zeros((len(trails), len(found)))
        boxes = np.array([face.box for face in found]).reshape(-1, 4)
        for row, trail in enumerate(trails):
            over = iou(trail.expected(frame), boxes)
            gain[row] = [
                _gain(trail, vector, float(o), alike, overlap) for vector, o in zip(vectors, over, strict=True)
            ]
        owner = {column: trails[row] for row, column in assign(gain)}
        numbered: list[Face] = []
        for column, (face, vector) in enumerate(zip(found, vectors, strict=True)):
            trail = owner.get(column)
            if trail is None:
                trail = _Trail(count, face, frame, np.zeros(2, np.float32), vector)
                trails.append(trail)
                count += 1
            else:
                frames = frame - trail.frame
                if fill and frames > 1:
                    _bridge(followed, trail, face, frame)
                trail.speed = (face.centre - trail.face.centre) / np.float32(frames)
                if vector is not None:
                    old = vector if trail.vector is None else trail.vector
                    trail.vector = normalised(MEMORY * old + (1 - MEMORY) * vector)
                trail.face, trail.frame = face, frame
            numbered.append(replace(face, track=trail.number))
        followed.append(numbered)
    return faces.with_images(tuple(tuple(found) for found in followed))


def _bridge(followed: list[list[Face]], trail: _Trail, face: Face, frame: int) -> None:
    """Add the face of ``trail`` to the frames between it was last seen and ``frame``."""
    start = trail.face
    for missed in range(trail.frame + 1, frame):
        t = np.float32((missed - trail.frame) / (frame - trail.frame))
        dense = {
            scheme: start.landmarks[scheme] * (1 - t) + points * t
            for scheme, points in face.landmarks.items()
            if scheme in start.landmarks
        }
        box, points = start.box * (1 - t) + face.box * t, start.points * (1 - t) + face.points * t
        followed[missed].append(Face(box, points, 0.0, dense, track=trail.number, label=start.label))
