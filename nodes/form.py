"""The little language in which the nodes state their inputs and outputs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

FACES, IDENTITY, FACE_SCORE, FACE_CROPS = "FACES", "IDENTITY", "FACE_SCORE", "FACE_CROPS"
ID_ADAPTER = "ID_ADAPTER"
VERDICTS = "VERDICTS"
TAPE = "TAPE"
"""Our own sockets. ``FACE_CROPS`` ties crops to where they were cut."""

CATEGORY = "Likeness"

Spec = tuple[Any, dict[str, Any]]


def socket(kind: str, tip: str, **more: Any) -> Spec:
    """An input that is wired."""
    return kind, {"tooltip": tip, **more}


def number(default: float, low: float, high: float, step: float, tip: str) -> Spec:
    return "FLOAT", {"default": default, "min": low, "max": high, "step": step, "round": step / 10, "tooltip": tip}


def integer(default: int, low: int, high: int, tip: str, step: int = 1) -> Spec:
    return "INT", {"default": default, "min": low, "max": high, "step": step, "tooltip": tip}


def switch(default: bool, tip: str) -> Spec:
    return "BOOLEAN", {"default": default, "tooltip": tip}


def choice(options: Sequence[str], tip: str, default: str | None = None) -> Spec:
    """A combo box; its first option is the default unless another is named (and is there)."""
    listed = list(options)
    return listed, {"default": default if default in listed else (listed[0] if listed else None), "tooltip": tip}


def text(default: str, tip: str, *, multiline: bool = False) -> Spec:
    return "STRING", {"default": default, "multiline": multiline, "tooltip": tip}


def as_json(value: Any) -> str:
    """Plain JSON for a STRING output; numbers cut to six digits, which is more than any of them means."""

    def tidy(v: Any) -> Any:
        if isinstance(v, float):
            return round(v, 6)
        if isinstance(v, dict):
            return {str(k): tidy(x) for k, x in v.items()}
        if isinstance(v, list | tuple):
            return [tidy(x) for x in v]
        return v

    return json.dumps(tidy(value), indent=2, ensure_ascii=False)
