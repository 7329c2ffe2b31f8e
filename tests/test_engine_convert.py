"""Between the editor's files and the API's: what the editor would send, and files that it can show."""

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from likeness.engine import workflow
from likeness.engine.convert import ROOM, to_api, to_editor
from likeness.engine.graph import validate
from likeness.engine.registry import object_info
from likeness.face.errors import BadInput

from .stub_nodes import KNOWN, graph

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def info():
    # Through JSON, as a client gets it.
    return json.loads(json.dumps(object_info(KNOWN)))


def full(**inputs):
    return {"a": 1, "mode": "down", "many": "option 3", "scale": 1.5, "flag": True, "note": "n", "seed": 7, **inputs}


WORKFLOW = {
    "1": {"class_type": "LoadImage", "inputs": {"image": "x.png"}, "_meta": {"title": "Source"}},
    "2": {"class_type": "Number", "inputs": {"value": 4}},
    "5": {"class_type": "Add2", "inputs": full(a=["2", 0], seed=["2", 0]), "_meta": {"title": "Sum"}},
    "6": {"class_type": "Add2", "inputs": full(note=["5", 1])},
    "7": {
        "class_type": "ImageScale",
        "inputs": {"image": ["1", 0], "upscale_method": "area", "width": ["5", 0], "height": 9, "crop": "center"},
    },
    "9": {"class_type": "SaveImage", "inputs": {"images": ["7", 0], "filename_prefix": "p"}},
    "10": {"class_type": "Show", "inputs": {"value": ["6", 0]}},
    "11": {"class_type": "Show", "inputs": {"value": ["1", 1]}},
}


SCRAP = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-3, 12), st.floats(), st.sampled_from(["", "1", "Show", "images"])),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["id", "type", "0"]), inner, max_size=3)
    ),
    max_leaves=4,
)


def spoilt(value, draw):
    """``value`` with something else in one place, at whatever depth."""
    if isinstance(value, (dict, list)) and value and draw(st.integers(0, 5)):
        places = list(value) if isinstance(value, dict) else range(len(value))
        place = draw(st.sampled_from(places))
        if not draw(st.integers(0, 9)):
            del value[place]
        else:
            value[place] = spoilt(value[place], draw)
        return value
    return draw(SCRAP)


@given(data=st.data(), editor=st.booleans())
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_spoilt_file_is_refused_with_a_sentence_or_read(tmp_path, info, data, editor):
    whole = json.loads(json.dumps(to_editor(WORKFLOW, info) if editor else WORKFLOW))
    file = tmp_path / "spoilt.json"
    file.write_text(json.dumps(spoilt(whole, data.draw)))
    try:
        read = workflow.read(file)
        prompt = to_api(read, info) if workflow.is_editor(read) else read
        workflow.apply_settings(prompt, [], info)
        list(workflow.picture_inputs(prompt, info))
    except BadInput as refused:
        assert "spoilt.json" in str(refused) or "subgraphs" in str(refused)
        return
    verdict = validate(prompt, KNOWN)
    assert workflow.readable(verdict.node_errors, verdict.error, prompt) or verdict.ok


def test_to_the_editor_and_back_is_the_same(info):
    editor = json.loads(json.dumps(to_editor(WORKFLOW, info)))
    assert to_api(editor, info) == WORKFLOW


def test_there_is_room_for_what_a_node_shows_and_no_more(info):
    alone = {"1": {"class_type": "Show", "inputs": {"value": 1}}}

    def height(**changes):
        return to_editor(alone, {**info, "Show": {**info["Show"], "output": ["INT"], **changes}})["nodes"][0]["size"][1]

    bare = height()
    assert height(shows=["text"]) == bare + ROOM["text"] < height(shows=["images"]) == bare + ROOM["images"]
    assert height(shows=["images", "text"]) == bare + sum(ROOM.values())


def test_the_files_links_agree_with_its_nodes(info):
    editor = to_editor(WORKFLOW, info)
    nodes = {node["id"]: node for node in editor["nodes"]}
    assert editor["last_node_id"] == 11
    assert editor["last_link_id"] == len(editor["links"]) == 8
    for number, source, slot, target, place, kind in editor["links"]:
        assert number in nodes[source]["outputs"][slot]["links"]
        assert nodes[target]["inputs"][place]["link"] == number
        assert nodes[source]["outputs"][slot]["type"] == kind
    assert sorted(node["order"] for node in nodes.values()) == list(range(8))
    for source, target in ((link[1], link[3]) for link in editor["links"]):
        assert nodes[source]["order"] < nodes[target]["order"]


def test_a_seed_has_its_control_widget_and_an_upload_its_button(info):
    nodes = {node["id"]: node for node in to_editor(WORKFLOW, info)["nodes"]}
    assert nodes[6]["widgets_values"] == [1, "down", "option 3", 1.5, True, "", 7, "fixed"]
    assert nodes[1]["widgets_values"] == ["x.png", "image"]
    assert nodes[1]["title"] == "Source"
    assert "title" not in nodes[2]


