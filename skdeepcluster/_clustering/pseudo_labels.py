"""Features -> pseudo-labels for training."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from sklearn.base import ClusterMixin, clone
from sklearn.preprocessing import normalize
from sklearn.utils import gen_batches

from .._utils.distributed import SINGLE_PROCESS, Processes, Shard, Sharded
from .._utils.memory import explain_memory_error
from .empty_clusters import cluster_means, cluster_sizes, distinct_rows
from .graph import spectral_embedding
from .kmeans import Clusters, assign, kmeans
from .power_iteration import power_iteration_clusters
from .whitening import Projection, principal_components

GRAPH_ROWS = 20_000  # largest graph; of more rows, a random sample stands for all
KMEANS_ROWS = 2**18  # of more rows, k-means sees a random sample, and all are assigned
ASSIGNED_ROWS = 2**16  # at once, of more
GRAPH_COMPONENTS = 64  # of the features, at unit length, whose graph it is
PIXEL_SHARE = 0.1  # length of the pixels beside the first graph's unit rows
REMEDY = "Lower n_pseudo_labels or n_components, or set n_neighbors=None."
MAX_EIGENVECTORS = 100  # of a graph: their cost grows with the square of their number


@dataclass(frozen=True)
class PseudoLabels:
    """Clusters of one set of points, with the labels of all of them."""

    clusters: list[Clusters]  # for each number of them
    # Of features to the points of k-means; None where what is clustered is not that.
    projection: Projection | None

    @property
    def labels(self) -> np.ndarray:
        """What the network is trained on next, int32 (h, n), consecutive from 0."""
        return np.stack([each.labels for each in self.clusters])


@dataclass(frozen=True)
class Clusterer:
    """The clustering half of the method, with nothing left to be resolved.

    With several processes each passes what it holds of the images, in their order, and
    gets the pseudo-labels of all.
    """

    n_clusters: int
    n_pseudo_labels: tuple[int, ...]
    n_neighbors: int | None
    n_components: str | int | None
    whiten: bool
    normalize: bool
    empty_clusters: str
    backend: str
    device: torch.device
    method: str | ClusterMixin = "kmeans"
    spherical: bool = False  # points at unit length are clustered as they are
    processes: Processes = SINGLE_PROCESS

    @explain_memory_error("clustering", REMEDY)
    def first_labels(self, pixels: np.ndarray, seed: int) -> PseudoLabels:
        """Cluster the neighbor graph of the images themselves, float32 (n, m).

        Its clusters are purer than those of an untrained network's features.
        """
        shard = self.processes.shard_from_sizes(len(pixels))
        embed = self._graph(pixels, shard, lambda rows: rows, seed)

        def see(part: slice | np.ndarray) -> np.ndarray:
            if embed is None:
                return pixels[part]
            # Parts of the graph that nothing connects are single points of its
            # embedding; what little the pixels add divides them further.
            return np.hstack([PIXEL_SHARE * normalize(pixels[part]), embed(part)])

        return PseudoLabels(self._cluster(see, shard, seed), None)

    @explain_memory_error("clustering", REMEDY)
    def pseudo_labels(self, features: np.ndarray, seed: int) -> PseudoLabels:
        """Project features, cluster them by k-means and repair empty clusters.

        With `n_neighbors`, k-means sees the spectral embedding of the features'
        neighbor graph beside the points: clusters follow the shape of the data.
        """
        shard = self.processes.shard_from_sizes(len(features))
        if self.spherical:
            clusters = self._cluster(features.__getitem__, shard, seed, True)
            return PseudoLabels(clusters, None)
        found = principal_components(features, self.processes)
        projection = found.projection(self.n_components, self.whiten, self.normalize)
        near = found.projection(GRAPH_COMPONENTS, whiten=False, normalize=True)
        embed = self._graph(features, shard, near, seed)

        def see(part: slice | np.ndarray) -> np.ndarray:
            points = projection(features[part])
            return points if embed is None else np.hstack([points, embed(part)])

        clusters = self._cluster(see, shard, seed)
        plain = embed is None and self.method == "kmeans"
        return PseudoLabels(clusters, projection if plain else None)

    @property
    def single(self) -> bool:
        """Whether training and result have the same clusters, as in the paper."""
        wanted = (self.n_clusters,)
        return self.n_pseudo_labels == wanted and self.method == "kmeans"

    def kmeans(
        self,
        points: np.ndarray,
        n_clusters: int,
        seed: int,
        n_init: int = 1,
        spherical: bool = False,
        processes: Processes = SINGLE_PROCESS,
    ) -> Clusters:
        """Cluster what `processes` hold by k-means and repair empty clusters."""
        return kmeans(
            points,
            n_clusters,
            n_init=n_init,
            spherical=spherical,
            empty_clusters=self.empty_clusters,
            backend=self.backend,
            device=self.device,
            seed=seed,
            processes=processes,
        )

    def _cluster(
        self,
        see: Callable[[slice | np.ndarray], np.ndarray],
        shard: Shard,
        seed: int,
        spherical: bool = False,
    ) -> list[Clusters]:
        """Cluster the points that `see` returns for rows of the shard, for each k.

        Those of many rows are never all in memory at once.
        """
        rows: slice | np.ndarray = slice(None)
        all_seen = shard.n_rows <= KMEANS_ROWS
        if not all_seen:
            rng = np.random.default_rng(seed)
            some = rng.choice(shard.n_rows, KMEANS_ROWS, replace=False, shuffle=False)
            rows = shard.locate(np.sort(some))[1]
        points = see(rows)
        found = [
            self._partition(points, k, seed + i, spherical)
            for i, k in enumerate(self.n_pseudo_labels)
        ]
        if all_seen:
            return [replace(c, labels=Sharded(c.labels, shard).gather()) for c in found]
        computing: dict[str, Any] = {"backend": self.backend, "device": self.device}
        labels = np.empty((len(found), len(shard)), np.int32)
        inertia = np.zeros(len(found))
        for part in gen_batches(len(shard), ASSIGNED_ROWS):
            points = see(part)
            for i, each in enumerate(found):
                labels[i, part], distances = assign(
                    points, each.centers, spherical=spherical, **computing
                )
                inertia[i] += distances.sum(dtype=np.float64)
        inertia = self.processes.sum(inertia)
        for i, each in enumerate(found):
            # Means that other clusterers gave may be nearest to nothing.
            kept = cluster_sizes(labels[i], len(each.centers), self.processes) > 0
            named = (np.cumsum(kept) - 1)[labels[i]].astype(np.int32)
            found[i] = replace(
                each,
                centers=each.centers[kept],
                labels=Sharded(named, shard).gather(),
                inertia=float(inertia[i]),
            )
        return found

    def _partition(
        self, points: np.ndarray, n_clusters: int, seed: int, spherical: bool
    ) -> Clusters:
        """Cluster points by the method that was asked for."""
        if self.method == "kmeans":
            return self.kmeans(
                points, n_clusters, seed, spherical=spherical, processes=self.processes
            )
        held = self.processes.shard_from_sizes(len(points))
        points = Sharded(points, held).gather()  # other methods must see them all
        if self.method == "pic":
            labels = self.processes.run_on_first(
                lambda: power_iteration_clusters(points)
            )
        else:
            labels = self.processes.run_on_first(
                lambda: run_user_clusterer(self.method, points, n_clusters, seed)
            )
        k = int(labels.max()) + 1
        nowhere = np.zeros((k, points.shape[1]), np.float32)
        centers = cluster_means(points, labels, nowhere)
        inertia = float(np.square(points - centers[labels], dtype=np.float64).sum())
        return Clusters(centers, labels[held.rows], inertia, 1, 0, 0)

    def _graph(
        self,
        values: np.ndarray,
        shard: Shard,
        near: Callable[[np.ndarray], np.ndarray],
        seed: int,
    ) -> Callable[[slice | np.ndarray], np.ndarray] | None:
        """Return what embeds rows of `values` in their graph, if that is wanted.

        The graph is that of the distinct points among `near(values)` of all processes.
        Of many points a sample makes the graph, and the others are embedded where their
        nearest neighbor in it is.
        """
        if self.n_neighbors is None:
            return None
        rows = np.random.default_rng(seed).permutation(shard.n_rows)[:GRAPH_ROWS]
        points = near(Sharded(values, shard).take(rows))
        distinct, place = distinct_rows(points)
        if len(distinct) <= min(self.n_pseudo_labels):
            return None  # each point is a cluster
        nodes = points[distinct]
        # At least two, since at unit length a single one tells nothing.
        n_components = max(2, min(self.n_clusters, MAX_EIGENVECTORS))
        n_neighbors = self.n_neighbors
        embedding = self.processes.run_on_first(
            lambda: spectral_embedding(nodes, n_neighbors, n_components)
        )
        if len(rows) < shard.n_rows:
            computing: dict[str, Any] = {"backend": self.backend, "device": self.device}
            return lambda part: embedding[
                assign(near(values[part]), nodes, **computing)[0]
            ]
        found = embedding[place]
        in_order = np.empty_like(found)
        in_order[rows] = found
        return in_order[shard.rows].__getitem__


def run_user_clusterer(
    clusterer: ClusterMixin, points: np.ndarray, n_clusters: int, seed: int
) -> np.ndarray:
    """Cluster points by a copy of an estimator with `fit_predict`.

    It is told the number of clusters, unless it is set to find that out, and a seed,
    unless it has one. Outliers, of negative labels, go to the nearest mean.

    Returns
    -------
    labels : ndarray of shape (n,), int32
        Consecutive from 0.

    Raises
    ------
    ValueError
        If it does not return a label for each row, or outliers alone.
    """
    model = clone(clusterer)
    params = model.get_params(deep=False)
    sizes = [name for name in ("n_clusters", "n_components") if params.get(name)]
    told = dict.fromkeys(sizes[:1], n_clusters)
    if params.get("random_state", seed) is None:
        told["random_state"] = seed
    labels = np.asarray(model.set_params(**told).fit_predict(points))
    name = type(clusterer).__name__
    if labels.shape != (len(points),) or labels.dtype.kind not in "iu":
        raise ValueError(
            f"clusterer={name} must return an integer label for each of the "
            f"{len(points)} rows, but returned {labels.dtype} of shape {labels.shape}."
        )
    inside = labels >= 0
    if not inside.any():
        raise ValueError(
            f"clusterer={name} calls all images outliers. Change its parameters."
        )
    labels[inside] = np.unique(labels[inside], return_inverse=True)[1]
    if not inside.all():
        nowhere = np.zeros((int(labels.max()) + 1, points.shape[1]), np.float32)
        centers = cluster_means(points[inside], labels[inside], nowhere)
        labels[~inside] = assign(np.ascontiguousarray(points[~inside]), centers)[0]
    return labels.astype(np.int32)
