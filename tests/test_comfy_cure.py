"""The cure in a real ComfyUI: the authors' numbers in its own U-Net class, a tape against the published paired run.

Needs ``COMFYUI_DIR`` as ``test_comfy`` does. The checks themselves are in ``comfy_inside_cure.py``, for they run in
ComfyUI's interpreter.
"""

from pathlib import Path

import pytest
from likeness.tests.comfy_process import answers_of, checks_of

pytestmark = [pytest.mark.comfy, pytest.mark.timeout(900)]

SCRIPT = Path(__file__).with_name("comfy_inside_cure.py")
CHECKS = checks_of(SCRIPT)


@pytest.fixture(scope="module")
def answers():
    return answers_of(SCRIPT, CHECKS)


@pytest.mark.parametrize("name", CHECKS)
def test_in_comfyui(answers, name):
    assert answers[name]["held"], answers[name]["said"]
    if answers[name]["said"]:
        print(f"{name}: {answers[name]['said']}")
