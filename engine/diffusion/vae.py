"""The VAE socket: pictures to latents and back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ...face.errors import BadInput

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

Tensor = torch.Tensor


def _nothing() -> None:
    return


@dataclass(frozen=True, eq=False)
class VAE:
    """Latents are as wide as the network gives them: a family's scale is applied by the sampler, as in ComfyUI."""

    net: AutoencoderKL
    """Shared; never changed."""

    @property
    def channels(self) -> int:
        """Of a latent."""
        return self.net.config["latent_channels"]

    @property
    def scale(self) -> int:
        """Pixels of a latent's side."""
        return 2 ** (len(self.net.config["block_out_channels"]) - 1)

    def spacial_compression_encode(self) -> int:
        """``scale``, by the name that ComfyUI's VAE has for it."""
        return self.scale

    @torch.no_grad()
    def encode(self, pixels: Tensor, check: Callable[[], None] = _nothing) -> Tensor:
        """(B, H, W, 3) in [0, 1] to (B, C, H/8, W/8) float32 on the CPU: the mean, no noise is drawn.

        A side that is no multiple of 8 loses the surplus at both ends. ``check`` is called before every picture.
        """
        if pixels.ndim != 4 or not len(pixels) or pixels.shape[-1] < 3 or min(pixels.shape[1:3]) < self.scale:
            raise BadInput(
                f"a VAE takes images (B, H, W, 3) of at least {self.scale}×{self.scale} pixels, got "
                f"{tuple(pixels.shape)}"
            )
        for dim in (1, 2):
            size = pixels.shape[dim] // self.scale * self.scale
            pixels = pixels.narrow(dim, pixels.shape[dim] % self.scale // 2, size)
        out: list[Tensor] = []
        for picture in pixels[..., :3].movedim(-1, 1).split(1):
            check()
            answer: Any = self.net.encode(self._placed(picture * 2 - 1))
            out.append(answer.latent_dist.mode().float().cpu())
        return torch.cat(out)

    @torch.no_grad()
    def decode(self, samples: Tensor, check: Callable[[], None] = _nothing) -> Tensor:
        """(B, C, h, w) to (B, 8h, 8w, 3) float32 in [0, 1] on the CPU."""
        if samples.ndim != 4 or samples.shape[1] != self.channels:
            raise BadInput(
                f"this VAE takes latents (B, {self.channels}, h, w), got {tuple(samples.shape)}: they are of another "
                "kind of model"
            )
        out: list[Tensor] = []
        for latent in samples.split(1):
            check()
            placed: Any = self._placed(latent)
            answer: Any = self.net.decode(placed, return_dict=False)
            out.append(((answer[0].float().cpu() + 1) / 2).clamp(0, 1))
        return torch.cat(out).movedim(1, -1)

    def _placed(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.net.device, self.net.dtype)
