"""Cache of decoded images, in memory or in memory-mapped files."""

import contextlib
import errno
import hashlib
import json
import math
import os
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from .._utils.allocation import allocate_array
from .._utils.files import make_folder, write_atomically
from .._utils.memory import format_bytes
from .._utils.pages import PageReleaser
from .._utils.workers import map_in_workers
from .collection import ImageCollection
from .images import DecodedSource
from .sources import ArraySource, RowsSource, Source

# Number of images that are decoded at once.
BATCH_ROWS = 64

# Number of files that a worker hashes at once.
HASHED_ROWS = 256


def cache_decoded(source: DecodedSource, cache_dir: str | os.PathLike | None) -> Source:
    """Decode images once, for many passes over them.

    Files are decoded into a memory-mapped file in `cache_dir`. Its name is a hash of
    the contents of all files. Without `cache_dir`, and for images that are no files,
    up to 128 MiB is in memory and more in an unnamed temporary file. If the disk has no
    room, images are decoded in each pass.

    Parameters
    ----------
    source : DecodedSource
        All images are decoded, and its record of failures becomes complete.
    cache_dir : str, path-like or None
        Folder of the files.

    Returns
    -------
    source : Source
        Readable images.

    Raises
    ------
    ValueError
        If an image cannot be read and is not to be skipped.
    OSError
        If `cache_dir` has no room.
    """
    values: np.ndarray | None
    if cache_dir is not None and source.collection.paths is not None:
        values = _map_named_file(source, make_folder(cache_dir, "cache_dir"))
    else:
        shape = (len(source), *source.shape)
        values = allocate_array(
            shape, source.dtype, cache_dir, purpose="the decoded images"
        )
        if values is not None:
            releaser, start = PageReleaser(values), 0
            for images in _decode_all(source):
                rows = slice(start, start + len(images))
                values[rows] = images.numpy()
                releaser.count(rows)
                start = rows.stop
            releaser.release()
        elif source.skip:
            # Training needs to know the unreadable images beforehand.
            for _ in _decode_all(source):
                pass
    readable = ~source.failures.mask(source.rows)
    if values is None:
        return replace(source, rows=source.rows[readable])
    decoded = ArraySource(values)
    # A copy of the readable images would take as much memory as all images.
    return decoded if readable.all() else RowsSource(decoded, np.flatnonzero(readable))


def _decode_all(source: DecodedSource) -> Iterator[torch.Tensor]:
    """Return all images in batches."""
    rows = np.arange(len(source))
    starts = range(0, len(source), BATCH_ROWS)
    return source.batches([rows[start : start + BATCH_ROWS] for start in starts])


def _map_named_file(source: DecodedSource, folder: Path) -> np.ndarray:
    """Return a memory map of the file of these images in `folder`.

    The file gets its name when it is complete. If two processes decode the same images
    at once, the second file replaces the first one, which has the same content.
    """
    key = _hash_files(source)
    images_path = folder / f"{key}.npy"
    failures_path = folder / f"{key}.json"
    # A missing or damaged file is written again.
    with contextlib.suppress(OSError, ValueError):
        values = np.load(images_path, mmap_mode="r")
        causes = json.loads(failures_path.read_text(encoding="utf-8"))
        messages = {
            int(source.rows[int(position)]): cause for position, cause in causes.items()
        }
        if source.skip or not messages:
            source.failures.record(messages)
            return values
    with _explain_full_disk(source, folder), write_atomically(images_path) as file:
        _write_images(source, file)
        # The images get their name after their failures, which a reader needs.
        _write_failures(source, failures_path)
    return np.load(images_path, mmap_mode="r")


@contextlib.contextmanager
def _explain_full_disk(source: DecodedSource, folder: Path) -> Iterator[None]:
    """Name `cache_dir` if the disk is full inside the block."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        itemsize = np.dtype(source.dtype).itemsize
        size = format_bytes(len(source) * math.prod(source.shape) * itemsize)
        raise OSError(
            error.errno,
            f"cache_dir={os.fspath(folder)!r} has no room for the decoded images "
            f"({size}). Name a folder on a larger disk, or set cache_dir=None",
        ) from error


def _write_images(source: DecodedSource, file) -> None:
    """Write all images in numpy's format.

    Images are not written through a memory map, since a full disk would end the process
    by SIGBUS.
    """
    # The header of .npy comes before the values, so that numpy.load can map the file.
    header = {
        "descr": np.lib.format.dtype_to_descr(np.dtype(source.dtype)),
        "fortran_order": False,
        "shape": (len(source), *source.shape),
    }
    np.lib.format.write_array_header_1_0(file, header)
    for images in _decode_all(source):
        file.write(images.numpy().data)


def _write_failures(source: DecodedSource, path: Path) -> None:
    """Write the cause for each unreadable image, by its position in the source."""
    positions = np.flatnonzero(source.failures.mask(source.rows)).tolist()
    causes = {
        position: source.failures.messages[int(source.rows[position])]
        for position in positions
    }
    with write_atomically(path) as file:
        file.write(json.dumps(causes).encode())


def hash_images(source: Source) -> str:
    """Return a hash of the contents of all images and of their format.

    Files are hashed without decoding them.
    """
    if isinstance(source, DecodedSource) and source.collection.paths is not None:
        return _hash_files(source)
    key = hashlib.blake2b(repr((len(source), source.shape)).encode(), digest_size=16)
    for images in source.batches(source.split(np.arange(len(source)))):
        key.update(np.ascontiguousarray(images.numpy()).data)
    return key.hexdigest()


def _hash_files(source: DecodedSource) -> str:
    """Return a hash of the contents of all files and of the format."""
    image_format = source.image_format
    key = hashlib.blake2b(repr(image_format).encode(), digest_size=16)
    starts = range(0, len(source), HASHED_ROWS)
    tasks = [source.rows[start : start + HASHED_ROWS] for start in starts]
    function = partial(_hash_rows, source.collection)
    for digest in map_in_workers(function, tasks, source.n_workers):
        key.update(digest)
    return key.hexdigest()


def _hash_rows(collection: ImageCollection, rows: np.ndarray) -> bytes:
    """Return the digests of the contents of some files."""
    digests = []
    for path in collection.sequence[rows]:
        try:
            with open(path, "rb") as file:
                digests.append(hashlib.file_digest(file, "blake2b").digest())
        except OSError as error:
            digests.append(repr(error).encode())
    return b"".join(digests)
