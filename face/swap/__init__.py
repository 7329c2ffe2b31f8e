"""Swapping faces: each target face of a picture is made to look like a person of an identity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ..errors import BadInput
from ..host import STANDALONE, Host
from ..identity import RECOGNISED, nearest
from ..image import as_image
from ..registry import Registry
from ..types import Face, Faces, Identity, Person

MOUTHS = ("auto", "target", "source")
MAPPINGS = ("order", "identity")


@dataclass(frozen=True)
class Settings:
    """How a face is drawn, for all swappers; each uses what applies to it."""

    mouth: str = "auto"
    """Whose mouth interior is shown: ``target``, ``source``, or ``auto`` for whichever does not smear."""
    feather: float = 0.08
    """Width of the mask's soft rim in parts of the face's width, inside the face."""
    colour: float = 1.0
    """How far the target's light and complexion replace the source's, 0 to 1."""


@dataclass(frozen=True, eq=False)
class Patch:
    """A drawn face, to be blended into its picture."""

    pixels: Tensor
    """(h, w, 3) float32 RGB in [0, 1]."""
    mask: Tensor
    """(h, w) float32 in [0, 1]: how much of ``pixels`` shows."""
    x: int
    y: int
    """Where the patch's first pixel lies in the picture. The patch never reaches over the border."""


class Swapper(Protocol):
    """Draws a person's face over a face of a picture. To add one is to add a file that enters it into ``swappers``."""

    @property
    def needs(self) -> frozenset[str]:
        """What of a person is used: ``references``, ``embedding``, or both."""
        ...

    def check(self, identity: Identity) -> None:
        """Raise (BadInput, ContractMismatch) if ``identity`` lacks what is needed; called before anything is drawn."""
        ...

    def look(self, image: Tensor, faces: Faces, host: Host) -> Faces:
        """``faces`` of ``image`` (B, H, W, 3) with what is needed to draw over them, found where it is missing."""
        ...

    def __call__(self, picture: Tensor, face: Face, person: Person, settings: Settings, host: Host) -> Patch | None:
        """The patch of ``picture`` (H, W, 3) in which ``face`` looks like ``person``.

        None where the face cannot be drawn over, because ``look`` did not find what is needed.
        """
        ...


swappers: Registry[Swapper] = Registry("swapper", __name__, __path__)


@dataclass(frozen=True, eq=False)
class Swapped:
    """The answer of ``swap``."""

    image: Tensor
    """(B, H, W, 3) float32; bit-equal to the input wherever ``mask`` is 0."""
    mask: Tensor
    """(B, H, W) float32 in [0, 1]: how much of each pixel was redrawn at strength 1."""
    swapped: tuple[tuple[int, ...], ...]
    """Per picture the numbers of the faces that were redrawn."""
    left: tuple[tuple[int, ...], ...]
    """Per picture the numbers of those that somebody was meant for, but that could not be drawn over."""


