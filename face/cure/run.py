"""What happens in a sampling that is recorded or cured, told without a host.

A host that finds hooks on a model calls, in this order: ``begin`` once a sampling, ``evaluate`` before and ``answered``
after each of the sampler's questions, ``attend`` in every self-attention layer that a hook names, ``end`` when the
sampling is over, well or not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ..attention import WHOLE, Area, cut
from ..attention.sites import halved
from ..errors import BadInput
from .attention import ADDITIVE, Selection, cured, gathered, select, shares
from .layers import SelfLayers
from .tape import ANSWERS, NONE, Evaluation, Plan, Tape, View

Plain = Callable[[Tensor, Tensor, Tensor], Tensor]
"""The layer's own attention, of (b, N, C) each: the host's function, or an older patch."""

BLEND = 0.75
"""The first version's share of the foundation's noise (YIYANGCAI/FreeCure, PhotoMaker/photomaker/pipeline.py)."""
BLEND_FROM = 0.1
"""It begins after the first 5 of 50 steps."""


@dataclass(frozen=True)
class Now:
    """One call of the network."""

    evaluation: int
    """Ordinal of the sampler's question, from 0."""
    sigma: float
    ordinals: tuple[int | None, ...]
    """Per conditioning in the batch, in order: its number among the positive ones that act now; None for others."""
    pictures: tuple[int, ...]
    """The latent rows that each conditioning has in the batch, by their numbers in the whole."""
    latent: tuple[int, int]
    """(height, width) of what the network is given."""
    areas: tuple[Area | None, ...] = ()
    """Per conditioning the part of the picture that it sees, as fractions; None: all of it."""
    whole: bool = False
    """Whether the layer's own attention wants the whole batch: an older patch stands there."""

    def whole_batch(self) -> Now:
        """The same, for a layer that wants the whole batch."""
        return replace(self, whole=True)

    def area(self, place: int) -> Area:
        """The part of the picture that the conditioning at ``place`` sees."""
        return (self.areas[place] if self.areas else None) or WHOLE

    def rows(self, place: int) -> slice:
        """The batch rows of the conditioning at ``place``."""
        return slice(place * len(self.pictures), (place + 1) * len(self.pictures))


Again = Callable[[Tape, int, float, Tensor], None]
"""``again(tape, number, sigma, latent)`` asks a foundation model the question ``number`` once more, and puts what its
layers have on ``tape``, whose ``source`` says which model that is."""

Window = Callable[[float], float]
"""From a fraction of the sampling to the sigma there."""


class Hook(Protocol):
    """What a model carries."""

    @property
    def layers(self) -> frozenset[int]:
        """The self-attention layers, in call order, in which ``attend`` wants to be called."""
        ...

    @property
    def sites(self) -> frozenset[int]:
        """The cross-attention layers, as adapter files count them, that ``hear`` wants to hear of."""
        ...

    def begin(self, plan: Plan, to_sigma: Window) -> Run:
        """A sampling begins. Raises BadInput for one that cannot be what was meant."""
        ...


