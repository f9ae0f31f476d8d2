"""Formats of image files."""

from PIL import Image


def open_image(path):
    """Open an image file."""
    return Image.open(path)
