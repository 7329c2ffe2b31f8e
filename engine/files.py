"""File names that come from outside: kept inside the folder they belong to, wherever they try to lead."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

from ..face.errors import BadInput

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".apng", ".avif")


LONGEST, LONGEST_NAME = 4000, 255
"""Bytes that a path, and a name in it, may have on common systems."""


def contained(folder: Path, *parts: str) -> Path:
    """``folder`` joined with relative ``parts``; BadInput if that would lead outside of it, or if no file is called so.

    Compared as text, so that a link that the user placed inside the folder may point elsewhere.
    """
    name = "/".join(part for part in parts if part)
    slashed = name.replace("\\", "/")
    absolute = slashed.startswith("/") or re.match(r"[A-Za-z]:", slashed)
    if "\0" in name or absolute or ".." in slashed.split("/"):
        raise BadInput(f"{name!r} leads out of the folder {folder.name}; give a name inside of it")
    path = os.path.normpath(folder / slashed)
    if len(path.encode(errors="replace")) > LONGEST or max(map(_size, slashed.split("/"))) > LONGEST_NAME:
        raise BadInput(
            f"{name[:40]!r}… is too long for a file name: at most {LONGEST_NAME} bytes, {LONGEST} with its folders"
        )
    return Path(path)


def _size(name: str) -> int:
    return len(name.encode(errors="replace"))


def annotated(name: str, default: str = "input") -> tuple[str, str]:
    """A file name without its ``[input]``, ``[output]`` or ``[temp]`` suffix, and the kind of folder it says."""
    match = re.fullmatch(r"(.*?) ?\[(input|output|temp)\]", name)
    return (match[1], match[2]) if match else (name, default)


def listing(folder: Path, suffixes: tuple[str, ...] = PICTURES) -> list[str]:
    """The picture files in a folder and its subfolders, as names relative to it with forward slashes, sorted."""
    if not folder.is_dir():
        return []
    found = [
        (Path(place) / name).relative_to(folder).as_posix()
        for place, _, names in os.walk(folder)
        for name in names
        if name.lower().endswith(suffixes)
    ]
    return sorted(found)


def store(path: Path, data: bytes, overwrite: bool = False) -> Path:
    """Write a file, under another name if a different one has its name; where it is now."""
    path.parent.mkdir(parents=True, exist_ok=True)
    candidate, number = path, 0
    while True:
        try:
            with candidate.open("wb" if overwrite else "xb") as file:
                file.write(data)
            return candidate
        except FileExistsError:
            if hashlib.sha256(candidate.read_bytes()).digest() == hashlib.sha256(data).digest():
                return candidate
            number += 1
            candidate = path.with_name(f"{path.stem} ({number}){path.suffix}")
