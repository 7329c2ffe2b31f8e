"""The measurement: do adapters carry identity, does identity cost attributes, and does the cure give them back?

Settings of the cure are chosen on ten people; the figures are of fifty others, nobody of whom recognisers or adapters
were trained on. Every picture of one person and one prompt begins with the same noise, whatever is done with it, so
that all comparisons are paired.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..nodes.cure import ATTENTION, GUIDANCE
from . import nets
from .fit import seeded
from .studio import WHOLE, Arm, Pixels, Studio
from .text import prompt
from .world import ATTRIBUTES, TRAITS, Values, chances, draw, people, wishes

GALLERY = 24
"""Portraits of a person, in all sorts of attributes, that the judge of identity compares with."""
OF_THE_PERSON = tuple(name for name in ATTRIBUTES if name not in ("background", "light"))
"""What the prompts ask for: FreeCure is about what a person wears and looks like."""
PLACED = tuple(name for name in OF_THE_PERSON if name != "expression")
"""Attributes with a place, which a mask can hold."""
MAIN = {"faceid": 1.0, "instantid": 1.0}
"""At which strength each adapter is cured."""
STRENGTHS = (0.4, 0.6, 0.8, 1.0)
BOTH = "attention and guidance"
"""The cure as published: attention, then guidance for what has no place."""


@dataclass(frozen=True)
class Part:
    """One set of people and prompts, and how they are drawn."""

    name: str
    people: int
    prompts: int
    seed: int
    arms: tuple[Arm, ...]


def cure(adapter: str, **settings: Any) -> Arm:
    whole: dict[str, Any] = {"method": ATTENTION, **settings}
    return Arm(adapter, MAIN[adapter], **whole)


def chosen() -> dict[str, dict[str, Any]]:
    """What the ten people settled, by adapter and method: ``settings.json`` beside this file."""
    return json.loads(Path(__file__).with_name("settings.json").read_text())


def candidates(adapter: str) -> list[Arm]:
    """What is tried on the ten people."""
    found = [cure(adapter, omega=omega) for omega in (0.0, 0.5, 1.5, 3.0)]
    found += [cure(adapter, omega=omega, layers="all") for omega in (0.5, 1.5, 3.0)]
    found += [cure(adapter, omega=1.5, end=0.6), cure(adapter, omega=1.5, grow=6)]
    found += [cure(adapter, omega=1.5, source=source) for source in ("cross-attention", WHOLE)]
    found += [cure(adapter, method="noise blending", end=end) for end in (0.6, 1.0)]
    found += [cure(adapter, omega=1.5, gamma=gamma) for gamma in (0.5, 0.7)]
    found += [cure(adapter, method=GUIDANCE, gamma=gamma) for gamma in (0.3, 0.4, 0.5, 0.6)]
    return found


def kind(arm: Arm) -> str:
    """What the settings call a way of curing."""
    return BOTH if arm.method == ATTENTION and arm.gamma else arm.method


def parts(quick: bool = False) -> list[Part]:
    settings = chosen()
    base = Arm()
    ablations: list[Arm] = [base]
    sweep: list[Arm] = [base]
    main: list[Arm] = [base]
    for adapter in MAIN:
        best = settings[adapter][ATTENTION]
        plain = Arm(adapter, MAIN[adapter])
        sweep += [Arm(adapter, s) for s in STRENGTHS]
        main += [plain, *(cure(adapter, **settings[adapter][kind]) for kind in (ATTENTION, GUIDANCE))]
        sweep += [cure(adapter, **of_kind) for of_kind in settings[adapter].values()]
        ablations += [plain, cure(adapter, **best)]
        for changes in (
            *({"omega": omega} for omega in (0.0, 0.5, 1.5, 3.0)),
            {"omega": 2.0, "omega_mode": "multiplicative"},
            *({"source": source} for source in ("cross-attention", WHOLE)),
            {"grow": 8},
            *({"start": start, "end": end} for start, end in ((0.0, 0.5), (0.5, 1.0))),
            *({"layers": layers} for layers in ("authors", "up blocks", "all")),
        ):
            ablations.append(cure(adapter, **{**best, **changes}))
        ablations += [cure(adapter, method=GUIDANCE, gamma=gamma) for gamma in (0.2, 0.3, 0.5, 0.7)]
    if quick:
        return [Part("main", 2, 3, 101, tuple(main[:4]))]
    return [
        Part("main", 50, 20, 101, tuple(main)),
        Part("strengths and methods", 50, 4, 102, tuple(dict.fromkeys(sweep))),
        Part("ablations", 10, 5, 101, tuple(dict.fromkeys(ablations))),
    ]


def selection() -> Part:
    """The ten people on whom settings are chosen."""
    arms = [Arm(), *(Arm(a, MAIN[a]) for a in MAIN), *(c for a in MAIN for c in candidates(a))]
    return Part("selection", 10, 20, 202, tuple(arms))


@dataclass(frozen=True)
class Cast:
    """Who is drawn with which prompts."""

    who: Values
    prompts: tuple[str, ...]
    what: Values
    named: tuple[tuple[str, ...], ...]
    """Per prompt the attributes that it names."""


def cast(part: Part) -> Cast:
    """People nobody was trained on, and prompts of two or three attributes, none of them a *none*."""
    who = people(part.people, seeded(part.seed, 1), strangers=True)
    what = wishes(part.prompts, seeded(part.seed, 2))
    draws = np.random.default_rng(seeded(part.seed, 3))
    named: list[tuple[str, ...]] = []
    names = OF_THE_PERSON
    for row in range(part.prompts):
        there = [n for n in names if ATTRIBUTES[n][int(what[n][row])] != "none"]
        count = int(draws.integers(2, 4))
        named.append(tuple(there[i] for i in draws.permutation(len(there))[:count]))
    return Cast(who, tuple(prompt(what, n, these) for n, these in enumerate(named)), what, tuple(named))


def one(who: Values, number: int, times: int = 1) -> Values:
    """Person ``number``, ``times`` over."""
    return {name: np.repeat(values[number : number + 1], times) for name, values in who.items()}


class Measure:
    """The judges, opened once."""

    def __init__(self, folder: Path) -> None:
        self.judge = nets.load(folder, "judge")
        self.recogniser = nets.load(folder, "recogniser")
        self.likeness = nets.load(folder, "recogniser_judge")

    @torch.no_grad()
    def reads(self, pixels: Pixels) -> dict[str, np.ndarray[Any, Any]]:
        """What the judge sees: (N,) places of values by attribute and trait."""
        return {name: odds.argmax(-1).numpy() for name, odds in self.judge(nets.tensor(pixels)).items()}

    @torch.no_grad()
    def vectors(self, network: Any, pixels: Pixels, who: Values) -> np.ndarray[Any, Any]:
        return network(nets.crops(pixels, nets.points(who))).numpy()

    def gallery(self, who: Values, seed: int) -> np.ndarray[Any, Any]:
        """(V,): the mean direction of one person (1,) in all sorts of attributes, for the judge of identity."""
        many = {name: np.repeat(values, GALLERY) for name, values in who.items()}
        pixels = draw(many, wishes(GALLERY, seeded(seed, 8)), chances(GALLERY, seeded(seed, 9))).pixels
        return _unit(_unit(self.vectors(self.likeness, pixels, many)).mean(0))

    def record(self, pixels: Pixels, who: Values, gallery: np.ndarray[Any, Any], here: Cast) -> dict[str, Any]:
        """Figures of one person's pictures (P, 32, 32, 3), one a prompt."""
        count = len(pixels)
        read = self.reads(pixels)
        many = {name: np.repeat(values, count) for name, values in who.items()}
        cosine = _unit(self.vectors(self.likeness, pixels, many)) @ gallery
        seen = nets.visible({name: read[name] for name in ATTRIBUTES})
        traits = [
            [bool(read[t][row] == who[t][0]) if bool(seen[t][row]) else None for t in TRAITS] for row in range(count)
        ]
        right = [{n: bool(read[n][row] == here.what[n][row]) for n in here.named[row]} for row in range(count)]
        flat = pixels.astype(np.float32) / 255
        spread = [float(np.abs(flat[a] - flat[b]).mean()) for a, b in combinations(range(count), 2)]
        return {
            "likeness": [round(float(c), 4) for c in cosine],
            "traits": traits,
            "attributes": right,
            "diversity": round(float(np.mean(spread)), 5) if spread else 0.0,
        }


