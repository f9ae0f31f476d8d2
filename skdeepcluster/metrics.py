"""Measures of clusterings that scikit-learn does not have."""

import numpy as np
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import adjusted_mutual_info_score
from sklearn.metrics.cluster import contingency_matrix

__all__ = ["adjusted_agreement", "clustering_accuracy"]


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
    table = contingency_matrix(y_true, y_pred)
    rows, columns = linear_sum_assignment(table, maximize=True)
    return float(table[rows, columns].sum() / table.sum())


def adjusted_agreement(labels, other_labels) -> float:
    """Compute the mutual information of two clusterings, adjusted for chance.

    Parameters
    ----------
    labels, other_labels : array-like of shape (n,)
        Clusters of the same samples.

    Returns
    -------
    agreement : float
        As scikit-learn's adjusted mutual information, but 0 where either clustering
        has a single cluster: that two collapsed clusterings agree says nothing.

    See Also
    --------
    sklearn.metrics.adjusted_mutual_info_score : The same for all other clusterings.

    Examples
    --------
    >>> from skdeepcluster.metrics import adjusted_agreement
    >>> adjusted_agreement([0, 0, 1, 1], [1, 1, 0, 0])
    1.0
    >>> adjusted_agreement([0, 0, 0, 0], [0, 0, 0, 0])
    0.0
    """
    if min(len(np.unique(labels)), len(np.unique(other_labels))) < 2:
        return 0.0
    return float(adjusted_mutual_info_score(labels, other_labels))
