"""Foundation-aware self-attention: the authors' numbers, the slow twin, and its laws."""

import pytest
import torch
from likeness.face.cure.attention import (
    ADDITIVE,
    MODES,
    MULTIPLICATIVE,
    cured,
    plain,
    reference,
    select,
    shares,
)
from likeness.face.errors import BadInput
from likeness.tests.golden_data import fixture

Q = torch.tensor([[[1.0, 0], [0, 1]]])
K = torch.tensor([[[1.0, 1], [0, 1]]])
KF = torch.tensor([[[2.0, 0], [1, -1]]])
V, VF = torch.tensor([[[1.0, 0], [2, 0]]]), torch.tensor([[[10.0, 0], [20, 0]]])


@pytest.mark.parametrize(
    ("omega", "mode", "expected"),
    [
        (0.0, ADDITIVE, (6.323807, 3.181094)),
        (0.5, ADDITIVE, (7.323773, 3.956486)),
        (1.5, ADDITIVE, (8.776791, 5.961785)),
        (2.0, ADDITIVE, (9.214478, 6.987585)),
        (0.0, MULTIPLICATIVE, (6.767569, 5.958219)),
        (1.5, MULTIPLICATIVE, (8.686120, 5.958219)),
        (2.0, MULTIPLICATIVE, (9.224086, 5.958219)),
    ],
)
def test_the_equations_by_hand(omega, mode, expected):
    out = cured(Q, K, V, KF, VF, select(torch.tensor([[1.0, 0]]), omega, mode), heads=1)
    assert out[0, :, 0].tolist() == pytest.approx(expected, abs=1e-5)


def rows(gold):
    """Queries, keys and values of the four rows [p_uncond, f_uncond, p_cond, f_cond]."""
    return (gold.inputs[name] for name in "qkv")


@pytest.mark.parametrize("name", ["out_omega_1.5", "out_omega_0.5", "out_omega_2.0", "out_full_mask"])
def test_the_authors_numbers(name):
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


def test_an_empty_mask_selects_nothing():
    gold = fixture("fasa_tensors")
    assert select(torch.zeros(2, 9), 1.5) is None
    assert select(torch.zeros(2, 9), 1.5, MULTIPLICATIVE) is None
    gold.close(plain(*rows(gold), gold.config["heads"]), "out_empty_mask")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gathered_keys_are_the_equation(mode, dtype):
    """Masks of different size in one batch, one of them empty, values between 0 and 1."""
    generator = torch.Generator().manual_seed(3)
    q, k, v, key, value = (torch.randn(3, 20, 32, generator=generator).to(dtype) for _ in range(5))
    part = torch.rand(3, 20, generator=generator) * (torch.rand(3, 20, generator=generator) > 0.6)
    part[1] = 0
    fast = cured(q, k, v, key, value, select(part, 1.5, mode).to(q.device, dtype), heads=4)
    slow = reference(q, k, v, key, value, part, 1.5, 4, mode)
    assert float((fast.double() - slow).abs().max()) < (1e-5 if dtype == torch.float32 else 3e-2)


def test_the_foundation_itself_changes_nothing():
    """Its keys borrowed whole at ω = 0 only double what is there."""
    q, k, v = torch.randn(2, 16, 32), torch.randn(2, 16, 32), torch.randn(2, 16, 32)
    both = cured(q, k, v, k, v, select(torch.ones(2, 16), 0.0), heads=4)
    assert torch.allclose(both, plain(q, k, v, 4), atol=1e-5)


def test_a_share_is_the_log_of_a_weight():
    """Half a share counts as half as many equal keys."""
    q, k, v, key, value = (torch.randn(1, 4, 8) for _ in range(5))
    half = cured(q, k, v, key[:, :1].expand(-1, 4, -1), value[:, :1].expand(-1, 4, -1), select(half_of(4, 2), 0.0), 1)
    whole = cured(q, k, v, key[:, :1].expand(-1, 4, -1), value[:, :1].expand(-1, 4, -1), select(half_of(4, 1), 0.0), 1)
    assert torch.allclose(half, whole, atol=1e-5)


def half_of(tokens, count):
    """``count`` tokens that together count as one."""
    part = torch.zeros(1, tokens)
    part[:, :count] = 1 / count
    return part


def test_an_unknown_mode_is_refused():
    with pytest.raises(BadInput, match="additive or multiplicative"):
        select(torch.ones(1, 4), 1.0, "added")
