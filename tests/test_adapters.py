"""Adapter files: every published layout tells itself, is held once, and is refused in a sentence where it must be."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from likeness.face import adapters, applying
from likeness.face.adapters import AUTO, Choices, Evidence, _evidence, formats, load
from likeness.face.adapters._checkpoint import read
from likeness.face.adapters._evidence import Encoder
from likeness.face.applying import Options
from likeness.face.attention import apply
from likeness.face.attention.sites import Layout, Site
from likeness.face.errors import BadInput, BadModelFile, ContractMismatch, MissingModel
from likeness.face.host import StandaloneHost
from likeness.face.types import Contract, Face, Identity, Person, Reference
from likeness.tests import tiny_adapters as tiny
from likeness.tests import tiny_diffusion

AMBIGUOUS = {
    "faceid-plus": "faceid-plus or faceid-plus-v2",
    "faceid-plus-v2": "faceid-plus or faceid-plus-v2",
    "instantid": "instantid or portrait-unnorm",
    "portrait-unnorm": "instantid or portrait-unnorm",
}
NAMES = formats.names()


def layout(sdxl=False, context=None):
    """The layout of the tiny base models."""
    widths = tiny.SDXL if sdxl else tiny.SD15
    return Layout(tuple(Site("down", n, 0, w) for n, w in enumerate(widths)), context or (128 if sdxl else 64))


@pytest.fixture
def file(tmp_path):
    def write(name, ending=".safetensors", **sizes):
        return tiny.write(tmp_path / f"something{ending}", tiny.make(name, **sizes))

    return write


def identity(model="w600k_r50", dimension=24, people=1, vectors=1, references=1, unit=False):
    contract = Contract(model, "0" * 64, dimension, unit, "none")
    rng = np.random.default_rng(1)

    def person(n):
        rows = rng.normal(size=(vectors, dimension)).astype(np.float32) * 20
        face = Face(np.array([40, 30, 120, 140], np.float32), FIVE, 0.9)
        picture = torch.from_numpy(rng.random((180, 180, 3), np.float32))
        return Person(f"p{n}", rows, (Reference(picture, face),) * references)

    return Identity(contract, tuple(person(n) for n in range(people)))


FIVE = np.array([[65, 70], [95, 70], [80, 90], [68, 110], [92, 110]], np.float32)


@pytest.mark.parametrize("ending", [".bin", ".safetensors"])
@pytest.mark.parametrize("name", NAMES)
def test_a_file_tells_its_format_by_its_tensors(file, name, ending):
    path = file(name, ending)
    if name in AMBIGUOUS:
        with pytest.raises(BadModelFile, match=f"something{ending} may be {AMBIGUOUS[name]}.*Choose one of them"):
            load(path)
    else:
        assert load(path).format == name
    one = load(path, name)
    assert one.format == name and one.title == formats[name].title
    assert "cross-attention layers" in one.base or one.base in ("SD1.5", "SDXL")


@pytest.mark.parametrize("name", NAMES)
def test_no_tensor_of_a_file_is_left_out_in_silence(tmp_path, name):
    made = tiny.make(name)
    group = next(iter(made)) if isinstance(next(iter(made.values())), dict) else None
    (made[group] if group else made)["text_model.stranger" if group is None else "stranger.weight"] = torch.zeros(2)
    path = tiny.write(tmp_path / "more.bin", made)
    with pytest.raises(BadModelFile, match=r"holds 1 tensors that it does not have.*stranger"):
        load(path, name)


@pytest.mark.parametrize("name", NAMES)
def test_no_group_of_a_file_is_left_out_in_silence(tmp_path, name):
    path = tiny.write(tmp_path / "more.safetensors", {**tiny.make(name), "stranger": {"weight": torch.zeros(2)}})
    with pytest.raises(BadModelFile, match=r"stranger|is no .* file"):
        load(path, name)


def test_the_base_model_in_a_consistentid_file_is_passed_over(tmp_path):
    made = {**tiny.make("consistentid"), "unet": {"conv_in.weight": torch.zeros(2)}}
    assert load(tiny.write(tmp_path / "c.safetensors", made)).format == "consistentid"


@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("photomaker", "photomaker-v2", "arc2face")])
def test_keys_and_values_are_those_of_the_file(file, name):
    one = load(file(name), name)
    widths, context = (tiny.SDXL, 128) if len(one.keys) == 70 else (tiny.SD15, 64)
    assert [k.shape for k in one.keys] == [(w, context) for w in widths] == [v.shape for v in one.values]
    stored = read(one.path).group("ip_adapter")
    assert torch.equal(one.keys[3], stored["7.to_k_ip.weight"]) and torch.equal(
        one.values[-1], stored[f"{2 * len(widths) - 1}.to_v_ip.weight"]
    )
    with_lora = name in ("faceid", "faceid-plus", "faceid-plus-v2", "consistentid")
    assert len(one.low_rank) == (8 * len(widths) if with_lora else 0)


def test_a_file_is_held_once_however_many_ask(file):
    path = file("faceid")
    first, second = load(path), load(path)
    assert first is second
    tiny.write(path, tiny.make("faceid", seed=2))
    assert load(path) is not first


def test_formats_named_otherwise_are_understood(tmp_path):
    made = tiny.make("faceid")
    renamed = {"image_proj_model": made["image_proj"], "adapter_modules": made["ip_adapter"]}
    assert load(tiny.write(tmp_path / "a.bin", renamed)).format == "faceid"
    assert (
        load(tiny.write(tmp_path / "b.bin", {"state_dict": {f"module.{k}": v for k, v in renamed.items()}})).format
        == "faceid"
    )
    community = tiny.make("pulid")
    layers = {
        k.replace("id_to_", "to_").replace(".weight", "_ip.weight"): v
        for k, v in community["id_adapter_attn_layers"].items()
    }
    flat = {"image_proj": community["id_adapter"], "ip_adapter": layers}
    assert load(tiny.write(tmp_path / "c.safetensors", flat)).format == "pulid"


class Evil:
    """Would open a file for writing when it is unpickled."""

    target = ""

    def __reduce__(self):
        return (open, (self.target, "w"))


def test_a_pickle_with_code_in_it_is_not_opened(tmp_path):
    evil, path = Evil(), tmp_path / "evil.bin"
    evil.target = str(tmp_path / "made-by-the-pickle")
    torch.save({"image_proj": evil}, path)
    with pytest.raises(BadModelFile, match=r"a pickle that holds more than tensors.*not opened"):
        load(path)
    assert not (tmp_path / "made-by-the-pickle").exists()
    pickle.loads(pickle.dumps(evil)).close()
    assert (tmp_path / "made-by-the-pickle").exists(), "it would have been made"


@pytest.mark.parametrize("ending", [".bin", ".safetensors"])
def test_a_truncated_file_is_refused(file, ending):
    path = file("faceid", ending)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(BadModelFile, match=r"cut off|damaged"):
        load(path)


def test_what_is_no_adapter_is_refused_in_a_sentence(tmp_path):
    with pytest.raises(BadModelFile, match=r"there is no adapter file"):
        load(tmp_path / "none.bin")
    (tmp_path / "a.txt").write_text("hello")
    with pytest.raises(BadModelFile, match=r"must end in .safetensors"):
        load(tmp_path / "a.txt")
    path = tiny.write(tmp_path / "u.safetensors", {"model.diffusion_model.x": torch.zeros(2), "vae.y": torch.zeros(2)})
    with pytest.raises(
        BadModelFile, match=r"no identity adapter that is known here: it holds 2 tensors.*Known formats: "
    ):
        load(path)
    with pytest.raises(BadInput, match=r"no adapter format called 'faceit'.*Did you mean 'faceid'"):
        load(path, "faceit")
    faceid = tiny.write(tmp_path / "f.bin", tiny.make("faceid"))
    with pytest.raises(BadModelFile, match=r"is no instantid file: its tensors are those of faceid"):
        load(faceid, "instantid")


@pytest.mark.parametrize("cut", ["7.to_k_ip.weight", "9.to_v_ip.weight", "4.to_out_lora.up.weight"])
def test_a_file_with_a_layer_missing_is_refused(tmp_path, cut):
    made = tiny.make("faceid")
    del made["ip_adapter"][cut]
    with pytest.raises(BadModelFile, match=r"cut off|every second attention layer"):
        load(tiny.write(tmp_path / "f.bin", made))


def test_an_identity_of_another_recogniser_is_refused(file):
    one = load(file("faceid"))
    with pytest.raises(ContractMismatch, match=r"trained on vectors of w600k_r50.*pack buffalo_l.*embedded with sface"):
        one.check(identity("sface"))
    one.check(identity("sface"), any_recogniser=True)
    with pytest.raises(ContractMismatch, match=r"takes vectors of 24 numbers"):
        one.check(identity("sface", 128), any_recogniser=True)
    one.check(identity())
    instantid = load(file("instantid"), "instantid")
    with pytest.raises(ContractMismatch, match=r"glintr100.*antelopev2"):
        instantid.check(identity())
    with pytest.raises(ContractMismatch, match=r"as the network answers, but this identity holds only its direction"):
        instantid.check(identity("glintr100", unit=True))
    with pytest.raises(BadInput, match=r"the identity is empty"):
        one.check(replace(identity(), people=()))


def test_an_identity_without_pictures_is_refused_where_an_encoder_must_look(file):
    one = load(file("faceid-plus"), "faceid-plus-v2")
    with pytest.raises(BadInput, match=r"looks at pictures of the person, but 'p0' carries none"):
        one.check(identity(references=0))
    with pytest.raises(BadInput, match=r"needs an image encoder .clip-h, its tokens 1024 wide."):
        tokens(one, identity())
    with pytest.raises(BadInput, match=r"trained on clip-h, whose tokens are 1024 wide; those of the connected.*are 7"):
        tokens(one, identity(), Eye(7))


class Eye:
    """An image encoder that counts how often it is asked."""

    def __init__(self, width=1024):
        self.width, self.asked = width, 0

    def __call__(self, pixels):
        self.asked += 1
        base = pixels.flatten(1)[:, : self.width].sum(1)
        return torch.sin(base[:, None, None] * torch.arange(1, 6)[:, None] + torch.arange(self.width) / 7)


def tokens(one, who, eye=None, **options):
    encoder = None if eye is None else Encoder(eye, eye)
    return applying.tokens_for(one, who, who.people[0], encoder, Options(**options))


def test_an_encoder_runs_only_for_a_format_that_uses_its_answer(file):
    eye = Eye()
    tokens(load(file("faceid")), identity(), eye)
    assert eye.asked == 0
    plus, who = load(file("faceid-plus"), "faceid-plus"), identity()
    first = tokens(plus, who, eye)
    assert eye.asked == 2, "once for the person, once for nobody"
    assert tokens(plus, who, eye) is first and eye.asked == 2
    assert tokens(plus, who, eye, structure=0.5) is not first


@pytest.mark.parametrize("name", ["faceid-plus", "plus-face", "kolors-faceid-plus"])
def test_no_encoder_looks_at_nothing_for_rows_that_get_nothing(file, name):
    eye = Eye()
    assert (
        tokens(
            load(file(name), name),
            identity(model="glintr100" if "kolors" in name else "w600k_r50"),
            eye,
            recipe="nothing",
        ).negative
        is None
    )
    assert eye.asked == 1


def test_consistentids_parts_are_looked_at_for_its_words_alone(file, monkeypatch):
    one, who, asked = load(file("consistentid")), identity(references=2), []
    monkeypatch.setattr(_evidence, "regions", lambda *_: {"nose": torch.zeros(1, 3, 8, 8)})

    def look(pixels):
        asked.append(pixels.shape)
        return torch.zeros(len(pixels), 5, 1024)

    encoder = Encoder(look, look)
    applying.tokens_for(one, who, who.people[0], encoder, Options())
    assert [shape[0] for shape in asked] == [2, 1] and asked[0][-1] == 224
    known = _evidence.evidence(one, who.people[0], encoder, recipe="authors")
    assert set(known.regions) == {"nose"} and asked[-1][-1] == 8


def test_kolors_gives_zeros_where_others_show_nothing(file):
    eye, one = Eye(), load(file("kolors-faceid-plus"))
    who = identity("glintr100")
    found = tokens(one, who, eye)
    assert eye.asked == 1
    seen = torch.zeros(1, 5, 1024)
    expected = one.project(Evidence(torch.zeros(1, 24), seen, seen), Choices())[0]
    torch.testing.assert_close(found.negative, expected)
    tokens(one, who, eye, recipe="popular")
    assert eye.asked == 3


@pytest.mark.parametrize("name", ["pulid", "pulid-v1.1"])
def test_pulid_takes_of_the_pooled_view_only_where_it_points(file, name):
    one, layers = load(file(name)), tuple(torch.randn(1, 10, 64) for _ in range(5))
    vector, pooled = torch.randn(1, 24), torch.randn(1, 1, 768)
    first, far = (one.project(Evidence(vector, by * pooled, None, layers), Choices())[0] for by in (1, 7))
    longer, _ = one.project(Evidence(7 * vector, pooled, None, layers), Choices())
    torch.testing.assert_close(first, far, atol=1e-4, rtol=0)
    assert not torch.allclose(first, longer, atol=1e-2), "of the vector the length counts"


@pytest.mark.parametrize("pictures", [1, 2, 3])
@pytest.mark.parametrize("name", ["pulid", "pulid-v1.1"])
def test_pulids_sides_have_as_many_tokens_however_many_pictures(file, name, pictures):
    """v1 joins as many nobodies as people, the identity's tokens of each; v1.1 always answers its own number."""
    one = load(file(name))
    layers = tuple(torch.randn(pictures, 10, 64) for _ in range(5))
    positive, negative = one.project(
        Evidence(torch.randn(1, 24), torch.randn(pictures, 1, 768), None, layers), Choices()
    )
    assert positive.shape == negative.shape
    assert positive.shape[1] == (8 if name == "pulid-v1.1" else 10 + 5 * (pictures - 1))
    if name == "pulid":
        assert torch.equal(negative[:, 10:15], negative[:, :5]) or pictures == 1


