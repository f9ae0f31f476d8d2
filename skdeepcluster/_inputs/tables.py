"""2-D data as rows of numbers, with errors that name other content."""

import datetime
import os
import reprlib
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import scipy.sparse

from .arrays import as_array, check_numeric, is_table

# Forms of X that an estimator of images takes.
IMAGE_FORMS = (
    "a folder, a list of paths or images, a Dataset, images (n, H, W), (n, C, H, W) "
    "or (n, H, W, C), or rows (n, n_features)"
)

# Form of X that an estimator of rows takes.
ROW_FORMS = "rows (n, n_features), such as images.reshape(len(images), -1)"

# Types of values in a data frame that are not numbers.
NON_NUMERIC_TYPES = (str, bytes, os.PathLike, datetime.date, np.datetime64, np.ndarray)


def check_rows(X, forms: str, validate: Callable) -> np.ndarray:
    """Return rows of numbers.

    Parameters
    ----------
    X : array-like, data frame or sparse matrix
    forms : str
        Forms of X that the estimator takes, `IMAGE_FORMS` or `ROW_FORMS`.
    validate : callable
        scikit-learn's check of 2-D data.

    Raises
    ------
    ValueError, TypeError
        If X holds no rows of numbers. The error names the content of X and the forms
        to pass. Other errors of `validate` are raised as they are.
    """
    if not is_table(X):
        X = _check_two_dimensional(X, forms)
    try:
        return validate(X)
    except (TypeError, ValueError) as error:
        name_and_value = _find_non_number(X)
        if name_and_value is None:
            raise
        name, value = name_and_value
        cure = f"Pass {forms}"
        if forms == IMAGE_FORMS and hasattr(X, "columns"):
            cure = f"Drop it, or pass X[{name!r}] alone if it is images or their paths"
        error_type = TypeError if isinstance(error, TypeError) else ValueError
        raise error_type(
            f"X holds {reprlib.repr(value)} in column {name!r}, where numbers are "
            f"needed. {cure}."
        ) from error


def _check_two_dimensional(X, forms: str) -> np.ndarray:
    """Return X as an array of two dimensions."""
    values = as_array(X)
    if values.ndim == 0:
        if isinstance(X, Mapping):
            names = [name for name in ("images", "image") if name in X]
            cure = f"Pass the array in it, e.g. X[{(names or ['images'])[0]!r}]"
        elif isinstance(X, Iterator):
            cure = "Pass list(X)"
        else:
            cure = f"Pass {forms}"
        raise TypeError(f"X is of type {type(X).__name__}, not an array. {cure}.")
    if values.shape == (0,):
        raise ValueError(f"X is empty. Pass {forms}.")
    if values.ndim == 1 and values.dtype.kind not in "fiubc":
        (value,) = values[:1].tolist()
        raise TypeError(
            f"X holds {reprlib.repr(value)}, of type {type(value).__name__}, in row 0. "
            f"Pass {forms}."
        )
    if values.ndim == 1:
        raise ValueError(
            f"X has shape {values.shape}, one number in each row. Reshape your data: a "
            "single row is X[None], a single feature X[:, None]. Labels belong into y, "
            f"and X is {forms}."
        )
    if values.ndim > 2:
        raise ValueError(
            f"X has {values.ndim} dimensions, shape {values.shape}. Pass {forms}."
        )
    # scikit-learn converts objects that are numbers.
    if values.dtype.kind != "O":
        check_numeric(values)
    return values


def _find_non_number(X) -> tuple | None:
    """Return the name and the value of the first entry of row 0 that is no number."""
    if scipy.sparse.issparse(X) or not len(X):
        return None
    names = X.columns if hasattr(X, "columns") else range(X.shape[1])
    for name, value in zip(names, np.asarray(X[:1], dtype=object)[0], strict=True):
        if isinstance(value, NON_NUMERIC_TYPES):
            return name, value
    return None
