"""IP-Adapter FaceID and FaceID-Portrait: an MLP makes tokens of the identity vector.

tencent-ailab/IP-Adapter 62e4af9 ip_adapter/ip_adapter_faceid.py (no paper of its own; IP-Adapter is Ye et al. 2023,
arXiv 2308.06721). FaceID makes 4 tokens and brings a LoRA for every attention layer inside its file; Portrait makes 16
a picture, takes several pictures at once and brings none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from . import NOTHING, Choices, Evidence, IdAdapter, Recogniser, formats, joined
from ._checkpoint import Checkpoint
from ._layers import KEYS, LOW_RANK, keys_and_values, low_rank, plain
from ._net import Net
from ._projectors import mlp

PROJECTOR = (r"proj\.[02]\.(?:weight|bias)", r"norm\.(?:weight|bias)")


@dataclass(frozen=True)
class FaceProjector:
    """See ``mlp``; the unconditional rows get what it makes of zeros, in the authors' pipeline and in packs alike."""

    tensors: Mapping[str, Tensor]

    def __call__(self, evidence: Evidence, choices: Choices) -> tuple[Tensor, Tensor | None]:
        net = Net(self.tensors)
        vectors = evidence.vectors
        positive = joined(mlp(net, vectors).unbind(0))
        if choices.recipe == NOTHING:
            return positive, None
        return positive, joined(mlp(net, torch.zeros_like(vectors)).unbind(0))


@dataclass(frozen=True)
class _FaceID:
    title: str
    lora: bool
    """Whether the file changes the base model: what tells the two apart."""

    def claims(self, file: Checkpoint) -> bool:
        return (
            "image_proj.proj.2.weight" in file
            and "image_proj.norm.weight" in file
            and "image_proj.proj.3.weight" not in file
            and "image_proj.perceiver_resampler.proj_in.weight" not in file
            and plain(file)
            and ("ip_adapter.0.to_q_lora.down.weight" in file) == self.lora
        )

    def likely(self, file: Checkpoint) -> bool:
        return True

    def load(self, file: Checkpoint) -> IdAdapter:
        file.only("image_proj", PROJECTOR, self.title)
        file.only("ip_adapter", (*KEYS, *LOW_RANK), self.title)
        keys, values = keys_and_values(file)
        return IdAdapter(
            format="faceid" if self.lora else "faceid-portrait",
            title=self.title,
            path=file.path,
            project=FaceProjector(file.group("image_proj")),
            keys=keys,
            values=values,
            low_rank=low_rank(file),
            recogniser=Recogniser.of(file, "w600k_r50", "buffalo_l", True, "image_proj.proj.0.weight"),
        )


formats.add("faceid", _FaceID("IP-Adapter FaceID", lora=True))
formats.add("faceid-portrait", _FaceID("IP-Adapter FaceID-Portrait", lora=False))
