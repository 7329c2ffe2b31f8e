"""Reading and checking prompts (ComfyUI's API format), with the error records of ComfyUI's own server.

A prompt is ``{node id: {"class_type": name, "inputs": {name: constant | [node id, slot]}}}``.
"""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .registry import Classes

Prompt = dict[str, dict[str, Any]]


def _number(value: Any) -> float:
    """As ``float``, without NaN: no range check would notice it."""
    number = float(value)
    if number != number:
        raise ValueError("NaN is not a number to work with")
    return number


COERCIONS: dict[str, Callable[[Any], Any]] = {"INT": int, "FLOAT": _number, "STRING": str, "BOOLEAN": bool}
HIDE_LONG_LISTS = 20
"""A combo with more options than this is not spelled out in an error, as on ComfyUI's server."""


@dataclass(frozen=True)
class Verdict:
    """What validation found: ``outputs`` can run; ``error`` is set if none can."""

    outputs: list[str]
    error: dict[str, Any] | None = None
    node_errors: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        return self.error is None


def error(kind: str, message: str, details: str = "", **extra: Any) -> dict[str, Any]:
    """One error record as ComfyUI's clients expect it."""
    return {"type": kind, "message": message, "details": details, "extra_info": extra}


def type_name(raised: BaseException) -> str:
    """The exception's class, with its module unless it is built in."""
    kind = type(raised)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def declared(inputs: Mapping[str, Any], name: str) -> tuple[Any, str, dict[str, Any]] | None:
    """Type, section and options of an input as ``INPUT_TYPES()`` declares it; None if it does not.

    Asks ``name in section`` rather than listing, because packs pass dictionaries that claim to hold every name.
    """
    for section in ("required", "optional"):
        if name in inputs.get(section, {}):
            entry = inputs[section][name]
            return entry[0], section, entry[1] if len(entry) > 1 else {}
    return None


def is_link(value: Any) -> bool:
    """Whether a value has the shape ``[node id, slot]``; JavaScript may write the slot as 0.0."""
    if not (isinstance(value, list) and len(value) == 2 and isinstance(value[0], str)):
        return False
    return isinstance(value[1], int) or (isinstance(value[1], float) and value[1].is_integer())


def links(node: Mapping[str, Any]) -> Iterable[tuple[str, str, int]]:
    """Every linked input of a node: its name, and the node and slot it comes from."""
    for name, value in node.get("inputs", {}).items():
        if is_link(value):
            yield name, value[0], int(value[1])


def ancestry(prompt: Prompt, outputs: Iterable[str]) -> tuple[list[str], list[str]]:
    """``outputs`` and all they depend on, each after what it needs; and the nodes of a cycle, if there is one."""
    order: list[str] = []
    done: set[str] = set()
    path: dict[str, None] = {}
    # A stack of our own: a chain of thousands of nodes must not meet Python's recursion limit.
    stack = [(output, False) for output in reversed(list(outputs))]
    while stack:
        node_id, leaving = stack.pop()
        if leaving:
            del path[node_id]
            done.add(node_id)
            order.append(node_id)
        elif node_id in path:
            trail = list(path)
            return order, [*trail[trail.index(node_id) :], node_id]
        elif node_id not in done:
            path[node_id] = None
            stack.append((node_id, True))
            parents = [parent for _, parent, _ in links(prompt[node_id]) if parent in prompt]
            stack += [(parent, False) for parent in reversed(parents)]
    return order, []


def accepts(received: Any, wanted: Any) -> bool:
    """Whether an output of type ``received`` may feed an input of type ``wanted``: equal, ``*``, or a shared name.

    A comma joins alternatives. The test is ``!=``, not ``==``: the packs' any-type is a string whose ``!=`` is false.
    """
    differ = received != wanted
    if not differ or "*" in (received, wanted):
        return True
    if {type(received), type(wanted)} == {str, list}:
        return "COMBO" in (received, wanted)
    if not isinstance(received, str) or not isinstance(wanted, str):
        return False
    return bool({part.strip() for part in received.split(",")} & {part.strip() for part in wanted.split(",")})


def _refuse(kind: str, message: str, details: str = "") -> Verdict:
    return Verdict([], error(kind, message, details))


