"""Making the lab: what is trained, in which order, and what each part must show before the next one begins.

``make`` goes on where it was cut off. A gate that does not pass stops everything, with its figures.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..face.errors import LikenessError
from . import autoencoder, nets
from .adapters import AdapterTask, drawings
from .base import Base, BaseTask, OutlineTask, read, sample, scenes, unfold
from .export import export
from .fit import fit, seeded
from .report import Measure
from .sheet import sheet
from .text import words
from .world import ATTRIBUTES, TRAITS, Values

Figures = dict[str, Any]
AGREEMENT = 0.95
ABOVE = 0.2
"""How far each attribute must lie above what always guessing its most frequent value gives, or above 0.9."""
GUIDANCE = 2.0


class GateFailed(LikenessError):
    """What was trained is not good enough for what would come next."""


@dataclass(frozen=True)
class Place:
    """Where the lab is made."""

    work: Path
    """Records, weights in float32, figures and sheets of every stage."""
    vocabulary: Path
    """CLIP's, in OpenAI's file."""
    processes: int = 2


@dataclass(frozen=True)
class Stage:
    name: str
    train: Callable[[Place], None]
    gate: Callable[[Place], Figures]
    """Figures of what was trained; raises GateFailed."""


def make(place: Place, only: str = "") -> None:
    """All stages in their order, or up to ``only``. Raises GateFailed."""
    place.work.mkdir(parents=True, exist_ok=True)
    for stage in STAGES:
        record = place.work / f"{stage.name}.gate.json"
        if not record.is_file():
            began = time.monotonic()
            sys.stderr.write(f"{stage.name}: training\n")
            stage.train(place)
            minutes = (time.monotonic() - began) / 60
            with torch.inference_mode():
                figures = stage.gate(place)
            record.write_text(json.dumps({"minutes": round(minutes, 1), **figures}, indent=1))
        sys.stderr.write(f"{stage.name}: passed, {record.read_text()}\n")
        if stage.name == only:
            return
    sizes = export(place.work, Path(__file__).with_name("weights"), place.vocabulary)
    sys.stderr.write(f"weights: {sum(sizes.values()) / 1e6:.1f} MB in {len(sizes)} files\n")


def require(good: bool, what: str, figures: Figures) -> None:
    if not good:
        raise GateFailed(f"the gate did not open: {what}. Measured: {json.dumps(figures)}")


# The base model


def _base(place: Place) -> None:
    fit(OutlineTask(place.vocabulary), place.work, place.processes)
    fit(BaseTask(place.vocabulary, folder=place.work), place.work, place.processes)


def base_gate(place: Place, count: int = 200) -> Figures:
    """200 fresh prompts: what they name is in the pictures. A sheet is written for a person to look at."""
    table = words(place.vocabulary)
    model = Base(table.size)
    model.load_state_dict(torch.load(place.work / "base.pt", weights_only=True))
    judge = Measure(place.work)
    these = scenes(count, seeded(77, 1))
    text, empty = (read(model.text, table.tokens(t)) for t in (these.prompts, [""] * count))
    parts = [slice(n, n + 50) for n in range(0, count, 50)]
    pixels = np.concatenate(
        [unfold(sample(model.unet, text[p], empty[p], list(range(count))[p], GUIDANCE)) for p in parts]
    )
    read_ = judge.reads(pixels)
    by: dict[str, list[bool]] = {name: [] for name in ATTRIBUTES}
    for row, named in enumerate(these.named):
        for name in named:
            by[name].append(bool(read_[name][row] == these.what[name][row]))
    agreement = {name: round(float(np.mean(hits)), 3) for name, hits in by.items()}
    majority = {name: round(float(np.bincount(these.what[name]).max() / count), 3) for name in ATTRIBUTES}
    every = float(np.mean([hit for hits in by.values() for hit in hits]))
    captions = ["\n".join(p.split(", ")[1:5]) for p in these.prompts]
    sheet(
        [list(pixels[n : n + 8]) for n in range(0, 32, 8)],
        [captions[n : n + 8] for n in range(0, 32, 8)],
        title="The base model, fresh prompts",
    ).save(place.work / "base.png")
    people_seen = len({tuple(int(read_[t][row]) for t in TRAITS) for row in range(count)})
    figures: Figures = {"agreement": round(every, 4), "by attribute": agreement, "majority": majority}
    figures["different people"] = people_seen
    require(every >= AGREEMENT, f"agreement {every:.3f}, wanted {AGREEMENT}", figures)
    for name, value in agreement.items():
        good = value >= min(majority[name] + ABOVE, 0.9)
        require(good, f"{name} is right {value:.2f} of the time; always its commonest: {majority[name]:.2f}", figures)
    return figures


# Adapters


STEPS = {"faceid": (1000, 1400), "instantid": (550, 2500)}
"""Of an adapter's two trainings."""


