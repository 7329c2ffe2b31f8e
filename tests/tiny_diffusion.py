"""Random checkpoints in the published layouts: tiny ones for quick tests, slim ones that ComfyUI's detection accepts.

Shapes come from diffusers' classes and from ``engine.diffusion``; names from ``engine.diffusion.layout``. Every weight
is drawn from its own name, so the same sizes give the same file. Weights are about 1/sqrt(fan in), which keeps a
network of any depth finite.
"""

import gzip
import json
import zlib
from functools import cache
from pathlib import Path

import torch
from likeness.engine.diffusion import clip, layout
from safetensors.torch import save_file

WORDS = ["a", "photo", "portrait", "of", "man", "woman", "smiling", "red", "hat", "by", "the", "sea", "blurry"]


def random(shapes, seed=0):
    """{name: (shape)} to {name: tensor}, float32."""
    out = {}
    for name, shape in shapes.items():
        generator = torch.Generator().manual_seed((zlib.crc32(name.encode()) + seed) % 2**32)
        noise = torch.randn(tuple(shape), generator=generator)
        kind = name.rsplit(".", 1)[-1]
        if len(shape) > 1:
            out[name] = noise / max(noise[0].numel(), 1) ** 0.5
        elif kind == "weight":
            # A norm's: around 1.
            out[name] = 1 + 0.1 * noise
        else:
            out[name] = 0.1 * noise
    return out


