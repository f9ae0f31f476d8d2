"""Cache of decoded images, in memory or in memory-mapped files."""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from .._utils.allocation import allocate_array
from .._utils.array_files import ARRAY_FORMAT, read_array, write_array
from .._utils.files import make_folder
from .._utils.pages import PageReleaser
from .content import hash_images
from .images import DecodedSource
from .sources import ArraySource, RowsSource, Source

# Number of images that are decoded at once.
BATCH_ROWS = 64


def cache_decoded(source: DecodedSource, cache_dir: str | os.PathLike | None) -> Source:
    """Decode images once, for many passes over them.

    Files are decoded into a memory-mapped file in `cache_dir`. Its name is a hash of
    the contents of all files and of the versions of the decoders. Without `cache_dir`,
    and for images that are no files, up to 128 MiB is in memory and more in an unnamed
    temporary file. If the disk has no room, images are decoded in each pass.

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
        If `cache_dir` has no room, or cannot be written to.
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
    path = folder / f"{hash_images(source)}-{ARRAY_FORMAT}.npy"
    shape = (len(source), *source.shape)
    saved = read_array(path, shape, source.dtype)
    if saved is not None:
        values, metadata = saved
        if _still_fail(source, np.array(metadata["unreadable"], dtype=np.int64)):
            return values
    return write_array(
        path,
        shape,
        source.dtype,
        blocks=(images.numpy() for images in _decode_all(source)),
        argument=f"cache_dir={os.fspath(folder)!r}",
        describe=lambda: {"unreadable": _find_unreadable(source)},
    )


def _find_unreadable(source: DecodedSource) -> list[int]:
    """Return the positions of the images that could not be read."""
    return np.flatnonzero(source.failures.mask(source.rows)).tolist()


def _still_fail(source: DecodedSource, positions: np.ndarray) -> bool:
    """Return whether images that were unreadable before cannot be read now either.

    The disk may have failed for a moment, so that the cause has passed.
    """
    if not len(positions):
        return True
    unreadable = replace(source, rows=source.rows[positions])
    for _ in _decode_all(unreadable):
        pass
    return len(_find_unreadable(unreadable)) == len(positions)
