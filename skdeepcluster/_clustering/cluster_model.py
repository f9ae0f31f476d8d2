"""Final clusters, their leaves and their merge tree."""

from dataclasses import dataclass

import numpy as np

from .._utils.distributed import Sharded
from .._utils.memory import explain_memory_error
from .kmeans import KMeansOptions, kmeans
from .leaves import LinearClassifier, LinearLeaves, NearestLeaves
from .membership import Membership, calibrate_temperature
from .merging import ChangedImages, Merge, MergeInput, merge
from .n_clusters import CutScores
from .neighbor_clusters import cluster_by_neighbors
from .pseudo_labels import Clusterer, PseudoLabels
from .sums import cluster_means, cluster_sizes, cluster_sums
from .tree import MergeTree, build_tree
from .whitening import fit_projection

# Fewest leaves that a cluster is divided into, and the most leaves of all clusters.
LEAVES_PER_CLUSTER = 5
MAX_LEAVES = 500
# Fewest images in a leaf, and the restarts of k-means that divides a cluster.
MIN_LEAF_ROWS = 5
LEAF_RESTARTS = 3


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
    from_start : bool
        Whether the clusters were found in what the fit started from, not in what the
        network learned.
    cut_scores : CutScores or None
        Scores by which the number of clusters was chosen. None if it was given.
    """

    leaf_model: LinearLeaves | NearestLeaves
    leaf_centers: np.ndarray
    leaf_sizes: np.ndarray
    tree: MergeTree
    clusters: np.ndarray
    temperature: float
    from_start: bool = False
    cut_scores: CutScores | None = None

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
    images: MergeInput,
    clusterer: Clusterer,
    seed: int,
) -> ClusterModel:
    """Merge pseudo-labels into the final clusters of features.

    If the pseudo-labels are the final clusters and there is no graph, the nearest
    center of the last round assigns features, as in the paper. Otherwise `merge`
    clusters a sample of the images, and each cluster is divided into leaves. A logistic
    regression predicts the leaf of each image from its features. The clusters of the
    predicted leaves are `labels_`.

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
        representatives = np.unique(last.labels[0], return_index=True)[1]
        rows = np.union1d(rows, representatives)
    sample = features.take(rows)
    unchanged = features.take(images.changed.rows)

    def fit() -> FittedLeaves:
        if clusterer.labels_are_final and last.projection is not None:
            return _keep_centers(last)
        if clusterer.labels_are_final:
            # Nothing is merged, and only the features decide which clusters are near.
            no_points, labels = sample[:, :0], last.labels[0][rows]
            merged = Merge(no_points, labels, from_start=False, cut_scores=None)
        else:
            make_clusters = merge if images.diffusion_maps else cluster_by_neighbors
            merged = make_clusters(sample, unchanged, images, clusterer, seed)
        return _divide_clusters(merged, sample, clusterer, seed)

    def calibrate(fitted: FittedLeaves) -> float:
        labels = fitted.clusters[fitted.model.predict(unchanged)]
        if isinstance(fitted.model, NearestLeaves):
            scores = fitted.model.scores(images.changed.features)
        else:
            # A classifier knows the images that it was fitted to too well.
            sample_labels = fitted.clusters[fitted.model.predict(sample)]
            scores = held_out_scores(sample, sample_labels, rows, images.changed, seed)
        return calibrate_temperature(scores, labels)

    def fit_and_calibrate() -> tuple[FittedLeaves, float]:
        fitted = fit()
        return fitted, calibrate(fitted)

    fitted, temperature = processes.run_on_first(fit_and_calibrate)
    leaf_model, clusters = fitted.model, fitted.clusters
    leaves = leaf_model.predict(features.values)
    return ClusterModel(
        leaf_model=leaf_model,
        leaf_centers=mean_features(features, leaves, len(clusters)),
        leaf_sizes=cluster_sizes(leaves, len(clusters), processes),
        tree=fitted.tree,
        clusters=clusters,
        temperature=temperature,
        from_start=fitted.from_start,
        cut_scores=fitted.cut_scores,
    )


@dataclass(frozen=True)
class FittedLeaves:
    """Leaves, their clusters and their tree, without statistics of all images."""

    model: LinearLeaves | NearestLeaves
    clusters: np.ndarray
    tree: MergeTree
    from_start: bool = False
    cut_scores: CutScores | None = None


def _keep_centers(last: PseudoLabels) -> FittedLeaves:
    """Return one leaf for each center of the last round."""
    assert last.projection is not None
    centers = last.clusters[0].centers
    clusters = np.arange(len(centers), dtype=np.int32)
    model = NearestLeaves(last.projection, centers)
    return FittedLeaves(model, clusters, build_tree(centers, clusters))


