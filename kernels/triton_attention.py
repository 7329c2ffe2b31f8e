"""Decoupled attention in one Triton kernel: one pass over the queries, one write, whatever the number of identities.

Checked without a GPU only, and not yet executed on one by us: its semantics by Triton's interpreter against float64,
the code generated for sm_80, sm_89, sm_90 and sm_120 by its registers, spills and tensor-core instructions. Hence
``selfcheck``, which compares it with ``eager`` on the user's own GPU before its first result is used.

One program computes ``block_q`` queries of one head. The queries stay in registers. The text branch is the usual
online softmax. A branch of at most 64 keys is one tile, so that its row sums are known before its values are
read: its probabilities, times weight over sum, go straight into the accumulator of the text branch. A longer branch is
read twice, first for its sums. A tile of queries that a branch's weight and mask leave at 0 skips that branch.

Importing this file imports Triton; ``dispatch`` does it when a call is otherwise fit for it.
"""

# Triton need not be there when this is linted; its kernels are no Python functions, and write their
# compile-time arguments in capitals.
# pyright: reportMissingImports=false, reportMissingParameterType=false, reportUntypedFunctionDecorator=false
# ruff: noqa: N803

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .call import MANY, rounded
from .plan import Plan, Plans


class Tile(NamedTuple):
    """How one program is cut."""

    block_q: int
    """Queries of a program."""
    block_k: int
    """Text keys, or keys of a long branch, read at once."""
    warps: int = 4
    stages: int = 2


TILES = ((80, Tile(64, 64)), (160, Tile(64, 32)))
"""The tile up to each head dimension: fixed, so that nobody's first picture pays for a search."""

LOG2_E = 1.4426950408889634


@triton.jit
def _logits(q1, q2, key, tokens, step, shown, scale, DIM: tl.constexpr, FIRST: tl.constexpr, REST: tl.constexpr):
    """(queries, tokens) float32 of the queries with the keys ``tokens``, scaled; -inf where not ``shown``."""
    d = tl.arange(0, FIRST)
    keys = tl.load(key + tokens[None, :] * step + d[:, None], mask=shown[None, :] & (d < DIM)[:, None], other=0.0)
    s = tl.dot(q1, keys)
    if REST > 0:
        d = FIRST + tl.arange(0, REST)
        keys = tl.load(key + tokens[None, :] * step + d[:, None], mask=shown[None, :] & (d < DIM)[:, None], other=0.0)
        s = tl.dot(q2, keys, s)
    return tl.where(shown[None, :], s * scale, float("-inf"))


@triton.jit
def _gather(acc1, acc2, p, value, tokens, step, shown, DIM: tl.constexpr, FIRST: tl.constexpr, REST: tl.constexpr):
    """The accumulators plus ``p`` (queries, tokens) times the values of ``tokens``."""
    d = tl.arange(0, FIRST)
    values = tl.load(value + tokens[:, None] * step + d[None, :], mask=shown[:, None] & (d < DIM)[None, :], other=0.0)
    p = p.to(values.dtype)
    acc1 = tl.dot(p, values, acc1)
    if REST > 0:
        d = FIRST + tl.arange(0, REST)
        values = tl.load(
            value + tokens[:, None] * step + d[None, :], mask=shown[:, None] & (d < DIM)[None, :], other=0.0
        )
        acc2 = tl.dot(p, values, acc2)
    return acc1, acc2


