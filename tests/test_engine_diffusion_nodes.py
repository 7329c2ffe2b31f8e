"""The generation nodes in graphs: what they list, find, pass on, report, and how they stop."""

import json
import threading

import pytest
import torch
from likeness.engine.core import CORE, generation
from likeness.engine.diffusion.shelf import SHELF
from likeness.engine.execution import Executor
from likeness.engine.graph import validate
from likeness.engine.host import EngineHost, Interrupted, Running, Silent, running
from likeness.engine.registry import describe
from likeness.face.errors import BadInput, MissingModel
from likeness.nodes import host as nodes_host
from likeness.tests import comfy_test_nodes
from likeness.tests import tiny_diffusion as tiny
from safetensors.torch import load_file


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return tiny.fill_models(tmp_path_factory.mktemp("models"))


@pytest.fixture
def place(models, tmp_path):
    nodes_host.use(EngineHost([tmp_path / "input"], tmp_path / "output", tmp_path / "temp", models))
    yield tmp_path
    nodes_host.use(None)
    SHELF.free()


def call(kind, **inputs):
    node = CORE[kind]
    return getattr(node(), node.FUNCTION)(**inputs)


def node(kind, **inputs):
    return {"class_type": kind, "inputs": inputs}


def portrait(place, **changes):
    """Text to picture: the smallest whole graph."""
    sampler = {"seed": 1, "steps": 2, "cfg": 4.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}
    wires = {"model": ["1", 0], "positive": ["2", 0], "negative": ["3", 0], "latent_image": ["4", 0]}
    return {
        "1": node("CheckpointLoaderSimple", ckpt_name="tiny_sd15.safetensors"),
        "2": node("CLIPTextEncode", text="a (photo:1.2) of a man", clip=["1", 1]),
        "3": node("CLIPTextEncode", text="", clip=["1", 1]),
        "4": node("EmptyLatentImage", width=64, height=64, batch_size=1),
        "5": node("KSampler", **wires, **{**sampler, **changes}),
        "6": node("VAEDecode", samples=["5", 0], vae=["1", 2]),
        "7": node("SaveImage", images=["6", 0], filename_prefix="portrait"),
        "8": node("TestWriteLatent", samples=["5", 0], path=str(place / "out.safetensors")),
    }


KNOWN = {**CORE, **comfy_test_nodes.NODE_CLASS_MAPPINGS}


def run(prompt, listener=None, stop=None):
    verdict = validate(prompt, KNOWN)
    assert verdict.ok and not verdict.node_errors, (verdict.error, verdict.node_errors)
    return Executor(KNOWN).run(prompt, verdict.outputs, listener=listener, stop=stop)


def test_a_prompt_becomes_a_picture(place):
    record = run(portrait(place))
    assert record.status == "success", record.messages[-1]
    (picture,) = record.outputs["7"]["images"]
    assert (place / "output" / picture["filename"]).is_file()
    first = load_file(place / "out.safetensors")["out"]
    assert first.shape == (1, 4, 8, 8)
    run(portrait(place))
    assert torch.equal(load_file(place / "out.safetensors")["out"], first)


def test_a_folder_gives_the_same_picture_as_a_file(place):
    outs = []
    for name in ("tiny_sd15.safetensors", "tiny_folder"):
        prompt = portrait(place)
        prompt["1"]["inputs"]["ckpt_name"] = name
        assert run(prompt).status == "success"
        outs.append(load_file(place / "out.safetensors")["out"])
    torch.testing.assert_close(*outs, rtol=1e-4, atol=1e-3)


