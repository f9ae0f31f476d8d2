"""Formats of image files: the endings that are read, and the files that are opened."""

import gzip
import os
import socket
import struct
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image, ImageFile, UnidentifiedImageError
from sklearn.exceptions import ConvergenceWarning

import skdeepcluster
from skdeepcluster import DeepClusterEstimator
from skdeepcluster._inputs.decoding import decode
from skdeepcluster._inputs.file_formats import list_endings, open_image
from skdeepcluster._inputs.folders import list_image_files
from skdeepcluster._inputs.headers import read_header
from skdeepcluster._inputs.image_format import ImageFormat, dtype_of
from skdeepcluster._inputs.read import read_input
from skdeepcluster._inputs.spec import InputSpec
from skdeepcluster.io import export_clusters

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 16, 16, 3), dtype=np.uint8)


def open_and_close(path):
    with open_image(path):
        pass


def as_it_is(path):
    """Return the format in which an image keeps its shape and its numbers."""
    header = read_header(path)
    return ImageFormat(header.shape, dtype_of(header.number_type))


@pytest.fixture
def registry():
    """Undo all that a test registers in Pillow."""
    Image.init()
    parts = (Image.OPEN, Image.EXTENSION, Image.MIME, Image.SAVE, Image.SAVE_ALL)
    saved, ids = [dict(part) for part in parts], list(Image.ID)
    yield
    for part, content in zip(parts, saved, strict=True):
        part.clear()
        part.update(content)
    Image.ID[:] = ids


@pytest.fixture
def pillow_heif(registry):
    return pytest.importorskip("pillow_heif")


