"""Image retrieval: mean average precision of R-MAC descriptors."""

from functools import partial

import numpy as np
import torch
from sklearn.preprocessing import normalize
from sklearn.utils._param_validation import validate_params

from .._activations.layers import EMBEDDING, default_layers, find_layers
from .._activations.model import MODEL, EvaluatedModel, warn_unreadable_images
from .._clustering.whitening import fit_projection
from .._utils.neutral_state import with_neutral_state

# Number of scales of the R-MAC regions, as in the paper.
N_SCALES = 3
# Number of similarities between queries and images that are in memory at once.
RANKED_VALUES = 2**24


@with_neutral_state
@validate_params(
    {"model": MODEL, "queries": ["array-like", None], "layer": [str, None]},
    prefer_skip_nested_validation=True,
)
def retrieval_map(model, X, y, *, queries=None, layer=None, memory=None) -> float:
    """Compute the mean average precision of retrieving images of the query's class.

    Images are ranked by the cosine similarity of their R-MAC descriptors. A descriptor
    is built from the maxima of a layer's maps in regions of three scales. They are
    scaled to unit length, whitened, scaled again and summed.

    Parameters
    ----------
    model : DeepClusterEstimator or torch.nn.Module
        Fitted estimator or network, as in `linear_probe`.
    X : array-like, tensor, folder, paths, PIL images or dataset
        Images to search.
    y : array-like of shape (n,)
        Classes of the images.
    queries : array-like of int, default=None
        Rows of `X` that serve as queries. Each one is searched for among the other
        images. None selects all rows.
    layer : str, default=None
        Name of the layer, as in `linear_probe`. None selects the last convolution, or
        the embedding of networks without convolutions. A vector counts as one region.
    memory : None, str or object with the joblib.Memory interface, default=None
        Cache of the features, as in `linear_probe`.

    Returns
    -------
    mean_average_precision : float
        Mean over the queries for which another image has the same class.

    Raises
    ------
    ValueError
        If a query is not a row of `X`, or no query has another image of its class,
        and for the reasons given in `linear_probe`.

    See Also
    --------
    knn_accuracy : Classify by the nearest images only.

    Notes
    -----
    This is the section "Evaluation on instance retrieval" of the paper. The paper
    learns the whitening on a second set of images; this function learns it on `X`. The
    whitening keeps as many components as explain 99 % of the variance, at most 256.

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
    >>> retrieval_map(model.fit(images), images, y) > 0.3
    True
    """
    evaluated = EvaluatedModel.from_model(model)
    images = evaluated.read_labeled(X, y)
    queries = _check_queries(queries, images.data.n)
    # Checked here as well, so that an error comes before the features are computed.
    _drop_unanswerable(images.y, queries)
    calls = evaluated.trace(images)
    if layer is None:
        names = [name for name in default_layers(calls) if name.startswith("conv")]
        layer = names[-1] if names else EMBEDDING
    (region_layer,) = find_layers(calls, [layer])
    reduce = partial(region_maxima, n_scales=N_SCALES)
    maxima, y = evaluated.extract_features(images, [region_layer], reduce, memory)
    descriptors = _sum_regions(maxima.reshape(-1, region_layer.shape[0]), len(y))
    # Unreadable images have no descriptor: rows of X become rows of descriptors.
    descriptor_rows = np.cumsum(images.is_readable) - 1
    queries = descriptor_rows[queries[images.is_readable[queries]]]
    queries = _drop_unanswerable(y, queries)
    precisions = _average_precisions(descriptors, y, queries)
    warn_unreadable_images(images)
    return float(np.mean(precisions))


def _check_queries(queries, n: int) -> np.ndarray:
    if queries is None:
        return np.arange(n)
    rows = np.asarray(queries)
    if rows.ndim != 1 or rows.dtype.kind not in "iu" or not rows.size:
        raise ValueError(
            f"queries={queries!r} should be a list of integers, the rows of X to "
            "search for."
        )
    if rows.min() < 0 or rows.max() >= n:
        raise ValueError(
            f"queries holds values from {rows.min()} to {rows.max()}, but X has {n} "
            f"rows. Pass integers from 0 to {n - 1}."
        )
    return rows


def region_maxima(maps: torch.Tensor, n_scales: int) -> torch.Tensor:
    """Return the maximum of each channel in each square region, side by side.

    The regions follow R-MAC (Tolias et al., 2016). At scale l, the region size is
    2 / (l + 1) of the shorter dimension of the maps, and l regions lie along it. Along
    the longer dimension there are more, so that regions of the first scale overlap by
    about 40 %. A vector is one region.
    """
    if maps.ndim == 2:
        return maps.float()
    height, width = maps.shape[2:]
    shorter, longer = min(height, width), max(height, width)
    n_extra = 0
    if longer > shorter:
        # R-MAC tries 1 to 6 additional regions along the longer dimension.
        overlaps = [1 - (longer - shorter) / (shorter * n) for n in range(1, 7)]
        n_extra = 1 + int(np.argmin([abs(overlap - 0.4) for overlap in overlaps]))
    maxima = []
    for scale in range(1, n_scales + 1):
        size = max(1, 2 * shorter // (scale + 1))
        n_down = scale + (n_extra if height > width else 0)
        n_across = scale + (n_extra if width > height else 0)
        for top in np.linspace(0, height - size, n_down).astype(int):
            for left in np.linspace(0, width - size, n_across).astype(int):
                region = maps[:, :, top : top + size, left : left + size]
                maxima.append(region.float().amax(dim=(2, 3)))
    return torch.cat(maxima, dim=1)


def _drop_unanswerable(y: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """Return the queries for which another image has the same class."""
    _, classes, sizes = np.unique(y, return_inverse=True, return_counts=True)
    answerable = queries[sizes[classes[queries]] > 1]
    if not len(answerable):
        raise ValueError(
            "None of the queries has another image of its class in y. Pass more images."
        )
    return answerable


def _sum_regions(maxima: np.ndarray, n: int) -> np.ndarray:
    """Return the R-MAC descriptors of `n` images from the maxima of their regions."""
    maxima = normalize(maxima)
    projection = fit_projection(maxima, "auto", whiten=True, normalize=True)
    # The whitening treats every region of every image as one point.
    regions = projection(maxima).reshape(n, -1, projection.components.shape[1])
    return normalize(regions.sum(axis=1))


def _average_precisions(
    descriptors: np.ndarray, y: np.ndarray, queries: np.ndarray
) -> np.ndarray:
    """Return the average precision of each query among all images except itself."""
    step = max(1, RANKED_VALUES // len(descriptors))
    ranks = np.arange(1, len(descriptors))
    precisions = []
    for start in range(0, len(queries), step):
        batch = queries[start : start + step]
        similarities = descriptors[batch] @ descriptors.T
        # The query itself is ranked at the end, and then cut off.
        similarities[np.arange(len(batch)), batch] = -np.inf
        order = np.argsort(-similarities, axis=1, kind="stable")[:, :-1]
        hits = y[order] == y[batch, None]
        precisions_at_rank = hits.cumsum(axis=1) / ranks
        precisions.append((precisions_at_rank * hits).sum(axis=1) / hits.sum(axis=1))
    return np.concatenate(precisions)
