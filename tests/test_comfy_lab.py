"""The lab's checkpoint and ControlNet in a real ComfyUI and in the engine: the same files, the same numbers.

Needs ``COMFYUI_DIR`` as ``test_comfy`` does. The weights are random, of the lab's sizes; the runs are those of
``lab_runs``, and ComfyUI's part is in ``comfy_inside_lab.py``, for it runs in ComfyUI's interpreter.
"""

import gzip
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from likeness.engine.core import CORE
from likeness.engine.diffusers_host import layout_of
from likeness.engine.host import EngineHost
from likeness.face.attention import apply
from likeness.lab import text
from likeness.nodes import host as hosts
from likeness.nodes.lab import LoadLabControlNet, LoadLabModel
from likeness.tests import lab_runs, tiny_lab
from likeness.tests import tiny_diffusion as tiny
from safetensors.torch import load_file, save_file

pytestmark = [pytest.mark.comfy, pytest.mark.timeout(900)]

SCRIPT = Path(__file__).with_name("comfy_inside_lab.py")
TOLERANCE = 1e-3
"""Relative, by norm and by the largest element."""


@pytest.fixture(scope="module")
def checkout():
    folder = os.environ.get("COMFYUI_DIR")
    if not folder:
        pytest.skip("COMFYUI_DIR is not set; let it name a ComfyUI checkout")
    return Path(folder).expanduser().resolve()


@pytest.fixture(scope="module")
def base(tmp_path_factory, checkout):
    """ComfyUI's base directory with the lab's files, a LoRA, and files that the loaders should refuse."""
    base = tmp_path_factory.mktemp("lab")
    for name in ("input", "output", "temp", "custom_nodes", "user"):
        (base / name).mkdir()
    models = base / "models"
    vocabulary = models / "likeness" / "bpe_simple_vocab_16e6.txt.gz"
    vocabulary.parent.mkdir(parents=True)
    merges = (checkout / "comfy" / "sd1_tokenizer" / "merges.txt").read_bytes()
    vocabulary.write_bytes(gzip.compress(merges))
    ids = [*text.words(vocabulary).ids, tiny_lab.START, tiny_lab.END]
    tiny_lab.write(base / "weights", ids)
    host = engine(base)
    checkpoint, control = tiny_lab.install(host, base / "weights")
    unet, _, encoder = tiny_lab.parts(len(ids))
    path = models / "loras" / "both.safetensors"
    encoder_part = tiny.text_lora(encoder, rank=4)
    tiny.save(path, tiny.lora(unet, "sd15", rank=4, seed=11) | encoder_part, torch.float16)
    damage(checkpoint, control)
    return base


def damage(checkpoint, control):
    """Files beside the lab's own."""
    tensors, folder = load_file(checkpoint), checkpoint.parent
    save_file({"x": torch.zeros(1)}, folder / "published.safetensors", {"format": "pt"})
    told = {"controlnet": {"norm_num_groups": 8}}
    save_file(load_file(control), folder / "control.safetensors", {"config": json.dumps(told)})
    save_file(tensors, control.parent / "model.safetensors", {"config": "{}"})
    with checkpoint.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    whole = json.loads(header["__metadata__"]["config"])
    changes = {
        "groups": {"unet": {"norm_num_groups": 7}},
        "heads": {"unet": {"attention_head_dim": "four"}},
        "text_heads": {"text": {"num_attention_heads": 0}},
        "vae_groups": {"vae": {"norm_num_groups": 5}},
    }
    for name, change in changes.items():
        told = {part: {**known, **change.get(part, {})} for part, known in whole.items()}
        save_file(tensors, folder / f"{name}.safetensors", {"config": json.dumps(told)})
    lacks = {
        "unet_part": "model.diffusion_model.middle_block.0.in_layers.2.bias",
        "text_part": "cond_stage_model.transformer.text_model.encoder.layers.1.mlp.fc2.bias",
        "vae_part": "first_stage_model.decoder.mid.block_1.conv1.bias",
        "no_vae": "first_stage_model.",
    }
    for name, prefix in lacks.items():
        rest = {key: tensor for key, tensor in tensors.items() if not key.startswith(prefix)}
        save_file(rest, folder / f"{name}.safetensors", {"config": json.dumps(whole)})
    save_file(tensors, folder / "broken.safetensors", {"config": '{"unet": {'})
    data = checkpoint.read_bytes()
    (folder / "cut.safetensors").write_bytes(data[: len(data) // 2])


def engine(base):
    return EngineHost([base / "input"], base / "output", base / "temp", base / "models")


@pytest.fixture(scope="module")
def there(base, checkout):
    """What ComfyUI tells, and its tensors."""
    python, out = os.environ.get("COMFYUI_PYTHON") or sys.executable, base / "out.safetensors"
    done = subprocess.run(
        [python, SCRIPT, checkout, base, out],
        cwd=checkout,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE"},
    )
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1]), load_file(out)


