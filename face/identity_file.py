"""Identities on disk: safetensors, so that a file from elsewhere can hold numbers and nothing that runs.

Layout, version 1. Metadata: ``likeness`` = a JSON object with ``version``, ``contract`` (the fields of ``Contract``)
and ``people``, a list of ``{"name", "references"}``. Tensors: ``vectors.<person>`` (N, D) float32; for each reference
kept ``image.<person>.<n>`` (H, W, 3) uint8, ``box.…`` (4,), ``points.…`` (5, 2), ``landmarks.<scheme>.…``.

Two foreign kinds are read: ReActor's face models (safetensors, one InsightFace face) and ``.ipadpt`` files that hold a
recogniser's vector.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from .errors import BadIdentityFile, BadInput
from .host import STANDALONE, Host
from .image import from_uint8, to_uint8
from .types import Array, Contract, Face, Identity, Person, Reference

SUFFIX = ".safetensors"
VERSION = 1
LARGEST = 256 << 20
"""Bytes. A person takes a few kilobytes, a reference picture less than a megabyte."""

W600K_R50 = Contract(
    "w600k_r50",
    "4c06341c33c2ca1f86781dab0e829f88ad5b64be9fba56e56bc9ebdefc619e43",
    512,
    False,
    "arcface-112 RGB (x-127.5)/127.5",
)
"""What ReActor and IP-Adapter FaceID embed with: the recogniser of the pack buffalo_l.

The digest is of ``w600k_r50.onnx`` as InsightFace publishes it, so that a face model written with another copy of the
same file fits an embedding made here from the published one.
"""

_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)


def safe_name(name: str) -> str:
    """``name`` as a file name without suffix that means the same on every system, and never another folder.

    Raises BadInput if nothing is left of it.
    """
    clean = re.sub(r'[\x00-\x1f\x7f<>:"/\\|?*]+', "_", name.removesuffix(SUFFIX)).strip(" ._")[:100].rstrip(" .")
    if not clean:
        raise BadInput(f"{name!r} is no name for a file; use letters or digits")
    return f"{clean}_" if _RESERVED.fullmatch(clean) else clean


def save(identity: Identity, path: Path | str, references: bool = False) -> Path:
    """Write ``identity`` to ``path``; with its reference pictures only if ``references`` is asked for.

    The file appears whole or not at all. Its folder is made if need be.
    """
    from safetensors.numpy import save as to_bytes

    path = Path(path)
    if path.suffix != SUFFIX:
        path = path.with_name(f"{path.name}{SUFFIX}")
    tensors: dict[str, Array] = {}
    people: list[dict[str, Any]] = []
    for p, person in enumerate(identity.people):
        tensors[f"vectors.{p}"] = np.ascontiguousarray(person.vectors, np.float32)
        kept = person.references if references else ()
        people.append({"name": person.name, "references": [{"confidence": r.face.confidence} for r in kept]})
        for r, reference in enumerate(kept):
            face = reference.face
            arrays = {"image": to_uint8(reference.image), "box": face.box, "points": face.points}
            arrays |= {f"landmarks.{scheme}": points for scheme, points in face.landmarks.items()}
            tensors |= {f"{key}.{p}.{r}": np.ascontiguousarray(array) for key, array in arrays.items()}
    record = {"version": VERSION, "contract": asdict(identity.contract), "people": people}
    data = to_bytes(tensors, {"likeness": json.dumps(record, ensure_ascii=False)})
    try:
        _write(path, data)
    except OSError as error:
        raise BadInput(f"the identity cannot be written to {path}: {error.strerror or error}") from error
    return path


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise


def load(path: Path | str) -> Identity:
    """The identity in the file at ``path``: ours, a ReActor face model, or an ``.ipadpt`` with a face vector.

    Raises BadIdentityFile, and nothing else, for a file that is missing, damaged, or of another kind.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        if size > LARGEST:
            raise BadIdentityFile(
                f"{path.name} has {size >> 20} MB, and an identity at most {LARGEST >> 20}; it is something else"
            )
        data = path.read_bytes()
    except OSError as error:
        raise BadIdentityFile(f"the identity {path} cannot be read: {error.strerror or error}") from error
    if path.suffix.lower() == ".ipadpt":
        return _from_ipadpt(path)
    tensors, record = _open(data, path.name)
    try:
        if record is not None:
            return _ours(tensors, record)
        if {"bbox", "kps", "embedding"} <= tensors.keys():
            return _reactor(tensors, path.stem)
    except BadIdentityFile as error:
        raise BadIdentityFile(f"{path.name}: {error}") from error
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
        raise BadIdentityFile(
            f"{path.name} has the layout of an identity, but its content does not fit together ({error}). "
            "Save the identity again."
        ) from error
    raise BadIdentityFile(
        f"{path.name} is a safetensors file, but no identity: it holds {', '.join(list(tensors)[:4]) or 'nothing'}. "
        "Expected a file of Save Identity or a ReActor face model."
    )


def _open(data: bytes, name: str) -> tuple[dict[str, Array], dict[str, Any] | None]:
    """The tensors of a safetensors file and our record in its metadata, if it has one."""
    from safetensors import SafetensorError
    from safetensors.numpy import load as from_bytes

    try:
        tensors = from_bytes(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        written = (header.get("__metadata__") or {}).get("likeness")
        record = None if written is None else json.loads(written)
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, RecursionError, MemoryError) as error:
        raise BadIdentityFile(
            f"{name} ({len(data)} bytes) is not a whole safetensors file ({error}). It is cut off or something else: "
            "copy it again, or save the identity again."
        ) from error
    if record is not None and not isinstance(record, dict):
        raise BadIdentityFile(f"{name} has metadata of an unknown layout. Save the identity again.")
    return tensors, record


