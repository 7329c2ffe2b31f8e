"""From CONDITIONING to what one evaluation of the model answers: entries, areas, masks, batches, guidance.

An *entry* is one item of a CONDITIONING list; a *guide* is a whole list: the positive, the negative. Where several
entries of a guide cover the same place, their answers are averaged there, weighted by mask and strength.
Classifier-free guidance (Ho and Salimans 2022, arXiv 2207.12598) then goes from the negative's answer through the
positive's and beyond.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch

from ...face.errors import BadInput
from .config import SDXL
from .control import ControlNet, fits, residuals
from .hooks import Hooks
from .model import Chunk, Model
from .tensors import repeat_to, resize

Tensor = torch.Tensor
Conditioning = Sequence[Sequence[Any]]
"""ComfyUI's: [[text (B, T, D), {"pooled_output": …, "control": …, "mask": …, anything}], …]."""
Area = tuple[int, int, int, int]
"""Height, width, y, x in latent pixels."""

_FADE = 8
"""Latent pixels over which an area without a mask fades out where it ends inside the picture."""
_SMALLEST = 8
"""Latent pixels of a side of the smallest area that is cut out around a mask."""


@dataclass(frozen=True, eq=False)
class Entry:
    """One conditioning entry, made ready for a run."""

    data: dict[str, Any]
    """Its dictionary, with all keys."""
    index: int
    """Of its guide: 0 positive, 1 negative, further ones above."""
    text: Tensor
    """(b, T, D)."""
    control_text: Tensor | None
    """What its ControlNets read instead, if anything (the key ``cross_attn_controlnet``)."""
    added: tuple[Tensor, Tensor] | None
    """SDXL: the pooled text (b, P) and the six sizes (1, 6)."""
    area: Area | None
    mask: Tensor | None
    """(b, h, w), of the latent's size and times its strength."""
    strength: float
    window: tuple[float, float]
    """The highest and the lowest sigma at which it counts."""
    control: ControlNet | None

    def shapes(self) -> tuple[Any, ...]:
        """Entries that agree in these may go through the U-Net together: nothing has to be padded."""
        added = None if self.added is None else self.added[0].shape[1:]
        hints = None if self.control_text is None else self.control_text.shape[1:]
        return self.text.shape[1:], added, hints, self.area and self.area[:2], id(self.control)


def entries(conditioning: Conditioning, index: int, model: Model, shape: Sequence[int]) -> list[Entry]:
    """The entries of one guide for latents of ``shape`` (B, C, h, w). Raises BadInput for another family's."""
    return [_entry(text, dict(data), index, model, shape) for text, data in conditioning]


def _entry(text: Any, data: dict[str, Any], index: int, model: Model, shape: Sequence[int]) -> Entry:
    wide = model.unet.config["cross_attention_dim"]
    which = ("positive", "negative")[index] if index < 2 else f"guide {index}"
    if not isinstance(text, Tensor) or text.ndim != 3 or text.shape[-1] != wide:
        came = tuple(text.shape) if isinstance(text, Tensor) else type(text).__name__
        raise BadInput(
            f"the {which} conditioning is {came} where this {model.family} model reads text (B, tokens, {wide}): it "
            "comes from another base model's text encoder. Encode the prompt with the CLIP of the checkpoint that the "
            "model is from."
        )
    size = (int(shape[-2]), int(shape[-1]))
    mask, area = _mask(data, size), _area(data, size)
    if mask is not None and data.get("set_area_to_bounds"):
        area = _bounds(mask)
    sampling, device = model.sampling, model.device
    start = sampling.percent_to_sigma(data["start_percent"]) if "start_percent" in data else math.inf
    end = sampling.percent_to_sigma(data["end_percent"]) if "end_percent" in data else -math.inf
    hint_text: Tensor | None = data.get("cross_attn_controlnet")
    control: ControlNet | None = data.get("control")
    if control is not None:
        if not isinstance(control, ControlNet):
            raise BadInput(f"the {which} conditioning carries a {type(control).__name__} where a ControlNet belongs")
        fits(control, model.unet, model.family)
    return Entry(
        data,
        index,
        text.to(device),
        None if hint_text is None else hint_text.to(device),
        _added(data, which, model, size) if model.family == SDXL else None,
        area,
        None if mask is None else mask.to(device) * data.get("mask_strength", 1.0),
        float(data.get("strength", 1.0)),
        (start, end),
        control,
    )


