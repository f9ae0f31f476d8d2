"""Methods of the estimator that edit its clusters without training."""

import copy
from dataclasses import replace
from typing import Any, Self

import numpy as np
from sklearn.utils.validation import check_is_fitted

from ._clustering.cluster_model import ClusterModel
from ._clustering.editing import (
    carry_names,
    carry_names_of_merges,
    cut_tree,
    default_names,
    merge_clusters,
    rename_clusters,
    split_cluster,
)
from ._clustering.membership import Membership
from ._inputs.read import NO_CLUSTER
from ._utils.memory import format_bytes
from ._utils.neutral_state import with_neutral_state

# Size of the largest `probabilities_`. The diagram of an estimator in a notebook reads
# each attribute, and must not fill the memory.
MAX_PROBABILITIES_BYTES = 2**30


def cluster_attributes(
    cluster_model: ClusterModel,
    leaf_labels: np.ndarray,
    names: np.ndarray | None = None,
) -> dict[str, Any]:
    """Return the fitted attributes that depend on the clusters.

    Parameters
    ----------
    cluster_model : ClusterModel
    leaf_labels : ndarray of shape (n_samples,), int32
        Leaf of each image.
    names : ndarray of str objects or None, default=None
        Name of each cluster. None is their numbers.
    """
    clusters = cluster_model.clusters
    n_clusters = cluster_model.n_clusters
    is_skipped = leaf_labels == NO_CLUSTER
    scores = cluster_model.cut_scores
    return {
        "n_clusters_": n_clusters,
        "labels_": np.where(is_skipped, NO_CLUSTER, clusters[leaf_labels]),
        "cluster_names_": default_names(n_clusters) if names is None else names,
        "cluster_centers_": cluster_model.centers,
        "leaf_labels_": leaf_labels,
        "children_": cluster_model.tree.children,
        "distances_": cluster_model.tree.distances,
        "cut_scores_": None if scores is None else scores.as_dict(),
        "_cluster_model": cluster_model,
    }


