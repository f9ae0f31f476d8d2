"""Pseudo-labels follow the shape of the features."""

import dataclasses

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from sklearn.cluster import KMeans
from sklearn.datasets import make_blobs, make_moons
from sklearn.metrics import adjusted_rand_score

from skdeepcluster import _clustering
from skdeepcluster._clustering import PseudoLabels
from skdeepcluster._kmeans import KMeansResult, assign


@pytest.fixture(scope="module")
def moons():
    points, moon = make_moons(600, noise=0.05, random_state=0)
    return points.astype(np.float32), moon


def test_first_labels_follow_the_graph_where_kmeans_cuts_through(moons, clusterer):
    points, moon = moons
    single = dataclasses.replace(clusterer, n_pseudo_labels=2)
    labels = single.first_labels(points, seed=0).labels
    assert adjusted_rand_score(moon, labels) > 0.95
    cut = KMeans(2, n_init=10, random_state=0).fit_predict(points)
    assert adjusted_rand_score(moon, cut) < 0.5


def test_parts_far_apart_are_divided_without_a_warning(clusterer):
    corners = 100 * np.eye(4)
    points, part = make_blobs(400, centers=corners, random_state=0)
    labels = clusterer.first_labels(points.astype(np.float32), seed=0).labels
    assert_array_equal(np.unique(labels), np.arange(12))
    for label in range(12):
        assert len(set(part[labels == label])) == 1


def test_a_sample_stands_for_many_rows(moons, monkeypatch, clusterer):
    points, moon = moons
    monkeypatch.setattr(_clustering, "GRAPH_ROWS", 200)
    single = dataclasses.replace(clusterer, n_pseudo_labels=2)
    assert adjusted_rand_score(moon, single.first_labels(points, seed=0).labels) > 0.95


@pytest.mark.parametrize("n_neighbors", [None, 10])
def test_pseudo_labels_are_labels_of_every_row(moons, n_neighbors, clusterer):
    clusterer = dataclasses.replace(clusterer, n_neighbors=n_neighbors)
    found = clusterer.pseudo_labels(moons[0], seed=0)
    assert found.labels.shape == (600,)
    assert_array_equal(np.unique(found.labels), np.arange(12))
    if n_neighbors is None:
        points = found.projection(moons[0])
        assert_array_equal(assign(points, found.clusters.centers)[0], found.labels)
    else:  # of the graph, to which nothing projects
        assert found.projection is None


def test_rows_that_repeat_get_one_pseudo_label(moons, clusterer):
    points = np.repeat(moons[0][:100], 6, axis=0)
    labels = clusterer.pseudo_labels(points, seed=0).labels.reshape(100, 6)
    assert (labels == labels[:, :1]).all()


@pytest.mark.parametrize("n_distinct", [1, 2, 5])
def test_few_distinct_rows_need_no_graph(n_distinct, clusterer):
    distinct = np.random.default_rng(0).standard_normal((n_distinct, 3))
    points = np.tile(distinct.astype(np.float32), (20, 1))
    clusterer = dataclasses.replace(clusterer, empty_clusters="drop")
    found = clusterer.pseudo_labels(points, seed=0)
    assert found.projection is not None
    assert_array_equal(np.unique(found.labels), np.arange(n_distinct))


def test_labels_are_those_of_the_clusters():
    result = KMeansResult(np.zeros((1, 1)), np.zeros(3, np.int32), 0.0, 1, 0, 0)
    assert PseudoLabels(result, None).labels is result.labels


@pytest.mark.parametrize("n_neighbors", [None, 10])
def test_more_rows_than_kmeans_sees_at_once(moons, monkeypatch, clusterer, n_neighbors):
    clusterer = dataclasses.replace(clusterer, n_neighbors=n_neighbors)
    seen = []
    real = _clustering.kmeans

    def kmeans(points, *args, **kwargs):
        seen.append(len(points))
        return real(points, *args, **kwargs)

    monkeypatch.setattr(_clustering, "kmeans", kmeans)
    monkeypatch.setattr(_clustering, "KMEANS_ROWS", 300)
    monkeypatch.setattr(_clustering, "ASSIGNED_ROWS", 70)
    for found in (
        clusterer.pseudo_labels(moons[0], seed=0),
        clusterer.first_labels(moons[0], seed=0),
    ):
        assert_array_equal(np.unique(found.labels), np.arange(12))
        assert len(found.labels) == 600
    assert seen == [300, 300]
    if n_neighbors is None:
        points, centers = moons[0], found.clusters.centers
        assert_array_equal(assign(points, centers)[0], found.labels)
        inertia = np.square(points - centers[found.labels]).sum()
        assert found.clusters.inertia == pytest.approx(inertia, rel=1e-4)
