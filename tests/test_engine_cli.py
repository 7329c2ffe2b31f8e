"""The ``likeness`` command: what it prints where, and its exit codes."""

import asyncio
import builtins
import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from aiohttp import web
from likeness.engine import cli, registry
from likeness.engine.convert import to_editor
from likeness.engine.host import EngineHost
from likeness.engine.local import Line
from likeness.engine.server import Server
from PIL import Image

from .stub_nodes import KNOWN, graph

ROOT = Path(__file__).resolve().parent.parent
WORKFLOW = {
    "1": {"class_type": "LoadImage", "inputs": {"image": "in.png"}, "_meta": {"title": "Source"}},
    "2": {"class_type": "ImageInvert", "inputs": {"image": ["1", 0]}},
    "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "inverted"}},
    "4": {"class_type": "Number", "inputs": {"value": 5}, "_meta": {"title": "Count. of things"}},
    "5": {"class_type": "Show", "inputs": {"value": ["4", 0]}},
}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder to stand in, with a workflow and the stub nodes known."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "classes", lambda: KNOWN)
    (tmp_path / "input").mkdir()
    Image.new("RGB", (4, 4), (255, 0, 0)).save(tmp_path / "input" / "in.png")
    write(tmp_path / "flow.json", WORKFLOW)
    return tmp_path


def write(path, data):
    path.write_text(json.dumps(data))
    return str(path)


def colour(path):
    return Image.open(path).getpixel((0, 0))


def test_run_prints_the_files_it_wrote(place, capsys):
    assert cli.main(["run", "flow.json"]) == 0
    out, err = capsys.readouterr()
    assert out.split() == [str(place / "out" / "inverted_00001_.png")]
    assert "[1/" in err
    assert "5" in err.splitlines()[-1]
    assert colour(out.strip()) == (0, 255, 255)