def test_nodes_do_not_overlap_and_flow_to_the_right(info):
    editor = to_editor(WORKFLOW, info)
    boxes = {
        n["id"]: (n["pos"][0], n["pos"][1] - 30, n["pos"][0] + n["size"][0], n["pos"][1] + n["size"][1])
        for n in editor["nodes"]
    }
    for a in boxes:
        for b in boxes:
            (ax1, ay1, ax2, ay2), (bx1, by1, bx2, by2) = boxes[a], boxes[b]
            assert a == b or ax2 <= bx1 or bx2 <= ax1 or ay2 <= by1 or by2 <= ay1, (a, b)
    assert all(boxes[source][2] < boxes[target][0] for _, source, _, target, _, _ in editor["links"])


def test_a_name_for_an_id_becomes_a_number(info):
    prompt = graph(one=("Number", {"value": 1}), s=("Show", {"value": ["one", 0]}))
    back = to_api(to_editor(prompt, info), info)
    assert {node["class_type"] for node in back.values()} == {"Number", "Show"}
    assert set(back) == {"1", "2"}


def test_left_out_widgets_get_their_defaults(info):
    prompt = {"1": {"class_type": "Number", "inputs": {}}}
    assert to_api(to_editor(prompt, info), info) == {"1": {"class_type": "Number", "inputs": {"value": 1}}}


@pytest.mark.parametrize(
    ("prompt", "sentence"),
    [
        (graph(a=("Unknown", {})), "is not known here"),
        (graph(a=("Add", {"a": ["a", 0], "b": 1})), "has a cycle"),
        (graph(a=("Show", {"value": ["ghost", 0]})), "does not exist"),
    ],
)
def test_what_cannot_be_shown_is_refused(info, prompt, sentence):
    with pytest.raises(BadInput, match=sentence):
        to_editor(prompt, info)


def node(number, kind, inputs=(), outputs=(), values=(), **more):
    """An editor node: inputs as (name, type, link), outputs as types."""
    return {
        "id": number,
        "type": kind,
        "mode": 0,
        "inputs": [{"name": n, "type": t, "link": link} for n, t, link in inputs],
        "outputs": [{"name": t, "type": t} for t in outputs],
        "widgets_values": list(values),
        **more,
    }


def editor(*nodes, links):
    return {"nodes": list(nodes), "links": links, "version": 0.4}


IMAGE = ("image", "IMAGE")


def invert_chain(middle):
    return editor(
        node(1, "EmptyImage", outputs=["IMAGE"], values=[8, 8, 1, 0]),
        middle,
        node(3, "SaveImage", [("images", "IMAGE", 2)], values=["p"]),
        node(4, "Note", values=["hello"]),
        node(5, "MarkdownNote", values=["hello"]),
        links=[[1, 1, 0, 2, 0, "IMAGE"], [2, 2, 0, 3, 0, "IMAGE"]],
    )


def test_notes_are_left_out(info):
    api = to_api(invert_chain(node(2, "ImageInvert", [(*IMAGE, 1)], ["IMAGE"])), info)
    assert list(api) == ["1", "2", "3"]
    assert api["3"]["inputs"] == {"images": ["2", 0], "filename_prefix": "p"}


@pytest.mark.parametrize(
    "middle",
    [
        node(2, "ImageInvert", [(*IMAGE, 1)], ["IMAGE"], mode=4),
        node(2, "Reroute", [("", "*", 1)], ["IMAGE"]),
        node(2, "ImageScale", [("mask", "MASK", None), (*IMAGE, 1)], ["IMAGE"], mode=4),
    ],
    ids=["bypassed", "reroute", "bypassed by type"],
)
def test_what_is_passed_through_disappears(info, middle):
    api = to_api(invert_chain(middle), info)
    assert list(api) == ["1", "3"]
    assert api["3"]["inputs"]["images"] == ["1", 0]


def test_a_muted_node_takes_its_links_with_it(info):
    api = to_api(invert_chain(node(2, "ImageInvert", [(*IMAGE, 1)], ["IMAGE"], mode=2)), info)
    assert list(api) == ["1", "3"]
    assert api["3"]["inputs"] == {"filename_prefix": "p"}


def test_a_primitive_gives_its_value(info):
    number = node(2, "Number", values=[1])
    number["inputs"] = [{"name": "value", "type": "INT", "link": 1, "widget": {"name": "value"}}]
    graph_ = editor(
        node(1, "PrimitiveNode", outputs=["INT"], values=[42, "fixed"]), number, links=[[1, 1, 0, 2, 0, "INT"]]
    )
    assert to_api(graph_, info) == {"2": {"class_type": "Number", "inputs": {"value": 42}}}


def test_links_of_the_newer_file_version_are_read(info):
    graph_ = invert_chain(node(2, "ImageInvert", [(*IMAGE, 1)], ["IMAGE"]))
    names = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
    graph_["links"] = [dict(zip(names, link, strict=True)) for link in graph_["links"]]
    assert to_api(graph_, info)["2"]["inputs"] == {"image": ["1", 0]}


def test_widget_values_may_have_names(info):
    graph_ = editor(node(1, "Number", values=()), links=[])
    graph_["nodes"][0]["widgets_values"] = {"value": 8}
    assert to_api(graph_, info)["1"]["inputs"] == {"value": 8}


def test_subgraphs_are_refused(info):
    with pytest.raises(BadInput, match="subgraphs"):
        to_api({"nodes": [], "links": [], "definitions": {"subgraphs": [{}]}}, info)
