"""Runs ``kernels/triton_attention.py`` in Triton's interpreter on the CPU, and prints what it found as JSON.

A process of its own, because TRITON_INTERPRET must be set before Triton is imported and holds for all that follows:
``python kernels_interpreted.py matrix`` compares the kernel with float64; ``… mutants`` does so for each broken version
until a case catches it, and for the unbroken one. What the interpreter cannot see: races, tf32, alignment, and what
ptxas makes of the code. It also cuts float32 to bfloat16 instead of rounding, so those errors are overstated.
"""

import importlib.util
import json
import os
import sys
import tempfile
from pathlib import Path

os.environ["TRITON_INTERPRET"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parent.parent


def load(name, path, **options):
    spec = importlib.util.spec_from_file_location(name, path, **options)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


load("likeness", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])

import numpy as np  # noqa: E402
import torch  # noqa: E402
import triton.language as tl  # noqa: E402
from likeness.tests.kernels_cases import TOLERANCE, Case, errors  # noqa: E402
from likeness.tests.kernels_mutants import MUTANTS, broken  # noqa: E402
from triton.runtime import interpreter  # noqa: E402

HALF, BRAIN = torch.float16, torch.bfloat16
KERNEL = ROOT / "kernels" / "triton_attention.py"

MATRIX = [
    # Every head dimension of SD1.5 (40, 80, 160), SDXL (64) and FLUX (128), and two between.
    *(Case(dim, (16,), dtype=kind) for dim in (40, 64, 80, 128, 160, 96, 24) for kind in (torch.float32, HALF, BRAIN)),
    # Branches: none, ragged, several, long ones with short ones, on the edges of the tiles.
    Case(40, ()),
    Case(64, (4, 16), "shared", queries=130),
    Case(40, (1, 5, 64), "rows"),
    Case(80, (257,), "rows", HALF),
    Case(64, (65, 3), "halves", text=20),
    Case(128, (257, 4), "shared", BRAIN, queries=40),
    Case(160, (100,), queries=33),
    # Sizes: one query, one key, tiles exactly full, more keys than FLUX's text.
    Case(40, (4,), queries=1, text=1, batch=1, heads=1),
    Case(64, (32,), queries=64, text=64, heads=3),
    Case(40, (16,), queries=333, text=308, batch=1, heads=1),
    # Shares: negative, zero, one row's mask for all, whole tiles left out.
    Case(40, (4, 16), weights=(0.0, -1.5)),
    Case(24, (16, 16), "halves", queries=150, weights=(2.0, -0.7)),
    Case(64, (16,), "rows", weights=(0.0,)),
    # Views into larger tensors, and another scale.
    Case(40, (4, 16), "rows", HALF, strided=True),
    Case(96, (77,), "shared", strided=True),
    Case(24, (5,), scale=-0.4),
]  # fmt: skip
CATCHERS = [
    Case(40, (5, 16), "rows", queries=70, text=100),
    Case(40, (65, 3), "rows", queries=20, text=20),
    Case(24, (16, 4), scale=-0.4, weights=(0.8, -1.5), queries=20, text=20),
]
"""A few cases of the same kind that together catch whatever is broken."""


def multiply_bfloat16():
    """Lets the interpreter's ``tl.dot`` take bfloat16, which it keeps as bits and would multiply as integers."""
    original = interpreter.InterpreterBuilder.create_dot

    def widened(handle):
        if handle.dtype.scalar != tl.bfloat16:
            return handle
        return interpreter.TensorHandle((handle.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    def create_dot(self, a, b, d, *rest):
        return original(self, widened(a), widened(b), d, *rest)

    interpreter.InterpreterBuilder.create_dot = create_dot


def untouched(kernel):
    """Whether queries without a share keep every bit, even that of -0."""
    case = Case(40, (4,), "halves", weights=(0.5,), queries=20)
    arguments, out = case.arguments(), torch.full((2, 20, 80), -0.0)
    kernel.add_identity_attention_(out, arguments.q, *arguments.identities)
    half = out[:, :10]
    return bool(torch.signbit(half).all() and half.eq(0).all() and out[:, 10:].any())


def failing(kernel, cases):
    """The first case that the kernel fails, in words; None if there is none."""
    for case in cases:
        for op, error in errors(kernel, case).items():
            if not error <= TOLERANCE[case.dtype]:
                return f"{op} {case}: {error:.3g}"
    return None if untouched(kernel) else "untouched queries"


def matrix():
    kernel = load("likeness.kernels.triton_attention", KERNEL)
    rows = [
        {"case": str(case), "dtype": str(case.dtype), "limit": TOLERANCE[case.dtype], **errors(kernel, case)}
        for case in MATRIX
    ]
    return {"rows": rows, "untouched": untouched(kernel)}


def mutants():
    source = KERNEL.read_text()
    caught = {}
    with tempfile.TemporaryDirectory() as folder:
        for number, name in enumerate(["", *MUTANTS]):
            path = Path(folder) / f"kernel_{number}.py"
            path.write_text(broken(source, name) if name else source)
            kernel = load("likeness.kernels.triton_attention", path)
            try:
                caught[name] = failing(kernel, CATCHERS)
            except Exception as error:
                caught[name] = f"{type(error).__name__}: {error}"
    return caught


if __name__ == "__main__":
    torch.set_num_threads(1)
    np.seterr(all="ignore")
    multiply_bfloat16()
    json.dump({"matrix": matrix, "mutants": mutants}[sys.argv[1]](), sys.stdout)
