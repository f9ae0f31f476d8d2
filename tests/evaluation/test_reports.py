"""Tables that compare clusters with classes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from skdeepcluster.evaluation import cluster_report, cluster_table
from skdeepcluster.metrics import clustering_accuracy, purity

CLASSES = ["a", "a", "b", "b", "c", "c", "c"]
LABELS = [0, 0, 0, 1, 2, 2, -1]


def column(table, name):
    return [row[name] for row in table]


def test_cluster_report():
    report = cluster_report(CLASSES, LABELS)
    assert (report["n_images"], report["n_clusters"]) == (6, 3)
    assert (report["largest"], report["median"], report["smallest"]) == (3, 2, 1)
    assert report["accuracy"] == report["purity"] == pytest.approx(5 / 6)
    assert 0 < report["ari"] < report["nmi"] < 1


def test_cluster_table():
    table = cluster_table(CLASSES, LABELS)
    assert column(table, "cluster") == [0, 1, 2]
    assert column(table, "size") == [3, 1, 2]
    assert column(table, "most_frequent") == ["a", "b", "c"]
    assert_allclose(column(table, "purity"), [2 / 3, 1, 1])


# Pairs of classes and labels of equal length.
labelings = st.integers(1, 30).flatmap(
    lambda n: st.tuples(
        *[st.lists(st.integers(0, 4), min_size=n, max_size=n) for _ in range(2)]
    )
)


@given(labelings)
def test_purity_agrees_in_metrics_report_and_table(labeling):
    y, labels = map(np.array, labeling)
    value = purity(y, labels)
    sizes = [np.bincount(y[labels == c]).max() for c in np.unique(labels)]
    assert value == pytest.approx(sum(sizes) / len(y))
    assert clustering_accuracy(y, labels) <= value + 1e-12
    table = cluster_table(y, labels)
    weighted = sum(row["size"] * row["purity"] for row in table) / len(y)
    assert weighted == pytest.approx(value)
    assert cluster_report(y, labels)["purity"] == value
    assert purity(y, y) == 1


@pytest.mark.parametrize("function", [cluster_report, cluster_table])
def test_wrong_labels(function):
    with pytest.raises(ValueError, match=r"y_true has shape \(2,\), but labels has"):
        function([0, 1], [0])
    with pytest.raises(ValueError, match="no image with a cluster"):
        function([0, 1], [-1, -1])
