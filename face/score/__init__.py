"""How good is a face: like the person, a good picture, and otherwise as it was.

``score`` measures faces that were looked at before, ``score_images`` looks at them first, ``score_files`` compares two
files. ``best_of`` and ``gate`` choose among scored pictures; ``face.report`` draws and writes the scores.
"""

from .compose import score_files, score_images
from .copy_paste import copy_paste
from .expression import Openings, expression_error, openings, pose_error
from .judge import AUTO, Threshold, appointed, choose, seen_by, threshold
from .overall import FAILURES, Limits, Weights, agreement, likeness, score
from .quality import Quality, quality
from .rank import KEYS, PASSED, Gate, best_of, gate, per_picture

__all__ = [
    "AUTO",
    "FAILURES",
    "KEYS",
    "PASSED",
    "Gate",
    "Limits",
    "Openings",
    "Quality",
    "Threshold",
    "Weights",
    "agreement",
    "appointed",
    "best_of",
    "choose",
    "copy_paste",
    "expression_error",
    "gate",
    "likeness",
    "openings",
    "per_picture",
    "pose_error",
    "quality",
    "score",
    "score_files",
    "score_images",
    "seen_by",
    "threshold",
]
