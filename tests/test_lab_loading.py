"""The lab's checkpoint and ControlNet: what comes with the pack, where it goes, and that it is an ordinary model."""

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from likeness.engine.cli import main
from likeness.engine.core import CORE
from likeness.engine.diffusion import load, weights
from likeness.engine.diffusion.preview import preview
from likeness.engine.diffusion.sample import Settings, sample
from likeness.engine.diffusion.shelf import SHELF
from likeness.engine.host import EngineHost
from likeness.face import lab, models
from likeness.face.convert import convert
from likeness.face.errors import BadInput, BadModelFile, FetchFailed, MissingModel
from likeness.face.fetch import fetch, fetch_named
from likeness.face.host import ROOT
from likeness.face.models import catalogue
from likeness.lab import export
from likeness.lab.adapters import CONTROLNET
from likeness.lab.autoencoder import AUTOENCODER
from likeness.lab.base import LATENT_SCALE, UNET, Base, fold, read
from likeness.lab.base import sample as sample_in_training
from likeness.lab.text import words
from likeness.nodes import host as hosts
from likeness.nodes.cure import cured, foundation
from likeness.nodes.host import Sampling
from likeness.nodes.lab import LoadLabControlNet, LoadLabModel
from likeness.tests import tiny_diffusion as tiny
from likeness.tests import tiny_lab
from safetensors.torch import load_file, save_file

CPU = torch.device("cpu")
SETTINGS = Settings(seed=3, steps=3, cfg=1.5, sampler="euler", scheduler="sgm_uniform")


