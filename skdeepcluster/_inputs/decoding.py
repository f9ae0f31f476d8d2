"""Decoding of a single image, in any form, into an array of one format."""

import os

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from .arrays import as_channels_first, number_type
from .file_formats import open_image
from .headers import drop_label
from .image_format import NUMBER_TYPES, ImageFormat
from .many_bits import pil_number_type, read_numbers, scale_to_bytes
from .resizing import resize
from .transparency import flatten, has_alpha_band

# Numbers of channels of bytes that PIL reads: gray and RGB.
PIL_CHANNELS = (1, 3)


def decode(image, image_format: ImageFormat) -> np.ndarray:
    """Return an image as an array (C, H, W) of a format.

    An image of another shape is resized according to `image_format.resize`:

    - "crop": the shorter side is scaled, and the longer side is cropped around the
      center. With `shorter_side` the pixels of a PIL image equal those of torchvision's
      `Resize` and `CenterCrop`;
    - "pad": the longer side is scaled, and the rest gets the median color of the
      image's border;
    - "stretch": both sides are scaled.

    EXIF rotations are applied, transparent pixels get a white ground, or a black one
    below white drawings, and color becomes gray or gray becomes color. Numbers of more
    than 8 bits stay as they are in a format of floats, and are scaled to bytes
    otherwise, see `ImageFormat.white`.

    Parameters
    ----------
    image : path, PIL image, array or tensor, or a pair of one of these and a label
    image_format : ImageFormat

    Raises
    ------
    ValueError
        If an image cannot be converted to the format.
    TypeError, Exception
        As `read_header` does.
    """
    image = drop_label(image)
    if isinstance(image, str | os.PathLike):
        with open_image(image) as file:
            # JPEG decodes large images much faster at a fraction of their size. Given
            # weights expect pixels that are scaled as in their training. At twice the
            # target size or more, hardly any pixel differs from a full decoding.
            side = max(image_format.shape[1:])
            if image_format.shorter_side is not None:
                side = 2 * image_format.shorter_side
            file.draft(None, (side, side))
            return _decode_pil(file, image_format)
    if isinstance(image, Image.Image):
        return _decode_pil(image, image_format)
    return _decode_array(image, image_format)


def describe_failure(image, error: Exception) -> str:
    """Return the cause for which an image cannot be read, with the path of a file."""
    image = drop_label(image)
    if not isinstance(image, str | os.PathLike):
        name = type(error).__name__
        # Errors of a dataset's own code, such as KeyError, say little without a name.
        is_explained = isinstance(
            error, ValueError | TypeError | OSError | RuntimeError
        )
        text = str(error).removesuffix(".")
        return text if is_explained and text else f"{name}: {text}".removesuffix(": ")
    if isinstance(error, UnidentifiedImageError):
        is_empty = os.path.getsize(image) == 0
        cause = "the file is empty" if is_empty else "the file is not an image"
    elif os.path.isdir(image):
        cause = "it is a folder. Pass a folder by itself, not in a list"
    else:
        cause = getattr(error, "strerror", None) or str(error) or type(error).__name__
    if isinstance(error, FileNotFoundError) and not os.path.isabs(image):
        cause += (
            f", relative to {os.getcwd()} (text in X is read as paths of files, not as "
            "URLs)"
        )
    return f"{os.fspath(image)}: {cause}"


def describe_type(number_type: str, allowed: tuple[str, ...]) -> str:
    """Return that an image has other numbers than the remaining images."""
    return (
        f"its pixels are {NUMBER_TYPES[number_type]}, unlike those of the data, which "
        f"are {NUMBER_TYPES[allowed[0]]}: convert it to the same type and black and "
        "white"
    )


def _check_type(number_type: str, image_format: ImageFormat) -> None:
    """Raise ValueError if an image has other numbers than the format allows."""
    allowed = image_format.number_types
    if allowed is not None and number_type not in allowed:
        raise ValueError(describe_type(number_type, allowed))


def _decode_pil(image: Image.Image, image_format: ImageFormat) -> np.ndarray:
    """Return a PIL image as an array of a format."""
    numbers = pil_number_type(image)
    _check_type(numbers, image_format)
    channels = image_format.shape[0]
    if numbers == "bytes":
        if channels not in PIL_CHANNELS:
            raise ValueError(
                f"image files are gray or color, and cannot have the {channels} "
                "channels of the other images"
            )
        has_alpha = image_format.has_alpha and has_alpha_band(image)
        pixels = _to_mode(ImageOps.exif_transpose(image), channels, has_alpha)
        values = resize(pixels, image_format)
        return np.ascontiguousarray(values, dtype=image_format.dtype)
    values = read_numbers(image)
    if image_format.dtype == np.uint8:
        values = scale_to_bytes(values, image_format.white)
    return _convert(values, image_format)


def _decode_array(image, image_format: ImageFormat) -> np.ndarray:
    """Return an array or tensor as an array of a format."""
    values = as_channels_first(image)
    numbers = number_type(image.dtype)
    _check_type(numbers, image_format)
    if image_format.dtype == np.uint8 and numbers not in ("bytes", "bool"):
        raise ValueError(
            f"an image of {values.dtype} values among images of bytes from 0 to 255: "
            "convert it to uint8"
        )
    return _convert(values, image_format)


def _convert(values: np.ndarray, image_format: ImageFormat) -> np.ndarray:
    """Return an array (C, H, W) in the channels, shape and type of a format."""
    if values.shape == image_format.shape and image_format.shorter_side is None:
        return values.astype(image_format.dtype)
    channels = image_format.shape[0]
    is_pil_like = values.dtype == np.uint8 and values.shape[0] in PIL_CHANNELS
    if is_pil_like and channels in PIL_CHANNELS:
        pixels = values[0] if len(values) == 1 else values.transpose(1, 2, 0)
        image = Image.fromarray(pixels)
        resized = resize(_to_mode(image, channels), image_format)
        return np.ascontiguousarray(resized, dtype=image_format.dtype)
    if values.shape[0] == 1 and channels == 3:
        # Gray numbers of more than 8 bits become color as bytes do.
        return np.repeat(_resize_channel(values[0], image_format), channels, axis=0)
    if values.shape[0] != channels:
        cure = "convert it"
        if values.shape[0] == 4 and channels == 3:
            cure = "leave out the fourth channel, image[..., :3]"
        raise ValueError(
            f"an image of {values.shape[0]} channels among images of {channels} "
            f"channels: {cure}"
        )
    return np.concatenate(
        [_resize_channel(channel, image_format) for channel in values]
    )


def _resize_channel(values: np.ndarray, image_format: ImageFormat) -> np.ndarray:
    """Return one channel (H, W) of an array as an array (1, H, W) of a format."""
    resized = resize(Image.fromarray(values.astype(np.float32)), image_format)
    if image_format.dtype == np.uint8:
        # Bicubic interpolation overshoots.
        return resized.round().clip(0, 255).astype(np.uint8)
    return resized


def _to_mode(image: Image.Image, channels: int, has_alpha: bool = True) -> Image.Image:
    """Return a gray or color image of 8 bits without transparency."""
    # PIL converts LAB to RGB, and to no other mode.
    if image.mode == "LAB":
        image = image.convert("RGB")
    image = flatten(image, has_alpha)
    mode = "L" if channels == 1 else "RGB"
    return image if image.mode == mode else image.convert(mode)