def test_everything_at_once_on_sdxl(place):
    prompt = portrait(place, sampler_name="dpmpp_2m", scheduler="karras", denoise=0.7)
    prompt["1"]["inputs"]["ckpt_name"] = "tiny_sdxl.safetensors"
    prompt |= {
        "4": node("VAEEncode", pixels=["20", 0], vae=["21", 0]),
        "20": node("EmptyImage", width=70, height=64, batch_size=1, color=0x336699),
        "21": node("VAELoader", vae_name="tiny.safetensors"),
        "22": node("LoraLoader", **LORA, model=["1", 0], clip=["1", 1]),
        "23": node("CLIPSetLastLayer", clip=["22", 1], stop_at_clip_layer=-2),
        "24": node("ControlNetLoader", control_net_name="tiny_sdxl.safetensors"),
        "25": node(
            "ControlNetApplyAdvanced",
            positive=["2", 0],
            negative=["3", 0],
            control_net=["24", 0],
            image=["20", 0],
            strength=0.5,
            start_percent=0.0,
            end_percent=0.8,
        ),
        "26": node("SolidMask", value=0.5, width=64, height=64),
        "27": node("SetLatentNoiseMask", samples=["4", 0], mask=["26", 0]),
    }
    for number in ("2", "3"):
        prompt[number]["inputs"]["clip"] = ["23", 0]
    prompt["5"]["inputs"] |= {
        "model": ["22", 0],
        "positive": ["25", 0],
        "negative": ["25", 1],
        "latent_image": ["27", 0],
    }
    record = run(prompt)
    assert record.status == "success", record.message("execution_error")
    assert load_file(place / "out.safetensors")["out"].shape == (1, 4, 8, 8)


LORA = {"lora_name": "tiny_sdxl.safetensors", "strength_model": 0.5, "strength_clip": 0.5}


class Watcher(Silent):
    def __init__(self):
        self.steps, self.pictures = [], []

    def event(self, name, data):
        if name == "progress":
            self.steps.append((data["value"], data["max"], data["node"]))

    def preview(self, node_id, picture):
        self.pictures.append((node_id, picture.size, picture.mode))


def test_the_sampler_reports_every_step_with_a_preview(place):
    watcher = Watcher()
    run(portrait(place, steps=3), listener=watcher)
    assert watcher.steps == [(n, 3, "5") for n in (1, 2, 3)]
    assert watcher.pictures == [("5", (8, 8), "RGB")] * 3


def test_the_stop_button_stops_between_two_calls_of_the_network(place):
    stop = threading.Event()

    class Stops(Watcher):
        def preview(self, node_id, picture):
            super().preview(node_id, picture)
            stop.set()

    watcher = Stops()
    record = run(portrait(place, steps=50), listener=watcher, stop=stop)
    assert record.message("execution_interrupted")["node_id"] == "5"
    assert len(watcher.pictures) == 1
    assert run(portrait(place)).status == "success"


def test_encoding_and_decoding_can_be_stopped(place):
    _, _, vae = call("CheckpointLoaderSimple", ckpt_name="tiny_sd15.safetensors")
    (encoder,) = call("CLIPVisionLoader", clip_name="tiny.safetensors")
    stop = threading.Event()
    stop.set()
    with running(Running("p", Silent(), stop), "1"):
        with pytest.raises(Interrupted):
            call("VAEEncode", vae=vae, pixels=torch.zeros(1, 16, 16, 3))
        with pytest.raises(Interrupted):
            call("VAEDecode", vae=vae, samples={"samples": torch.zeros(1, 4, 2, 2)})
        with pytest.raises(Interrupted):
            call("CLIPVisionEncode", clip_vision=encoder, image=torch.zeros(1, 16, 16, 3), crop="center")


# Files


def test_loaders_list_files_and_folders_but_not_what_is_inside(place):
    assert generation.names("checkpoints") == ["tiny_folder", "tiny_sd15.safetensors", "tiny_sdxl.safetensors"]
    assert generation.names("loras") == ["tiny_sd15.safetensors", "tiny_sdxl.safetensors"]
    assert generation.names("diffusion_models") == []


