"""Number of clusters: the cut of the merge tree that the data supports."""

from dataclasses import dataclass

import numpy as np

from ..metrics import reproduced_information
from .tree import MergeTree

# Shares of the best score. Cuts from the first one that reaches the one share to the
# first one that reaches the other are compared.
FIRST_SHARE = 0.8
LAST_SHARE = 0.99


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

    def as_dict(self) -> dict[str, np.ndarray]:
        """Return one column per value, from which pandas makes a table."""
        return {"n_clusters": self.n_clusters, "score": self.scores, "gap": self.gaps}


def score_cuts(
    tree: MergeTree, pairs: list[tuple[np.ndarray, np.ndarray]]
) -> CutScores:
    """Score the cuts of a tree without labels, and choose one.

    More clusters give more information, until they are no longer reproduced. The score
    alone would divide clusters that have a stable inner structure. Therefore cuts with
    fewer clusters are considered as well, down to a share of the best score, and the
    cut with the largest gap between successive merges is chosen among them.

    Parameters
    ----------
    tree : MergeTree
    pairs : list of pairs of ndarrays of shape (n,), int
        Leaves of images, and leaves of images that are similar to them.
    """
    # Distances of the merges from the root down.
    distances = np.append(tree.distances[::-1], 0.0)
    n_clusters = np.arange(2, tree.n_leaves + 1)
    scores = np.zeros(len(n_clusters))
    for i, k in enumerate(n_clusters.tolist()):
        clusters = tree.cut(k)
        scores[i] = np.mean(
            [reproduced_information(clusters[a], clusters[b]) for a, b in pairs]
        )
    gaps = distances[:-1] - distances[1:]
    if not scores.any():
        # No cut is reproduced, or there is a single leaf.
        return CutScores(scores, gaps, best=1)
    first, last = (
        int(np.argmax(scores >= share * scores.max()))
        for share in (FIRST_SHARE, LAST_SHARE)
    )
    best = first + int(gaps[first : last + 1].argmax())
    return CutScores(scores, gaps, best=int(n_clusters[best]))
