"""Filters of a network: their weights, and the images with the largest activations."""

from dataclasses import dataclass

import numpy as np
import torch
from sklearn.utils._param_validation import validate_params
from torch import nn

from .._activations.maps import (
    float32_evaluation,
    read_image_input,
    select_filters,
    split_into_batches,
)
from .._activations.model import COUNT, MODEL, EvaluatedModel
from .._utils.compute import Compute
from .._utils.neutral_state import with_neutral_state


@with_neutral_state
@validate_params({"model": MODEL}, prefer_skip_nested_validation=True)
def first_layer_filters(model) -> np.ndarray:
    """Return the weights of the first convolution, which can be displayed as images.

    Parameters
    ----------
    model : DeepClusterEstimator or torch.nn.Module
        Fitted estimator, or any network.

    Returns
    -------
    filters : ndarray of shape (n_filters, C, h, w), float32
        Copy of the weights. The channels are the channels of the images or, with
        `sobel=True`, the horizontal and the vertical gradient.

    Raises
    ------
    ValueError
        If the network has no convolution.

    See Also
    --------
    maximal_images : Generate images that maximize filters of deeper layers.

    References
    ----------
    M. Caron, P. Bojanowski, A. Joulin and M. Douze, "Deep Clustering for Unsupervised
    Learning of Visual Features", European Conference on Computer Vision, 2018, Fig. 3.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from skdeepcluster import DeepClusterEstimator
    >>> from skdeepcluster.inspection import first_layer_filters
    >>> images = load_digits().images[:300]
    >>> model = DeepClusterEstimator(n_clusters=10, max_iter=1, random_state=0)
    >>> first_layer_filters(model.fit(images)).shape
    (32, 1, 3, 3)
    """
    for module in EvaluatedModel.from_model(model).network.modules():
        if isinstance(module, nn.Conv2d):
            return module.weight.detach().float().cpu().numpy().copy()
    raise ValueError(
        f"model={type(model).__name__} has no convolution. Use a convolutional "
        "network, such as backbone='convnet'."
    )


@with_neutral_state
@validate_params(
    {"model": MODEL, "n_images": [COUNT]},
    prefer_skip_nested_validation=True,
)
def top_images(model, X, layer, filters=None, *, n_images=9) -> list[dict]:
    """Find the images with the largest activations of filters.

    Images are read in batches, and only the best images so far are kept in memory.

    Parameters
    ----------
    model : DeepClusterEstimator or torch.nn.Module
        Fitted estimator, or any network for float32 images (n, C, H, W).
    X : array-like, tensor, folder, paths, PIL images or dataset
        Images in any form that `DeepClusterEstimator.fit` takes.
    layer : str
        Name of the layer. "conv1", "conv2" and so on are the convolutions in execution
        order, each with the norm and the activation that follow. In networks without
        convolutions "layer1" and so on are the hidden activations. "embedding" is the
        output of the network. Other names are paths of submodules, as in
        `named_modules`, such as "trunk.4" of an estimator's `module_`. If a submodule
        is called several times, its last output is used.
    filters : array-like of int, default=None
        Channels of the layer, from 0. None selects all channels.
    n_images : int, default=9
        Number of images for each filter. If `X` holds fewer images, all are returned.

    Returns
    -------
    table : list of dict
        One row for each filter and rank, with the keys `filter`, `rank`, `row`,
        `activation`, `y` and `x`. Rank 0 is the best image, and `row` its row in `X`.
        `activation` is the maximum over the image, at the pixel `y`, `x`. For
        vectors, that pixel is the center of the image. Ties are ordered by row.
        `pandas.DataFrame(table)` makes it a table.

    Raises
    ------
    ValueError
        If the layer or a filter does not exist, or `X` is invalid.

    Warns
    -----
    UserWarning
        If images cannot be read and `on_error="skip"`. They are left out.

    See Also
    --------
    maximal_images : Generate images that maximize a filter.

    References
    ----------
    M. Caron, P. Bojanowski, A. Joulin and M. Douze, "Deep Clustering for Unsupervised
    Learning of Visual Features", European Conference on Computer Vision, 2018, Fig. 4
    and 5.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from skdeepcluster import DeepClusterEstimator
    >>> from skdeepcluster.inspection import top_images
    >>> images = load_digits().images[:300]
    >>> model = DeepClusterEstimator(n_clusters=10, max_iter=1, random_state=0)
    >>> table = top_images(model.fit(images), images, "conv4", [7, 8], n_images=3)
    >>> [(entry["filter"], entry["rank"]) for entry in table]
    [(7, 0), (7, 1), (7, 2), (8, 0), (8, 1), (8, 2)]
    >>> sorted(table[0])
    ['activation', 'filter', 'rank', 'row', 'x', 'y']
    """
    inspected = EvaluatedModel.from_model(model)
    data, failures = read_image_input(X, inspected.input_spec)
    shape = data.source.shape
    with float32_evaluation(inspected):
        layer_outputs, filters = select_filters(inspected, shape, layer, filters)
        ranking = Ranking.empty(n_filters=len(filters), n_images=n_images)
        batches = split_into_batches(len(data.source), shape)
        for rows, images in zip(batches, data.source.batches(batches), strict=True):
            # Read failures are known only after the batch was decoded.
            input_rows = data.rows[rows]
            is_readable = ~failures.mask(input_rows)
            with torch.inference_mode():
                maps = layer_outputs(Compute(inspected.device).move(images))
                maxima, positions = maps[:, filters].flatten(2).max(dim=2)
            ranking = ranking.update(
                activations=maxima.cpu().numpy()[is_readable],
                positions=positions.cpu().numpy()[is_readable],
                rows=input_rows[is_readable],
            )
    failures.warn(data.n)
    y, x = _position_to_pixel(ranking.positions, maps.shape[2:], shape[1:])
    return [
        {
            "filter": int(index),
            "rank": rank,
            "row": int(ranking.rows[rank, column]),
            "activation": float(ranking.activations[rank, column]),
            "y": int(y[rank, column]),
            "x": int(x[rank, column]),
        }
        for column, index in enumerate(filters)
        for rank in range(len(ranking.rows))
    ]


