"""One picture, in whatever form -> an array of one format."""

import os
from dataclasses import dataclass

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from .sources import MAX_ABS_VALUE

GRAY_MODES = ("1", "L", "I", "I;16", "I;16L", "I;16B", "F", "LA", "La")
PICTURE_CHANNELS = (1, 3, 4)  # of bytes that PIL takes: gray, RGB, RGBA
SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that swap the sides


@dataclass(frozen=True)
class ImageFormat:
    """What every image of a source is turned into."""

    shape: tuple[int, int, int]  # (C, H, W)
    dtype: type  # np.uint8 or np.float32


def read_format(item) -> ImageFormat:
    """Tell the format that a picture has by itself, reading no pixels of a file.

    Parameters
    ----------
    item : path, PIL image, array, tensor, or tuple of one of these and a label

    Raises
    ------
    Exception
        Of many kinds, see `failure`; TypeError if it is none of these.
    """
    item = _without_label(item)
    if isinstance(item, str | os.PathLike):
        with Image.open(item) as picture:
            return _picture_header(picture)
    if isinstance(item, Image.Image):
        return _picture_header(item)
    values = _channels_first(item)
    return ImageFormat(
        values.shape, np.uint8 if values.dtype == np.uint8 else np.float32
    )


def decode(item, wanted: ImageFormat) -> np.ndarray:
    """Return a picture as an array (C, H, W) of the wanted format.

    Its shorter side is scaled to fit and the longer one cropped around the center.
    Rotations by EXIF are applied, 16 bits become 8, transparency becomes white, and
    colors become gray or the other way round.

    Parameters
    ----------
    item : as for `header`
    wanted : Format

    Raises
    ------
    Exception
        As `header`; ValueError if an array cannot have that format.
    """
    item = _without_label(item)
    if isinstance(item, str | os.PathLike):
        with Image.open(item) as file:
            # JPEG decodes at an eighth of the size, say, and much faster.
            file.draft(None, (max(wanted.shape[1:]),) * 2)
            return _decode_picture(file, wanted)
    if isinstance(item, Image.Image):
        return _decode_picture(item, wanted)
    values = _channels_first(item)
    if wanted.dtype == np.uint8 and values.dtype != np.uint8:
        raise ValueError(
            f"an image of {values.dtype} values, where others are bytes from 0 to 255: "
            "make it uint8 as well"
        )
    if values.shape == wanted.shape:
        return values.astype(wanted.dtype)
    channels = wanted.shape[0]
    if (
        values.dtype == np.uint8
        and values.shape[0] in PICTURE_CHANNELS
        and channels in (1, 3)
    ):
        picture = Image.fromarray(values.transpose(1, 2, 0).squeeze())
        return _decode_picture(picture, wanted)
    if values.shape[0] != channels:
        raise ValueError(
            f"an image of {values.shape[0]} channels, where others have {channels}"
        )
    return _resize_array(values, wanted)


def describe_failure(item, error: Exception) -> str:
    """Say what is wrong with a picture that `header` or `decode` failed on."""
    item = _without_label(item)
    if not isinstance(item, str | os.PathLike):
        return str(error) or type(error).__name__
    if isinstance(error, UnidentifiedImageError):
        empty = os.path.getsize(item) == 0
        cause = "the file is empty" if empty else "the file is not an image"
    elif os.path.isdir(item):
        cause = "it is a folder. Pass a folder by itself, not in a list"
    else:
        cause = getattr(error, "strerror", None) or str(error) or type(error).__name__
    if isinstance(error, FileNotFoundError) and not os.path.isabs(item):
        cause += f", seen from {os.getcwd()} (text in X is paths of files, no URLs)"
    return f"{os.fspath(item)}: {cause}"


def _without_label(item):
    """Return the image of an (image, label) pair."""
    return item[0] if isinstance(item, tuple | list) and len(item) else item


