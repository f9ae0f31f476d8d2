"""Images of every mode, size and type are decoded into one format."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image
from torchvision.transforms import CenterCrop, InterpolationMode, Resize

from skdeepcluster._inputs.decoding import decode, describe_failure
from skdeepcluster._inputs.headers import read_header
from skdeepcluster._inputs.image_format import ImageFormat, dtype_of

RNG = np.random.default_rng(0)
GRAY, COLOR = ImageFormat((1, 8, 8), np.uint8), ImageFormat((3, 8, 8), np.uint8)
MODES = ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "LAB", "I;16", "I"]


def make_pil_image(mode="RGB", width=10, height=8):
    values = RNG.integers(0, 256, (height, width, 3)).astype(np.uint8)
    if mode in ("I;16", "I"):
        gray = values[..., 0].astype(np.int64) * 257
        return Image.fromarray(gray.astype(np.uint16 if mode == "I;16" else np.int32))
    if mode == "P":
        return Image.fromarray(values).quantize(16)
    image = Image.fromarray(values)
    # PIL converts no mode to LAB.
    if mode == "LAB":
        return Image.frombytes("LAB", image.size, image.tobytes())
    return image.convert("L").convert(mode) if mode == "LA" else image.convert(mode)


def make_gradient(width, height):
    """Return gray values that grow from left to right."""
    row = np.linspace(0, 255, width).astype(np.uint8)
    return np.tile(row, (height, 1))


GRADIENT = make_gradient(40, 20)


@pytest.mark.parametrize("image_format", [GRAY, COLOR], ids=["gray", "color"])
@pytest.mark.parametrize("mode", MODES)
def test_every_mode_becomes_gray_or_color(mode, image_format):
    values = decode(make_pil_image(mode), image_format)
    assert values.shape == image_format.shape
    assert values.dtype == np.uint8
    assert values.std() > 5


@pytest.mark.parametrize("mode", MODES)
def test_format_of_headers(mode):
    gray = mode in ("1", "L", "LA", "I;16", "I")
    assert read_header(make_pil_image(mode)).shape == (1 if gray else 3, 8, 10)


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_pixels_of_the_same_size_are_kept(mode):
    image = make_pil_image(mode, 8, 8)
    image_format = GRAY if mode == "L" else COLOR
    expected = np.array(image).reshape(8, 8, -1).transpose(2, 0, 1)
    assert_array_equal(decode(image, image_format), expected)
    forms = [expected, torch.from_numpy(expected), expected.transpose(1, 2, 0)]
    for form in [*forms, (image, 3), (expected, "label"), [image, 1]]:
        assert_array_equal(decode(form, image_format), expected)


def test_sixteen_bits_keep_their_range():
    values = make_gradient(8, 8)
    for kind in (np.uint16, np.int32):
        image = Image.fromarray((values.astype(np.int64) * 257).astype(kind))
        assert_array_equal(decode(image, GRAY)[0], values)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_pixels_become_white(mode):
    values = np.zeros((8, 8, len(mode)), np.uint8)
    # The left half is opaque and black.
    values[:, :4, -1] = 255
    gray = decode(Image.fromarray(values, mode), GRAY)[0]
    assert (gray[:, :4] == 0).all()
    assert (gray[:, 4:] == 255).all()


def test_transparent_color_of_a_palette_becomes_white(tmp_path):
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, 200, 0, 0])
    image.save(tmp_path / "image.png", transparency=1)
    assert (decode(tmp_path / "image.png", COLOR) == 255).all()


@pytest.mark.parametrize("ending", ["png", "tif"])
@pytest.mark.parametrize(("orientation", "n_turns"), [(1, 0), (3, 2), (6, 3), (8, 1)])
def test_exif_rotations_are_applied(tmp_path, orientation, n_turns, ending):
    path = tmp_path / f"image.{ending}"
    values = make_pil_image("L", 8, 8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    values.save(path, exif=exif)
    expected = np.rot90(np.asarray(values), n_turns)
    assert_array_equal(decode(path, GRAY)[0], expected)
    make_pil_image("L", 10, 8).save(path, exif=exif)
    sides = (10, 8) if n_turns % 2 else (8, 10)
    assert read_header(path).shape == (1, *sides)


@pytest.mark.parametrize("size", [(40, 8), (80, 16), (160, 32)])
def test_longer_side_is_cropped_around_the_center(size):
    width, height = size
    for image in (
        Image.fromarray(make_gradient(width, height)),
        make_gradient(width, height),
    ):
        row = decode(image, GRAY)[0, 4].astype(int)
        # A fifth of the width remains, in the center.
        left, right = 255 * 2 / 5, 255 * 3 / 5
        assert row[0] == pytest.approx(left, abs=6)
        assert row[-1] == pytest.approx(right, abs=6)
        assert (np.diff(row) > 0).all()


@pytest.mark.parametrize("form", [Image.fromarray, np.asarray, np.float32])
def test_pad_keeps_the_whole_image(form):
    width, height = 40, 20
    image_format = ImageFormat(
        (1, 8, 8), dtype_of(read_header(form(GRADIENT)).number_type), "pad"
    )
    values = decode(form(make_gradient(width, height)), image_format)[0].astype(int)
    # The width is scaled from 40 to 8, and the height from 20 to 4.
    assert values[4, 0] < 20
    assert values[4, -1] > 235
    assert (np.diff(values[4]) > 0).all()
    assert_array_equal(values[2:6], np.tile(values[4], (4, 1)))
    assert len(np.unique(values[[0, 1, 6, 7]])) == 1


@pytest.mark.parametrize("size", [(40, 20), (20, 40), (41, 7), (200, 5)])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_pad_has_the_color_of_the_border(size, mode):
    paper, ink = ((250, 240, 200), (9, 20, 30)) if mode == "RGB" else (240, 20)
    image = Image.new(mode, size, paper)
    # A drawing in the center, which touches the edge at the right.
    width, height = size
    image.paste(ink, (width // 3, height // 2, width, height // 2 + 1))
    channels = len(mode) if mode == "RGB" else 1
    for form in (image, np.asarray(image), np.asarray(image, np.float32)):
        dtype = dtype_of(read_header(form).number_type)
        values = decode(form, ImageFormat((channels, 16, 16), dtype, "pad"))
        edge = values[:, 0] if width > height else values[:, :, 0]
        assert_array_equal(edge, np.broadcast_to(np.c_[paper].T, edge.shape))


def test_pad_of_transparent_images_is_white():
    values = np.zeros((10, 40, 4), np.uint8)
    values[4:6, 10:30, 3] = 255
    padded = decode(Image.fromarray(values), replace(COLOR, resize="pad"))
    assert (padded[:, [0, 1, 2, 5, 6, 7]] == 255).all()
    assert padded.min() < 200


@pytest.mark.parametrize("form", [Image.fromarray, np.asarray, np.float32])
def test_stretch_scales_both_sides(form):
    dtype = dtype_of(read_header(form(GRADIENT)).number_type)
    for values in (make_gradient(80, 20), make_gradient(20, 80)):
        row = decode(form(values), ImageFormat((1, 8, 8), dtype, "stretch"))[0]
        assert_allclose(row[0], 255 * (np.arange(8) + 0.5) / 8, atol=5)
        assert_array_equal(row, np.tile(row[0], (8, 1)))


@pytest.mark.parametrize("resize", ["crop", "pad", "stretch"])
def test_square_images_are_resized_in_one_way(resize):
    image = make_pil_image("RGB", 30, 30)
    assert_array_equal(
        decode(image, replace(COLOR, resize=resize)), decode(image, COLOR)
    )


def test_pad_tells_images_apart_that_crop_makes_identical():
    values = make_gradient(40, 20)
    other = values.copy()
    other[:, :8] = 255
    first, second = Image.fromarray(values), Image.fromarray(other)
    assert_array_equal(decode(first, GRAY), decode(second, GRAY))
    padded = replace(GRAY, resize="pad")
    assert (decode(first, padded) != decode(second, padded)).any()


# Preprocessing of networks with given weights.

# Sizes (width, height): landscape, portrait, odd sides, smaller than the target, the
# target itself, and both sides of the same size.
SIZES = [(90, 60), (60, 90), (97, 61), (61, 98), (20, 15), (7, 31), (32, 32), (75, 75)]


@pytest.mark.parametrize("interpolation", list(InterpolationMode))
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("size", SIZES)
def test_shorter_side_equals_torchvision(size, mode, interpolation):
    image = make_pil_image(mode, *size)
    for shape in [(32, 32), (32, 27), (21, 36)]:
        for shorter_side in (36, 41, 64):
            resized = Resize(shorter_side, interpolation, antialias=True)(image)
            expected = np.asarray(CenterCrop(shape)(resized))
            expected = expected.reshape(*shape, -1).transpose(2, 0, 1)
            image_format = ImageFormat(
                expected.shape,
                np.uint8,
                shorter_side=shorter_side,
                interpolation=interpolation.value,
            )
            assert_array_equal(decode(image, image_format), expected)
            assert_array_equal(decode(np.array(image), image_format), expected)
            if interpolation.value in ("bicubic", "lanczos"):
                # Bytes are also clipped between the scaling of both sides.
                continue
            floats = replace(image_format, dtype=np.float32)
            values = decode(np.array(image, np.float32), floats)
            assert_allclose(values.clip(0, 255), expected, atol=1.5)


@pytest.mark.parametrize("size", [(1600, 1200), (4000, 3000)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_large_jpeg_with_shorter_side(tmp_path, size, interpolation):
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (30, 40, 3)).astype(np.uint8))
    noise.resize(size, Image.Resampling.BICUBIC).save(tmp_path / "image.jpg")
    image_format = ImageFormat(
        (3, 224, 224), np.uint8, shorter_side=256, interpolation=interpolation
    )
    from_file = decode(tmp_path / "image.jpg", image_format).astype(int)
    with Image.open(tmp_path / "image.jpg") as image:
        difference = np.abs(from_file - decode(image, image_format))
    assert difference.mean() < 0.6
    assert difference.max() <= 6


@pytest.mark.parametrize("size", [(20_000, 10), (10, 20_000), (1, 1)])
@pytest.mark.parametrize("resize", ["crop", "pad", "stretch"])
def test_extreme_sizes_in_every_way(size, resize):
    image_format = ImageFormat((1, 64, 64), np.uint8, resize, shorter_side=128)
    assert (decode(Image.new("L", size, 7), image_format) == 7).all()
    values = np.full(size[::-1], 0.5)
    decoded = decode(values, replace(image_format, dtype=np.float32))
    assert_allclose(decoded, 0.5, rtol=1e-6)


@pytest.mark.parametrize("resize", ["pad", "stretch"])
def test_shorter_side_is_for_crops_only(resize):
    image = make_pil_image("RGB", 30, 20)
    image_format = replace(COLOR, resize=resize, interpolation="bicubic")
    other_format = replace(image_format, shorter_side=16)
    assert_array_equal(decode(image, image_format), decode(image, other_format))
    bilinear = replace(image_format, interpolation="bilinear")
    assert (decode(image, image_format) != decode(image, bilinear)).any()


def test_bicubic_bytes_of_many_channels_stay_bytes():
    values = 255 * RNG.integers(0, 2, (6, 20, 20)).astype(np.uint8)
    values[:, :, 10:] = 255
    image_format = ImageFormat((6, 40, 40), np.uint8, interpolation="bicubic")
    assert (decode(values, image_format)[:, :, 30:] > 250).all()


@pytest.mark.parametrize(
    "options", [{"resize": "auto"}, {"interpolation": "sharp"}, {"shorter_side": 7}]
)
def test_formats_that_no_image_can_get(options):
    (name,) = options
    with pytest.raises(ValueError, match=f"{name}=|image_size"):
        replace(COLOR, **options)


def test_format_that_is_not_square():
    image_format = ImageFormat((1, 4, 8), np.uint8)
    row = decode(Image.fromarray(make_gradient(80, 80)), image_format)[0, 0].astype(int)
    assert row[0] < 20
    assert row[-1] > 235


@pytest.mark.parametrize("size", [(1, 1), (20_000, 10), (10, 20_000), (3, 1)])
def test_extreme_sizes(size):
    for mode in ("L", "RGB"):
        image = Image.new(mode, size, "#070707")
        assert decode(image, COLOR).tolist() == [[[7] * 8] * 8] * 3
    image_format = ImageFormat((1, 8, 8), np.float32)
    assert_allclose(decode(np.full(size[::-1], 0.5), image_format), 0.5, rtol=1e-6)


def test_large_jpeg_is_decoded_at_a_fraction(tmp_path):
    image = Image.fromarray(make_gradient(800, 800)).convert("RGB")
    image.save(tmp_path / "image.jpg", quality=95)
    from_file = decode(tmp_path / "image.jpg", COLOR)
    from_memory = decode(image, COLOR)
    assert_allclose(from_file.astype(int), from_memory, atol=6)


def test_pil_image_is_not_changed(tmp_path):
    make_pil_image("RGB", 300, 200).save(tmp_path / "image.jpg")
    with Image.open(tmp_path / "image.jpg") as image:
        decode(image, COLOR)
        assert image.size == (300, 200)


@pytest.mark.parametrize("shape", [(20, 1, 3), (1, 20), (20, 1), (1, 1)])
def test_images_of_one_pixel_in_height_or_width(shape):
    values = np.full(shape, 60, np.uint8)
    values[..., 0] = 250
    channels = 3 if len(shape) == 3 else 1
    image_format = ImageFormat((channels, 8, 8), np.uint8, "stretch")
    form = Image.fromarray(values)
    assert_array_equal(decode(values, image_format), decode(form, image_format))


def test_floats_are_resized_as_floats():
    values = make_gradient(16, 16) / 255
    decoded = decode(values, ImageFormat((1, 8, 8), np.float32))
    assert decoded.dtype == np.float32
    assert_allclose(decoded[0, 0], values[0].reshape(8, 2).mean(axis=1), atol=0.02)


@pytest.mark.parametrize(
    ("image", "image_format", "message"),
    [
        (
            np.zeros((5, 9, 9)),
            ImageFormat((3, 9, 9), np.float32),
            "of 5 channels among",
        ),
        (
            np.zeros((9, 9)),
            ImageFormat((1, 9, 9), np.uint8),
            "float64 values among images of bytes",
        ),
        (np.full((9, 9), 3e38), ImageFormat((1, 9, 9), np.float32), "beyond 1e30"),
        (
            np.full((9, 9), np.nan),
            ImageFormat((1, 9, 9), np.float32),
            "NaN, infinite or beyond 1e30",
        ),
        (np.zeros(9), GRAY, r"shape \(9,\) is not an image"),
        (np.zeros((0, 9)), GRAY, r"shape \(0, 9\) is not an image"),
        (Image.new("L", (9, 9)), ImageFormat((5, 9, 9), np.uint8), "gray or color"),
    ],
)
def test_arrays_that_cannot_be_converted(image, image_format, message):
    with pytest.raises(ValueError, match=message):
        decode(image, image_format)


@pytest.mark.parametrize("image", [3, None, {"image": 1}, np.array(["a"]), ()])
def test_values_that_are_no_image(image):
    for function in (lambda: decode(image, GRAY), lambda: read_header(image)):
        with pytest.raises(TypeError, match=r"is not an image.*pass"):
            function()


def write_broken_file(path, kind, bomb):
    """Write a file that cannot be read as an image."""
    image = make_pil_image("RGB", 64, 64)
    image.save(path, "PNG")
    content = path.read_bytes()
    if kind == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("no image at all")
    elif kind == "bomb":
        path.write_bytes(bomb)
    elif kind == "missing":
        path.unlink()
    elif kind == "folder":
        path.unlink()
        path.mkdir()
    elif kind == "loop":
        path.unlink()
        path.symlink_to(path)


@pytest.mark.parametrize(
    ("kind", "cause"),
    [
        ("truncated", "truncated"),
        ("empty", "the file is empty"),
        ("text", "the file is not an image"),
        ("bomb", "MAX_IMAGE_PIXELS"),
        ("missing", "No such file"),
        ("folder", "it is a folder"),
        ("loop", "symbolic links"),
    ],
)
def test_failure_has_path_and_cause(tmp_path, bomb, kind, cause):
    path = tmp_path / "image.png"
    write_broken_file(path, kind, bomb)
    with pytest.raises(Exception) as caught:  # noqa: PT011
        decode(path, COLOR)
    description = describe_failure(path, caught.value)
    assert description.startswith(f"{path}: ")
    assert cause in description


sizes = st.integers(1, 70)


resize_modes = st.sampled_from(["crop", "pad", "stretch"])
shorter_sides = st.none() | st.integers(70, 90)


@settings(max_examples=150)
@given(
    st.sampled_from(MODES),
    *[sizes] * 4,
    st.sampled_from([1, 3]),
    resize_modes,
    shorter_sides,
)
def test_any_mode_and_size_becomes_any_format(
    mode, width, height, w, h, channels, resize, shorter_side
):
    image_format = ImageFormat((channels, h, w), np.uint8, resize, shorter_side)
    values = decode(make_pil_image(mode, width, height), image_format)
    assert values.shape == image_format.shape
    assert values.flags.c_contiguous


@settings(max_examples=100)
@given(
    st.sampled_from([np.uint8, np.int16, np.float16, np.float32, np.float64, bool]),
    st.sampled_from([1, 3, 4, 6]),
    *[sizes] * 4,
    resize_modes,
    shorter_sides,
)
def test_any_array_becomes_its_format(
    dtype, channels, width, height, w, h, resize, shorter_side
):
    values = RNG.integers(0, 2, (channels, height, width)).astype(dtype)
    # The last dimension would be read as the channels.
    if channels > width:
        return
    dtype = dtype_of(read_header(values).number_type)
    image_format = ImageFormat((channels, h, w), dtype, resize, shorter_side)
    decoded = decode(values, image_format)
    assert decoded.shape == image_format.shape
    assert decoded.dtype == image_format.dtype
    assert decoded.min() >= -1e-6
    assert decoded.max() <= 1 + 1e-6
