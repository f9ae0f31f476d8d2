"""Pixels that given weights expect, and the black and white of the images."""

import contextlib
import math

import numpy as np
import torch
from torch import nn

from .._inputs.sources import Source
from .pretrained import IMAGENET_MEAN, IMAGENET_STD

# Means and standard deviations of common preprocessings of pixels from 0 to 1: that of
# ImageNet, to pixels from -1 to 1, and unchanged pixels.
COMMON_STATISTICS = (
    (IMAGENET_MEAN, IMAGENET_STD),
    ((0.5,) * 3, (0.5,) * 3),
    ((0.0,) * 3, (1.0,) * 3),
)
# Largest divergence of a preprocessing that is taken for that of a module. Two
# photographs are few, so that even the right one has some.
MAX_DIVERGENCE = 0.2

# Half of the range of bytes.
BYTE_HALF = 128
# Share of the pixels that are no brighter than white, in images of more than 8 bits.
WHITE_QUANTILE = 0.999
# Number of values of which the quantile is computed.
QUANTILE_VALUES = 1_000_000


def guess_statistics(
    module: nn.Module, size: tuple[int, int]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Guess the mean and standard deviation of the pixels in a module's training.

    The first batch norm of a module keeps mean and variance of its input in training.
    On two photographs, the input of the right preprocessing has nearly the same mean
    and variance. The guess does not depend on the images of a fit.

    Parameters
    ----------
    module : nn.Module
        It is left in evaluation mode.
    size : (int, int)
        Height and width of its images.

    Returns
    -------
    mean, std : tuples of three floats
        For pixels from 0 to 1: those of ImageNet, unless other common ones fit better.
    """
    # These take long to import.
    from sklearn.datasets import load_sample_images
    from torchvision.transforms.functional import resize

    module.eval()
    photographs = np.stack(load_sample_images().images).transpose(0, 3, 1, 2)
    pixels = resize(torch.from_numpy(photographs).float() / 255, size, antialias=True)
    divergences = [
        _divergence(module, (pixels - _channels(mean)) / _channels(std))
        for mean, std in COMMON_STATISTICS
    ]
    best = int(np.argmin(divergences))
    is_clear = divergences[best] < MAX_DIVERGENCE
    return COMMON_STATISTICS[best if is_clear else 0]


def _channels(values: tuple[float, ...]) -> torch.Tensor:
    """Return one value for each channel, (3, 1, 1)."""
    return torch.tensor(values)[:, None, None]


class _EndOfForward(Exception):
    """Ends a forward pass early."""


def _divergence(module: nn.Module, batch: torch.Tensor) -> float:
    """Return how far the input of a batch norm is from its input in training.

    It is the Kullback-Leibler divergence between two normal distributions, averaged
    over channels, for the batch norm that the forward pass reaches first. Without a
    batch norm it is infinite.
    """
    result = math.inf

    def measure(layer: nn.BatchNorm2d, inputs: tuple) -> None:
        nonlocal result
        assert layer.running_mean is not None
        assert layer.running_var is not None
        maps = inputs[0].float()
        shift = (maps.mean(dim=(0, 2, 3)) - layer.running_mean).square()
        variance = layer.running_var + layer.eps
        ratio = (maps.var(dim=(0, 2, 3)) + layer.eps) / variance
        result = float(((ratio + shift / variance - 1 - ratio.log()) / 2).mean())
        raise _EndOfForward

    hooks = [
        layer.register_forward_pre_hook(measure)
        for layer in module.modules()
        if isinstance(layer, nn.BatchNorm2d) and layer.running_mean is not None
    ]
    device = next((p.device for p in module.parameters()), batch.device)
    try:
        with torch.no_grad(), contextlib.suppress(_EndOfForward):
            if hooks:
                module(batch.to(device))
    finally:
        for hook in hooks:
            hook.remove()
    return result


def find_pixel_range(sample: Source) -> tuple[float, float]:
    """Return black and white in images, from a sample of them.

    Returns
    -------
    black : float
        0, or the lowest value of whole numbers with negative values, as in computed
        tomography.
    white : float
        255 for bytes, 1 for masks and fractions. Of larger numbers 99.9 % are at most
        white, so that single broken pixels of a camera do not make all images dark.

    Raises
    ------
    ValueError
        If fractions are negative, so that black is unknown.
    """
    values = sample.batch(slice(None)).numpy()
    low, high = float(values.min()), float(values.max())
    # Bytes of a mask are 0 or 1.
    if sample.dtype == np.uint8 and high > 1:
        return 0.0, 255.0
    is_whole = sample.dtype != np.uint8 and bool((values == np.round(values)).all())
    if low < 0 and not is_whole:
        raise ValueError(
            f"Networks with given weights take pixels from black, 0, to white, but X "
            f"holds values from {low:.3g} to {high:.3g}. Pass pixels, or set "
            "preprocess=nn.Identity() if they are standardized already."
        )
    black = min(low, 0.0)
    if high <= 1 and black == 0:
        return 0.0, 1.0
    # Dark images of bytes that have become floats still have white at 255.
    if BYTE_HALF <= high <= 255 and black == 0:
        return 0.0, 255.0
    if high - black > 255:
        step = max(1, values.size // QUANTILE_VALUES)
        high = float(np.quantile(values.ravel()[::step], WHITE_QUANTILE))
    return black, max(high, black + 1)
