"""A real ComfyUI beside the checkout: it loads the pack, runs every workflow, and answers as the engine does.

Needs ``COMFYUI_DIR`` (a ComfyUI checkout) and, where ComfyUI has its own environment, ``COMFYUI_PYTHON`` (that
environment's interpreter). Everything it writes goes into a temporary base directory. Run with ``-m comfy``.
"""

import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlencode

import numpy as np
import pytest
from likeness.engine import local, workflow
from likeness.engine.host import EngineHost
from likeness.engine.registry import object_info
from likeness.face.host import ROOT, StandaloneHost
from likeness.nodes import NODE_CLASS_MAPPINGS
from likeness.nodes import host as nodes_host
from PIL import Image

pytestmark = [pytest.mark.comfy, pytest.mark.timeout(600)]

PACK = "ComfyUI-Likeness"
OURS = sorted(NODE_CLASS_MAPPINGS)
STARTUP, RUN = 240, 240
"""Seconds that a server may take to answer, and a workflow to end."""

# What saves identities comes first: other workflows load what it saved.
WORKFLOWS = sorted(
    # Those that draw people need models; ``test_comfy_workflows`` makes them and compares.
    (
        file
        for file in (ROOT / "workflows" / "api").glob("*.json")
        if not any(loader in file.read_text() for loader in ("CheckpointLoader", "UNETLoader", "LoadLabModel"))
    ),
    key=lambda file: ("SaveIdentity" not in file.read_text(), file),
)


@dataclass
class Answer:
    status: int
    body: bytes

    def json(self):
        assert self.status < 500, f"{self.status}: {self.body.decode(errors='replace')[:500]}"
        return json.loads(self.body)


@dataclass
class Server:
    """A server process that this module started."""

    url: str
    log: Path
    process: subprocess.Popen

    def ask(self, path, data=None, headers=None):
        """GET, or POST where there is ``data`` (bytes, or what JSON can say)."""
        headers = dict(headers or {})
        if data is not None and not isinstance(data, bytes):
            data, headers["Content-Type"] = json.dumps(data).encode(), "application/json"
        request = urllib.request.Request(self.url + path, data, headers)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return Answer(answer.status, answer.read())
        except urllib.error.HTTPError as refused:
            return Answer(refused.code, refused.read())

    def until(self, ready, seconds, what):
        """The first true value of ``ready()``; fails with the log's end if the process dies or the time is over."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                pytest.fail(f"{what}: the process ended with {self.process.returncode}\n{self.log_end()}")
            if value := ready():
                return value
            time.sleep(0.1)
        pytest.fail(f"{what}: not within {seconds} s\n{self.log_end()}")

    def log_end(self):
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-40:])

    def upload(self, path):
        """Put a picture into the server's input folder under its own name."""
        border = uuid.uuid4().hex
        body = (
            f'--{border}\r\nContent-Disposition: form-data; name="overwrite"\r\n\r\ntrue\r\n--{border}\r\n'
            f'Content-Disposition: form-data; name="image"; filename="{path.name}"\r\n'
            f"Content-Type: application/octet-stream\r\n\r\n"
        ).encode() + path.read_bytes()
        body += f"\r\n--{border}--\r\n".encode()
        answer = self.ask("/upload/image", body, {"Content-Type": f"multipart/form-data; boundary={border}"})
        assert answer.json()["name"] == path.name

    def run(self, prompt):
        """The outputs in the history, once the prompt has run without an error."""
        answer = self.ask("/prompt", {"prompt": prompt})
        assert (answer.status, answer.json().get("node_errors")) == (200, {}), answer.body.decode()
        prompt_id = answer.json()["prompt_id"]
        record = self.until(lambda: self.ask(f"/history/{prompt_id}").json().get(prompt_id), RUN, "running a workflow")
        failures = [data for name, data in record["status"]["messages"] if name == "execution_error"]
        assert record["status"]["status_str"] == "success", failures[0]["exception_message"] if failures else record
        return record["outputs"]

    def mark(self, item):
        """The mark of an edited picture in what an output names."""
        return mark(io.BytesIO(self.ask("/view?" + urlencode(item)).body))

    def picture(self, item):
        """A picture that an output names, (H, W, C) uint8."""
        return pixels(io.BytesIO(self.ask("/view?" + urlencode(item)).body))


