"""Who judges: the similarity from which two faces are one person, and the choice of a network that took no part.

A network that steered an edit likes its own work: similarity is to be measured by another one.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from .. import embed as _embed
from ..errors import BadInput
from ..host import STANDALONE, Host
from ..lab import of_the_lab
from ..types import Contract, Faces, Identity, Person, normalised

AUTO = "auto"
"""The choice that looks for a judge that took no part."""


@dataclass(frozen=True)
class Threshold:
    """From which cosine on a network's two embeddings show one person."""

    same: float
    margin: float
    """Within this of ``same`` a single comparison settles nothing."""
    source: str


THRESHOLDS: Mapping[str, Threshold] = MappingProxyType(
    {
        "sface": Threshold(0.363, 0.06, "OpenCV tutorial dnn_face: FaceRecognizerSF, cosine 0.363 on LFW"),
        "mobilefacenet": Threshold(0.5, 0.1, "measured on 45 pairs: same person from 0.71, others up to 0.33"),
    }
)
"""By embedder; every other network is taken for one of the ArcFace family."""

ARCFACE = Threshold(0.4, 0.1, "ArcFace family: facefusion's reference distance 0.3 is a cosine of 0.4")


def threshold(judge: Contract | str) -> Threshold:
    """The similarity from which this network's embeddings, by contract or name, count as one person."""
    return THRESHOLDS.get(judge if isinstance(judge, str) else judge.model, ARCFACE)


def choose(identity: Identity, drivers: Collection[Contract] = (), *, host: Host = STANDALONE) -> str:
    """The name of the embedder to judge with: one that neither drove the edit nor made the identity, if there is one.

    Another network than the identity's needs pictures of everybody in it (``Person.references``). Second comes a
    network that did not drive the edit, last the identity's own. Raises BadInput if none can judge.
    """
    # Those who know the lab's drawn people know nobody else, and the others none of them.
    drawn = of_the_lab(identity.contract.model)
    names = {name: c for name, c in _embed.installed(host).items() if of_the_lab(name) == drawn}
    pictured = bool(identity.people) and all(person.references for person in identity.people)
    usable = {name: c for name, c in names.items() if pictured or c == identity.contract}
    if not usable:
        raise BadInput(
            f"nothing can judge this identity: it was made with {identity.contract}, which is not among the embedders "
            f"installed ({', '.join(names) or 'none'}), and it holds no reference pictures to embed anew. "
            "Make it again with an embedder that is installed."
        )
    return min(usable, key=lambda name: (usable[name] in drivers, usable[name] == identity.contract))


def appointed(
    identity: Identity | None, embedder: str, drivers: Collection[Contract] = (), *, host: Host = STANDALONE
) -> Contract | None:
    """Under which contract faces are compared with ``identity`` if ``embedder`` (or ``auto``) is to judge.

    None without anybody to compare with. Raises as ``choose`` does.
    """
    if identity is None or not identity.people:
        return None
    return _embed.contract(choose(identity, drivers, host=host) if embedder == AUTO else embedder, host)


def seen_by(identity: Identity, embedder: str, *, host: Host = STANDALONE) -> Identity:
    """The same people as ``embedder`` sees them.

    If another network made the identity, the reference pictures are embedded anew and averaged; BadInput for somebody
    without one.
    """
    contract = _embed.contract(embedder, host)
    if contract == identity.contract:
        return identity
    return Identity(contract, tuple(_person(person, embedder, contract, host) for person in identity.people))


def _person(person: Person, embedder: str, contract: Contract, host: Host) -> Person:
    if not person.references:
        raise BadInput(
            f"{embedder} cannot judge {person.name!r}: the identity holds no reference pictures to embed with it. "
            "Make the identity with references, or judge with the embedder that made it."
        )
    vectors: list[np.ndarray] = []
    for reference in person.references:
        size = (int(reference.image.shape[0]), int(reference.image.shape[1]))
        faces = _embed.embed(reference.image[None], Faces(((reference.face,),), (size,)), embedder, host=host)
        embedding = faces[0][0].embedding(contract)
        if embedding is not None:
            vectors.append(embedding.vector)
    return Person(person.name, normalised(normalised(np.stack(vectors)).mean(0, keepdims=True)), person.references)
