"""Prompts to tokens to CONDITIONING, and pictures as CLIP sees them; compared with transformers where that is there."""

import gzip
import json
import random

import pytest
import torch
from likeness.engine.diffusion import clip, load, tokens
from likeness.engine.diffusion.text import CLIP
from likeness.engine.diffusion.vision import prepared
from likeness.engine.host import EngineHost
from likeness.face.adapters import arc2face
from likeness.face.errors import BadInput, BadModelFile, MissingModel
from likeness.face.host import STANDALONE
from likeness.face.models import find, status
from likeness.face.vocabulary import CARD
from likeness.tests import tiny_diffusion as tiny

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return tiny.fill_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def file(models):
    return models / "likeness" / CARD.file


@pytest.fixture(scope="module")
def words(file):
    return tokens.read_vocabulary(file)


@pytest.fixture(scope="module")
def sd15(models, file):
    return load.checkpoint(models / "checkpoints" / "tiny_sd15.safetensors", CPU, [file])[1]


@pytest.fixture(scope="module")
def sdxl(models, file):
    return load.checkpoint(models / "checkpoints" / "tiny_sdxl.safetensors", CPU, [file])[1]


# Byte pairs


def test_a_known_word_is_one_token_and_an_unknown_one_its_letters(words):
    (photo,) = words.encode("Photo")
    assert words.ids["photo</w>"] == photo
    assert words.encode("zz") == [words.ids["z"], words.ids["z</w>"]]
    assert words.encode("photo of") == [photo, words.ids["of</w>"]]


def test_spaces_and_case_do_not_count(words):
    assert words.encode("  A \n\t MAN ") == words.encode("a man")
    assert words.encode("") == words.encode(" \n ") == []


def test_half_a_character_is_no_failure(words):
    """As browsers send it where an emoji was cut in two."""
    assert words.encode("a man \ud83d") == words.encode("a man ?")


@pytest.mark.parametrize("weight", ["inf", "-inf", "nan", "1e999"])
def test_a_weight_that_is_no_number_is_refused(words, weight):
    with pytest.raises(BadInput, match=f"weighs a part with {weight}"):
        tokens.tokenize(words, f"a (man:{weight})", 0)


def test_special_tokens_may_be_written_out(words):
    assert words.encode("a<|endoftext|>man")[1] == words.end


def test_the_vocabulary_ends_with_the_special_tokens(words):
    assert len(words) == tiny.VOCABULARY
    assert (words.start, words.end) == (tiny.VOCABULARY - 2, tiny.VOCABULARY - 1)


def write_folder(folder, words):
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps(words.ids))
    lines = ["#version: 0.2", *(" ".join(pair) for pair in tiny.merges())]
    (folder / "merges.txt").write_text("\n".join(lines))
    return folder


