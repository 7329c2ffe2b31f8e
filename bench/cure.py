"""What FreeCure costs: its attention beside the published form, a complete cure beside one generation, and the tape.

The published attention (YIYANGCAI/FreeCure at f9b05a9, freecure/fasa_module/fasa.py) is written anew from what it does
and held against the authors' own numbers first. It goes with four rows, the person and the foundation under both
prompts, keeps every logit, and computes also what it then multiplies by 0. Ours reads the person's two rows, and the
foundation's keys from a tape; the four-row form here is there to compare like with like. Of the person's two rows alone
one has a seventh more columns: at 64×64 this is 6 % by itself. The layers have SDXL's sizes at 1024 pixels, float32,
and project their input and output. Peaks are above what is resident before the call, in a process each.

A complete cure is the foundation pass with its tape and its look at the words, the mask from that, and the cured pass,
without the VAE, on a slim SDXL: all 70 layers, 320 wide. The published procedure is two runs of a batch of the pair,
the second with attention to the foundation's; here with our attention in them, so the authors' own costs more.
"""

from __future__ import annotations

import math
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any
from weakref import ref

import torch
from _measure import package, row, skip
from torch import Tensor, nn

package()

from likeness.engine import diffusers_host  # noqa: E402
from likeness.engine.diffusion.hooks import layers_of  # noqa: E402
from likeness.engine.diffusion.model import Model  # noqa: E402
from likeness.engine.diffusion.sample import Settings, sample  # noqa: E402
from likeness.engine.diffusion.sampling import discrete  # noqa: E402
from likeness.face.attention import Tokens, apply  # noqa: E402
from likeness.face.cure import masks  # noqa: E402
from likeness.face.cure import run as cure  # noqa: E402
from likeness.face.cure.attention import cured, plain, select, shares  # noqa: E402
from likeness.face.cure.layers import SelfLayer, SelfLayers  # noqa: E402
from likeness.face.cure.tape import FULL, HALF, NONE, Plan, predicted_bytes  # noqa: E402

OMEGA = 1.5
SIZES = ((32, 20, ">= 3"), (64, 10, ">= 9"))
"""Tokens a side, heads of 64, how much faster than the published form to be."""
P_UNCOND, F_UNCOND, P_COND, F_COND = range(4)
TEN_GIGABYTES = 12 << 30
"""What the published form takes at 64×64, and some air."""


