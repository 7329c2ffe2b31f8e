"""The projectors that several formats share: what turns an identity into tokens of the text's width."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ._net import HEAD, Net


def mlp(net: Net, vectors: Tensor) -> Tensor:
    """(N, T, D) tokens of ``vectors`` (N, V): two layers and a LayerNorm; T is what the second layer holds.

    IP-Adapter 62e4af9 ip_adapter/ip_adapter_faceid.py: MLPProjModel.
    """
    width = net["norm.weight"].shape[0]
    x = net.linear(F.gelu(net.linear(vectors, "proj.0")), "proj.2")
    return net.norm(x.reshape(len(vectors), -1, width), "norm")


def perceiver(net: Net, latents: Tensor, x: Tensor, head: int = HEAD) -> Tensor:
    """(N, T, D): ``latents`` (N, T, D) after looking at ``x`` (N, M, C) (ip_adapter_faceid.py:
    FacePerceiverResampler)."""
    x = net.linear(x, "proj_in")
    for layer in net.numbered("layers"):
        latents = layer.under("0").perceive(x, latents, head) + latents
        latents = layer.feed_forward(latents, "1") + latents
    return net.norm(net.linear(latents, "proj_out"), "norm_out")


def resampler(net: Net, x: Tensor) -> Tensor:
    """(N, T, D) tokens: the file's own latents after looking at ``x`` (N, M, C) (ip_adapter/resampler.py:
    Resampler)."""
    latents = net.get("latents", x)
    return perceiver(net, latents.expand(len(x), -1, -1), x)


def fuse(net: Net, prompt: Tensor, identity: Tensor) -> Tensor:
    """Each of the ``prompt`` tokens (K, D) joined with the identity token in its place (K, D).

    PhotoMaker 060b4fc photomaker/model.py: FuseModule.fuse_fn; ConsistentID's is the same.
    """

    def block(x: Tensor, name: str) -> Tensor:
        part = net.under(name)
        return part.linear(F.gelu(part.linear(part.norm(x, "layernorm"), "fc1")), "fc2")

    x = block(torch.cat([prompt, identity], -1), "mlp1") + prompt
    x = block(x, "mlp2") + x
    return net.norm(x, "layer_norm")
