"""PuLID for SDXL: the raw vector and EVA-CLIP's view of the parsed, whitened face; added orthogonally to the text.

ToTheBeginning/PuLID 1aa2fc7 (Guo et al. 2024, arXiv 2404.16022): pulid/encoders.py: IDEncoder (v1),
pulid/encoders_transformer.py: IDFormer (v1.1), pulid/pipeline_v1_1.py: get_id_embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from ..errors import BadModelFile
from . import NOTHING, Choices, Evidence, Feature, IdAdapter, Recogniser, formats, joined
from ._checkpoint import Checkpoint
from ._layers import KEYS, keys_and_values, plain
from ._net import Net

SCALES = 5
"""Hidden states of the encoder that are used."""
POOLED = 768
"""Width of EVA02-CLIP-L's pooled answer."""

LADDER = r"\.[013456]\.(?:weight|bias)"
ENCODER = (rf"body{LADDER}", rf"mapping_[0-4]{LADDER}", rf"mapping_patch_[0-4]{LADDER}")
FORMER = (
    rf"id_embedding_mapping{LADDER}",
    rf"mapping_[0-4]{LADDER}",
    r"latents",
    r"proj_out",
    r"layers\.\d+\.0\.norm[12]\.(?:weight|bias)",
    r"layers\.\d+\.0\.to_(?:q|kv|out)\.weight",
    r"layers\.\d+\.1\.0\.(?:weight|bias)",
    r"layers\.\d+\.1\.[13]\.weight",
)

MODES = MappingProxyType(
    {
        # app.py of v1 and v1.1: what their switch between likeness and style means.
        "fidelity": ("ortho_v2", 8),
        "style": ("ortho", 16),
        "plain": ("plain", 0),
    }
)
MODES_V1_1 = MappingProxyType({"default": ("ortho_v2", 20), **MODES})


def id_encoder(net: Net, known: Tensor, layers: tuple[Tensor, ...]) -> Tensor:
    """(N, T, D) tokens of ``known`` (N, V) and the hidden states ``layers`` (N, 1 + patches, C) of the encoder.

    Some tokens from the vector, one from each hidden state: its class token's mapping and its patches' mean. Of several
    pictures (N, P, V) each gives its own tokens, and the hidden states stand one after the other along the patches.
    """
    width = net["mapping_0.6.weight"].shape[0]
    tokens = [net.ladder(known, "body").reshape(len(known), -1, width)]
    for n, layer in enumerate(layers):
        patches = net.ladder(layer[:, 1:], f"mapping_patch_{n}").mean(1, keepdim=True)
        tokens.append(net.ladder(layer[:, :1], f"mapping_{n}") + patches)
    return torch.cat(tokens, 1)


def id_former(net: Net, known: Tensor, layers: tuple[Tensor, ...]) -> Tensor:
    """As ``id_encoder``, by a perceiver: latents and vector tokens look at the hidden states, coarse to fine."""
    latents = net.get("latents", known)
    width = latents.shape[-1]
    x = net.ladder(known, "id_embedding_mapping").reshape(len(known), -1, width)
    state = torch.cat([latents.expand(len(known), -1, -1), x], 1)
    blocks = list(net.numbered("layers"))
    each = len(blocks) // SCALES
    if not each or len(blocks) % SCALES:
        raise BadModelFile(
            f"this PuLID has {len(blocks)} layers, but as many belong to each of {SCALES} hidden states. The file is "
            "cut off; use the published one."
        )
    for n, layer in enumerate(layers):
        context = torch.cat([x, net.ladder(layer, f"mapping_{n}")], 1)
        for block in blocks[n * each : (n + 1) * each]:
            state = block.under("0").perceive(context, state) + state
            state = block.feed_forward(state, "1") + state
    return state[:, : latents.shape[1]] @ net.get("proj_out", known)


Network = Callable[[Net, Tensor, "tuple[Tensor, ...]"], Tensor]


@dataclass(frozen=True)
class PuLIDProjector:
    """The unconditional rows get what the network makes of nothing but zeros."""

    tensors: Mapping[str, Tensor]
    network: Network

    def __call__(self, evidence: Evidence, choices: Choices) -> tuple[Tensor, Tensor | None]:
        if evidence.seen is None or len(evidence.layers) != SCALES:
            raise ValueError("PuLID needs the encoder's pooled answer and five of its hidden states")
        net = Net(self.tensors)
        # One row a picture, the person's vector joined with the picture's pooled view at length 1.
        pooled = evidence.seen[:, 0]
        pooled = pooled / pooled.norm(dim=-1, keepdim=True)
        vectors = evidence.vectors
        vectors = vectors if len(vectors) == len(pooled) else vectors.mean(0, keepdim=True).expand(len(pooled), -1)
        known = torch.cat([vectors, pooled], -1)
        layers = evidence.layers
        positive = self.joined(net, known, layers)
        if choices.recipe == NOTHING:
            return positive, None
        # v1 joins as many nobodies as pictures, v1.1 asks for one.
        count = len(known) if self.network is id_encoder else 1
        nothing = tuple(torch.zeros_like(layer[:count]) for layer in layers)
        return positive, self.joined(net, torch.zeros_like(known[:count]), nothing)

    def joined(self, net: Net, known: Tensor, layers: tuple[Tensor, ...]) -> Tensor:
        """(1, T, D): several pictures of one person together, as the authors join them."""
        if len(known) == 1:
            return self.network(net, known, layers)
        if self.network is id_encoder:
            # app.py of v1: all tokens of the first picture, of the others those of the identity vector.
            first, *others = self.network(net, known, layers).unbind(0)
            return joined([first, *(tokens[:-SCALES] for tokens in others)])
        return self.network(net, known[None], tuple(layer.flatten(0, 1)[None] for layer in layers))


@dataclass(frozen=True)
class _PuLID:
    name: str
    title: str
    mark: str
    """The tensor that only this version has."""
    network: Network
    patterns: tuple[str, ...]
    modes: Mapping[str, tuple[str, int]]

    def claims(self, file: Checkpoint) -> bool:
        return f"image_proj.{self.mark}" in file and plain(file)

    def likely(self, file: Checkpoint) -> bool:
        return True

    def load(self, file: Checkpoint) -> IdAdapter:
        file.only("image_proj", self.patterns, self.title)
        file.only("ip_adapter", KEYS, self.title)
        keys, values = keys_and_values(file)
        vit = file.takes("image_proj.mapping_0.0.weight")
        # The vector and the encoder's pooled answer come joined; where one ends the file does not tell.
        takes = file.takes(f"image_proj.{self.mark}")
        return IdAdapter(
            format=self.name,
            title=self.title,
            path=file.path,
            project=PuLIDProjector(file.group("image_proj"), self.network),
            keys=keys,
            values=values,
            recogniser=Recogniser("glintr100", "antelopev2", False, takes - POOLED if takes > POOLED else takes),
            feature=Feature("eva02-l-336", "whitened", 336, vit),
            strength=0.8,
            modes=self.modes,
        )


formats.add("pulid", _PuLID("pulid", "PuLID v1", "body.0.weight", id_encoder, ENCODER, MODES))
formats.add(
    "pulid-v1.1", _PuLID("pulid-v1.1", "PuLID v1.1", "id_embedding_mapping.0.weight", id_former, FORMER, MODES_V1_1)
)
