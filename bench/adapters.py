"""What an identity adapter costs: a sampling step on a slim SDXL, memory after clones, and Apply at another strength.

The slim SDXL has all 70 cross-attention layers, 320 wide, with text 2048 wide; the adapter has InstantID's layout at
that width, with random weights. The latent is the smallest, where an adapter weighs most.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from _measure import interleaved, package, row

package()

from likeness.engine import diffusers_host  # noqa: E402
from likeness.face import adapters, applying  # noqa: E402
from likeness.face.attention import apply  # noqa: E402
from likeness.face.types import Contract, Identity, Person  # noqa: E402
from likeness.tests import tiny_adapters  # noqa: E402

WIDTH, TEXT, SITES, SIDE = 320, 2048, 70, 8
ROUNDS = 10


def slim_sdxl():
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    return UNet2DConditionModel(
        block_out_channels=(WIDTH,) * 3,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 10),
        attention_head_dim=(WIDTH // 64,) * 3,
        use_linear_projection=True,
        cross_attention_dim=TEXT,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
    ).eval()


def person(seed):
    contract = Contract("glintr100", "0" * 64, 512, False, "none")
    vector = np.random.default_rng(seed).normal(size=(1, 512)).astype(np.float32) * 20
    return Identity(contract, (Person("somebody", vector, ()),))


def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


@torch.no_grad()
def main():
    unet = slim_sdxl()
    layout, _ = diffusers_host.layout_of(unet)
    assert len(layout.sites) == SITES
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "adapter.safetensors"
        file = tiny_adapters.make("instantid", widths=[WIDTH] * SITES, context=TEXT, vector=512)
        tiny_adapters.write(path, file)
        del file
        adapter = adapters.load(path, "instantid")

    def applied(name, who, strength=0.8, mask=None):
        tokens = applying.tokens_for(adapter, who, who.people[0], None, applying.Options())
        return apply(name, tokens, layout, strength=strength, mask=mask)

    one, other = person(0), person(1)
    left = torch.zeros(SIDE * 8, SIDE * 8)
    left[:, : SIDE * 4] = 1
    cases = {
        "none": (),
        "one": (applied("a", one),),
        "one, masked": (applied("a", one, mask=left),),
        "two": (applied("a", one), applied("b", other)),
        "two, masked": (applied("a", one, mask=left), applied("b", other, mask=1 - left)),
    }
    latent, text = torch.randn(2, 4, SIDE, SIDE), torch.randn(2, 77, TEXT)
    more = {"text_embeds": torch.randn(2, 1280), "time_ids": torch.ones(2, 6)}
    chunks = [SimpleNamespace(entry={}, index=index, size=1, area=None) for index in (1, 0)]
    model = SimpleNamespace(dtype=torch.float32)

    def measured(case):
        """Seconds of a step. The network is the case's alone meanwhile: no other's hooks are on it."""
        with diffusers_host.attention_run(unet, cases[case], model, [[{}], [{}]], latent.shape) as run:

            def step():
                run.begin(chunks, 1.0, 500.0, latent.shape)
                unet(latent, 500, text, added_cond_kwargs=more)

            return interleaved({"": step}, rounds=3, warm=1)[""]

    taken = {name: [] for name in cases}
    names = list(cases)
    for turn in range(ROUNDS):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            taken[name].append(measured(name))
    medians = {name: float(np.median(values)) for name, values in taken.items()}
    targets = {"one": "<= 1.08", "two, masked": "<= 1.16"}
    row("adapter: a step of slim SDXL, none", medians["none"] * 1e3)
    for name in list(cases)[1:]:
        row(
            f"adapter: a step of slim SDXL, {name}, over none",
            medians[name] / medians["none"],
            "x",
            target=targets.get(name, ""),
        )

    strengths = iter(np.linspace(0.1, 0.9, 1000))
    again = interleaved({"": lambda: applied("a", one, strength=float(next(strengths)))}, rounds=50)[""]
    row("adapter: Apply with only the strength changed", again * 1e3, "ms", target="< 5 ms")
    held = adapter.nbytes
    before = resident()
    kept = [applied("a", one, strength=s / 100) for s in range(100)]
    row(
        "adapter: memory of 100 results over the adapter's own",
        1 + max(resident() - before, 0) / held,
        "x",
        target="1.00",
    )
    assert len(kept) == 100


if __name__ == "__main__":
    main()
