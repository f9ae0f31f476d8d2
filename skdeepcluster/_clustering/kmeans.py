"""K-means by Lloyd's iterations, on points that may be spread over processes."""

from dataclasses import dataclass

import numpy as np
import torch
from sklearn.utils import gen_batches

from .._utils.distributed import Sharded
from .._utils.pages import row_blocks
from .empty_clusters import EmptyClusterPolicy, scale_to_unit_length
from .nearest_centers import CPU, FaissSearch, TorchSearch, make_search
from .sums import cluster_sizes, divide_sums

# Draws of k-means++ in one block. The limit bounds their matrix of distances.
BLOCK_SIZE = 4096


@dataclass(frozen=True)
class Clusters:
    """Clusters of points.

    The labels that k-means returns are exactly `assign(points, centers)[0]`.

    Parameters
    ----------
    centers : ndarray of shape (k, d), float32
    labels : ndarray of shape (n,), int32
        Cluster of each point that this process holds.
    inertia : float
        Sum of the squared distances of all points to their centers.
    n_iter : int
    n_empty_before, n_empty_after : int
        Number of empty clusters before and after the policy for empty clusters.
    """

    centers: np.ndarray
    labels: np.ndarray
    inertia: float
    n_iter: int
    n_empty_before: int
    n_empty_after: int


@dataclass(frozen=True)
class KMeansOptions:
    """Options of k-means, as in `FaissKMeans`.

    Parameters
    ----------
    init : {"k-means++", "random"} or ndarray of shape (n_clusters, d)
    n_init : int
        Number of runs, of which the one with the lowest inertia is returned. An array
        as `init` gives a single run.
    max_iter : int
        Maximum number of iterations of a run.
    tol : float
        A run ends when the squared shift of all centers is at most `tol` times the mean
        variance of the features.
    spherical : bool
        Centers have unit length and take the points with the largest inner product.
        Points are used as they are: scale them to unit length first.
    empty_clusters : {"split", "farthest", "drop", "raise"}
        See `EmptyClusterPolicy`.
    backend : {"auto", "faiss", "torch"}
    device : torch.device
    verbose : int
        Print one line per run if larger than 0.
    cure : str
        Way to ask for fewer clusters, which the error about empty clusters names.
    """

    init: str | np.ndarray = "k-means++"
    n_init: int = 1
    max_iter: int = 25
    tol: float = 1e-4
    spherical: bool = False
    empty_clusters: str = "split"
    backend: str = "faiss"
    device: torch.device = CPU
    verbose: int = 0
    cure: str = "Lower n_clusters"


def kmeans(
    points: Sharded, n_clusters: int, options: KMeansOptions, seed: int
) -> Clusters:
    """Cluster points by Lloyd's iterations, without leaving any point out.

    Each process assigns its own points and receives the sums and sizes of all clusters,
    so that every process moves the same centers.

    Parameters
    ----------
    points : Sharded array of shape (n, d), float32, C-contiguous, finite
        At least `n_clusters` rows in total.
    n_clusters : int
    options : KMeansOptions
    seed : int
        Non-negative.
    """
    search = make_search(
        points.values, options.spherical, options.backend, options.device
    )
    max_shift = options.tol * _mean_variance(points) if options.tol else 0.0
    n_runs = options.n_init if isinstance(options.init, str) else 1
    best: Clusters | None = None
    for run in range(n_runs):
        rng = np.random.default_rng([seed, run])
        clusters = _run_lloyd(points, n_clusters, options, search, max_shift, rng)
        if options.verbose:
            print(
                f"k-means run {run + 1}: inertia {clusters.inertia:.6g} after "
                f"{clusters.n_iter} iterations, {clusters.n_empty_before} clusters "
                "empty before repair"
            )
        if best is None or clusters.inertia < best.inertia:
            best = clusters
    assert best is not None  # n_runs is at least 1
    return best


def _run_lloyd(
    points: Sharded,
    n_clusters: int,
    options: KMeansOptions,
    search: FaissSearch | TorchSearch,
    max_shift: float,
    rng: np.random.Generator,
) -> Clusters:
    """Run k-means once, from new starts to repaired clusters."""
    processes = points.processes
    centers = _initial_centers(points, n_clusters, options, search, rng)
    policy = EmptyClusterPolicy(
        points,
        options.empty_clusters,
        spherical=options.spherical,
        rng=rng,
        cure=options.cure,
    )

    shift, n_iter = np.inf, 0
    while n_iter < options.max_iter and shift > max_shift:
        n_iter += 1
        labels, distances = search.nearest(centers)
        sums = processes.sum(search.sum_clusters(labels, n_clusters))
        sizes = cluster_sizes(labels, n_clusters, processes)
        means = divide_sums(sums, sizes, centers)
        means = scale_to_unit_length(means) if options.spherical else means
        # Empty clusters are re-seeded in each iteration, not only at the end: else
        # they stay empty while the remaining clusters converge (paper, section 3.3).
        moved = policy.reseed(means, labels, distances)
        shift = np.square(moved - centers, dtype=np.float64).sum()
        centers = moved

    # The last update moved the centers, so the labels have to be computed again.
    labels, distances = search.nearest(centers)
    n_empty = _count_empty(cluster_sizes(labels, n_clusters, processes))
    centers, labels, distances = policy.repair(
        centers, labels, distances, search.nearest
    )
    return Clusters(
        centers=centers,
        labels=labels,
        inertia=float(processes.sum(distances.sum(dtype=np.float64))),
        n_iter=n_iter,
        n_empty_before=n_empty,
        n_empty_after=_count_empty(cluster_sizes(labels, len(centers), processes)),
    )


