"""What a user passes to `fit`, `transform` and the rest -> a source and classes."""

import math

import numpy as np
from sklearn.utils.multiclass import type_of_target
from sklearn.utils.validation import validate_data

from ._images import (
    Source,
    as_array,
    check_finite,
    checked_shape,
    is_table,
    read_images,
    read_rows,
)


def read(estimator, X, reset: bool = False) -> Source:
    """Return the source of X, after checks.

    Parameters
    ----------
    estimator : DeepClusterEstimator
        Its `n_features_in_` and `feature_names_in_` are set, or compared with.
    X : array-like or tensor
        Images or rows.
    reset : bool
        Whether X is what `fit` learns from, rather than new images for a fitted one.

    Raises
    ------
    ValueError, TypeError
        Saying what is wrong with X.
    """
    given = estimator.image_shape
    shape = checked_shape(given) if reset else estimator.image_shape_
    X = X if is_table(X) else as_array(X)
    if getattr(X, "ndim", 2) in (3, 4):
        if not reset and shape is None:
            raise ValueError(
                f"X has shape {X.shape}, but fit saw rows of "
                f"{estimator.n_features_in_} values. Pass rows (n, n_features)."
            )
        source = read_images(X, shape, fitted=not reset)
        if reset:
            estimator.n_features_in_ = math.prod(source.shape)
            vars(estimator).pop("feature_names_in_", None)
    else:
        if not reset and shape is not None and given is None:
            raise ValueError(
                f"X has 2 dimensions, but fit saw images of shape {shape}. Reshape "
                f"X to (n, {', '.join(map(str, shape))})."
            )
        # What is in the list of dtypes stays as it is, in particular uint8.
        values = validate_data(
            estimator,
            X,
            reset=reset,
            dtype=[np.float32, np.float64, np.uint8, np.float16],
            ensure_all_finite=False,
        )
        source = read_rows(values, shape)
    if reset and len(source) < 2:
        raise ValueError(
            "Found array with 1 sample(s) (n_samples=1) while a minimum of 2 is "
            "required: one image cannot be clustered."
        )
    check_finite(source)
    return source


def class_labels(y, n: int) -> np.ndarray | None:
    """Return y where it holds one class for each image, else None."""
    if y is None:
        return None
    y = np.asarray(y)
    if y.shape[:1] != (n,):
        raise ValueError(
            f"Found input variables with inconsistent numbers of samples: X has {n}, "
            f"y has shape {y.shape}."
        )
    return y if y.ndim == 1 and type_of_target(y) in ("binary", "multiclass") else None
