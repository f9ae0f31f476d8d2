"""Save a fitted estimator to one file without pickle, and load it."""

import math
import os
from collections.abc import Callable
from dataclasses import asdict
from enum import Enum
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch

from ._clustering.editing import default_names, rename_clusters
from ._clustering.storage import check_array, pack_clusters, unpack_clusters
from ._editing import cluster_attributes
from ._fit.callback_runner import copy_history
from ._fit.recipe import NETWORK_PARAMETERS, Parameters
from ._inputs.image_format import ImageFormat
from ._inputs.read import NO_CLUSTER
from ._inputs.spec import InputFormat
from ._training.network import (
    BackboneSetup,
    Network,
    build_network,
    name_of_function,
)
from ._training.pretrained import Preprocessing
from ._utils.device import resolve_device
from ._utils.files import escape_path
from ._utils.messages import warn
from ._utils.tensors import read_tensors, write_tensors

# Version of the file. A release that changes it keeps a reader for each older version.
FORMAT = 1
# Largest number of values of an image, such as those of 9,000x9,000 pixels in color.
MAX_IMAGE_VALUES = 2**28
# Start of the names of weights among the tensors of a file.
WEIGHT_PREFIX = "module."
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# Fields of an image format that say how new images are decoded.
DECODING = (
    "resize",
    "shorter_side",
    "interpolation",
    "number_types",
    "white",
    "has_alpha",
)
# Parameters that name folders of the machine on which the estimator was fitted.
FOLDERS = ("cache_dir", "checkpoint_dir")
IMAGE_DTYPES = {"uint8": np.uint8, "float32": np.float32}


def save(estimator, path: str | os.PathLike) -> None:
    """Write a fitted estimator to a file; see `DeepClusterEstimator.save`."""
    clusters, arrays = pack_clusters(
        estimator._cluster_model,
        estimator._membership.probabilities,
        leaf_labels=estimator.leaf_labels_,
    )
    if estimator.paths_ is not None:
        # Safetensors has no strings.
        paths = b"\0".join(map(_encode_path, estimator.paths_.tolist()))
        arrays["paths"] = np.frombuffer(paths, np.uint8)
    origin = estimator._input_format.origin
    if origin is not None:
        arrays["origin"] = origin
    tensors = {
        name: torch.from_numpy(np.array(array, order="C"))
        for name, array in arrays.items()
    }
    for name, weight in estimator.module_.state_dict().items():
        tensors[WEIGHT_PREFIX + name] = weight
    feature_names = getattr(estimator, "feature_names_in_", None)
    network_parameters = estimator._network_parameters
    image_format = estimator._input_format.image_format
    # A file with parameters that were set to invalid values could not be loaded.
    estimator._validate_params()
    metadata = {
        "format": FORMAT,
        "params": {
            name: _serialize_parameter(name, value, network_parameters)
            for name, value in estimator.get_params(deep=False).items()
        },
        "network_params": {
            name: _serialize_parameter(name, value, network_parameters)
            for name, value in network_parameters.items()
        },
        "custom_backbone": isinstance(network_parameters["backbone"], torch.nn.Module),
        "backbone_setup": _describe_setup(estimator.module_),
        "clusters": clusters,
        "cluster_names": estimator.cluster_names_.tolist(),
        "dtype": str(estimator._dtype).removeprefix("torch."),
        "image_dtype": np.dtype(estimator._input_format.dtype).name,
        "image_shape": estimator.image_shape_,
        "decoding": None
        if image_format is None
        else {name: getattr(image_format, name) for name in DECODING},
        "feature_names": None if feature_names is None else list(feature_names),
        "n_features_in": int(estimator.n_features_in_),
        "n_iter": int(estimator.n_iter_),
        "recipe": estimator.recipe_,
        "history": copy_history(estimator.history_),
        "device": str(estimator.device_),
    }
    write_tensors(path, metadata, tensors)


