"""Decoding of a single image, in any form, into an array of one format."""

import os
from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from .arrays import MAX_ABS_VALUE
from .file_formats import open_image

# PIL modes of gray images.
GRAY_MODES = ("1", "L", "I", "I;16", "I;16L", "I;16B", "F", "LA", "La")

# Numbers of channels of bytes that PIL reads: gray, RGB and RGBA.
PIL_CHANNELS = (1, 3, 4)

# EXIF orientations that swap height and width.
SWAPPED_ORIENTATIONS = (5, 6, 7, 8)

# Ways in which an image of another shape gets the shape of a format.
RESIZE_MODES = ("crop", "pad", "stretch")

# Values of torchvision's InterpolationMode, as PIL's filters. PIL knows one kind of
# nearest neighbors, as torchvision does for PIL images.
INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "nearest-exact": Image.Resampling.NEAREST,
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "hamming": Image.Resampling.HAMMING,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}

# Largest ratio of the sides of an image that is scaled as a whole before the crop.
MAX_ASPECT_RATIO = 16


@dataclass(frozen=True)
class ImageFormat:
    """Format into which all images of a source are decoded.

    Parameters
    ----------
    shape : tuple (C, H, W)
    dtype : type
        np.uint8 or np.float32.
    resize : {"crop", "pad", "stretch"}, default="crop"
        How images of other shapes get this shape, see `decode`.
    shorter_side : int or None, default=None
        Size in pixels to which the shorter side is scaled before the center is cropped,
        at least H and W: the ``resize_size`` of torchvision's presets. With None, the
        largest center crop is scaled to the shape. "pad" and "stretch" ignore it.
    interpolation : str, default="bilinear"
        Value of torchvision's `InterpolationMode`.
    original_side : int or None, default=None
        Median of the shorter sides of the images before they are resized, in pixels.
        None if unknown. It has no effect on decoding.

    Raises
    ------
    ValueError
        If `resize` or `interpolation` is unknown, or `shorter_side` is too small.
    """

    shape: tuple[int, int, int]
    dtype: type
    resize: str = "crop"
    shorter_side: int | None = None
    interpolation: str = "bilinear"
    original_side: int | None = field(default=None, compare=False)

    def __post_init__(self):
        if self.resize not in RESIZE_MODES or self.interpolation not in INTERPOLATIONS:
            raise ValueError(
                f"resize={self.resize!r} should be one of {RESIZE_MODES}, and "
                f"interpolation={self.interpolation!r} one of {list(INTERPOLATIONS)}"
            )
        height, width = self.shape[1:]
        if self.shorter_side is not None and self.shorter_side < max(height, width):
            raise ValueError(
                f"{height}x{width} pixels cannot be cropped from images whose shorter "
                f"side is scaled to {self.shorter_side} pixels. Set image_size or "
                f"image_shape to at most {self.shorter_side} pixels a side."
            )


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
        with open_image(image) as pil_image:
            return _read_pil_format(pil_image)
    if isinstance(image, Image.Image):
        return _read_pil_format(image)
    values = _to_channels_first(image)
    dtype = np.uint8 if values.dtype == np.uint8 else np.float32
    return ImageFormat(values.shape, dtype)