def test_a_plus_file_without_its_lora_is_not_taken_for_kolors(tmp_path):
    made = tiny.make("faceid-plus")
    made["ip_adapter"] = {name: t for name, t in made["ip_adapter"].items() if "lora" not in name}
    with pytest.raises(BadModelFile, match="may be faceid-plus or faceid-plus-v2"):
        load(tiny.write(tmp_path / "p.safetensors", made))


@pytest.mark.parametrize("damage", [lambda t: t.flatten()[:5], lambda t: t[:, :-1], lambda t: t * float("nan")])
@pytest.mark.parametrize(
    "where", ["image_proj.proj.0.weight", "image_proj.proj.2.weight", "ip_adapter.3.to_k_ip.weight"]
)
def test_damaged_tensors_are_refused_in_a_sentence(tmp_path, where, damage):
    made = tiny.make("faceid")
    group, _, name = where.partition(".")
    made[group][name] = damage(made[group][name])
    with pytest.raises((BadModelFile, BadInput), match=r"should be a layer|fit together|no numbers|different"):
        one = load(tiny.write(tmp_path / "f.bin", made))
        if one.recogniser.dimension == 24:
            tokens(one, identity()).projected()
        else:
            one.shown(Evidence(torch.randn(1, 24)), Choices())


def test_a_layer_missing_between_others_is_not_skipped(tmp_path):
    made = tiny.make("plus-face")
    made["image_proj"] = {name.replace("layers.1.", "layers.2."): t for name, t in made["image_proj"].items()}
    one = load(tiny.write(tmp_path / "p.bin", made))
    with pytest.raises(BadModelFile, match=r"layers.1 are missing"):
        tokens(one, identity(), Eye())


