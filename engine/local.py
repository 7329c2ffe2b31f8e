"""Running one workflow file in this process, for the command line."""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..face.errors import BadInput, LikenessError
from . import workflow
from .files import annotated, contained
from .graph import Prompt


class Invalid(BadInput):
    """The workflow was refused before it ran; the message lists why, a line each."""


class RunFailed(LikenessError):
    """A node failed while it ran; ``trace`` is its traceback as text."""

    def __init__(self, message: str, trace: str = "") -> None:
        super().__init__(message)
        self.trace = trace


@dataclass
class Outcome:
    """What a run gave."""

    files: list[Path] = field(default_factory=list)
    outputs: dict[str, Any] = field(default_factory=dict)
    """Node id to what the node shows; previews among it are gone when the run is over."""
    executed: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def as_json(self) -> dict[str, Any]:
        outputs = {
            node_id: {key: [item for item in items if not _is_preview(item)] for key, items in ui.items()}
            for node_id, ui in self.outputs.items()
        }
        return {
            "files": [str(file) for file in self.files],
            "outputs": outputs,
            "executed": self.executed,
            "seconds": round(self.seconds, 3),
        }


class Line:
    """A listener that keeps one line on standard error up to date: the node, and how far it is."""

    def __init__(self, prompt: Prompt, total: int = 0) -> None:
        self.prompt, self.total, self.begun = prompt, total, 0
        self.terminal = sys.stderr.isatty()
        self.shown = ""

    def event(self, name: str, data: dict[str, Any]) -> None:
        if name == "execution_cached":
            # Whoever runs it elsewhere does not know the total, and counts without.
            self.total = max(0, self.total - len(data.get("nodes", [])))
        elif name == "executing" and data.get("node") is not None:
            self.begun += 1
            self.show(self.head(data["node"]))
        elif name == "progress" and self.terminal:
            self.show(f"{self.head(data['node'])} {data['value']}/{data['max']}", same_line=True)
        elif name.startswith("execution_") and name != "execution_start":
            self.end()

    def head(self, node_id: str) -> str:
        count = f"[{self.begun}/{self.total}]" if self.total else f"[{self.begun}]"
        return f"{count} {workflow.title(self.prompt, node_id)}"

    def preview(self, node_id: str, picture: Any) -> None:
        return

    def text(self, node_id: str, text: str) -> None:
        self.show(f"{self.head(node_id)}: {text}", same_line=True)

    def show(self, line: str, same_line: bool = False) -> None:
        if self.terminal:
            sys.stderr.write(f"\r\x1b[K{line}")
        elif not same_line or ":" in line:
            sys.stderr.write(f"{line}\n")
        self.shown = line
        sys.stderr.flush()

    def end(self) -> None:
        if self.terminal and self.shown:
            sys.stderr.write("\r\x1b[K")
            self.shown = ""


def _is_preview(item: Any) -> bool:
    return isinstance(item, dict) and item.get("type") == "temp"


def made(folder: Path) -> Path:
    """``folder``, absolute and there; BadInput if it cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return folder.resolve()
    except OSError as error:
        raise BadInput(f"{folder} cannot be a folder: {error.strerror or error}. Name another one.") from error


def picture_folders(file: Path, inputs: Path | None) -> list[Path]:
    """Where the pictures that a workflow ``file`` names may lie: ``inputs``, its own folder, ``photos`` in that."""
    return [inputs or Path("input"), file.parent, file.parent / "photos"]


def run(
    file: Path,
    settings: list[str],
    out: Path,
    inputs: Path | None,
    listen: bool = True,
    models: Path | None = None,
    temp: Path | None = None,
) -> Outcome:
    """Run a workflow file here, with the pictures that it names from ``picture_folders``.

    Pictures named by ``settings`` may lie anywhere: they are copied into a folder of this run. What nodes only show is
    written to ``temp``, by default a folder that is deleted at the end. Raises Invalid before the run, RunFailed during
    it, BadInput if nothing can be written to ``out``.
    """
    from ..nodes import host as nodes_host
    from .convert import to_api
    from .execution import Executor
    from .graph import ancestry, validate
    from .host import EngineHost, Silent
    from .registry import classes, object_info

    data = workflow.read(file)
    with tempfile.TemporaryDirectory(prefix="likeness-") as staging:
        folders = [folder.resolve() for folder in picture_folders(file, inputs)]
        out = made(out)
        nodes_host.use(EngineHost(folders, out, temp or Path(staging) / "temp", models))
        try:
            known = classes()
            used = workflow.class_types(data)
            info = object_info({name: node for name, node in known.items() if name in used})
            prompt = to_api(data, info) if workflow.is_editor(data) else data
            changed = workflow.apply_settings(prompt, settings, info)
            _stage(prompt, info, folders, changed, Path(staging) / "input")
            verdict = validate(prompt, known)
            if not verdict.ok or verdict.node_errors:
                raise Invalid(workflow.readable(verdict.node_errors, verdict.error, prompt))
            order, _ = ancestry(prompt, verdict.outputs)
            listener = Line(prompt, len(order)) if listen else Silent()
            began = time.perf_counter()
            extra = {"extra_pnginfo": {"workflow": data}} if workflow.is_editor(data) else {}
            record = Executor(known).run(prompt, verdict.outputs, extra=extra, listener=listener)
        finally:
            nodes_host.use(None)
    failure = record.message("execution_error")
    if failure is not None:
        where = f"{workflow.title(prompt, failure['node_id'])} (node {failure['node_id']})"
        raise RunFailed(f"{where}: {failure['exception_message']}", "".join(failure["traceback"]))
    if record.message("execution_interrupted") is not None:
        raise KeyboardInterrupt
    saved = [contained(out, item.get("subfolder", ""), item["filename"]) for item in pictures(record.outputs, "output")]
    return Outcome(saved, record.outputs, record.executed, time.perf_counter() - began)


def pictures(outputs: dict[str, Any], kind: str) -> list[dict[str, str]]:
    """Every file of one kind (``output`` or ``temp``) that the nodes' ``ui`` outputs name."""
    return [
        item
        for ui in outputs.values()
        for values in ui.values()
        for item in values
        if isinstance(item, dict) and "filename" in item and item.get("type") == kind
    ]


def _stage(
    prompt: Prompt, info: dict[str, Any], folders: list[Path], changed: set[tuple[str, str]], staging: Path
) -> None:
    """Copy pictures that were set on the command line, and lie in no input folder, to where LoadImage finds them."""
    for node_id, name, value in list(workflow.picture_inputs(prompt, info)):
        if (node_id, name) not in changed or annotated(value)[1] != "input" or _is_inside(value, folders):
            continue
        source = Path(value).expanduser()
        if not source.is_file():
            looked = ", ".join(str(folder) for folder in folders if folder != staging)
            raise Invalid(
                f"{workflow.title(prompt, node_id)} (node {node_id}): there is no picture {value}, nor in {looked}"
            )
        if staging not in folders:
            staging.mkdir()
            folders.append(staging)
        copy, number = staging / source.name, 1
        while any((folder / copy.name).exists() for folder in folders):
            copy = staging / f"{source.stem} ({number}){source.suffix}"
            number += 1
        shutil.copyfile(source, copy)
        prompt[node_id]["inputs"][name] = copy.name


def _is_inside(name: str, folders: list[Path]) -> bool:
    try:
        return any(contained(folder, name).is_file() for folder in folders)
    except BadInput:
        return False
