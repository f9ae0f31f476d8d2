"""Policies for empty clusters: which clusters remain, and which warnings are raised."""

import warnings

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.exceptions import ConvergenceWarning

from skdeepcluster._clustering import empty_clusters as empty_clusters_module
from skdeepcluster._clustering.empty_clusters import (
    EmptyClusterPolicy,
    scale_to_unit_length,
)
from skdeepcluster._clustering.kmeans import KMeansOptions, kmeans
from skdeepcluster._clustering.nearest_centers import assign
from skdeepcluster._utils.distributed import Sharded

# Many rows repeat. Distances between small integers are exact in float32.
repeated_points = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 40), st.integers(1, 3)),
    elements=st.integers(-2, 2).map(float),
)


def repair(points, centers, name, spherical=False, seed=0):
    """Return centers, labels and distances after the policy's repair."""

    def nearest(centers):
        return assign(points, centers, spherical=spherical)

    policy = EmptyClusterPolicy(
        points=Sharded.whole(points),
        name=name,
        spherical=spherical,
        rng=np.random.default_rng(seed),
    )
    labels, distances = nearest(centers)
    return policy.repair(centers, labels, distances, nearest)


@pytest.mark.parametrize("backend", ["faiss", "torch"])
@pytest.mark.parametrize("name", ["split", "farthest"])
@settings(max_examples=60)
@given(points=repeated_points, data=st.data())
@example(points=np.zeros((25, 2), np.float32), data=None)
def test_kmeans_leaves_no_cluster_empty(name, backend, points, data):
    n_clusters = data.draw(st.integers(1, len(points))) if data else 8
    init = data.draw(st.sampled_from(["k-means++", "random"])) if data else "random"
    n_distinct = len(np.unique(points + 0, axis=0))
    options = KMeansOptions(init=init, empty_clusters=name, backend=backend)
    result = kmeans(Sharded.whole(points), n_clusters, options, seed=3)
    assert len(result.centers) == min(n_clusters, n_distinct)
    assert_array_equal(np.unique(result.labels), np.arange(len(result.centers)))
    assert_array_equal(
        result.labels, assign(points, result.centers, backend=backend)[0]
    )


