"""Checks of nested values from a file, which may hold anything."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

# Numbers beyond this overflow in the first calculation.
MAX_NUMBER = 1e300


class InvalidContent(ValueError):
    """A value that the writer of a file would not have written."""


@dataclass(frozen=True)
class Number:
    """A finite number within bounds, and an integer if `is_integer`."""

    low: float = -MAX_NUMBER
    high: float = MAX_NUMBER
    is_integer: bool = False

    def check(self, value: Any, name: str) -> None:
        """Raise InvalidContent unless the value is such a number."""
        # A bool is an int, hence the comparison of types. NaN is within no bounds.
        types = (int,) if self.is_integer else (int, float)
        if type(value) not in types or not self.low <= value <= self.high:
            raise InvalidContent(
                f"{name} should be a number from {self.low} to {self.high}, but is "
                f"{_describe(value)}"
            )


@dataclass(frozen=True)
class Tensor:
    """A tensor, or an array of numpy if `dtype` is one of numpy's.

    Parameters
    ----------
    dtype : torch.dtype or np.dtype
    shape : tuple of int or None
        Length of each axis. None is any length.
    is_finite : bool, default=True
        Whether all values have to be finite.
    """

    dtype: torch.dtype | np.dtype
    shape: tuple[int | None, ...]
    is_finite: bool = True

    @classmethod
    def like(cls, tensor: torch.Tensor) -> "Tensor":
        """Return the schema of a tensor that is to be replaced."""
        # Buffers of a user's module, such as masks, may be infinite.
        is_finite = isinstance(tensor, torch.nn.Parameter)
        return cls(tensor.dtype, tuple(tensor.shape), is_finite)

    def check(self, value: Any, name: str) -> None:
        """Raise InvalidContent unless the value is such a tensor."""
        is_numpy = isinstance(self.dtype, np.dtype)
        is_valid = (
            isinstance(value, np.ndarray if is_numpy else torch.Tensor)
            and value.dtype == self.dtype
            and len(value.shape) == len(self.shape)
            and all(
                expected in (None, length)
                for length, expected in zip(value.shape, self.shape, strict=True)
            )
        )
        if not is_valid:
            raise InvalidContent(
                f"{name} should be {self.dtype} of shape {self.shape}, but is "
                f"{_describe(value)}"
            )
        if self.is_finite and not bool(torch.as_tensor(value).isfinite().all()):
            raise InvalidContent(f"{name} holds values that are not finite")


@dataclass(frozen=True)
class Maybe:
    """A value of a schema, or None."""

    entry: Any

    def check(self, value: Any, name: str) -> None:
        """Raise InvalidContent unless the value is None or of the schema."""
        if value is not None:
            check_content(value, self.entry, name)


@dataclass(frozen=True)
class ListOf:
    """A list of values of one schema, with a length within bounds."""

    entry: Any
    min_length: int = 0
    max_length: float = MAX_NUMBER

    def check(self, value: Any, name: str) -> None:
        """Raise InvalidContent unless the value is such a list."""
        if (
            not isinstance(value, list)
            or not self.min_length <= len(value) <= self.max_length
        ):
            raise InvalidContent(
                f"{name} should be a list of {self.min_length} to {self.max_length} "
                f"values, but is {_describe(value)}"
            )
        for i, entry in enumerate(value):
            check_content(entry, self.entry, f"{name}[{i}]")


@dataclass(frozen=True)
class DictOf:
    """A dictionary of values of one schema, with at least the keys of `required`."""

    entry: Any
    required: Mapping[str, Any] = field(default_factory=dict)

    def check(self, value: Any, name: str) -> None:
        """Raise InvalidContent unless the value is such a dictionary."""
        if not isinstance(value, dict) or not self.required.keys() <= value.keys():
            raise InvalidContent(
                f"{name} should be a dictionary with {sorted(self.required)}, but is "
                f"{_describe(value)}"
            )
        for key, entry in value.items():
            check_content(entry, self.required.get(key, self.entry), f"{name}.{key}")


class Anything:
    """Any value, which is checked elsewhere."""

    def check(self, value: Any, name: str) -> None:
        """Accept the value."""


def check_content(value: Any, schema: Any, name: str) -> None:
    """Raise an error unless nested values have the expected types and sizes.

    Parameters
    ----------
    value : nested dict and list of tensors, arrays and plain values
    schema : object
        One of the classes of this module, a dictionary of a schema for each key, a list
        of a schema for each entry, or None for None.
    name : str
        Name of the value in the error.

    Raises
    ------
    InvalidContent
        If a value does not fit, with its name.
    """
    if isinstance(schema, dict):
        if not isinstance(value, dict) or value.keys() != schema.keys():
            raise InvalidContent(
                f"{name} should have the entries {sorted(schema)}, but is "
                f"{_describe(value)}"
            )
        for key, entry in schema.items():
            check_content(value[key], entry, f"{name}.{key}")
    elif isinstance(schema, list):
        if not isinstance(value, list) or len(value) != len(schema):
            raise InvalidContent(
                f"{name} should have {len(schema)} values, but is {_describe(value)}"
            )
        for i, entry in enumerate(schema):
            check_content(value[i], entry, f"{name}[{i}]")
    elif schema is not None:
        schema.check(value, name)
    elif value is not None:
        raise InvalidContent(f"{name} should be None, but is {_describe(value)}")


def _describe(value: Any) -> str:
    """Return a short text, since a value from a file may be long."""
    if isinstance(value, np.ndarray | torch.Tensor):
        return f"{value.dtype} of shape {tuple(value.shape)}"
    if isinstance(value, dict):
        return f"a dictionary with {len(value)} entries"
    if isinstance(value, list):
        return f"a list of {len(value)} values"
    return f"{value!r:.40}"
