"""Final clusters: pseudo-labels of the last rounds, merged by their confusions."""

import warnings
from dataclasses import dataclass

import joblib
import numpy as np
from scipy.linalg import eigh
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler, normalize
from sklearn.utils import gen_batches
from sklearn.utils.extmath import randomized_svd

from .._utils.distributed import Sharded
from .._utils.memory import explain_memory_error
from .._utils.random import RandomStreams
from .kmeans import KMeansOptions, kmeans
from .nearest_centers import assign
from .pseudo_labels import MAX_EIGENVECTORS, Clusterer, PseudoLabels
from .sums import cluster_sizes
from .whitening import Projection

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
# Inverse penalties of the classifier, tried in this order until no cluster is lost.
INVERSE_PENALTIES = (0.1, 10.0, 1000.0)
# Rows that are predicted in one batch.
PREDICT_ROWS = 8192


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
class NearestCenterAssigner:
    """Assigns features to the nearest center.

    Parameters
    ----------
    projection : Projection
        Map from features to points.
    centers : ndarray of shape (n_clusters, m), float32
    """

    projection: Projection
    centers: np.ndarray

    def predict(self, features: np.ndarray) -> np.ndarray:
        """Return the cluster of each row, int32 (n,)."""
        return assign(self.projection(features), self.centers)[0]


@dataclass(frozen=True)
class LinearAssigner:
    """Assigns features to clusters by a logistic regression.

    Parameters
    ----------
    weights : ndarray of shape (d, n_clusters), float64
    bias : ndarray of shape (n_clusters,), float64
    """

    weights: np.ndarray
    bias: np.ndarray

    @classmethod
    def fit(cls, features: np.ndarray, labels: np.ndarray) -> "LinearAssigner":
        """Fit a logistic regression that predicts consecutive labels from features."""
        n_clusters = int(labels.max()) + 1
        if n_clusters == 1:
            return cls(np.zeros((features.shape[1], 1)), np.zeros(1))
        scaler = StandardScaler().fit(features)
        points = scaler.transform(features)
        for inverse_penalty in INVERSE_PENALTIES:
            model = _fit_logistic_regression(points, labels, inverse_penalty)
            coefficients, bias = model.coef_, model.intercept_
            if n_clusters == 2:
                # scikit-learn keeps only the coefficients of the second class.
                coefficients = np.vstack([-coefficients, coefficients]) / 2
                bias = np.concatenate([-bias, bias]) / 2
            weights = (coefficients / scaler.scale_).T.astype(np.float64)
            assigner = cls(weights, bias - scaler.mean_ @ weights)
            predicted = np.unique(assigner.predict(features))
            # A strong penalty can leave small clusters without any image.
            if len(predicted) == n_clusters:
                break
        weights = np.ascontiguousarray(assigner.weights[:, predicted])
        return cls(weights, assigner.bias[predicted])

    def predict(self, features: np.ndarray) -> np.ndarray:
        """Return the cluster of each row, int32 (n,)."""
        labels = np.empty(len(features), np.int32)
        for rows in gen_batches(max(1, len(features)), PREDICT_ROWS):
            scores = features[rows].astype(np.float64) @ self.weights + self.bias
            labels[rows] = scores.argmax(axis=1)
        return labels


def _fit_logistic_regression(
    points: np.ndarray, labels: np.ndarray, inverse_penalty: float
) -> LogisticRegression:
    model = LogisticRegression(C=inverse_penalty, max_iter=200)
    with warnings.catch_warnings():
        # Nearly converged is good enough, and nearly as many clusters as images are
        # still clusters.
        warnings.simplefilter("ignore", ConvergenceWarning)
        warnings.filterwarnings("ignore", "The number of unique classes")
        # Older releases fit through joblib, and a cluster would receive it as a task.
        with joblib.parallel_config("sequential"):
            return model.fit(points, labels)


@explain_memory_error("merging pseudo-labels", "Lower n_clusters.")
def fit_assigner(
    last: PseudoLabels,
    features: Sharded,
    merge_rows: np.ndarray,
    diffusion_maps: list[np.ndarray],
    clusterer: Clusterer,
    seed: int,
) -> NearestCenterAssigner | LinearAssigner:
    """Merge pseudo-labels into at most `n_clusters` clusters of features.

    If the pseudo-labels are the final clusters and there is no graph, the nearest
    center of the last round assigns features, as in the paper. Otherwise k-means on the
    diffusion maps of the last rounds, side by side, merges the pseudo-labels. Then a
    logistic regression predicts the merged cluster of each image from its features.
    These predictions are `labels_`.

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
    seed : int
    """
    if clusterer.labels_are_final and last.projection is not None:
        return NearestCenterAssigner(last.projection, last.clusters[0].centers)
    if clusterer.labels_are_final:
        # Each cluster needs an image that the classifier can learn from.
        (all_labels,) = last.labels
        representatives = np.unique(all_labels, return_index=True)[1]
        merge_rows = np.union1d(merge_rows, representatives)
    sample = features.take(merge_rows)

    def fit() -> LinearAssigner:
        if clusterer.labels_are_final:
            return LinearAssigner.fit(sample, all_labels[merge_rows])
        n_clusters = clusterer.n_clusters
        options = KMeansOptions(
            n_init=max(MIN_RESTARTS, min(MAX_RESTARTS, RESTART_BUDGET // n_clusters)),
            empty_clusters=clusterer.kmeans_options.empty_clusters,
            backend=clusterer.kmeans_options.backend,
            device=clusterer.kmeans_options.device,
        )
        points = Sharded.whole(np.hstack(diffusion_maps))
        return LinearAssigner.fit(
            sample, kmeans(points, n_clusters, options, seed).labels
        )

    return features.processes.run_on_first(fit)


def mean_embeddings(features: Sharded, labels: np.ndarray) -> np.ndarray:
    """Return the mean features of each cluster, float32 (n_clusters, d).

    Parameters
    ----------
    features : Sharded array of shape (n, d), float32
    labels : ndarray of shape (n_local,), int32
        Cluster of each row of this process.
    """
    processes = features.processes
    n_clusters = max(processes.all_gather_object(int(labels.max()))) + 1
    sums = np.zeros((n_clusters, features.values.shape[1]))
    np.add.at(sums, labels, features.values)
    sizes = cluster_sizes(labels, n_clusters, processes)
    return (processes.sum(sums) / sizes[:, None]).astype(np.float32)
