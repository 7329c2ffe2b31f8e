"""How good a face is as a picture, with no network: detection, size, sharpness, how frontal, exposure.

``reference`` is the published heuristic to the letter. ``quality`` is what the pack uses: the same five parts with the
same weights, three of them measured differently, because the published ones depend on how large the file happens to be:

* *Sharpness* is the deviation of the Laplacian on the face aligned to a fixed 256 px crop, and only the part of it that
  is not noise counts. The published one is taken on the box as it lies in the picture: the same face in a larger file
  looks blurred, and a noisy one looks sharp.
* *Size* counts pixels, not the share of the picture: a face 300 px wide is good wherever it stands.
* *Frontal* is measured along the line of the eyes, so that a tilted head is not taken for a turned one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from ..geometry import arcface_template, similarity, transform, warp
from ..types import Array, Contract, Face

WEIGHTS: Mapping[str, float] = MappingProxyType(
    {"detection": 0.28, "size": 0.22, "sharpness": 0.22, "frontal": 0.18, "exposure": 0.10}
)
"""How much each part counts; insightface 1.0.1 gui/core/quality.py (MIT)."""

CROP = 256
"""Side in pixels of the aligned crop on which sharpness and exposure are measured."""

FULL_SIDE = 160.0
"""A face whose box has at least this mean side, in pixels, counts as large enough: little is invented in the crop."""

SMALL_SIDE = 56.0
"""Below this mean side the 112 px crop of every recogniser is enlarged more than twice: ``face_too_small``."""

SHARP = 20.0
"""Standard deviation of the crop's Laplacian that counts as wholly sharp; photographs in focus have 20 to 40."""

BLURRY = 4.5
"""Standard deviation of the Laplacian below which the crop is called ``blurry``."""

TEXTURE = 3.0
"""Levels of 255 that skin and JPEG blocks add to the noise estimate of a clean photograph; only what is more counts."""


_LEAST = 1e-3
"""A face more than this many times larger or smaller than the crop is not one."""


@dataclass(frozen=True)
class Quality:
    """One face's quality; every number is finite."""

    score: float
    """0 to 1, higher is better: the parts' weighted mean."""
    parts: Mapping[str, float]
    """``detection size sharpness frontal exposure``, 0 to 1, higher is better; then ``laplacian_variance``,
    ``noise_sigma`` (of 255 levels), ``brightness`` (0 to 255) and, if known, ``embedding_norm``, as measured."""
    flags: tuple[str, ...]
    """Of ``low_detection_score face_too_small blurry noisy too_dark too_bright side_face landmarks_missing``."""


def gray(picture: Tensor) -> Array:
    """(H, W) float32 luminance, 0 to 255, of a picture (H, W, 3): .299 R + .587 G + .114 B, not rounded."""
    levels = picture.numpy().astype(np.float32) * 255
    return (0.114 * levels[..., 2] + 0.587 * levels[..., 1] + 0.299 * levels[..., 0]).astype(np.float32)


def laplacian_variance(luminance: Array) -> float:
    """Population variance of the 4-neighbour Laplacian of (H, W), borders mirrored without repeating the edge.

    Equal to ``cv2.Laplacian(luminance, cv2.CV_64F).var()``.
    """
    h, w = luminance.shape
    y = np.pad(luminance.astype(np.float64), ((1, 1), (0, 0)), mode="reflect" if h > 1 else "edge")
    x = np.pad(luminance.astype(np.float64), ((0, 0), (1, 1)), mode="reflect" if w > 1 else "edge")
    return float((y[:-2] + y[2:] + x[:, :-2] + x[:, 2:] - 4 * luminance.astype(np.float64)).var())


def gradient_variance(luminance: Array) -> float:
    """Sum of the population variances of the differences across and down of (H, W)."""
    return sum(float(np.diff(luminance, axis=axis).var()) for axis in (0, 1) if luminance.shape[axis] > 1)


