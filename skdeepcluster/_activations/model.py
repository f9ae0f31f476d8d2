"""A model and labeled images, in any form, -> features to be judged, and classes."""

import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral

import numpy as np
import torch
from sklearn.utils import check_array
from sklearn.utils._param_validation import Interval
from sklearn.utils.multiclass import type_of_target
from sklearn.utils.validation import check_is_fitted, check_memory
from torch import nn

from .._estimator import DeepClusterEstimator
from .._inputs.images import find_images
from .._inputs.read import InputData, read_input, warn_unreadable
from .._inputs.sources import (
    ArraySource,
    Source,
    as_array,
    check_finite,
    is_table,
    read_images,
)
from .._utils.device import limit_threads
from .._utils.hashing import hash_content
from .layers import Call, Layer, Reduce, find_layers, layer_features, trace_calls

# Of parameters: what is judged, and numbers of something.
MODEL = [DeepClusterEstimator, nn.Module]
COUNT = Interval(Integral, 1, None, closed="left")


@dataclass(frozen=True)
class LabeledImages:
    """Images, and a class for each."""

    given: InputData
    y: np.ndarray  # of the items of the source

    @property
    def readable(self) -> np.ndarray:
        """Whether each item could be read, as far as it has been tried."""
        return ~np.isin(self.given.rows, list(self.given.failures))


