"""Images of more than 8 bits: read once for the set, from files as from arrays."""

import contextlib
import struct
import zlib

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image

from skdeepcluster import DeepClusterEstimator
from skdeepcluster._inputs.decoding import decode
from skdeepcluster._inputs.headers import read_header
from skdeepcluster._inputs.image_format import ImageFormat

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

N = 24
RNG = np.random.default_rng(0)
# Half of the images have a bright left side.
SHADES = RNG.random((N, 12, 12)) * 0.5
SHADES[::2, :, :6] += 0.5
BYTES = (SHADES * 255).astype(np.uint8)
COLORS = np.stack([SHADES, SHADES[:, ::-1], 1 - SHADES], axis=-1)


def quick(**params):
    options = {"max_iter": 1, "epochs_per_iter": 1, "random_state": 0, **params}
    return DeepClusterEstimator(2, **options)


def save_png16(values, path, orientation=None):
    """Write a color PNG file of 16 bits per channel, which PIL cannot write."""
    height, width, _ = values.shape

    def chunk(name, content):
        checksum = struct.pack(">I", zlib.crc32(name + content))
        return struct.pack(">I", len(content)) + name + content + checksum

    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    exif = Image.Exif()
    exif[0x0112] = orientation or 1
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + (chunk(b"eXIf", exif.tobytes()[6:]) if orientation else b"")
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def save_tiff16(values, path, order="<", orientation=1):
    """Write an uncompressed color TIFF file of 16 bits per channel."""
    height, width, _ = values.shape
    pixels = values.astype(f"{order}u2").tobytes()
    entries = [
        (256, 4, 1, width),
        (257, 4, 1, height),
        (258, 3, 3, 146),
        (259, 3, 1, 1),
        (262, 3, 1, 2),
        (273, 4, 1, 152),
        (274, 3, 1, orientation),
        (277, 3, 1, 3),
        (278, 4, 1, height),
        (279, 4, 1, len(pixels)),
        (284, 3, 1, 1),
    ]

    def pack(tag, kind, count, value):
        # A single short fills the first half of its field.
        code = "HHIHH" if kind == 3 and count == 1 else "HHII"
        numbers = (tag, kind, count, value, 0) if code == "HHIHH" else None
        return struct.pack(order + code, *(numbers or (tag, kind, count, value)))

    ifd = struct.pack(order + "H", len(entries))
    ifd += b"".join(pack(*entry) for entry in entries) + struct.pack(order + "I", 0)
    header = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, 8)
    bits = struct.pack(order + "HHH", 16, 16, 16)
    content = header + ifd
    path.write_bytes(content.ljust(146, b"\0") + bits + pixels)


def save_pil(values, path):
    Image.fromarray(values).save(path)


# Images of each kind, the ending of their files, and the function that writes one.
KINDS = {
    "10 bits in PNG": ((SHADES * 1023).astype(np.uint16), ".png", save_pil),
    "12 bits in TIFF": ((SHADES * 4095).astype(np.uint16), ".tif", save_pil),
    "14 bits, big-endian": ((SHADES * 16383).astype(">u2"), ".tif", save_pil),
    "16 bits": ((SHADES * 65535).astype(np.uint16), ".png", save_pil),
    "hounsfield": ((SHADES * 4095 - 1024).astype(np.int32), ".tif", save_pil),
    "floats": ((SHADES * 3 - 1).astype(np.float32), ".tif", save_pil),
    "12 bits, color PNG": ((COLORS * 4095).astype(np.uint16), ".png", save_png16),
    "8 bits, color TIFF": ((COLORS * 255).astype(np.uint16), ".tif", save_tiff16),
    "14 bits, big-endian color": (
        (COLORS * 16383).astype(np.uint16),
        ".tif",
        lambda values, path: save_tiff16(values, path, ">"),
    ),
}


@pytest.fixture
def write(tmp_path):
    """Function that writes images as files, and returns their sorted paths."""

    def write_files(images, ending, save, name="images"):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        paths = [folder / f"{i:02}{ending}" for i in range(len(images))]
        for values, path in zip(images, paths, strict=True):
            save(values, path)
        return paths

    return write_files


@pytest.mark.parametrize("kind", KINDS)
def test_files_are_read_as_arrays(write, kind, tmp_path):
    images, ending, save = KINDS[kind]
    paths = write(images, ending, save)
    model = quick().fit(paths[0].parent)
    native = images.astype(images.dtype.newbyteorder("="))
    from_array = quick().fit(native)
    assert_array_equal(model.labels_, from_array.labels_)
    embedding = model.transform(paths)
    assert_array_equal(embedding, from_array.transform(native))
    # The bright side of half of the images is seen.
    distances = np.linalg.norm(embedding[::2].mean(0) - embedding[1::2].mean(0))
    assert distances > 0.1 * embedding.std(axis=0).sum() / 8
    # The range of the fit is kept for any new image, also in a file of the model.
    assert_array_equal(model.predict(paths[3:4]), model.labels_[3:4])
    model.save(tmp_path / "model")
    loaded = DeepClusterEstimator.load(tmp_path / "model")
    assert_array_equal(loaded.transform(paths[5:7]), embedding[5:7])
    assert_array_equal(loaded.transform([native[5]]), embedding[5:6])


