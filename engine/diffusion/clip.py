"""CLIP's two towers (Radford et al. 2021, arXiv 2103.00020) in plain torch, with the tensor names of transformers.

Weights stay in the half precision in which they are published, and every product is computed in float32, as in ComfyUI:
so the towers take half the memory and give the same numbers in both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ...face.errors import BadModelFile
from .weights import Tensors, nested

Tensor = torch.Tensor
STORED = torch.float16


@dataclass(frozen=True)
class Sizes:
    """Of one tower."""

    width: int
    layers: int
    inner: int
    heads: int
    quick: bool
    """Whether its activation is OpenAI's approximation of GELU, ``x * sigmoid(1.702 x)``."""


class Linear(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(input.dtype)
        return F.linear(input, self.weight.to(input.dtype), bias)


class LayerNorm(nn.LayerNorm):
    def forward(self, input: Tensor) -> Tensor:
        weight, bias = self.weight.to(input.dtype), self.bias.to(input.dtype)
        return F.layer_norm(input, self.normalized_shape, weight, bias, self.eps)


class Attention(nn.Module):
    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.heads = sizes.heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (Linear(sizes.width, sizes.width) for _ in range(4))

    def forward(self, x: Tensor, causal: bool) -> Tensor:
        q, k, v = (
            p(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj)
        )
        out = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
        return self.out_proj(out.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.quick = sizes.quick
        self.fc1, self.fc2 = Linear(sizes.width, sizes.inner), Linear(sizes.inner, sizes.width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        return self.fc2(x * torch.sigmoid(1.702 * x) if self.quick else F.gelu(x))


class Layer(nn.Module):
    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.self_attn, self.mlp = Attention(sizes), Mlp(sizes)
        self.layer_norm1, self.layer_norm2 = LayerNorm(sizes.width), LayerNorm(sizes.width)

    def forward(self, x: Tensor, causal: bool) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x), causal)
        return x + self.mlp(self.layer_norm2(x))


class Encoder(nn.Module):
    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(sizes) for _ in range(sizes.layers))

    def forward(self, x: Tensor, causal: bool, layer: int) -> tuple[Tensor, Tensor]:
        """The last state and the one after ``layer`` (negative counts from the end, -1 being the last)."""
        chosen = layer % len(self.layers)
        between = x
        for number, block in enumerate(self.layers):
            x = block(x, causal)
            between = x if number == chosen else between
        return x, between


class TextEmbeddings(nn.Module):
    def __init__(self, width: int, vocabulary: int, positions: int) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(vocabulary, width)
        self.position_embedding = nn.Embedding(positions, width)


class TextTransformer(nn.Module):
    def __init__(self, sizes: Sizes, vocabulary: int, positions: int) -> None:
        super().__init__()
        self.embeddings = TextEmbeddings(sizes.width, vocabulary, positions)
        self.encoder = Encoder(sizes)
        self.final_layer_norm = LayerNorm(sizes.width)


