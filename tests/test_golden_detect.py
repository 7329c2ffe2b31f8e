"""Decoding and suppression against the original implementations' own numbers (the tolerances are in meta.json)."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from likeness.face.detect import retinaface, scrfd
from likeness.face.detect._plumbing import canvas
from likeness.face.session import OnnxModel
from safetensors.numpy import load_file


def fixture(name):
    """(folder, config, inputs, outputs) of a golden set; skips the module where it is not there."""
    places = [Path(__file__).parent / "golden" / name]
    if more := os.environ.get("LIKENESS_GOLDEN"):
        places.append(Path(more) / name)
    for folder in places:
        if (folder / "meta.json").is_file():
            meta = json.loads((folder / "meta.json").read_text())
            inputs, outputs = (load_file(folder / f"{kind}.safetensors") for kind in ("inputs", "outputs"))
            return folder, meta["config"], inputs, outputs
    pytest.skip(f"the golden set {name} is in none of {places}; set LIKENESS_GOLDEN", allow_module_level=True)


SCRFD_FOLDER, SCRFD, SCRFD_IN, SCRFD_OUT = fixture("face_scrfd")
_, RETINA, RETINA_IN, RETINA_OUT = fixture("face_retinaface")
WIDTH, HEIGHT = SCRFD["input_size_wh"]
PICTURE = torch.from_numpy(SCRFD_IN["image_bgr"][..., ::-1].copy()).float()[None] / 255


def inner():
    return scrfd.letterbox(*PICTURE.shape[1:3], (HEIGHT, WIDTH))


def test_scrfd_canvas_is_insightfaces():
    blob = (canvas(PICTURE, inner(), (HEIGHT, WIDTH)) - 127.5) / 128
    assert blob.shape == SCRFD_OUT["blob"].shape
    assert np.abs(blob - SCRFD_OUT["blob"]).max() <= 2 / 128


def distinct(rows, scores):
    """The rows whose score no other shares: numpy leaves open in which order equal scores are sorted."""
    values, counts = np.unique(np.round(scores, 6), return_counts=True)
    return rows[np.isin(np.round(scores, 6), values[counts == 1])]


def test_scrfd_candidates_and_detections_are_insightfaces():
    heads = [SCRFD_OUT[f"head_{part}_{stride}"] for part in ("score", "bbox", "kps") for stride in (8, 16, 32)]
    found = scrfd.decode(heads, scrfd.LAYOUTS[9], HEIGHT, WIDTH, SCRFD["det_thresh"])
    back = PICTURE.shape[1] / inner()[0]
    found = found.scaled(back, back)

    rows = np.column_stack([found.boxes, found.scores, found.points.reshape(-1, 10)])
    expected = np.column_stack([SCRFD_OUT["candidates"], SCRFD_OUT["candidate_kps"].reshape(-1, 10)])
    assert np.abs(found.scores - expected[:, 4]).max() < 1e-6
    order = [np.lexsort((np.round(r[:, 0]), np.round(-r[:, 4], 6))) for r in (rows, expected)]
    assert np.abs(rows[order[0]] - expected[order[1]]).max() < 1e-3

    assert SCRFD["nms_thresh"] == scrfd.OVERLAP
    kept = found.without_doubles(scrfd.OVERLAP, scrfd.PIXEL)
    ours = distinct(np.column_stack([kept.boxes, kept.scores, kept.points.reshape(-1, 10)]), kept.scores)
    all_theirs = np.column_stack([SCRFD_OUT["detections"], SCRFD_OUT["kps"].reshape(-1, 10)])
    theirs = distinct(all_theirs, all_theirs[:, 4])
    assert len(theirs) > 15
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() < 1e-3


def test_scrfd_from_picture_to_faces_gives_the_same_faces():
    net = scrfd.SCRFD(OnnxModel(SCRFD_FOLDER / "model.onnx"), scrfd.LAYOUTS[9], (HEIGHT, WIDTH))
    (found,) = net.find(PICTURE, WIDTH, SCRFD["det_thresh"])
    expected = SCRFD_OUT["detections"]
    # Random weights answer to half a grey level of the resize: scores near the threshold may fall on either side.
    sure = expected[expected[:, 4] > SCRFD["det_thresh"] + 0.02]
    for row in distinct(sure, sure[:, 4]):
        assert np.abs(found.boxes - row[:4]).max(1).min() < 1
    assert abs(len(found) - len(expected)) <= 2


def test_retinaface_priors_boxes_and_detections_are_the_authors():
    height, width = RETINA["height"], RETINA["width"]
    anchors = retinaface.priors(height, width)
    assert np.abs(anchors - RETINA_OUT["priors"]).max() < 1e-6
    boxes, points = retinaface.decode(RETINA_IN["loc"], RETINA_IN["landm"], anchors, height, width)
    assert np.abs(boxes - RETINA_OUT["boxes"]).max() < 1e-3
    assert np.abs(points.reshape(-1, 10) - RETINA_OUT["landmarks"]).max() < 1e-3
    found = retinaface.found_in(
        RETINA_IN["loc"], RETINA_IN["conf"], RETINA_IN["landm"], height, width, RETINA["confidence_threshold"]
    )
    assert RETINA["nms_threshold"] == retinaface.OVERLAP
    rows = np.column_stack([found.boxes, found.scores, found.points.reshape(-1, 10)])
    assert rows.shape == RETINA_OUT["detections"].shape
    assert np.abs(rows - RETINA_OUT["detections"]).max() < 1e-3


def test_retinaface_box_of_the_reference_note():
    anchor = np.array([[0.5, 0.5, 0.025, 0.025]], np.float32)
    boxes, _ = retinaface.decode(
        np.array([[1, -1, 0.5, 0]], np.float32), np.zeros((1, 10), np.float32), anchor, 640, 640
    )
    assert np.allclose(boxes[0], [312.75863, 310.4, 330.44137, 326.4], atol=1e-4)
