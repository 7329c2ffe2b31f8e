"""Foundation-aware self-attention: by hand, against its slow twin, and its laws."""

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
)
from likeness.face.errors import BadInput

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


def test_an_empty_mask_selects_nothing():
    assert select(torch.zeros(2, 9), 1.5) is None
    assert select(torch.zeros(2, 9), 1.5, MULTIPLICATIVE) is None


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


@pytest.mark.parametrize("mode", MODES)
def test_a_row_without_a_mask_is_off_beside_one_that_has_one(mode):
    q, k, v, key, value = (torch.randn(2, 9, 8) for _ in range(5))
    part = torch.stack([torch.ones(9), torch.zeros(9)])
    both = cured(q, k, v, key, value, select(part, 2.0, mode), heads=2)
    assert torch.allclose(both[1], plain(q, k, v, 2)[1], atol=1e-6)
    assert not torch.allclose(both[0], plain(q, k, v, 2)[0], atol=1e-3)


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
