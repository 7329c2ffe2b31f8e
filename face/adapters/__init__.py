"""Identity adapters: checkpoint files that let a diffusion model draw a person.

To add a format is to add a file that enters a ``Format`` into ``formats``: how its tensors look, and what it makes of
them. A file tells its format by its tensors, never by its name.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import torch
from torch import Tensor

from ..attention import Tokens
from ..attention.sites import base_name
from ..errors import BadInput, BadModelFile, ContractMismatch, MissingModel
from ..host import STANDALONE, Host
from ..prompt import TextEncoder, Written
from ..registry import Registry
from ..types import Contract, Identity, Person, normalised
from ._checkpoint import SUFFIXES, Checkpoint, read

AUTO = "auto"
AUTHORS, POPULAR, NOTHING = "authors", "popular", "nothing"
RECIPES = (AUTHORS, POPULAR, NOTHING)
"""What the unconditional rows get: what the authors' pipeline gives them, what the most used packs give them instead
(each format says what that is), or nothing at all."""


@dataclass(frozen=True)
class Recogniser:
    """The recognition network that a format's identity vectors must come from."""

    model: str
    """Its file's stem, which is the name in a ``Contract``."""
    pack: str
    """The InsightFace pack it is in; empty for one that is no pack's but an embedder's by its own name."""
    unit: bool
    """Whether the adapter is given the vector at length 1, or as the network answers."""
    dimension: int
    """Read from the adapter's own weights."""

    @classmethod
    def of(cls, file: Checkpoint, model: str, pack: str, unit: bool, layer: str) -> Recogniser:
        """The one that the file names as ``recogniser`` in its metadata, else the published ``model`` of ``pack``;
        ``layer`` is the weight that takes the vectors. Raises BadModelFile where it is missing."""
        own = file.metadata.get("recogniser", "")
        return cls(own or model, "" if own else pack, unit, file.takes(layer))

    def require(self, contract: Contract, what: str) -> None:
        """Raise ContractMismatch unless vectors under ``contract`` are those that the adapter was trained on."""
        if contract.dimension == self.dimension and contract.model == self.model:
            if self.unit or not contract.unit:
                return
            raise ContractMismatch(
                f"{what} needs the vector of {self.model} as the network answers, but this identity holds only its "
                "direction. Embed the identity again from pictures."
            )
        whose = f", the recogniser of the pack {self.pack}" if self.pack else ""
        raise ContractMismatch(
            f"{what} was trained on vectors of {self.model} ({self.dimension} numbers{whose}), but the identity was "
            f"embedded with {contract}. Choose {self.pack or self.model} in Embed Identity."
        )


@dataclass(frozen=True, eq=False)
class LowRank:
    """A change of one layer's weights: ``up @ down`` is added."""

    up: Tensor
    """(out, rank)."""
    down: Tensor
    """(rank, in)."""


@dataclass(frozen=True)
class Feature:
    """Something that an image encoder has to see of the person's pictures."""

    encoder: str
    """``clip-h``, ``clip-l-336`` or ``eva02-l-336``: what stands on the encoder's socket, or the file that is
    opened."""
    crop: str
    """How the picture is cut for it: see ``pictures``."""
    size: int
    """Pixels of its side."""
    width: int
    """Width of the encoder's tokens, read from the adapter's own weights."""
    blank: bool = False
    """Whether the authors give the unconditional rows zeros for tokens, not what the encoder sees of nothing."""


@dataclass(frozen=True, eq=False)
class Evidence:
    """What is known of a person, in the form in which an adapter takes it. Tensors are float32."""

    vectors: Tensor
    """(N, V): the identity vectors, at length 1 or not as the adapter's ``Recogniser`` says; (N, 0) for those that
    take none."""
    seen: Tensor | None = None
    """(R, T, C): the encoder's tokens of each picture of the person."""
    unseen: Tensor | None = None
    """(1, T, C): what the unconditional rows are given in its place."""
    layers: tuple[Tensor, ...] = ()
    """PuLID: five hidden states (R, T, C) of the encoder; ``seen`` is then its pooled answer (R, 1, C)."""
    pixels: Tensor | None = None
    """PhotoMaker: (R, 3, S, S) pixels, normalised for its own encoder."""
    regions: Mapping[str, Tensor] = field(default_factory=lambda: MappingProxyType({}))
    """ConsistentID: the encoder's tokens (T, C) of parts of the first picture, by name; those that were found."""


@dataclass(frozen=True)
class Choices:
    """What a user can settle about the projector."""

    recipe: str = AUTHORS
    structure: float = 1.0
    """FaceID-Plus v2: how strongly the encoder's view of the face counts beside the vector (``s_scale``)."""


