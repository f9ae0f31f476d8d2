"""Pages of memory maps, which are released after they have been used.

A page of a mapped file counts as memory of the process from the first access to the
page. After its release the system keeps the content of the page in the file, and brings
the page back at the next access.
"""

import mmap
from collections.abc import Iterator
from typing import Any

import numpy as np

# Size in bytes of the pages of a memory map after which they are released.
RELEASED_BYTES = 2**25

# Size in bytes of the pages that come with a single row. The system reads neighboring
# pages ahead.
ROW_BYTES = 2**18


class PageReleaser:
    """Releases the pages of a memory map whenever enough of them have been used.

    Nothing happens for arrays in memory.

    Parameters
    ----------
    values : ndarray
        Any view of a memory map, or an array in memory.
    """

    def __init__(self, values: np.ndarray):
        self.memory_map = find_memory_map(values)
        self.n_rows = len(values)
        self.row_bytes = values.nbytes // max(1, len(values))
        self.n_used = 0

    def count(self, rows: slice | np.ndarray) -> None:
        """Add consecutive or single rows that have been used, and release if due."""
        if self.memory_map is None:
            return
        if isinstance(rows, slice):
            n_rows = len(range(*rows.indices(self.n_rows)))
            self.n_used += n_rows * self.row_bytes
        else:
            self.n_used += len(rows) * max(self.row_bytes, ROW_BYTES)
        if self.n_used >= RELEASED_BYTES:
            self.release()

    def release(self) -> None:
        """Release all pages."""
        if self.memory_map is not None:
            # Written pages stay in the system's cache of the file.
            self.memory_map.madvise(mmap.MADV_DONTNEED)
            self.n_used = 0


def row_blocks(values: np.ndarray, n_rows: int | None = None) -> Iterator[slice]:
    """Divide all rows into blocks, and release the pages of the blocks before.

    Parameters
    ----------
    values : ndarray
        Array that each block is read from or written to.
    n_rows : int or None, default=None
        Number of rows in a block. None is a number that suits the size of a row.

    Yields
    ------
    rows : slice
        The first block is empty if there are no rows.
    """
    releaser = PageReleaser(values)
    step = n_rows or max(1, RELEASED_BYTES // max(1, releaser.row_bytes))
    for start in range(0, max(1, len(values)), step):
        rows = slice(start, min(start + step, len(values)))
        yield rows
        releaser.count(rows)
    releaser.release()


def take_rows(values: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return a copy of single rows, and release their pages."""
    releaser = PageReleaser(values)
    if releaser.memory_map is None:
        return values[rows]
    taken = np.empty((len(rows), *values.shape[1:]), values.dtype)
    step = max(1, RELEASED_BYTES // ROW_BYTES)
    for start in range(0, len(rows), step):
        block = slice(start, start + step)
        taken[block] = values[rows[block]]
        releaser.count(rows[block])
    releaser.release()
    return taken


def find_memory_map(values: np.ndarray) -> mmap.mmap | None:
    """Return the memory map below an array, if its pages can be released."""
    base: Any = values
    # A view of a memory map may be a plain array with the map among its bases.
    while base is not None and not isinstance(base, np.memmap):
        base = getattr(base, "base", None)
    # The pages of a copy-on-write map hold values that were written to it.
    if base is None or base.mode == "c" or not hasattr(mmap, "MADV_DONTNEED"):
        return None
    while base is not None and not isinstance(base, mmap.mmap):
        base = getattr(base, "base", None)
    return base
