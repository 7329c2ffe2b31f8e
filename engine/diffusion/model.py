"""What flows on the MODEL socket, and how a run gets a U-Net of its own out of it.

A ``Model`` is a value: its network is shared by everybody who loaded the same file and is never changed. What makes one
model differ from another, LoRAs and attention adapters, are records beside it. A run that has some works in a *view* of
the network: modules of its own that hold the shared tensors, in which changed weights and attention processors replace
theirs for as long as the run lasts. So nothing needs to be put back, and two runs at once cannot disturb each other.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from ...face.errors import BadInput
from .sampling import Sampling

if TYPE_CHECKING:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

Tensor = torch.Tensor
M = TypeVar("M", bound=torch.nn.Module)


@dataclass(frozen=True, eq=False)
class LowRank:
    """A change of one weight: ``scale * up @ down`` (Hu et al. 2021, arXiv 2106.09685)."""

    up: Tensor
    """(out, rank) or, for a convolution, (out, rank, 1, 1)."""
    down: Tensor
    """(rank, in) or (rank, in, kh, kw)."""
    scale: float = 1.0
    """Published files say ``alpha``; this is alpha / rank."""
    mid: Tensor | None = None
    """(rank, rank, kh, kw) between the two, in LoCon's form of a convolution."""

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in (self.up, self.down, self.mid) if t is not None)

    def matrix(self, weight: Tensor) -> Tensor:
        """The change in float32, of the weight's shape and on its device. BadInput if it does not fit."""
        up, down = (t.to(weight.device, torch.float32) for t in (self.up, self.down))
        if self.mid is not None:
            mid = self.mid.to(weight.device, torch.float32)
            down = torch.einsum("rshw,si->rihw", mid, down.flatten(1))
        change = up.flatten(1) @ down.flatten(1)
        if change.numel() != weight.numel() or len(up) != len(weight):
            raise BadInput(
                f"a low-rank change of {len(up)}×{change.shape[1]} does not fit a weight of {tuple(weight.shape)}: it "
                "was trained on another base model"
            )
        return change.reshape(weight.shape) * self.scale


@dataclass(frozen=True, eq=False)
class WeightPatch:
    """Low-rank changes of many weights, told by module path (diffusers names): one LoRA at one strength."""

    deltas: Mapping[str, LowRank]
    """Path of a Linear or Conv2d, e.g. ``mid_block.attentions.0.proj_in``, to the change of its ``weight``."""
    strength: float = 1.0
    """Any number; 0 changes nothing, bit for bit."""
    name: str = ""
    """For messages."""


@dataclass(frozen=True, eq=False)
class Model:
    """A diffusion model as nodes pass it on. Make others of it with ``dataclasses.replace`` and ``with_lora``."""

    unet: UNet2DConditionModel
    """Shared; never changed. For a run, use ``running``."""
    family: str
    """``sd15`` or ``sdxl``."""
    sampling: Sampling
    dtype: torch.dtype
    """In which the U-Net computes; latents are float32 around it."""
    lora: tuple[WeightPatch, ...] = ()
    attention: tuple[Any, ...] = ()
    """Attention adapters, in the order in which they were applied; only ``engine.diffusers_host`` looks into them."""
    hooks: tuple[Any, ...] = ()
    """``face.cure.run.Hook``, in the order in which they were put on."""

    @property
    def device(self) -> torch.device:
        return next(self.unet.parameters()).device

    def with_lora(self, patch: WeightPatch, strength: float | None = None) -> Model:
        """This model with one more patch, at another strength than its own if one is given.

        Raises BadInput if the patch names a module that the U-Net does not have.
        """
        check(self.unet, patch)
        patch = patch if strength is None else replace(patch, strength=strength)
        return replace(self, lora=(*self.lora, patch))


@dataclass(frozen=True)
class Chunk:
    """One conditioning entry's share of a batch that goes through the U-Net at once."""

    entry: dict[str, Any]
    """The entry's dictionary, with all keys that are unknown here."""
    index: int
    """0 positive, 1 negative, further guides above."""
    size: int
    """Latents of the batch that belong to it."""
    area: tuple[float, float, float, float] | None = None
    """Where it acts: top, left, bottom and right as fractions of the picture; None: everywhere."""
    number: int = 0
    """Of its guide's entries that act now, which: from 0."""
    evaluation: int = 0
    """Ordinal of the sampler's model evaluation, from 0: the same for all calls that one of them takes."""


@contextmanager
def running(model: Model, own: bool = False) -> Generator[UNet2DConditionModel]:
    """The U-Net for one run: with the model's LoRAs in its weights, and free to be given attention processors if
    something acts in it (or with ``own``)."""
    if not (own or model.lora or model.attention or model.hooks):
        yield model.unet
    else:
        yield patched(model.unet, model.lora)


def patched(module: M, patches: Sequence[WeightPatch]) -> M:
    """A view of ``module`` whose weights are changed by ``patches``, in float32; the module itself stays as it is."""
    out = view(module)
    changes: dict[str, list[tuple[LowRank, float]]] = {}
    for patch in patches:
        check(module, patch)
        if patch.strength != 0:
            for path, delta in patch.deltas.items():
                changes.setdefault(path, []).append((delta, patch.strength))
    with torch.inference_mode(False), torch.no_grad():
        for path, found in changes.items():
            layer: Any = out.get_submodule(path)
            weight = layer.weight.to(torch.float32, copy=True)
            for delta, strength in found:
                weight += delta.matrix(weight) * strength
            layer.weight = torch.nn.Parameter(weight.to(layer.weight.dtype), requires_grad=False)
    return out


def check(module: torch.nn.Module, patch: WeightPatch) -> None:
    """BadInput if the patch names something that has no weight in ``module``, or one of another shape."""
    for path, delta in patch.deltas.items():
        try:
            weight = getattr(module.get_submodule(path), "weight", None)
        except AttributeError:
            weight = None
        who = f"the weight patch {patch.name!r}" if patch.name else "a weight patch"
        if not isinstance(weight, Tensor):
            raise BadInput(
                f"{who} changes {path}, which this network does not have: it was made for another base model"
            )
        if delta.up.shape[0] != weight.shape[0] or delta.down.shape[1] != weight.shape[1]:
            raise BadInput(
                f"{who} changes {path} by a {delta.up.shape[0]}×{delta.down.shape[1]} matrix, which is "
                f"{weight.shape[0]}×{weight.shape[1]} in this network: it was made for another base model"
            )


def view(module: M) -> M:
    """A module tree of its own that shares every tensor with ``module``.

    What is set on it, weights, processors, hooks, is not set on ``module``.
    """
    made: dict[int, torch.nn.Module] = {}

    def copy(source: torch.nn.Module) -> torch.nn.Module:
        if id(source) not in made:
            twin = made[id(source)] = object.__new__(type(source))
            # Dictionaries hold parameters, buffers, children and hooks; everything else is a setting and may be shared.
            state = {k: v.copy() if type(v) in (dict, OrderedDict) else v for k, v in vars(source).items()}
            state["_modules"] = {k: None if v is None else copy(v) for k, v in source._modules.items()}
            vars(twin).update(state)
        return made[id(source)]

    return copy(module)  # pyright: ignore[reportReturnType]
