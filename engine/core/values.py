"""Constants as nodes, and PreviewAny, which shows any value as text."""

from __future__ import annotations

import json
from typing import Any


class _Any(str):
    """A type that is compatible with every other: not unequal to anything."""

    def __ne__(self, other: object) -> bool:
        return False


ANY = _Any("*")
LARGEST = 2**63 - 1


class _Primitive:
    CATEGORY = "utils/primitive"
    FUNCTION = "execute"

    def execute(self, value: Any) -> tuple[Any]:
        return (value,)


class PrimitiveInt(_Primitive):
    RETURN_TYPES = ("INT",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        options = {"default": 0, "min": -LARGEST, "max": LARGEST, "control_after_generate": True}
        return {"required": {"value": ("INT", options)}}


class PrimitiveFloat(_Primitive):
    RETURN_TYPES = ("FLOAT",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"value": ("FLOAT", {"default": 0.0, "min": -LARGEST, "max": LARGEST})}}


class PrimitiveString(_Primitive):
    RETURN_TYPES = ("STRING",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"value": ("STRING", {"default": "", "multiline": False})}}


class PrimitiveStringMultiline(_Primitive):
    RETURN_TYPES = ("STRING",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"value": ("STRING", {"default": "", "multiline": True})}}


class PrimitiveBoolean(_Primitive):
    RETURN_TYPES = ("BOOLEAN",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"value": ("BOOLEAN", {"default": False})}}


class PreviewAny:
    """Shows a value: a text as it is, else as JSON, else as Python writes it."""

    CATEGORY = "utils"
    RETURN_TYPES = ()
    OUTPUT_NODE = True
    FUNCTION = "main"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"source": (ANY, {})}}

    def main(self, source: Any = None) -> dict[str, Any]:
        if isinstance(source, (str, int, float, bool)):
            text = str(source)
        elif source is None:
            text = "None"
        else:
            try:
                text = json.dumps(source)
            except (TypeError, ValueError):
                text = str(source)
        return {"ui": {"text": [text]}}


NODES: dict[str, type] = {
    node.__name__: node
    for node in (PrimitiveInt, PrimitiveFloat, PrimitiveString, PrimitiveStringMultiline, PrimitiveBoolean, PreviewAny)
}
TITLES = {
    "PrimitiveInt": "Int",
    "PrimitiveFloat": "Float",
    "PrimitiveString": "String",
    "PrimitiveStringMultiline": "String (Multiline)",
    "PrimitiveBoolean": "Boolean",
    "PreviewAny": "Preview as Text",
}
