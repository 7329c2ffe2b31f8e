"""Running prompts: order, cache, lazy inputs, lists, blockers, errors, interrupts."""

import threading
import time

import pytest
from likeness.engine.execution import Executor
from likeness.engine.graph import validate
from likeness.engine.host import EngineHost
from likeness.nodes import host as nodes_host

from . import stub_nodes as stubs
from .stub_nodes import KNOWN, RAN, graph


class Events:
    def __init__(self):
        self.seen = []

    def event(self, name, data):
        self.seen.append((name, dict(data)))

    def preview(self, node_id, picture):
        self.seen.append(("preview", node_id))

    def text(self, node_id, text):
        self.seen.append(("text", node_id, text))

    def names(self):
        return [entry[0] for entry in self.seen]


@pytest.fixture(autouse=True)
def engine_host(tmp_path):
    RAN.clear()
    stubs.STARTED.clear()
    chosen = EngineHost([tmp_path / "input"], tmp_path / "out", tmp_path / "temp")
    nodes_host.use(chosen)
    yield chosen
    nodes_host.use(None)


@pytest.fixture
def executor():
    return Executor(KNOWN)


def run(executor, prompt=None, listener=None, stop=None, extra=None, **nodes):
    prompt = graph(**nodes) if prompt is None else prompt
    verdict = validate(prompt, KNOWN)
    assert verdict.ok, verdict.node_errors
    return executor.run(prompt, verdict.outputs, listener=listener, stop=stop, extra=extra)


def text(record, node="s"):
    return record.outputs[node]["text"]


SUM = {
    "a": ("Number", {"value": 2}),
    "b": ("Number", {"value": 3}),
    "c": ("Add", {"a": ["a", 0], "b": ["b", 0]}),
    "s": ("Show", {"value": ["c", 0]}),
}


def test_outputs_and_their_ancestors_run_and_nothing_else(executor):
    record = run(executor, **SUM, unused=("Number", {"value": 9}))
    assert text(record) == ["5"]
    assert record.executed == ["a", "b", "c", "s"]
    assert ("Number", 9) not in RAN


def test_a_node_that_is_not_needed_is_not_even_asked(executor):
    assert run(executor, **SUM, broken=("Speechless", {})).status == "success"


def test_a_rerun_executes_nothing_and_shows_the_same(executor):
    first = run(executor, **SUM)
    events = Events()
    again = run(executor, **SUM, listener=events)
    assert again.executed == []
    assert again.outputs == first.outputs
    assert [data["output"] for name, data in events.seen if name == "executed"] == [{"text": ["5"]}]
    assert again.message("execution_cached")["nodes"] == ["a", "b", "c", "s"]


def test_a_cached_run_still_records_what_the_nodes_in_between_show(executor):
    nodes = {"a": ("Number", {"value": 2}), "p": ("Peek", {"value": ["a", 0]}), "s": ("Show", {"value": ["p", 0]})}
    for _ in range(2):
        assert run(executor, **nodes).outputs == {"p": {"text": ["peek 2"]}, "s": {"text": ["2"]}}
    assert RAN.count(("Peek", 2)) == 1


def test_a_changed_constant_reruns_only_what_depends_on_it(executor):
    run(executor, **SUM)
    record = run(executor, **{**SUM, "b": ("Number", {"value": 4})})
    assert record.executed == ["b", "c", "s"]
    assert text(record) == ["6"]


def test_renamed_nodes_are_found_in_the_cache(executor):
    run(executor, **SUM)
    record = run(executor, x=("Number", {"value": 2}), s=("Show", {"value": ["x", 0]}))
    assert record.executed == ["s"]


def test_equal_nodes_share_one_result(executor):
    nodes = {"a": ("Number", {"value": 2}), "b": ("Number", {"value": 2})}
    record = run(executor, **nodes, c=("Add", {"a": ["a", 0], "b": ["b", 0]}), s=("Show", {"value": ["c", 0]}))
    assert text(record) == ["4"]
    assert RAN.count(("Number", 2)) == 1


def test_results_that_a_prompt_does_not_use_are_dropped(executor):
    run(executor, **SUM)
    run(executor, a=("Number", {"value": 9}), s=("Show", {"value": ["a", 0]}))
    record = run(executor, **SUM)
    assert record.executed == ["a", "b", "c", "s"]


def test_an_undeclared_input_does_not_matter(executor):
    run(executor, **SUM)
    record = run(executor, **{**SUM, "a": ("Number", {"value": 2, "hosttest button": None})})
    assert record.executed == []


