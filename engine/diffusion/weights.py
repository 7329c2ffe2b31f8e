"""Files of tensors, read so that nothing in them can run and a damaged one is refused with a sentence."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from ...face.errors import BadModelFile

Tensors = dict[str, torch.Tensor]

SAFE = (".safetensors", ".sft")
PICKLED = (".ckpt", ".pt", ".pth", ".bin")
SUFFIXES = (*SAFE, *PICKLED)


def read(path: Path) -> Tensors:
    """Every tensor of a file on the CPU, as it is stored; bytes are read when they are used. Raises BadModelFile.

    A pickle is opened with ``weights_only=True``: one that needs code to be read is refused, not run.
    """
    if path.suffix.lower() in SAFE:
        return _safetensors(path)
    if path.suffix.lower() in PICKLED:
        return _pickled(path)
    raise BadModelFile(f"{path.name} is no file of weights: expected one of {', '.join(SUFFIXES)}")


def _safetensors(path: Path) -> Tensors:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise BadModelFile(
            f"{path.name} ({_size(path)} bytes) is not a whole safetensors file ({error}). It is cut off or something "
            "else: get it again and compare its size with the publisher's."
        ) from error


def said(path: Path, part: str) -> dict[str, Any]:
    """What a safetensors file tells of a network in it that shapes cannot tell: ``config`` in its metadata is JSON,
    {``unet`` | ``vae`` | ``text`` | ``controlnet``: configuration in the names of diffusers, ``text`` in those of
    transformers}. Empty where it tells nothing. Raises BadModelFile for what cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    if path.suffix.lower() not in SAFE:
        return {}
    try:
        with safe_open(path, "pt") as file:
            told = json.loads((file.metadata() or {}).get("config", "{}"))
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise BadModelFile(f"{path.name}: the configuration in its metadata cannot be read ({error})") from error
    known = told.get(part, {}) if isinstance(told, dict) else None
    if not isinstance(known, dict):
        raise BadModelFile(f"{path.name}: the configuration in its metadata should be a dictionary for {part}")
    return known


def _pickled(path: Path) -> Tensors:
    try:
        # Only the newer of torch's two formats, a zip file, can be read piece by piece.
        content: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise BadModelFile(
            f"{path.name} holds more than tensors: to read it, code in it would have to run, so it was not opened. Get "
            "the same weights as .safetensors."
        ) from error
    except (OSError, EOFError, ValueError, RuntimeError, KeyError, AttributeError, IndexError, TypeError) as error:
        raise BadModelFile(
            f"{path.name} ({_size(path)} bytes) is not a file that torch wrote ({error}). It is cut off or something "
            "else: get it again, as .safetensors if there is one."
        ) from error
    content = content.get("state_dict", content) if isinstance(content, dict) else content
    if not isinstance(content, dict):
        raise BadModelFile(f"{path.name} holds a {type(content).__name__}, expected named tensors")
    return {str(name): value for name, value in content.items() if isinstance(value, torch.Tensor)}


def _size(path: Path) -> str:
    return f"{path.stat().st_size:,}" if path.is_file() else "no"


def nested(tensors: Tensors, prefix: str) -> Tensors:
    """The tensors under a prefix, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def some(names: Iterable[str], count: int = 3) -> str:
    """The first few of many names, for a sentence."""
    listed = sorted(names)
    more = f" and {len(listed) - count} more" if len(listed) > count else ""
    return ", ".join(listed[:count]) + more


def fill(
    module: torch.nn.Module, tensors: Mapping[str, torch.Tensor], dtype: torch.dtype, device: Any, name: str
) -> None:
    """Give a module built on the meta device its weights, each a copy in ``dtype`` on ``device``.

    Every parameter needs its tensor and every tensor its parameter, of the same shape. Raises BadModelFile.
    """
    wanted = {key: tuple(value.shape) for key, value in module.state_dict().items()}
    if missing := wanted.keys() - tensors.keys():
        raise BadModelFile(
            f"{name} lacks {len(missing)} of the {len(wanted)} tensors of its kind ({some(missing)}). It is cut off, "
            "or another architecture than its other tensors say: get it again."
        )
    if foreign := tensors.keys() - wanted.keys():
        raise BadModelFile(
            f"{name} has {len(foreign)} tensors that its kind does not have ({some(foreign)}): it is a variant that is "
            "not supported. Use the plain model, or ComfyUI: likeness run FILE --server URL"
        )
    for key, shape in wanted.items():
        if tuple(tensors[key].shape) != shape:
            raise BadModelFile(
                f"{name}: {key} is {tuple(tensors[key].shape)} where {shape} belongs to the rest of it. It is "
                "damaged, or put together of two models: get it again."
            )
    # Ordinary tensors, even where the caller runs in inference mode: the module outlives the call.
    with torch.inference_mode(False), torch.no_grad():
        copies = {key: tensors[key].to(device=device, dtype=dtype, copy=True) for key in wanted}
        module.load_state_dict(copies, assign=True)
    module.requires_grad_(False).eval()
