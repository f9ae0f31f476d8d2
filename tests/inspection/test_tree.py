"""Display of the merge tree."""

import itertools
from collections import Counter

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from skdeepcluster._clustering.tree import MergeTree
from skdeepcluster._plot.drawing import COLORS, GRAY
from skdeepcluster.inspection import TreeDisplay
from skdeepcluster.inspection._plot.tree import _keep_top

to_hex = pytest.importorskip("matplotlib.colors").to_hex

pytestmark = [
    pytest.mark.usefixtures("pyplot"),
    # Quick fits may not converge.
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
]


@pytest.fixture(scope="module")
def tree():
    """Tree of 6 leaves: ((0, 3), (1, 4)), (2, 5)."""
    children = np.array([[0, 3], [1, 4], [2, 5], [6, 7], [9, 8]])
    return MergeTree(children, np.array([0.1, 0.2, 0.3, 0.5, 1.0]))


@pytest.fixture(scope="module")
def drawn(model, images):
    """Display of the estimator with 5 clusters."""
    return TreeDisplay.from_estimator(model, images, n_images=3, size=8)


def display_of(tree, clusters):
    thumbnails = np.zeros((tree.n_leaves, 2, 4, 4, 3), np.uint8)
    return TreeDisplay(
        tree.children,
        tree.distances,
        thumbnails=list(thumbnails),
        sizes=[10 * (leaf + 1) for leaf in range(tree.n_leaves)],
        clusters=clusters,
        labels=[f"name {cluster}" for cluster in clusters],
    )


def row_labels(display):
    return [text.get_text() for text in display.ax_.get_yticklabels()]


def branch_colors(display):
    (branches,) = display.ax_.collections
    return Counter(to_hex(color).upper() for color in branches.get_colors())


def test_tree_of_an_estimator(drawn, model):
    assert_array_equal(drawn.children, model.children_)
    assert_array_equal(drawn.distances, model.distances_)
    assert_array_equal(drawn.sizes, np.bincount(model.leaf_labels_))
    leaves = [np.flatnonzero(model.leaf_labels_ == i) for i in range(len(drawn.sizes))]
    assert drawn.clusters == [model.labels_[rows[0]] for rows in leaves]
    assert drawn.labels == [str(cluster) for cluster in drawn.clusters]
    assert sorted(drawn.order_) == list(range(len(drawn.sizes)))
    # The clusters of a fit are a cut of its tree, so each has one label.
    sizes = np.bincount(model.labels_)
    expected = [f"{cluster}  ({size})" for cluster, size in enumerate(sizes)]
    assert sorted(row_labels(drawn)) == expected


def test_images_of_a_leaf_are_nearest_to_its_center(drawn, model, images):
    embedding = model.transform(images)
    for leaf, thumbnails in enumerate(drawn.thumbnails):
        rows = np.flatnonzero(model.leaf_labels_ == leaf)
        offsets = embedding[rows] - embedding[rows].mean(axis=0)
        nearest = rows[np.argsort(np.linalg.norm(offsets, axis=1))[:3]]
        assert_array_equal(thumbnails[..., 0], images[nearest])


def test_leaves_are_in_the_order_of_the_tree(tree):
    display = display_of(tree, clusters=[0, 0, 1, 0, 0, 1]).plot()
    assert_array_equal(display.order_, [0, 3, 1, 4, 2, 5])
    assert row_labels(display) == ["name 0  (120)", "name 1  (90)"]
    step = 4 + 2
    assert_allclose(display.ax_.get_yticks(), [0.5 + 2 * step, 0.5 + 5 * step])


def test_branches_have_the_color_of_their_cluster(tree):
    display = display_of(tree, clusters=[0, 0, 1, 0, 0, 1]).plot()
    # Each merge is one line, and each of its children another one.
    assert branch_colors(display) == {COLORS[0]: 3 + 7, COLORS[1]: 1 + 3, GRAY: 1}
    lines = [to_hex(line.get_color()).upper() for line in display.ax_.lines]
    assert lines == COLORS[:2]


def test_merges_are_at_their_distance(tree):
    display = display_of(tree, clusters=[0] * 6).plot()
    positions = {
        float(segment[:, 0].min())
        for segment in display.ax_.collections[0].get_segments()
    }
    scale = display.ax_.get_xticks()[-1] / float(
        display.ax_.get_xticklabels()[-1].get_text()
    )
    assert_allclose(sorted(positions), scale * tree.distances[::-1])


def test_cluster_that_was_merged_across_the_tree(tree):
    display = display_of(tree, clusters=[0, 1, 0, 0, 1, 0]).plot()
    assert row_labels(display) == ["name 0  (50)", "name 1  (70)", "name 0  (90)"]
    assert branch_colors(display)[GRAY] == 1 + 2
    lines = [to_hex(line.get_color()).upper() for line in display.ax_.lines]
    assert lines == [COLORS[0], COLORS[1], COLORS[0]]


