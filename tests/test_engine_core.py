"""The core nodes behave as ComfyUI's, and bad pictures are refused with a sentence."""

import re

import numpy as np
import pytest
import torch
from likeness.engine.core import CORE, TITLES
from likeness.engine.core.files import MAX_SIDE
from likeness.engine.host import EngineHost, running
from likeness.face.errors import BadImage, BadInput
from likeness.nodes import host as nodes_host
from likeness.nodes import saving
from PIL import Image


@pytest.fixture
def folder(tmp_path):
    """An input folder; results go beside it."""
    place = tmp_path / "input"
    place.mkdir()
    nodes_host.use(EngineHost([place], tmp_path / "output", tmp_path / "temp"))
    yield place
    nodes_host.use(None)


def call(kind, **inputs):
    node = CORE[kind]
    return getattr(node(), node.FUNCTION)(**inputs)


def load(folder, name, picture, **options):
    picture.save(folder / name, **options)
    return call("LoadImage", image=name)


def ramp(height, width, channels=3):
    return torch.linspace(0, 1, height * width * channels).reshape(1, height, width, channels)


def test_a_colour_picture_loads_exactly_with_an_empty_mask(folder):
    image, mask = load(folder, "a.png", Image.new("RGB", (5, 3), (255, 51, 0)))
    assert image.shape == (1, 3, 5, 3)
    assert image.dtype == torch.float32
    assert torch.allclose(image[0, 0, 0], torch.tensor([1.0, 0.2, 0.0]))
    assert mask.shape == (1, 64, 64)
    assert mask.sum() == 0


def test_the_mask_is_where_the_picture_is_transparent(folder):
    image, mask = load(folder, "a.png", Image.new("RGBA", (5, 3), (255, 0, 0, 51)))
    assert mask.shape == (1, 3, 5)
    assert torch.allclose(mask, torch.full_like(mask, 0.8))
    assert torch.allclose(image[0, 0, 0], torch.tensor([1.0, 0.0, 0.0]))


def test_a_transparent_palette_has_a_mask(folder):
    picture = Image.new("P", (4, 4), 1)
    picture.putpalette([0, 0, 0, 255, 0, 0])
    picture.putpixel((0, 0), 0)
    image, mask = load(folder, "a.png", picture, transparency=0)
    assert mask[0, 0, 0] == 1
    assert mask[0, 1, 1] == 0
    assert torch.equal(image[0, 1, 1], torch.tensor([1.0, 0.0, 0.0]))


@pytest.mark.parametrize("mode", ["L", "1", "LA", "CMYK", "P"])
def test_other_modes_become_rgb(folder, mode):
    name = "a.jpg" if mode == "CMYK" else "a.png"
    assert load(folder, name, Image.new(mode, (5, 3)))[0].shape == (1, 3, 5, 3)


def test_sixteen_bits_keep_their_brightness(folder):
    image, _ = load(folder, "a.png", Image.fromarray(np.full((3, 5), 32768, np.uint16)))
    assert abs(float(image.mean()) - 0.5) < 0.01


def test_a_rotated_photograph_stands_upright(folder):
    picture = Image.new("RGB", (6, 2))
    exif = picture.getexif()
    exif[0x0112] = 6
    image, _ = load(folder, "a.jpg", picture, exif=exif)
    assert image.shape == (1, 6, 2, 3)


def test_an_animation_is_a_batch(folder):
    frames = [Image.new("RGB", (4, 4), (i * 80, 0, 0)) for i in range(3)]
    image, mask = load(folder, "a.gif", frames[0], save_all=True, append_images=frames[1:])
    assert image.shape == (3, 4, 4, 3)
    assert mask.shape == (3, 64, 64)
    assert image[0].max() < image[2].max()


def test_a_phones_second_picture_is_no_frame(folder):
    frames = [Image.new("RGB", (4, 4)), Image.new("RGB", (2, 2))]
    image, _ = load(folder, "a.jpg", frames[0], format="MPO", save_all=True, append_images=frames[1:])
    assert image.shape == (1, 4, 4, 3)


def test_a_thumbnail_among_the_pages_is_no_frame(folder):
    pages = [Image.new("RGB", (4, 4)), Image.new("RGB", (2, 2)), Image.new("RGB", (4, 4))]
    image, _ = load(folder, "a.tiff", pages[0], save_all=True, append_images=pages[1:])
    assert image.shape == (2, 4, 4, 3)


def test_a_picture_of_one_pixel_loads(folder):
    assert load(folder, "a.png", Image.new("RGB", (1, 1)))[0].shape == (1, 1, 1, 3)


def test_names_may_have_a_folder_and_say_which_kind(folder):
    for place in (folder / "deep", folder.parent / "output"):
        place.mkdir()
        Image.new("RGB", (2, 2)).save(place / "a.png")
    assert call("LoadImage", image="deep/a.png")[0].shape == (1, 2, 2, 3)
    assert call("LoadImage", image="a.png [output]")[0].shape == (1, 2, 2, 3)
    assert CORE["LoadImage"].INPUT_TYPES()["required"]["image"][0] == ["deep/a.png"]


