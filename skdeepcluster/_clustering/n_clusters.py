"""Number of clusters: the cut of the merge tree that the data supports."""

from dataclasses import dataclass

import numpy as np

from ..metrics import reproduced_information
from .tree import MergeTree

# Share of the best score at which fewer clusters are as good.
NEAR_SHARE = 0.98
# Shares of the best score between which gaps are compared, from the first cut that
# reaches the one share to the first cut that reaches the other.
GAP_SHARES = 0.8, 0.99


@dataclass(frozen=True)
class CutScores:
    """Scores of the cuts of a merge tree, from 2 clusters on.

    Parameters
    ----------
    scores : ndarray of shape (m,), float64
        Information that clusters share with clusters of similar images.
    gaps : ndarray of shape (m,), float64
        Difference between the distances of the next merge and of the last one.
    best : int
        Number of clusters that is chosen.
    """

    scores: np.ndarray
    gaps: np.ndarray
    best: int

    @property
    def n_clusters(self) -> np.ndarray:
        """Number of clusters of each cut, int64 (m,)."""
        return np.arange(2, len(self.scores) + 2)

    @property
    def highest(self) -> float:
        """Best score, 0 without cuts."""
        return float(self.scores.max(initial=0.0))

    def as_dict(self) -> dict[str, np.ndarray]:
        """Return one column per value, from which pandas makes a table."""
        return {"n_clusters": self.n_clusters, "score": self.scores, "gap": self.gaps}


def score_cuts(
    tree: MergeTree, pairs: list[tuple[np.ndarray, np.ndarray]], compares_gaps: bool
) -> CutScores:
    """Score the cuts of a tree without labels, and choose one.

    More clusters give more information, until they are no longer reproduced. The
    smallest number of clusters with nearly the best score is chosen. With
    `compares_gaps`, cuts with even fewer clusters are considered, and the cut with the
    largest gap between successive merges is chosen among them, since the score divides
    clusters that have a stable inner structure.

    Parameters
    ----------
    tree : MergeTree
    pairs : list of pairs of ndarrays of shape (n,), int
        Leaves of images, and leaves of images that are similar to them.
    compares_gaps : bool
        Set it if clusters that are not confused have the same distance, as in diffusion
        maps. Distances of the pixels depend on more than the clusters.
    """
    # Distances of the merges from the root down.
    distances = np.append(tree.distances[::-1], 0.0)
    scores = np.zeros(tree.n_leaves - 1)
    for i in range(len(scores)):
        clusters = tree.cut(i + 2)
        scores[i] = np.mean(
            [reproduced_information(clusters[a], clusters[b]) for a, b in pairs]
        )
    gaps = distances[:-1] - distances[1:]
    if not scores.any():
        # No cut is reproduced, or there is a single leaf.
        return CutScores(scores, gaps, best=1)
    if not compares_gaps:
        best = _first(scores, NEAR_SHARE)
    else:
        first, last = (_first(scores, share) for share in GAP_SHARES)
        best = first + int(gaps[first : last + 1].argmax())
    return CutScores(scores, gaps, best=best + 2)


def _first(scores: np.ndarray, share: float) -> int:
    """Return the first position whose score reaches a share of the best score."""
    return int(np.argmax(scores >= share * scores.max()))