def test_json_is_all_there_is_on_standard_output(place, capsys):
    assert cli.main(["run", "flow.json", "--json", "--out", "elsewhere"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["files"] == [str(place / "elsewhere" / "inverted_00001_.png")]
    assert result["outputs"]["5"] == {"text": ["5"]}
    assert set(result["executed"]) == set(WORKFLOW)


def test_previews_are_no_results_and_are_gone_after_the_run(place, capsys, tmp_path_factory, monkeypatch):
    scratch = tmp_path_factory.mktemp("scratch")
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    nodes = {**WORKFLOW, "6": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}}}
    assert cli.main(["run", write(place / "p.json", nodes)]) == 0
    out, err = capsys.readouterr()
    assert out.split() == [str(place / "out" / "inverted_00001_.png")] and "no picture was saved" not in err
    del nodes["3"]
    assert cli.main(["run", write(place / "p.json", nodes)]) == 0
    out, err = capsys.readouterr()
    assert out == "" and err.splitlines()[-1].startswith("no picture was saved in out")
    assert cli.main(["run", write(place / "p.json", nodes), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["files"] == [] and shown["outputs"]["6"] == {"images": []}
    assert [file.name for file in place.rglob("*.png")] == ["in.png", "inverted_00001_.png"]
    assert list(scratch.iterdir()) == []


@pytest.mark.parametrize("key", ["4.value", "count. OF things.value", "number.value"])
def test_set_finds_a_node_by_id_title_or_class(place, capsys, key):
    assert cli.main(["run", "flow.json", "--json", "--set", f"{key}=77"]) == 0
    assert json.loads(capsys.readouterr().out)["outputs"]["5"] == {"text": ["77"]}


@pytest.mark.parametrize(("given", "shown"), [("007", "007"), ("true", "true"), ("[0, 1]", "[0, 1]"), ('"7"', "7")])
def test_a_text_stays_the_text_that_was_typed(place, capsys, given, shown):
    write(place / "t.json", graph(t=("PrimitiveString", {"value": ""}), s=("Show", {"value": ["t", 0]})))
    assert cli.main(["run", "t.json", "--json", "--set", f"t.value={given}"]) == 0
    assert json.loads(capsys.readouterr().out)["outputs"]["s"] == {"text": [shown]}


@pytest.mark.parametrize("absolute", [True, False])
def test_a_picture_that_is_set_may_lie_anywhere(place, capsys, absolute, tmp_path_factory):
    folder = tmp_path_factory.mktemp("far away")
    Image.new("RGB", (4, 4), (0, 0, 255)).save(folder / "in.png")
    name = str(folder / "in.png") if absolute else os.path.relpath(folder / "in.png")
    assert cli.main(["run", "flow.json", "--set", f"Source.image={name}"]) == 0
    assert colour(capsys.readouterr().out.strip()) == (255, 255, 0)
    assert os.listdir(place / "input") == ["in.png"]


def test_a_picture_beside_the_workflow_is_found(place, capsys):
    (place / "flows").mkdir()
    Image.new("RGB", (4, 4), (0, 255, 0)).save(place / "flows" / "own.png")
    nodes = {**WORKFLOW, "1": {"class_type": "LoadImage", "inputs": {"image": "own.png"}}}
    assert cli.main(["run", write(place / "flows" / "f.json", nodes)]) == 0
    assert colour(capsys.readouterr().out.strip()) == (255, 0, 255)


def test_a_picture_in_photos_beside_the_workflow_is_found_wherever_one_stands(place, capsys):
    (place / "flows" / "photos").mkdir(parents=True)
    Image.new("RGB", (4, 4), (0, 255, 0)).save(place / "flows" / "photos" / "own.png")
    nodes = {**WORKFLOW, "1": {"class_type": "LoadImage", "inputs": {"image": "own.png"}}}
    assert cli.main(["run", write(place / "flows" / "f.json", nodes)]) == 0
    assert colour(capsys.readouterr().out.strip()) == (255, 0, 255)


def test_editor_files_and_pngs_run_too(place, capsys):
    info = json.loads(json.dumps(registry.object_info(KNOWN)))
    assert cli.main(["run", write(place / "editor.json", to_editor(WORKFLOW, info))]) == 0
    written = capsys.readouterr().out.strip()
    assert "workflow" in Image.open(written).info
    assert cli.main(["run", written]) == 0
    assert colour(capsys.readouterr().out.strip()) == (0, 255, 255)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nothing.json"], "there is no workflow file nothing.json"),
        (["flow.json", "--set", "Sauce.image=x"], "there is no node called 'Sauce'. The workflow has: 1 (Source)"),
        (["flow.json", "--set", "Source.imgae=x"], "has no input 'imgae'; did you mean 'image'?"),
        (["flow.json", "--set", "Source"], "expected node.input=value"),
        (["flow.json", "--set", "4.value=1000"], "Count. of things (node 4): Value 1000 bigger than max of 100: value"),
        (["flow.json", "--set", "Source.image=gone.png"], "there is no picture gone.png"),
        (["flow.json", "--input", "empty"], "there is no picture 'in.png'"),
    ],
)
def test_a_wrong_call_exits_2_with_a_sentence(place, capsys, arguments, sentence):
    assert cli.main(["run", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert sentence in err
    assert "Traceback" not in err


@pytest.mark.parametrize("content", ["{", "[]", '{"a": 1}'])
def test_a_file_that_is_no_workflow_exits_2(place, capsys, content):
    (place / "bad.json").write_text(content)
    assert cli.main(["run", "bad.json"]) == 2
    assert "bad.json is not a workflow" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({"nodes": [1]}, "node 0 of the list has no id"),
        ({"nodes": [{"id": 1}]}, "node 1 has no type"),
        ({"nodes": [{"id": 1, "type": "Show", "inputs": 5}]}, "the inputs of node 1 are no list"),
        ({"nodes": [{"id": 1, "type": "Show", "inputs": [{"link": 1}]}]}, "an input of node 1 has no name"),
        ({"nodes": [], "links": [[1, 7]]}, r"link 0 of the list is not \(id, from node, slot, to node, slot, type\)"),
        ({"nodes": [], "links": {}}, "its links are no list"),
        ({"1": {"class_type": 5}}, "the class_type of node 1 is no text"),
        ({"1": {"class_type": "Show", "inputs": []}}, "the inputs of node 1 are no object"),
        ({"1": {"class_type": "Show", "_meta": {"title": 5}}}, "the title of node 1 is no text"),
    ],
)
def test_a_damaged_workflow_exits_2_and_says_where(place, capsys, content, sentence):
    assert cli.main(["run", write(place / "bad.json", content)]) == 2
    assert re.search(f"bad.json is damaged: {sentence}. Save or export", capsys.readouterr().err)


def test_results_that_cannot_be_written_exit_2_before_anything_is_loaded(place, capsys):
    (place / "file").touch()
    for call in (["run", "flow.json"], ["run", "flow.json", "--server", "127.0.0.1:9"], ["demo"]):
        assert cli.main([*call, "--out", "file/x"]) == 2
        assert capsys.readouterr().err == "file/x cannot be a folder: Not a directory. Name another one.\n"