def _unit(vectors: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-9)


def reference(who: Values, seed: int) -> Pixels:
    """(1, 32, 32, 3): the picture of a person (1,) that the adapter is given."""
    return draw(who, wishes(1, seeded(seed, 6)), chances(1, seeded(seed, 7))).pixels


def run(part: Part, number: int, studio: Studio, measure: Measure, folder: Path) -> None:
    """Draw person ``number`` in every way that is not on record yet, and put figures and pictures on record."""
    here = cast(part)
    who, seed = one(here.who, number), seeded(part.seed, 10, number)
    file = folder / part.name / f"{number:03d}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    done: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    todo = [arm for arm in part.arms if arm.name not in done]
    if not todo:
        return
    shown = reference(who, seed)
    session = studio.session(who, measure.vectors(measure.recogniser, shown, who), here.prompts, seed % 2**31)
    gallery = measure.gallery(who, seed)
    pictures: dict[str, Pixels] = {}
    for arm in todo:
        pixels = session.pixels(arm)
        done[arm.name] = measure.record(pixels, who, gallery, here)
        pictures[arm.name] = pixels
    store = file.with_suffix(".npz")
    if store.is_file():
        with np.load(store) as old:
            pictures = {**{k: old[k] for k in old.files}, **pictures}
    arrays: dict[str, Any] = {**pictures, "reference": shown}
    np.savez_compressed(store.with_suffix(".new.npz"), **arrays)
    os.replace(store.with_suffix(".new.npz"), store)
    part_file = file.with_suffix(".new")
    part_file.write_text(json.dumps(done))
    os.replace(part_file, file)