class Projector(Protocol):
    """Evidence to tokens: positive (N, T, D) and negative (1 or N, T, D) or None, float32."""

    def __call__(self, evidence: Evidence, choices: Choices) -> tuple[Tensor, Tensor | None]: ...


class PromptWriter(Protocol):
    """How a format writes the person into the prompt."""

    @property
    def start(self) -> float:
        """From which part of the sampling on, as the authors recommend."""
        ...

    @property
    def trigger(self) -> str:
        """The word that marks the place; empty for formats without one."""
        ...

    @property
    def needs_pictures(self) -> bool: ...

    @property
    def needs_clip(self) -> bool: ...

    def write(
        self, clip: TextEncoder | None, prompt: str, negative: str, evidence: Evidence, start: float, trigger: str
    ) -> tuple[list[Written], list[Written]]:
        """Conditionings of the positive and of the negative side. Raises BadInput."""
        ...


@dataclass(frozen=True, eq=False)
class IdAdapter:
    """A loaded adapter file."""

    format: str
    """Its name among ``formats``."""
    title: str
    """For people."""
    path: Path
    project: Projector
    keys: tuple[Tensor, ...] = ()
    """(C, D) per cross-attention layer in the files' order: what makes keys of identity tokens."""
    values: tuple[Tensor, ...] = ()
    low_rank: Mapping[tuple[int, str], LowRank] = field(default_factory=dict)
    """Changes of the base model by (attention layer in the files' order, ``q``, ``k``, ``v`` or ``out``)."""
    lora: Mapping[str, LowRank] = field(default_factory=dict)
    """Changes of the base model by diffusers' path of the layer, e.g. ``mid_block.attentions.0.proj_in``."""
    recogniser: Recogniser | None = None
    feature: Feature | None = None
    strength: float = 1.0
    """What its authors recommend."""
    modes: Mapping[str, tuple[str, int]] = field(default_factory=lambda: {"default": ("plain", 0)})
    """What the user can choose from, the default first: name to (mode, zeros) of ``attention.Applied``."""
    text: PromptWriter | None = None
    """For formats that write the person into the prompt."""
    layers: int = 0
    """Cross-attention layers of the base model, for formats that have no keys of their own."""
    context: int = 0
    """Width of the base model's text, likewise, and for formats whose tokens are not as wide as their layers take."""
    _tokens: weakref.WeakKeyDictionary[Identity, dict[Any, Tokens]] = field(
        default_factory=weakref.WeakKeyDictionary, repr=False
    )
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @property
    def base(self) -> str:
        """The base model in words."""
        return base_name(len(self.keys) or self.layers, self.context_width)

    @property
    def context_width(self) -> int:
        """Width of its tokens, which is that of the base model's text."""
        return self.context or int(self.keys[0].shape[1])

    def shown(self, evidence: Evidence, choices: Choices) -> tuple[Tensor, Tensor | None]:
        """What the projector makes of ``evidence``. Raises BadModelFile where that is nothing to work with."""
        try:
            made = self.project(evidence, choices)
        except RuntimeError as error:
            reason = str(error).partition("\n")[0][:200]
            raise BadModelFile(
                f"{self.path.name} looks like {self.title}, but its projector's tensors do not fit together "
                f"({reason}). Use the published file."
            ) from error
        if not all(bool(torch.isfinite(side).all()) for side in made if side is not None):
            raise BadModelFile(
                f"{self.title} makes tokens of this identity that hold no numbers: {self.path.name} is damaged, or the "
                "identity's vector is. Copy the file again, or embed the identity again."
            )
        return made

    @property
    def nbytes(self) -> int:
        """Bytes of the weights that act on the base model."""
        changes = [*self.low_rank.values(), *self.lora.values()]
        tensors = [*self.keys, *self.values, *(t for change in changes for t in (change.up, change.down))]
        return sum(t.numel() * t.element_size() for t in tensors)

    def check(self, identity: Identity, any_recogniser: bool = False) -> None:
        """Raise ContractMismatch or BadInput if ``identity`` is not what the adapter takes.

        ``any_recogniser``: vectors of another network are let through, if they have the right number of entries.
        """
        if not identity.people:
            raise BadInput(f"{self.title} has nobody to show: the identity is empty. Embed one from a picture.")
        if self.recogniser is not None:
            if not any_recogniser:
                self.recogniser.require(identity.contract, self.title)
            elif identity.contract.dimension != self.recogniser.dimension:
                raise ContractMismatch(
                    f"{self.title} takes vectors of {self.recogniser.dimension} numbers; those of {identity.contract} "
                    "cannot be used whatever they mean"
                )
        for person in identity.people:
            needs = self.feature is not None or (self.text is not None and self.text.needs_pictures)
            if needs and not person.references:
                raise BadInput(
                    f"{self.title} looks at pictures of the person, but {person.name!r} carries none: saved identities "
                    "hold pictures only if asked to. Embed the identity from pictures, or save it with its references."
                )

    def tokens(self, identity: Identity, key: Any, make: Callable[[], tuple[Tensor, Tensor | None]]) -> Tokens:
        """What ``make`` answers, once for each ``key`` of an ``identity`` as long as that exists."""
        with self._lock:
            known = self._tokens.setdefault(identity, {})
            if key not in known:
                positive, negative = make()
                known[key] = Tokens(positive.float().cpu(), _cpu(negative), self.keys, self.values)
            return known[key]


