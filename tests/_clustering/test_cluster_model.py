"""Leaves, tree and clusters of features, fitted after the last round."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.datasets import make_blobs
from sklearn.metrics import adjusted_rand_score

from skdeepcluster._clustering.cluster_model import (
    count_leaves,
    fit_cluster_model,
    held_out_scores,
    mean_features,
)
from skdeepcluster._clustering.leaves import NearestLeaves
from skdeepcluster._clustering.merging import ChangedImages, MergeInput, diffusion_map
from skdeepcluster._utils.distributed import Sharded

CORNERS = np.array([[0, 0], [0, 9], [9, 0], [9, 9]])
# Pseudo-labels 0 and 1 are confused, and so are 2 and 3.
PARTNER = np.array([1, 0, 3, 2])


def draw_blobs(std=0.3):
    points, blobs = make_blobs(400, centers=CORNERS, cluster_std=std, random_state=0)
    return points.astype(np.float32), blobs


def fit_model(points, clusterer, blobs=None, rows=None):
    """Fit clusters of points, with a network that confuses blobs with partners."""
    rows = np.arange(len(points)) if rows is None else rows
    maps = []
    if blobs is not None:
        one_hot = np.eye(4, dtype=np.float32)[blobs[rows]]
        maps = [diffusion_map(0.6 * one_hot + 0.4 * one_hot[:, PARTNER], 2)]
    images = MergeInput(rows, maps, None, ChangedImages(np.arange(99), points[:99]))
    last = clusterer.cluster_features(Sharded.whole(points), seed=0)
    features = Sharded.whole(points)
    return last, fit_cluster_model(last, features, images, clusterer, seed=0)


def test_clusters_are_a_cut_of_the_tree_and_leaves_have_their_statistics(clusterer):
    points, blobs = draw_blobs()
    clusterer = replace(clusterer, n_pseudo_labels=(4,))
    _, model = fit_model(points, clusterer, blobs)
    labels = model.predict(points)
    assert adjusted_rand_score(blobs // 2, labels) == 1
    assert model.n_clusters == 2
    assert_array_equal(model.tree.cut(2), model.clusters)
    leaves = model.leaf_model.predict(points)
    assert_array_equal(model.clusters[leaves], labels)
    assert_array_equal(model.leaf_sizes, np.bincount(leaves))
    assert len(model.leaf_sizes) == model.tree.n_leaves >= 2
    means = [points[labels == cluster].mean(axis=0) for cluster in (0, 1)]
    assert_allclose(model.centers, means, rtol=1e-5)
    membership = model.membership(points)
    assert_array_equal(membership.leaves, leaves)


def test_merge_of_a_sample_assigns_all_rows(clusterer):
    points, blobs = draw_blobs()
    clusterer = replace(clusterer, n_pseudo_labels=(4,))
    _, model = fit_model(points, clusterer, blobs, rows=np.arange(0, 400, 4))
    assert adjusted_rand_score(blobs // 2, model.predict(points)) == 1
    assert model.leaf_sizes.sum() == 400


def test_single_k_adds_a_row_of_each_cluster_to_the_sample(clusterer):
    points, _ = draw_blobs()
    single = replace(clusterer, n_clusters=5, n_pseudo_labels=(5,))
    last = single.cluster_features(Sharded.whole(points), seed=0)
    _, model = fit_model(points, single, rows=np.flatnonzero(last.labels[0] == 0))
    assert_array_equal(np.unique(model.predict(points)), np.arange(5))
    assert model.n_clusters == 5


def test_calibration_does_not_depend_on_the_order_of_images():
    """Clusters in alternate rows: each half has images of each cluster."""
    points, blobs = draw_blobs()
    order = np.argsort(blobs, kind="stable").reshape(4, 100).T.ravel()
    features, labels = points[order], blobs[order]
    changed = ChangedImages(np.arange(0, 400, 3), features[::3])
    scores = held_out_scores(features, labels, np.arange(400), changed, seed=0)
    assert_array_equal(scores.argmax(axis=1), labels[::3])
    # A cluster of a single image is known to both classifiers.
    labels = np.where(np.arange(400) == 5, 4, labels)
    features[5] = 99
    changed = ChangedImages(np.arange(10), features[:10])
    scores = held_out_scores(features, labels, np.arange(400), changed, seed=0)
    assert_array_equal(scores.argmax(axis=1), labels[:10])


@pytest.mark.parametrize(
    ("n_pseudo_labels", "n_clusters", "expected"),
    [(50, 10, 5), (300, 10, 30), (20, 10, 5), (500, 100, 5), (999, 251, 1), (9, 9, 5)],
)
def test_number_of_leaves_of_a_cluster(n_pseudo_labels, n_clusters, expected):
    assert count_leaves(n_pseudo_labels, n_clusters) == expected


def test_single_k_without_graph_keeps_kmeans_clusters(clusterer):
    """As in the paper, the clusters of the last round are final."""
    points, _ = draw_blobs(std=3)
    single = replace(clusterer, n_pseudo_labels=(2,), n_neighbors=None)
    last, model = fit_model(points, single)
    assert isinstance(model.leaf_model, NearestLeaves)
    assert_array_equal(model.leaf_model.centers, last.clusters[0].centers)
    assert_array_equal(model.predict(points), last.labels[0])


def test_mean_features_are_means_of_leaves():
    features = np.arange(12, dtype=np.float32).reshape(6, 2)
    leaves = np.array([0, 1, 0, 1, 1, 0])
    means = mean_features(Sharded.whole(features), leaves, 2)
    assert_allclose(means, [features[leaves == i].mean(axis=0) for i in (0, 1)])
