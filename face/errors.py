"""Every error a user can cause, in one family; each message says what was expected, what came and what to do."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path


class LikenessError(Exception):
    """The root of the family: catch this to catch all of ours and nothing else."""


class BadImage(LikenessError, ValueError):
    """A picture or a tensor that is not an image as ``face.image`` defines it."""


class BadInput(LikenessError, ValueError):
    """A setting or a combination of settings that cannot be carried out."""


class NoFace(LikenessError):
    """No face where the policy says that there must be one."""


class BadModelFile(LikenessError):
    """A model file that is damaged, or is another kind of model than the one asked for."""


class BadIdentityFile(LikenessError):
    """An identity file that is damaged or of an unknown layout."""


class ContractMismatch(LikenessError):
    """Embeddings of two different networks were about to be compared or mixed."""


class MissingPackage(LikenessError, ImportError):
    """An optional package is not installed."""


class FetchFailed(LikenessError):
    """A model could not be fetched, or what came is not what the catalogue promises."""


class MissingModel(LikenessError, FileNotFoundError):
    """A model file is in none of the folders that were looked in."""

    def __init__(self, what: str, file: str, folders: Iterable[Path], remedy: str) -> None:
        looked = ", ".join(str(folder) for folder in folders) or "no folder is configured"
        super().__init__(f"{what} needs the file {file}, which is in none of: {looked}. {remedy}")
        self.file = file
