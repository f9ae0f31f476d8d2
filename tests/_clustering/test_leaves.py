"""Classifiers that assign features to leaves."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.datasets import make_blobs

from skdeepcluster._clustering.leaves import (
    LinearClassifier,
    LinearLeaves,
    NearestLeaves,
)
from skdeepcluster._clustering.whitening import fit_projection

CORNERS = [[0, 0], [0, 9], [9, 0], [9, 9]]


def draw_blobs(centers, seed=0, std=0.3):
    points, blobs = make_blobs(
        400, centers=np.array(centers, float), cluster_std=std, random_state=seed
    )
    return points.astype(np.float32), blobs


def fit_classifier(features, labels):
    return LinearClassifier.fit(features, labels)[0]


@pytest.mark.parametrize("n_clusters", [1, 2, 3])
def test_classifier_predicts_new_rows(n_clusters):
    points, blobs = draw_blobs(CORNERS[:n_clusters])
    classifier = fit_classifier(points, blobs)
    assert_array_equal(classifier.predict(points), blobs)
    new_points, new_blobs = draw_blobs(CORNERS[:n_clusters], seed=1)
    assert_array_equal(classifier.predict(new_points), new_blobs)
    assert classifier.predict(new_points).dtype == np.int32
    assert_array_equal(classifier.predict(new_points[:1]), new_blobs[:1])


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_classifier_is_independent_of_scale_and_offset(scale):
    points, blobs = draw_blobs(CORNERS)
    classifier = fit_classifier(scale * (points + 50), blobs)
    assert_array_equal(classifier.predict(scale * (points + 50)), blobs)


def test_clusters_of_single_images_raise_no_warning():
    points = 9 * np.eye(30, dtype=np.float32)
    classifier = fit_classifier(points, np.arange(30, dtype=np.int32))
    assert_array_equal(classifier.predict(points), np.arange(30))


def test_tiny_cluster_inside_a_large_one_is_not_lost():
    rng = np.random.default_rng(0)
    points = rng.standard_normal((500, 20)).astype(np.float32)
    labels = np.zeros(500, np.int32)
    labels[7] = 1
    predicted = fit_classifier(points, labels).predict(points)
    assert_array_equal(np.unique(predicted), [0, 1])


def test_inseparable_cluster_is_dropped_and_labels_stay_consecutive():
    points = np.repeat(np.eye(3, dtype=np.float32), 20, axis=0)
    labels = np.repeat([0, 1, 3], 20).astype(np.int32)
    # The rows of cluster 2 equal the rows of cluster 0.
    labels[:3] = 2
    predicted = fit_classifier(points, labels).predict(points)
    assert_array_equal(predicted, np.repeat([0, 1, 2], 20))


def test_names_of_the_kept_labels_are_returned():
    points = np.repeat(np.eye(3, dtype=np.float32), 20, axis=0)
    leaves = np.repeat([0, 1, 3], 20).astype(np.int32)
    leaves[:3] = 2
    assert_array_equal(LinearClassifier.fit(points, leaves)[1], [0, 1, 3])


def fit_halves(points, blobs):
    """Divide each blob into a left and a right leaf."""
    leaves = 2 * blobs + (points[:, 0] % 9 < 4.5)
    return leaves, LinearLeaves.fit(points, blobs, leaves)


def test_leaves_of_clusters():
    points, blobs = draw_blobs(CORNERS)
    leaves, model = fit_halves(points, blobs)
    assert_array_equal(model.parents, np.repeat(np.arange(4), 2))
    predicted = model.predict(points)
    assert_array_equal(model.parents[predicted], blobs)
    assert np.mean(predicted == leaves) > 0.9
    assert_array_equal(model.scores(points).argmax(axis=1), predicted)


def test_leaves_do_not_change_the_cluster_of_an_image():
    """Overlapping blobs: the best leaf of a cluster has the logit of the cluster."""
    points, blobs = draw_blobs(CORNERS, std=4)
    _, model = fit_halves(points, blobs)
    new_points, _ = draw_blobs(CORNERS, seed=1, std=4)
    expected = fit_classifier(points, blobs).predict(new_points)
    assert_array_equal(model.parents[model.predict(new_points)], expected)
    logits = model.cluster_classifier.scores(new_points)
    best = model.scores(new_points).reshape(-1, 4, 2).max(axis=2)
    assert_allclose(best, logits)


def test_leaves_without_an_image_are_dropped():
    points = np.repeat(np.eye(3, dtype=np.float32), 20, axis=0)
    labels = np.repeat([0, 1, 1], 20)
    # The first leaf of cluster 0 and half of the rows of the second are the same rows.
    leaves = np.concatenate([np.arange(20) % 2, np.full(20, 2), np.full(20, 3)])
    model = LinearLeaves.fit(points, labels, leaves)
    assert_array_equal(model.parents, [0, 1, 1])
    assert_array_equal(np.unique(model.predict(points)), np.arange(3))


def test_the_nearest_center_has_the_best_score():
    points, _ = draw_blobs(CORNERS)
    projection = fit_projection(points, None, whiten=False, normalize=False)
    nearest = NearestLeaves(projection, projection(np.array(CORNERS, np.float32)))
    assert_array_equal(nearest.scores(points).argmax(axis=1), nearest.predict(points))
    distances = np.square(points[:, None] - np.array(CORNERS)).sum(axis=2)
    assert_allclose(nearest.scores(points), -distances, rtol=1e-3, atol=1e-3)
