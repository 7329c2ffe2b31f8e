"""``likeness demo``: a swap on photographs, and the closed loop on the lab's drawn people; both come with the pack."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from ..face.host import ROOT
from .local import Outcome, run

PHOTOGRAPHS = ROOT / "workflows" / "swap_and_score.json"
LAB = ROOT / "workflows" / "lab_closed_loop.json"


def demo(out: Path) -> Iterator[Outcome]:
    """Swap a face between two photographs and score the result; then draw somebody in the lab, look which attributes
    of the prompt are missing, cure them, look again. Pictures, sheets and JSON are written to ``out``."""
    outcome = run(PHOTOGRAPHS, [], out, PHOTOGRAPHS.parent / "photos")
    yield outcome
    sys.stderr.write(
        f"done in {outcome.seconds:.1f} s. The swapped picture shows a real person with another's face: it is marked "
        "as edited, and it is for your eyes, not for publishing.\n"
    )
    outcome = run(LAB, [], out, LAB.parent / "photos")
    yield outcome
    sys.stderr.write(f"done in {outcome.seconds:.1f} s: nobody in these pictures exists.\n")
