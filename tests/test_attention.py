"""What an adapter does to attention, without any host: roles, weights, masks, and what a layer may cost."""

import copy
from collections import Counter
from dataclasses import fields, is_dataclass

import pytest
import torch
import torch.nn.functional as F
from likeness.face.attention import (
    KEPT,
    NEGATIVE,
    OFF,
    POSITIVE,
    SCALINGS,
    Tokens,
    apply,
    check_mask,
    marked,
    prepare,
    roles_of,
    usual,
)
from likeness.face.attention.sites import Layout, Site, halved
from likeness.face.attention.weighting import WEIGHT_TYPES, site_weights
from likeness.face.errors import BadInput
from likeness.kernels import eager
from torch.utils._python_dispatch import TorchDispatchMode

CPU = torch.device("cpu")
HEADS, WIDTH, CONTEXT = 2, 32, 24
LAYOUT = Layout((Site("down", 0, 0, WIDTH), Site("up", 2, 0, WIDTH), Site("mid", 1, 1, WIDTH)), CONTEXT)


def tokens(count=4, rows=1, seed=0, negative=True):
    g = torch.Generator().manual_seed(seed)
    pairs = [torch.randn(WIDTH, CONTEXT, generator=g) / 4 for _ in range(2 * len(LAYOUT.sites))]
    positive, opposite = torch.randn(rows, count, CONTEXT, generator=g), torch.randn(1, count, CONTEXT, generator=g)
    return Tokens(positive, opposite if negative else None, pairs[::2], pairs[1::2])


def call(applied, roles=((POSITIVE,),), pictures=(0,), latent=(4, 4), dtype=torch.float32):
    return prepare(applied, roles, pictures, latent, CPU, dtype)


def layer(rows=1, queries=16, seed=9):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(rows, queries, WIDTH, generator=g), torch.randn(rows, queries, WIDTH, generator=g)


def attended(q, k, v):
    """Plain attention, the slow way."""
    q, k, v = (t.unflatten(-1, (HEADS, -1)).transpose(1, 2).double() for t in (q, k, v))
    weights = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)
    return (weights @ v).transpose(1, 2).flatten(2)


def expected(one, q, site=0, tokens=None, weight=1.0):
    given = one.positive if tokens is None else tokens
    return weight * attended(q, F.linear(given, one.keys[site]), F.linear(given, one.values[site]))


def test_a_branch_is_attention_to_the_identity_beside_the_text():
    one = tokens()
    q, out = layer()
    for site in range(3):
        queries = 4 if site == 2 else 16
        got = call([apply("a", one, LAYOUT, strength=0.7)]).add(site, q[:, :queries], out[:, :queries].clone(), HEADS)
        want = out[:, :queries].double() + expected(one, q[:, :queries], site, weight=0.7)
        torch.testing.assert_close(got.double(), want, atol=1e-5, rtol=0)


def test_each_conditioning_gets_its_own_side():
    one = tokens()
    q, out = layer(3)
    roles = ((NEGATIVE, POSITIVE, OFF),)
    got = call([apply("a", one, LAYOUT)], roles).add(0, q, out.clone(), HEADS)
    sides = (expected(one, q[:1], tokens=one.negative), expected(one, q[1:2]), 0)
    for row, side in enumerate(sides):
        torch.testing.assert_close(got[row : row + 1].double(), out[row : row + 1].double() + side, atol=1e-5, rtol=0)
    assert torch.equal(got[2], out[2])


def test_without_an_opposite_the_negative_side_gets_nothing():
    q, out = layer(2)
    got = call([apply("a", tokens(negative=False), LAYOUT)], ((NEGATIVE, POSITIVE),)).add(0, q, out.clone(), HEADS)
    assert torch.equal(got[0], out[0]) and not torch.equal(got[1], out[1])


def test_strength_zero_is_bit_identical_and_two_adapters_commute():
    q, out = layer()
    a, b = apply("a", tokens(), LAYOUT, strength=0.5), apply("b", tokens(7, seed=1), LAYOUT, strength=-0.3)
    nothing = apply("c", tokens(seed=2), LAYOUT, strength=0.0)
    assert torch.equal(call([nothing]).add(0, q, out.clone(), HEADS), out)
    both = ((POSITIVE,),) * 2
    one, other = (call(pair, both).add(0, q, out.clone(), HEADS) for pair in ([a, b], [b, a]))
    torch.testing.assert_close(one, other, atol=1e-6, rtol=0)