def _encode_path(path: str) -> bytes:
    """Return the bytes of a path, the same in every locale, without a zero byte."""
    # No file has a name with a zero byte or with surrogates that stand for no byte, but
    # on_error="skip" takes such a name.
    path = path.replace("\0", "\\x00")
    try:
        return path.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return escape_path(path).encode()


def _describe_setup(network: Network) -> dict:
    """Return JSON values from which `_load_setup` makes a `BackboneSetup`."""
    setup = network.setup
    preprocessing = setup.preprocessing
    return {
        "is_given": setup.is_given,
        "preprocessing": None if preprocessing is None else asdict(preprocessing),
        "has_function": setup.function is not None,
        "black": setup.black,
        "white": setup.white,
        "is_decoded": setup.is_decoded,
    }


def load(
    cls,
    path: str | os.PathLike,
    device,
    backbone: torch.nn.Module | None,
    preprocess: Callable | None = None,
):
    """Read a file that `save` wrote; see `DeepClusterEstimator.load`."""
    if not os.path.isfile(path):
        raise ValueError(
            f"{escape_path(path)} is no file. Relative paths start at "
            f"{escape_path(os.getcwd())}."
        )
    try:
        metadata, tensors = read_tensors(path)
        if metadata["format"] != FORMAT:
            raise ValueError(
                f"its format is {metadata['format']!r}, but this version reads {FORMAT}"
            )
        estimator = _build_estimator(cls, metadata, backbone, preprocess)
        _set_fitted(estimator, metadata, tensors)
        saved_device = str(metadata["device"])
    except MemoryError:
        raise
    except _WrongArgument as error:
        raise ValueError(f"{escape_path(path)} cannot be loaded: {error}.") from error
    except Exception as error:
        # A file from an unknown source may raise any error.
        raise ValueError(
            f"{escape_path(path)} cannot be loaded: {error or type(error).__name__}. "
            "It should be a complete file that save has written."
        ) from error
    if device is not None:
        estimator.device = device
        estimator.device_ = resolve_device(device)
    else:
        try:
            estimator.device_ = resolve_device(saved_device)
        except ValueError:
            # The estimator was fitted on a machine with another device.
            estimator.device_ = torch.device("cpu")
    return estimator


def _serialize_parameter(name: str, value, network_parameters: dict):
    """Return a parameter as a JSON value; warn if it has no JSON value.

    None stands for the module or function of the network, which the user passes again
    to `load`.
    """
    is_passed_again = name in ("backbone", "preprocess") and not isinstance(value, str)
    if is_passed_again and value is network_parameters[name]:
        return None
    if isinstance(value, Enum):
        return str(value)
    if isinstance(value, bool | str | None):
        return value
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value)
    if isinstance(value, tuple | list) and name != "callbacks":
        return [int(entry) for entry in value]
    if isinstance(value, os.PathLike):
        return os.fsdecode(value)
    if isinstance(value, torch.device):
        return str(value)
    default = {"clusterer": "kmeans", "backbone": "auto", "preprocess": "auto"}.get(
        name
    )
    warn(
        f"{name} is a {type(value).__name__}, which is not saved: the loaded estimator "
        f"has {name}={default!r}. Set {name} again before another fit."
    )
    return default


class _WrongArgument(ValueError):
    """An argument of `load` that does not fit the file."""


