"""Decoding of a single image, in any form, into an array of one format."""

import os
from dataclasses import dataclass

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from .arrays import MAX_ABS_VALUE

# PIL modes of gray images.
GRAY_MODES = ("1", "L", "I", "I;16", "I;16L", "I;16B", "F", "LA", "La")

# Numbers of channels of bytes that PIL reads: gray, RGB and RGBA.
PIL_CHANNELS = (1, 3, 4)

# EXIF orientations that swap height and width.
SWAPPED_ORIENTATIONS = (5, 6, 7, 8)


@dataclass(frozen=True)
class ImageFormat:
    """Format into which all images of a source are decoded.

    Parameters
    ----------
    shape : tuple (C, H, W)
    dtype : type
        np.uint8 or np.float32.
    """

    shape: tuple[int, int, int]
    dtype: type


def read_format(image) -> ImageFormat:
    """Return the format of an image as it is. Only the header of a file is read.

    Parameters
    ----------
    image : path, PIL image, array or tensor, or a pair of one of these and a label

    Raises
    ------
    TypeError
        If `image` has another type.
    Exception
        If the image is broken, see `describe_failure`.
    """
    image = _drop_label(image)
    if isinstance(image, str | os.PathLike):
        with Image.open(image) as pil_image:
            return _read_pil_format(pil_image)
    if isinstance(image, Image.Image):
        return _read_pil_format(image)
    values = _to_channels_first(image)
    dtype = np.uint8 if values.dtype == np.uint8 else np.float32
    return ImageFormat(values.shape, dtype)


def decode(image, image_format: ImageFormat) -> np.ndarray:
    """Return an image as an array (C, H, W) of a format.

    The shorter side is scaled, and the longer side is cropped around the center. EXIF
    rotations are applied, 16 bits become 8, transparent pixels become white, and color
    becomes gray or gray becomes color.

    Parameters
    ----------
    image : path, PIL image, array or tensor, or a pair of one of these and a label
    image_format : ImageFormat

    Raises
    ------
    ValueError
        If an array cannot be converted to the format.
    TypeError, Exception
        As `read_format` does.
    """
    image = _drop_label(image)
    if isinstance(image, str | os.PathLike):
        with Image.open(image) as file:
            # JPEG decodes large images much faster at a fraction of their size.
            file.draft(None, (max(image_format.shape[1:]),) * 2)
            return _decode_pil(file, image_format)
    if isinstance(image, Image.Image):
        return _decode_pil(image, image_format)
    values = _to_channels_first(image)
    if image_format.dtype == np.uint8 and values.dtype != np.uint8:
        raise ValueError(
            f"an image of {values.dtype} values among images of bytes from 0 to 255: "
            "convert it to uint8"
        )
    if values.shape == image_format.shape:
        return values.astype(image_format.dtype)
    channels = image_format.shape[0]
    is_pil_like = values.dtype == np.uint8 and values.shape[0] in PIL_CHANNELS
    if is_pil_like and channels in (1, 3):
        pil_image = Image.fromarray(values.transpose(1, 2, 0).squeeze())
        return _decode_pil(pil_image, image_format)
    if values.shape[0] != channels:
        raise ValueError(
            f"an image of {values.shape[0]} channels among images of {channels} "
            "channels: convert it"
        )
    return _resize_array(values, image_format)


def describe_failure(image, error: Exception) -> str:
    """Return the cause for which `read_format` or `decode` failed, with the path."""
    image = _drop_label(image)
    if not isinstance(image, str | os.PathLike):
        return str(error) or type(error).__name__
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


def _drop_label(image):
    """Return the image of an (image, label) pair."""
    return image[0] if isinstance(image, tuple | list) and len(image) else image


def _read_pil_format(image: Image.Image) -> ImageFormat:
    """Return the format of a PIL image, as it is after its EXIF rotation."""
    width, height = image.size
    if image.getexif().get(ExifTags.Base.Orientation) in SWAPPED_ORIENTATIONS:
        width, height = height, width
    channels = 1 if image.mode in GRAY_MODES else 3
    return ImageFormat((channels, height, width), np.uint8)


