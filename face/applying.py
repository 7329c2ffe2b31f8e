"""The step between an adapter file and a model: who is shown, how the projector is asked, which tokens come of it."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from weakref import ref

from .adapters import AUTHORS, RECIPES, Choices, IdAdapter
from .adapters._evidence import Encoder, evidence
from .attention import SCALINGS, V_ONLY, Tokens
from .errors import BadInput
from .host import STANDALONE, Host
from .types import Identity, Person

DEFAULT = "default"


@dataclass(frozen=True)
class Options:
    """What else a user can settle about an adapter."""

    recipe: str = AUTHORS
    """What the unconditional rows get: ``authors``, ``popular`` or ``nothing``."""
    structure: float = 1.0
    """FaceID-Plus v2: how strongly the encoder's view of the face counts beside the vector."""
    scaling: str = V_ONLY
    """Where the strength goes in; see ``attention.SCALINGS``."""
    mode: str = DEFAULT
    """PuLID: ``fidelity``, ``style`` or ``plain``; ``default`` is the first that the format knows."""
    any_recogniser: bool = False
    """Let identities of another recognition network through, if their vectors have the right size."""

    def __post_init__(self) -> None:
        if self.recipe not in RECIPES or self.scaling not in SCALINGS:
            raise BadInput(
                f"the recipe must be one of {', '.join(RECIPES)} and the scaling one of {', '.join(SCALINGS)}; got "
                f"{self.recipe!r} and {self.scaling!r}"
            )
        if not isfinite(self.structure):
            raise BadInput(f"the structure must be a number; got {self.structure}")

    def mode_of(self, adapter: IdAdapter) -> tuple[str, int]:
        """The (mode, zeros) of ``attention.apply``. BadInput for a mode that the format does not have."""
        if self.mode == DEFAULT:
            return next(iter(adapter.modes.values()))
        if self.mode not in adapter.modes:
            known = ", ".join(adapter.modes)
            raise BadInput(f"{adapter.title} has no mode {self.mode!r}; it has {known}. Set the mode to {DEFAULT}.")
        return adapter.modes[self.mode]


def tokens_for(
    adapter: IdAdapter,
    identity: Identity,
    person: Person,
    encoder: Encoder | None,
    options: Options,
    host: Host = STANDALONE,
) -> Tokens:
    """The tokens that show ``person`` of ``identity``; worked out once for each set of options that matters to them.

    ``encoder``: for formats that look at pictures; it runs only for those. Raises BadInput, ContractMismatch.
    """
    adapter.check(identity, options.any_recogniser)
    looks = encoder is not None and adapter.feature is not None and not adapter.feature.encoder.startswith("eva")
    source = ref(encoder.source) if encoder is not None and looks else None
    key = (identity.people.index(person), options.recipe, options.structure, source)
    return adapter.tokens(
        identity,
        key,
        lambda: adapter.shown(
            evidence(adapter, person, encoder if looks else None, recipe=options.recipe, host=host, words=False),
            Choices(options.recipe, options.structure),
        ),
    )
