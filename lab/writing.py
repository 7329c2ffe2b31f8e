"""What was measured as a table, plots and contact sheets, and the choice of the cure's settings."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..face.errors import MissingPackage
from ..face.host import StandaloneHost
from ..nodes.cure import ATTENTION, BLENDING, GUIDANCE
from . import nets
from .fit import seeded
from .report import (
    BOTH,
    MAIN,
    Measure,
    Part,
    Row,
    cast,
    draw_all,
    gather,
    kind,
    one,
    parts,
    recovered,
    selection,
)
from .sheet import sheet
from .studio import Arm
from .world import ATTRIBUTES, TRAITS, chances, draw, people, wishes

WEIGHTS = Path(__file__).with_name("weights")
COST = 0.05
"""The most likeness that a cure's settings may cost, of what the adapter gives."""
SETTINGS = Path(__file__).with_name("settings.json")


def models() -> Path:
    """Where ``likeness models fetch lab`` puts them."""
    return StandaloneHost().models()


def choose(work: Path, processes: int) -> None:
    """Settings of each kind of cure: of those that cost at most ``COST`` of the likeness the most consistent; if none
    does, the one that costs least. Writes ``settings.json``."""
    part = selection()
    draw_all([part], work / "report", models(), WEIGHTS, processes)
    rows, found = gather(part, work / "report"), dict[str, Any]()
    plain = asdict(Arm())
    for adapter in MAIN:
        kinds: dict[str, list[Arm]] = {}
        for arm in part.arms:
            if arm.adapter == adapter and arm.method:
                kinds.setdefault(kind(arm), []).append(arm)
        found[adapter] = {}
        for name, arms in kinds.items():
            figures = {arm.name: (*recovered(rows, adapter, arm.name), arm) for arm in arms}
            cheap = [f for f in figures.values() if f[1] <= COST]
            best = max(cheap, key=lambda f: f[0]) if cheap else min(figures.values(), key=lambda f: f[1])
            changed = {k: v for k, v in asdict(best[2]).items() if v != plain[k] and k not in ("adapter", "strength")}
            found[adapter][name] = changed
    for kinds_ in found.values():
        # This guidance comes after the cure that was chosen.
        kinds_[BOTH] = {**kinds_[ATTENTION], "gamma": kinds_[BOTH]["gamma"]}
    SETTINGS.write_text(json.dumps(found, indent=1) + "\n")
    print(table([rows[arm.name] for arm in part.arms if arm.name in rows]))


def report(work: Path, out: Path, processes: int, quick: bool) -> None:
    """Draw what is not on record, then write ``report.md``, ``report.json``, plots and sheets to ``out``. Raises
    MissingPackage, before anything is drawn, without matplotlib."""
    pyplot = plotting()
    out.mkdir(parents=True, exist_ok=True)
    all_parts, folder = parts(quick), work / ("quick" if quick else "report")
    draw_all(all_parts, folder, models(), WEIGHTS, processes)
    rows = {part.name: gather(part, folder) for part in all_parts}
    text = ["# The lab's report", "", judged(Measure(WEIGHTS), 400 if quick else 2000), ""]
    for part in all_parts:
        here = rows[part.name]
        text += [
            f"## {part.name}",
            "",
            f"{part.people} people × {part.prompts} prompts.",
            "",
            table(list(here.values())),
        ]
        text += ["", *summary(here, part), ""]
    (out / "report.md").write_text("\n".join(text))
    (out / "report.json").write_text(
        json.dumps({name: {n: asdict(row) for n, row in found.items()} for name, found in rows.items()}, indent=1)
    )
    contact(all_parts[0], folder).save(out / "sheet.png")
    spread = all_parts[0] if quick else all_parts[1]
    tradeoff(spread, rows[spread.name], pyplot, out / "tradeoff.png")
    by_attribute(rows[all_parts[0].name], pyplot, out / "attributes.png")


