"""The landmark networks of InsightFace's model packs: 106 points (2d106det) and 68 points in space (1k3d68)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ..errors import BadInput
from ..host import Host
from ..packs import ask, explain, packs
from ..pose import pose_of_68
from ..session import OnnxModel
from ..types import Face
from . import Marks, landmarkers, to_picture

SIZE = 192


@dataclass(frozen=True)
class PackLandmarks:
    """One of the two networks opened."""

    model: OnnxModel
    scheme: int

    def mark(self, picture: Tensor, faces: Sequence[Face]) -> list[Marks | None]:
        """The points of each face; of 68 the pose, too. model_zoo/landmark.py: Landmark.get."""
        matrices, answers = ask(self.model, picture, faces, SIZE)
        width = 3 if self.scheme == 68 else 2
        marks: list[Marks | None] = []
        for matrix, flat in zip(matrices, answers, strict=True):
            # Of the 1103 points of 1k3d68 the last 68 are the iBUG scheme; -1..1 spans the crop.
            points = flat.reshape(-1, width)[-self.scheme :] * (SIZE // 2)
            points[:, :2] += SIZE // 2
            shape = to_picture(matrix, points)
            marks.append(Marks(shape, pose_of_68(shape) if self.scheme == 68 else None))
        return marks


@dataclass(frozen=True)
class _Entry:
    def names(self, host: Host) -> list[str]:
        return [name for name, pack in packs(host).items() if pack.landmarks106 or pack.landmarks68]

    def open(self, name: str, host: Host) -> Sequence[PackLandmarks]:
        found = packs(host)
        chosen = name if name in found else next(iter(self.names(host)), None)
        if chosen is None:
            folders = ", ".join(str(folder) for folder in host.folders("insightface"))
            raise BadInput(
                f"no model pack with a landmark network was found in: {folders}. Put a pack such as buffalo_l there, "
                "as a folder of .onnx files, or choose the landmarker mesh."
            )
        pack = found[chosen]
        files = [(pack.landmarks68, 68), (pack.landmarks106, 106)]
        opened = [PackLandmarks(OnnxModel(path, host), scheme) for path, scheme in files if path]
        if not opened:
            raise BadInput(f"{explain(chosen, 'landmarks106', host)} Choose another landmarker.")
        return opened


landmarkers.add("insightface", _Entry())