def test_a_changed_file_is_another_file(folder):
    changed = CORE["LoadImage"].IS_CHANGED
    Image.new("RGB", (2, 2)).save(folder / "a.png")
    before = changed(image="a.png")
    assert changed(image="a.png") == before
    Image.new("RGB", (2, 2), (1, 1, 1)).save(folder / "a.png")
    assert changed(image="a.png") != before


def wide_header(height=100):
    """A PNG that says it is 20 000 pixels wide and holds next to nothing."""
    import struct
    import zlib

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 20_000, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"not a picture", "is not a picture that can be read"),
        (b"", "is not a picture that can be read"),
        (wide_header(), f"a side may be at most {MAX_SIDE} pixels"),
        (wide_header(20_000), "is too large to decode .* Scale it down first"),
    ],
    ids=["text", "empty", "too wide", "too large"],
)
def test_a_bad_file_is_refused_before_the_run_and_before_decoding(folder, monkeypatch, data, sentence):
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", None)
    (folder / "bad.png").write_bytes(data)
    assert re.search(sentence, CORE["LoadImage"].VALIDATE_INPUTS(image="bad.png"))
    with pytest.raises(BadImage, match=sentence):
        call("LoadImage", image="bad.png")


@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
def test_a_truncated_file_is_refused(folder, name):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(folder / name)
    (folder / name).write_bytes((folder / name).read_bytes()[:900])
    with pytest.raises(BadImage, match="damaged or cut off"):
        call("LoadImage", image=name)


def test_a_missing_file_names_the_folder(folder):
    assert f"there is no picture 'gone.png' in {folder}" in CORE["LoadImage"].VALIDATE_INPUTS(image="gone.png")
    assert CORE["LoadImage"].VALIDATE_INPUTS(image=None) is True


@pytest.mark.parametrize(("channel", "value"), [("red", 1.0), ("green", 0.2), ("blue", 0.0), ("alpha", 0.6)])
def test_a_channel_is_a_mask(folder, channel, value):
    Image.new("RGBA", (5, 3), (255, 51, 0, 102)).save(folder / "a.png")
    (mask,) = call("LoadImageMask", image="a.png", channel=channel)
    assert torch.allclose(mask, torch.full((1, 3, 5), value))


def test_saved_files_are_counted_on(folder):
    batch = torch.rand(2, 4, 4, 3)
    for _ in range(2):
        shown = call("SaveImage", images=batch, filename_prefix="x")["ui"]["images"]
    assert [item["filename"] for item in shown] == ["x_00003_.png", "x_00004_.png"]
    kept = CORE["LoadImage"]().load_image("x_00004_.png [output]")[0]
    assert (kept - batch[1:]).abs().max() <= 0.5 / 255 + 1e-6


def test_two_processes_that_count_in_one_folder_get_two_files(folder, monkeypatch):
    # Both look before either writes.
    monkeypatch.setattr("os.listdir", lambda place: [])
    names = [saving.reserve(folder, "x", ".png").name for _ in range(3)]
    assert names == ["x_00001_.png", "x_00002_.png", "x_00003_.png"]


@pytest.mark.parametrize("prefix", ["a" * 400, "x\0y", "in.png/x", "../x", "\ud800"])
def test_a_prefix_that_no_file_can_have_is_a_sentence(folder, prefix):
    (folder.parent / "output").mkdir()
    (folder.parent / "output" / "in.png").touch()
    with pytest.raises(BadInput):
        call("SaveImage", images=torch.zeros(1, 2, 2, 3), filename_prefix=prefix)
    with pytest.raises(BadInput, match=r"cannot be written in|leads out of the output|holds what no file name can"):
        saving.numbered(prefix, ".png")
    assert len(list(folder.parent.rglob("*.*"))) == 1


def test_previews_go_to_the_temporary_folder(folder):
    (item,) = call("PreviewImage", images=torch.zeros(1, 2, 2, 3))["ui"]["images"]
    assert item["type"] == "temp"
    assert (folder.parent / "temp" / item["filename"]).is_file()


def test_saving_stops_if_interrupted(folder):
    import threading

    from likeness.engine.host import Interrupted, Running, Silent

    stop = threading.Event()
    stop.set()
    with running(Running("p", Silent(), stop), "1"), pytest.raises(Interrupted):
        call("SaveImage", images=torch.zeros(1, 2, 2, 3))


@pytest.mark.parametrize("method", ["nearest-exact", "bilinear", "area", "bicubic", "lanczos"])
def test_scaling_gives_the_size_asked_for(method):
    (out,) = call("ImageScale", image=ramp(6, 8), upscale_method=method, width=4, height=0, crop="disabled")
    assert out.shape == (1, 3, 4, 3)
    assert torch.isfinite(out).all()
    (out,) = call("ImageScaleBy", image=ramp(6, 8), upscale_method=method, scale_by=1.5)
    assert out.shape == (1, 9, 12, 3)


