"""FreeCure's attention against numbers computed with the authors' own code, on tensors and in whole U-Nets.

The same fixtures run in ComfyUI's own U-Net class in ``test_comfy_cure.py``.
"""

from weakref import ref

import pytest
import torch
from likeness.engine.diffusers_host import attention_run, layout_of
from likeness.engine.diffusion.acting import _attend
from likeness.engine.diffusion.hooks import Hooks, layers_of
from likeness.engine.diffusion.model import Chunk, Model, running
from likeness.engine.diffusion.sampling import discrete
from likeness.face import adapters
from likeness.face.adapters import Choices, Evidence
from likeness.face.attention import Tokens, apply
from likeness.face.cure import run as cure
from likeness.face.cure.attention import cured, plain, select, shares
from likeness.face.cure.tape import FULL, Plan
from likeness.tests.golden_data import fixture, unet

P_UNCOND, F_UNCOND, P_COND, F_COND = range(4)


# On tensors


def rows(gold):
    """Queries, keys and values of the four rows [p_uncond, f_uncond, p_cond, f_cond]."""
    return (gold.inputs[name] for name in "qkv")


@pytest.mark.parametrize("name", ["out_omega_1.5", "out_omega_0.5", "out_omega_2.0", "out_full_mask"])
def test_the_authors_attention(name):
    gold = fixture("fasa_tensors")
    q, k, v = rows(gold)
    side, heads = gold.config["side"], gold.config["heads"]
    mask = gold.inputs["mask"][:, 0].float()
    part = torch.ones(1, side**2) if name == "out_full_mask" else shares(mask, side, side)
    omega = float(name.rpartition("_")[2]) if "omega" in name else gold.config["omegas"][0]
    out = plain(q, k, v, heads)
    out[2:3] = cured(q[2:3], k[2:3], v[2:3], k[3:], v[3:], select(part, omega), heads)
    gold.close(out, name)


def test_the_mask_reaches_the_keys_as_the_authors_have_it():
    gold = fixture("fasa_tensors")
    side = gold.config["side"]
    assert torch.equal(shares(gold.inputs["mask"][:, 0].float(), side, side)[0], gold.outputs["key_mask"].flatten())


def test_style_fidelity_mixes_the_unconditional_row():
    gold = fixture("fasa_tensors")
    q, k, v = rows(gold)
    side, heads = gold.config["side"], gold.config["heads"]
    found = select(shares(gold.inputs["mask"][:, 0].float(), side, side), gold.config["omegas"][0])
    out = plain(q, k, v, heads)
    for own, other, fidelity in ((0, 1, 0.4), (2, 3, 0.0)):
        p, f = slice(own, own + 1), slice(other, other + 1)
        both = cured(q[p], k[p], v[p], k[f], v[f], found, heads)
        out[p] = (1 - fidelity) * both + fidelity * out[p]
    gold.close(out, "out_style_fidelity_0.4")


def test_an_empty_mask_is_the_authors_plain_attention():
    gold = fixture("fasa_tensors")
    gold.close(plain(*rows(gold), gold.config["heads"]), "out_empty_mask")


# In whole U-Nets


def chunks():
    """The guides of one evaluation: negative, then positive."""
    return [Chunk({}, 1, 1), Chunk({}, 0, 1)]


def answer(gold, base, rows, run, applied=()):
    """What the U-Net says to some of the fixture's rows while a hook acts in the released layers."""
    net, x = unet(base), gold.inputs
    model = Model(net, base, discrete(), torch.float32)
    layers, more = layers_of(net)[0].choose("authors"), {}
    assert list(layers) == gold.config["layer_idx"]
    if "pooled_text" in x:
        more["added_cond_kwargs"] = {"text_embeds": x["pooled_text"][rows], "time_ids": x["time_ids"][rows]}
    hooks, latent = Hooks([run]), tuple(x["sample"].shape[-2:])
    with (
        running(model, own=True) as own,
        attention_run(own, applied, model, [[{}], [{}]], (1, *x["sample"].shape[1:])) as acting,
        torch.no_grad(),
    ):
        _attend(own, hooks, [(frozenset(layers), run)])
        acting.begin(chunks(), 1.0, 500.0, (2, *x["sample"].shape[1:]))
        hooks.call(chunks(), 1.0, latent)
        return own(x["sample"][rows], x["timesteps"][rows], x["text"][rows], **more).sample


def cured_rows(gold, base, omega, applied=((), ())):
    """All four rows: the foundation's are recorded, the person's read the tape."""
    layers = layers_of(unet(base))[0]
    shape = (1, *gold.inputs["sample"].shape[1:])
    plan = Plan(0, shape, "euler", (1.0, 0.0), "", "", ref(layers))
    recording = cure.Recording(layers.choose("authors"), layers, FULL).begin(plan, float)
    foundation = answer(gold, base, [F_UNCOND, F_COND], recording, applied[0])
    mask = gold.inputs["mask"][:, 0].float()
    curing = cure.Curing(recording.tape, layers, mask, omega).begin(plan, float)
    person = answer(gold, base, [P_UNCOND, P_COND], curing, applied[1])
    return torch.stack([person[0], foundation[0], person[1], foundation[1]])


@pytest.mark.parametrize("omega", ["1.5", "0.5"])
@pytest.mark.parametrize("base", ["sd15", "sdxl"])
def test_the_authors_numbers(base, omega):
    gold = fixture(f"fasa_unet_{base}")
    gold.close(cured_rows(gold, base, float(omega)), f"noise_pred_omega_{omega}")


@pytest.mark.parametrize("omega", ["1.5", "0.5"])
def test_the_authors_numbers_beside_an_adapter(omega):
    """The official hook would take the adapter's own attention away; ours leaves it alone."""
    gold = fixture("fasa_unet_sd15_portrait")
    one = adapters.load(fixture("unet_sd15_portrait").checkpoint)
    layout = layout_of(unet("sd15"))[0]

    def shown(row):
        positive, negative = (
            one.project(Evidence(gold.inputs["id_embeds"][n].reshape(-1, gold.config["id_dim"])), Choices())[0]
            for n in (row, P_UNCOND)
        )
        tokens = Tokens(positive, negative, one.keys, one.values)
        return (apply("portrait", tokens, layout, strength=gold.config["ip_scale"]),)

    rows = cured_rows(gold, "sd15", float(omega), (shown(F_COND), shown(P_COND)))
    gold.close(rows, f"noise_pred_omega_{omega}")
