"""Class labels y, some of which may be unknown, as integer codes."""

from typing import Any

import numpy as np

from .arrays import as_array

# Code of an unknown class.
UNKNOWN_CLASS = -1


def read_classes(y: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return class labels as an array, and a mask of unknown classes.

    Parameters
    ----------
    y : array-like
        NaN, None, pandas' NA and NaT, nulls of polars and masked entries stand for
        unknown classes.

    Returns
    -------
    values : ndarray
        A column vector becomes one-dimensional.
    is_unknown : ndarray of bool
        Of the same shape.
    """
    mask = np.ma.getmaskarray(y) if np.ma.isMaskedArray(y) else None
    if isinstance(y, np.ndarray) or hasattr(y, "detach"):
        values = np.asarray(as_array(np.ma.getdata(y) if mask is not None else y))
    else:
        # Numpy would turn a NaN beside strings into the string "nan".
        values = np.asarray(y, dtype=object)
    if values.dtype.kind == "O":
        flags = np.array([_is_missing(value) for value in values.ravel()], dtype=bool)
        is_unknown = flags.reshape(values.shape)
    elif values.dtype.kind in "fcmM":
        is_unknown = values != values
    else:
        is_unknown = np.zeros(values.shape, dtype=bool)
    if mask is not None:
        is_unknown = is_unknown | mask
    if values.ndim == 2 and values.shape[1] == 1:
        return values[:, 0], is_unknown[:, 0]
    return values, is_unknown


def encode_classes(values: np.ndarray, is_unknown: np.ndarray) -> np.ndarray | None:
    """Return an integer code for each class, and -1 for unknown classes.

    Parameters
    ----------
    values : ndarray of shape (n,)
    is_unknown : ndarray of shape (n,), bool

    Returns
    -------
    codes : ndarray of shape (n,), int64, or None
        None if no class is known, or if the values are no classes: fractions, or
        objects such as lists.
    """
    known = values[~is_unknown]
    if known.dtype.kind == "O":
        # Strings and numbers may be mixed, so that the values have no order.
        known = [_as_scalar(value) for value in known]
        fractions = [v for v in known if isinstance(v, float) and not v.is_integer()]
        try:
            number_of_value = {value: i for i, value in enumerate(dict.fromkeys(known))}
        except TypeError:
            return None
        numbers = np.array([number_of_value[value] for value in known], dtype=int)
    else:
        fractions = known[known != np.floor(known)] if known.dtype.kind == "f" else []
        numbers = np.unique(known, return_inverse=True)[1]
    if not len(known) or len(fractions):
        return None
    codes = np.full(len(values), UNKNOWN_CLASS)
    codes[~is_unknown] = numbers
    return codes


def _is_missing(value: Any) -> bool:
    """Return whether a value stands for an unknown class."""
    if value is None or value is np.ma.masked:
        return True
    try:
        # NaN and NaT differ from themselves.
        return bool(value != value)
    except (TypeError, ValueError):
        # pandas' NA is neither true nor false, and neither are arrays.
        return type(value).__name__ == "NAType"


def _as_scalar(value: Any) -> Any:
    """Return the Python number in a tensor without dimensions or a numpy scalar."""
    return value.item() if getattr(value, "shape", None) == () else value