def _decode_pil(image: Image.Image, image_format: ImageFormat) -> np.ndarray:
    """Return a PIL image as an array of a format."""
    channels, height, width = image_format.shape
    if channels not in (1, 3):
        raise ValueError(
            f"image files are gray or color, and cannot have the {channels} channels "
            "of the other images"
        )
    image = ImageOps.exif_transpose(image)
    image = _to_mode(image, "L" if channels == 1 else "RGB")
    if image.size != (width, height):
        image = image.resize(
            (width, height),
            Image.Resampling.BILINEAR,
            box=_center_box(image.size, (width, height)),
            reducing_gap=2.0,
        )
    values = np.array(image)
    values = values[None] if values.ndim == 2 else values.transpose(2, 0, 1)
    return np.ascontiguousarray(values, dtype=image_format.dtype)


def _to_mode(image: Image.Image, mode: str) -> Image.Image:
    """Return a gray ("L") or color ("RGB") image of 8 bits."""
    if image.mode == "F":
        raise ValueError(
            "its pixels are floating-point numbers, whose black and white are not "
            "known: convert it to 8 or 16 bits"
        )
    # PIL would clip 16 bits to 255 instead of scaling them.
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        image = Image.fromarray((values.clip(0, 65_535) // 257).astype(np.uint8))
    # PIL converts LAB to RGB, and to no other mode.
    if image.mode == "LAB":
        image = image.convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image if image.mode == mode else image.convert(mode)


def _center_box(
    size: tuple[int, ...], target_size: tuple[int, int]
) -> tuple[float, float, float, float]:
    """Return the largest centered box (left, top, right, bottom) for a target size."""
    (width, height), (target_width, target_height) = size, target_size
    scale = min(width / target_width, height / target_height)
    # Rounding must not move the box beyond the edge.
    left = max(0, (width - scale * target_width) / 2)
    top = max(0, (height - scale * target_height) / 2)
    return left, top, width - left, height - top


def _to_channels_first(image) -> np.ndarray:
    """Return an array or tensor as (C, H, W), uint8 or another type of numbers."""
    if isinstance(image, torch.Tensor):
        image = image.detach().cpu()
        image = (image.float() if image.dtype == torch.bfloat16 else image).numpy()
    if not isinstance(image, np.ndarray) or image.dtype.kind not in "fiub":
        raise TypeError(
            f"a {type(image).__name__} is not an image: pass paths, PIL images, arrays "
            "or tensors, or (image, label) pairs of these"
        )
    values = image[None] if image.ndim == 2 else image
    if values.ndim != 3 or 0 in values.shape:
        raise ValueError(
            f"an array of shape {image.shape} is not an image (H, W), (C, H, W) or (H, "
            "W, C); rows of numbers go into one 2-D array"
        )
    if values.shape[0] > values.shape[2]:
        values = values.transpose(2, 0, 1)
    is_float = values.dtype.kind == "f"
    if is_float and not (np.abs(values) <= np.float64(MAX_ABS_VALUE)).all():
        raise ValueError("an image with values that are NaN, infinite or beyond 1e30")
    return values.astype(np.uint8) if values.dtype == bool else values


def _resize_array(values: np.ndarray, image_format: ImageFormat) -> np.ndarray:
    """Return an array (C, H, W), cropped around the center and scaled to a format."""
    _, height, width = values.shape
    _, target_height, target_width = image_format.shape
    box = _center_box((width, height), (target_width, target_height))
    left, top, right, bottom = map(round, box)
    # A box of less than a pixel still needs one pixel.
    values = values[:, top : max(bottom, top + 1), left : max(right, left + 1)]
    images = torch.from_numpy(values.astype(np.float32))[None]
    (image,) = torch.nn.functional.interpolate(
        images,
        (target_height, target_width),
        mode="bilinear",
        antialias=True,
        align_corners=False,
    )
    resized = image.numpy()
    is_bytes = image_format.dtype == np.uint8
    return resized.round().astype(np.uint8) if is_bytes else resized