def shapes(module):
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def unet_config(family, channels, layers=2, text=None, pooled=None, size_width=8, depths=None, heads=None):
    """diffusers' configuration of a U-Net of a family's structure: 16 attention sites for sd15, 70 for sdxl."""
    if family == "sd15":
        attended = [True] * (len(channels) - 1) + [False]
        more = {"attention_head_dim": heads or 8, "transformer_layers_per_block": [1] * len(channels)}
    else:
        attended = [False] + [True] * (len(channels) - 1)
        more = {
            "attention_head_dim": heads or [max(width // 64, 1) for width in channels],
            "transformer_layers_per_block": list(depths or (1, 2, 10)),
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": size_width,
            "projection_class_embeddings_input_dim": pooled + 6 * size_width,
        }
    return {
        "block_out_channels": list(channels),
        "layers_per_block": layers,
        "down_block_types": ["CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attended],
        "cross_attention_dim": text,
        **more,
    }


def ups(config):
    kinds = [kind.replace("Down", "Up") for kind in reversed(config["down_block_types"])]
    return {**config, "up_block_types": kinds}


def unet(config, seed=0):
    """Tensors under diffusers' names."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        module = UNet2DConditionModel.from_config(ups(config))
    return random(shapes(module), seed)


def controlnet(config, seed=0, hints=(16, 32, 96, 256)):
    """A ControlNet for the U-Net of that configuration; its outputs are not zero, as those of a new one would be."""
    from diffusers import ControlNetModel

    with torch.device("meta"):
        module = ControlNetModel.from_config({**config, "conditioning_embedding_out_channels": list(hints)})
    tensors = random(shapes(module), seed)
    # What it adds should not drown what it is added to; what it sees should not drown on the way.
    gains = {"controlnet_down_blocks": 0.3, "controlnet_mid_block": 0.3, "controlnet_cond_embedding": 1.7}
    return {name: tensor * gains.get(name.split(".")[0], 1.0) for name, tensor in tensors.items()}


def vae_config(channels=(32, 32, 32, 32), layers=1):
    return {
        "block_out_channels": list(channels),
        "down_block_types": ["DownEncoderBlock2D"] * len(channels),
        "up_block_types": ["UpDecoderBlock2D"] * len(channels),
        "layers_per_block": layers,
        "latent_channels": 4,
    }


def vae(config, seed=0):
    from diffusers import AutoencoderKL

    with torch.device("meta"):
        module = AutoencoderKL.from_config(config)
    return random(shapes(module), seed)


def text_encoder(width, layers, vocabulary, projected=None, seed=0, inner=None):
    """A CLIP text encoder under transformers' names."""
    sizes = clip.Sizes(width, layers, inner or 4 * width, max(width // 64, 1), True)
    with torch.device("meta"):
        tower = clip.TextTower(sizes, vocabulary, 77, projected)
    tensors = random(shapes(tower), seed)
    # Embeddings are looked up, not summed over.
    for name in ("token_embedding", "position_embedding"):
        key = f"text_model.embeddings.{name}.weight"
        tensors[key] = tensors[key] * width**0.5 * 0.5
    return tensors


def image_encoder(width=64, layers=3, patch=14, side=28, projected=32, inner=None, seed=0):
    """A CLIP image encoder under transformers' names."""
    sizes = clip.Sizes(width, layers, inner or 2 * width, 16, layers < 30)
    with torch.device("meta"):
        tower = clip.VisionTower(sizes, patch, (side // patch) ** 2 + 1, projected)
    return random(shapes(tower), seed)


def open_clip_text(tensors):
    """transformers' names to open_clip's, as the second text encoder of an SDXL checkpoint has them."""
    out = {
        "positional_embedding": tensors["text_model.embeddings.position_embedding.weight"],
        "token_embedding.weight": tensors["text_model.embeddings.token_embedding.weight"],
        "ln_final.weight": tensors["text_model.final_layer_norm.weight"],
        "ln_final.bias": tensors["text_model.final_layer_norm.bias"],
        "text_projection": tensors["text_projection.weight"].T.contiguous(),
    }
    names = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}
    names["self_attn.out_proj"] = "attn.out_proj"
    layer = "text_model.encoder.layers.{}.{}.{}"
    number = 0
    while layer.format(number, "layer_norm1", "weight") in tensors:
        for kind in ("weight", "bias"):
            for theirs, ours in names.items():
                key = f"transformer.resblocks.{number}.{ours}.{kind}"
                out[key] = tensors[layer.format(number, theirs, kind)]
            parts = [tensors[layer.format(number, f"self_attn.{p}_proj", kind)] for p in "qkv"]
            out[f"transformer.resblocks.{number}.attn.in_proj_{kind}"] = torch.cat(parts)
        number += 1
    return out


def to_ldm(kind, tensors):
    """diffusers' names to ldm's; the VAE's attention matrices become 1×1 convolutions."""
    names = layout.to_ldm(kind, tensors)
    assert len(names) == len(tensors), set(tensors) - set(names)
    out = {names[name]: tensor for name, tensor in tensors.items()}
    if kind == "vae":
        return {n: t[..., None, None] if ".attn_1." in n and t.ndim == 2 else t for n, t in out.items()}
    return out


def under(prefix, tensors):
    return {prefix + name: tensor for name, tensor in tensors.items()}


def sd15_file(unet_tensors, vae_tensors, text_tensors):
    """The tensors of a single-file checkpoint."""
    return {
        **under("model.diffusion_model.", to_ldm("unet", unet_tensors)),
        **under("first_stage_model.", to_ldm("vae", vae_tensors)),
        **under("cond_stage_model.transformer.", text_tensors),
    }


def sdxl_file(unet_tensors, vae_tensors, small, large):
    return {
        **under("model.diffusion_model.", to_ldm("unet", unet_tensors)),
        **under("first_stage_model.", to_ldm("vae", vae_tensors)),
        **under("conditioner.embedders.0.transformer.", small),
        **under("conditioner.embedders.1.model.", open_clip_text(large)),
    }


def save(path, tensors, dtype=torch.float32):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.to(dtype).contiguous() for name, tensor in tensors.items()}, path)
    return path


def merges():
    """Byte pairs that make the words above single tokens."""
    found = []
    for word in WORDS:
        pieces = [*word[:-1], word[-1] + "</w>"]
        while len(pieces) > 1:
            found.append((pieces[0], pieces[1]))
            pieces[:2] = [pieces[0] + pieces[1]]
    return list(dict.fromkeys(found))


VOCABULARY = 512 + len(merges()) + 2
"""Tokens of the tiny vocabulary."""


def save_vocabulary(path):
    """A tiny vocabulary in the form of OpenAI's file."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges())]
    path.write_bytes(gzip.compress("\n".join(lines).encode() + b"\n"))
    return path


# Tiny checkpoints: a second for a whole run.

SD15 = unet_config("sd15", (32, 64, 64, 64), text=64)
SDXL = unet_config("sdxl", (32, 64, 64), text=128, pooled=64, size_width=256)


@cache
def tiny_sd15(seed=0):
    """Parts of a tiny SD1.5 checkpoint: U-Net, VAE, text encoder; diffusers' names. Shared: change no tensor."""
    return unet(SD15, seed), vae(vae_config(), seed), text_encoder(64, 3, VOCABULARY, seed=seed)


@cache
def tiny_sdxl(seed=0):
    """Parts of a tiny SDXL checkpoint: U-Net, VAE, both text encoders. Shared: change no tensor."""
    small = text_encoder(64, 3, VOCABULARY, seed=seed)
    large = text_encoder(64, 4, VOCABULARY, projected=64, seed=seed + 1)
    return unet(SDXL, seed), vae(vae_config(), seed), small, large


@cache
def tiny_controlnet(family):
    """A ControlNet for the tiny model of a family. Shared: change no tensor."""
    return controlnet(SD15 if family == "sd15" else SDXL)


def fill_models(models):
    """A folder of models, as the engine's host looks into it: everything tiny, under ComfyUI's folder names."""
    models = Path(models)
    save(models / "checkpoints" / "tiny_sd15.safetensors", sd15_file(*tiny_sd15()))
    save(models / "checkpoints" / "tiny_sdxl.safetensors", sdxl_file(*tiny_sdxl()))
    save_folder(models / "checkpoints" / "tiny_folder", tiny_sd15(), SD15)
    for family, parts in (("sd15", tiny_sd15()), ("sdxl", tiny_sdxl())):
        save(models / "controlnet" / f"tiny_{family}.safetensors", to_ldm("controlnet", tiny_controlnet(family)))
        save(models / "loras" / f"tiny_{family}.safetensors", lora(parts[0], family))
    save(models / "vae" / "tiny.safetensors", tiny_sd15()[1])
    save(models / "clip_vision" / "tiny.safetensors", image_encoder())
    save_vocabulary(models / "likeness" / "bpe_simple_vocab_16e6.txt.gz")
    return models


def save_folder(folder, parts, config, vae_settings=None, dtype=torch.float32):
    """A checkpoint folder in diffusers' layout, of parts as ``tiny_sd15`` and ``tiny_sdxl`` give them."""
    folder = Path(folder)
    names = ["unet", "vae", "text_encoder", "text_encoder_2"][: len(parts)]
    files = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model"}
    settings = {
        "unet": {"_class_name": "UNet2DConditionModel", **ups(config)},
        "vae": {"_class_name": "AutoencoderKL", **(vae_settings or vae_config())},
        "text_encoder": {"hidden_act": "quick_gelu"},
        "text_encoder_2": {"hidden_act": "gelu"},
    }
    for name, tensors in zip(names, parts, strict=True):
        save(folder / name / f"{files.get(name, 'model')}.safetensors", tensors, dtype)
        (folder / name / "config.json").write_text(json.dumps(settings[name]))
    (folder / "model_index.json").write_text("{}")
    return folder


def lora(tensors, family, form="kohya", rank=2, seed=7, names=None, size=1.0):
    """A LoRA for some layers of a U-Net with those tensors (diffusers' names), in one of the layouts in use."""
    wanted = names or (
        "mid_block.attentions.0.transformer_blocks.0.attn1.to_q",
        "mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0",
        "mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj",
        "mid_block.attentions.0.proj_in",
        "down_blocks.1.resnets.0.conv1",
        "up_blocks.1.attentions.0.transformer_blocks.0.attn1.to_v",
    )
    out = {}
    ldm = layout.to_ldm("unet", tensors)
    for path in wanted:
        weight = tensors[f"{path}.weight"]
        ends = (1, 1) if weight.ndim == 4 else ()
        drawn = random(
            {"up": (len(weight), rank, *ends), "down": (rank, *weight.shape[1:])}, seed + zlib.crc32(path.encode())
        )
        up, down = drawn["up"] * size, drawn["down"]
        original = ldm[f"{path}.weight"].removesuffix(".weight")
        if form == "kohya":
            base = "lora_unet_" + path.replace(".", "_")
            out |= {f"{base}.lora_up.weight": up, f"{base}.lora_down.weight": down}
            out[f"{base}.alpha"] = torch.tensor(float(rank) / 2)
        elif form == "kohya-ldm":
            base = "lora_unet_" + original.replace(".", "_")
            out |= {f"{base}.lora_up.weight": up / 2, f"{base}.lora_down.weight": down}
        elif form == "peft":
            base = f"base_model.model.{path}"
            out |= {f"{base}.lora_B.weight": up / 2, f"{base}.lora_A.weight": down}
        elif form == "diffusers":
            out |= {f"unet.{path}.lora.up.weight": up / 2, f"unet.{path}.lora.down.weight": down}
        elif form == "processor":
            base = path.replace(".to_", ".processor.to_").removesuffix(".0")
            out |= {f"{base}_lora.up.weight": up / 2, f"{base}_lora.down.weight": down}
    return out


def text_lora(tensors, rank=2, seed=9, prefix="lora_te_"):
    """A LoRA for some layers of a text encoder, kohya's layout."""
    out = {}
    for path in ("self_attn.q_proj", "self_attn.out_proj", "mlp.fc1"):
        path = f"text_model.encoder.layers.1.{path}"
        weight = tensors[f"{path}.weight"]
        drawn = random({"up": (len(weight), rank), "down": (rank, weight.shape[1])}, seed + zlib.crc32(path.encode()))
        base = prefix + path.replace(".", "_")
        out |= {f"{base}.lora_up.weight": drawn["up"], f"{base}.lora_down.weight": drawn["down"]}
        out[f"{base}.alpha"] = torch.tensor(float(rank))
    return out