def test_a_file_in_a_folder_with_a_configuration_is_listed_as_well(place, tmp_path):
    here = tmp_path / "models" / "controlnet" / "mine"
    tiny.save(here / "diffusion_pytorch_model.safetensors", tiny.controlnet(SMALL_HEADS))
    (here / "config.json").write_text(json.dumps({**SMALL_HEADS, "_class_name": "ControlNetModel"}))
    nodes_host.use(EngineHost([], tmp_path, tmp_path, tmp_path / "models"))
    listed = generation.names("controlnet")
    assert listed == ["mine", "mine/diffusion_pytorch_model.safetensors"]
    for name in listed:
        (net,) = call("ControlNetLoader", control_net_name=name)
        assert net.net.config["attention_head_dim"] == 4


SMALL_HEADS = tiny.unet_config("sd15", (32, 32), layers=1, text=16, heads=4)


def test_models_lie_where_comfyui_has_them(tmp_path):
    for folder, kind in (("unet", "diffusion_models"), ("clip", "text_encoders"), ("diffusers", "checkpoints")):
        tiny.save(tmp_path / folder / "deep" / "x.safetensors", {"a": torch.zeros(1)})
        nodes_host.use(EngineHost([], tmp_path, tmp_path, tmp_path))
        try:
            assert generation.names(kind) == ["deep/x.safetensors"]
            assert generation.find(kind, "deep/x.safetensors", "x") == tmp_path / folder / "deep" / "x.safetensors"
        finally:
            nodes_host.use(None)


def test_a_missing_file_names_the_folders_and_what_there_is(place, models):
    with pytest.raises(
        MissingModel, match=r"Load LoRA needs the file gone\.safetensors, which is in none of: "
    ) as told:
        call("LoraLoaderModelOnly", model=None, lora_name="gone.safetensors", strength_model=1.0)
    assert str(models / "loras") in str(told.value)
    assert "There are: tiny_sd15.safetensors, tiny_sdxl.safetensors. Copy it there; nothing is downloaded." in str(
        told.value
    )
    with pytest.raises(MissingModel, match="There is none yet"):
        call("UNETLoader", unet_name="gone.safetensors", weight_dtype="default")


@pytest.mark.parametrize("name", ["../x.safetensors", "/etc/passwd", "a/../../x"])
def test_names_stay_inside_of_the_folder(place, name):
    with pytest.raises(BadInput, match="leads out of the folder"):
        call("VAELoader", vae_name=name)


def test_an_unlisted_file_is_refused_before_the_run(place):
    prompt = portrait(place)
    prompt["1"]["inputs"]["ckpt_name"] = "gone.safetensors"
    (error,) = validate(prompt, KNOWN).node_errors["1"]["errors"]
    assert error["type"] == "custom_validation_failed"
    assert "gone.safetensors, which is in none of" in error["details"] and "tiny_sd15.safetensors" in error["details"]


def test_a_checkpoint_without_parts_is_told_where_they_are_needed(place):
    with pytest.raises(BadInput, match="the checkpoint brings no text encoder: wire one into its place"):
        call("CLIPTextEncode", clip=None, text="")
    with pytest.raises(BadInput, match="brings no VAE: wire one into its place with the node Load VAE"):
        call("VAEDecode", vae=None, samples={"samples": torch.zeros(1, 4, 2, 2)})


# Conditioning and latents


def conditioning(**data):
    return [[torch.randn(1, 77, 4), data]]


def test_what_comes_in_stays_as_it_was():
    given = conditioning(pooled_output=torch.ones(1, 2), mine=1)
    before = dict(given[0][1])
    mask = torch.ones(8, 8)
    (masked,) = call("ConditioningSetMask", conditioning=given, mask=mask, strength=0.5, set_cond_area="mask bounds")
    assert masked[0][1]["mask"].shape == (1, 8, 8) and masked[0][1]["set_area_to_bounds"] is True
    assert masked[0][1]["mask_strength"] == 0.5 and masked[0][1]["mine"] == 1
    (area,) = call("ConditioningSetArea", conditioning=given, width=64, height=128, x=8, y=16, strength=2.0)
    assert area[0][1]["area"] == (16, 8, 2, 1)
    (window,) = call("ConditioningSetTimestepRange", conditioning=given, start=0.1, end=0.2)
    assert (window[0][1]["start_percent"], window[0][1]["end_percent"]) == (0.1, 0.2)
    (zero,) = call("ConditioningZeroOut", conditioning=given)
    assert not zero[0][0].any() and not zero[0][1]["pooled_output"].any() and zero[0][1]["mine"] == 1
    assert given[0][1] == before and given[0][0].any()


