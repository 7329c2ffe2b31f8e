"""The workflows that draw people, as they are, in a real ComfyUI and in the engine: the same latents in float32.

Needs ``COMFYUI_DIR`` as ``test_comfy`` does. The weights are random: SD1.5 slim with text encoder and VAE of full size,
SDXL as a slim U-Net under saved conditioning, because ComfyUI knows its text encoders in full size only. For the same
reason PhotoMaker's prompt is compared by itself, written with smaller encoders. Run with ``-m comfy``.
"""

import gzip
import json
import os
import shutil
import sys

import pytest
import torch
from likeness.face.fetch import fetch_named
from likeness.face.host import ROOT, STANDALONE, StandaloneHost
from likeness.face.models import catalogue, find, status
from likeness.nodes import NODE_CLASS_MAPPINGS
from likeness.tests import comfy_test_nodes, test_comfy, tiny_adapters, tiny_world
from likeness.tests import test_comfy_diffusion as both
from likeness.tests import tiny_diffusion as tiny
from safetensors.torch import load_file

checkout = both.checkout
pytestmark = [pytest.mark.comfy, pytest.mark.timeout(900)]

PROMPTS = {file.stem: json.loads(file.read_text()) for file in sorted((ROOT / "workflows" / "api").glob("*.json"))}
NAMES = [name for name, prompt in PROMPTS.items() if tiny_world.generates(prompt)]
CONFIGS = {"sd15": both.SLIM_SD15, "sdxl": both.SLIM_SDXL}


@pytest.fixture(scope="module")
def base(tmp_path_factory, checkout, request):
    cards = catalogue.select("default")
    if any(status(card, STANDALONE) == "missing" for card in cards):
        pytest.skip("the default models are not fetched: likeness models fetch default")
    base = tmp_path_factory.mktemp("workflows")
    (base / "custom_nodes" / "tests").mkdir(parents=True)
    (base / "custom_nodes" / test_comfy.PACK).symlink_to(ROOT, target_is_directory=True)
    shutil.copy(comfy_test_nodes.__file__, base / "custom_nodes" / "tests" / "__init__.py")
    for name in ("here", "there", "data"):
        (base / name).mkdir()
    shutil.copytree(ROOT / "workflows" / "photos", base / "input")
    models = base / "models"
    (models / "likeness").mkdir(parents=True)
    for card in cards:
        (models / "likeness" / card.file).symlink_to(find(card, STANDALONE))
    write_models(models)
    merges = (checkout / "comfy" / "sd1_tokenizer" / "merges.txt").read_bytes()
    (models / "likeness" / "bpe_simple_vocab_16e6.txt.gz").write_bytes(gzip.compress(merges))
    both.write_inputs(base / "data")
    both.write_text_encoders(base / "data")
    yield base
    shutil.rmtree(base, ignore_errors=True)
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        for what, worst in sorted(both.WORST.items()):
            print(f"\nworst relative error, {what}: {worst:.1e}", end="")


def write_models(models):
    half = torch.float16
    tiny_world.packs(models)
    sd15 = (tiny.unet(both.SLIM_SD15), tiny.vae(both.FULL_VAE), tiny.text_encoder(768, 12, 49408))
    tiny.save(models / "checkpoints" / tiny_world.SD15, tiny.sd15_file(*sd15), half)
    arc2face = models / "diffusion_models" / "arc2face" / "diffusion_pytorch_model.safetensors"
    tiny.save(arc2face, tiny.to_ldm("unet", tiny.unet(both.SLIM_SD15, seed=5)), half)
    tiny.save(models / "vae" / "vae-ft-mse-840000-ema-pruned.safetensors", sd15[1], half)
    encoder = models / "likeness" / "adapters" / "arc2face" / "pytorch_model.bin"
    encoder.parent.mkdir(parents=True)
    tiny_adapters.write(encoder, tiny_adapters.make("arc2face", context=768))
    xl = tiny.to_ldm("unet", tiny.unet(both.SLIM_SDXL))
    tiny.save(models / "diffusion_models" / tiny_world.SDXL, xl, half)
    control = tiny.to_ldm("controlnet", tiny.controlnet(both.SLIM_SDXL))
    tiny.save(models / "controlnet" / "instantid" / "diffusion_pytorch_model.safetensors", control, half)
    # CLIP-L in the place of CLIP-H: half as large, and the adapters here are as wide.
    vision = tiny.image_encoder(width=tiny_world.SEEN, layers=24, patch=14, side=224, projected=768, inner=4096)
    tiny.save(models / "clip_vision" / "CLIP-ViT-H-14-laion2B-s32B-b79K.safetensors", vision, half)
    eva = models / "clip_vision" / "EVA02_CLIP_L_336_psz14_s6B.safetensors"
    tiny.save(eva, tiny_adapters.make("eva", vit=64))
    # The two small text encoders together are 192 wide.
    tiny_world.adapters(models, CONFIGS, words=192)
    fetch_named("lab", StandaloneHost(models))


@pytest.fixture(scope="module")
def comfy(base, checkout):
    python = os.environ.get("COMFYUI_PYTHON") or sys.executable
    command = [python, checkout / "main.py", "--cpu", "--listen", "127.0.0.1", "--disable-auto-launch"]
    command += ["--base-directory", base, "--database-url", f"sqlite:///{base}/comfyui.db"]
    yield from test_comfy._serve(command, base / "comfyui.log", checkout, OMP_NUM_THREADS="2")


