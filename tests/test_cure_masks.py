"""Where attributes are: what a parser, the mesh and cross-attention show, and what is said where nothing does."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from likeness.face.cure import masks
from likeness.face.cure.masks import attribute_masks, coloured, from_maps, otsu, union, with_given
from likeness.face.cure.words import parse_list, split
from likeness.face.errors import BadImage, BadInput
from likeness.face.host import StandaloneHost
from likeness.face.types import Face, Faces
from likeness.tests import tiny_parser
from likeness.tests.test_masks import oval_mesh
from likeness.tests.tiny_parser import BLUE, GREEN, RED

HAIR, EYES, GLASSES, LAUGH, AURA = (*split("red hair, blue eyes, round glasses, laughing"), *parse_list("glowing aura"))


def face_at(x, y, radius, mesh=True):
    box = np.array([x - radius, y - radius, x + radius, y + radius], np.float32)
    found = {468: oval_mesh(x, y, radius)} if mesh else {}
    return Face(box, np.full((5, 2), (x, y), np.float32), 0.9, landmarks=found)


def faces_of(size, *groups):
    return Faces(tuple(tuple(group) for group in groups), (size,) * len(groups))


def painted(height, width, **patches):
    """(1, H, W, 3) black, with patches given as colour=(x1, y1, x2, y2)."""
    picture = torch.zeros(1, height, width, 3)
    for name, (x1, y1, x2, y2) in patches.items():
        picture[0, y1:y2, x1:x2] = torch.tensor({"red": RED, "green": GREEN, "blue": BLUE}[name[:5].rstrip("_2")])
    return picture


@pytest.fixture
def host(tmp_path):
    return StandaloneHost(models=tmp_path, work=tmp_path)


# Otsu


def slow_otsu(levels):
    """By the definition: of all thresholds the first with the least variance inside the two classes."""
    values = np.asarray(levels, np.float64).ravel()
    best, threshold = np.inf, 255
    for t in range(255):
        low, high = values[values <= t], values[values > t]
        if len(low) and len(high):
            within = ((low - low.mean()) ** 2).sum() + ((high - high.mean()) ** 2).sum()
            if within < best - 1e-6:
                best, threshold = within, t
    return threshold


@given(st.lists(st.integers(0, 255), min_size=1, max_size=40))
def test_otsu_is_its_slow_twin(levels):
    assert otsu(torch.tensor(levels, dtype=torch.uint8)) == slow_otsu(levels)


def test_otsu_is_opencvs():
    cv2 = pytest.importorskip("cv2")
    rng = np.random.default_rng(0)
    for shape in ((64, 48), (512, 512)):
        levels = np.clip(rng.normal(60, 20, shape) + 110 * (rng.random(shape) > 0.7), 0, 255).astype(np.uint8)
        ours = otsu(torch.from_numpy(levels))
        theirs, binary = cv2.threshold(levels, 175, 255, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
        assert ours == theirs and np.array_equal(binary > 0, levels > ours)


# Cross-attention


def blob(x, y, side=16, tokens=9, seed=0):
    """(side, side, tokens) attention, of which token 3 looks at (x, y)."""
    noise = torch.rand(side, side, tokens, generator=torch.Generator().manual_seed(seed)) * 0.02
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    noise[..., 3] += torch.exp(-((columns - x) ** 2 + (rows - y) ** 2) / 8)
    return noise


def slow_mask(attention, size):
    """The first version's recipe, a step a line."""
    import torch.nn.functional as F

    m = (attention - attention.min()) / (attention.max() - attention.min()) + 1
    m = torch.exp(10 * m)
    m = (m - m.min()) / (m.max() - m.min())
    m = F.interpolate(m[None, None], size, mode="bilinear")[0, 0]
    levels = (m * 255).to(torch.uint8)
    return (levels > slow_otsu(levels.numpy())).float()


def test_a_map_becomes_a_mask_by_the_first_versions_recipe():
    maps = torch.stack([blob(4, 5), blob(11, 9, seed=1)])
    found = from_maps(maps, [3], (96, 80))
    assert found.shape == (2, 96, 80) and set(found.unique().tolist()) == {0.0, 1.0}
    for mask, attention in zip(found, maps, strict=True):
        assert torch.equal(mask, slow_mask(attention[..., 3].double(), (96, 80)))
    assert found[0, 33, 22] == 1 and found[0, 57, 57] == 0 and found[1, 57, 57] == 1


