"""The lab's files in ComfyUI's own process: opened by the pack's loaders, used by ComfyUI's nodes.

Called with the folder of ComfyUI, ComfyUI's base directory with models in it, and a file for what came out.
``test_comfy_lab`` compares that with what the engine makes of the same files.
"""

import importlib.util
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COMFY, BASE, OUT = (Path(argument) for argument in sys.argv[1:4])
sys.argv = [str(COMFY / "main.py"), "--cpu", "--use-pytorch-cross-attention", "--base-directory", str(BASE)]
sys.path.insert(0, str(COMFY))

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()
import comfy.controlnet  # noqa: E402
import comfy.model_patcher  # noqa: E402
import comfy.sd  # noqa: E402
import comfy_extras.nodes_model_advanced as advanced  # noqa: E402
import latent_preview  # noqa: E402
import torch  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

import nodes as comfy_nodes  # noqa: E402


def by_path(name, folder):
    """A package from its folder, as ComfyUI loads packs."""
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


by_path("likeness", ROOT)
from likeness.face.attention import apply  # noqa: E402
from likeness.face.errors import LikenessError  # noqa: E402
from likeness.nodes.comfy import patching  # noqa: E402
from likeness.nodes.lab import LoadLabControlNet, LoadLabModel  # noqa: E402
from likeness.tests import lab_runs  # noqa: E402


def refusal(run):
    try:
        run()
    except LikenessError as error:
        return f"{type(error).__name__}: {error}"
    return ""


def shown(model, strength):
    layout = patching.layout_of(model)[0]
    return patching.apply(model, apply("somebody", lab_runs.tokens(layout), layout, strength=(strength,)))


def preview(model):
    """A pixel of what ComfyUI shows of a latent that is all red."""
    latents = model.model.latent_format
    shown = latent_preview.Latent2RGBPreviewer(latents.latent_rgb_factors, latents.latent_rgb_factors_bias)
    red = torch.tensor([1.0] * 4 + [-1.0] * 8)[None, :, None, None].expand(1, 12, 16, 16)
    return list(shown.decode_latent_to_preview(red).getpixel((3, 3)))


NODES = {**comfy_nodes.NODE_CLASS_MAPPINGS, **advanced.NODE_CLASS_MAPPINGS}
with torch.inference_mode():
    model, clip, vae = LoadLabModel().run("lab.safetensors")
    (control,) = LoadLabControlNet().run("lab_identitynet.safetensors")
    before = {name: t.clone() for name, t in model.model.state_dict().items()}
    out = lab_runs.everything(NODES, model, clip, vae, control, shown)
    unchanged = all(torch.equal(before[name], t) for name, t in model.model.state_dict().items())
told = {
    "classes": [
        type(model) is comfy.model_patcher.ModelPatcher,
        type(clip) is comfy.sd.CLIP,
        type(vae) is comfy.sd.VAE,
        type(control) is comfy.controlnet.ControlNet,
    ],
    "unchanged": unchanged,
    "preview": preview(model),
    "latents": [model.model.latent_format.latent_channels, vae.latent_channels, vae.spacial_compression_encode()],
    "offered": [
        LoadLabModel.INPUT_TYPES()["required"]["checkpoint"][0],
        LoadLabControlNet.INPUT_TYPES()["required"]["controlnet"][0],
    ],
    "refused": {
        name: refusal(lambda name=name: LoadLabModel().run(name))
        for name in lab_runs.REFUSED
    },
    "refused control": refusal(lambda: LoadLabControlNet().run("model.safetensors")),
}  # fmt: skip
save_file({name: tensor.float().contiguous().cpu().clone() for name, tensor in out.items()}, OUT)
print(json.dumps(told))
