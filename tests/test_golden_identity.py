"""Neighbour feature centralisation against the authors' own function (yuanc3/Pose2ID@0fea3b3 NFC.py)."""

import json
from pathlib import Path

import numpy as np
import pytest
from likeness.face.combine import centralise, neighbours
from safetensors.numpy import load_file

GOLDEN = Path(__file__).parent / "golden" / "face_nfc"
TOLERANCE = 1e-5


@pytest.mark.parametrize(("k1", "k2"), json.loads((GOLDEN / "meta.json").read_text())["config"]["k"])
def test_centralising_is_pose2ids(k1, k2):
    features = load_file(GOLDEN / "inputs.safetensors")["features"]
    expected = load_file(GOLDEN / "outputs.safetensors")[f"out_k{k1}_{k2}"]
    assert np.abs(centralise(features, k1, k2) - expected).max() <= TOLERANCE
    assert np.abs(centralise(features, k1, k2) - features).max() > 0.1


def test_two_vectors_are_each_others_neighbours():
    inputs, outputs = load_file(GOLDEN / "inputs.safetensors"), load_file(GOLDEN / "outputs.safetensors")
    small = inputs.get("small", inputs["features"][:2])
    assert np.abs(centralise(small, 1, 1) - outputs["out_small_k1_1"]).max() <= TOLERANCE


def test_five_vectors_on_a_circle():
    """At 0, 10, 20, 25 and 90 degrees, worked out by hand: the one at 90 is left alone, the others draw together."""
    angles = np.radians([0, 10, 20, 25, 90])
    features = np.stack([np.cos(angles), np.sin(angles)], 1)
    assert [sorted(near.tolist()) for near in neighbours(features)] == [[1], [0, 2], [1, 3], [2], []]
    moved = centralise(features)
    expected = [[1.984808, 0.173648], [2.9245, 0.515668], [2.830808, 0.938287], [1.846, 0.764638], [0, 1]]
    assert np.abs(moved - expected).max() < 1e-6
    assert np.degrees(np.arctan2(moved[:, 1], moved[:, 0])) == pytest.approx([5, 10, 18.3381, 22.5, 90], abs=1e-4)