@pytest.mark.parametrize("odd", [b"", b"\0", b"PK\3\4 not a zip", b"<html>", bytes(range(256)) * 9])
@pytest.mark.parametrize("ending", [".bin", ".safetensors"])
def test_any_bytes_are_refused_in_a_sentence(tmp_path, odd, ending):
    (tmp_path / f"x{ending}").write_bytes(odd)
    with pytest.raises(BadModelFile, match=f"x{ending}"):
        load(tmp_path / f"x{ending}")


def test_odd_dictionaries_are_refused_in_a_sentence(tmp_path):
    endless = {"t": torch.ones(1)}
    endless["self"] = endless
    for name, made in (("a", endless), ("b", {"t": torch.ones(2, 2).to_sparse()}), ("c", [torch.ones(1)])):
        torch.save(made, tmp_path / f"{name}.bin")
        with pytest.raises(BadModelFile, match=r"hold themselves|sparse|holds no tensors"):
            load(tmp_path / f"{name}.bin")


def test_changing_only_the_strength_makes_nothing_new(file):
    one, who = load(file("faceid")), identity()
    first = apply("a", tokens(one, who), layout(), strength=1.0)
    first.tokens.projected()
    second = apply("a", tokens(one, who), layout(), strength=0.3)
    assert second.tokens is first.tokens and second.tokens.projected() is first.tokens.projected()


