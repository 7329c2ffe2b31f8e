"""The two operations, as functions and as ``torch.library`` ops with fakes, so that ``torch.compile`` keeps them whole.

Inference only: no gradient is defined. The ops are defined once in a process. Where the pack is loaded under two names,
the second copy calls the first one's, whose dispatcher then decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from . import call as calls
from . import dispatch

_TAIL = (
    "Tensor q, {text}Tensor id_k, Tensor id_v, int[] id_lens, Tensor weight, int heads, "
    "Tensor? mask=None, float? scale=None"
)
_SCHEMAS = {
    "decoupled_attention": f"({_TAIL.format(text='Tensor k, Tensor v, ')}) -> Tensor",
    "add_identity_attention_": f"(Tensor(a!) out, {_TAIL.format(text='')}) -> ()",
}


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
    """Text attention plus one attention for each identity (IP-Adapter, Ye et al. 2023, eq. 5).

    ``softmax(q kT scale) v + sum over n of weight[b, n] mask[n, b, i] softmax(q id_k_nT scale) id_v_n``, for each head.

    Args:
        q: (B, NQ, H*D), floating-point. All tensors may be views of any strides.
        k, v: (B, LT, H*D), the text's.
        id_k, id_v: (B, sum of ``id_lens``, H*D), the identities' tokens one identity after the other.
        id_lens: how many tokens each of the N identities has, 1 or more each; may be empty.
        weight: (B, N) float32, read on its device and never by the host. Any sign; 0 for a row without the identity.
        heads: H, which divides the width.
        mask: (N, B or 1, NQ), floating-point, usually in [0, 1]: where each identity counts. None: everywhere.
        scale: of the logits; D**-0.5 unless given.

    Returns:
        (B, NQ, H*D), contiguous.

    Raises:
        BadArguments: what does not belong together, in a sentence.
        NoBackend: the backend that was forced cannot take the call.
    """
    return torch.ops.likeness.decoupled_attention(q, k, v, id_k, id_v, list(id_lens), weight, heads, mask, scale)


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
    """The identities' part of ``decoupled_attention``, added onto ``out`` (B, NQ, H*D) in place.

    For a text branch that is computed elsewhere: by the user's own attention, or together with an image. Where
    weight times mask is 0, ``out`` stays equal (the fused kernel does not touch it; plain torch makes 0 of a -0).
    Arguments and errors as there.
    """
    torch.ops.likeness.add_identity_attention_(out, q, id_k, id_v, list(id_lens), weight, heads, mask, scale)


def _fake_decoupled_attention(
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
    calls.check_identities(q, id_k, id_v, id_lens, weight, heads, mask)
    calls.check_text(q, k, v)
    return torch.empty_like(q, memory_format=torch.contiguous_format)


def _fake_add_identity_attention_(
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
    calls.check_identities(q, id_k, id_v, id_lens, weight, heads, mask)
    calls.check_out(out, q)


_FAKES = {
    "decoupled_attention": _fake_decoupled_attention,
    "add_identity_attention_": _fake_add_identity_attention_,
}


def _register() -> None:
    library = torch.library.Library("likeness", "FRAGMENT")
    register_fake: Any = getattr(torch.library, "register_fake", None)
    if register_fake is None:  # its name before torch 2.4
        register_fake = torch.library.impl_abstract  # pyright: ignore[reportDeprecated]
    for name, schema in _SCHEMAS.items():
        library.define(name + schema)
        # One body for every device; the dispatcher tells them apart.
        library.impl(name, partial(dispatch.run, name), "CompositeExplicitAutograd")
        register_fake(f"likeness::{name}", _FAKES[name], lib=library)
    # The ops end with their library. Beside them it outlives this module, which a reload may drop while others call.
    torch.ops.likeness.library = library  # pyright: ignore[reportAttributeAccessIssue]


if not hasattr(torch.ops.likeness, "decoupled_attention"):
    _register()