@pytest.mark.parametrize("save", [save_png16, save_tiff16])
@pytest.mark.parametrize(("orientation", "n_turns"), [(3, 2), (6, 3), (8, 1)])
def test_rotations_of_many_bits(tmp_path, save, orientation, n_turns):
    image = (COLORS[0, :, :8] * 4095).astype(np.uint16)
    path = tmp_path / "image"
    save(image, path, orientation=orientation)
    expected = np.rot90(image, n_turns).transpose(2, 0, 1)
    header = read_header(path)
    assert header.shape == expected.shape
    image_format = ImageFormat(header.shape, np.float32)
    assert_array_equal(decode(path, image_format), expected)


@pytest.mark.parametrize("size", [(140, 200), (90, 130)])
def test_large_images_of_many_bits_are_resized_as_numbers(write, size):
    images = (RNG.random((8, *size)) * 4095).astype(np.uint16)
    images[::2, : size[0] // 2] //= 4
    paths = write(images, ".tif", save_pil)
    model = quick(image_size=16).fit(paths)
    assert model.image_shape_ == (1, 16, 16)
    from_array = quick(image_size=16).fit(images)
    assert_array_equal(from_array.transform(images), model.transform(paths))


@pytest.mark.parametrize("white", [1023, 4095, 65535])
def test_mixed_depths_share_black_and_white(write, white):
    dark, bright = SHADES.copy(), SHADES.copy()
    bright[0, 0, 0] = 1
    paths = write((dark * 255).round().astype(np.uint8), ".png", save_pil)
    deep = (bright * white).round().astype(np.uint16)
    paths += write(deep, ".png", save_pil, name="deep")
    with pytest.warns(UserWarning, match=f"more than 8 bits.*white at {white}"):
        model = quick(n_neighbors=None).fit(paths)
    assert model.image_shape_ == (1, 12, 12)
    embedding = model.transform(paths)
    # Rounding to bytes moves a pixel by one step at most.
    assert_allclose(embedding[1:N], embedding[N + 1 :], atol=0.2)


def test_numbers_beyond_white_are_refused(write):
    # The brightest image is not among the images from which white is found.
    flat = write(BYTES, ".png", save_pil)
    images = (np.concatenate([SHADES] * 4) * 4095).astype(np.uint16)
    images[1] *= 3
    paths = [*flat, *write(images, ".png", save_pil, name="deep")]
    with (
        pytest.warns(UserWarning, match="white at 4095"),
        pytest.raises(ValueError, match=r"row 25: .*white, 4095.*8 bits"),
    ):
        quick().fit(paths)
    negative = write(KINDS["hounsfield"][0], ".tif", save_pil, name="negative")
    with (
        pytest.warns(UserWarning, match="more than 8 bits"),
        pytest.raises(ValueError, match=r"between -\d+ and .*black"),
    ):
        quick().fit([*flat, *negative])


def save_unsigned32(values, path):
    """Write a TIFF file of 32 bits without a sign, which PIL reads with a sign."""
    Image.fromarray(values.astype(np.uint32).view(np.int32)).save(path)
    content = bytearray(path.read_bytes())
    offset = int.from_bytes(content[4:8], "little")
    for entry in range(int.from_bytes(content[offset : offset + 2], "little")):
        start = offset + 2 + 12 * entry
        if int.from_bytes(content[start : start + 2], "little") == 339:
            content[start + 8 : start + 10] = (1).to_bytes(2, "little")
    path.write_bytes(content)


def test_large_numbers_without_a_sign(write):
    images = (SHADES * (2**32 - 1)).astype(np.uint32)
    paths = write(images, ".tif", save_unsigned32)
    model = quick().fit(paths)
    assert_array_equal(model.labels_, quick().fit(images).labels_)
    assert_array_equal(model.predict(images), model.labels_)


@pytest.mark.parametrize("kind", ["12 bits, color PNG", "8 bits, color TIFF"])
def test_opened_images_can_be_read_again(write, kind):
    images, ending, save = KINDS[kind]
    with contextlib.ExitStack() as stack:
        paths = write(images, ending, save)
        opened = [stack.enter_context(Image.open(path)) for path in paths]
        model = quick().fit(opened)
        assert_array_equal(model.labels_, quick().fit(images).labels_)
        assert_array_equal(model.predict(opened), model.labels_)


@pytest.mark.parametrize(("fit", "new"), [(255, 4095), (4095, 255), (255, 65535)])
def test_arrays_of_other_bits_warn(fit, new):
    types = {255: np.uint8, 4095: np.uint16, 65535: np.uint16}
    model = quick().fit((SHADES * fit).astype(types[fit]))
    with pytest.warns(UserWarning, match="Scale X as in fit"):
        model.predict((SHADES * new).astype(types[new]))


@pytest.mark.parametrize("kind", ["12 bits in TIFF", "hounsfield", "floats"])
def test_other_bits_than_in_fit_are_refused(write, kind):
    images, ending, save = KINDS[kind]
    deep = write(images, ending, save)
    flat = write(BYTES, ".png", save_pil, name="bytes")
    for fit, new in [(deep, flat), (flat, deep)]:
        model = quick(on_error="raise").fit(fit)
        with pytest.raises(ValueError, match=r"row 0.*convert it"):
            model.predict(new[:3])
    skipping = quick(on_error="skip").fit(deep)
    with pytest.warns(UserWarning, match=r"1 of 3 images cannot be read"):
        labels = skipping.predict([*deep[:2], flat[0]])
    assert_array_equal(labels, [*skipping.labels_[:2], -1])


UNLIKE = {
    "bytes and fractions": lambda x, i: x if i % 2 else (x / 255).astype(np.float32),
    "bytes and 16 bits": lambda x, i: x if i % 3 else x.astype(np.uint16) * 257,
    "masks and bytes": lambda x, i: x > 127 if i == 7 else x,
    "integers and fractions": lambda x, i: x.astype(int) if i else x / 255,
    "tensors": lambda x, i: torch.tensor(x if i != 5 else x / 255),
}


class Images(torch.utils.data.Dataset):
    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, row):
        return self.images[row]


