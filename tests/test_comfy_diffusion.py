"""One workflow, one picture: generation in a real ComfyUI and in the engine, on the same files, compared in float32.

Needs ``COMFYUI_DIR`` as ``test_comfy`` does. The checkpoints are random: SD1.5 with all sixteen attention sites, and
text encoder and VAE of full size (ComfyUI knows no other); SDXL with all seventy as a U-Net alone, under saved
conditioning. The worst relative error of every group of comparisons is printed at the end.
"""

import gzip
import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
from likeness.engine.core import generation
from likeness.engine.diffusion import load
from likeness.engine.diffusion.samplers import SAMPLERS
from likeness.engine.diffusion.sampling import SCHEDULES
from likeness.engine.diffusion.tokens import vocabulary_places
from likeness.engine.execution import Executor
from likeness.engine.graph import validate
from likeness.engine.host import EngineHost
from likeness.engine.registry import classes, describe
from likeness.nodes import host as nodes_host
from likeness.tests import comfy_test_nodes, test_comfy
from likeness.tests import tiny_diffusion as tiny
from safetensors.torch import load_file, save_file

pytestmark = [pytest.mark.comfy, pytest.mark.timeout(900)]

TOLERANCE = 1e-3
"""Relative, by norm and by the largest element."""
WORST: dict[str, float] = {}

SLIM_SD15 = tiny.unet_config("sd15", (320, 320, 320, 320), text=768)
SMALL_SD15 = tiny.unet_config("sd15", (320, 320), layers=1, text=768)
"""For what does not depend on the depth."""
SLIM_SDXL = tiny.unet_config("sdxl", (320, 320, 320), text=2048, pooled=1280, size_width=256)
FULL_VAE = tiny.vae_config((128, 256, 512, 512), layers=2)
HEIGHT, WIDTH = 64, 96
"""Pixels: a latent of 8×12, which the U-Net halves to sides that are odd."""


@pytest.fixture(scope="module")
def checkout():
    folder = os.environ.get("COMFYUI_DIR")
    if not folder:
        pytest.skip("COMFYUI_DIR is not set; let it name a ComfyUI checkout")
    folder = Path(folder).expanduser().resolve()
    if not (folder / "main.py").is_file():
        pytest.skip(f"COMFYUI_DIR is {folder}, which holds no main.py")
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory, checkout, request):
    """A base directory with the test's nodes, random models and inputs; gone afterwards, because it is large."""
    base = tmp_path_factory.mktemp("diffusion")
    (base / "custom_nodes" / "tests").mkdir(parents=True)
    for name in ("input", "here", "there", "data"):
        (base / name).mkdir()
    shutil.copy(comfy_test_nodes.__file__, base / "custom_nodes" / "tests" / "__init__.py")
    write_models(base / "models", checkout)
    write_inputs(base / "data")
    write_text_encoders(base / "data")
    yield base
    shutil.rmtree(base, ignore_errors=True)
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        for what, worst in sorted(WORST.items()):
            print(f"\nworst relative error, {what}: {worst:.1e}", end="")


