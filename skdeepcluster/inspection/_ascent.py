"""Images that maximize the activation of filters, by gradient ascent."""

import math
from dataclasses import dataclass
from numbers import Real

import numpy as np
import torch
from sklearn.utils._param_validation import Interval, validate_params
from torch.nn import functional

from .._activations.layers import LayerOutputs
from .._activations.maps import float32_evaluation, select_filters, split_into_batches
from .._activations.model import COUNT, MODEL, EvaluatedModel
from .._inputs.arrays import check_image_shape
from .._utils.neutral_state import with_neutral_state
from .._utils.random import RandomStreams

# Standard deviation of the initial noise, for standardized pixels.
NOISE_SCALE = 1.0
# Root mean square of the change of the pixels in one step.
STEP_SIZE = 0.3
# Share of the distance to the mean by which pixels shrink in each step.
DECAY = 0.01
# Number of steps from one blur to the next.
BLUR_INTERVAL = 4
# Largest absolute value of a standardized pixel.
MAX_DEVIATION = 3.0
# Slope of the leaky ReLU, which gives silent filters a gradient.
NEGATIVE_SLOPE = 0.01


@dataclass(frozen=True)
class PixelRange:
    """Mean, scale and limits of pixels, each of shape (C, 1, 1) or (1,)."""

    mean: torch.Tensor
    scale: torch.Tensor
    low: torch.Tensor
    high: torch.Tensor

    def to(self, device: torch.device) -> "PixelRange":
        """Return a copy on a device."""
        return PixelRange(
            mean=self.mean.to(device),
            scale=self.scale.to(device),
            low=self.low.to(device),
            high=self.high.to(device),
        )

    def from_standardized(self, images: torch.Tensor) -> torch.Tensor:
        """Return pixels in the units of `X` in `fit`."""
        return self.mean + self.scale * images

    def clamp_standardized(self, images: torch.Tensor) -> torch.Tensor:
        """Limit standardized pixels to the range."""
        low = (self.low - self.mean) / self.scale
        high = (self.high - self.mean) / self.scale
        return images.clamp(low, high)


