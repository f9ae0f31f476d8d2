"""Headers of images: shape, type of numbers, transparency and frames."""

import io
import os
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import ExifTags, Image
from PIL.TiffTags import TAGS_V2

from .arrays import as_channels_first, number_type
from .file_formats import open_image
from .image_format import dtype_of
from .transparency import ALPHA_MODES

# PIL modes of gray images.
GRAY_MODES = ("1", "L", "I", "I;16", "I;16L", "I;16B", "F", "LA", "La")

# EXIF orientations that swap height and width.
SWAPPED_ORIENTATIONS = (5, 6, 7, 8)

# Layouts of RGB files of 16 bits per band, of which PIL reads the upper 8 bits. The
# fourth band of RGBX has no meaning.
DEEP_LAYOUTS = ("RGB;16", "RGBX;16")

# Tags of a TIFF file, by their name.
TIFF_TAGS = {tag.name: number for number, tag in TAGS_V2.items()}

# Values of the tag ExtraSamples that stand for transparency.
TIFF_ALPHA = (1, 2)

# Value of the tag PlanarConfiguration for one plane after another.
SEPARATE_PLANES = 2

# Value of the tag SampleFormat for integers without a sign, also if the tag is missing.
UNSIGNED = 1


@dataclass(frozen=True, slots=True)
class ImageHeader:
    """Properties of an image that are known before it is decoded.

    Parameters
    ----------
    shape : tuple (C, H, W)
        As it is after the EXIF rotation.
    number_type : str
        Name in `NUMBER_TYPES`.
    has_alpha : bool, default=False
        Whether the last of its four bands, or two if it is gray, may be transparency.
    is_animated : bool, default=False
        Whether it has several pages or frames.
    is_array : bool, default=False
        Whether it is an array or a tensor.
    """

    shape: tuple[int, int, int]
    number_type: str
    has_alpha: bool = False
    is_animated: bool = False
    is_array: bool = False

    @property
    def dtype(self) -> type:
        """Type of the decoded image, np.uint8 or np.float32."""
        return dtype_of(self.number_type)


def read_header(image) -> ImageHeader:
    """Return the header of an image. A file is not decoded.

    Parameters
    ----------
    image : path, PIL image, array or tensor, or a pair of one of these and a label

    Raises
    ------
    TypeError
        If `image` has another type.
    Exception
        If the image is broken, see `decoding.describe_failure`.
    """
    image = drop_label(image)
    if isinstance(image, str | os.PathLike):
        with open_image(image) as pil_image:
            return _read_pil_header(pil_image)
    if isinstance(image, Image.Image):
        return _read_pil_header(image)
    values = as_channels_first(image)
    return ImageHeader(values.shape, number_type(image.dtype), is_array=True)


def drop_label(image):
    """Return the image of an (image, label) pair."""
    return image[0] if isinstance(image, tuple | list) and len(image) else image


def pil_number_type(image: Image.Image) -> str:
    """Return the name in `NUMBER_TYPES` of the numbers in a PIL image."""
    if image.mode == "F":
        return "floats"
    is_deep = image.mode.startswith("I") or deep_layout(image) is not None
    return "integers" if is_deep else "bytes"


def has_alpha_band(image: Image.Image) -> bool:
    """Return whether the last band of a PIL image may be transparency.

    In a TIFF file a tag says so. PIL takes a fourth band for transparency, too, if the
    tag is missing.
    """
    if image.mode not in ALPHA_MODES:
        return False
    tags = getattr(image, "tag_v2", None)
    if image.format != "TIFF" or tags is None or image.mode == "PA":
        return True
    extra_samples = tags.get(TIFF_TAGS["ExtraSamples"], ())
    return any(sample in TIFF_ALPHA for sample in np.atleast_1d(extra_samples))


