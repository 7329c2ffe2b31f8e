"""Decoupled attention in tuned plain torch: every device, every dtype, the same arithmetic as ``reference``.

Per branch one attention call and one ``addcmul_`` onto the output, in place: no product, no sum and no spread-out mask
is ever materialised, and nothing is read back to the host. A call costs at most two operations besides.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

_VECTOR = 16
"""Keys that torch's attention on a CPU exponentiates at once (AVX-512; AVX2 takes 8). The remainder goes one by one."""
_SHORT = 512
"""Keys from which on that remainder no longer matters."""
_HIDDEN = torch.cat([torch.zeros(_SHORT, device="cpu"), torch.full((_VECTOR,), -torch.inf, device="cpu")])
"""What is added to the logits of ``_SHORT`` keys and of a filler behind them; a part of it fits any fewer."""


class _Segment(NamedTuple):
    """The keys of one softmax."""

    k: Tensor
    """(B, L, H*D)"""
    v: Tensor
    bias: Tensor | None = None
    """(1, 1, 1, L) added to the logits."""


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
    """``reference.decoupled_attention``, tuned."""
    text, *branches = _padded([_Segment(k, v), *_branches(id_k, id_v, id_lens)])
    out = _attend(q, text, heads, scale).flatten(2)
    _add(out, q, branches, weight, heads, mask, scale)
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
    """``reference.add_identity_attention_``, tuned."""
    _add(out, q, _padded(_branches(id_k, id_v, id_lens)), weight, heads, mask, scale)


def _branches(id_k: Tensor, id_v: Tensor, id_lens: Sequence[int]) -> list[_Segment]:
    lengths = list(id_lens)
    return [_Segment(k, v) for k, v in zip(id_k.split(lengths, 1), id_v.split(lengths, 1), strict=True)]


def _attend(q: Tensor, keys: _Segment, heads: int, scale: float | None) -> Tensor:
    """(B, NQ, H, D) of one softmax."""
    split = [t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, keys.k, keys.v)]
    return F.scaled_dot_product_attention(*split, attn_mask=keys.bias, scale=scale).transpose(1, 2)


def _add(
    out: Tensor,
    q: Tensor,
    branches: list[_Segment],
    weight: Tensor,
    heads: int,
    mask: Tensor | None,
    scale: float | None,
) -> None:
    if not branches:
        return
    share = weight.t().unsqueeze(2)  # (N, B, 1)
    share = (share if mask is None else share * mask).to(out.dtype).unflatten(2, (-1, 1, 1))
    split = out.unflatten(2, (heads, -1))
    for keys, part in zip(branches, share.unbind(), strict=True):
        split.addcmul_(_attend(q, keys, heads, scale), part)


def _padded(segments: list[_Segment]) -> list[_Segment]:
    """In float32 on a CPU the segments, each with a hidden filler up to a whole number of vectors; else as they are.

    77 keys as 80 take a fifth less time, 4 as 16 up to a half less; exact, for a hidden key's share is exp(-inf) = 0.
    """
    fillers = [-s.k.shape[1] % _VECTOR if s.k.shape[1] < _SHORT else 0 for s in segments]
    if not any(fillers) or segments[0].k.device.type != "cpu" or segments[0].k.dtype != torch.float32:
        return segments
    pieces: list[Tensor] = []
    lengths: list[int] = []
    for segment, filler in zip(segments, fillers, strict=True):
        # Any finite rows do; those of the segment's own first key are as finite as the rest of it.
        spare = segment.k.narrow(1, 0, 1).expand(-1, filler, -1)
        pieces += [segment.k, spare, segment.v, spare]
        lengths += [segment.k.shape[1] + filler] * 2
    # One copy for all: a copy each would be an operation each.
    copies = iter(torch.cat(pieces, 1).split(lengths, 1))
    padded: list[_Segment] = []
    for k, v, filler in zip(copies, copies, fillers, strict=True):
        bias = _HIDDEN.narrow(0, _SHORT - k.shape[1] + filler, k.shape[1]).expand(1, 1, 1, -1) if filler else None
        padded.append(_Segment(k, v, bias))
    return padded