@pytest.fixture
def ghostscript(tmp_path_factory, monkeypatch):
    """Put a program `gs` first on the path; return the file that it makes."""
    folder = tmp_path_factory.mktemp("bin")
    trace = folder / "started"
    program = folder / "gs"
    program.write_text(f"#!/bin/sh\ntouch '{trace}'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    # Pillow remembers whether there is a program.
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    return trace


def save_images(folder, ending="png", pixels=PIXELS):
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{i:02d}.{ending}" for i in range(len(pixels))]
    for path, image in zip(paths, pixels, strict=True):
        Image.fromarray(image).save(path)
    return paths


def make_eps(path):
    Image.fromarray(PIXELS[0]).save(path, "EPS")
    return path


def read_all(X, on_error="raise"):
    """Decode all images of X; return the rows that are read and the failures."""
    spec = InputSpec(on_error=on_error, n_jobs=1)
    data, failures = read_input(X, spec, for_training=True)
    return data.rows.tolist(), failures


@pytest.mark.parametrize("ending", ["png", "JPG", "jpeg", "tif", "tga", "avif"])
def test_postscript_starts_no_program_under_names_of_images(
    tmp_path, ghostscript, ending
):
    images = save_images(tmp_path)
    path = make_eps(tmp_path / f"0.{ending}")
    for X in ([path, *images], tmp_path):
        with pytest.raises(ValueError, match=r"row 0: .*EPS.*convert it to PNG"):
            read_all(X)
        rows, failures = read_all(X, on_error="skip")
        assert rows == list(range(1, 13))
        assert failures.rows.tolist() == [0]
    assert not ghostscript.exists()
    # Pillow itself starts the program.
    with Image.open(path) as image, pytest.raises(OSError, match="cannot identify"):
        image.load()
    assert ghostscript.exists()


@pytest.mark.parametrize("ending", ["eps", "ps", "EPS"])
def test_postscript_is_left_out_of_folders(tmp_path, ghostscript, ending):
    images = save_images(tmp_path)
    path = make_eps(tmp_path / f"0.{ending}")
    with pytest.warns(UserWarning, match=rf"1 of 13 files.*\.{ending.lower()} \(1\)"):
        assert list_image_files(tmp_path) == list(map(str, images))
    with pytest.raises(ValueError, match="EPS"):
        open_and_close(path)
    assert not ghostscript.exists()


@pytest.mark.parametrize("kind", ["another name", "subclass", "ending", "replacement"])
def test_plugins_do_not_bring_postscript_back(tmp_path, registry, ghostscript, kind):
    class Postscript(EpsImagePlugin.EpsImageFile):
        format = "FOO"

    def factory(file, filename):
        return EpsImagePlugin.EpsImageFile(file, filename)

    plugin = {
        "another name": EpsImagePlugin.EpsImageFile,
        "subclass": Postscript,
        "ending": factory,
        "replacement": factory,
    }[kind]
    name = "EPS" if kind == "replacement" else "FOO"
    Image.register_open(name, plugin, lambda prefix: prefix.startswith(b"%!PS"))
    Image.register_extensions(name, [".eps", ".foo"] if kind == "ending" else [".foo"])
    assert not {".eps", ".ps"} & {*list_endings()}
    for ending in ("png", "foo", "eps"):
        path = make_eps(tmp_path / f"0.{ending}")
        for function in (open_and_close, read_header):
            with pytest.raises(ValueError, match="EPS"):
                function(path)
    assert not ghostscript.exists()


@pytest.mark.parametrize(
    ("start", "image_format"),
    [
        (b"\x89HDF\r\n\x1a\n", "HDF5"),
        (b"\x00\x00\x01\xb3\x01\x00\x10", "MPEG"),
        (b"GRIB\x00\x00\x00\x01", "GRIB"),
        (b"BUFR" + bytes(4), "BUFR"),
    ],
)
def test_formats_that_pillow_cannot_decode_are_not_opened(
    tmp_path, start, image_format
):
    path = tmp_path / "x.png"
    path.write_bytes(start + bytes(100))
    with Image.open(path) as image:
        assert image.format == image_format
    with pytest.raises(UnidentifiedImageError):
        open_and_close(path)


@pytest.mark.parametrize(
    "ending",
    [
        *("jpg", "jpeg", "jpe", "jfif", "png", "apng", "webp", "gif", "tif", "tiff"),
        *("bmp", "dib", "pbm", "pgm", "ppm", "pnm", "jp2", "j2k", "jpx", "tga"),
        *("pcx", "sgi", "ico", "icns", "qoi", "dds", "avif"),
    ],
)
def test_endings_that_are_read(tmp_path, ending):
    image = Image.fromarray(PIXELS[0])
    try:
        image.save(tmp_path / f"a.{ending.upper()}")
    except (KeyError, ValueError, OSError):
        pytest.skip(f"this Pillow cannot write .{ending}")
    (path,) = list_image_files(tmp_path)
    # Pillow writes icons of 1024 pixels a side.
    side = 1024 if ending == "icns" else 16
    assert read_header(path).shape[1:] == (side, side)
    assert decode(path, ImageFormat((3, 8, 8), np.uint8)).std() > 0


@pytest.mark.parametrize("ending", ["pfm", "rgb", "vst", "psd", "fits", "xpm"])
def test_endings_that_are_left_out(ending):
    assert f".{ending}" in Image.registered_extensions()
    assert f".{ending}" not in list_endings()


@pytest.mark.parametrize("ending", ["xbm", "msp", "spider"])
def test_other_formats_are_read_from_a_list(tmp_path, ending):
    mode = "F" if ending == "spider" else "1"
    image = Image.fromarray(PIXELS[0, ..., 0]).convert(mode)
    path = tmp_path / f"x.{ending}"
    image.save(path, ending.upper())
    with open_image(path) as opened:
        assert opened.size == (16, 16)


def write_nested_icon(path):
    """Write an icon that says 16x16 and holds a PNG file of 32x32 pixels."""
    Image.fromarray(PIXELS[0]).resize((32, 32)).save(path, "ICO", sizes=[(32, 32)])
    content = bytearray(path.read_bytes())
    content[6:8] = 16, 16
    path.write_bytes(content)


LARGE_FORMATS = ["PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP", "PPM", "icon", "plug-in"]


@pytest.mark.parametrize("image_format", LARGE_FORMATS)
def test_images_above_the_limit_are_unreadable(
    tmp_path, registry, monkeypatch, image_format
):
    images, path = save_images(tmp_path / "images"), tmp_path / "images" / "x"
    if image_format == "icon":
        write_nested_icon(path)
    elif image_format == "plug-in":
        path.write_bytes(b"RAW8" + bytes(256))
        Image.register_open(RawImage.format, RawImage, lambda x: x.startswith(b"RAW8"))
    else:
        Image.fromarray(PIXELS[0]).resize((32, 32)).save(path, image_format)
    n_pixels = 256 if image_format == "plug-in" else 1024
    for image in images:
        Image.open(image).resize((8, 8)).save(image)
    model = DeepClusterEstimator(2, max_iter=1, epochs_per_iter=0.1, on_error="skip")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(images)
    # Pillow refuses twice the limit, and warns up to there.
    for limit in (n_pixels - 1, n_pixels // 2 + 1, n_pixels // 2 - 1):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        X = [*images, path]
        with pytest.raises(
            ValueError, match=rf"row 12: .*limit of {limit:,} .*MAX_IMAGE"
        ):
            read_all(X)
        assert read_all(X, on_error="skip")[0] == list(range(12))
        with pytest.warns(UserWarning, match="1 of 13 images cannot be read"):
            assert model.predict(X)[-1] == -1
        with pytest.raises(OSError, match="limit"):
            export_clusters([0], [path], tmp_path / "export", mode="copy")
    # Pillow warns that the icon has another size than it says.
    for limit in () if image_format == "icon" else (n_pixels, None):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        assert len(read_all(X)[0]) == 13


def test_compressed_fits_is_not_unpacked(tmp_path):
    header = ["SIMPLE  = T", "BITPIX  = 8", "NAXIS   = 0", "EXTEND  = T"]
    text = "".join(line.ljust(80) for line in [*header, "END"])
    content = text.ljust(2880).encode() + gzip.compress(bytes(10**6))
    for name in ("x.png", "x.fits"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=r"FITS is not read.*astropy"):
            open_and_close(tmp_path / name)


MEASURE = """
import sys
import warnings
from pathlib import Path
import numpy as np
from PIL import Image
from skdeepcluster._inputs.decoding import decode
from skdeepcluster._inputs.headers import read_header
from skdeepcluster._inputs.image_format import ImageFormat


def peak_memory():
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


side, folder = 1500, Path(sys.argv[1])
ramp = np.add.outer(np.arange(side), np.arange(side)) % 251
image = Image.fromarray(ramp.astype(np.uint8))
rgb = Image.merge("RGB", [image] * 3)
images = {
    "L": image,
    "RGB": rgb,
    "CMYK": rgb.convert("CMYK"),
    "LA": Image.merge("LA", [image] * 2),
    "RGBA": Image.merge("RGBA", [image] * 4),
    "palette": rgb.quantize(64),
    "I;16": Image.fromarray(ramp.astype(np.uint16)),
    "F": Image.fromarray(ramp.astype(np.float32)),
}
for name, image in images.items():
    options = {"transparency": bytes(range(64))} if name == "palette" else {}
    image.save(folder / name, "TIFF" if name in ("CMYK", "F") else "PNG", **options)
Image.MAX_IMAGE_PIXELS = side**2
for name in ["L", *images]:
    number = np.float32 if name in ("I;16", "F") else np.uint8
    image_format = ImageFormat((3, 32, 32), number)
    Path("/proc/self/clear_refs").write_text("5")
    before = peak_memory()
    read_header(folder / name)
    decode(folder / name, image_format)
    print(name, (peak_memory() - before) / side**2)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc of Linux")
def test_memory_is_bounded_by_the_largest_allowed_image(tmp_path):
    command = [sys.executable, "-c", MEASURE, tmp_path]
    root = str(Path(skdeepcluster.__file__).parents[1])
    completed = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": root}
    )
    assert completed.returncode == 0, completed.stderr
    lines = [line.split() for line in completed.stdout.splitlines()]
    assert len(lines) == 9
    for mode, bytes_per_pixel in lines:
        # Pillow takes four bytes for a pixel of color.
        assert float(bytes_per_pixel) < 20, (mode, completed.stdout)


def test_multi_picture_files_are_read_as_jpeg(tmp_path):
    images = [Image.fromarray(image) for image in PIXELS[:2]]
    images[0].save(tmp_path / "a.mpo", save_all=True, append_images=images[1:])
    (path,) = list_image_files(tmp_path)
    assert read_header(path).shape == (3, 16, 16)


def test_heif_files_are_read_once_the_plugin_is_registered(tmp_path, pillow_heif):
    for i, ending in enumerate(("heic", "HEIF", "hif", "heic")):
        image = pillow_heif.from_pillow(Image.new("L", (16, 16), 60 * i))
        image.save(tmp_path / "x.heic")
        (tmp_path / "x.heic").rename(tmp_path / f"{i}.{ending}")
    cure = r"pillow_heif\.register_heif_opener\(\)"
    with pytest.raises(ValueError, match=rf"no images.*\.heic \(2\).*{cure}"):
        list_image_files(tmp_path)
    with pytest.raises(ValueError, match=rf"row 0: .*HEIF.*{cure}"):
        read_all(sorted(tmp_path.iterdir()))
    pillow_heif.register_heif_opener()
    paths = list_image_files(tmp_path)
    assert [path[-6:] for path in paths] == ["0.heic", "1.HEIF", "/2.hif", "3.heic"]
    for i, path in enumerate(paths):
        values = decode(path, as_it_is(path)).astype(int)
        assert np.abs(values - 60 * i).max() <= 4
    (tmp_path / "4.heic").write_bytes((tmp_path / "0.heic").read_bytes()[:50])
    with pytest.raises(UnidentifiedImageError):
        open_and_close(tmp_path / "4.heic")


def test_heif_files_are_read_in_workers(tmp_path, pillow_heif):
    pillow_heif.register_heif_opener()
    for i in range(70):
        pillow_heif.from_pillow(Image.fromarray(PIXELS[i % 12])).save(
            tmp_path / f"{i:02d}.heic"
        )
    data, failures = read_input(tmp_path, InputSpec(n_jobs=2), for_training=True)
    assert len(data.rows) == 70
    assert not failures


class RawImage(ImageFile.ImageFile):
    """Image of a format that is not Pillow's: a signature and 16x16 bytes."""

    format = "RAWEXAMPLE"

    def _open(self):
        self._size, self._mode = (16, 16), "L"
        self.tile = [ImageFile._Tile("raw", (0, 0, 16, 16), 4, ("L", 0, 1))]


def test_formats_of_any_plugin_are_read(tmp_path, registry):
    values = PIXELS[0, ..., 0]
    (tmp_path / "a.Raw8").write_bytes(b"RAW8" + values.tobytes())
    with pytest.raises(ValueError, match=r"no images.*\.raw8 \(1\)"):
        list_image_files(tmp_path)
    Image.register_open(RawImage.format, RawImage, lambda x: x.startswith(b"RAW8"))
    Image.register_extension(RawImage.format, ".raw8")
    (path,) = list_image_files(tmp_path)
    assert (decode(path, as_it_is(path))[0] == values).all()


def test_plugins_are_registered_under_any_callable(tmp_path, registry):
    class Factory:
        def __call__(self, file, filename):
            return RawImage(file, filename)

    (tmp_path / "a.raw8").write_bytes(b"RAW8" + bytes(256))
    Image.register_open(RawImage.format, Factory(), lambda x: x.startswith(b"RAW8"))
    Image.register_extension(RawImage.format, ".raw8")
    assert len(list_image_files(tmp_path)) == 1
    with open_image(tmp_path / "a.raw8") as image:
        assert image.size == (16, 16)


@pytest.mark.parametrize("ending", [".lsm", ".LSM"])
def test_endings_that_the_user_registers_are_read(tmp_path, registry, ending):
    Image.fromarray(PIXELS[0]).save(tmp_path / "a.lsm", "TIFF")
    Image.register_extension("TIFF", ending)
    (path,) = list_image_files(tmp_path)
    assert read_header(path).shape == (3, 16, 16)


@pytest.mark.filterwarnings("ignore:.* links that lead out of it")
@pytest.mark.parametrize("kind", ["pipe", "socket", "device", "link to a pipe"])
def test_what_is_no_regular_file_is_not_opened(tmp_path, kind, monkeypatch):
    images = save_images(tmp_path / "images")
    path = tmp_path / "images" / "x.png"
    monkeypatch.chdir(path.parent)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        # A path of a socket has at most 108 bytes.
        server = socket.socket(socket.AF_UNIX)
        server.bind("x.png")
        server.close()
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        os.mkfifo(tmp_path / "pipe")
        path.symlink_to(tmp_path / "pipe")
    for X in ([*images, path], path.parent):
        with pytest.raises(ValueError, match=r"row 12: .*not a regular file"):
            read_all(X)
        assert read_all(X, on_error="skip")[0] == list(range(12))


def test_a_folder_in_a_list_of_paths_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"row 0: .*it is a folder"):
        read_all([tmp_path])


@pytest.mark.parametrize("size", [2**40, 2**62])
def test_sizes_in_headers_do_not_decide_the_memory(tmp_path, size):
    """A box of JPEG 2000 may say that it holds any number of bytes."""
    box = struct.pack(">I4sQ", 1, b"jp2h", size + 16)
    start = b"\0\0\0\x0cjP  \r\n\x87\n"
    (tmp_path / "a.jp2").write_bytes(start + box + bytes(100))
    with pytest.raises((OSError, ValueError)), open_image(tmp_path / "a.jp2"):
        pass
