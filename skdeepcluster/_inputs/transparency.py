"""Transparent images on an opaque ground."""

import numpy as np
from PIL import Image, TiffImagePlugin

# PIL modes with a band of transparency.
ALPHA_MODES = ("RGBA", "RGBa", "LA", "La", "PA")

# Values of the tag ExtraSamples that stand for transparency.
TIFF_ALPHA = (1, 2)

# Largest value of the darkest channel of a pixel that is visible on white.
MAX_DARK = 223

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
    image = image.convert("RGBA")
    opaque = image.convert("RGB")
    low, high = image.getchannel("A").getextrema()
    if low == 255:
        return opaque
    if high == 0 and has_hidden_colors and _has_detail(opaque):
        # Some programs write a band of zeros, and mean an opaque image.
        return opaque
    ground = Image.new("RGBA", image.size, _choose_ground(image))
    return Image.alpha_composite(ground, image)


def partial_share(image: Image.Image) -> float:
    """Return the share of pixels that are neither opaque nor fully transparent.

    It is 0 if all pixels have one color: then transparency is all that there is to see,
    as in drawings of smoke.
    """
    if not _has_detail(image.convert("RGB")):
        return 0.0
    alpha = np.asarray(image.convert("RGBA").getchannel("A"))
    return float(np.mean((alpha > 0) & (alpha < 255)))


def _has_detail(image: Image.Image) -> bool:
    """Return whether an RGB image has pixels of different colors."""
    return any(low != high for low, high in image.getextrema())  # type: ignore[misc]


def _choose_ground(image: Image.Image) -> str:
    """Return the color on which an RGBA image can be seen."""
    pixels = np.asarray(image)
    alpha = pixels[..., 3].astype(np.float64)
    is_dark = pixels[..., :3].min(axis=2) <= MAX_DARK
    # Without a visible pixel, both sums are 0.
    is_visible = alpha[is_dark].sum() >= MIN_DARK_SHARE * alpha.sum()
    return "white" if is_visible else "black"
