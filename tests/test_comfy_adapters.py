"""Adapters in a real ComfyUI: the authors' numbers in its own U-Net class, the laws of patching, the most used pack.

Needs ``COMFYUI_DIR`` as ``test_comfy`` does, and for the last check ``IPADAPTER_PLUS_DIR``, a checkout of
ComfyUI_IPAdapter_plus. The checks themselves are in ``comfy_inside.py``, for they run in ComfyUI's interpreter.
"""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.comfy, pytest.mark.timeout(900)]

SCRIPT = Path(__file__).with_name("comfy_inside.py")
PEER = "beside_the_most_used_pack_in_one_graph"
CHECKS = [
    node.name
    for node in ast.parse(SCRIPT.read_text()).body
    if isinstance(node, ast.FunctionDef) and any(getattr(d, "id", "") == "check" for d in node.decorator_list)
]


@pytest.fixture(scope="module")
def answers():
    """What every check said, by name."""
    folder = os.environ.get("COMFYUI_DIR")
    if not folder:
        pytest.skip("COMFYUI_DIR is not set; let it name a ComfyUI checkout")
    comfy = Path(folder).expanduser().resolve()
    peer = os.environ.get("IPADAPTER_PLUS_DIR", "-")
    names = [name for name in CHECKS if name != PEER or peer != "-"]
    python = os.environ.get("COMFYUI_PYTHON") or sys.executable
    done = subprocess.run(
        [python, str(SCRIPT), str(comfy), peer, *names],
        cwd=comfy,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE"},
    )
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"name"')]
    assert len(lines) == len(names), done.stdout[-1000:] + done.stderr[-3000:]
    return {line["name"]: line for line in lines}


@pytest.mark.parametrize("name", CHECKS)
def test_in_comfyui(answers, name):
    if name not in answers:
        pytest.skip("IPADAPTER_PLUS_DIR is not set; let it name a checkout of ComfyUI_IPAdapter_plus")
    assert answers[name]["held"], answers[name]["said"]
    if answers[name]["said"]:
        print(f"{name}: {answers[name]['said']}")