def test_a_folder_holds_the_same_vocabulary(words, tmp_path):
    folder = write_folder(tmp_path / "tokenizer", words)
    other = tokens.read_vocabulary(folder)
    assert other.ids == words.ids and other.encode("a photo of qqq") == words.encode("a photo of qqq")
    for name in ("vocab.json", "merges.txt"):
        (folder / name).unlink()
    for merges in ([list(pair) for pair in tiny.merges()], [" ".join(pair) for pair in tiny.merges()]):
        (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": words.ids, "merges": merges}}))
        assert tokens.read_vocabulary(folder).encode("a photo of qqq") == words.encode("a photo of qqq")


TEXTS = [
    "a photo of a man",
    "A Portrait, 35mm; f/1.8 -- it's the woman's hat!! don't we'll they've I'm he'd you're",
    "Ein Café in Zürich: él niño — ½ ‘quoted’ №5 x² 日本語 한국어 🙂🙃",
    "tabs\tand\nnewlines  and   spaces",
    "snake_case __dunder__ 1234567890 3.14",
    "((brackets)) [and] {curly} <|startoftext|>man<|endoftext|>",
    "",
]


def test_tokens_are_those_of_transformers(words, tmp_path):
    transformers = pytest.importorskip("transformers")
    # From 5 on there is one kind only; the slow one before it had rules of its own for Chinese and Japanese.
    kind = getattr(transformers, "CLIPTokenizerFast", transformers.CLIPTokenizer)
    theirs = kind.from_pretrained(write_folder(tmp_path / "tokenizer", words))
    draw = random.Random(0)
    pieces = [
        *tiny.WORDS,
        "'s",
        "é",
        "1",
        "_",
        "!?",
        "…",
        "ß",
        "İ",
        "\u00a0",
        "\u2003",
        "a\u0301",
        "ﬁ",
        "🙂",
        "<|endoftext|>",
    ]
    mixed = ["".join(draw.choice([*pieces, " "]) for _ in range(12)) for _ in range(200)]
    for text in [*TEXTS, *mixed]:
        assert words.encode(text) == theirs(text)["input_ids"][1:-1], text


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("x.txt.gz", b"not gzip"),
        ("x.txt.gz", gzip.compress(b"\xff\xfe")),
        ("x.txt.gz", gzip.compress(b"a\nb c\n")[:-9]),
    ],
)
def test_a_broken_vocabulary_is_refused(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(BadModelFile, match="holds no vocabulary that can be read"):
        tokens.read_vocabulary(tmp_path / name)
    with pytest.raises(BadModelFile, match="holds no vocabulary"):
        tokens.read_vocabulary(tmp_path)


def test_a_missing_vocabulary_is_a_sentence_that_says_where_to_get_it(tmp_path, models):
    host = EngineHost([], tmp_path, tmp_path, tmp_path / "none")
    places = tokens.vocabulary_places(host)
    clip_ = load.checkpoint(models / "checkpoints" / "tiny_sd15.safetensors", CPU, places)[1]
    with pytest.raises(
        MissingModel, match=r"bpe_simple_vocab_16e6\.txt\.gz, which is in none of: .*none/likeness"
    ) as told:
        clip_.tokenize("a man")
    assert "likeness models fetch clip-vocabulary" in str(told.value)


def test_a_vocabulary_of_another_model_is_refused(sd15, tmp_path):
    (tmp_path / "v.txt.gz").write_bytes(gzip.compress(b"#version\na b\n"))
    other = CLIP(dict(sd15.towers.items()), [tmp_path / "v.txt.gz"])
    with pytest.raises(BadInput, match=r"has 515 tokens where the text encoder knows \d+, the last two"):
        other.tokenize("a")


@pytest.mark.weights
def test_the_vocabulary_of_the_catalogue_is_clips():
    if status(CARD, STANDALONE) == "missing":
        pytest.skip("CLIP's vocabulary is not fetched: likeness models fetch clip-vocabulary")
    words = tokens.read_vocabulary(find(CARD, STANDALONE))
    assert (len(words), words.start, words.end) == (49408, arc2face.BEGIN, arc2face.END)
    # Arc2Face's sentence goes without a tokenizer; these are its numbers.
    assert tuple(words.encode("photo of a id person")) == arc2face.SENTENCE


# Weights of words


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a man", [("a man", 1.0)]),
        ("a (man)", [("a ", 1.0), ("man", 1.1)]),
        ("((man))", [("man", 1.1 * 1.1)]),
        ("(man:1.5)", [("man", 1.5)]),
        ("(a (man:1.2) here:0.5)", [("a ", 0.5), ("man", 1.2), (" here", 0.5)]),
        ("(a (man) here:0.5)", [("a ", 0.5), ("man", 0.55), (" here", 0.5)]),
        ("(man:many)", [("man:many", 1.1)]),
        ("(:1.5)", [(":1.5", 1.1)]),
        ("(man:)", [("man:", 1.1)]),
        ("(time 12:30:1.3)", [("time 12:30", 1.3)]),
        (r"\(man\) (a \(b\):2)", [("(man) ", 1.0), ("a (b)", 2.0)]),
        ("open (man", [("open ", 1.0), ("(man", 1.0)]),
        ("close) man", [("close) man", 1.0)]),
        ("", []),
        ("()", []),
    ],
)
def test_brackets_are_weights(text, parts):
    found = tokens.weighted(text)
    assert [part for part, _ in found] == [part for part, _ in parts]
    assert [weight for _, weight in found] == pytest.approx([weight for _, weight in parts])


def sections(words, text, **options):
    return tokens.tokenize(words, text, words.end, **options)


def test_a_section_is_start_words_end_and_padding(words):
    ((first, *rest),) = sections(words, "a (man:1.5)")
    assert first == (words.start, 1.0, 0)
    assert rest[:3] == [(*words.encode("a"), 1.0, 1), (*words.encode("man"), 1.5, 2), (words.end, 1.0, 0)]
    assert len(rest) == 76 and set(rest[3:]) == {(words.end, 1.0, 0)}
    ((*_, last),) = tokens.tokenize(words, "a", 0)
    assert last == (0, 1.0, 0)


