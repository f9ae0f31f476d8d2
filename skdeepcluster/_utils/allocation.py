"""Large arrays, in memory or in unnamed temporary files."""

import contextlib
import errno
import math
import os
import shutil
import tempfile
from typing import IO

import numpy as np

from .files import explain_write_errors, make_folder, reserve_space
from .memory import explain_memory_error

# Size in bytes up to which an array stays in memory. A fit has three of such arrays at
# a time: decoded images, features and points of k-means.
MEMORY_BYTES = 2**27

# Largest share of a disk's free space that a temporary file takes. Other processes and
# the checkpoints of the fit need space as well.
MAX_DISK_SHARE = 0.5

# Size in bytes of one write of zeros, where the system cannot reserve space by itself.
BLOCK_BYTES = 2**20

# Errors of a file system or an address space without room.
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.ENOMEM)


def allocate_array(
    shape: tuple[int, ...],
    dtype: type,
    cache_dir: str | os.PathLike | None,
    purpose: str,
) -> np.ndarray | None:
    """Return an array with any values, in memory or mapped to a temporary file.

    Arrays of at most 128 MiB are in memory. Larger arrays, and arrays that memory does
    not hold, are in a file without a name, which is gone with the array.

    Parameters
    ----------
    shape : tuple of int
    dtype : type
    cache_dir : str, path-like or None
        Folder of the file. None is the system's folder for temporary files.
    purpose : str
        Content of the array, for error messages.

    Returns
    -------
    values : ndarray or None
        None if the array is larger than 128 MiB and the disk has no room for it.

    Raises
    ------
    MemoryError
        If an array of at most 128 MiB fits neither into memory nor on the disk.
    """
    is_small = _count_bytes(shape, dtype) <= MEMORY_BYTES
    if is_small:
        with contextlib.suppress(MemoryError):
            return np.empty(shape, dtype)
    values = _map_temporary_file(shape, dtype, cache_dir)
    if values is None and is_small:
        return allocate_in_memory(shape, dtype, purpose)
    return values


def allocate_in_memory(
    shape: tuple[int, ...],
    dtype: type,
    purpose: str,
    remedy: str = "Set cache_dir to a folder with more free space, or pass fewer "
    "images.",
) -> np.ndarray:
    """Return an array with any values in memory.

    Raises
    ------
    MemoryError
        If there is not enough memory. The error names the purpose and the remedy.
    """
    with explain_memory_error(purpose, remedy, _count_bytes(shape, dtype)):
        return np.empty(shape, dtype)


def _count_bytes(shape: tuple[int, ...], dtype: type) -> int:
    return math.prod(shape) * np.dtype(dtype).itemsize


def _map_temporary_file(
    shape: tuple[int, ...], dtype: type, cache_dir: str | os.PathLike | None
) -> np.memmap | None:
    """Return a memory map of an unnamed file, or None if there is no room for it."""
    n_bytes = _count_bytes(shape, dtype)
    folder = None if cache_dir is None else make_folder(cache_dir, "cache_dir")
    try:
        free = shutil.disk_usage(folder or tempfile.gettempdir()).free
        if n_bytes > MAX_DISK_SHARE * free:
            return None
        with tempfile.TemporaryFile(dir=folder) as file:
            _allocate_blocks(file, n_bytes)
            return np.memmap(file, dtype, "r+", shape=shape)
    except OSError as error:
        # Not every machine has a writable folder for temporary files. A folder that
        # the user has named has to be writable.
        if folder is None or error.errno in NO_ROOM:
            return None
        with explain_write_errors(f"cache_dir={os.fspath(folder)!r}", folder):
            raise


def _allocate_blocks(file: IO[bytes], n_bytes: int) -> None:
    """Allocate the blocks of a file before its memory map is written to.

    If a file has holes and the disk is full, a write to the map ends the process by
    SIGBUS. Allocating the blocks raises OSError instead.
    """
    if reserve_space(file, n_bytes):
        return
    zeros = memoryview(bytes(BLOCK_BYTES))
    for start in range(0, n_bytes, BLOCK_BYTES):
        file.write(zeros[: n_bytes - start])
    file.flush()