def test_conditionings_are_joined_in_two_ways():
    a, b = conditioning(), conditioning()
    assert call("ConditioningCombine", conditioning_1=a, conditioning_2=b)[0] == a + b
    (joined,) = call("ConditioningConcat", conditioning_to=a, conditioning_from=b)
    assert torch.equal(joined[0][0], torch.cat([a[0][0], b[0][0]], 1))


def test_empty_latents_are_an_eighth():
    (latent,) = call("EmptyLatentImage", width=72, height=128, batch_size=3)
    assert latent["samples"].shape == (3, 4, 16, 9) and not latent["samples"].any()


@pytest.mark.parametrize(
    ("width", "height", "size"), [(128, 256, (32, 16)), (0, 256, (32, 21)), (128, 0, (24, 16)), (8, 8, (8, 8))]
)
def test_latents_are_scaled(width, height, size):
    latent = {"samples": torch.randn(1, 4, 12, 8), "noise_mask": 1}
    inputs = {"upscale_method": "bilinear", "width": width, "height": height, "crop": "disabled"}
    (out,) = call("LatentUpscale", samples=latent, **inputs)
    assert out["samples"].shape[-2:] == size and out["noise_mask"] == 1
    assert call("LatentUpscale", samples=latent, **{**inputs, "width": 0, "height": 0})[0] is latent


def test_a_noise_mask_has_four_dimensions():
    latent = {"samples": torch.zeros(1, 4, 2, 2)}
    (out,) = call("SetLatentNoiseMask", samples=latent, mask=torch.ones(3, 16, 16))
    assert out["noise_mask"].shape == (3, 1, 16, 16) and "noise_mask" not in latent


# Adapters


def test_strength_zero_passes_on_what_came_in(place):
    model, clip, _ = call("CheckpointLoaderSimple", ckpt_name="tiny_sd15.safetensors")
    inputs = {"lora_name": "tiny_sd15.safetensors", "strength_model": 0.0, "strength_clip": 0.0}
    assert call("LoraLoader", model=model, clip=clip, **inputs) == (model, clip)
    one, two = conditioning(), conditioning()
    none = {"control_net": None, "image": None, "strength": 0.0}
    assert call("ControlNetApply", conditioning=one, **none) == (one,)
    assert call("ControlNetApplyAdvanced", positive=one, negative=two, **none, start_percent=0.0, end_percent=1.0) == (
        one,
        two,
    )


def test_a_lora_of_another_base_is_refused_by_the_node(place):
    model, clip, _ = call("CheckpointLoaderSimple", ckpt_name="tiny_sd15.safetensors")
    weights = tiny.lora(tiny.tiny_sdxl()[0], "sdxl", names=["up_blocks.0.attentions.0.proj_in"])
    tiny.save(nodes_host.host().folders("loras")[0] / "other.safetensors", weights)
    with pytest.raises(BadInput, match=r"other\.safetensors changes nothing of this sd15 model"):
        call("LoraLoader", model=model, clip=clip, lora_name="other.safetensors", strength_model=1.0, strength_clip=1.0)


