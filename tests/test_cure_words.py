"""What a prompt asks for, read with a vocabulary alone; and which tokens stand for it."""

import json
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from likeness.engine.diffusion import clip
from likeness.engine.diffusion.text import CLIP
from likeness.face import masks, parse
from likeness.face.cure import words
from likeness.face.cure.words import OTHER, parse_list, places, split, token_places
from likeness.face.vocabulary import CARD
from likeness.tests import tiny_diffusion as tiny


def texts(prompt):
    return [attribute.text for attribute in split(prompt)]


def kinds(prompt):
    return [attribute.kind for attribute in split(prompt)]


# FreeCure's evaluation (reference: Cai et al., table 7), each attribute with the kind it is.
PAPER = {
    "black curly hair": "hair",
    "blonde curly hair": "hair",
    "red long straight hair": "hair",
    "white curly hair": "hair",
    "red curly hair": "hair",
    "blonde hair": "hair",
    "black hair": "hair",
    "very angry looking": "expression",
    "frowning worriedly": "expression",
    "laughing happily": "expression",
    "unhappy looking": "expression",
    "smiling": "expression",
    "mask": "mask",
    "sunglasses": "glasses",
    "blue eyes": "eyes",
    "silver earrings": "earrings",
    "pearl earrings": "earrings",
}
PROMPTS = [
    *([one] for one in PAPER),
    ["white curly hair", "frowning worriedly"],
    ["black curly hair", "laughing happily"],
    ["blonde curly hair", "blue eyes"],
    ["blue eyes", "laughing happily"],
    ["sunglasses", "laughing happily"],
    ["black hair", "silver earrings"],
    ["blonde hair", "blue eyes"],
    ["sunglasses", "frowning worriedly"],
    ["red curly hair", "pearl earrings", "unhappy looking"],
    ["blue eyes", "blonde curly hair", "smiling"],
    ["white curly hair", "sunglasses", "laughing happily"],
    ["black curly hair", "silver earrings", "frowning worriedly"],
]
FRAMES = [("a photo of a man, ", ", "), ("a woman image with ", " and "), ("", ", "), ("A man wearing ", ",\n")]


@pytest.mark.parametrize("asked", PROMPTS, ids=" + ".join)
@pytest.mark.parametrize(("before", "between"), FRAMES)
def test_every_prompt_of_the_papers_evaluation_is_split_as_meant(asked, before, between):
    found = split(before + between.join(asked))
    assert [a.text for a in found] == asked
    assert [a.kind for a in found] == [PAPER[one] for one in asked]
    assert all(a.abstract == (a.kind == "expression") and a.strength == 1 for a in found)


@pytest.mark.parametrize(
    ("prompt", "found"),
    [
        ("with curly red hair, round glasses, laughing", ["curly red hair", "round glasses", "laughing"]),
        ("with red and curly hair", ["red and curly hair"]),
        ("red, curly hair", ["red, curly hair"]),
        ("long hair, red", ["long hair, red"]),
        ("hat, red, curly hair", ["hat", "red, curly hair"]),
        ("hair that is red, his eyes are blue", ["hair that is red", "eyes are blue"]),
        ("a man in black, curly hair", ["curly hair"]),
        ("black and white, curly hair", ["curly hair"]),
        ("(curly red hair:1.2), BREAK ((round)) [glasses]", ["curly red hair", "round glasses"]),
        ("<lora:hair:0.8> red\\(hair\\) embedding:hat", ["red hair"]),
        ("A Curly-Haired, Blue-Eyed MAN", ["Curly-Haired", "Blue-Eyed"]),
        ("dark eyes, hair tied back in a bun", ["dark eyes", "hair tied back in a bun"]),
        ("eyes closed, mouth open, red lipstick", ["eyes closed", "mouth open", "red lipstick"]),
        ("a bald man with a big bushy beard", ["bald", "big bushy beard"]),
        ("a man with fiery moonlit hair", ["fiery moonlit hair"]),
        ("an old bearded man in a blue shirt and a cowboy hat", ["old", "bearded", "blue shirt", "cowboy hat"]),
        ("a 30-year-old woman, two moustaches", ["30-year-old woman", "moustaches"]),
        ("cheveux, 赤い髪， red  hair。blue eyes", ["red hair", "blue eyes"]),
        ("red hair, round glasses, Red Hair", ["red hair", "round glasses"]),
    ],
)
def test_adjectives_stay_with_their_noun_and_markup_is_not_text(prompt, found):
    assert texts(prompt) == found