class ClusterEditingMixin:
    """Methods that return an estimator with edited clusters.

    The clusters are a partition of the leaves of a merge tree. An edit changes this
    partition, and neither the network nor the tree.
    """

    cluster_names_: np.ndarray
    leaf_labels_: np.ndarray
    _cluster_model: ClusterModel
    _membership: Membership

    @property
    @with_neutral_state
    def probabilities_(self):
        """Probability of each cluster for each image of `fit`.

        It is an ndarray of shape (n_samples, n_clusters), float32, equal to
        `predict_proba(X)`. Skipped images have NaN. It is computed at each access.
        """
        check_is_fitted(self)
        shape = len(self.leaf_labels_), self._cluster_model.n_clusters
        n_bytes = shape[0] * shape[1] * np.dtype(np.float32).itemsize
        if n_bytes > MAX_PROBABILITIES_BYTES:
            # `hasattr` and the diagram of scikit-learn expect no other error.
            raise AttributeError(
                f"probabilities_ of shape {shape} would take {format_bytes(n_bytes)}. "
                "Call predict_proba for parts of the images."
            )
        probabilities = np.full(shape, np.nan, np.float32)
        probabilities[self.leaf_labels_ != NO_CLUSTER] = (
            self._membership.cluster_probabilities(self._cluster_model.clusters)
        )
        return probabilities

    @with_neutral_state
    def cut(self, n_clusters=None, distance_threshold=None):
        """Return an estimator with another number of clusters, without training.

        The new clusters are a cut of the merge tree, so that more clusters subdivide
        fewer clusters. Clusters that `merge_clusters` or `split_cluster` made are
        undone. A cluster keeps its name if it keeps its images. Pass exactly one
        parameter.

        Parameters
        ----------
        n_clusters : int, default=None
            Number of clusters, at most the number of leaves of the tree. The number of
            clusters of `fit` gives the clusters of `fit`.
        distance_threshold : float, default=None
            All merges whose entry in `distances_` is below the threshold are done, as
            in `AgglomerativeClustering`. ``model.distances_[-3]`` gives 4 clusters.

        Returns
        -------
        estimator : DeepClusterEstimator
            Fitted estimator that shares the network. This estimator is unchanged.

        Raises
        ------
        ValueError, TypeError
            If the parameters are invalid, or the tree has fewer than `n_clusters`
            leaves.

        Examples
        --------
        >>> from sklearn.datasets import load_digits
        >>> from skdeepcluster import DeepClusterEstimator
        >>> images = load_digits().images[:100]
        >>> model = DeepClusterEstimator(n_clusters=4, max_iter=1, random_state=0)
        >>> coarse = model.fit(images).cut(n_clusters=2)
        >>> coarse.n_clusters_
        2
        >>> (coarse.predict(images) == coarse.labels_).all()
        np.True_
        """
        check_is_fitted(self)
        tree = self._cluster_model.tree
        return self._with_clusters(cut_tree(tree, n_clusters, distance_threshold))

    @with_neutral_state
    def merge_clusters(self, merges):
        """Return an estimator in which clusters are merged, without training.

        Parameters
        ----------
        merges : list of lists of int
            Labels of the clusters of each merge. A merged cluster takes the smallest of
            its labels. All clusters are then renumbered in this order, so that labels
            are consecutive. A merged cluster also takes the name of its first cluster
            that `name_clusters` has named.

        Returns
        -------
        estimator : DeepClusterEstimator
            Fitted estimator that shares the network. This estimator is unchanged.

        Raises
        ------
        ValueError, TypeError
            If a label is not a cluster or occurs twice, or a list has fewer than two
            labels.

        Examples
        --------
        >>> from sklearn.datasets import load_digits
        >>> from skdeepcluster import DeepClusterEstimator
        >>> images = load_digits().images[:100]
        >>> model = DeepClusterEstimator(n_clusters=4, max_iter=1, random_state=0)
        >>> merged = model.fit(images).merge_clusters([[0, 3]])
        >>> merged.n_clusters_
        3
        >>> merged.labels_[model.labels_ == 3].max()
        np.int32(0)
        """
        check_is_fitted(self)
        before = self._cluster_model.clusters
        after = merge_clusters(before, merges)
        names = carry_names_of_merges(self.cluster_names_, before=before, after=after)
        return self._with_clusters(after, names)

    @with_neutral_state
    def split_cluster(self, label, n_clusters):
        """Return an estimator in which a cluster is split, without training.

        The merge tree below the cluster is cut into parts. The largest part keeps the
        label, and the labels of the other parts follow the last cluster. All parts lose
        a name of the cluster. Other clusters keep label, name and images.

        Parameters
        ----------
        label : int
            Cluster to split.
        n_clusters : int
            Number of parts, at least 2 and at most the number of leaves of the cluster.

        Returns
        -------
        estimator : DeepClusterEstimator
            Fitted estimator that shares the network. This estimator is unchanged.

        Raises
        ------
        ValueError, TypeError
            If `label` is not a cluster, or the cluster has fewer than `n_clusters`
            leaves.

        Examples
        --------
        >>> from sklearn.datasets import load_digits
        >>> from skdeepcluster import DeepClusterEstimator
        >>> images = load_digits().images[:200]
        >>> model = DeepClusterEstimator(n_clusters=2, max_iter=1, random_state=0)
        >>> split = model.fit(images).split_cluster(0, n_clusters=2)
        >>> split.n_clusters_
        3
        >>> sorted(set(split.labels_[model.labels_ == 0].tolist()))
        [0, 2]
        """
        check_is_fitted(self)
        return self._with_clusters(
            split_cluster(self._cluster_model, label, n_clusters)
        )

    def name_clusters(self, names):
        """Return an estimator in which clusters have names.

        Plots, tables and exports show the names. A cluster without a name is named by
        its label. Later edits keep the name of each cluster that keeps its images.

        Parameters
        ----------
        names : dict of int to str
            Name of each label. Names are unique and not empty. Clusters that the dict
            does not hold keep their names. The label as a string, such as ``{0: "0"}``,
            removes a name, and other numbers are not allowed.

        Returns
        -------
        estimator : DeepClusterEstimator
            Fitted estimator that shares the network. This estimator is unchanged.

        Raises
        ------
        ValueError, TypeError
            If a label is not a cluster, or a name is not unique, empty, a number or not
            a string.

        Examples
        --------
        >>> from sklearn.datasets import load_digits
        >>> from skdeepcluster import DeepClusterEstimator
        >>> images = load_digits().images[:100]
        >>> model = DeepClusterEstimator(n_clusters=3, max_iter=1, random_state=0)
        >>> named = model.fit(images).name_clusters({0: "round", 2: "slim"})
        >>> named.cluster_names_
        array(['round', '1', 'slim'], dtype=object)
        >>> named.cluster_names_[named.labels_].shape
        (100,)
        """
        check_is_fitted(self)
        renamed = rename_clusters(self.cluster_names_, names)
        return self._with_clusters(self._cluster_model.clusters, renamed)

    def _with_clusters(
        self, clusters: np.ndarray, names: np.ndarray | None = None
    ) -> Self:
        """Return a copy with other clusters, which shares the network.

        Without names, clusters keep the names that they have.
        """
        if names is None:
            before = self._cluster_model.clusters
            names = carry_names(self.cluster_names_, before=before, after=clusters)
        model = replace(self._cluster_model, clusters=clusters)
        edited = copy.copy(self)
        edited.__dict__.update(cluster_attributes(model, self.leaf_labels_, names))
        return edited
