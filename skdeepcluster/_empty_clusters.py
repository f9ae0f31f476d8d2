"""What to do with clusters that got no point."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.sparse import csc_matrix
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import gen_batches

from ._warnings import warn

# Centres (k, d) -> labels (n,) and squared distances (n,) of the points.
Nearest = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]

# Each round can double the clusters, so that this many reach any k from one cluster.
MAX_ROUNDS = 20


def unit(rows: np.ndarray) -> np.ndarray:
    """Return `rows` at length 1; rows of zeros stay."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(lengths > 0, lengths, 1)


def cluster_means(
    points: np.ndarray, labels: np.ndarray, centers: np.ndarray
) -> np.ndarray:
    """Return the mean of each cluster, and the old centre of those without points."""
    k, size = len(centers), 4096
    ones, starts = np.ones(size, np.float32), np.arange(size + 1, dtype=np.int32)
    sums = np.zeros(centers.shape)
    # Batches, because one sum over a large cluster in float32 drifts away.
    for first in range(0, len(points), size):
        chosen = labels[first : first + size]
        m = len(chosen)
        one_hot = csc_matrix((ones[:m], chosen, starts[: m + 1]), shape=(k, m))
        sums += one_hot @ points[first : first + m]
    counts = np.bincount(labels, minlength=k)[:, None]
    means = np.where(counts > 0, sums / np.maximum(counts, 1), centers)
    return means.astype(np.float32)


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
    """A policy for empty clusters, bound to the points."""

    points: np.ndarray  # (n, d) float32
    policy: str  # "split", "farthest", "drop" or "raise"
    spherical: bool  # whether centres have unit length
    rng: np.random.Generator

    @cached_property
    def _distinct(self) -> tuple[np.ndarray, np.ndarray]:
        return distinct_rows(self.points)

    def _can_lose(self, labels: np.ndarray, n_clusters: int) -> np.ndarray:
        """Return whether each cluster has two distinct points or more."""
        first, number = self._distinct
        pairs = np.unique(labels * np.int64(len(first)) + number)
        return np.bincount(pairs // len(first), minlength=n_clusters) > 1

    def reseed(
        self, centers: np.ndarray, labels: np.ndarray, distances: np.ndarray
    ) -> np.ndarray:
        """Move the centres of empty clusters to where there are points, once.

        "drop" and "raise" leave them where they are.
        """
        counts = np.bincount(labels, minlength=len(centers))
        empty = np.flatnonzero(counts == 0)
        if not empty.size or self.policy in ("drop", "raise"):
            return centers
        can_lose = self._can_lose(labels, len(centers))
        step = self._split if self.policy == "split" else self._farthest
        moved = step(centers, labels, distances, empty, np.where(can_lose, counts, 0))
        return unit(moved) if self.spherical else moved

    def _split(self, centers, labels, distances, empty, sizes):
        """Cut the largest clusters in two, and give each half its mean.

        The cut is a random hyperplane through the mean: how points are shared out
        between a centre and its copy at a small random offset (paper, section 3.3).
        """
        donors = np.argsort(-sizes, kind="stable")[: len(empty)]
        donors = donors[sizes[donors] > 0]
        if not donors.size:
            return centers
        receiver = np.full(len(centers), -1, dtype=labels.dtype)
        receiver[donors] = empty[: len(donors)]
        rows = np.flatnonzero(receiver[labels] >= 0)
        points, halves = self.points[rows], labels[rows]
        # float64, and from the mean: else rounding decides where points are far from 0.
        direction = self.rng.standard_normal(points.shape[1])
        side = np.empty(len(rows))
        for batch in gen_batches(len(rows), 4096):
            side[batch] = (points[batch] - centers[halves[batch]]) @ direction
        middle = np.bincount(halves, side) / np.maximum(np.bincount(halves), 1)
        halves = np.where(side > middle[halves], receiver[halves], halves)
        return cluster_means(points, halves, centers)

    def _farthest(self, centers, labels, distances, empty, sizes):
        """Put centres on the points that are worst explained."""
        rows = self._worst(np.where(sizes[labels] > 0, distances, -1), len(empty))
        moved = centers.copy()
        moved[empty[: len(rows)]] = self.points[rows]
        return moved

    def _worst(self, distances: np.ndarray, count: int) -> np.ndarray:
        """Return rows of the largest distances >= 0, all of them distinct points."""
        order = np.argsort(-distances, kind="stable")
        order = order[distances[order] >= 0]
        _, place = np.unique(self._distinct[1][order], return_index=True)
        return order[np.sort(place)[:count]]

    def repair(
        self,
        centers: np.ndarray,
        labels: np.ndarray,
        distances: np.ndarray,
        nearest: Nearest,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return centres none of which is empty, with their labels and distances.

        Raises
        ------
        ValueError
            If the policy is "raise" and there is an empty cluster.

        Warns
        -----
        ConvergenceWarning
            If there are fewer distinct points than centres. As many are left.
        """
        k = len(centers)
        n_empty = k - np.count_nonzero(np.bincount(labels))
        if n_empty and self.policy == "raise":
            raise ValueError(
                f"{n_empty} of {k} clusters are empty after k-means. Lower n_clusters, "
                "or let empty_clusters='split' or 'farthest' fill them or 'drop' "
                "remove them."
            )
        if n_empty and self.policy in ("split", "farthest"):
            centers, labels, distances = self._fill(centers, labels, distances, nearest)
        while (counts := np.bincount(labels, minlength=len(centers))).min() == 0:
            centers = centers[counts > 0]
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
        """Reseed until no cluster is empty; at the last, put centres on points."""
        k = len(centers)
        if len(self._distinct[0]) > k:
            for _ in range(MAX_ROUNDS):
                centers = self.reseed(centers, labels, distances)
                labels, distances = nearest(centers)
                if np.bincount(labels, minlength=k).all():
                    return centers, labels, distances
        # Centres on distinct points: each owns at least its own. The best explained
        # point of each cluster keeps it in place, the worst explained fill the rest.
        best_first = np.argsort(distances, kind="stable")
        rows = best_first[np.unique(labels[best_first], return_index=True)[1]]
        number = self._distinct[1]
        rows = rows[np.unique(number[rows], return_index=True)[1]]
        taken = np.isin(number, number[rows])
        others = self._worst(np.where(taken, -1, distances), k - len(rows))
        centers = self.points[np.concatenate([rows, others])]
        centers = unit(centers) if self.spherical else centers
        return centers, *nearest(centers)
