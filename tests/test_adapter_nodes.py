"""The adapter nodes in the engine: what belongs together draws somebody, what does not is refused before sampling."""

import os
import re

import pytest
import torch
from likeness.engine import diffusers_host
from likeness.engine.core import CORE
from likeness.engine.graph import validate
from likeness.engine.registry import classes
from likeness.face.attention import MARKS
from likeness.face.errors import BadImage, BadInput, ContractMismatch
from likeness.nodes import NODE_CLASS_MAPPINGS as NODES
from likeness.nodes import NODE_DISPLAY_NAME_MAPPINGS as TITLES
from likeness.nodes import host as hosts
from likeness.tests import tiny_adapters, tiny_world

pytestmark = pytest.mark.weights


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    yield tiny_world.build(tmp_path_factory.mktemp("adapter_nodes"))
    hosts.use(None)


def call(kind, **inputs):
    """The node's results by name, with the defaults of everything that is not given."""
    node = {**CORE, **NODES}[kind]
    declared = {**node.INPUT_TYPES()["required"], **node.INPUT_TYPES().get("optional", {})}
    defaults = {n: entry[1]["default"] for n, entry in declared.items() if len(entry) > 1 and "default" in entry[1]}
    answer = getattr(node(), node.FUNCTION)(**{**defaults, **inputs})
    return answer["result"] if isinstance(answer, dict) else answer


class Kit:
    """Everything a graph would have made, made when asked for."""

    def __init__(self):
        self._made = {}

    def __call__(self, what, *of):
        key = (what, *of)
        if key not in self._made:
            self._made[key] = getattr(self, f"_{what}")(*of)
        return self._made[key]

    def _base(self, family):
        name = tiny_world.SD15 if family == "sd15" else tiny_world.SDXL
        return call("CheckpointLoaderSimple", ckpt_name=name)

    def _photo(self, name):
        return call("LoadImage", image=f"{name}.jpg")[0]

    def _who(self, name, embedder="buffalo_l"):
        return call("LikenessEmbedIdentity", image=self("photo", name), embedder=embedder, name=name)[0]

    def _adapter(self, file, fmt="auto"):
        return call("LikenessLoadIdentityAdapter", adapter=file, format=fmt)[0]

    def _text(self, family, prompt="a man"):
        return call("CLIPTextEncode", clip=self("base", family)[1], text=prompt)[0]

    def _both(self, embedder="buffalo_l"):
        people = (self("who", name, embedder) for name in ("ardern", "obama"))
        return call("LikenessCombineIdentities", **{f"identity_{n + 1}": one for n, one in enumerate(people)})[0]

    def _vision(self):
        return call("CLIPVisionLoader", clip_name="CLIP-ViT-H-14-laion2B-s32B-b79K.safetensors")[0]

    def _control(self):
        return call("ControlNetLoader", control_net_name="instantid/diffusion_pytorch_model.safetensors")[0]


@pytest.fixture(scope="module")
def kit(world):
    return Kit()


FACEID, PLUS, INSTANTID = (
    "ip-adapter-faceid_sd15.bin",
    ("ip-adapter-faceid-plusv2_sdxl.bin", "faceid-plus-v2"),
    ("ip-adapter.bin", "instantid"),
)


def applied(kit, family="sd15", adapter=(FACEID,), who=("ardern",), **more):
    given = {"model": kit("base", family)[0], "id_adapter": kit("adapter", *adapter), "identity": kit("who", *who)}
    return call("LikenessApplyIdentityAdapter", **{**given, **more})


def sampled(kit, model, positive=None, negative=None, family="sd15"):
    latent = call("EmptyLatentImage", width=64, height=64)[0]
    text = kit("text", family)
    both = {"positive": positive or text, "negative": negative or kit("text", family, "")}
    return call("KSampler", model=model, latent_image=latent, **SAMPLING, **both)[0]["samples"]


SAMPLING = {"seed": 1, "steps": 2, "cfg": 5.0, "sampler_name": "euler", "scheduler": "normal"}


# Applying


def test_the_model_that_comes_in_stays_as_it_is(kit):
    plain, before = kit("base", "sd15")[0], sampled(kit, kit("base", "sd15")[0])
    changed = applied(kit)[0]
    assert changed is not plain and changed.unet is plain.unet and not plain.attention and not plain.lora
    assert not torch.equal(sampled(kit, changed), before)
    assert torch.equal(sampled(kit, plain), before)