# Sizes that change from picture to picture, and what changes with the number of identities, make no other kernel.
@triton.jit(
    do_not_specialize=["weight_row", "weight_step", "mask_branch", "mask_row", "queries", "keys", "heads", "branches"]
)
def attention_kernel(
    out,
    q,
    k,
    v,
    id_k,
    id_v,
    weight,
    mask,
    starts,
    out_row,
    out_step,
    q_row,
    q_step,
    k_row,
    k_step,
    v_row,
    v_step,
    id_k_row,
    id_k_step,
    id_v_row,
    id_v_step,
    weight_row,
    weight_step,
    mask_branch,
    mask_row,
    mask_step,
    queries,
    keys,
    heads,
    branches,
    scale,
    TEXT: tl.constexpr,
    MASKED: tl.constexpr,
    LONG: tl.constexpr,
    DIM: tl.constexpr,
    FIRST: tl.constexpr,
    REST: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_I: tl.constexpr,
):
    """``*_row`` is the stride of the batch, ``*_step`` of the tokens; ``scale`` has log2(e) in it, for exp2."""
    row = (tl.program_id(0) // heads).to(tl.int64)
    head = tl.program_id(0) % heads
    i = tl.program_id(1) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    inside = i < queries
    d1 = tl.arange(0, FIRST)
    d2 = FIRST + tl.arange(0, REST if REST > 0 else 16)
    in1 = inside[:, None] & (d1 < DIM)[None, :]
    in2 = inside[:, None] & (d2 < DIM)[None, :]

    q += row * q_row + head * DIM
    k += row * k_row + head * DIM
    v += row * v_row + head * DIM
    id_k += row * id_k_row + head * DIM
    id_v += row * id_v_row + head * DIM
    out += row * out_row + head * DIM
    q1 = tl.load(q + i[:, None] * q_step + d1[None, :], mask=in1, other=0.0)
    q2 = q1  # not read unless there is a rest
    if REST > 0:
        q2 = tl.load(q + i[:, None] * q_step + d2[None, :], mask=in2, other=0.0)

    acc1 = tl.zeros([BLOCK_Q, FIRST], tl.float32)
    acc2 = tl.zeros([BLOCK_Q, REST if REST > 0 else 16], tl.float32)
    touched = i < 0
    if TEXT:
        top = tl.full([BLOCK_Q], float("-inf"), tl.float32)
        total = tl.zeros([BLOCK_Q], tl.float32)
        for start in range(0, keys, BLOCK_K):
            tokens = start + tl.arange(0, BLOCK_K)
            shown = tokens < keys
            s = _logits(q1, q2, k, tokens, k_step, shown, scale, DIM, FIRST, REST)
            higher = tl.maximum(top, tl.max(s, 1))
            p = tl.exp2(s - higher[:, None])
            shrink = tl.exp2(top - higher)
            total = total * shrink + tl.sum(p, 1)
            acc1 *= shrink[:, None]
            if REST > 0:
                acc2 *= shrink[:, None]
            acc1, acc2 = _gather(acc1, acc2, p, v, tokens, v_step, shown, DIM, FIRST, REST)
            top = higher
        acc1 /= total[:, None]
        if REST > 0:
            acc2 /= total[:, None]
        touched = inside

    for n in range(0, branches):
        share = tl.where(inside, tl.load(weight + row * weight_row + n * weight_step), 0.0)
        if MASKED:
            at = mask + n * mask_branch + row * mask_row + i * mask_step
            share *= tl.load(at, mask=inside, other=0.0).to(tl.float32)
        used = share != 0
        touched = touched | used
        if tl.max(used.to(tl.int32), 0) > 0:  # pyright: ignore[reportOperatorIssue]
            first = tl.load(starts + n)
            length = tl.load(starts + n + 1) - first
            branch_k = id_k + first * id_k_step
            branch_v = id_v + first * id_v_step
            if LONG:
                top = tl.full([BLOCK_Q], float("-inf"), tl.float32)
                total = tl.zeros([BLOCK_Q], tl.float32)
                for start in range(0, length, BLOCK_I):
                    tokens = start + tl.arange(0, BLOCK_I)
                    shown = tokens < length
                    s = _logits(q1, q2, branch_k, tokens, id_k_step, shown, scale, DIM, FIRST, REST)
                    higher = tl.maximum(top, tl.max(s, 1))
                    total = total * tl.exp2(top - higher) + tl.sum(tl.exp2(s - higher[:, None]), 1)
                    top = higher
                share /= total
                for start in range(0, length, BLOCK_I):
                    tokens = start + tl.arange(0, BLOCK_I)
                    shown = tokens < length
                    s = _logits(q1, q2, branch_k, tokens, id_k_step, shown, scale, DIM, FIRST, REST)
                    p = tl.exp2(s - top[:, None]) * share[:, None]
                    acc1, acc2 = _gather(acc1, acc2, p, branch_v, tokens, id_v_step, shown, DIM, FIRST, REST)
            else:
                tokens = tl.arange(0, BLOCK_I)
                shown = tokens < length
                s = _logits(q1, q2, branch_k, tokens, id_k_step, shown, scale, DIM, FIRST, REST)
                p = tl.exp2(s - tl.max(s, 1)[:, None])  # pyright: ignore[reportCallIssue, reportArgumentType]
                p *= (share / tl.sum(p, 1))[:, None]
                acc1, acc2 = _gather(acc1, acc2, p, branch_v, tokens, id_v_step, shown, DIM, FIRST, REST)

    # A query that no branch touched keeps its very bits.
    in1 = in1 & touched[:, None]
    out1 = out + i[:, None] * out_step + d1[None, :]
    if not TEXT:
        acc1 += tl.load(out1, mask=in1, other=0.0).to(tl.float32)
    tl.store(out1, acc1.to(out.dtype.element_ty), mask=in1)
    if REST > 0:
        in2 = in2 & touched[:, None]
        out2 = out + i[:, None] * out_step + d2[None, :]
        if not TEXT:
            acc2 += tl.load(out2, mask=in2, other=0.0).to(tl.float32)
        tl.store(out2, acc2.to(out.dtype.element_ty), mask=in2)


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
    """``reference.decoupled_attention``, fused; what it asks of its arguments is in ``dispatch.BACKENDS``."""
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    _launch(out, q, (k, v), id_k, id_v, id_lens, weight, heads, mask, scale)
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
    """``reference.add_identity_attention_``, fused; what it asks of its arguments is in ``dispatch.BACKENDS``."""
    _launch(out, q, None, id_k, id_v, id_lens, weight, heads, mask, scale)


def chunks(dim: int) -> tuple[int, int]:
    """A head dimension as two powers of two that hold it, 40 as 32 + 16 and 64 as 64 + 0: less padding than one."""
    first = max(16, 1 << dim.bit_length() - 1)
    rest = dim - first
    return first, triton.next_power_of_2(max(16, rest)) if rest > 0 else 0


def variant(dim: int, id_lens: Sequence[int], text: bool, masked: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """The kernel's compile-time arguments, in its order, and Triton's options."""
    tile = next(tile for most, tile in TILES if dim <= most)
    first, rest = chunks(dim)
    keys = rounded(id_lens)
    constants = {
        "TEXT": text,
        "MASKED": masked,
        "LONG": keys == MANY,
        "DIM": dim,
        "FIRST": first,
        "REST": rest,
        "BLOCK_Q": tile.block_q,
        "BLOCK_K": tile.block_k,
        "BLOCK_I": tile.block_k if keys == MANY else keys,
    }
    # Fused multiply-add is about to become a choice in Triton, with no for an answer.
    return constants, {"num_warps": tile.warps, "num_stages": tile.stages, "enable_fp_fusion": True}


_PLANS = Plans()


def _launch(
    out: Tensor,
    q: Tensor,
    text: tuple[Tensor, Tensor] | None,
    id_k: Tensor,
    id_v: Tensor,
    id_lens: Sequence[int],
    weight: Tensor,
    heads: int,
    mask: Tensor | None,
    scale: float | None,
) -> None:
    if q.numel() == 0:
        return
    # Without a text branch or a mask the kernel never looks at what is given in their place.
    tensors = (out, q, *(text or (q, q)), id_k, id_v, weight, weight if mask is None else mask)
    kind = (tuple(id_lens), heads, text is not None, mask is not None)
    plan = _PLANS.get(tensors, kind, lambda: _plan(tensors, *kind))
    factor = (q.shape[-1] // heads) ** -0.5 if scale is None else scale
    with torch.cuda.device_of(q):
        plan.launch(tensors, factor * LOG2_E)


def _plan(tensors: Sequence[Tensor], id_lens: tuple[int, ...], heads: int, text: bool, masked: bool) -> Plan:
    q, k, weight, mask = tensors[1], tensors[2], tensors[6], tensors[7]
    batch, queries, width = q.shape
    starts = torch.tensor([sum(id_lens[:n]) for n in range(len(id_lens) + 1)], dtype=torch.int32, device=q.device)
    constants, options = variant(width // heads, id_lens, text, masked)
    strides = [stride for tensor in tensors[:6] for stride in tensor.stride()[:2]]
    over_mask = [mask.stride(0), mask.stride(1) if mask.shape[1] > 1 else 0, mask.stride(2)] if masked else [0, 0, 0]
    sizes = [queries, k.shape[1], heads, len(id_lens)]
    # Neighbouring programs are the heads of the same queries, whose rows lie side by side in memory.
    grid = (batch * heads, triton.cdiv(queries, constants["BLOCK_Q"]), 1)
    return Plan(attention_kernel, grid, (starts, *strides, *weight.stride(), *over_mask, *sizes), constants, options)
