"""What an adapter does to a model's attention, said without any host: keys and values beside the text's.

A host (ComfyUI, diffusers) keeps ``Applied`` records with its model. Once per model call it asks ``prepare`` for a
``Call``, which holds everything that the layers need, already on the device; in a layer ``Call.add`` adds the
identity's share to what the text gave. So no layer projects, copies, decides or waits for the device.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor

from ... import kernels
from ..errors import BadInput
from .ortho import ORTHO, Ortho
from .sites import Layout, Site, base_name, halved
from .weighting import SiteWeights, site_weights

MARKS = "likeness"
"""Under this key a conditioning carries its marks; hosts keep keys that they do not know."""

POSITIVE, NEGATIVE, OFF = "positive", "negative", "off"
"""What the rows of one conditioning get of one adapter: the identity, its opposite, or nothing."""

V_ONLY = "V only"
SCALINGS = (V_ONLY, "K+V", "K+V w/ C penalty", "K+mean(V) w/ C penalty")
"""Where the weight goes in (ComfyUI_IPAdapter_plus calls it embeds scaling): onto the branch's output, or into it."""
FULL_WIDTH = 1280
"""The width of a layer at which the C penalty takes nothing away."""

MODES = ("plain", *ORTHO)

KEPT = 8
"""Prepared calls kept a model: cond and uncond apart or together, the two ends of a window, a few areas."""


