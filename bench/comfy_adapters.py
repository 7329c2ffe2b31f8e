"""A sampling step in a real ComfyUI with our adapter and with the most used pack's, same file, same run.

Needs ``COMFYUI_DIR``, ``IPADAPTER_PLUS_DIR`` (a checkout of ComfyUI_IPAdapter_plus) and, where ComfyUI has its own
environment, ``COMFYUI_PYTHON``. A slim SDXL with all 70 layers; positive and negative in one batch; the smallest
latent, where an adapter weighs most. Theirs leaves the middle's ten layers out, as published.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from _measure import interleaved, package, row, skip

WIDTH, TEXT, SIDE, ROUNDS = 320, 2048, 8, 8
SLIM = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": WIDTH,
    "num_res_blocks": [2, 2, 2],
    "channel_mult": (1, 1, 1),
    "transformer_depth": [0, 0, 2, 2, 10, 10],
    "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
    "transformer_depth_middle": 10,
    "context_dim": TEXT,
    "num_head_channels": 64,
    "use_linear_in_transformer": True,
    "use_spatial_transformer": True,
    "num_classes": "sequential",
    "adm_in_channels": 2816,
    "use_checkpoint": False,
    "legacy": False,
    "use_temporal_attention": False,
}
TARGETS = {"one": "<= 1.08", "two, masked": "<= 1.16"}


def main():
    comfy, peer = (os.environ.get(name) for name in ("COMFYUI_DIR", "IPADAPTER_PLUS_DIR"))
    if not comfy or not peer:
        skip("adapter inside ComfyUI, beside IPAdapter_plus", "COMFYUI_DIR and IPADAPTER_PLUS_DIR are not both set")
        return 0
    python = os.environ.get("COMFYUI_PYTHON") or sys.executable
    command = [python, __file__, str(Path(comfy).resolve()), str(Path(peer).resolve())]
    return subprocess.run(command, cwd=comfy, check=False).returncode


def inside(comfy, peer):
    sys.argv = [str(Path(comfy) / "main.py"), "--cpu", "--use-pytorch-cross-attention"]
    sys.path.insert(0, comfy)
    import comfy.options

    comfy.options.enable_args_parsing()
    import comfy.model_base
    import comfy.model_management as memory
    import comfy.model_patcher
    import comfy.supported_models
    import torch

    package()
    from likeness.face import adapters
    from likeness.face.adapters import Choices, Evidence
    from likeness.face.attention import Tokens, apply
    from likeness.nodes.comfy import patching
    from likeness.tests import tiny_adapters as tiny

    sys.path.insert(0, str(Path(peer).parent))
    import importlib.util

    spec = importlib.util.spec_from_file_location(
        "ipadapter_plus", Path(peer) / "__init__.py", submodule_search_locations=[peer]
    )
    sys.modules["ipadapter_plus"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    theirs = sys.modules["ipadapter_plus.IPAdapterPlus"]

    torch.manual_seed(0)
    config = comfy.supported_models.SDXL(dict(SLIM))
    for name in ("num_heads", "num_head_channels"):
        config.unet_config[name] = SLIM.get(name, -1)
    config.set_inference_dtype(torch.float32, None)
    net = comfy.model_base.BaseModel(config, comfy.model_base.ModelType.EPS, device="cpu").eval()
    for parameter in net.diffusion_model.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    plain = comfy.model_patcher.ModelPatcher(net, torch.device("cpu"), torch.device("cpu"))

    r = tiny.Random()
    projector = {"latents": r(1, 16, 1280), **tiny.perceiver(r, 1280, 1280, TEXT, depth=4, heads=20)}
    file = {"image_proj": projector, "ip_adapter": tiny.keys(r, [WIDTH] * 70, TEXT)}
    seen, unseen = torch.randn(2, 257, 1280), torch.zeros(1, 257, 1280)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "plus.safetensors"
        tiny.write(path, file)
        one = adapters.load(path, "plus-face")
    layout, _ = patching.layout_of(plain)
    left = torch.zeros(1, SIDE * 8, SIDE * 8)
    left[..., : SIDE * 4] = 1
    cases = {"one": [(0, None)], "one, masked": [(0, left)], "two": [(0, None), (1, None)]}
    cases["two, masked"] = [(0, left), (1, 1 - left)]

    def ours(people):
        model = plain
        for who, mask in people:
            positive, negative = one.project(Evidence(torch.zeros(1, 0), seen[who, None], unseen), Choices())
            tokens = Tokens(positive, negative, one.keys, one.values)
            model = patching.apply(model, apply(f"p{who}", tokens, layout, strength=0.8, mask=mask))
        return model

    def peers(people):
        model = plain.clone()
        for who, mask in people:
            given = {"weight": 0.8, "pos_embed": seen[who, None], "neg_embed": unseen, "attn_mask": mask}
            model, _ = theirs.ipadapter_execute(model, file, None, **given)
        return model

    x = torch.randn(2, 4, SIDE, SIDE)
    text, vector = torch.randn(2, 77, TEXT), torch.randn(2, 2816)
    sigma = torch.full((2,), 5.0)

    def step(model):
        options = {**model.model_options["transformer_options"], "cond_or_uncond": [1, 0], "uuids": [None, None]}
        options["sigmas"] = sigma
        memory.load_models_gpu([model])
        model.pre_run()

        @torch.inference_mode()
        def go():
            return model.model.apply_model(x, sigma, c_crossattn=text, y=vector, transformer_options=dict(options))

        return go

    sides = {"none": step(plain)}
    for name, people in cases.items():
        sides |= {f"ours {name}": step(ours(people)), f"peer {name}": step(peers(people))}
    with torch.inference_mode():
        taken = interleaved(sides, rounds=ROUNDS, warm=1)
    row("adapter in ComfyUI: a step of slim SDXL, none", taken["none"] * 1e3)
    for name in cases:
        mine, other = (taken[f"{side} {name}"] / taken["none"] for side in ("ours", "peer"))
        row(f"adapter in ComfyUI: {name}, over none", mine, "x", peer=other, target=TARGETS.get(name, ""))


if __name__ == "__main__":
    if len(sys.argv) == 3:
        inside(*sys.argv[1:])
    else:
        sys.exit(main())
