"""IP-Adapter plus-face and full-face: CLIP's view of the face alone, no identity vector.

tencent-ailab/IP-Adapter 62e4af9 ip_adapter/ip_adapter.py: IPAdapterPlus (a resampler of 16 tokens), IPAdapterFull (an
MLP over every token). The published files are ``ip-adapter-plus-face_sd15``, ``…_sdxl_vit-h`` and
``ip-adapter-full-face_sd15``; ``ip-adapter-plus`` has the same tensors and works too, on whole pictures' content.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from . import NOTHING, Choices, Evidence, Feature, IdAdapter, formats
from ._checkpoint import Checkpoint
from ._layers import KEYS, keys_and_values, plain
from ._net import Net
from ._projectors import resampler

RESAMPLER = (
    r"latents",
    r"(?:proj_in|proj_out|norm_out)\.(?:weight|bias)",
    r"layers\.\d+\.0\.norm[12]\.(?:weight|bias)",
    r"layers\.\d+\.0\.to_(?:q|kv|out)\.weight",
    r"layers\.\d+\.1\.0\.(?:weight|bias)",
    r"layers\.\d+\.1\.[13]\.weight",
)
FULL = (r"proj\.[023]\.(?:weight|bias)",)
IDENTITY_WIDTH = 1024
"""Resamplers that take identity vectors take narrower ones than this; CLIP's tokens are 1024 wide or more."""


def full(net: Net, seen: Tensor) -> Tensor:
    """(N, M, D): each of CLIP's tokens (N, M, C) by itself (ip_adapter.py: MLPProjModel)."""
    return net.norm(net.linear(F.gelu(net.linear(seen, "proj.0")), "proj.2"), "proj.3")


@dataclass(frozen=True)
class SeenProjector:
    """The pictures' views are averaged; the unconditional rows get what the projector makes of ``Evidence.unseen``."""

    tensors: Mapping[str, Tensor]
    network: Callable[[Net, Tensor], Tensor]

    def __call__(self, evidence: Evidence, choices: Choices) -> tuple[Tensor, Tensor | None]:
        net = Net(self.tensors)
        seen, unseen = evidence.seen, evidence.unseen
        if seen is None:
            raise ValueError("this adapter needs the encoder's view of the face")
        positive = self.network(net, seen.mean(0, keepdim=True))
        if choices.recipe == NOTHING:
            return positive, None
        if unseen is None:
            raise ValueError("this adapter needs the encoder's view of nothing")
        return positive, self.network(net, unseen)


@dataclass(frozen=True)
class _PlusFace:
    name: str
    title: str
    full: bool

    def claims(self, file: Checkpoint) -> bool:
        if not plain(file):
            return False
        if self.full:
            return "image_proj.proj.3.weight" in file
        return "image_proj.latents" in file and "image_proj.proj_in.weight" in file

    def likely(self, file: Checkpoint) -> bool:
        return self.full or file.takes("image_proj.proj_in.weight") >= IDENTITY_WIDTH

    def load(self, file: Checkpoint) -> IdAdapter:
        file.only("image_proj", FULL if self.full else RESAMPLER, self.title)
        file.only("ip_adapter", KEYS, self.title)
        keys, values = keys_and_values(file)
        width = file.takes("image_proj.proj.0.weight" if self.full else "image_proj.proj_in.weight")
        return IdAdapter(
            format=self.name,
            title=self.title,
            path=file.path,
            project=SeenProjector(file.group("image_proj"), full if self.full else resampler),
            keys=keys,
            values=values,
            feature=Feature("clip-h", "head", 224, width),
            strength=0.8,
        )


formats.add("plus-face", _PlusFace("plus-face", "IP-Adapter Plus-Face", full=False))
formats.add("full-face", _PlusFace("full-face", "IP-Adapter Full-Face", full=True))