@pytest.mark.parametrize(
    "form", [list, Images, lambda images: [*images, SHADES[0, :5]]]
)
@pytest.mark.parametrize("kind", UNLIKE)
def test_arrays_of_different_units_are_refused(kind, form):
    mixed = form([UNLIKE[kind](image, i) for i, image in enumerate(BYTES)])
    with pytest.raises(ValueError, match=r"row \d+.*[Cc]onvert"):
        quick().fit(mixed)


@pytest.mark.parametrize("n_fractions", [1, 12, 23])
def test_fractions_among_whole_numbers_warn(n_fractions):
    images = (SHADES * 255).round()
    images[:n_fractions] /= 255
    with pytest.warns(UserWarning, match=r"X mixes units: row 0 .*row \d+"):
        quick().fit(images)


@pytest.mark.parametrize("images", [SHADES, (SHADES * 255).round(), SHADES - 0.5])
def test_images_of_one_unit_do_not_warn(images):
    images = images.copy()
    images[3] = 0
    quick().fit(images)


class Frozen(torch.nn.Module):
    """Means of blocks of the pixels that it gets, with given weights."""

    def __init__(self):
        super().__init__()
        self.pool = torch.nn.AvgPool2d(6)

    def forward(self, x):
        return self.pool(x).flatten(1)


def frozen(**options):
    return DeepClusterEstimator(2, fine_tune=False, random_state=0, **options)


@pytest.mark.parametrize("white", [255, 1023, 4095, 16383])
def test_given_weights_see_the_same_shades(write, white):
    shades = COLORS.copy()
    shades[0, 0, 0] = 1
    shades[1, 0, 0] = 0
    flat = write((shades * 255).round().astype(np.uint8), ".png", save_pil, "bytes")
    deep = write((shades * white).round().astype(np.uint16), ".png", save_png16, "deep")
    options = {"preprocess": "imagenet", "backbone": Frozen()}
    expected = frozen(**options).fit(flat).transform(flat)
    embedding = frozen(**options).fit(deep).transform(deep)
    # White is the value that 99.9 % of the pixels do not exceed.
    assert_allclose(embedding, expected, atol=0.05)


def test_given_weights_and_a_broken_pixel(write):
    images = (COLORS * 600).astype(np.uint16)
    images[4, 2, 2] = 65535
    deep = write(images, ".png", save_png16)
    options = {"preprocess": "imagenet", "backbone": Frozen()}
    embedding = frozen(**options).fit(deep).transform(deep)
    # One pixel neither makes all images dark nor one image bright.
    assert embedding.std() > 0.2
    assert_allclose(embedding[4], embedding[6], atol=1)


def test_negative_numbers_and_given_weights(write):
    images = KINDS["hounsfield"][0]
    deep = write(images, ".tif", save_pil)
    options = {"preprocess": "imagenet", "backbone": Frozen()}
    model = frozen(**options).fit(deep)
    embedding = model.transform(deep)
    shifted = frozen(**options).fit((images + 1024).astype(np.uint16))
    expected = shifted.transform((images + 1024).astype(np.uint16))
    assert_allclose(embedding, expected, atol=0.05)
