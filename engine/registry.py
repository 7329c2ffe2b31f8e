"""The node classes the engine can run, and their description in the form of ComfyUI's ``/object_info``."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

Classes = Mapping[str, type]

log = logging.getLogger(__name__)


def classes() -> dict[str, type]:
    """ComfyUI's core nodes as far as the engine brings them, and the pack's own; imports torch."""
    from .. import nodes
    from .core import CORE

    return {**CORE, **getattr(nodes, "NODE_CLASS_MAPPINGS", {})}


def display_names() -> dict[str, str]:
    """Node id to the title the editor shows; ids without one show themselves."""
    from .. import nodes
    from .core import TITLES

    return {**TITLES, **getattr(nodes, "NODE_DISPLAY_NAME_MAPPINGS", {})}


def describe(name: str, node: Any, title: str | None = None) -> dict[str, Any]:
    """One node class as ``/object_info`` describes it. JSON-ready: tuples become lists when dumped."""
    inputs = node.INPUT_TYPES()
    returns = list(node.RETURN_TYPES)
    core = ".engine.core" in node.__module__
    info: dict[str, Any] = {
        "input": inputs,
        "input_order": {section: list(entries) for section, entries in inputs.items()},
        "output": returns,
        "output_is_list": list(getattr(node, "OUTPUT_IS_LIST", [False] * len(returns))),
        "output_name": list(getattr(node, "RETURN_NAMES", returns)),
        "name": name,
        "display_name": title or name,
        "description": getattr(node, "DESCRIPTION", ""),
        "python_module": "nodes" if core else "custom_nodes.ComfyUI-Likeness",
        "category": getattr(node, "CATEGORY", "sd"),
        "output_node": bool(getattr(node, "OUTPUT_NODE", False)),
    }
    if hasattr(node, "OUTPUT_TOOLTIPS"):
        info["output_tooltips"] = list(node.OUTPUT_TOOLTIPS)
    for attribute in ("DEPRECATED", "EXPERIMENTAL"):
        if getattr(node, attribute, False):
            info[attribute.lower()] = True
    if hasattr(node, "SHOWS"):
        # Ours alone; whoever lays out a file wants to know.
        info["shows"] = list(node.SHOWS)
    if hasattr(node, "SEARCH_ALIASES"):
        info["search_aliases"] = list(node.SEARCH_ALIASES)
    return info


def object_info(known: Classes | None = None) -> dict[str, Any]:
    """Every node class of ``known`` (default: all); one that cannot describe itself is logged and left out."""
    titles = display_names()
    described: dict[str, Any] = {}
    for name, node in (classes() if known is None else known).items():
        try:
            described[name] = describe(name, node, titles.get(name))
        except Exception:
            log.exception("the node %s cannot describe its inputs and is left out", name)
    return described
