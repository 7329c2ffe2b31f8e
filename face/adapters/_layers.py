"""The attention part of an adapter file: ``ip_adapter.{i}.…``, where i counts all attention layers, diffusers' way.

Even numbers are self-attention, odd ones cross-attention: layer 2 n + 1 is site n of ``attention.sites``.
"""

from __future__ import annotations

import re

from torch import Tensor

from ..errors import BadModelFile
from . import LowRank
from ._checkpoint import Checkpoint

KEYS = (r"\d+\.to_[kv]_ip\.weight",)
LOW_RANK = (r"\d+\.to_(?:q|k|v|out)_lora\.(?:down|up)\.weight",)


def plain(file: Checkpoint) -> bool:
    """Whether the file is a projector and its attention layers, and nothing else."""
    return set(file.groups) == {"image_proj", "ip_adapter"} and "ip_adapter.1.to_k_ip.weight" in file


def keys_and_values(file: Checkpoint) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """The projections of every site. Raises BadModelFile if a site is missing or two do not fit together."""
    group = file.group("ip_adapter")
    found: dict[str, dict[int, Tensor]] = {"k": {}, "v": {}}
    for name, tensor in group.items():
        if match := re.fullmatch(r"(\d+)\.to_([kv])_ip\.weight", name):
            found[match[2]][int(match[1])] = tensor
    expected = [2 * n + 1 for n in range(len(found["k"]))]
    if not expected or sorted(found["k"]) != expected or sorted(found["v"]) != expected:
        have = sorted(found["k"])
        raise BadModelFile(
            f"{file.path.name} should hold keys and values for every second attention layer (1, 3, 5, …), but has "
            f"{len(found['k'])} keys and {len(found['v'])} values, of the layers {have[:4]} to {have[-1:]}. The file "
            "is cut off or was converted wrongly; use the published one."
        )
    keys = tuple(found["k"][n] for n in expected)
    values = tuple(found["v"][n] for n in expected)
    if any(k.shape != v.shape or k.ndim != 2 for k, v in zip(keys, values, strict=True)):
        raise BadModelFile(f"{file.path.name}: keys and values of one layer have different shapes")
    if len({key.shape[1] for key in keys}) != 1:
        raise BadModelFile(f"{file.path.name}: its layers take tokens of different widths")
    return keys, values


def low_rank(file: Checkpoint) -> dict[tuple[int, str], LowRank]:
    """The changes of the base model's own attention weights; every layer has all four, or the file has none."""
    group = file.group("ip_adapter")
    changes: dict[tuple[int, str], LowRank] = {}
    for name, up in group.items():
        if match := re.fullmatch(r"(\d+)\.to_(q|k|v|out)_lora\.up\.weight", name):
            down = group.get(name.replace(".up.", ".down."))
            if down is None or up.ndim != 2 or down.ndim != 2 or up.shape[1] != down.shape[0]:
                raise BadModelFile(f"{file.path.name}: {name} has no matching down; the file is cut off")
            changes[int(match[1]), match[2]] = LowRank(up, down)
    layers = {layer for layer, _ in changes}
    if changes and (len(changes) != 4 * len(layers) or layers != set(range(len(layers)))):
        raise BadModelFile(
            f"{file.path.name} changes {len(changes)} weights of {len(layers)} attention layers; expected q, k, v and "
            "out of every one. The file is cut off."
        )
    return changes
