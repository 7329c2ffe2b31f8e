"""Running a checked prompt: from the outputs backwards, lazily, with a cache by what each result depends on."""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import itertools
import json
import logging
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..face.errors import BadInput
from .graph import Prompt, ancestry, declared, is_link, links, type_name
from .host import Blocker, Interrupted, Listener, Running, Silent, running
from .registry import Classes

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Result:
    """What a node gave: one list of items for every output slot, and what it shows."""

    slots: list[list[Any]]
    ui: dict[str, list[Any]] | None


@dataclass
class Record:
    """The history of one prompt, as ``/history`` gives it."""

    prompt_id: str
    outputs: dict[str, dict[str, list[Any]]] = field(default_factory=dict)
    """What every node shows that shows something, whether it ran or was cached."""
    status: str = "success"
    """``success`` or ``error`` (also for an interrupted run, as on ComfyUI's server)."""
    messages: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    executed: list[str] = field(default_factory=list)
    """Nodes that ran, in order; those whose result was cached are not among them."""

    def message(self, name: str) -> dict[str, Any] | None:
        """The first message of that name, if one was sent."""
        return next((data for sent, data in self.messages if sent == name), None)

    def meta(self) -> dict[str, dict[str, Any]]:
        return {
            node_id: {"node_id": node_id, "display_node": node_id, "parent_node": None, "real_node_id": node_id}
            for node_id in self.outputs
        }


class Executor:
    """Runs prompts one after the other and keeps what the last one used.

    A result is found again by its signature: the node's class, constants and IS_CHANGED answer, and the signatures of
    what feeds it. Ids do not count, so equal nodes share one result, unless the class asks for its id.
    """

    def __init__(self, known: Classes) -> None:
        self.known = known
        self._cache: dict[str, Result] = {}
        self._instances: dict[tuple[str, str], Any] = {}
        self._one_at_a_time = threading.Lock()

    def forget(self) -> None:
        """Drop all results, so that their memory is free."""
        with self._one_at_a_time:
            self._cache.clear()
            self._instances.clear()

    def run(
        self,
        prompt: Prompt,
        outputs: list[str],
        *,
        prompt_id: str = "prompt",
        extra: Mapping[str, Any] | None = None,
        listener: Listener | None = None,
        stop: threading.Event | None = None,
    ) -> Record:
        """Run ``outputs`` and what they need. Failures end the run and are told in the record, not raised."""
        with self._one_at_a_time:
            run = Running(prompt_id, listener or Silent(), stop or threading.Event(), prompt=prompt)
            return _Run(self, prompt, outputs, run, extra or {}).go()

    def instance(self, node_id: str, class_type: str) -> Any:
        """A node id's object, the same from prompt to prompt, as ComfyUI keeps it."""
        key = (node_id, class_type)
        if key not in self._instances:
            self._instances[key] = self.known[class_type]()
        return self._instances[key]


class _Failed(Exception):
    """Carries a node's own exception, with what it was given, up to the end of the run."""

    def __init__(self, node_id: str, cause: BaseException, inputs: Mapping[str, list[Any]]) -> None:
        super().__init__(str(cause))
        self.node_id, self.cause, self.inputs = node_id, cause, inputs


