"""Pictures to faces: where they are, with five points each.

To add a detector is to add a file that enters a ``Detector`` into ``detectors``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import BadInput
from ..geometry import quarter_turns
from ..host import STANDALONE, Host
from ..image import as_image
from ..lab import of_the_lab
from ..packs import explain
from ..registry import Registry
from ..types import Array, Face, Faces
from ._plumbing import Found, canvas, shrunk

CHUNK_PIXELS = 8 * 640 * 640
"""Pixels of canvas that go through a network together: it bounds the memory that a long batch takes."""

SIZES = (32, 4096)
"""Least and largest ``size``."""


class Network(Protocol):
    """A detector opened: a file and how to use it."""

    @property
    def minimum(self) -> float:
        """The confidence from which on its authors, or our own trials, believe it; 0 to 1."""
        ...

    @property
    def sure(self) -> float:
        """The confidence that a face lying on its side or upside down does not reach; 0 where that is not known."""
        ...

    def find(self, pictures: Tensor, size: int, minimum: float) -> list[Found]:
        """Per picture of ``pictures`` (B, H, W, 3) its faces in pixels, without doubles.

        The network sees each picture with its longer side at most about ``size`` pixels.
        """
        ...


class Detector(Protocol):
    """One kind of detector."""

    def names(self, host: Host) -> list[str]:
        """What a user can choose of this kind now."""
        ...

    def open(self, name: str, host: Host) -> Network:
        """The network chosen by ``name``: one of ``names``, or the registry's name for the first of them."""
        ...


detectors: Registry[Detector] = Registry("detector", __name__, __path__)


def choices(host: Host = STANDALONE) -> list[str]:
    """Names for a combo box: the catalogue's detectors, those whose file the user brought, the model packs found, the
    lab's."""
    order = ["yunet", *(name for name in detectors.names() if name != "yunet")]
    names = dict.fromkeys(name for entry in order for name in detectors[entry].names(host))
    return sorted(names, key=of_the_lab)


def network(detector: str, host: Host = STANDALONE) -> Network:
    """The network behind the name ``detector``: a registry name, or one of ``choices``. BadInput if there is none."""
    if detector in detectors:
        return detectors[detector].open(detector, host)
    for entry in detectors:
        if detector in entry.names(host):
            return entry.open(detector, host)
    raise BadInput(
        explain(detector, "detector", host)
        or f"there is no detector called {detector!r}. Known: {', '.join(choices(host))}. A model pack must lie in "
        "models/insightface/models/<pack> and hold a detection network."
    )


def detect(
    image: Any,
    detector: str = "yunet",
    *,
    minimum: float | None = None,
    size: int = 640,
    smallest: float = 0,
    retry: bool = True,
    host: Host = STANDALONE,
) -> Faces:
    """The faces in each picture of ``image`` (B, H, W, 3), largest first.

    ``minimum``: least confidence, 0 to 1; None is the detector's own. ``size``: the longest side in pixels at which the
    detector looks. ``smallest``: faces whose box has a side below so many pixels are left out. ``retry``: look at a
    picture without a face again with a margin around it (close-ups fill the frame more than a network ever saw) and
    turned by 90, 270 and 180 degrees; at one with doubtful faces only, turned. Boxes may reach over the border. Raises
    BadInput for settings out of range.
    """
    image = as_image(image)
    if minimum is not None and not 0 <= minimum <= 1:
        raise BadInput(f"the minimum confidence must lie between 0 and 1; got {minimum:g}")
    if not SIZES[0] <= size <= SIZES[1]:
        raise BadInput(f"the detection size must lie between {SIZES[0]} and {SIZES[1]} pixels; got {size}")
    net = network(detector, host)
    least = net.minimum if minimum is None else minimum
    chunk = max(1, CHUNK_PIXELS // (size * size))
    progress = host.progress(len(image))
    images: list[tuple[Face, ...]] = []
    for start in range(0, len(image), chunk):
        host.check_interrupt()
        pictures = image[start : start + chunk]
        faces = [_faces(found) for found in net.find(pictures, size, least)]
        if retry:
            _retry(net, pictures, faces, size, least, host)
        images += [_ordered(found, smallest) for found in faces]
        progress.update(len(pictures))
    height, width = image.shape[1:3]
    return Faces(tuple(images), ((height, width),) * len(image), f"{detector}, minimum confidence {least:g}")


def _faces(found: Found) -> list[Face]:
    return [
        Face(box, points, float(score))
        for box, points, score in zip(found.boxes, found.points, found.scores, strict=True)
    ]


def _ordered(faces: Sequence[Face], smallest: float) -> tuple[Face, ...]:
    kept = [face for face in faces if min(face.width, face.height) >= smallest]
    return tuple(sorted(kept, key=lambda face: -face.area))


def _retry(net: Network, pictures: Tensor, faces: list[list[Face]], size: int, minimum: float, host: Host) -> None:
    """Look again at those of ``pictures`` (B, H, W, 3) whose ``faces`` are missing or doubtful; keep what is surer.

    Works on copies not larger than ``size``, so a large picture costs no more than a small one.
    """
    doubtful = [i for i, found in enumerate(faces) if _surest(found) < max(net.sure, minimum)]
    if not doubtful:
        return
    height, width = pictures.shape[1:3]
    h, w = shrunk(height, width, size)
    small = torch.from_numpy(canvas(pictures[doubtful], (h, w), (h, w))).div_(255).permute(0, 2, 3, 1).contiguous()
    scale = np.array([width / w, height / h], np.float32)

    def look(changed: Tensor, which: list[int], back: Callable[[Array], Array]) -> None:
        host.check_interrupt()
        for i, found in zip(which, net.find(changed, size, minimum), strict=True):
            seen = [face.moved(lambda p: back(p) * scale) for face in _faces(found)]
            # A face upside down is sometimes seen as one, with its points in the wrong places: the surest look wins.
            if _surest(seen) > _surest(faces[i]):
                faces[i] = seen

    missed = [n for n, i in enumerate(doubtful) if not faces[i]]
    if missed:
        margin = (max(h, w) + 1) // 2
        padded = F.pad(small[missed], (0, 0, margin, margin, margin, margin))
        look(padded, [doubtful[n] for n in missed], lambda p: p - margin)
    turned = [n for n, i in enumerate(doubtful) if _surest(faces[i]) < max(net.sure, minimum)]
    for turns, size_then in ((1, (w, h)), (3, (w, h)), (2, (h, w))) if turned else ():
        look(
            torch.rot90(small[turned], turns, (1, 2)),
            [doubtful[n] for n in turned],
            partial(quarter_turns, turns=-turns, height=size_then[0], width=size_then[1]),
        )


def _surest(faces: Sequence[Face]) -> float:
    return max((face.confidence for face in faces), default=-1.0)
