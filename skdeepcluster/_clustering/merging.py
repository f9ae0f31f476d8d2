"""Final clusters: pseudo-labels of the last rounds, merged by their confusions."""

from dataclasses import dataclass, replace

import numpy as np
from scipy.linalg import eigh
from sklearn.preprocessing import normalize
from sklearn.utils.extmath import randomized_svd

from .._utils.distributed import Sharded
from .._utils.random import RandomStreams
from ..metrics import reproduced_information
from .graph import nearest_neighbors
from .kmeans import Clusters, KMeansOptions, kmeans
from .leaves import LinearClassifier
from .n_clusters import CutScores, score_cuts
from .pseudo_labels import MAX_EIGENVECTORS, PIXEL_SHARE, Clusterer
from .sums import cluster_means
from .tree import MergeTree, build_tree

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
# Number of images that a classifier of candidate clusters is fitted to.
CLASSIFIER_ROWS = 5000
# Stability by which clusters of the network must exceed clusters of the pixels.
MIN_GAIN = 0.015
# Largest number of fine clusters that a tree is built over.
MAX_FINE_CLUSTERS = 2000


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
class MergeInput:
    """Images that represent all images in the merge.

    Parameters
    ----------
    rows : ndarray of shape (m,), int
        Rows of the images in the whole data.
    diffusion_maps : list of ndarrays with m rows
        Maps of the last rounds, none with given weights. Not used if the pseudo-labels
        are the final clusters.
    pixels : ndarray of shape (m, d), float32, or None
        Principal components of the pixels. None if pixels are not to be trusted.
    changed : ChangedImages
        Some images after a mild change.
    """

    rows: np.ndarray
    diffusion_maps: list[np.ndarray]
    pixels: np.ndarray | None
    changed: ChangedImages


@dataclass(frozen=True)
class Merge:
    """Result of a merge.

    Parameters
    ----------
    points : ndarray of shape (m, d), float32
        Points in which the clusters are compact: diffusion maps with a share of the
        pixels, or the pixels.
    labels : ndarray of shape (m,), int32
        Cluster of each point.
    from_start : bool
        Whether the clusters are k-means clusters of what the fit started from: the
        pixels, or the features if the network is not trained.
    cut_scores : CutScores or None
        Scores by which the number of clusters was chosen. None if it was given.
    """

    points: np.ndarray
    labels: np.ndarray
    from_start: bool
    cut_scores: CutScores | None


def merge(
    sample: np.ndarray,
    unchanged: np.ndarray,
    images: MergeInput,
    clusterer: Clusterer,
    seed: int,
) -> Merge:
    """Cluster images by their diffusion maps, or by their pixels if these are as good.

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
    maps = np.hstack(images.diffusion_maps) / np.sqrt(len(images.diffusion_maps))
    pixels, points = images.pixels, maps
    if pixels is not None:
        # On average at unit length, like the diffusion maps.
        squares = np.square(pixels, dtype=np.float64).sum(axis=1)
        pixels = (pixels / (np.sqrt(squares.mean()) or 1.0)).astype(np.float32)
        # A small share of the pixels decides what the diffusion maps leave open: all
        # pseudo-labels that are never confused are equally far apart there.
        points = np.hstack([maps, PIXEL_SHARE * normalize(pixels)])

    neighbors = None
    if clusterer.finds_n_clusters and pixels is not None:
        neighbors = nearest_neighbors(pixels, 1)[0][:, 0]

    def score(points: np.ndarray, compares_gaps: bool) -> CutScores:
        changed = images.changed.features
        fine, tree = cluster_finely(points, clusterer, seed)
        pairs = label_pairs(fine.labels, sample, unchanged, changed, neighbors, seed)
        return score_cuts(tree, pairs, compares_gaps)

    def cluster(points: np.ndarray, n_clusters: int) -> np.ndarray:
        return cluster_points(points, replace(clusterer, n_clusters=n_clusters), seed)

    def stability(labels: np.ndarray) -> float:
        """Return how well clusters survive a mild change of the images."""
        classifier, _ = _fit_classifier(sample, labels, seed)
        return reproduced_information(
            classifier.predict(unchanged), classifier.predict(images.changed.features)
        )

    n_clusters, cut_scores = clusterer.n_clusters, None
    if clusterer.finds_n_clusters and pixels is not None:
        cut_scores = score(pixels, compares_gaps=False)
        n_clusters = cut_scores.best
    labels = cluster(points, n_clusters)
    if pixels is not None:
        pixel_labels = cluster(pixels, n_clusters)
        # Both have the same number of clusters, so that their stability is comparable.
        if stability(labels) <= stability(pixel_labels) + MIN_GAIN:
            return Merge(pixels, pixel_labels, from_start=True, cut_scores=cut_scores)
    if clusterer.finds_n_clusters:
        cut_scores = score(maps, compares_gaps=True)
        labels = cluster(points, cut_scores.best)
    return Merge(points, labels, from_start=False, cut_scores=cut_scores)


def label_pairs(
    fine_labels: np.ndarray,
    sample: np.ndarray,
    unchanged: np.ndarray,
    changed: np.ndarray,
    neighbors: np.ndarray | None,
    seed: int,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the fine clusters of images and of images that are like them.

    Parameters
    ----------
    fine_labels : ndarray of shape (m,), int
        Fine cluster of each image of the sample.
    sample : ndarray of shape (m, d), float32
        Features of the sample.
    unchanged, changed : ndarrays of shape (m_changed, d), float32
        Features of images before and after a mild change.
    neighbors : ndarray of shape (m,), int, or None
        Position of the nearest image of each image of the sample.
    seed : int

    Returns
    -------
    pairs : list of pairs of ndarrays of int
        Fine clusters before and after a mild change, and of an image and its nearest.
    """
    classifier, names = _fit_classifier(sample, fine_labels, seed)
    before, after = (
        names[classifier.predict(features)] for features in (unchanged, changed)
    )
    pairs = [(before, after)]
    if neighbors is not None:
        predicted = names[classifier.predict(sample)]
        pairs.append((predicted, predicted[neighbors]))
    return pairs