def test_a_demo_without_models_exits_1_with_the_remedy(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("LIKENESS_MODELS", str(tmp_path / "none"))
    assert cli.main(["demo", "--out", str(tmp_path / "out")]) == 1
    out, err = capsys.readouterr()
    assert out == "" and "models fetch yunet" in err.splitlines()[-1] and "Traceback" not in err


def test_a_server_that_cannot_be_started_is_a_sentence(place, capsys):
    assert cli.main(["serve", "--input", "flow.json"]) == 2
    assert "flow.json cannot be a folder: File exists" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        cli.main(["serve", "--port", "99999"])
    assert "a port lies between 0 and 65535; got 99999" in capsys.readouterr().err


def test_cached_nodes_do_not_count_below_zero(capsys):
    line = Line({"1": {"class_type": "Show"}})
    line.event("execution_cached", {"nodes": ["1", "2", "3"]})
    line.event("executing", {"node": "1"})
    assert capsys.readouterr().err == "[1] Show\n"


def test_an_unknown_node_names_the_way_out(place, capsys):
    write(place / "k.json", graph(k=("SomebodyElses", {})))
    assert cli.main(["run", "k.json"]) == 2
    assert "likeness run FILE --server" in capsys.readouterr().err


def test_a_failing_node_exits_1_and_shows_its_traceback_only_if_asked(place, capsys):
    write(place / "f.json", graph(f=("Fail", {"value": 3}), s=("Show", {"value": ["f", 0]})))
    assert cli.main(["run", "f.json"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[-1] == "Fail (node f): cannot take 3"
    assert cli.main(["-v", "run", "f.json"]) == 1
    assert "in go" in capsys.readouterr().err


def test_a_loud_blocker_exits_1(place, capsys):
    write(place / "b.json", graph(b=("Stop", {"value": 3, "message": "no face"}), s=("Show", {"value": ["b", 0]})))
    assert cli.main(["run", "b.json"]) == 1
    assert "no face" in capsys.readouterr().err


def test_ctrl_c_exits_130(place, capsys, monkeypatch):
    def press(self, value):
        raise KeyboardInterrupt

    monkeypatch.setattr(KNOWN["Number"], "go", press)
    assert cli.main(["run", "flow.json"]) == 130


def test_ctrl_c_while_libraries_load_exits_130(monkeypatch):
    real = builtins.__import__

    def press(name, *rest):
        if name == "numpy":
            raise KeyboardInterrupt
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", press)
    assert cli.main(["models", "list"]) == 130


@pytest.fixture
def server(tmp_path_factory):
    """The address of an engine that serves the stub nodes from a thread."""
    folder = tmp_path_factory.mktemp("server")
    ready, loop = threading.Event(), asyncio.new_event_loop()
    address = []

    async def begin():
        host = EngineHost([folder / "input"], folder / "output", folder / "temp")
        from likeness.nodes import host as nodes_host

        nodes_host.use(host)
        runner = web.AppRunner(Server(KNOWN, host).app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        address.append(f"http://127.0.0.1:{runner.addresses[0][1]}")
        ready.set()
        return runner

    runner = []

    def work():
        asyncio.set_event_loop(loop)
        runner.append(loop.run_until_complete(begin()))
        loop.run_forever()
        loop.run_until_complete(runner[0].cleanup())

    thread = threading.Thread(target=work)
    thread.start()
    assert ready.wait(20)
    yield address[0]
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    from likeness.nodes import host as nodes_host

    nodes_host.use(None)


def test_the_same_file_runs_on_a_server(place, capsys, server):
    assert cli.main(["run", "flow.json", "--server", server, "--json", "--set", "4.value=6"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["files"] == [str(place / "out" / "inverted_00001_.png")]
    assert result["outputs"]["5"] == {"text": ["6"]}
    assert colour(result["files"][0]) == (0, 255, 255)


def test_a_servers_refusal_and_failure_have_the_same_exit_codes(place, capsys, server):
    assert cli.main(["run", "flow.json", "--server", server, "--set", "4.value=1000"]) == 2
    assert "bigger than max" in capsys.readouterr().err
    write(place / "f.json", graph(f=("Fail", {"value": 3}), s=("Show", {"value": ["f", 0]})))
    assert cli.main(["run", "f.json", "--server", server]) == 1
    assert "cannot take 3" in capsys.readouterr().err


def test_a_server_that_is_not_there_exits_1(place, capsys):
    assert cli.main(["run", "flow.json", "--server", "127.0.0.1:9"]) == 1
    assert "http://127.0.0.1:9 could not be used" in capsys.readouterr().err


def test_workflows_build_writes_the_editors_files(place, capsys):
    (place / "w" / "api").mkdir(parents=True)
    write(place / "w" / "api" / "one.json", WORKFLOW)
    assert cli.main(["workflows", "build", "w"]) == 0
    assert json.loads((place / "w" / "one.json").read_text())["version"] == 0.4
    assert cli.main(["workflows", "build", "nowhere"]) == 2
    assert "there is no workflow in nowhere" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [["--help"], ["run", "--help"], ["score", "--help"], ["models", "fetch", "--help"]]
)
def test_help_needs_no_torch(arguments):
    code = (
        "import runpy, sys\n"
        f"sys.argv = ['likeness', *{arguments!r}]\n"
        "try:\n"
        f"    runpy.run_path({str(ROOT / 'engine')!r}, run_name='__main__')\n"
        "except SystemExit as end:\n"
        "    assert not end.code, end.code\n"
        "heavy = {'torch', 'numpy', 'onnxruntime', 'aiohttp', 'PIL'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "usage: likeness" in done.stdout


def test_a_call_without_a_command_exits_2():
    done = subprocess.run([sys.executable, str(ROOT / "engine")], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "usage: likeness" in done.stderr
