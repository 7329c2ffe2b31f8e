"""One call: whether its arguments belong together, and what the choice of a backend depends on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .errors import BadArguments

MANY = 257
"""Stands for any number of keys beyond the 64 that the fused kernel takes at once; CLIP-H's is the usual one."""


class Call(NamedTuple):
    """What the choice depends on; calls that agree in it are computed by the same code."""

    op: str
    """``decoupled_attention`` or ``add_identity_attention_``."""
    device: torch.device
    dtype: torch.dtype
    head_dim: int
    masked: bool
    keys: int
    """Of the longest branch, as ``rounded`` gives it."""
    dense: bool = True
    """Whether the last stride of every tensor is 1."""
    aligned: bool = True
    """Whether every tensor begins at a multiple of 16 bytes."""
    near: bool = True
    """Whether the tokens of a batch row lie within 2^31 elements, which int32 counts."""


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
) -> Call:
    """The call of that name; BadArguments if it cannot be carried out."""
    check_identities(q, id_k, id_v, id_lens, weight, heads, mask)
    check_text(q, k, v)
    return _describe("decoupled_attention", q, (q, k, v, id_k, id_v), id_lens, heads, mask)


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
) -> Call:
    """The call of that name; BadArguments if it cannot be carried out."""
    check_identities(q, id_k, id_v, id_lens, weight, heads, mask)
    check_out(out, q)
    return _describe("add_identity_attention_", q, (out, q, id_k, id_v), id_lens, heads, mask)


def rounded(id_lens: Sequence[int]) -> int:
    """16, 32 or 64, whichever holds the longest branch; ``MANY`` if none does."""
    longest = max(id_lens, default=0)
    return next((size for size in (16, 32, 64) if longest <= size), MANY)


def _describe(
    op: str, q: Tensor, tensors: Sequence[Tensor], id_lens: Sequence[int], heads: int, mask: Tensor | None
) -> Call:
    return Call(
        op,
        q.device,
        q.dtype,
        q.shape[2] // heads,
        mask is not None,
        rounded(id_lens),
        all(t.stride(2) == 1 for t in tensors),
        all(t.data_ptr() % 16 == 0 for t in tensors),
        all(t.stride(1) * t.shape[1] < 2**31 for t in tensors),
    )


def check_text(q: Tensor, k: Tensor, v: Tensor) -> None:
    """BadArguments unless ``q`` can attend to ``k`` and ``v``."""
    _check_pair("k", k, "v", v, q)
    if k.shape[1] == 0:
        raise BadArguments("k and v must have at least one token; got none")


def check_out(out: Tensor, q: Tensor) -> None:
    """BadArguments unless what ``q`` finds can be added onto ``out``."""
    _check_kind("out", out, q)
    if out.shape != q.shape:
        raise BadArguments(f"out must have the shape of q, {_shape(q)}; got {_shape(out)}")
    if any(stride == 0 and size > 1 for stride, size in zip(out.stride(), out.shape, strict=True)):
        raise BadArguments("out must have a place for every element; this one is expanded and must be cloned first")


def check_identities(
    q: Tensor,
    id_k: Tensor,
    id_v: Tensor,
    id_lens: Sequence[int],
    weight: Tensor,
    heads: int,
    mask: Tensor | None,
) -> None:
    """BadArguments unless ``q`` can attend to these identities."""
    if q.ndim != 3 or not q.is_floating_point():
        raise BadArguments(f"q must be floating-point of shape (B, NQ, H*D); got {q.dtype} of shape {_shape(q)}")
    batch, queries, width = q.shape
    if heads < 1 or width % heads:
        raise BadArguments(f"heads must divide the width of q; got {heads} heads and a width of {width}")
    _check_pair("id_k", id_k, "id_v", id_v, q)
    if any(length < 1 for length in id_lens) or sum(id_lens) != id_k.shape[1]:
        raise BadArguments(
            f"id_lens must be the number of keys of each branch, 1 or more, and add up to the {id_k.shape[1]} of id_k; "
            f"got {list(id_lens)}"
        )
    branches = len(id_lens)
    if weight.shape != (batch, branches) or weight.dtype != torch.float32 or weight.device != q.device:
        raise BadArguments(
            f"weight must be float32 of shape (B, N) = ({batch}, {branches}) on {q.device}; got {weight.dtype} of "
            f"shape {_shape(weight)} on {weight.device}"
        )
    if mask is None:
        return
    if mask.ndim != 3 or mask.shape[0] != branches or mask.shape[1] not in (1, batch) or mask.shape[2] != queries:
        raise BadArguments(
            f"mask must have the shape (N, B or 1, NQ) = ({branches}, {batch} or 1, {queries}); got {_shape(mask)}"
        )
    if not mask.is_floating_point() or mask.device != q.device:
        raise BadArguments(f"mask must be floating-point on {q.device}; got {mask.dtype} on {mask.device}")


def _check_pair(k_name: str, k: Tensor, v_name: str, v: Tensor, q: Tensor) -> None:
    """Keys and values of the same tokens, to be attended to by ``q``."""
    if k.ndim != 3 or k.shape != v.shape or k.shape[0] != q.shape[0] or k.shape[2] != q.shape[-1]:
        raise BadArguments(
            f"{k_name} and {v_name} must have one shape (B, tokens, H*D) with the B and H*D of q, {_shape(q)}; got "
            f"{_shape(k)} and {_shape(v)}"
        )
    _check_kind(k_name, k, q)
    _check_kind(v_name, v, q)


def _check_kind(name: str, tensor: Tensor, q: Tensor) -> None:
    if tensor.dtype != q.dtype or tensor.device != q.device:
        raise BadArguments(f"{name} must be {q.dtype} on {q.device}, as q is; got {tensor.dtype} on {tensor.device}")


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)