@pytest.mark.parametrize(
    "prompt",
    [
        "no glasses",
        "a man without a hat or earrings",
        "she isn't wearing any makeup, not smiling",
        "never with a very red hat",
        "non-smiling, glasses-free",
        "free of makeup",
    ],
)
def test_what_is_denied_is_no_attribute(prompt):
    assert split(prompt) == ()


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        "a photo of a man",
        "closeup, beautiful detailed eyes, hair",
        "two glasses of wine, eye contact, eye level shot",
        "an old photograph of an old wooden door",
        "happy birthday",
    ],
)
def test_what_every_face_has_and_what_only_sounds_alike_is_no_attribute(prompt):
    assert split(prompt) == ()


def test_a_denial_ends_where_something_else_begins():
    assert texts("no glasses, red hair") == ["red hair"]
    assert texts("without a hat and with round glasses") == ["round glasses"]


def test_an_attribute_tells_its_word_and_where_it_shows():
    hair, eyes, old, blonde = split("long hair, blue eyes, an old man, blonde woman")
    assert (hair.word, hair.labels, hair.parts) == ("hair", ("hair",), ())
    assert (eyes.word, eyes.labels, eyes.parts) == ("eyes", ("left eye", "right eye"), ("eyes",))
    assert (old.text, old.labels, old.parts, old.abstract) == ("old man", (), (), True)
    assert (blonde.text, blonde.kind, blonde.word) == ("blonde", "hair", "")


def test_the_vocabulary_speaks_the_parsers_and_the_meshs_language():
    known = words._vocabulary()
    for kind in {*known.names.values(), *known.alone.values()}:
        assert set(kind.labels) <= set(parse.LABELS) and set(kind.parts) <= set(masks.PARTS), kind.name
        assert not (kind.abstract and (kind.labels or kind.parts)), kind.name
        assert all(" " not in adjective and not adjective.startswith("@") for adjective in kind.adjectives), kind.name


def test_no_name_belongs_to_two_kinds_and_all_is_lower_case():
    data = json.loads((words.Path(words.__file__).parent / "vocabulary.json").read_text())
    names = [name for entry in data["kinds"].values() for name in entry["names"]]
    assert len(names) == len(set(names))
    lists = [value for key, value in data.items() if key not in ("about", "kinds")]
    for entry in data["kinds"].values():
        lists += [value for value in entry.values() if isinstance(value, list)]
    assert all(phrase == phrase.lower() for phrases in lists[:-1] for phrase in phrases)


def test_every_name_in_the_vocabulary_is_found_by_itself():
    for form, kind in words._vocabulary().names.items():
        (found,) = parse_list(" ".join(form))
        assert found.kind in (kind.name, "expression"), form


PIECES = [
    "red", "curly", "hair", "eyes", "no", "without", "a", "old", "man", "year", "glasses", "and", "or", "that", "is",
    "very", ",", "\n", "(", ")", ":1.2", ":", "BREAK", "smiling", "looking", "free", "-", "isn't", "<", ">", "[", "\\(",
    "é", "日本", "\ud800", "\0", "'s", "’", "_", "  ", "0.5", "embedding:", "<lora:x:1>", "black and white", "|", "&",
]  # fmt: skip


@given(st.one_of(st.text(max_size=60), st.lists(st.sampled_from(PIECES), max_size=20).map(" ".join)))
def test_any_string_is_read_without_complaint_and_always_the_same(text):
    for read in (split, parse_list):
        found = read(text)
        assert found == read(text)
        assert all(a.text.strip() and 0 <= a.strength <= 1 for a in found)
        assert len({a.text.casefold() for a in found}) == len(found)


def test_long_prompts_take_no_time():
    for text in ("<a:" * 5000, ":1" * 5000, "(1" * 5000, "red " * 5000, "red, " * 5000, "hair " * 3000, "1" * 20000):
        split(text)


# The user's own list


def test_a_list_has_entries_with_strengths():
    found = parse_list("curly red hair: 0.6\n- holographic moon hair: .3; glowing aura\nhair, no hat, big hat: 7")
    assert [(a.text, a.kind, a.word, a.strength) for a in found] == [
        ("curly red hair", "hair", "hair", 0.6),
        ("holographic moon hair", "hair", "hair", 0.3),
        ("glowing aura", OTHER, "aura", 1.0),
        ("hair", "hair", "hair", 1.0),
        ("big hat", "hat", "hat", 1.0),
    ]
    assert found[2].labels == found[2].parts == () and not found[2].abstract


