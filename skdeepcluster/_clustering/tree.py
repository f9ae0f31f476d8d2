"""Merge tree over the leaves, the finest clusters: cuts and splits of clusters."""

from dataclasses import dataclass

import numpy as np
from scipy.cluster.hierarchy import linkage
from scipy.spatial.distance import pdist


@dataclass(frozen=True)
class MergeTree:
    """Binary tree of merges, in the form of scikit-learn's `AgglomerativeClustering`.

    Nodes 0 to L - 1 are the leaves. Merge i makes node L + i of two earlier nodes.

    Parameters
    ----------
    children : ndarray of shape (L - 1, 2), int64
        The two nodes of each merge.
    distances : ndarray of shape (L - 1,), float64
        Distance between these nodes, ascending.
    """

    children: np.ndarray
    distances: np.ndarray

    @property
    def n_leaves(self) -> int:
        """Number of leaves, L."""
        return len(self.children) + 1

    def cut(self, n_clusters: int, leaves: np.ndarray | None = None) -> np.ndarray:
        """Return the cluster of each leaf after all but the last merges.

        Parameters
        ----------
        n_clusters : int
            Number of clusters, at most the number of leaves.
        leaves : ndarray of int or None
            Leaves to cut into clusters. Merges with other leaves are skipped. None is
            all leaves.

        Returns
        -------
        clusters : ndarray of shape (n_leaves,) or the shape of `leaves`, int32
            Numbered from 0 in the order of their first leaf.
        """
        leaves = np.arange(self.n_leaves) if leaves is None else leaves
        # The cluster of a node is the smallest of its leaves that take part, or None.
        nodes: list[int | None] = [None] * (self.n_leaves + len(self.children))
        for leaf in leaves.tolist():
            nodes[leaf] = leaf
        clusters = np.arange(self.n_leaves)
        n_merges = len(leaves) - n_clusters
        for i, (left, right) in enumerate(self.children.tolist()):
            first, second = nodes[left], nodes[right]
            if first is None or second is None:
                nodes[self.n_leaves + i] = second if first is None else first
                continue
            if n_merges == 0:
                break
            n_merges -= 1
            clusters[clusters == max(first, second)] = min(first, second)
            nodes[self.n_leaves + i] = min(first, second)
        return np.unique(clusters[leaves], return_inverse=True)[1].astype(np.int32)

    def count_clusters(self, distance_threshold: float) -> int:
        """Return the number of clusters at least `distance_threshold` apart."""
        n_merges = np.searchsorted(self.distances, distance_threshold, side="left")
        return self.n_leaves - int(n_merges)


def build_tree(means: np.ndarray, clusters: np.ndarray) -> MergeTree:
    """Merge leaves by average linkage, first inside clusters, then across clusters.

    Parameters
    ----------
    means : ndarray of shape (n_leaves, d)
        Mean of the points of each leaf.
    clusters : ndarray of shape (n_leaves,), int
        Cluster of each leaf, ascending from 0. They are a cut of the tree.
    """
    if len(means) == 1:
        return MergeTree(np.empty((0, 2), np.int64), np.empty(0))
    distances = pdist(means)
    # A penalty on each pair of leaves of different clusters delays their merge until
    # the clusters are complete.
    across = pdist(clusters[:, None]) > 0
    penalty = 2 * distances.max() or 1.0
    merges = linkage(distances + penalty * across, "average")
    heights = merges[:, 2]
    heights = np.where(heights >= penalty, heights - penalty, heights).clip(0)
    # Without ties, each number of clusters has a threshold.
    for i in range(1, len(heights)):
        heights[i] = max(heights[i], np.nextafter(heights[i - 1], np.inf))
    return MergeTree(merges[:, :2].astype(np.int64), heights)
