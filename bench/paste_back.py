"""Paste-back against InsightFace's own ``INSwapper.get(paste_back=True)``: CPU time, and the largest difference.

``python bench/paste_back.py [--rounds N] [--json]``. Needs the development extras (insightface, OpenCV). One thread on
both sides, interleaved; uint8 frames; medians of process CPU time. The peer's figure is its paste-back alone: the call
with it less the call without. Ours is in place; the one copy of the frame, which a caller may want, is left out.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import sys
import warnings
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
from _measure import interleaved, package

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests" / "golden" / "face_inswapper"
CASES = (
    ("720p", 1280, 720, 180, 8),
    ("1080p", 1920, 1080, 250, 10),
    ("4K", 3840, 2160, 450, 15),
    ("4096²", 4096, 4096, 600, 20),
)
"""Name, width, height, width of the face in pixels, the ratio to reach."""


def peer() -> Any:
    """InsightFace's swapper on a tiny random network with the real interface."""
    import onnxruntime
    from insightface.model_zoo.inswapper import INSwapper

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    model = str(GOLDEN / "model.onnx")
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    with contextlib.redirect_stdout(io.StringIO()):
        return INSwapper(model, session)


def measure(rounds: int) -> list[dict[str, Any]]:
    """One row per case."""
    import cv2
    from likeness.face.geometry import ARCFACE_112
    from likeness.face.swap.paste import paste_back_
    from safetensors.numpy import load_file

    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    swapper = peer()
    rng = np.random.default_rng(0)

    class Source:
        normed_embedding = load_file(GOLDEN / "inputs.safetensors")["source_normed_embedding"][0]

    rows: list[dict[str, Any]] = []
    for name, width, height, face, target in CASES:
        small = rng.integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8)
        frame = cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)
        turn = np.array([[np.cos(0.1), -np.sin(0.1)], [np.sin(0.1), np.cos(0.1)]])

        class Target:
            # The eyes of a face are about 0.45 of its box apart; the template's are 35.24 px.
            kps = (ARCFACE_112 - 56) @ turn.T * (0.45 * face / 35.24) + np.array([width * 0.5, height * 0.45])

        theirs = swapper.get(frame, Target, Source, paste_back=True)
        crop, matrix = swapper.get(frame, Target, Source, paste_back=False)
        face_crop = torch.from_numpy(np.ascontiguousarray(crop))
        out = torch.from_numpy(frame.copy())
        paste_back_(out, face_crop, matrix)
        difference = int(np.abs(out.numpy().astype(np.int16) - theirs).max())
        scratch = torch.from_numpy(frame.copy())
        seconds = interleaved(
            {
                "whole": partial(swapper.get, frame, Target, Source, paste_back=True),
                "bare": partial(swapper.get, frame, Target, Source, paste_back=False),
                "ours": partial(paste_back_, scratch, face_crop, matrix),
            },
            rounds,
        )
        theirs_ms, ours_ms = 1000 * (seconds["whole"] - seconds["bare"]), 1000 * seconds["ours"]
        rows.append(
            {
                "case": name,
                "face": face,
                "insightface_ms": round(theirs_ms, 2),
                "likeness_ms": round(ours_ms, 2),
                "ratio": round(theirs_ms / ours_ms, 1),
                "target": target,
                "largest_difference": difference,
            }
        )
    return rows


def main() -> int:
    """Print the table, or JSON; 1 if a target is missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", FutureWarning)
    package()
    try:
        rows = measure(arguments.rounds)
    except ImportError as error:
        print(
            f"paste-back needs the development extras (insightface, opencv-python-headless): {error}", file=sys.stderr
        )
        return 2
    if arguments.json:
        print(json.dumps(rows, indent=1))
    else:
        print("| frame | face px | insightface ms CPU | likeness ms CPU | ratio | target | largest difference |")
        print("|---|---|---|---|---|---|---|")
        for row in rows:
            print("| " + " | ".join(str(value) for value in row.values()) + " |")
    return 0 if all(row["ratio"] >= row["target"] and row["largest_difference"] <= 2 for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
