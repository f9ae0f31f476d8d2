"""Final clusters of the features of given weights, by their nearest neighbors."""

from dataclasses import replace

import numpy as np

from .._utils.distributed import Sharded
from ..metrics import reproduced_information
from .graph import nearest_neighbors, spectral_embedding
from .merging import Merge, MergeInput, cluster_finely, cluster_points, label_pairs
from .n_clusters import CutScores, score_cuts
from .pseudo_labels import MAX_EIGENVECTORS, Clusterer
from .whitening import principal_components

# Numbers of principal components whose neighbors form graphs, and numbers of neighbors,
# as multiples of `n_neighbors`.
GRAPH_COMPONENTS = (64, 128)
NEIGHBOR_MULTIPLES = (1, 2)
# Rows with at most this many features are not scaled to unit length, which would lose
# too much in few dimensions.
MAX_SHORT_ROW = 16
# Scales of the components beside the embedding of a graph.
COMPONENT_SHARES = (0.0, 0.5)
# Restarts of k-means for each candidate.
RESTARTS = 10
# Number of neighbors whose clusters are compared with the cluster of an image.
JUDGED_NEIGHBORS = 15


def cluster_by_neighbors(
    sample: np.ndarray,
    unchanged: np.ndarray,
    images: MergeInput,
    clusterer: Clusterer,
    seed: int,
) -> Merge:
    """Cluster features that are good before any training.

    Candidates are k-means clusters of the features, and of spectral embeddings of
    several nearest-neighbor graphs. The candidate in which the cluster of an image
    tells most about the clusters of its neighbors is returned.

    Parameters
    ----------
    sample, unchanged, images, clusterer, seed
        Parameters of `merging.merge`.

    Notes
    -----
    No single graph is the best for all images. The objectives of k-means cannot be
    compared, since each embedding has its own scale.
    """
    uses_directions = sample.shape[1] > MAX_SHORT_ROW
    components = principal_components(Sharded.whole(sample))
    spaces = [
        components.projection(n, whiten=False, normalize=uses_directions)(sample)
        for n in GRAPH_COMPONENTS
    ]
    neighbors = nearest_neighbors(spaces[-1], JUDGED_NEIGHBORS)[0]
    candidates = _candidate_points(spaces, clusterer)

    cut_scores: CutScores | None = None
    if clusterer.finds_n_clusters:
        # The last candidate is a graph of many neighbors and components, unless
        # `n_neighbors` is None.
        fine, tree = cluster_finely(candidates[-1], clusterer, seed)
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


def _candidate_points(
    spaces: list[np.ndarray], clusterer: Clusterer
) -> list[np.ndarray]:
    """Return the features, and embeddings of graphs of their nearest neighbors."""
    candidates = [spaces[0]]
    if clusterer.n_neighbors is None:
        return candidates
    # With a third more eigenvectors than clusters, small clusters do not vanish.
    n_clusters = clusterer.n_clusters
    n_vectors = max(2, min(n_clusters + n_clusters // 3, MAX_EIGENVECTORS))
    for points in spaces:
        # On average at unit length, like the embeddings.
        length = np.sqrt(np.square(points, dtype=np.float64).sum(axis=1).mean())
        scaled = points / (length or 1.0)
        for multiple in NEIGHBOR_MULTIPLES:
            n_neighbors = multiple * clusterer.n_neighbors
            embedding = spectral_embedding(points, n_neighbors, n_vectors)
            for share in COMPONENT_SHARES:
                parts = [embedding, share * scaled] if share else [embedding]
                candidates.append(np.hstack(parts).astype(np.float32))
    return candidates


def _neighbor_information(labels: np.ndarray, neighbors: np.ndarray) -> float:
    """Return the information that clusters share with the clusters of neighbors."""
    repeated = np.repeat(labels, neighbors.shape[1])
    return reproduced_information(repeated, labels[neighbors].ravel())