def test_neighboring_clusters_differ_in_color():
    n = 20
    children = [(0, 1), *((n + i, i + 2) for i in range(n - 2))]
    tree = MergeTree(np.array(children), np.arange(n - 1.0))
    display = display_of(tree, clusters=list(range(n))).plot()
    colors = [line.get_color() for line in display.ax_.lines]
    assert all(a != b for a, b in itertools.pairwise(colors))


@pytest.mark.parametrize("n_leaves", [1, 2, 3, 6, 7])
def test_top_of_a_tree(tree, n_leaves):
    top, rows = _keep_top(tree, n_leaves)
    n_leaves = min(n_leaves, 6)
    assert top.n_leaves == n_leaves
    assert_array_equal(top.distances, tree.distances[6 - n_leaves :])
    clusters = tree.cut(n_leaves)
    assert len(set(zip(clusters.tolist(), rows.tolist(), strict=True))) == n_leaves
    # Each cut of the top is the same cut of the whole tree.
    for n_clusters in range(1, n_leaves + 1):
        pairs = zip(tree.cut(n_clusters), top.cut(n_clusters)[rows], strict=True)
        assert len(set(pairs)) == n_clusters


def test_large_tree_has_rows_of_several_leaves(model, images):
    display = TreeDisplay.from_estimator(model, images, max_leaves=7)
    assert len(display.sizes) == 7
    assert sum(display.sizes) == len(images)
    assert sorted(set(display.clusters)) == [0, 1, 2, 3, 4]
    assert_array_equal(display.distances, model.distances_[-6:])


def test_row_of_several_clusters_is_gray(model, images):
    display = TreeDisplay.from_estimator(model, images, max_leaves=2)
    assert -1 in display.clusters
    row = display.clusters.index(-1)
    first, n_others = display.labels[row].replace(" more", "").split(" and ")
    n_clusters = int(n_others) + 1 + (min(display.clusters) == max(display.clusters))
    assert first in "01234"
    assert n_clusters in (2, 3, 4)
    assert GRAY in branch_colors(display)


def test_names_of_clusters(model, images):
    named = model.name_clusters({0: "round shapes", 2: "$1"})
    display = TreeDisplay.from_estimator(named, images)
    sizes = np.bincount(named.labels_)
    assert f"0: round shapes  ({sizes[0]})" in row_labels(display)
    assert f"2: $1  ({sizes[2]})" in row_labels(display)
    display.figure_.draw_without_rendering()


def test_tree_after_edits(model, images):
    # The two clusters that the tree merges last lie on its two sides.
    two = model.cut(2)
    first, second = (model.labels_[two.labels_ == i][0] for i in range(2))
    merged = model.merge_clusters([[int(first), int(second)]])
    display = TreeDisplay.from_estimator(merged, images)
    assert_array_equal(display.children, model.children_)
    assert sorted(set(display.clusters)) == [0, 1, 2, 3]
    single = TreeDisplay.from_estimator(model.cut(1), images)
    assert row_labels(single) == [f"0  ({len(images)})"]
    assert GRAY not in branch_colors(single)


def test_single_leaf():
    tree = MergeTree(np.empty((0, 2), np.int64), np.empty(0))
    display = display_of(tree, clusters=[0]).plot()
    assert not display.ax_.collections
    assert row_labels(display) == ["name 0  (10)"]


def test_equal_leaves():
    tree = MergeTree(np.array([[0, 1]]), np.zeros(1))
    display = display_of(tree, clusters=[0, 1]).plot()
    display.figure_.draw_without_rendering()


def test_few_images(model, images):
    display = TreeDisplay.from_estimator(model, images[:2])
    assert sum(display.sizes) == 2
    assert len(display.sizes) == len(model.children_) + 1


def test_broken_files(skipping_model, broken_folder):
    with pytest.warns(UserWarning, match="1 of 30 images cannot be read"):
        display = TreeDisplay.from_estimator(skipping_model, broken_folder)
    assert sum(display.sizes) == 29


def test_estimator_is_not_changed(model, images):
    labels, centers = model.labels_.copy(), model.cluster_centers_.copy()
    TreeDisplay.from_estimator(model, images, max_leaves=3)
    assert_array_equal(model.labels_, labels)
    assert_array_equal(model.predict(images), labels)
    assert_array_equal(model.cluster_centers_, centers)


def test_wrong_arguments(model, images, rows_model, rows):
    with pytest.raises(ValueError, match="X holds rows of 64 values"):
        TreeDisplay.from_estimator(rows_model, rows)
    with pytest.raises(ValueError, match="'estimator' parameter"):
        TreeDisplay.from_estimator(model.module_, images)
    for name in ("n_images", "size", "max_leaves"):
        with pytest.raises(ValueError, match=name):
            TreeDisplay.from_estimator(model, images, **{name: 0})
