"""Scripts of checks that run in ComfyUI's own interpreter: which checks they hold, and what these answer."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


def checks_of(script):
    """The names of the functions that a script marks with ``@check``."""
    return [
        node.name
        for node in ast.parse(script.read_text()).body
        if isinstance(node, ast.FunctionDef) and any(getattr(d, "id", "") == "check" for d in node.decorator_list)
    ]


def answers_of(script, names, peer="-"):
    """What every check said, by name; skips where no ComfyUI is named."""
    folder = os.environ.get("COMFYUI_DIR")
    if not folder:
        pytest.skip("COMFYUI_DIR is not set; let it name a ComfyUI checkout")
    comfy = Path(folder).expanduser().resolve()
    python = os.environ.get("COMFYUI_PYTHON") or sys.executable
    done = subprocess.run(
        [python, str(script), str(comfy), peer, *names],
        cwd=comfy,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE"},
    )
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"name"')]
    assert len(lines) == len(names), done.stdout[-1000:] + done.stderr[-3000:]
    return {line["name"]: line for line in lines}
