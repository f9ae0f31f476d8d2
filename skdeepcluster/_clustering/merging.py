"""Pseudo-labels of the last rounds -> the groups that `predict` tells."""

import warnings
from dataclasses import dataclass

import joblib
import numpy as np
from scipy.linalg import eigh
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler, normalize
from sklearn.utils.extmath import randomized_svd

from .._utils.distributed import SINGLE_PROCESS, Processes, Sharded
from .._utils.memory import explain_memory_error
from .._utils.random import RandomStreams
from .empty_clusters import cluster_sizes
from .kmeans import assign
from .pseudo_labels import MAX_EIGENVECTORS, Clusterer, PseudoLabels
from .whitening import Projection

AVERAGED_ROUNDS = 4  # last rounds whose views the groups are clusters of
MERGE_ROWS = 20_000  # images that stand for all when groups are made, or
ROWS_PER_CLUSTER = 50  # as many for each group, where those are more
DIFFUSION_STEPS = 4  # of a random walk between images that are taken for each other
DENSE_LABELS = 1000  # pseudo-labels; of more, eigenvectors are found by sampling
RESTARTS = 50  # of the k-means that makes groups, few of which end at the best,
RESTARTS_TIMES_CLUSTERS = 2000  # less where this is less than restarts times groups,
MIN_RESTARTS = 5  # down to these
INVERSE_PENALTIES = [
    0.1,
    10.0,
    1000.0,
]  # inverse penalties, tried until no group is lost
PREDICTED_ROWS = 8192  # at once


