"""Calls of decoupled attention of every kind, and how far from float64 each dtype may stray. For all kernel tests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from likeness.kernels import reference
from torch import Tensor

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 6e-3, torch.bfloat16: 5e-2}
"""Largest difference from float64 on the same inputs; the outputs are of the size of a few."""


class Arguments(NamedTuple):
    """What ``decoupled_attention`` takes."""

    q: Tensor
    k: Tensor
    v: Tensor
    id_k: Tensor
    id_v: Tensor
    id_lens: list[int]
    weight: Tensor
    heads: int
    mask: Tensor | None
    scale: float | None

    @property
    def identities(self):
        """What ``add_identity_attention_`` takes after ``out`` and ``q``."""
        return self[3:]

    def to(self, dtype):
        """The same in another dtype; weights and mask stay float32."""
        return Arguments(*(t.to(dtype) for t in self[:5]), *self[5:])


@dataclass(frozen=True)
class Case:
    dim: int
    lens: tuple[int, ...] = (16,)
    mask: str = ""
    """``shared``: (N, 1, NQ); ``rows``: (N, B, NQ); ``halves``: the first half of the queries is 0, and so are whole
    tiles; empty: none."""
    dtype: torch.dtype = torch.float32
    queries: int = 70
    text: int = 77
    heads: int = 2
    batch: int = 2
    weights: tuple[float, ...] | None = None
    """Of every row; random of both signs unless given."""
    strided: bool = False
    """Views into larger tensors, last stride 1."""
    scale: float | None = None
    device: str = "cpu"

    def arguments(self) -> Arguments:
        generator = torch.Generator().manual_seed(1)

        def draw(tokens):
            shape = (self.batch, tokens, self.heads * self.dim)
            if not self.strided:
                return torch.randn(shape, generator=generator).to(self.device, self.dtype)
            packed = torch.randn(shape[0], shape[1] + 3, 2 * shape[2], generator=generator)
            return packed.to(self.device, self.dtype)[:, 2:-1, shape[2] :]

        branches = len(self.lens)
        weight = torch.randn(self.batch, branches, generator=generator)
        if self.weights is not None:
            weight = torch.tensor([self.weights] * self.batch).reshape(self.batch, branches)
        mask = None
        if self.mask:
            rows = self.batch if self.mask == "rows" else 1
            mask = torch.rand(branches, rows, self.queries, generator=generator)
            if self.mask == "halves":
                mask[:, :, : self.queries // 2] = 0
            mask = mask.to(self.device)
        q, k, v = draw(self.queries), draw(self.text), draw(self.text)
        id_k, id_v = draw(sum(self.lens)), draw(sum(self.lens))
        return Arguments(q, k, v, id_k, id_v, list(self.lens), weight.to(self.device), self.heads, mask, self.scale)

    def out(self) -> Tensor:
        """What a text branch might have left; strided like the rest."""
        generator = torch.Generator().manual_seed(2)
        shape = (self.batch, self.queries, self.heads * self.dim)
        if not self.strided:
            return torch.randn(shape, generator=generator).to(self.device, self.dtype)
        wider = torch.randn(shape[0], shape[1], shape[2] + 16, generator=generator)
        return wider.to(self.device, self.dtype)[..., 8:-8]


def errors(backend, case: Case) -> dict[str, float]:
    """Largest difference from float64, by operation."""
    arguments = case.arguments()
    exact = arguments.to(torch.float64)
    fused = backend.decoupled_attention(*arguments)
    wanted = reference.decoupled_attention(*exact)
    out, wanted_out = case.out(), case.out().double()
    backend.add_identity_attention_(out, arguments.q, *arguments.identities)
    reference.add_identity_attention_(wanted_out, exact.q, *exact.identities)
    assert fused.dtype == out.dtype == case.dtype and fused.shape == arguments.q.shape and fused.is_contiguous()
    return {
        "decoupled_attention": _largest(fused.double() - wanted),
        "add_identity_attention_": _largest(out.double() - wanted_out),
    }


def _largest(difference: Tensor) -> float:
    return float(torch.nan_to_num(difference, nan=torch.inf).abs().max())
