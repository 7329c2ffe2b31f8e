"""Small networks read straight off their tensors: every size is the file's, none is assumed.

A projector is a page of code over a ``Net``; the names in it are the checkpoint's own. Weights stay as they lie in the
file (half precision, mapped) and are cast where they are used, so a network is never held twice.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import BadModelFile

HEAD = 64
"""Width of an attention head in every resampler published so far, unless its authors say otherwise."""


class Net:
    """The tensors of one network under their names; ``net.under("layers.0")`` are those below a prefix."""

    def __init__(self, tensors: Mapping[str, Tensor], prefix: str = "", used: set[str] | None = None) -> None:
        self._tensors, self._prefix = tensors, prefix
        self.used: set[str] = set() if used is None else used
        """Full names of what has been read: a test compares it with the file."""

    def under(self, name: str) -> Net:
        return Net(self._tensors, f"{self._prefix}{name}.", self.used)

    def __contains__(self, name: str) -> bool:
        return self._prefix + name in self._tensors

    def __getitem__(self, name: str) -> Tensor:
        full = self._prefix + name
        self.used.add(full)
        if full not in self._tensors:
            raise BadModelFile(f"the tensor {full} is missing; the file is cut off or of another version")
        return self._tensors[full]

    def get(self, name: str, like: Tensor) -> Tensor:
        """The tensor with the type and on the device of ``like``."""
        return self[name].to(like)

    def numbered(self, name: str) -> Iterator[Net]:
        """``name.0``, ``name.1`` and so on. Raises BadModelFile where one between is missing."""
        start = f"{self._prefix}{name}."
        there = {int(m[1]) for key in self._tensors if (m := re.match(rf"{re.escape(start)}(\d+)\.", key))}
        for number in range(len(there)):
            if number not in there:
                raise BadModelFile(f"the tensors {start}{number} are missing; the file is cut off")
            yield self.under(f"{name}.{number}")

    def linear(self, x: Tensor, name: str) -> Tensor:
        """``x`` (..., in) through the layer ``name``; its bias is optional."""
        bias = self.get(f"{name}.bias", x) if f"{name}.bias" in self else None
        return F.linear(x, self.get(f"{name}.weight", x), bias)

    def norm(self, x: Tensor, name: str, eps: float = 1e-5) -> Tensor:
        """LayerNorm over the last dimension."""
        weight = self.get(f"{name}.weight", x)
        return F.layer_norm(x, weight.shape, weight, self.get(f"{name}.bias", x), eps)

    def ladder(self, x: Tensor, name: str) -> Tensor:
        """Linear, LayerNorm, LeakyReLU, twice, and a Linear (``name.0`` to ``name.6``): PuLID's MLP."""
        for step in (0, 3):
            x = F.leaky_relu(self.norm(self.linear(x, f"{name}.{step}"), f"{name}.{step + 1}"))
        return self.linear(x, f"{name}.6")

    def feed_forward(self, x: Tensor, name: str) -> Tensor:
        """LayerNorm, Linear, GELU, Linear: ``name.0``, ``name.1``, ``name.3`` (IP-Adapter resampler.py:
        FeedForward)."""
        return self.linear(F.gelu(self.linear(self.norm(x, f"{name}.0"), f"{name}.1")), f"{name}.3")

    def perceive(self, x: Tensor, latents: Tensor, head: int = HEAD) -> Tensor:
        """Attention of ``latents`` (B, M, D) to ``x`` (B, N, D') and themselves.

        IP-Adapter 62e4af9 ip_adapter/resampler.py: PerceiverAttention; PuLID's has the same tensors.
        """
        x, latents = self.norm(x, "norm1"), self.norm(latents, "norm2")
        q = self.linear(latents, "to_q")
        k, v = self.linear(torch.cat([x, latents], 1), "to_kv").chunk(2, -1)
        return self.linear(attend(q, k, v, q.shape[-1] // head), "to_out")


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int, causal: bool = False) -> Tensor:
    """Attention of q (B, M, heads * d) to k, v (B, N, heads * d), as (B, M, heads * d)."""
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=causal).transpose(1, 2).flatten(2)
