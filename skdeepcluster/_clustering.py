"""Features -> pseudo-labels for training, and -> the groups that are returned."""

from dataclasses import dataclass

import numpy as np
import torch
from scipy.linalg import eigh
from sklearn.preprocessing import normalize

from ._empty_clusters import distinct_rows
from ._kmeans import KMeansResult, assign, kmeans
from ._neighbors import nearest_rows, spectral_embedding
from ._whitening import Projection, fit_projection

GRAPH_ROWS = 20_000  # largest graph; of more rows, a random sample stands for all
AVERAGED_ROUNDS = 4  # last rounds whose graphs the groups are made from
CENTERS_PER_GROUP = 5
PIXEL_SHARE = 0.1  # length of the pixels beside the first graph's unit rows
MAX_EIGENVECTORS = 100  # of a graph: their cost grows with the square of their number


@dataclass(frozen=True)
class PseudoLabels:
    """Clusters of one set of features."""

    clusters: KMeansResult
    projection: Projection | None  # of features to points; None for pixels
    points: np.ndarray  # float32 (n, m)
    embedding: np.ndarray | None  # of the neighbour graph, float32 (n, n_clusters)

    @property
    def labels(self) -> np.ndarray:
        """What the network is trained on next, int32 (n,), consecutive from 0."""
        return self.clusters.labels


@dataclass(frozen=True)
class Groups:
    """The clusters that `predict` tells: each centre belongs to a group."""

    projection: Projection  # of features to the points that centres are compared with
    centers: np.ndarray  # float32 (k, m)
    group_of: np.ndarray  # int32 (k,), consecutive from 0

    def predict(
        self, features: np.ndarray, backend: str, device: torch.device
    ) -> np.ndarray:
        """Return the group of the nearest centre, int32 (n,)."""
        points = self.projection(features)
        nearest, _ = assign(points, self.centers, backend=backend, device=device)
        return self.group_of[nearest]


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
        clusters = self._kmeans(seen, self.n_pseudo_labels, seed)
        return PseudoLabels(clusters, None, pixels, embedding)

    def pseudo_labels(self, features: np.ndarray, seed: int) -> PseudoLabels:
        """Project features, cluster them by k-means and repair empty clusters.

        With `n_neighbors`, k-means sees the spectral embedding of the features'
        neighbour graph beside the points: clusters follow the shape of the data.
        """
        projection = fit_projection(
            features, self.n_components, self.whiten, self.normalize
        )
        points = projection(features)
        embedding = self._embed_graph(normalize(features), seed)
        seen = points if embedding is None else np.hstack([points, embedding])
        clusters = self._kmeans(seen, self.n_pseudo_labels, seed)
        return PseudoLabels(clusters, projection, points, embedding)

    @property
    def single(self) -> bool:
        """Whether training and result have the same clusters, as in the paper."""
        return self.n_pseudo_labels == self.n_clusters

    def view(self, found: PseudoLabels, probabilities: np.ndarray) -> np.ndarray:
        """Return what a round contributes to the merged groups, float32 (n, m).

        Parameters
        ----------
        found : PseudoLabels
            Of the round.
        probabilities : ndarray of shape (n, k), float32
            What the round's head predicts: how the network confuses the pseudo-labels
            that it was trained on tells which of them belong together.
        """
        scaled = probabilities / np.sqrt(probabilities.sum(axis=0) + 1e-9)
        k = scaled.shape[1]
        leading = [max(0, k - min(self.n_clusters, MAX_EIGENVECTORS)), k - 1]
        _, vectors = eigh(scaled.T @ scaled, subset_by_index=leading)
        beside = found.points if found.embedding is None else found.embedding
        return np.hstack([normalize(scaled @ vectors), beside])

    def groups(self, last: PseudoLabels, views: list[np.ndarray], seed: int) -> Groups:
        """Make `n_clusters` groups of what the last rounds found.

        With one k they are the clusters of the last round, as in the paper. Else the
        pseudo-labels are merged: the groups are clusters of the last rounds' views,
        side by side. Each group gets several centres to be told by.
        """
        clusters, points = last.clusters, last.points
        if self.single and last.embedding is None:
            group_of = np.arange(len(clusters.centers), dtype=np.int32)
            return Groups(last.projection, clusters.centers, group_of)
        if not self.single:
            clusters = self._kmeans(np.hstack(views), self.n_clusters, seed, n_init=10)
        centers = []
        for group in range(len(clusters.centers)):
            members = np.ascontiguousarray(points[clusters.labels == group])
            k = min(CENTERS_PER_GROUP, len(members))
            centers.append(kmeans(members, k, empty_clusters="drop", seed=seed).centers)
        group_of = np.repeat(np.arange(len(centers)), list(map(len, centers)))
        groups = Groups(last.projection, np.concatenate(centers), group_of)
        return self._without_empty(groups, clusters.labels, points)

    def _without_empty(
        self, groups: Groups, labels: np.ndarray, points: np.ndarray
    ) -> Groups:
        """Give a group all of whose points are nearer to other groups one of them.

        Where that point is in another group as well, the group goes.
        """
        centers, group_of = groups.centers, groups.group_of
        n_groups = int(group_of.max()) + 1

        def filled() -> np.ndarray:
            nearest, _ = assign(
                points, centers, backend=self.backend, device=self.device
            )
            return np.unique(group_of[nearest])

        lost = np.setdiff1d(np.arange(n_groups), filled())
        if len(lost):
            firsts = [np.flatnonzero(labels == group)[0] for group in lost]
            centers = np.concatenate([centers, points[firsts]])
            group_of = np.concatenate([group_of, lost])
            kept = np.isin(group_of, filled())
            centers, group_of = centers[kept], group_of[kept]
        numbers = np.unique(group_of, return_inverse=True)[1].astype(np.int32)
        return Groups(groups.projection, centers, numbers)

    def _kmeans(
        self, points: np.ndarray, n_clusters: int, seed: int, n_init: int = 1
    ) -> KMeansResult:
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
            return embedding[nearest_rows(nodes, points)]
        in_order = np.empty_like(embedding, shape=(len(points), embedding.shape[1]))
        in_order[rows] = embedding[place]
        return in_order


def group_means(features: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Return the mean of each group's features, float32 (n_groups, d)."""
    sums = np.zeros((int(groups.max()) + 1, features.shape[1]))
    np.add.at(sums, groups, features)
    return (sums / np.bincount(groups)[:, None]).astype(np.float32)
