"""Faces to age and gender, as a network guesses them.

To add a network is to add a file that enters an ``Annotator`` into ``annotators``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from torch import Tensor

from ..errors import BadInput
from ..host import STANDALONE, Host
from ..image import as_image, check_faces
from ..packs import explain
from ..registry import Registry
from ..types import Face, Faces

CHUNK = 32
"""Faces that go through a network together."""


@dataclass(frozen=True)
class Guess:
    """What a network says of one face."""

    age: float
    """In years."""
    gender: str
    """``female`` or ``male``."""


class Network(Protocol):
    """A network, or a pair of them, opened."""

    def guess(self, picture: Tensor, faces: Sequence[Face]) -> list[Guess]:
        """Age and gender of each of ``faces`` of ``picture`` (H, W, 3)."""
        ...


class Annotator(Protocol):
    """One kind of network."""

    def names(self, host: Host) -> list[str]:
        """What a user can choose of this kind now."""
        ...

    def open(self, name: str, host: Host) -> Network:
        """The network chosen by ``name``."""
        ...


annotators: Registry[Annotator] = Registry("attribute network", __name__, __path__)


def choices(host: Host = STANDALONE) -> list[str]:
    """Names for a combo box: the catalogue's networks, then the model packs that have one."""
    order = ["age-gender", *(name for name in annotators.names() if name != "age-gender")]
    return list(dict.fromkeys(name for entry in order for name in annotators[entry].names(host)))


def network(attributes: str, host: Host = STANDALONE) -> Network:
    """The network behind ``attributes``: a registry name, or one of ``choices``. BadInput if there is none."""
    if attributes in annotators:
        return annotators[attributes].open(attributes, host)
    for entry in annotators:
        if attributes in entry.names(host):
            return entry.open(attributes, host)
    raise BadInput(
        explain(attributes, "genderage", host)
        or f"there is no attribute network called {attributes!r}. Known: {', '.join(choices(host))}. A model pack must "
        "lie in models/insightface/models/<pack> and hold an age and gender network."
    )


def annotate(image: Any, faces: Faces, attributes: str = "age-gender", *, host: Host = STANDALONE) -> Faces:
    """``faces`` of ``image`` (B, H, W, 3), each with age and gender; those that have both are left alone."""
    image = as_image(image)
    check_faces(image, faces)
    net = network(attributes, host)
    images: list[tuple[Face, ...]] = []
    for picture, found in zip(image, faces, strict=True):
        host.check_interrupt()
        changed = list(found)
        todo = [i for i, face in enumerate(found) if face.age is None or face.gender is None]
        for start in range(0, len(todo), CHUNK):
            part = todo[start : start + CHUNK]
            for i, guess in zip(part, net.guess(picture, [found[i] for i in part]), strict=True):
                changed[i] = replace(found[i], age=guess.age, gender=guess.gender)
        images.append(tuple(changed))
    return faces.with_images(tuple(images))
