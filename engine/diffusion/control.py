"""The CONTROL_NET socket, and the residuals that ControlNets (Zhang et al. 2023, arXiv 2302.05543) add to a U-Net."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from ...face.errors import BadInput
from .sampling import Sampling
from .tensors import repeat_to, resize

if TYPE_CHECKING:
    from diffusers.models.controlnets.controlnet import ControlNetModel

Tensor = torch.Tensor
Residuals = tuple[list[Tensor], Tensor]
"""For every skip connection of the U-Net, and for its middle."""


class ControlNet:
    """A network with its picture, strength and window, perhaps behind another one. Its methods are those of ComfyUI's.

    Nodes ``copy()`` one, set the copy up, and put it into conditioning; the copies share the network.
    """

    def __init__(self, net: ControlNetModel, family: str) -> None:
        self.net = net
        """Shared; never changed."""
        self.family = family
        self.cond_hint_original: Tensor | None = None
        """(B, 3, H, W) in [0, 1]."""
        self.strength = 1.0
        self.timestep_percent_range = (0.0, 1.0)
        self.previous_controlnet: ControlNet | None = None

    def copy(self) -> ControlNet:
        """Without what stands behind it."""
        other = copy.copy(self)
        other.previous_controlnet = None
        return other

    def set_cond_hint(
        self,
        cond_hint: Tensor,
        strength: float = 1.0,
        timestep_percent_range: tuple[float, float] = (0.0, 1.0),
        vae: Any = None,
        extra_concat: Sequence[Tensor] = (),
    ) -> ControlNet:
        """``vae`` and ``extra_concat`` are for kinds of ControlNet that there are not here, and not looked at."""
        if cond_hint.ndim != 4 or cond_hint.shape[1] < 3:
            raise BadInput(f"a ControlNet takes images (B, H, W, 3), got {tuple(cond_hint.movedim(1, -1).shape)}")
        self.cond_hint_original = cond_hint[:, : self.net.config["conditioning_channels"]]
        self.strength, self.timestep_percent_range = strength, timestep_percent_range
        return self

    def set_previous_controlnet(self, controlnet: ControlNet | None) -> ControlNet:
        self.previous_controlnet = controlnet
        return self

    def chain(self) -> list[ControlNet]:
        """This one and those behind it, the furthest first."""
        return [*(self.previous_controlnet.chain() if self.previous_controlnet else []), self]

    def active(self, sigma: float, sampling: Sampling) -> bool:
        start, end = map(sampling.percent_to_sigma, self.timestep_percent_range)
        return end <= sigma <= start


def fits(control: ControlNet, unet: Any, family: str) -> None:
    """BadInput if a ControlNet of the chain was made for another base model, or has no picture."""
    for link in control.chain():
        widths, theirs = (list(net.config["block_out_channels"]) for net in (unet, link.net))
        context = unet.config["cross_attention_dim"], link.net.config["cross_attention_dim"]
        latents = unet.config["in_channels"], link.net.config["in_channels"]
        if latents[0] != latents[1]:
            raise BadInput(
                f"this ControlNet sees latents of {latents[1]} channels, the model's have {latents[0]}: load a "
                "ControlNet made for this model"
            )
        if (link.family, theirs, context[1]) != (family, widths, context[0]):
            raise BadInput(
                f"this ControlNet is for {link.family} ({theirs} channels, text {context[1]} wide), the model is "
                f"{family} ({widths} channels, text {context[0]} wide): load a ControlNet made for {family}"
            )
        if link.cond_hint_original is None:
            raise BadInput("a ControlNet has no picture: wire it through Apply ControlNet")


@torch.no_grad()
def residuals(
    control: ControlNet,
    x: Tensor,
    timestep: Tensor,
    sigma: float,
    text: Tensor,
    added: dict[str, Tensor] | None,
    chunks: int,
    sampling: Sampling,
) -> Residuals | None:
    """The sum of a chain's residuals for one call of the U-Net; None outside of all windows.

    ``x`` (B, C, h, w) as the network sees it, made of ``chunks`` equal parts; ``text`` (B, T, D).
    """
    total: Residuals | None = None
    for link in control.chain():
        if not link.active(sigma, sampling):
            continue
        hint = _hint(link, x, chunks)
        down, middle = link.net(
            x,
            timestep,
            encoder_hidden_states=text,
            controlnet_cond=hint,
            conditioning_scale=link.strength,
            added_cond_kwargs=added,
            return_dict=False,
        )
        if total is None:
            total = list(down), middle
        else:
            total = [a + b for a, b in zip(total[0], down, strict=True)], total[1] + middle
    return total


def _hint(control: ControlNet, x: Tensor, chunks: int) -> Tensor:
    """The picture at eight times the latent's size, one for each latent; a batch of pictures goes with each chunk."""
    picture: Any = control.cond_hint_original
    picture = resize(picture, x.shape[-2] * 8, x.shape[-1] * 8, "nearest-exact", centre=True).to(x)
    if len(picture) > 1:
        picture = repeat_to(picture, len(x) // chunks).repeat(chunks, 1, 1, 1)
    return picture.expand(len(x), -1, -1, -1)
