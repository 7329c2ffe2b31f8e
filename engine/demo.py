"""``likeness demo``: the swap-and-score workflow on three photographs that come with the pack."""

from __future__ import annotations

import sys
from pathlib import Path

from ..face.host import ROOT
from .local import Outcome, run

WORKFLOW = ROOT / "workflows" / "swap_and_score.json"


def demo(out: Path) -> Outcome:
    """Swap a face between two photographs, score the result, write picture, sheet and JSON to ``out``."""
    outcome = run(WORKFLOW, [], out, WORKFLOW.parent / "photos")
    sys.stderr.write(
        f"done in {outcome.seconds:.1f} s. The swapped picture shows a real person with another's face: it is marked "
        "as edited, and it is for your eyes, not for publishing.\n"
    )
    return outcome
