"""A fitted estimator -> one file without pickle, and back."""

import os
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch

from ._clustering.merging import LinearAssigner, NearestCenterAssigner
from ._clustering.whitening import Projection
from ._fit.recipe import projected_size
from ._training.network import Network, build_network
from ._utils.device import resolve_device
from ._utils.messages import warn
from ._utils.tensors import read_tensors, write_tensors

FORMAT = 1  # of the file; a reader for each that was ever written
MODULE = "module."  # before the names of weights
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def save(estimator, path: str | os.PathLike) -> None:
    """Write a fitted estimator to a file; see `DeepClusterEstimator.save`."""
    fitted = vars(estimator)
    groups, arrays = estimator._groups, {"labels": estimator.labels_}
    kind: dict[str, Any]
    arrays["cluster_centers"] = estimator.cluster_centers_
    if isinstance(groups, LinearAssigner):
        kind = {"kind": "linear"}
        arrays |= {"groups.weights": groups.weights, "groups.bias": groups.bias}
    else:
        projection = groups.projection
        kind = {"kind": "nearest", "normalize": bool(projection.normalize)}
        arrays |= {
            "groups.centers": groups.centers,
            "groups.mean": projection.mean,
            "groups.components": projection.components,
        }
    arrays["skipped"] = estimator.skipped_
    if estimator.paths_ is not None:
        names = b"\0".join(map(os.fsencode, estimator.paths_.tolist()))
        arrays["paths"] = np.frombuffer(names, np.uint8)
    tensors = {
        name: torch.from_numpy(np.array(a, order="C")) for name, a in arrays.items()
    }
    for name, weight in estimator.module_.state_dict().items():
        tensors[MODULE + name] = weight
    told = {
        "format": FORMAT,
        "params": _plain_params(estimator),
        "custom_backbone": isinstance(estimator.backbone, torch.nn.Module),
        "groups": kind,
        "dtype": str(estimator._dtype).removeprefix("torch."),
        "image_dtype": np.dtype(estimator._image_dtype).name,
        "image_shape": estimator.image_shape_,
        "feature_names": list(fitted.get("feature_names_in_", [])) or None,
        "n_features_in": int(estimator.n_features_in_),
        "n_iter": int(estimator.n_iter_),
        "inertia": float(estimator.inertia_),
        "history": estimator.history_,
        "device": str(estimator.device_),
    }
    write_tensors(path, told, tensors)


def load(cls, path: str | os.PathLike, device, backbone: torch.nn.Module | None):
    """Read what `save` wrote; see `DeepClusterEstimator.load`."""
    if not os.path.isfile(path):
        raise ValueError(f"{os.fspath(path)} is no file, seen from {os.getcwd()}.")
    try:
        told, tensors = read_tensors(path)
        if told["format"] != FORMAT:
            raise ValueError(
                f"its format is {told['format']!r}, but this version reads {FORMAT}"
            )
        estimator = _estimator(cls, told, backbone)
        _set_fitted(estimator, told, tensors)
        before = str(told["device"])
    except MemoryError:
        raise
    except Exception as error:  # a file may hold anything
        raise ValueError(
            f"{os.fspath(path)} cannot be loaded: {error or type(error).__name__}. It "
            "should be a file that save has written, complete."
        ) from error
    if device is not None:
        estimator.device = device
        estimator.device_ = resolve_device(device)
    else:
        try:
            estimator.device_ = resolve_device(before)
        except ValueError:  # it was fitted on another machine
            estimator.device_ = torch.device("cpu")
    return estimator


def _plain_params(estimator) -> dict:
    """Return parameters as JSON has them; warns of what has no such form."""
    plain = {}
    for name, value in estimator.get_params(deep=False).items():
        if isinstance(value, torch.nn.Module):
            value = "auto"
        elif name == "clusterer" and not isinstance(value, str):
            warn(
                f"clusterer is a {type(value).__name__}, which is not saved: the "
                "loaded estimator has clusterer='kmeans'. Set it again before "
                "another fit.",
            )
            value = "kmeans"
        elif isinstance(value, bool | str | None):
            pass
        elif isinstance(value, Integral):
            value = int(value)
        elif isinstance(value, Real):
            value = float(value)
        elif isinstance(value, tuple | list) and name != "callbacks":
            value = [int(v) for v in value]
        elif isinstance(value, os.PathLike | torch.device):
            value = str(value)
        else:
            warn(
                f"{name} is a {type(value).__name__}, which is not saved: the loaded "
                f"estimator has {name}=None. Set it again before another fit.",
            )
            value = None
        plain[name] = value
    return plain


def _estimator(cls, told: dict, backbone: torch.nn.Module | None):
    params = dict(told["params"])
    if told["custom_backbone"]:
        if not isinstance(backbone, torch.nn.Module):
            raise ValueError(
                "its backbone was an nn.Module, which is not saved: pass one that is "
                "built alike as load(path, backbone=...)"
            )
        params["backbone"] = backbone
    elif backbone is not None:
        raise ValueError(f"its backbone is {params['backbone']!r}: pass none to load")
    for name, value in params.items():  # JSON has no tuples
        if isinstance(value, list):
            params[name] = tuple(value)
    estimator = cls(**params)
    estimator._validate_params()
    return estimator


