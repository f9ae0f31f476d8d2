"""Membership: how probable each cluster is for an image."""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.sparse import csr_array, vstack
from scipy.special import log_softmax, softmax

from .._utils.distributed import Shard, Sharded
from .leaves import LinearLeaves, NearestLeaves, score_batches

# Leaves that are less probable than the best by this factor have probability zero, so
# that the memory for an image does not grow with the number of leaves.
MIN_RATIO = 1e-3
# Range of the temperatures that calibration tries.
TEMPERATURES = 1e-3, 1e6


@dataclass(frozen=True)
class Membership:
    """Leaves of images, with the probabilities of the leaves.

    Parameters
    ----------
    leaves : ndarray of shape (n,), int32
        Most probable leaf of each image.
    probabilities : sparse array of shape (n, n_leaves), float32
        Probability of each leaf. Improbable leaves are left out.
    """

    leaves: np.ndarray
    probabilities: csr_array

    @classmethod
    def predict(
        cls,
        leaf_model: LinearLeaves | NearestLeaves,
        features: np.ndarray,
        temperature: float,
    ) -> "Membership":
        """Compute the membership of images from their features."""
        batches = []
        for rows in score_batches(features, leaf_model.n_leaves):
            scores = leaf_model.scores(features[rows]) / temperature
            values = softmax(scores, axis=1).astype(np.float32)
            values[values < MIN_RATIO * values.max(axis=1, keepdims=True)] = 0
            batches.append(csr_array(values))
        return cls(leaf_model.predict(features), csr_array(vstack(batches)))

    def gather(self, shard: Shard) -> "Membership":
        """Return the membership of the images of all processes."""
        processes = shard.processes
        if processes.size == 1:
            return self
        parts = processes.all_gather_object(self.probabilities)
        return Membership(
            Sharded(self.leaves, shard).gather(), csr_array(vstack(parts))
        )

    def cluster_probabilities(self, clusters: np.ndarray) -> np.ndarray:
        """Return the probability of each cluster, float32 (n, n_clusters).

        The most probable leaf of a cluster stands for the cluster. A sum over its
        leaves could prefer another cluster than the one with the best leaf.

        Parameters
        ----------
        clusters : ndarray of shape (n_leaves,), int
            Cluster of each leaf.
        """
        n, labels = len(self.leaves), clusters[self.leaves]
        leaves = self.probabilities
        rows = np.repeat(np.arange(n), np.diff(leaves.indptr))
        probabilities = np.zeros((n, int(clusters.max()) + 1), np.float32)
        np.maximum.at(probabilities, (rows, clusters[leaves.indices]), leaves.data)
        probabilities /= probabilities.sum(axis=1, keepdims=True)
        # Rounding can make two clusters equally probable, and `argmax` would take the
        # first.
        tied = np.flatnonzero(probabilities.argmax(axis=1) != labels)
        largest = probabilities[tied].max(axis=1)
        probabilities[tied, labels[tied]] = np.nextafter(largest, np.float32(2))
        return probabilities


def calibrate_temperature(scores: np.ndarray, labels: np.ndarray) -> float:
    """Return the temperature at which changed images predict their clusters best.

    Parameters
    ----------
    scores : ndarray of shape (n, n_clusters), float64
        Scores of the clusters for mildly changed images.
    labels : ndarray of shape (n,), int
        Clusters of the unchanged images.

    Notes
    -----
    C. Guo, G. Pleiss, Y. Sun and K. Q. Weinberger, "On Calibration of Modern Neural
    Networks", ICML 2017, section 4.2. The clusters of the unchanged images replace the
    labels.
    """
    rows = np.arange(len(labels))

    def loss(log_temperature: float) -> float:
        log_probabilities = log_softmax(scores / np.exp(log_temperature), axis=1)
        return -float(log_probabilities[rows, labels].mean())

    bounds = np.log(TEMPERATURES)
    return float(np.exp(minimize_scalar(loss, bounds=bounds, method="bounded").x))
