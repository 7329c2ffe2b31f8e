"""Adapter files of random weights in every published layout, as small as one likes.

``make(name, **sizes)`` answers a file's nested dictionary; ``write`` puts it on disk as its publisher does.
"""

import torch
from safetensors.torch import save_file

SD15 = [32, 32, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 32, 32, 32, 32]
"""Widths of the cross-attention layers of a tiny SD1.5, in the files' order."""
SDXL = [64] * 4 + [32] * 20 + [32] * 30 + [64] * 6 + [32] * 10
"""And of a tiny SDXL."""


class Random:
    def __init__(self, seed=0):
        self._generator = torch.Generator().manual_seed(seed)

    def __call__(self, *shape):
        return torch.randn(*shape, generator=self._generator) / max(shape[-1], 1) ** 0.5

    def linear(self, name, out, size, bias=True):
        return {f"{name}.weight": self(out, size), **({f"{name}.bias": self(out)} if bias else {})}

    def norm(self, name, size):
        return {f"{name}.weight": 1 + 0.1 * self(size), f"{name}.bias": 0.1 * self(size)}


def under(prefix, tensors):
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def perceiver_layer(r, name, dim, kv_dim=None, head=64, heads=1):
    kv_dim, inner = kv_dim or dim, head * heads
    attention = {**r.norm("norm1", kv_dim), **r.norm("norm2", dim), **r.linear("to_q", inner, dim, False)}
    attention |= {**r.linear("to_kv", 2 * inner, kv_dim, False), **r.linear("to_out", dim, inner, False)}
    forward = {**r.norm("0", dim), **r.linear("1", 4 * dim, dim, False), **r.linear("3", dim, 4 * dim, False)}
    return {**under(f"{name}.0", attention), **under(f"{name}.1", forward)}


def perceiver(r, dim, takes, gives, depth=2, head=64, heads=1):
    out = {**r.linear("proj_in", dim, takes), **r.linear("proj_out", gives, dim), **r.norm("norm_out", gives)}
    for n in range(depth):
        out |= perceiver_layer(r, f"layers.{n}", dim, head=head, heads=heads)
    return out


def resampler(r, takes, gives, queries=16, dim=48):
    return {"latents": r(1, queries, dim), **perceiver(r, dim, takes, gives)}


def mlp(r, takes, gives, count):
    hidden = {**r.linear("proj.0", 2 * takes, takes), **r.linear("proj.2", count * gives, 2 * takes)}
    return hidden | r.norm("norm", gives)


def ladder(r, name, takes, middle, gives):
    layers = {**r.linear("0", middle, takes), **r.norm("1", middle), **r.linear("3", middle, middle)}
    return under(name, layers | r.norm("4", middle) | r.linear("6", gives, middle))


def keys(r, widths, context, names=("to_k_ip", "to_v_ip")):
    return {f"{2 * n + 1}.{name}.weight": r(width, context) for n, width in enumerate(widths) for name in names}


