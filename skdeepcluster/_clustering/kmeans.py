"""K-means on faiss or torch, whose labels are always those of its own centers."""

from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
import torch
from sklearn.utils import gen_batches

from .._utils.distributed import SINGLE_PROCESS, Processes, Shard, Sharded
from .._utils.memory import check_faiss_memory
from .empty_clusters import (
    EmptyClusters,
    Nearest,
    cluster_sizes,
    cluster_sums,
    means_from_sums,
    scale_to_unit_length,
)

CPU = torch.device("cpu")
ROWS = 65_536  # rows a search takes at once: bounds the copy of shifted points
PRODUCTS = 2**24  # products of a point and a center that torch holds at once
BLOCK = 4096  # draws of k-means++ at once: bounds their matrix of distances
# Products of float32 lose |mean|² / spread of the precision of a squared distance.
FAR = 100.0


@dataclass(frozen=True)
class Clusters:
    """Clusters of points. Those of k-means are exactly `assign(points, centers)[0]`."""

    centers: np.ndarray  # (k, d) float32
    labels: np.ndarray  # (n,) int32, of the points that this process holds
    inertia: float  # sum of squared distances
    n_iter: int
    n_empty_before: int  # empty clusters before and after the policy for them
    n_empty_after: int


def resolve_kmeans_backend(backend: str, device: torch.device) -> str:
    """Turn "auto", "faiss" or "torch" into "faiss-gpu", "faiss" or "torch"."""
    on_faiss_gpu = device.type == "cuda" and faiss.get_num_gpus() > 0
    if backend == "auto":
        backend = "faiss" if on_faiss_gpu or device.type == "cpu" else "torch"
    return "faiss-gpu" if backend == "faiss" and on_faiss_gpu else backend


