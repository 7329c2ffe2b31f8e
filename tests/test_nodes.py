"""Every node is a complete form: description, tooltips, help page, and it behaves on hard input."""

import inspect
import re
from pathlib import Path

import pytest
import torch
from likeness.nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS
from likeness.nodes import host as hosts
from likeness.nodes.saving import mark_of

ROOT = Path(__file__).resolve().parent.parent
NODES = sorted(NODE_CLASS_MAPPINGS.items())
IDS = [name for name, _ in NODES]


@pytest.fixture(autouse=True)
def _host(tmp_path):
    hosts.use(hosts.StandaloneNodeHost(work=tmp_path))
    yield
    hosts.use(None)


def inputs(node):
    spec = node.INPUT_TYPES()
    return {**spec.get("required", {}), **spec.get("optional", {})}


@pytest.mark.parametrize(("name", "node"), NODES, ids=IDS)
def test_every_node_says_what_it_does_and_takes_and_gives(name, node):
    assert len(node.DESCRIPTION) > 40 and node.CATEGORY.startswith("Likeness/")
    assert len(node.RETURN_TYPES) == len(node.RETURN_NAMES) == len(node.OUTPUT_TOOLTIPS)
    for key, (_, options) in inputs(node).items():
        assert len(options["tooltip"]) > 8, key
    for tip in node.OUTPUT_TOOLTIPS:
        assert len(tip) > 8
    assert NODE_DISPLAY_NAME_MAPPINGS[name]


@pytest.mark.parametrize(("name", "node"), NODES, ids=IDS)
def test_the_function_takes_exactly_the_declared_inputs(name, node):
    parameters = inspect.signature(getattr(node, node.FUNCTION)).parameters
    names = {p for p in parameters if p != "self" and parameters[p].kind is not inspect.Parameter.VAR_KEYWORD}
    free = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    declared = set(inputs(node)) | set(node.INPUT_TYPES().get("hidden", {}))
    assert declared >= names and (free or declared == names)
    for key in node.INPUT_TYPES().get("optional", {}):
        if key in parameters:
            assert parameters[key].default is not inspect.Parameter.empty, f"{key} may be missing in a prompt"


@pytest.mark.parametrize(("name", "node"), NODES, ids=IDS)
def test_optional_widgets_default_to_what_the_function_defaults_to(name, node):
    parameters = inspect.signature(getattr(node, node.FUNCTION)).parameters
    for key, (_, options) in node.INPUT_TYPES().get("optional", {}).items():
        if key in parameters and options.get("default") is not None:
            assert parameters[key].default == options["default"], key


@pytest.mark.parametrize(("name", "node"), NODES, ids=IDS)
def test_every_node_has_a_help_page_that_names_every_input_and_output(name, node):
    page = (ROOT / "web" / "docs" / f"{name}.md").read_text()
    for key in [*inputs(node), *node.RETURN_NAMES]:
        numbered = re.fullmatch(r"(identity|mask)_\d", key)
        assert numbered or re.search(rf"`{re.escape(key)}`", page), f"{key} is not explained"


def test_the_editors_script_draws_the_texts_of_every_node():
    script = (ROOT / "web" / "likeness.js").read_text()
    (prefix,) = re.findall(r'nodeData\.name\.startsWith\("(\w+)"\)', script)
    assert all(name.startswith(prefix) for name in NODE_CLASS_MAPPINGS)
    # Neither into saved files nor into prompts.
    assert "box.serialize = false" in script and "box.options.serialize = false" in script


def test_no_help_page_outlives_its_node():
    assert {p.stem for p in (ROOT / "web" / "docs").glob("*.md")} == set(NODE_CLASS_MAPPINGS)


def test_a_picture_says_all_that_was_done_to_the_people_in_it():
    def node(kind, **feeding):
        return {"class_type": kind, "inputs": {name: [source, 0] for name, source in feeding.items()}}

    prompt = {"load": node("LoadImage"), "apply": node("LikenessApplyIdentityAdapter", identity="load")}
    prompt |= {"draw": node("KSampler", model="apply"), "swap": node("LikenessSwapFaces", image="draw")}
    drawn, both = "generated: a person drawn from an identity", "edited: faces swapped; generated: a person drawn"
    assert mark_of(prompt, ["load"], NODE_CLASS_MAPPINGS) is None
    assert mark_of(prompt, ["draw"], NODE_CLASS_MAPPINGS) == drawn
    assert str(mark_of(prompt, ["swap"], NODE_CLASS_MAPPINGS)).startswith(both)


def test_a_picture_without_a_face_is_no_error_for_detection():
    node = NODE_CLASS_MAPPINGS["LikenessDetectFaces"]()
    values = {k: o["default"] for k, (_, o) in inputs(node).items() if "default" in o}
    faces, count, _ = node.run(image=torch.zeros(3, 64, 48, 3), **values)["result"]
    assert len(faces) == 3 and count == 0 and faces.sizes == ((64, 48),) * 3
