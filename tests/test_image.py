"""The image convention and its door: whatever comes in becomes an image, or is refused with a sentence."""

import struct
import zlib

import numpy as np
import pytest
import torch
from likeness.face.errors import BadImage, BadInput, LikenessError
from likeness.face.image import as_image, as_mask, check_faces, content_hash, from_uint8, load_picture, to_uint8
from likeness.face.types import Faces
from PIL import Image


def pixels(height=6, width=8, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)


def saved(tmp_path, picture, name, **options):
    path = tmp_path / name
    picture.save(path, **options)
    return path


def loaded(path):
    image, mask = load_picture(path)
    assert image.dtype == torch.float32 and image.ndim == 4 and image.shape[-1] == 3
    assert image.min() >= 0 and image.max() <= 1 and as_image(image) is not None
    return image, mask


def png(width, height, body=b""):
    """A PNG file that promises this size, whatever it holds."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(body)) + chunk(b"IEND", b"")


def test_an_rgb_file_is_read_exactly(tmp_path):
    array = pixels()
    image, mask = loaded(saved(tmp_path, Image.fromarray(array), "a.png"))
    assert mask is None and np.array_equal(to_uint8(image[0]), array)


def test_one_pixel_is_a_picture(tmp_path):
    image, _ = loaded(saved(tmp_path, Image.fromarray(pixels(1, 1)), "a.png"))
    assert image.shape == (1, 1, 1, 3)


def test_grey_becomes_three_equal_channels(tmp_path):
    array = pixels(channels=1)[..., 0]
    image, mask = loaded(saved(tmp_path, Image.fromarray(array), "a.png"))
    assert mask is None and all(np.array_equal(to_uint8(image[0, ..., c]), array) for c in range(3))


def test_black_and_white_of_one_bit_stays_black_and_white(tmp_path):
    array = pixels(channels=1)[..., 0] > 127
    image, _ = loaded(saved(tmp_path, Image.fromarray(array), "a.png"))
    assert torch.equal(image[0, ..., 0], torch.from_numpy(array).float())


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_16_bit_grey_keeps_its_range_instead_of_turning_white(tmp_path, name):
    array = np.linspace(0, 65535, 48).reshape(6, 8).astype(np.uint16)
    image, _ = loaded(saved(tmp_path, Image.fromarray(array), name))
    assert np.abs(image[0, ..., 0].numpy() - array / 65535).max() < 1 / 255


def test_alpha_comes_as_a_mask_of_what_is_hidden(tmp_path):
    array = pixels(channels=4)
    image, mask = loaded(saved(tmp_path, Image.fromarray(array), "a.png"))
    assert np.array_equal(to_uint8(image[0]), array[..., :3])
    assert np.array_equal(to_uint8(mask[0]), 255 - array[..., 3])
    grey, mask = loaded(saved(tmp_path, Image.fromarray(array[..., :2], "LA"), "b.png"))
    assert np.array_equal(to_uint8(grey[0, ..., 1]), array[..., 0]) and mask is not None


def test_a_palette_file_keeps_its_colours_and_its_transparent_entry(tmp_path):
    picture = Image.new("P", (4, 2), 1)
    picture.putpalette([0, 0, 0, 200, 100, 50, 9, 9, 9])
    picture.putpixel((3, 1), 2)
    image, mask = loaded(saved(tmp_path, picture, "a.png", transparency=2))
    assert to_uint8(image[0])[0, 0].tolist() == [200, 100, 50]
    assert mask[0, 1, 3] == 1 and mask.sum() == 1


def test_cmyk_becomes_rgb(tmp_path):
    picture = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    image, mask = loaded(saved(tmp_path, picture, "a.jpg", quality=95))
    assert mask is None and (image[0].mean((0, 1)) - torch.tensor([1.0, 0, 0])).abs().max() < 0.05


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_rotated_file_is_set_upright(tmp_path, orientation):
    upright = np.zeros((4, 6, 3), np.uint8)
    upright[0, :, 0] = 255
    upright[:, 0, 1] = 255
    undo = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path, Image.fromarray(np.ascontiguousarray(undo(upright))), "a.png", exif=exif)
    image, _ = loaded(path)
    assert np.array_equal(to_uint8(image[0]), upright)


@pytest.mark.parametrize(("name", "options"), [("a.gif", {}), ("a.png", {}), ("a.webp", {"lossless": True})])
def test_an_animated_file_is_a_batch_of_its_frames(tmp_path, name, options):
    frames = [Image.new("RGB", (8, 6), colour) for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
    path = saved(tmp_path, frames[0], name, save_all=True, append_images=frames[1:], duration=50, **options)
    image, _ = loaded(path)
    assert image.shape == (3, 6, 8, 3)
    assert torch.allclose(image.mean((1, 2)), torch.eye(3), atol=0.02)


def test_a_long_side_is_no_reason_to_refuse(tmp_path):
    image, _ = loaded(saved(tmp_path, Image.new("L", (20000, 3), 128), "a.png"))
    assert image.shape == (1, 3, 20000, 3)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(("width", "height"), [(20000, 20000), (12000, 12000), (60000, 2000)])
def test_a_huge_picture_is_refused_before_it_is_decoded(tmp_path, width, height):
    path = tmp_path / "huge.png"
    path.write_bytes(png(width, height))
    with pytest.raises(BadImage, match=r"huge.png .*Scale it down first"):
        load_picture(path)


def test_an_animation_too_long_for_memory_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    monkeypatch.setattr("likeness.face.image.MAX_FRAMES_BYTES", 1000)
    frames = [Image.new("RGB", (8, 6), (i, 0, 0)) for i in range(0, 200, 50)]
    path = saved(tmp_path, frames[0], "a.gif", save_all=True, append_images=frames[1:])
    with pytest.raises(BadImage, match=r"a.gif has 4 × 8×6 pixels"):
        load_picture(path)


@pytest.mark.parametrize("content", [b"", b"hello", b"GIF89a", b"\x89PNG\r\n\x1a\n", bytes(1000)])
def test_what_is_no_picture_is_refused(tmp_path, content):
    path = tmp_path / "letter.png"
    path.write_bytes(content)
    with pytest.raises(BadImage, match=r"letter.png is (not a picture that can be read|damaged or cut off)"):
        load_picture(path)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.gif", "a.tif", "a.bmp"])
@pytest.mark.parametrize("share", [0.3, 0.7])
def test_a_truncated_file_is_refused_and_not_filled_up(tmp_path, name, share):
    path = saved(tmp_path, Image.fromarray(pixels(64, 64)), name)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(BadImage, match=rf"{name} is (damaged or cut off|not a picture)"):
        load_picture(path)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.gif", "a.webp", "a.tif"])
def test_a_damaged_file_is_read_or_refused_but_never_anything_else(tmp_path, name):
    exif = Image.Exif()
    exif[0x0112] = 6
    whole = saved(tmp_path, Image.fromarray(pixels(24, 24)), name, exif=exif).read_bytes()
    random = np.random.default_rng(3)
    for _ in range(60):
        broken = bytearray(whole)
        for at in random.integers(0, min(len(whole), 200), 3):
            broken[at] = random.integers(0, 256)
        (tmp_path / name).write_bytes(broken)
        try:
            load_picture(tmp_path / name)
        except LikenessError:
            continue


def test_files_that_cannot_be_opened_are_named(tmp_path):
    with pytest.raises(BadImage, match=r"there is no file .*none\.png"):
        load_picture(tmp_path / "none.png")
    with pytest.raises(BadImage, match="cannot be opened as a file"):
        load_picture(tmp_path)


def test_float_files_are_refused_since_their_range_is_unknown(tmp_path):
    path = saved(tmp_path, Image.fromarray(np.ones((4, 4), np.float32)), "a.tif")
    with pytest.raises(BadImage, match="Save it with 8 or 16 bits"):
        load_picture(path)


def test_32_bit_grey_is_read_as_16_bit_or_refused_since_its_range_is_unknown(tmp_path):
    small = saved(tmp_path, Image.fromarray(np.full((4, 4), 30000, np.int32)), "a.tif")
    assert float(loaded(small)[0].mean()) == pytest.approx(30000 / 65535, abs=1 / 255)
    path = saved(tmp_path, Image.fromarray(np.full((4, 4), 70000, np.int32)), "b.tif")
    with pytest.raises(BadImage, match=r"b\.tif holds values up to 70000, .* Save it with 8 or 16 bits"):
        load_picture(path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_any_float_becomes_float32(dtype):
    image = as_image(torch.rand(2, 4, 5, 3).to(dtype))
    assert image.dtype == torch.float32 and image.shape == (2, 4, 5, 3)


def test_an_image_as_it_should_be_is_not_copied():
    image = torch.rand(2, 4, 5, 3)
    assert as_image(image).data_ptr() == image.data_ptr()


def test_grey_alpha_bytes_and_single_pictures_are_taken():
    assert torch.equal(as_image(torch.full((1, 2, 2, 1), 0.25)), torch.full((1, 2, 2, 3), 0.25))
    assert as_image(torch.rand(1, 2, 2, 4)).shape == (1, 2, 2, 3)
    assert as_image(torch.rand(5, 6, 3)).shape == (1, 5, 6, 3)
    assert torch.equal(
        as_image(torch.tensor([[[[0, 51, 255]]]], dtype=torch.uint8))[0, 0, 0], torch.tensor([0, 0.2, 1])
    )


def test_values_a_little_outside_are_clipped_and_the_given_tensor_left_alone():
    given = torch.tensor([[[[-0.1, 0.5, 1.2]]]])
    assert as_image(given)[0, 0, 0].tolist() == [0, 0.5, 1]
    assert given[0, 0, 0, 0] < 0


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (np.zeros((1, 2, 2, 3)), "must be an image tensor .* got ndarray"),
        ([[1, 2]], "got list"),
        (None, "got NoneType"),
        (torch.zeros(2, 2), r"nothing empty; got \(2, 2\)"),
        (torch.zeros(1, 3, 8, 8), r"got \(1, 3, 8, 8\). If the channels come first"),
        (torch.zeros(0, 8, 8, 3), "nothing empty"),
        (torch.zeros(1, 0, 8, 3), "nothing empty"),
        (torch.zeros(1, 2, 2, 3, dtype=torch.int64), "float values .* got torch.int64"),
        (torch.zeros(1, 2, 2, 3, dtype=torch.bool), "got torch.bool"),
        (torch.full((1, 2, 2, 3), float("nan")), "12 values that are NaN or infinite, of 12"),
        (torch.tensor([[[[0, float("inf"), -float("inf")]]]]), "2 values that are NaN or infinite, of 3"),
        (torch.full((1, 1, 1, 3), 1e300, dtype=torch.float64), "NaN or infinite"),
        (torch.full((1, 1, 1, 3), 200.0), "values from 200 to 200 where 0 to 1 was expected.* divide them by 255"),
        (torch.full((1, 1, 1, 3), -127.0), "values from -127 to -127 where 0 to 1 was expected"),
    ],
)
def test_what_is_no_image_is_refused_with_a_sentence(value, words):
    with pytest.raises(BadImage, match=words):
        as_image(value)
    with pytest.raises(BadImage, match="the target"):
        as_image(value, "the target")


def test_a_mask_serves_its_batch():
    assert torch.equal(as_mask(torch.full((4, 5), 2.0), 3, 4, 5), torch.ones(3, 4, 5))
    assert as_mask(torch.rand(3, 4, 5).half(), 3, 4, 5).dtype == torch.float32
    assert as_mask(torch.rand(1, 4, 5) > 0.5, 3, 4, 5).shape == (3, 4, 5)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (np.zeros((1, 4, 5)), "must be a mask tensor"),
        (torch.zeros(2, 4, 5), r"must have the shape \(3, 4, 5\) or \(1, 4, 5\).* got \(2, 4, 5\)"),
        (torch.zeros(1, 5, 4), "Scale the mask to the image first"),
        (torch.full((1, 4, 5), float("nan")), "NaN or infinite"),
    ],
)
def test_what_is_no_mask_of_this_image_is_refused(value, words):
    with pytest.raises(BadImage, match=words):
        as_mask(value, 3, 4, 5)


def test_faces_of_other_pictures_are_refused():
    faces = Faces(((), ()), ((4, 5), (4, 5)))
    check_faces(torch.zeros(2, 4, 5, 3), faces)
    with pytest.raises(BadInput, match="come from 2 pictures, but the image has 1"):
        check_faces(torch.zeros(1, 4, 5, 3), faces)
    with pytest.raises(BadInput, match="in pictures of 5×4 pixels, but the image has 10×8"):
        check_faces(torch.zeros(2, 8, 10, 3), faces)


def test_bytes_go_there_and_back_exactly():
    array = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
    assert np.array_equal(to_uint8(from_uint8(array)), array)
    picture = torch.rand(4, 4, 3)
    before = picture.clone()
    to_uint8(picture)
    assert torch.equal(picture, before)


def test_a_content_hash_depends_on_pixels_and_shape_only():
    picture = torch.rand(4, 6, 3)
    assert content_hash(picture) == content_hash(picture.clone())
    assert content_hash(picture) == content_hash(picture.permute(2, 0, 1).contiguous().permute(1, 2, 0))
    assert content_hash(picture) != content_hash(picture.reshape(6, 4, 3))
    changed = picture.clone()
    changed[0, 0, 0] += 1e-6
    assert content_hash(picture) != content_hash(changed)
