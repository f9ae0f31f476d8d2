"""Whether clusters of features survive slight changes of the images."""

import numpy as np

from .._clustering.kmeans import assign, kmeans
from .._clustering.whitening import fit_projection
from .._inputs.sources import Source
from .._training.augment import Augment, RandomCrop, RowNoise
from ..metrics import reproduced_information

# Changes that a good group should survive, whatever `augment` was trained on.
MILD_CROP = RandomCrop(min_area=0.8, max_angle=5, flip=False, jitter=0.1, tint=0)


def mild_augment(source: Source) -> Augment:
    """Return what changes the items of a source slightly: images or rows."""
    return MILD_CROP if len(source.shape) == 3 else RowNoise()


def measure_stability(
    features: np.ndarray, viewed: np.ndarray, n_clusters: int
) -> float:
    """Return how well k-means on the features tells items again by a slight change.

    Without labels it tells a trained network from an untrained one.

    Parameters
    ----------
    features, viewed : ndarrays of shape (n, d), float32
        Of items, and of the same items after a slight change.
    n_clusters : int
        Fewer are made where there are not as many items.

    Returns
    -------
    stability : float
        In [0, 1), see `metrics.reproduced_information`. Features that are not finite
        have none.
    """
    if not (np.isfinite(features).all() and np.isfinite(viewed).all()):
        return 0.0
    projection = fit_projection(features, "auto", whiten=False, normalize=True)
    k = min(n_clusters, len(features))
    found = kmeans(projection(features), k, n_init=3, empty_clusters="drop", seed=0)
    again, _ = assign(projection(viewed), found.centers)
    return reproduced_information(found.labels, again)