def test_pictures_of_a_batch_can_have_people_and_strengths_of_their_own():
    one = tokens(rows=2)
    applied = apply("a", one, LAYOUT, strength=(1.0, 0.0, 0.5))
    q, out = layer(3)
    got = prepare([applied], ((POSITIVE,),), (0, 1, 2), (4, 4), CPU, torch.float32).add(0, q, out.clone(), HEADS)
    for picture, (person, weight) in enumerate(((0, 1.0), (1, 0.0), (0, 0.5))):
        row = slice(picture, picture + 1)
        side = expected(one, q[row], tokens=one.positive[person : person + 1], weight=weight)
        torch.testing.assert_close(got[row].double(), out[row].double() + side, atol=1e-5, rtol=0)
    # A window of a long animation names its pictures by their numbers in the whole.
    window = prepare([applied], ((POSITIVE,),), (2,), (4, 4), CPU, torch.float32).add(0, q[2:], out[2:].clone(), HEADS)
    torch.testing.assert_close(window, got[2:])


def test_a_mask_counts_at_the_size_of_every_layer():
    mask = torch.zeros(8, 8)
    mask[:, :4] = 1
    applied = apply("a", tokens(), LAYOUT, mask=mask)
    q, out = layer()
    for site, side in ((0, 4), (2, 2)):
        queries = side * side
        got = call([applied]).add(site, q[:, :queries], out[:, :queries].clone(), HEADS).reshape(side, side, WIDTH)
        before = out[0, :queries].reshape(side, side, WIDTH)
        assert torch.equal(got[:, side // 2 :], before[:, side // 2 :])
        assert not torch.isclose(got[:, : side // 2], before[:, : side // 2]).any(-1).all()
    whole = call([apply("a", applied.tokens, LAYOUT, mask=torch.ones(8, 8))]).add(0, q, out.clone(), HEADS)
    torch.testing.assert_close(whole, call([apply("a", applied.tokens, LAYOUT)]).add(0, q, out.clone(), HEADS))


def test_a_mask_of_other_proportions_is_refused():
    applied = apply("a", tokens(), LAYOUT, mask=torch.ones(64, 64))
    check_mask(applied, 4, 4)
    with pytest.raises(BadInput, match=r"the mask of a has 64×64 pixels, but the picture.*proportions 8:4"):
        call([applied], latent=(4, 8))


def test_latents_are_halved_as_convolutions_halve_them():
    assert [halved(13, 9, n) for n in range(4)] == [(13, 9), (7, 5), (4, 3), (2, 2)]


@pytest.mark.parametrize("kind", SCALINGS)
def test_scaling_puts_the_weight_where_it_says(kind):
    one = tokens()
    q, out = layer()
    got = call([apply("a", one, LAYOUT, strength=0.6, scaling=kind)]).add(0, q, out.clone(), HEADS)
    k, v = (F.linear(one.positive, w[0]) for w in (one.keys, one.values))
    weight = 0.6 * (WIDTH / 1280 if "C penalty" in kind else 1)
    if kind == "V only":
        want = weight * attended(q, k, v)
    elif "mean" in kind:
        want = attended(q, k * weight, v - v.mean(1, keepdim=True) * (1 - weight))
    else:
        want = attended(q, k * weight, v * weight)
    torch.testing.assert_close(got.double(), out.double() + want, atol=1e-5, rtol=0)


def test_zeros_take_attention_away():
    one = tokens()
    q, out = layer()
    got = call([apply("a", one, LAYOUT, zeros=5)]).add(0, q, out.clone(), HEADS)
    k, v = (F.pad(F.linear(one.positive, w[0]), (0, 0, 0, 5)) for w in (one.keys, one.values))
    torch.testing.assert_close(got.double(), out.double() + attended(q, k, v), atol=1e-5, rtol=0)


def test_orthogonal_shares_do_not_change_what_lies_along_the_text():
    q, out = layer()
    got = call([apply("a", tokens(), LAYOUT, mode="ortho")]).add(0, q, out.clone(), HEADS)
    along = ((got - out) * out).sum(1)
    assert float(along.abs().max()) < 1e-4 and not torch.equal(got, out)
    # Beside another adapter the projection is still onto the text alone, in either order.
    pair = [apply("a", tokens(), LAYOUT, mode="ortho"), apply("b", tokens(seed=3), LAYOUT)]
    both = ((POSITIVE,),) * 2
    one, other = (call(order, both).add(0, q, out.clone(), HEADS) for order in (pair, pair[::-1]))
    torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


def test_marks_decide_and_places_where_there_are_none():
    told, untold = apply("a", tokens(), LAYOUT, mark="m"), apply("b", tokens(), LAYOUT)
    marks = [{"m": NEGATIVE}, {}, {"m": POSITIVE}]
    assert roles_of([told, untold], marks, [0, 1, 2], {"m"}) == (
        (NEGATIVE, OFF, POSITIVE),
        (POSITIVE, NEGATIVE, NEGATIVE),
    )
    assert roles_of([told], [{}, {}], [1, 0], set()) == ((NEGATIVE, POSITIVE),)
    entry = [["text", {"likeness": {"x": OFF}, "other": 1}]]
    changed = marked(entry, "m", POSITIVE)
    assert changed[0][1] == {"likeness": {"x": OFF, "m": POSITIVE}, "other": 1} and "m" not in entry[0][1]["likeness"]


def test_a_side_that_carries_no_mark_has_its_usual_meaning():
    two = [apply("a", tokens(), LAYOUT, mark="a"), apply("b", tokens(), LAYOUT, mark="b"), apply("c", tokens(), LAYOUT)]
    both, a, b = {"a": POSITIVE, "b": POSITIVE}, {"a": POSITIVE}, {"b": NEGATIVE}
    everybody, nobody = dict.fromkeys("ab", NEGATIVE), {}
    assert usual(two, [[{}], [{}]]) == [both, everybody]
    assert usual(two, [[both], [{}], [{}]]) == [nobody, everybody, everybody]
    assert usual(two, [[{}], [b]]) == [both, {"a": NEGATIVE}]
    # Marks of one person on the positive side: the other one is not shown, and needs no opposite.
    assert usual(two, [[a, {}], [{}]]) == [nobody, {"a": NEGATIVE}]
    assert usual(two, [[a], [b]]) == [nobody, {"a": NEGATIVE}]


def test_what_was_prepared_is_kept_and_given_back():
    one = apply("a", tokens(), LAYOUT)
    first = call([one])
    assert call([one]) is first and call([one], latent=(8, 8)) is not first
    for n in range(9, 20):
        call([one], latent=(n, n))
    assert len(one._calls) == KEPT
    one.forget()
    assert call([one]) is not first


def test_a_copy_shares_everything():
    one = apply("a", tokens(), LAYOUT)
    assert copy.deepcopy({"x": (one,)})["x"][0] is one and copy.copy(one) is one


class Ops(TorchDispatchMode):
    """Counts what is computed; views are free."""

    FREE = ("view", "expand", "unsqueeze", "transpose", "permute", "slice", "select", "alias", "t", "detach")
    FREE += ("as_strided", "_unsafe_view", "unflatten", "split", "split_with_sizes", "squeeze", "narrow", "unbind")

    def __init__(self):
        super().__init__()
        self.seen = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name not in self.FREE:
            self.seen[name] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("count", [1, 2])
def test_a_layer_costs_at_most_four_operations_an_adapter(masked, count):
    mask = torch.ones(4, 4) if masked else None
    applied = [apply(str(n), tokens(seed=n), LAYOUT, mask=mask) for n in range(count)]
    prepared = call(applied, ((NEGATIVE, POSITIVE),) * count)
    q, out = layer(2)
    # Counted below the custom operator, in the eager body that does the work.
    here = prepared.sites[0]
    with torch.no_grad(), Ops() as ops:
        eager.add_identity_attention_(out, q, here.key, here.value, here.lengths, here.weight, HEADS, here.mask)
    assert 0 < sum(ops.seen.values()) <= 4 * count, ops.seen


@pytest.mark.parametrize("mode", ["plain", "ortho", "ortho_v2"])
def test_a_layer_never_waits_for_the_device(mode):
    """Under fake tensors on a pretended CUDA device nothing may be copied to the CPU or read as a number."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    applied = [apply("a", tokens(), LAYOUT, mode=mode, mask=torch.ones(4, 4)), apply("b", tokens(seed=1), LAYOUT)]
    prepared = call(applied, ((NEGATIVE, POSITIVE),) * 2)

    def emptied(value):
        if isinstance(value, torch.Tensor):
            return torch.empty(value.shape, dtype=value.dtype, device="cuda")
        if isinstance(value, tuple):
            return tuple(emptied(one) for one in value)
        if is_dataclass(value):
            return type(value)(*(emptied(getattr(value, one.name)) for one in fields(value)))
        return value

    with FakeTensorMode(allow_non_fake_inputs=False):
        q, out = (emptied(one) for one in layer(2))
        with _NoCopy():
            got = type(prepared)((emptied(prepared.sites[0]), None, None), 2).add(0, q, out, HEADS)
    assert got.device.type == "cuda"


class _NoCopy(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for one in result if isinstance(result, tuple) else (result,):
            if isinstance(one, torch.Tensor):
                assert one.device.type == "cuda", f"{func} answers on the {one.device.type}"
        return result


# Weights by layer

SDXL = Layout(
    tuple(
        Site(part, block, 1, WIDTH)
        for part, blocks in (("down", (0, 1, 2, 3)), ("up", (5, 6, 7, 8, 9, 10)), ("mid", (4,)))
        for block in blocks
    ),
    CONTEXT,
)
SD15 = Layout(
    tuple(
        Site(part, block, 0, WIDTH)
        for part, blocks in (("down", range(6)), ("up", range(7, 16)), ("mid", (6,)))
        for block in blocks
    ),
    CONTEXT,
)


def by_block(layout, **given):
    found = site_weights(layout, **given)
    return dict(sorted(zip((s.block for s in layout.sites), found.weights, strict=True)))


def test_eases_run_through_the_network_in_forward_order():
    weights = list(by_block(SD15, kind="ease in").values())
    assert weights[0] == 1 and weights[-1] == pytest.approx(0.05 + 0.95 / 16)
    assert weights == sorted(weights, reverse=True)
    assert by_block(SD15, kind="ease out")[0] == pytest.approx(0.05)
    middle = by_block(SD15, kind="ease in-out")
    assert middle[8] == 1 and middle[0] == pytest.approx(0.05)
    assert by_block(SD15, kind="reverse in-out")[8] == pytest.approx(0.05)


def test_parts_are_weakened_where_the_type_says():
    assert by_block(SDXL, kind="weak input")[0] == by_block(SDXL, kind="weak output")[9] == 0.2
    assert by_block(SDXL, kind="weak middle") == {n: 0.2 if n == 4 else 1.0 for n in range(11)}
    assert by_block(SDXL, kind="strong middle") == {n: 1.0 if n == 4 else 0.2 for n in range(11)}


def test_style_and_composition_pick_their_blocks():
    assert by_block(SDXL, kind="style transfer") == {n: float(n == 6) for n in range(11)}
    assert by_block(SDXL, kind="composition") == {n: float(n == 3) for n in range(11)}
    assert by_block(SD15, kind="composition") == {n: {4: 0.25, 5: 1.0}.get(n, 0.0) for n in range(16)}
    assert by_block(SDXL, kind="strong style transfer") == {n: float(n != 3) for n in range(11)}
    assert by_block(SDXL, kind="composition precise") == {n: {3: 1.0, 6: 1.0}.get(n, 0.1) for n in range(11)}
    precise = site_weights(SDXL, "style transfer precise")
    assert {SDXL.sites[n].block for n in precise.swapped} == {3}


def test_swapped_layers_push_the_unconditional_side_away():
    one = tokens()
    layout = Layout(tuple(Site("down", n, 0, WIDTH) for n in range(11)), CONTEXT)
    many = Tokens(one.positive, one.negative, [one.keys[0]] * 11, [one.values[0]] * 11)
    applied = apply("a", many, layout, weight_type="style transfer precise")
    q, out = layer(2)
    got = call([applied], ((NEGATIVE, POSITIVE),)).add(3, q, out.clone(), HEADS)
    torch.testing.assert_close(got[:1].double(), out[:1].double() + expected(one, q[:1]), atol=1e-5, rtol=0)
    assert torch.equal(got[1], out[1])


@pytest.mark.parametrize("kind", WEIGHT_TYPES)
@pytest.mark.parametrize("layout", [SD15, SDXL], ids=["sd15", "sdxl"])
def test_every_weight_type_gives_a_weight_to_every_layer(kind, layout):
    found = site_weights(layout, kind)
    assert len(found.weights) == len(layout.sites) and any(found.weights) and min(found.weights) >= 0


def test_layer_weights_are_read_and_refused():
    assert by_block(SDXL, layers="3:2.5, 6 : -1,") == {n: {3: 2.5, 6: -1.0}.get(n, 0.0) for n in range(11)}
    with pytest.raises(BadInput, match=r"such as 3:2.5, 6:1; 'three' is none"):
        site_weights(SDXL, layers="three")
    with pytest.raises(BadInput, match=r"name block 11, but this model's blocks are 0 to 10"):
        site_weights(SDXL, layers="11:1")
    with pytest.raises(BadInput, match=r"names blocks of SD1.5 .16. and SDXL .11., but this model has 3"):
        site_weights(LAYOUT, "composition")
    with pytest.raises(BadInput, match=r"there is no weight type 'strong'"):
        site_weights(SDXL, "strong")


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"start": 0.6, "end": 0.4}, r"start not after end; got 0.6 and 0.4"),
        ({"strength": 11.0}, r"one number from -10 to 10"),
        ({"strength": float("nan")}, r"one number from -10 to 10"),
        ({"scaling": "Q"}, r"no embeds scaling 'Q'"),
        ({"mode": "x"}, r"no mode 'x'"),
        ({"mode": "ortho", "scaling": "K+V"}, r"takes the weight on its output"),
        ({"mask": torch.ones(2, 2, 2, 2)}, r"the mask must have the shape"),
        ({"mask": torch.zeros(0, 4, 4)}, r"the mask must have the shape"),
        ({"mask": torch.full((4, 4), float("nan"))}, r"the mask holds values that are no numbers"),
    ],
)
def test_settings_that_cannot_be_carried_out_are_refused(settings, sentence):
    with pytest.raises(BadInput, match=sentence):
        apply("a", tokens(), LAYOUT, **settings)