def test_strength_zero_is_the_very_model(kit):
    assert applied(kit, strength=0.0)[0] is kit("base", "sd15")[0]


def test_what_was_not_connected_cannot_come_out(kit):
    _, positive, negative, details = applied(kit)
    assert all("connect it" in side.message for side in (positive, negative)) and "ardern" in details


def test_marks_tell_the_sides_apart_in_any_order(kit):
    """The negative drawn as the sampler's first conditioning still is the negative."""
    text, empty = kit("text", "sd15"), kit("text", "sd15", "")
    model, positive, negative, _ = applied(kit, positive=text, negative=empty)
    assert MARKS in positive[0][1] and MARKS in negative[0][1] and MARKS not in text[0][1]
    marked = sampled(kit, model, positive, negative)
    assert torch.equal(marked, sampled(kit, applied(kit)[0], text, empty))
    turned = sampled(kit, model, negative, positive)
    assert not torch.equal(turned, sampled(kit, applied(kit)[0], empty, text))


def test_every_application_has_a_mark_of_its_own(kit):
    """So that of two people on one model, each prompt shows its own."""
    text, empty = kit("text", "sd15"), kit("text", "sd15", "")
    model, first, negative, _ = applied(kit, positive=text, negative=empty)
    model, second, negative, _ = applied(kit, model=model, who=("obama",), positive=text, negative=negative)
    assert first[0][1][MARKS].keys().isdisjoint(second[0][1][MARKS]) and len(negative[0][1][MARKS]) == 2
    one, other = (sampled(kit, model, positive, negative) for positive in (first, second))
    assert not torch.equal(one, other)


def test_a_side_that_passed_the_node_by_has_its_usual_meaning(kit):
    text, empty = kit("text", "sd15"), kit("text", "sd15", "")
    both = sampled(kit, *applied(kit, positive=text, negative=empty)[:3])
    model, positive, *_ = applied(kit, positive=text)
    assert torch.equal(sampled(kit, model, positive, empty), both)
    model, _, negative, _ = applied(kit, negative=empty)
    assert torch.equal(sampled(kit, model, text, negative), both)


def test_a_prompt_for_an_area_sees_its_part_of_the_mask(kit, monkeypatch):
    """A portrait-shaped area in a square picture: the mask is cut, not squeezed and not refused."""
    half = torch.zeros(1, 64, 64)
    half[..., :32] = 1
    text, empty = kit("text", "sd15"), kit("text", "sd15", "")
    sides = [
        call("ConditioningSetArea", conditioning=text, width=32, height=64, x=x, y=0, strength=1.0)[0] for x in (0, 32)
    ]
    model, positive, negative, _ = applied(kit, mask=half, positive=[*sides[0], *sides[1]], negative=empty)
    seen, original = {}, diffusers_host.prepare

    def noted(*given):
        prepared, areas = original(*given), given[-1]
        rows = prepared.sites[0].mask.expand(-1, len(areas), -1)[0]
        seen.update({area and area[1]: float(row.mean()) for area, row in zip(areas, rows, strict=True)})
        return prepared

    monkeypatch.setattr(diffusers_host, "prepare", noted)
    sampled(kit, model, positive, negative)
    assert seen == {0.0: 1.0, 0.5: 0.0, None: 0.5}


def test_the_low_rank_part_of_the_file_has_a_strength_of_its_own(kit):
    found = [sampled(kit, applied(kit, lora_strength=s)[0]) for s in (0.0, 1.0)]
    assert not torch.equal(*found) and not applied(kit, lora_strength=0.0)[0].lora


def test_a_batch_may_show_one_person_a_picture(kit):
    both = kit("both")
    model = applied(kit, identity=both, people="one a picture")[0]
    latent = call("EmptyLatentImage", width=64, height=64, batch_size=2)[0]
    text = {"positive": kit("text", "sd15"), "negative": kit("text", "sd15", "")}

    def drawn(model):
        return call("KSampler", model=model, latent_image=latent, **SAMPLING, **text)[0]["samples"]

    pair = drawn(model)
    for n, name in enumerate(("ardern", "obama")):
        assert torch.allclose(pair[n], drawn(applied(kit, who=(name,))[0])[n], atol=1e-3)


