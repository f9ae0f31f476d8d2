"""Measures of clusterings that scikit-learn does not have."""

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.stats import entropy
from sklearn.metrics import mutual_info_score
from sklearn.metrics.cluster import contingency_matrix, expected_mutual_information

__all__ = ["clustering_accuracy", "purity", "reproduced_information"]


def clustering_accuracy(y_true, y_pred) -> float:
    """Compute the share of samples that are right under the best naming of clusters.

    Parameters
    ----------
    y_true : array-like of shape (n,)
        Classes.
    y_pred : array-like of shape (n,)
        Clusters, named in any way.

    Returns
    -------
    accuracy : float
        In [0, 1]. Each cluster is matched to at most one class, and the other way
        round, by the Hungarian method.

    See Also
    --------
    sklearn.metrics.normalized_mutual_info_score : Agreement without any matching.

    Examples
    --------
    >>> from skdeepcluster.metrics import clustering_accuracy
    >>> clustering_accuracy(["a", "a", "b", "b"], [1, 1, 0, 1])
    0.75
    """
    table = _contingency(y_true=y_true, y_pred=y_pred)
    rows, columns = linear_sum_assignment(table, maximize=True)
    return float(table[rows, columns].sum() / table.sum())


def purity(y_true, y_pred) -> float:
    """Compute the share of samples that are of their cluster's most frequent class.

    Parameters
    ----------
    y_true : array-like of shape (n,)
        Classes.
    y_pred : array-like of shape (n,)
        Clusters, named in any way.

    Returns
    -------
    purity : float
        In (0, 1]. More clusters have more: with one for each sample it is 1.

    See Also
    --------
    clustering_accuracy : Each class may be that of one cluster only.

    Examples
    --------
    >>> from skdeepcluster.metrics import purity
    >>> purity(["a", "a", "b", "b"], [0, 1, 2, 2])
    1.0
    """
    table = _contingency(y_true=y_true, y_pred=y_pred)
    return float(table.max(axis=0).sum() / table.sum())


def reproduced_information(labels, other_labels) -> float:
    """Compute how much two clusterings of the same samples tell about each other.

    Parameters
    ----------
    labels, other_labels : array-like of shape (n,)
        Clusters of the same samples.

    Returns
    -------
    information : float
        In [0, 1): their mutual information less what chance gives, over the mean of
        their entropies plus 1, all in nats. Two that agree have H / (H + 1), which is
        0.41 for 2 equal clusters, 0.70 for 10 and 0.82 for 100; a single cluster has 0.

    See Also
    --------
    sklearn.metrics.adjusted_mutual_info_score : The same without "plus 1".

    Notes
    -----
    Agreement alone is easiest with the fewest clusters, and information alone grows
    with their number. With one nat beside the entropies, a further cluster pays as
    long as it is reproduced well enough.

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
    by_chance = expected_mutual_information(table, int(table.sum()))
    entropies = [entropy(table.sum(axis=axis)) for axis in (0, 1)]
    return float(max(0.0, information - by_chance) / (np.mean(entropies) + 1))


def _contingency(**clusterings) -> np.ndarray:
    """Count the samples of each pair of clusters, of two clusterings by their names."""
    one, other = map(np.asarray, clusterings.values())
    if one.ndim != 1 or one.shape != other.shape or not one.size:
        names = " and ".join(clusterings)
        raise ValueError(
            f"{names} have shapes {one.shape} and {other.shape}, but should hold one "
            "entry for each sample, such as model.labels_."
        )
    return contingency_matrix(one, other)
