"""A rough picture of a latent while it is being made: a linear map from its channels to colours."""

from __future__ import annotations

from typing import Any

import torch

Tensor = torch.Tensor

_FACTORS: dict[str, tuple[list[list[float]], list[float]]] = {
    # "Decoding latents to RGB without upscaling", huggingface.co discussion 23204 (keturn, 2022); of [-1, 1].
    "sd15": (
        [[0.298, 0.207, 0.208], [0.187, 0.286, 0.173], [-0.158, 0.189, 0.264], [-0.184, -0.271, -0.473]],
        [0.0, 0.0, 0.0],
    ),
    # "Explaining the SDXL latent space" (Vass 2024), of 0 to 255, here of [-1, 1].
    "sdxl": (
        [[0.471, 0.471, 0.471], [-0.471, -0.039, 0.078], [0.196, 0.118, -0.039], [-0.549, -0.392, -0.275]],
        [0.176, 0.098, 0.020],
    ),
}


def preview(denoised: Tensor, family: str) -> Any:
    """The first latent of (B, C, h, w), as the model sees it, as a PIL picture of h × w pixels.

    Of other than the published four channels each third is taken for a colour, as where pixels are folded into them.
    """
    from PIL import Image

    factors, bias = (torch.tensor(numbers) for numbers in _FACTORS[family])
    latent = denoised[0].float().cpu()
    if len(latent) == len(factors):
        colours = latent.movedim(0, -1) @ factors + bias
    else:
        colours = torch.stack([third.mean(0) for third in latent.tensor_split(3)], -1).nan_to_num()
    pixels = ((colours + 1) / 2).nan_to_num().clamp(0, 1).mul(255).to(torch.uint8)
    return Image.fromarray(pixels.numpy())
