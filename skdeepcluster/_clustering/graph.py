"""The nearest-neighbor graph of points, and its spectral embedding."""

import faiss
import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh
from sklearn.preprocessing import normalize

from .._utils.memory import check_faiss_memory

DENSE_ROWS = 500  # fewer go to the dense eigensolver, which cannot fail
MAX_RESTARTS = 300  # of the sparse one, which a long line keeps busy
LOCAL_NEIGHBOR = 6  # from 0: the neighbor whose distance is a point's local scale


def nearest_neighbors(
    points: np.ndarray, n_neighbors: int
) -> tuple[np.ndarray, np.ndarray]:
    """Find the nearest other points of each point.

    Parameters
    ----------
    points : ndarray of shape (n, d), float32
        At least two of them.
    n_neighbors : int
        Fewer are returned where there are not as many.

    Returns
    -------
    neighbors : ndarray of shape (n, n_neighbors), int64
        Exact, the nearest first.
    distances : ndarray of shape (n, n_neighbors), float32
        Squared Euclidean distances.
    """
    n = len(points)
    n_neighbors = min(n_neighbors, n - 1)
    check_faiss_memory()
    index = faiss.IndexFlatL2(points.shape[1])
    index.add(points)
    distances, found = index.search(points, n_neighbors + 1)
    # A point is not its own neighbor; where duplicates hid it, the last one goes.
    own = found == np.arange(n)[:, None]
    own[~own.any(axis=1), -1] = True
    shape = (n, n_neighbors)
    return found[~own].reshape(shape), distances[~own].reshape(shape).clip(min=0)


def spectral_embedding(
    points: np.ndarray, n_neighbors: int, n_components: int
) -> np.ndarray:
    """Embed points by the leading eigenvectors of their neighbor graph.

    Parameters
    ----------
    points : ndarray of shape (n, d), float32
        At least two of them.
    n_neighbors : int
        Edges from each point.
    n_components : int
        Fewer are returned where there are not as many points.

    Returns
    -------
    embedding : ndarray of shape (n, n_components), float32
        Rows of unit length.

    Notes
    -----
    Spectral clustering of Ng, Jordan and Weiss (NeurIPS 2001), with the edges scaled
    to the distances around their ends (Zelnik-Manor and Perona, NeurIPS 2004).
    """
    n = len(points)
    n_components = min(n_components, n - 1)
    neighbors, distances = nearest_neighbors(points, n_neighbors)
    local = min(LOCAL_NEIGHBOR, neighbors.shape[1] - 1)
    radius = np.sqrt(distances[:, local], dtype=np.float64) + 1e-9
    # The floor keeps outliers, all of whose weights underflow, in the graph.
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

    Each part without an edge to the others has an eigenvalue of 1, with `perron` on
    the part as its vector. Of equal eigenvalues a Krylov space misses some, so these
    are taken out of the graph, and only the others are searched for.
    """
    n = len(perron)
    n_parts, part = connected_components(graph, directed=False)
    parts = normalize(csr_array((perron, (np.arange(n), part))), axis=0)
    rng = np.random.default_rng(0)
    if n_parts >= n_components:
        mix = np.linalg.qr(rng.standard_normal((n_parts, n_components)))[0]
        return parts @ mix
    n_others = n_components - n_parts
    if n <= DENSE_ROWS:
        others = graph.toarray() - 2 * (parts @ parts.T).toarray()  # 1 becomes -1
        vectors = np.linalg.eigh(others)[1][:, -n_others:]
    else:
        others = LinearOperator(
            (n, n), lambda x: graph @ x - 2 * (parts @ (parts.T @ x)), dtype=float
        )
        start = rng.standard_normal(n)
        size = min(n, 4 * n_components + 20)
        try:
            vectors = eigsh(
                others, n_others, which="LA", v0=start, ncv=size, maxiter=MAX_RESTARTS
            )[1]
        except ArpackNoConvergence:
            return orthogonal_iteration(graph, n_components)
    return np.hstack([vectors, parts.toarray()])


def orthogonal_iteration(graph: csr_array, n_components: int) -> np.ndarray:
    """Return leading eigenvectors, roughly, in bounded time and without failing."""
    start = np.random.default_rng(0).standard_normal((graph.shape[0], n_components))
    vectors = np.linalg.qr(start)[0]
    for _ in range(200):
        vectors = np.linalg.qr(graph @ vectors + vectors)[0]
    return vectors