def test_a_centred_crop_keeps_the_middle():
    image = torch.zeros(1, 4, 8, 3)
    image[:, :, 2:6] = 1
    (out,) = call("ImageScale", image=image, upscale_method="bilinear", width=4, height=4, crop="center")
    assert torch.equal(out, torch.ones(1, 4, 4, 3))


def test_cropping_stays_inside():
    image = ramp(6, 8)
    (out,) = call("ImageCrop", image=image, width=4, height=4, x=2, y=1)
    assert torch.equal(out, image[:, 1:5, 2:6])
    assert call("ImageCrop", image=image, width=4, height=4, x=100, y=4)[0].shape == (1, 2, 1, 3)


def test_batches_are_joined_repeated_and_taken_apart():
    a, b = ramp(4, 4), torch.ones(2, 8, 8, 3)
    (both,) = call("ImageBatch", image1=a, image2=b)
    assert both.shape == (3, 4, 4, 3)
    assert torch.equal(both[:1], a)
    assert call("RepeatImageBatch", image=both, amount=2)[0].shape[0] == 6
    assert torch.equal(call("ImageFromBatch", image=both, batch_index=1, length=9)[0], both[1:])


def test_the_empty_image_has_its_colour():
    (image,) = call("EmptyImage", width=3, height=2, batch_size=2, color=0xFF3300)
    assert image.shape == (2, 2, 3, 3)
    assert torch.allclose(image[1, 1, 2], torch.tensor([1.0, 0.2, 0.0]))
    with pytest.raises(BadInput, match="GB"):
        call("EmptyImage", width=16384, height=16384, batch_size=4096)


def test_masks_and_images_turn_into_one_another():
    mask = torch.rand(2, 3, 4)
    (image,) = call("MaskToImage", mask=mask)
    assert image.shape == (2, 3, 4, 3)
    assert torch.equal(call("ImageToMask", image=image, channel="green")[0], mask)
    assert torch.equal(call("InvertMask", mask=mask)[0], 1 - mask)
    assert call("ImageToMask", image=image, channel="alpha")[0].min() == 1


@pytest.mark.parametrize(
    ("operation", "inside"), [("multiply", 0.3), ("add", 1.0), ("subtract", 0.3), ("and", 1), ("or", 1), ("xor", 0)]
)
def test_masks_are_combined_where_they_meet(operation, inside):
    below, above = torch.full((1, 4, 4), 0.6), torch.full((1, 4, 4), 0.5 if operation == "multiply" else 0.6)
    above = torch.full((1, 4, 4), 0.3) if operation == "subtract" else above
    (out,) = call("MaskComposite", destination=below, source=above, x=2, y=3, operation=operation)
    assert torch.allclose(out[:, 3:, 2:], torch.full((1, 1, 2), float(inside)), atol=1e-6)
    assert torch.equal(out[:, :3], below[:, :3])


def test_growing_makes_a_square_or_a_diamond_and_shrinking_undoes_it():
    mask = torch.zeros(1, 9, 9)
    mask[0, 4, 4] = 1
    (square,) = call("GrowMask", mask=mask, expand=2, tapered_corners=False)
    (diamond,) = call("GrowMask", mask=mask, expand=2, tapered_corners=True)
    assert (square.sum(), diamond.sum()) == (25, 13)
    assert torch.equal(call("GrowMask", mask=square, expand=-2, tapered_corners=False)[0], mask)
    assert torch.equal(call("GrowMask", mask=mask, expand=0, tapered_corners=True)[0], mask)


def test_feathering_fades_towards_the_borders():
    # The far border is one pixel late and the near one darker, as in ComfyUI.
    (out,) = call("FeatherMask", mask=torch.ones(1, 4, 6), left=2, top=0, right=4, bottom=0)
    assert torch.allclose(out[0, 0], torch.tensor([0.5 * 0.25, 1.0, 1.0, 1.0, 0.75, 0.5]))


def test_pasting_by_mask_changes_only_what_is_under_it():
    below, above = torch.zeros(2, 6, 6, 3), torch.ones(1, 4, 4, 3)
    mask = torch.zeros(1, 4, 4)
    mask[:, :2] = 1
    inputs = {"destination": below, "source": above, "x": 1, "y": 1, "resize_source": False}
    (out,) = call("ImageCompositeMasked", **inputs, mask=mask)
    assert torch.equal(out[:, 1:3, 1:5], torch.ones(2, 2, 4, 3))
    assert out.sum() == 2 * 2 * 4 * 3
    assert below.sum() == 0


@pytest.mark.parametrize(
    ("value", "text"),
    [("as it is", "as it is"), (1.5, "1.5"), ([1, {"a": 2}], '[1, {"a": 2}]'), (None, "None"), ({1}, "{1}")],
)
def test_any_value_can_be_shown(value, text):
    assert call("PreviewAny", source=value)["ui"]["text"] == [text]


def test_every_core_node_has_a_title():
    assert set(TITLES) == set(CORE)