def _build_estimator(
    cls,
    metadata: dict,
    backbone: torch.nn.Module | None,
    preprocess: Callable | None,
):
    """Return an unfitted estimator with the parameters of a file."""
    # A file from an unknown source must not choose folders that a fit writes to.
    params = _lists_to_tuples(metadata["params"]) | dict.fromkeys(FOLDERS)
    # Older files hold the parameters once, as they were when the file was saved.
    network_params = _lists_to_tuples(metadata.get("network_params", params))
    objects: dict[str, Any] = {}
    if metadata["custom_backbone"]:
        if not isinstance(backbone, torch.nn.Module):
            raise _WrongArgument(
                "its backbone was an nn.Module, which is not saved: pass a module of "
                "the same architecture as load(path, backbone=...)"
            )
        objects["backbone"] = backbone
    elif backbone is not None:
        raise _WrongArgument(
            f"its backbone is {network_params['backbone']!r}: remove backbone= from "
            "load"
        )
    if metadata["backbone_setup"]["has_function"]:
        if not callable(preprocess):
            raise _WrongArgument(
                "its preprocess was a function, which is not saved: pass it again as "
                "load(path, preprocess=...)"
            )
        objects["preprocess"] = preprocess
        saved_name = metadata["recipe"].get("standardization")
        if name_of_function(preprocess) != saved_name:
            warn(
                f"preprocess was {saved_name} when the file was saved, and is now "
                f"{name_of_function(preprocess)}. Another function changes predictions."
            )
    elif preprocess is not None:
        raise _WrongArgument(
            f"its preprocess is {network_params['preprocess']!r}: remove preprocess= "
            "from load"
        )
    network_params |= objects
    for name, value in objects.items():
        # The parameter may have been set to another value after the fit.
        if params[name] is None or "network_params" not in metadata:
            params[name] = value
    network_params = {name: network_params[name] for name in NETWORK_PARAMETERS}
    for values in (params | network_params, params):
        estimator = cls(**values)
        estimator._validate_params()
    estimator._network_parameters = network_params
    return estimator


def _lists_to_tuples(values: dict) -> dict:
    """Return values from JSON, which has no tuples."""
    return {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in values.items()
    }


def _set_fitted(estimator, metadata: dict, tensors: dict[str, torch.Tensor]) -> None:
    """Set all fitted attributes, each after a check of its type and shape."""
    shape, n_features_in = metadata["image_shape"], metadata["n_features_in"]
    if shape is not None:
        shape = tuple(_check_integer(side) for side in shape)
        if len(shape) != 3:
            raise ValueError("its image_shape should have three sides")
        # A batch of such images would exceed any memory.
        if math.prod(shape) > MAX_IMAGE_VALUES:
            raise ValueError(f"its image_shape={shape} is too large")
    n_features_in = _check_integer(n_features_in)
    parameters = Parameters(
        **estimator.get_params(deep=False) | estimator._network_parameters
    )
    setup = _load_setup(parameters, metadata["backbone_setup"])
    network = _load_network(parameters, shape or (n_features_in,), tensors, setup)
    arrays = {
        name: tensor.numpy()
        for name, tensor in tensors.items()
        if not name.startswith(WEIGHT_PREFIX)
    }
    cluster_model, membership, leaf_labels = unpack_clusters(
        metadata["clusters"], arrays, n_features=network.n_features
    )
    cluster_names = _load_names(metadata["cluster_names"], cluster_model.n_clusters)
    vars(estimator).update(
        cluster_attributes(cluster_model, leaf_labels, cluster_names)
    )
    estimator._membership = membership
    estimator.skipped_ = np.flatnonzero(leaf_labels == NO_CLUSTER)
    estimator.paths_ = None
    if "paths" in arrays:
        paths = check_array(arrays, "paths", np.uint8, ndim=1).tobytes()
        estimator.paths_ = np.array(
            [path.decode("utf-8", "surrogateescape") for path in paths.split(b"\0")],
            dtype=object,
        )
        if len(estimator.paths_) != len(leaf_labels):
            raise ValueError("its paths do not fit its labels")
    estimator.module_ = network
    estimator.image_shape_ = shape
    estimator.n_features_in_ = n_features_in
    if metadata["feature_names"] is not None:
        names = [str(name) for name in metadata["feature_names"]]
        estimator.feature_names_in_ = np.array(names, dtype=object)
    estimator.n_iter_ = _check_integer(metadata["n_iter"])
    estimator.recipe_ = _lists_to_tuples(dict(metadata["recipe"]))
    estimator.history_ = [dict(record) for record in metadata["history"]]
    estimator._n_features_out = network.n_features
    estimator._dtype = DTYPES[metadata["dtype"]]
    dtype = IMAGE_DTYPES[metadata["image_dtype"]]
    origin = None
    if "origin" in arrays:
        origin = check_array(arrays, "origin", np.float64, ndim=1)
        if shape is not None or len(origin) != n_features_in:
            raise ValueError("its origin does not fit its rows")
    estimator._input_format = InputFormat(
        shape or (n_features_in,),
        dtype,
        *network.input_statistics,
        image_format=None
        if shape is None
        else _load_image_format(metadata, shape, dtype),
        origin=origin,
    )