def _divide_clusters(
    merged: Merge, sample: np.ndarray, clusterer: Clusterer, seed: int
) -> FittedLeaves:
    """Divide each cluster into leaves, and learn to predict the leaves.

    Parameters
    ----------
    merged : Merge
        Clusters of the sample.
    sample : ndarray of shape (m, d), float32
        Features of the sample.
    clusterer : Clusterer
    seed : int
    """
    labels = np.unique(merged.labels)
    n_parts = count_leaves(max(clusterer.n_pseudo_labels), len(labels))
    # Inside a cluster, diffusion maps are nearly one point. Features are not.
    unit_features = fit_projection(sample, "auto", whiten=False, normalize=True)(sample)
    leaves, n_leaves = np.empty(len(sample), np.int64), 0
    for label in labels:
        rows = np.flatnonzero(merged.labels == label)
        parts = _divide(unit_features[rows], n_parts, seed)
        leaves[rows] = n_leaves + parts
        n_leaves += int(parts.max()) + 1
    model = LinearLeaves.fit(sample, merged.labels, leaves)
    # Clusters that are never confused are equally far apart in diffusion maps. The
    # features tell which of them are near.
    coordinates = np.hstack([merged.points, unit_features])
    no_means = np.zeros((model.n_leaves, coordinates.shape[1]), np.float32)
    means = cluster_means(coordinates, model.predict(sample), no_means)
    return FittedLeaves(
        model=model,
        clusters=model.parents,
        tree=build_tree(means, model.parents),
        from_start=merged.from_start,
        cut_scores=merged.cut_scores,
    )


def count_leaves(n_pseudo_labels: int, n_clusters: int) -> int:
    """Return the number of leaves of a cluster with enough images."""
    n_leaves = max(LEAVES_PER_CLUSTER, n_pseudo_labels // n_clusters)
    # The classifier of very many leaves would take longer than the rounds.
    return max(1, min(n_leaves, MAX_LEAVES // n_clusters))


def _divide(points: np.ndarray, n_parts: int, seed: int) -> np.ndarray:
    """Divide points into at most `n_parts` parts, none of which is tiny."""
    options = KMeansOptions(n_init=LEAF_RESTARTS, empty_clusters="drop")
    for n in range(min(n_parts, len(points) // MIN_LEAF_ROWS), 1, -1):
        parts = kmeans(Sharded.whole(points), n, options, seed).labels
        if np.bincount(parts).min() >= MIN_LEAF_ROWS:
            return parts
    return np.zeros(len(points), np.int32)


def held_out_scores(
    sample: np.ndarray,
    labels: np.ndarray,
    rows: np.ndarray,
    changed: ChangedImages,
    seed: int,
) -> np.ndarray:
    """Return scores of changed images by classifiers that have not seen the images.

    Each cluster is divided at random into two halves. A classifier that is fitted to
    one half of all clusters scores the changed images of the other half.

    Parameters
    ----------
    sample : ndarray of shape (m, d), float32
        Features of the images at `rows`.
    labels : ndarray of shape (m,), int
        Cluster of each of these images.
    rows : ndarray of shape (m,), int
        Ascending.
    changed : ChangedImages
    seed : int

    Returns
    -------
    scores : ndarray of shape (m_changed, n_clusters), float64
    """
    order = np.random.default_rng(seed).permutation(len(rows))
    order = order[np.argsort(labels[order], kind="stable")]
    half_of_sample = np.empty(len(rows), int)
    half_of_sample[order] = np.arange(len(rows)) % 2
    # The single image of a cluster belongs to both halves.
    is_single = np.bincount(labels)[labels] == 1
    position = np.minimum(np.searchsorted(rows, changed.rows), len(rows) - 1)
    # Images outside of the sample are unknown to both classifiers.
    half_of_changed = half_of_sample[position]
    scores = np.empty((len(changed.rows), int(labels.max()) + 1))
    for half in (0, 1):
        is_fitted = (half_of_sample != half) | is_single
        is_scored = half_of_changed == half
        if not is_scored.any():
            continue
        classifier, names = LinearClassifier.fit(sample[is_fitted], labels[is_fitted])
        known = classifier.scores(changed.features[is_scored])
        # A cluster that the classifier has lost is as improbable as any.
        scores[is_scored] = known.min(axis=1, keepdims=True)
        scores[np.ix_(is_scored, names)] = known
    return scores


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