def noise_sigma(luminance: Array) -> float:
    """Standard deviation of white noise in (H, W), robustly: median of the diagonal Haar details over 0.6745.

    Donoho & Johnstone 1994. Skin is smooth, so the median sees noise, not features.
    """
    h, w = (size // 2 * 2 for size in luminance.shape)
    if h == 0 or w == 0:
        return 0.0
    g = luminance[:h, :w].astype(np.float64)
    detail = (g[0::2, 0::2] - g[0::2, 1::2] - g[1::2, 0::2] + g[1::2, 1::2]) / 2
    return float(np.median(np.abs(detail)) / 0.6745)


def quality(picture: Tensor, face: Face, *, contract: Contract | None = None) -> Quality:
    """The quality of ``face`` in ``picture`` (H, W, 3).

    ``contract`` names the embedding whose length is reported as ``embedding_norm``. It is left out for embedders that
    answer with unit vectors; for the others a short vector means a poor face (MagFace, arXiv 2103.06627; AdaFace,
    arXiv 2204.00964), but the scale is each network's own, so it is reported and not mixed into the score.
    """
    flags: list[str] = []
    detection = _unit(face.confidence)
    if detection < 0.55:
        flags.append("low_detection_score")
    side = float(np.sqrt(face.area)) if np.isfinite(face.box).all() else 0.0
    if side < SMALL_SIDE:
        flags.append("face_too_small")
    frontal, frontal_flags = _frontal(face.points, upright=False)

    crop, native = _aligned(picture, face)
    luminance = gray(crop)
    variance = laplacian_variance(luminance)
    clean, sigma = _clean(luminance if native is crop else gray(native))
    detail = float(np.sqrt(variance * clean))
    if detail < BLURRY:
        flags.append("blurry")
    if clean < 0.5:
        flags.append("noisy")
    exposure, brightness, exposure_flags = _exposure(luminance)
    parts = {
        "detection": detection,
        "size": _unit(side / FULL_SIDE),
        "sharpness": _unit(detail / SHARP) * clean,
        "frontal": frontal,
        "exposure": exposure,
    }
    score = _mean(parts)
    parts |= {"laplacian_variance": variance, "noise_sigma": sigma, "brightness": brightness}
    embedding = face.embedding(contract) if contract is not None and not contract.unit else None
    if embedding is not None and np.isfinite(norm := float(np.linalg.norm(embedding.vector))):
        parts["embedding_norm"] = norm
    return Quality(score, parts, tuple(sorted({*flags, *frontal_flags, *exposure_flags})))


def reference(picture: Tensor, box: Array, points: Array | None, confidence: float) -> Quality:
    """The heuristic of insightface 1.0.1 (``gui/core/quality.py: score_face``) to the letter, on ``picture`` (H, W, 3).

    ``points`` is (N, 2) or None; fewer than five count as ``landmarks_incomplete``. Its sharpness is meant to be the
    Laplacian's variance, but it asks OpenCV for float32 to float64, which OpenCV refuses; what it really answers, and
    we with it, is its fallback, ``gradient_variance``.
    """
    flags: list[str] = []
    detection = _unit(confidence)
    if detection < 0.55:
        flags.append("low_detection_score")
    h, w = picture.shape[:2]
    x1, y1, x2, y2 = (float(v) for v in box)
    share = max(0.0, x2 - x1) * max(0.0, y2 - y1) / max(1, h * w)
    if share < 0.01:
        flags.append("face_too_small")
    left, top, right, bottom = (round(v) for v in (x1, y1, x2, y2))
    left, top, right, bottom = max(0, left), max(0, top), min(w, right), min(h, bottom)
    crop = picture[top:bottom, left:right] if right > left and bottom > top else picture
    luminance = gray(crop)
    variance = gradient_variance(luminance)
    if variance < 45:
        flags.append("blurry")
    exposure, brightness, exposure_flags = _exposure(luminance)
    frontal, frontal_flags = _frontal(points, upright=True)
    parts = {
        "detection": detection,
        "size": _unit(share / 0.08),
        "sharpness": _unit(variance / 250),
        "frontal": frontal,
        "exposure": exposure,
    }
    score = _mean(parts)
    parts |= {"gradient_variance": variance, "brightness": brightness}
    return Quality(score, parts, tuple(sorted({*flags, *frontal_flags, *exposure_flags})))


def _unit(value: float) -> float:
    """Cut to [0, 1]; what is not a number counts as 0."""
    return min(1.0, max(0.0, float(value))) if np.isfinite(value) else 0.0


def _mean(parts: Mapping[str, float]) -> float:
    return _unit(sum(weight * parts[name] for name, weight in WEIGHTS.items()))


def _exposure(luminance: Array) -> tuple[float, float, list[str]]:
    """How near the mean is to middle grey, that mean, and flags."""
    brightness = float(luminance.mean(dtype=np.float64))
    flags = ["too_dark"] if brightness < 45 else ["too_bright"] if brightness > 220 else []
    return 1 - min(1.0, abs(brightness - 128) / 128), brightness, flags


def _frontal(points: Array | None, *, upright: bool) -> tuple[float, list[str]]:
    """1 for a face straight into the camera, falling as the nose leaves the middle; 0.55 where points are missing.

    ``upright`` measures along the picture's axes, as published; otherwise along the line of the eyes.
    """
    if points is None:
        return 0.55, ["landmarks_missing"]
    if len(points) < 5:
        return 0.55, ["landmarks_incomplete"]
    if not np.isfinite(points[:5]).all():
        return 0.55, ["landmarks_missing"]
    left_eye, right_eye, nose, left_mouth, right_mouth = np.asarray(points[:5], np.float64)
    eyes, mouth = (left_eye + right_eye) / 2, (left_mouth + right_mouth) / 2
    gap = float(np.linalg.norm(right_eye - left_eye))
    if gap == 0 and not upright:
        return 0.55, ["landmarks_missing"]
    across = np.array([1.0, 0.0]) if upright else (right_eye - left_eye) / gap
    down = np.array([-across[1], across[0]])
    offset = abs(float((nose - eyes) @ across)) / max(gap, 1.0)
    span = max(abs(float((mouth - eyes) @ down)), 1.0)
    middle = abs(float((nose - (eyes + mouth) / 2) @ down)) / span
    return _unit(1 - min(0.7, offset) - min(0.3, 0.3 * middle)), ["side_face"] if offset > 0.35 else []


def _clean(luminance: Array) -> tuple[float, float]:
    """The part of the Laplacian's variance that is not noise, 0 to 1, and the noise's standard deviation."""
    variance, sigma = laplacian_variance(luminance), noise_sigma(luminance)
    # The Laplacian of white noise has 20 times its variance: 4² + 4 · 1².
    noise = 20 * max(0.0, sigma * sigma - TEXTURE * TEXTURE)
    return (max(0.0, 1 - noise / variance) if variance > 0 else 1.0), sigma


def _aligned(picture: Tensor, face: Face) -> tuple[Tensor, Tensor]:
    """The face on the fixed crop (CROP, CROP, 3), and on one not larger than it is in the picture.

    Both are averaged over the area of each pixel where they are made smaller. The second is the first unless the face
    had to be enlarged: interpolation hides noise, so that it must be looked for before.
    """
    matrix, scale = _matrix(picture, face)
    # Bilinear sampling skips pixels when it makes smaller, which would pass noise and edges on as detail.
    shrink = int(1 / scale)
    if shrink > 1:
        picture, matrix = _shrunk(picture, matrix, shrink)
    crop = _crop(picture, matrix, CROP)
    enlarged = min(8, int(np.ceil(scale)))
    return crop, crop if enlarged <= 1 else _crop(picture, matrix / enlarged, CROP // enlarged)


def _matrix(picture: Tensor, face: Face) -> tuple[Array, float]:
    """From the picture to the crop, and by how much it enlarges: by the points, else by the box, else by the picture.

    A detector may answer with points that coincide or lie in a mirror; then the next is taken.
    """
    points = np.asarray(face.points, np.float64)
    if points.shape == (5, 2) and np.isfinite(points).all() and np.ptp(points, 0).max() > 0:
        matrix = similarity(points, arcface_template(CROP))
        scale = float(np.hypot(matrix[0, 0], matrix[1, 0]))
        if _LEAST < scale < 1 / _LEAST and np.abs(matrix).max() < 1e7:
            return matrix, scale
    height, width = picture.shape[:2]
    for x1, y1, x2, y2 in (np.asarray(face.box, np.float64).tolist(), (0.0, 0.0, float(width), float(height))):
        scale = CROP / max(x2 - x1, y2 - y1, 1.0)
        shift = np.array([CROP / 2 - scale * (x1 + x2) / 2, CROP / 2 - scale * (y1 + y2) / 2])
        if np.isfinite(shift).all() and scale > _LEAST:
            break
    return np.column_stack([np.eye(2) * scale, shift]), scale


def _crop(picture: Tensor, matrix: Array, side: int) -> Tensor:
    return warp(picture, matrix[None], (side, side), border="border")[0].permute(1, 2, 0)


def _shrunk(picture: Tensor, matrix: Array, factor: int) -> tuple[Tensor, Array]:
    """The part of ``picture`` that the crop shows, averaged over ``factor`` × ``factor`` pixels, and its matrix."""
    back = np.linalg.inv(matrix[:, :2])
    edge = float(CROP - 1)
    corners = np.array([[0.0, 0.0], [edge, 0.0], [0.0, edge], [edge, edge]])
    seen = (corners - matrix[:, 2]) @ back.T
    h, w = picture.shape[:2]
    x1, y1 = (int(np.clip(v - 2 * factor, 0, limit - 1)) for v, limit in zip(seen.min(0), (w, h), strict=True))
    x2, y2 = (int(np.clip(v + 2 * factor, 1, limit)) for v, limit in zip(seen.max(0), (w, h), strict=True))
    patch = picture[y1 : max(y2, y1 + 1), x1 : max(x2, x1 + 1)]
    if min(patch.shape[:2]) < factor:
        return picture, matrix
    small = F.avg_pool2d(patch.permute(2, 0, 1)[None], factor)[0].permute(1, 2, 0)
    # Pixel i of the small picture covers factor · i … factor · i + factor - 1 of the patch.
    origin = np.array([x1 + (factor - 1) / 2, y1 + (factor - 1) / 2])
    return small, np.column_stack([matrix[:, :2] * factor, transform(matrix, origin[None])[0].astype(np.float64)])