def test_tokens_go_with_the_identity(file):
    one = load(file("faceid"))
    who = identity()
    tokens(one, who)
    assert len(one._tokens) == 1
    del who
    assert len(one._tokens) == 0


@pytest.mark.parametrize("name", ["faceid", "faceid-portrait", "instantid", "portrait-unnorm"])
def test_the_recipes_differ_only_on_the_unconditional_side(file, name):
    one = load(file(name), name)
    evidence = Evidence(torch.randn(1, 24, generator=torch.Generator().manual_seed(1)))
    authors, popular, nothing = (one.project(evidence, Choices(r)) for r in ("authors", "popular", "nothing"))
    assert torch.equal(authors[0], popular[0]) and torch.equal(authors[0], nothing[0])
    assert nothing[1] is None and authors[1].shape == authors[0].shape
    assert torch.equal(authors[1], popular[1]) == (name != "instantid")
    again = one.project(evidence, Choices("popular"))
    assert torch.equal(again[1], popular[1]), "the noise is the same every time"


STATED = {
    "faceid": ("w600k_r50", True, None, 1.0),
    "faceid-plus": ("w600k_r50", True, ("clip-h", "aligned", 224), 1.0),
    "faceid-plus-v2": ("w600k_r50", True, ("clip-h", "aligned", 224), 1.0),
    "faceid-portrait": ("w600k_r50", True, None, 1.0),
    "portrait-unnorm": ("w600k_r50", False, None, 1.0),
    "plus-face": (None, None, ("clip-h", "head", 224), 0.8),
    "full-face": (None, None, ("clip-h", "head", 224), 0.8),
    "kolors-faceid-plus": ("glintr100", False, ("clip-l-336", "box", 336), 0.8),
    "instantid": ("glintr100", False, None, 0.8),
    "pulid": ("glintr100", False, ("eva02-l-336", "whitened", 336), 0.8),
    "pulid-v1.1": ("glintr100", False, ("eva02-l-336", "whitened", 336), 0.8),
    "photomaker": (None, None, None, 1.0),
    "photomaker-v2": ("w600k_r50", False, None, 1.0),
    "arc2face": ("arcface", True, None, 1.0),
    "consistentid": ("w600k_r50", True, ("clip-h", "head", 224), 1.0),
}
"""Per format the network, whether its vector is taken at length 1, the encoder, crop and pixels, and the strength, as
the authors' scripts have them."""


