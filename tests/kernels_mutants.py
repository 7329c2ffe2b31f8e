"""Broken versions of ``kernels/triton_attention.py``: one piece of its text is replaced, and every one must be caught.

A piece that is no longer there, or is there more than once, is an error: the kernel has changed, and so must this list.
"""

MUTANTS = {
    "the text's sums are not rescaled": ("total = total * shrink + tl.sum(p, 1)", "total += tl.sum(p, 1)"),
    "the accumulator is not rescaled": ("            acc1 *= shrink[:, None]\n", ""),
    "the rest of the accumulator is not rescaled": ("acc2 *= shrink[:, None]", "acc2 *= 1.0"),
    "the text branch is not normalised": ("        acc1 /= total[:, None]\n", ""),
    "keys beyond the last one count with a logit of 0": (
        'return tl.where(shown[None, :], s * scale, float("-inf"))',
        "return s * scale",
    ),
    "the logits leave out the rest of the head": ("        s = tl.dot(q2, keys, s)\n", "        s += 0.0\n"),
    "the logits are not scaled": ("s * scale, float", "s, float"),
    "every branch reads the first one's keys": ("branch_k = id_k + first * id_k_step", "branch_k = id_k"),
    "every branch reads the first one's values": ("branch_v = id_v + first * id_v_step", "branch_v = id_v"),
    "every batch row takes the first one's weights": ("weight + row * weight_row + n", "weight + n"),
    "every branch takes the first one's weight": (" + n * weight_step", ""),
    "every branch takes the first one's mask": ("mask + n * mask_branch + row", "mask + row"),
    "every batch row takes the first one's mask": (" + row * mask_row", ""),
    "negative shares are skipped": ("used = share != 0", "used = share > 0"),
    "one query without a share makes its tile skip the branch": ("tl.max(used.to", "tl.min(used.to"),
    "a short branch is not normalised": ("p *= (share / tl.sum(p, 1))[:, None]", "p *= share[:, None]"),
    "a long branch is not normalised": ("                share /= total\n", ""),
    "a long branch takes each tile's own maximum": (
        "p = tl.exp2(s - top[:, None]) * share",
        "p = tl.exp2(s - tl.max(s, 1)[:, None]) * share",
    ),
    "a long branch forgets the sums of its earlier tiles": (
        "total = total * tl.exp2(top - higher) + tl.sum(tl.exp2(",
        "total = tl.sum(tl.exp2(",
    ),
    "the sum replaces the output": (
        "        acc1 += tl.load(out1, mask=in1, other=0.0).to(tl.float32)\n",
        "        acc1 += 0.0\n",
    ),
    "the last query is lost": ("inside = i < queries", "inside = i < queries - 1"),
    "heads begin where their first chunk does": (
        "out += row * out_row + head * DIM",
        "out += row * out_row + head * FIRST",
    ),
    "untouched queries are written": ("    in1 = in1 & touched[:, None]\n", ""),
}
"""What is wrong, the piece, and what stands in its place."""


def broken(source: str, name: str) -> str:
    """The kernel's ``source`` with that mistake."""
    piece, instead = MUTANTS[name]
    if source.count(piece) != 1:
        raise ValueError(f"{piece!r} is in the kernel {source.count(piece)} times, not once")
    return source.replace(piece, instead)
