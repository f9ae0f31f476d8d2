"""A network's filters -> their weights, and the images they respond to most."""

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


@validate_params({"model": MODEL}, prefer_skip_nested_validation=True)
def first_layer_filters(model) -> np.ndarray:
    """Return the weights of the first convolution, which can be looked at as images.

    Parameters
    ----------
    model : DeepClusterEstimator or torch.nn.Module
        Fitted.

    Returns
    -------
    filters : ndarray of shape (n_filters, C, h, w), float32
        A copy. The channels are those of the images or, with `sobel=True`, the
        horizontal and the vertical gradient.

    Raises
    ------
    ValueError
        If the network has no convolution.

    See Also
    --------
    maximal_images : What filters of deeper layers respond to.

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
    for module in EvaluatedModel.of(model).network.modules():
        if isinstance(module, nn.Conv2d):
            return module.weight.detach().float().cpu().numpy().copy()
    raise ValueError(
        f"model={type(model).__name__} has no convolution, so there are no filters to "
        "look at. Use a convnet, such as backbone='convnet'."
    )


@validate_params(
    {"model": MODEL, "n_images": [COUNT]},
    prefer_skip_nested_validation=True,
)
def top_images(model, X, layer, filters=None, *, n_images=9) -> list[dict]:
    """Find the images that filters respond to most.

    Images are read by the batch, and only the best so far are kept.

    Parameters
    ----------
    model : DeepClusterEstimator or torch.nn.Module
        Fitted. A module takes float32 images (n, C, H, W).
    X : array-like, tensor, folder, paths, pictures or dataset
        Images in any form that `DeepClusterEstimator.fit` takes.
    layer : str
        "conv1", "conv2" and so on are the convolutions in the order they are run, each
        after the norm and the rectifier that follow it; in networks without
        convolutions "layer1" and so on are the hidden activations. "embedding" is the
        network's output. Other names are paths of submodules, as in `named_modules`,
        such as "trunk.4" of an estimator's `module_`, whose last output counts.
    filters : array-like of int, default=None
        Channels of the layer, from 0. None is all.
    n_images : int, default=9
        Images for each filter; fewer if `X` holds fewer.

    Returns
    -------
    table : list of dict
        One entry for each `filter` and `rank`, from 0 for the best: `row` of `X`;
        `activation`, the filter's largest in the image; and its place, pixel `y`, `x`,
        which is that of the image's center for layers without places. Of equal
        activations the first row is first. `pandas.DataFrame(table)` is a table.

    Raises
    ------
    ValueError
        If there is no such layer or filter, or `X` is not usable.

    Warns
    -----
    UserWarning
        If images cannot be read, with `on_error="skip"`. They are left out.

    See Also
    --------
    maximal_images : Images that are made for a filter.

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
    judged = EvaluatedModel.of(model)
    given, failures = read_image_input(X, judged.input_spec)
    shape = given.source.shape
    with float32_evaluation(judged):
        tapped, filters = select_filters(judged, shape, layer, filters)
        values: np.ndarray = np.empty((0, len(filters)), np.float32)
        rows: np.ndarray = np.empty(values.shape, np.int64)
        places = rows
        parts = split_into_batches(len(given.source), shape)
        batches = given.source.batches(parts)
        for part, batch in zip(parts, batches, strict=True):
            there = given.rows[part]
            kept = ~failures.mask(there)
            with torch.inference_mode():
                maps = tapped(Compute(judged.device).move(batch))
                largest, at = maps[:, filters].flatten(2).max(dim=2)
            values = np.concatenate([values, largest.cpu().numpy()[kept]])
            places = np.concatenate([places, at.cpu().numpy()[kept]])
            there = np.broadcast_to(there[kept, None], (kept.sum(), len(filters)))
            rows = np.concatenate([rows, there])
            best = np.argsort(-values, axis=0, kind="stable")[:n_images]
            values, places, rows = (
                np.take_along_axis(of_all, best, axis=0)
                for of_all in (values, places, rows)
            )
    failures.warn(given.n)
    # From the map's positions to pixels, each in the middle of those it stands for.
    (height, width), (_, high, wide) = maps.shape[2:], shape
    y, x = np.divmod(places, width)
    y, x = (2 * y + 1) * high // (2 * height), (2 * x + 1) * wide // (2 * width)
    return [
        {
            "filter": int(number),
            "rank": rank,
            "row": int(rows[rank, column]),
            "activation": float(values[rank, column]),
            "y": int(y[rank, column]),
            "x": int(x[rank, column]),
        }
        for column, number in enumerate(filters)
        for rank in range(len(rows))
    ]
