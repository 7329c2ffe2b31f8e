"""What a run without the identity leaves for the run with it: keys and values of its positive rows.

An entry's key is the ordinal of the sampler's model evaluation (not the sigma: Heun visits one twice), the number of
the positive conditioning among those that act there, and the layer; within it, the rows of the latent. So it does not
matter whether the host calls the network once or several times an evaluation, and with what beside it.
"""

from __future__ import annotations

import hashlib
import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..attention import WHOLE, Area
from ..errors import BadInput
from .attention import shares
from .layers import SelfLayers

FULL, HALF, NONE, ANSWERS = "keys and values", "keys and values in 8 bit", "latents only", "answers only"
KEEPS = (FULL, HALF, NONE, ANSWERS)
"""What is kept: keys and values as the model computes them; in float8; nothing but the latents, from which the cured
run computes them again; or only what the model answered, which is what noise blending needs."""

FLOAT8 = torch.float8_e4m3fn
FLOAT8_MAX = 448.0

_ALIGNED = 512
"""Bytes, as torch's own memory."""

ADAPTIVE = frozenset({"dpm_adaptive"})
"""Samplers that choose their steps by what they see: two runs of theirs do not visit the same noise levels."""

_TWICE = frozenset(
    {"heun", "dpm_2", "dpm_2_ancestral", "dpmpp_2s_ancestral", "dpmpp_2s_ancestral_cfg_pp", "dpmpp_sde",
     "dpmpp_sde_gpu", "exp_heun_2_x0", "exp_heun_2_x0_sde", "sa_solver_pece", "seeds_2"}
)  # fmt: skip
_THRICE = frozenset({"heunpp2", "seeds_3"})


def evaluations(sampler: str, steps: int) -> int:
    """How often a sampler asks the model in so many steps; the last one, to no noise at all, takes one evaluation."""
    name = sampler.removeprefix("sample_")
    if name in _THRICE:
        return max(3 * steps - (3 if name == "heunpp2" else 2), 1)
    return 2 * steps - 1 if name in _TWICE else steps


def digest(tensor: Tensor) -> str:
    """Of the numbers, whatever device they are on."""
    data = tensor.detach().to("cpu", torch.float32).contiguous()
    return hashlib.sha256(data.numpy().tobytes()).hexdigest()


def refuse_adaptive(sampler: str) -> None:
    """Raise BadInput for a sampler whose two runs cannot be laid beside each other."""
    if sampler.removeprefix("sample_") in ADAPTIVE:
        raise BadInput(
            f"the sampler {sampler} chooses its own steps, so that a run with the identity does not visit the "
            "noise levels of the run without. Take one with fixed steps: euler, dpmpp_2m, heun, …"
        )


@dataclass(frozen=True, eq=False)
class Plan:
    """What a sampling is. A tape belongs to the runs that have the same."""

    seed: int | None
    shape: tuple[int, ...]
    """Of the latent (B, C, h, w)."""
    sampler: str
    sigmas: tuple[float, ...]
    """Descending; one more than there are steps."""
    noise: str
    """Digest of the noise that the run starts with."""
    start: str
    """Digest of the latent that the noise is put on."""
    model: Any
    """A weak reference to the base network, which adapters and LoRAs share with it."""
    inpainted: str = ""
    """Digest of the mask outside of which the latent is kept; empty without one."""

    @property
    def steps(self) -> int:
        return len(self.sigmas) - 1

    def refuse_adaptive(self) -> None:
        """``refuse_adaptive`` of this sampling."""
        refuse_adaptive(self.sampler)

    def require(self, other: Plan) -> None:
        """Raise BadInput, with what differs, unless a tape made under this plan serves a run under ``other``."""
        differences: list[str] = []
        if self.model() is None or self.model() is not other.model():
            differences.append("another checkpoint (load it once and wire it to both)")
        if self.shape != other.shape:
            differences.append(f"another size: its latent is {_size(self.shape)}, this one {_size(other.shape)}")
        if self.sampler != other.sampler:
            differences.append(f"another sampler: {self.sampler}, this one uses {other.sampler}")
        if self.steps != other.steps:
            differences.append(f"another number of steps: {self.steps}, this one has {other.steps}")
        elif self.sigmas != other.sigmas:
            differences.append("another scheduler or denoise: the noise levels differ")
        if self.seed != other.seed:
            differences.append(f"another seed: {self.seed}, this one has {other.seed}")
        elif self.shape == other.shape and self.noise != other.noise:
            differences.append("other noise")
        if self.shape == other.shape and self.start != other.start:
            differences.append("another picture to start from")
        if self.shape == other.shape and self.inpainted != other.inpainted:
            differences.append(
                "another inpainting mask"
                if self.inpainted and other.inpainted
                else "an inpainting mask, and this one has none"
                if self.inpainted
                else "no inpainting mask, and this one has one"
            )
        if differences:
            raise BadInput(
                f"the tape does not belong to this run; it was made with {'; with '.join(differences)}. Give "
                "Foundation Pass and the sampler the same model, seed, steps, sampler, scheduler, denoise and latent."
            )


