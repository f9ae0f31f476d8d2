"""Edits of clusters, without images: cuts of the tree, merges, splits and names.

An edit returns the new cluster of each leaf. It raises an error before any work if an
argument is invalid.
"""

from collections import Counter
from collections.abc import Mapping
from itertools import chain
from numbers import Integral, Real

import numpy as np

from .cluster_model import ClusterModel
from .tree import MergeTree

MORE_LEAVES = (
    "A fit with more than 5 n_pseudo_labels per cluster has more leaves, of at least 5 "
    "images each and at most 500 in all."
)


def cut_tree(tree: MergeTree, n_clusters=None, distance_threshold=None) -> np.ndarray:
    """Return the clusters of a cut; see `DeepClusterEstimator.cut`."""
    if (n_clusters is None) == (distance_threshold is None):
        raise ValueError(
            "cut needs either n_clusters or distance_threshold, but got "
            f"n_clusters={n_clusters!r} and distance_threshold={distance_threshold!r}. "
            "Pass one of them, e.g. cut(n_clusters=5)."
        )
    if n_clusters is None:
        _check_threshold(distance_threshold)
        # A huge integer has no float.
        largest = float(min(distance_threshold, np.finfo(float).max))
        n_clusters = tree.count_clusters(largest)
    else:
        _check_count(n_clusters, 1, tree.n_leaves, owner="the tree")
    return tree.cut(int(n_clusters))


def merge_clusters(clusters: np.ndarray, merges) -> np.ndarray:
    """Return the clusters after merges; see `DeepClusterEstimator.merge_clusters`."""
    n_clusters = int(clusters.max()) + 1
    checked = _check_merges(merges, n_clusters)
    targets = np.arange(n_clusters)
    for labels in checked:
        targets[labels] = min(labels)
    return np.unique(targets[clusters], return_inverse=True)[1].astype(np.int32)


def split_cluster(model: ClusterModel, label, n_clusters) -> np.ndarray:
    """Return the clusters after a split; see `DeepClusterEstimator.split_cluster`."""
    _check_label(label, model.n_clusters, subject=f"label={label!r}")
    leaves = np.flatnonzero(model.clusters == label)
    _check_count(n_clusters, 2, len(leaves), owner=f"cluster {label}")
    parts = model.tree.cut(int(n_clusters), leaves)
    largest = int(np.bincount(parts, model.leaf_sizes[leaves]).argmax())
    added = model.n_clusters + np.arange(n_clusters - 1)
    labels = np.insert(added, largest, label)
    clusters = model.clusters.copy()
    clusters[leaves] = labels[parts]
    return clusters


def default_names(n_clusters: int) -> np.ndarray:
    """Return the number of each cluster as its name, ndarray of str objects."""
    return np.array([str(label) for label in range(n_clusters)], dtype=object)


def rename_clusters(names: np.ndarray, new_names) -> np.ndarray:
    """Return names after a change; see `DeepClusterEstimator.name_clusters`."""
    if not isinstance(new_names, Mapping):
        kind = type(new_names).__name__
        raise TypeError(
            f"names={new_names!r} is of type {kind}, not dict. Pass a dict of labels "
            "and names, e.g. {0: 'shoes'}."
        )
    renamed = names.copy()
    for label, name in new_names.items():
        _check_label(label, len(names), subject=f"{label!r} in names")
        _check_name(name, label)
        renamed[label] = str(name)
    name, count = Counter(renamed.tolist()).most_common(1)[0]
    if count > 1:
        labels = np.flatnonzero(renamed == name).tolist()
        raise ValueError(
            f"names gives the name {name!r} to the clusters {labels}. Pass a different "
            "name for each, or merge them with merge_clusters."
        )
    return renamed