def deep_layout(image: Image.Image) -> str | None:
    """Return the layout of a color file of 16 bits per band that is not decoded yet.

    None is any other image, also color files of 16 bits with transparency, of which PIL
    reads the upper 8 bits.

    Raises
    ------
    ValueError
        If the bands of a TIFF file of 16 bits lie one after another, which PIL would
        read as 8 bits.
    """
    tiles: Any = getattr(image, "tile", None)
    if not tiles:
        return None
    layout = tiles[0].args
    layout = layout[0] if isinstance(layout, tuple) and layout else layout
    tags = getattr(image, "tag_v2", {})
    if tags.get(TIFF_TAGS["PlanarConfiguration"]) == SEPARATE_PLANES:
        bits = np.atleast_1d(tags.get(TIFF_TAGS["BitsPerSample"], 8))
        if len(bits) > 1 and bits.max() > 8:
            raise ValueError(
                f"its bands of {bits.max()} bits are stored one after another, which "
                "Pillow cannot read: convert it to 8 bits, or interleave the bands"
            )
    is_deep = isinstance(layout, str) and layout[:-1] in DEEP_LAYOUTS
    return layout if is_deep else None


def read_deep_color(image: Any, layout: str) -> np.ndarray:
    """Return an RGB file of 16 bits per band as an array (H, W, 3), uint16.

    PIL reads one byte of each number: the upper byte in the file's own order of bytes.
    In the opposite order it reads the lower byte, so that two passes give both.
    """
    order = layout[-1]
    if order == "N":
        order = "L" if sys.byteorder == "little" else "B"
    swapped = layout[:-1] + ("B" if order == "L" else "L")
    # The image itself stays unloaded, since PIL forgets the layout when it loads it.
    position = image.fp.tell()
    image.fp.seek(0)
    content = image.fp.read()
    image.fp.seek(position)
    upper = _open_again(content, image.format, layout)
    lower = _open_again(content, image.format, swapped)
    upper_bytes = np.asarray(upper.convert("RGB"), dtype=np.uint16)
    return upper_bytes * 256 + np.asarray(lower.convert("RGB"), dtype=np.uint16)


def is_unsigned32(image: Image.Image) -> bool:
    """Return whether PIL shows integers of 32 bits without a sign as negative numbers.

    PIL has integers with a sign only.
    """
    tags = getattr(image, "tag_v2", None)
    if image.format != "TIFF" or tags is None or image.mode != "I":
        return False
    bits = np.atleast_1d(tags.get(TIFF_TAGS["BitsPerSample"], 1))
    sample_format = np.atleast_1d(tags.get(TIFF_TAGS["SampleFormat"], UNSIGNED))
    return bool(bits.max() == 32 and sample_format[0] == UNSIGNED)


def find_orientation(image: Image.Image) -> int | None:
    """Return the EXIF orientation in the header of an image.

    PIL would decode a PNG file to search for it behind the pixels, too.
    """
    if image.format == "PNG" and "exif" not in image.info:
        return None
    return image.getexif().get(ExifTags.Base.Orientation)


def _open_again(content: bytes, image_format: str, layout: str) -> Any:
    """Return an image from the content of its file, to be read in a layout."""
    image: Any = Image.open(io.BytesIO(content), formats=[image_format])
    tiles = []
    for tile in image.tile:
        is_name = isinstance(tile.args, str)
        args = layout if is_name else (layout, *tile.args[1:])
        tiles.append(tile._replace(args=args))
    image.tile = tiles
    return image


def _read_pil_header(image: Image.Image) -> ImageHeader:
    width, height = image.size
    if find_orientation(image) in SWAPPED_ORIENTATIONS:
        width, height = height, width
    return ImageHeader(
        shape=(1 if image.mode in GRAY_MODES else 3, height, width),
        number_type=pil_number_type(image),
        has_alpha=has_alpha_band(image),
        is_animated=_is_animated(image),
    )


def _is_animated(image: Image.Image) -> bool:
    """Return whether an image has several pages or frames.

    A second picture in a photograph of a phone is a preview or a depth map.
    """
    if image.format == "MPO":
        return False
    try:
        return bool(getattr(image, "is_animated", False))
    # A broken second frame is no reason to refuse the first one.
    except Exception:
        return False