@pytest.mark.parametrize("name", ["split", "farthest", "drop"])
@settings(max_examples=60)
@given(
    points=repeated_points,
    n_clusters=st.integers(1, 12),
    spherical=st.booleans(),
    seed=st.integers(0, 9),
)
def test_labels_are_consecutive_and_nearest_centers(
    name, points, n_clusters, spherical, seed
):
    centers = np.random.default_rng(seed).normal(size=(n_clusters, points.shape[1]))
    centers = scale_to_unit_length(centers).astype(np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        repaired, labels, distances = repair(points, centers, name, spherical, seed)
    assert_array_equal(np.unique(labels), np.arange(len(repaired)))
    expected_labels, expected_distances = assign(points, repaired, spherical=spherical)
    assert_array_equal(labels, expected_labels)
    assert_array_equal(distances, expected_distances)
    if name == "drop":
        n_filled = len(np.unique(assign(points, centers, spherical=spherical)[0]))
        assert len(repaired) == n_filled


@settings(max_examples=60)
@given(points=repeated_points, data=st.data())
def test_centers_on_points_leave_no_cluster_empty(points, data):
    """Without re-seedings, the fallback that puts centers on points is used."""
    n_distinct = len(np.unique(points + 0, axis=0))
    n_clusters = data.draw(st.integers(1, n_distinct))
    centers = points[:1].repeat(n_clusters, axis=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(empty_clusters_module, "MAX_RESEEDINGS", 0)
        centers, labels, _ = repair(points, centers, "split")
    assert_array_equal(np.unique(labels), np.arange(n_clusters))
    assert len(centers) == n_clusters


@pytest.mark.parametrize("name", ["split", "farthest"])
@pytest.mark.parametrize("spherical", [False, True])
def test_hundreds_of_empty_clusters_are_filled(name, spherical):
    rng = np.random.default_rng(0)
    points = scale_to_unit_length(rng.normal(size=(3000, 8))).astype(np.float32)
    # All centers are equal, so that 999 clusters are empty.
    centers = np.repeat(points[:1], 1000, axis=0)
    repaired, labels, _ = repair(points, centers, name, spherical)
    assert np.bincount(labels, minlength=1000).min() >= 1
    if spherical:
        assert_allclose(np.linalg.norm(repaired, axis=1), 1, rtol=1e-6)


def test_split_halves_largest_cluster_with_distinct_points():
    rng = np.random.default_rng(0)
    # The largest cluster has a single distinct row, which cannot be split.
    equal_rows = np.zeros((500, 4))
    large = rng.normal(10, 1, size=(200, 4))
    small = rng.normal(-10, 1, size=(50, 4))
    points = np.vstack([equal_rows, large, small]).astype(np.float32)
    centers = np.array([[0] * 4, [10] * 4, [-10] * 4, [99] * 4], dtype=np.float32)
    repaired, labels, _ = repair(points, centers, "split")
    assert_array_equal(np.unique(labels[:500]), [0])
    assert_array_equal(np.unique(labels[700:]), [2])
    halves = np.bincount(labels[500:700], minlength=4)[[1, 3]]
    assert halves.sum() == 200
    assert halves.min() > 40
    # Both centers lie close to the means of their halves.
    for cluster in (1, 3):
        mean = points[labels == cluster].mean(axis=0)
        assert np.linalg.norm(repaired[cluster] - mean) < 0.5


def test_split_moves_coordinates_of_zero():
    """Centers multiplied by 1 ± eps would stay at 0."""
    points = np.array([[-1.0, 0], [1, 0], [0, 1], [0, -1]], dtype=np.float32)
    _, labels, _ = repair(points, np.zeros((2, 2), np.float32), "split")
    assert set(labels) == {0, 1}


def test_farthest_moves_centers_to_farthest_distinct_points():
    points = np.array([[0.0], [1], [7], [7], [9], [-5]], dtype=np.float32)
    centers = np.array([[0.0], [100], [200]], dtype=np.float32)
    repaired, labels, _ = repair(points, centers, "farthest")
    assert_array_equal(repaired.ravel(), [0, 9, 7])
    assert_array_equal(labels, [0, 0, 2, 2, 1, 0])


def test_drop_keeps_filled_clusters():
    points = np.array([[0.0], [1], [9]], dtype=np.float32)
    centers = np.array([[100.0], [0], [-50], [8]], dtype=np.float32)
    repaired, labels, _ = repair(points, centers, "drop")
    assert_array_equal(repaired.ravel(), [0, 8])
    assert_array_equal(labels, [0, 0, 1])


def test_raise_reports_number_of_empty_clusters():
    points = np.array([[0.0], [1]], dtype=np.float32)
    centers = np.array([[0.0], [50], [60]], dtype=np.float32)
    with pytest.raises(
        ValueError, match=r"1 of 2 clusters are empty.*Lower n_clusters"
    ):
        repair(points, centers[:2], "raise")
    repaired, _, _ = repair(points, centers[:1], "raise")
    assert_array_equal(repaired, centers[:1])


def test_each_of_too_few_distinct_points_is_a_cluster():
    points = np.tile(np.eye(3, dtype=np.float32), (10, 1))
    centers, labels, distances = repair(points, points[:8], "split")
    assert_array_equal(np.unique(centers, axis=0), np.unique(points, axis=0))
    assert_array_equal(centers[labels], points)
    assert not distances.any()


def test_negative_zero_equals_zero():
    points = np.array([[0.0], [-0.0], [1]], dtype=np.float32)
    centers, _, _ = repair(points, points, "split")
    assert_array_equal(np.sort(centers, axis=0), [[0], [1]])


@pytest.mark.parametrize("name", ["split", "farthest", "drop", "raise"])
def test_centers_of_filled_clusters_are_unchanged(name):
    points = np.array([[0.0], [1], [9]], dtype=np.float32)
    centers = np.array([[0.25], [8]], dtype=np.float32)
    assert repair(points, centers, name)[0] is centers
