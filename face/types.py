"""What flows between the stages: frozen records; shape, order, unit and range are said here, once.

Pictures are torch tensors, ``(B, H, W, 3)`` float32 RGB in [0, 1] on the CPU (``face.image``). Everything
small that belongs to a face (boxes, points, vectors) is a float32 numpy array: such arrays are a few dozen
numbers, on which numpy costs a tenth of what a tensor does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import BadInput, ContractMismatch

Array = NDArray[Any]
_NOTHING: Mapping[Any, Any] = MappingProxyType({})


@dataclass(frozen=True)
class Contract:
    """What makes two embeddings comparable: equal contracts, nothing less."""

    model: str
    """The embedder's name, e.g. ``sface`` or the file stem of a pack's recogniser, ``w600k_r50``."""
    digest: str
    """sha256 of the published weights, in hex."""
    dimension: int
    unit: bool
    """Whether the network itself answers with unit vectors (else their length carries quality)."""
    preprocessing: str
    """How the aligned crop reaches the network, e.g. ``arcface-112 RGB (x-127.5)/127.5``."""

    def require(self, other: Contract, what: str) -> None:
        """Raise ContractMismatch unless ``other`` is comparable with this."""
        if self != other:
            raise ContractMismatch(
                f"{what}: embeddings of {self} cannot be compared with those of {other}. "
                "Embed both with the same embedder and the same model file."
            )

    def __str__(self) -> str:
        return f"{self.model} ({self.dimension} numbers, weights {self.digest[:8]})"


@dataclass(frozen=True, eq=False)
class Embedding:
    """One face as a recognition network sees it."""

    vector: Array
    """(D,) float32, as the network answers: not normalised unless the contract says ``unit``."""
    contract: Contract


@dataclass(frozen=True)
class Pose:
    """How the head is turned, in degrees; zero looks into the camera."""

    yaw: float
    """Positive towards the viewer's right."""
    pitch: float
    """Positive looking up."""
    roll: float
    """Positive tilted clockwise as the viewer sees it."""


@dataclass(frozen=True, eq=False)
class Face:
    """One face in one picture."""

    box: Array
    """(4,) x1, y1, x2, y2 in pixels of the picture it was found in; may reach over its border."""
    points: Array
    """(5, 2) pixels: left eye, right eye, nose, left and right mouth corner, as the viewer sees them."""
    confidence: float
    """0 to 1, the detector's own; comparable only within one detector."""
    landmarks: Mapping[int, Array] = field(default_factory=lambda: _NOTHING)
    """Dense points by scheme: 68 -> (68, 2), 106 -> (106, 2), 468 -> (468, 3) with a relative depth; pixels."""
    pose: Pose | None = None
    age: float | None = None
    """In years."""
    gender: str | None = None
    """``female`` or ``male``, a network's guess."""
    embeddings: tuple[Embedding, ...] = ()
    track: int | None = None
    """Number of the person over a batch of frames, from 0."""
    label: str | None = None
    """The person's name, where somebody has been recognised; empty where the face was compared with people and is none
    of them; None where it was not compared."""

    @property
    def width(self) -> float:
        return float(self.box[2] - self.box[0])

    @property
    def height(self) -> float:
        return float(self.box[3] - self.box[1])

    @property
    def area(self) -> float:
        return max(self.width, 0.0) * max(self.height, 0.0)

    @property
    def centre(self) -> Array:
        """(2,) pixels."""
        return (self.box[:2] + self.box[2:]) / 2

    def embedding(self, contract: Contract) -> Embedding | None:
        """The embedding under exactly this contract, if the face carries one."""
        return next((e for e in self.embeddings if e.contract == contract), None)

    def moved(self, transform: Callable[[Array], Array]) -> Face:
        """The same face after ``transform`` ((N, 2) pixels to (N, 2) pixels) is applied to all its coordinates.

        The box becomes the upright box around the moved corners.
        """
        x1, y1, x2, y2 = (float(v) for v in self.box)
        corners = transform(np.array([[x1, y1], [x2, y1], [x2, y2], [x1, y2]], np.float32))
        box = np.concatenate([corners.min(0), corners.max(0)]).astype(np.float32)
        dense: dict[int, Array] = {}
        for scheme, points in self.landmarks.items():
            moved = points.astype(np.float32, copy=True)
            moved[:, :2] = transform(points[:, :2])
            dense[scheme] = moved
        return replace(self, box=box, points=transform(self.points).astype(np.float32), landmarks=dense)