def decode(image, image_format: ImageFormat) -> np.ndarray:
    """Return an image as an array (C, H, W) of a format.

    An image of another shape is resized according to `image_format.resize`:

    - "crop": the shorter side is scaled, and the longer side is cropped around the
      center. With `shorter_side` the pixels of a PIL image equal those of torchvision's
      `Resize` and `CenterCrop`;
    - "pad": the longer side is scaled, and the rest gets the median color of the
      image's border;
    - "stretch": both sides are scaled.

    EXIF rotations are applied, 16 bits become 8, transparent pixels become white, and
    color becomes gray or gray becomes color.

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
    values = _to_channels_first(image)
    if image_format.dtype == np.uint8 and values.dtype != np.uint8:
        raise ValueError(
            f"an image of {values.dtype} values among images of bytes from 0 to 255: "
            "convert it to uint8"
        )
    if values.shape == image_format.shape and image_format.shorter_side is None:
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
    return np.concatenate(
        [_resize_channel(channel, image_format) for channel in values]
    )


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
    channels = image_format.shape[0]
    if channels not in (1, 3):
        raise ValueError(
            f"image files are gray or color, and cannot have the {channels} channels "
            "of the other images"
        )
    image = ImageOps.exif_transpose(image)
    image = _to_mode(image, "L" if channels == 1 else "RGB")
    values = _resize(image, image_format)
    return np.ascontiguousarray(values, dtype=image_format.dtype)


def _resize_channel(values: np.ndarray, image_format: ImageFormat) -> np.ndarray:
    """Return one channel (H, W) of an array as an array (1, H, W) of a format."""
    resized = _resize(Image.fromarray(values.astype(np.float32)), image_format)
    if image_format.dtype == np.uint8:
        # Bicubic interpolation overshoots.
        return resized.round().clip(0, 255).astype(np.uint8)
    return resized


def _resize(image: Image.Image, image_format: ImageFormat) -> np.ndarray:
    """Return an image of mode "L", "RGB" or "F" as an array (C, H, W)."""
    _, height, width = image_format.shape
    is_exact = image_format.resize == "crop" and image_format.shorter_side is not None
    box, size = _choose_box(image.size, image_format)
    scaled = image.resize(
        size,
        INTERPOLATIONS[image_format.interpolation],
        box=box,
        # The reduction by integers before the interpolation is faster, and inexact.
        reducing_gap=None if is_exact else 2.0,
    )
    if image_format.resize == "pad" and scaled.size != (width, height):
        scaled = _pad(scaled, (width, height), _border_color(image))
    # torchvision's CenterCrop rounds in this way, too.
    left, top = round((scaled.width - width) / 2), round((scaled.height - height) / 2)
    values = np.array(scaled.crop((left, top, left + width, top + height)))
    return values[None] if values.ndim == 2 else values.transpose(2, 0, 1)


def _choose_box(
    size: tuple[int, int], image_format: ImageFormat
) -> tuple[tuple[float, float, float, float], tuple[int, int]]:
    """Return the box of an image that is scaled, and its scaled (width, height)."""
    width, height = size
    _, target_height, target_width = image_format.shape
    target_size = target_width, target_height
    whole = (0, 0, width, height)
    if image_format.resize == "stretch":
        return whole, target_size
    if image_format.resize == "pad":
        scale = min(target_width / width, target_height / height)
        return whole, (max(1, round(scale * width)), max(1, round(scale * height)))
    if image_format.shorter_side is None:
        return _center_box(size, target_size), target_size
    # A strip of a few pixels would be scaled to a huge image.
    max_side = MAX_ASPECT_RATIO * min(size)
    left, top = max(0, width - max_side) // 2, max(0, height - max_side) // 2
    width, height = min(width, max_side), min(height, max_side)
    box = (left, top, left + width, top + height)
    # torchvision's Resize rounds the longer side down.
    side, shorter = image_format.shorter_side, min(width, height)
    return box, (int(side * width / shorter), int(side * height / shorter))


def _pad(image: Image.Image, size: tuple[int, int], color: tuple) -> Image.Image:
    """Return an image in the center of a larger one of a color."""
    padded = Image.new(image.mode, size, color)
    padded.paste(image, ((size[0] - image.width) // 2, (size[1] - image.height) // 2))
    return padded


def _border_color(image: Image.Image) -> tuple:
    """Return the median color of the pixels at the edges of an image."""
    width, height = image.size
    edges = [
        (0, 0, width, 1),
        (0, height - 1, width, height),
        (0, 0, 1, height),
        (width - 1, 0, width, height),
    ]
    channels = len(image.getbands())
    border = [np.asarray(image.crop(edge)).reshape(-1, channels) for edge in edges]
    # The lower median of each channel is a value of its pixels, and bytes stay bytes.
    color = np.quantile(np.concatenate(border), 0.5, axis=0, method="lower")
    return tuple(color.tolist())


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
