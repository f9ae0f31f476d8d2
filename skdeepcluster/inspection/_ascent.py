"""Filters of a layer -> images that are made for them, by gradient ascent."""

import math
from numbers import Real

import numpy as np
import torch
from sklearn.utils._param_validation import Interval, validate_params
from torch.nn import functional

from .._activations.layers import LayerOutputs
from .._activations.maps import float32_evaluation, select_filters, split_into_batches
from .._activations.model import COUNT, MODEL, EvaluatedModel
from .._inputs.arrays import check_image_shape
from .._utils.random import RandomStreams

# In units of the images' scale.
START = 1.0  # standard deviation of the noise that it starts from
STEP = 0.3  # root mean square of one step's changes
DECAY = 0.01  # share of the way back to the mean, in each step
BLUR_EVERY = 4  # steps
LIMIT = 3.0  # largest distance from the mean
LEAK = 0.01  # slope below zero: a filter that is silent still knows the way up


@validate_params(
    {
        "model": MODEL,
        "n_steps": [COUNT],
        "blur": [Interval(Real, 0, None, closed="left")],
        "random_state": ["random_state"],
    },
    prefer_skip_nested_validation=True,
)
def maximal_images(
    model,
    layer,
    filters=None,
    *,
    n_steps=100,
    blur=1.0,
    image_shape=None,
    random_state=None,
) -> np.ndarray:
    """Make the images that filters respond to most, by gradient ascent from noise.

    Each step changes all pixels along the gradient of the filter's mean activation, by
    the same amount whatever the size of the gradient. What keeps the images from
    becoming noise that only the network understands is a slight decay towards the mean,
    and a Gaussian blur in each fourth step, which weakens until it is gone at the end.

    Parameters
    ----------
    model : DeepClusterEstimator or torch.nn.Module
        Fitted. A module takes float32 images (n, C, H, W).
    layer : str
        "conv1", "conv2" and so on are the convolutions in the order they are run, each
        after the norm and the rectifier that follow it; in networks without
        convolutions "layer1" and so on are the hidden activations. "embedding" is the
        network's output. Other names are paths of submodules, as in `named_modules`,
        such as "trunk.4" of an estimator's `module_`, whose last output counts.
    filters : array-like of int, default=None
        Channels of the layer, from 0. None is all.
    n_steps : int, default=100
        Steps of the ascent.
    blur : float, default=1.0
        Width of the first blur: its standard deviation in pixels. 0 is none.
    image_shape : tuple (C, H, W), default=None
        Shape of the images. None is the shape in `fit`; a module needs it.
    random_state : int, RandomState instance or None, default=None
        Seed of the noise. Each filter has noise of its own, whichever others are asked
        for.

    Returns
    -------
    images : ndarray of shape (n_filters, C, H, W), float32
        In the units of `X` in `fit`. No value is further from the mean of its channel
        than 3 standard deviations, nor outside 0 to 255 if `X` was bytes. A module is
        taken to expect a mean of 0 and a standard deviation of 1.

    Raises
    ------
    ValueError
        If there is no such layer or filter, or the network does not take such images.

    See Also
    --------
    top_images : The images of a set that filters respond to most.

    Notes
    -----
    The paper maximizes the cross entropy between a filter and the others of its layer.
    Here it is the activation itself, which no filter saturates.

    References
    ----------
    J. Yosinski, J. Clune, A. Nguyen, T. Fuchs and H. Lipson, "Understanding Neural
    Networks Through Deep Visualization", ICML Deep Learning Workshop, 2015.

    M. Caron, P. Bojanowski, A. Joulin and M. Douze, "Deep Clustering for Unsupervised
    Learning of Visual Features", European Conference on Computer Vision, 2018, Fig. 4.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from skdeepcluster import DeepClusterEstimator
    >>> from skdeepcluster.inspection import maximal_images
    >>> images = load_digits().images[:300]
    >>> model = DeepClusterEstimator(n_clusters=10, max_iter=1, random_state=0)
    >>> maximal_images(model.fit(images), "conv2", [0, 5], random_state=0).shape
    (2, 1, 8, 8)
    """
    judged = EvaluatedModel.of(model)
    shape = check_image_shape(image_shape) or getattr(model, "image_shape_", None)
    if shape is None:
        raise ValueError(
            f"model={type(model).__name__} does not tell the shape of its images. Set "
            "image_shape to (C, H, W)."
        )
    streams = RandomStreams.from_random_state(random_state)
    with float32_evaluation(judged):
        tapped, filters = select_filters(judged, shape, layer, filters, raw=True)
        mean, scale, low, high = (
            values.to(judged.device) for values in _value_range(judged)
        )
        noise = [
            torch.randn(shape, generator=streams.torch("noise", int(f)))
            for f in filters
        ]
        images = np.empty((len(filters), *shape), np.float32)
        for part in split_into_batches(len(filters), shape):
            start = START * torch.stack(noise[part]).to(judged.device)
            chosen = torch.from_numpy(filters[part]).to(judged.device)
            ends = _ascend(
                *(tapped, chosen, start, mean, scale),
                *((low - mean) / scale, (high - mean) / scale, n_steps, blur),
            )
            # Once more, for what rounding leaves beyond the limits.
            images[part] = (mean + scale * ends).clamp(low, high).cpu().numpy()
    return images


