"""Folders, paths, pictures and datasets -> a source that decodes by the batch."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset

from .._utils.messages import warn
from .decoding import ImageFormat, decode, describe_failure, read_format
from .failures import ReadFailures
from .sources import Source

# Of image files. PIL registers others, such as .h5 and .mpeg, that it cannot read.
ENDINGS = (
    *(".jpg", ".jpeg", ".jfif", ".jp2", ".png", ".webp", ".gif", ".avif"),
    *(".bmp", ".tif", ".tiff", ".tga", ".pbm", ".pgm", ".ppm"),
)
SCANNED_AT_ONCE = 256  # headers
SAMPLED_ITEMS = 256  # of a dataset, whose images have no headers to look at
LARGEST_KEPT = 128  # longest side at which images of one size stay as they are
LARGEST_AUTO = 64  # side of other images with image_size="auto"
PREFETCHED = 4  # batches for each worker


@dataclass(frozen=True)
class ImageCollection:
    """What holds one picture each, in the order of X."""

    sequence: Any  # of them, or a dataset
    paths: np.ndarray | None  # of str, where the items are files

    def __len__(self) -> int:
        return len(self.sequence)


def find_images(X) -> ImageCollection | None:
    """Return the pictures that X holds, or None where X is an array or a table.

    Raises
    ------
    ValueError, TypeError
        If X names no folder, or a folder without images, or is a stream or a single
        picture.
    """
    if isinstance(X, IterableDataset):
        raise TypeError(
            "X is an IterableDataset, which has no order to come back to. Pass a "
            "map-style Dataset, with __len__ and __getitem__."
        )
    if isinstance(X, DataLoader):
        raise TypeError("X is a DataLoader, which makes batches. Pass X.dataset.")
    if isinstance(X, Image.Image):
        raise TypeError("X is a single picture. Pass a list of pictures, such as [X].")
    if isinstance(X, Dataset):
        return ImageCollection(X, None)
    if isinstance(X, str | os.PathLike):
        paths = _list_image_files(X)
        return ImageCollection(paths, paths)
    sequence: Any = X
    if isinstance(X, np.ndarray) or hasattr(X, "to_numpy"):  # a Series of pandas' too
        sequence = np.asarray(X)
    elif not isinstance(X, list | tuple):
        return None
    if not len(sequence) or getattr(sequence, "ndim", 1) != 1:
        return None
    first = sequence[0]
    if isinstance(first, str | os.PathLike):
        for row, item in enumerate(sequence):
            if not isinstance(item, str | os.PathLike):
                raise TypeError(
                    f"X is a list of paths, but holds {item!r} in row {row}. Remove it."
                )
        paths = np.array([os.fspath(path) for path in sequence])
        if len(paths) > 1 and paths.dtype == "U1":
            raise ValueError(
                "X holds single letters, as if the path of a folder was split, which "
                "cross-validation does. Pass it the list of files, such as "
                "sorted(pathlib.Path(folder).rglob('*.jpg'))."
            )
        return ImageCollection(paths, paths)
    if isinstance(first, tuple) and len(first) and _is_picture(first[0]):
        return ImageCollection(sequence, None)
    if isinstance(first, Image.Image) or (_is_picture(first) and _are_mixed(sequence)):
        return ImageCollection(sequence, None)
    return None


def _is_picture(item) -> bool:
    """Tell a picture from a number or a row of numbers."""
    if isinstance(item, str | os.PathLike | Image.Image):
        return True
    return isinstance(item, np.ndarray | torch.Tensor) and item.ndim in (2, 3)


def _are_mixed(arrays: Sequence) -> bool:
    """Tell whether arrays differ in size, so that they cannot be stacked."""
    return len({getattr(array, "shape", None) for array in arrays}) > 1


def _list_image_files(folder: str | os.PathLike) -> np.ndarray:
    """Return the paths of all image files in a folder and below it, sorted."""
    if os.path.isfile(folder):
        raise ValueError(
            f"X={os.fspath(folder)!r} is no folder but a file. Pass [X] if it is an "
            "image; read files of other kinds, and pass what is in them."
        )
    if not os.path.isdir(folder):
        raise ValueError(
            f"X={os.fspath(folder)!r} is no folder, seen from {os.getcwd()}. Pass the "
            "path of a folder of images or of a .npy file, or a list of paths. "
            "Patterns, ~ and URLs are not looked up."
        )
    found, seen = [], set()
    for place, below, names in os.walk(Path(folder), followlinks=True):
        identity = os.path.realpath(place)
        if identity in seen:  # a link that leads back
            below.clear()
            continue
        seen.add(identity)
        found += [
            os.path.join(place, name)
            for name in names
            if name.lower().endswith(ENDINGS) and name[0] != "."
        ]
    if not found:
        raise ValueError(
            f"X={os.fspath(folder)!r} holds no images: no file in it, or below it, has "
            "an ending such as .jpg or .png."
        )
    return np.array(sorted(found))


class _Calls(Dataset):
    """A function, in the form that a DataLoader's workers call."""

    def __init__(self, function: Callable):
        self.function = function

    def __getitem__(self, part):
        return self.function(part)