def table(rows: Sequence[Row]) -> str:
    """Markdown."""
    names = [name for name in ATTRIBUTES if any(name in row.by_attribute for row in rows)]
    head = ["arm", "pictures", "likeness", "traits", "consistency", "with a place", *names, "diversity"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        low, high = interval([pair[1] for pair in row.by_person])
        cells = [
            row.arm,
            str(row.pictures),
            f"{row.likeness:.3f}",
            f"{row.traits:.3f}",
            f"{row.consistency:.3f} ({low:.3f}–{high:.3f})",
            f"{row.placed:.3f}",
            *(f"{row.by_attribute[name]:.2f}" if name in row.by_attribute else "" for name in names),
            f"{row.diversity:.3f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def interval(values: Sequence[float], times: int = 2000) -> tuple[float, float]:
    """95 % of the mean, people drawn again with replacement (bootstrap)."""
    drawn = np.random.default_rng(0).choice(np.asarray(values), (times, len(values))).mean(1)
    return float(np.quantile(drawn, 0.025)), float(np.quantile(drawn, 0.975))


def summary(rows: Mapping[str, Row], part: Part) -> list[str]:
    """A sentence per cure: what it gives back and what it costs."""
    lines: list[str] = []
    for arm in part.arms:
        plain = Arm(arm.adapter, MAIN.get(arm.adapter, 1.0)).name
        if arm.method and arm.name in rows and plain in rows and "base" in rows:
            back, cost = recovered(rows, arm.adapter, arm.name)
            lines.append(f"- {arm.name}: gives back {back:.0%} of the lost consistency and costs {cost:.1%} likeness.")
    return lines


def judged(measure: Measure, count: int) -> str:
    """The judges' own accuracy on renders, which no figure can be better than."""
    who, what = people(count, seeded(303, 1), strangers=True), wishes(count, seeded(303, 2))
    pixels = draw(who, what, chances(count, seeded(303, 3))).pixels
    with torch.inference_mode():
        read = measure.reads(pixels)
        seen = nets.visible(what)
        attributes = {name: float((read[name] == what[name]).mean()) for name in ATTRIBUTES}
        traits = {name: float((read[name] == who[name])[seen[name]].mean()) for name in TRAITS}
        vectors = measure.vectors(measure.likeness, pixels[:200], {n: v[:200] for n, v in who.items()})
        unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        galleries = np.stack([measure.gallery(one(who, n), seeded(303, 4, n)) for n in range(min(count, 200))])
        cosines = unit @ galleries.T
    same = float(np.diag(cosines).mean())
    other = float(cosines[~np.eye(len(cosines), dtype=bool)].mean())
    first = float((cosines.argmax(1) == np.arange(len(cosines))).mean())
    told = ", ".join(f"{name} {value:.3f}" for name, value in attributes.items())
    told_traits = ", ".join(f"{name} {value:.3f}" for name, value in traits.items())
    return (
        f"The judges on {count} fresh renders of people nobody was trained on. Attributes: {told}. Visible traits: "
        f"{told_traits}. Judge of identity: cosine {same:.3f} to the person, {other:.3f} to others; the right one of "
        f"{len(cosines)} first in {first:.1%}."
    )


def contact(part: Part, folder: Path, people_: int = 6) -> Any:
    """People in rows: the reference, without the person, with each adapter, and cured. The first ``people_`` for whom
    the first adapter loses anything, each with the prompt of which it loses most."""
    here = cast(part)
    first = next(arm.name for arm in part.arms if arm.adapter and not arm.method)
    rows: list[list[Any]] = []
    captions: list[list[str]] = []
    for number in range(part.people):
        record = json.loads((folder / part.name / f"{number:03d}.json").read_text())
        lost = [list(right.values()).count(False) for right in record[first]["attributes"]]
        prompt_ = int(np.argmax(lost))
        if len(rows) == people_:
            break
        if not lost[prompt_]:
            continue
        with np.load(folder / part.name / f"{number:03d}.npz") as stored:
            rows.append([stored["reference"][0], *(stored[arm.name][prompt_] for arm in part.arms)])
        lines = ["asked for:\n" + "\n".join(here.prompts[prompt_].split(", ")[1:])]
        for arm in part.arms:
            right = record[arm.name]["attributes"][prompt_]
            missing = [name for name, good in right.items() if not good]
            cosine = record[arm.name]["likeness"][prompt_]
            lines.append(f"likeness {cosine:.2f}\n" + (f"no {', '.join(missing)}" if missing else "all there"))
        captions.append(lines)
    heads = ["reference", *(" ".join(filter(None, (arm.adapter or "base", arm.method))) for arm in part.arms)]
    return sheet(rows, captions, heads, scale=5)


def plotting() -> Any:
    """matplotlib's pyplot, that writes files only. Raises MissingPackage."""
    try:
        import matplotlib  # pyright: ignore[reportMissingImports]

        matplotlib.use("Agg")
        from matplotlib import pyplot  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise MissingPackage(
            f"the plots need matplotlib ({error}); install it with: pip install 'comfyui-likeness[lab]'"
        ) from error
    return pyplot


MARKS = {"": "o", ATTENTION: "^", BLENDING: "v", BOTH: "D", GUIDANCE: "s"}


def tradeoff(part: Part, rows: Mapping[str, Row], pyplot: Any, file: Path) -> None:
    """Consistency over likeness, adapters by their strength as lines."""
    figure, axes = pyplot.subplots(figsize=(7, 5))
    axes.plot(rows["base"].likeness, rows["base"].consistency, "k*", markersize=12, label="base")
    for colour, adapter in zip(("tab:blue", "tab:orange"), MAIN, strict=True):
        plain = [rows[arm.name] for arm in part.arms if arm.adapter == adapter and not arm.method]
        axes.plot([r.likeness for r in plain], [r.consistency for r in plain], "--", color=colour, alpha=0.5)
        for arm in part.arms:
            if arm.adapter == adapter:
                at = rows[arm.name]
                axes.plot(at.likeness, at.consistency, MARKS[kind(arm)], color=colour, markersize=8, label=arm.name)
    axes.set_xlabel("likeness (cosine, judge of identity)")
    axes.set_ylabel("prompt consistency")
    axes.set_title(f"{part.people} people × {part.prompts} prompts", fontsize=9)
    axes.legend(fontsize=6)
    figure.tight_layout()
    figure.savefig(file, dpi=110)


def by_attribute(rows: Mapping[str, Row], pyplot: Any, file: Path) -> None:
    """Consistency of each attribute as bars."""
    figure, axes = pyplot.subplots(figsize=(9, 4.5))
    names = list(rows["base"].by_attribute)
    width = 0.8 / len(rows)
    for place, (name, row) in enumerate(rows.items()):
        values = [row.by_attribute[n] for n in names]
        axes.bar(np.arange(len(names)) + place * width, values, width, label=name)
    axes.set_xticks(np.arange(len(names)) + 0.4, names)
    axes.set_ylabel("prompt consistency")
    figure.legend(fontsize=6, ncol=4, loc="upper center")
    figure.tight_layout(rect=(0, 0, 1, 0.93))
    figure.savefig(file, dpi=110)
