"""Decoupled attention: eager is the reference, only faster; the dispatcher gives its reasons; the ops compile."""

import importlib.util
import logging
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from likeness import kernels
from likeness.kernels import dispatch, eager, plan, reference, selfcheck
from likeness.kernels.call import Call
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from .kernels_cases import TOLERANCE, Case, errors

ROOT = Path(__file__).resolve().parent.parent
HALF, BRAIN = torch.float16, torch.bfloat16
VIEWS = {"view", "_unsafe_view", "transpose", "t", "expand", "unsqueeze", "squeeze", "slice", "select", "unbind"}
VIEWS |= {"split_with_sizes", "split", "alias", "detach", "as_strided", "permute", "device"}


@pytest.fixture(autouse=True)
def undecided(monkeypatch):
    """Each test decides anew, with nothing forced from outside."""
    monkeypatch.delenv(dispatch.VARIABLE, raising=False)
    dispatch.forget()
    yield
    dispatch.forget()


# What is computed

SHAPES = [
    Case(40, (4,), queries=256, heads=8),  # SD1.5 at 16x16
    Case(80, (16,), queries=64, heads=8),
    Case(160, (4, 16), "shared", queries=64, heads=8),
    Case(160, (257,), queries=16, heads=8),
    Case(64, (16,), "rows", queries=256, heads=10),  # SDXL
    Case(64, (4, 4), "halves", queries=64, heads=20),
    Case(128, (128,), queries=96, text=512, heads=4),  # FLUX: a long text branch
    Case(128, (32, 257, 1), "rows", queries=33, text=600, heads=3),
    Case(64, ()),
    Case(64, (16, 16, 16), "shared", weights=(0.0, -1.5, 2.0)),
    Case(40, (5, 77, 1), "rows", strided=True),
    Case(80, (7,), queries=1, text=1, batch=1, heads=1),
    Case(24, (16,), scale=0.3),
    Case(24, (3,), scale=-0.3),
]


