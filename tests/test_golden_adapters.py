"""Adapters against their authors' code: projectors and encoders through the real loader.

The U-Nets are in ``test_golden_unet.py`` (diffusers) and, in ComfyUI's own classes, in ``test_comfy_adapters.py``;
``test_golden.py`` runs all of it on another directory.
"""

import pytest
import torch
from likeness.face.adapters import AUTHORS, Choices, Evidence, arc2face, consistentid, load, photomaker
from likeness.face.adapters._checkpoint import read
from likeness.face.adapters._clip import vision
from likeness.face.adapters._eva import eva
from likeness.face.adapters._net import Net
from likeness.tests.golden_data import fixture

FORMATS = {
    "faceid_mlp": "faceid",
    "faceid_sdxl_mlp": "faceid",
    "faceid_portrait": "faceid-portrait",
    "faceid_plus_v1": "faceid-plus",
    "faceid_plus_v2": "faceid-plus-v2",
    "portrait_unnorm": "portrait-unnorm",
    "instantid_resampler": "instantid",
    "plus_face_resampler": "plus-face",
    "pulid_v1_idencoder": "pulid",
    "pulid_v1_1_idformer": "pulid-v1.1",
}
"""Fixtures whose projector makes tokens, and what they are called here."""


def adapter(name):
    return load(fixture(name).checkpoint, FORMATS[name])


def projected(name, evidence, **choices):
    return adapter(name).project(evidence, Choices(**choices))


def rows(make, count):
    """``make(row)`` for each row, one person each, stacked."""
    return torch.cat([make(n) for n in range(count)])


@pytest.mark.parametrize("name", ["faceid_mlp", "faceid_sdxl_mlp", "faceid_portrait"])
def test_the_mlp_makes_the_authors_tokens(name):
    gold = fixture(name)
    vectors = gold.inputs["id_embeds"]
    gold.close(rows(lambda n: projected(name, Evidence(vectors[n : n + 1]))[0], len(vectors)), "tokens")
    gold.close(projected(name, Evidence(vectors[:1]), recipe=AUTHORS)[1], "uncond_tokens")


def test_portrait_puts_the_tokens_of_several_pictures_side_by_side():
    gold = fixture("faceid_portrait")
    positive, _ = projected("faceid_portrait", Evidence(gold.inputs["multi_face_id_embeds"].flatten(0, -2)))
    theirs = gold.outputs["tokens_concatenated"]
    assert float((positive.reshape(theirs.shape) - theirs).abs().max()) <= gold.tolerance


@pytest.mark.parametrize("name", ["faceid_plus_v1", "faceid_plus_v2"])
def test_plus_lets_the_vector_look_at_clip(name):
    gold = fixture(name)
    vectors, seen, unseen = (gold.inputs[k] for k in ("id_embeds", "clip_embeds", "uncond_clip_embeds"))

    def of(n, **choices):
        return projected(name, Evidence(vectors[n : n + 1], seen[n : n + 1], unseen[:1]), **choices)

    gold.close(rows(lambda n: of(n)[0], len(vectors)), "tokens")
    gold.close(of(0)[1], "uncond_tokens")
    if "tokens_s_scale_0.6" in gold.outputs:
        gold.close(rows(lambda n: of(n, structure=0.6)[0], len(vectors)), "tokens_s_scale_0.6")


@pytest.mark.parametrize("name", ["portrait_unnorm", "instantid_resampler"])
def test_the_resampler_takes_the_raw_vector_as_one_token(name):
    gold = fixture(name)
    vectors = gold.inputs["id_embeds"].flatten(1)
    gold.close(rows(lambda n: projected(name, Evidence(vectors[n : n + 1]))[0], len(vectors)), "tokens")
    gold.close(projected(name, Evidence(vectors[:1]))[1], "uncond_tokens")


def test_plus_face_resamples_clip():
    gold = fixture("plus_face_resampler")
    seen, unseen = gold.inputs["clip_embeds"], gold.inputs["uncond_clip_embeds"]
    none = torch.zeros(1, 0)

    def of(n):
        return projected("plus_face_resampler", Evidence(none, seen[n : n + 1], unseen[:1]))

    gold.close(rows(lambda n: of(n)[0], len(seen)), "tokens")
    gold.close(of(0)[1], "uncond_tokens")


@pytest.mark.parametrize("name", ["pulid_v1_idencoder", "pulid_v1_1_idformer"])
def test_pulid_joins_the_vector_with_what_eva_sees(name):
    gold = fixture(name)
    known, layers = gold.inputs["id_cond"], gold.numbered("vit_hidden")
    known = known.flatten(1)
    split = gold.config["id_dim"]

    def evidence(rows):
        pooled = known[rows, split:]
        return Evidence(known[rows, :split], pooled[:, None], None, tuple(layer[rows] for layer in layers))

    def of(n):
        return projected(name, evidence(slice(n, n + 1)))

    gold.close(rows(lambda n: of(n)[0], len(known)), "id_tokens")
    gold.close(of(0)[1].expand_as(gold.outputs["uncond_id_tokens"]), "uncond_id_tokens")
    if "id_tokens_two_pictures" in gold.outputs:
        gold.close(projected(name, evidence(slice(0, 2)))[0], "id_tokens_two_pictures")


