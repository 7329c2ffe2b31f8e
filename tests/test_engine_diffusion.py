"""Files of diffusion models: their two names, what their tensors tell, and what is refused with a sentence."""

import gc
import json
import os
import pickle
import subprocess
import sys
import threading

import pytest
import torch
from likeness.engine.diffusion import config, layout, load, weights
from likeness.engine.diffusion.control import residuals
from likeness.engine.diffusion.sampling import discrete
from likeness.engine.diffusion.shelf import SHELF, Shelf
from likeness.face.errors import BadInput, BadModelFile, MissingPackage
from likeness.face.host import ROOT
from likeness.tests import tiny_diffusion as tiny
from safetensors.torch import load_file

CPU = torch.device("cpu")
GOLDEN = (ROOT / "tests" / "golden", ROOT.parent / "shared" / "golden")


def golden(name):
    for place in GOLDEN:
        if (place / name / "meta.json").is_file():
            return place / name
    pytest.skip(f"the golden data {name} is in none of: {', '.join(map(str, GOLDEN))}")


@pytest.fixture(autouse=True)
def empty_shelf():
    yield
    SHELF.free()


# Names

MAPS = [
    ("unet", "unet_sd15", "ldm_key_map.json"),
    ("unet", "unet_sdxl", "ldm_key_map.json"),
    ("controlnet", "unet_sdxl_instantid", "controlnet_ldm_key_map.json"),
]


@pytest.mark.parametrize(("kind", "fixture", "file"), MAPS)
def test_the_names_are_the_published_ones_both_ways(kind, fixture, file):
    known = json.loads((golden(fixture) / file).read_text())
    assert layout.to_diffusers(kind, known) == known
    assert layout.to_ldm(kind, known.values()) == {theirs: ours for ours, theirs in known.items()}


SHAPES = {
    "sd15": tiny.SD15,
    "sdxl": tiny.SDXL,
    "two levels, one layer": tiny.unet_config("sd15", (32, 64), layers=1, text=16),
    "five levels, three layers": tiny.unet_config("sd15", (32, 32, 64, 64, 32), layers=3, text=8),
    "a shallow sdxl": tiny.unet_config("sdxl", (64, 128, 64), layers=1, text=24, pooled=16, depths=(1, 3, 2)),
}


@pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("kind", ["unet", "controlnet"])
def test_there_and_back_gives_every_name_and_tensor(kind, config):
    tensors = {"unet": tiny.unet, "controlnet": tiny.controlnet}[kind](config)
    original = tiny.to_ldm(kind, tensors)
    names = layout.to_diffusers(kind, original)
    assert len(original) == len(tensors)
    assert {names[name]: id(tensor) for name, tensor in original.items()} == {n: id(t) for n, t in tensors.items()}


@pytest.mark.parametrize("settings", [tiny.vae_config(), tiny.vae_config((32, 64, 32), layers=2)])
def test_a_vae_has_two_names_as_well(settings):
    tensors = tiny.vae(settings)
    original = tiny.to_ldm("vae", tensors)
    assert {layout.to_diffusers("vae", original)[name] for name in original} == set(tensors)


def test_names_of_nothing_are_left_out():
    assert layout.to_diffusers("unet", {"input_blocks.0.0.weight", "what.is.this"}) == {
        "input_blocks.0.0.weight": "conv_in.weight"
    }


# Sizes


@pytest.mark.parametrize("known", SHAPES.values(), ids=SHAPES)
def test_sizes_are_deduced_from_the_tensors(known):
    pooled = known.get("projection_class_embeddings_input_dim", 0) - 6 * known.get("addition_time_embed_dim", 0)
    family, found = config.unet(tiny.unet(known), "a file", pooled=pooled)
    assert family == ("sdxl" if "addition_embed_type" in known else "sd15")
    wanted = tiny.ups(known)
    if family == "sd15":
        # diffusers' last level has no attention, so its depth is the middle block's.
        wanted["transformer_layers_per_block"] = [1] * len(wanted["block_out_channels"])
    for key, value in wanted.items():
        if key == "attention_head_dim" and family == "sd15":
            value = 8
        assert found[key] == (tuple(value) if isinstance(value, list) else value), key


