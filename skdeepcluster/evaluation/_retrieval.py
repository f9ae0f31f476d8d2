"""Feature maps of images -> how well a search finds those of the same class."""

from functools import partial

import numpy as np
import torch
from sklearn.preprocessing import normalize
from sklearn.utils._param_validation import validate_params

from .._activations.layers import EMBEDDING, default_layers, find_layers
from .._activations.model import MODEL, EvaluatedModel, warn_unreadable_images
from .._clustering.whitening import fit_projection

N_SCALES = 3  # of the regions that R-MAC pools over, as in the paper
RANKED_VALUES = 2**24  # similarities, of some queries to all images, at once


@validate_params(
    {"model": MODEL, "queries": ["array-like", None], "layer": [str, None]},
    prefer_skip_nested_validation=True,
)
def retrieval_map(model, X, y, *, queries=None, layer=None, memory=None):
    """Compute the mean average precision of searches for images of the same class.

    Images are ranked by cosine similarity of their R-MAC: the maxima of a layer's maps
    in regions of three scales, each scaled to unit length, whitened and scaled again,
    are summed.

    Parameters
    ----------
    model : DeepClusterEstimator or torch.nn.Module
        As in `linear_probe`.
    X : array-like, tensor, folder, paths, pictures or dataset
        Images that are searched.
    y : array-like of shape (n,)
        Classes of these.
    queries : array-like of int, default=None
        Rows of `X` that are searched for, each among the other images. None is all.
    layer : str, default=None
        Name, as in `linear_probe`. None is the last convolution, or the embedding of
        networks without; an output (n, d) counts as a single region.
    memory : None, str or object with the joblib.Memory interface, default=None
        As in `linear_probe`.

    Returns
    -------
    table : list of dict
        One row: `layer`, `n_queries` with at least one other image of their class,
        `mean_average_precision` over these.

    Raises
    ------
    ValueError
        If a query is no row of `X` or none has another image of its class, or as in
        `linear_probe`.

    See Also
    --------
    knn_accuracy : Only the nearest images count.

    Notes
    -----
    The section "Evaluation on instance retrieval" of the paper, whose images are
    whitened by what other images have taught. Here the whitening is that of `X`, to
    as many components as explain 99 % of the variance, at most 256.

    References
    ----------
    G. Tolias, R. Sicre and H. Jégou, "Particular Object Retrieval with Integral
    Max-Pooling of CNN Activations", International Conference on Learning
    Representations, 2016.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from skdeepcluster import DeepClusterEstimator
    >>> from skdeepcluster.evaluation import retrieval_map
    >>> images, y = load_digits().images[:300], load_digits().target[:300]
    >>> model = DeepClusterEstimator(10, max_iter=1, epochs_per_iter=3, random_state=0)
    >>> retrieval_map(model.fit(images), images, y)
    [{'layer': 'conv4', 'n_queries': 300, 'mean_average_precision': ...}]
    """
    judged = EvaluatedModel.of(model)
    images = judged.labeled(X, y)
    n = images.given.n
    asked = np.arange(n) if queries is None else np.asarray(queries)
    if asked.ndim != 1 or asked.dtype.kind not in "iu" or not asked.size:
        raise ValueError("queries should be integers, the rows of X to search for.")
    if asked.min() < 0 or asked.max() >= n:
        raise ValueError(f"queries should lie between 0 and {n - 1}, the rows of X.")
    _check_answerable(images.y, asked)
    calls = judged.trace(images)
    if layer is None:
        names = [name for name in default_layers(calls) if name.startswith("conv")]
        layer = names[-1] if names else EMBEDDING
    (searched,) = find_layers(calls, [layer])
    regions = partial(region_maxima, n_scales=N_SCALES)
    maxima, y = judged.features(images, [searched], regions, memory)
    points = _aggregate(maxima.reshape(-1, searched.shape[0]), len(y))
    places = np.cumsum(images.readable) - 1
    asked = places[asked[images.readable[asked]]]
    precisions = _average_precisions(points, y, _check_answerable(y, asked))
    warn_unreadable_images(images)
    return [
        {
            "layer": layer,
            "n_queries": len(precisions),
            "mean_average_precision": float(np.mean(precisions)),
        }
    ]


def region_maxima(maps: torch.Tensor, n_scales: int) -> torch.Tensor:
    """Return the maximum of each channel in each square region, side by side.

    The regions of R-MAC: at scale l squares of 2 / (l + 1) of the shorter side, l of
    them along it; along the longer side as many more as make regions of the first
    scale overlap by about 40 %. A vector is one region.
    """
    if maps.ndim == 2:
        return maps.float()
    height, breadth = maps.shape[2:]
    short, long = min(height, breadth), max(height, breadth)
    more = 0
    if long > short:
        overlaps = [1 - (long - short) / (short * n) for n in range(1, 7)]
        more = 1 + int(np.argmin([abs(overlap - 0.4) for overlap in overlaps]))
    found = []
    for scale in range(1, n_scales + 1):
        side = max(1, 2 * short // (scale + 1))
        down = scale + (more if height > breadth else 0)
        across = scale + (more if breadth > height else 0)
        for top in np.linspace(0, height - side, down).astype(int):
            for left in np.linspace(0, breadth - side, across).astype(int):
                region = maps[:, :, top : top + side, left : left + side]
                found.append(region.float().amax(dim=(2, 3)))
    return torch.cat(found, dim=1)


def _check_answerable(y: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """Return the queries that have something to find."""
    _, names, sizes = np.unique(y, return_inverse=True, return_counts=True)
    found = asked[sizes[names[asked]] > 1]
    if not len(found):
        raise ValueError(
            "None of the queries has another image of its class in y. Pass more images."
        )
    return found


def _aggregate(maxima: np.ndarray, n: int) -> np.ndarray:
    """Return R-MAC of `n` images, from the maxima of all their regions."""
    maxima = normalize(maxima)
    projection = fit_projection(maxima, "auto", whiten=True, normalize=True)
    regions = projection(maxima).reshape(n, -1, projection.components.shape[1])
    return normalize(regions.sum(axis=1))


def _average_precisions(
    points: np.ndarray, y: np.ndarray, asked: np.ndarray
) -> np.ndarray:
    """Return the average precision of each query among all points but itself."""
    step = max(1, RANKED_VALUES // len(points))
    ranks = np.arange(1, len(points))
    found = []
    for start in range(0, len(asked), step):
        some = asked[start : start + step]
        similarities = points[some] @ points.T
        similarities[np.arange(len(some)), some] = -np.inf  # itself, which comes last
        order = np.argsort(-similarities, axis=1, kind="stable")[:, :-1]
        hits = y[order] == y[some, None]
        precisions = hits.cumsum(axis=1) / ranks
        found.append((precisions * hits).sum(axis=1) / hits.sum(axis=1))
    return np.concatenate(found)