def write_models(models, checkout):
    """Everything in float16, so that what each side keeps in half precision is what is in the file.

    In ``twins`` lie some of the same networks under diffusers' names, which ComfyUI reads in full size only.
    """
    twins = models.parent / "twins"
    half = torch.float16
    unet, vae = tiny.unet(SLIM_SD15), tiny.vae(FULL_VAE)
    text = tiny.text_encoder(768, 12, 49408)
    tiny.save(models / "checkpoints" / "sd15.safetensors", tiny.sd15_file(unet, vae, text), half)
    tiny.save(models / "vae" / "vae.safetensors", vae, half)
    tiny.save(models / "text_encoders" / "clip_l.safetensors", text, half)
    for form in ("kohya", "kohya-ldm", "processor"):
        tiny.save(models / "loras" / f"{form}.safetensors", tiny.lora(unet, "sd15", form, rank=4), half)
    both = tiny.lora(unet, "sd15", rank=4, seed=11) | tiny.text_lora(text, rank=4)
    tiny.save(models / "loras" / "both.safetensors", both, half)
    tiny.save_folder(twins / "checkpoints" / "sd15.safetensors", (unet, vae, text), SLIM_SD15, FULL_VAE, half)
    tiny.save(models / "diffusion_models" / "small.safetensors", tiny.to_ldm("unet", tiny.unet(SMALL_SD15)), half)
    for name, seed in (("a", 0), ("b", 5)):
        control = tiny.controlnet(SLIM_SD15, seed)
        tiny.save(models / "controlnet" / f"sd15_{name}.safetensors", tiny.to_ldm("controlnet", control), half)
        tiny.save(twins / "controlnet" / f"sd15_{name}.safetensors", control, half)
    del unet, vae, text, control, both
    xl = tiny.unet(SLIM_SDXL)
    tiny.save(models / "diffusion_models" / "sdxl.safetensors", tiny.to_ldm("unet", xl), half)
    tiny.save(twins / "diffusion_models" / "sdxl.safetensors", xl, half)
    marks = {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}
    tiny.save(models / "diffusion_models" / "sdxl_v.safetensors", tiny.to_ldm("unet", xl) | marks, half)
    tiny.save(models / "loras" / "sdxl.safetensors", tiny.lora(xl, "sdxl", "kohya-ldm", rank=4), half)
    del xl
    control = tiny.controlnet(SLIM_SDXL)
    tiny.save(models / "controlnet" / "sdxl.safetensors", tiny.to_ldm("controlnet", control), half)
    vision = tiny.image_encoder(width=1024, layers=24, patch=14, side=224, projected=768, inner=4096)
    tiny.save(models / "clip_vision" / "clip_l.safetensors", vision, half)
    # The engine's vocabulary from ComfyUI's own copy of it.
    (models / "likeness").mkdir()
    for name in ("likeness", "loras"):
        (twins / name).symlink_to(models / name)
    merges = (checkout / "comfy" / "sd1_tokenizer" / "merges.txt").read_bytes()
    (models / "likeness" / "bpe_simple_vocab_16e6.txt.gz").write_bytes(gzip.compress(merges))


def write_text_encoders(folder):
    # ComfyUI takes for SDXL's larger one what has more than thirty layers.
    for name, width, layers, projected in (("l", 64, 4, None), ("g", 128, 32, 128)):
        tensors = tiny.text_encoder(width, layers, 49408, projected, inner=2 * width)
        tiny.save(folder / f"{name}.safetensors", tensors, torch.float16)


