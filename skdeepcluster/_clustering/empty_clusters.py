"""Policies for clusters that no point belongs to."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from sklearn.utils import gen_batches

from .._utils.distributed import Processes, Sharded
from .._utils.pages import row_blocks, take_rows
from .sums import cluster_sizes, cluster_sums, divide_sums

# A function from centers (k, d) to labels (n,) and squared distances (n,) of points.
Nearest = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]

# Maximum number of re-seedings at the end. Each can double the number of clusters, so
# that this many reach any k from a single cluster.
MAX_RESEEDINGS = 20
BATCH_ROWS = 4096


def scale_to_unit_length(rows: np.ndarray) -> np.ndarray:
    """Return rows at length 1. Rows of zeros stay zero."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(lengths > 0, lengths, 1)


def distinct_rows(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find the distinct rows.

    Returns
    -------
    representatives : ndarray of shape (n_distinct,), int
        Index of one row for each distinct row.
    numbers : ndarray of shape (n,), int
        Position of each row's representative.
    """
    rows = points + np.float32(0)  # -0.0 becomes 0.0: equal numbers, equal bytes
    row_bytes = rows.view(np.dtype((np.void, rows.itemsize * rows.shape[1])))
    _, representatives, numbers = np.unique(
        row_bytes.ravel(), return_index=True, return_inverse=True
    )
    return representatives, numbers.ravel()


@dataclass
class EmptyClusterPolicy:
    """A policy for empty clusters, bound to the points.

    Every process moves the same centers to the same places. Processes exchange only a
    few points for each cluster.

    Parameters
    ----------
    points : Sharded array of shape (n, d), float32
    name : {"split", "farthest", "drop", "raise"}
    spherical : bool
        Centers have unit length.
    rng : numpy.random.Generator
        In the same state in each process.
    cure : str
        Way to ask for fewer clusters, which the error of "raise" names.
    """

    points: Sharded
    name: str
    spherical: bool
    rng: np.random.Generator
    cure: str = "Lower n_clusters"

    @property
    def processes(self) -> Processes:
        """Processes that hold the points."""
        return self.points.processes

    @cached_property
    def _distinct(self) -> tuple[np.ndarray, np.ndarray]:
        return distinct_rows(self.points.values)

    def _sizes(self, labels: np.ndarray, n_clusters: int) -> np.ndarray:
        return cluster_sizes(labels, n_clusters, self.processes)

    def _has_more_points_than(self, n_clusters: int) -> bool:
        """Return whether there are more than `n_clusters` distinct points."""
        sample = self.points.values[self._distinct[0][: n_clusters + 1]]
        gathered = np.concatenate(self.processes.all_gather_object(sample))
        return len(distinct_rows(gathered)[0]) > n_clusters

    def _can_split(self, labels: np.ndarray, n_clusters: int) -> np.ndarray:
        """Return whether each cluster has at least two distinct points."""
        points = self.points.values
        local_labels, rows = np.unique(labels, return_index=True)
        has_pattern = np.full(n_clusters, False)
        pattern = np.empty((n_clusters, points.shape[1]), points.dtype)
        local_patterns = (local_labels, points[rows])
        for clusters, candidates in self.processes.all_gather_object(local_patterns):
            is_new = ~has_pattern[clusters]
            pattern[clusters[is_new]] = candidates[is_new]
            has_pattern[clusters] = True
        differs = np.full(n_clusters, False)
        for batch in row_blocks(points, BATCH_ROWS):
            batch_labels = labels[batch]
            is_different = (points[batch] != pattern[batch_labels]).any(axis=1)
            differs[batch_labels[is_different]] = True
        return self.processes.sum(differs.astype(np.int64)) > 0

    def reseed(
        self, centers: np.ndarray, labels: np.ndarray, distances: np.ndarray
    ) -> np.ndarray:
        """Move the centers of empty clusters to points, once.

        The policies "drop" and "raise" leave the centers unchanged.
        """
        sizes = self._sizes(labels, len(centers))
        empty = np.flatnonzero(sizes == 0)
        if not empty.size or self.name in ("drop", "raise"):
            return centers
        sizes = np.where(self._can_split(labels, len(centers)), sizes, 0)
        if self.name == "split":
            moved = self._split_largest(centers, labels, empty, sizes)
        else:
            moved = self._move_to_farthest(centers, labels, distances, empty, sizes)
        return scale_to_unit_length(moved) if self.spherical else moved

    def _split_largest(
        self,
        centers: np.ndarray,
        labels: np.ndarray,
        empty: np.ndarray,
        sizes: np.ndarray,
    ) -> np.ndarray:
        """Split the largest clusters in two, and give each half its mean.

        The cut is a random hyperplane through the mean. It divides the points like a
        center and its copy at a small random offset (paper, section 3.3).
        """
        donors = np.argsort(-sizes, kind="stable")[: len(empty)]
        donors = donors[sizes[donors] > 0]
        if not donors.size:
            return centers
        n_clusters = len(centers)
        receiver = np.full(n_clusters, -1, dtype=labels.dtype)
        receiver[donors] = empty[: len(donors)]
        rows = np.flatnonzero(receiver[labels] >= 0)
        points, halves = take_rows(self.points.values, rows), labels[rows]
        # Projections are in float64 and relative to the mean. Otherwise rounding
        # decides about points that lie close together and far from zero.
        direction = self.rng.standard_normal(points.shape[1])
        projection = np.empty(len(rows))
        for batch in gen_batches(max(1, len(rows)), BATCH_ROWS):
            offsets = points[batch] - centers[halves[batch]]
            projection[batch] = offsets @ direction
        # numpy returns integers for empty input, which would not add up with floats.
        total = np.bincount(halves, projection, minlength=n_clusters).astype(float)
        middle = self.processes.sum(total)
        middle /= np.maximum(self._sizes(halves, n_clusters), 1)
        halves = np.where(projection > middle[halves], receiver[halves], halves)
        sums = self.processes.sum(cluster_sums(points, halves, n_clusters))
        return divide_sums(sums, self._sizes(halves, n_clusters), centers)

    def _move_to_farthest(
        self,
        centers: np.ndarray,
        labels: np.ndarray,
        distances: np.ndarray,
        empty: np.ndarray,
        sizes: np.ndarray,
    ) -> np.ndarray:
        """Move the centers of empty clusters to the points farthest from theirs."""
        candidates = np.where(sizes[labels] > 0, distances, -1)
        farthest = self._farthest_points(candidates, len(empty))
        moved = centers.copy()
        moved[empty[: len(farthest)]] = farthest
        return moved

    def _farthest_points(self, distances: np.ndarray, count: int) -> np.ndarray:
        """Return distinct points with the largest non-negative distances."""
        rows = _largest_distinct(distances, self._distinct[1], count)
        local = distances[rows], self.points.values[rows]
        distances, points = map(
            np.concatenate, zip(*self.processes.all_gather_object(local), strict=True)
        )
        return points[_largest_distinct(distances, distinct_rows(points)[1], count)]

    def _nearest_points(self, labels: np.ndarray, distances: np.ndarray) -> np.ndarray:
        """Return the point nearest to its center for each cluster."""
        order = np.argsort(distances, kind="stable")
        rows = order[np.unique(labels[order], return_index=True)[1]]
        local = labels[rows], distances[rows], self.points.values[rows]
        labels, distances, points = map(
            np.concatenate, zip(*self.processes.all_gather_object(local), strict=True)
        )
        order = np.argsort(distances, kind="stable")
        return points[order[np.unique(labels[order], return_index=True)[1]]]

    def repair(
        self,
        centers: np.ndarray,
        labels: np.ndarray,
        distances: np.ndarray,
        nearest: Nearest,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return centers without an empty cluster, with their labels and distances.

        If there are fewer distinct points than centers, each distinct point is a
        cluster, and fewer centers are returned.

        Raises
        ------
        ValueError
            If the policy is "raise" and there is an empty cluster.
        """
        n_clusters = len(centers)
        n_empty = n_clusters - np.count_nonzero(self._sizes(labels, n_clusters))
        if n_empty and self.name == "raise":
            raise ValueError(
                f"{n_empty} of {n_clusters} clusters are empty after k-means. "
                f"{self.cure}, fill empty clusters with empty_clusters='split' or "
                "'farthest', or remove them with 'drop'."
            )
        if n_empty and self.name in ("split", "farthest"):
            centers, labels, distances = self._fill(centers, labels, distances, nearest)
        while not (filled := self._sizes(labels, len(centers)) > 0).all():
            centers = centers[filled]
            labels, distances = nearest(centers)
        return centers, labels, distances

    def _fill(
        self,
        centers: np.ndarray,
        labels: np.ndarray,
        distances: np.ndarray,
        nearest: Nearest,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Re-seed until no cluster is empty. In the end, put centers on points."""
        n_clusters = len(centers)
        if self._has_more_points_than(n_clusters):
            for _ in range(MAX_RESEEDINGS):
                centers = self.reseed(centers, labels, distances)
                labels, distances = nearest(centers)
                if self._sizes(labels, n_clusters).all():
                    return centers, labels, distances
        # Each center lies on a distinct point, so that it keeps at least this point.
        # The point nearest to each center holds its cluster in place, and the points
        # farthest from their centers fill the remaining clusters.
        anchors = self._nearest_points(labels, distances)
        anchors = anchors[distinct_rows(anchors)[0]]
        numbers = distinct_rows(np.concatenate([anchors, self.points.values]))[1]
        is_anchor = np.isin(numbers[len(anchors) :], numbers[: len(anchors)])
        fillers = self._farthest_points(
            np.where(is_anchor, -1, distances), n_clusters - len(anchors)
        )
        centers = np.concatenate([anchors, fillers])
        centers = scale_to_unit_length(centers) if self.spherical else centers
        return centers, *nearest(centers)


def _largest_distinct(
    values: np.ndarray, numbers: np.ndarray, count: int
) -> np.ndarray:
    """Return positions of the largest non-negative values with different numbers."""
    order = np.argsort(-values, kind="stable")
    order = order[values[order] >= 0]
    _, positions = np.unique(numbers[order], return_index=True)
    return order[np.sort(positions)[:count]]
