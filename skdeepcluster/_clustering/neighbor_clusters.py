"""Final clusters of the features of given weights, by their nearest neighbors."""

from dataclasses import replace

import numpy as np

from .._utils.distributed import Sharded
from ..metrics import reproduced_information
from .graph import nearest_neighbors, spectral_embedding
from .merging import Merge, MergeInput, cluster_finely, cluster_points, label_pairs
from .n_clusters import CutScores, score_cuts
from .neighbor_layout import neighbor_layout
from .pseudo_labels import MAX_EIGENVECTORS, Clusterer
from .whitening import principal_components

# Number of principal components that k-means clusters, and number of those whose
# nearest neighbors are searched for.
KMEANS_COMPONENTS = 64
NEIGHBOR_COMPONENTS = 128
# Rows with at most this many features are not scaled to unit length, which would lose
# too much in few dimensions.
MAX_SHORT_ROW = 16
# Restarts of k-means for each candidate.
RESTARTS = 10
# Number of neighbors in the layout, as a multiple of `n_neighbors`, and number of those
# whose clusters are compared with the cluster of an image.
NEIGHBOR_MULTIPLE = 1.5
JUDGED_NEIGHBORS = 15


def cluster_by_neighbors(
    sample: np.ndarray,
    unchanged: np.ndarray,
    images: MergeInput,
    clusterer: Clusterer,
    seed: int,
) -> Merge:
    """Cluster features that are good before any training.

    Candidates are k-means clusters of the features, of a spectral embedding of their
    nearest-neighbor graph, and of a layout of their nearest neighbors. The candidate in
    which the cluster of an image tells most about the clusters of its neighbors is
    returned.

    Parameters
    ----------
    sample, unchanged, images, clusterer, seed
        Parameters of `merging.merge`.

    Notes
    -----
    The embedding finds clusters of any shape between which there is a gap. The layout
    is better where clusters touch. The objectives of k-means cannot be compared, since
    each candidate has its own scale.
    """
    uses_directions = sample.shape[1] > MAX_SHORT_ROW
    components = principal_components(Sharded.whole(sample))

    def project(n_components: int) -> np.ndarray:
        return components.projection(
            n_components, whiten=False, normalize=uses_directions
        )(sample)

    candidates, points = [project(KMEANS_COMPONENTS)], project(NEIGHBOR_COMPONENTS)
    neighbors = nearest_neighbors(points, JUDGED_NEIGHBORS)[0]
    if clusterer.n_neighbors is not None:
        # With a third more eigenvectors than clusters, small clusters do not vanish.
        n_vectors = clusterer.n_clusters + clusterer.n_clusters // 3
        n_vectors = max(2, min(n_vectors, MAX_EIGENVECTORS))
        n_neighbors = round(NEIGHBOR_MULTIPLE * clusterer.n_neighbors)
        candidates += [
            spectral_embedding(points, clusterer.n_neighbors, n_vectors),
            neighbor_layout(points, n_neighbors, seed),
        ]

    cut_scores: CutScores | None = None
    if clusterer.finds_n_clusters:
        # The tree of the layout would cut too early: it is made for gaps, not for the
        # distances between clusters.
        points_of_tree = candidates[:2][-1]
        fine, tree = cluster_finely(points_of_tree, clusterer, seed)
        changed, nearest = images.changed.features, neighbors[:, 0]
        pairs = label_pairs(fine.labels, sample, unchanged, changed, nearest, seed)
        cut_scores = score_cuts(tree, pairs, compares_gaps=len(candidates) > 1)
        clusterer = replace(clusterer, n_clusters=cut_scores.best)

    labels = [
        cluster_points(points, clusterer, seed, RESTARTS) for points in candidates
    ]
    information = [_neighbor_information(row, neighbors) for row in labels]
    # argmax returns the first of equal candidates, which are the features themselves.
    best = int(np.argmax(information))
    return Merge(
        candidates[best], labels[best], from_start=best == 0, cut_scores=cut_scores
    )


def _neighbor_information(labels: np.ndarray, neighbors: np.ndarray) -> float:
    """Return the information that clusters share with the clusters of neighbors."""
    repeated = np.repeat(labels, neighbors.shape[1])
    return reproduced_information(repeated, labels[neighbors].ravel())