@dataclass(eq=False)
class Tokens:
    """A person in an adapter's own words, and what its layers make of them; shared by all who apply it."""

    positive: Tensor
    """(M, T, D) float32: one row for all pictures, or one a picture."""
    negative: Tensor | None
    """(1 or M, T, D) float32 for the unconditional rows; None: they get nothing."""
    keys: Sequence[Tensor]
    """(C, D) per site, as in the file."""
    values: Sequence[Tensor]
    _projected: list[tuple[Tensor, ...]] | None = field(default=None, repr=False)
    _entered: WeakKeyDictionary[Any, Tokens] = field(default_factory=WeakKeyDictionary, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @property
    def widths(self) -> tuple[int, ...]:
        return tuple(int(key.shape[0]) for key in self.keys)

    @property
    def context(self) -> int:
        return int(self.positive.shape[-1])

    def through(self, entrance: Any) -> Tokens:
        """The tokens behind a model's ``entrance``, for adapters whose tokens are as wide as the text before it."""
        with self._lock:
            if entrance not in self._entered:
                weight, bias = entrance.weight.detach().float().cpu(), entrance.bias.detach().float().cpu()
                sides = [None if t is None else F.linear(t, weight, bias) for t in (self.positive, self.negative)]
                self._entered[entrance] = Tokens(cast(Tensor, sides[0]), sides[1], self.keys, self.values)
            return self._entered[entrance]

    def projected(self) -> list[tuple[Tensor, ...]]:
        """Per site keys and values of the positive and then of the negative tokens, (M, T, C) float32 on the CPU.

        Worked out once, site by site, so that of the adapter's weights never more than one layer is held in float32.
        """
        with self._lock:
            if self._projected is None:
                given = [self.positive] if self.negative is None else [self.positive, self.negative]
                projected = [
                    tuple(F.linear(tokens, weight.float()) for tokens in given for weight in pair)
                    for pair in zip(self.keys, self.values, strict=True)
                ]
                if not all(bool(torch.isfinite(one).all()) for site in projected for one in site):
                    raise BadInput("the adapter's layers hold values that are no numbers; copy its file again")
                self._projected = projected
            return self._projected


@dataclass(frozen=True, eq=False)
class Applied:
    """An adapter as it was applied to a model. Immutable; copies of a model share it, weights and all."""

    name: str
    """For messages: the format and whom it shows."""
    tokens: Tokens
    layout: Layout
    weights: SiteWeights
    strength: tuple[float, ...] = (1.0,)
    """One for all pictures, or one a picture."""
    start: float = 0.0
    end: float = 1.0
    """The part of the sampling in which it acts, as fractions."""
    mask: Tensor | None = None
    """(P, h, w) float32 in [0, 1], one for all pictures or one a picture: where it acts."""
    scaling: str = V_ONLY
    mode: str = "plain"
    """``plain``, or one of PuLID's: see ``ortho``."""
    zeros: int = 0
    """Keys and values of zero that join the identity's: they take attention away from it."""
    mark: str | None = None
    """The key under which conditionings say what they get of this adapter; None: told from their place."""
    _calls: OrderedDict[Any, Call] = field(default_factory=OrderedDict, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def __copy__(self) -> Applied:
        return self

    def __deepcopy__(self, memo: Any) -> Applied:
        # A host copies its model's options with everything in them; the weights must not be among what is copied.
        return self

    @property
    def always(self) -> bool:
        """Whether it acts from the first step to the last."""
        return self.start <= 0 and self.end >= 1

    def forget(self) -> None:
        """Give back what was prepared for the device."""
        with self._lock:
            self._calls.clear()


def apply(
    name: str,
    tokens: Tokens,
    layout: Layout,
    *,
    strength: float | Sequence[float] = 1.0,
    weight_type: str = "linear",
    layer_weights: str = "",
    start: float = 0.0,
    end: float = 1.0,
    mask: Tensor | None = None,
    scaling: str = V_ONLY,
    mode: str = "plain",
    zeros: int = 0,
    mark: str | None = None,
) -> Applied:
    """Check everything that can be checked before sampling, and put it together. Raises BadInput."""
    if layout.entrance is not None:
        wide = int(layout.entrance.weight.shape[1])
        if tokens.context != wide:
            made, model = base_name(len(tokens.keys), tokens.context), base_name(len(layout.sites), wide)
            raise BadInput(f"{name} is made for {made}, but the model is {model}. Load a checkpoint of {made}.")
        tokens = tokens.through(layout.entrance)
    layout.require(tokens.widths, tokens.context, name)
    strengths = tuple(map(float, strength)) if isinstance(strength, (list, tuple)) else (float(cast(float, strength)),)
    if not strengths or not all(abs(s) <= 10 for s in strengths):
        raise BadInput(f"the strength must be one number from -10 to 10, or one a picture; got {strengths}")
    if not 0 <= start <= 1 or not 0 <= end <= 1 or start > end:
        raise BadInput(f"start and end are fractions of the sampling, start not after end; got {start:g} and {end:g}")
    if scaling not in SCALINGS:
        raise BadInput(f"there is no embeds scaling {scaling!r}. Known: {', '.join(SCALINGS)}")
    if mode not in MODES:
        raise BadInput(f"there is no mode {mode!r}. Known: {', '.join(MODES)}")
    if mode != "plain" and scaling != V_ONLY:
        raise BadInput(f"the mode {mode!r} takes the weight on its output; set the embeds scaling to {V_ONLY!r}")
    if mask is not None:
        mask = mask.detach().to("cpu", torch.float32)
        mask = mask[None] if mask.ndim == 2 else mask
        if mask.ndim != 3 or not mask.numel():
            raise BadInput(f"the mask must have the shape (pictures, height, width); got {tuple(mask.shape)}")
        if not bool(torch.isfinite(mask).all()):
            raise BadInput("the mask holds values that are no numbers; draw it again")
        mask = mask.clamp(0, 1)
    return Applied(
        name,
        tokens,
        layout,
        site_weights(layout, weight_type, layer_weights),
        strengths,
        float(start),
        float(end),
        mask,
        scaling,
        mode,
        zeros,
        mark,
    )


def check_mask(applied: Applied, height: int, width: int) -> None:
    """Raise BadInput unless the mask has the proportions of a (height, width) latent."""
    if applied.mask is None:
        return
    h, w = applied.mask.shape[1:]
    if abs((h * width) / (w * height) - 1) > 0.05:
        raise BadInput(
            f"the mask of {applied.name} has {w}×{h} pixels, but the picture to be made has the proportions "
            f"{width}:{height}. Draw the mask on a picture of the same proportions. (Load Image gives 64×64 where the "
            "file has no alpha channel.)"
        )


@lru_cache(maxsize=64)
def _sides(queries: int, like: tuple[int, int]) -> tuple[int, int]:
    """The (height, width) of so many queries whose proportions are nearest to those of ``like``."""
    wanted = (queries * like[0] / like[1]) ** 0.5
    height = min((n for n in range(1, queries + 1) if queries % n == 0), key=lambda n: abs(n - wanted))
    return height, queries // height


@dataclass(frozen=True, eq=False)
class SiteCall:
    """What one layer needs in one model call."""

    key: Tensor | None
    """(B, L, C): the branches' keys one after the other; None where only ``ortho`` acts."""
    value: Tensor | None
    lengths: list[int]
    """Keys of each branch."""
    weight: Tensor | None
    """(B, branches) float32."""
    mask: Tensor | None
    """(branches, B or 1, queries) float32, or None."""
    size: tuple[int, int]
    """(height, width) of the layer, whose product is the number of queries."""
    ortho: tuple[Ortho, ...] = ()

    def fitting(self, queries: int) -> SiteCall:
        """The same for a layer that somebody has made smaller or larger, sides in proportion."""
        size = _sides(queries, self.size)

        def resized(mask: Tensor | None) -> Tensor | None:
            if mask is None:
                return None
            return F.interpolate(mask.unflatten(-1, self.size), size, mode="bilinear", antialias=True).flatten(-2)

        ortho = tuple(replace(one, mask=resized(one.mask)) for one in self.ortho)
        return replace(self, mask=resized(self.mask), size=size, ortho=ortho)


@dataclass(frozen=True, eq=False)
class Call:
    """What all layers need in one model call."""

    sites: tuple[SiteCall | None, ...]
    """None where nothing acts."""
    rows: int

    def add(self, site: int, query: Tensor, out: Tensor, heads: int) -> Tensor:
        """``out`` (B, N, C), the text's share, with the identities' added; ``out`` itself is changed.

        ``query`` (B, N, C) is the layer's, already projected.
        """
        here = self.sites[site]
        if here is None:
            return out
        if query.shape[1] != here.size[0] * here.size[1]:
            here = here.fitting(query.shape[1])
        # First those that look at the text's share, while it is nothing else.
        shares = [branch.share(query, out, heads) for branch in here.ortho]
        if here.key is not None and here.value is not None and here.weight is not None:
            kernels.add_identity_attention_(
                out, query, here.key, here.value, here.lengths, here.weight, heads, here.mask
            )
        for share in shares:
            out.add_(share)
        return out


Area = tuple[float, float, float, float]
"""A part of the picture: top, left, bottom and right as fractions of it."""
WHOLE: Area = (0.0, 0.0, 1.0, 1.0)

Roles = tuple[tuple[str, ...], ...]
"""Per applied adapter, per conditioning in the batch: POSITIVE, NEGATIVE or OFF."""


def prepare(
    applied: Sequence[Applied],
    roles: Roles,
    pictures: Sequence[int],
    latent: tuple[int, int],
    device: torch.device,
    dtype: torch.dtype,
    areas: tuple[Area | None, ...] = (),
) -> Call:
    """The call for a batch of ``len(roles[0])`` conditionings of ``len(pictures)`` pictures each.

    ``pictures``: their numbers in the whole batch (not 0, 1, 2 … where a host shows a window of many frames).
    ``latent``: (height, width) of the batch; ``areas``: of which part of the picture, for each conditioning that does
    not see all of it. Asked again with the same, the same call is returned.
    """
    areas = areas or (None,) * len(roles[0])
    key = (tuple(map(id, applied)), roles, tuple(pictures), latent, device, dtype, areas)
    # Kept with the last one: whoever holds it holds the others too, and when it goes, so does what it prepared.
    keeper = applied[-1]
    with keeper._lock:
        if key in keeper._calls:
            keeper._calls.move_to_end(key)
            return keeper._calls[key]
    call = _Preparation(applied, roles, pictures, latent, device, dtype, areas).call()
    with keeper._lock:
        keeper._calls[key] = call
        while len(keeper._calls) > KEPT:
            keeper._calls.popitem(last=False)
    return call


@dataclass(frozen=True, eq=False)
class _Preparation:
    applied: Sequence[Applied]
    roles: Roles
    pictures: Sequence[int]
    latent: tuple[int, int]
    device: torch.device
    dtype: torch.dtype
    areas: tuple[Area | None, ...]
    _sent: dict[Any, Tensor] = field(default_factory=dict)
    """Small tensors that many sites share, already on the device."""

    def call(self) -> Call:
        layout = self.applied[0].layout
        for one in self.applied:
            for area in set(self.areas):
                top, left, bottom, right = area or WHOLE
                check_mask(one, round(self.latent[0] / (bottom - top)), round(self.latent[1] / (right - left)))
        chunks = len(self.roles[0])
        sites = tuple(self._site(n, site) for n, site in enumerate(layout.sites))
        return Call(sites, chunks * len(self.pictures))

    def _site(self, number: int, site: Site) -> SiteCall | None:
        size = halved(*self.latent, site.level)
        keys: list[Tensor] = []
        values: list[Tensor] = []
        weights: list[tuple[float, ...]] = []
        masks: list[Applied] = []
        ortho: list[Ortho] = []
        for one, roles in zip(self.applied, self.roles, strict=True):
            factor = one.weights.weights[number]
            if factor == 0 or all(role == OFF for role in roles):
                continue
            swapped = number in one.weights.swapped
            key, value, rows = self._branch(one, number, roles, swapped, factor)
            if one.mode == "plain":
                keys.append(key)
                values.append(value)
                weights.append(rows)
                masks.append(one)
            else:
                mask = self._masks([one], size)
                ortho.append(Ortho(self._send(key), self._send(value), self._row_weights([rows]), mask, one.mode))
        if not keys and not ortho:
            return None
        if not keys:
            return SiteCall(None, None, [], None, None, size, tuple(ortho))
        return SiteCall(
            self._send(torch.cat(keys, 1)),
            self._send(torch.cat(values, 1)),
            [key.shape[1] for key in keys],
            self._row_weights(weights),
            self._masks(masks, size),
            size,
            tuple(ortho),
        )

    def _branch(
        self, one: Applied, number: int, roles: tuple[str, ...], swapped: bool, factor: float
    ) -> tuple[Tensor, Tensor, tuple[float, ...]]:
        """Keys and values (B, T, C) float32 and a weight a row, for one adapter at one site."""
        projected = one.tokens.projected()[number]
        positive, negative = projected[:2], projected[2:]
        keys: list[Tensor] = []
        values: list[Tensor] = []
        weights: list[float] = []
        for role in roles:
            if swapped:
                shown, on = positive, role == NEGATIVE
            else:
                shown, on = (positive if role == POSITIVE or not negative else negative), role != OFF
                on = on and (role == POSITIVE or bool(negative))
            for picture in self.pictures:
                row = picture % len(shown[0])
                keys.append(shown[0][row])
                values.append(shown[1][row])
                weights.append(one.strength[picture % len(one.strength)] * factor if on else 0.0)
        key, value = torch.stack(keys), torch.stack(values)
        if one.scaling != V_ONLY:
            key, value, weights = _scaled(one.scaling, key, value, weights)
        if one.zeros:
            nothing = key.new_zeros(len(key), one.zeros, key.shape[2])
            key, value = torch.cat([key, nothing], 1), torch.cat([value, nothing], 1)
        return key, value, tuple(weights)

    def _send(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.dtype).to(self.device)

    def _row_weights(self, weights: list[tuple[float, ...]]) -> Tensor:
        """(B, branches) float32 on the device."""
        key = tuple(weights)
        if key not in self._sent:
            self._sent[key] = torch.tensor(weights, dtype=torch.float32).T.contiguous().to(self.device)
        return self._sent[key]

    def _masks(self, branches: list[Applied], size: tuple[int, int]) -> Tensor | None:
        """(branches, B or 1, queries) float32 on the device; None where no branch has a mask."""
        if all(one.mask is None for one in branches):
            return None
        height, width = size
        key = (tuple(map(id, branches)), height, width)
        if key not in self._sent:
            shown = [
                torch.cat([_at_size(one.mask, self.pictures, height, width, area or WHOLE) for area in self.areas])
                for one in branches
            ]
            if all(bool((m == m[:1]).all()) for m in shown):
                shown = [m[:1] for m in shown]
            self._sent[key] = torch.stack(shown).contiguous().to(self.device)
        return self._sent[key]


def _at_size(mask: Tensor | None, pictures: Sequence[int], height: int, width: int, area: Area) -> Tensor:
    """(pictures, height * width): each picture's mask in ``area``, averaged over that of each token; 1 without one."""
    if mask is None:
        return torch.ones(len(pictures), height * width)
    part = cut(mask, area)
    chosen = part[[picture % len(mask) for picture in pictures]][:, None]
    if chosen.shape[-2] >= height and chosen.shape[-1] >= width:
        return F.adaptive_avg_pool2d(chosen, (height, width)).flatten(1)
    return F.interpolate(chosen, (height, width), mode="bilinear", align_corners=False).flatten(1)


def cut(mask: Tensor, area: Area) -> Tensor:
    """The part of a mask (P, h, w) that ``area`` covers, a pixel at least; a view."""
    h, w = mask.shape[1:]
    top, left = min(round(area[0] * h), h - 1), min(round(area[1] * w), w - 1)
    return mask[:, top : max(round(area[2] * h), top + 1), left : max(round(area[3] * w), left + 1)]


def _scaled(kind: str, key: Tensor, value: Tensor, weights: list[float]) -> tuple[Tensor, Tensor, list[float]]:
    """Keys and values (B, T, C) with the weights inside; a row of weight 0 stays out."""
    weight = torch.tensor(weights)[:, None, None]
    if "C penalty" in kind:
        weight = weight * (key.shape[-1] / FULL_WIDTH)
    if "mean(V)" in kind:
        mean = value.mean(1, keepdim=True)
        value = (value - mean) + mean * weight
    else:
        value = value * weight
    return key * weight, value, [1.0 if w else 0.0 for w in weights]


def roles_of(
    applied: Sequence[Applied],
    marks: Sequence[Mapping[str, str]],
    places: Sequence[int],
    known: Collection[str],
) -> Roles:
    """What each conditioning of a batch gets of each adapter.

    ``marks``: what each carries (``Applied.mark`` to role); ``places``: 0 for the positive one, others count on;
    ``known``: all marks in this sampling. Where an adapter was applied with its conditionings, these say so, and others
    in the batch get nothing of it. Where none of them carries its mark, it goes by their places.
    """

    def role(one: Applied, carried: Mapping[str, str], place: int) -> str:
        if one.mark is not None and one.mark in known:
            return carried.get(one.mark, OFF)
        return POSITIVE if place == 0 else NEGATIVE

    return tuple(
        tuple(role(one, carried, place) for carried, place in zip(marks, places, strict=True)) for one in applied
    )


def usual(applied: Sequence[Applied], sides: Sequence[Sequence[Mapping[str, str]]]) -> list[dict[str, str]]:
    """For each side, the roles of marks that none of its conditionings carries; the first side is the positive one.

    A positive side without any mark was wired past the nodes and shows everybody; with marks it shows those alone. Who
    is shown there has an opposite on the other sides, even if these were wired past a node.
    """
    marks = {one.mark for one in applied if one.mark is not None}
    carried = [marks.intersection(mark for one in side for mark in one) for side in sides]
    shown = carried[0] or marks
    return [dict.fromkeys(shown - here, NEGATIVE if number else POSITIVE) for number, here in enumerate(carried)]


def marked(conditioning: Any, mark: str, role: str) -> Any:
    """A copy of a CONDITIONING whose entries say that they get ``role`` of the adapter ``mark``."""
    return [[tensor, {**entry, MARKS: {**entry.get(MARKS, {}), mark: role}}] for tensor, entry in conditioning]
