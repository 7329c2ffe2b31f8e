"""What can go wrong in a call; each message says what was expected and what came."""

from __future__ import annotations


class BadArguments(ValueError):
    """Tensors or settings that do not belong together."""


class NoBackend(ValueError):
    """The backend that was asked for by name cannot take this call; the message says why."""