def _size(shape: Sequence[int]) -> str:
    return f"{shape[0]} of {shape[-1] * 8}×{shape[-2] * 8}"


@dataclass(frozen=True)
class View:
    """Whose keys a conditioning reads at a layer, and what they are of."""

    ordinal: int
    """The foundation's conditioning."""
    grid: tuple[int, int]
    """(height, width) in tokens, before a mask known beforehand leaves some out."""
    area: Area
    """The part of the picture that it saw."""


@dataclass(frozen=True, eq=False)
class _Block:
    """Keys and values of some rows at one layer."""

    rows: tuple[int, ...]
    data: Tensor
    """(2, rows, M, C)."""
    scale: Tensor | None
    """(2, 1, 1, 1): what float8 was divided by."""


@dataclass(frozen=True, eq=False)
class Evaluation:
    """One question to the model, and its answers."""

    sigma: float
    latent: Tensor
    """(B, C, h, w) float32 on the CPU: what it was asked about, at the sampler's scale."""
    positive: Tensor | None = None
    """What the positive conditioning answered: the latent without noise; None where nobody noted it."""
    negative: Tensor | None = None


@dataclass(eq=False)
class Slabs:
    """Main memory that is taken in large pieces: torch rounds every pinned piece up to a power of two, which would
    make a tape half as large again as was said."""

    size: int = 2**26
    """Bytes of a piece, a power of two."""
    pinned: bool = True
    _free: Tensor | None = field(default=None, repr=False)
    """(bytes,) uint8: what is left of the last piece."""

    def take(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Memory for a tensor; aligned, and nobody else's."""
        wanted = math.prod(shape) * dtype.itemsize
        if wanted > self.size:
            return self._new(wanted).view(dtype).view(*shape)
        if self._free is None or len(self._free) < wanted:
            self._free = self._new(self.size)
        found, self._free = self._free[:wanted], self._free[-(-wanted // _ALIGNED) * _ALIGNED :]
        return found.view(dtype).view(*shape)

    def _new(self, count: int) -> Tensor:
        try:
            return torch.empty(count, dtype=torch.uint8, pin_memory=self.pinned)
        except RuntimeError:
            # A system may let less memory be pinned than there is; other memory is only slower.
            self.pinned = False
            return torch.empty(count, dtype=torch.uint8)


@dataclass(eq=False)
class Tape:
    """One run's record. Written once by ``face.cure.run``, then only read."""

    plan: Plan
    layers: tuple[int, ...]
    """Which self-attention layers, in call order."""
    count: int
    """How many the model has."""
    keep: str = FULL
    mask: Tensor | None = None
    """(P, H, W): only tokens where it is above 0 are kept; None: all."""
    evaluations: list[Evaluation] = field(default_factory=list)
    maps: Tensor | None = None
    """(B, h, w, T) float32: how strongly each place looked at each token of the first positive prompt, averaged over
    heads, layers and evaluations; None if not recorded."""
    resident: bool = False
    """Keys and values stay where the model computes: they are read at once, and given up."""
    source: Any = None
    """``latents only``: what the host needs to compute the rest again."""
    _blocks: dict[tuple[int, int, int], list[_Block]] = field(default_factory=dict, repr=False)
    _views: dict[tuple[int, int], dict[int, View]] = field(default_factory=dict, repr=False)
    """Per evaluation and layer, by conditioning."""
    _heard: tuple[Tensor, Tensor] | None = field(default=None, repr=False)
    _slabs: Slabs = field(default_factory=Slabs, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def __copy__(self) -> Tape:
        return self

    def __deepcopy__(self, memo: Any) -> Tape:
        # Hosts copy a model's options with all that is in them; gigabytes must not be among it.
        return self

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values held."""
        return sum(block.data.nbytes for blocks in self._blocks.values() for block in blocks)

    def clear(self) -> None:
        """Give everything back: the run it was made for did not end."""
        with self._lock:
            self._blocks.clear()
            self._views.clear()
            self.evaluations.clear()
            self.maps, self._heard, self.source, self._slabs = None, None, None, Slabs()

    def kept(self, grid: tuple[int, int], rows: Sequence[int], area: Area = WHOLE) -> Tensor | None:
        """(rows, M) int64: the tokens of a layer of that size, over that part of the picture, that are kept; None for
        all of them."""
        if self.mask is None:
            return None
        chosen = (shares(self.mask, *grid, area) > 0).to(torch.int8)
        # Rows with fewer are padded with tokens outside.
        most = max(int(chosen.sum(1).max()), 1)
        return torch.argsort(chosen, dim=1, descending=True, stable=True)[[row % len(chosen) for row in rows], :most]

    def write(self, evaluation: int, view: View, layer: int, rows: tuple[int, ...], key: Tensor, value: Tensor) -> None:
        """Keep keys and values (rows, M, C). What is there already stays: a host may ask a layer twice, the second
        time for another purpose (guidance by a perturbed answer)."""
        with self._lock:
            self._views.setdefault((evaluation, layer), {}).setdefault(view.ordinal, view)
            known = self._blocks.setdefault((evaluation, view.ordinal, layer), [])
            if any(block.rows == rows for block in known):
                return
        both = torch.stack([key, value])
        scale: Tensor | None = None
        if self.keep == HALF:
            # In float32: half precision has no such small numbers.
            scale = both.abs().amax((1, 2, 3), keepdim=True).float().clamp_min(1e-12) / FLOAT8_MAX
            both = (both.float() / scale).to(FLOAT8)
        block = _Block(rows, self._kept(both), None if scale is None else scale.cpu())
        with self._lock:
            known.append(block)

    def _kept(self, both: Tensor) -> Tensor:
        """In main memory; from a GPU without waiting for it. What is in main memory is kept as it is."""
        if self.resident or both.device.type != "cuda":
            return both if self.resident else both.to("cpu")
        with self._lock:
            room = self._slabs.take(both.shape, both.dtype)
        return room.copy_(both, non_blocking=True)

    def view(self, evaluation: int, ordinal: int, layer: int, area: Area) -> View | None:
        """What the person's conditioning number ``ordinal`` reads, which sees ``area``; None if there is nothing.

        The two prompts may have other numbers of parts. Best is one of the same area, else one that covers more of it;
        among equals the one of the same number, else the first.
        """
        known = self._views.get((evaluation, layer), {})

        def fits(view: View) -> tuple[bool, float, bool, int]:
            return view.area == area, _common(view.area, area), view.ordinal == ordinal, -view.ordinal

        return max(known.values(), key=fits, default=None)

    def read(
        self, evaluation: int, ordinal: int, layer: int, rows: tuple[int, ...], like: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Keys and values (rows, M, C) on the device and in the dtype of ``like``. Raises BadInput if not there."""
        blocks = self._blocks.get((evaluation, ordinal, layer))
        same = next((block for block in blocks or () if block.rows == rows), None)
        if same is not None:
            both = _scaled(_from_host(same.data, like), same.scale)
            return both[0], both[1]
        found = {row: (block, n) for block in blocks or () for n, row in enumerate(block.rows)}
        missing = [row for row in rows if row not in found]
        if missing:
            raise BadInput(
                f"the tape has nothing of picture {missing[0]} at layer {layer} in evaluation {evaluation} of "
                f"{len(self.evaluations)}: the run with the identity asks the model more often, or about other "
                "pictures, than the run without. Give both the same sampler, steps and latents."
            )
        chosen = [found[row] for row in rows]
        both = torch.cat([_scaled(_from_host(block.data[:, n : n + 1], like), block.scale) for block, n in chosen], 1)
        return both[0], both[1]

    def hear(self, rows: tuple[int, ...], maps: Tensor) -> None:
        """Add one layer's look at the words, (rows, h, w, T), to what is averaged."""
        with self._lock:
            if self._heard is None:
                pictures = self.plan.shape[0]
                total = torch.zeros(pictures, *maps.shape[1:], device=maps.device)
                self._heard = (total, torch.zeros(pictures, 1, 1, 1, device=maps.device))
            total, count = self._heard
            if total.shape[1:] == maps.shape[1:]:
                total[list(rows)] += maps
                count[list(rows)] += 1

    def close(self) -> None:
        """The run has ended well."""
        if self._heard is not None:
            total, count = self._heard
            self.maps, self._heard = (total / count.clamp_min(1)).cpu(), None


def _common(one: Area, other: Area) -> float:
    """How much of the picture lies in both."""
    height, width = (min(one[n + 2], other[n + 2]) - max(one[n], other[n]) for n in (0, 1))
    return max(height, 0.0) * max(width, 0.0)


def _scaled(both: Tensor, scale: Tensor | None) -> Tensor:
    return both if scale is None else (both.float() * scale.to(both.device)).to(both.dtype)


def _from_host(tensor: Tensor, like: Tensor) -> Tensor:
    return tensor.to(like.device, non_blocking=True).to(like.dtype)


def predicted_bytes(
    layers: SelfLayers,
    chosen: Sequence[int],
    latent: Sequence[int],
    count: int,
    dtype: torch.dtype,
    keep: str,
    mask: Tensor | None = None,
    conditionings: int = 1,
) -> int:
    """Bytes of keys and values of ``count`` evaluations of latents (B, C, h, w), each of so many positive
    conditionings."""
    if keep in (NONE, ANSWERS):
        return 0
    each = 1 if keep == HALF else torch.empty((), dtype=dtype).element_size()
    pictures, size = int(latent[0]), (int(latent[-2]), int(latent[-1]))
    total = 0
    for layer in chosen:
        height, width = layers.grid(layer, size)
        tokens = height * width
        if mask is not None:
            tokens = max(int((shares(mask, height, width) > 0).sum(1).max()), 1)
        total += 2 * pictures * tokens * layers.layers[layer].width
    return total * each * count * conditionings
