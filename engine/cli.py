"""The ``likeness`` command. Results go to standard output, everything else to standard error."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import traceback
from pathlib import Path
from typing import Any

from ..face.errors import BadInput, LikenessError

OK, FAILED, REFUSED, STOPPED = 0, 1, 2, 130
"""Exit codes: done; the run failed; the call or the workflow is wrong; interrupted."""


def _port(text: str) -> int:
    number = int(text)
    if not 0 <= number <= 65535:
        raise argparse.ArgumentTypeError(f"a port lies between 0 and 65535; got {number}")
    return number


def build_parser() -> argparse.ArgumentParser:
    """The command's arguments; needs neither torch nor a model."""
    parser = argparse.ArgumentParser(
        prog="likeness",
        description="Find, identify, swap and score faces: workflows of ComfyUI without ComfyUI.",
        epilog="Exit codes: 0 done, 1 the run failed, 2 the call or the workflow is wrong, 130 interrupted.",
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="log more, and show tracebacks")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    run = commands.add_parser(
        "run", help="run a workflow file", description="Run a workflow file and print what it wrote."
    )
    run.add_argument("file", type=Path, help="a workflow in API or editor format, or a PNG that carries one")
    run.add_argument(
        "--set",
        action="append",
        default=[],
        dest="settings",
        metavar="NODE.INPUT=VALUE",
        help="change an input; NODE is an id or a title; a picture may be any path; may be repeated",
    )
    run.add_argument("--out", type=Path, default=Path("out"), metavar="DIR", help="where results are written (out)")
    run.add_argument(
        "--input",
        type=Path,
        metavar="DIR",
        help="where pictures are looked up first (./input), before the file's folder and photos/ in it",
    )
    run.add_argument("--server", metavar="URL", help="run it on this ComfyUI and fetch the results")
    run.add_argument("--json", action="store_true", help="print the files and what the nodes show as JSON")
    run.set_defaults(act=_run)

    serve = commands.add_parser("serve", help="serve ComfyUI's HTTP and websocket API")
    serve.add_argument("--listen", default="127.0.0.1", metavar="ADDRESS", help="address to listen on (127.0.0.1)")
    serve.add_argument("--port", type=_port, default=8188, help="port to listen on; 0 takes a free one (8188)")
    serve.add_argument("--input", type=Path, default=Path("input"), metavar="DIR", help="folder of pictures (input)")
    serve.add_argument("--output", type=Path, default=Path("out"), metavar="DIR", help="folder of results (out)")
    serve.set_defaults(act=_serve)

    shown = commands.add_parser(
        "demo", help="swap and score on photographs, draw and cure in the lab: all of it comes with the pack"
    )
    shown.add_argument("--out", type=Path, default=Path("out"), metavar="DIR", help="where results are written (out)")
    shown.set_defaults(act=_demo)

    models = commands.add_parser("models", help="list, fetch and verify model files")
    actions = models.add_subparsers(dest="action", required=True, metavar="ACTION")
    listed = actions.add_parser("list", help="what the catalogue knows, and what is there")
    listed.add_argument("--json", action="store_true", help="print JSON")
    listed.set_defaults(act=_models_list)
    fetch = actions.add_parser("fetch", help="download models by name; nothing else ever downloads")
    fetch.add_argument(
        "names", nargs="+", metavar="NAME", help="a model's name from `likeness models list`, or: default"
    )
    fetch.set_defaults(act=_models_fetch)
    verify = actions.add_parser("verify", help="check the digests of the files that are there")
    verify.add_argument("name", nargs="?", metavar="NAME", help="one model only")
    verify.set_defaults(act=_models_verify)

    score = commands.add_parser(
        "score",
        help="compare the faces in two pictures",
        description="Score how well picture B keeps the identity of the person in picture A.",
    )
    score.add_argument("reference", type=Path, metavar="A", help="a picture of the person")
    score.add_argument("picture", type=Path, metavar="B", help="the picture to judge")
    score.add_argument("--json", action="store_true", help="print the whole record as JSON")
    score.set_defaults(act=_score)

    workflows = commands.add_parser("workflows", help="keep workflow files")
    kept = workflows.add_subparsers(dest="action", required=True, metavar="ACTION")
    build = kept.add_parser("build", help="write the editor's files from the API files beside them in api/")
    build.add_argument("folder", nargs="?", type=Path, metavar="DIR", help="folder of the workflows (the pack's own)")
    build.set_defaults(act=_workflows_build)

    documents = commands.add_parser("docs", help="write the README's tables and node_list.json from the registries")
    documents.set_defaults(act=_docs)
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run the command; the exit code."""
    # Before torch loads: its threads' spin-wait makes everything many times slower where another process is busy.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    options = build_parser().parse_args(arguments)
    level = logging.DEBUG if options.verbose else logging.WARNING
    logging.basicConfig(stream=sys.stderr, level=level, format="%(levelname)s %(name)s: %(message)s")
    try:
        # Interrupted while others import it, numpy stays half there and they fail for reasons of their own.
        import numpy  # noqa: F401  # pyright: ignore[reportUnusedImport]

        return options.act(options)
    except KeyboardInterrupt:
        _say("interrupted")
        return STOPPED
    except LikenessError as error:
        if options.verbose:
            _say(getattr(error, "trace", "") or "".join(traceback.format_exception(error)))
        _say(str(error))
        return REFUSED if isinstance(error, BadInput) else FAILED
    except BrokenPipeError:
        # Whoever read our output has seen enough (`| head`); Python must not complain when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")


def _print(value: Any) -> None:
    text = value if isinstance(value, str) else json.dumps(value, indent=2, default=str)
    sys.stdout.write(f"{text}\n")


def _run(options: argparse.Namespace) -> int:
    if options.server:
        from .remote import run as run_there

        outcome = run_there(options.server, options.file, options.settings, options.out, options.input)
    else:
        from .local import run

        outcome = run(options.file, options.settings, options.out, options.input)
    if options.json:
        _print(outcome.as_json())
    else:
        for file in outcome.files:
            _print(str(file))
        for ui in outcome.outputs.values():
            for text in ui.get("text", []):
                _say(str(text))
    if not outcome.files:
        _say(f"no picture was saved in {options.out}")
    return OK


def _demo(options: argparse.Namespace) -> int:
    from .demo import demo

    for outcome in demo(options.out):
        for file in outcome.files:
            _print(str(file))
    return OK


def _serve(options: argparse.Namespace) -> int:
    from .server import serve

    serve(options.listen, options.port, options.input, options.output)
    return OK


def _models_list(options: argparse.Namespace) -> int:
    from dataclasses import asdict

    from ..face.host import STANDALONE
    from ..face.models import listing

    rows = listing(STANDALONE)
    if options.json:
        _print([asdict(row) for row in rows])
        return OK
    wide = max((len(row.name) for row in rows), default=0)
    for row in rows:
        size = f"{row.size / 1e6:.1f} MB"
        _print(
            f"{row.name:{wide}}  {row.state:10}  {size:>9}  {row.licence} (commercial: {row.commercial})  {row.about}"
        )
    return OK


def _models_fetch(options: argparse.Namespace) -> int:
    from ..face.fetch import fetch_named
    from ..face.host import STANDALONE

    for name in options.names:
        for path in fetch_named(name, STANDALONE, report=_say):
            _print(str(path))
    return OK


def _models_verify(options: argparse.Namespace) -> int:
    from ..face.host import STANDALONE
    from ..face.models import verify

    verdicts = verify(options.name, STANDALONE)
    for verdict in verdicts:
        _print(f"{verdict.card.name}: {verdict.state}: {verdict.detail}")
    # A file that is not there is no fault unless it was asked for.
    bad = ("damaged", "missing") if options.name else ("damaged",)
    return FAILED if any(verdict.state in bad for verdict in verdicts) else OK


def _score(options: argparse.Namespace) -> int:
    from ..face.score import score_files

    record = score_files(options.reference, options.picture)
    if options.json:
        _print(record)
    elif record["similarity"] is None:
        _print(f"no comparison: {', '.join(record['flags'])}")
    else:
        limits = record["thresholds"]
        _print(
            f"{record['verdict']}: similarity {record['similarity']:.3f} ({record['judge']['embedder']}; same from "
            f"{limits['same']:.2f}, different below {limits['different']:.2f})"
        )
    return OK


def _docs(options: argparse.Namespace) -> int:
    from .docs import write

    for file in write():
        _print(str(file))
    return OK


def _workflows_build(options: argparse.Namespace) -> int:
    from ..face.host import ROOT
    from . import workflow
    from .convert import to_editor
    from .registry import object_info

    folder = options.folder or ROOT / "workflows"
    sources = sorted((folder / "api").glob("*.json"))
    if not sources:
        raise BadInput(f"there is no workflow in {folder / 'api'}. Name a folder whose api/ holds workflows.")
    info = object_info()
    for source in sources:
        target = folder / source.name
        target.write_text(json.dumps(to_editor(workflow.read(source), info), indent=1) + "\n", "utf-8")
        _print(str(target))
    return OK
