"""Decoupled attention against the peers' form: two attention calls, multiply, add; a mask spread over all channels.

On a CPU: plain torch in float32, one thread, CPU time summed over the sites of one sampling step. The peers are
IPAdapter_plus and InstantID less what they do besides (projections, the mask's interpolation, reading sigma back).

On a CUDA device, besides: float16, fused and added onto the text's output, by CUDA events, with the L2 cache cold and
warm, each layer and a whole step, and how many kernels each form launches. The figures, with device, driver, versions
and what the self-check said, go to ``out/bench_attention.json``. We had no GPU to run that half on.
"""

from __future__ import annotations

import json
import platform
import shutil
import statistics
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from _measure import ROOT, interleaved, package, row, skip
from torch import Tensor

package()

from likeness import kernels  # noqa: E402

BATCH, TEXT, WEIGHT = 2, 77, 0.7
MODELS = {
    "SD1.5 64x64": ((4096, 8, 40, 5), (1024, 8, 80, 5), (256, 8, 160, 5), (64, 8, 160, 1)),
    "SDXL 128x128": ((4096, 10, 64, 10), (1024, 20, 64, 60)),
}
"""Sites of one step: queries, heads, head dimension, how many."""
IDENTITIES = (
    ("one of 4 tokens", (4,), False, 1.05),
    ("one of 16 tokens", (16,), False, 1.05),
    ("two masked of 4 tokens", (4, 4), True, 1.15),
    ("two masked of 16 tokens", (16, 16), True, 1.15),
)
"""What is said, tokens of each, whether masked, the ratio to reach on a CPU."""


@dataclass
class Site:
    """The tensors of one attention layer."""

    q: Tensor
    k: Tensor
    v: Tensor
    id_k: Tensor
    id_v: Tensor
    lens: list[int]
    weight: Tensor
    heads: int
    mask: Tensor | None

    @classmethod
    def random(cls, queries: int, heads: int, dim: int, lens: tuple[int, ...], masked: bool, **options: Any) -> Site:
        def draw(tokens: int) -> Tensor:
            return torch.randn(BATCH, tokens, heads * dim, **options)

        weight = torch.full((BATCH, len(lens)), WEIGHT, device=options.get("device"))
        mask = torch.rand(len(lens), BATCH, queries, device=options.get("device")) if masked else None
        total = sum(lens)
        return cls(draw(queries), draw(TEXT), draw(TEXT), draw(total), draw(total), list(lens), weight, heads, mask)

    def attend(self, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (self.q, k, v))
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)

    def peers(self) -> Tensor:
        out = self.attend(self.k, self.v)
        branches = zip(self.id_k.split(self.lens, 1), self.id_v.split(self.lens, 1), strict=True)
        for n, (k, v) in enumerate(branches):
            identity = self.attend(k, v) * WEIGHT
            if self.mask is not None:
                identity = identity * self.mask[n, :, :, None].repeat(1, 1, out.shape[2]).to(out.dtype)
            out = out + identity
        return out

    def ours(self) -> Tensor:
        return kernels.decoupled_attention(
            self.q, self.k, self.v, self.id_k, self.id_v, self.lens, self.weight, self.heads, self.mask
        )

    def added(self) -> Tensor:
        """With the text branch left to others."""
        out = self.attend(self.k, self.v)
        kernels.add_identity_attention_(
            out, self.q, self.id_k, self.id_v, self.lens, self.weight, self.heads, self.mask
        )
        return out


def on_cpu() -> None:
    for model, sites in MODELS.items():
        for what, lens, masked, target in IDENTITIES:
            step = {"peers": 0.0, "ours": 0.0, "added": 0.0}
            for queries, heads, dim, count in sites:
                site = Site.random(queries, heads, dim, lens, masked)
                seconds = interleaved({"peers": site.peers, "ours": site.ours, "added": site.added}, rounds=9)
                for side, taken in seconds.items():
                    step[side] += 1000 * count * taken
            row(f"{model}, {what}", step["ours"], peer=step["peers"], target=f"{target}")
            row("  added onto a text branch of others", step["added"], peer=step["peers"])


