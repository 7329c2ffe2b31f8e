"""Reading a workflow file in any of its forms, and changing its inputs from the command line."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from ..face.errors import BadInput
from .graph import Prompt, is_link

LINK = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
"""What the editor's format says of a link: newer files by these names, others in this order."""


def read(path: Path) -> dict[str, Any]:
    """The workflow in a JSON file, or the one that a PNG carries: in API format, or in the editor's."""
    if not path.is_file():
        raise BadInput(f"there is no workflow file {path}")
    try:
        data = json.loads(_embedded(path) if path.suffix.lower() == ".png" else path.read_text("utf-8"))
    except ValueError as error:
        raise BadInput(f"{path.name} is not a workflow: it is not valid JSON ({error})") from error
    # Some tools wrap the prompt as they would post it.
    if isinstance(data, dict) and isinstance(data.get("prompt"), dict) and "class_type" not in data["prompt"]:
        data = data["prompt"]
    if not isinstance(data, dict) or not (is_editor(data) or _is_api(data)):
        raise BadInput(
            f"{path.name} is not a workflow: expected ComfyUI's API format ({{id: {{class_type, inputs}}}}) "
            "or the editor's ({nodes, links})"
        )
    if damage := next(_editor_damage(data) if is_editor(data) else _api_damage(data), None):
        raise BadInput(f"{path.name} is damaged: {damage}. Save or export the workflow again.")
    return data


def _editor_damage(data: dict[str, Any]) -> Iterator[str]:
    """What of a file in the editor's format is not as ``convert.to_api`` relies on, in words."""
    numbers = (int, str, type(None))
    for place, node in enumerate(data["nodes"]):
        if not isinstance(node, dict) or not isinstance(node.get("id"), (int, str)):
            yield f"node {place} of the list has no id"
            continue
        name = f"node {node['id']}"
        if not isinstance(node.get("type"), str):
            yield f"{name} has no type"
        if not isinstance(node.get("title"), (str, type(None))):
            yield f"the title of {name} is no text"
        if not isinstance(node.get("widgets_values"), (list, dict, type(None))):
            yield f"the widgets_values of {name} are no list"
        sockets = node.get("inputs")
        if not isinstance(sockets, (list, type(None))):
            yield f"the inputs of {name} are no list"
            continue
        for socket in sockets or ():
            if not isinstance(socket, dict) or not isinstance(socket.get("name"), str):
                yield f"an input of {name} has no name"
            elif not isinstance(socket.get("link"), numbers):
                yield f"the link of {name}'s input {socket['name']} is no number"
    if not isinstance(data.get("definitions"), (dict, type(None))):
        yield "its definitions are no object"
    links = data.get("links")
    if not isinstance(links, (list, type(None))):
        yield "its links are no list"
        return
    for place, link in enumerate(links or ()):
        parts = [link.get(key) for key in LINK] if isinstance(link, dict) else link
        whole = isinstance(parts, list) and len(parts) >= len(LINK)
        if not whole or not all(isinstance(part, (int, str)) for part in parts[:4]) or not isinstance(parts[2], int):
            yield f"link {place} of the list is not (id, from node, slot, to node, slot, type)"


def _api_damage(data: dict[str, Any]) -> Iterator[str]:
    """The same for the API's format; what inputs hold is left to validation."""
    for node_id, node in data.items():
        if not isinstance(node["class_type"], str):
            yield f"the class_type of node {node_id} is no text"
        if not isinstance(node.get("inputs", {}), dict):
            yield f"the inputs of node {node_id} are no object"
        meta = node.get("_meta", {})
        if not isinstance(meta, dict) or not isinstance(meta.get("title"), (str, type(None))):
            yield f"the title of node {node_id} is no text"


def _embedded(path: Path) -> str:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as picture:
            texts = dict(picture.info)
    except (UnidentifiedImageError, OSError) as error:
        raise BadInput(f"{path.name} is not a PNG that can be read ({error})") from error
    for key in ("prompt", "workflow"):
        if isinstance(texts.get(key), str):
            return texts[key]
    raise BadInput(f"{path.name} carries no workflow: it has no text named prompt or workflow")


def is_editor(data: dict[str, Any]) -> bool:
    """Whether this is the editor's format."""
    return isinstance(data.get("nodes"), list)


