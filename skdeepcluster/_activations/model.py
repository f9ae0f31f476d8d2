"""Run a network in evaluation mode on labeled images, and cache its features."""

import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral

import numpy as np
import torch
from sklearn.utils._param_validation import Interval
from sklearn.utils.multiclass import type_of_target
from sklearn.utils.validation import check_is_fitted, check_memory
from torch import nn

from .._estimator import DeepClusterEstimator
from .._inputs.arrays import is_table
from .._inputs.collection import find_images
from .._inputs.failures import ReadFailures
from .._inputs.read import InputData, read_input
from .._inputs.sources import Source
from .._inputs.spec import InputSpec
from .._utils.hashing import hash_content
from .._utils.threads import limit_threads
from .layers import (
    Call,
    Layer,
    Reduce,
    extract_layer_features,
    find_layers,
    trace_calls,
)

# Constraints of the public functions for a model and for a positive number.
MODEL = [DeepClusterEstimator, nn.Module]
COUNT = Interval(Integral, 1, None, closed="left")


@dataclass(frozen=True)
class LabeledImages:
    """Images and their classes.

    Attributes
    ----------
    data : InputData
    failures : ReadFailures
    y : ndarray of shape (n,)
        Class of each image in `data.source`.
    """

    data: InputData
    failures: ReadFailures
    y: np.ndarray

    @property
    def is_readable(self) -> np.ndarray:
        """Mask of the images for which no read has failed so far."""
        return self.data.readable


