"""What to do with clusters that got no point."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.sparse import csc_matrix
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import gen_batches

from .._utils.distributed import SINGLE_PROCESS, Processes
from .._utils.messages import warn

# Centers (k, d) -> labels (n,) and squared distances (n,) of the points.
Nearest = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]

# Each round can double the clusters, so that this many reach any k from one cluster.
MAX_ROUNDS = 20


def scale_to_unit_length(rows: np.ndarray) -> np.ndarray:
    """Return `rows` at length 1; rows of zeros stay."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(lengths > 0, lengths, 1)


def cluster_means(
    points: np.ndarray, labels: np.ndarray, centers: np.ndarray
) -> np.ndarray:
    """Return the mean of each cluster, and the old center of those without points."""
    sums = cluster_sums(points, labels, len(centers))
    return means_from_sums(sums, cluster_sizes(labels, len(centers)), centers)


def means_from_sums(
    sums: np.ndarray, sizes: np.ndarray, centers: np.ndarray
) -> np.ndarray:
    """Return means, float32 (k, d), from sums and counts; where none, the center."""
    counts = sizes[:, None]
    means = np.where(counts > 0, sums / np.maximum(counts, 1), centers)
    return means.astype(np.float32)


def cluster_sizes(
    labels: np.ndarray, k: int, processes: Processes = SINGLE_PROCESS
) -> np.ndarray:
    """Return how many points of all processes each of `k` clusters has."""
    return processes.sum(np.bincount(labels, minlength=k))


def cluster_sums(points: np.ndarray, labels: np.ndarray, k: int) -> np.ndarray:
    """Return the sum of each cluster's points, float64 (k, d)."""
    size = 4096
    ones, starts = np.ones(size, np.float32), np.arange(size + 1, dtype=np.int32)
    sums = np.zeros((k, points.shape[1]))
    # Batches, because one sum over a large cluster in float32 drifts away.
    for first in range(0, len(points), size):
        chosen = labels[first : first + size]
        m = len(chosen)
        one_hot = csc_matrix((ones[:m], chosen, starts[: m + 1]), shape=(k, m))
        sums += one_hot @ points[first : first + m]
    return sums


