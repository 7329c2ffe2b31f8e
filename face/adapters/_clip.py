"""CLIP's two towers, for adapters that bring their own fine-tuned one inside their file.

Names and mathematics as in transformers' CLIPVisionModel and CLIPTextModel (Radford et al. 2021, arXiv 2103.00020);
written out because the library's classes change their names with its versions, and take sizes that the file tells.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ._net import HEAD, Net, attend


def quick_gelu(x: Tensor) -> Tensor:
    """OpenAI's approximation of GELU."""
    return x * torch.sigmoid(1.702 * x)


def _encode(net: Net, x: Tensor, causal: bool) -> Tensor:
    for layer in net.numbered("encoder.layers"):
        y = layer.norm(x, "layer_norm1")
        q, k, v = (layer.linear(y, f"self_attn.{name}_proj") for name in "qkv")
        x = x + layer.linear(attend(q, k, v, q.shape[-1] // HEAD, causal), "self_attn.out_proj")
        y = layer.norm(x, "layer_norm2")
        x = x + layer.linear(quick_gelu(layer.linear(y, "mlp.fc1")), "mlp.fc2")
    return x


def vision(net: Net, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Last hidden state (B, 1 + patches, C) and pooled (B, C) of normalised ``pixels`` (B, 3, S, S)."""
    kernel = net.get("embeddings.patch_embedding.weight", pixels)
    x = F.conv2d(pixels, kernel, stride=kernel.shape[-1]).flatten(2).transpose(1, 2)
    start = net.get("embeddings.class_embedding", x).expand(len(x), 1, -1)
    x = torch.cat([start, x], 1) + net.get("embeddings.position_embedding.weight", x)
    x = _encode(net, net.norm(x, "pre_layrnorm"), causal=False)
    return x, net.norm(x[:, 0], "post_layernorm")


def embed_tokens(net: Net, ids: Tensor) -> Tensor:
    """(B, L, C) float32: the embeddings of the token numbers ``ids`` (B, L), without their places."""
    return F.embedding(ids, net["embeddings.token_embedding.weight"].float())


def text(net: Net, tokens: Tensor) -> Tensor:
    """(B, L, C): the last hidden state, normalised, of embedded ``tokens`` (B, L, C)."""
    places = net.get("embeddings.position_embedding.weight", tokens)[: tokens.shape[1]]
    return net.norm(_encode(net, tokens + places, causal=True), "final_layer_norm")