def pixels(file):
    with Image.open(file) as picture:
        return np.asarray(picture)


def mark(file):
    with Image.open(file) as picture:
        return picture.info.get("Likeness")


def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _serve(command, log, folder, **settings):
    """Start a server, wait until it answers, and end it at the end."""
    port = _free_port()
    quiet = {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [*map(str, command), "--port", str(port)],
            cwd=folder,
            env={**os.environ, **quiet, **settings},
            stdout=stream,
            stderr=subprocess.STDOUT,
        )
    server = Server(f"http://127.0.0.1:{port}", log, process)

    def answers():
        try:
            return server.ask("/system_stats").status == 200
        except OSError:
            return False

    try:
        server.until(answers, STARTUP, f"starting {Path(command[1]).name}")
        yield server
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A base directory for ComfyUI, in which models are found only through ``extra_model_paths.yaml``."""
    base = tmp_path_factory.mktemp("comfy")
    for folder in ("custom_nodes", "elsewhere", "engine/likeness", "input", "pictures"):
        (base / folder).mkdir(parents=True)
    (base / "custom_nodes" / PACK).symlink_to(ROOT, target_is_directory=True)
    models = StandaloneHost().folders("likeness")[0]
    for file in models.iterdir() if models.is_dir() else ():
        if file.is_file():
            (base / "elsewhere" / file.name).symlink_to(file)
            (base / "engine" / "likeness" / file.name).symlink_to(file)
    (base / "extra.yaml").write_text(f"test:\n  base_path: {base}\n  likeness: elsewhere\n")
    return base


@pytest.fixture(scope="module")
def comfy(base):
    """A running ComfyUI that has loaded the checkout as a pack."""
    folder = os.environ.get("COMFYUI_DIR")
    if not folder:
        pytest.skip("COMFYUI_DIR is not set; let it name a ComfyUI checkout")
    main = Path(folder).expanduser().resolve() / "main.py"
    if not main.is_file():
        pytest.skip(f"COMFYUI_DIR is {folder}, which holds no main.py")
    python = os.environ.get("COMFYUI_PYTHON") or sys.executable
    command = [python, main, "--cpu", "--listen", "127.0.0.1", "--disable-auto-launch", "--base-directory", base]
    command += ["--extra-model-paths-config", base / "extra.yaml", "--database-url", f"sqlite:///{base}/comfyui.db"]
    yield from _serve(command, base / "comfyui.log", main.parent)


@pytest.fixture(scope="module")
def engine(base):
    """A running ``likeness serve`` over the same pictures."""
    command = [sys.executable, ROOT / "engine", "serve", "--input", base / "input", "--output", base / "out"]
    yield from _serve(command, base / "engine.log", base, LIKENESS_MODELS=str(base / "engine"))


@pytest.fixture
def engine_host(base):
    """The engine's host in this process, over the same models."""
    nodes_host.use(EngineHost([base / "pictures"], base / "out", base / "out" / "temp", base / "engine"))
    yield
    nodes_host.use(None)


def test_the_pack_loads_without_a_complaint(comfy):
    log = comfy.log.read_text(errors="replace")
    bad = [line for line in log.splitlines() if PACK in line and ("FAILED" in line or "Cannot import" in line)]
    assert not bad, log
    assert f'File "{ROOT}' not in log and f"/{PACK}/" not in log.partition("Import times")[0]


def test_every_node_of_ours_is_there(comfy):
    assert sorted(name for name in comfy.ask("/object_info").json() if name in NODE_CLASS_MAPPINGS) == OURS


