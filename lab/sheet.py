"""Contact sheets: portraits in rows with a line below each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Pixels = NDArray[np.uint8]


def sheet(
    rows: Sequence[Sequence[Pixels]],
    captions: Sequence[Sequence[str]] | None = None,
    heads: Sequence[str] = (),
    title: str = "",
    scale: int = 4,
) -> Image.Image:
    """Pictures (H, W, 3), enlarged ``scale`` times, in ``rows``, with captions below and ``heads`` over the columns."""
    font: Any = ImageFont.load_default(11)
    bold: Any = ImageFont.load_default(14)
    side, gap = rows[0][0].shape[0] * scale, 6
    lines = max((c.count("\n") + 1 for row in captions or () for c in row), default=0)
    below = 13 * lines + 4 if lines else 0
    top = (24 if title else 4) + (18 if heads else 0)
    width = max(len(row) for row in rows) * (side + gap) + gap
    page = Image.new("RGB", (width, top + len(rows) * (side + gap + below)), "white")
    pen = ImageDraw.Draw(page)
    if title:
        pen.text((gap, 4), title, "black", bold)
    for column, head in enumerate(heads):
        pen.text((gap + column * (side + gap), top - 16), head, "black", font)
    for r, row in enumerate(rows):
        for c, picture in enumerate(row):
            x, y = gap + c * (side + gap), top + r * (side + gap + below)
            page.paste(Image.fromarray(picture).resize((side, side), Image.Resampling.NEAREST), (x, y))
            if captions:
                pen.multiline_text((x, y + side + 1), captions[r][c], "black", font, spacing=1)
    return page