def test_the_image_encoder_is_asked_only_if_its_answer_is_used(kit, monkeypatch):
    from likeness.engine.diffusion.clip import VisionTower

    asked = []
    forward = VisionTower.forward
    monkeypatch.setattr(VisionTower, "forward", lambda self, x: (asked.append(len(x)), forward(self, x))[1])
    applied(kit, clip_vision=kit("vision"))
    assert not asked
    applied(kit, "sdxl", PLUS, clip_vision=kit("vision"))
    seen = len(asked)
    assert seen
    applied(kit, "sdxl", PLUS, clip_vision=kit("vision"), strength=0.3)
    assert len(asked) == seen


# Refusals, each before sampling, each naming what to use


def refused(words, kind=BadInput):
    return pytest.raises(kind, match=words)


def test_an_adapter_of_another_base_is_refused(kit):
    with refused(r"is made for .+, but the model is .+\. Load a checkpoint of"):
        applied(kit, "sdxl")


def test_an_identity_of_another_pack_is_refused(kit):
    with refused("Choose buffalo_l in Embed Identity", ContractMismatch):
        applied(kit, who=("ardern", "antelopev2"))
    with refused("Choose buffalo_l in Embed Identity", ContractMismatch):
        applied(kit, who=("ardern", "sface"))
    assert applied(kit, who=("ardern", "antelopev2"), any_recogniser=True)


def test_an_adapter_that_looks_at_pictures_asks_for_its_encoder(kit):
    with refused("needs an image encoder .* connect a CLIP vision model"):
        applied(kit, "sdxl", PLUS)


def test_an_identity_without_pictures_is_refused_where_they_are_needed(kit, world):
    call("LikenessSaveIdentity", identity=kit("who", "ardern"), name="bare")
    bare = call("LikenessLoadIdentity", file="bare.safetensors")[0]
    with refused("looks at pictures of the person"):
        applied(kit, "sdxl", PLUS, identity=bare, clip_vision=kit("vision"))
    assert applied(kit, identity=bare)


def test_a_mask_of_other_proportions_is_refused_before_the_first_step(kit, monkeypatch):
    model = applied(kit, mask=torch.ones(1, 64, 32))[0]
    from diffusers import UNet2DConditionModel

    def never(*_, **__):
        raise AssertionError("the network was called")

    monkeypatch.setattr(UNet2DConditionModel, "forward", never)
    with refused("the mask of .* has 32×64 pixels"):
        sampled(kit, model)


def test_what_acts_through_the_prompt_is_sent_there(kit):
    arc2face = kit("adapter", "arc2face/pytorch_model.bin")
    with refused("give it to Identity Prompt"):
        applied(kit, id_adapter=arc2face, identity=kit("who", "ardern", "arc2face"))
    with refused("acts through the prompt"):
        regional(kit, id_adapter=arc2face, identity=kit("both", "arc2face"))
    with refused("use Apply Identity Adapter"):
        call("LikenessIdentityPrompt", id_adapter=kit("adapter", FACEID), identity=kit("who", "ardern"), prompt="a man")


def test_a_file_that_is_not_there_names_the_folders(world):
    prompt = {"1": {"class_type": "LikenessLoadIdentityAdapter", "inputs": {"adapter": "none.bin", "format": "auto"}}}
    prompt["2"] = {"class_type": "PreviewAny", "inputs": {"source": ["1", 1]}}
    verdict = validate(prompt, classes())
    details = verdict.node_errors["1"]["errors"][0]["details"]
    assert "none.bin" in details and str(world / "models" / "likeness" / "adapters") in details


def test_a_pack_that_is_not_there_names_the_folders(world):
    embed = {"image": ["1", 0], "embedder": "buffalo_xl", "combine": "mean", "name": "somebody"}
    prompt = {"1": {"class_type": "LoadImage", "inputs": {"image": "obama.jpg"}}}
    prompt["2"] = {"class_type": "LikenessEmbedIdentity", "inputs": embed}
    prompt["3"] = {"class_type": "PreviewAny", "inputs": {"source": ["2", 1]}}
    verdict = validate(prompt, classes())
    details = verdict.node_errors["2"]["errors"][0]["details"]
    assert "'buffalo_xl'" in details and str(world / "models" / "insightface" / "models") in details


def test_a_truncated_file_is_a_sentence(kit, world):
    folder = world / "models" / "likeness" / "adapters"
    whole = tiny_adapters.write(folder / "cut.safetensors", tiny_adapters.make("faceid"))
    whole.write_bytes(whole.read_bytes()[:-100])
    with pytest.raises(Exception, match="not a whole safetensors file"):
        kit("adapter", "cut.safetensors")


