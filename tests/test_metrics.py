"""Clustering accuracy and agreement against their definitions."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import adjusted_mutual_info_score

from skdeepcluster.metrics import adjusted_agreement, clustering_accuracy

LABELS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4)), min_size=1)


def brute_force_accuracy(y_true, y_pred):
    """Best share over every one-to-one naming of 5 clusters by 5 classes."""
    namings = itertools.permutations(range(5))
    return max(np.mean(np.take(naming, y_pred) == y_true) for naming in namings)


@given(LABELS)
def test_accuracy_equals_the_best_of_all_namings(labels):
    y_true, y_pred = np.array(labels).T
    expected = brute_force_accuracy(y_true, y_pred)
    assert clustering_accuracy(y_true, y_pred) == pytest.approx(expected)
    assert clustering_accuracy(y_pred, y_true) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("y_true", "y_pred", "expected"),
    [
        (["a", "b", "c"], [7, -2, 100], 1.0),
        ([0, 0, 0, 0], [0, 1, 2, 3], 0.25),  # a class is matched to one cluster
        ([0, 1, 2, 3], [0, 0, 0, 0], 0.25),
        ([0, 0, 0, 1, 1], [5, 5, 5, 5, 5], 0.6),
        ([1], ["x"], 1.0),
    ],
)
def test_accuracy_of_known_cases(y_true, y_pred, expected):
    accuracy = clustering_accuracy(y_true, y_pred)
    assert type(accuracy) is float
    assert accuracy == pytest.approx(expected)


@given(LABELS)
def test_agreement_is_symmetric_and_zero_for_a_single_cluster(labels):
    one, other = np.array(labels).T
    agreement = adjusted_agreement(one, other)
    assert type(agreement) is float
    assert agreement == pytest.approx(adjusted_agreement(other, one))
    if np.ptp(one) == 0 or np.ptp(other) == 0:
        assert agreement == 0
    else:
        assert agreement == pytest.approx(adjusted_mutual_info_score(one, other))


def test_agreement_is_one_up_to_names_and_about_zero_by_chance():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 6, 2000)
    assert adjusted_agreement(labels, 5 - labels) == pytest.approx(1)
    shuffled = rng.permutation(labels)
    assert adjusted_agreement(labels, shuffled) == pytest.approx(0, abs=0.01)
