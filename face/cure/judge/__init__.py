"""Is an attribute in a picture? Whoever can tell is asked; where nobody can, the answer is *not judged*.

To add a judge is to add a file that enters a ``Judge`` into ``judges``.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Verdict:
    """What one judge says of one attribute in one picture."""

    attribute: str
    """The attribute's text."""
    present: bool | None
    """None: not judged."""
    score: float | None = None
    """0 to 1, 0.5 being where ``present`` turns; None where not judged."""
    judge: str = ""
    """Who said it; empty where nobody could."""
    details: str = ""
    """Why, in a few words."""
