"""The CLIP_VISION socket: a picture as CLIP sees it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from ...face.errors import BadInput
from .clip import VisionTower

Tensor = torch.Tensor

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Of the pixels that CLIP was trained on (openai/CLIP clip.py)."""


@dataclass(frozen=True, eq=False)
class VisionOutput:
    """What ComfyUI calls CLIP_VISION_OUTPUT; its parts are attributes and items. All float32 on the CPU."""

    image_embeds: Tensor
    """(B, P): the projected embedding."""
    last_hidden_state: Tensor
    """(B, 1 + patches, D)."""
    penultimate_hidden_states: Tensor
    """(B, 1 + patches, D): the state before the last layer."""
    mm_projected: None = None

    def __getitem__(self, name: str) -> Any:
        return getattr(self, name)


@dataclass(frozen=True, eq=False)
class CLIPVision:
    """An image encoder."""

    net: VisionTower
    """Shared; never changed."""

    @torch.no_grad()
    def encode_image(self, image: Tensor, crop: bool = True, check: Callable[[], None] | None = None) -> VisionOutput:
        """``image`` (B, H, W, 3) in [0, 1]; ``crop`` cuts out the middle square, else the picture is squeezed.

        ``check`` is called before every picture.
        """
        if image.ndim != 4 or image.shape[-1] < 3:
            raise BadInput(f"CLIP looks at images (B, H, W, 3), got {tuple(image.shape)}")
        device = next(self.net.parameters()).device
        found: list[tuple[Tensor, ...]] = []
        for picture in image.split(1):
            if check is not None:
                check()
            last, between, embedded = self.net(prepared(picture, self.net.side, crop).to(device))
            found.append((embedded.cpu(), last.cpu(), between.cpu()))
        embedded, last, between = (torch.cat(parts) for parts in zip(*found, strict=True))
        return VisionOutput(embedded, last, between)


def prepared(image: Tensor, side: int, crop: bool = True) -> Tensor:
    """(B, H, W, 3) in [0, 1] to (B, 3, side, side), normalised and rounded to 8 bits as CLIP's own preprocessing is."""
    pixels = image[..., :3].movedim(-1, 1).float()
    height, width = pixels.shape[-2:]
    if (height, width) != (side, side):
        scale = side / min(height, width)
        size = (round(scale * height), round(scale * width)) if crop else (side, side)
        pixels = F.interpolate(pixels, size=size, mode="bicubic", antialias=True)
        y, x = (size[0] - side) // 2, (size[1] - side) // 2
        pixels = pixels[..., y : y + side, x : x + side]
    pixels = (pixels * 255).clamp(0, 255).round() / 255
    mean, std = (torch.tensor(numbers).view(3, 1, 1) for numbers in (MEAN, STD))
    return (pixels - mean) / std
