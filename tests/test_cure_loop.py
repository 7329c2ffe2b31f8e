"""The closed loop, with functions that pretend."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from likeness.face.cure.judge import Verdict
from likeness.face.cure.loop import closed_loop
from likeness.face.cure.words import Attribute
from likeness.face.errors import BadInput

A, B, C = (Attribute(text, "any") for text in ("red hair", "glasses", "laughing"))
WANTED = (A, B, C)


class World:
    """Pictures whose only pixel counts the drawings; ``script`` says per drawing and picture what is present."""

    def __init__(self, script, likes=None):
        self.script, self.likes, self.cured = script, likes, []

    def picture(self):
        number = len(self.cured)
        return torch.full((len(self.script[0]), 1, 1, 3), float(number))

    def draw(self):
        return self.picture()

    def cure(self, attributes):
        self.cured.append([attribute.text for attribute in attributes])
        self.strengths = [attribute.strength for attribute in attributes]
        return self.picture()

    def judge(self, pictures, attributes):
        rows = self.script[min(int(pictures[0, 0, 0, 0]), len(self.script) - 1)]
        return [[Verdict(a.text, p) for a, p in zip(attributes, row, strict=True)] for row in rows]

    def like(self, pictures):
        return self.likes[int(pictures[0, 0, 0, 0])]

    def run(self, rounds=2, **more):
        similarity = self.like if self.likes else None
        return closed_loop(self.draw, self.cure, self.judge, WANTED, rounds, similarity=similarity, **more)


def test_where_nothing_is_missing_nothing_is_cured():
    world = World([[(True, True, True)]])
    done = world.run()
    assert world.cured == [] and done.stopped == "nothing is missing" and done.best == (0,)


def test_only_what_is_missing_is_cured():
    world = World([[(True, False, None)], [(True, True, None)]])
    done = world.run()
    assert world.cured == [["glasses"]]
    assert done.best == (1,) and done.missing == () and done.unjudged == (C,)
    assert done.stopped == "nothing was found missing; not judged: laughing"


def test_what_is_not_judged_is_cured_only_if_asked_and_once():
    script = [[(True, True, None)], [(True, True, None)]]
    assert World(script).run().rounds[-1].cured == ()
    world = World(script)
    done = world.run(5, cure_unjudged=True)
    assert world.cured == [["laughing"]] and done.best == (0,) and done.stopped == "round 1 gained nothing"


def test_what_is_still_not_judged_is_not_cured_more_strongly():
    world = World([[(False, False, None)], [(True, False, None)], [(True, True, None)]])
    world.run(5, cure_unjudged=True, stronger=2.0)
    assert world.cured[1] == ["red hair", "glasses", "laughing"] and world.strengths == [1.0, 2.0, 1.0]


def test_of_equals_the_one_with_fewer_missing_is_kept():
    assert World([[(True, False, False)], [(True, None, False)]]).run().best == (1,)
    assert World([[(True, None, False)], [(True, False, False)]]).run().best == (0,)


def test_a_later_round_keeps_curing_what_an_earlier_one_gave():
    world = World([[(False, True, True)], [(True, False, True)], [(True, True, True)]])
    done = world.run(3)
    # One attribute came and one went: not more than before.
    assert world.cured == [["red hair"]] and done.stopped == "round 1 gained nothing"
    world = World([[(False, True, False)], [(True, False, True)], [(True, True, True)]])
    done = world.run(3)
    assert world.cured == [["red hair", "laughing"], ["red hair", "glasses", "laughing"]]
    assert done.best == (2,) and done.stopped == "nothing is missing"


def test_a_round_that_would_repeat_the_last_is_not_run_unless_it_is_stronger():
    script = [[(False, False, True)], [(True, False, True)], [(True, True, True)]]
    world = World(script)
    done = world.run(5)
    assert len(world.cured) == 1 and "repeat" in done.stopped
    world = World(script)
    done = world.run(5, stronger=1.5)
    assert len(world.cured) == 2 and world.strengths == [1.0, 1.5] and done.best == (2,)


def test_rounds_are_used_up():
    world = World([[(False, False, False)], [(True, False, False)], [(True, True, False)], [(True, True, True)]])
    done = world.run(2, stronger=1.5)
    assert len(world.cured) == 2 and done.stopped == "2 rounds used up" and done.missing == (C,)
    assert World([[(False, True, True)]]).run(0).stopped == "no round was allowed"


def test_the_best_picture_is_kept_and_of_equals_the_one_most_like_the_person():
    world = World([[(True, True, False)], [(True, False, False)]])
    assert world.run().best == (0,)
    worse = World([[(True, True, False)], [(True, True, False)]], [[0.7], [0.5]]).run()
    better = World([[(True, True, False)], [(True, True, False)]], [[0.5], [0.7]]).run()
    assert (worse.best, better.best) == ((0,), (1,))
    assert worse.similarity_before == (0.7,) and better.similarity_after == (0.7,)
    # Less alike, but with one attribute more.
    assert World([[(True, False, True)], [(True, True, True)]], [[0.9], [0.4]]).run().best == (1,)


def test_of_a_batch_what_one_picture_misses_is_cured_and_every_picture_keeps_its_best():
    world = World([[(True, True, True), (True, False, True)], [(False, True, True), (True, True, True)]])
    done = world.run()
    assert world.cured == [["glasses"]] and done.best == (0, 1)
    assert done.pictures[:, 0, 0, 0].tolist() == [0.0, 1.0]
    assert all(verdict.present for row in done.verdicts for verdict in row)


states = st.sampled_from([True, False, None])
drawn = st.lists(st.tuples(states, states, states), min_size=2, max_size=2)


@given(st.lists(drawn, min_size=1, max_size=6), st.integers(0, 4), st.booleans(), st.sampled_from([1.0, 1.5]))
def test_it_always_ends_and_never_leaves_a_picture_worse(script, rounds, cure_unjudged, stronger):
    world = World(script)
    done = world.run(rounds, cure_unjudged=cure_unjudged, stronger=stronger)
    assert len(world.cured) <= rounds and done.stopped
    for i, row in enumerate(done.verdicts):
        assert sum(v.present is True for v in row) >= sum(v.present is True for v in done.rounds[0].verdicts[i])
    if not cure_unjudged:
        seen = {v.attribute for look in done.rounds for row in look.verdicts for v in row if v.present is False}
        assert all(set(names) <= seen for names in world.cured)
    record = json.loads(json.dumps(done.to_json()))
    assert len(record["rounds"]) == len(world.cured) + 1


def test_without_attributes_there_is_nothing_to_do():
    done = closed_loop(lambda: torch.zeros(1, 4, 4, 3), pytest.fail, lambda p, a: [()] * len(p), ())
    assert done.stopped == "nothing is missing" and done.missing == ()


def test_what_does_not_belong_to_the_batch_is_refused():
    with pytest.raises(BadInput, match="verdicts on 1 pictures"):
        closed_loop(lambda: torch.zeros(2, 4, 4, 3), pytest.fail, lambda p, a: [()], ())
    world = World([[(False, True, True)]])
    with pytest.raises(BadInput, match="draws the same pictures anew"):
        closed_loop(world.draw, lambda a: torch.zeros(1, 2, 2, 3), world.judge, WANTED)
    with pytest.raises(BadInput, match="0 rounds or more"):
        world.run(-1)
