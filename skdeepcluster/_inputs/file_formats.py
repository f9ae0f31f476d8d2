"""Formats of image files, with the endings that a folder is searched for.

Pillow opens a file by its content, whatever its name. A file of PostScript (EPS) with
the ending .jpg would start Ghostscript, which runs the code in the file. All files are
thus opened by `open_image`, which names the formats that may be tried, and compares the
size in the header with Pillow's limit.
"""

import contextlib
import errno
import io
import os
import stat
import struct
import warnings
from collections.abc import Iterator
from typing import BinaryIO

from PIL import EpsImagePlugin, Image, ImageFile, UnidentifiedImageError

# Raster formats that Pillow decodes by itself, with the endings that are read in a
# folder. They are tried in this order.
FORMATS: dict[str, tuple[str, ...]] = {
    # Cameras with two lenses write .mpo: JPEG files of several images.
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "TIFF": (".tif", ".tiff"),
    "BMP": (".bmp",),
    "DIB": (".dib",),
    "PPM": (".pbm", ".pgm", ".ppm", ".pnm"),
    "JPEG2000": (".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"),
    "AVIF": (".avif", ".avifs"),
    "QOI": (".qoi",),
    # Textures of games.
    "DDS": (".dds",),
    "PCX": (".pcx",),
    "SGI": (".sgi",),
    # An icon holds one image in several sizes. Pillow reads the largest one.
    "ICO": (".ico",),
    "ICNS": (".icns",),
    "TGA": (".tga",),
}

# Endings that Pillow registers for the formats above, which are left out in a folder.
LEFT_OUT_ENDINGS = (
    # Depth maps of floating-point numbers, which lie beside the images of data sets.
    ".pfm",
    # Mostly raw pixels without a header, and templates of Visio (.vst).
    ".rgb",
    ".rgba",
    ".bw",
    ".icb",
    ".vda",
    ".vst",
)

# Raster formats that Pillow decodes by itself, but that hold documents of an editor
# (PSD), numbers of instruments (SPIDER, MCIDAS), source code (XBM, XPM), films or
# pages (FLI, DCX), or are hardly in use. Their files are read if X is a list of paths.
# Formats without a signature come last: their plug-ins look at any file.
LISTED_FORMATS = (
    "PSD",
    "XBM",
    "XPM",
    "SUN",
    "CUR",
    "DCX",
    "MSP",
    "PIXAR",
    "GBR",
    "BLP",
    "FTEX",
    "FLI",
    "MCIDAS",
    "XVTHUMB",
    "IM",
    "PCD",
    "SPIDER",
)

# No other format of Pillow is opened. EPS starts Ghostscript. IPTC opens a file inside
# the file, of any format. WMF and EMF are drawings. BUFR, GRIB, HDF5, MPEG and PDF are
# known to Pillow, but not decoded. FPX and MIC need another package, and IMT has no
# signature. FITS may be compressed, and some versions of Pillow unpack more than the
# header says.
POSTSCRIPT_FORMATS = ("EPS", "PS")
POSTSCRIPT_ENDINGS = (".eps", ".epsf", ".epsi", ".epi", ".ps", ".ai")
POSTSCRIPT_SIGNATURES = (b"%!PS", b"\x04%!PS", b"\xc5\xd0\xd3\xc6")

TIFF_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

FITS_SIGNATURE = b"SIMPLE  ="

# Formats whose files hold a file of another format, of which Pillow compares the size
# with its limit by itself.
NESTED_FORMATS = ("ICO", "ICNS", "BLP")

# Errors by which a plug-in says that a file has another format.
OTHER_FORMAT_ERRORS = (SyntaxError, IndexError, TypeError, struct.error)

# Formats that need no look at their plug-in.
KNOWN_FORMATS = frozenset((*FORMATS, *LISTED_FORMATS, *POSTSCRIPT_FORMATS))

# Formats of plug-ins that are in wide use: endings, test of the first bytes, and the
# code that registers the plug-in.
HEIF_ENDINGS = (".heic", ".heif", ".hif", ".heics", ".heifs")
HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
HEIF_CURE = "pillow_heif.register_heif_opener()"
JXL_ENDINGS = (".jxl",)
JXL_SIGNATURES = (b"\xff\x0a", b"\x00\x00\x00\x0cJXL ")
JXL_CURE = "import pillow_jxl"


def list_endings() -> tuple[str, ...]:
    """Return the endings, in lower case, of the files that are read in a folder.

    They are the endings of `FORMATS`, and the ones that the user or a plug-in has
    registered in Pillow, such as .heic after ``pillow_heif.register_heif_opener()``.
    """
    Image.init()
    endings = {
        ending
        for image_format, endings in FORMATS.items()
        if image_format in Image.OPEN
        for ending in endings
    }
    formats = {*FORMATS, *_list_plugin_formats()}
    endings |= {
        ending
        for ending, image_format in Image.EXTENSION.items()
        # An empty ending, or one without a dot, would take any name.
        if image_format.upper() in formats and len(ending) > 1 and ending[0] == "."
    }
    return tuple(sorted(endings - {*LEFT_OUT_ENDINGS, *POSTSCRIPT_ENDINGS}))


def find_plugin(ending: str) -> str | None:
    """Return the code that registers a plug-in for an ending, or None if unknown."""
    if ending in HEIF_ENDINGS:
        return HEIF_CURE
    return JXL_CURE if ending in JXL_ENDINGS else None