@dataclass(frozen=True)
class Ranking:
    """Images with the largest activations of each filter so far.

    Attributes
    ----------
    n_images : int
        Largest number of images for each filter.
    activations : ndarray of shape (n_ranks, n_filters), float32
        Activations in descending order.
    positions : ndarray of shape (n_ranks, n_filters), int64
        Index of the largest activation in the flattened map.
    rows : ndarray of shape (n_ranks, n_filters), int64
        Row of `X`.
    """

    n_images: int
    activations: np.ndarray
    positions: np.ndarray
    rows: np.ndarray

    @classmethod
    def empty(cls, n_filters: int, n_images: int) -> "Ranking":
        """Return a ranking without images."""
        return cls(
            n_images=n_images,
            activations=np.empty((0, n_filters), np.float32),
            positions=np.empty((0, n_filters), np.int64),
            rows=np.empty((0, n_filters), np.int64),
        )

    def update(
        self, activations: np.ndarray, positions: np.ndarray, rows: np.ndarray
    ) -> "Ranking":
        """Return the ranking of the images so far and of a new batch.

        Parameters
        ----------
        activations, positions : ndarray of shape (n_batch, n_filters)
        rows : ndarray of shape (n_batch,)
        """
        rows = np.broadcast_to(rows[:, None], activations.shape)
        activations = np.concatenate([self.activations, activations])
        positions = np.concatenate([self.positions, positions])
        rows = np.concatenate([self.rows, rows])
        # A stable sort keeps the first row of equal activations.
        best = np.argsort(-activations, axis=0, kind="stable")[: self.n_images]
        return Ranking(
            n_images=self.n_images,
            activations=np.take_along_axis(activations, best, axis=0),
            positions=np.take_along_axis(positions, best, axis=0),
            rows=np.take_along_axis(rows, best, axis=0),
        )


def _position_to_pixel(
    positions: np.ndarray, map_size: tuple[int, ...], image_size: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the pixel at the center of the image patch of each map position.

    Parameters
    ----------
    positions : ndarray of int
        Indices into flattened maps.
    map_size, image_size : tuple of (height, width)
    """
    (map_height, map_width), (height, width) = map_size, image_size
    y, x = np.divmod(positions, map_width)
    y = (2 * y + 1) * height // (2 * map_height)
    x = (2 * x + 1) * width // (2 * map_width)
    return y, x
