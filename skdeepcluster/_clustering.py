"""Features -> pseudo-labels for training."""

from dataclasses import dataclass

import numpy as np
import torch
from sklearn.preprocessing import normalize

from ._empty_clusters import distinct_rows
from ._kmeans import KMeansResult, assign, kmeans
from ._neighbors import spectral_embedding
from ._whitening import Projection, fit_projection

GRAPH_ROWS = 20_000  # largest graph; of more rows, a random sample stands for all
GRAPH_COMPONENTS = 64  # of the features, at unit length, whose graph it is
PIXEL_SHARE = 0.1  # length of the pixels beside the first graph's unit rows
MAX_EIGENVECTORS = 100  # of a graph: their cost grows with the square of their number


@dataclass(frozen=True)
class PseudoLabels:
    """Clusters of one set of features."""

    clusters: KMeansResult
    # Of features to the points that are clustered; None where pixels or a graph are.
    projection: Projection | None

    @property
    def labels(self) -> np.ndarray:
        """What the network is trained on next, int32 (n,), consecutive from 0."""
        return self.clusters.labels


@dataclass(frozen=True)
class Clusterer:
    """The clustering half of the method, with nothing left to be resolved."""

    n_clusters: int
    n_pseudo_labels: int
    n_neighbors: int | None
    n_components: str | int | None
    whiten: bool
    normalize: bool
    empty_clusters: str
    backend: str
    device: torch.device

    def first_labels(self, pixels: np.ndarray, seed: int) -> PseudoLabels:
        """Cluster the neighbour graph of the images themselves, float32 (n, m).

        Its clusters are purer than those of an untrained network's features.
        """
        embedding = self._embed_graph(pixels, seed)
        seen = pixels
        if embedding is not None:
            # Parts of the graph that nothing connects are single points of its
            # embedding; what little the pixels add divides them further.
            seen = np.hstack([PIXEL_SHARE * normalize(pixels), embedding])
        clusters = self.kmeans(seen, self.n_pseudo_labels, seed)
        return PseudoLabels(clusters, None)

    def pseudo_labels(self, features: np.ndarray, seed: int) -> PseudoLabels:
        """Project features, cluster them by k-means and repair empty clusters.

        With `n_neighbors`, k-means sees the spectral embedding of the features'
        neighbour graph beside the points: clusters follow the shape of the data.
        """
        projection = fit_projection(
            features, self.n_components, self.whiten, self.normalize
        )
        points = projection(features)
        near = fit_projection(features, GRAPH_COMPONENTS, whiten=False, normalize=True)
        embedding = self._embed_graph(near(features), seed)
        seen = points if embedding is None else np.hstack([points, embedding])
        clusters = self.kmeans(seen, self.n_pseudo_labels, seed)
        return PseudoLabels(clusters, projection if embedding is None else None)

    @property
    def single(self) -> bool:
        """Whether training and result have the same clusters, as in the paper."""
        return self.n_pseudo_labels == self.n_clusters

    def kmeans(
        self, points: np.ndarray, n_clusters: int, seed: int, n_init: int = 1
    ) -> KMeansResult:
        """Cluster points by k-means and repair empty clusters."""
        return kmeans(
            points,
            n_clusters,
            n_init=n_init,
            empty_clusters=self.empty_clusters,
            backend=self.backend,
            device=self.device,
            seed=seed,
        )

    def _embed_graph(self, points: np.ndarray, seed: int) -> np.ndarray | None:
        """Embed the graph of the distinct points; None where it is not wanted.

        Of many points a sample makes the graph, and the others are embedded where
        their nearest neighbour in it is.
        """
        if self.n_neighbors is None:
            return None
        rows = np.random.default_rng(seed).permutation(len(points))[:GRAPH_ROWS]
        distinct, place = distinct_rows(points[rows])
        if len(distinct) <= self.n_pseudo_labels:
            return None  # each point is a cluster
        nodes = points[rows][distinct]
        # At least two, since at unit length a single one tells nothing.
        n_components = max(2, min(self.n_clusters, MAX_EIGENVECTORS))
        embedding = spectral_embedding(nodes, self.n_neighbors, n_components)
        if len(rows) < len(points):
            computing = {"backend": self.backend, "device": self.device}
            return embedding[assign(points, nodes, **computing)[0]]
        in_order = np.empty_like(embedding, shape=(len(points), embedding.shape[1]))
        in_order[rows] = embedding[place]
        return in_order
