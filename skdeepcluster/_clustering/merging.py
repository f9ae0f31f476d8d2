"""Final clusters: pseudo-labels of the last rounds, merged by their confusions."""

from dataclasses import dataclass

import numpy as np
from scipy.cluster.hierarchy import linkage
from scipy.linalg import eigh
from scipy.spatial.distance import pdist
from sklearn.preprocessing import normalize
from sklearn.utils.extmath import randomized_svd

from .._utils.distributed import Sharded
from .._utils.memory import explain_memory_error
from .._utils.random import RandomStreams
from .kmeans import KMeansOptions, kmeans
from .leaves import LinearLeaves, NearestLeaves
from .membership import Membership, calibrate_temperature
from .pseudo_labels import MAX_EIGENVECTORS, Clusterer, PseudoLabels
from .sums import cluster_means, cluster_sizes, cluster_sums
from .tree import MergeTree

# Number of last rounds whose diffusion maps are merged. Single rounds swing.
MERGED_ROUNDS = 4
# Number of images that represent all images in the merge: at least this many, ...
MERGE_ROWS = 20_000
# ... and at least this many per cluster.
ROWS_PER_CLUSTER = 50
# Steps of the random walk between images that the network confuses.
DIFFUSION_STEPS = 4
# With more pseudo-labels than this, eigenvectors are approximated by sampling.
DENSE_LABELS = 1000
# Restarts of the k-means that merges, since most restarts reach a poor optimum.
MAX_RESTARTS = 50
# Budget of the merge: restarts x clusters.
RESTART_BUDGET = 2000
# Minimum number of restarts, even beyond the budget.
MIN_RESTARTS = 5
# Fewest leaves of a cluster with enough images.
MIN_LEAVES = 5
# Fewest images in a leaf, and the restarts of k-means that divides a cluster.
MIN_LEAF_ROWS = 5
LEAF_RESTARTS = 3