def forced(backend: str, call: Callable[[], object]) -> None:
    with kernels.use_backend(backend):
        call()


def on_gpu() -> None:
    options: dict[str, Any] = {"device": "cuda", "dtype": torch.float16}
    sample = Site.random(256, 8, 64, (4,), False, **options)
    arguments = (sample.q, sample.k, sample.v, sample.id_k, sample.id_v, sample.lens, sample.weight, sample.heads)
    choice = kernels.explain(kernels.decoupled_attention, *arguments)
    print(f"GPU: {choice}")
    fused = choice.backend == "triton"
    rows: list[dict[str, Any]] = []
    for model, sites in MODELS.items():
        for what, lens, masked, _ in IDENTITIES:
            layers = [(Site.random(*site[:3], lens, masked, **options), site) for site in sites]
            for layer, site in layers:
                rows.append({"model": model, "identities": what, "site": site, **measure_sides(sides(layer, fused))})
            step = {
                name: partial(run_step, [(sides(layer, fused)[name], site[3]) for layer, site in layers])
                for name in sides(layers[0][0], fused)
            }
            rows.append({"model": model, "identities": what, "site": "all of a step", **measure_sides(step)})
            warm = rows[-1]["warm"]
            for name in list(warm)[1:]:
                row(f"{model}, {what}, {name}", warm[name]["median"], peer=warm["peers"]["median"])
    write(str(choice), rows)


def sides(site: Site, fused: bool) -> dict[str, Callable[[], object]]:
    found: dict[str, Callable[[], object]] = {"peers": site.peers, "eager": partial(forced, "eager", site.ours)}
    if fused:
        found |= {"added": partial(forced, "triton", site.added), "fused": partial(forced, "triton", site.ours)}
    return found


def run_step(calls: list[tuple[Callable[[], object], int]]) -> None:
    for call, count in calls:
        for _ in range(count):
            call()


def measure_sides(calls: dict[str, Callable[[], object]], rounds: int = 30) -> dict[str, Any]:
    """Milliseconds by side, with the L2 cache cold and warm, interleaved; and the kernels that each side launches."""
    # Twice the largest L2 there is.
    flush = torch.empty(256 << 20, dtype=torch.int8, device="cuda")
    found: dict[str, Any] = {"launches": {name: launches(call) for name, call in calls.items()}}
    for temperature in ("cold", "warm"):
        taken: dict[str, list[float]] = {name: [] for name in calls}
        names = list(calls)
        for number in range(rounds + 3):
            for name in names[number % len(names) :] + names[: number % len(names)]:
                if temperature == "cold":
                    flush.zero_()
                start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                start.record()
                calls[name]()
                end.record()
                end.synchronize()
                if number >= 3:
                    taken[name].append(start.elapsed_time(end))
        found[temperature] = {
            name: {"median": statistics.median(times), "10 and 90 %": statistics.quantiles(times, n=10)[::8]}
            for name, times in taken.items()
        }
    return found


def launches(call: Callable[[], object]) -> int:
    call()
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        call()
        torch.cuda.synchronize()
    return sum(event.device_type == torch.autograd.DeviceType.CUDA for event in profile.events() or [])


def write(choice: str, rows: list[dict[str, Any]]) -> None:
    driver = "unknown"
    if smi := shutil.which("nvidia-smi"):
        query = [smi, "--query-gpu=driver_version", "--format=csv,noheader"]
        driver = subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip()
    try:
        from triton import __version__ as triton
    except ImportError:
        triton = "none"
    where = {
        "device": torch.cuda.get_device_name(),
        "capability": torch.cuda.get_device_capability(),
        "driver": driver,
        "cuda": torch.version.cuda,
        "torch": torch.__version__,
        "triton": triton,
        "python": platform.python_version(),
        "system": platform.platform(),
    }
    path = ROOT / "out" / "bench_attention.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({**where, "choice": choice, "milliseconds": rows}, indent=1))
    print(f"written to {path}")


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    torch.set_num_threads(1)
    on_cpu()
    if torch.cuda.is_available():
        on_gpu()
    else:
        skip("decoupled attention on a GPU", "no CUDA device")