@pytest.fixture(scope="module")
def shipped(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    tiny_lab.write(folder)
    return folder


@pytest.fixture(scope="module")
def here(tmp_path_factory, shipped):
    """The engine with the lab installed, and a checkpoint beside it that tells nothing of itself."""
    place = tmp_path_factory.mktemp("here")
    host = EngineHost([place / "input"], place / "out", place / "temp", place / "models")
    checkpoint, control = tiny_lab.install(host, shipped)
    tiny_lab.save_vocabulary(place / "models" / "likeness" / "bpe_simple_vocab_16e6.txt.gz")
    tiny.save(checkpoint.with_name("published.safetensors"), {"x": torch.zeros(1)})
    yield SimpleNamespace(host=host, checkpoint=checkpoint, controlnet=control, place=place)
    SHELF.free()


@pytest.fixture
def engine(here):
    hosts.use(here.host)
    yield here
    hosts.use(None)


@pytest.fixture(scope="module")
def opened(here):
    return load.checkpoint(here.checkpoint, CPU, [here.place / "models/likeness/bpe_simple_vocab_16e6.txt.gz"])


def retold(path, out, told, change=None):
    """The file with other metadata; ``told`` is a string or what becomes JSON."""
    tensors = load_file(path)
    told = told if isinstance(told, str) else json.dumps(told)
    save_file({**tensors, **(change or {})}, out, {"config": told})
    return out


def answers(unet, seed=0):
    draw = torch.Generator().manual_seed(seed)
    x, text = torch.randn(2, 12, 16, 16, generator=draw), torch.randn(2, 77, 64, generator=draw)
    with torch.no_grad():
        return unet(x, torch.tensor([999, 250]), text).sample


def relative(ours, theirs):
    return float((ours - theirs).norm() / theirs.norm())


# The engine


def test_groups_and_heads_come_from_the_metadata(here, opened, tmp_path):
    from diffusers import UNet2DConditionModel

    model, clip, vae = opened
    theirs = UNet2DConditionModel.from_config(UNET).eval()
    theirs.load_state_dict({name: t.half().float() for name, t in tiny_lab.parts(len(tiny_lab.IDS))[0].items()})
    assert relative(answers(model.unet), answers(theirs)) < 1e-5
    assert (vae.net.config["norm_num_groups"], vae.channels, vae.scale) == (AUTOENCODER["norm_num_groups"], 12, 8)
    assert clip.towers["l"].width == 64
    # By the published conventions the same tensors are another network.
    told = {"vae": AUTOENCODER}
    silent, _, _ = load.checkpoint(retold(here.checkpoint, tmp_path / "silent.safetensors", told), CPU)
    assert silent.unet.config["norm_num_groups"] == 32
    assert relative(answers(silent.unet), answers(theirs)) > 0.05


def test_a_folder_in_diffusers_layout_is_the_same_model(opened, tmp_path):
    unet, vae, text = tiny_lab.parts(len(tiny_lab.IDS))
    whole = torch.zeros(49408, 64)
    name = "text_model.embeddings.token_embedding.weight"
    whole[tiny_lab.IDS] = text[name]
    folder = tiny.save_folder(tmp_path / "lab", (unet, vae, {**text, name: whole}), UNET, AUTOENCODER, torch.float16)
    (folder / "scheduler").mkdir()
    scheduler = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    model, clip, autoencoder = load.checkpoint(folder, CPU)
    pairs = ((model.unet, opened[0].unet), (clip.towers, opened[1].towers), (autoencoder.net, opened[2].net))
    for one, two in pairs:
        one, two = one.state_dict(), two.state_dict()
        assert one.keys() == two.keys() and all(torch.equal(one[n], two[n]) for n in one)
    assert torch.equal(answers(model.unet), answers(opened[0].unet))
    assert torch.equal(model.sampling.sigmas, opened[0].sampling.sigmas)
    assert model.sampling.prediction == opened[0].sampling.prediction == "v"


def test_parts_of_the_file_can_be_loaded_alone(here, opened):
    assert load.diffusion_model(here.checkpoint, CPU).unet.config["norm_num_groups"] == UNET["norm_num_groups"]
    assert load.vae(here.checkpoint, CPU).channels == 12


@pytest.mark.parametrize(
    ("told", "sentence"),
    [
        ('{"unet": {"norm_num', "metadata cannot be read"),
        ([1, 2], "should be a dictionary for"),
        ({"unet": 3}, "should be a dictionary for unet"),
        ({"unet": {**UNET, "norm_num_groups": 7}}, "of which no UNet2DConditionModel can be made"),
        ({"unet": {**UNET, "attention_head_dim": 0}}, "of which no UNet2DConditionModel can be made"),
        ({"unet": {**UNET, "attention_head_dim": "four"}}, "of which no UNet2DConditionModel can be made"),
        ({"unet": {**UNET, "in_channels": 4, "out_channels": 4}}, "put together of two models"),
        ({"unet": UNET, "vae": {**AUTOENCODER, "norm_num_groups": 0}}, "of which no AutoencoderKL can be made"),
        ({"unet": UNET, "vae": AUTOENCODER, "text": {"num_attention_heads": 0}}, "attention heads cannot share"),
        ({"unet": UNET, "vae": AUTOENCODER, "text": {"num_attention_heads": [1]}}, "attention heads cannot share"),
    ],
)
def test_a_damaged_configuration_is_refused_with_a_sentence(here, tmp_path, told, sentence):
    file = retold(here.checkpoint, tmp_path / "damaged.safetensors", told)
    with pytest.raises(BadModelFile, match=sentence):
        load.checkpoint(file, CPU)


def test_a_controlnet_tells_its_configuration_as_well(here):
    control = load.controlnet(here.controlnet, CPU)
    assert control.net.config["norm_num_groups"] == CONTROLNET["norm_num_groups"]
    assert control.net.config["in_channels"] == 12 and control.net.config["attention_head_dim"] == 4


def test_a_damaged_controlnet_is_refused(here, tmp_path):
    file = retold(
        here.controlnet, tmp_path / "damaged.safetensors", {"controlnet": {**CONTROLNET, "norm_num_groups": 9}}
    )
    with pytest.raises(BadModelFile, match="of which no ControlNetModel can be made"):
        load.controlnet(file, CPU)


# Twelve channels


def prompt(seed=0):
    return [[torch.randn(1, 77, 64, generator=torch.Generator().manual_seed(seed)), {}]]


def drawn(model, latent, settings=SETTINGS, positive=None):
    return sample(model, positive or prompt(1), prompt(2), latent, settings)["samples"]


def test_an_empty_latent_fits_itself_to_the_model(opened):
    empty = CORE["EmptyLatentImage"]().generate(128, 128, 2)[0]
    assert tuple(empty["samples"].shape) == (2, 4, 16, 16)
    out = drawn(opened[0], empty)
    assert tuple(out.shape) == (2, 12, 16, 16) and bool(out.isfinite().all())
    assert torch.equal(out, drawn(opened[0], {"samples": torch.zeros(2, 12, 16, 16)}))
    with pytest.raises(BadInput, match=r"takes latents \(B, 12, h, w\)"):
        drawn(opened[0], {"samples": torch.ones(1, 4, 16, 16)})


def test_latents_go_to_pictures_and_back(opened):
    vae, picture = opened[2], torch.rand(2, 128, 128, 3, generator=torch.Generator().manual_seed(1))
    latents = vae.encode(picture)
    assert tuple(latents.shape) == (2, 12, 16, 16)
    assert tuple(vae.decode(latents).shape) == (2, 128, 128, 3)
    with pytest.raises(BadInput, match=r"takes latents \(B, 12, h, w\)"):
        vae.decode(torch.zeros(1, 4, 16, 16))


def test_what_is_being_made_can_be_watched():
    pixels = torch.zeros(1, 32, 32, 3, dtype=torch.uint8)
    pixels[..., 0], pixels[..., 1] = 255, 128
    shown = preview(fold(pixels.numpy()), "sd15")
    assert shown.size == (16, 16)
    assert shown.getpixel((5, 5)) == pytest.approx((255, 128, 0), abs=1)


def test_a_controlnet_for_other_latents_is_refused(opened, tmp_path):
    widths = {"block_out_channels": UNET["block_out_channels"], "cross_attention_dim": 64}
    config = {**CONTROLNET, **widths, "in_channels": 4}
    file = tmp_path / "four.safetensors"
    tensors = tiny.to_ldm("controlnet", tiny.controlnet(config, hints=(8, 8, 16, 32)))
    save_file(tensors, file, {"config": json.dumps({"controlnet": config})})
    control = load.controlnet(file, CPU).set_cond_hint(torch.zeros(1, 3, 128, 128))
    steered = [[prompt(1)[0][0], {"control": control}]]
    with pytest.raises(BadInput, match="latents of 4 channels, the model's have 12"):
        drawn(opened[0], {"samples": torch.zeros(1, 4, 16, 16)}, positive=steered)


@pytest.mark.parametrize("keep", ["keys and values", "latents only", "answers only"])
def test_the_cure_begins_with_an_empty_latent(engine, opened, keep):
    model, empty = opened[0], CORE["EmptyLatentImage"]().generate(128, 128, 1)[0]
    sampling = Sampling(3, 3, 1.5, "euler", "sgm_uniform", 1.0)
    latent, tape, _ = foundation(model, prompt(1), prompt(2), empty, sampling, keep=keep)
    assert tape.plan.shape == (1, 12, 16, 16)
    assert torch.equal(latent["samples"], drawn(model, empty))
    mask = torch.zeros(1, 128, 128)
    mask[:, :64] = 1
    method = "noise blending" if keep == "answers only" else "attention"
    healed, _ = cured(model, tape, mask, method=method)
    out = drawn(healed, empty, positive=prompt(5))
    assert tuple(out.shape) == (1, 12, 16, 16)
    assert not torch.equal(out, drawn(model, empty, positive=prompt(5)))
    untouched, _ = cured(model, tape, mask, strength=0.0)
    assert torch.equal(drawn(untouched, empty, positive=prompt(5)), drawn(model, empty, positive=prompt(5)))


def test_the_installed_checkpoint_draws_what_was_trained(tmp_path):
    """Its words have their places in CLIP's table, and the sampler's steps are those of the gate in training."""
    host = EngineHost([tmp_path], tmp_path, tmp_path, tmp_path / "models")
    file = tmp_path / "models" / "likeness" / "bpe_simple_vocab_16e6.txt.gz"
    tiny_lab.save_vocabulary(file)
    table = words(file)
    ids = [*table.ids, tiny_lab.START, tiny_lab.END]
    tiny_lab.write(tmp_path / "weights", ids)
    (checkpoint, _) = tiny_lab.install(host, tmp_path / "weights")
    trained = Base(table.size)
    unet, _, text = tiny_lab.parts(len(ids))
    trained.unet.load_state_dict({name: t.half().float() for name, t in unet.items()})
    trained.text.load_state_dict({name: t.half().float() for name, t in text.items()})
    said = "a portrait of a person, red hair, round glasses, no hat"
    read_ = [read(trained.text, table.tokens([line])).detach() for line in (said, "")]
    theirs = sample_in_training(trained.eval().unet, *read_, seeds=[3], steps=5) / LATENT_SCALE
    model, clip, _ = load.checkpoint(checkpoint, CPU, [file])
    positive, negative = (CORE["CLIPTextEncode"]().encode(clip, line)[0] for line in (said, ""))
    assert relative(positive[0][0], read_[0]) < 1e-5
    latent = CORE["EmptyLatentImage"]().generate(128, 128, 1)[0]
    ours = sample(model, positive, negative, latent, replace(SETTINGS, steps=5))["samples"]
    assert relative(ours, theirs) < 1e-4


# The nodes


def test_the_loaders_list_what_tells_of_itself(engine):
    listed = LoadLabModel.INPUT_TYPES()["required"]["checkpoint"][0]
    assert listed == ["lab.safetensors"]
    assert LoadLabControlNet.INPUT_TYPES()["required"]["controlnet"][0] == ["lab_identitynet.safetensors"]
    mine = engine.checkpoint.parent / "mine"
    mine.mkdir()
    save_file({"x": torch.zeros(1)}, mine / "other.safetensors", {"config": "{}"})
    try:
        assert LoadLabModel.INPUT_TYPES()["required"]["checkpoint"][0] == ["lab.safetensors", "mine/other.safetensors"]
    finally:
        shutil.rmtree(mine)


def test_the_loaders_open_ordinary_models(engine):
    model, clip, vae = LoadLabModel().run("lab.safetensors")
    (control,) = LoadLabControlNet().run("lab_identitynet.safetensors")
    encode = CORE["CLIPTextEncode"]().encode
    positive, negative = encode(clip, "a photo of a man")[0], encode(clip, "")[0]
    latent = CORE["EmptyLatentImage"]().generate(128, 128, 1)[0]
    plain = CORE["KSampler"]().sample(model, 1, 2, 1.5, "euler", "sgm_uniform", positive, negative, latent)[0]
    picture = CORE["VAEDecode"]().decode(vae, plain)[0]
    assert tuple(picture.shape) == (1, 128, 128, 3)
    apply = CORE["ControlNetApplyAdvanced"]().apply_controlnet
    sides = apply(positive, negative, control, picture, 1.0, 0.0, 1.0)
    steered = CORE["KSampler"]().sample(model, 1, 2, 1.5, "euler", "sgm_uniform", *sides, latent)[0]
    assert relative(steered["samples"], plain["samples"]) > 1e-3


def test_other_files_are_refused(engine):
    with pytest.raises(BadInput, match=r"no published\.safetensors among.*Known: lab\.safetensors.*own loaders"):
        LoadLabModel().run("published.safetensors")
    with pytest.raises(BadInput, match=r"no \.\./controlnet/lab_identitynet\.safetensors among"):
        LoadLabModel().run("../controlnet/lab_identitynet.safetensors")


def test_what_is_not_installed_is_told_how_to_get(tmp_path, monkeypatch):
    tiny_lab.ship(monkeypatch, tmp_path / "pack")
    hosts.use(EngineHost([tmp_path / "input"], tmp_path / "out", tmp_path / "temp", tmp_path / "models"))
    try:
        assert LoadLabModel.INPUT_TYPES()["required"]["checkpoint"][0] == ["lab.safetensors"]
        with pytest.raises(MissingModel, match="models fetch lab"):
            LoadLabModel().run("lab.safetensors")
    finally:
        hosts.use(None)


# What comes with the pack


@pytest.fixture
def bare(tmp_path, monkeypatch):
    """A pack that comes with the files, and an installation without them; the network is not there."""
    tiny_lab.ship(monkeypatch, tmp_path / "pack")
    monkeypatch.setattr("urllib.request.urlopen", None)
    monkeypatch.setattr("subprocess.run", None)
    return EngineHost([tmp_path / "input"], tmp_path / "out", tmp_path / "temp", tmp_path / "models")


def test_fetching_installs_an_ordinary_checkpoint(bare, tmp_path):
    file = fetch(lab.CHECKPOINT, bare)
    assert file == tmp_path / "models" / "checkpoints" / "lab.safetensors"
    made, came = load_file(file), load_file(tmp_path / "pack" / "lab" / "weights" / "base.safetensors")
    table = "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight"
    assert made.keys() == came.keys()
    assert tuple(made[table].shape) == (49408, 64) and len(came[table]) == len(tiny_lab.IDS)
    assert torch.equal(made[table][tiny_lab.IDS], came[table])
    assert not made[table][1].any()
    assert all(torch.equal(made[name], came[name]) for name in made if name != table)
    assert lab.metadata(file) == {"config": export.metadata(tiny_lab.IDS)["config"]}
    assert weights.said(file, "unet")["norm_num_groups"] == UNET["norm_num_groups"]


def test_what_was_fetched_is_verified_and_kept(bare, tmp_path):
    said = []
    for card in (lab.CHECKPOINT, lab.CONTROLNET):
        file = fetch(card, bare, said.append)
        assert models.status(card, bare) == models.examine(card, bare).state == "installed"
        before = file.stat().st_mtime_ns
        fetch(card, bare, said.append)
        assert file.stat().st_mtime_ns == before and "is installed" in said[-1]
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(data)
        assert models.examine(card, bare).state == "damaged"
        assert fetch(card, bare).read_bytes() != bytes(data)
    assert [path.name for path in (tmp_path / "models" / "controlnet").iterdir() if "receipt" not in path.name] == [
        "lab_identitynet.safetensors"
    ]


def test_a_damaged_pack_installs_nothing(bare, tmp_path):
    came = tmp_path / "pack" / "lab" / "weights" / "base.safetensors"
    came.write_bytes(came.read_bytes()[:-1] + b"x")
    with pytest.raises(FetchFailed, match=r"base\.safetensors.*sha256.*Get the pack again"):
        fetch(lab.CHECKPOINT, bare)
    came.unlink()
    with pytest.raises(FetchFailed, match="should come with this pack"):
        fetch(lab.CHECKPOINT, bare)
    assert not (tmp_path / "models" / "checkpoints").exists()


def test_the_command_line_knows_the_lab(bare, tmp_path, monkeypatch, capsys):
    for name, card in list(catalogue._cards.items()):
        if card.group == "lab" and card not in (lab.CHECKPOINT, lab.CONTROLNET):
            monkeypatch.delitem(catalogue._cards, name)
    assert {file.name for file in fetch_named("lab", bare)} == {"lab.safetensors", "lab_identitynet.safetensors"}
    assert [verdict.state for verdict in models.verify("lab", bare)] == ["installed"] * 2
    assert main(["models", "list"]) == 0
    assert "lab-model" in capsys.readouterr().out


def test_a_table_of_tokens_that_does_not_fit_is_refused(shipped):
    data = (shipped / "base.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])

    def with_tokens(tokens):
        told = {**header, "__metadata__": {**header["__metadata__"], "tokens": tokens}}
        head = json.dumps(told).encode()
        return len(head).to_bytes(8, "little") + head + data[8 + length :]

    ids = tiny_lab.IDS
    for wrong in ("[1, 2]", "[", json.dumps([*ids[:-1], 49408]), json.dumps([-1, *ids[1:]]), '{"a": 1}', "null",
                  json.dumps([*ids[:-1], ids[0]])):  # fmt: skip
        with pytest.raises(BadModelFile, match="table of tokens"):
            convert("tokens", [with_tokens(wrong)])
    for wrong in (b"", b"\xff" * 16, data[:100]):
        with pytest.raises(BadModelFile, match="table of tokens"):
            convert("tokens", [wrong])


def test_every_file_that_comes_with_the_pack_is_in_the_catalogue():
    folder = ROOT / lab.WEIGHTS
    there = {file.name for file in folder.iterdir() if file.suffix != ".md"} if folder.is_dir() else set()
    assert there <= lab.CARDS.keys(), "face/lab.py has no card for what lies there"
    assert export.entries(folder) == lab.FILES, "enter this in face/lab.py: FILES"
    assert sum((folder / name).stat().st_size for name in there) <= export.LIMIT


def test_an_entry_tells_what_is_installed(shipped, here):
    entries = export.entries(shipped)
    assert entries.keys() == {"base.safetensors", "controlnet.safetensors"}
    for name, file in (("base.safetensors", here.checkpoint), ("controlnet.safetensors", here.controlnet)):
        assert entries[name] == (file.stat().st_size, models.file_digest(shipped / name))


def test_what_was_never_trained_says_so():
    for card in catalogue.select("lab"):
        if card.source is None:
            assert "make lab" in card.note


def test_a_small_vae_is_exact_on_a_graphics_card_as_well(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda: True)
    card = torch.device("cuda")
    small = sum(tensor.numel() for tensor in tiny_lab.parts(len(tiny_lab.IDS))[1].values())
    assert load.vae_type(card, small) == torch.float32
    assert load.vae_type(card, 84_000_000) == torch.bfloat16
