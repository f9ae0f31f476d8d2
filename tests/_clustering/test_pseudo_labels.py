"""Pseudo-labels follow the shape of the features."""

import dataclasses

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
from skdeepcluster._clustering.kmeans import Clusters, assign
from skdeepcluster._clustering.pseudo_labels import PseudoLabels, run_user_clusterer


@pytest.fixture(scope="module")
def moons():
    points, moon = make_moons(600, noise=0.05, random_state=0)
    return points.astype(np.float32), moon


def test_first_labels_follow_the_graph_where_kmeans_cuts_through(moons, clusterer):
    points, moon = moons
    single = dataclasses.replace(clusterer, n_pseudo_labels=(2,))
    labels = single.cluster_pixels(points, seed=0).labels[0]
    assert adjusted_rand_score(moon, labels) > 0.95
    cut = KMeans(2, n_init=10, random_state=0).fit_predict(points)
    assert adjusted_rand_score(moon, cut) < 0.5


def test_parts_far_apart_are_divided_without_a_warning(clusterer):
    corners = 100 * np.eye(4)
    points, part = make_blobs(400, centers=corners, random_state=0)
    labels = clusterer.cluster_pixels(points.astype(np.float32), seed=0).labels[0]
    assert_array_equal(np.unique(labels), np.arange(12))
    for label in range(12):
        assert len(set(part[labels == label])) == 1


def test_a_sample_stands_for_many_rows(moons, monkeypatch, clusterer):
    points, moon = moons
    monkeypatch.setattr(pseudo_labels_module, "GRAPH_ROWS", 200)
    single = dataclasses.replace(clusterer, n_pseudo_labels=(2,))
    assert (
        adjusted_rand_score(moon, single.cluster_pixels(points, seed=0).labels[0])
        > 0.95
    )


@pytest.mark.parametrize("n_neighbors", [None, 10])
def test_pseudo_labels_are_labels_of_every_row(moons, n_neighbors, clusterer):
    clusterer = dataclasses.replace(clusterer, n_neighbors=n_neighbors)
    found = clusterer.cluster_features(moons[0], seed=0)
    assert found.labels.shape == (1, 600)
    assert_array_equal(np.unique(found.labels[0]), np.arange(12))
    if n_neighbors is None:
        points = found.projection(moons[0])
        assert_array_equal(
            assign(points, found.clusters[0].centers)[0], found.labels[0]
        )
    else:  # of the graph, to which nothing projects
        assert found.projection is None


def test_rows_that_repeat_get_one_pseudo_label(moons, clusterer):
    points = np.repeat(moons[0][:100], 6, axis=0)
    labels = clusterer.cluster_features(points, seed=0).labels[0].reshape(100, 6)
    assert (labels == labels[:, :1]).all()


@pytest.mark.parametrize("n_distinct", [1, 2, 5])
def test_few_distinct_rows_need_no_graph(n_distinct, clusterer):
    distinct = np.random.default_rng(0).standard_normal((n_distinct, 3))
    points = np.tile(distinct.astype(np.float32), (20, 1))
    clusterer = dataclasses.replace(clusterer, empty_clusters="drop")
    found = clusterer.cluster_features(points, seed=0)
    assert found.projection is not None
    assert_array_equal(np.unique(found.labels[0]), np.arange(n_distinct))


def test_labels_are_those_of_the_clusters():
    result = Clusters(np.zeros((1, 1)), np.zeros(3, np.int32), 0.0, 1, 0, 0)
    assert_array_equal(PseudoLabels([result] * 2, None).labels, [result.labels] * 2)


@pytest.mark.parametrize("n_neighbors", [None, 10])
def test_more_rows_than_kmeans_sees_at_once(moons, monkeypatch, clusterer, n_neighbors):
    clusterer = dataclasses.replace(clusterer, n_neighbors=n_neighbors)
    seen = []
    real = pseudo_labels_module.kmeans

    def kmeans(points, *args, **kwargs):
        seen.append(len(points))
        return real(points, *args, **kwargs)

    monkeypatch.setattr(pseudo_labels_module, "kmeans", kmeans)
    monkeypatch.setattr(pseudo_labels_module, "KMEANS_ROWS", 300)
    monkeypatch.setattr(pseudo_labels_module, "ASSIGNED_ROWS", 70)
    for found in (
        clusterer.cluster_features(moons[0], seed=0),
        clusterer.cluster_pixels(moons[0], seed=0),
    ):
        assert_array_equal(np.unique(found.labels[0]), np.arange(12))
        assert found.labels.shape == (1, 600)
    assert seen == [300, 300]
    if n_neighbors is None:
        points, centers = moons[0], found.clusters[0].centers
        assert_array_equal(assign(points, centers)[0], found.labels[0])
        inertia = np.square(points - centers[found.labels[0]]).sum()
        assert found.clusters[0].inertia == pytest.approx(inertia, rel=1e-4)


