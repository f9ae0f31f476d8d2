"""Format into which all images of a source are decoded."""

from dataclasses import dataclass, field

import numpy as np
from PIL import Image

# Types of the numbers in an image, with a description for messages. Bool is an array's:
# PIL's images of one bit have 0 and 255.
NUMBER_TYPES = {
    "bytes": "bytes from 0 to 255",
    "bool": "bool values",
    "integers": "integers of more than 8 bits",
    "floats": "floating-point numbers",
}

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


def dtype_of(number_type: str) -> type:
    """Return the type of decoded images of numbers of a name in `NUMBER_TYPES`."""
    return np.uint8 if number_type in ("bytes", "bool") else np.float32


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
    number_types : tuple of str or None, default=None
        Names in `NUMBER_TYPES` of the numbers that an image may have, since an image
        with other numbers may have another black and white. None is any numbers.
    white : float or None, default=None
        Value of white in images of integers that become bytes. None scales each of
        these images from its own minimum and maximum.
    has_alpha : bool, default=True
        Whether the last band of images with four bands is transparency, rather than a
        band such as near infrared, which is left out.
    original_side : int or None, default=None
        Typical length of the shorter side of the images before they are resized, in
        pixels. None if unknown. It has no effect on decoding.

    Raises
    ------
    ValueError
        If `resize`, `interpolation` or a type of numbers is unknown, or `shorter_side`
        is too small.
    """

    shape: tuple[int, int, int]
    dtype: type
    resize: str = "crop"
    shorter_side: int | None = None
    interpolation: str = "bilinear"
    number_types: tuple[str, ...] | None = None
    white: float | None = None
    has_alpha: bool = True
    original_side: int | None = field(default=None, compare=False)

    def __post_init__(self):
        if self.resize not in RESIZE_MODES or self.interpolation not in INTERPOLATIONS:
            raise ValueError(
                f"resize={self.resize!r} should be one of {RESIZE_MODES}, and "
                f"interpolation={self.interpolation!r} one of {list(INTERPOLATIONS)}"
            )
        if not set(self.number_types or ()) <= NUMBER_TYPES.keys():
            raise ValueError(
                f"number_types={self.number_types!r} should be among "
                f"{list(NUMBER_TYPES)}"
            )
        height, width = self.shape[1:]
        if self.shorter_side is not None and self.shorter_side < max(height, width):
            raise ValueError(
                f"{height}x{width} pixels cannot be cropped from images whose shorter "
                f"side is scaled to {self.shorter_side} pixels. Set image_size or "
                f"image_shape to at most {self.shorter_side} pixels a side."
            )
