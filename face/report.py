"""What the scores say, for people and for programs: a contact sheet with bars, and plain JSON."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from torch import Tensor

from .errors import BadInput
from .image import as_image, from_uint8, to_uint8
from .score.judge import threshold
from .score.overall import FAILURES, Limits
from .types import Contract, FaceScore

if TYPE_CHECKING:
    from PIL import Image, ImageDraw, ImageFont

    Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

SCHEMA = "likeness.scores/1"
"""Grows when a field changes its meaning or goes; new fields may come without."""

MOST = 48
"""Rows that are drawn at most; a line below says how many are not."""

# Blue and vermilion stay apart in every common colour blindness (Okabe & Ito 2008); a symbol says the same once more.
GOOD, BAD = (0, 114, 178), (213, 94, 0)
INK, GREY, RULE, TRACK, MAT, PAPER = (
    (28, 30, 33),
    (104, 110, 118),
    (214, 218, 223),
    (233, 236, 239),
    (243, 244, 246),
    (255, 255, 255),
)

PAD, GAP, THUMB, PANEL = 16, 12, 224, 400
LABEL, BAR, LINE = 92, 148, 27
HEAD = 26
"""Height of a card's caption."""
TITLE = 20
"""Height of the words above a picture."""
VERDICT = 38
CHIP = 22


@dataclass(frozen=True)
class Row:
    """One card of the sheet."""

    pictures: tuple[tuple[str, Tensor | None], ...]
    """(title, picture (H, W, 3)); None leaves the place empty. The last is the one that was scored."""
    scores: tuple[FaceScore, ...]
    """Of the scored picture; the best is drawn."""
    caption: str = ""


@dataclass(frozen=True)
class _Measure:
    """One bar: where its value and limit come from, how they read, and how long the bar is."""

    label: str
    value: Callable[[FaceScore], float | None]
    limit: Callable[[FaceScore, Limits], float | None]
    full: Callable[[float | None], float]
    """The value at which the bar is full, given the limit."""
    text: str
    lower_is_better: bool = False

    def good(self, record: FaceScore, limits: Limits) -> bool | None:
        """Whether the value keeps the limit; None without a limit."""
        value, limit = self.value(record), self.limit(record, limits)
        if value is None or limit is None:
            return None
        return value <= limit if self.lower_is_better else value >= limit


def _same(record: FaceScore, limits: Limits) -> float | None:
    if limits.similarity is not None:
        return limits.similarity
    return threshold(record.judge).same if record.judge else None


def _one(_: float | None) -> float:
    return 1.0


def _twice(limit: float | None) -> float:
    return 2 * max(limit or 0.0, 1e-6)


_MEASURES = (
    _Measure("similarity", lambda r: r.similarity, _same, _one, "{:.2f}"),
    _Measure("quality", lambda r: r.quality, lambda r, m: m.quality, _one, "{:.2f}"),
    _Measure("copy-paste", lambda r: r.copy_paste, lambda r, m: m.copy_paste, _one, "{:.2f}", True),
    _Measure("head turned", lambda r: r.pose_error, lambda r, m: m.pose, _twice, "{:.1f}°", True),
    _Measure("expression", lambda r: r.expression_error, lambda r, m: m.expression, _twice, "{:.3f}", True),
)


def length(value: float | None, full: float, width: int) -> int:
    """Pixels of a bar for ``value``, where ``full`` fills ``width``: at least 2 above zero, nothing at or below it."""
    if value is None or not math.isfinite(value) or value <= 0:
        return 0
    return max(2, min(width, round(width * value / full)))


