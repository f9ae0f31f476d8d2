"""Decoded pictures, held in memory or in a memory-mapped file."""

import contextlib
import hashlib
import json
import math
import os
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from .._utils.files import make_folder, write_atomically
from .._utils.memory import explain_memory_error
from .images import DecodedSource, ImageCollection, map_in_workers
from .sources import ArraySource, Source

BATCH_ROWS = 64  # decoded at once
HASHED_ROWS = 256  # files whose contents are hashed at once


def cache_decoded(
    source: DecodedSource, cache: str | os.PathLike | None, cache_bytes: int
) -> Source:
    """Decode pictures once, or find them decoded, where they fit into the cache.

    Parameters
    ----------
    source : DecodedSource
        Its `failures` are filled.
    cache : "memory", path of a folder, or None
        A folder holds a file for each content of pictures and format.
    cache_bytes : int
        Largest size. More pictures than fit are decoded each time they are read.

    Returns
    -------
    source : Source
        Of the pictures that can be read; all of them, where unreadable ones are not to
        be skipped.

    Raises
    ------
    ValueError
        Naming a picture that cannot be read, unless these are to be skipped.
    """
    size = (
        len(source) * math.prod(source.shape) * np.dtype(source.format.dtype).itemsize
    )
    if cache is None or size > cache_bytes:
        if source.skip:
            for _ in _images(source):
                pass
        return replace(source, rows=source.rows[_readable(source)])
    if cache == "memory":
        remedy = "Lower cache_bytes, or set cache to the path of a folder."
        with explain_memory_error("the decoded pictures", remedy, size):
            shape = (len(source), *source.shape)
            values: np.ndarray = np.empty(shape, source.format.dtype)
        start = 0
        for images in _images(source):
            values[start : start + len(images)] = images.numpy()
            start += len(images)
    else:
        values = _in_folder(source, make_folder(cache, "cache"))
    readable = _readable(source)
    return ArraySource(values if readable.all() else values[readable])


def _images(source: DecodedSource) -> Iterator[torch.Tensor]:
    rows = np.arange(len(source))
    starts = range(0, len(source), BATCH_ROWS)
    return source.batches([rows[start : start + BATCH_ROWS] for start in starts])


def _readable(source: DecodedSource) -> np.ndarray:
    return ~source.failures.mask(source.rows)


def _in_folder(source: DecodedSource, folder: Path) -> np.ndarray:
    """Return decoded pictures as a memory map of a file in `folder`.

    A file is complete as soon as it has its name: of two processes that decode the
    same pictures at once the second one's file takes the place of its equal.
    """
    if source.items.paths is None:  # without contents to be known again by
        with tempfile.TemporaryFile(dir=folder) as file:
            start = _write(source, file)
            shape = (len(source), *source.shape)
            return np.memmap(file, source.format.dtype, "r", start, shape)
    name = _content_key(source)
    images, failures = folder / f"{name}.npy", folder / f"{name}.json"
    with contextlib.suppress(OSError, ValueError):  # not there, or cut short
        values = np.load(images, mmap_mode="r")
        told = json.loads(failures.read_text(encoding="utf-8"))
        found = {int(source.rows[int(place)]): why for place, why in told.items()}
        if source.skip or not found:
            source.failures.record(found)
            return values
    with write_atomically(images) as file:
        _write(source, file)
        places = {row: place for place, row in enumerate(source.rows.tolist())}
        causes = source.failures.messages
        known = places.keys() & causes.keys()  # not those of bad headers
        told = {places[row]: causes[row] for row in known}
        with write_atomically(failures) as beside:  # first, so that images have theirs
            beside.write(json.dumps(told).encode())
    return np.load(images, mmap_mode="r")


def _write(source: DecodedSource, file) -> int:
    """Write pictures in numpy's format; return where the values start."""
    head = {
        "descr": np.lib.format.dtype_to_descr(np.dtype(source.format.dtype)),
        "fortran_order": False,
        "shape": (len(source), *source.shape),
    }
    np.lib.format.write_array_header_1_0(file, head)
    start = file.tell()
    # Not through a memory map, which a full disk would end with a crash.
    for images in _images(source):
        file.write(images.numpy().data)
    file.flush()
    return start


def _content_key(source: DecodedSource) -> str:
    """Return a name that depends on the bytes of all files, and on the format."""
    told = (source.shape, np.dtype(source.format.dtype).str)
    key = hashlib.blake2b(repr(told).encode(), digest_size=16)
    starts = range(0, len(source), HASHED_ROWS)
    parts = [source.rows[start : start + HASHED_ROWS] for start in starts]
    for digest in map_in_workers(
        partial(_digest, source.items), parts, source.n_workers
    ):
        key.update(digest)
    return key.hexdigest()


def _digest(items: ImageCollection, rows: np.ndarray) -> bytes:
    digests = []
    for path in items.sequence[rows]:
        try:
            with open(path, "rb") as file:
                digests.append(hashlib.file_digest(file, "blake2b").digest())
        except OSError as error:
            digests.append(repr(error).encode())
    return b"".join(digests)
