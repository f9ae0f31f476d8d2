"""Pseudo-labels for training: clusters of features or pixels."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
from sklearn.base import ClusterMixin, clone
from sklearn.preprocessing import normalize
from sklearn.utils import gen_batches

from .._utils.allocation import allocate_array, allocate_in_memory
from .._utils.distributed import Sharded
from .._utils.memory import explain_memory_error
from .._utils.messages import warn
from .._utils.pages import PageReleaser, row_blocks, take_rows
from .empty_clusters import distinct_rows
from .graph import spectral_embedding
from .kmeans import Clusters, KMeansOptions, kmeans
from .nearest_centers import assign
from .power_iteration import power_iteration_clusters
from .sums import cluster_means, cluster_sizes
from .whitening import Projection, principal_components

# Size of the largest graph. A random sample represents larger sets.
GRAPH_ROWS = 20_000
# Number of rows that k-means sees. Larger sets are sampled, then assigned completely.
KMEANS_ROWS = 2**18
# Number of rows whose points are computed, or assigned, in one batch.
BLOCK_ROWS = 2**14
# Number of principal components, at unit length, whose neighbors form the graph.
GRAPH_COMPONENTS = 64
# Scale of the pixels beside the unit rows of the first graph. Disconnected components
# of a graph are single points of its embedding; a small share of pixels divides them.
PIXEL_SHARE = 0.1
# Largest number of eigenvectors. Their cost grows with the square of their number.
MAX_EIGENVECTORS = 100
POINTS = "the points of k-means"
MEMORY_REMEDY = "Lower n_pseudo_labels or n_components, or set n_neighbors=None."

# Rows of this process, and a function that computes their points.
Rows = slice | np.ndarray
PointsOfRows = Callable[[Rows], np.ndarray]


@dataclass(frozen=True)
class PseudoLabels:
    """Pseudo-labels of all images, with the clusters behind them.

    Parameters
    ----------
    clusters : list of Clusters
        One clustering for each number of pseudo-labels, with the labels of all images.
    projection : Projection or None
        Map from features to the points of k-means. None if the points are not a
        function of the features alone.
    n_components : int or None
        Number of principal components of the features that were clustered. None
        without PCA.
    """

    clusters: list[Clusters]
    projection: Projection | None = None
    n_components: int | None = None

    @property
    def labels(self) -> np.ndarray:
        """Targets of the next round, int32 (n_clusterings, n), consecutive from 0."""
        return np.stack([clusters.labels for clusters in self.clusters])


@dataclass(frozen=True)
class Clusterer:
    """The clustering half of DeepCluster.

    Parameters
    ----------
    n_clusters : int
        Number of final clusters.
    n_pseudo_labels : tuple of int
        Number of pseudo-labels of each clustering.
    n_neighbors : int or None
        Number of edges from each point in the graph. None clusters without a graph.
    n_components : "auto", int or None
    whiten, normalize : bool
        Options of the projection, see `Components.projection`.
    method : {"kmeans", "pic"} or estimator
    kmeans_options : KMeansOptions
        With `spherical`, features are points at unit length and are clustered without
        a projection or a graph.
    finds_n_clusters : bool
        Whether the merge chooses the number of final clusters. Then `n_clusters` is
        about the largest number that it can find.
    reported : set
        Warnings of an estimator as `method` that have been passed on in this fit.
    """

    n_clusters: int
    n_pseudo_labels: tuple[int, ...]
    n_neighbors: int | None
    n_components: str | int | None
    whiten: bool
    normalize: bool
    method: str | ClusterMixin = "kmeans"
    kmeans_options: KMeansOptions = field(default_factory=KMeansOptions)
    finds_n_clusters: bool = False
    reported: set = field(default_factory=set, compare=False)

    @property
    def labels_are_final(self) -> bool:
        """Whether the pseudo-labels are the final clusters, as in the paper."""
        if self.finds_n_clusters:
            return False
        return self.n_pseudo_labels == (self.n_clusters,) and self.method == "kmeans"

    @explain_memory_error("clustering", MEMORY_REMEDY)
    def cluster_pixels(self, pixels: Sharded, seed: int) -> PseudoLabels:
        """Return the first pseudo-labels, from the pixels' nearest-neighbor graph.

        They are purer than clusters of an untrained network's features.

        Parameters
        ----------
        pixels : Sharded array of shape (n, m), float32
            Principal components of the pixels.
        seed : int
        """
        embed = self._fit_graph(pixels, lambda rows: rows, seed)

        def points_of(rows: Rows) -> np.ndarray:
            if embed is None:
                return _read_rows(pixels.values, rows)
            unit_pixels = normalize(_read_rows(pixels.values, rows))
            return np.hstack([PIXEL_SHARE * unit_pixels, embed(rows)])

        options = replace(self.kmeans_options, spherical=False)
        return PseudoLabels(self._cluster(points_of, pixels, options, seed))

    @explain_memory_error("clustering", MEMORY_REMEDY)
    def cluster_features(self, features: Sharded, seed: int) -> PseudoLabels:
        """Project features, cluster them by k-means and repair empty clusters.

        With `n_neighbors`, k-means sees the spectral embedding of the features'
        nearest-neighbor graph beside the points, so that clusters follow the shape of
        the data.

        Parameters
        ----------
        features : Sharded array of shape (n, d), float32
        seed : int
        """
        if self.kmeans_options.spherical:
            clusters = self._cluster(
                partial(_read_rows, features.values),
                features,
                self.kmeans_options,
                seed,
            )
            return PseudoLabels(clusters)
        components = principal_components(features)
        project = components.projection(self.n_components, self.whiten, self.normalize)
        project_to_graph = components.projection(
            GRAPH_COMPONENTS, whiten=False, normalize=True
        )
        embed = self._fit_graph(features, project_to_graph, seed)

        def points_of(rows: Rows) -> np.ndarray:
            points = project(_read_rows(features.values, rows))
            return points if embed is None else np.hstack([points, embed(rows)])

        clusters = self._cluster(points_of, features, self.kmeans_options, seed)
        is_projection_enough = embed is None and self.method == "kmeans"
        return PseudoLabels(
            clusters,
            projection=project if is_projection_enough else None,
            n_components=project.components.shape[1],
        )

    def _cluster(
        self, points_of: PointsOfRows, data: Sharded, options: KMeansOptions, seed: int
    ) -> list[Clusters]:
        """Cluster points once for each number of pseudo-labels.

        Returns
        -------
        clusters : list of Clusters
            With the labels of the rows of all processes.
        """
        if data.n_rows > KMEANS_ROWS:
            return self._cluster_sample(points_of, data, options, seed)
        points = data
        # Points on the sphere are the data themselves, which are not copied.
        if not options.spherical:
            points = Sharded(_compute_points(points_of, data.values), data.shard)
        return [
            replace(clusters, labels=Sharded(clusters.labels, data.shard).gather())
            for clusters in self._cluster_points(points, options, seed)
        ]

    def _cluster_sample(
        self, points_of: PointsOfRows, data: Sharded, options: KMeansOptions, seed: int
    ) -> list[Clusters]:
        """Cluster a random sample of the rows, then assign all rows in batches.

        The points of all rows are never in memory at the same time.
        """
        processes = data.processes
        rng = np.random.default_rng(seed)
        sample = rng.choice(data.n_rows, KMEANS_ROWS, replace=False, shuffle=False)
        rows = data.shard.locate(np.sort(sample))[1]
        points = _compute_points(points_of, data.values, rows)
        sampled = Sharded(points, processes.shard_from_sizes(len(points)))
        clusterings = self._cluster_points(sampled, options, seed)
        labels = np.empty((len(clusterings), len(data.shard)), np.int32)
        inertia = np.zeros(len(clusterings))
        # The points of the sample are not needed any more.
        del points, sampled
        for batch in row_blocks(data.values, BLOCK_ROWS):
            points = points_of(batch)
            for i, clusters in enumerate(clusterings):
                labels[i, batch], distances = assign(
                    points,
                    clusters.centers,
                    spherical=options.spherical,
                    backend=options.backend,
                    device=options.device,
                )
                inertia[i] += distances.sum(dtype=np.float64)
        inertia = processes.sum(inertia)
        completed = []
        for i, clusters in enumerate(clusterings):
            # Means that another clusterer returns may be the nearest to no point.
            sizes = cluster_sizes(labels[i], len(clusters.centers), processes)
            is_filled = sizes > 0
            new_labels = (np.cumsum(is_filled) - 1)[labels[i]].astype(np.int32)
            completed.append(
                replace(
                    clusters,
                    centers=clusters.centers[is_filled],
                    labels=Sharded(new_labels, data.shard).gather(),
                    inertia=float(inertia[i]),
                )
            )
        return completed

    def _cluster_points(
        self, points: Sharded, options: KMeansOptions, seed: int
    ) -> list[Clusters]:
        """Cluster points by the chosen method, once for each number of clusters."""
        return [
            kmeans(points, n_clusters, options, seed + i)
            if self.method == "kmeans"
            else self._run_other_method(points, n_clusters, seed + i)
            for i, n_clusters in enumerate(self.n_pseudo_labels)
        ]

    def _run_other_method(
        self, points: Sharded, n_clusters: int, seed: int
    ) -> Clusters:
        """Cluster points by a method that needs all points in one process."""
        all_points, processes = points.gather(), points.processes
        if self.method == "pic":
            labels = processes.run_on_first(
                lambda: power_iteration_clusters(all_points)
            )
        else:
            labels = processes.run_on_first(
                lambda: run_user_clusterer(
                    self.method,
                    all_points,
                    n_clusters=n_clusters,
                    seed=seed,
                    reported=self.reported,
                )
            )
        zeros = np.zeros((int(labels.max()) + 1, all_points.shape[1]), np.float32)
        centers = cluster_means(all_points, labels, zeros)
        inertia = 0.0
        for rows in gen_batches(len(all_points), BLOCK_ROWS):
            offsets = all_points[rows] - centers[labels[rows]]
            inertia += float(np.square(offsets, dtype=np.float64).sum())
        return Clusters(
            centers=centers,
            labels=labels[points.shard.rows],
            inertia=inertia,
            n_iter=1,
            n_empty_before=0,
            n_empty_after=0,
        )

    def _fit_graph(
        self, data: Sharded, project: Callable[[np.ndarray], np.ndarray], seed: int
    ) -> PointsOfRows | None:
        """Fit the graph embedding of the distinct points among `project(data)`.

        In large sets a random sample of the points forms the graph, and each remaining
        point is embedded at its nearest point of the graph.

        Returns
        -------
        embed : callable or None
            Function from rows of this process to their embedding. None if no graph is
            wanted, or if each distinct point can be a cluster of its own.
        """
        if self.n_neighbors is None:
            return None
        rows = np.random.default_rng(seed).permutation(data.n_rows)[:GRAPH_ROWS]
        points = project(data.take(rows))
        representatives, node_of_row = distinct_rows(points)
        if len(representatives) <= min(self.n_pseudo_labels):
            return None
        nodes = points[representatives]
        # A single component at unit length would have only two values.
        n_components = max(2, min(self.n_clusters, MAX_EIGENVECTORS))
        n_neighbors = self.n_neighbors
        embedding = data.processes.run_on_first(
            lambda: spectral_embedding(nodes, n_neighbors, n_components)
        )
        if len(rows) < data.n_rows:
            options = self.kmeans_options
            return lambda rows: embedding[
                assign(
                    project(_read_rows(data.values, rows)),
                    nodes,
                    backend=options.backend,
                    device=options.device,
                )[0]
            ]
        ordered = np.empty((len(rows), embedding.shape[1]), embedding.dtype)
        ordered[rows] = embedding[node_of_row]
        return ordered[data.shard.rows].__getitem__


def _read_rows(values: np.ndarray, rows: Rows) -> np.ndarray:
    """Return consecutive rows as a view, or a copy of single rows."""
    return values[rows] if isinstance(rows, slice) else take_rows(values, rows)


def _compute_points(
    points_of: PointsOfRows, values: np.ndarray, rows: np.ndarray | None = None
) -> np.ndarray:
    """Return the points of single rows, or of all rows, computed in blocks."""
    n = len(values) if rows is None else len(rows)
    points: np.ndarray | None = None
    for block in row_blocks(values if rows is None else rows, BLOCK_ROWS):
        computed = points_of(block if rows is None else rows[block])
        if points is None:
            points = _allocate_points((n, computed.shape[1]))
            releaser = PageReleaser(points)
        points[block] = computed
        releaser.count(block)
    assert points is not None  # there is at least one block
    releaser.release()
    return points


def _allocate_points(shape: tuple[int, int]) -> np.ndarray:
    """Return memory for the points of k-means, or a temporary file."""
    points = allocate_array(shape, np.float32, None, purpose=POINTS)
    if points is None:
        return allocate_in_memory(shape, np.float32, POINTS, MEMORY_REMEDY)
    return points


def run_user_clusterer(
    clusterer: ClusterMixin,
    points: np.ndarray,
    n_clusters: int,
    seed: int,
    reported: set,
) -> np.ndarray:
    """Cluster points by a copy of an estimator with `fit_predict`.

    The copy gets the number of clusters, unless its parameter for the number is None,
    and a seed, unless it has one. Outliers, which have negative labels, are assigned to
    the nearest cluster mean. Each warning of the estimator is passed on once in a fit,
    with its name: the estimator runs in each round, and its warnings name parameters of
    its own.

    Returns
    -------
    labels : ndarray of shape (n,), int32
        Consecutive from 0.

    Raises
    ------
    ValueError
        If `fit_predict` does not return one label per row, or only outliers.
    """
    model = clone(clusterer)
    params = model.get_params(deep=False)
    sizes = [name for name in ("n_clusters", "n_components") if params.get(name)]
    new_params = dict.fromkeys(sizes[:1], n_clusters)
    if params.get("random_state", seed) is None:
        new_params["random_state"] = seed
    name = type(clusterer).__name__
    with warnings.catch_warnings(record=True) as caught:
        # It would name the number of pseudo-labels as n_clusters. The fit warns itself.
        warnings.filterwarnings("ignore", "Number of distinct clusters")
        labels = np.asarray(model.set_params(**new_params).fit_predict(points))
    for warning in caught:
        # Numbers in the message differ between rounds.
        place = warning.category, warning.filename, warning.lineno
        if place not in reported:
            reported.add(place)
            warn(f"clusterer={name} warns: {warning.message}", warning.category)
    if labels.shape != (len(points),) or labels.dtype.kind not in "iu":
        raise ValueError(
            f"clusterer={name} must return an integer label for each of the "
            f"{len(points)} rows, but returned {labels.dtype} of shape {labels.shape}."
        )
    is_inlier = labels >= 0
    if not is_inlier.any():
        raise ValueError(
            f"clusterer={name} labels all images as outliers. Change its parameters."
        )
    labels[is_inlier] = np.unique(labels[is_inlier], return_inverse=True)[1]
    if not is_inlier.all():
        zeros = np.zeros((int(labels.max()) + 1, points.shape[1]), np.float32)
        centers = cluster_means(points[is_inlier], labels[is_inlier], zeros)
        outliers = np.ascontiguousarray(points[~is_inlier])
        labels[~is_inlier] = assign(outliers, centers)[0]
    return labels.astype(np.int32)