def low_rank(r, widths, context, rank=2):
    out = {}
    for layer in range(2 * len(widths)):
        width = widths[layer // 2]
        for which in ("q", "k", "v", "out"):
            takes = context if layer % 2 and which in "kv" else width
            out[f"{layer}.to_{which}_lora.down.weight"] = r(rank, takes)
            out[f"{layer}.to_{which}_lora.up.weight"] = 0.3 * r(width, rank)
    return out


def vision_tower(r, hidden=64, patch=14, image=28, layers=2):
    out = {"embeddings.class_embedding": r(hidden), "embeddings.patch_embedding.weight": r(hidden, 3, patch, patch)}
    out["embeddings.position_embedding.weight"] = r((image // patch) ** 2 + 1, hidden)
    out |= {**r.norm("pre_layrnorm", hidden), **r.norm("post_layernorm", hidden)}
    return under("vision_model", out | tower_layers(r, hidden, layers))


def tower_layers(r, hidden, layers):
    out = {}
    for n in range(layers):
        layer = {**r.norm("layer_norm1", hidden), **r.norm("layer_norm2", hidden)}
        layer |= {**r.linear("mlp.fc1", 2 * hidden, hidden), **r.linear("mlp.fc2", hidden, 2 * hidden)}
        for which in "qkv":
            layer |= r.linear(f"self_attn.{which}_proj", hidden, hidden)
        out |= under(f"encoder.layers.{n}", layer | r.linear("self_attn.out_proj", hidden, hidden))
    return out


def fuse(r, width):
    out = {**r.norm("layer_norm", width)}
    for name, takes in (("mlp1", 2 * width), ("mlp2", width)):
        out |= {**r.norm(f"{name}.layernorm", takes), **r.linear(f"{name}.fc1", width, takes)}
        out |= r.linear(f"{name}.fc2", width, width)
    return under("fuse_module", out)


def eva(r, width, side=336, patch=112, blocks=21, head=32, pooled=768):
    """EVA02-CLIP-L's vision half, whose hidden states PuLID takes before blocks 4, 8, 12, 16 and 20."""
    count = (side // patch) ** 2
    angles = r(count, head)
    out = {"rope.freqs_cos": angles.cos(), "rope.freqs_sin": angles.sin()}
    out |= {"cls_token": r(1, 1, width), "pos_embed": r(1, count + 1, width)}
    out |= {"patch_embed.proj.weight": r(width, 3, patch, patch) / patch, "patch_embed.proj.bias": r(width)}
    for n in range(blocks):
        attn = {
            "q_bias": r(width),
            "v_bias": r(width),
            **r.norm("inner_attn_ln", width),
            **r.linear("proj", width, width),
        }
        for which in "qkv":
            attn |= r.linear(f"{which}_proj", width, width, False)
        mlp = {**r.linear("w1", 2 * width, width), **r.linear("w2", 2 * width, width), **r.norm("ffn_ln", 2 * width)}
        mlp |= r.linear("w3", width, 2 * width)
        block = {**r.norm("norm1", width), **r.norm("norm2", width), **under("attn", attn), **under("mlp", mlp)}
        out |= under(f"blocks.{n}", block)
    return under("visual", {**out, **r.norm("norm", width), **r.linear("head", pooled, width)})


def make(name, widths=None, context=None, vector=24, seen=1024, seed=0, vit=64):
    """The nested dictionary of a file of the format ``name``."""
    r = Random(seed)
    xl = name in ("instantid", "portrait-unnorm", "pulid", "pulid-v1.1", "photomaker", "photomaker-v2", "sdxl-faceid")
    widths = widths or (SDXL if xl else SD15)
    context = context or (128 if xl else 64)
    attention = keys(r, widths, context)
    if name in ("faceid", "sdxl-faceid"):
        return {"image_proj": mlp(r, vector, context, 4), "ip_adapter": attention | low_rank(r, widths, context)}
    if name == "faceid-portrait":
        return {"image_proj": mlp(r, vector, context, 16), "ip_adapter": attention}
    if name in ("faceid-plus", "faceid-plus-v2", "kolors-faceid-plus"):
        # Kolors' tokens are as wide as its text before the model's entrance.
        wide = context * 3 // 2 if name.startswith("kolors") else context
        inner = {**mlp(r, vector, wide, 4), **under("perceiver_resampler", perceiver(r, wide, seen, wide))}
        changes = {} if name.startswith("kolors") else low_rank(r, widths, context)
        return {"image_proj": inner, "ip_adapter": attention | changes}
    if name in ("instantid", "portrait-unnorm"):
        return {"image_proj": resampler(r, vector, context), "ip_adapter": attention}
    if name == "plus-face":
        return {"image_proj": resampler(r, seen, context), "ip_adapter": attention}
    if name == "full-face":
        full = {**r.linear("proj.0", seen, seen), **r.linear("proj.2", context, seen), **r.norm("proj.3", context)}
        return {"image_proj": full, "ip_adapter": attention}
    if name == "pulid":
        inner = ladder(r, "body", vector + 768, 32, 5 * context)
        for n in range(5):
            inner |= ladder(r, f"mapping_{n}", vit, vit, context) | ladder(r, f"mapping_patch_{n}", vit, vit, context)
        return {"id_adapter": inner, "id_adapter_attn_layers": keys(r, widths, context, ("id_to_k", "id_to_v"))}
    if name == "pulid-v1.1":
        dim = 48
        inner = {"latents": r(1, 8, dim), "proj_out": r(dim, context)}
        inner |= ladder(r, "id_embedding_mapping", vector + 768, vit, 5 * dim)
        for n in range(5):
            inner |= ladder(r, f"mapping_{n}", vit, vit, dim) | perceiver_layer(r, f"layers.{n}", dim)
        return {"id_adapter": inner, "id_adapter_attn_layers": keys(r, widths, context, ("id_to_k", "id_to_v"))}
    if name in ("photomaker", "photomaker-v2"):
        hidden = 64
        encoder = vision_tower(r, hidden, 56, 224) | fuse(r, context)
        encoder |= r.linear("visual_projection", context // 2, hidden, False)
        encoder |= r.linear("visual_projection_2", context - context // 2, hidden, False)
        if name == "photomaker-v2":
            first = r.linear("token_proj.0", 4 * vector, vector)
            second = r.linear("token_proj.2", 2 * context, 4 * vector)
            inner = perceiver(r, context, hidden, context, head=128)
            qformer = {**first, **second, **r.norm("token_norm", context), **under("perceiver_resampler", inner)}
            encoder |= under("qformer_perceiver", qformer)
        return {"id_encoder": encoder, "lora_weights": {}}
    if name == "eva":
        return eva(r, vit)
    if name == "arc2face":
        hidden = context
        text = {"embeddings.token_embedding.weight": r(49408, hidden)}
        text |= {"embeddings.position_embedding.weight": r(77, hidden), **r.norm("final_layer_norm", hidden)}
        return under("text_model", text | tower_layers(r, hidden, 2))
    if name == "consistentid":
        file = make("faceid-plus", widths, context, vector, seen, seed)
        facial = under("visual_projection", resampler(r, seen, context, 1)) | fuse(r, context)
        return {"FacialEncoder": facial, "image_proj": file["image_proj"], "adapter_modules": file["ip_adapter"]}
    raise ValueError(name)


def write(path, file, half=True):
    """Put a file's dictionary on disk: nested as a torch file, or flat as safetensors, by the ending of ``path``."""

    def cast(value):
        return {k: cast(v) if isinstance(v, dict) else (v.half() if half else v).contiguous() for k, v in value.items()}

    file = cast(file)
    if path.suffix == ".safetensors":
        flat = {}
        for group, inner in file.items():
            flat |= under(group, inner) if isinstance(inner, dict) else {group: inner}
        save_file(flat, path)
    else:
        torch.save(file, path)
    return path
