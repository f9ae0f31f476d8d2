"""Sizes, sums and means of clusters."""

import numpy as np
from scipy.sparse import csc_matrix

from .._utils.distributed import SINGLE_PROCESS, Processes
from .._utils.pages import row_blocks

# Rows that are summed in one product. One sum over a large cluster in float32 drifts.
BATCH_ROWS = 4096


def cluster_sizes(
    labels: np.ndarray, n_clusters: int, processes: Processes = SINGLE_PROCESS
) -> np.ndarray:
    """Return the number of points in each cluster, counted over all processes."""
    return processes.sum(np.bincount(labels, minlength=n_clusters))


def cluster_sums(points: np.ndarray, labels: np.ndarray, n_clusters: int) -> np.ndarray:
    """Return the sum of the points of each cluster, float64 (n_clusters, d)."""
    ones = np.ones(BATCH_ROWS, np.float32)
    column_starts = np.arange(BATCH_ROWS + 1, dtype=np.int32)
    sums = np.zeros((n_clusters, points.shape[1]))
    for rows in row_blocks(points, BATCH_ROWS):
        batch_labels = labels[rows]
        m = len(batch_labels)
        one_hot = csc_matrix(
            (ones[:m], batch_labels, column_starts[: m + 1]), shape=(n_clusters, m)
        )
        sums += one_hot @ points[rows]
    return sums


def divide_sums(sums: np.ndarray, sizes: np.ndarray, centers: np.ndarray) -> np.ndarray:
    """Return cluster means of the type of the centers. Empty clusters keep theirs."""
    counts = sizes[:, None]
    means = np.where(counts > 0, sums / np.maximum(counts, 1), centers)
    return means.astype(centers.dtype)


def cluster_means(
    points: np.ndarray, labels: np.ndarray, centers: np.ndarray
) -> np.ndarray:
    """Return the mean of each cluster. Empty clusters keep their center."""
    n_clusters = len(centers)
    sums = cluster_sums(points, labels, n_clusters)
    return divide_sums(sums, cluster_sizes(labels, n_clusters), centers)
