"""Decoupled attention as it is defined: the truth that every other backend is compared with, in any float dtype.

IP-Adapter (Ye et al. 2023, eq. 5) with more than one image prompt, and a weight for each query.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def decoupled_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    id_k: Tensor,
    id_v: Tensor,
    id_lens: Sequence[int],
    weight: Tensor,
    heads: int,
    mask: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """(B, NQ, H*D): ``softmax(q kT) v + sum over n of weight[b, n] mask[n, b, i] softmax(q id_k_nT) id_v_n``."""
    out = _attention(q, k, v, heads, scale)
    add_identity_attention_(out, q, id_k, id_v, id_lens, weight, heads, mask, scale)
    return out


def add_identity_attention_(
    out: Tensor,
    q: Tensor,
    id_k: Tensor,
    id_v: Tensor,
    id_lens: Sequence[int],
    weight: Tensor,
    heads: int,
    mask: Tensor | None = None,
    scale: float | None = None,
) -> None:
    """The sum alone, onto ``out`` (B, NQ, H*D)."""
    lengths = list(id_lens)
    for n, (k, v) in enumerate(zip(id_k.split(lengths, 1), id_v.split(lengths, 1), strict=True)):
        share = weight[:, n, None] if mask is None else weight[:, n, None] * mask[n]
        out += (share[..., None] * _attention(q, k, v, heads, scale)).to(out.dtype)


def _attention(q: Tensor, k: Tensor, v: Tensor, heads: int, scale: float | None) -> Tensor:
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
    logits = q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
    return (torch.softmax(logits, -1) @ v).transpose(1, 2).flatten(2)