def swap(
    image: Any,
    faces: Faces,
    identity: Identity,
    *,
    swapper: str = "mesh",
    strength: float = 1.0,
    mapping: str = "order",
    threshold: float = RECOGNISED,
    mouth: str = "auto",
    feather: float = 0.08,
    colour: float = 1.0,
    host: Host = STANDALONE,
) -> Swapped:
    """``image`` (B, H, W, 3) with its ``faces`` drawn as the people of ``identity``; strength 0 changes nothing.

    ``mapping``: ``order`` puts person k on face k of each picture, further faces stay (one person goes on every face);
    ``identity`` puts on each face the person it is labelled with. Where nobody has looked who the faces of the batch
    are (``Face.label`` is None on all), it is the one that its embedding is nearest to, from a cosine of ``threshold``
    on. Faces of strangers (an empty label, a name that the identity does not know, too low a cosine) stay, and so do
    faces that the swapper cannot draw over. A picture without faces comes back as it went in.
    """
    image = as_image(image)
    if len(faces) != len(image):
        raise BadInput(
            f"the faces belong to a batch of {len(faces)} pictures, but {len(image)} came with them. "
            "Detect the faces in this very batch."
        )
    for name, value, low, high in (
        ("strength", strength, 0, 1),
        ("feather", feather, 0, 0.5),
        ("colour", colour, 0, 1),
    ):
        if not low <= value <= high:
            raise BadInput(f"{name} must be {low} to {high}; got {value}")
    if mouth not in MOUTHS or mapping not in MAPPINGS:
        raise BadInput(
            f"mouth must be one of {', '.join(MOUTHS)} and mapping one of {', '.join(MAPPINGS)}; "
            f"got {mouth!r} and {mapping!r}"
        )
    if not identity.people:
        raise BadInput("the identity holds nobody to swap in; embed one from a picture first")
    draw = swappers[swapper]
    mask = torch.zeros(image.shape[:3])
    if strength == 0 or faces.count == 0:
        return Swapped(image, mask, ((),) * len(image), ((),) * len(image))
    draw.check(identity)
    named = any(face.label is not None for found in faces for face in found)
    people = [assign(found, identity, mapping, named, threshold) for found in faces]
    faces = draw.look(image, faces, host)
    settings = Settings(mouth, feather, colour)
    out = image.clone()
    done: list[tuple[int, ...]] = []
    left: list[tuple[int, ...]] = []
    progress = host.progress(faces.count)
    for index, (found, chosen) in enumerate(zip(faces, people, strict=True)):
        redrawn: list[int] = []
        stayed: list[int] = []
        for number, (face, person) in enumerate(zip(found, chosen, strict=True)):
            host.check_interrupt()
            if person is not None:
                # From the picture as it came: the light of one face is not taken from another's drawing.
                patch = draw(image[index], face, person, settings, host)
                if patch is not None:
                    blend(out[index], mask[index], patch, strength)
                (stayed if patch is None else redrawn).append(number)
            progress.update()
        done.append(tuple(redrawn))
        left.append(tuple(stayed))
    return Swapped(out, mask, tuple(done), tuple(left))


def assign(
    faces: Sequence[Face], identity: Identity, mapping: str, named: bool = False, threshold: float = RECOGNISED
) -> list[Person | None]:
    """Who goes on each of ``faces`` of one picture, None for nobody; ``mapping`` as for ``swap``.

    ``named``: somebody has looked who the faces of the batch are, so one without a name is a stranger and stays.
    """
    people = identity.people
    if mapping == "order":
        if len(people) == 1:
            return [people[0]] * len(faces)
        return [people[k] if k < len(people) else None for k in range(len(faces))]
    return [_person_of(face, identity, named, threshold) for face in faces]


def _person_of(face: Face, identity: Identity, named: bool, threshold: float) -> Person | None:
    if named:
        return next((person for person in identity.people if person.name == face.label), None)
    embedding = face.embedding(identity.contract)
    if embedding is None:
        raise BadInput(
            f"mapping by identity needs faces that are labelled or embedded with {identity.contract}; one has neither. "
            "Select the faces by identity or embed them first, or map by order."
        )
    person, similarity, _ = nearest(embedding, identity)
    return person if similarity >= threshold else None


def blend(picture: Tensor, mask: Tensor, patch: Patch, strength: float) -> None:
    """Blend ``patch`` into ``picture`` (H, W, 3) and note it in ``mask`` (H, W), both in place."""
    height, width = patch.mask.shape
    rows, columns = slice(patch.y, patch.y + height), slice(patch.x, patch.x + width)
    below, alpha = picture[rows, columns], (patch.mask * strength)[..., None]
    picture[rows, columns] = torch.where(alpha > 0, below + (patch.pixels - below) * alpha, below)
    mask[rows, columns] = torch.maximum(mask[rows, columns], patch.mask)