@pytest.mark.parametrize("name", NAMES)
def test_each_format_states_what_its_authors_use(file, name):
    one = load(file(name), name)
    model, unit, feature, strength = STATED[name]
    assert (one.recogniser and one.recogniser.model, one.recogniser and one.recogniser.unit) == (model, unit)
    assert (one.feature and (one.feature.encoder, one.feature.crop, one.feature.size)) == feature
    assert one.strength == strength


def test_pulids_modes_are_those_of_its_two_demonstrations(file):
    first, second = load(file("pulid")), load(file("pulid-v1.1"))
    assert dict(first.modes) == {"fidelity": ("ortho_v2", 8), "style": ("ortho", 16), "plain": ("plain", 0)}
    assert Options().mode_of(first) == ("ortho_v2", 8) and Options().mode_of(second) == ("ortho_v2", 20)


def test_the_person_enters_the_prompt_when_the_authors_say(file):
    starts = {name: load(file(name)).text.start for name in ("photomaker", "photomaker-v2", "consistentid", "arc2face")}
    assert starts == {"photomaker": 0.2, "photomaker-v2": 0.2, "consistentid": 0.6, "arc2face": 0.0}


def test_people_and_recipes_have_tokens_of_their_own(file):
    one, who = load(file("instantid"), "instantid"), identity("glintr100", people=2)
    found = [
        applying.tokens_for(one, who, person, None, Options(recipe=recipe))
        for person in who.people
        for recipe in ("authors", "nothing")
    ]
    assert not torch.allclose(found[0].positive, found[2].positive)
    assert [tokens.negative is None for tokens in found] == [False, True, False, True]


