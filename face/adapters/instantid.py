"""InstantID's adapter, and FaceID-Portrait-unnorm, whose file has the same layout: a resampler over the raw vector.

instantX-research/InstantID 2145b67 pipeline_stable_diffusion_xl_instantid.py (Wang et al. 2024, arXiv 2401.07519);
tencent-ailab/IP-Adapter 62e4af9 ip_adapter/resampler.py: Resampler. InstantID goes with a ControlNet (IdentityNet) that
is given the identity's tokens instead of the text and a drawing of the five points.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from . import NOTHING, POPULAR, Choices, Evidence, IdAdapter, Recogniser, formats, joined
from ._checkpoint import Checkpoint
from ._layers import KEYS, keys_and_values, plain
from ._net import Net
from ._projectors import resampler
from .plus_face import IDENTITY_WIDTH, RESAMPLER

NOISE = 0.35
"""What the most used InstantID pack gives the unconditional rows instead of zeros: so much uniform noise."""
NOISE_SEED = 0


@dataclass(frozen=True)
class VectorProjector:
    """The unconditional rows get what it makes of zeros; in the popular recipe of InstantID, of a little noise."""

    tensors: Mapping[str, Tensor]
    noisy: bool

    def __call__(self, evidence: Evidence, choices: Choices) -> tuple[Tensor, Tensor | None]:
        net = Net(self.tensors)
        vectors = evidence.vectors[:, None]
        positive = joined(resampler(net, vectors).unbind(0))
        if choices.recipe == NOTHING:
            return positive, None
        if choices.recipe == POPULAR and self.noisy:
            # A generator of its own: the host's random state belongs to the sampler.
            noise = torch.rand(vectors.shape, generator=torch.Generator().manual_seed(NOISE_SEED))
            return positive, joined(resampler(net, noise.to(vectors) * NOISE).unbind(0))
        return positive, joined(resampler(net, torch.zeros_like(vectors)).unbind(0))


@dataclass(frozen=True)
class _VectorResampler:
    name: str
    title: str
    model: str
    pack: str
    strength: float

    def claims(self, file: Checkpoint) -> bool:
        return "image_proj.latents" in file and "image_proj.proj_in.weight" in file and plain(file)

    def likely(self, file: Checkpoint) -> bool:
        return file.takes("image_proj.proj_in.weight") < IDENTITY_WIDTH

    def load(self, file: Checkpoint) -> IdAdapter:
        file.only("image_proj", RESAMPLER, self.title)
        file.only("ip_adapter", KEYS, self.title)
        keys, values = keys_and_values(file)
        return IdAdapter(
            format=self.name,
            title=self.title,
            path=file.path,
            project=VectorProjector(file.group("image_proj"), noisy=self.name == "instantid"),
            keys=keys,
            values=values,
            recogniser=Recogniser.of(file, self.model, self.pack, False, "image_proj.proj_in.weight"),
            strength=self.strength,
        )


formats.add("instantid", _VectorResampler("instantid", "InstantID", "glintr100", "antelopev2", 0.8))
formats.add(
    "portrait-unnorm",
    _VectorResampler("portrait-unnorm", "IP-Adapter FaceID-Portrait-unnorm", "w600k_r50", "buffalo_l", 1.0),
)
