"""Compiles ``kernels/triton_attention.py`` for GPUs that need not be there, and prints what came out as JSON.

``python kernels_compiled.py table [all]``: registers, stores to local memory (spills) and tensor-core instructions of
each variant on each architecture. ``… launch``: what two calls in a row hand to Triton's launcher, with a driver in its
place that launches nothing. Nothing is executed.

``kernels_compiled.json`` is the output of ``table all`` under Triton 3.9.0.
"""

import importlib.util
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def package():
    spec = importlib.util.spec_from_file_location(
        "likeness", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    sys.modules["likeness"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["likeness"])


package()

import torch  # noqa: E402
import triton  # noqa: E402
from likeness.kernels import triton_attention as fused  # noqa: E402
from likeness.tests.kernels_cases import Case  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402
from triton.runtime import driver  # noqa: E402

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
ARCHITECTURES = (80, 89, 90, 120)
"""Ampere (A100; consumer cards are 86), Ada, Hopper, consumer Blackwell."""
ALIGNED = re.compile(r"(out|q|k|v|id_k|id_v)(_row|_step)?|weight|mask|starts")
"""What is a multiple of 16 in every call that the dispatcher lets through, but for odd strides."""


def variants(everything):
    """(name, dtype, head dimension, keys of the longest branch, whether with text)."""
    for text in (True, False):
        op = "decoupled_attention" if text else "add_identity_attention_"
        for dim in (40, 64, 80, 128, 160):
            for keys in (16, 64, 257):
                if everything or keys == 16 or (keys == 257 and dim in (64, 128)):
                    yield f"{op} D{dim} {keys} keys", "fp16", dim, keys, text
        yield f"{op} D64 16 keys bf16", "bf16", 64, 16, text


def compiled(dtype, dim, keys, text, architecture):
    constants, options = fused.variant(dim, [keys], text, masked=True)
    constants["mask_step"] = 1  # Triton compiles a stride of 1 in
    types = {"weight": "*fp32", "mask": "*fp32", "starts": "*i32", "scale": "fp32"}
    types |= dict.fromkeys(("out", "q", "k", "v", "id_k", "id_v"), f"*{dtype}")
    names = fused.attention_kernel.arg_names
    signature = {name: "constexpr" if name in constants else types.get(name, "i32") for name in names}
    attributes = {(n,): [["tt.divisibility", 16]] for n, name in enumerate(names) if ALIGNED.fullmatch(name)}
    source = ASTSource(fused.attention_kernel, signature, constants, attributes)
    return triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)


def facts(kernel):
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(kernel.asm["cubin"])
        usage, code = (
            subprocess.run([TOOLS / "cuobjdump", option, cubin], capture_output=True, text=True, check=True).stdout
            for option in ("-res-usage", "-sass")
        )
    return {
        "registers": int(re.search(r"REG:(\d+)", usage)[1]),
        "spills": len(re.findall(r"\bSTL\b", code)),
        "tensor_cores": len(re.findall(r"\bHG?MMA\b", code)),
    }


def table(everything):
    return {
        name: {str(architecture): facts(compiled(*variant, architecture)) for architecture in ARCHITECTURES}
        for name, *variant in variants(everything)
    }


class StandIn:
    """A driver of an A100 that launches nothing and notes what it was asked to launch."""

    def __init__(self):
        self.launches = []
        self.loaded = 0
        self.utils = self

    def get_current_target(self):
        return GPUTarget("cuda", 80, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0

    def get_device_properties(self, device):
        return {"max_shared_mem": 166912}

    def load_binary(self, name, kernel, shared, device):
        self.loaded += 1
        return 1, 2, 128, 0, 1024

    def unload_module(self, module):
        pass

    def launcher_cls(self, source, metadata):
        return lambda *arguments: self.launches.append(arguments)


def launch():
    stand_in = StandIn()
    driver.set_active(stand_in)
    cases = [Case(64, (4, 16), mask, torch.float16) for mask in ("", "rows", "shared")]
    names = fused.attention_kernel.arg_names
    same = []
    for case in cases:
        arguments, out = case.arguments(), case.out()
        for call in (
            lambda a=arguments: fused.decoupled_attention(*a),
            lambda a=arguments, o=out: fused.add_identity_attention_(o, a.q, *a.identities),
        ):
            del stand_in.launches[:]
            call()
            call()
            # Grid, stream and function; then the hooks and their data; then the kernel's own arguments.
            first, second = (
                [part for part in one[:6] + one[9:] if not isinstance(part, torch.Tensor)] for one in stand_in.launches
            )
            same.append(first == second and all(len(one) == 9 + len(names) for one in stand_in.launches))
    begin = time.process_time()
    for _ in range(1000):
        fused.add_identity_attention_(out, arguments.q, *arguments.identities)
    return {"same": same, "kernels": stand_in.loaded, "microseconds": (time.process_time() - begin) * 1e3}


if __name__ == "__main__":
    json.dump(launch() if sys.argv[1] == "launch" else table("all" in sys.argv), sys.stdout, indent=1)
