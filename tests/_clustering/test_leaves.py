"""Classifiers that assign features to leaves."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.datasets import make_blobs

from skdeepcluster._clustering.leaves import LinearLeaves, NearestLeaves
from skdeepcluster._clustering.whitening import fit_projection

CORNERS = [[0, 0], [0, 9], [9, 0], [9, 9]]


def draw_blobs(centers, seed=0, std=0.3):
    points, blobs = make_blobs(
        400, centers=np.array(centers, float), cluster_std=std, random_state=seed
    )
    return points.astype(np.float32), blobs


def fit_leaves(features, leaves):
    return LinearLeaves.fit(features, leaves)[0]


@pytest.mark.parametrize("n_clusters", [1, 2, 3])
def test_classifier_predicts_new_rows(n_clusters):
    points, blobs = draw_blobs(CORNERS[:n_clusters])
    classifier = fit_leaves(points, blobs)
    assert_array_equal(classifier.predict(points), blobs)
    new_points, new_blobs = draw_blobs(CORNERS[:n_clusters], seed=1)
    assert_array_equal(classifier.predict(new_points), new_blobs)
    assert classifier.predict(new_points).dtype == np.int32
    assert_array_equal(classifier.predict(new_points[:1]), new_blobs[:1])


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_classifier_is_independent_of_scale_and_offset(scale):
    points, blobs = draw_blobs(CORNERS)
    classifier = fit_leaves(scale * (points + 50), blobs)
    assert_array_equal(classifier.predict(scale * (points + 50)), blobs)


def test_clusters_of_single_images_raise_no_warning():
    points = 9 * np.eye(30, dtype=np.float32)
    classifier = fit_leaves(points, np.arange(30, dtype=np.int32))
    assert_array_equal(classifier.predict(points), np.arange(30))


def test_tiny_cluster_inside_a_large_one_is_not_lost():
    rng = np.random.default_rng(0)
    points = rng.standard_normal((500, 20)).astype(np.float32)
    labels = np.zeros(500, np.int32)
    labels[7] = 1
    predicted = fit_leaves(points, labels).predict(points)
    assert_array_equal(np.unique(predicted), [0, 1])


def test_inseparable_cluster_is_dropped_and_labels_stay_consecutive():
    points = np.repeat(np.eye(3, dtype=np.float32), 20, axis=0)
    labels = np.repeat([0, 1, 3], 20).astype(np.int32)
    # The rows of cluster 2 equal the rows of cluster 0.
    labels[:3] = 2
    predicted = fit_leaves(points, labels).predict(points)
    assert_array_equal(predicted, np.repeat([0, 1, 2], 20))


def test_names_of_the_kept_leaves_are_returned():
    points = np.repeat(np.eye(3, dtype=np.float32), 20, axis=0)
    leaves = np.repeat([0, 1, 3], 20).astype(np.int32)
    leaves[:3] = 2
    assert_array_equal(LinearLeaves.fit(points, leaves)[1], [0, 1, 3])


def test_the_best_score_is_the_predicted_leaf():
    points, blobs = draw_blobs(CORNERS)
    linear = fit_leaves(points, blobs)
    assert_array_equal(linear.scores(points).argmax(axis=1), linear.predict(points))
    projection = fit_projection(points, None, whiten=False, normalize=False)
    nearest = NearestLeaves(projection, projection(np.array(CORNERS, np.float32)))
    assert_array_equal(nearest.scores(points).argmax(axis=1), nearest.predict(points))
    distances = np.square(points[:, None] - np.array(CORNERS)).sum(axis=2)
    assert_allclose(nearest.scores(points), -distances, rtol=1e-3, atol=1e-3)
