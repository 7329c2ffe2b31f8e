"""Prompts are refused with the error records of ComfyUI's server, and good outputs run beside bad ones."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from likeness.engine.graph import ancestry, validate

from .stub_nodes import KNOWN, graph


def checked(targets=None, **nodes):
    return validate(graph(**nodes), KNOWN, targets)


def errors_of(verdict, node="a"):
    return verdict.node_errors[node]["errors"]


def shown(source="a"):
    return ("Show", {"value": [source, 0]})


def test_a_good_prompt_passes():
    verdict = checked(a=("Number", {"value": 3}), s=shown())
    assert (verdict.ok, verdict.outputs, verdict.node_errors) == (True, ["s"], {})


def test_constants_are_coerced_in_place():
    prompt = graph(
        a=("Add2", {"a": "5", "mode": "up", "many": "option 1", "scale": "1.5", "flag": 1, "note": 7}), s=shown()
    )
    assert validate(prompt, KNOWN).ok
    inputs = prompt["a"]["inputs"]
    assert (inputs["a"], inputs["scale"], inputs["flag"], inputs["note"]) == (5, 1.5, True, "7")


def test_a_wrapped_value_is_unwrapped():
    prompt = graph(a=("Number", {"value": {"__value__": 4}}), s=shown())
    assert validate(prompt, KNOWN).ok
    assert prompt["a"]["inputs"]["value"] == 4


GOOD = {"a": 1, "mode": "up", "many": "option 1", "scale": 1.0, "flag": False}


@pytest.mark.parametrize(
    ("node", "expected"),
    [
        (
            ("Number", {}),
            {"type": "required_input_missing", "message": "Required input is missing", "details": "value"},
        ),
        (
            ("Number", {"value": -1}),
            {"type": "value_smaller_than_min", "message": "Value -1 smaller than min of 0", "details": "value"},
        ),
        (
            ("Number", {"value": 101}),
            {"type": "value_bigger_than_max", "message": "Value 101 bigger than max of 100", "details": "value"},
        ),
        (
            ("Number", {"value": "many"}),
            {
                "type": "invalid_input_type",
                "message": "Failed to convert an input value to a INT value",
                "details": "value, many, invalid literal for int() with base 10: 'many'",
            },
        ),
        (
            ("Add2", {"a": 1, "mode": "up", "many": "option 1", "scale": float("nan"), "flag": False}),
            {
                "type": "invalid_input_type",
                "message": "Failed to convert an input value to a FLOAT value",
                "details": "scale, nan, NaN is not a number to work with",
            },
        ),
        (
            ("Number", {"value": ["a"]}),
            {
                "type": "bad_linked_input",
                "message": "Bad linked input, must be a length-2 list of [node_id, slot_index]",
                "details": "value",
            },
        ),
        (
            ("Number", {"value": ["ghost", 0]}),
            {
                "type": "bad_linked_input",
                "message": "Bad linked input, must be a length-2 list of [node_id, slot_index]",
                "details": "value: there is no node 'ghost' in the prompt",
            },
        ),
        (
            ("Add2", {**GOOD, "mode": "sideways"}),
            {
                "type": "value_not_in_list",
                "message": "Value not in list",
                "details": "mode: 'sideways' not in ['up', 'down']",
            },
        ),
        (
            ("Add2", {**GOOD, "many": "option 99"}),
            {
                "type": "value_not_in_list",
                "message": "Value not in list",
                "details": "many: 'option 99' not in (list of length 30)",
            },
        ),
        (
            ("Checked", {"value": 7, "other": 0}),
            {
                "type": "custom_validation_failed",
                "message": "Custom validation failed for node",
                "details": "value - seven is not for sale",
            },
        ),
        (
            ("Checked", {"value": 13, "other": 0}),
            {
                "type": "exception_during_validation",
                "message": "Exception when validating node",
                "details": "unlucky",
            },
        ),
        (
            ("Speechless", {}),
            {
                "type": "exception_during_validation",
                "message": "Exception when validating node",
                "details": "the folder is gone",
            },
        ),
    ],
)
def test_a_bad_input_has_its_record(node, expected):
    verdict = checked(a=node, s=shown())
    (record,) = errors_of(verdict)
    assert {key: record[key] for key in expected} == expected
    assert "extra_info" in record
    assert verdict.node_errors["a"]["dependent_outputs"] == ["s"]
    assert verdict.node_errors["a"]["class_type"] == node[0]
    assert verdict.error == {
        "type": "prompt_outputs_failed_validation",
        "message": "Prompt outputs failed validation",
        "details": "",
        "extra_info": {},
    }


def test_an_outputs_own_errors_are_spelled_out_in_the_answer():
    verdict = checked(s=("Show", {}))
    assert verdict.error["details"] == "Required input is missing: value"


def test_extra_info_names_the_input_and_what_came():
    (record,) = errors_of(checked(a=("Number", {"value": 101}), s=shown()))
    assert record["extra_info"] == {
        "input_name": "value",
        "input_config": ("INT", {"default": 1, "min": 0, "max": 100}),
        "received_value": 101,
    }


def test_long_lists_are_hidden():
    (record,) = errors_of(checked(a=("Add2", {**GOOD, "many": "x"}), s=shown()))
    assert record["extra_info"]["input_config"] is None


def test_a_wrong_type_is_told():
    verdict = checked(i=("EmptyImage", {"width": 8, "height": 8}), a=("Add", {"a": ["i", 0], "b": 1}), s=shown())
    kinds = {record["type"] for record in errors_of(verdict)}
    assert kinds == {"return_type_mismatch"}
    assert errors_of(verdict)[0]["details"] == "a, received_type(IMAGE) mismatch input_type(INT)"
    assert errors_of(verdict)[0]["extra_info"]["linked_node"] == ["i", 0]


def test_a_slot_that_is_not_there_is_a_bad_link():
    verdict = checked(n=("Number", {"value": 1}), a=("Add", {"a": ["n", 4], "b": 1}), s=shown())
    (record,) = errors_of(verdict)
    assert record["type"] == "bad_linked_input"
    assert "has 1 outputs, not a slot 4" in record["details"]


def test_names_that_the_node_checks_itself_skip_the_range_check():
    assert checked(a=("Checked", {"value": 99, "other": 0}), s=shown()).ok
    verdict = checked(a=("Checked", {"value": 99, "other": 99}), s=shown())
    assert [record["extra_info"]["input_name"] for record in errors_of(verdict)] == ["other"]


def test_good_outputs_run_beside_bad_ones():
    verdict = checked(g=("Number", {"value": 1}), b=("Number", {"value": -1}), s=shown("g"), t=shown("b"))
    assert verdict.ok
    assert verdict.outputs == ["s"]
    assert verdict.node_errors["b"]["dependent_outputs"] == ["t"]


def test_an_error_upstream_is_reported_once_with_every_output_it_spoils():
    verdict = checked(b=("Number", {"value": -1}), s=shown("b"), t=shown("b"))
    assert list(verdict.node_errors) == ["b"]
    assert verdict.node_errors["b"]["dependent_outputs"] == ["s", "t"]


def test_targets_limit_the_outputs():
    verdict = checked(["t"], g=("Number", {"value": 1}), s=shown("g"), t=shown("g"))
    assert verdict.outputs == ["t"]


@pytest.mark.parametrize(
    ("prompt", "kind", "message"),
    [
        ([], "invalid_prompt", "A prompt must be an object"),
        ({"1": 5}, "invalid_prompt", "A prompt must be an object"),
        ({"1": {"inputs": {}}}, "invalid_prompt", "Cannot execute because a node is missing the class_type property."),
        ({"1": {"class_type": "KSamplerX"}}, "invalid_prompt", "likeness run FILE --server"),
        ({"1": {"class_type": "Number", "inputs": 3}}, "invalid_prompt", "inputs are not an object"),
        (graph(a=("Number", {"value": 1})), "prompt_no_outputs", "Prompt has no outputs"),
        ({}, "prompt_no_outputs", "Prompt has no outputs"),
    ],
)
def test_a_prompt_that_is_none_is_refused(prompt, kind, message):
    verdict = validate(prompt, KNOWN)
    assert verdict.error["type"] == kind
    assert message in verdict.error["message"]
    assert verdict.node_errors == {}


def test_a_cycle_is_named():
    verdict = checked(a=("Add", {"a": ["b", 0], "b": 1}), b=("Add", {"a": ["a", 0], "b": 1}), s=shown())
    (record,) = errors_of(verdict)
    assert record["type"] == "dependency_cycle"
    assert "a <- b <- a" in record["details"]


def test_a_long_chain_meets_no_recursion_limit():
    nodes = {"n0": ("Number", {"value": 1})}
    nodes |= {f"n{i}": ("Add", {"a": [f"n{i - 1}", 0], "b": 1}) for i in range(1, 3000)}
    verdict = checked(**nodes, s=shown("n2999"))
    assert verdict.ok
    order, cycle = ancestry(graph(**nodes), ["n2999"])
    assert (order[0], order[-1], cycle) == ("n0", "n2999", [])


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "inputs", "__value__"]), inner),
    max_leaves=4,
)
IDS = st.sampled_from(["a", "b", "c"])
INPUT = VALUES | st.tuples(IDS, st.integers(-1, 2)).map(list)
NODE = st.fixed_dictionaries(
    {
        "class_type": st.sampled_from(sorted(KNOWN)),
        "inputs": st.dictionaries(st.sampled_from(["a", "b", "value", "image", "left", "count"]), INPUT),
    }
)


@settings(max_examples=100, deadline=None)
@given(VALUES | st.dictionaries(IDS, NODE | VALUES))
def test_whatever_is_posted_is_answered(prompt):
    verdict = validate(prompt, KNOWN)
    assert verdict.ok or verdict.error["type"]
    json.dumps([verdict.error, verdict.node_errors], default=str)
