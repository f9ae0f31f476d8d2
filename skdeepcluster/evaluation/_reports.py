"""Classes and clusters -> how they agree, as tables."""

import numpy as np
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from sklearn.utils._param_validation import validate_params
from sklearn.utils.validation import check_is_fitted

from .._estimator import DeepClusterEstimator
from .._inputs.read import NO_CLUSTER
from ..metrics import clustering_accuracy, purity


def drop_unlabeled(y_true, labels) -> tuple[np.ndarray, np.ndarray]:
    """Return the classes and clusters of images that have a cluster."""
    y_true, labels = np.asarray(y_true), np.asarray(labels)
    if labels.ndim != 1 or y_true.shape != labels.shape:
        raise ValueError(
            f"y_true has shape {y_true.shape}, but labels has {labels.shape}: both "
            "should hold one entry for each image, such as model.labels_."
        )
    known = labels != NO_CLUSTER
    if not known.any():
        raise ValueError("labels holds no image with a cluster: all are -1, or none.")
    return y_true[known], labels[known]


def cluster_report(y_true, labels):
    """Compare clusters with classes, in one row.

    Parameters
    ----------
    y_true : array-like of shape (n,)
        Classes.
    labels : array-like of shape (n,), int
        Clusters, such as `labels_`. Images of cluster -1, which could not be read, are
        left out.

    Returns
    -------
    table : list of dict
        One row: `n_images`, `n_clusters`, `accuracy` under the best matching of
        clusters and classes, `nmi`, `ari`, `purity`, and the sizes `largest`, `median`
        and `smallest`.

    Raises
    ------
    ValueError
        If lengths differ, or no image has a cluster.

    See Also
    --------
    cluster_table : Each cluster by itself.
    metrics.clustering_accuracy : The accuracy alone.

    Examples
    --------
    >>> from skdeepcluster.evaluation import cluster_report
    >>> (row,) = cluster_report(["a", "a", "b", "b", "b"], [1, 1, 0, 1, -1])
    >>> row["n_images"], row["accuracy"], row["largest"]
    (4, 0.75, 3)
    """
    y_true, labels = drop_unlabeled(y_true, labels)
    sizes = np.unique(labels, return_counts=True)[1]
    return [
        {
            "n_images": len(labels),
            "n_clusters": len(sizes),
            "accuracy": clustering_accuracy(y_true, labels),
            "nmi": float(normalized_mutual_info_score(y_true, labels)),
            "ari": float(adjusted_rand_score(y_true, labels)),
            "purity": purity(y_true, labels),
            "largest": int(sizes.max()),
            "median": float(np.median(sizes)),
            "smallest": int(sizes.min()),
        }
    ]


def cluster_table(y_true, labels):
    """Describe each cluster by its most frequent class.

    Parameters
    ----------
    y_true : array-like of shape (n,)
        Classes.
    labels : array-like of shape (n,), int
        As in `cluster_report`.

    Returns
    -------
    table : list of dict
        A row for each cluster, in their order: `cluster`, `size`, `most_frequent` of
        the classes (the first of equals), and `purity`, its share.

    Raises
    ------
    ValueError
        If lengths differ, or no image has a cluster.

    See Also
    --------
    cluster_report : All clusters in one row.

    Examples
    --------
    >>> from skdeepcluster.evaluation import cluster_table
    >>> for row in cluster_table(["a", "a", "b", "b", "b"], [1, 1, 0, 1, -1]):
    ...     print(row["cluster"], row["size"], row["most_frequent"])
    0 1 b
    1 3 a
    """
    y_true, labels = drop_unlabeled(y_true, labels)
    table = []
    for cluster in np.unique(labels):
        classes, sizes = np.unique(y_true[labels == cluster], return_counts=True)
        row = {
            "cluster": cluster.item(),
            "size": int(sizes.sum()),
            "most_frequent": classes.tolist()[sizes.argmax()],
            "purity": float(sizes.max() / sizes.sum()),
        }
        table.append(row)
    return table


@validate_params({"model": [DeepClusterEstimator]}, prefer_skip_nested_validation=True)
def stability(model):
    """Tell how much pseudo-labels changed from round to round.

    Parameters
    ----------
    model : DeepClusterEstimator
        Fitted.

    Returns
    -------
    table : list of dict
        A row for each round: `round`, `nmi_previous`, to the round before, and `nmi_y`,
        to the classes, where `fit` was given some.

    See Also
    --------
    DeepClusterEstimator : All that it logs is in `history_`.

    Notes
    -----
    Figures 2a and 2b of the paper.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from skdeepcluster import DeepClusterEstimator
    >>> from skdeepcluster.evaluation import stability
    >>> model = DeepClusterEstimator(10, max_iter=2, epochs_per_iter=2, random_state=0)
    >>> [row["round"] for row in stability(model.fit(load_digits().images[:300]))]
    [1, 2]
    """
    check_is_fitted(model)
    names = ("round", "nmi_previous", "nmi_y")
    return [
        {name: record[name] for name in names if name in record}
        for record in model.history_
    ]