def _as_it_is(found):
    return found


def map_in_workers(function: Callable, parts: list, n_workers: int) -> Iterator:
    """Call a function with each of `parts`, in processes that work ahead.

    Results come in order. With no workers, or one part, it is called in this process,
    and so it is where this process may have no children, such as a worker of Dask. If
    one of the processes is killed, others take their place.

    Raises
    ------
    RuntimeError
        If they are killed again before there is another result.
    """
    is_daemon = multiprocessing.current_process().daemon
    if n_workers == 0 or len(parts) < 2 or is_daemon:
        return map(function, parts)
    return _in_processes(function, parts, n_workers)


def _in_processes(function: Callable, parts: list, n_workers: int) -> Iterator:
    n_done, n_before = 0, -1  # results, and those when a process was killed
    while n_done < len(parts):
        left = parts[n_done:]
        loader = DataLoader(
            _Calls(function),
            sampler=left,
            batch_size=None,
            collate_fn=_as_it_is,
            num_workers=min(n_workers, len(left), joblib.cpu_count()),
            prefetch_factor=PREFETCHED,
            generator=torch.Generator(),  # not the global one
        )
        results = _without_interrupts(loader)
        try:
            for found in results:
                n_done += 1
                yield found
        except (RuntimeError, OSError, EOFError) as error:
            if not _is_death(error):
                raise
            if n_done == n_before:
                raise RuntimeError(
                    "Processes that decode pictures are killed again and again, maybe "
                    "for lack of memory. Lower n_jobs: n_jobs=1 decodes in this "
                    f"process. ({error})"
                ) from error
            warn("A process that decodes pictures was killed. Another is started.")
            n_before = n_done
        finally:
            # Else the processes live as long as an error's traceback does.
            results._shutdown_workers()


def _is_death(error: Exception) -> bool:
    """Tell the end of a process from what a process raised itself."""
    if isinstance(error, RuntimeError):
        return str(error).startswith("DataLoader worker (pid")
    # Its last result was on its way: tensors are handed over by the process itself.
    return not str(error).startswith("Caught ")


def _without_interrupts(loader: DataLoader) -> Any:
    """Start the processes, whose end is only to be told where results are awaited.

    Else torch raises wherever the main thread is, in the middle of an update, say.
    """
    if not hasattr(signal, "SIGCHLD") or not _is_main_thread():
        return iter(loader)
    before = signal.getsignal(signal.SIGCHLD)
    results = iter(loader)
    if before is not None:  # else it is no handler of Python's
        signal.signal(signal.SIGCHLD, before)
    return results


def _is_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _headers(
    items: ImageCollection, rows: np.ndarray
) -> tuple[list[ImageFormat], dict[int, str]]:
    formats, failures = [], {}
    for row in rows:
        item = None
        try:
            item = items.sequence[row]
            formats.append(read_format(item))
        except MemoryError:
            raise
        except Exception as error:
            failures[int(row)] = describe_failure(item, error)
    return formats, failures


