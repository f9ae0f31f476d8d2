"""Features -> pseudo-labels for training."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from sklearn.preprocessing import normalize
from sklearn.utils import gen_batches

from ._empty_clusters import distinct_rows
from ._kmeans import KMeansResult, assign, kmeans
from ._memory import memory_for
from ._neighbors import spectral_embedding
from ._whitening import Projection, principal_components

GRAPH_ROWS = 20_000  # largest graph; of more rows, a random sample stands for all
KMEANS_ROWS = 2**18  # of more rows, k-means sees a random sample, and all are assigned
ASSIGNED_ROWS = 2**16  # at once, of more
GRAPH_COMPONENTS = 64  # of the features, at unit length, whose graph it is
PIXEL_SHARE = 0.1  # length of the pixels beside the first graph's unit rows
REMEDY = "Lower n_pseudo_labels or n_components, or set n_neighbors=None."
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

    @memory_for("clustering", REMEDY)
    def first_labels(self, pixels: np.ndarray, seed: int) -> PseudoLabels:
        """Cluster the neighbour graph of the images themselves, float32 (n, m).

        Its clusters are purer than those of an untrained network's features.
        """
        embed = self._graph(pixels, lambda rows: rows, seed)

        def see(part: slice | np.ndarray) -> np.ndarray:
            if embed is None:
                return pixels[part]
            # Parts of the graph that nothing connects are single points of its
            # embedding; what little the pixels add divides them further.
            return np.hstack([PIXEL_SHARE * normalize(pixels[part]), embed(part)])

        return PseudoLabels(self._cluster(see, len(pixels), seed), None)

    @memory_for("clustering", REMEDY)
    def pseudo_labels(self, features: np.ndarray, seed: int) -> PseudoLabels:
        """Project features, cluster them by k-means and repair empty clusters.

        With `n_neighbors`, k-means sees the spectral embedding of the features'
        neighbour graph beside the points: clusters follow the shape of the data.
        """
        found = principal_components(features)
        projection = found.projection(self.n_components, self.whiten, self.normalize)
        near = found.projection(GRAPH_COMPONENTS, whiten=False, normalize=True)
        embed = self._graph(features, near, seed)

        def see(part: slice | np.ndarray) -> np.ndarray:
            points = projection(features[part])
            return points if embed is None else np.hstack([points, embed(part)])

        clusters = self._cluster(see, len(features), seed)
        return PseudoLabels(clusters, projection if embed is None else None)

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

    def _cluster(
        self, see: Callable[[slice | np.ndarray], np.ndarray], n: int, seed: int
    ) -> KMeansResult:
        """Cluster the points that `see` returns for rows of `n`.

        Those of many rows are never all in memory at once.
        """
        if n <= KMEANS_ROWS:
            return self.kmeans(see(slice(None)), self.n_pseudo_labels, seed)
        rng = np.random.default_rng(seed)
        sample = np.sort(rng.choice(n, KMEANS_ROWS, replace=False, shuffle=False))
        found = self.kmeans(see(sample), self.n_pseudo_labels, seed)
        computing = {"backend": self.backend, "device": self.device}
        labels, inertia = np.empty(n, np.int32), 0.0
        for part in gen_batches(n, ASSIGNED_ROWS):
            labels[part], distances = assign(see(part), found.centers, **computing)
            inertia += float(distances.sum(dtype=np.float64))
        return replace(found, labels=labels, inertia=inertia)

    def _graph(
        self,
        values: np.ndarray,
        near: Callable[[np.ndarray], np.ndarray],
        seed: int,
    ) -> Callable[[slice | np.ndarray], np.ndarray] | None:
        """Return what embeds rows of `values` in their graph, if that is wanted.

        The graph is that of the distinct points among `near(values)`. Of many points
        a sample makes the graph, and the others are embedded where their nearest
        neighbour in it is.
        """
        if self.n_neighbors is None:
            return None
        rows = np.random.default_rng(seed).permutation(len(values))[:GRAPH_ROWS]
        points = near(values[rows])
        distinct, place = distinct_rows(points)
        if len(distinct) <= self.n_pseudo_labels:
            return None  # each point is a cluster
        nodes = points[distinct]
        # At least two, since at unit length a single one tells nothing.
        n_components = max(2, min(self.n_clusters, MAX_EIGENVECTORS))
        embedding = spectral_embedding(nodes, self.n_neighbors, n_components)
        if len(rows) < len(values):
            computing = {"backend": self.backend, "device": self.device}
            return lambda part: embedding[
                assign(near(values[part]), nodes, **computing)[0]
            ]
        in_order = np.empty_like(embedding, shape=(len(values), embedding.shape[1]))
        in_order[rows] = embedding[place]
        return lambda part: in_order[part]
