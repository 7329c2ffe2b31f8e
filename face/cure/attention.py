"""Self-attention that also reads the foundation run's keys inside a mask (FASA, arXiv 2411.15277, equation 4).

Per row: ``softmax([Q Kᵀ/√d , Q K_fᵀ/√d + ω + log m]) [V ; V_f]``, where K_f, V_f are the foundation's keys and values
at the same layer and evaluation, and ``m`` in [0, 1] says how much a key counts. That is the released code's form
(YIYANGCAI/FreeCure at f9b05a9, freecure/fasa_module/fasa.py), where m is 0 or 1 and a masked key gets -inf. The paper's
text multiplies the logits instead, ``[1, ω m] ⊙ Q [K ; K_f]ᵀ/√d``, which leaves keys outside the mask at logit 0.

Only keys are masked: every query, also one outside, may read the keys inside. Keys that count nothing are not gathered
at all, which is the same and costs what the mask is large.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..attention import WHOLE, Area, cut
from ..errors import BadInput

ADDITIVE, MULTIPLICATIVE = "additive", "multiplicative"
MODES = (ADDITIVE, MULTIPLICATIVE)
"""The released code's form, and the paper's."""


@dataclass(frozen=True, eq=False)
class Selection:
    """Which foundation keys the rows of a batch read at one layer, and how strongly."""

    index: Tensor | None
    """(B, M) int64: tokens of the layer, padded with 0; None for all tokens."""
    factor: Tensor | None
    """(B, M, 1): what keys are multiplied by; None where the mode is additive."""
    bias: Tensor | None
    """(B, 1, 1, N + M): what is added to the logits of own and borrowed keys; None where nothing is."""

    def to(self, device: torch.device, dtype: torch.dtype) -> Selection:
        """On a device, for queries of ``dtype``."""
        parts = (None if t is None else t.to(device, dtype) for t in (self.factor, self.bias))
        return Selection(None if self.index is None else self.index.to(device), *parts)


def select(shares: Tensor, omega: float, mode: str = ADDITIVE, own: int | None = None) -> Selection | None:
    """The selection for rows whose foundation keys count ``shares`` (B, N) in [0, 1]; None where none of them counts.

    ``own``: how many keys a row has itself, if not N. ``omega``: the authors' ω, 1.5 for SDXL and 0.5 for SD1.5
    (additive), 2.0 in the paper (multiplicative). Raises BadInput for an unknown mode.
    """
    if mode not in MODES:
        raise BadInput(f"ω can be {' or '.join(MODES)}; got {mode!r}")
    rows, tokens = shares.shape
    chosen = shares > 0
    most = int(chosen.sum(1).max()) if rows else 0
    if most == 0:
        return None
    own = tokens if own is None else own
    if mode == MULTIPLICATIVE:
        # The paper's form leaves a logit of 0 outside; a row that is to read nothing at all is left alone instead.
        alone = ~chosen.any(1)
        bias = torch.zeros(rows, own + tokens)
        bias[alone, own:] = -math.inf
        return Selection(None, (omega * shares)[:, :, None], bias[:, None, None, :] if bool(alone.any()) else None)
    # The tokens that count come first, in their own order; what follows is padding.
    index = torch.argsort(chosen.to(torch.int8), dim=1, descending=True, stable=True)[:, :most]
    borrowed = omega + shares.gather(1, index).log()
    bias = torch.cat([torch.zeros(rows, own), borrowed], 1)
    return Selection(index, None, bias[:, None, None, :])


def cured(q: Tensor, k: Tensor, v: Tensor, key: Tensor, value: Tensor, selection: Selection, heads: int) -> Tensor:
    """(B, N, C): self-attention of ``q`` over its own ``k``, ``v`` and the selected of ``key``, ``value``.

    All (B, N, C), projected, heads not split; ``key`` and ``value`` are the foundation's.
    """
    if selection.index is not None:
        key, value = gathered(key, selection.index), gathered(value, selection.index)
    if selection.factor is not None:
        key = key * selection.factor
    q, k, v = (_split(t, heads) for t in (q, torch.cat([k, key], 1), torch.cat([v, value], 1)))
    return F.scaled_dot_product_attention(q, k, v, selection.bias).transpose(1, 2).flatten(2)


def plain(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """(B, N, C): ordinary attention."""
    q, k, v = (_split(t, heads) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def reference(
    q: Tensor, k: Tensor, v: Tensor, key: Tensor, value: Tensor, shares: Tensor, omega: float, heads: int, mode: str
) -> Tensor:
    """The slow twin of ``select`` and ``cured``: every logit over all 2N columns, as the equations are written; a row
    without a mask is left alone."""
    q, k, v, key, value = (_split(t.double(), heads) for t in (q, k, v, key, value))
    own, borrowed = (q @ t.transpose(-1, -2) / math.sqrt(q.shape[-1]) for t in (k, key))
    columns = shares.double()[:, None, None, :]
    borrowed = borrowed + omega + columns.log() if mode == ADDITIVE else borrowed * (omega * columns)
    borrowed = borrowed.masked_fill(~(columns > 0).any(-1, keepdim=True), -math.inf)
    weights = torch.cat([own, borrowed], -1).softmax(-1)
    return (weights @ torch.cat([v, value], -2)).transpose(1, 2).flatten(2)


def shares(mask: Tensor, height: int, width: int, area: Area = WHOLE) -> Tensor:
    """(P, height · width): what a mask (P, H, W) in [0, 1] says of each token of a layer that sees ``area`` of the
    picture, by the nearest pixel.

    Nearest as in the released code (F.interpolate's own choice), so that a share is one that the mask has.
    """
    mask = cut(mask, area)
    return F.interpolate(mask[:, None].float(), (height, width), mode="nearest")[:, 0].flatten(1)


def gathered(x: Tensor, index: Tensor) -> Tensor:
    """(B, M, C): the tokens ``index`` (B, M) of ``x`` (B, N, C)."""
    if len(x) == 1:
        return x.index_select(1, index[0])
    return x.gather(1, index[:, :, None].expand(-1, -1, x.shape[2]))


def _split(x: Tensor, heads: int) -> Tensor:
    """(B, N, C) to (B, heads, N, C / heads)."""
    return x.unflatten(2, (heads, -1)).transpose(1, 2)