@dataclass(frozen=True)
class EvaluatedModel:
    """A network, and how it is run."""

    network: nn.Module
    device: torch.device
    dtype: torch.dtype  # of convolutions and products
    estimator: DeepClusterEstimator | None  # that the network belongs to

    @classmethod
    def of(cls, model: DeepClusterEstimator | nn.Module) -> "EvaluatedModel":
        """Take a fitted estimator, or any module where it is, in float32."""
        if isinstance(model, nn.Module):
            tensors = [*model.parameters(), *model.buffers()]
            device = tensors[0].device if tensors else torch.device("cpu")
            return cls(model, device, torch.float32, None)
        check_is_fitted(model)
        model.module_.to(model.device_)
        return cls(model.module_, model.device_, model._dtype, model)

    @property
    def n_jobs(self) -> int | None:
        """Number of threads; None where nothing is told."""
        return None if self.estimator is None else self.estimator.n_jobs

    def read(self, X, fitting: bool = False) -> InputData:
        """Return what X holds, after checks.

        `fitting` tells that it is read again and again. Images that cannot be read are
        then known at once, and are not in the source.
        """
        if self.estimator is None:
            source = _read_arrays(X)
            return InputData(source, len(source), np.arange(len(source)), {})
        return read_input(self.estimator, X, fitting)

    def labeled(self, X, y, suffix: str = "", fitting: bool = False) -> LabeledImages:
        """Return images and their classes, `X_train` and `y_train`, say.

        Raises
        ------
        ValueError
            If there is not one class for each image.
        """
        given = self.read(X, fitting)
        y = np.asarray(y)
        if y.shape != (given.n,):
            cure = "Pass one class for each image."
            if y.ndim == 2:
                cure += f" Of one-hot rows that is y{suffix}.argmax(axis=1)."
            elif y.ndim > 2 and suffix:
                cure = "Pass X_train, y_train, X_test and y_test in this order."
            raise ValueError(
                f"X{suffix} holds {given.n} images, but y{suffix} has shape {y.shape}. "
                f"{cure}"
            )
        with warnings.catch_warnings():  # of as many classes as images
            warnings.simplefilter("ignore")
            kind = type_of_target(y, input_name=f"y{suffix}")
        if kind not in ("binary", "multiclass"):
            raise ValueError(
                f"y{suffix} should hold classes, but is {kind}. Pass integers or "
                "strings."
            )
        return LabeledImages(given, y[given.rows])

    def split(
        self, X_train, y_train, X_test, y_test, fitting: bool = False
    ) -> tuple[LabeledImages, LabeledImages]:
        """Return images to learn classes from, and images to be judged by."""
        train = self.labeled(X_train, y_train, "_train", fitting)
        test = self.labeled(X_test, y_test, "_test")
        shapes = train.given.source.shape, test.given.source.shape
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"X_train holds items of shape {shapes[0]}, but X_test of {shapes[1]}."
            )
        classes = np.unique(train.y)
        if len(classes) < 2:
            raise ValueError(
                f"y_train holds a single class, {train.y[0]}: there is nothing to tell "
                "apart. Pass images of two classes or more."
            )
        if not np.isin(test.y, classes).any():
            one, other = test.y[:1].tolist()[0], classes[:1].tolist()[0]
            raise ValueError(
                f"y_test holds {one!r} and no class of y_train, which has {other!r}. "
                "Name classes alike in both."
            )
        return train, test

    def trace(self, images: LabeledImages) -> list[Call]:
        """Return the calls of submodules in a forward pass of such images."""
        shape = images.given.source.shape
        return trace_calls(self.network, shape, self.device, self.dtype)

    def layers(self, images: LabeledImages, names: list[str] | None) -> list[Layer]:
        """Return the layers of these names, for such images."""
        return find_layers(self.trace(images), names)

    def features(
        self, images: LabeledImages, layers: list[Layer], reduce: Reduce, memory
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return what is left of layers for the readable images, and their classes.

        Parameters
        ----------
        memory : None, str or joblib.Memory
            Where features are kept, under hashes of the images, the weights, the
            architecture and the layers.
        """
        source = images.given.source

        def compute() -> np.ndarray:
            with limit_threads(self.n_jobs):
                return layer_features(
                    self.network, source, self.device, self.dtype, layers, reduce
                )

        if memory is None:
            features = compute()
        else:
            key = self._key(source, layers, reduce)
            kept = check_memory(memory).cache(_kept, ignore=["compute"])
            features = kept(key, compute)
        readable = images.readable
        if not readable.any():
            raise ValueError(f"None of the {len(readable)} images can be read.")
        if readable.all():
            return features, images.y
        return features[readable], images.y[readable]

    def _key(self, source: Source, layers: list[Layer], reduce: Reduce) -> str:
        tensors = [*self.network.named_parameters(), *self.network.named_buffers()]
        weights = [(name, t.float()) for name, t in tensors]
        runs = repr(self.network), self.device.type, self.dtype
        return hash_content(weights, runs, layers, reduce, _hashes(source))


def _kept(key: str, compute: Callable[[], np.ndarray]) -> np.ndarray:
    return compute()


def _hashes(source: Source) -> list[str]:
    """Return hashes of the pixels, a few images at a time; broken files are noticed."""
    pieces = source.split(np.arange(len(source)))
    parts = [slice(int(rows[0]), int(rows[-1]) + 1) for rows in pieces]
    return [hash_content(batch) for batch in source.batches(parts)]


def _read_arrays(X) -> ArraySource:
    """Read what a module takes: arrays and tensors."""
    if isinstance(X, str | os.PathLike) or (not is_table(X) and find_images(X)):
        raise TypeError(
            "A torch module takes arrays or tensors of images of one size. For files "
            "and pictures, put it as module_ into a copy.copy of a fitted "
            "DeepClusterEstimator, which reads them."
        )
    values = X if is_table(X) else as_array(X)
    if getattr(values, "ndim", 2) in (3, 4):
        source = read_images(values, None, fitted=False)
    else:
        kinds = [np.float32, np.float64, np.uint8, np.float16]
        source = ArraySource(check_array(values, dtype=kinds, ensure_all_finite=False))
    check_finite(source)
    return source


def warn_unreadable_images(*images: LabeledImages) -> None:
    """Warn of images that could not be read."""
    for each in images:
        warn_unreadable(each.given.failures, each.given.n)