def rows(
    scores: Sequence[FaceScore],
    result: Any,
    *,
    source: Any = None,
    target: Any = None,
    captions: Sequence[str] | None = None,
) -> list[Row]:
    """One row for every picture of ``result`` (B, H, W, 3), with its scores and what it was made from.

    ``source`` and ``target`` are batches of that length, or of one picture for all. ``captions`` default to numbers.
    Raises BadInput for scores or captions of another batch.
    """
    image = as_image(result)
    batch = len(image)
    if any(not 0 <= record.image < batch for record in scores):
        raise BadInput(f"the scores speak of pictures beyond the {batch} that came with them. Score this very batch.")
    if captions is not None and len(captions) != batch:
        raise BadInput(f"{batch} pictures need as many captions; got {len(captions)}")
    columns: list[tuple[str, Tensor]] = []
    for title, given in (("source", source), ("target", target)):
        if given is None:
            continue
        pictures = as_image(given, title)
        if len(pictures) not in (1, batch):
            raise BadInput(f"{batch} results need as many {title} pictures, or one for all; got {len(pictures)}")
        columns.append((title, pictures))
    return [
        Row(
            (*((title, p[0 if len(p) == 1 else i]) for title, p in columns), ("result", image[i])),
            tuple(record for record in scores if record.image == i),
            captions[i] if captions is not None else f"picture {i + 1} of {batch}",
        )
        for i in range(batch)
    ]


