"""What is held in memory."""

from __future__ import annotations

from typing import Any

from ..face.cache import ANALYSES, MODELS
from .form import CATEGORY, choice, socket


class ModelCache:
    CATEGORY = f"{CATEGORY}/models"
    DESCRIPTION = (
        "Shows which face models are open, how large they are and how often each was opened, and frees them if "
        "asked. All "
        "nodes share one cache: a file is opened once however many nodes use it."
    )
    RETURN_TYPES = ("*", "STRING")
    RETURN_NAMES = ("anything", "details")
    OUTPUT_TOOLTIPS = ("What came in, unchanged: wire it in where the cache is to be freed.", "One line per model.")
    FUNCTION = "run"
    SHOWS = ("text",)
    OUTPUT_NODE = True
    SEARCH_ALIASES = ["unload", "free memory", "vram"]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "action": choice(["show", "free"], "Only look, or close all models that are not running now.")
            },
            "optional": {"anything": socket("*", "Runs after this.")},
        }

    @classmethod
    def VALIDATE_INPUTS(cls, input_types: dict[str, str]) -> bool:
        return True

    @classmethod
    def IS_CHANGED(cls, **_: Any) -> float:
        return float("nan")

    def run(self, action: str, anything: Any = None) -> dict[str, Any]:
        lines = [
            f"{m.name}: {m.nbytes / 2**20:.1f} MB, opened {m.opened} time{'s' * (m.opened != 1)}" for m in MODELS.held()
        ]
        if action == "free":
            freed = MODELS.free()
            ANALYSES.clear()
            lines.append(f"freed {freed / 2**20:.1f} MB")
        details = "\n".join(lines) or "no model is open"
        return {"ui": {"text": [details]}, "result": (anything, details)}


NODES = [ModelCache]
