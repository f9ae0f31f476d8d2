"""No cluster is left without a point, or it is said why."""

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
    EmptyClusters,
    cluster_means,
    scale_to_unit_length,
)
from skdeepcluster._clustering.kmeans import assign, kmeans

# Few distinct rows, many repeated, with all distances exact in float32.
grids = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 40), st.integers(1, 3)),
    elements=st.integers(-2, 2).map(float),
)


def repair(points, centers, policy, spherical=False, seed=0):
    def nearest(centers):
        return assign(points, centers, spherical=spherical)

    rng = np.random.default_rng(seed)
    bound = EmptyClusters(points, policy, spherical, rng)
    return bound.repair(centers, *nearest(centers), nearest)


@pytest.mark.parametrize("backend", ["faiss", "torch"])
@pytest.mark.parametrize("policy", ["split", "farthest"])
@settings(max_examples=60)
@given(points=grids, data=st.data())
@example(points=np.zeros((25, 2), np.float32), data=None)
def test_no_cluster_is_empty_with_k_distinct_rows(policy, backend, points, data):
    k = data.draw(st.integers(1, len(points))) if data else 8
    init = data.draw(st.sampled_from(["k-means++", "random"])) if data else "random"
    n_distinct = len(np.unique(points + 0, axis=0))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = kmeans(
            points, k, init=init, seed=3, empty_clusters=policy, backend=backend
        )
    assert len(result.centers) == min(k, n_distinct)
    assert_array_equal(np.unique(result.labels), np.arange(len(result.centers)))
    assert_array_equal(
        result.labels, assign(points, result.centers, backend=backend)[0]
    )
    assert [w.category for w in caught] == [ConvergenceWarning] * (k > n_distinct)


@pytest.mark.parametrize("policy", ["split", "farthest", "drop"])
@settings(max_examples=60)
@given(
    points=grids, k=st.integers(1, 12), spherical=st.booleans(), seed=st.integers(0, 9)
)
def test_labels_are_consecutive_and_those_of_the_centers(
    policy, points, k, spherical, seed
):
    centers = np.random.default_rng(seed).normal(size=(k, points.shape[1]))
    centers = scale_to_unit_length(centers).astype(np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        found, labels, distances = repair(points, centers, policy, spherical, seed)
    assert_array_equal(np.unique(labels), np.arange(len(found)))
    expected = assign(points, found, spherical=spherical)
    assert_array_equal(labels, expected[0])
    assert_array_equal(distances, expected[1])
    if policy == "drop":
        n_used = len(np.unique(assign(points, centers, spherical=spherical)[0]))
        assert len(found) == n_used


@settings(max_examples=60)
@given(points=grids, data=st.data())
def test_the_last_resort_alone_leaves_no_cluster_empty(points, data):
    k = data.draw(st.integers(1, len(np.unique(points + 0, axis=0))))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(empty_clusters_module, "MAX_ROUNDS", 0)
        centers, labels, _ = repair(points, points[:1].repeat(k, axis=0), "split")
    assert_array_equal(np.unique(labels), np.arange(k))
    assert len(centers) == k


@pytest.mark.parametrize("policy", ["split", "farthest"])
@pytest.mark.parametrize("spherical", [False, True])
def test_hundreds_of_empty_clusters(policy, spherical):
    rng = np.random.default_rng(0)
    points = scale_to_unit_length(rng.normal(size=(3000, 8))).astype(np.float32)
    centers = np.repeat(points[:1], 1000, axis=0)  # 999 of them are empty
    found, labels, _ = repair(points, centers, policy, spherical)
    assert np.bincount(labels, minlength=1000).min() >= 1
    if spherical:
        assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-6)