def _picture_header(picture: Image.Image) -> ImageFormat:
    width, height = picture.size
    if picture.getexif().get(ExifTags.Base.Orientation) in SIDEWAYS:
        width, height = height, width
    channels = 1 if picture.mode in GRAY_MODES else 3
    return ImageFormat((channels, height, width), np.uint8)


def _decode_picture(picture: Image.Image, wanted: ImageFormat) -> np.ndarray:
    channels, height, width = wanted.shape
    if channels not in (1, 3):
        raise ValueError(
            f"a picture is gray or color, but images of {channels} channels are wanted"
        )
    picture = _to_mode(
        ImageOps.exif_transpose(picture), "L" if channels == 1 else "RGB"
    )
    if picture.size != (width, height):
        picture = picture.resize(
            (width, height),
            Image.Resampling.BILINEAR,
            box=_center_crop(picture.size, (width, height)),
            reducing_gap=2.0,
        )
    values = np.array(picture)
    values = values[None] if values.ndim == 2 else values.transpose(2, 0, 1)
    return np.ascontiguousarray(values, dtype=wanted.dtype)


def _to_mode(picture: Image.Image, mode: str) -> Image.Image:
    """Return a gray ("L") or color ("RGB") picture of 8 bits."""
    if picture.mode == "F":
        raise ValueError(
            "its pixels are floating-point numbers, whose black and white are not "
            "known: convert it to 8 or 16 bits"
        )
    if picture.mode.startswith("I"):
        values = np.asarray(picture).astype(np.int64)
        picture = Image.fromarray((values.clip(0, 65_535) // 257).astype(np.uint8))
    if picture.mode == "LAB":  # which PIL knows the way to color of alone
        picture = picture.convert("RGB")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture)
    return picture if picture.mode == mode else picture.convert(mode)


def _center_crop(
    size: tuple[int, ...], wanted: tuple[int, int]
) -> tuple[float, float, float, float]:
    """Return the largest box (left, top, right, bottom) of the wanted proportions."""
    scale = min(side / other for side, other in zip(size, wanted, strict=True))
    # Rounding must not lead over the edge.
    left, top = (max(0, (s - scale * w) / 2) for s, w in zip(size, wanted, strict=True))
    return left, top, size[0] - left, size[1] - top


def _channels_first(item) -> np.ndarray:
    """Return an array or tensor as (C, H, W), uint8 or another type of numbers."""
    if isinstance(item, torch.Tensor):
        item = item.detach().cpu()
        item = (item.float() if item.dtype == torch.bfloat16 else item).numpy()
    if not isinstance(item, np.ndarray) or item.dtype.kind not in "fiub":
        raise TypeError(
            f"a {type(item).__name__} is no image: pass paths, PIL images, arrays or "
            "tensors, or (image, label) pairs of these"
        )
    values = item[None] if item.ndim == 2 else item
    if values.ndim != 3 or 0 in values.shape:
        raise ValueError(
            f"an array of shape {item.shape} is no image (H, W), (C, H, W) or (H, W, "
            "C); rows of numbers go into one 2-D array"
        )
    if values.shape[0] > values.shape[2]:
        values = values.transpose(2, 0, 1)
    if (
        values.dtype.kind == "f"
        and not (np.abs(values) <= np.float64(MAX_ABS_VALUE)).all()
    ):
        raise ValueError("an image with values that are NaN, infinite or beyond 1e30")
    return values.astype(np.uint8) if values.dtype == bool else values


def _resize_array(values: np.ndarray, wanted: ImageFormat) -> np.ndarray:
    height, width = wanted.shape[1:]
    left, top, right, bottom = map(
        round, _center_crop(values.shape[:0:-1], (width, height))
    )
    values = values[:, top : max(bottom, top + 1), left : max(right, left + 1)]
    images = torch.from_numpy(values.astype(np.float32))[None]
    (image,) = torch.nn.functional.interpolate(
        images, (height, width), mode="bilinear", antialias=True, align_corners=False
    )
    resized = image.numpy()
    return resized.round().astype(np.uint8) if wanted.dtype == np.uint8 else resized
