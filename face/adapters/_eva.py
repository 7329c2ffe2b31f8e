"""EVA02-CLIP-L at 336 pixels, the picture's eye of PuLID: pooled answer and five hidden states.

ToTheBeginning/PuLID 1aa2fc7 eva_clip/eva_vit_model.py: EVAVisionTransformer, after baaivision/EVA (Sun et al. 2023,
arXiv 2303.15389). The published file is ``EVA02_CLIP_L_336_psz14_s6B.pt``; its text half is not read.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from ._net import Net

EPS = 1e-6
EVERY, LAST = 4, 20
"""Hidden states are taken before every fourth block, the last before this one."""


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """``x`` (B, H, 1 + patches, d) turned by its place, the class token left alone (eva_clip/rope.py)."""
    head, patches = x[..., :1, :], x[..., 1:, :]
    even, odd = patches[..., 0::2], patches[..., 1::2]
    turned = torch.stack([-odd, even], -1).flatten(-2)
    return torch.cat([head, patches * cos + turned * sin], -2)


def eva(tensors: Mapping[str, Tensor], pixels: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Pooled (B, P) and five hidden states (B, 1 + patches, C) of normalised ``pixels`` (B, 3, S, S).

    ``tensors``: the vision half, names without ``visual.``.
    """
    net = Net(tensors)
    cos, sin = net.get("rope.freqs_cos", pixels), net.get("rope.freqs_sin", pixels)
    patch = net["patch_embed.proj.weight"].shape[-1]
    x = F.conv2d(
        pixels, net.get("patch_embed.proj.weight", pixels), net.get("patch_embed.proj.bias", pixels), stride=patch
    )
    x = x.flatten(2).transpose(1, 2)
    x = torch.cat([net.get("cls_token", x).expand(len(x), -1, -1), x], 1) + net.get("pos_embed", x)
    hidden: list[Tensor] = []
    for number, block in enumerate(net.numbered("blocks")):
        if 0 < number <= LAST and number % EVERY == 0:
            hidden.append(x)
        attn, mlp = block.under("attn"), block.under("mlp")
        y = block.norm(x, "norm1", EPS)
        q = F.linear(y, attn.get("q_proj.weight", y), attn.get("q_bias", y))
        k = F.linear(y, attn.get("k_proj.weight", y))
        v = F.linear(y, attn.get("v_proj.weight", y), attn.get("v_bias", y))
        # A head is as wide as the table of rotations.
        q, k, v = (t.unflatten(-1, (-1, cos.shape[-1])).transpose(1, 2) for t in (q, k, v))
        y = F.scaled_dot_product_attention(_rotated(q, cos, sin), _rotated(k, cos, sin), v)
        y = attn.norm(y.transpose(1, 2).flatten(2), "inner_attn_ln", EPS)
        x = x + attn.linear(y, "proj")
        y = block.norm(x, "norm2", EPS)
        y = mlp.norm(F.silu(mlp.linear(y, "w1")) * mlp.linear(y, "w2"), "ffn_ln", EPS)
        x = x + mlp.linear(y, "w3")
    return net.linear(net.norm(x, "norm", EPS)[:, 0], "head"), tuple(hidden)
