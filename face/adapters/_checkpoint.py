"""Reading an adapter file: safetensors or a torch dictionary, in whichever of the published wrappings, as named groups.

Nothing in a file is ever run: torch dictionaries are read with ``weights_only``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import BadModelFile

TORCH = (".bin", ".pt", ".pth", ".ckpt")
SUFFIXES = (".safetensors", *TORCH)

GROUPS = {
    "image_proj_model": "image_proj",
    "id_adapter": "image_proj",
    "adapter_modules": "ip_adapter",
    "face_adapter": "ip_adapter",
    "id_adapter_attn_layers": "ip_adapter",
}
"""Other names under which the projector and the attention layers are published."""

KEYS = {"id_to_k": "to_k_ip", "id_to_v": "to_v_ip"}
"""PuLID's names of the two projections of the identity tokens."""


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """The tensors of a file by group (``image_proj``, ``ip_adapter``, …) and name."""

    path: Path
    groups: Mapping[str, Mapping[str, Tensor]]
    metadata: Mapping[str, str]
    """What a safetensors file says of itself."""

    def __contains__(self, name: str) -> bool:
        """Whether there is ``group.name``."""
        group, _, rest = name.partition(".")
        return rest in self.groups.get(group, {})

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of ``group.name``; an empty tuple where there is none."""
        group, _, rest = name.partition(".")
        tensor = self.groups.get(group, {}).get(rest)
        return () if tensor is None else tuple(tensor.shape)

    def takes(self, name: str) -> int:
        """How wide the input of the layer is whose weight is ``group.name``. Raises BadModelFile where it is none."""
        shape = self.shape(name)
        if len(shape) != 2 or not all(shape):
            seen = f"has the shape {shape}" if shape else "is missing"
            raise BadModelFile(f"{self.path.name}: {name} should be a layer's weight, but {seen}; the file is damaged")
        return shape[1]

    def group(self, name: str) -> Mapping[str, Tensor]:
        return self.groups.get(name, {})

    @property
    def count(self) -> int:
        return sum(len(group) for group in self.groups.values())

    @property
    def nbytes(self) -> int:
        return sum(t.numel() * t.element_size() for group in self.groups.values() for t in group.values())

    def only_groups(self, groups: Iterable[str], what: str) -> None:
        """Raise BadModelFile if there are other groups than these."""
        strangers = sorted(set(self.groups) - set(groups))
        if strangers:
            raise BadModelFile(
                f"{self.path.name} looks like {what}, but also holds {', '.join(strangers[:4])}, which it does not "
                "have. Use the published file."
            )

    def only(self, group: str, patterns: Iterable[str], what: str) -> None:
        """Raise BadModelFile unless every name of ``group`` matches one of the ``patterns`` (regular expressions)."""
        known = re.compile("|".join(f"(?:{p})" for p in patterns))
        strangers = [name for name in self.group(group) if not known.fullmatch(name)]
        if strangers:
            raise BadModelFile(
                f"{self.path.name} looks like {what}, but holds {len(strangers)} tensors that it does not have, such "
                f"as {group}.{strangers[0]}. It may be a newer version of the format; use the published file."
            )


def read(path: Path) -> Checkpoint:
    """The checkpoint in the file at ``path``.

    Raises BadModelFile for what is no such file, is cut off, or would have to run code to be read.
    """
    if not path.is_file():
        raise BadModelFile(f"there is no adapter file {path}")
    if path.suffix.lower() == ".safetensors":
        tensors, metadata = _safetensors(path)
    elif path.suffix.lower() in TORCH:
        try:
            tensors, metadata = _flat(_torch(path)), {}
        except RecursionError:
            raise BadModelFile(f"{path.name} holds dictionaries that hold themselves; it is no adapter") from None
    else:
        raise BadModelFile(f"{path.name} is no adapter file: its name must end in {', '.join(SUFFIXES)}")
    if not tensors:
        raise BadModelFile(f"{path.name} holds no tensors; it is no adapter, or the copy is incomplete")
    odd = [name for name, tensor in tensors.items() if tensor.layout != torch.strided or tensor.is_complex()]
    if odd:
        raise BadModelFile(f"{path.name}: {odd[0]} is sparse or complex, as in no adapter; use the published file")
    return Checkpoint(path, _grouped(tensors), metadata)


def _safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise BadModelFile(
            f"{path.name} ({path.stat().st_size} bytes) is not a whole safetensors file ({error}). It is cut off or "
            "something else: copy or download it again."
        ) from error


def _torch(path: Path) -> Any:
    import pickle

    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # The message of torch is a page long and recommends to run the code.
        raise BadModelFile(
            f"{path.name} is a pickle that holds more than tensors, or is damaged, so it is not opened: reading it "
            "could run code. Use the .safetensors version of this adapter, or the file from its authors."
        ) from error
    except Exception as error:
        raise BadModelFile(
            f"{path.name} ({path.stat().st_size} bytes) is not a whole torch file ({error}). It is cut off or "
            "something else: copy or download it again."
        ) from error


def _flat(value: Any, prefix: str = "") -> dict[str, Tensor]:
    """Nested dictionaries as one, names joined by dots; what is no tensor is left out."""
    found: dict[str, Tensor] = {}
    if isinstance(value, Mapping):
        for name, inner in value.items():
            found |= _flat(inner, f"{prefix}.{name}" if prefix else str(name))
    elif isinstance(value, Tensor):
        found[prefix] = value
    return found


def _grouped(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    groups: dict[str, dict[str, Tensor]] = {}
    for full, tensor in tensors.items():
        name = full.removeprefix("state_dict.").removeprefix("module.")
        group, _, rest = name.partition(".")
        group = GROUPS.get(group, group)
        if group == "ip_adapter":
            rest = re.sub(r"(?<=\.)(id_to_[kv])(?=\.)", lambda m: KEYS[m[1]], rest)
        groups.setdefault(group, {})[rest] = tensor
    return groups