class TextTower(nn.Module):
    """``forward`` answers (last normed state, state after ``layer``, pooled, projected pooled)."""

    def __init__(self, sizes: Sizes, vocabulary: int, positions: int, projected: int | None) -> None:
        super().__init__()
        self.sizes, self.vocabulary, self.positions = sizes, vocabulary, positions
        self.text_model = TextTransformer(sizes, vocabulary, positions)
        self.text_projection = None if projected is None else Linear(sizes.width, projected, bias=False)

    @property
    def width(self) -> int:
        return self.sizes.width

    @property
    def start(self) -> int:
        """The token that begins a section: the last but one of CLIP's vocabulary."""
        return self.vocabulary - 2

    @property
    def end(self) -> int:
        """The token that ends it: the last one."""
        return self.vocabulary - 1

    def embed(self, ids: Tensor) -> Tensor:
        """(..., width) float32 of token ids, without their places."""
        return self.text_model.embeddings.token_embedding(ids).float()

    def norm(self, state: Tensor) -> Tensor:
        return self.text_model.final_layer_norm(state)

    def forward(self, embedded: Tensor, ends: Tensor, layer: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """``embedded`` (S, T, width) float32; ``ends`` (S,) the place of the end token of each section."""
        x = embedded + self.text_model.embeddings.position_embedding.weight[: embedded.shape[1]].float()
        last, between = self.text_model.encoder(x, True, layer)
        last = self.norm(last)
        pooled = last[torch.arange(len(last), device=last.device), ends]
        return last, between, pooled, pooled if self.text_projection is None else self.text_projection(pooled)


class VisionEmbeddings(nn.Module):
    def __init__(self, width: int, patch: int, places: int) -> None:
        super().__init__()
        self.class_embedding = nn.Parameter(torch.empty(width))
        self.patch_embedding = nn.Conv2d(3, width, patch, patch, bias=False)
        self.position_embedding = nn.Embedding(places, width)

    def forward(self, pixels: Tensor) -> Tensor:
        weight = self.patch_embedding.weight.float()
        patches = F.conv2d(pixels, weight, stride=weight.shape[-1]).flatten(2).transpose(1, 2)
        first = self.class_embedding.float().expand(len(pixels), 1, -1)
        return torch.cat([first, patches], 1) + self.position_embedding.weight.float()


class VisionTransformer(nn.Module):
    def __init__(self, sizes: Sizes, patch: int, places: int) -> None:
        super().__init__()
        self.embeddings = VisionEmbeddings(sizes.width, patch, places)
        # The name is misspelt in every published file.
        self.pre_layrnorm = LayerNorm(sizes.width)
        self.encoder = Encoder(sizes)
        self.post_layernorm = LayerNorm(sizes.width)


class VisionTower(nn.Module):
    """``forward`` answers (last state, state before the last layer, projected embedding of the picture)."""

    def __init__(self, sizes: Sizes, patch: int, places: int, projected: int | None) -> None:
        super().__init__()
        self.sizes, self.patch, self.side = sizes, patch, round((places - 1) ** 0.5) * patch
        self.vision_model = VisionTransformer(sizes, patch, places)
        self.visual_projection = None if projected is None else Linear(sizes.width, projected, bias=False)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``pixels`` (B, 3, side, side), normalised; computed in float32 whatever they are."""
        x = self.vision_model.pre_layrnorm(self.vision_model.embeddings(pixels.float()))
        last, between = self.vision_model.encoder(x, False, -2)
        pooled = self.vision_model.post_layernorm(last[:, 0])
        return last, between, pooled if self.visual_projection is None else self.visual_projection(pooled)


_OPEN_CLIP = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}
_OPEN_CLIP_TEXT = {
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
}
_OPEN_CLIP_VISION = {
    "class_embedding": "vision_model.embeddings.class_embedding",
    "conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "ln_post.weight": "vision_model.post_layernorm.weight",
    "ln_post.bias": "vision_model.post_layernorm.bias",
}
_IGNORED = ("logit_scale", "position_ids", "attn_mask", "text_model.embeddings.position_ids")


def text_tower(tensors: Tensors, name: str, quick: bool, known: Mapping[str, Any] | None = None) -> TextTower:
    """An empty tower (on the meta device) for ``transformers``-named tensors; sizes from their shapes."""
    table = tensors.get("text_model.embeddings.token_embedding.weight")
    places = tensors.get("text_model.embeddings.position_embedding.weight")
    if table is None or places is None:
        raise BadModelFile(f"{name} holds no CLIP text encoder; a T5 or another kind cannot be used")
    sizes = _sizes(tensors, "text_model.encoder", table.shape[1], max(table.shape[1] // 64, 1), quick, name, known)
    projection = tensors.get("text_projection.weight")
    with torch.device("meta"):
        return TextTower(sizes, len(table), len(places), None if projection is None else len(projection)).to(STORED)


def vision_tower(tensors: Tensors, name: str, known: Mapping[str, Any] | None = None) -> VisionTower:
    """An empty tower (on the meta device). Published ones have 16 heads, and GELU from 30 layers on."""
    table = tensors.get("vision_model.embeddings.class_embedding")
    if table is None:
        raise BadModelFile(
            f"{name} holds no CLIP image encoder. Use the CLIP-ViT file that your adapter names; SigLIP and DINO "
            "cannot be used here."
        )
    layers = len({n.split(".")[3] for n in tensors if n.startswith("vision_model.encoder.layers.")})
    sizes = _sizes(tensors, "vision_model.encoder", table.shape[0], 16, layers < 30, name, known)
    patch = tensors.get("vision_model.embeddings.patch_embedding.weight", torch.empty(0, 0, 0, 14)).shape[-1]
    places = tensors.get("vision_model.embeddings.position_embedding.weight", torch.empty(257, 0)).shape[0]
    projection = tensors.get("visual_projection.weight")
    with torch.device("meta"):
        return VisionTower(sizes, patch, places, None if projection is None else len(projection)).to(STORED)


def _sizes(
    tensors: Tensors, encoder: str, width: int, heads: int, quick: bool, name: str, known: Mapping[str, Any] | None
) -> Sizes:
    layers = 0
    while f"{encoder}.layers.{layers}.layer_norm1.weight" in tensors:
        layers += 1
    first = tensors.get(f"{encoder}.layers.0.mlp.fc1.weight")
    if first is None:
        raise BadModelFile(f"{name} has no layers ({encoder}.layers.0 is missing): it is cut off; get it again")
    known = known or {}
    heads = known.get("num_attention_heads", heads)
    if not isinstance(heads, int) or heads < 1 or width % heads:
        raise BadModelFile(
            f"{name} is {width} wide, which {heads} attention heads cannot share; give it with its config.json"
        )
    return Sizes(
        width, layers, len(first), heads, known.get("hidden_act", "quick_gelu" if quick else "gelu") == "quick_gelu"
    )


def text_tensors(tensors: Tensors) -> Tensors:
    """Tensors of a text encoder under transformers' names, whether they came so, without prefix, or from open_clip."""
    if "transformer.resblocks.0.ln_1.weight" in tensors:
        out = _from_open_clip(tensors, "text_model.encoder", _OPEN_CLIP_TEXT)
        if "text_projection" in tensors:
            out["text_projection.weight"] = tensors["text_projection"].T
        if "text_projection.weight" in tensors:
            out["text_projection.weight"] = tensors["text_projection.weight"]
        return out
    if "embeddings.token_embedding.weight" in tensors:
        tensors = {f"text_model.{name}": tensor for name, tensor in tensors.items()}
    return {name: tensor for name, tensor in tensors.items() if not name.endswith(_IGNORED)}


def vision_tensors(tensors: Tensors) -> Tensors:
    """Tensors of an image encoder under transformers' names; the text half of a whole CLIP is left out."""
    if "visual.transformer.resblocks.0.ln_1.weight" in tensors:
        tower = nested(tensors, "visual.")
        out = _from_open_clip(tower, "vision_model.encoder", _OPEN_CLIP_VISION)
        if "proj" in tower:
            out["visual_projection.weight"] = tower["proj"].T
        return out
    kept = {n: t for n, t in tensors.items() if n.startswith(("vision_model.", "visual_projection."))}
    return {name: tensor for name, tensor in kept.items() if not name.endswith(_IGNORED)}


def _from_open_clip(tensors: Tensors, encoder: str, ends: dict[str, str]) -> Tensors:
    out: Tensors = {theirs: tensors[ours] for ours, theirs in ends.items() if ours in tensors}
    for name, tensor in tensors.items():
        if not name.startswith("transformer.resblocks."):
            continue
        number, rest = name.removeprefix("transformer.resblocks.").split(".", 1)
        layer = f"{encoder}.layers.{number}"
        if rest.startswith("attn.in_proj_"):
            # One matrix for query, key and value.
            for part, share in zip("qkv", tensor.chunk(3), strict=True):
                out[f"{layer}.self_attn.{part}_proj.{rest.removeprefix('attn.in_proj_')}"] = share
        else:
            path, kind = rest.rsplit(".", 1)
            out[f"{layer}.{_OPEN_CLIP.get(path, path)}.{kind}"] = tensor
    return out
