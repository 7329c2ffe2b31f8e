"""The lab as it comes with the pack: whole, small, installed without a network, opened like any other model."""

import hashlib
import json
import re
from functools import partial

import numpy as np
import pytest
import torch
from likeness.engine import local
from likeness.engine.core import generation
from likeness.engine.demo import LAB
from likeness.engine.diffusion import load
from likeness.engine.host import EngineHost
from likeness.face import adapters as adapter_files
from likeness.face import analyse, detect, embed, identity, parse, score
from likeness.face import lab as face_lab
from likeness.face.analyse import Look
from likeness.face.cure import judge, masks, words
from likeness.face.errors import BadInput
from likeness.face.fetch import fetch_named
from likeness.face.host import ROOT, StandaloneHost
from likeness.face.models import catalogue, verify
from likeness.lab import adapters, nets, report, studio, world
from likeness.lab.base import LATENT_SCALE, Base
from likeness.lab.export import LIMIT
from likeness.nodes import host as nodes_host
from safetensors.torch import load_file, save_file

WEIGHTS = ROOT / "lab" / "weights"
PROMPT = "a portrait of a person, long red hair, round glasses"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A folder of models with the lab in it, and CLIP's vocabulary if it was fetched, else a tiny one."""
    folder = tmp_path_factory.mktemp("models")
    fetch_named("lab", StandaloneHost(folder))
    return folder


@pytest.fixture(scope="module")
def here(models):
    return StandaloneHost(models)


@pytest.fixture(scope="module")
def opened(models):
    return load.checkpoint(models / "checkpoints" / "lab.safetensors", torch.device("cpu"))


@pytest.fixture
def engine(models):
    host = EngineHost([models], models, models, models)
    nodes_host.use(host)
    yield host
    nodes_host.use(None)


def drawn(count=4, seed=5):
    """People nobody was trained on, what they wear, and their pictures of 128 pixels (N, 128, 128, 3)."""
    who, what = world.people(count, seed, True), world.wishes(count, seed + 1)
    pixels = world.draw(who, what, world.chances(count, seed + 2)).pixels
    return who, what, torch.from_numpy(pixels.repeat(4, 1).repeat(4, 2)).float() / 255


def test_the_catalogue_vouches_for_every_file_that_comes_with_the_pack():
    there = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in WEIGHTS.iterdir()}
    assert there == {name: digest for name, (_, digest) in face_lab.FILES.items()}


def test_all_weights_together_are_small():
    assert sum(file.stat().st_size for file in WEIGHTS.iterdir()) < LIMIT == 16_000_000


def test_the_lab_installs_from_the_pack_itself_and_verifies(here):
    verdicts = verify("lab", here)
    assert len(verdicts) == 8 and {v.state for v in verdicts} == {"installed"}
    assert all(v.path.stat().st_size == v.card.size for v in verdicts)


def test_its_cards_are_no_part_of_the_default_set():
    assert not any(card.default for card in catalogue.select("lab"))


def test_the_checkpoint_tells_what_shapes_cannot(opened):
    model, clip, vae = opened
    assert model.unet.config["norm_num_groups"] == 8 and model.unet.config["attention_head_dim"] == 4
    assert (model.family, model.sampling.prediction) == ("sd15", "v") and model.sampling.sigma_max > 4000
    assert clip.towers["l"].sizes.heads == 1 and clip.towers["l"].vocabulary == 49408
    assert vae.channels == 12 and vae.scale == 8


