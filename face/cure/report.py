"""What a cure changed, for people and for programs: before and after side by side, a line for every attribute, JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from ..errors import BadInput
from ..image import as_image, from_uint8
from ..report import (
    BAD,
    GAP,
    GOOD,
    GREY,
    HEAD,
    INK,
    MAT,
    MOST,
    PAD,
    PAPER,
    RULE,
    THUMB,
    TITLE,
    Row,
    _across,
    _plain,
    _symbol,
    _thumb,
    _write,
)
from ..types import FaceScore
from .judge import Verdict

if TYPE_CHECKING:
    from PIL import Image, ImageDraw

SCHEMA = "likeness.cure/1"
"""Grows when a field changes its meaning or goes; new fields may come without."""

NAME, STATE, WHO = 196, 128, 112
"""Widths of the columns: the attribute, what was said before and after, and who said it."""
PANEL = NAME + 2 * STATE + WHO
LINE, SUMMARY, FOOT = 26, 34, 50
SIGN = 15


@dataclass(frozen=True, eq=False)
class Side:
    """The pictures before or after a cure, and what was said of them."""

    pictures: Tensor
    """(P, H, W, 3)."""
    verdicts: tuple[tuple[Verdict, ...], ...]
    """Per picture one an attribute."""
    similarity: tuple[float | None, ...] = ()
    """Per picture how like the person it is; empty where nobody looked."""
    judge: str = ""
    """The recogniser that said so."""
    took_part: bool = False
    """Whether that recogniser drove the pictures: then its word is to be doubted."""


def side(pictures: Any, verdicts: Sequence[Sequence[Verdict]], scores: Sequence[FaceScore] | None = None) -> Side:
    """One side of the sheet, with the similarities of ``scores``: per picture the face most like the person.

    Raises BadInput for verdicts or scores of another number of pictures.
    """
    image = as_image(pictures)
    batch = len(image)
    if len(verdicts) != batch:
        raise BadInput(
            f"the verdicts are those of {len(verdicts)} pictures, but the image has {batch}. Judge this very batch."
        )
    rows = tuple(tuple(row) for row in verdicts)
    if scores is None:
        return Side(image, rows)
    if any(not 0 <= record.image < batch for record in scores):
        raise BadInput(f"the scores speak of pictures beyond the {batch} that came with them. Score this very batch.")
    best: list[float | None] = []
    for i in range(batch):
        values = [r.similarity for r in scores if r.image == i and r.similarity is not None]
        best.append(max(values, default=None))
    judge = next((record.judge for record in scores if record.judge), None) or ""
    return Side(image, rows, tuple(best), judge, any("judge_drove_swap" in record.flags for record in scores))


def sheet(
    before: Side, after: Side, *, title: str = "", captions: Sequence[str] | None = None, most: int = MOST
) -> Tensor:
    """A sheet (1, H, W, 3): for every picture both versions, a line an attribute with what was said before and after.

    Blue with a tick is present, vermilion with a cross missing, a grey ring *not judged*: neither. Below stands the
    similarity to the person before and after, and whether its judge took part in the drawing. Pictures beyond ``most``
    are counted, not drawn. Raises BadInput for sides of different length.
    """
    from PIL import Image, ImageDraw

    _check(before, after, captions)
    count = len(after.pictures)
    drawn = min(count, max(1, most))
    lines = max((len(_pairs(before, after, i)) for i in range(count)), default=0)
    liked = bool(before.similarity or after.similarity)
    panel = SUMMARY + LINE * (1 + lines) + (FOOT if liked else 0)
    width, height = 2 * (THUMB + GAP) + PANEL + 2 * PAD, PAD + HEAD + max(TITLE + THUMB, panel) + PAD
    across = _across(max(1, drawn), width, height)
    top = 54 if title else PAD
    hidden = count - drawn
    down = -(-max(1, drawn) // across)
    size = (across * (width + GAP) - GAP + 2 * PAD, top + down * (height + GAP) - GAP + PAD + (28 if hidden else 0))
    canvas = Image.new("RGB", size, MAT)
    pen = ImageDraw.Draw(canvas)
    if title:
        _write(pen, (PAD, 27), title, 22, INK, size[0] - 2 * PAD)
    for i in range(drawn):
        place = PAD + i % across * (width + GAP), top + i // across * (height + GAP), width, height
        caption = captions[i] if captions is not None else f"picture {i + 1} of {count}"
        _card(canvas, pen, place, before, after, i, caption)
    if hidden:
        _write(pen, (PAD, size[1] - 20), f"and {hidden} more, in the JSON", 14, GREY, size[0] - 2 * PAD)
    return from_uint8(np.array(canvas))[None]


def to_json(before: Side, after: Side, *, settings: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The same as plain values, ready for ``json.dumps``. ``present`` null is *not judged*.

    ``settings`` is whatever else is worth keeping (why a loop stopped, …). Raises BadInput for sides of different
    length.
    """
    _check(before, after, None)
    pictures = [
        {
            "image": i,
            "attributes": [
                {
                    "attribute": now.attribute,
                    "before": None if old is None else old.to_json(),
                    "after": now.to_json(),
                }
                for old, now in _pairs(before, after, i)
            ],
            "similarity": {"before": _like(before, i), "after": _like(after, i)},
        }
        for i in range(len(after.pictures))
    ]
    return _plain(
        {
            "schema": SCHEMA,
            "similarity_judge": {
                "model": after.judge or before.judge or None,
                "took_part": before.took_part or after.took_part,
            },
            **({"settings": dict(settings)} if settings else {}),
            "summary": {
                "pictures": len(after.pictures),
                **{
                    name: {"before": _count(before, state), "after": _count(after, state)}
                    for name, state in (("present", True), ("missing", False), ("not_judged", None))
                },
            },
            "pictures": pictures,
        }
    )