def test_a_map_of_several_tokens_is_their_mean_and_its_scale_does_not_count():
    maps = blob(4, 5)[None]
    both = from_maps(maps, [3, 5], (64, 64))
    mean = maps[..., [3, 5]].mean(-1, keepdim=True)
    assert torch.equal(both, from_maps(mean, [0], (64, 64)))
    assert torch.equal(both, from_maps(maps * 0.001, [3, 5], (64, 64)))


@pytest.mark.parametrize("value", [0.0, 0.013, float("nan"), float("inf")])
def test_a_flat_or_broken_map_leaves_its_own_picture_empty(value):
    maps = torch.stack([blob(4, 5), torch.full((16, 16, 9), value)])
    found = from_maps(maps, [3], (32, 32))
    assert found[0].any() and not found[1].any() and not found.isnan().any()


def test_tokens_that_were_not_recorded_are_refused():
    for places in ([], [9], [-1]):
        with pytest.raises(BadInput, match="the maps hold 9 tokens"):
            from_maps(blob(1, 1)[None], places, (8, 8))
    with pytest.raises(BadInput, match="pictures, height, width, tokens"):
        from_maps(blob(1, 1), [3], (8, 8))


# Parsers


@pytest.mark.parametrize("kind", ["bisenet", "segface"])
def test_a_parser_shows_what_its_own_order_of_labels_says(tmp_path, host, kind):
    getattr(tiny_parser, kind)(tmp_path, hair=RED, glasses=GREEN, **{"left eye": BLUE})
    image = painted(512, 512, red=(50, 20, 400, 120), green=(100, 200, 300, 240), blue=(150, 300, 200, 330))
    found = attribute_masks(image, [HAIR, GLASSES, EYES], host=host)
    assert found.sources == (f"{kind}_tiny",) * 3 and found.reasons == ("", "", "")
    for mask, channel in zip(found.masks, (0, 1, 2), strict=True):
        assert torch.equal(mask, image[..., channel])
    assert found.areas()[0] == pytest.approx(350 * 100 / 512**2 * 100, rel=1e-4)


def test_a_parser_looks_at_heads_and_their_labels_go_back_where_they_were(tmp_path, host):
    tiny_parser.bisenet(tmp_path, hair=RED)
    # Two heads at 128 pixels each and something red beside them, which no head holds.
    image = painted(300, 800, red=(90, 70, 150, 100), red_2=(500, 60, 560, 140))
    image[0, :, 700:] = torch.tensor(RED)
    faces = faces_of((300, 800), [face_at(120, 130, 40), face_at(530, 130, 60)])
    found = attribute_masks(image, [HAIR], faces=faces, parser="bisenet_tiny", host=host)
    truth = image[..., 0].clone()
    truth[..., 700:] = 0
    assert (found.masks[0] - truth).abs().mean() < 0.002
    assert float(found.masks[0].sum()) == pytest.approx(float(truth.sum()), rel=0.03)
    assert not found.masks[0][..., 660:].any() and found.masks.max() <= 1
    apart = faces_of((300, 800), [face_at(120, 130, 40)])
    assert not attribute_masks(image, [HAIR], faces=apart, host=host).masks[..., 300:].any()


