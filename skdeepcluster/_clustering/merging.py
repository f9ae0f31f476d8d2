"""Final clusters: pseudo-labels of the last rounds, merged by their confusions."""

from dataclasses import dataclass, replace

import numpy as np
from scipy.cluster.hierarchy import linkage
from scipy.linalg import eigh
from scipy.spatial.distance import pdist
from sklearn.preprocessing import normalize
from sklearn.utils.extmath import randomized_svd

from .._utils.distributed import Sharded
from .._utils.memory import explain_memory_error
from .._utils.random import RandomStreams
from ..metrics import reproduced_information
from .kmeans import KMeansOptions, kmeans
from .leaves import LinearLeaves, NearestLeaves
from .membership import Membership, calibrate_temperature
from .pseudo_labels import MAX_EIGENVECTORS, PIXEL_SHARE, Clusterer, PseudoLabels
from .sums import cluster_means, cluster_sizes, cluster_sums
from .tree import MergeTree

# Number of last rounds whose diffusion maps are merged. Single rounds swing, and the
# pseudo-labels of earlier rounds are worse.
MERGED_ROUNDS = 3
# Number of images that represent all images in the merge: at least this many, ...
MERGE_ROWS = 20_000
# ... and at least this many per cluster.
ROWS_PER_CLUSTER = 50
# Steps of the random walk between images that the network confuses.
DIFFUSION_STEPS = 4
# Pseudo-labels with a larger eigenvalue are confused with no other pseudo-label.
MIN_SEPARATE_EIGENVALUE = 0.999
# With more pseudo-labels than this, eigenvectors are approximated by sampling.
DENSE_LABELS = 1000
# Restarts of the k-means that merges, since most restarts reach a poor optimum.
MAX_RESTARTS = 50
# Budget of the merge: restarts x clusters.
RESTART_BUDGET = 2000
# Minimum number of restarts, even beyond the budget.
MIN_RESTARTS = 5
# Number of images that the stability of candidate clusters is measured on.
STABILITY_ROWS = 5000
# Stability by which clusters of the network must exceed clusters of the pixels.
MIN_GAIN = 0.015
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
    max_vectors = min(MAX_EIGENVECTORS, n_labels)
    if n_labels > DENSE_LABELS:
        _, singular_values, rows = randomized_svd(scaled, max_vectors, random_state=0)
        values, vectors = singular_values**2, rows.T
    else:
        leading = [n_labels - max_vectors, n_labels - 1]
        values, vectors = eigh(scaled.T @ scaled, subset_by_index=leading)
        values, vectors = values[::-1], vectors[:, ::-1]
    # A third more eigenvectors than clusters: with fewer, small clusters vanish; with
    # more, k-means cuts through large clusters. Pseudo-labels that the network never
    # confuses have an eigenvalue of 1 each. All of these are kept, since a selection
    # among equal eigenvalues would merge such pseudo-labels arbitrarily.
    n_separate = int(np.count_nonzero(values > MIN_SEPARATE_EIGENVALUE))
    n_vectors = min(max(n_clusters + n_clusters // 3, n_separate), max_vectors)
    values, vectors = values[:n_vectors], vectors[:, :n_vectors]
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


@dataclass(frozen=True)
class MergeInput:
    """Images that represent all images in the merge.

    Parameters
    ----------
    rows : ndarray of shape (m,), int
        Rows of the images in the whole data.
    diffusion_maps : list of ndarrays with m rows
        Maps of the last rounds. Not used if the pseudo-labels are the final clusters.
    pixels : ndarray of shape (m, d), float32, or None
        Principal components of the pixels. None if pixels are not to be trusted.
    changed : ChangedImages
        Some images after a mild change.
    """

    rows: np.ndarray
    diffusion_maps: list[np.ndarray]
    pixels: np.ndarray | None
    changed: ChangedImages


@explain_memory_error("merging pseudo-labels", "Lower n_clusters.")
def fit_cluster_model(
    last: PseudoLabels,
    features: Sharded,
    images: MergeInput,
    clusterer: Clusterer,
    seed: int,
) -> ClusterModel:
    """Merge pseudo-labels into at most `n_clusters` clusters of features.

    If the pseudo-labels are the final clusters and there is no graph, the nearest
    center of the last round assigns features, as in the paper. Otherwise k-means on the
    diffusion maps of the last rounds, side by side, merges the pseudo-labels. Where the
    network adds nothing, the clusters are those of k-means on the pixels instead. Each
    cluster is divided into leaves, and a logistic regression predicts the leaf of each
    image from its features. The clusters of the predicted leaves are `labels_`.

    Parameters
    ----------
    last : PseudoLabels
        Pseudo-labels of the last round.
    features : Sharded array of shape (n, d), float32
        Features after the last round.
    images : MergeInput
    clusterer : Clusterer
    seed : int
    """
    processes, rows = features.processes, images.rows
    if clusterer.labels_are_final:
        # Each cluster needs an image that the classifier can learn from.
        (final_labels,) = last.labels
        representatives = np.unique(final_labels, return_index=True)[1]
        rows = np.union1d(rows, representatives)
    sample = features.take(rows)
    unchanged = features.take(images.changed.rows)

    def fit() -> tuple[LinearLeaves | NearestLeaves, MergeTree, np.ndarray, float]:
        leaf_model: LinearLeaves | NearestLeaves
        if clusterer.labels_are_final:
            points, clusters = sample, np.arange(int(final_labels.max()) + 1)
            if last.projection is not None:
                centers = last.clusters[0].centers
                leaf_model = NearestLeaves(last.projection, centers)
            else:
                leaf_model, clusters = LinearLeaves.fit(sample, final_labels[rows])
        else:
            points, labels = merge(sample, unchanged, images, clusterer, seed)
            leaves, clusters = divide_into_leaves(points, labels, clusterer, seed)
            leaf_model, kept = LinearLeaves.fit(sample, leaves)
            clusters = clusters[kept]
        clusters = np.unique(clusters, return_inverse=True)[1].astype(np.int32)
        leaves = leaf_model.predict(sample)
        means = cluster_means(
            points, leaves, np.zeros((len(clusters), points.shape[1]))
        )
        temperature = calibrate_temperature(
            leaf_model.scores(images.changed.features),
            leaf_model.predict(unchanged),
            clusters,
        )
        return leaf_model, build_tree(means, clusters), clusters, temperature

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


def merge(
    sample: np.ndarray,
    unchanged: np.ndarray,
    images: MergeInput,
    clusterer: Clusterer,
    seed: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the points of the images in which clusters are compact, and the clusters.

    The points are the diffusion maps or, where the network adds nothing, the pixels.

    Parameters
    ----------
    sample : ndarray of shape (m, d), float32
        Features of the images.
    unchanged : ndarray of shape (m_changed, d), float32
        Features of the images in `images.changed`, before the change.
    images : MergeInput
    clusterer : Clusterer
    seed : int
    """
    maps = [
        points / np.sqrt(len(images.diffusion_maps)) for points in images.diffusion_maps
    ]
    if images.pixels is None:
        points = np.hstack(maps)
        return points, cluster_points(points, clusterer, seed)
    # A small share of the pixels decides what the diffusion maps leave open, since all
    # pseudo-labels that are never confused are equally far apart there.
    points = np.hstack([*maps, PIXEL_SHARE * normalize(images.pixels)])
    labels = cluster_points(points, clusterer, seed)
    pixel_labels = cluster_points(images.pixels, clusterer, seed)

    def stability(labels: np.ndarray) -> float:
        """Return how well the clusters survive a mild change of the images."""
        rows = np.random.default_rng(seed).permutation(len(sample))[:STABILITY_ROWS]
        consecutive = np.unique(labels[rows], return_inverse=True)[1]
        classifier, _ = LinearLeaves.fit(sample[rows], consecutive)
        return reproduced_information(
            classifier.predict(unchanged), classifier.predict(images.changed.features)
        )

    if stability(labels) > stability(pixel_labels) + MIN_GAIN:
        return points, labels
    return images.pixels, pixel_labels


def cluster_points(points: np.ndarray, clusterer: Clusterer, seed: int) -> np.ndarray:
    """Return the cluster of each point, from the best of many restarts of k-means.

    One more run starts at a cut of the merge tree: if all pseudo-labels are equally far
    apart, no restart leaves the arbitrary union that it begins with.
    """
    n_clusters, data = clusterer.n_clusters, Sharded.whole(points)
    options = KMeansOptions(
        n_init=max(MIN_RESTARTS, min(MAX_RESTARTS, RESTART_BUDGET // n_clusters)),
        empty_clusters=clusterer.kmeans_options.empty_clusters,
        backend=clusterer.kmeans_options.backend,
        device=clusterer.kmeans_options.device,
    )
    best = kmeans(data, n_clusters, options, seed)
    n_leaves = max(clusterer.n_pseudo_labels)
    fine = kmeans(
        data,
        n_leaves,
        replace(options, empty_clusters="drop", n_init=MIN_RESTARTS),
        seed,
    )
    if len(fine.centers) > n_clusters:
        tree = build_tree(fine.centers, np.zeros(len(fine.centers)))
        labels = tree.cut(n_clusters)[fine.labels]
        starts = cluster_means(points, labels, fine.centers[:n_clusters])
        refined = kmeans(data, n_clusters, replace(options, init=starts), seed)
        best = min(best, refined, key=lambda clusters: clusters.inertia)
    return best.labels


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
