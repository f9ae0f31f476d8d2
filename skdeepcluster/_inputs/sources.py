"""Sources: indexed images (C, H, W) or rows (d,), which are read by the batch."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from .._utils import pages
from .._utils.allocation import allocate_array, allocate_in_memory
from .._utils.pages import PageReleaser, find_memory_map
from .failures import ReadFailures

# Number of values that are checked or measured at once: 64 MiB of float32.
CHUNK_VALUES = 2**24

# Purpose of the memory for some of the images, for error messages.
SAMPLE = "a sample of the images"


class Source(ABC):
    """Images or rows that are read by the batch."""

    # Record of the unreadable rows of X; None if reading cannot fail.
    failures: ReadFailures | None = None

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of images or rows."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Shape of one image, (C, H, W), or of one row, (d,)."""

    @property
    @abstractmethod
    def dtype(self) -> type:
        """Data type of the batches, np.uint8 or np.float32."""

    @abstractmethod
    def subset(self, rows: slice) -> "Source":
        """Return consecutive rows as a source, without reading them."""

    @abstractmethod
    def batch(self, rows: slice | np.ndarray) -> torch.Tensor:
        """Return the images at `rows` as a new tensor."""

    @abstractmethod
    def batches(
        self, batch_rows: Sequence[slice | np.ndarray]
    ) -> Iterator[torch.Tensor]:
        """Return one batch after another, each as `batch` does.

        Parameters
        ----------
        batch_rows : sequence of slice or ndarray of int
            Rows of each batch.
        """

    def split(self, rows: np.ndarray) -> list[np.ndarray]:
        """Split rows into batches of bounded size."""
        step = max(1, CHUNK_VALUES // max(1, math.prod(self.shape)))
        return [rows[start : start + step] for start in range(0, len(rows), step)]

    def take(self, rows: np.ndarray) -> "ArraySource":
        """Read the images at `rows`, into memory or a temporary file."""
        shape = (len(rows), *self.shape)
        values = allocate_array(shape, self.dtype, None, purpose=SAMPLE)
        if values is None:
            values = allocate_in_memory(shape, self.dtype, purpose=SAMPLE)
        releaser, start = PageReleaser(values), 0
        for batch in self.batches(self.split(rows)):
            block = slice(start, start + len(batch))
            values[block] = batch.numpy()
            releaser.count(block)
            start = block.stop
        releaser.release()
        return ArraySource(values)

    def statistics(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the mean and the scale of the images at `rows`, to standardize them.

        Images have a mean and a scale for each channel. Rows have a mean for each
        feature but a single scale, which keeps the proportions of the features.
        """
        axes = (0,) if len(self.shape) == 1 else (0, 2, 3)
        count = 0
        mean = np.zeros(1)
        sum_of_squares = np.zeros(1)
        for batch in self.batches(self.split(rows)):
            # Contiguous values are summed in one order, whatever the layout of X.
            values = np.ascontiguousarray(batch.numpy(), dtype=np.float64)
            n = len(values)
            count += n
            # The update of Chan et al. is exact for a mean much larger than the spread.
            delta = values.mean(axis=axes) - mean
            mean = mean + delta * n / count
            sum_of_squares = (
                sum_of_squares
                + n * values.var(axis=axes)
                + delta**2 * n * (count - n) / count
            )
        variance = sum_of_squares / count
        if len(self.shape) == 1:
            variance = np.full_like(variance, variance.mean())
        scale = np.sqrt(variance)
        # A constant has no scale, and rounding must not give it one.
        scale[scale <= 1e-7 * np.maximum(1e-30, np.abs(mean))] = 1.0
        return mean, scale


@dataclass(frozen=True, eq=False)
class ArraySource(Source):
    """Images or rows in memory or in a memory map.

    Parameters
    ----------
    values : ndarray of shape (n, C, H, W) or (n, d)
        View of the user's array in its own data type. All rows are never copied.
    origin : ndarray of shape (d,), float64, or None, default=None
        Values that are subtracted from each row before it becomes float32, for rows
        that lie far from zero.
    """

    values: np.ndarray
    origin: np.ndarray | None = None

    def __len__(self) -> int:
        """Return the number of images or rows."""
        return len(self.values)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one image, (C, H, W), or of one row, (d,)."""
        return self.values.shape[1:]

    @property
    def dtype(self) -> type:
        """Data type of the batches: bytes stay bytes, other numbers are np.float32."""
        return np.uint8 if self.values.dtype in (np.uint8, np.bool_) else np.float32

    def subset(self, rows: slice) -> "ArraySource":
        """Return consecutive rows as a source, without reading them."""
        return ArraySource(self.values[rows], self.origin)

    def batch(self, rows: slice | np.ndarray) -> torch.Tensor:
        """Return the images at `rows` as a new tensor."""
        n_rows = max(1, pages.RELEASED_BYTES // pages.ROW_BYTES)
        if (
            isinstance(rows, slice)
            or len(rows) <= n_rows
            or find_memory_map(self.values) is None
        ):
            return self._read(rows)
        starts = range(0, len(rows), n_rows)
        batch_rows = [rows[start : start + n_rows] for start in starts]
        return torch.cat(list(self.batches(batch_rows)))

    def batches(
        self, batch_rows: Sequence[slice | np.ndarray]
    ) -> Iterator[torch.Tensor]:
        """Return one batch after another, and release the pages of a memory map."""
        releaser = PageReleaser(self.values)
        for rows in batch_rows:
            batch = self.batch(rows)
            releaser.count(rows)
            yield batch
        releaser.release()

    def _read(self, rows: slice | np.ndarray) -> torch.Tensor:
        # A slice is a view of the user's memory, fancy indexing has made a copy.
        # order="K" keeps channels-last images in that layout, which torch prefers.
        is_view = isinstance(rows, slice)
        if self.origin is not None:
            shifted = self.values[rows] - self.origin
            return torch.from_numpy(shifted.astype(self.dtype))
        return torch.from_numpy(
            self.values[rows].astype(self.dtype, order="K", copy=is_view)
        )


class DerivedSource(Source):
    """Source that reads the images of another source, `source`."""

    source: Source

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one image, (C, H, W), or of one row, (d,)."""
        return self.source.shape

    @property
    def dtype(self) -> type:
        """Data type of the batches, np.uint8 or np.float32."""
        return self.source.dtype


@dataclass(frozen=True)
class RowsSource(DerivedSource):
    """Some rows of another source.

    Parameters
    ----------
    source : Source
    rows : ndarray of int
        Rows of `source`.
    """

    source: Source
    rows: np.ndarray

    def __len__(self) -> int:
        """Return the number of images or rows."""
        return len(self.rows)

    def subset(self, rows: slice) -> "RowsSource":
        """Return consecutive rows as a source, without reading them."""
        return RowsSource(self.source, self.rows[rows])

    def batch(self, rows: slice | np.ndarray) -> torch.Tensor:
        """Return the images at `rows` as a new tensor."""
        return self.source.batch(self.rows[rows])

    def batches(
        self, batch_rows: Sequence[slice | np.ndarray]
    ) -> Iterator[torch.Tensor]:
        """Return one batch after another, each as `batch` does."""
        return self.source.batches([self.rows[rows] for rows in batch_rows])


def holds_array(source: Source) -> bool:
    """Return whether a source reads an array, rather than decoding images."""
    if isinstance(source, RowsSource):
        return holds_array(source.source)
    return isinstance(source, ArraySource)