def replaced(clusterer, method, *n_pseudo_labels):
    return dataclasses.replace(
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
def test_other_clusterers_are_told_how_many_clusters(moons, clusterer, method):
    before = method.get_params()
    found = replaced(clusterer, method, 6, 9).cluster_features(moons[0], seed=0)
    again = replaced(clusterer, method, 6, 9).cluster_features(moons[0], seed=0)
    assert found.labels.dtype == np.int32
    assert_array_equal(found.labels, again.labels)
    for k, clusters in zip((6, 9), found.clusters, strict=True):
        assert_array_equal(np.unique(clusters.labels), np.arange(k))
        assert clusters.centers.shape == (k, 2)
        assert clusters.inertia < len(moons[0]) / k
    assert found.projection is None
    assert method.get_params() == before
    assert not hasattr(method, "labels_")


def test_clusterers_may_find_out_how_many(moons, clusterer):
    chosen = AgglomerativeClustering(n_clusters=None, distance_threshold=1.0)
    found = replaced(clusterer, chosen, 5).cluster_features(moons[0], seed=0)
    assert found.labels.max() + 1 > 5
    found = replaced(clusterer, "pic", 5).cluster_features(moons[0], seed=0)
    assert found.labels.max() + 1 > 20
    assert not replaced(clusterer, "pic", 2).single


def test_outliers_go_to_the_nearest_mean(clusterer):
    points, blob = make_blobs(200, centers=[[0, 0], [9, 9]], random_state=0)
    points = np.vstack([points, [[3, 3], [6, 6]]]).astype(np.float32)
    dbscan = DBSCAN(eps=1.0)
    assert (dbscan.fit_predict(points)[-2:] == -1).all()
    labels = run_user_clusterer(dbscan, points, 7, seed=0)
    assert adjusted_rand_score([*blob, 0, 1], labels) == 1
    with pytest.raises(ValueError, match=r"clusterer=DBSCAN calls all images outliers"):
        run_user_clusterer(DBSCAN(eps=1e-9), points, 7, seed=0)


class Scores(KMeans):
    """Returns what is no label."""

    def fit_predict(self, X, y=None):
        return X


def test_what_returns_no_labels_is_named(clusterer):
    points = np.zeros((30, 2), np.float32)
    with pytest.raises(ValueError, match=r"clusterer=Scores must return an integer"):
        run_user_clusterer(Scores(), points, 7, seed=0)


def test_spherical_clusters_are_those_of_directions(clusterer):
    rng = np.random.default_rng(0)
    direction = np.repeat([0, 1, 2], 50)
    points = np.eye(3)[direction] + 0.1 * rng.standard_normal((150, 3))
    points = (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)
    spherical = dataclasses.replace(clusterer, n_pseudo_labels=(3, 4), spherical=True)
    found = spherical.cluster_features(points, seed=0)
    assert adjusted_rand_score(direction, found.labels[0]) == 1
    for clusters in found.clusters:
        lengths = np.linalg.norm(clusters.centers, axis=1)
        assert lengths == pytest.approx(np.ones(len(lengths)), abs=1e-5)


@pytest.mark.parametrize("method", ["pic", AgglomerativeClustering()], ids=["pic", "_"])
def test_what_other_clusterers_do_not_see_goes_to_the_nearest_mean(
    moons, monkeypatch, clusterer, method
):
    monkeypatch.setattr(pseudo_labels_module, "KMEANS_ROWS", 300)
    monkeypatch.setattr(pseudo_labels_module, "ASSIGNED_ROWS", 70)
    found = replaced(clusterer, method, 6, 9).cluster_pixels(moons[0], seed=0)
    assert found.labels.shape == (2, 600)
    for clusters in found.clusters:
        expected, distances = assign(moons[0], clusters.centers)
        assert_array_equal(clusters.labels, expected)
        assert clusters.inertia == pytest.approx(distances.sum(), rel=1e-4)
        assert_array_equal(np.unique(expected), np.arange(len(clusters.centers)))