def cluster_points(
    points: np.ndarray,
    clusterer: Clusterer,
    seed: int,
    max_restarts: int = MAX_RESTARTS,
) -> np.ndarray:
    """Return the cluster of each point, from the best of many restarts of k-means.

    Restarts cannot repair an arbitrary first union of pseudo-labels that are equally
    far apart. Therefore one more run starts at a cut of the merge tree.
    """
    n_clusters, data = clusterer.n_clusters, Sharded.whole(points)
    n_init = max(MIN_RESTARTS, min(max_restarts, RESTART_BUDGET // n_clusters))
    options = replace(_merge_options(clusterer), n_init=n_init)
    best = kmeans(data, n_clusters, options, seed)
    fine, tree = cluster_finely(points, clusterer, seed)
    if tree.n_leaves > n_clusters:
        labels = tree.cut(n_clusters)[fine.labels]
        starts = cluster_means(points, labels, fine.centers[:n_clusters])
        refined = kmeans(data, n_clusters, replace(options, init=starts), seed)
        best = min(best, refined, key=lambda clusters: clusters.inertia)
    return best.labels


def cluster_finely(
    points: np.ndarray, clusterer: Clusterer, seed: int
) -> tuple[Clusters, MergeTree]:
    """Return about as many clusters as pseudo-labels, and their merge tree."""
    options = replace(
        _merge_options(clusterer), n_init=MIN_RESTARTS, empty_clusters="drop"
    )
    n_fine = min(max(clusterer.n_pseudo_labels), MAX_FINE_CLUSTERS, len(points))
    fine = kmeans(Sharded.whole(points), n_fine, options, seed)
    return fine, build_tree(fine.centers, np.zeros(len(fine.centers), np.int32))


def _merge_options(clusterer: Clusterer) -> KMeansOptions:
    """Return the user's `empty_clusters`, backend and device, else defaults."""
    policy = clusterer.kmeans_options.empty_clusters
    return KMeansOptions(
        # An empty cluster among candidates is no reason to end a fit after all rounds.
        empty_clusters="split" if policy == "raise" else policy,
        backend=clusterer.kmeans_options.backend,
        device=clusterer.kmeans_options.device,
    )


def _fit_classifier(
    sample: np.ndarray, labels: np.ndarray, seed: int
) -> tuple[LinearClassifier, np.ndarray]:
    """Fit a classifier to some images; return it and the label of each class."""
    rows = np.random.default_rng(seed).permutation(len(sample))[:CLASSIFIER_ROWS]
    return LinearClassifier.fit(sample[rows], labels[rows])
