"""The attributes that a prompt asks for, and the tokens that stand for them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Attribute:
    """One thing that a prompt asks for: ``curly red hair``, ``round glasses``, ``laughing``."""

    text: str
    """As the prompt says it."""
    kind: str
    """Its entry in the vocabulary: ``hair``, ``glasses``, ``expression``, …"""
    word: str = ""
    """The word of ``text`` that names the thing itself: ``hair``, ``glasses``; empty where it names none."""
    labels: tuple[str, ...] = ()
    """Labels of ``face.parse`` that show where it is; empty where a parser cannot see it."""
    parts: tuple[str, ...] = ()
    """Parts of ``face.masks.PARTS`` that show where it is; empty where the mesh cannot see it."""
    abstract: bool = False
    """Whether it has no place of its own (an expression, an age), so that no mask can hold it."""
    strength: float = 1.0
    """How much of it is wanted, 0 to 1."""