def _array(tensors: Mapping[str, Array], key: str, shape: tuple[int | None, ...]) -> Array:
    """The tensor ``key`` as float32 of ``shape`` (None: any size), all of it finite."""
    if key not in tensors:
        raise BadIdentityFile(f"the tensor {key!r} is missing")
    array = np.asarray(tensors[key], np.float32)
    fits = array.ndim == len(shape) and all(s in (None, a) for s, a in zip(shape, array.shape, strict=True))
    if not fits or not np.isfinite(array).all():
        raise BadIdentityFile(f"the tensor {key!r} must be finite and {shape}, but is {array.shape}")
    return array


def _ours(tensors: Mapping[str, Array], record: Mapping[str, Any]) -> Identity:
    version = record.get("version")
    if version != VERSION:
        raise BadIdentityFile(
            f"it was written in layout version {version!r}; this pack reads version {VERSION}. Update the pack."
        )
    raw = record["contract"]
    contract = Contract(
        str(raw["model"]), str(raw["digest"]), int(raw["dimension"]), bool(raw["unit"]), str(raw["preprocessing"])
    )
    people: list[Person] = []
    for p, entry in enumerate(record["people"]):
        vectors = _array(tensors, f"vectors.{p}", (None, contract.dimension))
        if len(vectors) == 0 or not np.linalg.norm(vectors, axis=1).all():
            raise BadIdentityFile(f"person {p} has no vector, or one without a direction")
        references = tuple(
            _reference(tensors, f"{p}.{r}", float(kept["confidence"])) for r, kept in enumerate(entry["references"])
        )
        people.append(Person(str(entry["name"]), vectors, references))
    if not people:
        raise BadIdentityFile("it holds nobody")
    return Identity(contract, tuple(people))


def _reference(tensors: Mapping[str, Array], place: str, confidence: float) -> Reference:
    picture = tensors[f"image.{place}"]
    if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8 or picture.size == 0:
        raise BadIdentityFile(f"the picture image.{place} must be uint8 and (H, W, 3), but is {picture.shape}")
    dense = {
        int(key.split(".")[1]): _array(tensors, key, (None, None))
        for key in tensors
        if re.fullmatch(rf"landmarks\.\d+\.{re.escape(place)}", key)
    }
    box, points = _array(tensors, f"box.{place}", (4,)), _array(tensors, f"points.{place}", (5, 2))
    return Reference(from_uint8(picture), Face(box, points, confidence, dense))


def _reactor(tensors: Mapping[str, Array], name: str) -> Identity:
    """A ReActor face model: an InsightFace face as tensors; only the vector is about the person."""
    vector = _array(tensors, "embedding", (W600K_R50.dimension,))
    return _of_vectors(vector[None], name)


def _from_ipadpt(path: Path) -> Identity:
    """A tensor that IPAdapter_plus saved with ``torch.save``; taken if it is (N, 512), refused if it is CLIP's."""
    import torch

    try:
        value = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise BadIdentityFile(
            f"{path.name} cannot be opened as plain tensors. It is damaged, or it wants to run code, which is refused "
            f"({type(error).__name__})."
        ) from error
    if not isinstance(value, torch.Tensor):
        raise BadIdentityFile(f"{path.name} holds a {type(value).__name__} where one tensor was expected")
    plain = value.layout is torch.strided and value.device.type == "cpu"
    squeezed = value.squeeze(1) if plain and value.ndim == 3 else value
    if not (plain and squeezed.shape[1:] == (W600K_R50.dimension,) and squeezed.is_floating_point()):
        raise BadIdentityFile(
            f"{path.name} holds a tensor {tuple(value.shape)}: tokens of an image encoder, not a face recogniser's "
            f"vector, which has {W600K_R50.dimension} numbers. Embed the person's pictures here instead."
        )
    return _of_vectors(squeezed.detach().float().numpy(), path.stem)


def _of_vectors(vectors: Array, name: str) -> Identity:
    if len(vectors) == 0 or not np.isfinite(vectors).all() or not np.linalg.norm(vectors, axis=1).all():
        raise BadIdentityFile(f"the vector of {name!r} is empty, zero or not finite, so it says nothing about a person")
    return Identity(W600K_R50, (Person(name, np.ascontiguousarray(vectors, np.float32)),))


def listing(host: Host = STANDALONE) -> list[str]:
    """The saved identities by file name, for a combo box; of two alike the first folder's counts."""
    names: dict[str, None] = {}
    for folder in host.folders("identities"):
        if folder.is_dir():
            files = (path.name for path in folder.iterdir() if path.suffix.lower() in (SUFFIX, ".ipadpt"))
            names.update(dict.fromkeys(sorted(name for name in files if not name.startswith("."))))
    return list(names)


def save_named(identity: Identity, name: str, references: bool = False, *, host: Host = STANDALONE) -> Path:
    """``save`` as ``name`` into the first folder of identities, wherever ``name`` might point to."""
    return save(identity, host.folders("identities")[0] / f"{safe_name(name)}{SUFFIX}", references)


def find(name: str, host: Host = STANDALONE) -> Path:
    """The file behind a name from ``listing``. Raises BadIdentityFile for a name that is not there, or is a path."""
    if name in listing(host):
        for folder in host.folders("identities"):
            if (folder / name).is_file():
                return folder / name
    folders = ", ".join(str(folder) for folder in host.folders("identities"))
    raise BadIdentityFile(
        f"there is no saved identity {name!r} in: {folders}. Saved are: {', '.join(listing(host)) or 'none'}. Write it "
        "with Save Identity first, as the workflow save_identities does."
    )


def load_named(name: str, *, host: Host = STANDALONE) -> Identity:
    """``load`` of a name from ``listing``; for errors see ``find``."""
    return load(find(name, host))