def diffusion_map(probabilities: np.ndarray, n_clusters: int) -> np.ndarray:
    """Embed images by the pseudo-labels that the network confuses in them.

    Pseudo-labels that the network confuses belong together. Images and pseudo-labels
    are the nodes of a bipartite graph with the probabilities as edges. Two images are
    close if a random walk of a few steps leads from one to the other.

    Parameters
    ----------
    probabilities : ndarray of shape (n, k), float32
        Probability of each pseudo-label for each image, as the round's head predicts.
    n_clusters : int
        Number of final clusters.

    Returns
    -------
    coordinates : ndarray of shape (n, m), float32
        Rows of unit length.

    Notes
    -----
    R. R. Coifman and S. Lafon, "Diffusion maps", Applied and Computational Harmonic
    Analysis 21, 2006. Scaling rows to unit length is specific to this implementation.
    """
    scaled = probabilities / np.sqrt(probabilities.sum(axis=0) + 1e-9)
    n_labels = scaled.shape[1]
    # A third more eigenvectors than clusters: with fewer, small clusters vanish; with
    # more, k-means cuts through large clusters.
    n_vectors = min(n_clusters + n_clusters // 3, MAX_EIGENVECTORS, n_labels)
    if n_labels > DENSE_LABELS:
        _, singular_values, rows = randomized_svd(scaled, n_vectors, random_state=0)
        values, vectors = singular_values**2, rows.T
    else:
        leading = [n_labels - n_vectors, n_labels - 1]
        values, vectors = eigh(scaled.T @ scaled, subset_by_index=leading)
    return normalize(scaled @ (vectors * values.clip(0) ** DIFFUSION_STEPS))


def sample_merge_rows(n: int, n_clusters: int, streams: RandomStreams) -> np.ndarray:
    """Return the sorted rows that represent all `n` images in the merge."""
    # The name of the stream is part of the seed. Another name changes all results.
    return streams.sample("groups", n, max(MERGE_ROWS, ROWS_PER_CLUSTER * n_clusters))


@dataclass(frozen=True)
class ChangedImages:
    """Sample of the images after a mild change.

    Parameters
    ----------
    rows : ndarray of shape (m,), int
        Rows of the images in the whole data.
    features : ndarray of shape (m, d), float32
        Features of the changed images.
    """

    rows: np.ndarray
    features: np.ndarray


@dataclass(frozen=True)
class ClusterModel:
    """Clusters of features: the leaves of a merge tree, and a partition of them.

    Parameters
    ----------
    leaf_model : LinearLeaves or NearestLeaves
        Assigns features to leaves.
    leaf_centers : ndarray of shape (n_leaves, d), float32
        Mean features of each leaf, over the images that `leaf_model` assigns to it.
    leaf_sizes : ndarray of shape (n_leaves,), int64
        Number of these images.
    tree : MergeTree
    clusters : ndarray of shape (n_leaves,), int32
        Cluster of each leaf. It is a cut of the tree until it is edited.
    temperature : float
        Divisor of the leaves' scores at which probabilities are calibrated.
    """

    leaf_model: LinearLeaves | NearestLeaves
    leaf_centers: np.ndarray
    leaf_sizes: np.ndarray
    tree: MergeTree
    clusters: np.ndarray
    temperature: float

    @property
    def n_clusters(self) -> int:
        """Number of clusters."""
        return int(self.clusters.max()) + 1

    @property
    def centers(self) -> np.ndarray:
        """Mean features of each cluster, float32 (n_clusters, d)."""
        sums = np.zeros((self.n_clusters, self.leaf_centers.shape[1]))
        weighted = self.leaf_centers.astype(np.float64) * self.leaf_sizes[:, None]
        np.add.at(sums, self.clusters, weighted)
        sizes = np.bincount(self.clusters, self.leaf_sizes)
        return (sums / sizes[:, None]).astype(np.float32)

    def predict(self, features: np.ndarray) -> np.ndarray:
        """Return the cluster of each row, int32 (n,)."""
        return self.clusters[self.leaf_model.predict(features)]

    def membership(self, features: np.ndarray) -> Membership:
        """Return the leaf of each row, with the probabilities of the leaves."""
        return Membership.predict(self.leaf_model, features, self.temperature)


@explain_memory_error("merging pseudo-labels", "Lower n_clusters.")
def fit_cluster_model(
    last: PseudoLabels,
    features: Sharded,
    merge_rows: np.ndarray,
    diffusion_maps: list[np.ndarray],
    clusterer: Clusterer,
    changed: ChangedImages,
    seed: int,
) -> ClusterModel:
    """Merge pseudo-labels into at most `n_clusters` clusters of features.

    If the pseudo-labels are the final clusters and there is no graph, the nearest
    center of the last round assigns features, as in the paper. Otherwise k-means on the
    diffusion maps of the last rounds, side by side, merges the pseudo-labels. Each
    cluster is divided into leaves, and a logistic regression predicts the leaf of each
    image from its features. The clusters of the predicted leaves are `labels_`.

    Parameters
    ----------
    last : PseudoLabels
        Pseudo-labels of the last round.
    features : Sharded array of shape (n, d), float32
        Features after the last round.
    merge_rows : ndarray of shape (m,), int
        Images that the diffusion maps embed.
    diffusion_maps : list of ndarrays with m rows
        Maps of the last rounds. Not used if the pseudo-labels are the final clusters.
    clusterer : Clusterer
    changed : ChangedImages
        Mildly changed images, by which probabilities are calibrated.
    seed : int
    """
    processes = features.processes
    if clusterer.labels_are_final:
        # Each cluster needs an image that the classifier can learn from.
        (all_labels,) = last.labels
        representatives = np.unique(all_labels, return_index=True)[1]
        merge_rows = np.union1d(merge_rows, representatives)
    sample = features.take(merge_rows)
    unchanged = features.take(changed.rows)

    def fit() -> tuple[LinearLeaves | NearestLeaves, MergeTree, np.ndarray, float]:
        leaf_model: LinearLeaves | NearestLeaves
        if clusterer.labels_are_final:
            clusters = np.arange(int(all_labels.max()) + 1, dtype=np.int32)
            if last.projection is not None:
                centers = last.clusters[0].centers
                leaf_model = NearestLeaves(last.projection, centers)
            else:
                leaf_model, kept = LinearLeaves.fit(sample, all_labels[merge_rows])
                clusters = np.arange(len(kept), dtype=np.int32)
            points = sample
        else:
            points = np.hstack(diffusion_maps) / np.sqrt(len(diffusion_maps))
            labels = merge(points, clusterer, seed)
            leaves, clusters = divide_into_leaves(points, labels, clusterer, seed)
            leaf_model, kept = LinearLeaves.fit(sample, leaves)
            clusters = np.unique(clusters[kept], return_inverse=True)[1]
        predicted = leaf_model.predict(sample)
        means = cluster_means(points, predicted, points[: len(clusters)])
        tree = build_tree(means, clusters)
        temperature = calibrate_temperature(
            leaf_model.scores(changed.features), leaf_model.predict(unchanged), clusters
        )
        return leaf_model, tree, clusters.astype(np.int32), temperature

    leaf_model, tree, clusters, temperature = processes.run_on_first(fit)
    leaves = leaf_model.predict(features.values)
    return ClusterModel(
        leaf_model=leaf_model,
        leaf_centers=mean_features(features, leaves, len(clusters)),
        leaf_sizes=cluster_sizes(leaves, len(clusters), processes),
        tree=tree,
        clusters=clusters,
        temperature=temperature,
    )


def merge(points: np.ndarray, clusterer: Clusterer, seed: int) -> np.ndarray:
    """Return the cluster of each point, from the best of many restarts of k-means."""
    n_clusters = clusterer.n_clusters
    n_init = max(MIN_RESTARTS, min(MAX_RESTARTS, RESTART_BUDGET // n_clusters))
    return kmeans(
        Sharded.whole(points),
        n_clusters,
        merge_options(clusterer, n_init),
        seed,
    ).labels


def merge_options(clusterer: Clusterer, n_init: int) -> KMeansOptions:
    """Return the options of k-means in the merge."""
    return KMeansOptions(
        n_init=n_init,
        empty_clusters=clusterer.kmeans_options.empty_clusters,
        backend=clusterer.kmeans_options.backend,
        device=clusterer.kmeans_options.device,
    )


def divide_into_leaves(
    points: np.ndarray, labels: np.ndarray, clusterer: Clusterer, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Divide each cluster into the same number of leaves.

    Returns
    -------
    leaves : ndarray of shape (n,), int
        Leaf of each point.
    clusters : ndarray of shape (n_leaves,), int
        Cluster of each leaf, ascending.
    """
    n_parts = max(clusterer.n_pseudo_labels) // clusterer.n_clusters
    n_parts = max(n_parts, MIN_LEAVES)
    leaves, clusters = np.empty(len(points), np.int64), []
    for cluster in np.unique(labels):
        rows = np.flatnonzero(labels == cluster)
        n_leaves = max(1, min(n_parts, len(rows) // MIN_LEAF_ROWS))
        options = KMeansOptions(n_init=LEAF_RESTARTS, empty_clusters="drop")
        parts = kmeans(Sharded.whole(points[rows]), n_leaves, options, seed).labels
        leaves[rows] = len(clusters) + parts
        clusters += [cluster] * (int(parts.max()) + 1)
    return leaves, np.array(clusters)


def build_tree(means: np.ndarray, clusters: np.ndarray) -> MergeTree:
    """Merge leaves by average linkage, first inside clusters, then across clusters.

    Parameters
    ----------
    means : ndarray of shape (n_leaves, d)
        Mean of the points of each leaf.
    clusters : ndarray of shape (n_leaves,), int
        Cluster of each leaf, ascending from 0. They are a cut of the tree.
    """
    if len(means) == 1:
        return MergeTree(np.empty((0, 2), np.int64), np.empty(0))
    distances = pdist(means)
    # A penalty on each pair of leaves of different clusters delays their merge until
    # the clusters are complete.
    across = pdist(clusters[:, None]) > 0
    penalty = 2 * distances.max() + 1
    merges = linkage(distances + penalty * across, "average")
    heights = merges[:, 2]
    heights = np.where(heights > penalty, heights - penalty, heights)
    return MergeTree(
        merges[:, :2].astype(np.int64), np.maximum.accumulate(heights).clip(0)
    )


def mean_features(features: Sharded, leaves: np.ndarray, n_leaves: int) -> np.ndarray:
    """Return the mean features of each leaf, float32 (n_leaves, d).

    Parameters
    ----------
    features : Sharded array of shape (n, d), float32
    leaves : ndarray of shape (n_local,), int32
        Leaf of each row of this process.
    n_leaves : int
    """
    processes = features.processes
    sums = processes.sum(cluster_sums(features.values, leaves, n_leaves))
    sizes = cluster_sizes(leaves, n_leaves, processes)
    return (sums / sizes[:, None]).astype(np.float32)