def test_a_long_prompt_goes_on_in_the_next_section(words):
    parts = sections(words, "man " * 80)
    assert [len(part) for part in parts] == [77, 77]
    assert [sum(token[2] == 1 for token in part) for part in parts] == [75, 5]
    assert parts[0][-1] == (words.end, 1.0, 0) and parts[1][0] == (words.start, 1.0, 0)


def test_a_short_word_is_not_cut_in_two(words):
    # 74 tokens, then a weighted group of three that would have to be cut after one.
    parts = sections(words, "man " * 74 + "(red hat sea:1.2)")
    assert [sum(token[2] == 2 for token in part) for part in parts] == [0, 3]
    parts = sections(words, "man " * 74 + "(red hat sea red hat sea red hat:1.2)")
    assert [sum(token[2] == 2 for token in part) for part in parts] == [1, 7]


def test_an_empty_prompt_is_a_section_as_well(words):
    (part,) = sections(words, "")
    assert [token[0] for token in part[:3]] == [words.start, words.end, words.end]


def test_weights_may_be_taken_as_text(words):
    assert all(token[1] == 1.0 for part in sections(words, "(man:1.5)", weights=False) for token in part)


@pytest.mark.parametrize("text", ["embedding:face", "a man, embedding:face", "(embedding:face:1.2)", "a\nembedding:x"])
def test_embeddings_are_refused(words, text):
    with pytest.raises(BadInput, match="names an embedding"):
        sections(words, text)
    assert sections(words, "my embedding: is:fine"[:3])


# Encoding


def test_tokens_have_comfyuis_structure(sd15, sdxl):
    plain, numbered = sdxl.tokenize("a man"), sdxl.tokenize("a man", return_word_ids=True)
    assert list(plain) == ["g", "l"]
    assert len(plain["l"][0][0]) == 2 and len(numbered["l"][0][0]) == 3
    assert plain["g"][0][-1][0] == 0 and plain["l"][0][-1][0] == tiny.VOCABULARY - 1
    assert list(sd15.tokenize("a man")) == ["l"]


def test_conditioning_has_comfyuis_structure(sd15, sdxl):
    ((cond, data),) = sd15.encode_from_tokens_scheduled(sd15.tokenize("a man"))
    assert cond.shape == (1, 77, 64) and data["pooled_output"].shape == (1, 64)
    ((cond, data),) = sdxl.encode_from_tokens_scheduled(sdxl.tokenize("man " * 80), add_dict={"width": 5})
    assert cond.shape == (1, 154, 128) and data["pooled_output"].shape == (1, 64) and data["width"] == 5
    assert cond.dtype == torch.float32
    both = sd15.encode_from_tokens(sd15.tokenize("a"), return_pooled=True)
    assert torch.equal(both[0], sd15.encode("a"))
    told = sd15.encode_from_tokens(sd15.tokenize("a"), return_dict=True)
    assert torch.equal(told["cond"], both[0]) and torch.equal(told["pooled_output"], both[1])


def test_word_numbers_do_not_change_the_text(sd15):
    text = "a (man:1.3) by the sea"
    one, two = (sd15.encode_from_tokens(sd15.tokenize(text, return_word_ids=ids)) for ids in (True, False))
    assert torch.equal(one, two)


def test_a_weight_moves_its_token_from_the_empty_prompts(sd15):
    plain, heavy, empty = (sd15.encode(text) for text in ("man red", "man (red:1.5)", ""))
    assert torch.equal(heavy[:, [0, 1, *range(3, 77)]], plain[:, [0, 1, *range(3, 77)]])
    torch.testing.assert_close(heavy[:, 2], empty[:, 2] + 1.5 * (plain[:, 2] - empty[:, 2]))
    assert torch.equal(sd15.encode("man (red:1.0)"), plain)
    pooled = [sd15.encode_from_tokens(sd15.tokenize(t), return_pooled=True)[1] for t in ("man red", "man (red:1.5)")]
    torch.testing.assert_close(*pooled)


