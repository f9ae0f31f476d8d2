"""Numbers of more than 8 bits in PIL images, which PIL itself would cut to 8 bits."""

import io
import sys
from typing import Any

import numpy as np
from PIL import Image, TiffImagePlugin

from .arrays import MAX_ABS_VALUE
from .orientation import find_orientation, rotate

# Layouts of RGB files of 16 bits per band, of which PIL reads the upper 8 bits. The
# fourth band of RGBX has no meaning.
DEEP_LAYOUTS = ("RGB;16", "RGBX;16")

# Value of the tag PlanarConfiguration for one plane after another.
SEPARATE_PLANES = 2

# Value of the tag SampleFormat for integers without a sign, also if the tag is missing.
UNSIGNED = 1


def pil_number_type(image: Image.Image) -> str:
    """Return the name in `NUMBER_TYPES` of the numbers in a PIL image."""
    if image.mode == "F":
        return "floats"
    is_deep = image.mode.startswith("I") or _find_layout(image) is not None
    return "integers" if is_deep else "bytes"


def read_numbers(image: Image.Image) -> np.ndarray:
    """Return the numbers of a PIL image of more than 8 bits, float32 (C, H, W)."""
    layout = _find_layout(image)
    if layout is not None:
        values, image = _read_deep_color(image, layout)
    else:
        # The tags of a TIFF file are asked for before PIL rotates the image.
        is_unsigned = _is_unsigned(image)
        values = np.asarray(image)[None]
        values = values.view(np.uint32) if is_unsigned else values
    # PIL rotates a TIFF file when it loads it, and then removes the orientation.
    orientation = find_orientation(image)
    values = values.astype(np.float32)
    if not (np.abs(values) <= MAX_ABS_VALUE).all():
        raise ValueError("its pixels are NaN, infinite or beyond 1e30")
    if orientation is None:
        return values
    return np.stack([rotate(channel, orientation) for channel in values])


def scale_to_bytes(values: np.ndarray, white: float | None) -> np.ndarray:
    """Return numbers as bytes, from black at 0 or at the minimum of the image.

    Raises
    ------
    ValueError
        If a number is darker than black or brighter than white.
    """
    black = 0.0
    low, high = float(values.min()), float(values.max())
    if white is None:
        black, white = low, high
    elif low < black or high > white:
        raise ValueError(
            f"its pixels lie between {low:.6g} and {high:.6g}, and not between black, "
            f"0, and white, {white:.6g}, of the other images of more than 8 bits: "
            "convert all images to 8 bits"
        )
    scale = 255 / (white - black) if white > black else 0.0
    return ((values - black) * scale).round().clip(0, 255).astype(np.uint8)


def _find_layout(image: Image.Image) -> str | None:
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
    if tags.get(TiffImagePlugin.PLANAR_CONFIGURATION) == SEPARATE_PLANES:
        bits = np.atleast_1d(tags.get(TiffImagePlugin.BITSPERSAMPLE, 8))
        if len(bits) > 1 and bits.max() > 8:
            raise ValueError(
                f"its bands of {bits.max()} bits are stored one after another, which "
                "Pillow cannot read: convert it to 8 bits, or interleave the bands"
            )
    is_deep = isinstance(layout, str) and layout[:-1] in DEEP_LAYOUTS
    return layout if is_deep else None


def _read_deep_color(image: Any, layout: str) -> tuple[np.ndarray, Image.Image]:
    """Return the numbers of an RGB file of 16 bits per band, and a loaded image of it.

    PIL reads one byte of each number: the upper byte in the file's own order of bytes.
    In the opposite order it reads the lower byte, so that two passes give both.

    Returns
    -------
    values : ndarray of shape (3, H, W), uint16
    loaded : Image
        A TIFF file is rotated when it is loaded, and so are the values.
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
    lower_bytes = np.asarray(lower.convert("RGB"), dtype=np.uint16)
    return (upper_bytes * 256 + lower_bytes).transpose(2, 0, 1), upper


def _is_unsigned(image: Image.Image) -> bool:
    """Return whether PIL shows integers of 32 bits without a sign as negative numbers.

    PIL has integers with a sign only.
    """
    tags = getattr(image, "tag_v2", None)
    if image.format != "TIFF" or tags is None or image.mode != "I":
        return False
    bits = np.atleast_1d(tags.get(TiffImagePlugin.BITSPERSAMPLE, 1))
    sample_format = np.atleast_1d(tags.get(TiffImagePlugin.SAMPLEFORMAT, UNSIGNED))
    return bool(bits.max() == 32 and sample_format[0] == UNSIGNED)


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
