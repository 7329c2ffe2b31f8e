"""The fused kernel without a GPU: its semantics, interpreted, are float64's; what ptxas makes of it fits the machine.

Nothing here executes it on a GPU but the test marked ``gpu``, which has not been run for want of one.
``kernels/selfcheck.py`` does, on the user's.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from likeness import kernels

from .kernels_cases import TOLERANCE, Case, errors
from .kernels_mutants import MUTANTS

HERE = Path(__file__).resolve().parent
RECORDED = json.loads((HERE / "kernels_compiled.json").read_text())

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("triton") is None,
        reason="the fused kernel is not checked here: Triton is not installed (pip install triton==3.9.0; 1 GB, Linux)",
    ),
    pytest.mark.timeout(600),
]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("lens", [(4,), (16, 5), (257, 4)], ids=str)
@pytest.mark.parametrize("mask", ["", "shared", "rows"])
def test_on_a_gpu_the_kernel_is_the_reference_within_rounding(dtype, lens, mask):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    for dim in (40, 64, 80, 128, 160):
        case = Case(dim, lens, mask, dtype, device="cuda")
        with kernels.use_backend("triton"):
            found = errors(kernels, case)
        assert max(found.values()) <= TOLERANCE[dtype], (dim, found)


def child(script, *arguments, **environment):
    """What a script of this folder prints, as data; in a process of its own, with no cache but what it is told."""
    done = subprocess.run(
        [sys.executable, str(HERE / script), *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_interpreted_kernel_is_the_reference_within_rounding():
    found = child("kernels_interpreted.py", "matrix")
    wrong = [
        (op, row["case"], row[op])
        for row in found["rows"]
        for op in ("decoupled_attention", "add_identity_attention_")
        if not row[op] <= row["limit"]
    ]
    assert not wrong
    assert len(found["rows"]) >= 32 and {row["dtype"] for row in found["rows"]} == {
        "torch.float32",
        "torch.float16",
        "torch.bfloat16",
    }
    assert found["untouched"], "a query without a share must keep its very bits"


def test_every_broken_kernel_is_caught_and_the_kernel_is_not():
    found = child("kernels_interpreted.py", "mutants")
    assert found.pop("") is None, "the kernel itself must pass"
    assert found.keys() == MUTANTS.keys() and len(MUTANTS) >= 12
    assert not [name for name, caught in found.items() if caught is None]


def test_a_kept_plan_hands_the_launcher_what_triton_itself_did(tmp_path):
    found = child("kernels_compiled.py", "launch", TRITON_CACHE_DIR=str(tmp_path))
    assert found["same"] == [True] * 6
    assert found["kernels"] == 4, "with and without text, with and without a mask; not one for each mask's shape"


def compare(found):
    """Complaints about what was compiled."""
    for name, architectures in found.items():
        for architecture, facts in architectures.items():
            recorded = RECORDED[name][architecture]
            if facts["tensor_cores"] == 0:
                yield f"{name} on sm_{architecture} does not use the tensor cores"
            if facts["spills"] > recorded["spills"]:
                yield f"{name} on sm_{architecture} spills {facts['spills']} times, recorded {recorded['spills']}"


def test_the_compiled_kernel_uses_tensor_cores_and_spills_no_more_than_recorded(tmp_path):
    found = child("kernels_compiled.py", "table", TRITON_CACHE_DIR=str(tmp_path))
    assert not list(compare(found))
    assert {architecture for row in found.values() for architecture in row} == {"80", "89", "90", "120"}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_variant_uses_tensor_cores_and_spills_no_more_than_recorded(tmp_path):
    found = child("kernels_compiled.py", "table", "all", TRITON_CACHE_DIR=str(tmp_path))
    assert not list(compare(found)) and found.keys() == RECORDED.keys()