def test_sections_are_encoded_each_for_itself(sd15):
    long = sd15.encode("man " * 75 + "red")
    torch.testing.assert_close(long[:, :77], sd15.encode("man " * 75), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(long[:, 77:], sd15.encode("red"), rtol=1e-4, atol=1e-4)


def test_an_earlier_layer_may_be_read(sd15, sdxl):
    other = sd15.clone()
    other.clip_layer(-2)
    plain, earlier = sd15.encode("a man"), other.encode("a man")
    assert not torch.allclose(plain, earlier, atol=1e-2)
    other.clip_layer(-1)
    assert torch.equal(other.encode("a man"), plain)
    other.clip_layer(-9)
    assert torch.equal(other.encode("a man"), plain), "deeper than the encoder means the last state"
    # SDXL reads the state before the last layer anyway.
    second = sdxl.clone()
    second.clip_layer(-2)
    assert torch.equal(second.encode("a man"), sdxl.encode("a man"))
    second.clip_layer(-1)
    assert not torch.allclose(second.encode("a man"), sdxl.encode("a man"), atol=1e-2)


def test_a_token_may_be_a_vector(sd15):
    table = sd15.towers["l"].text_model.embeddings.token_embedding.weight
    plain = sd15.tokenize("a man")
    row = [list(token) for token in plain["l"][0]]
    row[2][0] = table[row[2][0]].float().clone()
    given = {"l": [[tuple(token) for token in row]]}
    torch.testing.assert_close(sd15.encode_from_tokens(given), sd15.encode("a man"))
    row[2][0] = torch.zeros(5)
    with pytest.raises(BadInput, match="an embedding of 5 numbers stands in a prompt for a text encoder 64 wide"):
        sd15.encode_from_tokens(given | {"l": [[tuple(token) for token in row]]})


def test_tokens_of_another_kind_are_refused(sd15, sdxl):
    with pytest.raises(BadInput, match="needs tokens for l, g and got those for l"):
        sdxl.encode_from_tokens(sd15.tokenize("a man"))
    with pytest.raises(BadInput, match=r"token 49407 is beyond the \d+"):
        sd15.encode_from_tokens({"l": [[(49407, 1.0)] * 77]})
    with pytest.raises(BadInput, match="sections of one length up to 77 tokens"):
        sd15.encode_from_tokens({"l": [[(0, 1.0)] * 78]})
    with pytest.raises(BadInput, match=r"got \[3, 4\]"):
        sd15.encode_from_tokens({"l": [[(0, 1.0)] * 3, [(0, 1.0)] * 4]})


def test_a_lora_for_the_text_changes_a_copy(sd15):
    from likeness.engine.diffusion.lora import parse

    before = sd15.encode("a man")
    lora = parse(tiny.text_lora(tiny.tiny_sd15()[2]), "text.safetensors")
    model, changed = lora.apply(None, sd15, 1.0, 2.0)
    assert model is None and not torch.allclose(changed.encode("a man"), before, atol=1e-3)
    assert torch.equal(sd15.encode("a man"), before)
    _, none = lora.apply(None, sd15, 1.0, 0.0)
    assert torch.equal(none.encode("a man"), before)


def test_loras_reach_both_encoders_of_sdxl(sdxl):
    from likeness.engine.diffusion.lora import parse

    before = sdxl.encode("a man")
    for prefix, part in (("lora_te1_", slice(0, 64)), ("lora_te2_", slice(64, 128))):
        lora = parse(tiny.text_lora(tiny.tiny_sdxl()[2], prefix=prefix), "text.safetensors")
        after = lora.apply(None, sdxl, 1.0, 3.0)[1].encode("a man")
        moved = (after - before).abs().amax((0, 1)) > 1e-3
        assert moved[part].any() and not moved[[n for n in range(128) if n not in range(128)[part]]].any()


# The same numbers as transformers


@pytest.mark.parametrize("act", ["quick_gelu", "gelu"])
def test_the_text_tower_is_clips(act):
    transformers = pytest.importorskip("transformers")
    settings = transformers.CLIPTextConfig(
        vocab_size=99,
        hidden_size=64,
        intermediate_size=80,
        num_hidden_layers=3,
        num_attention_heads=4,
        hidden_act=act,
        projection_dim=48,
        eos_token_id=98,
        bos_token_id=97,
    )
    theirs = transformers.CLIPTextModelWithProjection(settings).eval()
    tensors = tiny.random({name: tuple(tensor.shape) for name, tensor in theirs.state_dict().items()})
    theirs.load_state_dict(tensors)
    known = {"num_attention_heads": 4, "hidden_act": act}
    named = clip.text_tensors({n if n.startswith("text_") else f"text_model.{n}": t for n, t in tensors.items()})
    ours = clip.text_tower(named, "a file", quick=False, known=known).float()
    load.fill(ours, named, torch.float32, CPU, "a file")
    ids = torch.tensor([[97, 5, 6, 7, 98, 98], [97, 8, 98, 98, 98, 98]])
    with torch.no_grad():
        last, between, _, pooled = ours(ours.embed(ids), torch.tensor([4, 2]), -2)
        answer = theirs(ids, output_hidden_states=True)
    torch.testing.assert_close(last, answer.last_hidden_state, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(between, answer.hidden_states[-2], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(pooled, answer.text_embeds, rtol=1e-4, atol=1e-5)


def test_the_image_tower_is_clips(models):
    transformers = pytest.importorskip("transformers")
    settings = transformers.CLIPVisionConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=16,
        image_size=28,
        patch_size=14,
        projection_dim=32,
        hidden_act="quick_gelu",
    )
    theirs = transformers.CLIPVisionModelWithProjection(settings).eval()
    # In float16 as the tower keeps them, so that only the arithmetic is compared.
    tensors = {name: tensor.half().float() for name, tensor in tiny.image_encoder().items()}
    missing, unexpected = theirs.load_state_dict(tensors, strict=False)
    assert not unexpected and all("position_ids" in name for name in missing)
    ours = load.clip_vision(models / "clip_vision" / "tiny.safetensors", CPU)
    image = torch.rand(2, 40, 30, 3)
    output = ours.encode_image(image)
    with torch.no_grad():
        answer = theirs(prepared(image, 28), output_hidden_states=True)
    torch.testing.assert_close(output.image_embeds, answer.image_embeds, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(output["last_hidden_state"], answer.last_hidden_state, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(output.penultimate_hidden_states, answer.hidden_states[-2], rtol=1e-4, atol=1e-5)


# Pictures


def test_a_picture_is_cropped_to_the_middle_or_squeezed():
    image = torch.zeros(1, 40, 80, 3)
    image[:, :, 30:50] = 1
    cropped, squeezed = prepared(image, 20, crop=True), prepared(image, 20, crop=False)
    assert cropped.shape == squeezed.shape == (1, 3, 20, 20)
    bright = prepared(torch.ones(1, 20, 20, 3), 20)[0, 0, 0, 0]
    assert (cropped[0, 0, 10] == bright).sum() > (squeezed[0, 0, 10] == bright).sum()


def test_other_things_than_pictures_are_refused(models):
    encoder = load.clip_vision(models / "clip_vision" / "tiny.safetensors", CPU)
    with pytest.raises(BadInput, match=r"CLIP looks at images \(B, H, W, 3\), got \(4, 4, 3\)"):
        encoder.encode_image(torch.zeros(4, 4, 3))


def test_an_image_encoder_from_open_clip_is_the_same(models, tmp_path):
    tensors = tiny.image_encoder()
    out = {}
    names = {value: key for key, value in clip._OPEN_CLIP_VISION.items()}
    inner = {value: key for key, value in clip._OPEN_CLIP.items()}
    for name, tensor in tensors.items():
        if name in names:
            out[f"visual.{names[name]}"] = tensor
        elif name == "visual_projection.weight":
            out["visual.proj"] = tensor.T.contiguous()
        elif "self_attn" not in name or "out_proj" in name:
            number, rest = name.removeprefix("vision_model.encoder.layers.").split(".", 1)
            path, kind = rest.rsplit(".", 1)
            out[f"visual.transformer.resblocks.{number}.{inner[path]}.{kind}"] = tensor
    for number in range(3):
        for kind in ("weight", "bias"):
            layer = f"vision_model.encoder.layers.{number}.self_attn"
            parts = [tensors[f"{layer}.{part}_proj.{kind}"] for part in "qkv"]
            out[f"visual.transformer.resblocks.{number}.attn.in_proj_{kind}"] = torch.cat(parts)
    out["logit_scale"] = torch.zeros(1)
    other = load.clip_vision(tiny.save(tmp_path / "open.safetensors", out), CPU)
    image = torch.rand(1, 28, 28, 3)
    wanted = load.clip_vision(models / "clip_vision" / "tiny.safetensors", CPU).encode_image(image)
    torch.testing.assert_close(other.encode_image(image).image_embeds, wanted.image_embeds)
