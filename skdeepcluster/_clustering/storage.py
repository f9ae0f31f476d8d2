"""Clusters as plain values and arrays, to save them to a file.

The file may be damaged or hostile, so that each array is checked on its way back.
"""

from typing import Any

import numpy as np
from scipy.sparse import csr_array

from .._inputs.read import NO_CLUSTER
from .cluster_model import ClusterModel
from .leaves import LinearClassifier, LinearLeaves, NearestLeaves
from .membership import Membership
from .n_clusters import CutScores
from .tree import MergeTree
from .whitening import Projection


def pack_clusters(
    model: ClusterModel, probabilities: csr_array, leaf_labels: np.ndarray
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return the plain values of clusters, and their arrays by name.

    Parameters
    ----------
    model : ClusterModel
    probabilities : sparse array of shape (n_readable, n_leaves), float32
        Probability of each leaf for the images that can be read.
    leaf_labels : ndarray of shape (n,), int32
        Leaf of each image. -1 stands for an image that cannot be read.
    """
    leaf_model, arrays = _pack_leaf_model(model.leaf_model)
    values = {
        "leaf_model": leaf_model,
        "temperature": float(model.temperature),
        "from_start": model.from_start,
        "best_cut": None,
    }
    if model.cut_scores is not None:
        values["best_cut"] = model.cut_scores.best
        arrays["cut_scores.scores"] = model.cut_scores.scores
        arrays["cut_scores.gaps"] = model.cut_scores.gaps
    return values, arrays | {
        "leaf_centers": model.leaf_centers,
        "leaf_sizes": model.leaf_sizes,
        "children": model.tree.children,
        "distances": model.tree.distances,
        "clusters": model.clusters,
        "leaf_labels": leaf_labels,
        "probabilities.data": probabilities.data,
        "probabilities.indices": probabilities.indices.astype(np.int32),
        "probabilities.indptr": probabilities.indptr.astype(np.int64),
    }


def unpack_clusters(
    values: dict[str, Any], arrays: dict[str, np.ndarray], n_features: int
) -> tuple[ClusterModel, Membership, np.ndarray]:
    """Return what `pack_clusters` has packed, after a check of each array.

    Parameters
    ----------
    values : dict
    arrays : dict of ndarray
    n_features : int
        Number of features of the network.

    Returns
    -------
    model : ClusterModel
    membership : Membership
        Membership of the images that can be read.
    leaf_labels : ndarray of shape (n,), int32

    Raises
    ------
    Exception
        If an array is missing or invalid. Damage may cause any error.
    """
    model = _unpack_model(values, arrays, n_features=n_features)
    membership, leaf_labels = _unpack_membership(arrays, model.tree.n_leaves)
    return model, membership, leaf_labels


def check_array(
    arrays: dict[str, np.ndarray], name: str, dtype: type, ndim: int
) -> np.ndarray:
    """Return one of the arrays, or raise an error if it is invalid."""
    values = arrays[name]
    if values.dtype != dtype or values.ndim != ndim:
        raise ValueError(f"its {name} are {values.dtype} in {values.ndim} dimensions")
    if not np.isfinite(values).all():
        raise ValueError(f"its {name} are not finite")
    return values


def _pack_leaf_model(
    leaf_model: LinearLeaves | NearestLeaves,
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return the plain values and the arrays of a classifier of leaves."""
    if isinstance(leaf_model, LinearLeaves):
        return {"kind": "linear"}, {
            "cluster_classifier.weights": leaf_model.cluster_classifier.weights,
            "cluster_classifier.bias": leaf_model.cluster_classifier.bias,
            "leaf_classifier.weights": leaf_model.leaf_classifier.weights,
            "leaf_classifier.bias": leaf_model.leaf_classifier.bias,
            "parents": leaf_model.parents,
        }
    projection = leaf_model.projection
    return {"kind": "nearest", "normalize": bool(projection.normalize)}, {
        "leaf_model.centers": leaf_model.centers,
        "leaf_model.mean": projection.mean,
        "leaf_model.components": projection.components,
    }


def _unpack_model(
    values: dict, arrays: dict[str, np.ndarray], n_features: int
) -> ClusterModel:
    leaf_centers = check_array(arrays, "leaf_centers", np.float32, ndim=2)
    leaf_sizes = check_array(arrays, "leaf_sizes", np.int64, ndim=1)
    clusters = check_array(arrays, "clusters", np.int32, ndim=1)
    temperature = float(values["temperature"])
    tree = _unpack_tree(arrays)
    n_leaves = tree.n_leaves
    if leaf_centers.shape != (n_leaves, n_features) or leaf_sizes.shape != (n_leaves,):
        raise ValueError("its centers and sizes of leaves do not fit its embedding")
    if leaf_sizes.min() < 1:
        raise ValueError("its leaves include one without an image")
    labels = np.unique(clusters)
    if len(clusters) != n_leaves or (labels != np.arange(len(labels))).any():
        raise ValueError("its clusters are not consecutive numbers of the leaves")
    if not 0 < temperature < np.inf:
        raise ValueError(f"its temperature is {temperature}")
    return ClusterModel(
        leaf_model=_unpack_leaf_model(
            values["leaf_model"], arrays, n_leaves=n_leaves, n_features=n_features
        ),
        leaf_centers=leaf_centers,
        leaf_sizes=leaf_sizes,
        tree=tree,
        clusters=clusters,
        temperature=temperature,
        from_start=bool(values["from_start"]),
        cut_scores=_unpack_cut_scores(values["best_cut"], arrays),
    )


def _unpack_cut_scores(
    best: int | None, arrays: dict[str, np.ndarray]
) -> CutScores | None:
    if best is None:
        return None
    scores = check_array(arrays, "cut_scores.scores", np.float64, ndim=1)
    gaps = check_array(arrays, "cut_scores.gaps", np.float64, ndim=1)
    if scores.shape != gaps.shape or not 1 <= best <= len(scores) + 1:
        raise ValueError("its scores of cuts do not fit each other")
    return CutScores(scores, gaps, best=int(best))


def _unpack_tree(arrays: dict[str, np.ndarray]) -> MergeTree:
    children = check_array(arrays, "children", np.int64, ndim=2)
    distances = check_array(arrays, "distances", np.float64, ndim=1)
    n_merges = len(children)
    if children.shape != (n_merges, 2) or distances.shape != (n_merges,):
        raise ValueError("its children and distances do not fit each other")
    nodes = np.arange(2 * n_merges)
    # The node of each merge is later than its children. All nodes but the root are
    # children once.
    is_earlier = (children < n_merges + 1 + np.arange(n_merges)[:, None]).all()
    if not is_earlier or (np.sort(children, axis=None) != nodes).any():
        raise ValueError("its children are not a merge tree")
    if (distances < 0).any() or (np.diff(distances) < 0).any():
        raise ValueError("its distances do not ascend from 0")
    return MergeTree(children, distances)


def _unpack_leaf_model(
    values: dict, arrays: dict[str, np.ndarray], n_leaves: int, n_features: int
) -> LinearLeaves | NearestLeaves:
    if values["kind"] == "linear":
        parents = check_array(arrays, "parents", np.int32, ndim=1)
        n_parents = len(np.unique(parents))
        if len(parents) != n_leaves or not _is_in_range(parents, n_parents):
            raise ValueError("its parents of leaves are not consecutive numbers")
        return LinearLeaves(
            _unpack_classifier("cluster_classifier", arrays, (n_features, n_parents)),
            _unpack_classifier("leaf_classifier", arrays, (n_features, n_leaves)),
            parents,
        )
    if values["kind"] != "nearest":
        raise ValueError(f"its leaves are of an unknown kind, {values['kind']!r}")
    centers = check_array(arrays, "leaf_model.centers", np.float32, ndim=2)
    mean = check_array(arrays, "leaf_model.mean", np.float32, ndim=1)
    components = check_array(arrays, "leaf_model.components", np.float32, ndim=2)
    shapes = (len(centers), components.shape, mean.shape)
    if shapes != (n_leaves, (n_features, centers.shape[1]), (n_features,)):
        raise ValueError("its centers of leaves do not fit its embedding")
    projection = Projection(mean, components, bool(values["normalize"]))
    return NearestLeaves(projection, centers)


def _unpack_classifier(
    name: str, arrays: dict[str, np.ndarray], shape: tuple[int, int]
) -> LinearClassifier:
    weights = check_array(arrays, f"{name}.weights", np.float64, ndim=2)
    bias = check_array(arrays, f"{name}.bias", np.float64, ndim=1)
    if weights.shape != shape or bias.shape != shape[1:]:
        raise ValueError(f"its {name} does not fit its embedding")
    return LinearClassifier(weights, bias)


def _unpack_membership(
    arrays: dict[str, np.ndarray], n_leaves: int
) -> tuple[Membership, np.ndarray]:
    """Return the membership of all readable images, and the leaf of each image."""
    leaf_labels = check_array(arrays, "leaf_labels", np.int32, ndim=1)
    values = check_array(arrays, "probabilities.data", np.float32, ndim=1)
    columns = check_array(arrays, "probabilities.indices", np.int32, ndim=1)
    starts = check_array(arrays, "probabilities.indptr", np.int64, ndim=1)
    leaves = leaf_labels[leaf_labels != NO_CLUSTER]
    if not _is_in_range(leaves, n_leaves):
        raise ValueError("its leaf_labels are out of range")
    if len(starts) != len(leaves) + 1 or len(values) != len(columns):
        raise ValueError("its probabilities do not fit its leaf_labels")
    # Each row needs a value, since its probabilities are divided by their sum.
    is_ascending = bool((np.diff(starts) > 0).all())
    if not is_ascending or starts[0] != 0 or starts[-1] != len(values):
        raise ValueError("the rows of its probabilities are out of range")
    if not _is_in_range(columns, n_leaves):
        raise ValueError("the columns of its probabilities are out of range")
    if (values <= 0).any() or (values > 1).any():
        raise ValueError("its probabilities are not between 0 and 1")
    # Scipy's own choice of the type, so that a loaded estimator has the same content.
    index_type = np.int32 if len(values) <= np.iinfo(np.int32).max else np.int64
    probabilities = csr_array(
        (values, columns.astype(index_type), starts.astype(index_type)),
        shape=(len(leaves), n_leaves),
    )
    return Membership(leaves, probabilities), leaf_labels


def _is_in_range(values: np.ndarray, n: int) -> bool:
    """Return whether all values are from 0 to n - 1."""
    return len(values) == 0 or bool(values.min() >= 0 and values.max() < n)
