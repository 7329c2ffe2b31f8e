"""Alignment and keypoints pictures against the original implementations' own numbers (tests/golden/*/meta.json)."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from likeness.face.geometry import arcface_template, similarity, warp
from likeness.face.image import to_uint8
from likeness.face.keypoints import keypoints_image
from safetensors.numpy import load_file

GOLDEN = Path(__file__).parent / "golden"


def fixture(name):
    folder = GOLDEN / name
    return (
        json.loads((folder / "meta.json").read_text())["config"],
        load_file(folder / "inputs.safetensors"),
        load_file(folder / "outputs.safetensors"),
    )


NORM_CROP, NORM_INPUTS, NORM_OUTPUTS = fixture("face_norm_crop")
KPS, KPS_INPUTS, KPS_OUTPUTS = fixture("instantid_draw_kps")


@pytest.mark.parametrize("size", NORM_CROP["sizes"])
def test_alignment_matrices_are_insightfaces(size):
    for points, expected in zip(NORM_INPUTS["landmarks"], NORM_OUTPUTS[f"matrix_{size}"], strict=True):
        matrix = similarity(points, arcface_template(size))
        assert np.abs(matrix[:, :2] - expected[:, :2]).max() < 1e-5
        assert np.abs(matrix[:, 2] - expected[:, 2]).max() < 1e-3


@pytest.mark.parametrize("size", NORM_CROP["crop_sizes"])
def test_aligned_crops_are_insightfaces(size):
    rgb = torch.from_numpy(NORM_INPUTS["image_bgr"][..., ::-1].copy()).float() / 255
    points = NORM_INPUTS["landmarks"][: NORM_CROP["n_crops"]]
    matrices = np.stack([similarity(p, arcface_template(size)) for p in points])
    crops = to_uint8(warp(rgb, matrices, (size, size)).permute(0, 2, 3, 1))[..., ::-1].astype(int)
    difference = np.abs(crops - NORM_OUTPUTS[f"crops_{size}"])
    assert difference.mean() < 0.5
    assert difference.max() <= 3


@pytest.mark.parametrize("number", range(len(KPS["sizes_wh"])))
def test_keypoints_pictures_are_instantids_to_the_pixel(number):
    width, height = KPS["sizes_wh"][number]
    drawn = to_uint8(keypoints_image(KPS_INPUTS[f"kps_{number}"], height, width))
    assert np.array_equal(drawn, KPS_OUTPUTS[f"kps_image_{number}"])


def test_keypoints_pictures_of_large_frames_are_opencvs():
    cv2 = pytest.importorskip("cv2", reason="OpenCV is only a peer to compare with")
    random = np.random.default_rng(5)
    for side in (300, 1000, 2000):
        points = random.uniform(0.1 * side, 0.9 * side, (5, 2)).astype(np.float32)
        expected = _drawn_by_opencv(cv2, points, side)
        assert (to_uint8(keypoints_image(points, side, side)) != expected).any(-1).sum() <= 3


def _drawn_by_opencv(cv2, points, side):
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (255, 0, 255)]
    canvas = np.zeros((side, side, 3))
    for first, last in ((0, 2), (1, 2), (3, 2), (4, 2)):
        (x1, y1), (x2, y2) = points[first], points[last]
        half = int(((x1 - x2) ** 2 + (y1 - y2) ** 2) ** 0.5 / 2)
        angle = int(np.degrees(np.arctan2(float(y1 - y2), float(x1 - x2))))
        centre = (int(np.mean([x1, x2])), int(np.mean([y1, y2])))
        outline = cv2.ellipse2Poly(centre, (half, 4), angle, 0, 360, 1)
        cv2.fillConvexPoly(canvas, outline, colours[first])
    canvas = (canvas * 0.6).astype(np.uint8)
    for (x, y), colour in zip(points, colours, strict=True):
        cv2.circle(canvas, (int(x), int(y)), 10, colour, -1)
    return canvas
