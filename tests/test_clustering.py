"""Pseudo-labels follow the shape of features, and groups are what predict tells."""

import dataclasses

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.cluster import KMeans
from sklearn.datasets import make_blobs, make_moons
from sklearn.metrics import adjusted_rand_score

from skdeepcluster import _clustering
from skdeepcluster._clustering import Clusterer, Groups, PseudoLabels, group_means
from skdeepcluster._kmeans import KMeansResult, kmeans
from skdeepcluster._whitening import Projection

CPU = torch.device("cpu")
CLUSTERER = Clusterer(
    n_clusters=2,
    n_pseudo_labels=12,
    n_neighbors=10,
    n_components="auto",
    whiten=False,
    normalize=False,
    empty_clusters="split",
    backend="faiss",
    device=CPU,
)


@pytest.fixture(scope="module")
def moons():
    points, moon = make_moons(600, noise=0.05, random_state=0)
    return points.astype(np.float32), moon


def confident(labels):
    """A head that is sure of the pseudo-labels it was trained on."""
    return np.eye(labels.max() + 1, dtype=np.float32)[labels]


def test_first_labels_follow_the_graph_where_kmeans_cuts_through(moons):
    points, moon = moons
    single = dataclasses.replace(CLUSTERER, n_pseudo_labels=2)
    labels = single.first_labels(points, seed=0).labels
    assert adjusted_rand_score(moon, labels) > 0.95
    cut = KMeans(2, n_init=10, random_state=0).fit_predict(points)
    assert adjusted_rand_score(moon, cut) < 0.5


def test_parts_far_apart_are_divided_without_a_warning():
    corners = 100 * np.eye(4)
    points, part = make_blobs(400, centers=corners, random_state=0)
    labels = CLUSTERER.first_labels(points.astype(np.float32), seed=0).labels
    assert_array_equal(np.unique(labels), np.arange(12))
    for label in range(12):
        assert len(set(part[labels == label])) == 1


def test_a_sample_stands_for_many_rows(moons, monkeypatch):
    points, moon = moons
    monkeypatch.setattr(_clustering, "GRAPH_ROWS", 200)
    single = dataclasses.replace(CLUSTERER, n_pseudo_labels=2)
    assert adjusted_rand_score(moon, single.first_labels(points, seed=0).labels) > 0.95


@pytest.mark.parametrize("n_neighbors", [None, 10])
def test_pseudo_labels_are_labels_of_every_row(moons, n_neighbors):
    clusterer = dataclasses.replace(CLUSTERER, n_neighbors=n_neighbors)
    found = clusterer.pseudo_labels(moons[0], seed=0)
    assert found.labels.shape == (600,)
    assert_array_equal(np.unique(found.labels), np.arange(12))
    assert (found.embedding is None) == (n_neighbors is None)
    assert_allclose(found.projection(moons[0]), found.points)


def test_rows_that_repeat_get_one_pseudo_label(moons):
    points = np.repeat(moons[0][:100], 6, axis=0)
    labels = CLUSTERER.pseudo_labels(points, seed=0).labels.reshape(100, 6)
    assert (labels == labels[:, :1]).all()


def on_a_plane(points):
    """Two coordinates on a plane far from the origin: at unit length little changes."""
    return np.hstack([points, np.full((len(points), 1), 5)]).astype(np.float32)


def test_groups_follow_the_shape_and_are_predicted_for_new_rows(moons):
    points, moon = on_a_plane(moons[0]), moons[1]
    found = CLUSTERER.pseudo_labels(points, seed=0)
    view = CLUSTERER.view(found, confident(found.labels))
    groups = CLUSTERER.groups(found, [view], seed=0)
    assert len(groups.centers) == len(groups.group_of) > 2
    assert adjusted_rand_score(moon, groups.predict(points, "faiss", CPU)) > 0.9
    new, new_moon = make_moons(300, noise=0.05, random_state=1)
    told = groups.predict(on_a_plane(new), "faiss", CPU)
    assert adjusted_rand_score(new_moon, told) > 0.9


def test_confused_pseudo_labels_belong_together():
    """Four equal blobs, of which the head takes 0 for 1 and 2 for 3."""
    corners = [[0, 0], [0, 9], [9, 0], [9, 9]]
    points, blob = make_blobs(400, centers=corners, cluster_std=0.3, random_state=0)
    points = points.astype(np.float32)
    for partner in ([1, 0, 3, 2], [3, 2, 1, 0]):
        clusterer = dataclasses.replace(CLUSTERER, n_pseudo_labels=4, n_neighbors=None)
        found = clusterer.pseudo_labels(points, seed=0)
        sure = confident(blob)
        view = clusterer.view(found, (sure + sure[:, partner]) / 2)[:, :2]
        told = clusterer.groups(found, [view], seed=0).predict(points, "faiss", CPU)
        expected = np.minimum(blob, np.array(partner)[blob])
        assert adjusted_rand_score(expected, told) == 1


@pytest.mark.parametrize("n_distinct", [1, 2, 5])
def test_few_distinct_rows_need_no_graph(n_distinct):
    distinct = np.random.default_rng(0).standard_normal((n_distinct, 3))
    points = np.tile(distinct.astype(np.float32), (20, 1))
    clusterer = dataclasses.replace(CLUSTERER, empty_clusters="drop")
    found = clusterer.pseudo_labels(points, seed=0)
    assert found.embedding is None
    assert_array_equal(np.unique(found.labels), np.arange(n_distinct))


def test_a_group_inside_another_keeps_a_point():
    """Centres of a wide group are nearer to each point of a thin one than its own."""
    rng = np.random.default_rng(0)
    points = rng.standard_normal((200, 2)).astype(np.float32)
    labels = np.zeros(200, np.int32)
    labels[:20] = 1
    wide, thin = points[labels == 0], points[:20]
    centers = np.concatenate(
        [kmeans(wide, 150, seed=0).centers, thin.mean(0)[None] + 9]
    )
    identity = Projection(np.zeros(2, np.float32), np.eye(2, dtype=np.float32), False)
    group_of = np.array([0] * 150 + [1])
    groups = Groups(identity, centers.astype(np.float32), group_of)
    assert set(groups.predict(points, "faiss", CPU)) == {0}
    mended = CLUSTERER._without_empty(groups, labels, points)
    assert set(mended.predict(points, "faiss", CPU)) == {0, 1}


def test_the_papers_single_k_is_the_kmeans_itself(moons):
    single = dataclasses.replace(CLUSTERER, n_pseudo_labels=2, n_neighbors=None)
    found = single.pseudo_labels(moons[0], seed=0)
    groups = single.groups(found, [], seed=0)
    assert_array_equal(groups.centers, found.clusters.centers)
    assert_array_equal(groups.predict(moons[0], "faiss", CPU), found.labels)


def test_group_means():
    features = np.arange(12, dtype=np.float32).reshape(6, 2)
    means = group_means(features, np.array([0, 1, 0, 1, 1, 0]))
    assert_allclose(means, [features[[0, 2, 5]].mean(0), features[[1, 3, 4]].mean(0)])


def test_labels_are_those_of_the_clusters():
    result = KMeansResult(np.zeros((1, 1)), np.zeros(3, np.int32), 0.0, 1, 0, 0)
    assert PseudoLabels(result, None, np.zeros((3, 1)), None).labels is result.labels
