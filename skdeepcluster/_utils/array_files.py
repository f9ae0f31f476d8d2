"""Files of one array that are mapped into memory, with a checksum.

A file is in numpy's format, so that `numpy.load` can map it. A line of JSON follows the
values, with the mark of this package, a checksum and further values.
"""

import json
import math
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from .files import escape_path, write_atomically
from .messages import warn

# Name of the entry of the last line that holds all values.
KEY = "skdeepcluster"
# Format of the files. It belongs into the name of a file, so that files of another
# format are not taken for damaged ones.
ARRAY_FORMAT = 2
# Number of bytes that are read at once to compute a checksum.
BLOCK_BYTES = 2**22


def write_array(
    path: Path,
    shape: tuple[int, ...],
    dtype: type,
    blocks: Iterable[np.ndarray],
    argument: str,
    describe: Callable[[], dict] = dict,
) -> np.memmap:
    """Write an array in blocks of rows, and return a memory map of the file.

    Values are not written through a memory map, since a full disk would end the process
    by SIGBUS.

    Parameters
    ----------
    path : Path
    shape : tuple of int
    dtype : type
    blocks : iterable of ndarray
        All rows, in order.
    argument : str
        See `write_atomically`.
    describe : callable, default=dict
        Returns JSON values for `read_array`. It is called after the last block.
    """
    header = {
        "descr": np.lib.format.dtype_to_descr(np.dtype(dtype)),
        "fortran_order": False,
        "shape": shape,
    }
    n_bytes = math.prod(shape) * np.dtype(dtype).itemsize
    checksum = 0
    with write_atomically(path, argument, n_bytes) as file:
        np.lib.format.write_array_header_1_0(file, header)
        for block in blocks:
            values = np.ascontiguousarray(block).data
            # A cryptographic hash takes four times as long, and the file is not safe
            # from a person who can write to its folder anyway.
            checksum = zlib.crc32(values, checksum)
            file.write(values)
        metadata = json.dumps(describe())
        checksum = zlib.crc32(metadata.encode(), checksum)
        trailer = {"checksum": checksum, "metadata": metadata}
        file.write(json.dumps({KEY: trailer}).encode())
    return np.load(path, mmap_mode="r")


def read_array(
    path: Path, shape: tuple[int, ...], dtype: type
) -> tuple[np.memmap, dict[str, Any]] | None:
    """Return a memory map of a file of `write_array`, and its further values.

    The whole file is read once, to check it.

    Returns
    -------
    content : tuple or None
        None if the file does not exist, or, with a warning, if it is damaged.
    """
    try:
        return _read_checked(path, shape, dtype)
    except FileNotFoundError:
        return None
    except MemoryError:
        raise
    # Damage may cause any error.
    except Exception as error:
        warn(
            f"{escape_path(path)} cannot be used and is written again: "
            f"{getattr(error, 'strerror', None) or error}."
        )
        return None


def _read_checked(
    path: Path, shape: tuple[int, ...], dtype: type
) -> tuple[np.memmap, dict[str, Any]]:
    try:
        values = np.load(path, mmap_mode="r")
    except ValueError as error:
        # numpy advises to load what may be an unsafe file.
        raise ValueError("it is damaged: its header is no header of numpy") from error
    if not isinstance(values, np.memmap):
        raise ValueError("it holds no array")
    if values.shape != shape or values.dtype != dtype:
        raise ValueError(f"it holds {values.dtype} values of shape {values.shape}")
    checksum, n_bytes = 0, values.nbytes
    # A read from a broken disk raises an error, but an access to a memory map would end
    # the process.
    with open(path, "rb") as file:
        file.seek(values.offset)
        while n_bytes:
            block = file.read(min(n_bytes, BLOCK_BYTES))
            if not block:
                raise ValueError("its end is missing")
            checksum = zlib.crc32(block, checksum)
            n_bytes -= len(block)
        trailer = json.loads(file.read())[KEY]
    if trailer["checksum"] != zlib.crc32(trailer["metadata"].encode(), checksum):
        raise ValueError("it is damaged: its checksum does not fit")
    return values, json.loads(trailer["metadata"])