def validate(prompt: Any, known: Classes, targets: Iterable[str] | None = None) -> Verdict:
    """Check a prompt; constants are coerced in place to what the inputs declare.

    Good outputs are told apart from bad ones, so that the good ones run. ``targets`` limits the outputs asked for.
    """
    if not isinstance(prompt, dict) or not all(isinstance(node, dict) for node in prompt.values()):
        message = "A prompt must be an object of nodes: {id: {class_type, inputs}}."
        hint = "This looks like the editor's format; save it with Export (API), or use `likeness run`, which converts."
        return _refuse("invalid_prompt", message, hint if isinstance(prompt, dict) and "nodes" in prompt else "")
    for node_id, node in prompt.items():
        if not isinstance(node.get("class_type"), str):
            message = "Cannot execute because a node is missing the class_type property."
            return _refuse("invalid_prompt", message, f"Node ID '#{node_id}'")
        if node["class_type"] not in known:
            message = (
                f"Cannot execute because node {node['class_type']} does not exist here: the headless engine brings "
                "Likeness's nodes and a handful of ComfyUI's. To run the file on a ComfyUI that has it: "
                "likeness run FILE --server http://127.0.0.1:8188"
            )
            return _refuse("invalid_prompt", message, f"Node ID '#{node_id}'")
        if not isinstance(node.setdefault("inputs", {}), dict):
            message = "Cannot execute because a node's inputs are not an object."
            return _refuse("invalid_prompt", message, f"Node ID '#{node_id}'")
    wished = None if targets is None else set(map(str, targets))
    outputs = [
        node_id
        for node_id, node in prompt.items()
        if getattr(known[node["class_type"]], "OUTPUT_NODE", False) is True and (wished is None or node_id in wished)
    ]
    if not outputs:
        return _refuse("prompt_no_outputs", "Prompt has no outputs")

    types: dict[str, dict[str, Any]] = {}
    found: dict[str, list[dict[str, Any]]] = {}
    good: list[str] = []
    node_errors: dict[str, dict[str, Any]] = {}
    for output in outputs:
        order, cycle = ancestry(prompt, [output])
        if cycle:
            found[cycle[0]] = [_cycle_error(cycle)]
            order = [cycle[0]]
        for node_id in order:
            if node_id not in found:
                found[node_id] = _check_node(prompt, node_id, known, types)
        bad = [node_id for node_id in order if found[node_id]]
        for node_id in bad:
            record = {"errors": found[node_id], "dependent_outputs": [], "class_type": prompt[node_id]["class_type"]}
            node_errors.setdefault(node_id, record)["dependent_outputs"].append(output)
        if not bad:
            good.append(output)
    if good:
        return Verdict(good, None, node_errors)
    # As on ComfyUI's server only the outputs' own errors are spelled out here; those upstream are in node_errors.
    own = [record for output in outputs for record in node_errors.get(output, {}).get("errors", [])]
    details = "\n".join(f"{record['message']}: {record['details']}" for record in own)
    return Verdict(
        [], error("prompt_outputs_failed_validation", "Prompt outputs failed validation", details), node_errors
    )


def _cycle_error(cycle: list[str]) -> dict[str, Any]:
    details = "these nodes feed each other in a circle: " + " <- ".join(cycle)
    return error("dependency_cycle", "Dependency cycle detected", details, cycle_nodes=cycle[:-1])


