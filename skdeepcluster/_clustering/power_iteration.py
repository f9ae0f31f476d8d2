"""Power iteration clustering, the paper's alternative to k-means."""

import numpy as np
from scipy.sparse import coo_array

from .graph import nearest_neighbors

# Number of edges from each point.
N_NEIGHBORS = 5
# Share of a point's height that flows in along its edges in one iteration.
EDGE_SHARE = 0.001
N_ITERATIONS = 200


def power_iteration_clusters(points: np.ndarray) -> np.ndarray:
    """Cluster points by the summits of their nearest-neighbor graph.

    A few power iterations give each point a height. Points with many close neighbors
    are high. From each point a walk follows the edges that rise most. Walks to the same
    summit start in the same cluster. The number of clusters follows from the points.

    Parameters
    ----------
    points : ndarray of shape (n, d), float32
        At least two points.

    Returns
    -------
    labels : ndarray of shape (n,), int32
        Consecutive from 0.

    Notes
    -----
    M. Cho and K. M. Lee, "Mode-seeking on graphs via random walks", CVPR 2012, as used
    in the appendix of the DeepCluster paper. The paper's kernel has a constant width.
    Here the width is the median distance of neighbors, which suits points of any scale.
    """
    n = len(points)
    neighbors, distances = nearest_neighbors(points, N_NEIGHBORS)
    starts = np.repeat(np.arange(n), neighbors.shape[1])
    width = max(float(np.median(distances)), float(np.finfo(np.float32).tiny))
    weights = np.exp(-distances.ravel().astype(np.float64) / width)
    graph = coo_array((weights, (starts, neighbors.ravel())), shape=(n, n)).tocsr()
    graph = graph + graph.T
    height = np.full(n, 1 / n)
    for _ in range(N_ITERATIONS):
        height = EDGE_SHARE * (graph @ height) + (1 - EDGE_SHARE) / n
        height /= height.sum()
    return _find_summits(graph.tocoo(), height)


def _find_summits(graph: coo_array, height: np.ndarray) -> np.ndarray:
    """Return the number of the summit that the walk from each point ends on."""
    start, end = graph.coords
    rise = graph.data * (height[end] - height[start])
    # The steepest edge of each point comes first. Ties go to the first end.
    order = np.lexsort((end, -rise, start))
    steepest = order[np.unique(start[order], return_index=True)[1]]
    uphill = steepest[rise[steepest] > 0]
    successor = np.arange(len(height))
    successor[start[uphill]] = end[uphill]
    # Pointer doubling: each pass skips twice as many steps of the walk.
    while (successor[successor] != successor).any():
        successor = successor[successor]
    return np.unique(successor, return_inverse=True)[1].astype(np.int32)