def _count_empty(sizes: np.ndarray) -> int:
    return len(sizes) - int(np.count_nonzero(sizes))


def _initial_centers(
    points: Sharded,
    n_clusters: int,
    options: KMeansOptions,
    search: FaissSearch | TorchSearch,
    rng: np.random.Generator,
) -> np.ndarray:
    if not isinstance(options.init, str):
        centers = options.init
    elif options.init == "random":
        centers = points.take(rng.choice(points.n_rows, n_clusters, replace=False))
    else:
        return draw_plus_plus(points, n_clusters, options.spherical, search, rng)
    return scale_to_unit_length(centers) if options.spherical else centers


def draw_plus_plus(
    points: Sharded,
    n_clusters: int,
    spherical: bool,
    search: FaissSearch | TorchSearch,
    rng: np.random.Generator,
) -> np.ndarray:
    """Draw the starts of k-means++: each with probability proportional to D².

    D² is the squared distance of a point to the nearest start. The textbook updates the
    D² of all points after each draw. Here it is updated after a block of draws. Inside
    a block the older D² is an upper bound, and rejection sampling against this bound
    draws from exactly the same distribution with a few matrix products.
    """

    def as_centers(rows: np.ndarray) -> np.ndarray:
        return scale_to_unit_length(rows) if spherical else rows

    centers = as_centers(points.take(rng.integers(points.n_rows, size=1)))
    bound = search.nearest(centers)[1]
    while len(centers) < n_clusters:
        size = min(len(centers), n_clusters - len(centers), BLOCK_SIZE)
        rows = _draw_rows(Sharded(bound, points.shard), size, rng)
        if rows is None:
            # Every point is a start already, so that starts have to repeat.
            repeated = points.take(rng.integers(points.n_rows, size=size))
            centers = np.concatenate([centers, as_centers(repeated)])
            continue
        candidates = points.take(rows)
        between = _squared_distances(candidates, as_centers(candidates))
        height = rng.random(size) * Sharded(bound, points.shard).take(rows)
        closest = np.full(size, np.inf)
        accepted = []
        for i in range(size):
            if height[i] < closest[i]:
                accepted.append(i)
                closest = np.minimum(closest, between[:, i])
        new_centers = as_centers(candidates[accepted])
        centers = np.concatenate([centers, new_centers])
        bound = np.minimum(bound, search.nearest(new_centers)[1])
    return centers


def _squared_distances(points: np.ndarray, centers: np.ndarray) -> np.ndarray:
    """Return squared distances, float32 (n, m), by products in float64.

    scikit-learn's `euclidean_distances` does the same. For the few points of a block
    its validation of the input takes longer than the products.
    """
    centers = centers.astype(np.float64)
    squares = np.einsum("ij,ij->i", centers, centers)
    distances = np.empty((len(points), len(centers)), np.float32)
    for batch in gen_batches(len(points), 256):
        rows = points[batch].astype(np.float64)
        lengths = np.einsum("ij,ij->i", rows, rows)[:, None]
        distances[batch] = np.maximum(lengths - 2 * (rows @ centers.T) + squares, 0)
    return distances


def _draw_rows(
    weights: Sharded, size: int, rng: np.random.Generator
) -> np.ndarray | None:
    """Draw rows with probability proportional to their weight.

    Returns
    -------
    rows : ndarray of shape (size,), int64, or None
        Rows of the whole array. None if all weights are zero.
    """
    processes = weights.processes
    ends = np.cumsum(weights.values, dtype=np.float64)
    local_total = float(ends[-1]) if len(ends) else 0.0
    totals = processes.all_gather_object(local_total)
    starts = np.concatenate([[0.0], np.cumsum(totals)])
    if starts[-1] == 0:
        return None
    heights = rng.random(size) * starts[-1]
    # Rounding may put the largest heights behind the last process with weights.
    last_rank = int(np.flatnonzero(totals)[-1])
    rank_of_height = np.searchsorted(starts[1:], heights, side="right")
    rank_of_height = np.minimum(rank_of_height, last_rank)
    rows = np.zeros(size, np.int64)
    is_local = rank_of_height == processes.rank
    if is_local.any():
        local_heights = heights[is_local] - starts[processes.rank]
        positions = np.searchsorted(ends, local_heights, side="right")
        positions = np.minimum(positions, np.flatnonzero(weights.values)[-1])
        rows[is_local] = weights.shard.rows.start + positions
    return processes.sum(rows)


def _mean_variance(points: Sharded) -> float:
    """Return the mean variance of the features, computed in one pass."""
    processes, values = points.processes, points.values
    # Differences from one point are of the size of the spread, so that their squares
    # stay accurate where the mean is large.
    reference = points.take(np.array([0]))
    total, squares = np.zeros(values.shape[1]), 0.0
    for rows in row_blocks(values, 4096):
        block = values[rows] - reference
        total += block.sum(axis=0)
        squares += float(np.vdot(block, block))
    mean = processes.sum(total) / points.n_rows
    mean_square = float(processes.sum(np.array(squares))) / points.n_rows
    return max(mean_square - float(mean @ mean), 0.0) / values.shape[1]
