"""Source of images that are decoded by the batch, and their common format."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import torch

from .._utils.messages import warn
from .._utils.workers import map_in_workers
from .collection import ImageCollection
from .decoding import ImageFormat, decode, describe_failure, read_format
from .failures import ReadFailures
from .sources import Source

# Number of headers that a worker reads at once.
HEADERS_PER_TASK = 256

# Number of images of a dataset that are decoded to find the format of all images.
SAMPLED_IMAGES = 256

# Longest side, in pixels, up to which images of one size keep their size, and largest
# side of images of mixed sizes, both with image_size="auto".
MAX_AUTO_SIDES = (128, 64)

# With resize="auto", the largest mean share of the pixels that crops may drop. Squares
# from photographs of 4:3 and of 3:2 drop 25 % and 33 %, and padding would show the
# network bars that tell landscape from portrait.
MAX_DROPPED_SHARE = 0.4

# A crop that drops more than the first share of an image loses much of it. A warning
# comes if the second share of the images, or more, lose much.
MUCH_DROPPED = 0.5
WARNED_SHARE = 0.1


def find_common_format(
    collection: ImageCollection,
    image_shape: tuple[int, int, int] | None,
    image_size: str | int,
    n_workers: int,
    resize: str = "auto",
    auto_size: int | None = None,
    max_auto_size: int | None = None,
) -> tuple[ImageFormat | None, dict[int, str]]:
    """Return the format into which all images are decoded, from their headers.

    Parameters
    ----------
    collection : ImageCollection
    image_shape : tuple (C, H, W) or None
        Shape of the format, if it is not None.
    image_size : "auto" or int
        Side of the squares that images become. "auto" keeps images that all have one
        size of at most 128 pixels a side. Images of mixed sizes get the median of
        their shorter sides, at most 64.
    n_workers : int
        Number of processes that read headers.
    resize : {"auto", "crop", "pad", "stretch"}, default="auto"
        How images of other shapes get the shape of the format. "auto" is "pad" if crops
        would drop more than 40 % of the pixels, on average over the images, and "crop"
        otherwise.
    auto_size, max_auto_size : int or None
        Sizes that replace those of ``image_size="auto"``, see `InputSpec`.

    Returns
    -------
    image_format : ImageFormat or None
        Color if any image has color, bytes if all images are bytes. None if no header
        can be read.
    messages : dict of int to str
        Cause for each row with an unreadable header.

    Warns
    -----
    UserWarning
        If `resize` is "crop", and at least a tenth of the images lose more than half of
        their pixels.
    """
    formats, messages = _read_formats(collection, n_workers)
    if not formats:
        return None, messages
    is_bytes = all(each.dtype == np.uint8 for each in formats)
    dtype = np.uint8 if is_bytes else np.float32
    shapes = np.array([each.shape for each in formats])
    if image_size == "auto" and auto_size is not None:
        image_size = auto_size
    max_kept, max_side = (max_auto_size,) * 2 if max_auto_size else MAX_AUTO_SIDES
    shape = image_shape or _choose_shape(shapes, image_size, max_kept, max_side)
    resize = _choose_resize(resize, shapes, shape)
    original_side = int(np.median(shapes[:, 1:].min(axis=1)))
    image_format = ImageFormat(shape, dtype, resize, original_side=original_side)
    return image_format, messages


def _choose_shape(
    shapes: np.ndarray, image_size: str | int, max_kept: int, max_side: int
) -> tuple[int, int, int]:
    """Return the common shape of images of some shapes, ndarray (n, 3) of int."""
    channels = int(shapes[:, 0].max())
    sizes = np.unique(shapes[:, 1:], axis=0)
    if image_size != "auto":
        height = width = int(image_size)
    elif len(sizes) == 1 and sizes.max() <= max_kept:
        height, width = map(int, sizes[0])
    else:
        median = int(np.median(shapes[:, 1:].min(axis=1)))
        height = width = min(max_side, median)
    return channels, height, width


def _choose_resize(resize: str, shapes: np.ndarray, shape: tuple[int, int, int]) -> str:
    """Return how images of some shapes, ndarray (n, 3) of int, get a common shape."""
    heights, widths = shapes[:, 1], shapes[:, 2]
    ratios = widths * shape[1] / (heights * shape[2])
    dropped = 1 - np.minimum(ratios, 1 / ratios)
    if resize == "auto":
        return "pad" if dropped.mean() > MAX_DROPPED_SHARE else "crop"
    share = np.mean(dropped > MUCH_DROPPED)
    if resize == "crop" and share >= WARNED_SHARE:
        warn(
            f"resize='crop' drops more than half of the pixels of {share:.0%} of the "
            "images. Set resize='pad' to keep whole images."
        )
    return resize


def _read_formats(
    collection: ImageCollection, n_workers: int
) -> tuple[list[ImageFormat], dict[int, str]]:
    """Return the formats of all files, or of a sample of other images."""
    rows = np.arange(len(collection))
    # Images of a dataset have to be decoded to find their format, which takes long.
    if collection.paths is None:
        rows = np.random.default_rng(0).permutation(rows)[:SAMPLED_IMAGES]
        n_workers = 0
    tasks = np.array_split(rows, max(1, len(rows) // HEADERS_PER_TASK))
    function = partial(_read_headers, collection)
    formats: list[ImageFormat] = []
    messages: dict[int, str] = {}
    for task_formats, task_messages in map_in_workers(function, tasks, n_workers):
        formats += task_formats
        messages |= task_messages
    return formats, messages


def _read_headers(
    collection: ImageCollection, rows: np.ndarray
) -> tuple[list[ImageFormat], dict[int, str]]:
    """Return the formats of some images, and the cause for each unreadable header."""
    formats: list[ImageFormat] = []
    messages: dict[int, str] = {}
    for row in rows:
        image = None
        try:
            image = collection.sequence[row]
            formats.append(read_format(image))
        except MemoryError:
            raise
        # A dataset of the user may raise any error.
        except Exception as error:
            messages[int(row)] = describe_failure(image, error)
    return formats, messages


def _decode_rows(
    collection: ImageCollection, image_format: ImageFormat, rows: np.ndarray
) -> tuple[torch.Tensor, dict[int, str]]:
    """Return a batch of images, blank if unreadable, and the cause for each of these.

    Workers call this function.
    """
    shape = (len(rows), *image_format.shape)
    images: np.ndarray = np.zeros(shape, image_format.dtype)
    messages: dict[int, str] = {}
    for position, row in enumerate(rows):
        image = None
        try:
            image = collection.sequence[row]
            images[position] = decode(image, image_format)
        except MemoryError:
            raise
        # A dataset of the user, and a broken file, may raise any error.
        except Exception as error:
            messages[int(row)] = describe_failure(image, error)
    return torch.from_numpy(images), messages


@dataclass(frozen=True)
class DecodedSource(Source):
    """Images that are decoded in each pass over them.

    Parameters
    ----------
    collection : ImageCollection
    image_format : ImageFormat
        Format of the decoded images.
    rows : ndarray of int
        Rows of the collection that are the images of this source.
    n_workers : int
        Number of processes that decode later batches while a batch is used.
    skip : bool
        True if an unreadable image becomes blank and is recorded in `failures`. False
        if it raises ValueError.
    failures : ReadFailures
        Record of the unreadable rows of the collection.
    """

    collection: ImageCollection
    image_format: ImageFormat
    rows: np.ndarray
    n_workers: int
    skip: bool
    failures: ReadFailures = field(default_factory=ReadFailures)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.rows)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape (C, H, W) of one image."""
        return self.image_format.shape

    @property
    def dtype(self) -> type:
        """Data type of the batches, np.uint8 or np.float32."""
        return self.image_format.dtype

    def subset(self, rows: slice) -> "DecodedSource":
        """Return consecutive images as a source, with the same record of failures."""
        return replace(self, rows=self.rows[rows])

    def batch(self, rows: slice | np.ndarray) -> torch.Tensor:
        """Return the images at `rows` as a new tensor."""
        return next(self.batches([rows]))

    def batches(
        self, batch_rows: Sequence[slice | np.ndarray]
    ) -> Iterator[torch.Tensor]:
        """Return one batch after another; workers decode the next batches."""
        tasks = [self.rows[rows] for rows in batch_rows]
        function = partial(_decode_rows, self.collection, self.image_format)
        for images, messages in map_in_workers(function, tasks, self.n_workers):
            if messages and not self.skip:
                raise ReadFailures(messages).to_error()
            self.failures.record(messages)
            yield images