class Run(Protocol):
    """A hook during one sampling."""

    def evaluate(self, number: int, sigma: float, latent: Tensor, again: Again) -> None:
        """The sampler's question ``number`` about a ``latent`` (B, C, h, w) is about to be answered."""
        ...

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, heads: int, now: Now, plain: Plain) -> Tensor:
        """The layer's answer (B, N, C)."""
        ...

    def hear(self, site: int, q: Tensor, k: Tensor, heads: int, now: Now) -> None:
        """A cross-attention layer's queries (B, N, C) and the text's keys (B, T, C)."""
        ...

    def answered(
        self, number: int, sigma: float, latent: Tensor, positive: Tensor, negative: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """The answers, latents without noise, before they are joined by guidance."""
        ...

    def end(self, well: bool) -> None: ...


def chained(runs: Sequence[Run], layer: int, heads: int, now: Now, own: Plain) -> Plain:
    """The layer's answer: the last run asks the one before it, the first one the layer's ``own`` attention."""
    # No function that names itself: such a circle would hold the tape until Python looks for circles.
    for run in runs:
        own = partial(_asked, run, layer, heads, now, own)
    return own


def _asked(run: Run, layer: int, heads: int, now: Now, before: Plain, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return run.attend(layer, q, k, v, heads, now, before)


def refuse_cured(hooks: Sequence[Hook]) -> None:
    """Raise BadInput for a model that is cured already: one attention reads one tape."""
    if any(isinstance(hook, Curing) for hook in hooks):
        raise BadInput(
            "this model is cured already, and a layer reads one tape at a time. Cure it once, with one mask of all "
            "attributes: Attribute Masks joins them."
        )


def check_grid(k: Tensor, layer: int, layers: SelfLayers, now: Now) -> tuple[int, int]:
    """(height, width) of a layer. Raises BadInput where another patch has changed what is a token."""
    height, width = layers.grid(layer, now.latent)
    if k.shape[1] != height * width:
        raise BadInput(
            f"self-attention layer {layer} has {k.shape[1]} tokens where a latent of {now.latent[1]}×{now.latent[0]} "
            f"gives {width}×{height}: another patch on this model cuts or merges tokens (HyperTile, ToMe, …), so the "
            "cure cannot tell where they are. Take that patch off."
        )
    return height, width


@dataclass(frozen=True, eq=False)
class Recording:
    """The hook that writes a tape."""

    chosen: tuple[int, ...]
    model_layers: SelfLayers
    keep: str
    mask: Tensor | None = None
    """(P, H, W): see ``Tape.mask``."""
    words: bool = False
    """Whether to note how the places look at the words of the prompt: ``Tape.maps``."""
    done: list[Tape] = field(default_factory=list)
    """The tapes of the samplings that ended well."""

    def __deepcopy__(self, memo: Any) -> Recording:
        return self

    @property
    def layers(self) -> frozenset[int]:
        return frozenset() if self.keep in (NONE, ANSWERS) else frozenset(self.chosen)

    @property
    def sites(self) -> frozenset[int]:
        return self.model_layers.word_sites() if self.words else frozenset()

    def begin(self, plan: Plan, to_sigma: Window) -> RecordingRun:
        plan.refuse_adaptive()
        tape = Tape(plan, self.chosen, len(self.model_layers.layers), self.keep, self.mask)
        return RecordingRun(tape, self.model_layers, self)


@dataclass(eq=False)
class Listening:
    """A run that changes nothing."""

    def evaluate(self, number: int, sigma: float, latent: Tensor, again: Again) -> None:
        return

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, heads: int, now: Now, plain: Plain) -> Tensor:
        return plain(q, k, v)

    def hear(self, site: int, q: Tensor, k: Tensor, heads: int, now: Now) -> None:
        return

    def answered(
        self, number: int, sigma: float, latent: Tensor, positive: Tensor, negative: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        return positive, negative

    def end(self, well: bool) -> None:
        return


@dataclass(eq=False)
class Writing(Listening):
    """Puts the positive rows' keys and values of every layer on a tape."""

    tape: Tape
    model_layers: SelfLayers

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, heads: int, now: Now, plain: Plain) -> Tensor:
        grid = check_grid(k, layer, self.model_layers, now)
        for place, ordinal in enumerate(now.ordinals):
            if ordinal is None:
                continue
            key, value = k[now.rows(place)], v[now.rows(place)]
            index = self.tape.kept(grid, now.pictures, now.area(place))
            if index is not None:
                index = index.to(k.device)
                key, value = gathered(key, index), gathered(value, index)
            view = View(ordinal, grid, now.area(place))
            self.tape.write(now.evaluation, view, layer, now.pictures, key, value)
        return plain(q, k, v)


@dataclass(eq=False)
class RecordingRun(Writing):
    hook: Recording

    def hear(self, site: int, q: Tensor, k: Tensor, heads: int, now: Now) -> None:
        # The first version's map of a word (YIYANGCAI/FreeCure, add_semantic_guidance): of the positive side's own.
        layer = next(layer for layer in self.model_layers.layers if layer.site == site)
        height, width = halved(*now.latent, layer.level)
        for place, ordinal in enumerate(now.ordinals):
            if ordinal != 0 or now.area(place) != WHOLE or q.shape[1] != height * width:
                continue
            rows = now.rows(place)
            query, key = (t[rows].unflatten(2, (heads, -1)).transpose(1, 2).float() for t in (q, k))
            weights = (query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])).softmax(-1).mean(1)
            self.tape.hear(now.pictures, weights.unflatten(1, (height, width)))

    def answered(
        self, number: int, sigma: float, latent: Tensor, positive: Tensor, negative: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        kept = (None if t is None else t.detach().float().cpu() for t in (latent, positive, negative))
        noted = Evaluation(sigma, *kept)  # pyright: ignore[reportArgumentType]
        if number == len(self.tape.evaluations):
            self.tape.evaluations.append(noted)
        return positive, negative

    def end(self, well: bool) -> None:
        if well:
            self.tape.close()
            self.hook.done.append(self.tape)
        else:
            self.tape.clear()


@dataclass(frozen=True, eq=False)
class Curing:
    """The hook that reads one."""

    tape: Tape
    model_layers: SelfLayers
    mask: Tensor
    """(P, H, W) in [0, 1]: where the foundation's attributes are, and how much of them is wanted."""
    omega: float
    mode: str = ADDITIVE
    start: float = 0.0
    end: float = 1.0
    """The part of the sampling in which it acts."""

    def __post_init__(self) -> None:
        check_window(self.start, self.end)
        if self.tape.keep == ANSWERS:
            raise BadInput(
                "this tape keeps only the model's answers, which serve noise blending. Let Foundation Pass keep keys "
                "and values, or set the method to noise blending."
            )
        if self.tape.count != len(self.model_layers.layers):
            raise BadInput(
                f"the tape is of a model with {self.tape.count} self-attention layers, this {self.model_layers.name} "
                f"has {len(self.model_layers.layers)}. Run Foundation Pass on the same checkpoint."
            )
        if self.tape.mask is not None and self.mode != ADDITIVE:
            raise BadInput(
                "the multiplicative ω reads the keys outside the mask, too, and this tape was told to keep only those "
                "inside. Take the additive ω, or run Foundation Pass without a mask."
            )
        check_proportions(self.mask, self.tape.plan.shape)
        if self.tape.mask is not None:
            self._check_kept()

    def __deepcopy__(self, memo: Any) -> Curing:
        return self

    @property
    def layers(self) -> frozenset[int]:
        return frozenset(self.tape.layers)

    @property
    def sites(self) -> frozenset[int]:
        return frozenset()

    def begin(self, plan: Plan, to_sigma: Window) -> CuringRun:
        plan.refuse_adaptive()
        self.tape.plan.require(plan)
        return CuringRun(self, window(self.start, self.end, to_sigma))

    def _check_kept(self) -> None:
        """Every token that the cure reads must be on the tape."""
        pictures = range(self.tape.plan.shape[0])
        for layer in self.tape.layers:
            grid = self.model_layers.grid(layer, (self.tape.plan.shape[-2], self.tape.plan.shape[-1]))
            wanted = shares(_rows(self.mask, pictures), *grid) > 0
            kept = shares(_rows(self.tape.mask, pictures), *grid) > 0
            if bool((wanted & ~kept).any()):
                raise BadInput(
                    "the mask reaches beyond the one that was given to Foundation Pass, and the tape has nothing "
                    "there. Give Foundation Pass a larger mask, or none."
                )


def _inside(mask: Tensor, area: Area) -> Tensor:
    """A mask (P, H, W) that is 0 outside of ``area``."""
    if area == WHOLE:
        return mask
    inside = torch.zeros_like(mask)
    cut(inside, area).copy_(cut(mask, area))
    return inside


def _rows(mask: Tensor | None, pictures: Sequence[int]) -> Tensor:
    assert mask is not None
    return mask[[picture % len(mask) for picture in pictures]]


def check_window(start: float, end: float) -> None:
    if not 0 <= start <= end <= 1:
        raise BadInput(f"start and end are fractions of the sampling, start not after end; got {start:g} and {end:g}")


def check_proportions(mask: Tensor, shape: Sequence[int]) -> None:
    """Raise BadInput unless a mask (P, H, W) can lie over a latent (B, C, h, w)."""
    if mask.ndim != 3 or 0 in mask.shape:
        raise BadInput(f"the mask must be (pictures, height, width); got {tuple(mask.shape)}")
    if not bool(((mask >= 0) & (mask <= 1)).all()):
        raise BadInput("the mask must hold numbers from 0 to 1, and this one has others, or NaN. Draw or make it anew.")
    (height, width), (h, w) = mask.shape[1:], shape[-2:]
    if abs((height * w) / (width * h) - 1) > 0.05:
        raise BadInput(
            f"the mask has {width}×{height} pixels, but the picture to be cured has {w * 8}×{h * 8}: it must have the "
            "same proportions. Make it from the foundation's own picture."
        )
    if len(mask) not in (1, shape[0]):
        raise BadInput(f"there are {len(mask)} masks for {shape[0]} pictures: give one, or one a picture")


def window(start: float, end: float, to_sigma: Window) -> tuple[float, float]:
    """The highest and the lowest sigma of a window."""
    return (math.inf if start <= 0 else to_sigma(start), -math.inf if end >= 1 else to_sigma(end))


@dataclass(eq=False)
class CuringRun(Listening):
    hook: Curing
    inside: tuple[float, float]
    _selections: dict[Any, Selection | None] = field(default_factory=dict)
    _again: Tape | None = None
    """Where the tape keeps only latents: what was computed again for this evaluation."""
    _ahead: _Ahead | None = None

    def acts(self, sigma: float) -> bool:
        return self.inside[1] <= sigma <= self.inside[0]

    def evaluate(self, number: int, sigma: float, latent: Tensor, again: Again) -> None:
        tape = self.hook.tape
        if number >= len(tape.evaluations) or not math.isclose(tape.evaluations[number].sigma, sigma, rel_tol=1e-4):
            raise BadInput(
                f"the tape was made of {len(tape.evaluations)} questions to the model, and this run asks another one "
                f"(number {number + 1}, at sigma {sigma:.4g}). Give both runs the same sampler, steps and scheduler."
            )
        if tape.keep == NONE and self.acts(sigma):
            noted = tape.evaluations[number]
            self._again = Tape(tape.plan, tape.layers, tape.count, resident=True, source=tape.source)
            again(self._again, number, noted.sigma, noted.latent.to(latent))

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, heads: int, now: Now, plain: Plain) -> Tensor:
        if not self.acts(now.sigma) or all(ordinal is None for ordinal in now.ordinals):
            return plain(q, k, v)
        check_grid(k, layer, self.hook.model_layers, now)
        views = [
            None if ordinal is None else self._view(now.evaluation, ordinal, layer, now.area(place))
            for place, ordinal in enumerate(now.ordinals)
        ]
        selections = [
            None if view is None else self._selection(view, now.pictures, now.area(place), k)
            for place, view in enumerate(views)
        ]
        if all(selection is None for selection in selections):
            return plain(q, k, v)
        out = plain(q, k, v) if now.whole else torch.empty_like(q)
        # Conditionings that are not cured go together; they lie beside each other.
        place = 0
        while place < len(selections):
            view, selection, first = views[place], selections[place], place
            while selection is None and place + 1 < len(selections) and selections[place + 1] is None:
                place += 1
            rows = slice(now.rows(first).start, now.rows(place).stop)
            if selection is None or view is None:
                if not now.whole:
                    out[rows] = plain(q[rows], k[rows], v[rows])
            else:
                key, value = self._read(now.evaluation, view.ordinal, layer, now.pictures, q)
                out[rows] = cured(q[rows], k[rows], v[rows], key, value, selection, heads)
            place += 1
        return out

    def _view(self, evaluation: int, ordinal: int, layer: int, area: Area) -> View:
        tape = self.hook.tape if self._again is None else self._again
        view = tape.view(evaluation, ordinal, layer, area)
        if view is None:
            raise BadInput(
                f"the tape has nothing of layer {layer} in evaluation {evaluation} of {len(self.hook.tape.evaluations)}"
                ": the foundation's prompt was not asked then. Give it a positive prompt for the whole sampling."
            )
        return view

    def _read(
        self, evaluation: int, ordinal: int, layer: int, pictures: tuple[int, ...], q: Tensor
    ) -> tuple[Tensor, Tensor]:
        if self._again is not None:
            return self._again.read(evaluation, ordinal, layer, pictures, q)
        if q.device.type != "cuda":
            return self.hook.tape.read(evaluation, ordinal, layer, pictures, q)
        if self._ahead is None:
            self._ahead = _Ahead(self.hook.tape)
        return self._ahead.read(evaluation, ordinal, layer, pictures, q)

    def _selection(self, view: View, pictures: tuple[int, ...], area: Area, k: Tensor) -> Selection | None:
        """Of the keys that ``view`` has, those inside the mask and in the ``area`` that is drawn."""
        key = (view, pictures, area, k.shape[1], k.device, k.dtype)
        if key not in self._selections:
            hook = self.hook
            part = shares(_inside(_rows(hook.mask, pictures), area), *view.grid, view.area)
            kept = hook.tape.kept(view.grid, pictures, view.area)
            if kept is not None:
                # On the tape they are numbered anew: token kept[m] is m there.
                part = part.gather(1, kept)
            found = select(part, hook.omega, hook.mode, own=k.shape[1])
            self._selections[key] = None if found is None else found.to(k.device, k.dtype)
        return self._selections[key]

    def answered(
        self, number: int, sigma: float, latent: Tensor, positive: Tensor, negative: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        self._again = None
        return positive, negative

    def end(self, well: bool) -> None:
        self._selections.clear()
        self._again = self._ahead = None


class _Ahead:
    """Brings the next layer's keys and values to the GPU while the one before it is computed."""

    def __init__(self, tape: Tape) -> None:
        self._tape = tape
        self._stream = torch.cuda.Stream()
        self._waiting: tuple[Any, tuple[Tensor, Tensor]] | None = None

    def read(
        self, evaluation: int, ordinal: int, layer: int, pictures: tuple[int, ...], q: Tensor
    ) -> tuple[Tensor, Tensor]:
        key = (evaluation, ordinal, layer, pictures)
        now = torch.cuda.current_stream(q.device)
        if self._waiting is not None and self._waiting[0] == key:
            now.wait_stream(self._stream)
            found = self._waiting[1]
            for tensor in found:
                tensor.record_stream(now)
        else:
            found = self._tape.read(*key, q)
        self._waiting = None
        place = self._tape.layers.index(layer) + 1
        if place < len(self._tape.layers):
            following = (evaluation, ordinal, self._tape.layers[place], pictures)
            with torch.cuda.stream(self._stream):
                self._waiting = (following, self._tape.read(*following, q))
        return found


@dataclass(frozen=True, eq=False)
class Blending:
    """The first version's way, for models whose attention cannot be reached: inside the mask the noise that the model
    sees is a mixture of the person's and the foundation's, for both sides of the guidance."""

    tape: Tape
    mask: Tensor
    """(P, H, W) in [0, 1]."""
    factor: float = BLEND
    start: float = BLEND_FROM
    end: float = 1.0

    def __post_init__(self) -> None:
        check_window(self.start, self.end)
        check_proportions(self.mask, self.tape.plan.shape)

    def __deepcopy__(self, memo: Any) -> Blending:
        return self

    @property
    def layers(self) -> frozenset[int]:
        return frozenset()

    @property
    def sites(self) -> frozenset[int]:
        return frozenset()

    def begin(self, plan: Plan, to_sigma: Window) -> BlendingRun:
        plan.refuse_adaptive()
        self.tape.plan.require(plan)
        return BlendingRun(self, window(self.start, self.end, to_sigma))


@dataclass(eq=False)
class BlendingRun(Listening):
    hook: Blending
    inside: tuple[float, float]

    def answered(
        self, number: int, sigma: float, latent: Tensor, positive: Tensor, negative: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        if not self.inside[1] <= sigma <= self.inside[0]:
            return positive, negative
        if number >= len(self.hook.tape.evaluations):
            raise BadInput("the tape has fewer steps than this run. Give both the same sampler, steps and scheduler.")
        noted = self.hook.tape.evaluations[number]
        pictures = range(len(latent))
        share = F.interpolate(_rows(self.hook.mask, pictures)[:, None].float(), latent.shape[-2:], mode="bilinear")
        share = share.to(latent) * self.hook.factor

        def mixed(own: Tensor, foundation: Tensor | None) -> Tensor:
            if foundation is None:
                return own
            # Noise is (latent - answer) / sigma, each about its own latent; sigma cancels out.
            noise = latent - own
            theirs = (noted.latent - foundation).to(latent)
            return latent - (noise + share * (theirs - noise))

        return mixed(positive, noted.positive), None if negative is None else mixed(negative, noted.negative)


@dataclass(frozen=True, eq=False)
class Paired:
    """The published procedure, which is the slow twin of a tape: the batch holds first the pictures without the
    identity, then as many with it, and the latter read the former's keys as they are computed."""

    model_layers: SelfLayers
    chosen: tuple[int, ...]
    mask: Tensor
    omega: float
    mode: str = ADDITIVE

    def __deepcopy__(self, memo: Any) -> Paired:
        return self

    @property
    def layers(self) -> frozenset[int]:
        return frozenset(self.chosen)

    @property
    def sites(self) -> frozenset[int]:
        return frozenset()

    def begin(self, plan: Plan, to_sigma: Window) -> PairedRun:
        return PairedRun(self)


@dataclass(eq=False)
class PairedRun(Listening):
    hook: Paired

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, heads: int, now: Now, plain: Plain) -> Tensor:
        hook, out, half = self.hook, plain(q, k, v), len(now.pictures) // 2
        part = shares(_rows(hook.mask, now.pictures[:half]), *check_grid(k, layer, hook.model_layers, now))
        selection = select(part, hook.omega, hook.mode)
        if selection is None:
            return out
        selection = selection.to(q.device, q.dtype)
        for place, ordinal in enumerate(now.ordinals):
            if ordinal is not None:
                first, middle, last = (now.rows(place).start + n * half for n in range(3))
                f, p = slice(first, middle), slice(middle, last)
                out[p] = cured(q[p], k[p], v[p], k[f], v[f], selection, heads)
        return out
