"""BiSeNet (Yu et al. 2018, arXiv 1808.00897) and SegFace (Narayan et al. 2024, arXiv 2412.08647) as ONNX files.

The first as trained by zllrunning/face-parsing.PyTorch and yakhyo/face-parsing, the second by Kartik-3004/SegFace on
CelebAMask-HQ. Both take 512 pixels, RGB, normalised as for ImageNet, and answer a map for each of 19 classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import BadModelFile
from ..host import Host
from ..session import OnnxModel
from ..types import Face
from . import CELEBA, LABELS, parsers

SIDE = 512
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

SEGFACE = (
    "background", "neck", "skin", "cloth", "left ear", "right ear", "left brow", "right brow", "left eye", "right eye",
    "nose", "mouth", "lower lip", "upper lip", "hair", "glasses", "hat", "earring", "necklace",
)  # fmt: skip
"""SegFace's own order (Kartik-3004/SegFace inference.py)."""


@dataclass(frozen=True)
class _Network:
    prefixes: tuple[str, ...]
    order: tuple[str, ...]

    def _files(self, host: Host) -> dict[str, Path]:
        files = [path for folder in host.folders("likeness") for path in sorted(folder.glob("*.onnx"))]
        return {path.stem: path for path in reversed(files) if path.stem.lower().startswith(self.prefixes)}

    def names(self, host: Host) -> list[str]:
        return sorted(self._files(host))

    def parse(self, name: str, picture: Tensor, face: Face | None, host: Host) -> Tensor:
        model = OnnxModel(self._files(host)[name], host)
        height, width = picture.shape[:2]
        x = F.interpolate(
            picture.permute(2, 0, 1)[None], (SIDE, SIDE), mode="bilinear", align_corners=False, antialias=True
        )
        x = (x - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
        answer = model.run({model.signature.inputs[0].name: x.numpy()})[0]
        if answer.ndim != 4 or answer.shape[1] != len(self.order):
            raise BadModelFile(
                f"{model.path.name} answers {answer.shape} where a face parser gives (1, {len(self.order)}, {SIDE}, "
                f"{SIDE}). It is another model: rename it, or remove it from the likeness folder."
            )
        labels = np.array([LABELS.index(part) for part in self.order])[answer[0].argmax(0)]
        small = torch.from_numpy(labels)[None, None].float()
        return F.interpolate(small, (height, width), mode="nearest")[0, 0].long()


parsers.add("bisenet", _Network(("bisenet", "face_parsing", "face-parsing"), CELEBA))
parsers.add("segface", _Network(("segface",), SEGFACE))
