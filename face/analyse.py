"""Looking at pictures once: detection, landmarks, attributes and embedding, remembered by content.

The stages know nothing of each other; here they are put together, and each picture's result is kept under the digest of
its pixels, the state of the model files and every setting: five nodes that ask about one picture look at it once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from . import attributes as _attributes
from . import detect as _detect
from . import embed as _embed
from . import landmarks as _landmarks
from .cache import ANALYSES, AnalysisCache
from .errors import BadInput, NoFace
from .host import STANDALONE, Host
from .image import as_image, content_hash
from .lab import NAME, of_the_lab
from .types import Contract, Face, Faces

NONE = "none"
"""The choice that leaves a stage out."""


@dataclass(frozen=True)
class Look:
    """How to look at a picture: which models, which limits."""

    detector: str = "yunet"
    minimum: float = 0.0
    """Least confidence; 0 means the detector's own default."""
    size: int = 640
    """Longest side in pixels at which the detector looks."""
    smallest: int = 0
    """Least side of a face in pixels of the picture."""
    retry: bool = True
    landmarker: str = "mesh"
    attributes: str = NONE
    embedder: str = NONE

    def __post_init__(self) -> None:
        # The defaults know photographs; whom the lab's recognisers know, the lab's detector finds, and no mesh fits.
        if of_the_lab(self.embedder):
            if self.detector == Look.detector:
                object.__setattr__(self, "detector", NAME)
            if self.landmarker == Look.landmarker:
                object.__setattr__(self, "landmarker", NONE)


def analyse(image: Any, look: Look, *, host: Host = STANDALONE, cache: AnalysisCache = ANALYSES) -> Faces:
    """The faces of ``image`` (B, H, W, 3) with everything that ``look`` asks for; every picture looked at once."""
    image = as_image(image)
    weights = _weights(host)

    def missing(places: list[int]) -> list[Faces]:
        faces = _look(image[places], look, host)
        return [faces.at([n]) for n in range(len(places))]

    found = cache.get_many([(content_hash(picture), look, weights) for picture in image], missing)
    return Faces(
        tuple(faces[0] for faces in found), tuple(faces.sizes[0] for faces in found), found[0].origin if found else ""
    )


def _weights(host: Host) -> tuple[tuple[str, int, int], ...]:
    """The state of all model files: when one is replaced, what an older one saw no longer counts."""
    files = [
        file
        for kind in ("likeness", "insightface")
        for folder in host.folders(kind)
        for file in (*folder.glob("*.onnx"), *folder.glob("*/*.onnx"), *folder.glob("*/*/*.onnx"))
    ]
    states = [(file, file.stat()) for file in sorted(files)]
    return tuple((str(file), state.st_mtime_ns, state.st_size) for file, state in states)


def _look(image: Tensor, look: Look, host: Host) -> Faces:
    faces = _detect.detect(
        image,
        look.detector,
        minimum=look.minimum or None,
        size=look.size,
        smallest=look.smallest,
        retry=look.retry,
        host=host,
    )
    if look.landmarker != NONE:
        faces = _landmarks.landmark(image, faces, look.landmarker, host=host)
    if look.attributes != NONE:
        faces = _attributes.annotate(image, faces, look.attributes, host=host)
    if look.embedder != NONE:
        faces = _embed.embed(image, faces, look.embedder, host=host)
    return faces


def with_mesh(image: Any, faces: Faces, *, host: Host = STANDALONE) -> Faces:
    """``faces`` with the 468-point mesh, computed for those that lack it."""
    if all(468 in face.landmarks for picture in faces for face in picture):
        return faces
    return _landmarks.landmark(as_image(image), faces, "mesh", host=host)


def with_embeddings(image: Any, faces: Faces, contract: Contract, *, host: Host = STANDALONE) -> Faces:
    """``faces`` with an embedding under ``contract``, computed for those that lack it.

    Raises BadInput if no embedder that is installed here answers under that contract.
    """
    if all(face.embedding(contract) for picture in faces for face in picture):
        return faces
    return _embed.embed(as_image(image), faces, embedder_of(contract, host), host=host)


def embedder_of(contract: Contract, host: Host = STANDALONE) -> str:
    """The name of the installed embedder that answers under ``contract``; BadInput if there is none."""
    installed = _embed.installed(host)
    name = next((name for name, its in installed.items() if its == contract), None)
    if name is None:
        others = [name for name in installed if of_the_lab(name) == of_the_lab(contract.model)]
        raise BadInput(
            f"the identity was made with {contract}, but no embedder here has these weights; installed: "
            f"{', '.join(others) or 'none'}. Make the identity again with one of them, or install the file that "
            "made it."
        )
    return name


def require_faces(faces: Faces, why: str) -> None:
    """Raise NoFace, naming the first picture without one."""
    for number, (found, (height, width)) in enumerate(zip(faces, faces.sizes, strict=True), 1):
        if not found:
            raise NoFace(
                f"{why}, but there is no face in picture {number} of {len(faces)} ({width}×{height}"
                f"{', ' + faces.origin if faces.origin else ''}). Lower the minimum confidence or the minimum size, or "
                "crop closer to the face."
            )


def largest(faces: Faces) -> Faces:
    """The first face of every picture, nothing else."""
    return faces.with_images(tuple(found[:1] for found in faces))


def flat(faces: Faces, keep: Callable[[Face], bool] = lambda _: True) -> Iterable[tuple[int, int, Face]]:
    """(picture number, face number, face) for every face that ``keep`` lets through."""
    for i, found in enumerate(faces):
        for j, face in enumerate(found):
            if keep(face):
                yield i, j, face