@pytest.mark.parametrize("name", OURS)
def test_the_engine_describes_a_node_as_comfyui_does(comfy, engine_host, name):
    theirs = comfy.ask(f"/object_info/{name}").json()[name]
    ours = json.loads(json.dumps(object_info()[name]))
    told = ("input", "input_order", "output", "output_is_list", "output_name", "output_tooltips")
    told += ("name", "display_name", "description", "category", "output_node")
    for widget in ("sampler_name", "scheduler"):
        inputs = theirs["input"]["required"]
        if widget in inputs:
            # Each host offers its own; the engine's are all ComfyUI's, too.
            assert set(ours["input"]["required"][widget][0]) <= set(inputs[widget][0])
            inputs[widget] = ours["input"]["required"][widget]
    assert {key: ours.get(key) for key in told if key in theirs} == {key: theirs[key] for key in told if key in theirs}


def test_every_node_has_a_help_page(comfy):
    def page(name):
        folder = f"/extensions/{quote(PACK)}/docs/{name}"
        answers = [comfy.ask(f"{folder}/en.md"), comfy.ask(f"{folder}.md")]
        return next((answer.body for answer in answers if answer.status == 200), b"")

    assert not [name for name in OURS if len(page(name)) < 100]


def test_the_script_that_draws_the_nodes_texts_is_loaded(comfy):
    script = f"/extensions/{PACK}/likeness.js"
    assert script in comfy.ask("/extensions").json()
    body = comfy.ask(script).body.decode()
    # What it builds on.
    for path in re.findall(r'from "\.\./\.\./(scripts/\w+\.js)"', body):
        assert comfy.ask(f"/{path}").status == 200, path


def test_the_workflows_are_offered_as_templates(comfy):
    files = sorted(path.stem for path in (ROOT / "workflows").glob("*.json"))
    assert files
    assert sorted(comfy.ask("/workflow_templates").json().get(PACK, [])) == files
    for name in files:
        template = comfy.ask(f"/api/workflow_templates/{quote(PACK)}/{name}.json").json()
        assert {node["type"] for node in template["nodes"]} <= set(comfy.ask("/object_info").json())


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_gives_the_same_pictures_as_the_engine(comfy, base, file):
    prompt = json.loads(file.read_text("utf-8"))
    info = comfy.ask("/object_info").json()
    for _, _, name in workflow.picture_inputs(prompt, info):
        source = ROOT / "workflows" / "photos" / name
        if not source.is_file():
            pytest.skip(f"{file.name} wants {name}, which is not in {source.parent}")
        comfy.upload(source)
        shutil.copy(source, base / "pictures")
    there = comfy.run(prompt)
    folders = {"models": base / "engine", "temp": base / "out" / "temp"}
    here = local.run(file, [], base / "out", base / "pictures", listen=False, **folders).outputs

    assert set(here) == set(there)
    for node_id, shown in there.items():
        ours, theirs = here[node_id].get("images", []), shown.get("images", [])
        title = workflow.title(prompt, node_id)
        assert len(ours) == len(theirs), f"{title}: {len(ours)} pictures here, {len(theirs)} there"
        for n, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
            place = base / "out" / "temp" if mine["type"] == "temp" else base / "out"
            a, b = pixels(place / mine["subfolder"] / mine["filename"]), comfy.picture(other)
            if prompt[node_id]["class_type"] in OURS:
                assert comfy.mark(other) == mark(place / mine["subfolder"] / mine["filename"]), title
            assert a.shape == b.shape, f"{title}, picture {n}"
            assert np.abs(a.astype(int) - b.astype(int)).max() <= 1, f"{title}, picture {n}"


