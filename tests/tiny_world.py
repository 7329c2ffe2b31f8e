"""A folder of models in which every workflow that draws people runs: all files it names, random and tiny.

The detector, the mesh and the judge are the real default models; everything that generates is noise.
"""

import shutil
from pathlib import Path

import pytest
from likeness.engine.host import EngineHost
from likeness.face.convert.tokens import TABLE
from likeness.face.fetch import fetch_named
from likeness.face.host import STANDALONE, StandaloneHost
from likeness.face.lab import metadata
from likeness.face.models import catalogue, find, status
from likeness.lab import world as drawn
from likeness.nodes import host as hosts
from likeness.tests import tiny, tiny_adapters, tiny_diffusion
from PIL import Image
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).resolve().parent.parent
VECTOR, SEEN, SIDE = 512, 1024, 224
SD15, SDXL = "v1-5-pruned-emaonly-fp16.safetensors", "sd_xl_base_1.0.safetensors"
PACKS = {"buffalo_l": "w600k_r50", "antelopev2": "glintr100", "arc2face": "arcface"}
"""Their recognition networks."""
ADAPTERS = {
    "likeness/adapters/ip-adapter-faceid_sd15.bin": ("faceid", "sd15"),
    "likeness/adapters/ip-adapter-faceid-plusv2_sdxl.bin": ("faceid-plus-v2", "sdxl"),
    "ipadapter/ip-adapter-plus-face_sd15.safetensors": ("plus-face", "sd15"),
    "instantid/ip-adapter.bin": ("instantid", "sdxl"),
    "pulid/pulid_v1.1.safetensors": ("pulid-v1.1", "sdxl"),
    "photomaker/photomaker-v2.bin": ("photomaker-v2", "sdxl"),
    "likeness/adapters/ConsistentID-v1.bin": ("consistentid", "sd15"),
}


def sites(config):
    """Widths of the cross-attention layers in the files' order: down, up, mid."""
    channels, depths = config["block_out_channels"], config["transformer_layers_per_block"]
    attended = ["Cross" in kind for kind in config["down_block_types"]]
    levels = [(c, d) for c, d, a in zip(channels, depths, attended, strict=True) if a]
    layers = config["layers_per_block"]
    down = [c for c, depth in levels for _ in range(layers * depth)]
    up = [c for c, depth in reversed(levels) for _ in range((layers + 1) * depth)]
    return down + up + [channels[-1]] * depths[-1]


def packs(models):
    """InsightFace packs that find real faces; who they are is answered at random."""
    for name, recogniser in PACKS.items():
        folder = models / "insightface" / "models" / name
        tiny.yunet_as_scrfd(models / "likeness" / "yunet.onnx", folder / "det_10g.onnx")
        tiny.recogniser(folder / f"{recogniser}.onnx", VECTOR)


def adapter(name, config, seen=SEEN):
    widths, context = sites(config), config["cross_attention_dim"]
    return tiny_adapters.make(name, widths=widths, context=context, vector=VECTOR, seen=seen)


def adapters(models, configs, words=None):
    """Every adapter file, for U-Nets of these configurations; ``words``: the width of PhotoMaker's text, if another."""
    for path, (name, family) in ADAPTERS.items():
        file = adapter(name, configs[family])
        if "lora_weights" in file:
            file |= adapter(name, {**configs[family], "cross_attention_dim": words}) if words else {}
            file["lora_weights"] = tiny_diffusion.lora(tiny_diffusion.unet(configs[family]), family, "diffusers")
        (models / path).parent.mkdir(parents=True, exist_ok=True)
        tiny_adapters.write(models / path, file)


