"""Small operations on tensors that several files need, with ComfyUI's conventions."""

from __future__ import annotations

import torch
import torch.nn.functional as F

Tensor = torch.Tensor


def repeat_to(tensor: Tensor, size: int, dim: int = 0) -> Tensor:
    """Repeated along ``dim`` until there are ``size``, or cut to that."""
    if tensor.shape[dim] < size:
        repeats = [1] * tensor.ndim
        repeats[dim] = -(-size // tensor.shape[dim])
        tensor = tensor.repeat(repeats)
    return tensor.narrow(dim, 0, size)


def resize(samples: Tensor, height: int, width: int, mode: str, centre: bool = False) -> Tensor:
    """(B, C, H, W) scaled to ``height`` × ``width``; with ``centre`` first cropped to their aspect ratio."""
    if centre:
        old_height, old_width = samples.shape[-2:]
        old, new = old_width / old_height, width / height
        x = round((old_width - old_width * (new / old)) / 2) if old > new else 0
        y = round((old_height - old_height * (old / new)) / 2) if old < new else 0
        samples = samples[..., y : old_height - y, x : old_width - x]
    return F.interpolate(samples, size=(height, width), mode=mode)
