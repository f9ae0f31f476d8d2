"""Nearest-neighbor graph of points, and its spectral embedding."""

import faiss
import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh
from sklearn.preprocessing import normalize

from .._utils.memory import check_faiss_memory

# Smaller graphs go to the dense eigensolver, which cannot fail.
DENSE_ROWS = 500
# Restarts of the sparse eigensolver. A graph like a long line takes thousands.
MAX_RESTARTS = 300
# Iterations of the fallback, which gives rough eigenvectors in bounded time.
ORTHOGONAL_ITERATIONS = 200
# The distance to this neighbor, counted from 0, is the local scale of a point
# (Zelnik-Manor and Perona use the seventh).
LOCAL_NEIGHBOR = 6


def nearest_neighbors(
    points: np.ndarray, n_neighbors: int
) -> tuple[np.ndarray, np.ndarray]:
    """Find the nearest neighbors of each point among the remaining points.

    Parameters
    ----------
    points : ndarray of shape (n, d), float32
        At least two points.
    n_neighbors : int
        Number of neighbors, capped at n - 1.

    Returns
    -------
    neighbors : ndarray of shape (n, n_neighbors), int64
        Exact neighbors, the nearest first.
    distances : ndarray of shape (n, n_neighbors), float32
        Squared Euclidean distances.
    """
    n = len(points)
    n_neighbors = min(n_neighbors, n - 1)
    check_faiss_memory()
    index = faiss.IndexFlatL2(points.shape[1])
    index.add(points)
    distances, neighbors = index.search(points, n_neighbors + 1)
    # A point is not its own neighbor. If duplicates of the point displaced it from the
    # result, the last neighbor is removed instead.
    is_self = neighbors == np.arange(n)[:, None]
    is_self[~is_self.any(axis=1), -1] = True
    shape = (n, n_neighbors)
    distances = distances[~is_self].reshape(shape).clip(min=0)
    return neighbors[~is_self].reshape(shape), distances


def spectral_embedding(
    points: np.ndarray, n_neighbors: int, n_components: int
) -> np.ndarray:
    """Embed points by the leading eigenvectors of their nearest-neighbor graph.

    Parameters
    ----------
    points : ndarray of shape (n, d), float32
        At least two points.
    n_neighbors : int
        Number of edges from each point.
    n_components : int
        Number of eigenvectors, capped at n - 1.

    Returns
    -------
    embedding : ndarray of shape (n, n_components), float32
        Rows of unit length.

    Notes
    -----
    Spectral clustering of Ng, Jordan and Weiss (NeurIPS 2001), with edges scaled by
    the distances around both ends (Zelnik-Manor and Perona, NeurIPS 2004).
    """
    n = len(points)
    n_components = min(n_components, n - 1)
    neighbors, distances = nearest_neighbors(points, n_neighbors)
    local = min(LOCAL_NEIGHBOR, neighbors.shape[1] - 1)
    radius = np.sqrt(distances[:, local], dtype=np.float64) + 1e-9
    # The weights of outliers underflow. The constant keeps them in the graph.
    weights = np.exp(-distances / (radius[:, None] * radius[neighbors])) + 1e-6
    starts = np.repeat(np.arange(n), neighbors.shape[1])
    graph = csr_array((weights.ravel(), (starts, neighbors.ravel())), shape=(n, n))
    graph = graph + graph.T
    scale = 1 / np.sqrt(graph.sum(axis=1))
    graph = csr_array(graph.multiply(scale[:, None]).multiply(scale[None, :]))
    vectors = leading_eigenvectors(graph, 1 / scale, n_components)
    return normalize(vectors).astype(np.float32)


def leading_eigenvectors(
    graph: csr_array, perron: np.ndarray, n_components: int
) -> np.ndarray:
    """Return the leading eigenvectors of a normalized graph.

    Each connected component has an eigenvalue of 1, and its eigenvector is `perron`
    restricted to the component. A Krylov space misses some of several equal
    eigenvalues. Therefore these eigenvectors are written down, deflated from the
    graph, and only the remaining ones are searched for.

    Parameters
    ----------
    graph : sparse array of shape (n, n)
        Symmetric, with a largest eigenvalue of 1.
    perron : ndarray of shape (n,)
        Square roots of the nodes' degrees.
    n_components : int
    """
    n = len(perron)
    n_connected, component = connected_components(graph, directed=False)
    indicators = normalize(csr_array((perron, (np.arange(n), component))), axis=0)
    rng = np.random.default_rng(0)
    if n_connected >= n_components:
        # A random mixture separates all components, while a selection of some
        # eigenvectors would put the remaining components at one point.
        mixture = np.linalg.qr(rng.standard_normal((n_connected, n_components)))[0]
        return indicators @ mixture
    n_remaining = n_components - n_connected
    # Deflation turns the eigenvalues of 1 into -1.
    if n <= DENSE_ROWS:
        deflated = graph.toarray() - 2 * (indicators @ indicators.T).toarray()
        vectors = np.linalg.eigh(deflated)[1][:, -n_remaining:]
        return np.hstack([vectors, indicators.toarray()])
    operator = LinearOperator(
        (n, n),
        lambda x: graph @ x - 2 * (indicators @ (indicators.T @ x)),
        dtype=float,
    )
    try:
        vectors = eigsh(
            operator,
            n_remaining,
            which="LA",
            v0=rng.standard_normal(n),
            ncv=min(n, 4 * n_components + 20),
            maxiter=MAX_RESTARTS,
        )[1]
    except ArpackNoConvergence:
        return orthogonal_iteration(graph, n_components)
    return np.hstack([vectors, indicators.toarray()])


def orthogonal_iteration(graph: csr_array, n_components: int) -> np.ndarray:
    """Return approximate leading eigenvectors in bounded time, without failing."""
    start = np.random.default_rng(0).standard_normal((graph.shape[0], n_components))
    vectors = np.linalg.qr(start)[0]
    for _ in range(ORTHOGONAL_ITERATIONS):
        vectors = np.linalg.qr(graph @ vectors + vectors)[0]
    return vectors
