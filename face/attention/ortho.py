"""PuLID's ways of adding an identity without disturbing what the text says: only what is orthogonal to it is added.

PuLID 1aa2fc7 pulid/attention_processor.py: IDAttnProcessor2_0 (Guo et al. 2024, arXiv 2404.16022). The projection runs
over the picture's tokens, channel by channel, in float32.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

ORTHO = ("ortho", "ortho_v2")
FIRST = 5
"""``ortho_v2`` weighs with the attention that falls on the first so many tokens, those of the identity vector."""


@dataclass(frozen=True, eq=False)
class Ortho:
    """One branch of this kind at one site."""

    key: Tensor
    """(B, T, C)."""
    value: Tensor
    weight: Tensor
    """(B, 1) float32."""
    mask: Tensor | None
    """(1, B or 1, N) float32."""
    mode: str

    def share(self, query: Tensor, text: Tensor, heads: int) -> Tensor:
        """(B, N, C): what is to be added to ``text`` (B, N, C), which is the text's share."""
        q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (query, self.key, self.value))
        identity = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2).float()
        base = text.float()
        along = (base * identity).sum(-2, keepdim=True) / (base * base).sum(-2, keepdim=True) * base
        if self.mode == "ortho":
            share = identity - along
        else:
            # As published: the softmax here is of the bare products, without the usual scale.
            first = min(FIRST, k.shape[2])
            on_identity = (q @ k.transpose(-2, -1)).softmax(-1).mean(1).narrow(-1, 0, first).sum(-1, keepdim=True)
            share = identity + (on_identity - 1) * along
        share = share * self.weight.unsqueeze(-1)
        if self.mask is not None:
            share = share * self.mask.select(0, 0).unsqueeze(-1)
        return share.to(text.dtype)
