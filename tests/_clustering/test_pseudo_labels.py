"""Pseudo-labels: clusters of pixels and features by each clustering method."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from sklearn.cluster import (
    DBSCAN,
    AgglomerativeClustering,
    Birch,
    KMeans,
    MiniBatchKMeans,
)
from sklearn.datasets import make_blobs, make_moons
from sklearn.metrics import adjusted_rand_score
from sklearn.mixture import GaussianMixture

from skdeepcluster import FaissKMeans
from skdeepcluster._clustering import pseudo_labels as pseudo_labels_module
from skdeepcluster._clustering.kmeans import Clusters, KMeansOptions
from skdeepcluster._clustering.nearest_centers import assign
from skdeepcluster._clustering.pseudo_labels import PseudoLabels, run_user_clusterer
from skdeepcluster._utils.distributed import Sharded


@pytest.fixture(scope="module")
def moons():
    """Two interlocking moons: points, float32 (600, 2), and the moon of each point."""
    points, moon = make_moons(600, noise=0.05, random_state=0)
    return points.astype(np.float32), moon


def cluster_features(clusterer, features, seed=0):
    return clusterer.cluster_features(Sharded.whole(features), seed=seed)


def cluster_pixels(clusterer, pixels, seed=0):
    return clusterer.cluster_pixels(Sharded.whole(pixels), seed=seed)


# The nearest-neighbor graph.


def test_pixel_labels_follow_shapes_that_kmeans_cuts(moons, clusterer):
    points, moon = moons
    single = replace(clusterer, n_pseudo_labels=(2,))
    labels = cluster_pixels(single, points).labels[0]
    assert adjusted_rand_score(moon, labels) > 0.95
    kmeans_labels = KMeans(2, n_init=10, random_state=0).fit_predict(points)
    assert adjusted_rand_score(moon, kmeans_labels) < 0.5


def test_disconnected_blobs_are_divided_without_a_warning(clusterer):
    """Each blob is a single point of the graph's embedding."""
    points, blobs = make_blobs(400, centers=100 * np.eye(4), random_state=0)
    labels = cluster_pixels(clusterer, points.astype(np.float32)).labels[0]
    assert_array_equal(np.unique(labels), np.arange(12))
    for label in range(12):
        assert len(set(blobs[labels == label])) == 1


def test_graph_of_a_sample_embeds_all_rows(moons, monkeypatch, clusterer):
    points, moon = moons
    monkeypatch.setattr(pseudo_labels_module, "GRAPH_ROWS", 200)
    single = replace(clusterer, n_pseudo_labels=(2,))
    labels = cluster_pixels(single, points).labels[0]
    assert adjusted_rand_score(moon, labels) > 0.95


@pytest.mark.parametrize("n_neighbors", [None, 10])
def test_all_rows_get_pseudo_labels(moons, n_neighbors, clusterer):
    clusterer = replace(clusterer, n_neighbors=n_neighbors)
    result = cluster_features(clusterer, moons[0])
    assert result.labels.shape == (1, 600)
    assert_array_equal(np.unique(result.labels[0]), np.arange(12))
    if n_neighbors is None:
        points = result.projection(moons[0])
        labels, _ = assign(points, result.clusters[0].centers)
        assert_array_equal(labels, result.labels[0])
    else:
        # The embedding of the graph is not a function of the features alone.
        assert result.projection is None


def test_repeated_rows_get_the_same_pseudo_label(moons, clusterer):
    points = np.repeat(moons[0][:100], 6, axis=0)
    labels = cluster_features(clusterer, points).labels[0].reshape(100, 6)
    assert (labels == labels[:, :1]).all()


@pytest.mark.parametrize("n_distinct", [1, 2, 5])
def test_few_distinct_rows_are_clustered_without_graph(n_distinct, clusterer):
    distinct = np.random.default_rng(0).standard_normal((n_distinct, 3))
    points = np.tile(distinct.astype(np.float32), (20, 1))
    options = KMeansOptions(empty_clusters="drop")
    result = cluster_features(replace(clusterer, kmeans_options=options), points)
    assert result.projection is not None
    assert_array_equal(np.unique(result.labels[0]), np.arange(n_distinct))


# K-means.


def test_labels_stack_labels_of_all_clusterings():
    clusters = Clusters(
        centers=np.zeros((1, 1)),
        labels=np.zeros(3, np.int32),
        inertia=0.0,
        n_iter=1,
        n_empty_before=0,
        n_empty_after=0,
    )
    expected = [clusters.labels, clusters.labels]
    assert_array_equal(PseudoLabels([clusters, clusters]).labels, expected)


@pytest.mark.parametrize("n_neighbors", [None, 10])
def test_kmeans_of_a_sample_labels_all_rows(moons, monkeypatch, clusterer, n_neighbors):
    clusterer = replace(clusterer, n_neighbors=n_neighbors)
    sizes = []
    original_kmeans = pseudo_labels_module.kmeans

    def kmeans(points, *args, **kwargs):
        sizes.append(points.n_rows)
        return original_kmeans(points, *args, **kwargs)

    monkeypatch.setattr(pseudo_labels_module, "kmeans", kmeans)
    monkeypatch.setattr(pseudo_labels_module, "KMEANS_ROWS", 300)
    monkeypatch.setattr(pseudo_labels_module, "BLOCK_ROWS", 70)
    of_features = cluster_features(clusterer, moons[0])
    of_pixels = cluster_pixels(clusterer, moons[0])
    for result in (of_features, of_pixels):
        assert_array_equal(np.unique(result.labels[0]), np.arange(12))
        assert result.labels.shape == (1, 600)
    assert sizes == [300, 300]
    if n_neighbors is None:
        points, (clusters,) = moons[0], of_pixels.clusters
        labels, _ = assign(points, clusters.centers)
        assert_array_equal(labels, of_pixels.labels[0])
        inertia = np.square(points - clusters.centers[labels]).sum()
        assert clusters.inertia == pytest.approx(inertia, rel=1e-4)