def diffusion_map(probabilities: np.ndarray, n_clusters: int) -> np.ndarray:
    """Return what a round contributes to the groups: coordinates, float32 (n, m).

    How the network confuses the pseudo-labels that it was trained on tells which of
    them belong together. Images and pseudo-labels are the two sides of a graph, whose
    edges are the probabilities; images between which a random walk of a few steps
    leads are close.

    Parameters
    ----------
    probabilities : ndarray of shape (n, k), float32
        What the round's head predicts.
    n_clusters : int
        Number of groups that are wanted.

    Notes
    -----
    R. R. Coifman and S. Lafon, "Diffusion maps", Applied and Computational Harmonic
    Analysis 21, 2006, here with rows of unit length.
    """
    scaled = probabilities / np.sqrt(probabilities.sum(axis=0) + 1e-9)
    k = scaled.shape[1]
    # A third more eigenvectors than groups: fewer hide kinds that are small, more let
    # k-means cut through large ones.
    n_vectors = min(n_clusters + n_clusters // 3, MAX_EIGENVECTORS, k)
    if k > DENSE_LABELS:
        _, roots, rows = randomized_svd(scaled, n_vectors, random_state=0)
        values, vectors = roots**2, rows.T
    else:
        leading = [k - n_vectors, k - 1]
        values, vectors = eigh(scaled.T @ scaled, subset_by_index=leading)
    return normalize(scaled @ (vectors * values.clip(0) ** DIFFUSION_STEPS))


def sample_merge_rows(n: int, n_clusters: int, streams: RandomStreams) -> np.ndarray:
    """Return the rows that stand for all `n` when groups are made, in order."""
    return streams.sample("groups", n, max(MERGE_ROWS, ROWS_PER_CLUSTER * n_clusters))


@explain_memory_error("groups", "Lower n_clusters.")
def fit_assigner(
    last: PseudoLabels,
    features: np.ndarray,
    rows: np.ndarray,
    views: list[np.ndarray],
    clusterer: Clusterer,
    seed: int,
) -> "NearestCenterAssigner | LinearAssigner":
    """Make `n_clusters` groups, or fewer, of what the last rounds found.

    With a single k and no graph they are the clusters of the last round, as in the
    paper. Else the pseudo-labels are merged: the groups are clusters of the last
    rounds' views, side by side, and a classifier of the features tells them.

    Parameters
    ----------
    last : PseudoLabels
        Of the last round.
    features : ndarray of shape (n, d), float32
        Of the last round; those that this process holds.
    rows : ndarray of shape (m,), int
        Rows of the features that the views are of.
    views : list of ndarrays with m rows
        The last rounds' diffusion maps; unused with a single k.
    clusterer : Clusterer
    seed : int
    """
    if clusterer.single and last.projection is not None:
        return NearestCenterAssigner(last.projection, last.clusters[0].centers)
    if clusterer.single:
        (labels,) = last.labels
        firsts = np.unique(labels, return_index=True)[1]
        rows = np.union1d(rows, firsts)  # every group has one
    points = Sharded(
        features, clusterer.processes.shard_from_sizes(len(features))
    ).take(rows)

    def fit() -> LinearAssigner:
        if clusterer.single:
            return LinearAssigner.fit(points, labels[rows])
        k = clusterer.n_clusters
        n_init = max(MIN_RESTARTS, min(RESTARTS, RESTARTS_TIMES_CLUSTERS // k))
        merged = clusterer.kmeans(np.hstack(views), k, seed, n_init)
        return LinearAssigner.fit(points, merged.labels)

    return clusterer.processes.run_on_first(fit)


@dataclass(frozen=True)
class NearestCenterAssigner:
    """Tells groups by the nearest center."""

    projection: Projection  # of features to the points that centers are compared with
    centers: np.ndarray  # float32 (n_groups, m)

    def predict(self, features: np.ndarray) -> np.ndarray:
        """Return the group of each row, int32 (n,)."""
        return assign(self.projection(features), self.centers)[0]


@dataclass(frozen=True)
class LinearAssigner:
    """Tells groups by a logistic regression, as a head tells pseudo-labels."""

    weights: np.ndarray  # float64 (d, n_groups)
    bias: np.ndarray  # float64 (n_groups,)

    @classmethod
    def fit(cls, features: np.ndarray, labels: np.ndarray) -> "LinearAssigner":
        """Learn to tell `labels`, consecutive from 0, each of which has a row."""
        n_groups = int(labels.max()) + 1
        if n_groups == 1:
            return cls(np.zeros((features.shape[1], 1)), np.zeros(1))
        scaler = StandardScaler().fit(features)
        points = scaler.transform(features)
        for strength in INVERSE_PENALTIES:
            model = LogisticRegression(C=strength, max_iter=200)
            with warnings.catch_warnings():  # nearly converged is good enough
                warnings.simplefilter("ignore", ConvergenceWarning)
                # Nearly as many groups as images are groups all the same.
                warnings.filterwarnings("ignore", "The number of unique classes")
                # Older releases run it by joblib: a cluster would get it as a task.
                with joblib.parallel_config("sequential"):
                    model.fit(points, labels)
            coefficients, bias = model.coef_, model.intercept_
            if n_groups == 2:  # scikit-learn keeps only those of the second
                coefficients = np.vstack([-coefficients, coefficients]) / 2
                bias = np.concatenate([-bias, bias]) / 2
            weights = (coefficients / scaler.scale_).T.astype(np.float64)
            groups = cls(weights, bias - scaler.mean_ @ weights)
            told = np.unique(groups.predict(features))
            if len(told) == n_groups:
                break
        return cls(np.ascontiguousarray(groups.weights[:, told]), groups.bias[told])

    def predict(self, features: np.ndarray) -> np.ndarray:
        """Return the group of each row, int32 (n,)."""
        labels = np.empty(len(features), np.int32)
        for start in range(0, len(features), PREDICTED_ROWS):
            part = slice(start, start + PREDICTED_ROWS)
            scores = features[part].astype(np.float64) @ self.weights + self.bias
            labels[part] = scores.argmax(axis=1)
        return labels


def mean_embeddings(
    features: np.ndarray, groups: np.ndarray, processes: Processes = SINGLE_PROCESS
) -> np.ndarray:
    """Return the mean of each group's features, float32 (n_groups, d)."""
    n_groups = max(processes.all_gather_object(int(groups.max()))) + 1
    sums = np.zeros((n_groups, features.shape[1]))
    np.add.at(sums, groups, features)
    sizes = cluster_sizes(groups, n_groups, processes)
    return (processes.sum(sums) / sizes[:, None]).astype(np.float32)
