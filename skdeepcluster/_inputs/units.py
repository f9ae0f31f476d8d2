"""Warnings about images in another unit than the images of the fit, or of the set."""

import math

import numpy as np

from .._utils.messages import warn
from .sources import Source
from .spec import InputFormat

# Number of standard deviations from the mean that hardly any pixel lies beyond.
MAX_DEVIATIONS = 100

# Share of the values that are compared with the range in the fit. A broken pixel of a
# camera is no sign of another unit.
COMMON_QUANTILE = 0.999

# Largest numbers of 8 and of 16 bits.
MAX_BYTE = 255
MAX_PIXEL = 65535

# Images of fractions have a pixel of at least this share of white.
MIN_FRACTION = 0.05

# Differences that have no meaning in float32.
TINY = 1e-30

# Number of images with values that are compared with the range of values in the fit.
RANGE_ROWS = 16

# Number of images, and of values, that are compared with each other.
UNIT_ROWS = 64
UNIT_VALUES = 2**24


def check_range(source: Source, fitted: InputFormat) -> None:
    """Warn if the values seem to have another unit than the values of the fit."""
    values = source.batch(slice(RANGE_ROWS)).numpy()
    low, high = float(values.min()), float(np.quantile(values, COMMON_QUANTILE))
    mean, scale = float(fitted.mean.max()), float(fitted.scale.max())
    # Values between 0 and 1 have a mean of at most 1 and a deviation of at most 0.5.
    is_fraction = low >= 0 and low + TINY < high <= 1
    is_smaller = is_fraction and (mean > 1 or scale > 0.5)
    # Bytes beside integers of more bits have another white, and the other way around.
    exceeds_bytes = fitted.dtype == np.uint8 and high > MAX_BYTE
    are_bytes = mean > MAX_BYTE and source.dtype == np.uint8
    is_larger = exceeds_bytes or high > mean + MAX_DEVIATIONS * scale
    if is_smaller or is_larger or are_bytes:
        warn(
            f"X holds values from {low:.3g} to {high:.3g}, but values as in fit have a "
            f"mean of about {mean:.3g}. Scale X as in fit: pixels from 0 to 1 are not "
            "pixels from 0 to 255, nor are pixels of 12 or 16 bits."
        )


def check_units(source: Source) -> None:
    """Warn if white seems to be 1 in some images, and 255 in different images.

    matplotlib reads PNG files as floats up to 1, and JPEG files as bytes. A conversion
    of the bytes to floats hides the difference.
    """
    if source.dtype == np.uint8 or len(source) == 0:
        return
    n_rows = max(2, min(UNIT_ROWS, UNIT_VALUES // math.prod(source.shape)))
    rows = np.linspace(0, len(source) - 1, min(len(source), n_rows)).astype(int)
    values = source.batch(rows).numpy().reshape(len(rows), -1)
    high, is_whole = values.max(axis=1), (values == values.round()).all(axis=1)
    is_positive = values.min(axis=1) >= 0
    has_low_white = is_positive & ~is_whole & (high >= MIN_FRACTION) & (high <= 1)
    has_high_white = is_positive & is_whole & (high > 1) & (high <= MAX_PIXEL)
    if has_low_white.any() and has_high_white.any():
        warn(
            f"X mixes units: row {rows[has_low_white][0]} holds fractions up to 1, and "
            f"row {rows[has_high_white][0]} whole numbers up to "
            f"{high[has_high_white][0]:.0f}. Scale all images to one black and white, "
            "such as uint8 from 0 to 255."
        )