def test_split_halves_the_largest_cluster_that_can_be_split():
    rng = np.random.default_rng(0)
    same = np.zeros((500, 4))  # the largest, and only one distinct row
    wide = rng.normal(10, 1, size=(200, 4))
    small = rng.normal(-10, 1, size=(50, 4))
    points = np.vstack([same, wide, small]).astype(np.float32)
    centers = np.array([[0] * 4, [10] * 4, [-10] * 4, [99] * 4], dtype=np.float32)
    found, labels, _ = repair(points, centers, "split")
    assert_array_equal(np.unique(labels[:500]), [0])
    assert_array_equal(np.unique(labels[700:]), [2])
    share = np.bincount(labels[500:700], minlength=4)[[1, 3]]
    assert share.sum() == 200
    assert share.min() > 40
    for cluster in (1, 3):  # both centers went to about the means of their shares
        mean = points[labels == cluster].mean(axis=0)
        assert np.linalg.norm(found[cluster] - mean) < 0.5


def test_split_moves_zero_coordinates():
    # Centroids scaled by 1 ± eps would stay at 0 here, for ever.
    points = np.array([[-1.0, 0], [1, 0], [0, 1], [0, -1]], dtype=np.float32)
    _, labels, _ = repair(points, np.zeros((2, 2), np.float32), "split")
    assert set(labels) == {0, 1}


def test_farthest_takes_the_worst_explained_distinct_points():
    points = np.array([[0.0], [1], [7], [7], [9], [-5]], dtype=np.float32)
    centers = np.array([[0.0], [100], [200]], dtype=np.float32)
    found, labels, _ = repair(points, centers, "farthest")
    assert_array_equal(found.ravel(), [0, 9, 7])
    assert_array_equal(labels, [0, 0, 2, 2, 1, 0])


def test_drop_keeps_the_others():
    points = np.array([[0.0], [1], [9]], dtype=np.float32)
    centers = np.array([[100.0], [0], [-50], [8]], dtype=np.float32)
    found, labels, _ = repair(points, centers, "drop")
    assert_array_equal(found.ravel(), [0, 8])
    assert_array_equal(labels, [0, 0, 1])


def test_raise_counts_and_says_what_to_do():
    points = np.array([[0.0], [1]], dtype=np.float32)
    centers = np.array([[0.0], [50], [60]], dtype=np.float32)
    with pytest.raises(
        ValueError, match=r"1 of 2 clusters are empty.*Lower n_clusters"
    ):
        repair(points, centers[:2], "raise")
    found, _, _ = repair(points, centers[:1], "raise")
    assert_array_equal(found, centers[:1])


def test_too_few_distinct_points_warn():
    points = np.tile(np.eye(3, dtype=np.float32), (10, 1))
    expected = (
        r"distinct points \(3\) is smaller than n_clusters \(8\).*Lower n_clusters"
    )
    with pytest.warns(ConvergenceWarning, match=expected):
        centers, labels, distances = repair(points, points[:8], "split")
    assert_array_equal(np.unique(centers, axis=0), np.unique(points, axis=0))
    assert_array_equal(centers[labels], points)
    assert not distances.any()


def test_minus_zero_is_zero():
    points = np.array([[0.0], [-0.0], [1]], dtype=np.float32)
    with pytest.warns(ConvergenceWarning, match=r"points \(2\)"):
        repair(points, points, "split")


def test_centers_without_empty_clusters_stay():
    points = np.array([[0.0], [1], [9]], dtype=np.float32)
    centers = np.array([[0.25], [8]], dtype=np.float32)
    for policy in ("split", "farthest", "drop", "raise"):
        assert repair(points, centers, policy)[0] is centers


def test_cluster_means():
    points = np.arange(12, dtype=np.float32).reshape(6, 2)
    centers = np.full((3, 2), 7, dtype=np.float32)
    labels = np.array([0, 2, 0, 2, 2, 0], dtype=np.int32)
    means = cluster_means(points, labels, centers)
    assert means.dtype == np.float32
    assert_array_equal(means[0], points[labels == 0].mean(axis=0))
    assert_array_equal(means[1], [7, 7])  # empty: as it was
    assert_array_equal(means[2], points[labels == 2].mean(axis=0))


def test_means_of_a_large_cluster_do_not_drift():
    points = np.full((300_000, 1), 0.1, dtype=np.float32)
    labels = np.zeros(len(points), dtype=np.int32)
    mean = cluster_means(points, labels, points[:1])
    assert_allclose(mean, 0.1, rtol=1e-4)  # one float32 sum: 1e-2