def test_a_replaced_file_is_opened_again(kit, world):
    path = world / "models" / "likeness" / "adapters" / FACEID
    loader, state = NODES["LikenessLoadIdentityAdapter"], path.stat()
    before = loader.IS_CHANGED(FACEID, "auto")
    assert before == loader.IS_CHANGED(FACEID, "auto") != loader.IS_CHANGED(FACEID, "faceid")
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    assert loader.IS_CHANGED(FACEID, "auto") != before
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


def test_the_details_say_what_a_file_brings(kit):
    found = call("LikenessLoadIdentityAdapter", adapter=FACEID, format="auto")
    adapter, details = found
    assert f"changes {len(adapter.low_rank)} weights of the model" in details
    assert "vector: w600k_r50 of buffalo_l" in details


# Every widget has its effect

WIDGETS = {"strength": 0.5, "start": 0.5, "end": 0.5, "weight_type": "ease in", "layer_weights": "0:1"}
WIDGETS |= {"embeds_scaling": "K+V w/ C penalty", "recipe": "nothing"}


@pytest.mark.parametrize("name", WIDGETS)
def test_every_widget_of_apply_has_its_effect(kit, name):
    usual = sampled(kit, applied(kit)[0])
    assert not torch.equal(sampled(kit, applied(kit, **{name: WIDGETS[name]})[0]), usual)


@pytest.mark.parametrize("name", ["strength", "lora_strength", "start", "end", "recipe"])
def test_every_widget_of_regional_has_its_effect(kit, name):
    usual = sampled(kit, regional(kit)[0])
    assert not torch.equal(sampled(kit, regional(kit, **{name: {**WIDGETS, "lora_strength": 0.5}[name]})[0]), usual)


def test_structure_and_mode_have_their_effect(kit):
    given = {"identity": kit("who", "ardern"), "clip_vision": kit("vision")}
    one, other = (applied(kit, "sdxl", PLUS, structure=s, **given)[0].attention[0].tokens for s in (0.0, 1.0))
    assert not torch.equal(one.positive, other.positive)
    pulid = {"adapter": ("pulid_v1.1.safetensors",), "who": ("ardern", "antelopev2")}
    modes = [applied(kit, "sdxl", mode=m, **pulid)[0].attention[0] for m in ("default", "fidelity", "style", "plain")]
    assert modes[3].mode == "plain" != modes[0].mode and (modes[1].mode, modes[1].zeros) != (
        modes[2].mode,
        modes[2].zeros,
    )


def test_a_prompt_has_the_person_from_where_the_user_wants(kit):
    given = {"id_adapter": kit("adapter", "photomaker-v2.bin"), "identity": kit("who", "ardern")}
    given |= {"clip": kit("base", "sdxl")[1], "prompt": "a photo of a man img"}
    for start, begin in ((-1.0, 0.2), (0.5, 0.5)):
        positive, _, details = call("LikenessIdentityPrompt", start=start, **given)
        times = [(entry.get("start_percent", 0.0), entry.get("end_percent", 1.0)) for _, entry in positive]
        assert sorted(times) == [(0.0, begin), (begin, 1.0)] and f"from {begin:g} of the sampling on" in details
    positive, *_ = call("LikenessIdentityPrompt", start=0.0, **given)
    assert [set(entry) & {"start_percent", "end_percent"} for _, entry in positive] == [set()]


# Regions


def regional(kit, **more):
    half = torch.zeros(1, 64, 64)
    half[..., :32] = 1
    given = {
        "model": kit("base", "sd15")[0],
        "id_adapter": kit("adapter", FACEID),
        "identity": kit("both"),
        "mask_1": half,
        "mask_2": 1 - half,
    }
    return call("LikenessRegionalIdentities", **{**given, **more})


def test_masks_may_come_one_by_one_or_as_a_batch(kit):
    half = torch.zeros(1, 64, 64)
    half[..., :32] = 1
    one_by_one = sampled(kit, regional(kit)[0])
    batch = sampled(kit, regional(kit, mask_1=torch.cat([half, 1 - half]), mask_2=None)[0])
    assert torch.equal(one_by_one, batch)
    with refused(r"holds 2 people \(ardern, obama\), but 1 masks"):
        regional(kit, mask_2=None)
    with refused("must have one size; these have 32×32, 64×64"):
        regional(kit, mask_2=torch.ones(1, 32, 32))
    for mask in (torch.ones(64), torch.ones(1, 1, 64, 64), torch.ones(0, 64, 64), torch.full((1, 64, 64), torch.nan)):
        with refused(r"a mask must have the shape \(pictures, height, width\)"):
            regional(kit, mask_2=mask)