def write_inputs(folder):
    draw = torch.Generator().manual_seed(3)

    def noise(*shape):
        return torch.randn(shape, generator=draw)

    def waves(height, width, count=1):
        y, x = torch.meshgrid(torch.linspace(0, 9, height), torch.linspace(0, 7, width), indexing="ij")
        one = torch.stack([torch.sin(x + y), torch.cos(x - y), torch.sin(x * y / 3)], -1) / 2 + 0.5
        return torch.stack([one.roll(7 * n, 0) for n in range(count)])

    save_file({"image": waves(HEIGHT, WIDTH, 2)}, folder / "image.safetensors")
    save_file({"image": waves(101, 83)}, folder / "odd.safetensors")
    mask = torch.zeros(1, HEIGHT, WIDTH)
    mask[:, 8:40, 16:72] = torch.linspace(0, 1, 56)
    save_file({"image": mask[..., None].expand(-1, -1, -1, 3).contiguous()}, folder / "mask.safetensors")
    save_file({"image": (1 - mask)[..., None].expand(-1, -1, -1, 3).contiguous()}, folder / "unmask.safetensors")
    save_file({"samples": noise(2, 4, HEIGHT // 8, WIDTH // 8)}, folder / "latent.safetensors")
    numbers = {"samples": torch.zeros(2, 4, HEIGHT // 8, WIDTH // 8), "batch_index": torch.tensor([3, 1])}
    save_file(numbers, folder / "numbered.safetensors")
    for name in ("positive", "negative"):
        data = {"text": noise(1, 77, 2048), "pooled_output": noise(1, 1280)}
        save_file(data, folder / f"{name}.safetensors")
        more = {"sizes": torch.tensor([512, 768, 8, 16, 640, 896]), "cross_attn_controlnet": noise(1, 16, 2048)}
        save_file(data | more, folder / f"{name}_more.safetensors")


@pytest.fixture(scope="module")
def comfy(base, checkout):
    python = os.environ.get("COMFYUI_PYTHON") or sys.executable
    command = [python, checkout / "main.py", "--cpu", "--listen", "127.0.0.1", "--disable-auto-launch"]
    command += ["--base-directory", base, "--database-url", f"sqlite:///{base}/comfyui.db"]
    yield from test_comfy._serve(command, base / "comfyui.log", checkout, OMP_NUM_THREADS="2")


class Graph:
    """A prompt in the making; ``graph(kind, **inputs)`` adds a node and answers its first output."""

    def __init__(self, data):
        self.nodes, self.data, self.shown = {}, data, []

    def __call__(self, kind, **inputs):
        node_id = str(len(self.nodes) + 1)
        self.nodes[node_id] = {"class_type": kind, "inputs": inputs}
        return [node_id, 0]

    def read(self, kind, name):
        return self(f"TestRead{kind}", path=str(self.data / f"{name}.safetensors"))

    def show(self, kind, name, link):
        wire = {"Latent": "samples", "Image": "image", "Conditioning": "conditioning", "Vision": "output"}[kind]
        self(f"TestWrite{kind}", path=f"PLACE/{name}.safetensors", **{wire: link})
        self.shown.append(name)

    def prompt(self, place):
        prompt = {}
        for node_id, node in self.nodes.items():
            inputs = {
                name: str(place / value.removeprefix("PLACE/")) if str(value).startswith("PLACE/") else value
                for name, value in node["inputs"].items()
            }
            prompt[node_id] = {**node, "inputs": inputs}
        return prompt

    # The chains that most tests begin with.

    def sd15(self, positive="a portrait of a woman by the sea", negative="blurry"):
        """Model, positive, negative, CLIP and VAE."""
        loader = self("CheckpointLoaderSimple", ckpt_name="sd15.safetensors")
        model, clip, vae = ([loader[0], slot] for slot in range(3))
        prompts = (self("CLIPTextEncode", clip=clip, text=text) for text in (positive, negative))
        return model, *prompts, clip, vae

    def small(self):
        """The same with a smaller model; model, positive, negative."""
        clip = self("CLIPLoader", clip_name="clip_l.safetensors", type="stable_diffusion")
        prompts = (self("CLIPTextEncode", clip=clip, text=text) for text in ("a woman by the sea", "blurry"))
        return self("UNETLoader", unet_name="small.safetensors", weight_dtype="default"), *prompts

    def empty(self, batch=1):
        return self("EmptyLatentImage", width=WIDTH, height=HEIGHT, batch_size=batch)

    def sample(self, model, positive, negative, latent, **changes):
        inputs = {"seed": 42, "steps": 4, "cfg": 7.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}
        wires = {"model": model, "positive": positive, "negative": negative, "latent_image": latent}
        return self("KSampler", **wires, **{**inputs, **changes})


def run_both(comfy, base, graph):
    """Run the graph on both sides; answers the names it shows."""
    comfy.run(graph.prompt(base / "there"))
    run_here(base, graph, base / "models")
    return graph.shown


def run_here(base, graph, models):
    nodes_host.use(EngineHost([base / "input"], base / "out", base / "temp", models))
    try:
        known = {**classes(), **comfy_test_nodes.NODE_CLASS_MAPPINGS, **HERE}
        prompt = graph.prompt(base / "here")
        verdict = validate(prompt, known)
        assert verdict.ok and not verdict.node_errors, (verdict.error, verdict.node_errors)
        record = Executor(known).run(prompt, verdict.outputs)
        failure = record.message("execution_error")
        assert failure is None, (failure["exception_message"], "".join(failure["traceback"]))
    finally:
        nodes_host.use(None)


def compare(base, name, group):
    """Assert that both sides wrote the same tensors under ``name``."""
    here, there = (load_file(base / side / f"{name}.safetensors") for side in ("here", "there"))
    assert here.keys() == there.keys()
    for key, theirs in there.items():
        ours = here[key]
        assert ours.shape == theirs.shape, (name, key)
        assert torch.isfinite(theirs).all() and theirs.std() > 1e-4, (name, key)
        by_norm = float((ours - theirs).norm() / theirs.norm())
        by_element = float((ours - theirs).abs().max() / theirs.abs().max())
        WORST[group] = max(WORST.get(group, 0.0), by_norm, by_element)
        assert max(by_norm, by_element) <= TOLERANCE, (name, key, by_norm, by_element)


HERE = {}
"""The engine's own kind of nodes that look into ComfyUI."""


def check(comfy, base, graph, group):
    for name in run_both(comfy, base, graph):
        compare(base, name, group)


# Nodes


@pytest.fixture
def same_models(base):
    """The engine over ComfyUI's models, whatever else is installed."""
    nodes_host.use(EngineHost([base / "input"], base / "out", base / "temp", base / "models"))
    yield
    nodes_host.use(None)


@pytest.mark.parametrize("name", generation.NODES)
def test_a_node_is_described_as_comfyui_describes_it(comfy, same_models, name):
    theirs = comfy.ask(f"/object_info/{name}").json()[name]
    ours = json.loads(json.dumps(describe(name, generation.NODES[name], generation.TITLES[name])))
    for key in ("input_order", "output", "output_is_list", "output_name", "display_name", "category", "output_node"):
        assert ours[key] == theirs[key], key
    assert ours.get("output_tooltips") == theirs.get("output_tooltips")
    assert ours.get("deprecated") == theirs.get("deprecated")
    if not ours["description"].startswith("[Recipes]"):
        # Those name what a loader can load, which is less here.
        assert ours["description"] == theirs["description"]
    for section, inputs in theirs["input"].items():
        for key, (kind, *options) in inputs.items():
            our_kind, *our_options = ours["input"][section][key]
            assert [o for o in our_options if o] == [o for o in options if o], key
            if isinstance(kind, list):
                # Fewer choices, but in the same order, so that the first is the same default.
                assert our_kind == [choice for choice in kind if choice in our_kind], key
                assert key == "sampler_name" or not kind or our_kind[:1] == kind[:1] or not our_kind
            else:
                assert our_kind == kind, key


# Samplers and schedulers

CELLS = [(cfg, batch) for cfg in (7.0, 1.0) for batch in (1, 2)]


class Schedules(comfy_test_nodes.TestWriteSchedules):
    """The same in the engine."""

    def go(self, path, model):
        def sigmas(name, steps):
            return SCHEDULES[name](model.sampling, steps)

        return self.all(path, sigmas, model.sampling)


HERE["TestWriteSchedules"] = Schedules


@pytest.mark.parametrize("name", ["small", "sdxl_v"])
def test_levels_and_timesteps_are_comfyuis(comfy, base, name):
    graph = Graph(base / "data")
    model = graph("UNETLoader", unet_name=f"{name}.safetensors", weight_dtype="default")
    graph("TestWriteSchedules", path=f"PLACE/schedules-{name}.safetensors", model=model)
    graph.shown.append(f"schedules-{name}")
    check(comfy, base, graph, "sigmas of all schedules, 1 to 60 steps")
    ours, theirs = (load_file(base / side / f"schedules-{name}.safetensors") for side in ("here", "there"))
    # A timestep beside the right one is not a rounding error.
    assert torch.equal(ours["timesteps"], theirs["timesteps"])


@pytest.fixture(scope="module")
def matrix(comfy, base):
    """Every sampler with every scheduler, in one prompt for each guidance and batch."""
    for cfg, batch in CELLS:
        graph = Graph(base / "data")
        model, positive, negative = graph.small()
        latent = graph.empty(batch)
        for sampler in SAMPLERS:
            for scheduler in SCHEDULES:
                changes = {"sampler_name": sampler, "scheduler": scheduler, "cfg": cfg, "steps": 4}
                out = graph.sample(model, positive, negative, latent, **changes)
                graph.show("Latent", f"{sampler}-{scheduler}-{cfg}-{batch}", out)
        run_both(comfy, base, graph)
    return base


@pytest.mark.parametrize(("cfg", "batch"), CELLS)
@pytest.mark.parametrize("scheduler", SCHEDULES)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_takes_comfyuis_steps(matrix, sampler, scheduler, cfg, batch):
    compare(matrix, f"{sampler}-{scheduler}-{cfg}-{batch}", f"{sampler}, all schedulers, cfg 1 and 7, batch 1 and 2")


def test_a_picture_is_changed_in_part(comfy, base):
    graph = Graph(base / "data")
    model, positive, negative, _, vae = graph.sd15()
    latent = graph("VAEEncode", pixels=graph.read("Image", "image"), vae=vae)
    for sampler in SAMPLERS:
        out = graph.sample(model, positive, negative, latent, sampler_name=sampler, denoise=0.6)
        graph.show("Latent", f"part-{sampler}", out)
    check(comfy, base, graph, "img2img, denoise 0.6")


def test_a_mask_keeps_the_rest(comfy, base):
    graph = Graph(base / "data")
    model, positive, negative = graph.small()
    mask = [graph.read("Image", "mask")[0], 1]
    latent = graph("SetLatentNoiseMask", samples=graph.read("Latent", "latent"), mask=mask)
    for sampler in SAMPLERS:
        for denoise in (1.0, 0.6):
            out = graph.sample(model, positive, negative, latent, sampler_name=sampler, denoise=denoise)
            graph.show("Latent", f"inpaint-{sampler}-{denoise}", out)
    check(comfy, base, graph, "noise mask")


def test_a_run_may_be_cut_into_two(comfy, base):
    graph = Graph(base / "data")
    model, positive, negative = graph.small()
    inputs = {"model": model, "positive": positive, "negative": negative, "noise_seed": 5, "steps": 6, "cfg": 7.0}
    inputs |= {"sampler_name": "dpmpp_2m", "scheduler": "karras"}
    first = graph(
        "KSamplerAdvanced",
        **inputs,
        latent_image=graph.empty(),
        add_noise="enable",
        start_at_step=0,
        end_at_step=3,
        return_with_leftover_noise="enable",
    )
    graph.show("Latent", "first-half", first)
    second = graph(
        "KSamplerAdvanced",
        **inputs,
        latent_image=first,
        add_noise="disable",
        start_at_step=3,
        end_at_step=10000,
        return_with_leftover_noise="disable",
    )
    graph.show("Latent", "second-half", second)
    short = graph(
        "KSamplerAdvanced",
        **inputs,
        latent_image=graph.read("Latent", "latent"),
        add_noise="enable",
        start_at_step=2,
        end_at_step=4,
        return_with_leftover_noise="disable",
    )
    graph.show("Latent", "cut-short", short)
    check(comfy, base, graph, "KSamplerAdvanced")


def test_latents_keep_the_noise_of_their_number(comfy, base):
    graph = Graph(base / "data")
    model, positive, negative = graph.small()
    out = graph.sample(model, positive, negative, graph.read("Latent", "numbered"), seed=2**63 + 11)
    graph.show("Latent", "numbered", out)
    check(comfy, base, graph, "batch_index")


# Text and conditioning

PROMPTS = {
    "empty": "",
    "plain": "a photo of a man with a red hat, 35mm",
    "weighted": "a (photo:1.3) of (a ((man)) smiling:0.7), [hat], (sea) and \\(brackets\\)",
    "broken": "((a man:1.2, (hat:abc) ) ) :1.5) (:1.2) () ( red",
    "letters": "Ein Café in  Zürich:\tél niño's 1234 don't — ½ ‘quoted’ 日本語 🙂",
    "long": "a very detailed photograph of a woman " * 30,
    "long-weighted": "(a very detailed photograph:1.2) of a (woman:0.8), " * 12,
    "long-word": "supercalifragilisticexpialidocious" * 12,
}


def test_prompts_are_encoded_alike(comfy, base):
    graph = Graph(base / "data")
    *_, clip, _ = graph.sd15()
    alone = graph("CLIPLoader", clip_name="clip_l.safetensors", type="stable_diffusion")
    for name, text in PROMPTS.items():
        graph.show("Conditioning", f"text-{name}", graph("CLIPTextEncode", clip=clip, text=text))
    for layer in (-1, -2, -12, -13):
        earlier = graph("CLIPSetLastLayer", clip=clip, stop_at_clip_layer=layer)
        encoded = graph("CLIPTextEncode", clip=earlier, text=PROMPTS["weighted"])
        graph.show("Conditioning", f"text-layer{layer}", encoded)
    graph.show("Conditioning", "text-alone", graph("CLIPTextEncode", clip=alone, text=PROMPTS["plain"]))
    check(comfy, base, graph, "prompts")


class TextEncoders(comfy_test_nodes.TestTextEncoders):
    """The same in the engine."""

    def go(self, path):
        files = [Path(path) / f"{name}.safetensors" for name in "lg"]
        return (load.text_encoders(files, torch.device("cpu"), vocabulary_places(nodes_host.host())),)


HERE["TestTextEncoders"] = TextEncoders


def test_sdxl_prompts_are_encoded_alike(comfy, base):
    """By ComfyUI's class for SDXL's two text encoders, with fewer channels."""
    graph = Graph(base / "data")
    clip = graph("TestTextEncoders", path=str(base / "data"))
    for name, text in PROMPTS.items():
        graph.show("Conditioning", f"xl-text-{name}", graph("CLIPTextEncode", clip=clip, text=text))
    for layer in (-1, -2, -5, -24):
        earlier = graph("CLIPSetLastLayer", clip=clip, stop_at_clip_layer=layer)
        encoded = graph("CLIPTextEncode", clip=earlier, text=PROMPTS["weighted"])
        graph.show("Conditioning", f"xl-text-layer{layer}", encoded)
    check(comfy, base, graph, "SDXL prompts")


def test_conditionings_are_put_together_alike(comfy, base):
    graph = Graph(base / "data")
    model, positive, negative = graph.small()
    clip = graph("CLIPLoader", clip_name="clip_l.safetensors", type="stable_diffusion")
    other = graph("CLIPTextEncode", clip=clip, text="a red hat, " * 20)
    mask, unmask = ([graph.read("Image", name)[0], 1] for name in ("mask", "unmask"))
    masked = {"strength": 0.8, "set_cond_area": "default"}
    here = graph("ConditioningSetMask", conditioning=positive, mask=mask, **masked)
    there = graph("ConditioningSetMask", conditioning=other, mask=unmask, **masked)
    bounded = graph("ConditioningSetMask", conditioning=other, mask=mask, strength=1.0, set_cond_area="mask bounds")
    place = {"width": 64, "height": 64, "x": 32, "y": 0, "strength": 1.2}
    area = graph("ConditioningSetArea", conditioning=other, **place)
    early = graph("ConditioningSetTimestepRange", conditioning=positive, start=0.0, end=0.4)
    late = graph("ConditioningSetTimestepRange", conditioning=other, start=0.4, end=1.0)
    none = graph("ConditioningZeroOut", conditioning=negative)

    def combined(a, b):
        return graph("ConditioningCombine", conditioning_1=a, conditioning_2=b)

    cases = {
        "combined": (combined(positive, other), negative),
        "concat": (graph("ConditioningConcat", conditioning_to=positive, conditioning_from=other), negative),
        "masked": (combined(here, there), negative),
        "bounded": (combined(positive, bounded), negative),
        "area": (combined(positive, area), negative),
        "area-both": (combined(positive, area), combined(negative, area)),
        "window": (combined(early, late), negative),
        "gap": (early, negative),
        "zero": (positive, none),
    }
    latent = graph.empty(2)
    for name, (first, second) in cases.items():
        graph.show("Latent", f"cond-{name}", graph.sample(model, first, second, latent))
    check(comfy, base, graph, "areas, masks and windows of conditionings")


# Changes of the model


def test_loras_change_the_weights_alike(comfy, base):
    graph = Graph(base / "data")
    model, positive, negative, clip, _ = graph.sd15()
    latent = graph.empty()

    def only(model, name, strength):
        return graph("LoraLoaderModelOnly", model=model, lora_name=f"{name}.safetensors", strength_model=strength)

    for name in ("kohya", "kohya-ldm", "processor"):
        changed = only(model, name, 0.9)
        graph.show("Latent", f"lora-{name}", graph.sample(changed, positive, negative, latent))
    twice = only(only(model, "kohya", -0.5), "both", 0.7)
    graph.show("Latent", "lora-twice", graph.sample(twice, positive, negative, latent))
    names = {"lora_name": "both.safetensors", "strength_model": 0.8, "strength_clip": 1.5}
    loader = graph("LoraLoader", model=model, clip=clip, **names)
    encoded = graph("CLIPTextEncode", clip=[loader[0], 1], text="a (man:1.2) with a hat")
    graph.show("Conditioning", "lora-text", encoded)
    graph.show("Latent", "lora-both", graph.sample(loader, encoded, negative, latent))
    check(comfy, base, graph, "LoRA")


def test_controlnets_steer_alike(comfy, base):
    graph = Graph(base / "data")
    model, positive, negative, *_ = graph.sd15()
    picture, odd = graph.read("Image", "image"), graph.read("Image", "odd")
    latent = graph.empty(2)
    nets = {name: graph("ControlNetLoader", control_net_name=f"sd15_{name}.safetensors") for name in ("a", "b")}

    def advanced(positive, negative, net, image, strength, start=0.0, end=1.0):
        inputs = {"strength": strength, "start_percent": start, "end_percent": end}
        node = graph(
            "ControlNetApplyAdvanced",
            positive=positive,
            negative=negative,
            control_net=nets[net],
            image=image,
            **inputs,
        )
        return node, [node[0], 1]

    for name in nets:
        pair = advanced(positive, negative, name, picture, 0.8)
        graph.show("Latent", f"control-{name}", graph.sample(model, *pair, latent))
    window = advanced(positive, negative, "a", odd, 1.0, 0.2, 0.6)
    graph.show("Latent", "control-window", graph.sample(model, *window, latent))
    chain = advanced(*advanced(positive, negative, "a", odd, 0.5), "b", picture, 0.7, 0.0, 0.5)
    graph.show("Latent", "control-chain", graph.sample(model, *chain, latent))
    simple = graph("ControlNetApply", conditioning=positive, control_net=nets["a"], image=picture, strength=0.9)
    graph.show("Latent", "control-simple", graph.sample(model, simple, negative, latent))
    graph.show("Latent", "control-cfg1", graph.sample(model, simple, negative, latent, cfg=1.0))
    check(comfy, base, graph, "ControlNet")
    run_here(base, graph, base / "twins")
    for name in graph.shown:
        compare(base, name, "SD1.5 checkpoint and ControlNets in diffusers' layout")


# VAE, image encoder


def test_the_vae_sees_and_draws_alike(comfy, base):
    graph = Graph(base / "data")
    *_, vae = graph.sd15()
    alone = graph("VAELoader", vae_name="vae.safetensors")
    for name in ("image", "odd"):
        latent = graph("VAEEncode", pixels=graph.read("Image", name), vae=vae)
        graph.show("Latent", f"vae-encoded-{name}", latent)
        graph.show("Image", f"vae-decoded-{name}", graph("VAEDecode", samples=latent, vae=alone))
    scaled = graph(
        "LatentUpscale",
        samples=graph.read("Latent", "latent"),
        upscale_method="bicubic",
        width=120,
        height=0,
        crop="disabled",
    )
    graph.show("Latent", "latent-scaled", scaled)
    check(comfy, base, graph, "VAE")


def test_clip_vision_sees_alike(comfy, base):
    graph = Graph(base / "data")
    encoder = graph("CLIPVisionLoader", clip_name="clip_l.safetensors")
    for crop in ("center", "none"):
        output = graph("CLIPVisionEncode", clip_vision=encoder, image=graph.read("Image", "odd"), crop=crop)
        graph.show("Vision", f"vision-{crop}", output)
    check(comfy, base, graph, "CLIP vision")


# SDXL


def test_sdxl_samples_alike(comfy, base):
    graph = Graph(base / "data")
    model = graph("UNETLoader", unet_name="sdxl.safetensors", weight_dtype="default")
    plain = [graph.read("Conditioning", name) for name in ("positive", "negative")]
    sized = [graph.read("Conditioning", f"{name}_more") for name in ("positive", "negative")]
    for sampler in ("euler", "euler_ancestral", "dpmpp_2m"):
        out = graph.sample(model, *plain, graph.empty(), sampler_name=sampler, scheduler="karras")
        graph.show("Latent", f"xl-{sampler}", out)
    graph.show("Latent", "xl-sizes", graph.sample(model, *sized, graph.empty(2), cfg=3.0))
    lora = graph("LoraLoaderModelOnly", model=model, lora_name="sdxl.safetensors", strength_model=0.8)
    graph.show("Latent", "xl-lora", graph.sample(lora, *plain, graph.empty(), cfg=1.0))
    check(comfy, base, graph, "SDXL")
    run_here(base, graph, base / "twins")
    for name in graph.shown:
        compare(base, name, "SDXL in diffusers' layout")


def test_a_model_that_predicts_velocity_samples_alike(comfy, base):
    graph = Graph(base / "data")
    model = graph("UNETLoader", unet_name="sdxl_v.safetensors", weight_dtype="default")
    plain = [graph.read("Conditioning", name) for name in ("positive", "negative")]
    for sampler, scheduler in (("euler", "sgm_uniform"), ("dpmpp_2m", "karras")):
        out = graph.sample(model, *plain, graph.empty(), sampler_name=sampler, scheduler=scheduler)
        graph.show("Latent", f"velocity-{sampler}", out)
    check(comfy, base, graph, "velocity prediction, zero terminal SNR")


def test_rounded_weights_are_rounded_alike(comfy, base):
    graph = Graph(base / "data")
    _, positive, negative = graph.small()
    for kind in ("fp8_e4m3fn", "fp8_e5m2"):
        model = graph("UNETLoader", unet_name="small.safetensors", weight_dtype=kind)
        graph.show("Latent", f"rounded-{kind}", graph.sample(model, positive, negative, graph.empty()))
    check(comfy, base, graph, "fp8 weights")


@pytest.mark.parametrize("text", ["", "_more"])
def test_sdxl_controlnets_may_read_another_text(comfy, base, text):
    graph = Graph(base / "data")
    model = graph("UNETLoader", unet_name="sdxl.safetensors", weight_dtype="default")
    net = graph("ControlNetLoader", control_net_name="sdxl.safetensors")
    pair = [graph.read("Conditioning", f"{name}{text}") for name in ("positive", "negative")]
    applied = graph(
        "ControlNetApplyAdvanced",
        positive=pair[0],
        negative=pair[1],
        control_net=net,
        # One picture: of two, ComfyUI would show one to the positive and the other to the negative.
        image=graph.read("Image", "odd"),
        strength=0.8,
        start_percent=0.0,
        end_percent=1.0,
    )
    out = graph.sample(model, applied, [applied[0], 1], graph.empty())
    graph.show("Latent", f"xl-control{text}", out)
    check(comfy, base, graph, "SDXL ControlNet, with cross_attn_controlnet")
