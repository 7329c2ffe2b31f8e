"""The golden data: numbers computed with the authors' own code, in ``tests/golden`` and where else they may lie.

``LIKENESS_GOLDEN`` names another directory of the same form (other sizes, other seeds) and replaces both.
"""

import json
import os
import re
from functools import lru_cache
from pathlib import Path

import torch
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parent.parent
PLACES = (
    [Path(os.environ["LIKENESS_GOLDEN"])]
    if os.environ.get("LIKENESS_GOLDEN")
    else [ROOT / "tests" / "golden", ROOT.parent / "shared" / "golden"]
)
if os.environ.get("LIKENESS_GOLDEN") and not list(PLACES[0].glob("*/meta.json")):
    raise FileNotFoundError(
        f"LIKENESS_GOLDEN names {PLACES[0]}, where no golden data lies: every test would be skipped"
    )


class Fixture:
    """One folder: ``meta``, ``inputs`` and ``outputs`` as float32 (pictures and masks as they are)."""

    def __init__(self, folder):
        self.folder = folder
        self.meta = json.loads((folder / "meta.json").read_text())
        self.config = self.meta.get("config", {})
        self.inputs = load_file(folder / "inputs.safetensors")
        self.outputs = load_file(folder / "outputs.safetensors")
        self.checkpoint = folder / self.meta.get("checkpoint_file", "checkpoint.bin")
        self.tolerance = float(re.search(r"max-abs ([\d.e-]+)", self.meta["tolerance"])[1])

    def close(self, ours, name):
        """Assert that ``ours`` is the output called ``name``, within the fixture's own tolerance."""
        theirs = self.outputs[name]
        assert ours.shape == theirs.shape, f"{name}: {tuple(ours.shape)} where {tuple(theirs.shape)} was expected"
        worst = float((ours.float() - theirs.float()).abs().max())
        assert worst <= self.tolerance, f"{name}: differs by {worst:.2e}, tolerance {self.tolerance:.0e}"

    def numbered(self, stem, of=None):
        """``stem_0``, ``stem_1`` … of the inputs (or of ``of``)."""
        of = self.inputs if of is None else of
        count = sum(1 for name in of if re.fullmatch(rf"{stem}_\d+", name))
        return [of[f"{stem}_{n}"] for n in range(count)]


@lru_cache
def fixture(name):
    """The fixture called ``name``; the test is skipped where no place holds it."""
    for place in PLACES:
        if (place / name / "meta.json").is_file():
            return Fixture(place / name)
    import pytest

    pytest.skip(f"the golden data {name} is in none of: {', '.join(map(str, PLACES))}")


@lru_cache
def host_weights(base):
    """The tensors of the U-Net of a base (``sd15``, ``sdxl``), diffusers names, float32."""
    folder = fixture(f"unet_{base}").folder
    return {name: tensor.to(torch.float32) for name, tensor in load_file(folder / "unet.safetensors").items()}


@lru_cache
def unet(base):
    """The tiny U-Net of a base as diffusers' class. Shared: leave no hooks on it."""
    import diffusers

    config = {key: value for key, value in fixture(f"unet_{base}").config.items() if key != "base"}
    net = diffusers.UNet2DConditionModel(**config)
    net.load_state_dict(host_weights(base))
    return net.eval()


@lru_cache
def controlnet(name):
    """The tiny ControlNet of a fixture as diffusers' class. Shared: leave no hooks on it."""
    import diffusers

    folder = fixture(name).folder
    net = diffusers.ControlNetModel(**json.loads((folder / "controlnet_config.json").read_text()))
    tensors = load_file(folder / "controlnet.safetensors")
    net.load_state_dict({key: tensor.to(torch.float32) for key, tensor in tensors.items()})
    return net.eval()