def test_the_eva_tower_sees_as_pulids():
    gold = fixture("pulid_eva_tower")
    tensors = read(gold.checkpoint).group("visual") or {
        f"{group}.{name}" if name else group: t
        for group, inner in read(gold.checkpoint).groups.items()
        for name, t in inner.items()
    }
    pooled, hidden = eva(tensors, gold.inputs["pixels"])
    gold.close(pooled, "pooled")
    gold.close(pooled / pooled.norm(dim=-1, keepdim=True), "pooled_unit")
    for n, layer in enumerate(hidden):
        gold.close(layer, f"vit_hidden_{n}")
    assert len(hidden) == len(gold.numbered("vit_hidden", gold.outputs)) == 5


@pytest.mark.parametrize("name", ["photomaker_v1", "photomaker_v2"])
def test_photomaker_fuses_pictures_into_the_word(name):
    gold, x = fixture(name), fixture(name).inputs
    one = load(gold.checkpoint)
    net = Net(one.text.tensors)
    for count in ("one", "two"):
        pixels = x.get(f"pixels_{count}", x.get("pixels"))[0]
        vectors = x.get(f"id_embeds_{count}", x.get("id_embeds", torch.zeros(1, len(pixels), 0)))[0]
        mask = x.get(f"class_mask_{count}", x.get("class_mask"))[0].bool()
        identity = photomaker.tokens(net, pixels, vectors)
        if count == "two":
            gold.close(identity.reshape(gold.outputs["id_tokens_two"].shape), "id_tokens_two")
            last, pooled = vision(net.under("vision_model"), pixels)
            gold.close(last, "clip_last_hidden_state")
            gold.close(pooled, "clip_pooled")
        gold.close(photomaker.merged(net, x["prompt_embeds"], mask, identity.flatten(0, 1)), f"prompt_{count}")


def test_consistentid_fuses_parts_into_words():
    gold, x = fixture("consistentid"), fixture("consistentid").inputs
    one = load(gold.checkpoint)
    assert one.format == "consistentid" and one.low_rank
    net = Net(one.text.tensors)
    regions = x["region_clip_embeds"].flatten(0, -3)
    tokens = consistentid.parts(net, regions)
    gold.close(tokens.reshape(gold.outputs["region_tokens"].shape), "region_tokens")
    valid = x["valid_region_mask"].bool().flatten()
    places = x["facial_token_mask"].bool().flatten()
    gold.close(consistentid.merged(net, x["prompt_embeds"], places, tokens[valid]), "prompt")
    seen = x["clip_embeds"]
    gold.close(one.project(Evidence(x["id_embeds"].reshape(1, -1), seen, seen), Choices())[0], "id_tokens")


def test_arc2face_reads_the_vector_as_a_word():
    gold, x = fixture("arc2face_encoder"), fixture("arc2face_encoder").inputs
    one = load(gold.checkpoint)
    net = Net(one.text.tensors)
    ids, place = x["input_ids"].reshape(1, -1).long(), gold.config["id_token"]
    for n, vector in enumerate(x["face_embeds"]):
        gold.close(arc2face.written(net, ids, vector, place), f"prompt_embeds_face_{n}")
    gold.close(arc2face.written(net, x["negative_ids"].reshape(1, -1).long()), "negative_embeds")


@pytest.mark.parametrize("name", FORMATS)
def test_every_tensor_of_a_projector_is_used(name):
    """The names a format allows are those it reads: nothing is loaded and then forgotten."""
    gold, one = fixture(name), adapter(name)
    tensors = read(gold.checkpoint).group("image_proj")
    used = set()
    watched = _Watched(tensors, used)
    object.__setattr__(one.project, "tensors", watched)
    try:
        _run(name, gold, one)
    finally:
        object.__setattr__(one.project, "tensors", tensors)
    assert used == set(tensors)


class _Watched(dict):
    def __init__(self, tensors, used):
        super().__init__(tensors)
        self.used = used

    def __getitem__(self, name):
        self.used.add(name)
        return super().__getitem__(name)


def _run(name, gold, one):
    get = gold.inputs.get
    vectors = get("id_embeds", get("id_cond"))
    vectors = torch.zeros(1, 0) if vectors is None else vectors[:1].flatten(1)
    layers = tuple(layer[:1] for layer in gold.numbered("vit_hidden"))
    seen = get("clip_embeds")
    unseen = get("uncond_clip_embeds")
    if layers:
        split = gold.config["id_dim"]
        vectors, seen = vectors[:, :split], vectors[:, None, split:]
    evidence = Evidence(vectors, None if seen is None else seen[:1], None if unseen is None else unseen[:1], layers)
    one.project(evidence, Choices())


def test_nets_say_which_tensor_is_missing():
    with pytest.raises(Exception, match=r"the tensor layers\.0\.weight is missing"):
        Net({}).linear(torch.zeros(1, 2), "layers.0")
