"""Paste-back: the fast path against its slow twin, the golden pictures and InsightFace's own INSwapper."""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from likeness.face.errors import BadInput
from likeness.face.geometry import ARCFACE_112, arcface_template, similarity
from likeness.face.swap.paste import paste_back, paste_back_, paste_mask
from safetensors.numpy import load_file

GOLDEN = Path(__file__).parent / "golden" / "face_inswapper"
SIZE = 128


def slow_mask(frame, matrix, size=SIZE):
    """The recipe over the whole frame: (H, W) float32 in [0, 1]."""
    height, width = frame
    y, x = torch.meshgrid(torch.arange(height).double(), torch.arange(width).double(), indexing="ij")
    m = torch.from_numpy(matrix)
    u, v = (m[k, 0] * x + m[k, 1] * y + m[k, 2] for k in range(2))
    wide, high = (torch.minimum(torch.minimum(p + 1, size - p), torch.ones(())).clamp(0) for p in (u, v))
    white = (wide * high * 255 > 20).float()
    rows, columns = torch.nonzero(white.amax(1))[:, 0], torch.nonzero(white.amax(0))[:, 0]
    if len(rows) == 0:
        return torch.zeros(height, width)
    side = int(np.sqrt(float(rows[-1] - rows[0]) * float(columns[-1] - columns[0])))
    k = max(side // 10, 10)
    pad = (k // 2, k - 1 - k // 2) * 2
    eroded = -F.max_pool2d(F.pad(-white[None, None], pad, value=-1.0), k, 1)
    r = max(side // 20, 5)
    tap = torch.exp(-0.5 * (torch.arange(-r, r + 1).double() / (0.3 * (r - 1) + 0.8)) ** 2)
    tap = (tap / tap.sum()).float()
    blurred = F.conv2d(F.pad(eroded, (r, r, r, r), mode="reflect"), tap[None, None, :, None])
    return F.conv2d(blurred, tap[None, None, None])[0, 0]


def slow_paste(frame, crop, matrix):
    """The recipe over the whole frame, as the truth; frame and crop (H, W, 3) float32."""
    height, width = frame.shape[:2]
    y, x = torch.meshgrid(torch.arange(height).double(), torch.arange(width).double(), indexing="ij")
    m = torch.from_numpy(matrix)
    u, v = (m[k, 0] * x + m[k, 1] * y + m[k, 2] for k in range(2))
    grid = torch.stack([(2 * u + 1) / crop.shape[1] - 1, (2 * v + 1) / crop.shape[0] - 1], -1)[None]
    nchw = crop.permute(2, 0, 1)[None].double()
    warped = F.grid_sample(nchw, grid, padding_mode="zeros", align_corners=False)[0].permute(1, 2, 0).float()
    mask = slow_mask((height, width), matrix)[..., None]
    return mask * warped + (1 - mask) * frame


def matrix_for(width, height, face, angle=0.12, cx=0.5, cy=0.45):
    """From the frame to the crop of a face ``face`` pixels wide."""
    scale = face / 112 * 1.15
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) * scale
    points = (ARCFACE_112 - 56) @ turn.T + np.array([width * cx, height * cy])
    return similarity(points, arcface_template(SIZE))


def noise(height, width, seed=0):
    """A picture (height, width, 3) uint8 with detail down to a few pixels."""
    small = np.random.default_rng(seed).random((1, 3, max(2, height // 8), max(2, width // 8)), np.float32)
    big = F.interpolate(torch.from_numpy(small), (height, width), mode="bicubic", align_corners=False)
    return (big[0].permute(1, 2, 0).clamp(0, 1) * 255).round().to(torch.uint8)


PLACES = [
    {},
    {"cx": 0.03, "cy": 0.05},
    {"cx": 0.98, "cy": 0.97, "angle": -0.5},
    {"angle": 1.2},
    {"angle": 0.0},
    {"face": 420},
    {"face": 30, "cx": 0.5, "cy": 0.02},
]


@pytest.mark.parametrize("place", PLACES)
def test_the_fast_mask_is_the_slow_one(place):
    matrix = matrix_for(400, 300, **{"face": 120, **place})
    slow = slow_mask((300, 400), matrix)
    found = paste_mask((300, 400), (SIZE, SIZE), matrix)
    fast = torch.zeros(300, 400)
    fast[found.y : found.y + found.alpha.shape[0], found.x : found.x + found.alpha.shape[1]] = found.alpha
    assert float(slow.max()) > 0.1
    assert float((fast - slow).abs().max()) < 1 / 255


@settings(max_examples=25, deadline=None)
@given(st.floats(20, 200), st.floats(-3.2, 3.2), st.floats(-0.1, 1.1), st.floats(-0.1, 1.1), st.integers(0, 5))
def test_the_fast_paste_is_the_slow_one_wherever_the_face_is(face, angle, cx, cy, seed):
    matrix = matrix_for(200, 160, face, angle, cx, cy)
    frame, crop = noise(160, 200, seed).float() / 255, noise(SIZE, SIZE, seed + 9).float() / 255
    slow, fast = slow_paste(frame, crop, matrix), paste_back(frame, crop, matrix)
    # One pixel on the very edge of the threshold may fall either way, and erosion makes ten of it.
    assert float((slow - fast).abs().max()) < 8 / 255
    assert float((slow - fast).abs().mean()) < 0.1 / 255


def test_a_float_frame_and_a_uint8_frame_agree():
    matrix = matrix_for(400, 300, 120)
    frame, crop = noise(300, 400), noise(SIZE, SIZE, 1)
    whole = paste_back(frame, crop, matrix)
    part = paste_back(frame.float() / 255, crop.float() / 255, matrix)
    assert float((whole.float() / 255 - part).abs().max()) <= 0.51 / 255


def test_outside_its_mask_nothing_changes_and_the_input_stays():
    matrix = matrix_for(400, 300, 120)
    frame, crop = noise(300, 400), noise(SIZE, SIZE, 1)
    before = frame.clone()
    out = paste_back(frame, crop, matrix)
    found = paste_mask((300, 400), (SIZE, SIZE), matrix)
    outside = torch.ones(300, 400, dtype=torch.bool)
    outside[found.y : found.y + found.alpha.shape[0], found.x : found.x + found.alpha.shape[1]] = found.alpha == 0
    assert torch.equal(frame, before)
    assert torch.equal(out[outside], frame[outside])
    assert not torch.equal(out, frame)


def test_a_crop_that_lies_outside_the_frame_changes_nothing():
    frame = noise(300, 400)
    assert torch.equal(paste_back(frame, noise(SIZE, SIZE), matrix_for(400, 300, 100, cx=3.0)), frame)


def test_mixed_types_are_refused_with_a_sentence():
    with pytest.raises(BadInput, match="both be uint8 or both float32"):
        paste_back_(noise(30, 40), noise(SIZE, SIZE).float(), matrix_for(40, 30, 10))
    with pytest.raises(BadInput, match="shapes"):
        paste_back_(noise(30, 40), noise(SIZE, SIZE)[..., 0], matrix_for(40, 30, 10))


def test_the_golden_pictures_come_out():
    meta = json.loads((GOLDEN / "meta.json").read_text())
    assert meta["tolerance"].endswith("max <= 4 levels except at mask edges")
    inputs, outputs = (load_file(GOLDEN / f"{kind}.safetensors") for kind in ("inputs", "outputs"))
    for k in range(len(inputs["target_kps"])):
        frame, crop = torch.from_numpy(inputs["image_bgr"]), torch.from_numpy(outputs[f"swapped_bgr_{k}"])
        out = paste_back(frame, crop, outputs[f"matrix_{k}"])
        apart = np.abs(out.numpy().astype(int) - outputs[f"pasted_bgr_{k}"])
        assert apart.max() <= 2
        assert apart.mean() < 0.5


def test_insightface_pastes_the_same():
    pytest.importorskip("cv2", reason="insightface needs OpenCV")
    inswapper = pytest.importorskip(
        "insightface.model_zoo.inswapper", reason="the insightface package is not installed"
    )
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(str(GOLDEN / "model.onnx"), providers=["CPUExecutionProvider"])
    swapper = inswapper.INSwapper(str(GOLDEN / "model.onnx"), session)

    class Target:
        kps = (ARCFACE_112 - 56) * 2.3 + np.array([640.0, 330.0])

    class Source:
        normed_embedding = load_file(GOLDEN / "inputs.safetensors")["source_normed_embedding"][0]

    frame = noise(720, 1280).numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        theirs = swapper.get(frame, Target, Source, paste_back=True)
        crop, matrix = swapper.get(frame, Target, Source, paste_back=False)
    ours = paste_back(torch.from_numpy(frame), torch.from_numpy(np.ascontiguousarray(crop)), matrix)
    assert np.abs(ours.numpy().astype(int) - theirs).max() <= 2