@pytest.mark.parametrize(
    ("answers", "reruns"),
    [
        (("x", "x"), False),
        (("x", "y"), True),
        ((float("nan"), float("nan")), True),
        ((ValueError("no"), ValueError("no")), True),
        (([1, {"a": 2.5}], [1, {"a": 2.5}]), False),
    ],
)
def test_is_changed_decides_about_a_rerun(executor, monkeypatch, answers, reruns):
    for answer in answers:
        monkeypatch.setattr(stubs.Changing, "ANSWER", answer)
        record = run(executor, c=("Changing", {}), s=("Show", {"value": ["c", 0]}))
        assert record.status == "success"
    assert record.executed == (["c", "s"] if reruns else [])


def test_a_node_that_asks_for_its_id_is_not_shared(executor):
    nodes = {"1": ("Named", {}), "2": ("Named", {}), "3": ("Add", {"a": ["1", 0], "b": ["2", 0]})}
    record = run(executor, **nodes, s=("Show", {"value": ["3", 0]}), extra={"extra_pnginfo": {"w": 1}})
    assert text(record) == ["3"]
    assert ("Named", "1", ["1", "2", "3", "s"], {"w": 1}) in RAN


def test_lazy_inputs_run_only_if_asked_for(executor):
    nodes = {"a": ("Number", {"value": 2}), "b": ("Number", {"value": 3})}
    nodes["l"] = ("Lazy", {"left": False, "a": ["a", 0], "b": ["b", 0]})
    record = run(executor, **nodes, s=("Show", {"value": ["l", 0]}))
    assert text(record) == ["3"]
    assert "a" not in record.executed


def test_asking_for_an_input_that_is_not_connected_is_an_error(executor):
    nodes = {"a": ("Number", {"value": 2}), "g": ("Greedy", {"left": True, "a": ["a", 0], "b": 1})}
    record = run(executor, **nodes, s=("Show", {"value": ["g", 0]}))
    assert "needs input nothing, but there is no input to that node at all" in failure(record)["exception_message"]


def failure(record):
    assert record.status == "error"
    return record.message("execution_error")


def test_a_list_output_maps_its_consumers(executor):
    nodes = {"l": ("Several", {"count": 3}), "c": ("Add", {"a": ["l", 0], "b": 10})}
    assert text(run(executor, **nodes, s=("Show", {"value": ["c", 0]}))) == ["10", "11", "12"]


def test_a_shorter_list_repeats_its_last_item(executor):
    nodes = {"l": ("Several", {"count": 3}), "m": ("Several", {"count": 2})}
    nodes["c"] = ("Add", {"a": ["l", 0], "b": ["m", 0]})
    assert text(run(executor, **nodes, s=("Show", {"value": ["c", 0]}))) == ["0", "2", "3"]


def test_an_empty_list_means_no_call(executor):
    nodes = {"l": ("Several", {"count": 0}), "c": ("Add", {"a": ["l", 0], "b": 10})}
    record = run(executor, **nodes, s=("Show", {"value": ["c", 0]}))
    assert record.status == "success"
    assert [entry for entry in RAN if entry[0] in ("Add", "Show")] == []


def test_a_node_may_take_whole_lists(executor):
    nodes = {"l": ("Several", {"count": 4}), "t": ("Total", {"values": ["l", 0], "start": 100})}
    assert text(run(executor, **nodes, s=("Show", {"value": ["t", 0]}))) == ["106"]
    assert ("Total", [0, 1, 2, 3], [100]) in RAN


def blocked(message):
    return {
        "a": ("Number", {"value": 1}),
        "gate": ("Stop", {"value": ["a", 0], "message": message}),
        "c": ("Add", {"a": ["gate", 0], "b": 1}),
        "s": ("Show", {"value": ["c", 0]}),
        "t": ("Show", {"value": ["a", 0]}),
    }


def test_a_silent_blocker_stops_its_branch_only(executor):
    record = run(executor, **blocked(""))
    assert record.status == "success"
    assert record.outputs == {"t": {"text": ["1"]}}
    assert record.message("execution_error") is None


def test_a_loud_blocker_is_told_once(executor):
    record = run(executor, **blocked("no face here"))
    told = [data for name, data in record.messages if name == "execution_error"]
    assert [(data["node_id"], data["exception_message"]) for data in told] == [("c", "Execution Blocked: no face here")]
    assert record.outputs == {"t": {"text": ["1"]}}


