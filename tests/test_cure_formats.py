"""Every workflow that draws people, cured: whatever the adapter, the cure acts, and at strength 0 it does not."""

import json
from pathlib import Path

import pytest
from likeness.engine.execution import Executor
from likeness.engine.graph import validate
from likeness.engine.registry import classes
from likeness.face.image import load_picture
from likeness.nodes import host as hosts
from likeness.tests import tiny_world

ROOT = Path(__file__).resolve().parent.parent
PROMPTS = {file.stem: json.loads(file.read_text()) for file in sorted((ROOT / "workflows" / "api").glob("*.json"))}
NAMES = [
    name
    for name, prompt in PROMPTS.items()
    # Arc2Face has no prompt, so there is nothing that it could suppress.
    if tiny_world.generates(prompt)
    and "LikenessCure" not in str(prompt)
    and name not in ("portrait_arc2face", "closed_loop", "lab_closed_loop")
]
WORDS = "a photo of a person with curly red hair"

pytestmark = pytest.mark.weights


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    yield tiny_world.build(tmp_path_factory.mktemp("formats"))
    hosts.use(None)


def cured(name, strength):
    """The workflow with a foundation pass on the bare checkpoint, whose tape its sampler reads."""
    prompt = tiny_world.shrunk(json.loads(json.dumps(PROMPTS[name])))
    base = next(n for n, node in prompt.items() if node["class_type"] == "CheckpointLoaderSimple")
    sampler = next(node["inputs"] for node in prompt.values() if node["class_type"] == "KSampler")
    same = {
        key: sampler[key] for key in ("seed", "steps", "cfg", "sampler_name", "scheduler", "latent_image", "denoise")
    }
    prompt |= {
        "words": {"class_type": "CLIPTextEncode", "inputs": {"clip": [base, 1], "text": WORDS}},
        "nothing": {"class_type": "CLIPTextEncode", "inputs": {"clip": [base, 1], "text": ""}},
        "foundation": {
            "class_type": "LikenessFoundationPass",
            "inputs": same
            | {"model": [base, 0], "positive": ["words", 0], "negative": ["nothing", 0]}
            | {"keep": "keys and values", "layers": "authors", "budget": 1.0, "words": False},
        },
        "mask": {"class_type": "SolidMask", "inputs": {"value": 1.0, "width": 64, "height": 64}},
        "cure": {
            "class_type": "LikenessCureAttributes",
            "inputs": {"model": sampler["model"], "tape": ["foundation", 1], "mask": ["mask", 0], "strength": strength}
            | {"method": "attention", "omega": 2.0, "omega_mode": "additive", "start": -1.0, "end": 1.0},
        },
    }
    sampler["model"] = ["cure", 0]
    return prompt


def picture(prompt, world, executor):
    verdict = validate(prompt, executor.known)
    assert verdict.ok and not verdict.node_errors, (verdict.error, verdict.node_errors)
    record = executor.run(prompt, verdict.outputs)
    assert record.status == "success", record.message("execution_error")["exception_message"]
    node = next(n for n, one in prompt.items() if one["class_type"] == "SaveImage")
    (saved,) = record.outputs[node]["images"]
    return load_picture(world / "out" / saved["filename"])[0]


@pytest.mark.parametrize("name", NAMES)
def test_the_cure_acts_on_every_format(name, world):
    executor = Executor(classes())
    off, on = (picture(cured(name, strength), world, executor) for strength in (0.0, 1.0))
    plain = picture(tiny_world.shrunk(json.loads(json.dumps(PROMPTS[name]))), world, executor)
    assert (off == plain).all()
    assert (on - off).abs().max() > 1 / 255