def test_a_head_is_looked_at_with_as_much_around_it_as_the_picture_allows(tmp_path, host):
    tiny_parser.bisenet(tmp_path, hair=RED)
    for side, seen in ((200, False), (300, True), (900, True)):
        # Red between 1.2 and 1.4 sides of the box below its middle: long hair.
        image = painted(side + 200, side, red=(0, side // 2 + 122, side, side // 2 + 138))
        faces = faces_of((side + 200, side), [face_at(side // 2, side // 2, 50)])
        found = attribute_masks(image, [HAIR], faces=faces, host=host).masks[0, 0]
        assert bool(found.any()) == seen
        assert not found[:, : max(0, side // 2 - 155)].any() and not found[:, side // 2 + 155 :].any()


def test_pictures_without_a_face_are_parsed_whole(tmp_path, host):
    tiny_parser.bisenet(tmp_path, hair=RED)
    image = torch.cat([painted(256, 256, red=(100, 60, 150, 90))] * 2)
    found = attribute_masks(image, [HAIR], faces=faces_of((256, 256), [face_at(128, 128, 60)], []), host=host)
    assert (found.masks[0, 0] - found.masks[0, 1]).abs().mean() < 0.002 and found.masks[0, 1].sum() == 50 * 30


def test_a_face_half_outside_the_picture_is_no_trouble(tmp_path, host):
    tiny_parser.bisenet(tmp_path, hair=RED)
    image = painted(200, 200, red=(0, 0, 50, 50))
    faces = faces_of((200, 200), [face_at(-20, 10, 60), face_at(900, 900, 20)])
    found = attribute_masks(image, [HAIR], faces=faces, host=host)
    assert (found.masks[0] - image[..., 0]).abs().mean() < 0.01


def test_a_parser_that_sees_none_has_the_last_word(tmp_path, host):
    tiny_parser.bisenet(tmp_path, hair=RED)
    image, maps = painted(64, 64, green=(5, 5, 30, 30)), blob(4, 4)[None]
    found = attribute_masks(image, [HAIR], maps=maps, places=[[3]], host=host)
    assert found.sources == ("",) and not found.masks.any()
    assert found.reasons == ("bisenet_tiny sees no “red hair” in the picture",)


# Which source


def test_auto_takes_for_each_attribute_what_can_show_it(host):
    image, maps = torch.zeros(1, 200, 200, 3), blob(4, 4)[None]
    faces = faces_of((200, 200), [face_at(100, 100, 60)])
    wanted = [HAIR, EYES, LAUGH, AURA]
    found = attribute_masks(image, wanted, faces=faces, maps=maps, places=[[3], [3], [3], []], host=host)
    assert found.sources == ("cross-attention", "mesh", "", "")
    assert torch.equal(found.masks[0], from_maps(maps, [3], (200, 200)))
    assert found.masks[1, 0, 82, 76] == 1 and found.masks[1, 0, 100, 100] == 0
    assert "no place of its own" in found.reasons[2] and "“aura” is not in the prompt" in found.reasons[3]
    assert [bool(reason) for reason in found.reasons] == [False, False, True, True]


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("parser", "no face parser is there"),
        ("mesh", "the mesh has no part for “red hair”"),
        ("cross-attention", "tape"),
    ],
)
def test_a_source_that_is_not_there_says_so(host, source, reason):
    found = attribute_masks(torch.zeros(2, 64, 64, 3), [HAIR], source=source, host=host)
    assert reason in found.reasons[0] and found.sources == ("",) and found.masks.shape == (1, 2, 64, 64)


def test_expressions_have_a_place_for_those_who_want_one(host):
    image, faces = torch.zeros(1, 200, 200, 3), faces_of((200, 200), [face_at(100, 100, 60)])
    found = attribute_masks(image, [LAUGH], faces=faces, expressions=True, host=host)
    assert found.sources == ("mesh",) and found.masks[0, 0, 130, 100] == 1 and found.masks[0, 0, 100, 100] == 0
    old = split("an old man")
    assert attribute_masks(image, old, faces=faces, expressions=True, host=host).sources == ("",)


def test_edges_grow(host):
    image, faces = torch.zeros(1, 200, 200, 3), faces_of((200, 200), [face_at(100, 100, 60)])
    plain, grown, shrunk = (attribute_masks(image, [EYES], faces=faces, grow=n, host=host).masks for n in (0, 5, -3))
    assert shrunk.sum() < plain.sum() < grown.sum() and torch.equal(plain.maximum(grown), grown)


def test_one_map_serves_all_pictures_and_another_number_is_refused(host):
    image = torch.zeros(3, 64, 64, 3)
    found = attribute_masks(image, [HAIR], maps=blob(4, 4)[None], places=[[3]], host=host)
    assert torch.equal(found.masks[0, 0], found.masks[0, 2])
    with pytest.raises(BadInput, match="came with 3 pictures"):
        attribute_masks(image, [HAIR], maps=blob(4, 4)[None].repeat(2, 1, 1, 1), places=[[3]], host=host)


def test_a_prompt_longer_than_the_recorded_one_gives_a_reason(host):
    found = attribute_masks(torch.zeros(1, 64, 64, 3), [HAIR], maps=blob(4, 4)[None], places=[[80]], host=host)
    assert "its prompt was another" in found.reasons[0]


def test_settings_that_cannot_be_are_refused(host):
    image = torch.zeros(1, 64, 64, 3)
    with pytest.raises(BadInput, match="no source of masks 'sam'"):
        attribute_masks(image, [HAIR], source="sam", host=host)
    with pytest.raises(BadInput, match="grows by"):
        attribute_masks(image, [HAIR], grow=999, host=host)
    with pytest.raises(BadInput, match="no face parser 'u2net'"):
        attribute_masks(image, [HAIR], parser="u2net", host=host)
    with pytest.raises(BadInput, match="the image has 64×64"):
        attribute_masks(image, [HAIR], faces=faces_of((32, 32), []), host=host)


def test_no_attributes_make_no_masks(host):
    found = attribute_masks(torch.zeros(2, 64, 48, 3), [], host=host)
    assert found.masks.shape == (0, 2, 64, 48) and torch.equal(found.union(), torch.zeros(2, 64, 48))
    assert coloured(torch.zeros(2, 64, 48, 3), found).shape[0] == 2


# Union, and the user's own


def test_the_union_is_the_largest_of_the_masks_by_their_strengths():
    several = torch.rand(3, 2, 5, 4)
    assert torch.equal(union(several, [1, 1, 1]), several.amax(0))
    assert torch.equal(union(several, [0, 0.5, 0]), several[1] * 0.5)
    with pytest.raises(BadInput, match="3 masks came with 2 strengths"):
        union(several, [1, 1])


def empty(count=2, pictures=3, height=40, width=60):
    wanted = tuple(replace(HAIR, text=f"hair {n}") for n in range(count))
    return masks.Masked(wanted, torch.zeros(count, pictures, height, width), ("",) * count, ("none",) * count)


def test_as_many_masks_as_attributes_are_one_for_each():
    mine = torch.rand(2, 40, 60)
    found, extra = with_given(empty(), mine)
    assert extra is None and found.sources == ("user", "user") and found.reasons == ("", "")
    assert torch.equal(found.masks[:, 0], mine) and torch.equal(found.masks[:, 2], mine)


def test_one_mask_or_one_a_picture_joins_the_union():
    for mine in (torch.rand(40, 60), torch.rand(1, 40, 60), torch.rand(3, 40, 60)):
        found, extra = with_given(empty(), mine)
        assert extra.shape == (3, 40, 60) and found.sources == ("", "")
    with pytest.raises(BadImage, match="4 masks came for 2 attributes in 3 pictures"):
        with_given(empty(), torch.rand(4, 40, 60))


def test_a_users_mask_is_scaled_and_never_stretched():
    half = masks.given(torch.ones(20, 30), 1, 40, 60)
    assert torch.equal(half, torch.ones(1, 40, 60))
    assert masks.given(torch.ones(1, 125, 188), 1, 1000, 1500).shape == (1, 1000, 1500)  # an eighth, rounded
    for wrong in (torch.ones(40, 40), torch.ones(60, 40), torch.ones(512, 512)):
        with pytest.raises(BadImage, match="other proportions"):
            masks.given(wrong, 1, 40, 60)
    for wrong in (torch.full((40, 60), float("nan")), torch.ones(1, 1, 40, 60), "mask", torch.ones(0, 40, 60)):
        with pytest.raises(BadImage):
            masks.given(wrong, 1, 40, 60)


# The preview


def test_every_attribute_has_its_colour_and_the_legend_lies_below(host):
    image = torch.full((2, 120, 160, 3), 0.5)
    shown = replace(empty(2, 2, 120, 160), sources=("mesh", "user"))
    shown.masks[0, :, 20:60, 20:60], shown.masks[1, :, 20:60, 80:120] = 1, 1
    drawn = coloured(image, shown, torch.zeros(2, 120, 160))
    assert drawn.shape[0] == 2 and drawn.shape[1] > 120 and drawn.shape[2:] == (160, 3)
    assert drawn.min() >= 0 and drawn.max() <= 1
    first, second, outside = drawn[0, 40, 40], drawn[0, 40, 100], drawn[0, 100, 80]
    assert (first - second).abs().max() > 0.1 and float(outside.max()) < 0.4
    many = empty(20, 1, 64, 64)
    assert coloured(image[:1, :64, :64], many).shape[1] > 64
