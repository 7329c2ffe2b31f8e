"""Between ComfyUI's two workflow formats: the API's, which runs, and the editor's, which has places and links."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

from ..face.errors import BadInput
from .graph import Prompt, ancestry, is_link, links
from .workflow import LINK

ObjectInfo = Mapping[str, Any]

WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
NOTES = ("Note", "MarkdownNote")
MUTED, BYPASSED = 2, 4
ROOM = {"images": 260, "text": 90}
"""Pixels that a node needs for what it shows."""
GAP_X, GAP_Y, TITLE = 70, 40, 30
"""Pixels between nodes, and of the title bar above a node's position."""


def is_widget(entry: Any) -> bool:
    """Whether the editor shows this declared input as a widget and not as a socket."""
    kind, options = entry[0], entry[1] if len(entry) > 1 else {}
    return (isinstance(kind, (list, tuple)) or kind in WIDGETS) and not options.get("forceInput")


def _has_control(name: str, entry: Any) -> bool:
    """Whether the editor puts a "control after generate" widget behind this one."""
    options = entry[1] if len(entry) > 1 else {}
    return entry[0] == "INT" and bool(options.get("control_after_generate", name in ("seed", "noise_seed")))


def _entries(info: ObjectInfo, class_type: str) -> Iterator[tuple[str, Any]]:
    """The declared inputs of a class in the editor's order."""
    sections = info[class_type]["input"]
    for section in ("required", "optional"):
        yield from sections.get(section, {}).items()


def _default(entry: Any) -> Any:
    kind, options = entry[0], entry[1] if len(entry) > 1 else {}
    if "default" in options:
        return options["default"]
    choices = kind if isinstance(kind, (list, tuple)) else options.get("options", [])
    if choices:
        return choices[0]
    return {"INT": 0, "FLOAT": 0.0, "BOOLEAN": False}.get(kind, "") if isinstance(kind, str) else ""


# From the editor to the API


def to_api(editor: Mapping[str, Any], object_info: ObjectInfo) -> Prompt:
    """The graph that the editor would send: without notes, muted and bypassed nodes, reroutes and primitives.

    ``editor`` is sound, as ``workflow.read`` has made sure.
    """
    nodes = {str(node["id"]): node for node in editor["nodes"]}
    wires = {wire[0]: wire for wire in map(_wire, editor.get("links") or [])}
    if (editor.get("definitions") or {}).get("subgraphs"):
        raise BadInput("the workflow contains subgraphs; unpack them in the editor, or export it with Export (API)")
    prompt: Prompt = {}
    for node_id, node in nodes.items():
        kind = node["type"]
        if kind in (*NOTES, "Reroute", "PrimitiveNode") or node.get("mode", 0) in (MUTED, BYPASSED):
            continue
        if kind not in object_info:
            # Nothing is known of its widgets; validation says that the class is missing.
            prompt[node_id] = {"class_type": kind, "inputs": {}, **_meta(node)}
            continue
        inputs = dict(_widget_values(node, object_info))
        for socket in node.get("inputs") or []:
            wire = wires.get(socket.get("link"))
            if wire is None:
                continue
            source = _source(nodes, wires, str(wire[1]), wire[2], wire[5])
            if source is not None:
                inputs[socket["name"]] = source
            elif "widget" not in socket:
                inputs.pop(socket["name"], None)
        names = [name for name, _ in _entries(object_info, kind)]
        ordered = {name: inputs.pop(name) for name in names if name in inputs} | inputs
        prompt[node_id] = {"class_type": kind, "inputs": ordered, **_meta(node)}
    return prompt


def _meta(node: Mapping[str, Any]) -> dict[str, Any]:
    return {"_meta": {"title": node["title"]}} if node.get("title") else {}


def _wire(link: Any) -> tuple[Any, ...]:
    """A link of either file version as (id, from node, from slot, to node, to slot, type)."""
    return tuple(link[key] for key in LINK) if isinstance(link, Mapping) else tuple(link)


def _widget_values(node: Mapping[str, Any], info: ObjectInfo) -> Iterator[tuple[str, Any]]:
    """The widgets' values by name; they are stored by position, with the control widgets in between."""
    values = node.get("widgets_values") or []
    if isinstance(values, Mapping):
        yield from (
            (name, values[name]) for name, entry in _entries(info, node["type"]) if is_widget(entry) and name in values
        )
        return
    place = 0
    for name, entry in _entries(info, node["type"]):
        if not is_widget(entry):
            continue
        if place >= len(values):
            return
        yield name, values[place]
        place += 1
        if _has_control(name, entry):
            place += 1


def _source(nodes: Mapping[str, Any], wires: Mapping[Any, Any], node_id: str, slot: int, kind: Any) -> Any:
    """What a wire brings: a link to a node that runs, a primitive's value, or None if it hangs in the air."""
    seen: set[tuple[str, int]] = set()
    while (node_id, slot) not in seen:
        seen.add((node_id, slot))
        node = nodes.get(node_id)
        if node is None or node.get("mode", 0) == MUTED:
            return None
        sockets = node.get("inputs") or []
        if node["type"] == "PrimitiveNode":
            values = node.get("widgets_values")
            return values[0] if isinstance(values, list) and values else None
        if node["type"] == "Reroute":
            through = sockets[:1]
        elif node.get("mode", 0) == BYPASSED:
            # The editor passes on the input in the same place if its type fits, else the first one that fits.
            fitting = [s for s in sockets if s.get("type") in (kind, "*") or kind == "*"]
            same = [s for s in sockets[slot : slot + 1] if s in fitting]
            through = (same or fitting)[:1]
        else:
            return [node_id, slot]
        wire = wires.get(through[0].get("link")) if through else None
        if wire is None:
            return None
        node_id, slot = str(wire[1]), wire[2]
    return None