class Workflow:
    """A file with the latent written out in the place of the picture, and with what SDXL has no small size for."""

    def __init__(self, name, data):
        self.nodes = tiny_world.shrunk(json.loads(json.dumps(PROMPTS[name])))
        drawn = self.latents()
        self.nodes = {n: self.nodes[n] for n, _ in drawn for n in self.above(n)}
        self.shown = []
        for n, slot in drawn:
            self.show("Latent", f"{name}-latent-{n}", "samples", [n, slot])
        sampler = drawn[-1][0]
        for n, node in list(self.nodes.items()):
            if node["inputs"].get("ckpt_name") == tiny_world.SDXL:
                unet = {"unet_name": tiny_world.SDXL, "weight_dtype": "default"}
                self.nodes[n] = {"class_type": "UNETLoader", "inputs": unet}
                self.replace_prompts(n, data)
            # What the file says of the prompt goes where the small encoders can write it.
        if name == "portrait_photomaker":
            self.write_the_prompt(sampler, data)

    def latents(self):
        """Every node that draws, with its output that is a latent."""
        slots = {"LikenessClosedLoop": 1}
        kinds = ((n, node["class_type"]) for n, node in self.nodes.items())
        return [(n, slots.get(kind, 0)) for n, kind in kinds if kind in tiny_world.SAMPLERS]

    def above(self, n):
        found = {n}
        for value in self.nodes[n]["inputs"].values():
            if isinstance(value, list):
                found |= self.above(value[0])
        return found

    def replace_prompts(self, loader, data):
        prompts = [n for n, node in self.nodes.items() if node["inputs"].get("clip") == [loader, 1]]
        for n in prompts:
            if self.nodes[n]["class_type"] == "CLIPTextEncode":
                side = "negative" if self.nodes[n]["_meta"]["title"].startswith("Negative") else "positive"
                path = str(data / f"{side}.safetensors")
                self.nodes[n] = {"class_type": "TestReadConditioning", "inputs": {"path": path}}

    def write_the_prompt(self, sampler, data):
        self.nodes["clip"] = {"class_type": "TestTextEncoders", "inputs": {"path": str(data)}}
        (writer,) = (n for n, node in self.nodes.items() if node["class_type"] == "LikenessIdentityPrompt")
        self.nodes[writer]["inputs"]["clip"] = ["clip", 0]
        for slot, side in enumerate(("positive", "negative")):
            path = str(data / f"{side}.safetensors")
            self.nodes[side] = {"class_type": "TestReadConditioning", "inputs": {"path": path}}
            self.nodes[sampler]["inputs"][side] = [side, 0]
            self.show("Conditioning", f"photomaker-{side}", "conditioning", [writer, slot])

    def show(self, kind, name, wire, link):
        path = f"PLACE/{name}.safetensors"
        self.nodes[name] = {"class_type": f"TestWrite{kind}", "inputs": {"path": path, wire: link}}
        self.shown.append(name)

    def prompt(self, place):
        out = json.loads(json.dumps(self.nodes))
        for node in out.values():
            path = node["inputs"].get("path", "")
            if path.startswith("PLACE/"):
                node["inputs"]["path"] = str(place / path.removeprefix("PLACE/"))
        return out


@pytest.mark.parametrize("name", NAMES)
def test_one_workflow_one_picture(comfy, base, name):
    both.check(comfy, base, Workflow(name, base / "data"), f"workflow {name}")


def test_one_node_for_the_whole_cure(comfy, base):
    graph = Workflow("closed_loop", base / "data")
    (n,) = (n for n, node in graph.nodes.items() if node["class_type"] == "LikenessClosedLoop")
    spec = NODE_CLASS_MAPPINGS["LikenessCureSampler"].INPUT_TYPES()
    known = {**spec["required"], **spec["optional"]}
    inputs = {key: value for key, value in graph.nodes[n]["inputs"].items() if key in known}
    inputs |= {"expressions": False, "show_uncured": True, "source": "cross-attention"}
    graph.nodes[n] = {"class_type": "LikenessCureSampler", "inputs": inputs}
    graph.shown = []
    del graph.nodes["closed_loop-latent-" + n]
    graph.show("Latent", "one-node", "samples", [n, 0])
    for slot, name in enumerate(("image", "foundation", "uncured"), start=1):
        graph.show("Image", f"one-node-{name}", "image", [n, slot])
    both.check(comfy, base, graph, "cure in one node")
    cured, plain = (load_file(base / "there" / f"one-node-{name}.safetensors")["out"] for name in ("image", "uncured"))
    assert (cured - plain).abs().max() > 1 / 255, "nothing was cured"


def test_a_loop_that_cures_everything_runs_to_its_end(comfy, base):
    """Noise has no face to be judged, so that only what is cured unjudged goes through all stages."""
    graph = Workflow("closed_loop", base / "data")
    (n,) = (n for n, node in graph.nodes.items() if node["class_type"] == "LikenessClosedLoop")
    graph.nodes[n]["inputs"] |= {"cure_unjudged": True, "source": "cross-attention"}
    # The sheet has eight bits; it need not agree to the last.
    for slot, name in ((0, "image"), (2, "before")):
        graph.show("Image", f"loop-{name}", "image", [n, slot])
    both.check(comfy, base, graph, "closed loop")