def _cpu(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.float().cpu()


class Format(Protocol):
    """One published format."""

    @property
    def title(self) -> str: ...

    def claims(self, file: Checkpoint) -> bool:
        """Whether the tensors are those of this format. No false negatives; two formats may look alike."""
        ...

    def likely(self, file: Checkpoint) -> bool:
        """Of several formats that claim a file, those that are likely remain: by the sizes that were published."""
        ...

    def load(self, file: Checkpoint) -> IdAdapter:
        """The adapter in a file that ``claims`` accepts. Raises BadModelFile if it is not whole."""
        ...


formats: Registry[Format] = Registry("adapter format", __name__, __path__)


def choices() -> list[str]:
    """Names for a combo box."""
    return [AUTO, *sorted(formats.names())]


_open: weakref.WeakValueDictionary[Any, IdAdapter] = weakref.WeakValueDictionary()
_lock = threading.Lock()


def load(path: Path, format: str = AUTO) -> IdAdapter:
    """The adapter in the file at ``path``; ``format`` settles what the tensors cannot tell.

    The same file is held once however many ask. Raises BadModelFile for a file of no known or of another format, and
    for one that two formats fit while ``format`` is ``auto``.
    """
    try:
        state = path.stat()
    except OSError as error:
        raise BadModelFile(f"there is no adapter file {path}") from error
    key = (str(path.resolve()), state.st_mtime_ns, state.st_size, format)
    with _lock:
        adapter = _open.get(key)
        if adapter is None:
            file = read(path)
            adapter = formats[_told(file, format)].load(file)
            _open[key] = adapter
        return adapter


def _told(file: Checkpoint, format: str) -> str:
    """The name of the file's format."""
    fitting = [name for name in formats.names() if formats[name].claims(file)]
    if format == AUTO and len(fitting) > 1:
        fitting = [name for name in fitting if formats[name].likely(file)] or fitting
    if format != AUTO:
        if format in fitting:
            return format
        formats[format]  # an unknown name is refused in the registry's words
        seems = f"its tensors are those of {' or '.join(fitting)}" if fitting else _described(file)
        raise BadModelFile(f"{file.path.name} is no {format} file: {seems}. Set the format to auto.")
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise BadModelFile(
            f"{file.path.name} may be {' or '.join(fitting)}: the tensors are the same, but are used differently. "
            "Choose one of them as the format; the file's publisher says which it is."
        )
    raise BadModelFile(
        f"{file.path.name} is no identity adapter that is known here: {_described(file)}. Known formats: "
        f"{', '.join(formats.names())}."
    )


def _described(file: Checkpoint) -> str:
    names = [f"{group}.{name}" for group, tensors in file.groups.items() for name in list(tensors)[:2]]
    return f"it holds {file.count} tensors, such as {', '.join(names[:4])}"


def files(host: Host = STANDALONE) -> dict[str, Path]:
    """Adapter files by the name to show, in the host's adapter folders and the folders of the packs that people
    have."""
    found: dict[str, Path] = {}
    for folder in host.folders("adapters"):
        if folder.is_dir():
            for path in sorted(folder.rglob("*")):
                if path.suffix.lower() in SUFFIXES and path.is_file():
                    found.setdefault(path.relative_to(folder).as_posix(), path)
    return found


def find(name: str, host: Host = STANDALONE) -> Path:
    """The file called ``name`` in ``files``; MissingModel names the folders."""
    known = files(host)
    if name in known:
        return known[name]
    raise MissingModel(
        "the identity adapter", name, host.folders("adapters"), "Copy the adapter file into one of these folders."
    )


def vectors_of(person: Person, adapter: IdAdapter) -> Tensor:
    """(N, V) float32: the person's vectors as the adapter wants them; (1, 0) if it wants none."""
    if adapter.recogniser is None:
        return torch.zeros(1, 0)
    rows = normalised(person.vectors) if adapter.recogniser.unit else person.vectors
    return torch.from_numpy(rows).float()


def joined(tokens: Sequence[Tensor]) -> Tensor:
    """Token sets (T, D) one after the other, as (1, sum of T, D)."""
    return torch.cat(list(tokens), 0)[None]