def _added(data: dict[str, Any], which: str, model: Model, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    config = model.unet.config
    wide = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
    pooled = data.get("pooled_output")
    if not isinstance(pooled, Tensor) or pooled.shape[-1] != wide:
        came = tuple(pooled.shape) if isinstance(pooled, Tensor) else "none"
        raise BadInput(
            f"this SDXL model wants a pooled text {wide} wide beside the {which} conditioning, got {came}. Encode the "
            "prompt with the CLIP of an SDXL checkpoint."
        )
    height, width = data.get("height", size[0] * 8), data.get("width", size[1] * 8)
    sizes = [height, width, data.get("crop_h", 0), data.get("crop_w", 0)]
    sizes += [data.get("target_height", height), data.get("target_width", width)]
    return pooled.to(model.device), torch.tensor([sizes], dtype=torch.float32, device=model.device)


def _mask(data: dict[str, Any], size: tuple[int, int]) -> Tensor | None:
    mask: Tensor | None = data.get("mask")
    if mask is None:
        return None
    mask = mask[None] if mask.ndim == 2 else mask
    return mask if tuple(mask.shape[1:]) == size else resize(mask[:, None], *size, "bilinear")[:, 0]


def _area(data: dict[str, Any], size: tuple[int, int]) -> Area | None:
    area: Any = data.get("area")
    if area is None:
        return None
    if area[0] == "percentage":
        _, height, width, y, x = area
        area = (max(1, round(height * size[0])), max(1, round(width * size[1])), round(y * size[0]), round(x * size[1]))
    height, width, y, x = area
    if y >= size[0] or x >= size[1]:
        raise BadInput(
            f"a conditioning area begins at {8 * x}, {8 * y}, outside of the picture of {8 * size[1]}×{8 * size[0]}: "
            "move it"
        )
    return min(height, size[0] - y), min(width, size[1] - x), y, x


def _bounds(mask: Tensor) -> Area:
    """The box around all that is not 0 in a mask (b, h, w)."""
    height, width = mask.shape[-2:]
    places = mask.ne(0).any(dim=0).nonzero()
    if not len(places):
        return min(_SMALLEST, height), min(_SMALLEST, width), 0, 0
    (y, x), (bottom, right) = places.amin(0).tolist(), places.amax(0).tolist()
    return min(max(bottom - y + 1, _SMALLEST), height - y), min(max(right - x + 1, _SMALLEST), width - x), y, x


def opposed(guides: Sequence[list[Entry]]) -> list[list[Entry]]:
    """The guides with what ComfyUI adds to each for the sake of the others.

    An area in one guide gets an opposite in every other, with that guide's own text; and a ControlNet that the positive
    has by the simple Apply node acts on the negative as well.
    """
    out = [list(guide) for guide in guides]
    for index, guide in enumerate(out):
        for entry in list(guide):
            for other, opposite in enumerate(out):
                if other != index and entry.area is not None:
                    opposite += _same_area(entry, opposite, other)
    shared = [e.control for e in out[0] if e.area is None and e.control and e.data.get("control_apply_to_uncond")]
    for opposite in out[1:]:
        free = [place for place, entry in enumerate(opposite) if entry.area is None]
        if not free or any(opposite[place].control for place in free):
            continue
        for number, control in enumerate(shared):
            # Of more controls than entries the last one counts, as in ComfyUI.
            place = free[number % len(free)]
            opposite[place] = replace(opposite[place], control=control)
    return out


def _same_area(entry: Entry, opposite: Iterable[Entry], index: int) -> list[Entry]:
    """The entry to add to another guide: ``entry``'s place and time, and the text of the nearest one that holds it."""
    nearest: Entry | None = None
    for candidate in opposite:
        if candidate.area is not None and not _inside(entry.area, candidate.area):
            continue
        if nearest is None or nearest.area is None:
            nearest = candidate if nearest is None or candidate.area is not None else nearest
        elif candidate.area is not None and math.prod(nearest.area[:2]) > math.prod(candidate.area[:2]):
            nearest = candidate
    if nearest is None or nearest.area == entry.area:
        return []
    return [
        replace(
            entry,
            data=nearest.data,
            index=index,
            text=nearest.text,
            control_text=nearest.control_text,
            added=nearest.added,
        )
    ]


def _inside(area: Area | None, outer: Area) -> bool:
    if area is None:
        return False
    (height, width, y, x), (outer_height, outer_width, top, left) = area, outer
    return y >= top and x >= left and y + height <= top + outer_height and x + width <= left + outer_width


class Run(Protocol):
    """What ``engine.diffusers_host.attention_run`` answers."""

    def begin(self, chunks: list[Chunk], sigma: float, timestep: float, latent_shape: tuple[int, ...]) -> None:
        """Told before every call of the U-Net what goes through it: chunks in order, all of them (B, C, h, w)."""
        ...


class NoAttention:
    """The run of a model without attention adapters."""

    def begin(self, chunks: list[Chunk], sigma: float, timestep: float, latent_shape: tuple[int, ...]) -> None:
        return


def _nothing() -> None:
    return


@dataclass
class Denoiser:
    """``denoiser(x, sigma)`` answers the latent that the model sees behind a noisy one, guided."""

    model: Model
    unet: Any
    """The run's U-Net, from ``model.running``."""
    run: Run
    guides: list[list[Entry]]
    """From ``opposed``: positive, negative."""
    cfg: float
    """1 evaluates the positive alone."""
    batched: bool = True
    """Whether entries that agree in shape go through the U-Net together; the answer is the same."""
    check: Callable[[], None] = _nothing
    """Called before every call of the U-Net; raises if the user stopped the run."""
    hooks: Hooks = field(default_factory=Hooks)
    evaluations: int = 0
    """How many have been answered."""

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        number, level = self.evaluations, float(sigma)
        self.hooks.evaluate(number, level, x)
        answers = self.predict(self.guides[: 1 if math.isclose(self.cfg, 1.0) else 2], x, sigma)
        positive, negative = self.hooks.answered(number, level, x, answers[0], answers[1] if answers[1:] else None)
        return positive if negative is None else negative + (positive - negative) * self.cfg

    def predict(self, guides: Sequence[list[Entry]], x: Tensor, sigma: Tensor) -> list[Tensor]:
        """What every one of ``guides`` answers to ``x`` (B, C, h, w) at ``sigma`` (a number); one evaluation."""
        level = float(sigma)
        acting = [[entry for entry in guide if entry.window[1] <= level <= entry.window[0]] for guide in guides]
        waiting = [entry for guide in acting for entry in guide]
        numbers = {id(entry): number for guide in acting for number, entry in enumerate(guide)}
        places = {id(entry): place for place, guide in enumerate(guides) for entry in guide}
        sums = [torch.zeros_like(x) for _ in guides]
        # Not zero, so that a place that no entry covers becomes 0 and not undefined.
        weights = [torch.full_like(x, 1e-37) for _ in guides]
        while waiting:
            shapes = waiting[0].shapes()
            group = [e for e in waiting if self.batched and e.shapes() == shapes] or waiting[:1]
            waiting = [entry for entry in waiting if entry not in group]
            for entry, answer in zip(group, self._call(group, numbers, x, sigma), strict=True):
                place, weight = places[id(entry)], _weight(entry, answer, x.shape)
                cut(sums[place], entry.area).add_(answer * weight)
                cut(weights[place], entry.area).add_(weight)
        self.evaluations += 1
        return [total / weight for total, weight in zip(sums, weights, strict=True)]

    def _call(self, group: Sequence[Entry], numbers: dict[int, int], x: Tensor, sigma: Tensor) -> Sequence[Tensor]:
        """One call of the U-Net for entries of one shape; a latent without noise for each."""
        self.check()
        model, batch = self.model, len(x)
        noisy = torch.cat([cut(x, entry.area) for entry in group])
        timestep = model.sampling.timestep(sigma.reshape(1))
        chunks = [
            Chunk(e.data, e.index, batch, _part(e.area, x.shape), numbers[id(e)], self.evaluations) for e in group
        ]
        self.hooks.call(chunks, float(sigma), (int(noisy.shape[-2]), int(noisy.shape[-1])))
        self.run.begin(chunks, float(sigma), float(timestep), tuple(noisy.shape))
        scaled = model.sampling.scaled(noisy, sigma).to(model.dtype)
        times = timestep.float().to(x.device).expand(len(scaled))
        text = torch.cat([repeat_to(entry.text, batch) for entry in group]).to(model.dtype)
        added = None
        if group[0].added is not None:
            pooled = [repeat_to(entry.added[0], batch) for entry in group if entry.added]
            sizes = [repeat_to(entry.added[1], batch) for entry in group if entry.added]
            added = {"text_embeds": torch.cat(pooled).to(model.dtype), "time_ids": torch.cat(sizes)}
        extra: dict[str, Any] = {}
        if (control := group[0].control) is not None:
            hints = [e.text if e.control_text is None else e.control_text for e in group]
            hint_text = torch.cat([repeat_to(hint, batch) for hint in hints]).to(model.dtype)
            found = residuals(control, scaled, times, float(sigma), hint_text, added, len(group), model.sampling)
            if found is not None:
                extra = {"down_block_additional_residuals": found[0], "mid_block_additional_residual": found[1]}
        answer = self.unet(
            scaled, times, encoder_hidden_states=text, added_cond_kwargs=added, return_dict=False, **extra
        )[0]
        return model.sampling.denoised(noisy, answer.float(), sigma).split(batch)


def cut(x: Tensor, area: Area | None) -> Tensor:
    """The part of (…, h, w) that an area covers; a view."""
    if area is None:
        return x
    height, width, y, x0 = area
    return x[..., y : y + height, x0 : x0 + width]


def _part(area: Area | None, shape: Sequence[int]) -> tuple[float, float, float, float] | None:
    """Top, left, bottom and right of an area, as fractions of a latent (B, C, h, w)."""
    if area is None:
        return None
    (height, width, y, x), (h, w) = area, shape[-2:]
    return y / h, x / w, (y + height) / h, (x + width) / w


def _weight(entry: Entry, answer: Tensor, shape: Sequence[int]) -> Tensor:
    """How much an entry counts at every place of its area."""
    if entry.mask is not None:
        mask = cut(entry.mask[: shape[0]], entry.area)[:, None]
        return repeat_to(mask, len(answer)).expand_as(answer).to(answer) * entry.strength
    weight = torch.full_like(answer, entry.strength)
    if entry.area is not None:
        for dim, (size, start, whole) in enumerate(
            zip(entry.area[:2], entry.area[2:], shape[2:], strict=True), start=2
        ):
            fade = min(_FADE, weight.shape[dim] // 4)
            for place in range(fade):
                if start:
                    weight.narrow(dim, place, 1).mul_((place + 1) / fade)
                if start + size < whole:
                    weight.narrow(dim, size - 1 - place, 1).mul_((place + 1) / fade)
    return weight
