"""Power iteration clustering, the paper's alternative to k-means."""

import numpy as np
from scipy.sparse import coo_array

from .graph import nearest_neighbors

N_NEIGHBORS = 5  # edges from each point
LOCAL_SHARE = 0.001  # of what flows along edges, in one iteration
N_ITERATIONS = 200


def power_iteration_clusters(points: np.ndarray) -> np.ndarray:
    """Cluster points by where a walk uphill on their neighbor graph ends.

    A few power iterations give each point a height, the larger the better its
    neighbors are connected. From each point the walk goes to the neighbor to which
    the edge rises most; points whose walks end on the same summit are a cluster. How
    many there are follows from the points.

    Parameters
    ----------
    points : ndarray of shape (n, d), float32
        At least two of them.

    Returns
    -------
    labels : ndarray of shape (n,), int32
        Consecutive from 0.

    Notes
    -----
    M. Cho and K. M. Lee, "Mode-seeking on graphs via random walks", CVPR 2012, as the
    DeepCluster paper uses it in its appendix. The width of the edges' kernel is the
    median distance of neighbors here, for points of any scale, where the paper has a
    constant.
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
        height = LOCAL_SHARE * (graph @ height) + (1 - LOCAL_SHARE) / n
        height /= height.sum()
    return _summits(graph.tocoo(), height)


def _summits(graph: coo_array, height: np.ndarray) -> np.ndarray:
    """Return the number of the summit that the walk from each point ends on."""
    start, end = graph.coords
    rise = graph.data * (height[end] - height[start])
    steepest = np.lexsort((end, -rise, start))  # ties go to the first point
    first = steepest[np.unique(start[steepest], return_index=True)[1]]
    uphill = first[rise[first] > 0]
    following = np.arange(len(height))
    following[start[uphill]] = end[uphill]
    while (following[following] != following).any():
        following = following[following]
    return np.unique(following, return_inverse=True)[1].astype(np.int32)