@pytest.mark.parametrize("case", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_eager_is_the_reference_in_every_dtype(case, dtype):
    for op, error in errors(eager, Case(**{**vars(case), "dtype": dtype})).items():
        assert error <= TOLERANCE[dtype], (op, error)


def test_the_reference_is_the_formula():
    case = Case(24, (3, 2), "rows", torch.float64, queries=5, text=4)
    q, k, v, id_k, id_v, _, weight, heads, mask, _ = case.arguments().to(torch.float64)
    out = reference.decoupled_attention(*case.arguments().to(torch.float64))

    def softmax_of(keys, values, b, h, i):
        d = slice(24 * h, 24 * h + 24)
        logits = torch.stack([(q[b, i, d] * key[d]).sum() for key in keys[b]]) / 24**0.5
        return ((logits - logits.max()).exp() / (logits - logits.max()).exp().sum()) @ values[b, :, d]

    for b in range(case.batch):
        for h in range(heads):
            for i in range(case.queries):
                want = softmax_of(k, v, b, h, i)
                for n, part in enumerate([slice(0, 3), slice(3, 5)]):
                    want = want + weight[b, n] * mask[n, b, i] * softmax_of(id_k[:, part], id_v[:, part], b, h, i)
                assert torch.allclose(out[b, i, 24 * h : 24 * h + 24], want, atol=1e-12)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("mask", ["", "rows"])
def test_a_weight_of_zero_leaves_every_bit_of_the_output(dtype, mask):
    case = Case(40, (4, 16), mask, dtype, weights=(0.0, 0.0))
    arguments = case.arguments()
    out = before = case.out()
    kernels.add_identity_attention_(out := before.clone(), arguments.q, *arguments.identities)
    assert out.view(torch.uint8).equal(before.view(torch.uint8))
    text = kernels.decoupled_attention(*arguments)
    none = arguments._replace(id_k=arguments.id_k[:, :0], id_v=arguments.id_v[:, :0], id_lens=[], mask=None)
    alone = kernels.decoupled_attention(*none._replace(weight=arguments.weight[:, :0]))
    assert text.view(torch.uint8).equal(alone.view(torch.uint8))


def test_masked_queries_keep_every_bit_of_the_output():
    case = Case(64, (16,), "halves")
    arguments, out = case.arguments(), case.out()
    before = out.clone()
    kernels.add_identity_attention_(out, arguments.q, *arguments.identities)
    half = case.queries // 2
    assert out[:, :half].equal(before[:, :half]) and not out[:, half:].equal(before[:, half:])


def test_the_output_may_be_a_view_and_nothing_beside_it_changes():
    case = Case(40, (16,))
    arguments = case.arguments()
    whole = torch.zeros(2, case.queries, 3 * 80)
    kernels.add_identity_attention_(whole[:, :, 80:160], arguments.q, *arguments.identities)
    assert whole[:, :, 80:160].any() and not whole[:, :, :80].any() and not whole[:, :, 160:].any()


# What it costs


class Ops(TorchDispatchMode):
    """The operations that run, views left out."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.split("::")[1]
        if name not in VIEWS:
            self.names.append(name)
        return func(*args, **(kwargs or {}))


def ops_of(call, *arguments):
    with Ops() as ops:
        call(*arguments)
    return ops.names


@pytest.mark.parametrize("mask", ["", "shared", "rows"])
@pytest.mark.parametrize("lens", [(4,), (16,), (257,), (4, 16), (16, 16, 77)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_an_identity_costs_at_most_four_operations_more_than_text_alone(lens, mask, dtype):
    case = Case(40, lens, mask, dtype)
    arguments = case.arguments()
    text = [t.unflatten(-1, (2, -1)).transpose(1, 2) for t in arguments[:3]]
    alone = ops_of(torch.nn.functional.scaled_dot_product_attention, *text)
    both = ops_of(eager.decoupled_attention, *arguments)
    added = ops_of(eager.add_identity_attention_, case.out(), arguments.q, *arguments.identities)
    assert len(alone) == 1
    assert len(both) - 1 <= 4 * len(lens), both
    assert len(added) <= 4 * len(lens), added


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("mask", ["", "rows"])
def test_on_a_pretended_gpu_nothing_is_read_back(dtype, mask):
    arguments = Case(64, (4, 257), mask, dtype).arguments()

    class NoCopies(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            assert "_local_scalar_dense" not in str(func), func
            for tensor in result if isinstance(result, tuple | list) else [result]:
                assert not isinstance(tensor, torch.Tensor) or tensor.device.type == "cuda", func
            return result

    with FakeTensorMode():
        there = [torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="cuda") if isinstance(t, torch.Tensor)
                 else t for t in arguments]  # fmt: skip
        with NoCopies():
            for module in (eager, kernels):
                out = module.decoupled_attention(*there)
                assert out.device.type == "cuda" and out.shape == arguments.q.shape
                module.add_identity_attention_(out, there[0], *there[3:])


# The ops


@pytest.mark.parametrize("case", [Case(40, (4, 16), "rows"), Case(64, (16,), "shared", BRAIN), Case(24, (5,))], ids=str)
def test_the_ops_are_what_their_schemas_and_fakes_say(case):
    arguments = case.arguments()
    torch.library.opcheck(torch.ops.likeness.decoupled_attention.default, tuple(arguments))
    torch.library.opcheck(
        torch.ops.likeness.add_identity_attention_.default, (case.out(), arguments.q, *arguments.identities)
    )


@pytest.mark.parametrize("dynamic", [False, True])
def test_the_ops_compile_without_a_break_and_answer_the_same(dynamic):
    def layer(out, *arguments):
        out = out * 2
        kernels.add_identity_attention_(out, arguments[0], *arguments[3:])
        return out + kernels.decoupled_attention(*arguments)

    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for queries in (70, 33):
        case = Case(40, (4, 16), "rows", queries=queries)
        assert torch.allclose(compiled(case.out(), *case.arguments()), layer(case.out(), *case.arguments()), atol=1e-6)


def test_a_compiled_graph_keeps_each_op_as_one_node():
    seen = []

    def backend(graph, inputs):
        seen.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return graph

    torch._dynamo.reset()
    arguments = Case(40).arguments()
    torch.compile(kernels.decoupled_attention, fullgraph=True, backend=backend)(*arguments)
    assert [name for name in seen if "likeness" in name] == ["likeness.decoupled_attention"] and len(seen) == 1


def test_the_pack_may_be_loaded_under_two_names():
    spec = importlib.util.spec_from_file_location(
        "likeness_again", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    package = importlib.util.module_from_spec(spec)
    sys.modules["likeness_again"] = package
    try:
        spec.loader.exec_module(package)
        second = importlib.import_module("likeness_again.kernels")
        assert second.decoupled_attention is not kernels.decoupled_attention
        arguments = Case(40, (4,)).arguments()
        assert second.decoupled_attention(*arguments).equal(kernels.decoupled_attention(*arguments))
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == "likeness_again"]:
            del sys.modules[name]
    assert kernels.decoupled_attention(*arguments) is not None


def test_the_ops_outlive_the_copy_that_defined_them():
    code = (
        "import gc, importlib, importlib.util, sys, torch\n"
        "for name in ('one', 'two'):\n"
        f"    spec = importlib.util.spec_from_file_location(name, {str(ROOT / '__init__.py')!r},"
        f" submodule_search_locations=[{str(ROOT)!r}])\n"
        "    sys.modules[name] = importlib.util.module_from_spec(spec)\n"
        "    spec.loader.exec_module(sys.modules[name])\n"
        "    kernels = importlib.import_module(name + '.kernels')\n"
        "    for old in [m for m in sys.modules if m.startswith('one')]: del sys.modules[old]\n"
        "    x, w = torch.ones(1, 4, 16), torch.ones(1, 1)\n"
        "    gc.collect()\n"
        "    assert kernels.decoupled_attention(x, x, x, x, x, [4], w, 2).eq(2).all()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_importing_the_kernels_does_not_import_triton():
    code = (
        "import importlib.util, sys\n"
        f"spec = importlib.util.spec_from_file_location('likeness', {str(ROOT / '__init__.py')!r},"
        f" submodule_search_locations=[{str(ROOT)!r}])\n"
        "m = importlib.util.module_from_spec(spec); sys.modules['likeness'] = m; spec.loader.exec_module(m)\n"
        "import likeness.kernels\n"
        "assert 'triton' not in sys.modules and 'likeness.kernels.triton_attention' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# What is refused

ARGUMENTS = Case(40, (4, 16), "rows").arguments()
BAD = [
    ({"heads": 3}, "heads must divide the width of q; got 3 heads and a width of 80"),
    ({"heads": 0}, "heads must divide"),
    ({"q": ARGUMENTS.q[0]}, "q must be floating-point of shape"),
    ({"k": ARGUMENTS.k[:1]}, "k and v must have one shape"),
    ({"v": ARGUMENTS.v[:, 1:]}, "k and v must have one shape"),
    ({"k": ARGUMENTS.k[:, :0], "v": ARGUMENTS.v[:, :0]}, "at least one token"),
    ({"k": ARGUMENTS.k.half()}, "k must be torch.float32 on cpu, as q is; got torch.float16 on cpu"),
    ({"id_v": ARGUMENTS.id_v.to("meta")}, "id_v must be torch.float32 on cpu, as q is; got torch.float32 on meta"),
    ({"id_k": ARGUMENTS.id_k[..., :40]}, "id_k and id_v must have one shape"),
    ({"id_lens": [4, 15]}, r"add up to the 20 of id_k; got \[4, 15\]"),
    ({"id_lens": [20, 0]}, "1 or more"),
    ({"id_lens": [20]}, r"weight must be float32 of shape \(B, N\) = \(2, 1\) on cpu; got torch.float32 of shape"),
    ({"weight": ARGUMENTS.weight.double()}, "weight must be float32"),
    ({"mask": ARGUMENTS.mask[:1]}, r"mask must have the shape \(N, B or 1, NQ\) = \(2, 2 or 1, 70\); got \(1, 2, 70\)"),
    ({"mask": ARGUMENTS.mask[..., 1:]}, "mask must have the shape"),
    ({"mask": ARGUMENTS.mask > 0}, "mask must be floating-point"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "sentence"), BAD, ids=lambda value: value if isinstance(value, str) else "")
def test_what_does_not_belong_together_is_refused_with_a_sentence(change, sentence):
    with pytest.raises(kernels.BadArguments, match=sentence):
        kernels.decoupled_attention(*ARGUMENTS._replace(**change))


@pytest.mark.parametrize(
    ("out", "sentence"),
    [
        (ARGUMENTS.q[:, :3], r"out must have the shape of q, \(2, 70, 80\); got \(2, 3, 80\)"),
        (ARGUMENTS.q.half(), "out must be torch.float32"),
        (ARGUMENTS.q[:1].expand(2, -1, -1), "must be cloned first"),
    ],
    ids=["shape", "dtype", "expanded"],
)
def test_an_output_that_cannot_take_the_sum_is_refused(out, sentence):
    with pytest.raises(kernels.BadArguments, match=sentence):
        kernels.add_identity_attention_(out, ARGUMENTS.q, *ARGUMENTS.identities)


# Who computes

GPU = torch.device("cuda", 0)
FIT = Call("decoupled_attention", GPU, HALF, 64, masked=False, keys=16)
NVIDIA = dispatch.Machine("CUDA", (8, 6))


class Fused:
    """A backend that counts; ``wrong`` is what it adds to the right answer."""

    def __init__(self, wrong=0.0):
        self.wrong = wrong
        self.calls = 0

    def decoupled_attention(self, *arguments):
        self.calls += 1
        if isinstance(self.wrong, Exception):
            raise self.wrong
        return eager.decoupled_attention(*arguments) + self.wrong

    def add_identity_attention_(self, out, *arguments):
        self.calls += 1
        eager.add_identity_attention_(out, *arguments)
        out += self.wrong


@pytest.fixture
def fused(monkeypatch):
    """Puts a fused backend without rules in the place of Triton's."""

    def put(wrong=0.0):
        backend = Fused(wrong)
        monkeypatch.setitem(dispatch.BACKENDS, "triton", dispatch.Backend(lambda: backend, checked=True))
        return backend

    return put


@pytest.fixture
def gpu(monkeypatch):
    """A machine that is fit for Triton's kernel; call it with what imports the kernel."""
    monkeypatch.setattr(dispatch, "machine", lambda device: NVIDIA)
    monkeypatch.setattr(dispatch, "triton_version", lambda: (3, 4))

    def load(module):
        monkeypatch.setitem(dispatch.BACKENDS, "triton", dispatch.Backend(module, dispatch.TRITON, checked=True))

    return load


@pytest.mark.parametrize(
    ("call", "machine", "reason"),
    [
        (FIT._replace(device=torch.device("cpu")), NVIDIA, "needs a CUDA device, got cpu"),
        (FIT, NVIDIA._replace(platform="ROCm"), r"needs NVIDIA's CUDA \(ROCm is untested\), got ROCm"),
        (FIT, NVIDIA._replace(capability=(7, 5)), r"needs compute capability \(8, 0\) or higher, got \(7, 5\)"),
        (FIT._replace(dtype=torch.float32), NVIDIA, "needs float16 or bfloat16, got torch.float32"),
        (FIT._replace(head_dim=192), NVIDIA, "needs a head dimension of 8 to 160 in steps of 8, got 192"),
        (FIT._replace(head_dim=36), NVIDIA, "needs a head dimension of 8 to 160 in steps of 8, got 36"),
        (FIT._replace(dense=False), NVIDIA, "needs tensors with a last stride of 1, got others"),
        (FIT._replace(aligned=False), NVIDIA, "needs tensors aligned to 16 bytes, got others"),
        (FIT._replace(near=False), NVIDIA, "needs batch rows of less than 2\\^31 elements, got longer ones"),
    ],
    ids=["cpu", "rocm", "old", "float32", "wide", "odd", "stride", "misaligned", "huge"],
)
def test_a_refused_fast_path_gives_its_reason_and_eager_takes_the_call(monkeypatch, call, machine, reason):
    monkeypatch.setattr(dispatch, "machine", lambda device: machine)
    choice = dispatch.choose(call)
    assert choice.backend == "eager"
    with kernels.use_backend("triton"), pytest.raises(kernels.NoBackend, match=f"take this call: triton: {reason}"):
        dispatch.choose(call)
    with kernels.use_backend("eager"):
        assert dispatch.choose(call) == dispatch.Choice("eager", asked=True)
    assert list(choice.refused) == ["triton"] and "\n" not in str(choice)


@pytest.mark.parametrize("version", [(3, 2), "none (No module named 'triton')"], ids=str)
def test_no_triton_or_an_old_one_is_a_reason_and_it_is_not_asked_for_by_any_other_call(monkeypatch, gpu, version):
    def asked():
        raise AssertionError("Triton was asked for")

    monkeypatch.setattr(dispatch, "triton_version", asked)
    assert dispatch.choose(FIT._replace(dtype=torch.float32)).backend == "eager"
    monkeypatch.setattr(dispatch, "triton_version", lambda: version)
    assert dispatch.choose(FIT).refused == {"triton": f"needs Triton 3.3 or later, got {version}"}


def test_a_fit_call_on_a_fit_machine_is_taken_once_the_self_check_passed(monkeypatch, gpu):
    module, asked = object(), []
    gpu(lambda: module)
    monkeypatch.setattr(selfcheck, "refusal", lambda *arguments: asked.append(arguments))
    assert dispatch.choose(FIT) == dispatch.choose(FIT) == dispatch.Choice("triton")
    assert asked == [("triton", module, FIT)]


def test_a_broken_triton_is_a_reason_too(gpu):

    def broken():
        raise OSError("libcuda is missing")

    gpu(broken)
    assert dispatch.choose(FIT).refused == {"triton": "cannot be imported: libcuda is missing"}


def test_no_self_check_runs_while_a_graph_is_captured_and_nothing_is_settled(monkeypatch, gpu):
    gpu(lambda: None)
    monkeypatch.setattr(selfcheck, "refusal", lambda *arguments: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert "graph is captured" in dispatch.choose(FIT).refused["triton"]
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    assert dispatch.choose(FIT).backend == "triton"


def test_explain_says_what_the_call_takes_and_why_nothing_faster():
    arguments = Case(40).arguments()
    choice = kernels.explain(kernels.decoupled_attention, *arguments)
    assert str(choice) == "eager; not triton: needs a CUDA device, got cpu"
    assert kernels.explain(kernels.add_identity_attention_, arguments.q, arguments.q, *arguments.identities) == choice
    with pytest.raises(kernels.BadArguments):
        kernels.explain(kernels.decoupled_attention, *arguments._replace(heads=3))


def test_the_fused_backend_is_checked_once_a_kind_and_then_used(fused):
    backend, arguments = fused(), Case(40).arguments()
    want = eager.decoupled_attention(*arguments)
    assert kernels.decoupled_attention(*arguments).equal(want)
    assert backend.calls == 3, "two for the check and one for the call"
    kernels.decoupled_attention(*arguments)
    kernels.decoupled_attention(*Case(40, queries=33).arguments())
    assert backend.calls == 5
    kernels.decoupled_attention(*Case(40, mask="rows").arguments())
    assert backend.calls == 8, "a mask makes another kernel"
    kernels.decoupled_attention(*Case(40, (100,)).arguments())
    assert backend.calls == 11, "a long branch, too"


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [(0.1, "is off by 0.0"), (float("nan"), "is off by nan"), (RuntimeError("no gcc\nat all"), "RuntimeError: no gcc")],
    ids=["mismatch", "nan", "exception"],
)
def test_a_failed_self_check_means_eager_for_the_session_and_one_warning(fused, caplog, wrong, reason):
    backend = fused(wrong)
    with caplog.at_level(logging.INFO, logger="likeness"):
        for case in (Case(40), Case(40), Case(64), Case(40, mask="rows"), Case(80, dtype=BRAIN)):
            arguments = case.arguments()
            assert kernels.decoupled_attention(*arguments).equal(eager.decoupled_attention(*arguments))
    assert backend.calls == 1 if isinstance(wrong, Exception) else backend.calls <= 2
    warnings = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warnings) == 1 and reason in warnings[0] and "\n" not in warnings[0]
    assert reason in kernels.explain(kernels.decoupled_attention, *arguments).refused["triton"]


