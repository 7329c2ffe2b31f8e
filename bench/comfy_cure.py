"""A complete cure in a real ComfyUI beside one generation and beside the published procedure, in the same run.

Needs ``COMFYUI_DIR`` and, where ComfyUI has its own environment, ``COMFYUI_PYTHON``. The network and the runs are those
of ``comfy_adapters`` and ``cure``: a slim SDXL with all 70 layers, an identity adapter of 16 tokens in all of them.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from _measure import package, row, skip
from comfy_adapters import SLIM, TEXT


def main():
    comfy = os.environ.get("COMFYUI_DIR")
    if not comfy:
        skip("a complete cure inside ComfyUI", "COMFYUI_DIR is not set")
        return 0
    python = os.environ.get("COMFYUI_PYTHON") or sys.executable
    return subprocess.run([python, __file__, str(Path(comfy).resolve())], cwd=comfy, check=False).returncode


def inside(comfy):
    sys.argv = [str(Path(comfy) / "main.py"), "--cpu", "--use-pytorch-cross-attention"]
    sys.path.insert(0, comfy)
    import comfy.options

    comfy.options.enable_args_parsing()
    import comfy.model_base
    import comfy.model_patcher
    import comfy.sample
    import comfy.supported_models
    import torch

    package()
    from cure import LATENT, OMEGA, ROUNDS, STEPS, fastest, hair_of, mask_of
    from likeness.face.attention import Tokens, apply
    from likeness.face.cure import run as cure
    from likeness.face.cure.tape import FULL, HALF, NONE, predicted_bytes
    from likeness.nodes.comfy import curing, patching

    torch.manual_seed(0)
    config = comfy.supported_models.SDXL(dict(SLIM))
    for name in ("num_heads", "num_head_channels"):
        config.unet_config[name] = SLIM.get(name, -1)
    config.set_inference_dtype(torch.float32, None)
    net = comfy.model_base.SDXL(config, device="cpu").eval()
    for parameter in net.diffusion_model.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    plain = comfy.model_patcher.ModelPatcher(net, torch.device("cpu"), torch.device("cpu"))
    layout, layers = patching.layout_of(plain)[0], curing.layers_of(plain)[0]
    chosen = layers.choose("authors")

    weights = [torch.randn(s.width, TEXT) * TEXT**-0.5 for s in layout.sites for _ in range(2)]
    tokens = torch.randn(1, 16, TEXT)
    tokens = Tokens(tokens, tokens, weights[::2], weights[1::2])
    positive, negative = ([[torch.randn(1, 77, TEXT), {"pooled_output": torch.randn(1, 1280)}]] for _ in range(2))

    def person(*strength):
        return patching.apply(plain, apply("somebody", tokens, layout, strength=strength))

    def drawn(model, rows=1):
        latent = torch.zeros(1, 4, LATENT, LATENT)
        noise = comfy.sample.prepare_noise(latent, 3).repeat(rows, 1, 1, 1)
        latent = latent.repeat(rows, 1, 1, 1)
        return comfy.sample.sample(
            model, noise, STEPS, 7.0, "euler", "normal", positive, negative, latent, seed=3, disable_pbar=True
        )

    one, pair, kept = person(0.8), person(0.0, 0.8), {}

    def complete(keep):
        recording = cure.Recording(chosen, layers, keep, words=True)
        drawn(curing.put(plain, recording))
        (tape,) = recording.done
        if keep == NONE:
            tape.source = (plain, positive, negative)
        word = kept["word"] if "word" in kept else hair_of(tape.maps)
        kept.update({keep: tape.nbytes, "word": word, "mask": mask_of(tape.maps, word)})
        return drawn(curing.put(one, cure.Curing(tape, layers, kept["mask"], OMEGA)))

    def published():
        drawn(pair, 2)
        return drawn(curing.put(pair, cure.Paired(layers, chosen, kept["mask"], OMEGA)), 2)[1:]

    out = {keep: complete(keep) for keep in (NONE, HALF, FULL)}
    expected = published()
    for keep in (FULL, NONE):
        assert float((out[keep] - expected).norm() / expected.norm()) < 1e-4
    print(f"cure in ComfyUI: the word's mask has {float(kept['mask'].mean()):.1%} of the picture", flush=True)
    sides = {"plain": lambda: drawn(one), "published": published}
    taken = fastest(sides | {keep: lambda keep=keep: complete(keep) for keep in out}, ROUNDS)
    ratio = {name: seconds / taken["plain"] for name, seconds in taken.items()}
    row(f"cure in ComfyUI: slim SDXL, {STEPS} steps, with a person", taken["plain"] * 1e3)
    row("cure in ComfyUI: a complete cure over it", ratio[FULL], "x", peer=ratio["published"], target="<= 2.2")
    row("  with a tape in 8 bit", ratio[HALF], "x", peer=ratio["published"])
    row("  with latents only, the rest computed again", ratio[NONE], "x", peer=ratio["published"])
    said = predicted_bytes(layers, chosen, (1, 4, LATENT, LATENT), STEPS, torch.float32, FULL)
    row("cure in ComfyUI: bytes of the tape over what was predicted", kept[FULL] / said, "x", target="1.00")


if __name__ == "__main__":
    if len(sys.argv) == 2:
        inside(sys.argv[1])
    else:
        sys.exit(main())