class _FaissSearch:
    """Nearest centers by faiss's exhaustive search, on the CPU or one GPU."""

    def __init__(self, points: np.ndarray, spherical: bool, gpu: torch.device | None):
        self.points, self.spherical, self.gpu = points, spherical, gpu
        self.resources: Any = faiss.StandardGpuResources() if gpu else None

    def nearest(self, centers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return labels, int32 (n,), and squared distances, float32 (n,)."""
        check_faiss_memory()
        metric = faiss.METRIC_INNER_PRODUCT if self.spherical else faiss.METRIC_L2
        index: Any = faiss.IndexFlat(centers.shape[1], metric)
        if self.gpu:
            number = self.gpu.index or 0
            index = faiss.index_cpu_to_gpu(self.resources, number, index)
        origin = _origin(centers, self.spherical)
        index.add(centers - origin)

        labels = np.empty(len(self.points), dtype=np.int32)
        distances = np.empty(len(self.points), dtype=np.float32)
        for rows in gen_batches(max(1, len(self.points)), ROWS):
            points = self.points[rows] - origin if origin.any() else self.points[rows]
            found, ids = index.search(points, 1)
            labels[rows] = ids[:, 0]
            if self.spherical:
                found = _from_products(points, centers[ids[:, 0]], found[:, 0])
            distances[rows] = found.ravel()
        return labels, distances

    def sums(self, labels: np.ndarray, n_clusters: int) -> np.ndarray:
        """Return the sum of each cluster's points, float64 (n_clusters, d)."""
        return cluster_sums(self.points, labels, n_clusters)


class _TorchSearch:
    """Nearest centers by matrix products on any torch device."""

    def __init__(self, points: np.ndarray, spherical: bool, device: torch.device):
        # torch warns of read-only memory, which it could write to.
        points = points if points.flags.writeable else points.copy()
        self.points, self.spherical = torch.from_numpy(points).to(device), spherical

    def _batches(self, n_clusters: int):
        return self.points.split(max(1, PRODUCTS // n_clusters))

    def nearest(self, centers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return labels, int32 (n,), and squared distances, float32 (n,)."""
        origin = _origin(centers, self.spherical)
        to_device = self.points.new_tensor
        there, shift = to_device(centers - origin), to_device(origin)
        found = [
            nearest_tensors(
                points - shift if origin.any() else points, there, self.spherical
            )
            for points in self._batches(len(centers))
        ]
        labels, distances = map(torch.cat, zip(*found, strict=True))
        return labels.to(torch.int32).cpu().numpy(), distances.cpu().numpy()

    def sums(self, labels: np.ndarray, n_clusters: int) -> np.ndarray:
        """Return the sum of each cluster's points, (n_clusters, d)."""
        on_device = torch.from_numpy(labels).to(self.points.device, torch.int64)
        sums = self.points.new_zeros(n_clusters, self.points.shape[1])
        batches = self._batches(n_clusters)
        # A product, since index_add adds in an order of its own on a GPU.
        for chosen, points in zip(
            on_device.split(len(batches[0])), batches, strict=True
        ):
            ones = torch.nn.functional.one_hot(chosen, n_clusters).to(points.dtype)
            sums += ones.T @ points
        return sums.cpu().numpy().astype(np.float64)


def nearest_tensors(
    points: torch.Tensor, centers: torch.Tensor, spherical: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return labels (n,) and squared distances (n,) of points (n, d), in one batch."""
    squares = centers.square().sum(dim=1)
    offset = torch.zeros_like(squares) if spherical else squares / -2
    best, labels = torch.addmm(offset, points, centers.T).max(dim=1)
    products = best - offset[labels]
    distances = points.square().sum(dim=1) - 2 * products + squares[labels]
    return labels, distances.clamp(min=0)


def _from_products(points, centers, products):
    """Return squared distances, row by row."""
    squares = [np.einsum("ij,ij->i", rows, rows) for rows in (points, centers)]
    return np.maximum(squares[0] - 2 * products + squares[1], 0)


def _origin(centers: np.ndarray, spherical: bool) -> np.ndarray:
    """Return what to subtract from points and centers before they are multiplied.

    Zeros, unless the centers lie close together and far from zero.
    """
    mean = centers.mean(axis=0, dtype=np.float64).astype(np.float32)
    spread = np.square(centers - mean).sum(axis=1).mean()
    far = not spherical and float(mean @ mean) > FAR * float(spread)
    return mean if far else np.zeros_like(mean)


def _search(points, spherical, backend, device) -> _FaissSearch | _TorchSearch:
    resolved = resolve_kmeans_backend(backend, device)
    if resolved == "torch":
        return _TorchSearch(points, spherical, device)
    return _FaissSearch(points, spherical, device if resolved == "faiss-gpu" else None)


def assign(
    points: np.ndarray,
    centers: np.ndarray,
    *,
    spherical: bool = False,
    backend: str = "faiss",
    device: torch.device = CPU,
) -> tuple[np.ndarray, np.ndarray]:
    """Find the nearest center of each point.

    Parameters
    ----------
    points : ndarray of shape (n, d), float32, C-contiguous, finite
    centers : ndarray of shape (k, d), float32
    spherical : bool
        Whether the nearest center is that of the largest inner product.
    backend : {"auto", "faiss", "torch"}
    device : torch.device

    Returns
    -------
    labels : ndarray of shape (n,), int32
    distances : ndarray of shape (n,), float32
        Squared Euclidean distances.
    """
    return _search(points, spherical, backend, device).nearest(centers)


def _squared_distances(points: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return squared distances, float32 (n, m), by products of float64.

    They are asked for a few points at a time, where checks of input cost the most.
    """
    others = others.astype(np.float64)
    squares = np.einsum("ij,ij->i", others, others)
    distances = np.empty((len(points), len(others)), np.float32)
    for batch in gen_batches(len(points), 256):
        rows = points[batch].astype(np.float64)
        lengths = np.einsum("ij,ij->i", rows, rows)[:, None]
        distances[batch] = np.maximum(lengths - 2 * (rows @ others.T) + squares, 0)
    return distances


def _plus_plus(
    points: np.ndarray,
    n_clusters: int,
    spherical: bool,
    nearest: Nearest,
    rng: np.random.Generator,
    shard: Shard,
) -> np.ndarray:
    """Draw k-means++ starts: each with probability proportional to D².

    The textbook updates D² of all points after every draw. Here it is updated after a
    block of draws; inside the block, D² of before it is an upper bound, and rejection
    sampling against it gives draws of exactly the same law by a few matrix products.
    """

    def starts(found: np.ndarray) -> np.ndarray:
        return scale_to_unit_length(found) if spherical else found

    centers = starts(Sharded(points, shard).take(rng.integers(shard.n_rows, size=1)))
    bound = nearest(centers)[1]
    while len(centers) < n_clusters:
        size = min(len(centers), n_clusters - len(centers), BLOCK)
        drawn = _draw(bound, size, rng, shard)
        if drawn is None:  # every point is a start already
            again = Sharded(points, shard).take(rng.integers(shard.n_rows, size=size))
            centers = np.concatenate([centers, starts(again)])
            continue
        seen = Sharded(points, shard).take(drawn)
        between = _squared_distances(seen, starts(seen))
        height = rng.random(size) * Sharded(bound, shard).take(drawn)
        closest = np.full(size, np.inf)
        accepted = []
        for i in range(size):
            if height[i] < closest[i]:
                accepted.append(i)
                closest = np.minimum(closest, between[:, i])
        new = starts(seen[accepted])
        centers = np.concatenate([centers, new])
        bound = np.minimum(bound, nearest(new)[1])
    return centers


def _draw(
    bound: np.ndarray, size: int, rng: np.random.Generator, shard: Shard
) -> np.ndarray | None:
    """Draw rows of all with probability proportional to `bound`; None if that is 0."""
    ends = np.cumsum(bound, dtype=np.float64)
    totals = shard.processes.all_gather_object(float(ends[-1]) if len(ends) else 0.0)
    steps = np.concatenate([[0.0], np.cumsum(totals)])  # one for each process
    if steps[-1] == 0:
        return None
    heights = rng.random(size) * steps[-1]
    last = int(np.flatnonzero(totals)[-1])  # for what rounding leaves at the end
    holder = np.minimum(np.searchsorted(steps[1:], heights, side="right"), last)
    drawn = np.zeros(size, np.int64)
    mine = holder == shard.processes.rank
    if mine.any():
        own = heights[mine] - steps[shard.processes.rank]
        found = np.searchsorted(ends, own, side="right")
        found = np.minimum(found, np.flatnonzero(bound)[-1])
        drawn[mine] = shard.rows.start + found
    return shard.processes.sum(drawn)


def _mean_variance(points: np.ndarray, shard: Shard) -> float:
    """Return the mean variance of the features, in one pass."""
    first = Sharded(points, shard).take(np.array([0]))
    total, squares = np.zeros(points.shape[1]), 0.0
    for rows in gen_batches(max(1, len(points)), 4096):
        block = points[rows] - first  # of the mean's size: squares stay accurate
        total += block.sum(axis=0)
        squares += float(np.vdot(block, block))
    mean = shard.processes.sum(total) / shard.n_rows
    mean_square = float(shard.processes.sum(np.array(squares))) / shard.n_rows
    return max(mean_square - float(mean @ mean), 0.0) / points.shape[1]


def kmeans(
    points: np.ndarray,
    n_clusters: int,
    *,
    init: str | np.ndarray = "k-means++",
    n_init: int = 1,
    max_iter: int = 25,
    tol: float = 1e-4,
    spherical: bool = False,
    empty_clusters: str = "split",
    backend: str = "faiss",
    device: torch.device = CPU,
    seed: int,
    verbose: int = 0,
    processes: Processes = SINGLE_PROCESS,
) -> Clusters:
    """Cluster points by Lloyd's iterations, on all points.

    Parameters
    ----------
    points : ndarray of shape (n, d), float32, C-contiguous, finite
        Those that this process holds. All together must be at least `n_clusters`.
    n_clusters : int
    init : {"k-means++", "random"} or ndarray of shape (n_clusters, d)
    n_init : int
        Runs, of which that of the lowest inertia is returned; an array gives one run.
    max_iter, tol : int, float
        Iterations end at `max_iter`, or when the squared shift of all centers is at
        most `tol` times the mean variance of the features.
    spherical : bool
        Whether centers have unit length and take the points of the largest inner
        product. Points are taken as they are: scale them to unit length before.
    empty_clusters : {"split", "farthest", "drop", "raise"}
        See `EmptyClusters`.
    backend : {"auto", "faiss", "torch"}
    device : torch.device
    seed : int
        Non-negative.
    verbose : int
        Prints one line a run where larger than 0.
    processes : Ranks
        The processes that hold points. Each is told as much as sums and counts of
        clusters, and gets the same centers, and the labels of its own points.
    """
    shard = processes.shard_from_sizes(len(points))
    search = _search(points, spherical, backend, device)
    max_shift = tol * _mean_variance(points, shard) if tol else 0.0

    best: Clusters | None = None
    for run in range(n_init if isinstance(init, str) else 1):
        rng = np.random.default_rng([seed, run])
        if not isinstance(init, str):
            centers = scale_to_unit_length(init) if spherical else init
        elif init == "random":
            rows = rng.choice(shard.n_rows, n_clusters, replace=False)
            centers = Sharded(points, shard).take(rows)
            centers = scale_to_unit_length(centers) if spherical else centers
        else:
            centers = _plus_plus(
                points, n_clusters, spherical, search.nearest, rng, shard
            )
        policy = EmptyClusters(points, empty_clusters, spherical, rng, processes)

        shift, n_iter = np.inf, 0
        while n_iter < max_iter and shift > max_shift:
            n_iter += 1
            labels, distances = search.nearest(centers)
            sums = processes.sum(search.sums(labels, n_clusters))
            sizes = cluster_sizes(labels, n_clusters, processes)
            means = means_from_sums(sums, sizes, centers)
            means = scale_to_unit_length(means) if spherical else means
            moved = policy.reseed(means, labels, distances)
            shift = np.square(moved - centers, dtype=np.float64).sum()
            centers = moved

        labels, distances = search.nearest(centers)
        sizes = cluster_sizes(labels, n_clusters, processes)
        n_empty = n_clusters - int(np.count_nonzero(sizes))
        repaired = policy.repair(centers, labels, distances, search.nearest)
        centers, labels, distances = repaired
        inertia = float(processes.sum(distances.sum(dtype=np.float64)))
        if verbose:
            print(
                f"k-means run {run + 1}: inertia {inertia:.6g} after {n_iter} "
                f"iterations, {n_empty} clusters empty before repair"
            )
        if best is None or inertia < best.inertia:
            sizes = cluster_sizes(labels, len(centers), processes)
            left = len(centers) - int(np.count_nonzero(sizes))
            best = Clusters(centers, labels, inertia, n_iter, n_empty, left)
    assert best is not None  # there is at least one run
    return best
