"""Every workflow that draws people, through the engine, on random weights: it runs, and the person matters."""

import json
from pathlib import Path

import pytest
from likeness.engine.execution import Executor
from likeness.engine.graph import validate
from likeness.engine.registry import classes
from likeness.face.image import load_picture
from likeness.nodes import host as hosts
from likeness.tests import tiny_world
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
PROMPTS = {file.stem: json.loads(file.read_text()) for file in sorted((ROOT / "workflows" / "api").glob("*.json"))}
NAMES = [name for name, prompt in PROMPTS.items() if tiny_world.generates(prompt)]

pytestmark = pytest.mark.weights


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    work = tiny_world.build(tmp_path_factory.mktemp("generation"))
    yield work
    hosts.use(None)


def prompt_of(name):
    return tiny_world.shrunk(json.loads(json.dumps(PROMPTS[name])))


def run(prompt, executor=None):
    executor = executor or Executor(classes())
    verdict = validate(prompt, executor.known)
    assert verdict.ok and not verdict.node_errors, (verdict.error, verdict.node_errors)
    record = executor.run(prompt, verdict.outputs)
    assert record.status == "success", record.message("execution_error")["exception_message"]
    return record


def picture(record, prompt, world):
    node = next(n for n, one in prompt.items() if one["class_type"] == "SaveImage")
    (saved,) = record.outputs[node]["images"]
    with Image.open(world / "out" / saved["filename"]) as file:
        assert file.info["Likeness"] == "generated: a person drawn from an identity", "the picture is not marked"
    return load_picture(world / "out" / saved["filename"])[0]


@pytest.mark.parametrize("name", NAMES)
def test_it_runs_and_the_person_matters(name, world):
    prompt, executor = prompt_of(name), Executor(classes())
    first = picture(run(prompt, executor), prompt, world)
    assert first.std() > 0.01
    for node in prompt.values():
        if node["class_type"] == "LoadImage" and node["_meta"]["title"] != "Pose":
            node["inputs"]["image"] = tiny_world.somebody_else(name)
    other = picture(run(prompt, executor), prompt, world)
    assert (first - other).abs().max() > 1 / 255, "somebody else gives the same picture"


# The others write the person into the prompt, too, which has no strength.
@pytest.mark.parametrize("name", [name for name in NAMES if "LikenessIdentityPrompt" not in str(PROMPTS[name])])
def test_at_strength_zero_nobody_matters(name, world):
    prompt = prompt_of(name)
    for node in prompt.values():
        if "strength" in node["inputs"]:
            node["inputs"]["strength"] = 0.0
    executor = Executor(classes())
    first = picture(run(prompt, executor), prompt, world)
    for node in prompt.values():
        if node["class_type"] == "LoadImage" and node["_meta"]["title"] != "Pose":
            node["inputs"]["image"] = tiny_world.somebody_else(name)
    assert (first - picture(run(prompt, executor), prompt, world)).abs().max() == 0


def test_the_cure_matters_and_is_reported(world):
    prompt, executor = prompt_of("cure_a_portrait"), Executor(classes())
    record = run(prompt, executor)
    first = picture(record, prompt, world)
    (cure, report) = (
        next(n for n, node in prompt.items() if node["class_type"] == f"Likeness{kind}")
        for kind in ("CureAttributes", "AttributeReport")
    )
    (sheet,) = record.outputs[report]["images"]
    assert (world / "out" / sheet["filename"]).is_file() and "not judged" in record.outputs[report]["text"][0]
    assert "attention in 6 layers" in record.outputs[cure]["text"][0]
    prompt[cure]["inputs"]["strength"] = 0.0
    assert (first - picture(run(prompt, executor), prompt, world)).abs().max() > 1 / 255


def test_the_loop_goes_through_all_its_stages(world):
    """Noise has no face to be judged, so that only what is cured unjudged does."""
    prompt = prompt_of("closed_loop")
    (n,) = (n for n, node in prompt.items() if node["class_type"] == "LikenessClosedLoop")
    prompt[n]["inputs"] |= {"cure_unjudged": True}
    lines = run(prompt).outputs[n]["text"]
    told = "\n".join(lines)
    assert "round 1, curly red hair, round glasses: attention in 6 layers" in told
    assert "laughing: guidance, gamma 0.5" in told and "round 1 gained nothing" in told