def test_an_entry_with_several_attributes_is_several():
    found = parse_list("red hair and round glasses: 0.5")
    assert [(a.text, a.strength) for a in found] == [("red hair", 0.5), ("round glasses", 0.5)]


def test_an_empty_list_is_empty():
    assert parse_list("") == parse_list(" ,\n; : 0.5, 12") == ()
    assert parse_list("hat: nan")[0].strength == 1


# Tokens


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    file = tiny.save_vocabulary(tmp_path_factory.mktemp("models") / CARD.file)
    tower = clip.text_tower(tiny.text_encoder(64, 1, tiny.VOCABULARY), "tiny", quick=True)
    return {"sd15": CLIP({"l": tower}, [file]), "sdxl": CLIP({"l": tower, "g": tower}, [file])}


def spelled(encoder, prompt, found):
    """The tokens at ``found``, as text."""
    pieces = {number: piece for piece, number in encoder.vocabulary().ids.items()}
    row = [token[0] for chunk in encoder.tokenize(prompt)["l"] for token in chunk]
    return re.sub("</w>", " ", "".join(pieces[row[place]] for place in found)).strip()


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_a_words_places_are_those_of_its_tokens(clips, family):
    encoder, prompt = clips[family], "a photo of a man, (curly red hair:1.3), red hat, SMILING"
    found = split(prompt)
    assert [a.text for a in found] == ["curly red hair", "red hat", "SMILING"]
    assert [spelled(encoder, prompt, p) for p in places(encoder, prompt, found)] == ["hair", "hat", "smiling"]


def test_the_word_is_taken_where_its_own_adjectives_stand(clips):
    encoder, prompt = clips["sd15"], "a man by the red hat, blurry hat"
    red, blurry = places(encoder, prompt, parse_list("red hat, blurry hat"))
    row = [token[0] for token in encoder.tokenize(prompt)["l"][0]]
    hat = encoder.vocabulary().encode("hat")[0]
    assert [row[place] for place in (*red, *blurry)] == [hat, hat] and red < blurry


def test_a_phrase_in_other_words_finds_the_word_with_most_of_its_adjectives_beside_it(clips):
    encoder = clips["sd15"]
    prompt = "a hat by the sea, a photo of a man and a woman, a portrait of a man by the sea, a red blurry hat"
    (found,) = places(encoder, prompt, parse_list("blurry red hat"))
    row = [token[0] for token in encoder.tokenize(prompt)["l"][0]]
    hat = encoder.vocabulary().encode("hat")[0]
    assert found == (max(place for place, number in enumerate(row) if number == hat),) and row.count(hat) == 2


def test_a_phrase_that_stands_twice_has_both_places(clips):
    (found,) = places(clips["sd15"], "red hat, a man, red hat", parse_list("red hat"))
    assert len(found) == 2


def test_without_a_word_the_whole_phrase_counts(clips):
    encoder, prompt = clips["sd15"], "a blonde woman"
    assert spelled(encoder, prompt, places(encoder, prompt, split(prompt))[0]) == "blonde"


def test_places_count_on_into_the_second_chunk(clips):
    encoder, prompt = clips["sdxl"], "a photo of the sea, " * 14 + "red hat"
    (found,) = places(encoder, prompt, parse_list("red hat"))
    assert len(encoder.tokenize(prompt)["l"]) == 2 and found[0] > 77
    assert spelled(encoder, prompt, found) == "hat"


def test_what_the_prompt_does_not_hold_has_no_place(clips):
    assert places(clips["sd15"], "a photo of a man", parse_list("red hat, aura")) == ((), ())
    assert token_places([], [], []) == ()


def test_embeddings_among_the_tokens_are_nobodys_word():
    vector = torch.zeros(768)
    chunk = [[(98, 1.0), (vector, 1.0), (5, 1.0), (7, 1.0, 3), (99, 1.0), *[(99, 1.0)] * 72]]
    phrase = [[(98, 1.0), (5, 1.0), (7, 1.0), (99, 1.0)]]
    assert token_places(chunk, phrase, [[(98, 1.0), (7, 1.0), (99, 1.0)]]) == (3,)
    assert token_places(chunk, [[(98, 1.0), (vector, 1.0), (99, 1.0)]]) == ()
    numbers = [[(torch.tensor(number), 1.0) for number, _ in chunk] for chunk in phrase]
    assert token_places(chunk, numbers) == (2, 3)