def find_common_format(
    items: ImageCollection,
    image_shape: tuple[int, int, int] | None,
    image_size: str | int,
    n_workers: int,
) -> tuple[ImageFormat | None, dict[int, str]]:
    """Find the format that pictures are turned into, from their headers.

    Parameters
    ----------
    items : Items
    image_shape : (C, H, W) or None
        Taken where given.
    image_size : "auto" or int
        Side of the squares that pictures become. "auto" leaves pictures that all have
        one size of at most 128 as they are; others get the median of their shorter
        sides, but at most 64.
    n_workers : int
        Processes that read headers.

    Returns
    -------
    format : Format or None
        Color if any picture is, bytes if all are. None if no header could be read.
    failures : dict of row to str
        What is wrong with files whose header cannot be read.
    """
    rows = np.arange(len(items))
    if items.paths is None:
        rows = np.random.default_rng(0).permutation(rows)[:SAMPLED_ITEMS]
    parts = np.array_split(rows, max(1, len(rows) // SCANNED_AT_ONCE))
    if items.paths is None:
        n_workers = 0
    formats: list[ImageFormat] = []
    failures: dict[int, str] = {}
    for found, failed in map_in_workers(partial(_headers, items), parts, n_workers):
        formats += found
        failures |= failed
    if not formats:
        return None, failures
    dtype = np.uint8 if all(f.dtype == np.uint8 for f in formats) else np.float32
    if image_shape is not None:
        return ImageFormat(image_shape, dtype), failures
    shapes = np.array([f.shape for f in formats])
    channels = int(shapes[:, 0].max())
    if image_size != "auto":
        side = int(image_size)
        return ImageFormat((channels, side, side), dtype), failures
    sizes = np.unique(shapes[:, 1:], axis=0)
    if len(sizes) == 1 and sizes.max() <= LARGEST_KEPT:
        height, width = map(int, sizes[0])
        return ImageFormat((channels, height, width), dtype), failures
    side = min(LARGEST_AUTO, int(np.median(shapes[:, 1:].min(axis=1))))
    return ImageFormat((channels, side, side), dtype), failures


def _decoded(
    items: ImageCollection, wanted: ImageFormat, rows: np.ndarray
) -> tuple[torch.Tensor, dict[int, str]]:
    """Return the images at `rows`, and what is wrong with those that stay blank."""
    images: np.ndarray = np.zeros((len(rows), *wanted.shape), wanted.dtype)
    failures = {}
    for place, row in enumerate(rows):
        item = None
        try:
            item = items.sequence[row]
            images[place] = decode(item, wanted)
        except MemoryError:
            raise
        except Exception as error:
            failures[int(row)] = describe_failure(item, error)
    return torch.from_numpy(images), failures


@dataclass(frozen=True)
class DecodedSource(Source):
    """Pictures that are decoded each time they are read.

    Parameters
    ----------
    items : Items
    format : Format
        What each picture is turned into.
    rows : ndarray of shape (n,), int
        Of the items, those that the source consists of.
    n_workers : int
        Processes that decode the next batches while this one is used.
    skip : bool
        Whether pictures that cannot be read become blank, and are kept in `failures`,
        instead of ending it all with ValueError.
    """

    items: ImageCollection
    format: ImageFormat
    rows: np.ndarray
    n_workers: int
    skip: bool
    failures: ReadFailures = field(default_factory=ReadFailures)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of one image: (C, H, W)."""
        return self.format.shape

    def part(self, rows: slice) -> "DecodedSource":
        """Return the items at `rows` as a source, without reading them."""
        return replace(self, rows=self.rows[rows])

    @property
    def dtype(self) -> type:
        """Of the batches: np.uint8 or np.float32."""
        return self.format.dtype

    def batch(self, rows: slice | np.ndarray) -> torch.Tensor:
        """Return the images at `rows` as a new tensor."""
        return next(self.batches([rows]))

    def batches(self, parts: Sequence[slice | np.ndarray]) -> Iterator[torch.Tensor]:
        """Return the images at each of `parts` in turn, decoded ahead."""
        there = [self.rows[part] for part in parts]
        function = partial(_decoded, self.items, self.format)
        for images, failures in map_in_workers(function, there, self.n_workers):
            if failures and not self.skip:
                raise ReadFailures(failures).to_error()
            self.failures.record(failures)
            yield images
