"""X that is no images -> rows of numbers, or words that say what it holds instead."""

import datetime
import os
import reprlib
from collections.abc import Callable

import numpy as np
import scipy.sparse

from .sources import as_array, check_numeric, is_table

# What an estimator of pictures takes, and one of rows.
IMAGE_FORMS = (
    "a folder, a list of paths or pictures, a Dataset, images (n, H, W), (n, C, H, W) "
    "or (n, H, W, C), or rows (n, n_features)"
)
ROW_FORMS = "rows (n, n_features), such as images.reshape(len(images), -1)"

# What a column of a data frame may hold in place of numbers.
TEXT_TYPES = (str, bytes, os.PathLike, datetime.date, np.datetime64, np.ndarray)


def check_rows(X, forms: str, check: Callable) -> np.ndarray:
    """Return rows of numbers.

    Parameters
    ----------
    X : whatever a user passes
    forms : str
        What is taken: `PICTURES` or `ROWS`.
    check : callable
        scikit-learn's check of a data frame, a sparse matrix or a 2-D array.

    Raises
    ------
    ValueError, TypeError
        Saying what `X` is and what to pass, or as `check` does.
    """
    if not is_table(X):
        X = _two_dimensions(X, forms)
    try:
        return check(X)
    except (TypeError, ValueError) as error:
        words = _find_text(X)
        if words is None:
            raise
        name, value = words
        cure = f"Pass {forms}"
        if forms == IMAGE_FORMS and hasattr(X, "columns"):
            cure = f"Drop it, or pass X[{name!r}] alone if it is images or their paths"
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(
            f"X holds {reprlib.repr(value)} in column {name!r}, where numbers are "
            f"needed. {cure}."
        ) from error


def _two_dimensions(X, forms: str) -> np.ndarray:
    values = as_array(X)
    if values.ndim == 0:
        raise TypeError(
            f"X is of type {type(X).__name__}, which has no rows. Pass list(X) of a "
            "generator, of a dict or a Bunch the entry that has them, or else "
            f"{forms}."
        )
    if values.shape == (0,):
        raise ValueError(f"X is empty. Pass {forms}.")
    if values.ndim == 1 and values.dtype.kind not in "fiubc":
        (first,) = values[:1].tolist()
        raise TypeError(
            f"X holds {reprlib.repr(first)}, of type {type(first).__name__}, in row 0. "
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
    if values.dtype.kind != "O":  # of which scikit-learn takes those of numbers
        check_numeric(values)
    return values


def _find_text(X) -> tuple | None:
    """Return the first column that holds no numbers, and its first value."""
    if scipy.sparse.issparse(X) or not len(X):
        return None
    names = X.columns if hasattr(X, "columns") else range(X.shape[1])
    for name, value in zip(names, np.asarray(X[:1], dtype=object)[0], strict=True):
        if isinstance(value, TEXT_TYPES):
            return name, value
    return None
