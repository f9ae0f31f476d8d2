"""Sizes, sums and means of clusters."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from skdeepcluster._clustering.sums import (
    cluster_means,
    cluster_sizes,
    cluster_sums,
    divide_sums,
)

POINTS = np.arange(12, dtype=np.float32).reshape(6, 2)
# No point belongs to cluster 1.
LABELS = np.array([0, 2, 0, 2, 2, 0], dtype=np.int32)


def test_cluster_sizes_count_points():
    assert_array_equal(cluster_sizes(LABELS, 4), [3, 0, 3, 0])


def test_cluster_sums_add_up_points():
    sums = cluster_sums(POINTS, LABELS, 3)
    assert sums.dtype == np.float64
    assert_array_equal(sums, [[14, 17], [0, 0], [16, 19]])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_divide_sums_keeps_centers_of_empty_clusters(dtype):
    sums, centers = np.array([[6.0, 9.0], [0.0, 0.0]]), np.full((2, 2), 7, dtype)
    means = divide_sums(sums, np.array([3, 0]), centers)
    assert means.dtype == dtype
    assert_array_equal(means, [[2, 3], [7, 7]])


def test_cluster_means_are_means_of_points():
    centers = np.full((3, 2), 7, dtype=np.float32)
    means = cluster_means(POINTS, LABELS, centers)
    assert means.dtype == np.float32
    assert_array_equal(means[0], POINTS[LABELS == 0].mean(axis=0))
    assert_array_equal(means[1], [7, 7])
    assert_array_equal(means[2], POINTS[LABELS == 2].mean(axis=0))


def test_mean_of_large_cluster_does_not_drift():
    points = np.full((300_000, 1), 0.1, dtype=np.float32)
    labels = np.zeros(len(points), dtype=np.int32)
    mean = cluster_means(points, labels, points[:1])
    # The error of a single sum in float32 is 1e-2.
    assert_allclose(mean, 0.1, rtol=1e-4)