def _adapter(name: str) -> Callable[[Place], None]:
    def train(place: Place) -> None:
        first, more = STEPS[name]
        begun = AdapterTask(f"{name}_first", place.vocabulary, place.work, first)
        fit(begun, place.work, place.processes)
        whole = AdapterTask(name, place.vocabulary, place.work, more, seed=6, rate=2e-3, first=begun.name)
        fit(whole, place.work, place.processes)

    return train


def drawn(module: Any, text: torch.Tensor, empty: torch.Tensor, vectors: torch.Tensor, hints: torch.Tensor,
          seeds: list[int]) -> np.ndarray[Any, Any]:  # fmt: skip
    """(N, 32, 32, 3): portraits by an adapter as it was trained, the unconditional half with a vector of zeros."""

    class Shown(torch.nn.Module):
        def forward(self, x: torch.Tensor, t: torch.Tensor, context: torch.Tensor) -> Any:
            class Answer:
                sample = module.answer(x, t, context, torch.cat([vectors, torch.zeros_like(vectors)]), hints)

            return Answer

    return unfold(sample(Shown(), text, empty, seeds, GUIDANCE))


def _adapter_gate(name: str) -> Callable[[Place], Figures]:
    def gate(place: Place, count: int = 96) -> Figures:
        """Of people nobody was trained on: more of their traits than without the adapter, under prompts that say
        other things than their reference. Attributes are told, not judged: losing some is the published failing."""
        task = AdapterTask(name, place.vocabulary, place.work)
        module: Any = task.build()
        module.load_state_dict(torch.load(place.work / f"{name}.pt", weights_only=True), strict=False)
        measure, table = Measure(place.work), words(place.vocabulary)
        references = scenes(count, seeded(78, 1), strangers=True)
        wanted = scenes(count, seeded(78, 2), 2, 3)
        places = nets.points(references.who)
        vectors = measure.recogniser(nets.crops(references.portraits.pixels, places))
        hints = drawings(places).repeat(2, 1, 1, 1) if name == "instantid" else torch.empty(0)
        text, empty = (read(module.base.text, table.tokens(t)) for t in (wanted.prompts, [""] * count))
        figures: Figures = {}
        rows: list[list[Any]] = [list(references.portraits.pixels[:10])]
        for label, shown in (("without", False), ("with", True)):
            if shown:
                pixels = drawn(module, text, empty, vectors, hints, list(range(count)))
            else:
                plain = Base(table.size)
                plain.load_state_dict(torch.load(place.work / "base.pt", weights_only=True))
                pixels = unfold(sample(plain.unet, text, empty, list(range(count)), GUIDANCE))
            figures[label] = _read(measure, pixels, references.who, wanted)
            rows.append(list(pixels[:10]))
        sheet(rows, title=f"{name}: references, without, with").save(place.work / f"{name}.png")
        gained = figures["with"]["traits"] - figures["without"]["traits"]
        require(gained >= 0.2, f"the share of traits rises by {gained:.2f}, wanted 0.2", figures)
        return figures

    return gate


def _read(measure: Measure, pixels: np.ndarray[Any, Any], who: Values, wanted: Any) -> Figures:
    read_ = measure.reads(pixels)
    seen = nets.visible({name: read_[name] for name in ATTRIBUTES})
    by = {t: round(float((read_[t] == who[t])[seen[t]].mean()), 3) for t in TRAITS}
    hits = [
        bool(read_[name][row] == wanted.what[name][row]) for row, named in enumerate(wanted.named) for name in named
    ]
    return {"traits": round(float(np.mean(list(by.values()))), 3), "consistency": round(float(np.mean(hits)), 3), **by}


STAGES: tuple[Stage, ...] = (
    *(
        Stage(
            name,
            lambda place, name=name: nets.train(name, place.work, place.processes),
            lambda place, name=name: nets.gate(name, place.work),
        )
        for name in nets.NAMES
    ),
    Stage("base", _base, base_gate),
    Stage("autoencoder", lambda place: autoencoder.train(place.work), lambda place: autoencoder.gate(place.work)),
    Stage("faceid", _adapter("faceid"), _adapter_gate("faceid")),
    Stage("instantid", _adapter("instantid"), _adapter_gate("instantid")),
)
