"""The lab's small model and ControlNet, for hosts whose own loaders know the published sizes only."""

from __future__ import annotations

from typing import Any

from ..face import lab
from .form import CATEGORY, choice
from .host import host


class LoadLabModel:
    CATEGORY = f"{CATEGORY}/lab"
    DESCRIPTION = (
        "Opens the lab's checkpoint: Stable Diffusion 1.5's layout in small, that draws portraits of 128 pixels in "
        "seconds on any computer. It comes with the pack: likeness models fetch lab. Everything behind it is an "
        "ordinary MODEL, CLIP and VAE."
    )
    RETURN_TYPES = ("MODEL", "CLIP", "VAE")
    RETURN_NAMES = ("model", "clip", "vae")
    OUTPUT_TOOLTIPS = ("The U-Net.", "The text encoder; it knows some fifty words.", "The autoencoder.")
    FUNCTION = "run"
    SEARCH_ALIASES = ["checkpoint", "tiny model", "small model", "test model", "cpu"]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "checkpoint": choice(
                    lab.choices("checkpoints", lab.CHECKPOINT, host()),
                    "Files in the checkpoints folder that tell their configuration in their metadata.",
                )
            }
        }

    def run(self, checkpoint: str) -> tuple[Any, Any, Any]:
        here = host()
        return here.lab_model(lab.path_of(checkpoint, "checkpoints", lab.CHECKPOINT, here))


class LoadLabControlNet:
    CATEGORY = f"{CATEGORY}/lab"
    DESCRIPTION = (
        "Opens the lab's ControlNet, IdentityNet in small: it sees a drawing of five points and reads an identity's "
        "tokens. For Identity ControlNet."
    )
    RETURN_TYPES = ("CONTROL_NET",)
    RETURN_NAMES = ("control_net",)
    OUTPUT_TOOLTIPS = ("The ControlNet.",)
    FUNCTION = "run"
    SEARCH_ALIASES = ["controlnet", "identitynet", "tiny model"]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "controlnet": choice(
                    lab.choices("controlnet", lab.CONTROLNET, host()),
                    "Files in the controlnet folder that tell their configuration in their metadata.",
                )
            }
        }

    def run(self, controlnet: str) -> tuple[Any]:
        here = host()
        return (here.lab_controlnet(lab.path_of(controlnet, "controlnet", lab.CONTROLNET, here)),)


NODES = [LoadLabModel, LoadLabControlNet]
