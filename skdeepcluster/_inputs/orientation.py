"""EXIF orientation: the rotation with which a camera means its image to be seen."""

import numpy as np
from PIL import ExifTags, Image, ImageOps, TiffImagePlugin

# EXIF orientations that swap height and width.
SWAPPED_ORIENTATIONS = (5, 6, 7, 8)


def find_orientation(image: Image.Image) -> int | None:
    """Return the EXIF orientation in the header of an image.

    PIL would decode a PNG file to search for it behind the pixels, too.
    """
    if image.format == "PNG" and "exif" not in image.info:
        return None
    return image.getexif().get(ExifTags.Base.Orientation)


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Return the width and height of an image after its EXIF rotation."""
    width, height = image.size
    # A loaded TIFF file has lost its orientation, and is upright.
    if find_orientation(image) not in SWAPPED_ORIENTATIONS:
        return width, height
    tags = getattr(image, "tag_v2", None)
    if image.format == "TIFF" and tags is not None:
        # Some versions of PIL swap the size of a TIFF file before it is loaded.
        width = tags.get(TiffImagePlugin.IMAGEWIDTH, width)
        height = tags.get(TiffImagePlugin.IMAGELENGTH, height)
    return height, width


def rotate(channel: np.ndarray, orientation: int) -> np.ndarray:
    """Return one channel, float32 (H, W), after its EXIF rotation."""
    image = Image.fromarray(channel)
    image.getexif()[ExifTags.Base.Orientation] = orientation
    return np.asarray(ImageOps.exif_transpose(image))
