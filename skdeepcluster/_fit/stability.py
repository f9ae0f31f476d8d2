"""Stability of clusters of the features under mild changes of the images."""

from dataclasses import dataclass

import numpy as np

from .._clustering.kmeans import KMeansOptions, kmeans
from .._clustering.nearest_centers import assign
from .._clustering.whitening import fit_projection
from .._inputs.sources import Source
from .._training.augment import mild_augment
from .._training.features import extract_features
from .._training.network import FeatureExtractor
from .._utils.compute import Compute
from .._utils.distributed import Sharded
from ..metrics import reproduced_information

# Number of images that stability is measured on.
STABILITY_ROWS = 1000


@dataclass(frozen=True)
class StabilityProbe:
    """Measures, without labels, how much a network has learned.

    Parameters
    ----------
    images : Source
        Sample of the images.
    rows : ndarray of int
        Rows of these images in the whole data.
    n_clusters : int
    """

    images: Source
    rows: np.ndarray
    n_clusters: int

    def measure(
        self,
        network: FeatureExtractor,
        compute: Compute,
        features: np.ndarray | None = None,
    ) -> float:
        """Return the stability of clusters of the network's features.

        Parameters
        ----------
        network : FeatureExtractor
        compute : Compute
        features : ndarray or None
            Features of the images, if they are known already.
        """
        if features is None:
            features = extract_features(network, self.images, compute)
        changed = self.extract_changed(network, compute)
        return measure_stability(features, changed, self.n_clusters)

    def extract_changed(
        self, network: FeatureExtractor, compute: Compute
    ) -> np.ndarray:
        """Return the features of the images after a mild change."""
        augment = mild_augment(len(self.images.shape))
        return extract_features(network, self.images, compute, augment=augment)


def measure_stability(
    features: np.ndarray, changed_features: np.ndarray, n_clusters: int
) -> float:
    """Return how well clusters of features survive a mild change of the images.

    The value distinguishes a trained from an untrained network without labels.

    Parameters
    ----------
    features : ndarray of shape (n, d), float32
    changed_features : ndarray of shape (n, d), float32
        Features of the same images after a mild change.
    n_clusters : int
        Number of k-means clusters, capped at n.

    Returns
    -------
    stability : float
        In [0, 1), see `metrics.reproduced_information`. It is 0 for features that are
        not finite.
    """
    if not (np.isfinite(features).all() and np.isfinite(changed_features).all()):
        return 0.0
    project = fit_projection(features, "auto", whiten=False, normalize=True)
    clusters = kmeans(
        Sharded.whole(project(features)),
        min(n_clusters, len(features)),
        KMeansOptions(n_init=3, empty_clusters="drop"),
        seed=0,
    )
    changed_labels, _ = assign(project(changed_features), clusters.centers)
    return reproduced_information(clusters.labels, changed_labels)