def _value_range(judged: EvaluatedModel) -> tuple[torch.Tensor, ...]:
    """Return mean, scale and limits of pixels, each of shape (C, 1, 1) or (1,)."""
    fitted = judged.input_spec.fitted
    if fitted is None:
        mean, scale = torch.zeros(1), torch.ones(1)
    else:
        shape = (-1,) + (1,) * (len(fitted.shape) - 1)
        mean = torch.from_numpy(fitted.mean).reshape(shape)
        scale = torch.from_numpy(fitted.scale).reshape(shape)
    low, high = mean - LIMIT * scale, mean + LIMIT * scale
    if fitted is not None and fitted.dtype == np.uint8:
        low, high = low.clamp(min=0), high.clamp(max=255)
    return mean, scale, low, high


def _ascend(
    tapped: LayerOutputs,
    filters: torch.Tensor,
    images: torch.Tensor,
    mean: torch.Tensor,
    scale: torch.Tensor,
    low: torch.Tensor,
    high: torch.Tensor,
    n_steps: int,
    blur: float,
) -> torch.Tensor:
    """Change standardized images (n, C, H, W) until each activates its filter."""
    each = torch.arange(len(images), device=images.device)
    for step in range(n_steps):
        images.requires_grad_()
        maps = tapped(mean + scale * images)
        if tapped.layers[0].rectified:
            maps = functional.leaky_relu(maps, LEAK)
        goal = maps[each, filters].mean(dim=(1, 2)).sum()
        (slope,) = torch.autograd.grad(goal, images)
        with torch.no_grad():
            size = slope.square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
            images = images + STEP * slope / size.clamp(min=1e-30)
            if step % BLUR_EVERY == 0:
                images = _blurred(images, blur * (1 - step / n_steps))
            images = ((1 - DECAY) * images).clamp(low, high)
    return images


def _blurred(images: torch.Tensor, width: float) -> torch.Tensor:
    """Convolve images with a Gaussian of standard deviation `width`, in pixels."""
    reach = math.ceil(3 * width)
    if reach == 0:
        return images
    offsets = torch.arange(-reach, reach + 1, device=images.device)
    weights = torch.exp(-((offsets / width) ** 2) / 2)
    weights = (weights / weights.sum()).repeat(images.shape[1], 1, 1, 1)
    padded = functional.pad(images, (reach,) * 4, mode="replicate")
    for kernel in (weights, weights.mT):
        padded = functional.conv2d(padded, kernel, groups=images.shape[1])
    return padded