def _load_setup(parameters: Parameters, values: dict) -> BackboneSetup:
    """Return the setup that `_describe_setup` has described."""
    preprocessing = values["preprocessing"]
    if preprocessing is not None:
        preprocessing = Preprocessing(**_lists_to_tuples(preprocessing))
    function = parameters.preprocess if values["has_function"] else None
    assert not isinstance(function, str)
    return BackboneSetup(
        is_given=bool(values["is_given"]),
        weights=parameters.weights,
        preprocessing=preprocessing,
        function=function,
        black=float(values["black"]),
        white=float(values["white"]),
        is_decoded=bool(values["is_decoded"]),
    )


def _load_image_format(metadata: dict, shape, dtype: type) -> ImageFormat:
    options = _lists_to_tuples(metadata["decoding"])
    if options.keys() != set(DECODING):
        raise ValueError(f"its decoding has the entries {sorted(options)}")
    if options["shorter_side"] is not None:
        _check_integer(options["shorter_side"])
    if options["white"] is not None and not 0 < float(options["white"]) < np.inf:
        raise ValueError(f"its white is {options['white']}")
    return ImageFormat(shape, dtype, **options)


def _load_network(
    parameters: Parameters,
    shape: tuple[int, ...],
    tensors: dict[str, torch.Tensor],
    setup: BackboneSetup,
) -> Network:
    """Return the network of the parameters, with the weights of a file."""
    weights = {
        name.removeprefix(WEIGHT_PREFIX): tensor
        for name, tensor in tensors.items()
        if name.startswith(WEIGHT_PREFIX)
    }
    statistics = [
        weights[f"front.0.{name}"].flatten().numpy() for name in ("mean", "scale")
    ]
    # Given weights take three channels, whatever the images have.
    sizes = (3,) if setup.uses_preprocessing else (shape[0],)
    if not all(len(s) in sizes and np.isfinite(s).all() for s in statistics):
        raise ValueError("its mean and scale do not fit its images")
    is_custom = isinstance(parameters.backbone, torch.nn.Module)
    # On the meta device a forged file that names a huge network takes no memory.
    uses_cpu = is_custom or setup.function is not None
    with torch.device("cpu" if uses_cpu else "meta"):
        network = build_network(
            parameters.backbone,
            shape,
            *statistics,
            sobel=parameters.sobel,
            head_norm=parameters.head_norm,
            n_projected=parameters.n_projected,
            setup=setup,
            loads_weights=False,
        )
    _check_weights(weights, expected=network.state_dict())
    network.load_state_dict(weights, assign=True)
    # Buffers of a user's module, such as masks, may be infinite.
    checked = network.parameters() if is_custom else network.state_dict().values()
    if not all(bool(values.isfinite().all()) for values in checked):
        raise ValueError("its weights are not finite")
    if len(shape) == 3:
        return network.to(memory_format=torch.channels_last)
    return network


def _check_weights(
    weights: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]
) -> None:
    """Raise an error unless weights have the expected names, shapes and dtypes."""

    def describe(tensors: dict[str, torch.Tensor], name: str):
        if name not in tensors:
            return None
        return tuple(tensors[name].shape), tensors[name].dtype

    for name in expected.keys() | weights.keys():
        if describe(expected, name) != describe(weights, name):
            raise ValueError(
                f"its weights do not fit the backbone: {name} should be "
                f"{describe(expected, name)}, but is {describe(weights, name)}"
            )


def _load_names(names: list, n_clusters: int) -> np.ndarray:
    if len(names) != n_clusters:
        raise ValueError("its cluster_names do not fit its clusters")
    return rename_clusters(default_names(n_clusters), dict(enumerate(names)))


def _check_integer(value) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"it holds {value!r} in place of a number")
    return value
