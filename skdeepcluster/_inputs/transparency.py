"""Transparent images on an opaque ground."""

from collections.abc import Iterator

import numpy as np
from PIL import Image, TiffImagePlugin

# PIL modes with a band of transparency.
ALPHA_MODES = ("RGBA", "RGBa", "LA", "La", "PA")

# Values of the tag ExtraSamples that stand for transparency.
TIFF_ALPHA = (1, 2)

# Largest value of the darkest channel of a pixel that is visible on white.
MAX_DARK = 223

# Number of pixels that are converted at once. It bounds the memory for large images.
STRIP_PIXELS = 2**20

# Share of the visible pixels that has to differ from white on a white ground.
MIN_DARK_SHARE = 0.02


def has_alpha_band(image: Image.Image) -> bool:
    """Return whether the last band of a PIL image may be transparency.

    In a TIFF file a tag says so. PIL takes a fourth band for transparency, too, if the
    tag is missing.
    """
    if image.mode not in ALPHA_MODES:
        return False
    tags = getattr(image, "tag_v2", None)
    if image.format != "TIFF" or tags is None or image.mode == "PA":
        return True
    extra_samples = tags.get(TiffImagePlugin.EXTRASAMPLES, ())
    return any(sample in TIFF_ALPHA for sample in np.atleast_1d(extra_samples))


def flatten(image: Image.Image, has_alpha: bool) -> Image.Image:
    """Return an image without transparency.

    The ground is white, or black if hardly any opaque pixel is visible on white.
    An image without a visible pixel shows the colors below a band of transparency.

    Parameters
    ----------
    image : Image
    has_alpha : bool
        False if the last of four bands is no transparency: it is left out.
    """
    if not image.has_transparency_data:
        return image
    if not has_alpha and image.mode in ALPHA_MODES:
        # The conversion of RGBA and LA drops the last band.
        return image.convert("L" if image.mode in ("LA", "La") else "RGB")
    has_hidden_colors = image.mode in ALPHA_MODES
    low, high = _extrema(image, "A")
    if low == 255:
        return _composite(image, None)
    if high == 0 and has_hidden_colors and _has_detail(image):
        # Some programs write a band of zeros, and mean an opaque image.
        return _composite(image, None)
    return _composite(image, _choose_ground(image))


def partial_share(image: Image.Image) -> float:
    """Return the share of pixels that are neither opaque nor fully transparent.

    It is 0 if all pixels have one color: then transparency is all that there is to see,
    as in drawings of smoke.
    """
    if not _has_detail(image):
        return 0.0
    n_partial = 0
    for _, strip in _strips(image):
        alpha = np.asarray(strip.getchannel("A"))
        n_partial += int(np.count_nonzero((alpha > 0) & (alpha < 255)))
    return n_partial / (image.width * image.height)


def _strips(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """Return the first row and the RGBA pixels of strips of an image."""
    n_rows = max(1, STRIP_PIXELS // image.width)
    for top in range(0, image.height, n_rows):
        bottom = min(top + n_rows, image.height)
        strip = image.crop((0, top, image.width, bottom))
        yield top, strip.convert("RGBA")


def _composite(image: Image.Image, ground: str | None) -> Image.Image:
    """Return an RGB image on a ground. None shows the colors below transparency."""
    flat = Image.new("RGB", image.size)
    for top, strip in _strips(image):
        if ground is not None:
            background = Image.new("RGBA", strip.size, ground)
            strip = Image.alpha_composite(background, strip)
        flat.paste(strip.convert("RGB"), (0, top))
    return flat


def _extrema(image: Image.Image, channel: str) -> tuple[int, int]:
    """Return the smallest and the largest value of a channel of an image as RGBA."""
    lows, highs = zip(
        *(strip.getchannel(channel).getextrema() for _, strip in _strips(image)),
        strict=True,
    )
    return min(lows), max(highs)


def _has_detail(image: Image.Image) -> bool:
    """Return whether an image has pixels of different colors."""
    extrema = (_extrema(image, channel) for channel in "RGB")
    return any(low != high for low, high in extrema)


def _choose_ground(image: Image.Image) -> str:
    """Return the color on which a transparent image can be seen."""
    dark_sum = alpha_sum = 0
    for _, strip in _strips(image):
        pixels = np.asarray(strip)
        alpha = pixels[..., 3]
        is_dark = pixels[..., :3].min(axis=2) <= MAX_DARK
        dark_sum += int(alpha.sum(where=is_dark, dtype=np.int64))
        alpha_sum += int(alpha.sum(dtype=np.int64))
    # Without a visible pixel, both sums are 0.
    return "white" if dark_sum >= MIN_DARK_SHARE * alpha_sum else "black"