def test_one_copy_of_a_controlnet_serves_both_conditionings(place):
    (net,) = call("ControlNetLoader", control_net_name="tiny_sd15.safetensors")
    window = {"strength": 0.5, "start_percent": 0.1, "end_percent": 0.9}
    image = torch.rand(1, 32, 32, 3)
    one, two = call(
        "ControlNetApplyAdvanced",
        positive=conditioning(),
        negative=conditioning(),
        control_net=net,
        image=image,
        **window,
    )
    first, second = (side[0][1]["control"] for side in (one, two))
    assert first is second is not net and first.net is net.net
    assert first.timestep_percent_range == (0.1, 0.9) and first.cond_hint_original.shape == (1, 3, 32, 32)
    assert one[0][1]["control_apply_to_uncond"] is False
    three, _ = call(
        "ControlNetApplyAdvanced", positive=one, negative=two, control_net=net, image=image, **window, vae=None
    )
    assert three[0][1]["control"].chain() == [first, three[0][1]["control"]]
    (simple,) = call("ControlNetApply", conditioning=one, control_net=net, image=image, strength=1.0)
    assert simple[0][1]["control_apply_to_uncond"] is True
    assert simple[0][1]["control"].previous_controlnet is first


def test_a_picture_is_seen(place):
    (encoder,) = call("CLIPVisionLoader", clip_name="tiny.safetensors")
    (output,) = call("CLIPVisionEncode", clip_vision=encoder, image=torch.rand(2, 40, 30, 3), crop="none")
    assert output.image_embeds.shape == (2, 32)
    assert output["penultimate_hidden_states"].shape == (2, 5, 64)


@pytest.mark.parametrize("shape", [(1, 4, 64, 3), (64, 64, 3), (1, 64, 64, 1), (0, 64, 64, 3)])
def test_pictures_that_cannot_be_encoded_are_refused(place, shape):
    _, _, vae = call("CheckpointLoaderSimple", ckpt_name="tiny_sd15.safetensors")
    with pytest.raises(BadInput, match="a VAE takes images"):
        call("VAEEncode", vae=vae, pixels=torch.zeros(shape))


def test_latents_of_another_kind_are_refused(place):
    _, _, vae = call("CheckpointLoaderSimple", ckpt_name="tiny_sd15.safetensors")
    with pytest.raises(BadInput, match=r"takes latents \(B, 4, h, w\), got \(1, 16, 2, 2\)"):
        call("VAEDecode", vae=vae, samples={"samples": torch.zeros(1, 16, 2, 2)})


def test_a_surplus_of_pixels_is_cut_off_at_both_ends(place):
    _, _, vae = call("CheckpointLoaderSimple", ckpt_name="tiny_sd15.safetensors")
    image = torch.rand(1, 21, 36, 4)
    (latent,) = call("VAEEncode", vae=vae, pixels=image)
    (inner,) = call("VAEEncode", vae=vae, pixels=image[:, 2:18, 2:34, :3])
    assert torch.equal(latent["samples"], inner["samples"])


# Descriptions


@pytest.mark.parametrize("name", generation.NODES)
def test_every_node_describes_itself(place, name):
    info = describe(name, generation.NODES[name])
    assert info["python_module"] == "nodes"
    assert info["output"] and info["category"]


def test_an_advanced_run_may_be_cut_into_two(place):
    model, clip, _ = call("CheckpointLoaderSimple", ckpt_name="tiny_sd15.safetensors")
    (positive,), (negative,) = (call("CLIPTextEncode", clip=clip, text=text) for text in ("a man", ""))
    inputs = {"model": model, "noise_seed": 2, "steps": 4, "cfg": 3.0, "sampler_name": "heun", "scheduler": "karras"}
    inputs |= {"positive": positive, "negative": negative}
    (latent,) = call("EmptyLatentImage", width=64, height=64)

    def advanced(latent, start, end, noise, leftover):
        settings = {"start_at_step": start, "end_at_step": end, "return_with_leftover_noise": leftover}
        return call("KSamplerAdvanced", **inputs, latent_image=latent, add_noise=noise, **settings)[0]

    whole = advanced(latent, 0, 10000, "enable", "disable")
    half = advanced(latent, 0, 2, "enable", "enable")
    rest = advanced(half, 2, 10000, "disable", "disable")
    torch.testing.assert_close(rest["samples"], whole["samples"], rtol=1e-3, atol=1e-2)
