"""Resizing of one image to the shape of a format: crop, pad or stretch."""

import numpy as np
from PIL import Image

from .image_format import INTERPOLATIONS, ImageFormat

# Largest ratio of the sides of an image that is scaled as a whole before the crop.
MAX_ASPECT_RATIO = 16


def resize(image: Image.Image, image_format: ImageFormat) -> np.ndarray:
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
