"""Training: what was cut off goes on as if nothing had happened, and several processes share a batch."""

import json
from dataclasses import dataclass

import pytest
import torch
from likeness.lab.fit import Task, fit, seeded
from torch import nn


@dataclass
class Line(Task):
    """A line through noisy points."""

    name: str = "line"
    steps: int = 8
    batch: int = 16
    rate: float = 2e-3
    stop: int = -1

    def build(self):
        return nn.Linear(2, 1)

    def loss(self, module, count, seed, step):
        if step == self.stop:
            raise KeyboardInterrupt
        x = torch.rand(count, 2, generator=torch.Generator().manual_seed(seed))
        return (module(x) - x.sum(1, keepdim=True)).square().mean()


def test_what_was_cut_off_goes_on_as_if_nothing_had_happened(tmp_path):
    whole = fit(Line(), tmp_path / "whole", processes=1, every=3)
    with pytest.raises(KeyboardInterrupt):
        fit(Line(stop=5), tmp_path / "cut", processes=1, every=3)
    assert not (tmp_path / "cut" / "line.pt").exists()
    went_on = fit(Line(), tmp_path / "cut", processes=1, every=3)
    assert whole.keys() == went_on.keys() == {"weight", "bias"}
    assert all(torch.equal(whole[name], went_on[name]) for name in whole)
    steps = [json.loads(line)["step"] for line in (tmp_path / "cut" / "line.jsonl").read_text().splitlines()]
    assert steps == [3, 6, 8]


def test_what_is_trained_is_not_trained_again(tmp_path):
    first = fit(Line(), tmp_path, processes=1)
    again = fit(Line(stop=0), tmp_path, processes=1)
    assert torch.equal(first["weight"], again["weight"])


def test_training_lowers_the_loss(tmp_path):
    fit(Line(steps=400, rate=2e-2), tmp_path, processes=1, every=100)
    losses = [json.loads(line)["loss"] for line in (tmp_path / "line.jsonl").read_text().splitlines()]
    assert losses[-1] < losses[0] / 10


@pytest.mark.slow
def test_two_processes_end_with_the_same_weights_each_time(tmp_path):
    one, two = (fit(Line(steps=4), tmp_path / name, processes=2) for name in ("one", "two"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_seed_of_several_numbers_depends_on_each():
    assert len({seeded(1, 2, 3), seeded(1, 2, 4), seeded(2, 2, 3), seeded(1, 2), seeded(3, 2, 1)}) == 5
    assert seeded(1, 2) == seeded(1, 2)
