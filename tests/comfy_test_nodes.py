"""Nodes that read and write tensors, for tests that run one workflow in ComfyUI and in the engine and compare.

The file is put into ComfyUI's ``custom_nodes`` as it is, so it imports nothing of ours.
"""

from types import SimpleNamespace

import torch
from safetensors.torch import load_file, save_file


class _Node:
    CATEGORY = "test"
    FUNCTION = "go"
    RETURN_TYPES = ()
    WIRES = {}

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"path": ("STRING", {"default": ""}), **{k: (v,) for k, v in cls.WIRES.items()}}}

    @classmethod
    def IS_CHANGED(cls, **_):
        return float("nan")


class TestReadLatent(_Node):
    RETURN_TYPES = ("LATENT",)

    def go(self, path):
        tensors = load_file(path)
        latent = {"samples": tensors["samples"]}
        if "noise_mask" in tensors:
            latent["noise_mask"] = tensors["noise_mask"]
        if "batch_index" in tensors:
            latent["batch_index"] = tensors["batch_index"].tolist()
        return (latent,)


class TestReadImage(_Node):
    RETURN_TYPES = ("IMAGE", "MASK")

    def go(self, path):
        image = load_file(path)["image"]
        return (image, image[..., 0])


class TestReadConditioning(_Node):
    RETURN_TYPES = ("CONDITIONING",)

    def go(self, path):
        tensors = load_file(path)
        data = {name: tensor for name, tensor in tensors.items() if name != "text"}
        sizes = data.pop("sizes", None)
        if sizes is not None:
            names = ("width", "height", "crop_w", "crop_h", "target_width", "target_height")
            data.update(zip(names, sizes.tolist(), strict=True))
        return ([[tensors["text"], data]],)


class TestTextEncoders(_Node):
    """Two text encoders that are smaller than SDXL's, from a folder; only inside ComfyUI."""

    RETURN_TYPES = ("CLIP",)

    def go(self, path):
        import comfy.sd
        import comfy.sdxl_clip

        tensors = [load_file(f"{path}/{name}.safetensors") for name in "lg"]
        sizes = {}
        for name, each in zip("lg", tensors, strict=True):
            inner, width = each["text_model.encoder.layers.0.mlp.fc1.weight"].shape
            layers = sum(key.endswith("mlp.fc1.weight") for key in each)
            sizes[f"clip_{name}_model_config"] = {
                "hidden_size": width,
                "intermediate_size": inner,
                "num_attention_heads": width // 64,
                "num_hidden_layers": layers,
            }
        kind = SimpleNamespace(clip=comfy.sdxl_clip.SDXLClipModel, tokenizer=comfy.sdxl_clip.SDXLTokenizer, params={})
        clip = comfy.sd.CLIP(kind, model_options=sizes)
        for each in tensors:
            clip.load_sd(each)
        return (clip,)


class _Write(_Node):
    OUTPUT_NODE = True

    def save(self, path, **tensors):
        save_file({name: t.detach().float().contiguous().clone() for name, t in tensors.items()}, path)
        return {"ui": {"text": [path]}}


class TestWriteSchedules(_Write):
    """All sigmas of all schedules, and the timesteps that the network is told at each; only inside ComfyUI."""

    WIRES = {"model": "MODEL"}

    def go(self, path, model):
        import comfy.samplers

        sampling = model.get_model_object("model_sampling")

        def sigmas(name, steps):
            return comfy.samplers.calculate_sigmas(sampling, name, steps)

        return self.all(path, sigmas, sampling)

    def all(self, path, sigmas, sampling):
        names = ("simple", "sgm_uniform", "karras", "exponential", "ddim_uniform", "normal")
        found = torch.cat([sigmas(name, steps)[:-1] for name in names for steps in range(1, 61)])
        percents = torch.tensor([sampling.percent_to_sigma(n / 100) for n in range(1, 100)])
        return self.save(path, out=found, timesteps=sampling.timestep(found), percents=percents)


class TestWriteLatent(_Write):
    WIRES = {"samples": "LATENT"}

    def go(self, path, samples):
        return self.save(path, out=samples["samples"])


class TestWriteImage(_Write):
    WIRES = {"image": "IMAGE"}

    def go(self, path, image):
        return self.save(path, out=image)


class TestWriteConditioning(_Write):
    WIRES = {"conditioning": "CONDITIONING"}

    def go(self, path, conditioning):
        pooled = [data["pooled_output"] for _, data in conditioning if data.get("pooled_output") is not None]
        texts = torch.cat([text for text, _ in conditioning], 1)
        return self.save(path, out=texts, **({"pooled": torch.cat(pooled)} if pooled else {}))


class TestWriteVision(_Write):
    WIRES = {"output": "CLIP_VISION_OUTPUT"}

    def go(self, path, output):
        names = ("image_embeds", "last_hidden_state", "penultimate_hidden_states")
        return self.save(path, out=output["image_embeds"], **{name: output[name] for name in names})


NODE_CLASS_MAPPINGS = {
    name: value for name, value in dict(globals()).items() if name.startswith("Test") and isinstance(value, type)
}