def test_where_masks_overlap_strength_is_shared_or_added(kit):
    everywhere = torch.ones(2, 64, 64)
    same = call("LikenessCombineIdentities", identity_1=kit("who", "ardern"), identity_2=kit("who", "ardern"))[0]
    once = sampled(kit, applied(kit)[0])
    shared = sampled(kit, regional(kit, identity=same, mask_1=everywhere, mask_2=None)[0])
    added = sampled(kit, regional(kit, identity=same, mask_1=everywhere, mask_2=None, overlap="add")[0])
    assert torch.allclose(shared, once, atol=1e-3) and not torch.allclose(added, once, atol=1e-2)


# IdentityNet


def controlled(kit, **more):
    given = {
        "positive": kit("text", "sdxl"),
        "negative": kit("text", "sdxl", ""),
        "control_net": kit("control"),
        "id_adapter": kit("adapter", *INSTANTID),
        "identity": kit("who", "ardern", "antelopev2"),
        "image": torch.rand(1, 64, 64, 3),
    }
    return call("LikenessIdentityControlNet", **{**given, **more})


def test_identitynet_reads_the_identity_where_others_read_the_text(kit):
    positive, negative = controlled(kit)
    shown, hidden = (side[0][1]["cross_attn_controlnet"] for side in (positive, negative))
    assert shown.shape == hidden.shape == (1, 16, 128) and not torch.equal(shown, hidden)
    model = kit("base", "sdxl")[0]
    plain = sampled(kit, model, family="sdxl")
    other = controlled(kit, identity=kit("who", "obama", "antelopev2"))
    found = [sampled(kit, model, *sides, family="sdxl") for sides in ((positive, negative), other)]
    assert not torch.equal(found[0], plain) and not torch.equal(*found)


def test_identitynet_refuses_what_is_not_its_own(kit, world):
    with refused("takes the tokens of InstantID's adapter; this one is"):
        controlled(kit, id_adapter=kit("adapter", FACEID), identity=kit("who", "ardern"))
    with refused("the picture for IdentityNet is black"):
        controlled(kit, image=torch.zeros(1, 64, 64, 3))
    with refused("holds 1 values that are NaN", BadImage):
        bad = torch.rand(1, 64, 64, 3)
        bad[0, 1, 1, 1] = float("nan")
        controlled(kit, image=bad)
    from likeness.tests import tiny_diffusion

    other = tiny_diffusion.to_ldm("controlnet", tiny_diffusion.tiny_controlnet("sd15"))
    tiny_diffusion.save(world / "models" / "controlnet" / "other.safetensors", other)
    with refused("this ControlNet reads text 64 wide, but the identity's tokens are 128 wide"):
        controlled(kit, control_net=call("ControlNetLoader", control_net_name="other.safetensors")[0])


def test_identitynets_mask_hides_points(kit):
    points = torch.rand(1, 64, 64, 3)
    half = torch.zeros(2, 32, 32)
    half[0, :, :16] = half[1, :, 16:] = 1

    def shown(**more):
        return controlled(kit, image=points, **more)[0][0][1]["control"].cond_hint_original

    plain, both = shown(), shown(mask=half)
    assert torch.equal(both[0, ..., :30], plain[0, ..., :30]) and not both[0, ..., 34:].any()
    assert torch.equal(both[1, ..., 34:], plain[0, ..., 34:]) and not both[1, ..., :30].any()
    with refused("the mask has 32×64 pixels, but the picture of the points 64×64"):
        controlled(kit, mask=torch.ones(1, 64, 32))
    for mask in (torch.ones(0, 64, 64), torch.full((1, 64, 64), torch.nan)):
        with refused("a mask must have the shape"):
            controlled(kit, mask=mask)
    with refused("start must not be after end; got 0.8 and 0.2"):
        controlled(kit, start=0.8, end=0.2)


def test_at_strength_zero_identitynet_is_not_there(kit):
    positive, negative = controlled(kit, strength=0.0)
    assert "control" not in positive[0][1] and "control" not in negative[0][1]


def test_the_titles_are_as_people_write_them():
    assert TITLES["LikenessIdentityControlNet"] == "Identity ControlNet"
    assert not any(re.search(r"[a-z][A-Z]", title.replace("ControlNet", "")) for title in TITLES.values())