@dataclass(frozen=True, eq=False)
class Faces:
    """The faces of a batch of pictures. No face is a legal value: there is one tuple per picture, always."""

    images: tuple[tuple[Face, ...], ...]
    """Per picture its faces, largest first unless somebody chose another order."""
    sizes: tuple[tuple[int, int], ...]
    """Per picture its (height, width) in pixels."""
    origin: str = ""
    """How they were found, for error messages: ``yunet, minimum confidence 0.8``."""

    def __post_init__(self) -> None:
        if len(self.images) != len(self.sizes):
            raise BadInput(f"{len(self.images)} lists of faces came with {len(self.sizes)} picture sizes")

    def __len__(self) -> int:
        return len(self.images)

    def __iter__(self) -> Iterator[tuple[Face, ...]]:
        return iter(self.images)

    def __getitem__(self, index: int) -> tuple[Face, ...]:
        return self.images[index]

    @property
    def count(self) -> int:
        """Faces in all pictures together."""
        return sum(len(faces) for faces in self.images)

    def with_images(self, images: tuple[tuple[Face, ...], ...]) -> Faces:
        """The same pictures with other faces in them."""
        return replace(self, images=images)

    def at(self, pictures: Sequence[int]) -> Faces:
        """Only the pictures with these numbers."""
        return replace(
            self, images=tuple(self.images[n] for n in pictures), sizes=tuple(self.sizes[n] for n in pictures)
        )

    def map(self, change: Callable[[int, Face], Face]) -> Faces:
        """``change(picture number, face)`` for every face."""
        return self.with_images(tuple(tuple(change(i, f) for f in faces) for i, faces in enumerate(self.images)))


@dataclass(frozen=True, eq=False)
class Reference:
    """A picture of one person, cut to the head, kept in memory for swappers and image encoders."""

    image: Any
    """(H, W, 3) float32 RGB tensor in [0, 1]."""
    face: Face
    """The face, in pixels of ``image``."""


@dataclass(frozen=True, eq=False)
class Person:
    """One person: one vector, or several where a consumer wants several."""

    name: str
    vectors: Array
    """(N, D) float32, as the contract says; N is 1 unless they were concatenated."""
    references: tuple[Reference, ...] = ()
    """Never written to a file unless asked for."""

    @property
    def unit(self) -> Array:
        """(N, D) float32, every row of length 1."""
        return normalised(self.vectors)


@dataclass(frozen=True, eq=False)
class Identity:
    """Who to look like: one person, or several with names, all under one embedding contract."""

    contract: Contract
    people: tuple[Person, ...]

    def __post_init__(self) -> None:
        for person in self.people:
            if person.vectors.ndim != 2 or person.vectors.shape[1] != self.contract.dimension:
                raise BadInput(
                    f"the vectors of {person.name!r} have shape {person.vectors.shape}; "
                    f"{self.contract} needs (N, {self.contract.dimension})"
                )

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(person.name for person in self.people)


@dataclass(frozen=True)
class FaceScore:
    """How good one face of one picture is, as a record. Higher is better wherever nothing else is said."""

    image: int
    """Which picture of the batch, from 0."""
    face: int | None
    """Which face of that picture, from 0; None where there is none."""
    score: float
    """0 to 1: everything below in one number; 0 without a face."""
    passed: bool
    person: str | None = None
    """Whom of the identity it was compared with: the nearest."""
    similarity: float | None = None
    """Cosine to that person, -1 to 1; None without an identity."""
    judge: str | None = None
    """The embedder that judged."""
    copy_paste: float | None = None
    """How much nearer the face is to the reference picture than to other pictures of the person; see ``face.score``."""
    quality: float | None = None
    """0 to 1, see ``face.score.quality``."""
    parts: Mapping[str, float] = field(default_factory=lambda: _NOTHING)
    """The quality's parts, each 0 to 1 unless its name says otherwise."""
    pose_error: float | None = None
    """Degrees between the head's pose and the target's."""
    expression_error: float | None = None
    """Mean change of the mouth's and the eyes' opening against the target's, in parts of the eye distance."""
    flags: tuple[str, ...] = ()
    """What is wrong or worth knowing: ``no_face``, ``blurry``, ``judge_drove_swap``, …"""
    box: tuple[float, float, float, float] | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values, ready for ``json.dumps``."""
        return {f.name: getattr(self, f.name) for f in fields(self)} | {"parts": dict(self.parts)}


def normalised(vectors: Array) -> Array:
    """Rows of length 1, shape kept; a row that is zero or not finite is refused (BadInput)."""
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    if not np.all(np.isfinite(length)) or np.any(length == 0):
        raise BadInput("an embedding is zero or not finite, so it has no direction; the model file may be damaged")
    return (vectors / length).astype(np.float32)


def cosine(a: Array, b: Array) -> float:
    """Cosine of two (D,) vectors, -1 to 1."""
    return float(np.dot(normalised(a), normalised(b)))
