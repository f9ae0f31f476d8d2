"""Common format of images of any sizes, modes and types, from their headers."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from PIL import Image

from .._utils.messages import warn
from .collection import ImageCollection
from .decoding import describe_type
from .failures import ReadFailures
from .file_formats import open_image
from .headers import ImageHeader, drop_label, read_header
from .image_format import NUMBER_TYPES, ImageFormat, dtype_of
from .many_bits import read_numbers
from .row_readers import RowReader, read_each
from .transparency import partial_share

# Number of headers that a worker reads at once.
HEADERS_PER_TASK = 256

# Number of images of a dataset that are decoded to find the format of all images.
SAMPLED_IMAGES = 256

# Number of images that are decoded to find white, or the meaning of a fourth band.
DECODED_IMAGES = 32

# Share of the pixels that are neither opaque nor fully transparent, above which the
# last band of an image is no transparency.
MAX_PARTIAL_SHARE = 0.5

# Numbers of bits of cameras, scanners and tomographs.
BITS = (8, 10, 12, 14, 16, 32)

# Longest side, in pixels, up to which images of one size keep their size, and largest
# side of images of mixed sizes, both with image_size="auto".
MAX_AUTO_SIDES = (128, 64)

# With resize="auto", the largest mean share of the pixels that crops may drop. Squares
# from photographs of 4:3 and of 3:2 drop 25 % and 33 %, and padding would show the
# network bars that tell landscape from portrait.
MAX_DROPPED_SHARE = 0.4

# A crop that drops more than the first share of the pixels loses much. A warning
# comes if the second share of the images, or more, lose much.
MUCH_DROPPED = 0.5
WARNED_SHARE = 0.1

# Share of images that crops would drop much of, above which padding causes a warning:
# most of the padded pixels are then margin.
MUCH_PADDED_SHARE = 0.5


def find_common_format(
    collection: ImageCollection,
    image_shape: tuple[int, int, int] | None,
    image_size: str | int,
    n_workers: int,
    resize: str = "auto",
    auto_size: int | None = None,
    max_auto_size: int | None = None,
) -> tuple[ImageFormat | None, ReadFailures]:
    """Return the format into which all images are decoded, from their headers.

    Parameters
    ----------
    collection : ImageCollection
    image_shape : tuple (C, H, W) or None
        Shape of the format, if it is not None.
    image_size : "auto" or int
        Side of the squares that images become. "auto" keeps images that all have one
        size of at most 128 pixels a side. Images of mixed sizes get the median of
        their shorter sides, at most 64, where an image counts by its pixels.
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
    failures : ReadFailures
        Cause for each row with an unreadable header, or with other numbers than most
        images: bytes and floating-point numbers have no common black and white.

    Warns
    -----
    UserWarning
        If crops drop, or would drop, more than half of many images; if files of 8 bits
        and of more are mixed; if a band is taken for something else than transparency;
        or if images have several frames.
    """
    table, failures = _read_headers(collection, n_workers)
    number_types = _choose_number_types(table)
    is_other = ~np.isin(table.number_types, number_types)
    for row, name in zip(
        table.rows[is_other].tolist(), table.number_types[is_other], strict=True
    ):
        cause = _name_file(collection, row, describe_type(name, number_types))
        failures.record({row: cause})
    table = table.select(~is_other)
    if not len(table):
        return None, failures
    if image_size == "auto" and auto_size is not None:
        image_size = auto_size
    max_kept, max_side = (max_auto_size,) * 2 if max_auto_size else MAX_AUTO_SIDES
    shape = image_shape or _choose_shape(table.shapes, image_size, max_kept, max_side)
    image_format = ImageFormat(
        shape,
        dtype_of(number_types[0]),
        _choose_resize(resize, table.shapes, shape),
        number_types=number_types,
        original_side=_typical_side(table.shapes, max_side),
    )
    if len(number_types) > 1:
        image_format = replace(image_format, white=_find_white(collection, table))
    if table.has_alpha.any() and not _is_transparency(collection, table):
        image_format = replace(image_format, has_alpha=False)
    _warn_of_frames(table)
    return image_format, failures


@dataclass(frozen=True)
class HeaderTable:
    """Headers of many images, one column for each property of `ImageHeader`.

    Parameters
    ----------
    rows : ndarray of shape (n,), int64
        Row of each image in its collection.
    shapes : ndarray of shape (n, 3), int32
    number_types : ndarray of shape (n,), str
    has_alpha, is_animated, is_array : ndarray of shape (n,), bool
    """

    rows: np.ndarray
    shapes: np.ndarray
    number_types: np.ndarray
    has_alpha: np.ndarray
    is_animated: np.ndarray
    is_array: np.ndarray

    @classmethod
    def from_headers(cls, rows: list[int], headers: list[ImageHeader]) -> "HeaderTable":
        """Return the table of some headers."""
        longest_name = max(map(len, NUMBER_TYPES))
        return cls(
            rows=np.array(rows, np.int64),
            shapes=np.array([h.shape for h in headers], np.int32).reshape(-1, 3),
            number_types=np.array([h.number_type for h in headers], f"U{longest_name}"),
            has_alpha=np.array([h.has_alpha for h in headers], bool),
            is_animated=np.array([h.is_animated for h in headers], bool),
            is_array=np.array([h.is_array for h in headers], bool),
        )

    @classmethod
    def concatenate(cls, tables: Iterable["HeaderTable"]) -> "HeaderTable":
        """Return one table of all images."""
        columns = zip(*(vars(table).values() for table in tables), strict=True)
        return cls(*map(np.concatenate, columns))

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.rows)

    def select(self, mask: np.ndarray) -> "HeaderTable":
        """Return the table of some images."""
        return HeaderTable(*(column[mask] for column in vars(self).values()))


def _read_headers(
    collection: ImageCollection, n_workers: int
) -> tuple[HeaderTable, ReadFailures]:
    """Return the headers of all files, or of a sample of other images."""
    rows = np.arange(len(collection))
    # Images of a dataset have to be decoded to find their format, which takes long.
    if collection.paths is None:
        rows = np.random.default_rng(0).permutation(rows)[:SAMPLED_IMAGES]
        n_workers = 0
    reader = RowReader(
        collection,
        read=partial(_read_some_headers, collection),
        blank=lambda rows: HeaderTable.from_headers([], []),
        concatenate=HeaderTable.concatenate,
    )
    # Few headers are read in workers, too, since a broken file may end its process.
    n_tasks = max(1, 2 * n_workers, len(rows) // HEADERS_PER_TASK)
    tasks = np.array_split(rows, min(n_tasks, len(rows)))
    tables: list[HeaderTable] = []
    failures = ReadFailures()
    for table, task_failures in reader.map(tasks, n_workers):
        tables.append(table)
        failures.update(task_failures)
    return HeaderTable.concatenate(tables), failures


def _read_some_headers(
    collection: ImageCollection, rows: np.ndarray
) -> tuple[HeaderTable, ReadFailures]:
    """Return some headers, and the record of the unreadable ones."""
    read_rows: list[int] = []
    headers: list[ImageHeader] = []

    def read(position: int, image) -> None:
        headers.append(read_header(image))
        read_rows.append(int(rows[position]))

    failures = read_each(collection, rows, read)
    return HeaderTable.from_headers(read_rows, headers), failures


def _name_file(collection: ImageCollection, row: int, cause: str) -> str:
    """Return the cause of a failure, with the path of a file."""
    return cause if collection.paths is None else f"{collection.paths[row]}: {cause}"


def _choose_number_types(table: HeaderTable) -> tuple[str, ...]:
    """Return the names in `NUMBER_TYPES` that the images may have.

    Most images have numbers of these types. Files and PIL images of 8 bits and of more
    can be mixed, since integers of more bits can be scaled to bytes.
    """
    names, counts = np.unique(table.number_types, return_counts=True)
    n_images = dict(zip(names.tolist(), counts.tolist(), strict=True))
    has_arrays = table.is_array.any()
    if not has_arrays and {"bytes", "integers"} <= n_images.keys():
        return "bytes", "integers"
    # Of equally many, the first name is chosen.
    return (max(NUMBER_TYPES, key=lambda name: n_images.get(name, 0)),)


def _find_white(collection: ImageCollection, table: HeaderTable) -> float:
    """Return white in files of more than 8 bits that are mixed with files of 8 bits.

    It is the largest number of the least bits that hold the values of a sample: a
    camera of 12 bits stores white as 4095, in files of 16 bits. Images that exceed it
    count as unreadable.
    """
    is_deep = table.number_types == "integers"
    highest = _decode_some(
        collection, table.rows[is_deep], lambda image: float(read_numbers(image).max())
    )
    limit = max(highest, default=0.0)
    bits = next((bits for bits in BITS if limit < 2**bits), BITS[-1])
    white = 2.0**bits - 1
    warn(
        f"{is_deep.sum()} of {len(table)} images have more than 8 bits. Among images "
        f"of 8 bits they become bytes, with white at {white:.0f}, the largest number "
        f"of {bits} bits. Convert them to 8 bits if their white is another number."
    )
    return white


def _is_transparency(collection: ImageCollection, table: HeaderTable) -> bool:
    """Return whether the last band of images is transparency, and warn otherwise.

    Most pixels of a drawing are either opaque or fully transparent. The values of other
    bands, such as near infrared, mostly lie in between.
    """
    shares = _decode_some(collection, table.rows[table.has_alpha], partial_share)
    if not shares or np.median(shares) <= MAX_PARTIAL_SHARE:
        return True
    warn(
        f"The last band of {table.has_alpha.sum()} images is left out: most of its "
        "values lie between transparent and opaque, so that it is not transparency. "
        "To use a fourth band, pass arrays (n, 4, H, W)."
    )
    return False


def _decode_some(
    collection: ImageCollection, rows: np.ndarray, function: Callable
) -> list[float]:
    """Return values of a function of some of the images, as PIL images."""
    positions = np.linspace(0, len(rows) - 1, min(len(rows), DECODED_IMAGES))
    values: list[float] = []
    for row in rows[positions.astype(int)].tolist():
        try:
            image = drop_label(collection.sequence[row])
            if isinstance(image, Image.Image):
                values.append(function(image))
            else:
                with open_image(image) as file:
                    values.append(function(file))
        except MemoryError:
            raise
        # Broken images get their error when all images are decoded.
        except Exception:
            continue
    return values


def _warn_of_frames(table: HeaderTable) -> None:
    n_animated = int(table.is_animated.sum())
    if n_animated:
        warn(
            f"{n_animated} of {len(table)} images have several frames or pages, of "
            "which the first is read. Save each frame as a file of its own to use all."
        )


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
        height = width = min(max_side, _typical_side(shapes, max_side))
    return channels, height, width


def _typical_side(shapes: np.ndarray, max_side: int) -> int:
    """Return the median shorter side, in which an image counts by its pixels.

    Icons and spacers of a few pixels hardly count, however many they are: photographs
    that are scaled down to their size would lose everything. An image counts for at
    most `max_side` squared, so that one huge image does not decide alone.
    """
    sides = np.sort(shapes[:, 1:].min(axis=1)).astype(np.int64)
    weights = np.cumsum(np.minimum(sides, max_side) ** 2)
    return int(sides[np.searchsorted(weights, weights[-1] / 2)])


def _choose_resize(resize: str, shapes: np.ndarray, shape: tuple[int, int, int]) -> str:
    """Return how images of some shapes, ndarray (n, 3) of int, get a common shape."""
    heights, widths = shapes[:, 1], shapes[:, 2]
    ratios = widths * shape[1] / (heights * shape[2])
    dropped = 1 - np.minimum(ratios, 1 / ratios)
    if resize == "auto":
        if dropped.mean() <= MAX_DROPPED_SHARE:
            return "crop"
        share = np.mean(dropped > MUCH_DROPPED)
        if share >= MUCH_PADDED_SHARE:
            warn(
                f"resize='auto' pads images, since a crop would drop more than half of "
                f"the pixels of {share:.0%} of them. Set resize='pad' to confirm it, "
                "or 'crop' or 'stretch'."
            )
        return "pad"
    share = np.mean(dropped > MUCH_DROPPED)
    if resize == "crop" and share >= WARNED_SHARE:
        warn(
            f"resize='crop' drops more than half of the pixels of {share:.0%} of the "
            "images. Set resize='pad' to keep whole images."
        )
    return resize