@contextlib.contextmanager
def open_image(path: str | os.PathLike) -> Iterator[ImageFile.ImageFile]:
    """Open an image file, without decoding it.

    Parameters
    ----------
    path : str or path-like

    Raises
    ------
    OSError
        If the file cannot be opened, is not an image, or is no file: a named pipe would
        be waited for forever.
    ValueError
        If the format is known, but not read, or if the image has more pixels than
        `PIL.Image.MAX_IMAGE_PIXELS`. Decoding inside the block may raise it, too.
    """
    mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    if not stat.S_ISREG(mode):
        raise ValueError("it is a device, a pipe or a socket, not a regular file")
    try:
        with _CappedReader(path) as file:
            image = _identify(file, path)
            _check_size(image.size)
            with _limit_nested(image.format):
                yield image
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(_describe_limit("it holds an image of")) from error


class _CappedReader(io.BufferedReader):
    """File that allocates no more memory for a read than its own size.

    A damaged header may ask for any number of bytes. Python would allocate them before
    it reads, and a lack of memory ends a fit.
    """

    def __init__(self, path: str | os.PathLike):
        super().__init__(io.FileIO(path))
        self.size = os.fstat(self.fileno()).st_size

    def read(self, size: int | None = -1, /) -> bytes:
        """Return at most `size` bytes, or all if it is negative or None."""
        return super().read(-1 if size is None else min(size, self.size))


def _identify(file: BinaryIO, path: str | os.PathLike) -> ImageFile.ImageFile:
    """Return the image in a file, by the first plug-in that takes the file.

    `Image.open` would do the same, and warn of images with more pixels than the limit.
    """
    start = file.read(16)
    missing = None
    for image_format in _list_formats():
        factory, accepts = Image.OPEN[image_format]
        try:
            is_accepted = accepts is None or accepts(start)
            if isinstance(is_accepted, str):
                # Pillow was built without the library of this format.
                missing = is_accepted
            elif is_accepted:
                file.seek(0)
                with _limit_nested(image_format):
                    return factory(file, os.fspath(path))
        except OTHER_FORMAT_ERRORS:
            continue
    cause = missing or _describe_format(start)
    if cause is None:
        raise UnidentifiedImageError("the file is not an image")
    raise ValueError(cause)


def _check_size(size: tuple[int, int]) -> None:
    """Raise ValueError if an image has more pixels than Pillow's limit."""
    limit, n_pixels = Image.MAX_IMAGE_PIXELS, size[0] * size[1]
    if limit is not None and n_pixels > limit:
        raise ValueError(_describe_limit(f"its {size[0]}x{size[1]} pixels are"))


def _describe_limit(start: str) -> str:
    return (
        f"{start} more than the limit of {Image.MAX_IMAGE_PIXELS:,} pixels, which "
        "protects the memory. If you trust the file, set PIL.Image.MAX_IMAGE_PIXELS to "
        "a larger number, or to None for no limit"
    )


@contextlib.contextmanager
def _limit_nested(image_format: str | None) -> Iterator[None]:
    """Make an error of Pillow's warning of a large file inside a small one."""
    if image_format not in NESTED_FORMATS:
        yield
        return
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def _list_formats() -> list[str]:
    """Return the formats that Pillow may try, in the order of the trials.

    Plug-ins may be registered at any time, so that the list is made for each image.
    """
    Image.init()
    # Pillow raises KeyError for a format that this version of Pillow does not have.
    return [
        image_format
        for image_format in (*FORMATS, *_list_plugin_formats(), *LISTED_FORMATS)
        if image_format in Image.OPEN
    ]


def _list_plugin_formats() -> list[str]:
    """Return the formats of plug-ins that are not part of Pillow."""
    return [
        image_format
        for image_format in Image.OPEN
        if image_format not in KNOWN_FORMATS and _is_safe_plugin(image_format)
    ]


def _is_safe_plugin(image_format: str) -> bool:
    """Return whether the plug-in of a format is not Pillow's, and not of PostScript."""
    factory, _ = Image.OPEN[image_format]
    if getattr(factory, "__module__", "").startswith("PIL."):
        return False
    if isinstance(factory, type) and issubclass(factory, EpsImagePlugin.EpsImageFile):
        return False
    endings_of = (Image.EXTENSION.get(ending) for ending in POSTSCRIPT_ENDINGS)
    return image_format not in endings_of


def _describe_format(start: bytes) -> str | None:
    """Return why a file with these first bytes is not read, or None if unknown."""
    if start.startswith(TIFF_SIGNATURES):
        return (
            "Pillow cannot read this kind of TIFF file: read it by another package, "
            "such as tifffile, and pass the arrays"
        )
    if start.startswith(FITS_SIGNATURE):
        return (
            "FITS is not read: read it by another package, such as astropy, and pass "
            "the arrays"
        )
    if start.startswith(POSTSCRIPT_SIGNATURES):
        return (
            "PostScript (EPS) is not read, since Ghostscript would run the code in it: "
            "convert it to PNG"
        )
    # A file that a registered plug-in refuses is broken.
    is_heif = start[4:8] == b"ftyp" and start[8:12] in HEIF_BRANDS
    if is_heif and "HEIF" not in Image.OPEN:
        return f"a HEIF image is read after {HEIF_CURE}"
    if start.startswith(JXL_SIGNATURES) and "JXL" not in Image.OPEN:
        return f"a JPEG XL image is read after {JXL_CURE}"
    return None