def beside(pictures: Sequence[tuple[str, Tensor]]) -> Tensor:
    """Batches (P, H, W, 3) of the same pictures side by side, each under its name: (P, H', W', 3)."""
    from PIL import Image, ImageDraw

    height, width = (max(int(batch.shape[n]) for _, batch in pictures) for n in (1, 2))
    line = max(18, height // 16)
    gap = max(2, line // 4)
    canvas = Image.new("RGB", (len(pictures) * (width + gap) - gap, height + line), MAT)
    pen = ImageDraw.Draw(canvas)
    for n, (name, _) in enumerate(pictures):
        _write(pen, (n * (width + gap) + gap, line // 2), name, round(line * 0.6), INK, width - 2 * gap)
    sheets = from_uint8(np.array(canvas))[None].repeat(len(pictures[0][1]), 1, 1, 1)
    for n, (_, batch) in enumerate(pictures):
        left = n * (width + gap)
        sheets[:, line : line + batch.shape[1], left : left + batch.shape[2]] = batch
    return sheets


def told(before: Side | None, after: Side) -> str:
    """One line a picture: ``picture 1: red hair missing → present (0.08 → 0.93, bisenet18); …``."""
    lines: list[str] = []
    for i in range(len(after.pictures)):
        parts: list[str] = []
        for old, now in _pairs(before, after, i):
            scores = [value for value in ((old.score if old else None), now.score) if value is not None]
            notes = [" → ".join(f"{value:.2f}" for value in scores), now.judge]
            if now.present is None:
                notes = [now.details]
            states = [word(old)] if old is not None and word(old) != word(now) else []
            note = ", ".join(note for note in notes if note)
            parts.append(f"{now.attribute} {' → '.join([*states, word(now)])}" + (f" ({note})" if note else ""))
        likes = [_like(one, i) for one in (before, after) if one is not None and _like(one, i) is not None]
        if likes:
            parts.append(f"similarity {' → '.join(f'{value:.2f}' for value in likes)} ({after.judge})")
        lines.append(f"picture {i + 1}: {'; '.join(parts) or 'no attributes'}")
    return "\n".join(lines)


def word(verdict: Verdict | None) -> str:
    """``present``, ``missing`` or ``not judged``."""
    return {True: "present", False: "missing", None: "not judged"}[verdict.present if verdict is not None else None]


def _check(before: Side, after: Side, captions: Sequence[str] | None) -> None:
    if len(before.pictures) != len(after.pictures):
        raise BadInput(
            f"{len(after.pictures)} pictures after the cure need as many from before it; got {len(before.pictures)}. "
            "Connect the same batch, uncured and cured."
        )
    if captions is not None and len(captions) != len(after.pictures):
        raise BadInput(f"{len(after.pictures)} pictures need as many captions; got {len(captions)}")


def _pairs(before: Side | None, after: Side, i: int) -> list[tuple[Verdict | None, Verdict]]:
    """What was said of each attribute of picture ``i``; None where it was not asked for before."""
    old = {verdict.attribute: verdict for verdict in before.verdicts[i]} if before is not None else {}
    return [(old.get(now.attribute), now) for now in after.verdicts[i]]


def _like(one: Side, i: int) -> float | None:
    return one.similarity[i] if i < len(one.similarity) else None


def _count(one: Side, state: bool | None) -> int:
    return sum(verdict.present is state for row in one.verdicts for verdict in row)


def _card(
    canvas: Image.Image,
    pen: ImageDraw.ImageDraw,
    place: tuple[int, int, int, int],
    before: Side,
    after: Side,
    i: int,
    caption: str,
) -> None:
    x, y, width, height = place
    pen.rounded_rectangle((x, y, x + width - 1, y + height - 1), 8, PAPER, RULE)
    _write(pen, (x + PAD, y + PAD + HEAD // 2 - 4), caption, 16, INK, width - 2 * PAD)
    top = y + PAD + HEAD
    row = Row((("before", before.pictures[i]), ("after", after.pictures[i])), ())
    for n, (title, picture) in enumerate(row.pictures):
        left = x + PAD + n * (THUMB + GAP)
        _write(pen, (left, top + TITLE // 2 - 2), title, 13, GREY, THUMB)
        _thumb(canvas, pen, (left, top + TITLE), picture, row, None, last=n == 1)
    left = x + PAD + 2 * (THUMB + GAP)
    pairs = _pairs(before, after, i)
    _summary(pen, (left, top), pairs)
    line = top + SUMMARY + LINE // 2
    for title, column in (("attribute", 0), ("before", NAME), ("after", NAME + STATE), ("judge", NAME + 2 * STATE)):
        _write(pen, (left + column, line), title, 12, GREY, STATE)
    for old, now in pairs:
        pen.line((left, line + LINE // 2, left + PANEL, line + LINE // 2), RULE)
        line += LINE
        _write(pen, (left, line), now.attribute, 15, INK, NAME - 10)
        _state(canvas, pen, (left + NAME, line), old)
        _state(canvas, pen, (left + NAME + STATE, line), now)
        _write(pen, (left + NAME + 2 * STATE, line), now.judge or "nobody", 12, GREY, WHO)
    if before.similarity or after.similarity:
        pen.line((left, line + LINE // 2, left + PANEL, line + LINE // 2), RULE)
        _similarity(pen, (left, line + LINE), before, after, i)


def _summary(pen: ImageDraw.ImageDraw, at: tuple[int, int], pairs: Sequence[tuple[Verdict | None, Verdict]]) -> None:
    """``3 of 4 present, before 1; 1 not judged``."""
    count = len(pairs)
    present = sum(now.present is True for _, now in pairs)
    was = sum(old is not None and old.present is True for old, _ in pairs)
    blank = sum(now.present is None for _, now in pairs)
    _write(pen, (at[0], at[1] + 14), f"{present} of {count} present" if count else "no attributes", 19, INK, 190)
    note = f"before the cure {was}" + (f"  ·  {blank} not judged" if blank else "")
    _write(pen, (at[0] + 190, at[1] + 16), note if count else "", 14, GREY, PANEL - 190)


def _state(canvas: Image.Image, pen: ImageDraw.ImageDraw, at: tuple[int, int], verdict: Verdict | None) -> None:
    """The sign, the word and the score; a grey ring where nobody could tell."""
    x, y = at
    if verdict is None:
        _write(pen, (x, y), "not asked", 13, GREY, STATE - 8)
        return
    if verdict.present is None:
        canvas.paste(GREY, (x, y - SIGN // 2), _ring(SIGN))
    else:
        _symbol(canvas, (x, y - SIGN // 2), SIGN, verdict.present)
    colour = GREY if verdict.present is None else GOOD if verdict.present else BAD
    _write(pen, (x + SIGN + 6, y), word(verdict), 13, colour, 68)
    if verdict.score is not None:
        _write(pen, (x + SIGN + 74, y), f"{verdict.score:.2f}", 14, INK, 40)


def _similarity(pen: ImageDraw.ImageDraw, at: tuple[int, int], before: Side, after: Side, i: int) -> None:
    x, y = at
    _write(pen, (x, y), "likeness", 15, INK, NAME - 10)
    for column, one in ((NAME, before), (NAME + STATE, after)):
        value = _like(one, i)
        text = "not measured" if value is None else f"{value:.3f}"
        _write(pen, (x + column + SIGN + 6, y), text, 13 if value is None else 15, GREY if value is None else INK, 90)
    _write(pen, (x + NAME + 2 * STATE, y), after.judge or before.judge, 12, GREY, WHO)
    old, now = _like(before, i), _like(after, i)
    if old is None and now is None:
        return
    change = f"cosine, {now - old:+.3f}; " if old is not None and now is not None else "cosine; "
    took_part = before.took_part or after.took_part
    note = change + (
        "its judge drove the pictures: to be doubted" if took_part else "its judge took no part in the pictures"
    )
    _write(pen, (x, y + 20), note, 12, GREY, PANEL)


@lru_cache
def _ring(size: int) -> Image.Image:
    from PIL import Image, ImageDraw

    s = size * 8
    mask = Image.new("L", (s, s), 0)
    ImageDraw.Draw(mask).ellipse((s * 0.06, s * 0.06, s * 0.94, s * 0.94), outline=255, width=round(s * 0.12))
    return mask.resize((size, size), Image.Resampling.BOX)
