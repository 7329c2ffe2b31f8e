"""Adapters in a real ComfyUI: the authors' numbers in its own U-Net class, the laws of patching, the most used pack.

Needs ``COMFYUI_DIR`` as ``test_comfy`` does, and for the last check ``IPADAPTER_PLUS_DIR``, a checkout of
ComfyUI_IPAdapter_plus. The checks themselves are in ``comfy_inside.py``, for they run in ComfyUI's interpreter.
"""

import os
from pathlib import Path

import pytest
from likeness.tests.comfy_process import answers_of, checks_of

pytestmark = [pytest.mark.comfy, pytest.mark.timeout(900)]

SCRIPT = Path(__file__).with_name("comfy_inside.py")
PEER = "beside_the_most_used_pack_in_one_graph"
CHECKS = checks_of(SCRIPT)


@pytest.fixture(scope="module")
def answers():
    peer = os.environ.get("IPADAPTER_PLUS_DIR", "-")
    return answers_of(SCRIPT, [name for name in CHECKS if name != PEER or peer != "-"], peer)


@pytest.mark.parametrize("name", CHECKS)
def test_in_comfyui(answers, name):
    if name not in answers:
        pytest.skip("IPADAPTER_PLUS_DIR is not set; let it name a checkout of ComfyUI_IPAdapter_plus")
    assert answers[name]["held"], answers[name]["said"]
    if answers[name]["said"]:
        print(f"{name}: {answers[name]['said']}")