def test_a_configuration_has_the_last_word():
    _, found = config.unet(tiny.unet(tiny.SD15), "a file", {"attention_head_dim": 4, "_class_name": "x"})
    assert found["attention_head_dim"] == 4
    assert "_class_name" not in found


def test_published_sdxl_sizes_need_no_configuration():
    tensors = tiny.unet(tiny.unet_config("sdxl", (32, 32, 32), layers=1, text=16, pooled=1280, size_width=256))
    assert config.unet(tensors, "a file")[1]["addition_time_embed_dim"] == 256
    with pytest.raises(BadModelFile, match="Its configuration is needed"):
        config.unet(tiny.unet(SHAPES["a shallow sdxl"]), "a file")


def test_a_controlnet_tells_its_hint_network():
    family, found = config.controlnet(tiny.controlnet(tiny.SD15, hints=(8, 16, 24, 32)), "a file")
    assert family == "sd15"
    assert found["conditioning_embedding_out_channels"] == (8, 16, 24, 32)
    assert found["conditioning_channels"] == 3


# Golden U-Nets


def golden_model(name, tmp_path, form):
    """The fixture's U-Net through the loader, from a folder with its configuration, or from a file with ldm's names."""
    folder = golden(name)
    settings = json.loads((folder / "unet_config.json").read_text())
    if form == "folder":
        (tmp_path / "unet").mkdir()
        (tmp_path / "unet" / "config.json").write_text(json.dumps(settings))
        (tmp_path / "unet" / "diffusion_pytorch_model.safetensors").symlink_to(folder / "unet.safetensors")
        return load.diffusion_model(tmp_path / "unet", CPU)
    names = json.loads((folder / "ldm_key_map.json").read_text())
    tensors = load_file(folder / "unet.safetensors")
    path = tiny.save(tmp_path / "unet.safetensors", {ours: tensors[theirs] for ours, theirs in names.items()})
    # Heads and the width of the size numbers leave no trace in the tensors.
    return load.diffusion_model(path, CPU, known=settings)


def tolerance(folder):
    return float(json.loads((folder / "meta.json").read_text())["tolerance"].split()[1])


@pytest.mark.parametrize("form", ["folder", "ldm"])
@pytest.mark.parametrize("name", ["unet_sd15", "unet_sdxl"])
def test_the_golden_unets_answer_as_published(name, form, tmp_path):
    model = golden_model(name, tmp_path, form)
    folder = golden(name)
    inputs, outputs = (load_file(folder / f"{part}.safetensors") for part in ("inputs", "outputs"))
    added = {"text_embeds": inputs["pooled_text"], "time_ids": inputs["time_ids"]} if "time_ids" in inputs else None
    assert model.family == name.removeprefix("unet_")
    with torch.no_grad():
        ours = model.unet(inputs["sample"], inputs["timesteps"], inputs["text"], added_cond_kwargs=added)[0]
    assert float((ours - outputs["noise_pred"]).abs().max()) <= tolerance(folder)


@pytest.mark.parametrize("form", ["folder", "ldm"])
def test_the_golden_controlnet_steers_as_published(form, tmp_path):
    folder = golden("unet_sdxl_instantid")
    settings = json.loads((folder / "controlnet_config.json").read_text())
    tensors = load_file(folder / "controlnet.safetensors")
    place = tmp_path / "control"
    place.mkdir()
    (place / "config.json").write_text(json.dumps(settings))
    if form == "ldm":
        names = json.loads((folder / "controlnet_ldm_key_map.json").read_text())
        tensors = {ours: tensors[theirs] for ours, theirs in names.items()}
    tiny.save(place / "diffusion_pytorch_model.safetensors", tensors)
    control = load.controlnet(place, CPU)
    inputs, outputs = (load_file(folder / f"{part}.safetensors") for part in ("inputs", "outputs"))
    scale = json.loads((folder / "meta.json").read_text())["config"]["controlnet_scale"]
    ready = control.copy().set_cond_hint(inputs["control_image"], scale)
    added = {"text_embeds": inputs["pooled_text"], "time_ids": inputs["time_ids"]}
    found = residuals(ready, inputs["sample"], inputs["timesteps"], 1.0, outputs["id_tokens"], added, 1, discrete())
    down, middle = found
    allowed = tolerance(folder)
    for number, ours in enumerate(down):
        assert float((ours - outputs[f"control_down_{number}"]).abs().max()) <= allowed
    assert float((middle - outputs["control_mid"]).abs().max()) <= allowed