def carry_names(names: np.ndarray, before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Return the names of clusters after an edit.

    A cluster keeps its name as long as it consists of the same leaves.

    Parameters
    ----------
    names : ndarray of str objects
        Name of each cluster before the edit.
    before, after : ndarray of shape (n_leaves,), int
        Cluster of each leaf before and after the edit.
    """
    carried = default_names(int(after.max()) + 1)
    for label in np.flatnonzero(names != default_names(len(names))):
        is_member = before == label
        target = after[is_member][0]
        if ((after == target) == is_member).all():
            carried[target] = names[label]
    return carried


def carry_names_of_merges(
    names: np.ndarray, before: np.ndarray, after: np.ndarray
) -> np.ndarray:
    """Return the names of clusters after merges.

    A merged cluster takes the name of its first cluster that a user has named. The
    parameters are those of `carry_names`.
    """
    carried = default_names(int(after.max()) + 1)
    # The first name is written last.
    for label in np.flatnonzero(names != default_names(len(names)))[::-1]:
        carried[after[before == label][0]] = names[label]
    return carried


def _check_label(label, n_clusters: int, subject: str) -> None:
    """Raise an error that names the subject unless a label is an existing cluster."""
    cure = f"Pass a label from 0 to {n_clusters - 1}."
    if not _is_integer(label):
        raise TypeError(f"{subject} is of type {type(label).__name__}, not int. {cure}")
    if not 0 <= label < n_clusters:
        raise ValueError(f"{subject} is not a cluster. {cure}")


def _check_count(n_clusters, smallest: int, n_leaves: int, owner: str) -> None:
    """Raise an error unless leaves can form a number of clusters."""
    if not _is_integer(n_clusters):
        kind = type(n_clusters).__name__
        raise TypeError(f"n_clusters={n_clusters!r} is of type {kind}, not int.")
    if n_clusters < smallest:
        raise ValueError(
            f"n_clusters={n_clusters} is too small. Pass at least {smallest}."
        )
    if n_clusters > n_leaves:
        raise ValueError(
            f"n_clusters={n_clusters} exceeds the number of leaves of {owner}, which "
            f"is {n_leaves}. {MORE_LEAVES}"
        )


def _check_threshold(distance_threshold) -> None:
    cure = "Pass a distance on the scale of distances_."
    is_number = isinstance(distance_threshold, Real)
    if not is_number or isinstance(distance_threshold, bool):
        kind = type(distance_threshold).__name__
        raise TypeError(
            f"distance_threshold={distance_threshold!r} is of type {kind}, not a "
            f"number. {cure}"
        )
    # NaN fails each comparison.
    if not distance_threshold >= 0:
        raise ValueError(
            f"distance_threshold={distance_threshold} is not at least 0. {cure}"
        )


def _check_merges(merges, n_clusters: int) -> list[list[int]]:
    """Return merges as lists of labels, or raise an error if they are invalid."""
    entries = _as_list(merges)
    if entries is None:
        raise TypeError(
            f"merges={merges!r} is of type {type(merges).__name__}, not list. Pass one "
            "list of labels for each merge, e.g. [[3, 7], [1, 4]]."
        )
    if not entries:
        raise ValueError("merges is empty. Pass clusters to merge, e.g. [[3, 7]].")
    if all(isinstance(entry, Integral) for entry in entries):
        raise ValueError(
            f"merges={entries} is a single list of labels. Pass a list of lists, "
            f"[{entries}]."
        )
    checked: list[list[int]] = []
    for entry in entries:
        labels = _as_list(entry)
        if labels is None:
            raise TypeError(
                f"merges holds {entry!r}, which is not a list. Pass one list of labels "
                "for each merge, e.g. [[3, 7], [1, 4]]."
            )
        for label in labels:
            _check_label(label, n_clusters, subject=f"{label!r} in merges")
        if len(labels) < 2:
            raise ValueError(
                f"merges holds {entry!r}, which has fewer than 2 labels. Pass at least "
                "2 labels for each merge."
            )
        checked.append([int(label) for label in labels])
    label, count = Counter(chain.from_iterable(checked)).most_common(1)[0]
    if count > 1:
        raise ValueError(
            f"merges holds the label {label} {count} times. Pass each label once. "
            "Lists that share a label are one list."
        )
    return checked


def _check_name(name, label) -> None:
    """Raise an error unless a name of a cluster is a string and not ambiguous."""
    if not isinstance(name, str):
        kind = type(name).__name__
        raise TypeError(f"names[{label}]={name!r} is of type {kind}, not str.")
    if not name.strip():
        raise ValueError(
            f"names[{label}]={name!r} is empty. Pass {str(label)!r} to remove a name."
        )
    if not name.isprintable():
        raise ValueError(
            f"names[{label}]={name!r} has characters that cannot be printed, such as a "
            "line break. Remove them."
        )
    # Numbers are the names of clusters without a name, and edits renumber clusters.
    if name.strip().lstrip("+-").isdecimal() and name != str(label):
        raise ValueError(
            f"names[{label}]={name!r} is a number, as the name of another cluster can "
            f"be. Pass a name with a letter, e.g. 'cluster {name.strip()}'."
        )


def _is_integer(value) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _as_list(value) -> list | None:
    """Return a list, tuple, set, range or array as a list, else None."""
    if isinstance(value, np.ndarray):
        value = value.tolist()
    is_list = isinstance(value, list | tuple | set | frozenset | range)
    return list(value) if is_list else None