def test_spherical_clusters_are_directions(clusterer):
    rng = np.random.default_rng(0)
    direction = np.repeat([0, 1, 2], 50)
    points = np.eye(3)[direction] + 0.1 * rng.standard_normal((150, 3))
    points = (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)
    spherical = replace(
        clusterer,
        n_pseudo_labels=(3, 4),
        kmeans_options=KMeansOptions(spherical=True),
    )
    result = cluster_features(spherical, points)
    assert adjusted_rand_score(direction, result.labels[0]) == 1
    for clusters in result.clusters:
        lengths = np.linalg.norm(clusters.centers, axis=1)
        assert lengths == pytest.approx(np.ones(len(lengths)), abs=1e-5)


# Clustering methods besides k-means.


def with_method(clusterer, method, n_pseudo_labels):
    return replace(
        clusterer, method=method, n_pseudo_labels=n_pseudo_labels, n_neighbors=None
    )


@pytest.mark.parametrize(
    "method",
    [
        KMeans(n_init=1),
        MiniBatchKMeans(),
        AgglomerativeClustering(),
        GaussianMixture(),
        Birch(threshold=0.1),
        FaissKMeans(),
    ],
    ids=lambda method: type(method).__name__,
)
def test_estimators_get_number_of_pseudo_labels(moons, clusterer, method):
    params = method.get_params()
    by_method = with_method(clusterer, method, (6, 9))
    result = cluster_features(by_method, moons[0])
    repeated = cluster_features(by_method, moons[0])
    assert result.labels.dtype == np.int32
    assert_array_equal(result.labels, repeated.labels)
    for n_clusters, clusters in zip((6, 9), result.clusters, strict=True):
        assert_array_equal(np.unique(clusters.labels), np.arange(n_clusters))
        assert clusters.centers.shape == (n_clusters, 2)
        assert clusters.inertia < len(moons[0]) / n_clusters
    assert result.projection is None
    # A clone is fitted.
    assert method.get_params() == params
    assert not hasattr(method, "labels_")


def test_methods_may_choose_number_of_pseudo_labels(moons, clusterer):
    method = AgglomerativeClustering(n_clusters=None, distance_threshold=1.0)
    result = cluster_features(with_method(clusterer, method, (5,)), moons[0])
    assert result.labels.max() + 1 > 5
    result = cluster_features(with_method(clusterer, "pic", (5,)), moons[0])
    assert result.labels.max() + 1 > 20
    assert not with_method(clusterer, "pic", (2,)).labels_are_final


def test_outliers_are_assigned_to_nearest_mean():
    points, blobs = make_blobs(200, centers=[[0, 0], [9, 9]], random_state=0)
    points = np.vstack([points, [[3, 3], [6, 6]]]).astype(np.float32)
    dbscan = DBSCAN(eps=1.0)
    assert (dbscan.fit_predict(points)[-2:] == -1).all()
    labels = run_user_clusterer(dbscan, points, 7, seed=0, reported=set())
    assert adjusted_rand_score([*blobs, 0, 1], labels) == 1


def test_clusterer_with_outliers_only_is_refused():
    points = np.random.default_rng(0).standard_normal((30, 2)).astype(np.float32)
    message = r"clusterer=DBSCAN labels all images as outliers.*parameters"
    with pytest.raises(ValueError, match=message):
        run_user_clusterer(DBSCAN(eps=1e-9), points, 7, seed=0, reported=set())


class ReturnsRows(KMeans):
    """An estimator whose `fit_predict` returns no labels."""

    def fit_predict(self, X, y=None):
        return X


def test_clusterer_without_integer_labels_is_refused():
    points = np.zeros((30, 2), np.float32)
    message = r"clusterer=ReturnsRows must return an integer"
    with pytest.raises(ValueError, match=message):
        run_user_clusterer(ReturnsRows(), points, 7, seed=0, reported=set())


@pytest.mark.parametrize("method", ["pic", AgglomerativeClustering()], ids=["pic", "_"])
def test_rows_outside_the_sample_get_nearest_mean(
    moons, monkeypatch, clusterer, method
):
    monkeypatch.setattr(pseudo_labels_module, "KMEANS_ROWS", 300)
    monkeypatch.setattr(pseudo_labels_module, "BLOCK_ROWS", 70)
    result = cluster_pixels(with_method(clusterer, method, (6, 9)), moons[0])
    assert result.labels.shape == (2, 600)
    for clusters in result.clusters:
        labels, distances = assign(moons[0], clusters.centers)
        assert_array_equal(clusters.labels, labels)
        assert clusters.inertia == pytest.approx(distances.sum(), rel=1e-4)
        assert_array_equal(np.unique(labels), np.arange(len(clusters.centers)))