def test_a_failure_has_every_field(executor):
    record = run(executor, a=("Number", {"value": 4}), f=("Fail", {"value": ["a", 0]}), s=("Show", {"value": ["f", 0]}))
    data = dict(failure(record))
    assert data.pop("traceback") and data.pop("timestamp")
    assert data == {
        "prompt_id": "prompt",
        "node_id": "f",
        "node_type": "Fail",
        "executed": ["a"],
        "exception_message": "cannot take 4",
        "exception_type": "ValueError",
        "current_inputs": {"value": [4]},
        "current_outputs": ["a"],
    }


def test_what_ran_before_a_failure_stays_cached(executor):
    nodes = {"a": ("Number", {"value": 4}), "f": ("Fail", {"value": ["a", 0]}), "s": ("Show", {"value": ["f", 0]})}
    run(executor, **nodes)
    assert run(executor, **nodes).message("execution_cached")["nodes"] == ["a"]


@pytest.mark.parametrize(
    ("kind", "sentence"), [("Expands", "a graph of its own"), ("Short", "must return a tuple of 2 values")]
)
def test_what_is_not_supported_fails_loudly(executor, kind, sentence):
    record = run(executor, e=(kind, {}), s=("Show", {"value": ["e", 0]}))
    assert sentence in failure(record)["exception_message"]


def test_async_functions_are_awaited_item_by_item(executor):
    nodes = {"l": ("Several", {"count": 3}), "w": ("Waits", {"value": ["l", 0]})}
    assert text(run(executor, **nodes, s=("Show", {"value": ["w", 0]}))) == ["0", "2", "4"]


def test_nodes_run_in_inference_mode(executor):
    assert text(run(executor, g=("Mode", {}), s=("Show", {"value": ["g", 0]}))) == ["1"]


def test_messages_come_in_comfyuis_order(executor):
    events = Events()
    run(executor, t=("Tells", {}), s=("Show", {"value": ["t", 0]}), listener=events)
    names = events.names()
    assert names[:2] == ["execution_start", "execution_cached"]
    assert names[2:6] == ["progress_state", "executing", "text", "progress_state"]
    assert names[6:8] == ["progress", "preview"]
    assert names[-1] == "execution_success"
    assert [data["node"] for name, data in (e for e in events.seen if len(e) == 2) if name == "executing"] == ["t", "s"]
    assert ("text", "t", "half way") in events.seen


@pytest.mark.parametrize("node", [("Slow", {"steps": 2000}), ("Swallows", {})])
def test_an_interrupt_stops_a_batch_in_the_middle(executor, node):
    stop = threading.Event()

    def press():
        assert stubs.STARTED.wait(20)
        stop.set()

    presser = threading.Thread(target=press)
    presser.start()
    record = run(executor, n=("Number", {"value": 1}), slow=node, s=("Show", {"value": ["slow", 0]}), stop=stop)
    presser.join()
    assert record.message("execution_interrupted")["node_id"] == "slow"
    assert record.outputs == {}
    assert len(RAN) < 2000


def test_the_next_prompt_runs_after_an_interrupt(executor):
    stop = threading.Event()
    stop.set()
    assert run(executor, **SUM, stop=stop).message("execution_interrupted")
    assert run(executor, **SUM).status == "success"


def test_two_executors_keep_their_progress_apart():
    both = [Events(), Events()]

    def work(events, value):
        nodes = {"t": ("Slow", {"steps": 20 + value}), "s": ("Show", {"value": ["t", 0]})}
        run(Executor(KNOWN), **nodes, listener=events)

    threads = [threading.Thread(target=work, args=(events, i)) for i, events in enumerate(both)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, events in enumerate(both):
        assert {data["max"] for name, data in events.seen if name == "progress"} == {20 + i}


def test_a_node_costs_less_than_a_millisecond(executor):
    count = 300
    nodes = {"n0": ("Number", {"value": 1})}
    nodes |= {f"n{i}": ("Add", {"a": [f"n{i - 1}", 0], "b": 1}) for i in range(1, count)}
    nodes["s"] = ("Show", {"value": [f"n{count - 1}", 0]})
    best = float("inf")
    for _ in range(3):
        executor.forget()
        began = time.perf_counter()
        assert text(run(executor, **nodes)) == [str(count)]
        best = min(best, time.perf_counter() - began)
    assert best / count < 1e-3