@with_neutral_state
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
    """Generate images that maximize the activation of filters.

    The images start as noise and follow the gradient of the filter's mean activation.
    The size of a step does not depend on the norm of the gradient. Two regularizers
    keep the images smooth: a slight decay towards the mean in each step, and a
    Gaussian blur in every fourth step, which shrinks to zero at the end.

    Parameters
    ----------
    model : DeepClusterEstimator or torch.nn.Module
        Fitted estimator, or any network for float32 images (n, C, H, W).
    layer : str
        Name of the layer. "conv1", "conv2" and so on are the convolutions in execution
        order, each with the norm and the activation that follow. In networks without
        convolutions "layer1" and so on are the hidden activations. "embedding" is the
        output of the network. Other names are paths of submodules, as in
        `named_modules`, such as "trunk.4" of an estimator's `module_`. If a submodule
        is called several times, its last output is used.
    filters : array-like of int, default=None
        Channels of the layer, from 0. None selects all channels.
    n_steps : int, default=100
        Number of gradient steps. Raise it for a higher activation.
    blur : float, default=1.0
        Standard deviation of the first blur in pixels. Raise it for smoother images;
        0 disables blurring.
    image_shape : tuple (C, H, W), default=None
        Shape of the images. None is the shape in `fit`; it is required for a module.
    random_state : int, RandomState instance or None, default=None
        Seed of the noise. The noise of a filter does not depend on the other selected
        filters. Pass an int for reproducible results.

    Returns
    -------
    images : ndarray of shape (n_filters, C, H, W), float32
        Images in the units of `X` in `fit`. Values are at most 3 standard deviations
        from the mean of their channel, and between 0 and 255 if `X` was uint8. A
        module is assumed to expect mean 0 and standard deviation 1.

    Raises
    ------
    ValueError
        If the layer or a filter does not exist, or the network does not take images
        of this shape.

    See Also
    --------
    top_images : Find the images of a data set with the largest activations.

    Notes
    -----
    The paper maximizes the cross entropy between a filter and the other filters of
    its layer. This function maximizes the activation itself, which does not saturate.

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
    inspected = EvaluatedModel.from_model(model)
    shape = check_image_shape(image_shape) or getattr(model, "image_shape_", None)
    if shape is None:
        raise ValueError(
            f"model={type(model).__name__} does not define the shape of its images. "
            "Set image_shape to (C, H, W)."
        )
    streams = RandomStreams.from_random_state(random_state)
    with float32_evaluation(inspected):
        layer_outputs, filters = select_filters(
            inspected, shape, layer, filters, raw=True
        )
        pixel_range = _pixel_range(inspected).to(inspected.device)
        # One generator a filter, on the CPU: the same noise on every device.
        noise = [
            torch.randn(shape, generator=streams.torch("noise", int(index)))
            for index in filters
        ]
        images = np.empty((len(filters), *shape), np.float32)
        for batch in split_into_batches(len(filters), shape):
            maximized = _ascend(
                layer_outputs,
                torch.from_numpy(filters[batch]).to(inspected.device),
                NOISE_SCALE * torch.stack(noise[batch]).to(inspected.device),
                pixel_range,
                n_steps=n_steps,
                blur=blur,
            )
            # Clamped again, because rounding may exceed the limits.
            pixels = pixel_range.from_standardized(maximized)
            pixels = pixels.clamp(pixel_range.low, pixel_range.high)
            images[batch] = pixels.cpu().numpy()
    return images


def _pixel_range(model: EvaluatedModel) -> PixelRange:
    """Return the range of pixels that the network was trained on."""
    fitted = model.input_spec.fitted
    # A module of its own is assumed to take standardized pixels.
    if fitted is None:
        mean, scale = torch.zeros(1), torch.ones(1)
    else:
        shape = (-1,) + (1,) * (len(fitted.shape) - 1)
        mean = torch.from_numpy(fitted.mean).reshape(shape)
        scale = torch.from_numpy(fitted.scale).reshape(shape)
    low, high = mean - MAX_DEVIATION * scale, mean + MAX_DEVIATION * scale
    if fitted is not None and fitted.dtype == np.uint8:
        low, high = low.clamp(min=0), high.clamp(max=255)
    return PixelRange(mean=mean, scale=scale, low=low, high=high)


def _ascend(
    layer_outputs: LayerOutputs,
    filters: torch.Tensor,
    images: torch.Tensor,
    pixel_range: PixelRange,
    *,
    n_steps: int,
    blur: float,
) -> torch.Tensor:
    """Change standardized images (n, C, H, W) to activate one filter each."""
    rows = torch.arange(len(images), device=images.device)
    for step in range(n_steps):
        images.requires_grad_()
        # The maps are raw: ReLU has no gradient where a filter is silent.
        maps = layer_outputs(pixel_range.from_standardized(images))
        if layer_outputs.layers[0].rectified:
            maps = functional.leaky_relu(maps, NEGATIVE_SLOPE)
        objective = maps[rows, filters].mean(dim=(1, 2)).sum()
        (gradient,) = torch.autograd.grad(objective, images)
        with torch.no_grad():
            # The norm of a gradient varies by orders of magnitude between filters.
            norm = gradient.square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
            images = images + STEP_SIZE * gradient / norm.clamp(min=1e-30)
            if step % BLUR_INTERVAL == 0:
                images = _gaussian_blur(images, blur * (1 - step / n_steps))
            images = pixel_range.clamp_standardized((1 - DECAY) * images)
    return images


def _gaussian_blur(images: torch.Tensor, sigma: float) -> torch.Tensor:
    """Convolve images with a Gaussian of standard deviation `sigma` in pixels."""
    radius = math.ceil(3 * sigma)
    if radius == 0:
        return images
    offsets = torch.arange(-radius, radius + 1, device=images.device)
    weights = torch.exp(-((offsets / sigma) ** 2) / 2)
    weights = (weights / weights.sum()).repeat(images.shape[1], 1, 1, 1)
    # Zero padding would darken the border.
    blurred = functional.pad(images, (radius,) * 4, mode="replicate")
    # A Gaussian is separable: one pass along rows and one along columns.
    for kernel in (weights, weights.mT):
        blurred = functional.conv2d(blurred, kernel, groups=images.shape[1])
    return blurred
