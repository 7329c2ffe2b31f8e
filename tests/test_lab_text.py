"""Prompts of the lab: everything can be said, in any order, and every word has its place in both tables."""

import itertools

import numpy as np
import pytest
import torch
from likeness.face.cure import words as cure_words
from likeness.face.vocabulary import CARD
from likeness.lab import text, world
from likeness.tests import tiny_diffusion


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    return text.words(tiny_diffusion.save_vocabulary(tmp_path_factory.mktemp("models") / CARD.file))


def asked(**values):
    """Wishes of one portrait, by value."""
    what = {name: np.array([0]) for name in world.ATTRIBUTES}
    return what | {n: np.array([world.ATTRIBUTES[n].index(v)]) for n, v in values.items()}


def test_colour_and_style_share_a_noun_in_either_order():
    what = asked(hair="red", style="long")
    assert text.prompt(what, 0, ["hair", "style"]) == "a portrait of a person, long red hair"
    assert text.prompt(what, 0, ["style", "hair"]) == "a portrait of a person, long red hair"
    assert text.prompt(what, 0, ["hair"]) == "a portrait of a person, red hair"
    assert text.prompt(asked(style="bun"), 0, ["style"]) == "a portrait of a person, hair in a bun"


def test_what_is_not_named_is_not_in_the_prompt():
    assert text.prompt(asked(hat="cap"), 0, []) == text.BEGINNING
    assert text.prompt(asked(), 0, ["hat", "glasses"]) == "a portrait of a person, no hat, no glasses"


def test_every_value_of_an_attribute_is_said_in_words_of_its_own():
    phrases = [text.phrase(name, value) for name, values in world.ATTRIBUTES.items() for value in values]
    assert len(set(phrases)) == len(phrases)


def test_every_prompt_has_tokens_that_end_alike(words):
    prompts = [text.prompt(asked(**{n: v}), 0, [n]) for n, values in world.ATTRIBUTES.items() for v in values] + [
        "",
        text.BEGINNING,
    ]
    tokens = words.tokens(prompts)
    assert tokens.shape == (len(prompts), 77)
    assert (tokens[:, 0] == words.size - 2).all() and (tokens[:, -1] == words.size - 1).all()
    assert len(tokens.unique(dim=0)) == len(prompts)


def test_small_tokens_are_those_of_the_whole_vocabulary(words):
    prompt = "a portrait of a person, long red hair, no hat"
    whole = words.vocabulary.encode(prompt)
    small = words.tokens([prompt])[0, 1 : 1 + len(whole)]
    assert [words.ids[place] for place in small.tolist()] == whole


def test_the_whole_table_holds_the_small_one_and_nothing_else(words):
    table = torch.randn(words.size, 4)
    full = words.full(table)
    assert full.shape == (text.CLIP_TOKENS, 4)
    assert torch.equal(full[words.ids], table[:-2]) and torch.equal(full[-2:], table[-2:])
    assert int((full != 0).any(1).sum()) == words.size


@pytest.mark.parametrize("name", ["hair", "style", "glasses", "hat", "beard", "earrings", "expression"])
def test_the_cure_reads_what_a_prompt_asks_of_a_person(name):
    for value in world.ATTRIBUTES[name]:
        found = cure_words.split(text.prompt(asked(**{name: value}), 0, [name]))
        denied = value == "none"
        assert len(found) == (0 if denied else 1), (value, found)
        if not denied:
            assert found[0].abstract == (name == "expression")


def test_the_cure_reads_several_at_once():
    what = asked(hair="red", style="long", glasses="round glasses", hat="beanie", beard="moustache")
    for order in itertools.permutations(["hair", "style", "glasses", "hat", "beard"], 3):
        wanted = {"hair" if n == "style" else n for n in order}
        assert len(cure_words.split(text.prompt(what, 0, order))) == len(wanted)
