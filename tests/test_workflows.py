"""Every workflow file is sound: both formats agree, it validates, it runs, and a second run does nothing."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from likeness.engine.convert import to_api, to_editor
from likeness.engine.execution import Executor
from likeness.engine.graph import validate
from likeness.engine.host import EngineHost
from likeness.engine.registry import classes, object_info
from likeness.face.host import STANDALONE
from likeness.face.image import load_picture
from likeness.face.models import catalogue, status
from likeness.nodes import host as hosts
from likeness.tests import tiny_world
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted((ROOT / "workflows" / "api").glob("*.json"))
NAMES = [file.stem for file in FILES]
FACES = [file.stem for file in FILES if not tiny_world.generates(json.loads(file.read_text()))]
"""Those that draw nobody; ``test_workflows_generation`` runs the others."""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Folders of a fresh installation: the real models, no identities but those that a workflow here saves."""
    work = tmp_path_factory.mktemp("world")
    models = work / "models"
    (models / "likeness").mkdir(parents=True)
    for card in catalogue.select("default"):
        if status(card, STANDALONE) == "missing":
            pytest.skip("the default models are not fetched: likeness models fetch default")
    for file in STANDALONE.folders("likeness")[0].iterdir():
        if file.is_file():
            (models / "likeness" / file.name).symlink_to(file)
    shutil.copytree(ROOT / "workflows" / "photos", work / "input")
    hosts.use(EngineHost([work / "input"], work / "out", work / "temp", models))
    yield work
    hosts.use(None)


def run(executor, name):
    prompt = json.loads((ROOT / "workflows" / "api" / f"{name}.json").read_text())
    verdict = validate(prompt, executor.known)
    assert verdict.ok, verdict
    record = executor.run(prompt, verdict.outputs)
    assert record.message("execution_error") is None, record.message("execution_error")
    return record


@pytest.fixture(scope="module")
def executor(world):
    executor = Executor(classes())
    run(executor, "save_identities")  # who_is_who loads what this one saves.
    return executor


@pytest.mark.parametrize("name", NAMES)
def test_editor_and_api_files_agree(name):
    api = json.loads((ROOT / "workflows" / "api" / f"{name}.json").read_text())
    editor = json.loads((ROOT / "workflows" / f"{name}.json").read_text())
    info = object_info()
    assert editor == json.loads(json.dumps(to_editor(api, info))), "run: likeness workflows build"
    assert to_api(editor, info) == api


def test_every_editor_file_has_an_api_file():
    assert {p.stem for p in (ROOT / "workflows").glob("*.json")} == set(NAMES)


@pytest.mark.weights
@pytest.mark.parametrize("name", FACES)
def test_every_workflow_runs_and_a_second_run_does_nothing(name, executor):
    record = run(executor, name)
    assert record.outputs
    assert run(executor, name).executed == []


@pytest.mark.weights
@pytest.mark.parametrize("name", FACES)
def test_nodes_show_what_their_place_in_the_editor_is_made_for(name, executor):
    prompt = json.loads((ROOT / "workflows" / "api" / f"{name}.json").read_text())
    shown = run(executor, name).outputs
    for node_id, node in prompt.items():
        if node["class_type"].startswith("Likeness"):
            shows = getattr(executor.known[node["class_type"]], "SHOWS", ())
            assert set(shown.get(node_id, ())) == set(shows), node["class_type"]


@pytest.mark.weights
def test_swap_and_score_moves_the_likeness_and_says_so(executor, world):
    run(Executor(executor.known), "swap_and_score")
    report = json.loads(next((world / "out").glob("swap_and_score_report_*.json")).read_text())
    face = report["pictures"][0]["faces"][0]
    assert face["passed"] and face["similarity"] > 0.4 and face["pose_error"] < 5
    with Image.open(next((world / "out").glob("swap_and_score_0*.png"))) as picture:
        assert "swapped" in picture.info["Likeness"], "the picture is not marked as edited"
        assert json.loads(picture.info["prompt"])["6"]["class_type"] == "LikenessSwapFaces"


@pytest.mark.weights
def test_previews_of_a_swap_and_of_what_follows_are_marked_too(executor):
    record = run(Executor(executor.known), "swap_and_score")
    marked = {}
    for node_id, shown in record.outputs.items():
        for item in shown.get("images", []):
            folder = hosts.host().folders(item["type"])[0]
            with Image.open(folder / item["subfolder"] / item["filename"]) as picture:
                marked[node_id] = "edited" in picture.info.get("Likeness", "")
    # Identity, detection and selection come before the swap; swap, report and the saved picture show it.
    assert marked == {"3": False, "4": False, "5": False, "6": True, "8": True, "9": True}


@pytest.mark.weights
def test_who_is_who_names_those_it_knows_and_nobody_else(executor):
    text = run(Executor(executor.known), "who_is_who").outputs["6"]["text"][0]
    assert sorted(text.split(", ")) == ["Emmanuel", "Jacinda", "unknown"]


@pytest.mark.weights
def test_frames_without_the_person_pass_untouched(executor, world):
    run(Executor(executor.known), "batch_of_frames")
    frames, _ = load_picture(ROOT / "workflows" / "photos" / "frames.webp")
    written = sorted((world / "out").glob("batch_of_frames_*.png"))[-len(frames) :]
    changed = [bool((load_picture(p)[0][0] - f).abs().max() > 1 / 255) for p, f in zip(written, frames, strict=True)]
    # The pan begins on another person and ends on the one whose face is swapped.
    assert not changed[0] and changed[-1] and torch.tensor(changed).diff().ne(0).sum() == 1
