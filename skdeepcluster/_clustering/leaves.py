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
from sklearn.utils import gen_batches

from .nearest_centers import assign
from .whitening import Projection

# Inverse penalties of the classifier, tried in this order until no leaf is lost.
INVERSE_PENALTIES = (0.1, 10.0, 1000.0)
# Scores that are computed in one batch, and the largest number of its rows.
BATCH_SCORES = 2**25
BATCH_ROWS = 8192


def score_batches(n: int, n_leaves: int) -> Iterator[slice]:
    """Divide n rows into batches whose scores fit into memory."""
    return gen_batches(max(1, n), max(1, min(BATCH_ROWS, BATCH_SCORES // n_leaves)))


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
        return assign(self.projection(features), self.centers)[0]


@dataclass(frozen=True)
class LinearLeaves:
    """Assigns features to leaves by a logistic regression.

    Parameters
    ----------
    weights : ndarray of shape (d, n_leaves), float64
    bias : ndarray of shape (n_leaves,), float64
    """

    weights: np.ndarray
    bias: np.ndarray

    @classmethod
    def fit(
        cls, features: np.ndarray, leaves: np.ndarray
    ) -> tuple["LinearLeaves", np.ndarray]:
        """Fit a logistic regression that predicts leaves from features.

        Parameters
        ----------
        features : ndarray of shape (n, d), float32
        leaves : ndarray of shape (n,), int
            Consecutive from 0.

        Returns
        -------
        model : LinearLeaves
        kept : ndarray of int
            Leaves that the model predicts for at least one row. The others are dropped.
        """
        n_leaves = int(leaves.max()) + 1
        if n_leaves == 1:
            model = cls(np.zeros((features.shape[1], 1)), np.zeros(1))
            return model, np.zeros(1, np.int64)
        scaler = StandardScaler().fit(features)
        points = scaler.transform(features)
        for inverse_penalty in INVERSE_PENALTIES:
            regression = _fit_logistic_regression(points, leaves, inverse_penalty)
            coefficients, bias = regression.coef_, regression.intercept_
            if n_leaves == 2:
                # scikit-learn keeps only the coefficients of the second class.
                coefficients = np.vstack([-coefficients, coefficients]) / 2
                bias = np.concatenate([-bias, bias]) / 2
            weights = (coefficients / scaler.scale_).T.astype(np.float64)
            model = cls(weights, bias - scaler.mean_ @ weights)
            kept = np.unique(model.predict(features))
            # A strong penalty can leave small leaves without any image.
            if len(kept) == n_leaves:
                break
        weights = np.ascontiguousarray(model.weights[:, kept])
        return cls(weights, model.bias[kept]), kept

    @property
    def n_leaves(self) -> int:
        """Number of leaves."""
        return len(self.bias)

    def scores(self, features: np.ndarray) -> np.ndarray:
        """Return the logit of each leaf, float64 (n, n_leaves)."""
        return features.astype(np.float64) @ self.weights + self.bias

    def predict(self, features: np.ndarray) -> np.ndarray:
        """Return the leaf of each row, int32 (n,)."""
        leaves = np.empty(len(features), np.int32)
        for rows in score_batches(len(features), self.n_leaves):
            leaves[rows] = self.scores(features[rows]).argmax(axis=1)
        return leaves


def _fit_logistic_regression(
    points: np.ndarray, leaves: np.ndarray, inverse_penalty: float
) -> LogisticRegression:
    model = LogisticRegression(C=inverse_penalty, max_iter=200)
    with warnings.catch_warnings():
        # Nearly converged is good enough, and nearly as many leaves as images are still
        # leaves.
        warnings.simplefilter("ignore", ConvergenceWarning)
        warnings.filterwarnings("ignore", "The number of unique classes")
        # Older releases fit through joblib, and a cluster would receive it as a task.
        with joblib.parallel_config("sequential"):
            return model.fit(points, leaves)