# Checkpoints


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return tiny.fill_models(tmp_path_factory.mktemp("models"))


@pytest.fixture
def tiny_file(models):
    return models / "checkpoints" / "tiny_sd15.safetensors"


def same(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_file_and_a_folder_of_the_same_weights_are_the_same_model(models, tiny_file):
    one, clip, vae = load.checkpoint(tiny_file, CPU)
    two, other_clip, other_vae = load.checkpoint(models / "checkpoints" / "tiny_folder", CPU)
    assert (one.family, two.family) == ("sd15", "sd15")
    assert one.unet is not two.unet
    assert same(one.unet, two.unet) and same(clip.towers, other_clip.towers) and same(vae.net, other_vae.net)


def test_an_sdxl_file_has_both_text_encoders(models):
    model, clip, vae = load.checkpoint(models / "checkpoints" / "tiny_sdxl.safetensors", CPU)
    assert (model.family, clip.family, list(clip.towers)) == ("sdxl", "sdxl", ["l", "g"])
    assert model.unet.config["addition_time_embed_dim"] == 256
    assert len(model.unet.attn_processors) == 140
    assert vae.scale == 8
    parts = tiny.tiny_sdxl()
    assert torch.equal(
        clip.towers["g"].text_projection.weight.float(), parts[3]["text_projection.weight"].half().float()
    )


def test_sd15_has_its_sixteen_attention_sites(tiny_file):
    model, _, _ = load.checkpoint(tiny_file, CPU)
    assert sum("attn2" in name for name in model.unet.attn_processors) == 16


def test_a_file_is_in_memory_once(tiny_file):
    first, clip, vae = load.checkpoint(tiny_file, CPU)
    second, other_clip, other_vae = load.checkpoint(tiny_file, CPU)
    assert first.unet is second.unet
    assert clip.towers["l"] is other_clip.towers["l"]
    assert vae.net is other_vae.net


def test_a_file_is_found_again_even_if_the_shelf_let_go_of_it(tiny_file):
    first, _, _ = load.checkpoint(tiny_file, CPU)
    assert SHELF.free() > 0
    assert load.checkpoint(tiny_file, CPU)[0].unet is first.unet


def test_a_changed_file_is_read_again(tmp_path):
    path = tiny.save(tmp_path / "vae.safetensors", tiny.vae(tiny.vae_config()))
    before = load.vae(path, CPU)
    tiny.save(path, tiny.vae(tiny.vae_config(), seed=3))
    after = load.vae(path, CPU)
    assert not same(before.net, after.net)


def test_two_who_ask_at_once_load_once():
    shelf, loads, found = Shelf(1 << 30), [], []
    gate = threading.Barrier(2)

    def loading():
        loads.append(1)
        return torch.nn.Linear(2, 2)

    def ask():
        gate.wait()
        found.append(shelf.get("x", loading))

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(loads) == 1 and found[0] is found[1]


def test_the_shelf_lets_go_of_what_was_asked_for_longest_ago():
    shelf, loads = Shelf(3 * 400), []

    def linear(key):
        def loading():
            loads.append(key)
            return torch.nn.Linear(10, 10, bias=False)

        return shelf.get(key, loading)

    for key in "abc":
        linear(key)
    linear("a")
    linear("d")
    gc.collect()
    for key in "acd":
        linear(key)
    assert loads == ["a", "b", "c", "d"]
    linear("b")
    assert loads[-1] == "b"


def test_loading_leaves_ordinary_tensors_even_in_inference_mode(tmp_path):
    path = tiny.save(tmp_path / "vae.safetensors", tiny.vae(tiny.vae_config()))
    with torch.inference_mode():
        vae = load.vae(path, CPU)
    assert not any(p.is_inference() or p.requires_grad for p in vae.net.parameters())


def test_a_pickle_of_tensors_alone_is_read(tmp_path, tiny_file):
    tensors = load_file(tiny_file)
    torch.save({"state_dict": tensors, "epoch": 3}, tmp_path / "tiny.ckpt")
    model, _, _ = load.checkpoint(tmp_path / "tiny.ckpt", CPU)
    assert same(model.unet, load.checkpoint(tiny_file, CPU)[0].unet)


def test_a_checkpoint_may_lack_text_encoder_and_vae(tmp_path):
    unet = tiny.under("model.diffusion_model.", tiny.to_ldm("unet", tiny.tiny_sd15()[0]))
    path = tiny.save(tmp_path / "bare.safetensors", unet)
    model, clip, vae = load.checkpoint(path, CPU)
    assert model.family == "sd15" and clip is None and vae is None
    assert load.diffusion_model(path, CPU).unet is not None


def test_marks_in_a_checkpoint_say_how_it_predicts(tmp_path, models):
    tensors = load_file(models / "checkpoints" / "tiny_sdxl.safetensors")
    path = tiny.save(tmp_path / "v.safetensors", {**tensors, "v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)})
    model, _, _ = load.checkpoint(path, CPU)
    assert model.sampling.prediction == "v"
    assert model.sampling.sigma_max > 4000


def test_a_folder_says_it_in_its_scheduler(tmp_path):
    folder = tiny.save_folder(tmp_path / "v", tiny.tiny_sd15(), tiny.SD15)
    (folder / "scheduler").mkdir()
    settings = {"prediction_type": "v_prediction", "beta_schedule": "scaled_linear", "beta_end": 0.01}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(settings))
    model, _, _ = load.checkpoint(folder, CPU)
    assert model.sampling.prediction == "v"
    assert model.sampling.sigma_max < discrete().sigma_max
    (folder / "scheduler" / "scheduler_config.json").write_text('{"prediction_type": "sample"}')
    with pytest.raises(BadModelFile, match="predicts sample"):
        load.checkpoint(folder, CPU)


def test_a_folder_may_hold_its_weights_in_pieces(tmp_path):
    folder = tiny.save_folder(tmp_path / "pieces", tiny.tiny_sd15(), tiny.SD15)
    whole = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(whole)
    whole.unlink()
    names = sorted(tensors)
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        piece = folder / "unet" / f"diffusion_pytorch_model-0000{number}-of-00002.safetensors"
        tiny.save(piece, {name: tensors[name] for name in part})
    tiny.save(folder / "unet" / "diffusion_pytorch_model.fp16.safetensors", {names[0]: torch.zeros(1)})
    assert same(load.checkpoint(folder, CPU)[0].unet, load.diffusion_model(folder / "unet", CPU).unet)


def test_an_older_vae_has_other_names_for_its_attention(tmp_path):
    tensors = tiny.vae(tiny.vae_config())
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    renamed = {}
    for name, tensor in tensors.items():
        for new, before in old.items():
            name = name.replace(f"attentions.0.{new}.", f"attentions.0.{before}.")
        renamed[name] = tensor
    assert renamed.keys() != tensors.keys()
    path = tiny.save(tmp_path / "old.safetensors", renamed)
    assert same(load.vae(path, CPU).net, load.vae(tiny.save(tmp_path / "new.safetensors", tensors), CPU).net)


def test_text_encoders_alone_are_told_apart(tmp_path):
    _, _, small, large = tiny.tiny_sdxl()
    one = tiny.save(tmp_path / "l.safetensors", small)
    two = tiny.save(tmp_path / "g.safetensors", tiny.open_clip_text(large))
    assert load.text_encoders([one], CPU).family == "sd15"
    for paths in ([one, two], [two, one]):
        clip = load.text_encoders(paths, CPU)
        assert clip.family == "sdxl"
        assert clip.towers["g"].text_projection is not None
    for paths in ([two], [one, one]):
        with pytest.raises(BadInput, match="not the text encoders that belong together"):
            load.text_encoders(paths, CPU)


# Refusals


class Bomb:
    """A pickle that makes a folder when it is read."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return (os.mkdir, (self.folder,))


def refused(path, sentence, opener=load.checkpoint):
    with pytest.raises(BadModelFile, match=sentence) as raised:
        opener(path, CPU)
    assert path.name in str(raised.value)


@pytest.mark.parametrize("cut", [0, 4, 100, 5000, -1])
def test_a_cut_off_file_is_refused(tmp_path, tiny_file, cut):
    path = tmp_path / "cut.safetensors"
    path.write_bytes(tiny_file.read_bytes()[:cut])
    refused(path, "not a whole safetensors file")


@pytest.mark.parametrize("protocol", [0, 2])
def test_a_pickle_with_code_in_it_is_refused_and_not_run(tmp_path, protocol):
    path, content = tmp_path / "bad.ckpt", {"state_dict": {"x": Bomb(tmp_path / "ran")}}
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    with pytest.raises(BadModelFile, match=r"bad\.ckpt"):
        load.checkpoint(path, CPU)
    torch.save(content, path)
    refused(path, "code in it would have to run")
    assert not (tmp_path / "ran").exists()


def test_other_files_are_refused(tmp_path):
    for name, data in (("a.ckpt", b"not torch"), ("b.ckpt", b""), ("c.safetensors", b"PK\3\4 something")):
        (tmp_path / name).write_bytes(data)
        refused(tmp_path / name, "is not a|holds more than tensors")
    (tmp_path / "d.gguf").write_bytes(b"GGUF")
    refused(tmp_path / "d.gguf", "no file of weights")
    torch.save([1, 2], tmp_path / "e.pt")
    refused(tmp_path / "e.pt", "holds a list, expected named tensors")


def without(tensors, *names):
    assert set(names) <= set(tensors)
    return {name: tensor for name, tensor in tensors.items() if name not in names}


def changed(tiny_file, tmp_path, change):
    tensors = load_file(tiny_file)
    return tiny.save(tmp_path / "changed.safetensors", change(tensors))


def test_a_file_that_lacks_tensors_is_refused(tmp_path, tiny_file):
    gone = [f"model.diffusion_model.{name}" for name in ("input_blocks.1.0.in_layers.2.bias", "out.0.weight")]
    refused(changed(tiny_file, tmp_path, lambda t: without(t, *gone)), r"lacks 2 of the 684 tensors .*conv_norm_out")
    for name in (
        "cond_stage_model.transformer.text_model.encoder.layers.2.mlp.fc2.bias",
        "first_stage_model.decoder.conv_in.bias",
    ):
        refused(changed(tiny_file, tmp_path, lambda t, name=name: without(t, name)), "lacks 1 of the")


def test_a_file_with_more_than_its_kind_has_is_refused(tmp_path, tiny_file):
    more = {"model.diffusion_model.motion.weight": torch.zeros(1)}
    refused(changed(tiny_file, tmp_path, lambda t: t | more), "has 1 tensors that its kind does not have")


def test_a_damaged_shape_is_refused(tmp_path, tiny_file):
    name = "model.diffusion_model.middle_block.1.proj_out.weight"
    refused(changed(tiny_file, tmp_path, lambda t: t | {name: torch.zeros(3, 3, 1, 1)}), "where .* belongs to the rest")


def test_parts_of_two_models_are_refused(tmp_path, tiny_file):
    other = tiny.under("cond_stage_model.transformer.", tiny.text_encoder(32, 2, 50))
    kept = lambda t: {n: v for n, v in t.items() if not n.startswith("cond_stage")}  # noqa: E731
    refused(changed(tiny_file, tmp_path, lambda t: kept(t) | other), "put together of two models")


def prefixed(tensors):
    return tiny.under("model.diffusion_model.", tiny.to_ldm("unet", tensors))


def test_other_families_are_refused_by_name(tmp_path):
    sd2 = tiny.unet({**tiny.SD15, "use_linear_projection": True})
    refused(tiny.save(tmp_path / "sd2.safetensors", prefixed(sd2)), "looks like Stable Diffusion 2")
    refiner = tiny.unet({**tiny.SDXL, "cross_attention_dim": 1280})
    refused(tiny.save(tmp_path / "refiner.safetensors", prefixed(refiner)), "looks like the SDXL refiner")
    inpainting = tiny.unet({**tiny.SD15, "in_channels": 9})
    refused(tiny.save(tmp_path / "inpainting.safetensors", prefixed(inpainting)), "inpainting or editing model")
    flux = {"double_blocks.0.img_attn.qkv.weight": torch.zeros(2, 2)}
    refused(tiny.save(tmp_path / "flux.safetensors", flux), "is no checkpoint: nothing in it is called")
    refused(tmp_path / "flux.safetensors", "no U-Net of Stable Diffusion", load.diffusion_model)
    edm = prefixed(tiny.tiny_sdxl()[0]) | {"edm_mean": torch.zeros(1)}
    refused(tiny.save(tmp_path / "edm.safetensors", edm), "EDM")


def test_a_file_in_the_wrong_place_is_refused(tmp_path, models):
    lora, vision = models / "loras" / "tiny_sd15.safetensors", models / "clip_vision" / "tiny.safetensors"
    refused(lora, "is no checkpoint")
    refused(lora, "holds no VAE", load.vae)
    refused(lora, "is no ControlNet", load.controlnet)
    refused(lora, "holds no CLIP image encoder", load.clip_vision)
    with pytest.raises(BadModelFile, match="holds no CLIP text encoder"):
        load.text_encoders([vision], CPU)
    for path in (vision, models / "checkpoints" / "tiny_sd15.safetensors"):
        with pytest.raises(BadModelFile, match="is no LoRA: its tensors are called"):
            load.lora(path)
    control_lora = tiny.save(tmp_path / "cl.safetensors", {"lora_controlnet": torch.zeros(1)})
    refused(control_lora, "is a control LoRA", load.controlnet)
    union = tiny.controlnet(tiny.SDXL) | {"task_embedding": torch.zeros(6, 32)}
    refused(tiny.save(tmp_path / "union.safetensors", union), "does not have", load.controlnet)


def test_a_broken_folder_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "no folder unet")
    folder = tiny.save_folder(tmp_path / "broken", tiny.tiny_sd15(), tiny.SD15)
    (folder / "unet" / "config.json").write_text("{")
    with pytest.raises(BadModelFile, match=r"unet/config\.json is no JSON"):
        load.checkpoint(folder, CPU)
    (folder / "unet" / "config.json").unlink()
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(BadModelFile, match="broken/unet holds no weights"):
        load.checkpoint(folder, CPU)


def test_the_nodes_are_there_before_diffusers_is():
    code = (
        "import importlib.util, sys\n"
        f"spec = importlib.util.spec_from_file_location('likeness', {str(ROOT / '__init__.py')!r},"
        f" submodule_search_locations=[{str(ROOT)!r}])\n"
        "m = importlib.util.module_from_spec(spec); sys.modules['likeness'] = m; spec.loader.exec_module(m)\n"
        "from likeness.engine.core import CORE\n"
        "assert 'KSampler' in CORE\n"
        "heavy = {'diffusers', 'transformers', 'torchvision'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_missing_package_is_told(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    path = tiny.save(tmp_path / "vae.safetensors", tiny.tiny_sd15()[1])
    with pytest.raises(MissingPackage, match=r"the engine needs the package diffusers .* -m pip install diffusers"):
        load.vae(path, CPU)


def test_reading_a_file_reads_only_what_is_used(tmp_path):
    path = tiny.save(tmp_path / "x.safetensors", {"a": torch.ones(4), "b": torch.zeros(2)})
    assert torch.equal(weights.read(path)["a"], torch.ones(4))
    assert weights.some(["c", "a", "b", "d"]) == "a, b, c and 1 more"
