"""Attribute Masks as a node: which pictures and words lead to which masks, and what it says where there are none."""

import json
from types import SimpleNamespace

import pytest
import torch
from likeness.engine.diffusion import clip
from likeness.engine.diffusion.text import CLIP
from likeness.face.cure.masks import from_maps
from likeness.face.errors import BadImage, BadInput
from likeness.face.types import Faces
from likeness.face.vocabulary import CARD
from likeness.nodes import host as hosts
from likeness.nodes.attributes import AttributeMasks
from likeness.tests import tiny_diffusion, tiny_parser
from likeness.tests.test_cure_masks import blob, face_at, painted
from likeness.tests.tiny_parser import RED

PROMPT = "a photo of a man with red hair, pearl earrings, laughing, no glasses"


@pytest.fixture(autouse=True)
def _host(tmp_path):
    hosts.use(hosts.StandaloneNodeHost(models=tmp_path / "models", work=tmp_path))
    yield
    hosts.use(None)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    file = tiny_diffusion.save_vocabulary(tmp_path_factory.mktemp("models") / CARD.file)
    tower = clip.text_tower(tiny_diffusion.text_encoder(64, 1, tiny_diffusion.VOCABULARY), "tiny", quick=True)
    return CLIP({"l": tower, "g": tower}, [file])


def run(image, prompt=PROMPT, **inputs):
    """mask, per_attribute, preview, details; with the lines the node shows as the fifth."""
    declared = AttributeMasks.INPUT_TYPES()["required"]
    defaults = {name: entry[1]["default"] for name, entry in declared.items() if "default" in entry[1]}
    answer = AttributeMasks().run(image=image, **{**defaults, "prompt": prompt, **inputs})
    mask, each, drawn, details = answer["result"]
    return mask, each, drawn, json.loads(details), "\n".join(answer["ui"].get("text", []))


def test_without_any_source_the_mask_is_black_and_the_node_says_why():
    mask, each, drawn, details, told = run(torch.rand(2, 96, 80, 3))
    assert mask.shape == (2, 96, 80) and not mask.any()
    assert each.shape == (6, 96, 80) and not each.any()
    assert drawn.shape[0] == 2 and drawn.shape[1] > 96
    assert [entry["attribute"] for entry in details["attributes"]] == ["red hair", "pearl earrings", "laughing"]
    assert all(entry["source"] is None and entry["reason"] for entry in details["attributes"])
    assert "the mask is black" in told and "no face parser is there" in told and "no place of its own" in told
    assert "no mesh was looked for" in told and "likeness models fetch" in told


def test_a_parser_and_the_users_list(tmp_path):
    tiny_parser.bisenet(tmp_path / "models", hair=RED)
    image = torch.cat([painted(512, 512, red=(100, 50, 400, 150)), painted(512, 512, red=(0, 0, 10, 10))])
    mask, each, _, details, _ = run(image, attributes="long hair: 0.5, glowing aura", strength=0.5)
    assert torch.equal(mask, image[..., 0] * 0.25)
    assert torch.equal(each, torch.cat([image[..., 0], torch.zeros(2, 512, 512)]))
    hair, aura = details["attributes"]
    assert (hair["attribute"], hair["kind"], hair["source"], hair["strength"]) == (
        "long hair",
        "hair",
        "bisenet_tiny",
        0.5,
    )
    assert hair["area_percent"] == pytest.approx((300 * 100 + 100) / 2 / 512**2 * 100, rel=1e-4)
    assert aura["kind"] == "other" and aura["source"] is None and aura["reason"]


def test_the_tapes_attention_to_the_word_becomes_its_mask(encoder):
    prompt = "a photo of a man, red hat"
    tokens = [token[0] for token in encoder.tokenize(prompt)["l"][0]]
    place = tokens.index(encoder.vocabulary().encode("hat")[0])
    maps = torch.rand(1, 16, 16, 77, generator=torch.Generator().manual_seed(2)) * 0.01
    maps[..., place] = blob(11, 4)[..., 3]
    tape, image = SimpleNamespace(maps=maps), torch.rand(1, 128, 128, 3)
    mask, _, _, details, _ = run(image, prompt, tape=tape, clip=encoder, source="cross-attention")
    assert torch.equal(mask, from_maps(maps, [place], (128, 128))) and mask[0, 36, 92] == 1
    assert details["attributes"][0]["source"] == "cross-attention"
    mask, *_, told = run(image, prompt, tape=tape)
    assert not mask.any() and "connect the CLIP" in told
    for bare in (SimpleNamespace(maps=None), SimpleNamespace()):
        assert "no cross-attention was recorded" in run(image, prompt, tape=bare, clip=encoder)[-1]
    with pytest.raises(BadInput, match="came with 3 pictures"):
        run(torch.rand(3, 64, 64, 3), prompt, tape=SimpleNamespace(maps=maps.repeat(2, 1, 1, 1)), clip=encoder)


def test_the_mesh_of_given_faces_serves_and_expressions_if_asked():
    faces = Faces(((face_at(100, 100, 60),),), ((200, 200),))
    image = torch.zeros(1, 200, 200, 3)
    mask, _, _, details, _ = run(image, "blue eyes, laughing", faces=faces)
    assert [entry["source"] for entry in details["attributes"]] == ["mesh", None]
    more, *_ = run(image, "blue eyes, laughing", faces=faces, expressions=True, grow=2)
    assert mask.any() and more.sum() > mask.sum()


def test_the_users_masks_are_each_attributes_or_join_the_union():
    image, mine = torch.zeros(2, 64, 64, 3), torch.rand(3, 32, 32)
    mask, each, _, details, told = run(image, mask=mine)
    assert [entry["source"] for entry in details["attributes"]] == ["user"] * 3
    assert torch.equal(mask, each.view(3, 2, 64, 64).amax(0)) and "no mask" not in told
    mask, each, _, _, told = run(image, mask=mine[:1])
    assert mask.any() and not each.any() and "the mask is black" not in told
    with pytest.raises(BadImage, match="other proportions"):
        run(image, mask=torch.rand(1, 32, 64))


def test_an_empty_list_means_the_prompt_or_nothing():
    image = torch.zeros(1, 64, 64, 3)
    assert len(run(image)[3]["attributes"]) == 3
    mask, each, _, details, told = run(image, if_empty="nothing")
    assert details["attributes"] == [] and mask.shape == each.shape == (1, 64, 64) and not mask.any()
    assert "the list of attributes is empty" in told
    assert "finds no attribute in the prompt" in run(image, "a photo of a man")[-1]


@pytest.mark.weights
def test_the_default_models_find_the_face_by_themselves(tmp_path):
    from likeness.face.host import STANDALONE
    from likeness.face.models import catalogue, status

    if any(status(card, STANDALONE) != "installed" for card in catalogue.select("default")):
        pytest.skip("the default models are not fetched: likeness models fetch default")
    from likeness.face.image import load_picture
    from likeness.tests.photos import ROOT

    hosts.use(hosts.StandaloneNodeHost(work=tmp_path))
    image, _ = load_picture(ROOT / "workflows" / "photos" / "ardern.jpg")
    image = image[:, ::2, ::2].contiguous()
    _, each, _, details, _ = run(image, "red lips, blue eyes", source="mesh")
    assert [entry["source"] for entry in details["attributes"]] == ["mesh", "mesh"]
    lips, eyes = (torch.nonzero(one).float().mean(0) for one in each)
    assert lips[0] > eyes[0] + 30 and abs(lips[1] - eyes[1]) < 40