def fastest(sides: Mapping[str, Callable[[], object]], rounds: int, once: tuple[str, ...] = ()) -> dict[str, float]:
    """Least CPU seconds of each side, interleaved; the minimum, for a neighbour on the machine only ever adds. What is
    in ``once`` runs in every third round, for it takes so long."""
    names, taken = list(sides), dict.fromkeys(sides, math.inf)
    for number in range(rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            if name in once and number % 3:
                continue
            start = time.process_time()
            sides[name]()
            taken[name] = min(taken[name], time.process_time() - start)
    return taken


# Attention


def published(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, omega: float, heads: int, fidelity: float = 1.0) -> Tensor:
    """(4, N, C): rows [p_uncond, f_uncond, p_cond, f_cond] as the released module computes them; ``mask`` (N)."""
    q, k, v = (t.unflatten(2, (heads, -1)).transpose(1, 2) for t in (q, k, v))
    scale = q.shape[-1] ** -0.5
    bias = (mask * omega).masked_fill(mask == 0, torch.finfo(q.dtype).min)
    # Every row's own weights stay in memory while the person's are computed once more.
    logits = torch.einsum("bhid,bhjd->bhij", q, k) * scale
    weights = logits.softmax(-1)

    def person(p: int, f: int | None) -> Tensor:
        keys, values = (t[p] if f is None else torch.cat([t[p], t[f]], 1) for t in (k, v))
        found = torch.einsum("hid,hjd->hij", q[p], keys) * scale
        if f is not None:
            # The parts, too, stay until the whole is used.
            parts = [found[..., : q.shape[2]], found[..., q.shape[2] :] + bias]
            found = torch.cat(parts, -1)
        return torch.einsum("hij,hjd->hid", found.softmax(-1), values)

    uncond, cond = person(P_UNCOND, F_UNCOND), person(P_COND, F_COND)
    uncond = (1 - fidelity) * uncond + fidelity * person(P_UNCOND, None)
    out = torch.einsum("bhij,bhjd->bhid", weights, v)
    out = torch.stack([uncond, out[F_UNCOND], cond, out[F_COND]])
    return out.transpose(1, 2).flatten(2)


def check_published() -> None:
    """The authors' own numbers, from the golden data where that is there."""
    from likeness.tests.golden_data import PLACES, Fixture

    folder = next((place / "fasa_tensors" for place in PLACES if (place / "fasa_tensors").is_dir()), None)
    if folder is None:
        skip("cure: the published form against the authors' numbers", "no golden data fasa_tensors")
        return
    gold = Fixture(folder)
    q, k, v = (gold.inputs[name] for name in "qkv")
    side, heads, omegas = gold.config["side"], gold.config["heads"], gold.config["omegas"]
    mask = shares(gold.inputs["mask"][:, 0].float(), side, side)[0]
    for omega in omegas:
        gold.close(published(q, k, v, mask, omega, heads), f"out_omega_{omega}")
    gold.close(published(q, k, v, mask, omegas[0], heads, 0.4), "out_style_fidelity_0.4")
    gold.close(published(q, k, v, torch.ones_like(mask), omegas[0], heads), "out_full_mask")


class Layer:
    """One self-attention layer in each form; all take and give tokens (rows, N, C)."""

    def __init__(self, side: int, heads: int) -> None:
        torch.manual_seed(0)
        width = 64 * heads
        self.side, self.heads, self.tokens = side, heads, side * side
        self.project = [nn.Linear(width, width, bias=False) for _ in range(3)]
        self.out = nn.Linear(width, width)
        self.x = torch.randn(4, self.tokens, width)
        self.person, self.foundation = self.x[[P_UNCOND, P_COND]], self.x[[F_UNCOND, F_COND]]
        # A head of hair: 14 to 15 % of the picture, in one piece.
        mask = torch.zeros(1, side, side)
        mask[:, side // 8 : side // 2, 5 * side // 16 : 11 * side // 16] = 1
        self.mask = mask
        self.part = shares(mask, side, side)
        self.selection = select(self.part, OMEGA)
        # A model of this layer alone, whose latent has a token a place.
        self.layers = SelfLayers((SelfLayer(0, "up", 0, width),), "one layer")
        self.base = nn.Identity()
        plan = Plan(0, (1, 4, side, side), "euler", (1.0, 0.0), "", "", ref(self.base))
        self.plan = plan

    def all_in(self, rows: Tensor, attend: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Tensor:
        q, k, v = (to(rows) for to in self.project)
        return self.out(attend(q, k, v))

    def plain(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return plain(q, k, v, self.heads)

    def none(self) -> Tensor:
        return self.all_in(self.x, self.plain)

    def none_of_two(self) -> Tensor:
        return self.all_in(self.person, self.plain)

    def peers(self) -> Tensor:
        return self.all_in(self.x, lambda q, k, v: published(q, k, v, self.part[0], OMEGA, self.heads))

    def gathered(self) -> Tensor:
        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            assert self.selection is not None
            p, f = (slice(row, row + 1) for row in (P_COND, F_COND))
            out = torch.empty_like(q)
            out[:P_COND], out[f] = self.plain(q[:P_COND], k[:P_COND], v[:P_COND]), self.plain(q[f], k[f], v[f])
            out[p] = cured(q[p], k[p], v[p], k[f], v[f], self.selection, self.heads)
            return out

        return self.all_in(self.x, attend)

    def recorded(self) -> tuple[Tensor, Any]:
        """The foundation's two rows, and their tape."""
        run = cure.Recording((0,), self.layers, FULL).begin(self.plan, float)
        out = self.all_in(self.foundation, self.through(run))
        return out, run.tape

    def curing(self, tape: Any) -> cure.CuringRun:
        return cure.Curing(tape, self.layers, self.mask, OMEGA).begin(self.plan, float)

    def through(self, run: cure.Run) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        now = cure.Now(0, 1.0, (None, 0), (0,), (self.side, self.side))
        return lambda q, k, v: run.attend(0, q, k, v, self.heads, now, self.plain)

    def cured_of_two(self, run: cure.Run) -> Tensor:
        return self.all_in(self.person, self.through(run))

    def both_passes(self) -> tuple[Tensor, Tensor]:
        """Foundation and person one after the other, by way of the tape."""
        foundation, tape = self.recorded()
        return self.cured_of_two(self.curing(tape)), foundation


def attention() -> None:
    check_published()
    for side, heads, target in SIZES:
        layer = Layer(side, heads)
        what = f"cure: attention {side}x{side}, {heads} heads"
        print(f"{what}: the mask has {float(layer.part.mean()):.1%} of the columns", flush=True)
        run = layer.curing(layer.recorded()[1])
        sides = {
            "none": layer.none,
            "gathered": layer.gathered,
            "both passes": layer.both_passes,
            "none of two": layer.none_of_two,
            "two": lambda layer=layer, run=run: layer.cured_of_two(run),
        }
        roomy = side < 64 or available() > TEN_GIGABYTES
        if roomy:
            expected, (person, foundation) = layer.peers(), layer.both_passes()
            assert float((layer.gathered() - expected).abs().max()) < 1e-5
            assert float((person - expected[[P_UNCOND, P_COND]]).abs().max()) < 1e-5
            assert float((foundation - expected[[F_UNCOND, F_COND]]).abs().max()) < 1e-5
            sides["published"] = layer.peers
        taken = fastest(sides, rounds=12 if side < 64 else 6, once=("published",))
        if roomy:
            row(f"{what}, published over gathered", taken["published"] / taken["gathered"], "x", target=target)
            ratio = taken["published"] / taken["both passes"]
            row("  published over foundation and person with a tape", ratio, "x", target=target)
            row("  published over no cure, the most there could be here", taken["published"] / taken["none"], "x")
            peaks = {form: peak(form, side) for form in ("published", "gathered", "none")}
            row("  peak memory", peaks["gathered"], "MB", peer=peaks["published"], target=">= 10")
            row("  peak memory without cure", peaks["none"], "MB")
        else:
            skip(f"{what}, published", "it takes 10 GB, which are not free")
        row("  gathered over no cure, four rows", taken["gathered"] / taken["none"], "x", target="<= 1.05")
        row("  both passes with a tape over no cure, four rows", taken["both passes"] / taken["none"], "x")
        row("  the person's two rows alone over no cure", taken["two"] / taken["none of two"], "x")


def available() -> int:
    """Bytes of free memory; 0 where the system does not say."""
    try:
        with open("/proc/meminfo") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable"))
    except OSError:
        return 0


def peak(form: str, side: int) -> float:
    """Megabytes above the resident set, of one call in a process of its own."""
    command = [sys.executable, __file__, "peak", form, str(side)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def print_peak(form: str, side: int) -> None:
    layer = Layer(*next((s, heads) for s, heads, _ in SIZES if s == side))
    call = {"published": layer.peers, "gathered": layer.gathered, "none": layer.none}[form]
    layer.project[0](layer.x[:1, :1])  # torch's own buffers
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    before = status("VmRSS")
    call()
    print((status("VmHWM") - before) / 2**20)


def status(name: str) -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(name))


# A complete cure

TEXT = 2048
LATENT, STEPS, ROUNDS = 32, 3, 3


def mask_of(maps: Tensor, word: int) -> Tensor:
    """(1, H, W): where a run looked at a token."""
    return masks.from_maps(maps, (word,), (8 * LATENT, 8 * LATENT))


def hair_of(maps: Tensor) -> int:
    """The token at which random weights happen to look in about a seventh of the picture, as real ones at hair."""
    return min(range(maps.shape[-1]), key=lambda word: abs(float(mask_of(maps, word).mean()) - 1 / 7))


def slim_sdxl() -> Model:
    from adapters import slim_sdxl as slim

    unet = slim()
    unet.requires_grad_(False)
    return Model(unet, "sdxl", discrete(), torch.float32)


def prompt(seed: int) -> list[Any]:
    draw = torch.Generator().manual_seed(seed)
    return [[torch.randn(1, 77, TEXT, generator=draw), {"pooled_output": torch.randn(1, 1280, generator=draw)}]]


class Cure:
    """The runs that are compared, with one identity adapter of 16 tokens in all 70 layers."""

    def __init__(self) -> None:
        self.model = slim_sdxl()
        self.layers = layers_of(self.model.unet)[0]
        self.chosen = self.layers.choose("authors")
        self.layout = diffusers_host.layout_of(self.model.unet)[0]
        draw = torch.Generator().manual_seed(5)
        weights = [torch.randn(s.width, TEXT, generator=draw) * TEXT**-0.5 for s in self.layout.sites for _ in range(2)]
        tokens = torch.randn(1, 16, TEXT, generator=draw)
        self.tokens = Tokens(tokens, tokens, weights[::2], weights[1::2])
        self.settings = Settings(seed=3, steps=STEPS, cfg=7.0, sampler="euler", scheduler="normal")
        self.positive, self.negative = prompt(1), prompt(2)
        self.word: int | None = None
        self.mask: Tensor | None = None
        self.tape: Any = None

    def run(self, hooks: tuple[Any, ...] = (), strength: tuple[float, ...] = (), rows: int = 1) -> Tensor:
        """``rows`` pictures from the same noise; one strength a picture, or no adapter at all."""
        person = (apply("somebody", self.tokens, self.layout, strength=strength),) if strength else ()
        model = replace(self.model, hooks=hooks, attention=person)
        latent = {"samples": torch.zeros(rows, 4, LATENT, LATENT), "batch_index": [0] * rows}
        return sample(model, self.positive, self.negative, latent, self.settings)["samples"]

    def plain(self) -> Tensor:
        return self.run(strength=(0.8,))

    def complete(self, keep: str) -> Tensor:
        recording = cure.Recording(self.chosen, self.layers, keep, words=True)
        self.run((recording,))
        (self.tape,) = recording.done
        if keep == NONE:
            self.tape.source = (self.model, self.positive, self.negative)
        self.word = hair_of(self.tape.maps) if self.word is None else self.word
        self.mask = mask_of(self.tape.maps, self.word)
        return self.run((cure.Curing(self.tape, self.layers, self.mask, OMEGA),), (0.8,))

    def paired(self) -> Tensor:
        self.run(strength=(0.0, 0.8), rows=2)
        assert self.mask is not None
        return self.run((cure.Paired(self.layers, self.chosen, self.mask, OMEGA),), (0.0, 0.8), rows=2)[1:]


def complete() -> None:
    runs = Cure()
    out = {keep: runs.complete(keep) for keep in (NONE, HALF, FULL)}
    expected, off = runs.paired(), runs.plain()

    def error(one: Tensor) -> float:
        return float((one - expected).norm() / expected.norm())

    assert error(out[FULL]) < 1e-4 and error(out[NONE]) < 1e-4 < error(off)
    said = predicted_bytes(runs.layers, runs.chosen, (1, 4, LATENT, LATENT), STEPS, torch.float32, FULL)
    held = runs.tape.nbytes
    assert runs.mask is not None
    print(f"cure: the word's mask has {float(runs.mask.mean()):.1%} of the picture", flush=True)
    taken = fastest(
        {
            "plain": runs.plain,
            "published": runs.paired,
            **{keep: lambda keep=keep: runs.complete(keep) for keep in (FULL, HALF, NONE)},
        },
        ROUNDS,
    )
    row(f"cure: a generation of slim SDXL, {STEPS} steps, with a person", taken["plain"] * 1e3)
    one = taken["plain"]
    row("cure: a complete cure over it", taken[FULL] / one, "x", peer=taken["published"] / one, target="<= 2.2")
    row("  with a tape in 8 bit", taken[HALF] / one, "x", peer=taken["published"] / one)
    row("  with latents only, the rest computed again", taken[NONE] / one, "x", peer=taken["published"] / one)
    row("cure: bytes of the tape over what was predicted", held / said, "x", target="1.00")


def full_size() -> None:
    """What the tape of SDXL at 1024 pixels takes in float16, 30 steps."""
    sites = [("down", 1, 640)] * 4 + [("down", 2, 1280)] * 20 + [("mid", 2, 1280)] * 10
    sites += [("up", 2, 1280)] * 30 + [("up", 1, 640)] * 6
    layers = SelfLayers(tuple(SelfLayer(n, *site) for n, site in enumerate(sites)), "SDXL")
    for keep in (FULL, HALF):
        size = predicted_bytes(layers, layers.choose("authors"), (1, 4, 128, 128), 30, torch.float16, keep)
        row(f"cure: predicted tape of SDXL, 1024 px, 30 steps, {keep}", size / 2**30, "GB")


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    torch.set_num_threads(1)
    if sys.argv[1:2] == ["peak"]:
        print_peak(sys.argv[2], int(sys.argv[3]))
    else:
        attention()
        complete()
        full_size()