@pytest.fixture(scope="module")
def here(base):
    """The engine's tensors."""

    def shown(model, strength):
        layout = layout_of(model.unet)[0]
        patch = apply("somebody", lab_runs.tokens(layout), layout, strength=(strength,))
        return replace(model, attention=(*model.attention, patch))

    hosts.use(engine(base))
    try:
        model, clip, vae = LoadLabModel().run("lab.safetensors")
        (control,) = LoadLabControlNet().run("lab_identitynet.safetensors")
        return lab_runs.everything(CORE, model, clip, vae, control, shown)
    finally:
        hosts.use(None)


NAMES = (
    "text 0", "text 1", "text 2", "text skipped", "text tuned", "samples euler", "samples dpmpp_2m",
    "samples euler_ancestral", "samples of a picture", "samples in a mask", "samples steered", "samples tuned",
    "samples with a person", "samples of the foundation", "samples cured", "samples after all", "latent of a picture",
    "picture of a latent",
)  # fmt: skip


def apart(ours, theirs):
    assert ours.shape == theirs.shape
    by_norm, by_element = (ours - theirs).norm() / theirs.norm(), (ours - theirs).abs().max() / theirs.abs().max()
    return float(max(by_norm, by_element))


@pytest.mark.parametrize("name", NAMES)
def test_both_hosts_make_the_same(here, there, name):
    ours, theirs = here[name].float(), there[1][name]
    assert bool(theirs.isfinite().all()) and theirs.std() > 1e-4
    assert apart(ours, theirs) <= TOLERANCE
    print(f"{name}: {apart(ours, theirs):.1e}")


def test_everything_is_compared(here, there):
    assert set(NAMES) == here.keys() == there[1].keys()


def test_what_is_compared_differs_among_itself(here):
    """So that nothing agrees because nothing was done."""
    plain = here["samples euler"]
    for name in ("samples steered", "samples tuned", "samples with a person", "samples cured"):
        assert apart(here[name], plain) > 10 * TOLERANCE, name
    assert apart(here["samples cured"], here["samples with a person"]) > 10 * TOLERANCE
    assert torch.equal(here["samples after all"], plain)


def test_the_objects_are_comfyuis_own(there):
    told, tensors = there
    assert told["classes"] == [True] * 4
    assert told["latents"] == [12, 12, 8]
    assert told["unchanged"]
    assert told["preview"] == pytest.approx([255, 0, 0], abs=1)
    assert torch.equal(tensors["samples after all"], tensors["samples euler"])


def test_the_loaders_offer_what_tells_of_itself(there):
    checkpoints, controls = there[0]["offered"]
    assert checkpoints[0] == "lab.safetensors" and "published.safetensors" not in checkpoints
    assert controls == ["lab_identitynet.safetensors", "model.safetensors"]


@pytest.mark.parametrize(("name", "sentence"), lab_runs.REFUSED.items())
def test_comfyui_refuses_other_files_with_a_sentence(there, name, sentence):
    assert there[0]["refused"][name].startswith(sentence), there[0]["refused"]


def test_comfyui_refuses_what_is_no_controlnet(there):
    assert there[0]["refused control"].startswith("BadModelFile: model.safetensors is no ControlNet")