def test_a_model_is_opened_once_and_unload_models_closes_it(comfy, base):
    Image.new("RGB", (64, 64)).save(base / "input" / "black.png")
    look = {"1": load("black.png"), "2": detect(["1", 0])}
    look["3"] = {"class_type": "LikenessModelCache", "inputs": {"action": "show", "anything": ["2", 0]}}
    show = {"3": {"class_type": "LikenessModelCache", "inputs": {"action": "show"}}}
    held = comfy.run(look)["3"]["text"][0].splitlines()
    assert any(line.startswith("yunet") for line in held)
    assert all(line.endswith("opened 1 time") for line in held), held

    assert comfy.ask("/free", {"unload_models": True}).status == 200
    comfy.until(lambda: "yunet" not in comfy.run(show)["3"]["text"][0], 30, "unloading")
    look["2"]["inputs"]["minimum_confidence"] = 0.7
    assert "opened 2 times" in comfy.run(look)["3"]["text"][0]


def load(name):
    return {"class_type": "LoadImage", "inputs": {"image": name}}


def preview(link):
    return {"class_type": "PreviewImage", "inputs": {"images": link}}


def detect(image, **changes):
    inputs = {"detector": "yunet", "minimum_confidence": 0.6, "size": 640, "smallest": 0, "retry": False}
    inputs |= {"landmarks": "none", "attributes": "none"}
    return {"class_type": "LikenessDetectFaces", "inputs": {"image": image, **inputs, **changes}}


def shown(node):
    """A graph in which ``node`` (its image is node 1's) decides what is shown."""
    select = {"class_type": "LikenessSelectFaces", "inputs": {"image": ["1", 0], "faces": ["2", 0]}}
    select["inputs"] |= {"order": "large-small", "indices": "", "no_face": "pass through"}
    return {"1": load("grey.png"), "2": node, "3": select, "4": preview(["3", 1])}


def without(node, name):
    return {**node, "inputs": {key: value for key, value in node["inputs"].items() if key != name}}


GOOD = detect(["1", 0])
BAD = {
    "nothing at all": {},
    "an empty prompt": {"prompt": {}},
    "no output node": {"prompt": {"1": load("grey.png")}},
    "an unknown class": {"prompt": {"1": {"class_type": "LikenessNever", "inputs": {}}}},
    "no class": {"prompt": {"1": {"inputs": {}}}},
    "a missing input": {"prompt": shown(without(GOOD, "image"))},
    "a link of one part": {"prompt": shown(detect(["1"]))},
    "another type": {"prompt": shown(detect(["1", 1]))},
    "too small": {"prompt": shown(detect(["1", 0], size=-1))},
    "too large": {"prompt": shown(detect(["1", 0], minimum_confidence=7.0))},
    "no number": {"prompt": shown(detect(["1", 0], size="many"))},
    "not in the list": {"prompt": shown(detect(["1", 0], landmarks="tea leaves"))},
    "a picture that is not there": {"prompt": {"1": load("never.png"), "2": preview(["1", 0])}},
    "two errors in one node": {"prompt": shown(detect(["1", 0], size=-1, landmarks="tea leaves"))},
    "one good output, one bad": {"prompt": {**shown(detect(["1", 0], size=-1)), "9": preview(["1", 0])}},
}


def told(answer):
    """Of an answer, what a client acts on: status, kind of error, and per node the kinds and what they spoil."""
    body = answer.json()
    nodes = {
        node_id: (
            node["class_type"],
            sorted((e["type"], e.get("extra_info", {}).get("input_name")) for e in node["errors"]),
            sorted(node["dependent_outputs"]),
        )
        for node_id, node in (body.get("node_errors") or {}).items()
    }
    return answer.status, (body.get("error") or {}).get("type"), nodes


@pytest.mark.parametrize("case", BAD)
def test_a_bad_prompt_is_refused_as_comfyui_refuses_it(comfy, engine, base, case):
    Image.new("RGB", (64, 64), "grey").save(base / "input" / "grey.png")
    there, here = told(comfy.ask("/prompt", BAD[case])), told(engine.ask("/prompt", BAD[case]))
    assert there[0] == 400 or there[2], "ComfyUI accepted it"
    assert here == there