@dataclass(frozen=True)
class EvaluatedModel:
    """A network and how to run it.

    Attributes
    ----------
    network : torch.nn.Module
    device : torch.device
    dtype : torch.dtype
        Precision of convolutions and matrix products.
    estimator : DeepClusterEstimator or None
        Estimator that holds the network; None for a module.
    """

    network: nn.Module
    device: torch.device
    dtype: torch.dtype
    estimator: DeepClusterEstimator | None

    @classmethod
    def from_model(cls, model: DeepClusterEstimator | nn.Module) -> "EvaluatedModel":
        """Wrap a fitted estimator, or a module, which runs in float32 on its device."""
        if isinstance(model, nn.Module):
            # A module stays on its device. Without tensors, that is the CPU.
            tensors = [*model.parameters(), *model.buffers()]
            return cls(
                network=model,
                device=tensors[0].device if tensors else torch.device("cpu"),
                dtype=torch.float32,
                estimator=None,
            )
        check_is_fitted(model)
        # The user may have moved the module, or assigned another one.
        model.module_.to(model.device_)
        return cls(
            network=model.module_,
            device=model.device_,
            dtype=model._dtype,
            estimator=model,
        )

    @property
    def n_jobs(self) -> int | None:
        """Number of threads; None leaves torch's setting."""
        return None if self.estimator is None else self.estimator.n_jobs

    @property
    def input_spec(self) -> InputSpec:
        """How images are read. A module takes images of any format."""
        if self.estimator is None:
            return InputSpec()
        return self.estimator._input_spec(fitted=True)

    def read(self, X, fitting: bool = False) -> tuple[InputData, ReadFailures]:
        """Read and check images.

        Parameters
        ----------
        X : images
            In any form that the estimator reads; a module takes arrays and tensors.
        fitting : bool
            True if the images are read in every epoch. Unreadable images are then
            found at once and left out of the source.
        """
        if self.estimator is None:
            _check_is_array(X)
        return read_input(X, self.input_spec, for_training=fitting)

    def read_labeled(
        self, X, y, suffix: str = "", fitting: bool = False
    ) -> LabeledImages:
        """Read images and their classes.

        Parameters
        ----------
        X : images
        y : array-like of shape (n,)
        suffix : str
            End of the parameters' names in errors, such as "_train".
        fitting : bool
            As in `read`.

        Raises
        ------
        ValueError
            If `y` does not hold one class for each image.
        """
        data, failures = self.read(X, fitting)
        y = np.asarray(y)
        if y.shape != (data.n,):
            cure = "Pass one class for each image."
            if y.ndim == 2:
                cure += f" For one-hot rows, pass y{suffix}.argmax(axis=1)."
            raise ValueError(
                f"X{suffix} holds {data.n} images, but y{suffix} has shape {y.shape}. "
                f"{cure}"
            )
        with warnings.catch_warnings():
            # scikit-learn warns if nearly every image has a class of its own.
            warnings.simplefilter("ignore")
            target_type = type_of_target(y, input_name=f"y{suffix}")
        if target_type not in ("binary", "multiclass"):
            raise ValueError(
                f"y{suffix} should hold classes, but is {target_type}. Pass integers "
                "or strings."
            )
        return LabeledImages(data, failures, y[data.rows])

    def read_split(
        self, X_train, y_train, X_test, y_test, fitting: bool = False
    ) -> tuple[LabeledImages, LabeledImages]:
        """Read training and test images, and check that they fit together.

        `fitting` applies to the training images.
        """
        train = self.read_labeled(X_train, y_train, suffix="_train", fitting=fitting)
        test = self.read_labeled(X_test, y_test, suffix="_test")
        train_shape, test_shape = train.data.source.shape, test.data.source.shape
        if train_shape != test_shape:
            raise ValueError(
                f"X_train holds images of shape {train_shape}, but X_test of "
                f"{test_shape}. Resize them to one shape."
            )
        classes = np.unique(train.y)
        if len(classes) < 2:
            raise ValueError(
                f"y_train holds a single class, {train.y[0]}. Pass images of at least "
                "two classes."
            )
        # With disjoint names, such as 1 and "1", every accuracy would be 0.
        if not np.isin(test.y, classes).any():
            test_class, train_class = test.y[:1].tolist()[0], classes[:1].tolist()[0]
            raise ValueError(
                f"y_test holds {test_class!r} and no class of y_train, which has "
                f"{train_class!r}. Use the same class names in both."
            )
        return train, test

    def trace(self, images: LabeledImages) -> list[Call]:
        """Return the calls of submodules in a forward pass of these images."""
        shape = images.data.source.shape
        return trace_calls(self.network, shape, self.device, self.dtype)

    def find_layers(
        self, images: LabeledImages, names: list[str] | None
    ) -> list[Layer]:
        """Return layers by name; None selects all default layers."""
        return find_layers(self.trace(images), names)

    def extract_features(
        self, images: LabeledImages, layers: list[Layer], reduce: Reduce, memory
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the reduced outputs of layers and the classes of readable images.

        Parameters
        ----------
        images : LabeledImages
        layers : list of Layer
        reduce : callable
            Applied to the output of each layer.
        memory : None, str or joblib.Memory
            Cache of the features. The key is a hash of the images, the weights, the
            architecture and the layers.

        Raises
        ------
        ValueError
            If no image can be read.
        """
        source = images.data.source

        def compute() -> np.ndarray:
            with limit_threads(self.n_jobs):
                return extract_layer_features(
                    self.network, source, self.device, self.dtype, layers, reduce
                )

        if memory is None:
            features = compute()
        else:
            key = self._cache_key(source, layers, reduce)
            # The key stands for the images and the network, which joblib need not hash.
            cached = check_memory(memory).cache(_compute_cached, ignore=["compute"])
            features = cached(key, compute)
        # Only reading shows which files are broken, so the mask is taken here.
        is_readable = images.is_readable
        if not is_readable.any():
            raise ValueError(
                f"None of the {len(is_readable)} images can be read. Check the files."
            )
        if is_readable.all():
            return features, images.y
        return features[is_readable], images.y[is_readable]

    def _cache_key(self, source: Source, layers: list[Layer], reduce: Reduce) -> str:
        tensors = [*self.network.named_parameters(), *self.network.named_buffers()]
        weights = [(name, t.float()) for name, t in tensors]
        # The device and the precision change the last bits of features.
        setup = repr(self.network), self.device.type, self.dtype
        return hash_content(weights, setup, layers, reduce, _hash_batches(source))


def _compute_cached(key: str, compute: Callable[[], np.ndarray]) -> np.ndarray:
    return compute()


def _hash_batches(source: Source) -> list[str]:
    """Return a hash of the pixels of each batch, which also finds broken files."""
    # A hash of a batch at a time: the images need not fit into memory.
    pieces = source.split(np.arange(len(source)))
    batches = [slice(int(rows[0]), int(rows[-1]) + 1) for rows in pieces]
    return [hash_content(batch) for batch in source.batches(batches)]


def _check_is_array(X) -> None:
    """Raise TypeError if images of X have to be decoded or resized.

    Such images are files, PIL images, datasets and arrays of mixed sizes. A torch
    module takes one array.
    """
    if isinstance(X, str | os.PathLike) or (not is_table(X) and find_images(X)):
        raise TypeError(
            "A torch module takes arrays or tensors of images of one size. For files "
            "and PIL images, assign it to module_ of a copy.copy of a fitted "
            "DeepClusterEstimator, which reads them."
        )


def warn_unreadable_images(*images: LabeledImages) -> None:
    """Warn about the images that could not be read."""
    for labeled in images:
        labeled.failures.warn(labeled.data.n)