class _Run:
    """One prompt on its way through an executor."""

    def __init__(
        self, executor: Executor, prompt: Prompt, outputs: list[str], run: Running, extra: Mapping[str, Any]
    ) -> None:
        self.executor, self.prompt, self.outputs, self.run, self.extra = executor, prompt, outputs, run, extra
        self.record = Record(run.prompt_id)
        self.cache = executor._cache  # pyright: ignore[reportPrivateUsage]
        self.signatures: dict[str, str] = {}
        self.results: dict[str, Result] = {}
        self.types: dict[str, dict[str, Any]] = {}
        self.links: dict[str, list[tuple[str, str, int]]] = {}

    def go(self) -> Record:
        import torch

        current, order = "", []
        with torch.inference_mode():
            try:
                self._note("execution_start")
                order, _ = ancestry(self.prompt, self.outputs)
                for current in order:
                    self._describe(current)
                    self._sign(current)
                used = set(self.signatures.values())
                for stale in set(self.cache) - used:
                    del self.cache[stale]
                self._note("execution_cached", nodes=[n for n in order if self.signatures[n] in self.cache])
                for current in self._in_order():
                    self._execute(current)
                self._note("execution_success")
            except Interrupted:
                self.record.status = "error"
                self._note("execution_interrupted", **self._about(current), executed=self.record.executed)
            except _Failed as failed:
                self.record.status = "error"
                self._note_failure(failed)
            except Exception as unforeseen:
                self.record.status = "error"
                self._note_failure(_Failed(current, unforeseen, {}))
        # Also of nodes that did not have to be looked at, because what they feed was cached.
        known = {node_id: self.cache.get(self.signatures.get(node_id, "")) for node_id in order}
        self.record.outputs = {
            n: result.ui for n, result in known.items() if result is not None and result.ui is not None
        }
        return self.record

    def _class(self, node_id: str) -> Any:
        return self.executor.known[self.prompt[node_id]["class_type"]]

    def _describe(self, node_id: str) -> None:
        """Ask the node's class what it takes, once a run: it may be slow (LoadImage lists its folder)."""
        kind = self.prompt[node_id]["class_type"]
        if kind not in self.types:
            self.types[kind] = self._class(node_id).INPUT_TYPES()
        self.links[node_id] = list(self._links(node_id))

    def _declared(self, node_id: str) -> dict[str, Any]:
        return self.types[self.prompt[node_id]["class_type"]]

    def _links(self, node_id: str) -> Iterator[tuple[str, str, int]]:
        """The links whose values the node will be given; what it does not declare is ignored."""
        for name, source, slot in links(self.prompt[node_id]):
            entry = declared(self._declared(node_id), name)
            if entry is not None and not entry[2].get("rawLink"):
                yield name, source, slot

    def _about(self, node_id: str) -> dict[str, Any]:
        return {"node_id": node_id, "node_type": self.prompt.get(node_id, {}).get("class_type")}

    def _note(self, name: str, **data: Any) -> None:
        """Tell the listener and the history."""
        data = {"prompt_id": self.run.prompt_id, **data, "timestamp": int(time.time() * 1000)}
        self.record.messages.append((name, data))
        self.run.listener.event(name, data)

    def _note_failure(self, failed: _Failed) -> None:
        about = self._about(failed.node_id)
        log.debug("node %s (%s) failed", about["node_id"], about["node_type"], exc_info=failed.cause)
        self._note(
            "execution_error",
            **about,
            executed=self.record.executed,
            exception_message=str(failed.cause),
            exception_type=type_name(failed.cause),
            traceback=traceback.format_tb(failed.cause.__traceback__),
            current_inputs={name: [_show(value) for value in values] for name, values in failed.inputs.items()},
            current_outputs=list(self.results),
        )

    # What a result depends on

    def _sign(self, node_id: str) -> None:
        """Set the node's signature; what it depends on is signed before."""
        inputs = self._declared(node_id)
        parts: list[Any] = [self.prompt[node_id]["class_type"], self._fingerprint(node_id)]
        if "UNIQUE_ID" in inputs.get("hidden", {}).values() or getattr(self._class(node_id), "NOT_IDEMPOTENT", False):
            parts.append(("id", node_id))
        linked = [(name, self.signatures[source], slot) for name, source, slot in self.links[node_id]]
        names = {name for name, *_ in linked}
        constants = [i for i in self.prompt[node_id]["inputs"].items() if i[0] not in names and declared(inputs, i[0])]
        parts += [sorted(linked), sorted(constants, key=lambda item: item[0])]
        text = json.dumps(parts, default=repr, sort_keys=True)
        if _has_nan(parts):
            text += f"never twice: {next(_counter)}"
        self.signatures[node_id] = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def _fingerprint(self, node_id: str) -> Any:
        """The answer of IS_CHANGED, which sees constants only; an exception means that nothing is equal to it."""
        node = self._class(node_id)
        if not hasattr(node, "IS_CHANGED"):
            return None
        inputs, _ = self._gather(node_id, constants_only=True)
        try:
            return _call(node.IS_CHANGED, inputs, getattr(node, "INPUT_IS_LIST", False))
        except Exception as error:
            log.warning("IS_CHANGED of node %s failed (%s): it will run again every time", node_id, error)
            return float("nan")

    # Order

    def _in_order(self) -> Iterator[str]:
        """Node ids as they become ready: depth first from the outputs; lazy inputs only once they are asked for."""
        wanted: dict[str, set[str]] = {}
        for output in self.outputs:
            stack = [output]
            while stack:
                node_id = stack[-1]
                if node_id in self.results:
                    stack.pop()
                    continue
                if self.signatures[node_id] not in self.cache:
                    if node_id not in wanted:
                        wanted[node_id] = {name for name, *_ in self.links[node_id] if not self._lazy(node_id, name)}
                    if self._push_missing(stack, node_id, wanted[node_id]):
                        continue
                    asked = self._asked(node_id)
                    if asked - wanted[node_id]:
                        wanted[node_id] |= asked
                        if self._push_missing(stack, node_id, wanted[node_id]):
                            continue
                yield node_id
                stack.pop()

    def _push_missing(self, stack: list[str], node_id: str, names: set[str]) -> bool:
        missing = [s for name, s, _ in self.links[node_id] if name in names and s not in self.results]
        stack += reversed(missing)
        return bool(missing)

    def _lazy(self, node_id: str, name: str) -> bool:
        entry = declared(self._declared(node_id), name)
        return entry is not None and bool(entry[2].get("lazy"))

    def _asked(self, node_id: str) -> set[str]:
        """The lazy inputs that the node, seeing what is there already, says it needs."""
        node = self._class(node_id)
        if not hasattr(node, "check_lazy_status") or all(
            source in self.results for name, source, _ in self.links[node_id] if self._lazy(node_id, name)
        ):
            return set()
        inputs, absent = self._gather(node_id)
        try:
            with running(self.run, node_id):
                check = self.executor.instance(node_id, self.prompt[node_id]["class_type"]).check_lazy_status
                answers = _call(check, inputs, getattr(node, "INPUT_IS_LIST", False))
            names = {name for answer in answers for name in answer or () if name in absent or name not in inputs}
            for name in names - set(self.prompt[node_id]["inputs"]):
                raise BadInput(
                    f"node {node_id} ({self.prompt[node_id]['class_type']}) needs input {name}, but there is no input "
                    "to that node at all: connect it"
                )
            return names
        except Exception as error:
            raise _Failed(node_id, error, inputs) from error

    # Running one node

    def _execute(self, node_id: str) -> None:
        self.run.check()
        signature = self.signatures[node_id]
        result = self.cache.get(signature)
        if result is None:
            self.run.state(node_id, 0, 1, "running")
            event = {"node": node_id, "display_node": node_id, "prompt_id": self.run.prompt_id}
            self.run.listener.event("executing", event)
            result = self.cache[signature] = self._compute(node_id)
            self.record.executed.append(node_id)
            total = self.run.states[node_id]["max"]
            self.run.state(node_id, total, total, "finished")
        self.results[node_id] = result
        if result.ui is not None:
            event = {"node": node_id, "display_node": node_id, "output": result.ui, "prompt_id": self.run.prompt_id}
            self.run.listener.event("executed", event)

    def _compute(self, node_id: str) -> Result:
        node = self._class(node_id)
        inputs, _ = self._gather(node_id)
        try:
            with running(self.run, node_id):
                instance = self.executor.instance(node_id, self.prompt[node_id]["class_type"])
                returned = _call(
                    getattr(instance, node.FUNCTION),
                    inputs,
                    getattr(node, "INPUT_IS_LIST", False),
                    self._blocked(node_id),
                )
            return _merge(node, returned)
        except Exception as error:
            raise _Failed(node_id, error, inputs) from error

    def _blocked(self, node_id: str) -> Callable[[Blocker], Blocker]:
        """What becomes of a blocker that reaches a node: told once if it has something to say, silent from then on."""

        def tell(blocker: Blocker) -> Blocker:
            if blocker.message is not None:
                self._note(
                    "execution_error",
                    **self._about(node_id),
                    executed=self.record.executed,
                    exception_message=f"Execution Blocked: {blocker.message}",
                    exception_type="ExecutionBlocked",
                    traceback=[],
                    current_inputs={},
                    current_outputs=[],
                )
            return Blocker(None)

        return tell

    def _gather(self, node_id: str, constants_only: bool = False) -> tuple[dict[str, list[Any]], set[str]]:
        """A node's inputs as lists of items, and the names of linked ones that are not there (they hold one None)."""
        inputs = self._declared(node_id)
        gathered: dict[str, list[Any]] = {}
        absent: set[str] = set()
        for name, value in self.prompt[node_id]["inputs"].items():
            entry = declared(inputs, name)
            if entry is None:
                continue
            if not is_link(value) or entry[2].get("rawLink"):
                gathered[name] = [value]
            elif not constants_only and value[0] in self.results:
                gathered[name] = self.results[value[0]].slots[int(value[1])]
            else:
                gathered[name] = [None]
                absent.add(name)
        hidden = {"PROMPT": self.prompt, "UNIQUE_ID": node_id, "EXTRA_PNGINFO": self.extra.get("extra_pnginfo")}
        for name, kind in inputs.get("hidden", {}).items():
            gathered[name] = [hidden.get(kind if isinstance(kind, str) else kind[0])]
        return gathered, absent


