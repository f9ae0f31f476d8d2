"""Number of clusters: the cut of a merge tree that the data supports."""

from dataclasses import dataclass

import numpy as np

from ..metrics import reproduced_information
from .tree import MergeTree

# Share of the best score at which fewer clusters are as good.
NEAR_SHARE = 0.98
# Shares of the best score. Gaps are compared from the first cut that reaches the one
# share to the first cut that reaches the other.
GAP_SHARES = 0.8, 0.99


@dataclass(frozen=True)
class CutScores:
    """Scores of the cuts of a merge tree into 2, 3, ... clusters.

    Parameters
    ----------
    scores : ndarray of shape (m,), float64
        Information that clusters share with clusters of similar images.
    gaps : ndarray of shape (m,), float64
        Distance of the merge that would join two of the clusters, minus the distance of
        the merge that made the last of them. 0 if each cluster is a leaf.
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
    tree: MergeTree, pairs: list[tuple[np.ndarray, np.ndarray]], compares_gaps: bool
) -> CutScores:
    """Score the cuts of a tree without labels, and choose one.

    More clusters give more information, until they are no longer reproduced.

    Parameters
    ----------
    tree : MergeTree
    pairs : list of pairs of ndarrays of shape (n,), int
        Leaves of images, and leaves of images that are similar to them.
    compares_gaps : bool
        Choose by `widest_gap`, else by `fewest_near_best`. Set it if clusters that are
        not confused have the same distance, as in diffusion maps. Distances of the
        pixels depend on more than the clusters.
    """
    scores = np.zeros(tree.n_leaves - 1)
    for i in range(len(scores)):
        clusters = tree.cut(i + 2)
        scores[i] = np.mean(
            [reproduced_information(clusters[a], clusters[b]) for a, b in pairs]
        )
    # Distances of the merges from the root down.
    distances = tree.distances[::-1]
    gaps = distances - np.append(distances[1:], distances[-1:])
    if not scores.any():
        # No cut is reproduced, or there is a single leaf.
        return CutScores(scores, gaps, best=1)
    index = widest_gap(scores, gaps) if compares_gaps else fewest_near_best(scores)
    return CutScores(scores, gaps, best=index + 2)


def fewest_near_best(scores: np.ndarray) -> int:
    """Return the index of the first cut with nearly the best score."""
    return _first_reaching(scores, NEAR_SHARE)


def widest_gap(scores: np.ndarray, gaps: np.ndarray) -> int:
    """Return the index of the cut with the largest gap, among cuts with good scores.

    The best score rewards the division of a cluster with stable parts. Therefore cuts
    with fewer clusters than the best one are considered as well.
    """
    start, stop = (_first_reaching(scores, share) for share in GAP_SHARES)
    return start + int(gaps[start : stop + 1].argmax())


def _first_reaching(scores: np.ndarray, share: float) -> int:
    """Return the first index whose score reaches a share of the best score."""
    return int(np.argmax(scores >= share * scores.max()))