def _set_fitted(estimator, told: dict, tensors: dict[str, torch.Tensor]) -> None:
    """Set all fitted attributes, each after a check of its type and shape."""
    shape, n_features_in = told["image_shape"], told["n_features_in"]
    if shape is not None:
        shape = tuple(_integer(side) for side in shape)
        if len(shape) != 3:
            raise ValueError("its image_shape has not three sides")
    network = _network(estimator, shape or (_integer(n_features_in),), tensors)
    centers = _array(tensors, "cluster_centers", np.float32, 2)
    n_groups, n_features = centers.shape
    if n_features != network.n_features:
        raise ValueError("its cluster centers have not the size of its embedding")
    estimator._groups = _groups(told["groups"], n_groups, n_features, tensors)
    labels = _array(tensors, "labels", np.int32, 1)
    if len(labels) and not (labels.min() >= -1 and labels.max() < n_groups):
        raise ValueError("its labels are out of range")
    estimator.labels_, estimator.cluster_centers_ = labels, centers
    estimator.skipped_ = _array(tensors, "skipped", np.int64, 1)
    estimator.paths_ = None
    if "paths" in tensors:
        names = _array(tensors, "paths", np.uint8, 1).tobytes().split(b"\0")
        estimator.paths_ = np.array([os.fsdecode(name) for name in names])
    estimator.module_ = network
    estimator.image_shape_ = shape
    estimator.n_features_in_ = _integer(n_features_in)
    if told["feature_names"] is not None:
        columns = np.array([str(n) for n in told["feature_names"]], dtype=object)
        estimator.feature_names_in_ = columns
    estimator.n_iter_ = _integer(told["n_iter"])
    estimator.inertia_ = float(told["inertia"])
    estimator.history_ = [dict(record) for record in told["history"]]
    estimator._n_features_out = network.n_features
    estimator._dtype = DTYPES[told["dtype"]]
    estimator._image_dtype = {"uint8": np.uint8, "float32": np.float32}[
        told["image_dtype"]
    ]


def _network(estimator, shape: tuple, tensors: dict[str, torch.Tensor]) -> Network:
    """Build the network without memory for its weights, then take the file's."""
    weights = {
        name.removeprefix(MODULE): tensor
        for name, tensor in tensors.items()
        if name.startswith(MODULE)
    }
    constants = [
        weights[f"front.0.{name}"].flatten().numpy() for name in ("mean", "scale")
    ]
    if not all(len(c) == shape[0] and np.isfinite(c).all() for c in constants):
        raise ValueError("its mean and scale do not fit its images")
    backbone = estimator.backbone
    custom = isinstance(backbone, torch.nn.Module)
    where = "cpu" if custom else "meta"
    with torch.device(where):
        network = build_network(
            backbone,
            shape,
            *constants,
            sobel=estimator.sobel,
            head_norm=estimator.head_norm,
            n_projected=projected_size(estimator.get_params(deep=False)),
        )
    expected = network.state_dict()
    for name in expected.keys() | weights.keys():
        forms = [
            (tuple(found[name].shape), found[name].dtype) if name in found else None
            for found in (expected, weights)
        ]
        if forms[0] != forms[1]:
            raise ValueError(
                f"its weights do not fit the backbone: {name} should be {forms[0]}, "
                f"but is {forms[1]}"
            )
    network.load_state_dict(weights, assign=True)
    # Masks of a user's module may hold infinities.
    checked = network.parameters() if custom else network.state_dict().values()
    if not all(bool(values.isfinite().all()) for values in checked):
        raise ValueError("its weights are not finite")
    return network.to(memory_format=torch.channels_last) if len(shape) == 3 else network


def _groups(kind: dict, n_groups: int, n_features: int, tensors: dict):
    if kind["kind"] == "linear":
        weights = _array(tensors, "groups.weights", np.float64, 2)
        bias = _array(tensors, "groups.bias", np.float64, 1)
        if weights.shape != (n_features, n_groups) or bias.shape != (n_groups,):
            raise ValueError("its groups have not the size of its embedding")
        return LinearAssigner(weights, bias)
    if kind["kind"] != "nearest":
        raise ValueError(f"its groups are of an unknown kind, {kind['kind']!r}")
    centers = _array(tensors, "groups.centers", np.float32, 2)
    mean = _array(tensors, "groups.mean", np.float32, 1)
    components = _array(tensors, "groups.components", np.float32, 2)
    shapes = (len(centers), components.shape, mean.shape)
    if shapes != (n_groups, (n_features, centers.shape[1]), (n_features,)):
        raise ValueError("its groups have not the size of its embedding")
    return NearestCenterAssigner(
        Projection(mean, components, bool(kind["normalize"])), centers
    )


def _array(tensors: dict, name: str, dtype: type, ndim: int) -> np.ndarray:
    values = tensors[name].numpy()
    if values.dtype != dtype or values.ndim != ndim:
        raise ValueError(f"its {name} are {values.dtype} in {values.ndim} dimensions")
    if not np.isfinite(values).all():
        raise ValueError(f"its {name} are not finite")
    return values


def _integer(value) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"it holds {value!r} where a number is due")
    return value