def _check_node(prompt: Prompt, node_id: str, known: Classes, types: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """The errors of one node's own inputs; its ancestors are checked before it.

    ``types`` remembers what ``INPUT_TYPES()`` said, which may be slow: LoadImage lists its folder.
    """
    kind = prompt[node_id]["class_type"]
    try:
        if kind not in types:
            types[kind] = known[kind].INPUT_TYPES()  # pyright: ignore[reportAttributeAccessIssue]
        return list(_input_errors(prompt, node_id, known, types[kind]))
    except Exception as raised:
        return [
            error(
                "exception_during_validation",
                "Exception when validating node",
                str(raised),
                exception_type=type_name(raised),
                traceback=traceback.format_tb(raised.__traceback__),
            )
        ]


def _input_errors(prompt: Prompt, node_id: str, known: Classes, inputs: dict[str, Any]) -> Iterable[dict[str, Any]]:
    node: Any = known[prompt[node_id]["class_type"]]
    values: dict[str, Any] = prompt[node_id]["inputs"]
    own_check = getattr(node, "VALIDATE_INPUTS", None)
    parameters = inspect.signature(own_check).parameters.values() if own_check else ()
    own_names = {parameter.name for parameter in parameters}
    checks_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    received_types: dict[str, Any] = {}
    constants: dict[str, Any] = {}
    found = False

    for section in ("required", "optional"):
        for name in inputs.get(section, {}):
            if name not in values:
                if section == "required":
                    found = True
                    yield error("required_input_missing", "Required input is missing", name, input_name=name)
                continue
            entry = inputs[section][name]
            kind, options = entry[0], entry[1] if len(entry) > 1 else {}
            about = {"input_name": name, "input_config": (kind, options)}
            if isinstance(values[name], list):
                constants[name] = None
                problem = _link_error(prompt, values[name], kind, name, about, known, received_types)
                if problem and not (problem["type"] == "return_type_mismatch" and "input_types" in own_names):
                    found = True
                    yield problem
                continue
            if isinstance(values[name], dict) and "__value__" in values[name]:
                values[name] = values[name]["__value__"]
            problem = _constant_error(values, kind, options, name, about, name in own_names or checks_all)
            constants[name] = values[name]
            if problem:
                found = True
                yield problem
    # A node's own check may rely on the types, so it is asked only about inputs that have them.
    if own_check is None or found:
        return
    asked = {name: value for name, value in constants.items() if name in own_names or checks_all}
    extra = {"input_types": received_types} if "input_types" in own_names else {}
    answer = own_check(**asked, **extra)
    for name in asked or (["input_types"] if extra else []):
        if answer is not True:
            details = name if answer is False else f"{name} - {answer}"
            yield error("custom_validation_failed", "Custom validation failed for node", details, input_name=name)


def _link_error(
    prompt: Prompt,
    value: list[Any],
    kind: Any,
    name: str,
    about: dict[str, Any],
    known: Classes,
    received_types: dict[str, Any],
) -> dict[str, Any] | None:
    bad = "Bad linked input, must be a length-2 list of [node_id, slot_index]"
    about = {**about, "received_value": value}
    if not is_link(value):
        return error("bad_linked_input", bad, name, **about)
    source, slot = value[0], int(value[1])
    if source not in prompt:
        return error("bad_linked_input", bad, f"{name}: there is no node '{source}' in the prompt", **about)
    returns = known[prompt[source]["class_type"]].RETURN_TYPES  # pyright: ignore[reportAttributeAccessIssue]
    if not 0 <= slot < len(returns):
        what = f"{name}: node '{source}' ({prompt[source]['class_type']}) has {len(returns)} outputs, not a slot {slot}"
        return error("bad_linked_input", bad, what, **about)
    received_types[name] = received = returns[slot]
    if accepts(received, kind):
        return None
    details = f"{name}, received_type({received}) mismatch input_type({kind})"
    return error(
        "return_type_mismatch",
        "Return type mismatch between linked nodes",
        details,
        input_name=name,
        input_config=about["input_config"],
        received_type=received,
        linked_node=value,
    )


def _constant_error(
    values: dict[str, Any], kind: Any, options: Mapping[str, Any], name: str, about: dict[str, Any], own: bool
) -> dict[str, Any] | None:
    """Coerce one constant in place and check its range or list; ``own``: the node checks these itself."""
    value = values[name]
    about = {**about, "received_value": value}
    if isinstance(kind, str) and kind in COERCIONS:
        try:
            value = values[name] = COERCIONS[kind](value)
        except (TypeError, ValueError, OverflowError) as raised:
            message = f"Failed to convert an input value to a {kind} value"
            return error(
                "invalid_input_type", message, f"{name}, {value}, {raised}", **about, exception_message=str(raised)
            )
        about["received_value"] = value
    if own:
        return None
    for bound, word, direction, outside in (
        ("min", "smaller", "value_smaller_than_min", lambda v, b: v < b),
        ("max", "bigger", "value_bigger_than_max", lambda v, b: v > b),
    ):
        if bound in options and isinstance(value, (int, float)) and outside(value, options[bound]):
            return error(direction, f"Value {value} {word} than {bound} of {options[bound]}", name, **about)
    choices = kind if isinstance(kind, list) else options.get("options") if kind == "COMBO" else None
    if choices is None or value in choices:
        return None
    listed = str(choices)
    if len(choices) > HIDE_LONG_LISTS:
        listed, about["input_config"] = f"(list of length {len(choices)})", None
    return error("value_not_in_list", "Value not in list", f"{name}: '{value}' not in {listed}", **about)
