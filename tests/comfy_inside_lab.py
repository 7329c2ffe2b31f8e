"""The lab's files in ComfyUI's own process: opened by the pack's loaders, used by ComfyUI's nodes.

Called with the folder of ComfyUI, a folder of models and a file for what came out. ``test_comfy_lab`` compares that
with what the engine makes of the same files.
"""

import importlib.util
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COMFY, MODELS, OUT = (Path(argument) for argument in sys.argv[1:4])
PROMPT = sys.argv[4]
sys.argv = [str(COMFY / "main.py"), "--cpu", "--use-pytorch-cross-attention"]
sys.path.insert(0, str(COMFY))

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()
import nodes as comfy_nodes  # noqa: E402
import torch  # noqa: E402
from safetensors.torch import save_file  # noqa: E402


def by_path(name, folder):
    """A package from its folder, as ComfyUI loads packs."""
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


by_path("likeness", ROOT)
from likeness.face.errors import BadModelFile  # noqa: E402
from likeness.nodes.comfy import lab  # noqa: E402

with torch.inference_mode():
    model, clip, vae = lab.checkpoint(MODELS / "checkpoints" / "lab.safetensors")
    control = lab.controlnet(MODELS / "controlnet" / "lab_identitynet.safetensors")
    encode = comfy_nodes.CLIPTextEncode().encode
    positive, negative = encode(clip, PROMPT)[0], encode(clip, "")[0]
    empty = comfy_nodes.EmptyLatentImage().generate(128, 128, 2)[0]
    settings = (7, 6, 1.5, "euler", "sgm_uniform")
    plain = comfy_nodes.KSampler().sample(model, *settings, positive, negative, empty)[0]
    hint = torch.zeros(1, 128, 128, 3)
    hint[:, 40:60, 30:50, 0] = 1.0
    sides = comfy_nodes.ControlNetApplyAdvanced().apply_controlnet(positive, negative, control, hint, 0.8, 0.0, 1.0)
    controlled = comfy_nodes.KSampler().sample(model, *settings, *sides, empty)[0]
    image = comfy_nodes.VAEDecode().decode(vae, plain)[0]
    again = comfy_nodes.VAEEncode().encode(vae, image)[0]
try:
    lab.checkpoint(MODELS / "controlnet" / "lab_identitynet.safetensors")
    refused = ""
except BadModelFile as error:
    refused = str(error)
out = {
    "text": positive[0][0], "plain": plain["samples"], "controlled": controlled["samples"], "image": image,
    "encoded": again["samples"],
}  # fmt: skip
save_file({name: tensor.float().contiguous().cpu() for name, tensor in out.items()}, OUT)
print(json.dumps({"refused": refused, "channels": vae.latent_channels}))