def test_the_self_check_leaves_the_users_random_numbers_alone(fused):
    fused()
    torch.manual_seed(5)
    want = torch.rand(3)
    torch.manual_seed(5)
    kernels.decoupled_attention(*Case(40).arguments())
    assert torch.rand(3).equal(want)


def test_the_first_use_is_logged_in_one_line(caplog):
    with caplog.at_level(logging.INFO, logger="likeness"):
        for case in (Case(40), Case(64), Case(40)):
            kernels.decoupled_attention(*case.arguments())
    assert [r.getMessage() for r in caplog.records] == [
        "identity attention: eager; not triton: needs a CUDA device, got cpu"
    ]


def test_a_forced_backend_is_logged_as_asked_for(caplog):
    with caplog.at_level(logging.INFO, logger="likeness"), kernels.use_backend("eager"):
        kernels.decoupled_attention(*Case(40).arguments())
    assert [r.getMessage() for r in caplog.records] == ["identity attention: eager, as asked"]


def test_use_backend_nests_and_ends_with_its_block(monkeypatch):
    taken = []
    for name in ("reference", "eager"):
        module = sys.modules[f"likeness.kernels.{name}"]
        original = module.decoupled_attention
        monkeypatch.setattr(module, "decoupled_attention", lambda *a, n=name, f=original: taken.append(n) or f(*a))
    arguments = Case(24).arguments()
    with kernels.use_backend("reference"):
        kernels.decoupled_attention(*arguments)
        with kernels.use_backend("auto"):
            kernels.decoupled_attention(*arguments)
        with pytest.raises(ZeroDivisionError), kernels.use_backend("eager"):
            kernels.decoupled_attention(*arguments)
            raise ZeroDivisionError
        kernels.decoupled_attention(*arguments)
    kernels.decoupled_attention(*arguments)
    assert taken == ["reference", "eager", "eager", "reference", "eager"]