def test_several_pictures_are_averaged_where_an_adapter_takes_one_view(file):
    """Plus-face and Plus: the mean of what the encoder sees, unless there is a vector for each picture."""
    seen, unseen, vectors = torch.randn(2, 5, 1024), torch.zeros(1, 5, 1024), torch.randn(2, 24)
    face, plus = load(file("plus-face")), load(file("faceid-plus"), "faceid-plus")
    mean = seen.mean(0, keepdim=True)
    for adapter, vector in ((face, torch.zeros(1, 0)), (plus, vectors[:1])):
        both, one = (adapter.project(Evidence(vector, view, unseen), Choices())[0] for view in (seen, mean))
        torch.testing.assert_close(both, one)
    paired = plus.project(Evidence(vectors, seen, unseen), Choices())[0]
    alone = [plus.project(Evidence(vectors[n, None], seen[n, None], unseen), Choices())[0] for n in (0, 1)]
    torch.testing.assert_close(paired, torch.cat(alone, 1))


def test_raw_and_unit_vectors_go_where_they_belong(file):
    who = identity()
    unit = adapters.vectors_of(who.people[0], load(file("faceid")))
    assert float(unit.norm()) == pytest.approx(1, abs=1e-5)
    raw = adapters.vectors_of(who.people[0], load(file("instantid"), "instantid"))
    assert torch.equal(raw, torch.from_numpy(who.people[0].vectors))


def test_the_wrong_base_is_refused_before_anything_runs(file):
    one = load(file("faceid"))
    with pytest.raises(BadInput, match=r"is made for a U-Net of 16 .*but the model is a U-Net of 70"):
        apply("FaceID", tokens(one, identity()), layout(sdxl=True))
    with pytest.raises(BadInput, match=r"its layer is 64 wide, the model's 48"):
        sites = list(layout().sites)
        sites[2] = replace(sites[2], width=48)
        apply("FaceID", tokens(one, identity()), Layout(tuple(sites), 64))


