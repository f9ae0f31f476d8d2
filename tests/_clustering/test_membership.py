"""Probabilities of clusters, and their calibration."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from skdeepcluster._clustering.leaves import LinearClassifier, LinearLeaves
from skdeepcluster._clustering.membership import Membership, calibrate_temperature

N_FEATURES = 3


def make_model(n_leaves, seed=0, weights=None):
    """Return leaves that are clusters, with random weights."""
    if weights is None:
        weights = np.random.default_rng(seed).normal(size=(N_FEATURES, n_leaves))
    classifier = LinearClassifier(weights, np.zeros(n_leaves))
    return LinearLeaves(classifier, classifier, np.arange(n_leaves, dtype=np.int32))


def draw_features(n=50, seed=1):
    rng = np.random.default_rng(seed)
    # A row of zeros scores all leaves alike.
    return np.vstack([rng.normal(size=(n, N_FEATURES)), np.zeros(N_FEATURES)]).astype(
        np.float32
    )


@given(st.integers(1, 9), st.integers(0, 99), st.floats(1e-3, 1e3))
def test_the_most_probable_cluster_is_that_of_the_best_leaf(
    n_leaves, seed, temperature
):
    model, features = make_model(n_leaves, seed), draw_features()
    rng = np.random.default_rng(seed)
    clusters = np.unique(rng.integers(n_leaves, size=n_leaves), return_inverse=True)[1]
    membership = Membership.predict(model, features, temperature)
    assert_array_equal(membership.leaves, model.predict(features))
    probabilities = membership.cluster_probabilities(clusters)
    assert probabilities.dtype == np.float32
    assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)
    labels = clusters[model.predict(features)]
    assert_array_equal(probabilities.argmax(axis=1), labels)


def test_probabilities_are_a_softmax_at_the_temperature():
    model, features = make_model(4), draw_features()
    membership = Membership.predict(model, features, 2.0)
    scores = np.exp(model.scores(features) / 2.0)
    expected = scores / scores.sum(axis=1, keepdims=True)
    assert_allclose(membership.cluster_probabilities(np.arange(4)), expected, atol=2e-3)


def test_improbable_leaves_take_no_memory():
    model, features = make_model(500), draw_features()
    membership = Membership.predict(model, features[:-1], 1e-2)
    assert membership.probabilities.nnz < 5 * len(features)


@pytest.mark.parametrize("noise", [0.3, 1.0, 3.0])
def test_calibrated_probabilities_match_the_frequency_of_hits(noise):
    """A changed image keeps its cluster as often as its probability says."""
    model = make_model(3, weights=5 * np.eye(3))
    rng = np.random.default_rng(0)
    features = rng.normal(size=(4000, 3)).astype(np.float32)
    changed = features + rng.normal(scale=noise, size=features.shape)
    changed = changed.astype(np.float32)
    clusters, leaves = np.arange(3), model.predict(features)
    temperature = calibrate_temperature(model.scores(changed), leaves)
    membership = Membership.predict(model, changed, temperature)
    probabilities = membership.cluster_probabilities(clusters)
    hits = probabilities.argmax(axis=1) == leaves
    assert abs(probabilities.max(axis=1).mean() - hits.mean()) < 0.03