def test_use_backend_is_of_its_thread_alone():
    arguments, seen = Case(24).arguments(), []

    def other():
        seen.append(kernels.explain(kernels.decoupled_attention, *arguments).backend)

    with kernels.use_backend("reference"):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        assert kernels.explain(kernels.decoupled_attention, *arguments).backend == "reference"
    assert seen == ["eager"]


def test_the_environment_forces_a_backend_and_the_block_goes_before_it(monkeypatch, fused):
    backend, arguments = fused(), Case(24).arguments()
    monkeypatch.setenv(dispatch.VARIABLE, "eager")
    kernels.decoupled_attention(*arguments)
    assert backend.calls == 0 and dispatch.VARIABLE == "LIKENESS_ATTENTION"
    with kernels.use_backend("triton"):
        kernels.decoupled_attention(*arguments)
    assert backend.calls == 3
    monkeypatch.setenv(dispatch.VARIABLE, "cuda")
    with pytest.raises(
        kernels.NoBackend, match="LIKENESS_ATTENTION takes one of auto, triton, eager, reference; got 'cuda'"
    ):
        kernels.decoupled_attention(*arguments)


def test_an_unknown_backend_is_refused_by_name():
    with pytest.raises(kernels.NoBackend, match="got 'flash'"), kernels.use_backend("flash"):
        pass