def _is_api(data: dict[str, Any]) -> bool:
    return bool(data) and all(isinstance(node, dict) and "class_type" in node for node in data.values())


def class_types(data: dict[str, Any]) -> set[str]:
    """The node classes that a workflow of either format uses."""
    if is_editor(data):
        return {str(node.get("type")) for node in data["nodes"]}
    return {str(node["class_type"]) for node in data.values()}


def title(prompt: Prompt, node_id: str) -> str:
    """What a person calls the node: its title, or else its class."""
    node = prompt.get(node_id, {})
    return node.get("_meta", {}).get("title") or node.get("class_type") or node_id


def find_node(prompt: Prompt, name: str) -> str:
    """The id of the node called ``name``: an id, else a title, else a class, the latter two in any case of letters."""
    if name in prompt:
        return name
    wanted = name.casefold()
    for known in (
        {node_id: title(prompt, node_id).casefold() for node_id in prompt},
        {node_id: str(node.get("class_type")).casefold() for node_id, node in prompt.items()},
    ):
        found = [node_id for node_id, its_name in known.items() if its_name == wanted]
        if len(found) == 1:
            return found[0]
        if found:
            raise BadInput(f"{len(found)} nodes are called {name!r}; say which by its id: {', '.join(found)}")
    nodes = ", ".join(f"{node_id} ({title(prompt, node_id)})" for node_id in prompt)
    raise BadInput(f"there is no node called {name!r}. The workflow has: {nodes}")


def apply_settings(prompt: Prompt, settings: Iterable[str], object_info: dict[str, Any]) -> set[tuple[str, str]]:
    """Carry out ``node.input=value`` settings in place; which (node id, input) pairs were set.

    The value is read as JSON, and as plain text where that fails or a text is wanted.
    """
    done: set[tuple[str, str]] = set()
    for setting in settings:
        key, equals, text = setting.partition("=")
        node_name, dot, name = key.rpartition(".")
        if not equals or not dot:
            raise BadInput(f"--set {setting!r}: expected node.input=value")
        node_id = find_node(prompt, node_name.strip())
        node = prompt[node_id]
        name = name.strip()
        sections = object_info.get(node["class_type"], {}).get("input", {})
        names = [n for section in ("required", "optional") for n in sections.get(section, {})] or list(node["inputs"])
        if name not in names:
            near = get_close_matches(name, names, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"it has: {', '.join(names) or 'none'}"
            raise BadInput(f"--set {setting!r}: {title(prompt, node_id)} has no input {name!r}; {hint}")
        entry = next((sections[s][name] for s in ("required", "optional") if name in sections.get(s, {})), None)
        node.setdefault("inputs", {})[name] = _value(text, entry[0] if entry else None)
        done.add((node_id, name))
    return done


def _value(text: str, kind: Any) -> Any:
    try:
        value = json.loads(text)
    except ValueError:
        return text
    if isinstance(value, str) or is_link(value):
        return value
    # 007, true and [0, 1] are texts like any other where a text is wanted.
    is_text = kind == "STRING" or (isinstance(kind, (list, tuple)) and value not in kind)
    return text if is_text else value


def picture_inputs(prompt: Prompt, object_info: dict[str, Any]) -> Iterable[tuple[str, str, str]]:
    """Every input that names a picture file (the editor gives it an upload button): node id, input, file name."""
    for node_id, node in prompt.items():
        sections = object_info.get(node["class_type"], {}).get("input", {})
        for section in ("required", "optional"):
            for name, entry in sections.get(section, {}).items():
                value = node.get("inputs", {}).get(name)
                if len(entry) > 1 and entry[1].get("image_upload") and isinstance(value, str):
                    yield node_id, name, value


def readable(node_errors: dict[str, Any], error: dict[str, Any] | None, prompt: Prompt) -> str:
    """Validation errors as lines for a person."""
    lines = [
        f"{title(prompt, node_id)} (node {node_id}): {record['message']}: {record['details']}"
        for node_id, node in node_errors.items()
        for record in node["errors"]
    ]
    if not lines and error is not None:
        lines = [
            " ".join(part for part in (error["message"], f"({error['details']})" if error["details"] else "") if part)
        ]
    return "\n".join(lines)
