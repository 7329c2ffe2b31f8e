"""What the README says about nodes and models, made from the registries so that it cannot be wrong."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from ..face.host import ROOT, STANDALONE
from ..face.models import listing


def pack_classes() -> list[tuple[str, str, Any]]:
    """(id, title, class) of the pack's nodes, in the order of the flow."""
    from .. import nodes

    return [(key, nodes.NODE_DISPLAY_NAME_MAPPINGS[key], node) for key, node in nodes.NODE_CLASS_MAPPINGS.items()]


def first_sentence(text: str) -> str:
    """Up to the first full stop that ends a sentence."""
    return re.split(r"(?<=\.)\s", text, maxsplit=1)[0]


def _types(node: Any) -> str:
    outputs = zip(node.RETURN_NAMES, node.RETURN_TYPES, strict=True)
    return ", ".join(f"{name} `{kind}`" for name, kind in outputs)


def node_table() -> str:
    """One row a node, in the order of the flow."""
    lines = ["| node | does | gives |", "|---|---|---|"]
    for _, name, node in pack_classes():
        lines.append(f"| **{name}** | {first_sentence(node.DESCRIPTION)} | {_types(node)} |")
    return "\n".join(lines)


def model_table() -> str:
    """One row a model file of the catalogue."""
    lines = ["| name | what | size | licence | commercial use | source |", "|---|---|---|---|---|---|"]
    for row in listing(STANDALONE):
        name = f"**{row.name}**" if row.default else row.name
        lines.append(
            f"| {name} | {row.about} | {row.size / 1e6:.1f} MB | {row.licence} | {row.commercial} | {row.source} |"
        )
    lines.append("")
    lines.append("Bold: the default set, `likeness models fetch default`.")
    return "\n".join(lines)


def node_list() -> str:
    """``node_list.json`` for managers that look at packs without loading them."""
    nodes = {node_id: first_sentence(node.DESCRIPTION) for node_id, _, node in pack_classes()}
    return json.dumps(nodes, indent=2, ensure_ascii=False) + "\n"


def filled(readme: str) -> str:
    """``readme`` with its generated parts made anew."""
    for mark, table in (("nodes", node_table()), ("models", model_table())):
        pattern = re.compile(rf"(<!-- {mark}:.*?-->\n).*?(<!-- /{mark} -->)", re.S)
        readme = pattern.sub(lambda m, t=table: f"{m[1]}{t}\n{m[2]}", readme)
    return readme


def write(root: Path = ROOT) -> list[Path]:
    """Write both files; answers which."""
    readme, nodes = root / "README.md", root / "node_list.json"
    readme.write_text(filled(readme.read_text("utf-8")), "utf-8")
    nodes.write_text(node_list(), "utf-8")
    return [readme, nodes]
