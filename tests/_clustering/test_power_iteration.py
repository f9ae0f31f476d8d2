"""Power iteration clustering."""

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from sklearn.datasets import load_digits, make_blobs
from sklearn.metrics import homogeneity_score

from skdeepcluster._clustering.power_iteration import (
    N_ITERATIONS,
    power_iteration_clusters,
)


def reference_clusters(points):
    """Compute heights by dense matrices, and follow each walk step by step."""
    n = len(points)
    squares = np.square(points[:, None] - points[None], dtype=float).sum(axis=2)
    np.fill_diagonal(squares, np.inf)
    nearest = np.argsort(squares, axis=1, kind="stable")[:, : min(5, n - 1)]
    width = np.median(np.take_along_axis(squares, nearest, axis=1))
    graph = np.zeros((n, n))
    for i, neighbors in enumerate(nearest):
        graph[i, neighbors] = np.exp(-squares[i, neighbors] / width)
    graph = graph + graph.T
    height = np.full(n, 1 / n)
    for _ in range(N_ITERATIONS):
        height = 0.001 * graph @ height + 0.999 / n
        height /= height.sum()
    summits = []
    for start in range(n):
        i = start
        while True:
            rise = graph[i] * (height - height[i])
            if rise.max() <= 0:
                break
            i = int(rise.argmax())
        summits.append(i)
    return np.unique(summits, return_inverse=True)[1]


@pytest.mark.parametrize("seed", range(3))
def test_clusters_are_summits_of_walks(seed):
    points = np.random.default_rng(seed).standard_normal((80, 3)).astype(np.float32)
    assert_array_equal(power_iteration_clusters(points), reference_clusters(points))


def test_clusters_do_not_cross_gaps():
    points, blobs = make_blobs(500, centers=10 * np.eye(4), random_state=0)
    labels = power_iteration_clusters(points.astype(np.float32))
    assert homogeneity_score(blobs, labels) == pytest.approx(1)
    assert 4 <= labels.max() + 1 <= 100


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_clusters_are_independent_of_scale(scale):
    points = load_digits().data[:300].astype(np.float32)
    labels = power_iteration_clusters(points)
    assert_array_equal(power_iteration_clusters(points * np.float32(scale)), labels)


@given(
    hnp.arrays(
        np.float32,
        st.tuples(st.integers(2, 40), st.integers(1, 3)),
        elements=st.integers(-3, 3),
    )
)
def test_labels_are_consecutive(points):
    labels = power_iteration_clusters(points)
    assert labels.dtype == np.int32
    assert_array_equal(np.unique(labels), np.arange(labels.max() + 1))
