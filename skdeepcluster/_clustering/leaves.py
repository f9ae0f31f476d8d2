"""Classifiers that assign features to the leaves of the merge tree."""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import joblib
import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import euclidean_distances
from sklearn.preprocessing import StandardScaler

from .._utils.pages import row_blocks
from .nearest_centers import assign
from .whitening import Projection

# Inverse penalties of the classifier, tried in this order until no label is lost.
INVERSE_PENALTIES = (0.1, 10.0, 1000.0)
# Scores that are computed in one batch, and the largest number of its rows.
BATCH_SCORES = 2**25
BATCH_ROWS = 8192


def score_batches(features: np.ndarray, n_scores: int) -> Iterator[slice]:
    """Divide rows into batches whose scores fit into memory."""
    size = max(1, min(BATCH_ROWS, BATCH_SCORES // n_scores))
    # A power of two divides the blocks of rows in which new images are scored, so that
    # the same rows are always in one product.
    return row_blocks(features, 2 ** (size.bit_length() - 1))


@dataclass(frozen=True)
class NearestLeaves:
    """Assigns features to the leaf with the nearest center.

    Parameters
    ----------
    projection : Projection
        Map from features to points.
    centers : ndarray of shape (n_leaves, m), float32
    """

    projection: Projection
    centers: np.ndarray

    @property
    def n_leaves(self) -> int:
        """Number of leaves."""
        return len(self.centers)

    def scores(self, features: np.ndarray) -> np.ndarray:
        """Return the negative squared distance to each center, (n, n_leaves)."""
        points = self.projection(features).astype(np.float64)
        return -euclidean_distances(points, self.centers, squared=True)

    def predict(self, features: np.ndarray) -> np.ndarray:
        """Return the leaf of each row, int32 (n,)."""
        labels = np.empty(len(features), np.int32)
        for rows in row_blocks(features, BATCH_ROWS):
            labels[rows] = assign(self.projection(features[rows]), self.centers)[0]
        return labels


@dataclass(frozen=True)
class LinearClassifier:
    """Assigns features to labels by a logistic regression.

    Parameters
    ----------
    weights : ndarray of shape (d, n_labels), float64
    bias : ndarray of shape (n_labels,), float64
    """

    weights: np.ndarray
    bias: np.ndarray

    @classmethod
    def fit(
        cls, features: np.ndarray, labels: np.ndarray
    ) -> tuple["LinearClassifier", np.ndarray]:
        """Fit a logistic regression that predicts labels from features.

        Parameters
        ----------
        features : ndarray of shape (n, d), float32
        labels : ndarray of shape (n,), int

        Returns
        -------
        classifier : LinearClassifier
        names : ndarray of int
            Label of each class, ascending. Labels that the classifier predicts for no
            row are dropped.
        """
        names, labels = np.unique(labels, return_inverse=True)
        if len(names) == 1:
            return cls(np.zeros((features.shape[1], 1)), np.zeros(1)), names
        scaler = StandardScaler().fit(features)
        points = scaler.transform(features)
        for inverse_penalty in INVERSE_PENALTIES:
            regression = _fit_logistic_regression(points, labels, inverse_penalty)
            coefficients, bias = regression.coef_, regression.intercept_
            if len(names) == 2:
                # scikit-learn keeps only the coefficients of the second class.
                coefficients = np.vstack([-coefficients, coefficients]) / 2
                bias = np.concatenate([-bias, bias]) / 2
            weights = (coefficients / scaler.scale_).T.astype(np.float64)
            classifier = cls(weights, bias - scaler.mean_ @ weights)
            predicted = np.unique(classifier.predict(features))
            # A strong penalty can leave rare labels without any row.
            if len(predicted) == len(names):
                break
        return classifier.select(predicted), names[predicted]

    def select(self, labels: np.ndarray) -> "LinearClassifier":
        """Return a classifier of some of the labels."""
        weights = np.ascontiguousarray(self.weights[:, labels])
        return LinearClassifier(weights, self.bias[labels])

    def scores(self, features: np.ndarray) -> np.ndarray:
        """Return the logit of each label, float64 (n, n_labels)."""
        return features.astype(np.float64) @ self.weights + self.bias

    def predict(self, features: np.ndarray) -> np.ndarray:
        """Return the label of each row, int32 (n,)."""
        return _best_scores(self, features)


@dataclass(frozen=True)
class LinearLeaves:
    """Assigns features to clusters, and inside a cluster to leaves.

    A single classifier of leaves would assign new images to the wrong cluster more
    often, since it has fewer images for each label.

    Parameters
    ----------
    cluster_classifier : LinearClassifier
        Classifier of the clusters of the fit.
    leaf_classifier : LinearClassifier
    parents : ndarray of shape (n_leaves,), int32
        Cluster of the fit to which a leaf belongs.
    """

    cluster_classifier: LinearClassifier
    leaf_classifier: LinearClassifier
    parents: np.ndarray

    @classmethod
    def fit(
        cls, features: np.ndarray, labels: np.ndarray, leaves: np.ndarray
    ) -> "LinearLeaves":
        """Fit both classifiers.

        Clusters and leaves that are predicted for no row are dropped.

        Parameters
        ----------
        features : ndarray of shape (n, d), float32
        labels : ndarray of shape (n,), int
            Cluster of each row.
        leaves : ndarray of shape (n,), int
            Leaf of each row. All rows of a leaf are in the same cluster.
        """
        cluster_classifier, clusters = LinearClassifier.fit(features, labels)
        leaf_classifier, names = LinearClassifier.fit(features, leaves)
        # Label of each leaf's cluster.
        first_rows = np.unique(leaves, return_index=True)[1]
        label_of_leaf = dict(zip(leaves[first_rows], labels[first_rows], strict=True))
        parent_labels = np.array([label_of_leaf[name] for name in names])
        # A cluster that has lost all of its leaves is a leaf by itself.
        lost = np.setdiff1d(clusters, parent_labels)
        leaf_classifier = LinearClassifier(
            np.pad(leaf_classifier.weights, [(0, 0), (0, len(lost))]),
            np.pad(leaf_classifier.bias, (0, len(lost))),
        )
        parent_labels = np.concatenate([parent_labels, lost])
        is_kept = np.isin(parent_labels, clusters)
        parents = np.searchsorted(clusters, parent_labels).astype(np.int32)
        model = cls(cluster_classifier, leaf_classifier, parents)
        model = model._select(np.flatnonzero(is_kept))
        model = model._select(np.unique(model.predict(features)))
        # Leaves of a cluster stand side by side.
        return model._select(np.argsort(model.parents, kind="stable"))

    def _select(self, leaves: np.ndarray) -> "LinearLeaves":
        """Return a model of some of the leaves."""
        return LinearLeaves(
            self.cluster_classifier,
            self.leaf_classifier.select(leaves),
            self.parents[leaves],
        )

    @property
    def n_leaves(self) -> int:
        """Number of leaves."""
        return len(self.parents)

    def scores(self, features: np.ndarray) -> np.ndarray:
        """Return the score of each leaf, float64 (n, n_leaves).

        The best leaf of a cluster has the logit of the cluster. Other leaves have less
        by the difference of their logits to the best leaf's.
        """
        logits = self.leaf_classifier.scores(features)
        cluster_logits = self.cluster_classifier.scores(features)
        best = np.full(cluster_logits.shape, -np.inf)
        np.maximum.at(best.T, self.parents, logits.T)
        return cluster_logits[:, self.parents] + (logits - best[:, self.parents])

    def predict(self, features: np.ndarray) -> np.ndarray:
        """Return the leaf of each row, int32 (n,)."""
        return _best_scores(self, features)


def _best_scores(
    classifier: LinearClassifier | LinearLeaves, features: np.ndarray
) -> np.ndarray:
    """Return the position of the best score of each row, int32 (n,)."""
    if isinstance(classifier, LinearLeaves):
        n_scores = classifier.n_leaves
    else:
        n_scores = len(classifier.bias)
    best = np.empty(len(features), np.int32)
    for rows in score_batches(features, n_scores):
        best[rows] = classifier.scores(features[rows]).argmax(axis=1)
    return best


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
