"""Layout of points in few dimensions, in which nearest neighbors lie together."""

import numpy as np
from scipy.sparse import csr_array, triu

from .graph import nearest_neighbors

# Number of dimensions. Clusters can lie beside each other in more ways than in two.
LAYOUT_DIMENSIONS = 10
# Side of the cube in which points start.
LAYOUT_SIZE = 10.0
# Gradient steps. With a third of them, some clusters still lay on top of others.
LAYOUT_STEPS = 300
# Random points that push a point away, for each neighbor that pulls it.
PUSHES = 5
# Largest change of a coordinate by one direction of an edge, or by one random point.
MAX_CHANGE = 4.0
# Halvings of the interval in which the scale of distances around a point is searched.
SCALE_HALVINGS = 40


def neighbor_layout(points: np.ndarray, n_neighbors: int, seed: int) -> np.ndarray:
    """Lay out points in few dimensions, so that nearest neighbors lie together.

    Neighbors pull each other, and random points push each other away. Gaps between
    clusters thereby widen, and k-means finds clusters that touch each other in the
    original dimensions.

    Parameters
    ----------
    points : ndarray of shape (n, d), float32
        At least two points: principal components, the leading ones first. The layout
        starts from these.
    n_neighbors : int
        Number of neighbors of each point, capped at n - 1.
    seed : int
        Seed of the random points and steps.

    Returns
    -------
    layout : ndarray of shape (n, LAYOUT_DIMENSIONS), float32

    Notes
    -----
    The objective is that of UMAP (McInnes, Healy and Melville, 2018), with the kernel
    of t-SNE, 1 / (1 + distance^2). All sampled edges move the points in one step, which
    numpy computes faster than edge after edge.
    """
    n = len(points)
    rng = np.random.default_rng(seed)
    starts, ends, weights = _neighbor_edges(points, n_neighbors)
    layout = _first_layout(points, rng)
    for step in range(LAYOUT_STEPS):
        # An edge is drawn with a probability equal to its weight.
        is_drawn = rng.random(len(weights), dtype=np.float32) < weights
        pulled, partners = starts[is_drawn], ends[is_drawn]
        difference = layout[pulled] - layout[partners]
        squared = np.square(difference).sum(axis=1)
        pull = difference * (-2 / (1 + squared))[:, None]
        # Each end of an edge is pulled for both directions of the edge.
        pull = 2 * pull.clip(-MAX_CHANGE, MAX_CHANGE)

        moved = np.concatenate([pulled, partners])
        pushing = rng.integers(0, n, (len(moved), PUSHES), dtype=np.int32)
        difference = layout[moved][:, None] - layout[pushing]
        squared = np.square(difference).sum(axis=2)
        # The constant bounds the push of a point that lies at the same place.
        push = difference * (2 / ((0.001 + squared) * (1 + squared)))[:, :, None]
        push = push.clip(-MAX_CHANGE, MAX_CHANGE).sum(axis=1)

        changes = np.concatenate([pull, -pull]) + push
        # A product with a sparse matrix adds up the changes of each point.
        positions = moved, np.arange(len(moved))
        sums = csr_array((np.ones(len(moved), np.float32), positions), (n, len(moved)))
        layout += np.float32(1 - step / LAYOUT_STEPS) * (sums @ changes)
    return layout


def _first_layout(points: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the leading principal components, with a little noise, in a cube."""
    layout = rng.normal(scale=0.01, size=(len(points), LAYOUT_DIMENSIONS))
    columns = points[:, :LAYOUT_DIMENSIONS]
    length = np.abs(columns).max() or 1.0
    layout[:, : columns.shape[1]] += columns * (LAYOUT_SIZE / 2 / length)
    return layout.astype(np.float32)


def _neighbor_edges(
    points: np.ndarray, n_neighbors: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the edges between neighbors, each once: both ends, and weights up to 1.

    The nearest neighbor of a point has weight 1. The weights of the others fall with
    their distance, at a rate such that the weights of each point have the same sum.
    """
    n = len(points)
    neighbors, squared_distances = nearest_neighbors(points, n_neighbors)
    distances = np.sqrt(squared_distances, dtype=np.float64)
    excess = distances - distances[:, :1]
    longest = excess.max() or 1.0
    low, high = np.full((n, 1), 1e-6 * longest), np.full((n, 1), 10 * longest)
    # The sum that UMAP uses.
    target = np.log2(max(2, neighbors.shape[1]))
    for _ in range(SCALE_HALVINGS):
        scale = np.sqrt(low * high)
        is_large = np.exp(-excess / scale).sum(axis=1, keepdims=True) > target
        high, low = np.where(is_large, scale, high), np.where(is_large, low, scale)
    weights = np.exp(-excess / scale)
    row_starts = np.repeat(np.arange(n), neighbors.shape[1])
    graph = csr_array((weights.ravel(), (row_starts, neighbors.ravel())), (n, n))
    # Weights are probabilities: an edge exists if either end has it.
    graph = triu(graph + graph.T - graph * graph.T, format="coo")
    return graph.row, graph.col, graph.data.astype(np.float32)