def test_published_sizes_have_their_usual_names():
    assert Layout((Site("down", 0, 0, 320),) * 16, 768).name == "SD1.5"
    assert Layout((Site("down", 0, 0, 640),) * 70, 2048).name == "SDXL"


def test_adapter_files_are_found_where_people_keep_them(tmp_path):
    host = StandaloneHost(models=tmp_path)
    for folder, name in (("likeness/adapters", "a.safetensors"), ("ipadapter/sd15", "b.bin"), ("instantid", "c.txt")):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / name).write_bytes(b"x")
    assert set(adapters.files(host)) == {"a.safetensors", "sd15/b.bin"}
    assert adapters.find("sd15/b.bin", host).name == "b.bin"
    with pytest.raises(MissingModel, match=r"Copy the adapter file into one of these folders"):
        adapters.find("c.txt", host)
    assert adapters.choices()[0] == AUTO


def test_kolors_tokens_go_through_the_models_own_entrance(file):
    made = tiny.make("kolors-faceid-plus")
    wide = torch.nn.Linear(96, 64)
    one = load(file("kolors-faceid-plus"))
    assert one.format == "kolors-faceid-plus" and one.feature.encoder == "clip-l-336" and not one.recogniser.unit
    given = adapters.Tokens(torch.randn(1, 4, 96), torch.randn(1, 4, 96), one.keys, one.values)
    applied = apply("kolors", given, replace(layout(), entrance=wide))
    assert applied.tokens.context == 64
    with torch.no_grad():
        torch.testing.assert_close(applied.tokens.positive, wide(given.positive))
    assert apply("kolors", given, replace(layout(), entrance=wide)).tokens is applied.tokens
    assert made["image_proj"]["norm.weight"].shape == (96,) and one.base.endswith("with text 96 wide")
    with pytest.raises(BadInput, match=r"is made for .* text 96 wide, but the model is .* text 64 wide"):
        apply("kolors", given, layout())
    with pytest.raises(BadInput, match=r"is made for .* text 64 wide, but the model is .* text 96 wide"):
        apply("FaceID", tokens(load(file("faceid")), identity()), replace(layout(), entrance=wide))


@pytest.mark.parametrize("form", ["diffusers", "processor", "peft"])
def test_photomakers_changes_are_found_in_every_spelling(tmp_path, form):
    unet = tiny_diffusion.unet(tiny_diffusion.SDXL)
    nested = tiny.make("photomaker")
    nested["lora_weights"] = tiny_diffusion.lora(unet, "sdxl", form)
    adapter = load(tiny.write(tmp_path / "p.bin", nested, half=False))
    wanted = tiny_diffusion.lora(unet, "sdxl", "diffusers")
    assert {f"unet.{path}" for path in adapter.lora} == {name.rsplit(".lora.", 1)[0] for name in wanted}
    for path, change in adapter.lora.items():
        assert torch.equal(change.up, wanted[f"unet.{path}.lora.up.weight"])
        assert torch.equal(change.down, wanted[f"unet.{path}.lora.down.weight"])


def test_photomakers_changes_are_refused_where_they_are_cut_off_or_unknown(tmp_path):
    nested = tiny.make("photomaker")
    nested["lora_weights"] = {"unet.mid_block.attentions.0.proj_in.lora.up.weight": torch.ones(4, 2)}
    with pytest.raises(BadModelFile, match="lacks one half of 1 changes"):
        load(tiny.write(tmp_path / "half.bin", nested))
    nested["lora_weights"] = {"unet.mid_block.attentions.0.proj_in.hada_w1_a": torch.ones(4, 2)}
    with pytest.raises(BadModelFile, match="unknown form"):
        load(tiny.write(tmp_path / "other.bin", nested))
