"""Edits of clusters: each changes the named clusters only, or raises an error."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from scipy.cluster.hierarchy import linkage

from skdeepcluster._clustering.cluster_model import ClusterModel
from skdeepcluster._clustering.editing import (
    carry_names,
    carry_names_of_merges,
    cut_tree,
    default_names,
    merge_clusters,
    rename_clusters,
    split_cluster,
)
from skdeepcluster._clustering.leaves import LinearClassifier, LinearLeaves
from skdeepcluster._clustering.tree import MergeTree

# Positions of six leaves on a line. The tree merges the leaves 0 and 1, then 2 and 3,
# then 4 and 5, then the first two pairs.
POSITIONS = np.array([[0.0], [1.0], [5.0], [6.5], [20.0], [22.0]])


def make_model(clusters, leaf_sizes=None):
    merges = linkage(POSITIONS, "average")
    n_leaves = len(POSITIONS)
    classifier = LinearClassifier(np.zeros((1, n_leaves)), np.zeros(n_leaves))
    return ClusterModel(
        leaf_model=LinearLeaves(
            classifier, classifier, np.arange(n_leaves, dtype=np.int32)
        ),
        leaf_centers=POSITIONS.astype(np.float32),
        leaf_sizes=np.ones(n_leaves, int) if leaf_sizes is None else leaf_sizes,
        tree=MergeTree(merges[:, :2].astype(np.int64), merges[:, 2]),
        clusters=np.array(clusters, np.int32),
        temperature=1.0,
    )


@pytest.fixture
def tree():
    return make_model([0, 0, 1, 1, 2, 2]).tree


@pytest.mark.parametrize(
    ("n_clusters", "expected"),
    [
        (1, [0, 0, 0, 0, 0, 0]),
        (2, [0, 0, 0, 0, 1, 1]),
        (3, [0, 0, 1, 1, 2, 2]),
        (4, [0, 0, 1, 1, 2, 3]),
        (np.int64(6), [0, 1, 2, 3, 4, 5]),
    ],
)
def test_cut_into_a_number_of_clusters(tree, n_clusters, expected):
    clusters = cut_tree(tree, n_clusters=n_clusters)
    assert clusters.dtype == np.int32
    assert_array_equal(clusters, expected)


@pytest.mark.parametrize(
    ("distance_threshold", "n_clusters"),
    [(0, 6), (1.0, 6), (1.25, 5), (np.float32(1.75), 4), (3, 3), (1e9, 1), (np.inf, 1)],
)
def test_cut_at_a_distance(tree, distance_threshold, n_clusters):
    clusters = cut_tree(tree, distance_threshold=distance_threshold)
    assert clusters.max() + 1 == n_clusters


@pytest.mark.parametrize(
    ("merges", "expected"),
    [
        ([[0, 1]], [0, 0, 0, 1, 2, 3]),
        ([[3, 1]], [0, 0, 1, 2, 1, 3]),
        ([(4, 0), {1, 2}], [0, 0, 1, 1, 2, 0]),
        (np.array([[0, 1], [2, 3]]), [0, 0, 0, 1, 1, 2]),
        ([range(5)], [0, 0, 0, 0, 0, 0]),
    ],
)
def test_merge(merges, expected):
    clusters = np.array([0, 0, 1, 2, 3, 4], np.int32)
    merged = merge_clusters(clusters, merges)
    assert merged.dtype == np.int32
    assert_array_equal(merged, expected)
    assert_array_equal(clusters, [0, 0, 1, 2, 3, 4])


def test_split_keeps_the_label_of_the_largest_part():
    model = make_model([1, 1, 1, 1, 0, 0], leaf_sizes=np.array([1, 1, 3, 2, 9, 9]))
    assert_array_equal(split_cluster(model, 1, 2), [2, 2, 1, 1, 0, 0])
    assert_array_equal(split_cluster(model, 1, 3), [2, 2, 1, 3, 0, 0])
    assert_array_equal(split_cluster(model, np.int32(0), 2), [1, 1, 1, 1, 0, 2])
    assert_array_equal(model.clusters, [1, 1, 1, 1, 0, 0])
    assert split_cluster(model, 1, 2).dtype == np.int32


def test_split_of_a_merged_cluster_whose_leaves_are_apart_in_the_tree():
    model = make_model([0, 1, 1, 2, 2, 0])
    assert_array_equal(split_cluster(model, 0, 2), [0, 1, 1, 2, 2, 3])


def test_names_follow_the_leaves():
    names = np.array(["a", "1", "c"], dtype=object)
    before = np.array([0, 0, 1, 1, 2, 2])
    for after, expected in [
        ([0, 0, 1, 1, 2, 2], ["a", "1", "c"]),
        ([2, 2, 1, 1, 0, 0], ["c", "1", "a"]),
        # A larger cluster is another cluster.
        ([0, 0, 0, 0, 0, 0], ["0"]),
        ([0, 0, 1, 1, 1, 1], ["a", "1"]),
        ([0, 0, 1, 1, 0, 0], ["0", "1"]),
        # Parts have no names, and neither has a cluster with a part in it.
        ([0, 3, 1, 1, 2, 2], ["0", "1", "c", "3"]),
        ([0, 1, 1, 1, 2, 2], ["0", "1", "c"]),
        ([0, 0, 1, 2, 2, 2], ["a", "1", "2"]),
    ]:
        carried = carry_names(names, before=before, after=np.array(after))
        assert carried.dtype == object
        assert carried.tolist() == expected


def test_a_merged_cluster_takes_the_name_of_its_first_cluster_with_a_name():
    names = np.array(["a", "1", "c"], dtype=object)
    before = np.array([0, 0, 1, 1, 2, 2])
    for after, expected in [
        ([0, 0, 0, 0, 0, 0], ["a"]),
        ([0, 0, 1, 1, 1, 1], ["a", "c"]),
        ([0, 0, 1, 1, 0, 0], ["a", "1"]),
    ]:
        carried = carry_names_of_merges(names, before=before, after=np.array(after))
        assert carried.tolist() == expected


def test_rename():
    names = default_names(3)
    renamed = rename_clusters(names, {np.int64(2): np.str_("shoes"), 0: "Schuhe 2 ß"})
    assert renamed.tolist() == ["Schuhe 2 ß", "1", "shoes"]
    assert [type(name) for name in renamed] == [str] * 3
    assert names.tolist() == ["0", "1", "2"]
    swapped = rename_clusters(renamed, {0: "shoes", 2: "Schuhe 2 ß"})
    assert swapped.tolist() == ["shoes", "1", "Schuhe 2 ß"]
    assert rename_clusters(swapped, {0: "0"}).tolist() == ["0", "1", "Schuhe 2 ß"]
    assert rename_clusters(swapped, {}).tolist() == swapped.tolist()


BAD_CUTS = {
    "both": ({"n_clusters": 2, "distance_threshold": 1}, ValueError, "either"),
    "none": ({}, ValueError, r"n_clusters=None.*cut\(n_clusters=5\)"),
    "no clusters": ({"n_clusters": 0}, ValueError, "n_clusters=0 .*at least 1"),
    "negative": ({"n_clusters": -3}, ValueError, "n_clusters=-3"),
    "too many": ({"n_clusters": 7}, ValueError, "n_clusters=7 .* 6.*n_pseudo_labels"),
    "huge": ({"n_clusters": 10**30}, ValueError, "n_clusters=1000"),
    "float": ({"n_clusters": 2.0}, TypeError, "n_clusters=2.0 is of type float"),
    "bool": ({"n_clusters": True}, TypeError, "n_clusters=True is of type bool"),
    "str": ({"n_clusters": "2"}, TypeError, "n_clusters='2' is of type str"),
    "NaN": ({"distance_threshold": np.nan}, ValueError, "threshold=nan .*distances_"),
    "below 0": ({"distance_threshold": -0.1}, ValueError, "distance_threshold=-0.1"),
    "bool threshold": ({"distance_threshold": False}, TypeError, "is of type bool"),
    "str threshold": ({"distance_threshold": "1"}, TypeError, "is of type str"),
}


@pytest.mark.parametrize("case", BAD_CUTS)
def test_bad_cut_raises(tree, case):
    arguments, error, message = BAD_CUTS[case]
    with pytest.raises(error, match=message):
        cut_tree(tree, **arguments)


BAD_MERGES = {
    "unknown": ([[0, 3]], ValueError, "3 in merges .* 0 to 2"),
    "negative": ([[0, -1]], ValueError, "-1 in merges .* 0 to 2"),
    "bool": ([[0, True]], TypeError, "True in merges is of type bool"),
    "float": ([[0, 1.0]], TypeError, "1.0 in merges is of type float"),
    "str": ([[0, "1"]], TypeError, "'1' in merges is of type str"),
    "array of floats": (np.array([[0.0, 1.0]]), TypeError, "0.0 in merges is of type"),
    "twice in a list": ([[1, 1]], ValueError, "label 1 2 times"),
    "twice in lists": ([[0, 1], [1, 2]], ValueError, "label 1 2 times.* one list"),
    "single label": ([[0, 1], [2]], ValueError, r"\[2\].* at least 2"),
    "no label": ([[]], ValueError, r"\[\].* at least 2"),
    "empty": ([], ValueError, r"merges is empty.*\[\[3, 7\]\]"),
    "flat": ([0, 1], ValueError, r"merges=\[0, 1\] .*, \[\[0, 1\]\]"),
    "flat tuple": ((0, 1), ValueError, r"\[\[0, 1\]\]"),
    "flat array": (np.arange(2), ValueError, r"\[\[0, 1\]\]"),
    "partly flat": ([[0, 1], 2], TypeError, "merges holds 2, .*not a list"),
    "strings": (["01"], TypeError, "merges holds '01'"),
    "string": ("01", TypeError, "merges='01' is of type str"),
    "number": (3, TypeError, "merges=3 is of type int"),
    "dict": ({0: 1}, TypeError, "is of type dict"),
    "None": (None, TypeError, "is of type NoneType"),
}


@pytest.mark.parametrize("case", BAD_MERGES)
def test_bad_merge_raises(case):
    merges, error, message = BAD_MERGES[case]
    with pytest.raises(error, match=message):
        merge_clusters(np.array([0, 0, 1, 1, 2, 2]), merges)


BAD_SPLITS = {
    "unknown": (2, 2, ValueError, "label=2 is not a cluster.* 0 to 1"),
    "negative": (-1, 2, ValueError, "label=-1 is not a cluster"),
    "bool": (True, 2, TypeError, "label=True is of type bool"),
    "float": (1.0, 2, TypeError, "label=1.0 is of type float"),
    "str": ("shoes", 2, TypeError, "label='shoes' is of type str"),
    "None": (None, 2, TypeError, "label=None"),
    "too many parts": (1, 5, ValueError, "n_clusters=5 .*cluster 1, .* 4.*n_pseudo_l"),
    "one part": (1, 1, ValueError, "n_clusters=1 .*at least 2"),
    "float parts": (1, 2.0, TypeError, "n_clusters=2.0"),
    "bool parts": (1, True, TypeError, "n_clusters=True"),
}


@pytest.mark.parametrize("case", BAD_SPLITS)
def test_bad_split_raises(case):
    label, n_clusters, error, message = BAD_SPLITS[case]
    with pytest.raises(error, match=message):
        split_cluster(make_model([1, 1, 1, 1, 0, 0]), label, n_clusters)


BAD_NAMES = {
    "unknown": ({3: "a"}, ValueError, "3 in names is not a cluster.* 0 to 2"),
    "bool": ({True: "a"}, TypeError, "True in names is of type bool"),
    "float": ({1.0: "a"}, TypeError, "1.0 in names is of type float"),
    "str": ({"shoes": 0}, TypeError, "'shoes' in names is of type str"),
    "not a string": ({0: 1}, TypeError, r"names\[0\]=1 is of type int"),
    "None": ({0: None}, TypeError, r"names\[0\]=None"),
    "empty": ({0: ""}, ValueError, r"names\[0\]='' is empty"),
    "blank": ({0: " \n"}, ValueError, "is empty"),
    "repeated": ({0: "a", 1: "a"}, ValueError, r"'a' to the clusters \[0, 1\]"),
    "of another cluster": ({0: "shoes"}, ValueError, r"'shoes' .*\[0, 2\]"),
    "number": ({0: "1"}, ValueError, "names.0.='1' is a number.*'cluster 1'"),
    "later number": ({0: "12"}, ValueError, "is a number"),
    "number with blanks": ({0: " 1"}, ValueError, "is a number"),
    "negative number": ({0: "-1"}, ValueError, "is a number"),
    "list": (["a", "b", "c"], TypeError, "is of type list, not dict"),
    "no dict": (None, TypeError, "names=None is of type NoneType, not dict"),
}


@pytest.mark.parametrize("case", BAD_NAMES)
def test_bad_name_raises(case):
    new_names, error, message = BAD_NAMES[case]
    names = np.array(["0", "1", "shoes"], dtype=object)
    with pytest.raises(error, match=message):
        rename_clusters(names, new_names)
    assert names.tolist() == ["0", "1", "shoes"]


@given(st.lists(st.integers(0, 3), min_size=6, max_size=6), st.data())
def test_edits_partition_the_leaves(labels, data):
    labels = np.unique(labels, return_inverse=True)[1]
    model = make_model(labels)
    label = data.draw(st.integers(0, model.n_clusters - 1))
    n_leaves = int(np.sum(labels == label))
    if n_leaves > 1:
        n_parts = data.draw(st.integers(2, n_leaves))
        split = split_cluster(model, label, n_parts)
        assert_array_equal(np.unique(split), np.arange(model.n_clusters + n_parts - 1))
        assert_array_equal(split[labels != label], labels[labels != label])
        parts = [label, *range(model.n_clusters, int(split.max()) + 1)]
        # The merge of all parts is the original.
        assert_array_equal(merge_clusters(split, [parts]), labels)
