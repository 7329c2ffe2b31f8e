"""From pictures to scores in one call: look at them, choose a judge, compare."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from .. import embed as _embed
from ..errors import BadInput
from ..host import STANDALONE, Host
from ..image import as_image, load_picture
from ..types import Contract, Embedding, Face, Faces, FaceScore, Identity, normalised
from .judge import AUTO, choose, seen_by, threshold
from .overall import Limits, Weights, score
from .quality import quality

if TYPE_CHECKING:
    from ..analyse import Look


def score_images(
    image: Any,
    identity: Identity | None = None,
    *,
    faces: Faces | None = None,
    detector: str = "yunet",
    landmarker: str = "mesh",
    embedder: str = AUTO,
    target: Any = None,
    target_faces: Faces | None = None,
    drivers: Collection[Contract] = frozenset(),
    references: Any = None,
    limits: Limits | None = None,
    weights: Weights | None = None,
    host: Host = STANDALONE,
) -> list[FaceScore]:
    """Scores of ``image`` (B, H, W, 3); its faces are found, measured and embedded first where they are not given.

    ``embedder`` judges; ``auto`` takes one that neither drove the edit nor made the identity, if one is installed and
    the identity holds reference pictures. ``target`` is the picture (or batch) before the edit, ``target_faces`` its
    faces if they are known; ``references`` are further pictures of the one person, for the copy-paste measure.
    ``landmarker`` ``none`` leaves pose and expression out. For the rest see ``score``.
    """
    from ..analyse import NONE, Look, analyse

    image = as_image(image)
    name = NONE
    if identity is not None and identity.people:
        name = choose(identity, drivers, host=host) if embedder == AUTO else embedder
        identity = seen_by(identity, name, host=host)
    # Landmarks serve only to compare with a target.
    compared = target is not None or target_faces is not None
    look = Look(detector=detector, landmarker=landmarker if compared else NONE, embedder=name)
    faces = _looked(image, faces, look, host)
    before = target_faces
    if target is not None:
        before = _looked(as_image(target, "target"), target_faces, replace(look, embedder=NONE), host)
    others: list[Embedding] | None = None
    if references is not None and identity is not None:
        seen = analyse(as_image(references, "references"), replace(look, landmarker=NONE), host=host)
        found = [of_picture[0].embedding(identity.contract) for of_picture in seen if of_picture]
        others = [embedding for embedding in found if embedding is not None]
    return score(
        image,
        faces,
        identity,
        drivers=drivers,
        target=before,
        references=others,
        limits=limits,
        weights=weights,
    )


def _looked(image: Tensor, faces: Faces | None, look: Look, host: Host) -> Faces:
    """``faces`` with what ``look`` asks for, found first if they are not given."""
    from ..analyse import NONE, analyse
    from ..landmarks import landmark

    if faces is None:
        return analyse(image, look, host=host)
    if look.landmarker != NONE:
        faces = landmark(image, faces, look.landmarker, host=host)
    if look.embedder != NONE:
        faces = _embed.embed(image, faces, look.embedder, host=host)
    return faces


def score_files(
    a: Path,
    b: Path,
    host: Host = STANDALONE,
    *,
    detector: str = "yunet",
    embedder: str = "sface",
    similarity: float | None = None,
) -> dict[str, Any]:
    """Are the people in two picture files the same? Plain values, ready for ``json.dumps``.

    ``similarity`` is that of the two faces, one of each file, that are most alike, or None; ``verdict`` is ``same``,
    ``different``, ``uncertain`` (too near the threshold for one comparison) or ``no_face``, with the ``thresholds``
    used; ``a`` and ``b`` tell each file's faces and the quality of the one compared. The setting ``similarity``
    replaces the network's own threshold. Raises BadImage for a file that is no picture, MissingModel for want of one.
    """
    from ..analyse import NONE, Look

    if similarity is not None and not -1 <= similarity <= 1:
        raise BadInput(f"a threshold on the cosine lies between -1 and 1; got {similarity}")
    contract = _embed.contract(embedder, host)
    look = Look(detector=detector, landmarker=NONE, embedder=embedder)
    sides = {key: _File(path, look, contract, host) for key, path in (("a", a), ("b", b))}
    limit = threshold(contract)
    same = limit.same if similarity is None else similarity
    best: tuple[float, int, int] | None = None
    if sides["a"].vectors is not None and sides["b"].vectors is not None:
        cosines = np.clip(sides["a"].vectors @ sides["b"].vectors.T, -1, 1)
        i, j = (int(v) for v in np.unravel_index(int(cosines.argmax()), cosines.shape))
        best = float(cosines[i, j]), i, j
    flags = [f"no_face_{key}" for key, side in sides.items() if side.vectors is None]
    if best is None:
        verdict = "no_face"
    elif abs(best[0] - same) < limit.margin:
        verdict = "uncertain"
    else:
        verdict = "same" if best[0] > same else "different"
    return {
        "schema": "likeness.comparison/1",
        "verdict": verdict,
        "similarity": None if best is None else best[0],
        "thresholds": {
            "same": same + limit.margin,
            "different": same - limit.margin,
            "centre": same,
            "source": limit.source if similarity is None else "setting",
        },
        "judge": {"embedder": contract.model, "weights": contract.digest, "preprocessing": contract.preprocessing},
        "detector": detector,
        "flags": flags,
        "a": sides["a"].report(None if best is None else best[1]),
        "b": sides["b"].report(None if best is None else best[2]),
    }


class _File:
    """A picture file, its faces and their vectors; of an animation only the first frame counts."""

    def __init__(self, path: Path, look: Look, contract: Contract, host: Host) -> None:
        from ..analyse import analyse

        image, _ = load_picture(path)
        self.path, self.contract = path, contract
        self.picture = image[0]
        self.faces: tuple[Face, ...] = analyse(image[:1], look, host=host)[0]
        found = [face.embedding(contract) for face in self.faces]
        vectors = [embedding.vector for embedding in found if embedding is not None]
        self.vectors = normalised(np.stack(vectors)) if vectors else None

    def report(self, compared: int | None) -> dict[str, Any]:
        """Number of faces, and box, confidence and quality of the one that was compared (without one, the largest)."""
        out: dict[str, Any] = {
            "file": str(self.path),
            "width": int(self.picture.shape[1]),
            "height": int(self.picture.shape[0]),
            "faces": len(self.faces),
            "face": None,
        }
        if self.faces:
            index = compared or 0
            face = self.faces[index]
            measured = quality(self.picture, face, contract=self.contract)
            out["face"] = {
                "index": index,
                "box": [float(v) for v in face.box],
                "confidence": float(face.confidence),
                "quality": measured.score,
                "parts": dict(measured.parts),
                "flags": list(measured.flags),
            }
        return out