# Launch plans


class Kernel:
    """Stands for Triton's JITFunction and for what it compiles."""

    def __init__(self):
        self.launches = []

    def __getitem__(self, grid):
        def launch(*arguments, **options):
            self.launches.append((grid, arguments, options))
            return self

        return launch


def planned(plans, kernel, tensors, rest=()):
    make = lambda: plan.Plan(kernel, (4, 2, 1), (7, 8), {"DIM": 40, "LONG": False}, {"num_warps": 4})  # noqa: E731
    plans.get(tensors, rest, make).launch(tensors, 0.5)


def test_a_plan_binds_once_and_then_launches_the_compiled_kernel_with_the_same_arguments():
    plans, kernel, x, y = plan.Plans(), Kernel(), torch.zeros(2, 16), torch.zeros(2, 16)
    planned(plans, kernel, [x, x])
    planned(plans, kernel, [y, y])
    (grid, first, options), (again, second, none) = kernel.launches
    assert grid == again == (4, 2, 1) and len(plans) == 1
    assert options == {"DIM": 40, "LONG": False, "num_warps": 4} and none == {}
    assert first == (x, x, 7, 8, 0.5) and second == (y, y, 7, 8, 0.5, 40, False)


def test_whatever_triton_specialises_on_makes_another_plan():
    plans, kernel, x = plan.Plans(), Kernel(), torch.zeros(2, 64)
    different = [
        [x], [x.half()], [x[:1]], [x.t()], [x[:, :32]], [torch.zeros(4, 128)[::2, ::2]], [x.flatten()[1:65]],
        [x.flatten()[4:68]], [x, x],
    ]  # fmt: skip
    for count, tensors in enumerate(different, 1):
        planned(plans, kernel, tensors)
        # x.flatten()[4:68] is aligned, and the only one of its shape that is.
        assert len(plans) == count, count
    planned(plans, kernel, [x], rest=("masked",))
    assert len(plans) == len(different) + 1
    planned(plans, kernel, [x.clone()])
    assert len(plans) == len(different) + 1


def test_plans_do_not_grow_without_end():
    plans, kernel = plan.Plans(limit=8), Kernel()
    for size in range(100):
        planned(plans, kernel, [torch.zeros(size)])
    assert len(plans) <= 8
