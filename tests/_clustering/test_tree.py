"""The merge tree: its form, its cuts and the trees of clusters."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from scipy.cluster.hierarchy import fcluster, is_valid_linkage
from sklearn.cluster import AgglomerativeClustering
from sklearn.metrics import adjusted_rand_score

from skdeepcluster._clustering.tree import MergeTree, build_tree


def draw_tree(n_leaves, n_clusters, seed=0):
    """Return a tree over random leaves that complete given clusters first."""
    rng = np.random.default_rng(seed)
    # Each cluster has a leaf.
    extra = rng.integers(n_clusters, size=n_leaves - n_clusters)
    clusters = np.sort(np.concatenate([np.arange(n_clusters), extra]))
    return build_tree(rng.normal(size=(n_leaves, 3)), clusters), clusters


sizes = st.integers(1, 12).flatmap(
    lambda n: st.tuples(st.just(n), st.integers(1, n), st.integers(0, 99))
)


@given(sizes)
def test_every_cut_has_its_number_of_clusters_and_refines_the_next(size):
    n_leaves, n_clusters, seed = size
    tree, clusters = draw_tree(n_leaves, n_clusters, seed)
    assert tree.n_leaves == n_leaves
    assert_array_equal(tree.cut(n_clusters), clusters)
    for k in range(1, n_leaves + 1):
        cut = tree.cut(k)
        assert_array_equal(np.unique(cut), np.arange(k))
        if k > 1:
            coarser = tree.cut(k - 1)
            assert len(np.unique(np.stack([cut, coarser]), axis=1).T) == k


@given(sizes)
def test_tree_is_a_linkage_of_scipy(size):
    tree, _ = draw_tree(*size)
    assert (np.diff(tree.distances) > 0).all()
    if tree.n_leaves == 1:
        return
    counts = np.arange(2, tree.n_leaves + 1)
    matrix = np.column_stack([tree.children, tree.distances, counts]).astype(float)
    assert is_valid_linkage(matrix)
    for k in range(1, tree.n_leaves + 1):
        expected = fcluster(matrix, k, "maxclust")
        assert adjusted_rand_score(expected, tree.cut(k)) == 1


def test_without_given_clusters_the_linkage_is_that_of_scikit_learn():
    means = np.random.default_rng(0).normal(size=(30, 4))
    tree = build_tree(means, np.zeros(30, int))
    model = AgglomerativeClustering(None, linkage="average", distance_threshold=0)
    model.fit(means)
    assert_array_equal(tree.children, model.children_)
    np.testing.assert_allclose(tree.distances, model.distances_)


def test_cut_of_some_leaves_skips_merges_with_others():
    # Leaves at 0, 1, 10, 11 and 30.
    means = np.array([[0.0], [1.0], [10.0], [11.5], [30.0]])
    tree = build_tree(means, np.zeros(5, int))
    assert_array_equal(tree.cut(2, np.array([0, 1, 4])), [0, 0, 1])
    assert_array_equal(tree.cut(2, np.array([1, 2, 3])), [0, 1, 1])
    assert_array_equal(tree.cut(3, np.array([1, 2, 3])), [0, 1, 2])
    assert_array_equal(tree.cut(1, np.array([1, 4])), [0, 0])


@pytest.mark.parametrize(
    ("threshold", "expected"), [(0, 5), (1, 5), (1.1, 4), (2, 3), (11, 2), (99, 1)]
)
def test_number_of_clusters_at_a_distance(threshold, expected):
    means = np.array([[0.0], [1.0], [10.0], [11.5], [30.0]])
    tree = build_tree(means, np.zeros(5, int))
    assert tree.count_clusters(threshold) == expected
    model = AgglomerativeClustering(
        None, linkage="average", distance_threshold=threshold
    )
    assert model.fit(means).n_clusters_ == expected


def test_tree_of_one_leaf():
    tree = build_tree(np.zeros((1, 2)), np.zeros(1, int))
    assert isinstance(tree, MergeTree)
    assert tree.children.shape == (0, 2)
    assert_array_equal(tree.cut(1), [0])
    assert tree.count_clusters(0.0) == 1
