"""Metrics of clusterings that scikit-learn does not have."""

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.stats import entropy
from sklearn.metrics import mutual_info_score
from sklearn.metrics.cluster import contingency_matrix, expected_mutual_information

from ._utils.neutral_state import with_neutral_state

__all__ = ["clustering_accuracy", "purity", "reproduced_information"]


@with_neutral_state
def clustering_accuracy(y_true, y_pred) -> float:
    """Compute the accuracy under the best one-to-one match of clusters and classes.

    Parameters
    ----------
    y_true : array-like of shape (n,)
        Class of each sample.
    y_pred : array-like of shape (n,)
        Cluster of each sample. Names of clusters do not matter.

    Returns
    -------
    accuracy : float
        Accuracy in [0, 1]. The Hungarian method matches each cluster to at most one
        class, and each class to at most one cluster.

    See Also
    --------
    sklearn.metrics.normalized_mutual_info_score : Agreement without a match.

    Examples
    --------
    >>> from skdeepcluster.metrics import clustering_accuracy
    >>> clustering_accuracy(["a", "a", "b", "b"], [1, 1, 0, 1])
    0.75
    """
    table = _contingency(y_true=y_true, y_pred=y_pred)
    rows, columns = linear_sum_assignment(table, maximize=True)
    return float(table[rows, columns].sum() / table.sum())


@with_neutral_state
def purity(y_true, y_pred) -> float:
    """Compute the fraction of samples in the most frequent class of their cluster.

    Parameters
    ----------
    y_true : array-like of shape (n,)
        Class of each sample.
    y_pred : array-like of shape (n,)
        Cluster of each sample. Names of clusters do not matter.

    Returns
    -------
    purity : float
        Purity in (0, 1]. It grows with the number of clusters, up to 1 with one cluster
        per sample.

    See Also
    --------
    clustering_accuracy : Match each class with one cluster only.

    Examples
    --------
    >>> from skdeepcluster.metrics import purity
    >>> purity(["a", "a", "b", "b"], [0, 1, 2, 2])
    1.0
    """
    table = _contingency(y_true=y_true, y_pred=y_pred)
    return float(table.max(axis=0).sum() / table.sum())


@with_neutral_state
def reproduced_information(labels, other_labels) -> float:
    """Compute the information that two clusterings of the same samples share.

    Use it to choose a number of clusters. Agreement alone favors few clusters, and
    mutual information alone favors many.

    Parameters
    ----------
    labels, other_labels : array-like of shape (n,)
        Cluster of each sample in either clustering.

    Returns
    -------
    information : float
        Value in [0, 1): mutual information minus its expectation by chance, divided by
        the mean entropy plus 1, all in nats. Equal clusterings of entropy H have
        H / (H + 1): 0.41 for 2 clusters of equal size, 0.70 for 10 and 0.82 for 100. A
        single cluster has 0.

    See Also
    --------
    sklearn.metrics.adjusted_mutual_info_score : Normalize by the entropy alone.

    Notes
    -----
    The term of 1 nat sets the price of a further cluster: it raises the value if both
    clusterings reproduce the cluster well enough.

    Examples
    --------
    >>> from skdeepcluster.metrics import reproduced_information
    >>> round(reproduced_information([0, 1] * 500, [1, 0] * 500), 2)
    0.41
    >>> reproduced_information([0, 0, 0, 0], [0, 0, 0, 0])
    0.0
    """
    table = _contingency(labels=labels, other_labels=other_labels)
    information = mutual_info_score(None, None, contingency=table)
    expected = expected_mutual_information(table, int(table.sum()))
    entropies = [entropy(table.sum(axis=axis)) for axis in (0, 1)]
    return float(max(0.0, information - expected) / (np.mean(entropies) + 1))


def _contingency(**clusterings) -> np.ndarray:
    """Return the number of samples of each pair of clusters.

    Parameters
    ----------
    **clusterings : array-like of shape (n,)
        Two clusterings, under the names of the caller's parameters.
    """
    rows, columns = map(np.asarray, clusterings.values())
    if rows.ndim != 1 or rows.shape != columns.shape or not rows.size:
        names = " and ".join(clusterings)
        raise ValueError(
            f"{names} have shapes {rows.shape} and {columns.shape}, but should hold "
            "one entry for each sample, such as model.labels_."
        )
    return contingency_matrix(rows, columns)
