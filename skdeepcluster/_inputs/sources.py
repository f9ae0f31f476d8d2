"""Every accepted X -> one indexed source of images (C, H, W) or rows (d,)."""

import math
import mmap
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np
import scipy.sparse
import torch

from .._utils.messages import warn
from .failures import ReadFailures

# A batch of this many values at a time is checked or measured: 64 MiB of float32.
CHUNK_VALUES = 2**24
MAPPED_BYTES = 2**27  # of a memory map in memory before its pages are given back, or
MAPPED_ROWS = 512  # rows that were read one by one: each brings pages around it along
RAGGED = (
    "Rows must have one length; only images, arrays of 2 or 3 dimensions each, may "
    "differ in size."
)
MAX_ABS_VALUE = 2.0**100  # number, about 1e30: sums of a batch of them fit into float32


class Source(ABC):
    """Images or rows that are read by the batch."""

    # Record of unreadable rows of X; None if reading cannot fail.
    failures: ReadFailures | None = None

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of items."""

    @abstractmethod
    def part(self, rows: slice) -> "Source":
        """Return the items at `rows` as a source, without reading them."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Shape of one item: (C, H, W) for an image, (d,) for a row."""

    @property
    @abstractmethod
    def dtype(self) -> type:
        """Of the batches: np.uint8 or np.float32."""

    @abstractmethod
    def batch(self, rows: slice | np.ndarray) -> torch.Tensor:
        """Return the items at `rows` as a new tensor."""

    @abstractmethod
    def batches(self, parts: Sequence[slice | np.ndarray]) -> Iterator[torch.Tensor]:
        """Return the items at each of `parts` in turn, as `batch` does."""

    def split(self, rows: np.ndarray) -> list[np.ndarray]:
        """Split rows into pieces whose items are of bounded size."""
        step = max(1, CHUNK_VALUES // max(1, math.prod(self.shape)))
        return [rows[start : start + step] for start in range(0, len(rows), step)]

    def take(self, rows: np.ndarray) -> "ArraySource":
        """Read the items at `rows` into memory."""
        return ArraySource(torch.cat(list(self.batches(self.split(rows)))).numpy())

    def statistics(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return mean and scale of the items at `rows`, for standardizing.

        An image has one mean and one scale for each channel. A row has a mean for
        each feature but one common scale: how features compare is left as given.
        """
        axes = (0,) if len(self.shape) == 1 else (0, 2, 3)
        count, mean, power = 0, np.zeros(1), np.zeros(1)
        for batch in self.batches(self.split(rows)):
            # In one order of values whatever the layout, so that sums are the same.
            part = np.ascontiguousarray(batch.numpy(), dtype=np.float64)
            count += (n := len(part))
            # Chan's update: exact for data whose mean is large against its spread.
            delta = part.mean(axis=axes) - mean
            mean = mean + delta * n / count
            power = power + n * part.var(axis=axes) + delta**2 * n * (count - n) / count
        variance = power / count
        if len(self.shape) == 1:
            variance = np.full_like(variance, variance.mean())
        scale = np.sqrt(variance)
        scale[scale <= 1e-7 * np.maximum(1e-30, np.abs(mean))] = 1.0  # constant
        return mean, scale


@dataclass(frozen=True)
class ArraySource(Source):
    """Images or rows in memory (or memory-mapped).

    Parameters
    ----------
    values : ndarray of shape (n, C, H, W) or (n, d)
        A view of the user's array in its own dtype: never a copy of the whole set.
    """

    values: np.ndarray

    def __len__(self) -> int:
        return len(self.values)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one item: (C, H, W) for an image, (d,) for a row."""
        return self.values.shape[1:]

    def part(self, rows: slice) -> "ArraySource":
        """Return the items at `rows` as a source, without reading them."""
        return ArraySource(self.values[rows])

    @property
    def dtype(self) -> type:
        """Of the batches: bytes stay bytes, other numbers become np.float32."""
        return np.uint8 if self.values.dtype in (np.uint8, np.bool_) else np.float32

    def batch(self, rows: slice | np.ndarray) -> torch.Tensor:
        """Return the items at `rows` as a new tensor."""
        if isinstance(rows, slice) or len(rows) <= MAPPED_ROWS:
            return self._read(rows)
        if _mapping(self.values) is None:
            return self._read(rows)
        starts = range(0, len(rows), MAPPED_ROWS)
        parts = [rows[start : start + MAPPED_ROWS] for start in starts]
        return torch.cat(list(self.batches(parts)))

    def batches(self, parts: Sequence[slice | np.ndarray]) -> Iterator[torch.Tensor]:
        """Return the items at each of `parts` in turn, as `batch` does."""
        mapping, n_mapped = _mapping(self.values), 0
        for part in parts:
            batch = self.batch(part)
            if mapping is not None:
                single = 1 if isinstance(part, slice) else MAPPED_BYTES // MAPPED_ROWS
                n_mapped += max(batch.nbytes, len(batch) * single)
                if n_mapped >= MAPPED_BYTES:
                    mapping.madvise(mmap.MADV_DONTNEED)
                    n_mapped = 0
            yield batch
        if mapping is not None:
            mapping.madvise(mmap.MADV_DONTNEED)

    def _read(self, rows: slice | np.ndarray) -> torch.Tensor:
        # A slice is a view of the user's memory, fancy indexing is a copy already.
        # order="K" keeps channels-last images channels-last, as torch likes them.
        own = isinstance(rows, slice)
        return torch.from_numpy(
            self.values[rows].astype(self.dtype, order="K", copy=own)
        )


def _mapping(values: np.ndarray) -> mmap.mmap | None:
    """Return the memory map that values lie in, if its pages can be given back.

    Else a memory map counts as memory in use, as far as it has been read.
    """
    base: Any = values
    while base is not None and not isinstance(base, np.memmap):
        base = getattr(base, "base", None)
    # The pages of a map that is copied on write hold what was written there.
    if base is None or base.mode == "c" or not hasattr(mmap, "MADV_DONTNEED"):
        return None
    while base is not None and not isinstance(base, mmap.mmap):
        base = getattr(base, "base", None)
    return base


def read_images(
    X, image_shape: tuple[int, int, int] | None, fitted: bool
) -> ArraySource:
    """Read 3-D or 4-D `X`, or a list of equal images, into (n, C, H, W).

    Parameters
    ----------
    X : ndarray, tensor or list
        (n, H, W), (n, C, H, W) or (n, H, W, C); uint8, other numbers or bool.
    image_shape : (C, H, W) or None
        What one image must be. Where it fits neither reading, or is None, the
        smaller of the second and the last dimension is the channels.
    fitted : bool
        Whether `image_shape` comes from `fit` rather than from the parameter.

    Raises
    ------
    ValueError, TypeError
        Naming what is wrong with the array, or which row does not fit the others.
    """
    values = as_array(X)
    check_numeric(values)
    if values.ndim == 3:
        values = values[:, None]
    elif not _is_channels_first(values.shape[1:], image_shape):
        values = values.transpose(0, 3, 1, 2)
    if len(values) == 0:
        raise ValueError(
            f"Found array with 0 sample(s) (shape={np.shape(X)}) while a minimum of 1 "
            "is required: X is empty."
        )
    if 0 in values.shape[1:]:
        raise ValueError(f"X holds images without pixels: its shape is {np.shape(X)}.")
    if image_shape is not None and values.shape[1:] != tuple(image_shape):
        channels, *sides = image_shape
        wanted = (
            f"fit saw images of shape {tuple(image_shape)}"
            if fitted
            else f"image_shape={tuple(image_shape)}"
        )
        cure = "Pass images with the same channels, height and width."
        if np.shape(X) in ((channels, *sides), (*sides, channels)):
            cure = "If X is a single image, pass X[None]."
        raise ValueError(
            f"X holds images of shape (C, H, W) = {values.shape[1:]}, but {wanted}. "
            f"{cure}"
        )
    return ArraySource(values)


def read_rows(
    values: np.ndarray, image_shape: tuple[int, int, int] | None
) -> ArraySource:
    """Read 2-D rows, as flattened images where `image_shape` is given."""
    if image_shape is None:
        return ArraySource(values)
    if values.shape[1] != np.prod(image_shape):
        raise ValueError(
            f"image_shape={tuple(image_shape)} takes rows of {np.prod(image_shape)} "
            f"values, but X has {values.shape[1]} features. Set image_shape to the "
            "(C, H, W) that the rows were flattened from."
        )
    return ArraySource(values.reshape(len(values), *image_shape))


def as_array(X) -> np.ndarray:
    """Turn array-likes, tensors and lists of equal images into an array."""
    if isinstance(X, torch.Tensor):
        X = X.detach().cpu()
        return (X.float() if X.dtype == torch.bfloat16 else X).numpy()
    if isinstance(X, list | tuple) and len(X) and hasattr(X[0], "shape"):
        items = [as_array(x) for x in X]
        for row, item in enumerate(items):
            if item.shape != items[0].shape:
                raise ValueError(
                    f"X holds arrays of different shapes: row {row} has shape "
                    f"{item.shape}, row 0 has {items[0].shape}. {RAGGED}"
                )
        return np.stack(items)
    try:
        values = np.asarray(X)
    except ValueError as error:  # of lists of lists
        raise ValueError(f"X holds rows of different lengths. {RAGGED}") from error
    # A Series of arrays, say.
    is_list = values.dtype == object and values.ndim == 1 and len(values)
    return as_array(list(values)) if is_list and hasattr(values[0], "shape") else values


def is_table(X) -> bool:
    """Tell whether scikit-learn should read X: data frames and sparse matrices."""
    return hasattr(X, "columns") or scipy.sparse.issparse(X)


def check_image_shape(image_shape) -> tuple[int, int, int] | None:
    """Return the `image_shape` parameter as a tuple, or say what it should be."""
    if image_shape is None:
        return None
    if len(image_shape) != 3 or not all(
        isinstance(side, Integral) and int(side) > 0 for side in image_shape
    ):
        raise ValueError(
            f"image_shape={image_shape!r} should be three positive integers (C, H, W), "
            "such as (1, 8, 8)."
        )
    channels, height, width = (int(side) for side in image_shape)
    if channels == height and width in (1, 3, 4) and width < height:
        warn(
            f"image_shape={image_shape!r} is read as (C, H, W): {channels} channels of "
            f"{height}x{width} pixels. Channels come first: ({width}, {height}, "
            f"{channels})?"
        )
    return channels, height, width


def check_finite(source: ArraySource) -> None:
    """Raise ValueError naming the first row with a NaN, infinite or too large value."""
    if source.values.dtype.kind != "f":
        return
    for rows in source.split(np.arange(len(source))):
        with np.errstate(over="ignore"):  # too large for float32: infinite, found below
            batch = source.batch(slice(rows[0], rows[-1] + 1)).flatten(1)
        low, high = torch.aminmax(batch)  # NaN if there is one
        if (
            low >= -MAX_ABS_VALUE and high <= MAX_ABS_VALUE
        ):  # the usual case, in one pass
            continue
        row = int(torch.nonzero(~(batch.abs() <= MAX_ABS_VALUE).all(dim=1))[0])
        largest = float(batch[row].abs().max())
        kind = f"a value too large for sums in float32 ({largest:.2g}, beyond 1e30)"
        if not np.isfinite(largest):
            kind = "NaN" if np.isnan(largest) else "infinity (inf) for float32"
        raise ValueError(
            f"Input X contains {kind} in row {rows[row]}. Remove that row, replace the "
            "value or scale X."
        )


def check_numeric(values: np.ndarray) -> None:
    """Raise ValueError or TypeError if an array holds no real numbers."""
    if values.dtype.kind == "c":
        raise ValueError("Complex data not supported: X must hold real numbers.")
    if values.dtype.kind not in "fiub":
        raise TypeError(
            f"X holds {values.dtype} values, not numbers. Pass an array of numbers, "
            "such as uint8 images of shape (n, H, W), (n, C, H, W) or (n, H, W, C)."
        )


def _is_channels_first(item: tuple, image_shape: tuple[int, int, int] | None) -> bool:
    if image_shape is not None:
        channels, height, width = image_shape
        if item == (channels, height, width):
            return True
        if item == (height, width, channels):
            return False
    return item[0] <= item[2]
