"""The lab's portraits: what is asked for shows, nothing else changes, and the parts are exact."""

import numpy as np
import pytest
from likeness.face.cure import words
from likeness.lab import world

MANY = 400


@pytest.fixture(scope="module")
def drawn():
    """People, wishes and chances, and their portraits."""
    told = world.people(MANY, 0), world.wishes(MANY, 1), world.chances(MANY, 2)
    return (*told, world.draw(*told))


def changed(values, name, value):
    return {**values, name: np.full_like(values[name], value)}


def part(portraits, *names):
    return np.isin(portraits.parts, [world.PARTS.index(name) for name in names])


def differs(a, b):
    """(N, H, W): the pixels that are not the same."""
    return (a.pixels != b.pixels).any(-1)


def test_the_same_numbers_draw_the_same_portrait(drawn):
    who, what, chance, portraits = drawn
    again = world.draw(who, what, chance)
    assert (again.pixels == portraits.pixels).all() and (again.parts == portraits.parts).all()
    assert portraits.pixels.shape == (MANY, 32, 32, 3) and portraits.pixels.dtype == np.uint8


@pytest.mark.parametrize("name", world.TRAITS)
def test_every_trait_shows_unless_something_hides_it(drawn, name):
    who, what, chance, _ = drawn
    bare = {key: np.zeros_like(values) for key, values in what.items()}
    for one in range(len(world.TRAITS[name])):
        for other in range(one):
            a, b = (world.draw(changed(who, name, value), bare, chance) for value in (one, other))
            assert differs(a, b).any((1, 2)).all(), f"{name} {one} and {other}"


@pytest.mark.parametrize("name", world.ATTRIBUTES)
def test_every_attribute_shows_on_everybody(drawn, name):
    who, what, chance, _ = drawn
    # A hat and a bun cover each other's place; whatever else there is, no attribute hides another one.
    what = changed(what, "hat", 0) if name == "style" else what
    for one in range(len(world.ATTRIBUTES[name])):
        for other in range(one):
            a, b = (world.draw(who, changed(what, name, value), chance) for value in (one, other))
            assert differs(a, b).any((1, 2)).all(), f"{name} {one} and {other}"


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("hair", ("hair", "beard")),
        ("background", ("background",)),
        ("glasses", ("glasses",)),
        ("hat", ("hat",)),
        ("earrings", ("earrings",)),
        ("beard", ("beard",)),
        ("expression", ("mouth",)),
    ],
)
def test_an_attribute_changes_its_own_part_alone(drawn, name, parts):
    """So the parts are the exact masks of what the prompt asks for."""
    who, what, chance, _ = drawn
    for one in range(1, len(world.ATTRIBUTES[name])):
        a, b = (world.draw(who, changed(what, name, value), chance) for value in (0, one))
        assert not (differs(a, b) & ~(part(a, *parts) | part(b, *parts))).any()


def test_light_changes_no_part(drawn):
    who, what, chance, _ = drawn
    day, evening = (world.draw(who, changed(what, "light", value), chance) for value in (0, 1))
    assert (day.parts == evening.parts).all() and (evening.pixels <= day.pixels).all()


def test_who_somebody_is_leaves_the_background(drawn):
    _, what, chance, _ = drawn
    a, b = (world.draw(world.people(MANY, seed), what, chance) for seed in (5, 6))
    both = part(a, "background") & part(b, "background")
    assert both.any((1, 2)).all() and not (differs(a, b) & both).any()


def test_every_value_comes_often_enough():
    what = world.wishes(4000, 3)
    for name, values in world.ATTRIBUTES.items():
        assert (np.bincount(what[name], minlength=len(values)) > 4000 / len(values) / 2).all(), name


def test_a_sentence_says_what_is_wanted_and_the_pack_reads_it(drawn):
    """The lab's prompts are ordinary prompts: the vocabulary of the cure finds the attributes in them."""
    _, what, _, _ = drawn
    for number in range(60):
        said = world.sentence(what, number)
        kinds = {attribute.kind for attribute in words.split(said)}
        assert "hair" in kinds
        for name, kind in (("glasses", "glasses"), ("hat", "hat"), ("beard", "beard"), ("earrings", "earrings")):
            assert (what[name][number] != 0) == (kind in kinds), said
    assert len({world.sentence(what, number) for number in range(MANY)}) > 0.9 * MANY
