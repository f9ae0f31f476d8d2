"""Metrics of clusterings equal their definitions."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import entropy
from sklearn.metrics import adjusted_mutual_info_score
from sklearn.metrics.cluster import contingency_matrix, expected_mutual_information

from skdeepcluster import DeepClusterEstimator
from skdeepcluster.metrics import clustering_accuracy, reproduced_information

LABELS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4)), min_size=1)


def brute_force_accuracy(y_true, y_pred):
    """Return the best accuracy over all matches of 5 clusters with 5 classes."""
    matches = itertools.permutations(range(5))
    return max(np.mean(np.take(match, y_pred) == y_true) for match in matches)


@given(LABELS)
def test_accuracy_equals_the_best_of_all_matches(labels):
    y_true, y_pred = np.array(labels).T
    expected = brute_force_accuracy(y_true, y_pred)
    assert clustering_accuracy(y_true, y_pred) == pytest.approx(expected)
    assert clustering_accuracy(y_pred, y_true) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("y_true", "y_pred", "expected"),
    [
        (["a", "b", "c"], [7, -2, 100], 1.0),
        ([0, 0, 0, 0], [0, 1, 2, 3], 0.25),
        ([0, 1, 2, 3], [0, 0, 0, 0], 0.25),
        ([0, 0, 0, 1, 1], [5, 5, 5, 5, 5], 0.6),
        ([1], ["x"], 1.0),
    ],
)
def test_accuracy_of_examples(y_true, y_pred, expected):
    accuracy = clustering_accuracy(y_true, y_pred)
    assert type(accuracy) is float
    assert accuracy == pytest.approx(expected)


@given(LABELS)
def test_information_is_symmetric_bounded_and_zero_for_a_single_cluster(labels):
    first, second = np.array(labels).T
    information = reproduced_information(first, second)
    assert type(information) is float
    assert 0 <= information < 1
    assert information == pytest.approx(reproduced_information(second, first), abs=1e-9)
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        assert information == 0


@given(LABELS)
def test_information_has_the_numerator_of_adjusted_mutual_information(labels):
    first, second = np.array(labels).T
    mean = np.mean([entropy(np.bincount(x)) for x in (first, second)])
    table = contingency_matrix(first, second)
    chance = expected_mutual_information(table, len(first))
    adjusted = adjusted_mutual_info_score(first, second) * (mean - chance)
    if mean - chance > 1e-9:
        expected = max(0, adjusted) / (mean + 1)
        information = reproduced_information(first, second)
        assert information == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("k", [2, 10, 100])
def test_information_of_equal_clusterings_follows_from_their_entropy(k):
    labels = np.arange(2000 * k) % k
    expected = np.log(k) / (np.log(k) + 1)
    assert reproduced_information(labels, -labels) == pytest.approx(expected, abs=0.02)


def test_information_is_about_zero_by_chance():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 6, 2000)
    assert reproduced_information(labels, rng.permutation(labels)) < 0.01


def test_information_falls_if_clusters_are_merged_or_split_at_random():
    rng = np.random.default_rng(0)
    classes = np.arange(2000) % 10
    correct, merged = (reproduced_information(x, x) for x in (classes, classes // 2))
    split = reproduced_information(
        classes + 10 * rng.integers(0, 2, 2000), classes + 10 * rng.integers(0, 2, 2000)
    )
    assert correct > 1.1 * merged
    assert correct > 1.1 * split


@pytest.mark.parametrize(
    "labels", [[0, 1], [[0], [1], [1]], DeepClusterEstimator(), [], 1]
)
def test_labels_of_other_samples_are_refused(labels):
    with pytest.raises(ValueError, match=r"y_true and y_pred have .*model.labels_"):
        clustering_accuracy([0, 1, 1], labels)
    with pytest.raises(ValueError, match=r"labels and other_labels have shapes"):
        reproduced_information(labels, [0, 1, 1])