def sheet(rows: Sequence[Row], *, title: str = "", limits: Limits | None = None, most: int = MOST) -> Tensor:
    """A contact sheet (1, H, W, 3): for every row its pictures, the verdict, a bar for every measure, and the flags.

    Blue with a tick passes, vermilion with a cross does not; the line across a bar is its limit. Pictures keep their
    shape; a face that is small in its picture is shown enlarged. Measures that no row has are left out. Rows beyond
    ``most`` are counted, not drawn.
    """
    from PIL import Image, ImageDraw

    limits = limits or Limits()
    drawn = list(rows[: max(1, most)])
    places = max((len(row.pictures) for row in drawn), default=1)
    best = [_best(row) for row in drawn]
    measures = [m for m in _MEASURES if any(r is not None and m.value(r) is not None for r in best)]
    chips = [_chips(record, PANEL) for record in best]
    # A card is as high as its pictures, or as the longest panel: all are alike, so that they can be compared.
    panel = VERDICT + LINE * len(measures) + max((CHIP * len(lines) for lines in chips), default=0)
    body = max(TITLE + THUMB, panel)
    width, height = places * (THUMB + GAP) + PANEL + 2 * PAD, PAD + HEAD + body + PAD
    across = _across(max(1, len(drawn)), width, height)
    top = 54 if title else PAD
    hidden = len(rows) - len(drawn)
    down = -(-max(1, len(drawn)) // across)
    size = (across * (width + GAP) - GAP + 2 * PAD, top + down * (height + GAP) - GAP + PAD + (28 if hidden else 0))
    canvas = Image.new("RGB", size, MAT)
    pen = ImageDraw.Draw(canvas)
    if title:
        _write(pen, (PAD, 27), title, 22, INK, size[0] - 2 * PAD)
    if not drawn:
        _write(pen, (PAD + 8, top + height // 2), "no pictures", 18, GREY, size[0] - 2 * PAD)
    for i, (row, record, lines) in enumerate(zip(drawn, best, chips, strict=True)):
        x, y = PAD + i % across * (width + GAP), top + i // across * (height + GAP)
        _card(canvas, pen, (x, y, width, height), row, record, measures, lines, places, limits)
    if hidden:
        _write(pen, (PAD, size[1] - 20), f"and {hidden} more, in the JSON", 14, GREY, size[0] - 2 * PAD)
    import numpy as np

    return from_uint8(np.array(canvas))[None]


def to_json(
    scores: Sequence[FaceScore],
    *,
    judge: Contract | None = None,
    drivers: Collection[Contract] = (),
    limits: Limits | None = None,
    settings: Mapping[str, Any] | None = None,
    captions: Sequence[str] | None = None,
) -> dict[str, Any]:
    """The scores as plain values, ready for ``json.dumps``: no NaN, no tensors, the schema's version on top.

    ``judge`` is who compared, with the digest of its weights; without it only its name stands there. ``settings`` is
    whatever else made the scores what they are (detector, landmarker, …), ``captions`` name pictures; what is not given
    does not stand there.
    """
    limits = limits or Limits()
    name = judge.model if judge is not None else next((r.judge for r in scores if r.judge), None)
    if limits.similarity is None and name is not None:
        limits = replace(limits, similarity=threshold(name).same)
    faces = [record for record in scores if record.face is not None]
    pictures = sorted({record.image for record in scores})
    return _plain(
        {
            "schema": SCHEMA,
            "judge": asdict(judge) if judge is not None else ({"model": name} if name else None),
            "drivers": [asdict(driver) for driver in drivers],
            "limits": asdict(limits),
            **({"settings": dict(settings)} if settings else {}),
            "summary": {
                "pictures": len(pictures),
                "faces": len(faces),
                "faces_passed": sum(record.passed for record in faces),
                "pictures_passed": len({record.image for record in faces if record.passed}),
                "best_picture": max(faces, key=lambda r: r.score).image if faces else None,
            },
            "pictures": [
                {
                    "image": i,
                    **({"caption": captions[i]} if captions is not None and i < len(captions) else {}),
                    "faces": [record.to_json() for record in scores if record.image == i],
                }
                for i in pictures
            ],
        }
    )


def _plain(value: Any) -> Any:
    """Only what JSON knows; numbers that are not finite become null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, (bool, str, int)):
        return value
    try:
        number = float(value)
    except (TypeError, ValueError):
        return str(value)
    return number if math.isfinite(number) else None


def _best(row: Row) -> FaceScore | None:
    return max(row.scores, key=lambda record: (record.passed, record.score), default=None)


def _across(count: int, width: int, height: int) -> int:
    """Cards side by side, so that the sheet comes nearest to a screen's shape, no place is wasted more than needed."""

    def far(n: int) -> float:
        return abs(math.log(n * width / (-(-count // n) * height) / 1.5))

    return min(range(1, count + 1), key=far)


def _card(
    canvas: Image.Image,
    pen: ImageDraw.ImageDraw,
    place: tuple[int, int, int, int],
    row: Row,
    record: FaceScore | None,
    measures: Sequence[_Measure],
    chips: Sequence[Sequence[str]],
    places: int,
    limits: Limits,
) -> None:
    x, y, width, height = place
    pen.rounded_rectangle((x, y, x + width - 1, y + height - 1), 8, PAPER, RULE)
    _write(pen, (x + PAD, y + PAD + HEAD // 2 - 4), row.caption, 16, INK, width - 2 * PAD)
    top = y + PAD + HEAD
    for i, (title, picture) in enumerate(row.pictures):
        left = x + PAD + (places - len(row.pictures) + i) * (THUMB + GAP)
        _write(pen, (left, top + TITLE // 2 - 2), title, 13, GREY, THUMB)
        _thumb(canvas, pen, (left, top + TITLE), picture, row, record, last=i == len(row.pictures) - 1)
    left = x + PAD + places * (THUMB + GAP)
    _verdict(canvas, pen, (left, top), row, record)
    for i, measure in enumerate(measures):
        _bar(canvas, pen, (left, top + VERDICT + i * LINE), measure, record, limits)
    line = top + VERDICT + len(measures) * LINE + 2
    for words in chips:
        at = left
        for word in words:
            at += _chip(pen, (at, line), word) + 6
        line += CHIP


def _verdict(
    canvas: Image.Image, pen: ImageDraw.ImageDraw, at: tuple[int, int], row: Row, record: FaceScore | None
) -> None:
    """The symbol, the word, the overall score, and whose face this is."""
    x, y = at
    faces = [r for r in row.scores if r.face is not None]
    if record is None:
        _write(pen, (x, y + 14), "not scored", 16, GREY, PANEL)
        return
    colour = GOOD if record.passed else BAD
    _symbol(canvas, (x, y + 4), 22, record.passed)
    word = "pass" if record.passed else "fail" if record.face is not None else "no face"
    _write(pen, (x + 30, y + 15), word, 17, colour, 100)
    if record.face is None:
        return
    _write(pen, (x + LABEL, y + 15), f"{record.score:.2f}", 22, INK, 60)
    note = [f"against {record.person}"] if record.person else []
    if len(faces) > 1:
        note.append(f"best of {len(faces)} faces")
    _write(pen, (x + LABEL + 58, y + 16), " · ".join(note), 13, GREY, PANEL - LABEL - 58)


def _bar(
    canvas: Image.Image,
    pen: ImageDraw.ImageDraw,
    at: tuple[int, int],
    measure: _Measure,
    record: FaceScore | None,
    limits: Limits,
) -> None:
    """Label, bar with the limit across it, value, limit in words."""
    x, y = at
    middle = y + LINE // 2
    _write(pen, (x, middle), measure.label, 14, INK, LABEL - 6)
    left, top = x + LABEL, middle - 6
    pen.rounded_rectangle((left, top, left + BAR - 1, top + 11), 3, TRACK)
    value = measure.value(record) if record is not None else None
    right = left + BAR + 12
    if record is None or value is None:
        _write(pen, (right, middle), "not measured", 13, GREY, PANEL - (right - x))
        return
    limit, good = measure.limit(record, limits), measure.good(record, limits)
    colour = GREY if good is None else GOOD if good else BAD
    full = measure.full(limit)
    if filled := length(value, full, BAR):
        pen.rounded_rectangle((left, top, left + filled - 1, top + 11), min(3, filled // 2), colour)
    _write(pen, (right, middle), measure.text.format(value), 15, INK, 54)
    if limit is not None:
        tick = left + max(1, min(BAR - 2, length(limit, full, BAR) - 1))
        pen.line((tick, top - 4, tick, top + 15), INK, 2)
        words = ("max " if measure.lower_is_better else "min ") + measure.text.format(limit)
        _write(pen, (right + 54, middle), words, 13, GREY, 62)
    if good is not None:
        _symbol(canvas, (x + PANEL - 16, middle - 7), 14, good)


def _chips(record: FaceScore | None, width: int) -> list[list[str]]:
    """The flags in lines that fit ``width``; at most three, the last of which says how many were left out."""
    if record is None:
        return []
    lines: list[list[str]] = [[]]
    used = 0
    flags = [flag for flag in record.flags if flag != "no_face"]
    for i, flag in enumerate(flags):
        need = min(width, _chip_width(flag)) + 6
        if used + need > width + 6:
            if len(lines) == 3:
                while lines[-1] and used + _chip_width("+99") > width:
                    used -= _chip_width(lines[-1].pop()) + 6
                    i -= 1
                lines[-1].append(f"+{len(flags) - i}")
                break
            lines.append([])
            used = 0
        lines[-1].append(flag)
        used += need
    return [line for line in lines if line]


def _words(flag: str) -> str:
    return flag.replace("_", " ")


def _chip_width(flag: str) -> int:
    return int(_font(12).getlength(_words(flag))) + 16


def _chip(pen: ImageDraw.ImageDraw, at: tuple[int, int], flag: str) -> int:
    """A flag in a rounded frame, failures in vermilion; answers its width."""
    x, y = at
    colour = BAD if flag in FAILURES else GREY
    width = min(PANEL, _chip_width(flag))
    pen.rounded_rectangle((x, y, x + width - 1, y + CHIP - 4), 8, PAPER, colour)
    _write(pen, (x + 8, y + (CHIP - 4) // 2), _words(flag), 12, colour, width - 14)
    return width


def _thumb(
    canvas: Image.Image,
    pen: ImageDraw.ImageDraw,
    at: tuple[int, int],
    picture: Tensor | None,
    row: Row,
    record: FaceScore | None,
    *,
    last: bool,
) -> None:
    """A picture fitted into its square; the scored one with its face's box, enlarged if the face is small."""
    from PIL import Image

    x, y = at
    pen.rectangle((x, y, x + THUMB - 1, y + THUMB - 1), MAT)
    if picture is None:
        _write(pen, (x + 8, y + THUMB // 2), "none", 13, GREY, THUMB - 16)
        return
    scored = row.pictures[-1][1]
    box = record.box if record is not None and (last or _same_shape(picture, scored)) else None
    left, top, right, bottom = _window(picture, box)
    seen = picture[top:bottom, left:right]
    scale = min(THUMB / seen.shape[1], THUMB / seen.shape[0])
    w, h = max(1, min(THUMB, round(seen.shape[1] * scale))), max(1, min(THUMB, round(seen.shape[0] * scale)))
    small = F.interpolate(seen.permute(2, 0, 1)[None], (h, w), mode="bicubic", antialias=True)
    thumb = Image.fromarray(to_uint8(small[0].permute(1, 2, 0).clamp(0, 1).contiguous()))
    dx, dy = x + (THUMB - w) // 2, y + (THUMB - h) // 2
    canvas.paste(thumb, (dx, dy))
    if last and box is not None and record is not None:
        colour = GOOD if record.passed else BAD
        corners = [(box[0] - left) * scale, (box[1] - top) * scale, (box[2] - left) * scale, (box[3] - top) * scale]
        x1, y1, x2, y2 = (round(min(max(v, 0), limit - 1)) for v, limit in zip(corners, (w, h, w, h), strict=True))
        pen.rectangle((dx + x1 - 1, dy + y1 - 1, dx + x2 + 1, dy + y2 + 1), outline=PAPER)
        pen.rectangle((dx + x1, dy + y1, dx + x2, dy + y2), outline=colour, width=2)
    if (left, top, right, bottom) != (0, 0, picture.shape[1], picture.shape[0]):
        pen.rectangle((x, y + THUMB - 20, x + 48, y + THUMB - 1), PAPER)
        _write(pen, (x + 6, y + THUMB - 10), "detail", 12, GREY, 40)


def _same_shape(a: Tensor, b: Tensor | None) -> bool:
    return b is not None and a.shape[:2] == b.shape[:2]


def _window(picture: Tensor, box: tuple[float, float, float, float] | None) -> tuple[int, int, int, int]:
    """The part of the picture to show: all of it, or a square round a face that would be too small to see."""
    height, width = int(picture.shape[0]), int(picture.shape[1])
    if box is None or not all(math.isfinite(v) for v in box):
        return 0, 0, width, height
    side = max(box[2] - box[0], box[3] - box[1], 1.0)
    if side * 4 >= max(height, width):
        return 0, 0, width, height
    size = math.ceil(side * 3)
    w, h = min(size, width), min(size, height)
    left = round(min(max((box[0] + box[2]) / 2 - w / 2, 0), width - w))
    top = round(min(max((box[1] + box[3]) / 2 - h / 2, 0), height - h))
    return left, top, left + w, top + h


def _symbol(canvas: Image.Image, at: tuple[int, int], size: int, good: bool) -> None:
    """A tick in a disc or a cross in a square, so that neither colour nor shape alone has to be seen."""
    canvas.paste(GOOD if good else BAD, at, _symbol_mask(size, good))


@lru_cache
def _symbol_mask(size: int, good: bool) -> Image.Image:
    from PIL import Image, ImageDraw

    s = size * 8
    mask = Image.new("L", (s, s), 0)
    pen = ImageDraw.Draw(mask)
    if good:
        pen.ellipse((0, 0, s - 1, s - 1), 255)
        points = [(0.27 * s, 0.53 * s), (0.44 * s, 0.69 * s), (0.74 * s, 0.33 * s)]
        pen.line(points, 0, round(0.12 * s), joint="curve")
    else:
        pen.rounded_rectangle((0.04 * s, 0.04 * s, 0.96 * s, 0.96 * s), 0.12 * s, 255)
        for a, b in (((0.3, 0.3), (0.7, 0.7)), ((0.3, 0.7), (0.7, 0.3))):
            pen.line((a[0] * s, a[1] * s, b[0] * s, b[1] * s), 0, round(0.12 * s))
    return mask.resize((size, size), Image.Resampling.BOX)


def _write(
    pen: ImageDraw.ImageDraw, at: tuple[float, float], text: str, size: int, colour: tuple[int, int, int], width: int
) -> None:
    """``text`` on one line, its middle at the height ``at[1]``, shortened in its own middle to fit ``width``."""
    font = _font(size)
    pen.text(at, fit(text, font, width), colour, font, anchor="lm")


def fit(text: str, font: Font, width: int) -> str:
    """``text`` on one line, with as much of its middle replaced by … as it takes to fit ``width`` pixels."""
    text = " ".join(text.split())
    if font.getlength(text) <= width:
        return text
    low, high = 0, len(text)
    while low < high:
        keep = (low + high + 1) // 2
        if font.getlength(_shortened(text, keep)) <= width:
            low = keep
        else:
            high = keep - 1
    return _shortened(text, low)


def _shortened(text: str, keep: int) -> str:
    tail = keep // 2
    return text[: keep - tail] + "…" + (text[-tail:] if tail else "")


@lru_cache
def _font(size: int) -> Font:
    """Pillow's own scalable font, which is there wherever Pillow is."""
    from PIL import ImageFont

    return ImageFont.load_default(size)
