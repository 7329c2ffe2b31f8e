"""IP-Adapter FaceID-Plus, its second version, and Kolors': the vector asks, CLIP's view of the face answers.

tencent-ailab/IP-Adapter 62e4af9 ip_adapter/ip_adapter_faceid.py: ProjPlusModel, IPAdapterFaceIDPlus;
Kwai-Kolors/Kolors kolors/models/ipa_faceid_plus/ipa_faceid_plus.py. The files of the first and the second version hold
the same tensors: only the second adds the vector's own tokens to what CLIP answered (``shortcut``). Kolors' tokens are
as wide as its text and go through the projection by which its U-Net reads that text.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from . import NOTHING, Choices, Evidence, Feature, IdAdapter, Recogniser, formats, joined
from ._checkpoint import Checkpoint
from ._layers import KEYS, LOW_RANK, keys_and_values, low_rank, plain
from ._net import Net
from ._projectors import mlp, perceiver
from .faceid import PROJECTOR

PERCEIVER = (
    r"perceiver_resampler\.(?:proj_in|proj_out|norm_out)\.(?:weight|bias)",
    r"perceiver_resampler\.layers\.\d+\.0\.norm[12]\.(?:weight|bias)",
    r"perceiver_resampler\.layers\.\d+\.0\.to_(?:q|kv|out)\.weight",
    r"perceiver_resampler\.layers\.\d+\.1\.0\.(?:weight|bias)",
    r"perceiver_resampler\.layers\.\d+\.1\.[13]\.weight",
)


def project(net: Net, vectors: Tensor, seen: Tensor, shortcut: bool, structure: float) -> Tensor:
    """(N, T, D) tokens of ``vectors`` (N, V) that have looked at ``seen`` (N, M, C)."""
    x = mlp(net, vectors)
    out = perceiver(net.under("perceiver_resampler"), x, seen)
    return x + structure * out if shortcut else out


def paired(vectors: Tensor, seen: Tensor) -> Tensor:
    """``seen`` (R, M, C) as one view per vector (N): each its own if there are as many, else the mean of all."""
    if len(seen) == len(vectors):
        return seen
    return seen.mean(0, keepdim=True).expand(len(vectors), -1, -1)


@dataclass(frozen=True)
class PlusProjector:
    """The unconditional rows get zeros for the vector and ``Evidence.unseen``, what the encoder makes of nothing (of
    Kolors: zeros, too)."""

    tensors: Mapping[str, Tensor]
    shortcut: bool

    def __call__(self, evidence: Evidence, choices: Choices) -> tuple[Tensor, Tensor | None]:
        net = Net(self.tensors)
        vectors, seen, unseen = evidence.vectors, evidence.seen, evidence.unseen
        if seen is None:
            raise ValueError("FaceID-Plus needs the encoder's view of the face")
        positive = project(net, vectors, paired(vectors, seen), self.shortcut, choices.structure)
        if choices.recipe == NOTHING:
            return joined(positive.unbind(0)), None
        if unseen is None:
            raise ValueError("FaceID-Plus needs the encoder's view of nothing")
        nobody = unseen.expand(len(vectors), -1, -1)
        negative = project(net, torch.zeros_like(vectors), nobody, self.shortcut, choices.structure)
        return joined(positive.unbind(0)), joined(negative.unbind(0))


@dataclass(frozen=True)
class _FaceIDPlus:
    name: str
    title: str
    shortcut: bool
    kolors: bool = False

    def claims(self, file: Checkpoint) -> bool:
        return (
            "image_proj.perceiver_resampler.proj_in.weight" in file
            and "image_proj.proj.2.weight" in file
            and plain(file)
            # Kolors' file changes nothing of its base model.
            and not (self.kolors and "ip_adapter.0.to_q_lora.down.weight" in file)
        )

    def likely(self, file: Checkpoint) -> bool:
        # Only Kolors' tokens are of another width than its layers take: they go through the model's entrance.
        through = file.shape("image_proj.norm.weight") != file.shape("ip_adapter.1.to_k_ip.weight")[1:]
        return through == self.kolors

    def load(self, file: Checkpoint) -> IdAdapter:
        file.only("image_proj", (*PROJECTOR, *PERCEIVER), self.title)
        file.only("ip_adapter", (*KEYS, *LOW_RANK), self.title)
        keys, values = keys_and_values(file)
        dimension = file.takes("image_proj.proj.0.weight")
        width = file.takes("image_proj.perceiver_resampler.proj_in.weight")
        if self.kolors:
            recogniser = Recogniser("glintr100", "antelopev2", False, dimension)
            feature = Feature("clip-l-336", "box", 336, width, blank=True)
        else:
            recogniser = Recogniser("w600k_r50", "buffalo_l", True, dimension)
            feature = Feature("clip-h", "aligned", 224, width)
        return IdAdapter(
            format=self.name,
            title=self.title,
            path=file.path,
            project=PlusProjector(file.group("image_proj"), self.shortcut),
            keys=keys,
            values=values,
            low_rank=low_rank(file),
            recogniser=recogniser,
            feature=feature,
            strength=0.8 if self.kolors else 1.0,
            context=file.takes("image_proj.perceiver_resampler.proj_out.weight"),
        )


formats.add("faceid-plus", _FaceIDPlus("faceid-plus", "IP-Adapter FaceID-Plus", shortcut=False))
formats.add("faceid-plus-v2", _FaceIDPlus("faceid-plus-v2", "IP-Adapter FaceID-Plus v2", shortcut=True))
formats.add("kolors-faceid-plus", _FaceIDPlus("kolors-faceid-plus", "Kolors FaceID-Plus", shortcut=True, kolors=True))