_counter = itertools.count()


def _has_nan(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_has_nan, value.values()))
    if isinstance(value, (list, tuple)):
        return any(map(_has_nan, value))
    return isinstance(value, float) and value != value


def _show(value: Any) -> Any:
    """A value as an error record shows it: itself if it is small, else what it is."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{type(value).__name__} {tuple(value.shape)} {value.dtype}"
    return str(value)[:200]


def _call(
    function: Callable[..., Any],
    inputs: Mapping[str, list[Any]],
    as_lists: bool,
    blocked: Callable[[Blocker], Blocker] | None = None,
) -> list[Any]:
    """Call a node's function for every item, shorter inputs repeating their last; or once, with the lists.

    An empty list means no call. Coroutines run together. A call that a blocker reaches answers with the blocker.
    """
    if as_lists:
        calls = [dict(inputs)]
    elif not inputs:
        calls = [{}]
    else:
        count = 0 if any(not items for items in inputs.values()) else max(map(len, inputs.values()))
        calls = [{name: items[min(i, len(items) - 1)] for name, items in inputs.items()} for i in range(count)]

    answers: list[Any] = []
    for call in calls:
        items = itertools.chain(*call.values()) if as_lists else call.values()
        blocker = next((item for item in items if isinstance(item, Blocker)), None)
        if blocker is not None:
            # Asked without ``blocked`` (IS_CHANGED, check_lazy_status), there is nothing to say about such an item.
            answers.append(blocked(blocker) if blocked else None)
        else:
            answers.append(function(**call))
    if any(map(inspect.isawaitable, answers)):
        return asyncio.run(_together(answers))
    return answers


async def _together(answers: list[Any]) -> list[Any]:
    async def settled(answer: Any) -> Any:
        return await answer if inspect.isawaitable(answer) else answer

    return await asyncio.gather(*map(settled, answers))


def _merge(node: Any, returned: list[Any]) -> Result:
    """The answers of a node's calls as one list for every slot, and their ``ui`` parts joined."""
    width = len(node.RETURN_TYPES)
    is_list = getattr(node, "OUTPUT_IS_LIST", [False] * width)
    slots: list[list[Any]] = [[] for _ in range(width)]
    ui: dict[str, list[Any]] | None = None
    for answer in returned:
        if isinstance(answer, dict):
            if "expand" in answer:
                raise BadInput(
                    f"{node.__name__} answers with a graph of its own, which the headless engine does not run. "
                    "Run the file on a ComfyUI: likeness run FILE --server URL"
                )
            if "ui" in answer:
                ui = {} if ui is None else ui
                for key, values in answer["ui"].items():
                    if not isinstance(values, (list, tuple)):
                        kind = type(values).__name__
                        raise BadInput(f"{node.__name__}: ui[{key!r}] must be a list of values; it is a {kind}")
                    ui.setdefault(key, []).extend(values)
            answer = answer.get("result", ())
        if isinstance(answer, Blocker):
            answer = (answer,) * width
        if answer is None and width == 0:
            answer = ()
        if not isinstance(answer, (tuple, list)) or len(answer) < width:
            got = f"{len(answer)} values" if isinstance(answer, (tuple, list)) else type(answer).__name__
            raise BadInput(f"{node.__name__}.{node.FUNCTION} must return a tuple of {width} values; it returned {got}")
        for slot, several, value in zip(slots, is_list, answer, strict=False):
            if several and not isinstance(value, Blocker):
                slot.extend(value)
            else:
                slot.append(value)
    return Result(slots, ui)