def test_the_same_model_opens_as_a_folder_in_diffusers_layout(opened, tmp_path):
    model, clip, vae = opened
    for net, name in ((model.unet, "unet"), (vae.net, "vae")):
        net.save_pretrained(tmp_path / name)
    tower, scheduler = clip.towers["l"], {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    (tmp_path / "text_encoder").mkdir()
    save_file(dict(tower.state_dict()), tmp_path / "text_encoder" / "model.safetensors")
    (tmp_path / "text_encoder" / "config.json").write_text(json.dumps({"num_attention_heads": 1}))
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    again, _, other = load.checkpoint(tmp_path, torch.device("cpu"))
    text = torch.randn(1, 77, 64, generator=torch.Generator().manual_seed(0))
    given = [[text, {}]], [[text * 0, {}]], {"samples": torch.zeros(1, 4, 16, 16)}
    one, two = (
        generation.KSampler().sample(m, 1, 2, 1.5, "euler", "sgm_uniform", *given, 1.0)[0] for m in (model, again)
    )
    assert torch.equal(one["samples"], two["samples"])
    assert torch.equal(vae.decode(one["samples"]), other.decode(two["samples"]))


def test_the_autoencoder_gives_a_portrait_back(opened):
    _, _, pictures = drawn()
    vae = opened[2]
    back = vae.decode(vae.encode(pictures))
    assert float((back - pictures).abs().mean()) < 0.012


@pytest.mark.parametrize("kind", ["faceid", "instantid"])
def test_an_adapter_acts_in_the_engine_as_it_was_trained(kind, models, engine, opened):
    """The training's own attention, and the pack's, make the same of the same noise."""
    model = opened[0]
    base = Base(10)
    base.unet.load_state_dict(model.unet.state_dict())
    module = adapters.KINDS[kind](base, nets.VECTOR)
    own = {n: t.float() for n, t in load_file(WEIGHTS / f"{kind}.safetensors").items()}
    if kind == "instantid":
        control = load.controlnet(models / "controlnet" / "lab_identitynet.safetensors", torch.device("cpu"))
        own |= {f"control.{n}": t for n, t in control.net.state_dict().items()}
    missing = module.load_state_dict(own, strict=False)
    assert not missing.unexpected_keys and all(name.startswith("base.") for name in missing.missing_keys)
    draw = torch.Generator().manual_seed(1)
    noisy, text, vector = (torch.randn(shape, generator=draw) for shape in ((1, 12, 16, 16), (1, 77, 64), (1, 128)))
    points = nets.points(world.people(1, 3))
    with torch.no_grad():
        wanted = module.answer(noisy, torch.tensor([600]), text, vector, adapters.drawings(points))
    # One step of one level, without guidance, tells what the network answered.
    here = studio.Session.__new__(studio.Session)
    here.studio = partial(object)
    here.studio.model, here.studio.adapters = (
        model,
        {kind: adapter_files.load(models / "likeness" / "adapters" / f"lab_{kind}.safetensors", kind)},
    )
    here.studio.controlnet = control if kind == "instantid" else None
    contract = embed.contract("lab", engine)
    here.identity = studio.Identity(contract, (studio.Person("p", vector.numpy(), ()),))
    here.positive, here.negative, here.points = [[text, {}]], [[text, {}]], studio.keypoints(points[0])
    changed, positive, negative = here._with_person(studio.Arm(kind))
    sigma = model.sampling.sigmas[600]
    way = nodes_host.Way(torch.tensor([float(sigma), 0.0]), "euler", 1.0, 0)
    scaled = {"samples": noisy * (sigma**2 + 1) ** 0.5 / LATENT_SCALE}
    out = engine.solve(changed, positive, negative, scaled, way)["samples"] * LATENT_SCALE
    clean = model.sampling.denoised(noisy * (sigma**2 + 1) ** 0.5, wanted, sigma)
    assert float((out - clean).norm() / clean.norm()) < 1e-3


def test_an_adapter_names_the_labs_recogniser_and_takes_no_other(models):
    adapter = adapter_files.load(models / "likeness" / "adapters" / "lab_faceid.safetensors")
    assert adapter.format == "faceid" and adapter.recogniser.model == "lab" and adapter.recogniser.dimension == 128


def test_its_detector_finds_everybody_where_they_are(here):
    who, _, pictures = drawn(6)
    faces = detect.detect(pictures, "lab", host=here)
    assert [len(found) for found in faces] == [1] * 6
    far = np.abs(np.stack([found[0].points for found in faces]) - nets.points(who))
    assert far.mean() < 2.5


def test_its_detector_sees_nobody_in_an_empty_picture(here):
    assert detect.detect(torch.full((1, 128, 128, 3), 0.6), "lab", host=here).count == 0


def test_its_parser_shows_hair_and_glasses(here):
    what = {**world.wishes(1, 6), "glasses": np.array([1]), "hat": np.array([0])}
    made = world.draw(world.people(1, 5, True), what, world.chances(1, 7))
    picture = torch.from_numpy(made.pixels.repeat(4, 1).repeat(4, 2)).float()[0] / 255
    labels = parse.parse(picture, None, "lab", host=here)
    for label, part in (("hair", "hair"), ("glasses", "glasses"), ("background", "background")):
        seen = (labels == parse.LABELS.index(label)).numpy()
        true = (made.parts[0] == world.PARTS.index(part)).repeat(4, 0).repeat(4, 1)
        assert (seen & true).sum() / (seen | true).sum() > 0.6, label


def test_nothing_of_the_lab_is_chosen_by_itself(here):
    assert detect.choices(here)[-1] == "lab" and embed.choices(here)[-2:] == ["lab", "lab-judge"]
    assert parse.choices(here)[-1] == "lab" and "lab" not in parse.automatic(here)
    assert judge.choices(here)[-1] == "lab"
    photograph = identity.Identity(embed.contract("lab", here), ())
    assert face_lab.of_the_lab(photograph.contract.model)


def test_masks_by_its_parser_hold_hair_glasses_and_a_beard(here):
    what = {name: np.array([0]) for name in world.ATTRIBUTES} | {"beard": np.array([1]), "glasses": np.array([1])}
    made = world.draw(world.people(1, 5, True), what, world.chances(1, 7))
    picture = torch.from_numpy(made.pixels.repeat(4, 1).repeat(4, 2)).float() / 255
    wanted = words.split("a portrait of a person, black hair, round glasses, a beard, a cap")
    found = masks.attribute_masks(picture, wanted, parser="lab", source="parser", host=here)
    areas = dict(zip([a.kind for a in found.attributes], found.areas(), strict=True))
    assert areas["hair"] > 3 and areas["glasses"] > 1 and areas["beard"] > 3 and areas["hat"] == 0


def test_its_judge_reads_what_is_there_and_what_is_not(here):
    what = {name: np.array([0]) for name in world.ATTRIBUTES}
    what |= {"hair": np.array([3]), "style": np.array([1]), "glasses": np.array([1])}
    made = world.draw(world.people(1, 5, True), what, world.chances(1, 7))
    picture = torch.from_numpy(made.pixels.repeat(4, 1).repeat(4, 2)).float() / 255
    asked = words.parse_list("long red hair, red hair, curly hair, round glasses, sunglasses, a beanie, calm")
    row = judge.judge_all(picture, asked, judges="lab", host=here)[0]
    told = {verdict.attribute: verdict.present for verdict in row}
    assert told == {
        "long red hair": True, "red hair": True, "curly hair": False, "round glasses": True, "sunglasses": False,
        "a beanie": False, "calm": True,
    }  # fmt: skip


def test_likeness_in_the_lab_is_judged_by_the_other_recogniser(here):
    _, _, pictures = drawn(1)
    faces = analyse.analyse(pictures, Look(embedder="lab"), host=here)
    somebody = identity.identify(pictures, faces, contract=embed.contract("lab", here))
    assert score.choose(somebody, (somebody.contract,), host=here) == "lab-judge"
    one = score.score_images(pictures, somebody, drivers=(somebody.contract,), host=here)
    assert one[0].similarity is not None and one[0].similarity > 0.9


def test_a_photograph_is_refused_with_a_sentence(here):
    with pytest.raises(BadInput, match="look at the lab's pictures"):
        parse.parse(torch.zeros(40, 60, 3), None, "lab", host=here)


def test_the_onnx_files_are_the_networks_that_were_measured():
    figures = nets.accuracies(nets.load(WEIGHTS, "judge"), "judge", 10, 400)
    assert min(figures[name] for name in world.ATTRIBUTES) > 0.95
    assert nets.recognised(nets.load(WEIGHTS, "recogniser"), 128)["first"] > 0.5


def test_people_of_the_report_are_strangers_to_recognisers_and_adapters():
    people = report.cast(report.Part("x", 20, 5, 101, ())).who
    assert world.kept_back(people).all() and not world.kept_back(world.people(500, 3, strangers=False)).any()


@pytest.fixture
def vocabulary(models):
    """CLIP's, without which nothing that was trained understands a word."""
    file = ROOT / "models" / "likeness" / studio.CARD.file
    if not file.is_file():
        pytest.skip("CLIP's vocabulary is not here; fetch it with: likeness models fetch clip-vocabulary")
    (models / "likeness" / studio.CARD.file).write_bytes(file.read_bytes())


@pytest.mark.weights
def test_the_workflow_gives_back_what_the_adapter_suppressed(vocabulary, models, tmp_path):
    """The mission in one picture: it is missing, it is cured, and it is still the person."""
    outcome = local.run(LAB, [], tmp_path, LAB.parent / "photos", listen=False, models=models)
    told = "\n".join(line for shown in outcome.outputs.values() for line in shown.get("text", []))
    assert told.count("missing → present") >= 2 and "stopped: nothing is missing" in told
    likeness = re.findall(r"similarity (\S+) → (\S+)", told)
    assert len(likeness) == 4 and all(float(after) > 0.9 * float(before) for before, after in likeness)


@pytest.mark.weights
def test_a_prompt_is_drawn_as_it_says(vocabulary, models, engine):
    """Three of four pictures show all that was asked for: the figures of 200 prompts are in the report."""
    model, clip, vae = engine.lab_model(models / "checkpoints" / "lab.safetensors")
    positive, negative = (clip.encode_from_tokens_scheduled(clip.tokenize(t)) for t in (PROMPT, ""))
    empty = {"samples": torch.zeros(4, 4, 16, 16)}
    out = generation.KSampler().sample(model, 3, 12, 1.5, "euler", "sgm_uniform", positive, negative, empty, 1.0)[0]
    rows = judge.judge_all(vae.decode(out["samples"]), words.split(PROMPT), judges="lab", host=StandaloneHost(models))
    assert sum(all(verdict.present for verdict in row) for row in rows) >= 3
