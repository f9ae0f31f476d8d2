"""Tables that compare clusters with classes."""

import numpy as np
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from .._inputs.read import NO_CLUSTER
from .._utils.neutral_state import with_neutral_state
from ..metrics import clustering_accuracy, purity


def drop_unlabeled(y_true, labels) -> tuple[np.ndarray, np.ndarray]:
    """Return the classes and labels of the images that have a cluster."""
    y_true, labels = np.asarray(y_true), np.asarray(labels)
    if labels.ndim != 1 or y_true.shape != labels.shape:
        raise ValueError(
            f"y_true has shape {y_true.shape}, but labels has {labels.shape}. Pass one "
            "entry for each image in both, such as model.labels_."
        )
    has_cluster = labels != NO_CLUSTER
    if not has_cluster.any():
        raise ValueError(
            "labels holds no image with a cluster: it is empty, or every entry is -1. "
            "Pass labels of at least one image that could be read."
        )
    return y_true[has_cluster], labels[has_cluster]


@with_neutral_state
def cluster_report(y_true, labels):
    """Compare clusters with classes.

    Parameters
    ----------
    y_true : array-like of shape (n,)
        Classes.
    labels : array-like of shape (n,), int
        Clusters, such as `labels_`. Images of cluster -1, which could not be read, are
        left out.

    Returns
    -------
    report : dict
        Summary with the keys `n_images`, `n_clusters`, `accuracy` under the best
        matching of clusters and classes, `nmi`, `ari`, `purity`, and the cluster
        sizes `largest`, `median` and `smallest`.

    Raises
    ------
    ValueError
        If lengths differ, or no image has a cluster.

    See Also
    --------
    cluster_table : Describe each cluster.
    metrics.clustering_accuracy : Compute the accuracy alone.

    Examples
    --------
    >>> from skdeepcluster.evaluation import cluster_report
    >>> report = cluster_report(["a", "a", "b", "b", "b"], [1, 1, 0, 1, -1])
    >>> report["n_images"], report["accuracy"], report["largest"]
    (4, 0.75, 3)
    """
    y_true, labels = drop_unlabeled(y_true, labels)
    sizes = np.unique(labels, return_counts=True)[1]
    return {
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


@with_neutral_state
def cluster_table(y_true, labels):
    """Describe each cluster by its most frequent class.

    Parameters
    ----------
    y_true : array-like of shape (n,)
        Classes.
    labels : array-like of shape (n,), int
        Clusters, as in `cluster_report`.

    Returns
    -------
    table : list of dict
        One row for each cluster, in ascending order, with the keys `cluster`, `size`,
        `most_frequent` and `purity`. `most_frequent` is the most frequent class, the
        first one on ties, and `purity` is its share.

    Raises
    ------
    ValueError
        If lengths differ, or no image has a cluster.

    See Also
    --------
    cluster_report : Summarize all clusters.

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
            # tolist() turns numpy scalars into Python ones, also strings.
            "most_frequent": classes.tolist()[sizes.argmax()],
            "purity": float(sizes.max() / sizes.sum()),
        }
        table.append(row)
    return table
