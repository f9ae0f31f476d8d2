"""Headers of images: shape, type of numbers, transparency and frames."""

import os
from dataclasses import dataclass

from PIL import Image

from .arrays import as_channels_first, number_type
from .file_formats import open_image
from .many_bits import pil_number_type
from .orientation import upright_size
from .transparency import has_alpha_band

# PIL modes of gray images.
GRAY_MODES = ("1", "L", "I", "I;16", "I;16L", "I;16B", "F", "LA", "La")


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


def _read_pil_header(image: Image.Image) -> ImageHeader:
    width, height = upright_size(image)
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
