"""Mean and scale of the pixels that a module was trained with."""

import contextlib
import math

import numpy as np
import torch
from torch import nn

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