def fill(models):
    """Write everything under ``models``, whose folder ``likeness`` has the default models."""
    packs(models)
    save = tiny_diffusion.save
    checkpoints = models / "checkpoints"
    save(checkpoints / SD15, tiny_diffusion.sd15_file(*tiny_diffusion.tiny_sd15()))
    save(checkpoints / SDXL, tiny_diffusion.sdxl_file(*tiny_diffusion.tiny_sdxl()))
    tiny_diffusion.save_vocabulary(models / "likeness" / "bpe_simple_vocab_16e6.txt.gz")
    control = tiny_diffusion.to_ldm("controlnet", tiny_diffusion.tiny_controlnet("sdxl"))
    save(models / "controlnet" / "instantid" / "diffusion_pytorch_model.safetensors", control)
    vision = tiny_diffusion.image_encoder(SEEN, 3, SIDE // 4, SIDE)
    save(models / "clip_vision" / "CLIP-ViT-H-14-laion2B-s32B-b79K.safetensors", vision)
    save(models / "clip_vision" / "EVA02_CLIP_L_336_psz14_s6B.safetensors", tiny_adapters.make("eva", vit=64))
    adapters(models, {"sd15": tiny_diffusion.SD15, "sdxl": tiny_diffusion.SDXL})
    # Arc2Face is a model of its own, whose text is as wide as its vectors at least.
    config = tiny_diffusion.unet_config("sd15", (32, 64, 64, 64), text=VECTOR)
    save(models / "diffusion_models" / "arc2face" / "diffusion_pytorch_model.safetensors", tiny_diffusion.unet(config))
    save(models / "vae" / "vae-ft-mse-840000-ema-pruned.safetensors", tiny_diffusion.tiny_sd15()[1])
    path = models / "likeness" / "adapters" / "arc2face" / "pytorch_model.bin"
    path.parent.mkdir(parents=True)
    tiny_adapters.write(path, tiny_adapters.make("arc2face", context=VECTOR))


def lab(models, words):
    """The lab's own files; its text encoder keeps as many ``words`` as the vocabulary that lies there has."""
    fetch_named("lab", StandaloneHost(models))
    file = models / "checkpoints" / "lab.safetensors"
    tensors, about = load_file(file), metadata(file)
    save_file({**tensors, TABLE: tensors[TABLE][:words].clone()}, file, about)


def build(work):
    """A fresh installation under ``work``: models, photographs, and the engine as the host of the nodes."""
    cards = catalogue.select("default")
    if any(status(card, STANDALONE) == "missing" for card in cards):
        pytest.skip("the default models are not fetched: likeness models fetch default")
    models = work / "models"
    (models / "likeness").mkdir(parents=True)
    for card in cards:
        (models / "likeness" / card.file).symlink_to(find(card, STANDALONE))
    fill(models)
    lab(models, tiny_diffusion.VOCABULARY)
    shutil.copytree(ROOT / "workflows" / "photos", work / "input")
    pixels = drawn.draw(drawn.people(1, 3), drawn.wishes(1, 4), drawn.chances(1, 5)).pixels[0]
    Image.fromarray(pixels.repeat(4, 0).repeat(4, 1)).save(work / "input" / OTHER)
    hosts.use(EngineHost([work / "input"], work / "out", work / "temp", models))
    return work


def somebody_else(name):
    """A picture for another person in a workflow: one of its own world."""
    return OTHER if name.startswith("lab_") else "obama.jpg"


OTHER = "lab_other.png"


def shrunk(prompt, side=64, steps=4):
    """The workflow with fewer steps and smaller pictures."""
    for node in prompt.values():
        if node["class_type"] == "EmptyLatentImage":
            node["inputs"] |= {"width": side, "height": side, "batch_size": 1}
        if node["class_type"] in SAMPLERS:
            node["inputs"]["steps"] = steps
    return prompt


SAMPLERS = ("KSampler", "LikenessFoundationPass", "LikenessCureSampler", "LikenessClosedLoop")
"""What draws pictures out of noise; where several do, they must agree."""


def generates(prompt):
    return any(node["class_type"] in SAMPLERS for node in prompt.values())