def _worker(rank: int, parts: Sequence[Part], folder: Path, models: Path, weights: Path, workers: int) -> None:
    torch.set_num_threads(1 if workers > 1 else torch.get_num_threads())
    with torch.inference_mode():
        studio, measure = Studio(models), Measure(weights)
        for part in parts:
            for number in range(rank, part.people, workers):
                run(part, number, studio, measure, folder)


def draw_all(parts: Sequence[Part], folder: Path, models: Path, weights: Path, workers: int = 2) -> None:
    """Draw everything that is not on record in ``folder`` yet, a person at a time on every core."""
    if workers == 1:
        _worker(0, parts, folder, models, weights, 1)
    else:
        torch.multiprocessing.spawn(_worker, (parts, folder, models, weights, workers), nprocs=workers)  # pyright: ignore[reportPrivateImportUsage]


# Figures


@dataclass(frozen=True)
class Row:
    """What all pictures of one arm come to."""

    arm: str
    pictures: int
    likeness: float
    """Mean cosine to the person, by the judge of identity."""
    traits: float
    """Share of the visible traits that are the person's, by the judge of traits."""
    consistency: float
    """Share of the attributes a prompt names that are in the picture."""
    placed: float
    """The same of attributes that have a place."""
    by_attribute: Mapping[str, float]
    diversity: float
    """Mean absolute difference of two pictures of one person, of 1."""
    by_person: tuple[tuple[float, float], ...]
    """(likeness, consistency) of every person, for intervals."""


def gather(part: Part, folder: Path) -> dict[str, Row]:
    """The rows of all arms on record, by name."""
    people_ = [json.loads(file.read_text()) for file in sorted((folder / part.name).glob("*.json"))]
    rows: dict[str, Row] = {}
    for arm in part.arms:
        records = [person[arm.name] for person in people_ if arm.name in person]
        if not records:
            continue
        named: dict[str, list[bool]] = {}
        for record in records:
            for right in record["attributes"]:
                for name, value in right.items():
                    named.setdefault(name, []).append(value)
        flat = [v for values in named.values() for v in values]
        placed = [v for name, values in named.items() if name in PLACED for v in values]
        traits = [v for record in records for row in record["traits"] for v in row if v is not None]
        by_person = tuple(
            (
                float(np.mean(record["likeness"])),
                float(np.mean([v for right in record["attributes"] for v in right.values()])),
            )
            for record in records
        )
        rows[arm.name] = Row(
            arm.name,
            sum(len(record["likeness"]) for record in records),
            float(np.mean([c for record in records for c in record["likeness"]])),
            float(np.mean(traits)),
            float(np.mean(flat)),
            float(np.mean(placed)),
            {name: float(np.mean(named[name])) for name in ATTRIBUTES if name in named},
            float(np.mean([record["diversity"] for record in records])),
            by_person,
        )
    return rows


def recovered(rows: Mapping[str, Row], adapter: str, arm: str) -> tuple[float, float]:
    """(share of the lost consistency that a cure gives back, share of the likeness that it costs)."""
    base, plain, cured = rows["base"], rows[Arm(adapter, MAIN[adapter]).name], rows[arm]
    lost = base.consistency - plain.consistency
    return (
        (cured.consistency - plain.consistency) / lost if lost > 0 else float("nan"),
        1 - cured.likeness / plain.likeness,
    )
