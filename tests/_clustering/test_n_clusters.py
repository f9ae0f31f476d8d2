"""The number of clusters that the merge tree supports."""

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from skdeepcluster._clustering.n_clusters import score_cuts
from skdeepcluster._clustering.tree import build_tree

N_PER_LEAF = 40


def draw_pairs(n_clusters, n_leaves_each, confusion, seed=0):
    """Return a tree over leaves of clusters, and leaves of similar images.

    Leaves of the same cluster are confused with probability `confusion`.
    """
    rng = np.random.default_rng(seed)
    clusters = np.repeat(np.arange(n_clusters), n_leaves_each)
    # Diffusion maps put clusters that are not confused at equal distances.
    corners = 10 * np.eye(n_clusters)
    means = corners[clusters] + rng.normal(size=(len(clusters), n_clusters))
    leaves = np.repeat(np.arange(len(clusters)), N_PER_LEAF)
    other = clusters[leaves] * n_leaves_each + rng.integers(
        n_leaves_each, size=len(leaves)
    )
    is_confused = rng.random(len(leaves)) < confusion
    tree = build_tree(means, np.zeros(len(clusters), int))
    return tree, [(leaves, np.where(is_confused, other, leaves))]


@pytest.mark.parametrize("n_clusters", [2, 3, 5, 9])
@pytest.mark.parametrize("confusion", [0.5, 0.9])
@pytest.mark.parametrize("compares_gaps", [False, True])
def test_clusters_whose_leaves_are_confused_are_found(
    n_clusters, confusion, compares_gaps
):
    tree, pairs = draw_pairs(n_clusters, 4, confusion)
    assert score_cuts(tree, pairs, compares_gaps).best == n_clusters


def test_gaps_show_clusters_that_have_a_stable_inner_structure():
    tree, pairs = draw_pairs(4, 3, 0.0)
    assert score_cuts(tree, pairs, compares_gaps=False).best > 8
    assert score_cuts(tree, pairs, compares_gaps=True).best == 4


def test_curve_has_a_point_for_each_cut():
    tree, pairs = draw_pairs(3, 4, 0.9)
    scores = score_cuts(tree, pairs, compares_gaps=True)
    assert_array_equal(scores.n_clusters, np.arange(2, 13))
    assert scores.scores.shape == scores.gaps.shape == (11,)
    assert scores.n_clusters[scores.gaps.argmax()] in (2, 3)


def test_unrelated_leaves_are_one_cluster():
    tree, _ = draw_pairs(1, 6, 0)
    rng = np.random.default_rng(0)
    leaves = np.arange(6)
    pairs = [(leaves, rng.permutation(leaves))]
    assert score_cuts(tree, pairs, compares_gaps=True).best == 1


def test_one_leaf_is_one_cluster():
    tree = build_tree(np.zeros((1, 2)), np.zeros(1, int))
    pairs = [(np.zeros(9, int), np.zeros(9, int))]
    scores = score_cuts(tree, pairs, compares_gaps=True)
    assert scores.best == 1
    assert len(scores.scores) == 0