# From the API to the editor


def to_editor(api: Prompt, object_info: ObjectInfo) -> dict[str, Any]:
    """A file for the editor: laid out from left to right without overlaps, titles kept.

    Widgets that ``api`` leaves out get their defaults, as the editor would give them. Ids that are not whole
    numbers get a new one.
    """
    order, cycle = ancestry(api, api)
    if cycle:
        raise BadInput(f"the workflow has a cycle: {' <- '.join(cycle)}")
    ids = _numbers(api)
    nodes = {node_id: _editor_node(api[node_id], ids[node_id], object_info) for node_id in api}
    wires: list[list[Any]] = []
    for node_id in api:
        node = nodes[node_id]
        for place, socket in enumerate(node["inputs"]):
            value = api[node_id]["inputs"].get(socket["name"])
            if not is_link(value):
                continue
            if value[0] not in nodes or not 0 <= int(value[1]) < len(nodes[value[0]]["outputs"]):
                raise BadInput(f"node {node_id}: the input {socket['name']} comes from {value}, which does not exist")
            output = nodes[value[0]]["outputs"][int(value[1])]
            number = len(wires) + 1
            wires.append([number, ids[value[0]], int(value[1]), ids[node_id], place, output["type"]])
            socket["link"] = number
            output["links"] = [*(output["links"] or []), number]
    for rank, node_id in enumerate(order):
        nodes[node_id]["order"] = rank
    _lay_out(api, nodes, order)
    return {
        "last_node_id": max(ids.values(), default=0),
        "last_link_id": len(wires),
        "nodes": list(nodes.values()),
        "links": wires,
        "groups": [],
        "config": {},
        "extra": {},
        "version": 0.4,
    }


def _numbers(api: Prompt) -> dict[str, int]:
    taken = {node_id: int(node_id) for node_id in api if node_id.isdecimal() and str(int(node_id)) == node_id}
    fresh = max(taken.values(), default=0)
    for node_id in api:
        if node_id not in taken:
            fresh += 1
            taken[node_id] = fresh
    return taken


def _editor_node(node: Mapping[str, Any], number: int, object_info: ObjectInfo) -> dict[str, Any]:
    kind = node["class_type"]
    if kind not in object_info:
        raise BadInput(f"node {number}: the class {kind} is not known here, so its widgets cannot be placed")
    info = object_info[kind]
    sockets: list[dict[str, Any]] = []
    values: list[Any] = []
    height = 10.0
    for name, entry in _entries(object_info, kind):
        given = node["inputs"].get(name)
        type_name = entry[0] if isinstance(entry[0], str) else "COMBO"
        options = entry[1] if len(entry) > 1 else {}
        if not is_widget(entry):
            sockets.append({"name": name, "type": str(type_name), "link": None})
            continue
        if is_link(given):
            sockets.append({"name": name, "type": str(type_name), "link": None, "widget": {"name": name}})
        values.append(_default(entry) if given is None or is_link(given) else copy.deepcopy(given))
        height += 110 if options.get("multiline") else 24
        if _has_control(name, entry):
            values.append("fixed")
            height += 24
        if options.get("image_upload"):
            height += ROOM["images"]
    if any(options[1].get("image_upload") for _, options in _entries(object_info, kind) if len(options) > 1):
        # The upload button is a widget too, and the last one.
        values.append("image")
    # ComfyUI's own nodes that show something are those without outputs, and they show pictures.
    shows = info.get("shows", ["images"] if info.get("output_node") and not info["output"] else [])
    outputs = [
        {"name": name, "type": "COMBO" if isinstance(kind_, list) else str(kind_), "links": None, "slot_index": slot}
        for slot, (name, kind_) in enumerate(zip(info["output_name"], info["output"], strict=False))
    ]
    height += 22 * max(len(sockets), len(outputs)) + sum(ROOM[kind] for kind in shows)
    made = {
        "id": number,
        "type": kind,
        "pos": [0.0, 0.0],
        "size": [315.0, height],
        "flags": {},
        "order": 0,
        "mode": 0,
        "inputs": sockets,
        "outputs": outputs,
        "properties": {"Node name for S&R": kind},
        "widgets_values": values,
    }
    title = node.get("_meta", {}).get("title")
    return {**made, "title": title} if title else made


def _lay_out(api: Prompt, nodes: Mapping[str, dict[str, Any]], order: list[str]) -> None:
    """Set positions: a column is the longest way from a source, a row near the mean of what feeds it."""
    column: dict[str, int] = {}
    for node_id in order:
        column[node_id] = max((column[source] + 1 for _, source, _ in links(api[node_id])), default=0)
    # A source stands next to what it feeds first, not far left of it.
    feeds: dict[str, list[str]] = {}
    for node_id in order:
        for _, source, _ in links(api[node_id]):
            feeds.setdefault(source, []).append(node_id)
    for node_id in reversed(order):
        if not any(True for _ in links(api[node_id])) and feeds.get(node_id):
            column[node_id] = min(column[fed] for fed in feeds[node_id]) - 1
    x = 40.0
    middle: dict[str, float] = {}
    for place in range(max(column.values(), default=-1) + 1):
        members = [node_id for node_id in order if column[node_id] == place]

        def wish(node_id: str) -> float:
            above = [middle[source] for _, source, _ in links(api[node_id]) if source in middle]
            return sum(above) / len(above) if above else 0.0

        y = 60.0 + TITLE
        for node_id in sorted(members, key=wish):
            node = nodes[node_id]
            node["pos"] = [x, y]
            middle[node_id] = y + node["size"][1] / 2
            y += node["size"][1] + TITLE + GAP_Y
        x += max((nodes[node_id]["size"][0] for node_id in members), default=0.0) + GAP_X