def distinct_rows(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return one row's index for each distinct row, and each row's number there."""
    rows = points + np.float32(0)  # -0.0 becomes 0.0, which has other bytes
    row_bytes = rows.view(np.dtype((np.void, rows.itemsize * rows.shape[1])))
    _, first, number = np.unique(
        row_bytes.ravel(), return_index=True, return_inverse=True
    )
    return first, number.ravel()


@dataclass
class EmptyClusters:
    """A policy for empty clusters, bound to the points.

    With several processes each holds some of the points. All of them move the same
    centers to the same places, and are told no more than a few points for each cluster.
    """

    points: np.ndarray  # (n, d) float32, of this process
    policy: str  # "split", "farthest", "drop" or "raise"
    spherical: bool  # whether centers have unit length
    rng: np.random.Generator  # in the same state everywhere
    processes: Processes = SINGLE_PROCESS

    @cached_property
    def _distinct(self) -> tuple[np.ndarray, np.ndarray]:
        return distinct_rows(self.points)

    def _are_more_than(self, k: int) -> bool:
        """Tell whether there are more than `k` distinct points in all."""
        some = self.points[self._distinct[0][: k + 1]]
        found = np.concatenate(self.processes.all_gather_object(some))
        return len(distinct_rows(found)[0]) > k

    def _can_lose(self, labels: np.ndarray, n_clusters: int) -> np.ndarray:
        """Return whether each cluster has two distinct points or more."""
        own, rows = np.unique(labels, return_index=True)
        known = np.full(n_clusters, False)
        pattern = np.empty((n_clusters, self.points.shape[1]), np.float32)
        for clusters, points in self.processes.all_gather_object(
            (own, self.points[rows])
        ):
            new = ~known[clusters]
            pattern[clusters[new]], known[clusters] = points[new], True
        differ = np.full(n_clusters, False)
        for batch in gen_batches(max(1, len(labels)), 4096):
            chosen = labels[batch]
            unlike = (self.points[batch] != pattern[chosen]).any(axis=1)
            differ[chosen[unlike]] = True
        return self.processes.sum(differ.astype(np.int64)) > 0

    def reseed(
        self, centers: np.ndarray, labels: np.ndarray, distances: np.ndarray
    ) -> np.ndarray:
        """Move the centers of empty clusters to where there are points, once.

        "drop" and "raise" leave them where they are.
        """
        counts = cluster_sizes(labels, len(centers), self.processes)
        empty = np.flatnonzero(counts == 0)
        if not empty.size or self.policy in ("drop", "raise"):
            return centers
        can_lose = self._can_lose(labels, len(centers))
        step = self._split if self.policy == "split" else self._farthest
        moved = step(centers, labels, distances, empty, np.where(can_lose, counts, 0))
        return scale_to_unit_length(moved) if self.spherical else moved

    def _split(self, centers, labels, distances, empty, sizes):
        """Cut the largest clusters in two, and give each half its mean.

        The cut is a random hyperplane through the mean: how points are shared out
        between a center and its copy at a small random offset (paper, section 3.3).
        """
        donors = np.argsort(-sizes, kind="stable")[: len(empty)]
        donors = donors[sizes[donors] > 0]
        if not donors.size:
            return centers
        receiver = np.full(len(centers), -1, dtype=labels.dtype)
        receiver[donors] = empty[: len(donors)]
        rows = np.flatnonzero(receiver[labels] >= 0)
        points, halves, k = self.points[rows], labels[rows], len(centers)
        # float64, and from the mean: else rounding decides where points are far from 0.
        direction = self.rng.standard_normal(points.shape[1])
        side = np.empty(len(rows))
        for batch in gen_batches(max(1, len(rows)), 4096):
            side[batch] = (points[batch] - centers[halves[batch]]) @ direction
        total = np.bincount(halves, side, minlength=k).astype(float)  # int if empty
        middle = self.processes.sum(total)
        middle /= np.maximum(cluster_sizes(halves, k, self.processes), 1)
        halves = np.where(side > middle[halves], receiver[halves], halves)
        sums = self.processes.sum(cluster_sums(points, halves, k))
        return means_from_sums(sums, cluster_sizes(halves, k, self.processes), centers)

    def _farthest(self, centers, labels, distances, empty, sizes):
        """Put centers on the points that are worst explained."""
        worst = self._worst(np.where(sizes[labels] > 0, distances, -1), len(empty))
        moved = centers.copy()
        moved[empty[: len(worst)]] = worst
        return moved

    def _worst(self, distances: np.ndarray, count: int) -> np.ndarray:
        """Return points of the largest distances >= 0, all of them distinct."""
        rows = _largest(distances, self._distinct[1], count)
        own = distances[rows], self.points[rows]
        distances, points = map(
            np.concatenate, zip(*self.processes.all_gather_object(own), strict=True)
        )
        return points[_largest(distances, distinct_rows(points)[1], count)]

    def _best(self, labels: np.ndarray, distances: np.ndarray) -> np.ndarray:
        """Return the point of each cluster that is explained best."""
        best_first = np.argsort(distances, kind="stable")
        rows = best_first[np.unique(labels[best_first], return_index=True)[1]]
        own = labels[rows], distances[rows], self.points[rows]
        labels, distances, points = map(
            np.concatenate, zip(*self.processes.all_gather_object(own), strict=True)
        )
        best_first = np.argsort(distances, kind="stable")
        return points[best_first[np.unique(labels[best_first], return_index=True)[1]]]

    def repair(
        self,
        centers: np.ndarray,
        labels: np.ndarray,
        distances: np.ndarray,
        nearest: Nearest,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return centers none of which is empty, with their labels and distances.

        Raises
        ------
        ValueError
            If the policy is "raise" and there is an empty cluster.

        Warns
        -----
        ConvergenceWarning
            If there are fewer distinct points than centers. As many are left.
        """
        k = len(centers)
        n_empty = k - np.count_nonzero(cluster_sizes(labels, k, self.processes))
        if n_empty and self.policy == "raise":
            raise ValueError(
                f"{n_empty} of {k} clusters are empty after k-means. Lower n_clusters, "
                "or let empty_clusters='split' or 'farthest' fill them or 'drop' "
                "remove them."
            )
        if n_empty and self.policy in ("split", "farthest"):
            centers, labels, distances = self._fill(centers, labels, distances, nearest)
        while not (
            filled := cluster_sizes(labels, len(centers), self.processes) > 0
        ).all():
            centers = centers[filled]
            labels, distances = nearest(centers)
        if len(centers) < k and self.policy != "drop":
            warn(
                f"Number of distinct points ({len(centers)}) is smaller than "
                f"n_clusters ({k}) in float32 arithmetic: {len(centers)} clusters are "
                "left. Lower n_clusters, or look for rows that repeat.",
                ConvergenceWarning,
            )
        return centers, labels, distances

    def _fill(self, centers, labels, distances, nearest):
        """Reseed until no cluster is empty; at the last, put centers on points."""
        k = len(centers)
        if self._are_more_than(k):
            for _ in range(MAX_ROUNDS):
                centers = self.reseed(centers, labels, distances)
                labels, distances = nearest(centers)
                if cluster_sizes(labels, k, self.processes).all():
                    return centers, labels, distances
        # Centers on distinct points: each owns at least its own. The best explained
        # point of each cluster keeps it in place, the worst explained fill the rest.
        best = self._best(labels, distances)
        best = best[distinct_rows(best)[0]]
        number = distinct_rows(np.concatenate([best, self.points]))[1]
        taken = np.isin(number[len(best) :], number[: len(best)])
        others = self._worst(np.where(taken, -1, distances), k - len(best))
        centers = np.concatenate([best, others])
        centers = scale_to_unit_length(centers) if self.spherical else centers
        return centers, *nearest(centers)


def _largest(values: np.ndarray, numbers: np.ndarray, count: int) -> np.ndarray:
    """Return places of the largest values >= 0, whose numbers are all different."""
    order = np.argsort(-values, kind="stable")
    order = order[values[order] >= 0]
    _, place = np.unique(numbers[order], return_index=True)
    return order[np.sort(place)[:count]]
