"""Reading of X, in any form that `fit` and `transform` take, into a source."""

import multiprocessing
import os
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch

from .._utils.coordinates import choose_coordinates
from .._utils.hashing import hash_content
from .._utils.messages import warn
from .._utils.threads import count_threads
from .arrays import (
    as_array,
    check_dense,
    check_finite,
    check_image_shape,
    is_table,
    number_type,
    read_images,
    read_rows,
)
from .cache import cache_decoded
from .class_labels import encode_classes, read_classes
from .collection import ImageCollection, find_images
from .common_format import find_common_format
from .decoding import PIL_CHANNELS
from .failures import ReadFailures
from .image_format import ImageFormat
from .images import DecodedSource
from .sources import ArraySource, Source
from .spec import InputFormat, InputSpec
from .tables import IMAGE_FORMS, check_rows
from .units import check_range, check_units

# Label of an image that cannot be read.
NO_CLUSTER = -1

# Smallest number of images that is worth the start of worker processes.
MIN_ROWS_FOR_WORKERS = 64

# Number of rows of a dataset that are read again to see whether they are random.
REREAD_ROWS = 8

# Number of rows by which processes compare X.
COMPARED_ROWS = 64

# Numbers of channels of color images, without and with transparency.
COLOR_CHANNELS = (3, 4)

# Data types of 2-D data that are kept. scikit-learn converts other types to the first,
# which holds timestamps in integers.
ROW_DTYPES = (np.float64, np.float32, np.uint8, np.float16)


@dataclass(frozen=True)
class InputData:
    """Images or rows of X, after all checks.

    Parameters
    ----------
    source : Source
        Readable images or rows.
    n : int
        Number of rows of X.
    rows : ndarray of int
        Row of X for each image of the source.
    paths : ndarray of str or None, default=None
        Path of each row of X, if X holds files.
    start : int, default=0
        First row of X, if this is a part of larger data.
    image_format : ImageFormat or None, default=None
        Format of images, into which images of other shapes are resized. None for rows.
    """

    source: Source
    n: int
    rows: np.ndarray
    paths: np.ndarray | None = None
    start: int = 0
    image_format: ImageFormat | None = None

    @property
    def readable(self) -> np.ndarray:
        """Mask over the images of the source, False for broken images found so far."""
        if self.source.failures is None:
            return np.ones(len(self.rows), dtype=bool)
        return ~self.source.failures.mask(self.rows)

    def part(self, start: int, stop: int) -> "InputData":
        """Return the rows from `start` to `stop` of X.

        The source has to hold all rows of X, as it does when X is not read for
        training.
        """
        rows = self.rows[start:stop]
        return InputData(
            source=self.source.subset(slice(start, stop)),
            n=len(rows),
            rows=rows,
            paths=None if self.paths is None else self.paths[start:stop],
            start=start,
            image_format=self.image_format,
        )

    def scatter_rows(self, values: np.ndarray, blank: float) -> np.ndarray:
        """Return one value for each row of X.

        Parameters
        ----------
        values : ndarray of shape (len(source), ...)
            Values of the images of the source.
        blank : float
            Value of the rows that cannot be read.
        """
        readable = self.readable
        if len(self.rows) == self.n and readable.all():
            return values
        scattered = np.full((self.n, *values.shape[1:]), blank, values.dtype)
        scattered[self.rows[readable] - self.start] = values[readable]
        return scattered


def read_input(
    X, spec: InputSpec, *, for_training: bool = False
) -> tuple[InputData, ReadFailures]:
    """Read X and check it.

    Parameters
    ----------
    X : array-like, tensor, folder, paths, images or dataset
        Images or rows in any form that `DeepClusterEstimator.fit` takes.
    spec : InputSpec
    for_training : bool, default=False
        True if X is read many times: images are decoded once if they fit into the
        cache, unreadable images are left out of the source, and at least two images
        are needed.

    Returns
    -------
    data : InputData
    failures : ReadFailures
        Rows of X that cannot be read. It grows while the source is read, since broken
        files are noticed when they are decoded.

    Raises
    ------
    ValueError, TypeError
        If X is not usable.
    """
    if isinstance(X, str | os.PathLike) and os.fspath(X).endswith(".npy"):
        X = _open_array(X)
    check_dense(X)
    collection = None if is_table(X) else find_images(X, spec.on_error)
    if collection is None:
        values = X if is_table(X) else as_array(X)
        # A 0-D array is any other object. The error has to name the type of X.
        X = values if getattr(values, "ndim", 2) else X
        if getattr(X, "ndim", 2) in (3, 4):
            data, failures = _read_image_array(X, spec, for_training)
        else:
            source = _read_row_array(X, spec)
            image_format = _array_format(source, spec)
            data, failures = _keep_array(source, image_format), ReadFailures()
    else:
        data, failures = _read_collection(collection, spec, for_training)
    # Files of bytes need no check, which would decode them.
    is_file_of_bytes = data.paths is not None and data.source.dtype == np.uint8
    if spec.fitted is not None and spec.fitted.image_shape and not is_file_of_bytes:
        check_range(data.source, spec.fitted)
    if spec.fitted is None and data.image_format is not None:
        check_units(data.source)
    if for_training and len(data.rows) < 2:
        raise ValueError(
            f"Found array with {len(data.rows)} sample(s) (n_samples="
            f"{len(data.rows)}) while a minimum of 2 is required: one image cannot be "
            "clustered."
        )
    return data, failures


def identify(data: InputData) -> dict:
    """Return values that differ if processes have read different X.

    All rows count by their number, and a sample of them by its content.
    """
    rows = np.linspace(0, len(data.source) - 1, COMPARED_ROWS).astype(int)
    if data.paths is None:
        sample = data.source.take(rows).values
    else:
        # Images of files would be decoded twice.
        sample = data.paths[data.rows[rows]]
    return {
        "the number of rows": data.n,
        "the shape of a row": data.source.shape,
        "the rows": hash_content(sample),
    }


def _open_array(path: str | os.PathLike) -> np.ndarray:
    """Open a .npy file as a memory map."""
    if not os.path.isfile(path):
        raise ValueError(
            f"X={os.fspath(path)!r} is not a file, relative to {os.getcwd()}. Pass the "
            "path of an existing .npy file."
        )
    try:
        return np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(
            f"X={os.fspath(path)!r} is not an array on disk: {error}. Write it with "
            "numpy.save."
        ) from error


def _keep_array(source: ArraySource, image_format: ImageFormat | None) -> InputData:
    """Return an array that is not resized."""
    rows = np.arange(len(source))
    return InputData(source, n=len(source), rows=rows, image_format=image_format)


def _read_image_array(
    X: np.ndarray, spec: InputSpec, for_training: bool
) -> tuple[InputData, ReadFailures]:
    """Read a 3-D or 4-D array. It is resized as files of the same images are.

    Raises
    ------
    ValueError, TypeError
        If values are not finite numbers, or the images do not fit those of the fit.
    """
    if spec.fitted is None:
        source = read_images(X, check_image_shape(spec.image_shape), fitted=False)
        _warn_of_single_image(X, spec)
    else:
        source = read_images(X, _expected_shape(X, spec.fitted), fitted=True)
    check_finite(source)
    collection = ImageCollection(X, is_array=True)
    if spec.fitted is None and spec.image_shape is not None:
        return _keep_array(source, _array_format(source, spec)), ReadFailures()
    if spec.fitted is None:
        image_format, failures = _choose_format(collection, spec, n_workers=0)
    else:
        image_format = _fitted_format(collection, spec.fitted)
        failures = ReadFailures()
    is_kept = image_format.shape == source.shape and image_format.shorter_side is None
    if is_kept:
        return _keep_array(source, image_format), failures
    return _decode_collection(collection, image_format, failures, spec, for_training)


def _warn_of_single_image(X: np.ndarray, spec: InputSpec) -> None:
    """Warn if an array of gray images looks like a single color image."""
    looks_like_color = X.ndim == 3 and X.shape[1] > X.shape[2] in COLOR_CHANNELS
    if looks_like_color and spec.image_shape is None:
        warn(
            f"X has shape {X.shape}: {len(X)} gray images of {X.shape[1]}x{X.shape[2]} "
            "pixels. If X is a single color image, pass X[None]."
        )


def _expected_shape(X: np.ndarray, fitted: InputFormat) -> tuple[int, int, int] | None:
    """Return the shape that images must have, or None if they can be resized.

    Gray becomes color and color becomes gray, as in files. But a 3-D array is no batch
    of gray images if it may be a single color image.
    """
    image_shape = fitted.image_shape
    if image_shape is None:
        n_features = fitted.n_features
        raise ValueError(
            f"X has shape {X.shape}, but fit saw rows of {n_features} values. Pass "
            f"rows (n, {n_features})."
        )
    channels, height, width = image_shape
    if X.ndim == 3:
        is_color = channels > 1 and channels in (X.shape[0], X.shape[2])
        is_single = is_color or X.shape == (height, width, 1)
        return image_shape if is_single else None
    if X.shape[1:] in (image_shape, (height, width, channels)):
        # The shape of the fit also tells which dimension holds the channels.
        return image_shape
    # The smaller dimension holds the channels.
    n_channels = min(X.shape[1], X.shape[3])
    is_color_or_gray = {channels, n_channels} <= set(PIL_CHANNELS)
    becomes_color = (n_channels, channels) == (1, 3)
    can_convert = becomes_color or (X.dtype == np.uint8 and is_color_or_gray)
    return None if n_channels == channels or can_convert else image_shape


def _array_format(source: ArraySource, spec: InputSpec) -> ImageFormat | None:
    """Return the format of images of the shape `image_shape`, which are not resized.

    No image decides about resize="auto", and new images are scaled to this shape
    without a margin around it. None is the format of rows.
    """
    if len(source.shape) != 3:
        return None
    if spec.fitted is not None:
        return spec.fitted.image_format
    return ImageFormat(
        source.shape,
        source.dtype,
        resize="crop" if spec.resize == "auto" else spec.resize,
        interpolation=spec.interpolation,
        number_types=(number_type(source.values.dtype),),
        original_side=min(source.shape[1:]),
    )


def _read_row_array(X, spec: InputSpec) -> ArraySource:
    """Read 2-D data, as flattened images if their shape is known."""
    if spec.fitted is None:
        image_shape = check_image_shape(spec.image_shape)
    else:
        image_shape = spec.fitted.image_shape
        # Anything that is not 2-D gets a more precise error from `check_rows`.
        is_2d = is_table(X) or as_array(X).ndim == 2
        if image_shape is not None and spec.image_shape is None and is_2d:
            raise ValueError(
                f"X has 2 dimensions, but fit saw images of shape {image_shape}. "
                f"Reshape X to (n, {', '.join(map(str, image_shape))}), with n=1 for a "
                "single image."
            )
    validate = partial(
        spec.validate_rows, dtype=list(ROW_DTYPES), ensure_all_finite=False
    )
    # Values too large for float32 become infinite here; check_finite reports them.
    with np.errstate(over="ignore"):
        values = check_rows(X, IMAGE_FORMS, validate)
    source = replace(
        read_rows(values, image_shape), origin=_find_origin(values, image_shape, spec)
    )
    check_finite(source)
    return source


def _find_origin(
    values: np.ndarray, image_shape: tuple[int, int, int] | None, spec: InputSpec
) -> np.ndarray | None:
    """Return the origin of rows, or None if float32 holds them as they are."""
    if spec.fitted is not None:
        return spec.fitted.origin
    if image_shape is not None or not spec.shifts_rows or values.dtype == np.float32:
        return None
    coordinates = choose_coordinates(values, shifts=True)
    return coordinates.origin if coordinates.origin.any() else None


def _read_collection(
    collection: ImageCollection, spec: InputSpec, for_training: bool
) -> tuple[InputData, ReadFailures]:
    """Read images that have to be decoded or resized, one at a time."""
    n = len(collection)
    if n == 0:
        raise ValueError("Found 0 sample(s) while a minimum of 1 is required.")
    if spec.fitted is None:
        n_workers = _count_workers(spec.n_jobs, collection)
        image_format, failures = _choose_format(collection, spec, n_workers)
    else:
        image_format = _fitted_format(collection, spec.fitted)
        failures = ReadFailures()
    return _decode_collection(collection, image_format, failures, spec, for_training)


def _decode_collection(
    collection: ImageCollection,
    image_format: ImageFormat,
    failures: ReadFailures,
    spec: InputSpec,
    for_training: bool,
) -> tuple[InputData, ReadFailures]:
    """Decode images, or prepare to decode them in each pass.

    Parameters
    ----------
    collection : ImageCollection
    image_format : ImageFormat
    failures : ReadFailures
        Images with a broken header.
    spec : InputSpec
    for_training : bool
        See `read_input`.
    """
    n = len(collection)
    rows = np.arange(n)
    rows = rows[~failures.mask(rows)]
    decoded = DecodedSource(
        collection,
        image_format,
        rows=rows,
        n_workers=_count_workers(spec.n_jobs, collection),
        skip=spec.on_error == "skip",
        failures=failures,
    )
    source: Source = decoded
    # Training has to know the unreadable images beforehand.
    if for_training and (not spec.reads_once or decoded.skip):
        source = cache_decoded(decoded, spec.cache_dir)
        rows = rows[~failures.mask(rows)]
    if for_training and collection.is_dataset and len(rows):
        _warn_of_random_rows(source, decoded, rows)
    data = InputData(
        source, n=n, rows=rows, paths=collection.paths, image_format=image_format
    )
    return data, failures


def _warn_of_random_rows(
    source: Source, decoded: DecodedSource, rows: np.ndarray
) -> None:
    """Warn if a dataset returns other images when it is read again.

    Parameters
    ----------
    source : Source
        Images of the fit.
    decoded : DecodedSource
        Images of the dataset, which are read anew.
    rows : ndarray of int
        Row of the dataset for each image of `source`.
    """
    positions = np.unique(np.linspace(0, len(rows) - 1, REREAD_ROWS).astype(int))
    # Each worker would draw the same random numbers.
    again = replace(
        decoded, rows=rows[positions], n_workers=0, skip=True, failures=ReadFailures()
    )
    before = source.take(positions).values
    after = again.batch(slice(None)).numpy()
    for position, first, second in zip(positions, before, after, strict=True):
        if not np.array_equal(first, second):
            warn(
                f"X[{rows[position]}] is another image each time that it is read, so "
                "that predict will differ from labels_. Leave random transforms out of "
                "the dataset, and pass them as augment."
            )
            return


def _choose_format(
    collection: ImageCollection, spec: InputSpec, n_workers: int
) -> tuple[ImageFormat, ReadFailures]:
    """Return the format of all images, and the images with a broken header."""
    image_format, failures = find_common_format(
        collection,
        image_shape=check_image_shape(spec.image_shape),
        image_size=spec.image_size,
        n_workers=n_workers,
        resize=spec.resize,
        auto_size=spec.auto_size,
        max_auto_size=spec.max_auto_size,
    )
    if image_format is None or (failures and spec.on_error != "skip"):
        raise failures.to_error(skippable=image_format is not None)
    image_format = replace(
        image_format,
        shorter_side=spec.shorter_side,
        interpolation=spec.interpolation,
    )
    return image_format, failures


def _fitted_format(collection: ImageCollection, fitted: InputFormat) -> ImageFormat:
    """Return the format of the images of the fit."""
    if fitted.image_shape is None:
        n_features = fitted.n_features
        raise ValueError(
            f"X holds images, but fit saw rows of {n_features} values. Pass rows (n, "
            f"{n_features})."
        )
    image_format = fitted.image_format
    if image_format is None:
        return ImageFormat(fitted.image_shape, fitted.dtype)
    if collection.is_array:
        # Values in another unit cause a warning.
        return replace(image_format, number_types=None)
    if image_format.dtype != np.uint8 and image_format.number_types is not None:
        # Integers and the same numbers as floats are alike. Bytes of files have their
        # own black and white.
        own = image_format.number_types[0]
        other = "floats" if own == "integers" else "integers"
        return replace(image_format, number_types=(own, other))
    return image_format


def _count_workers(n_jobs: int | None, collection: ImageCollection) -> int:
    """Return the number of worker processes that decode a collection.

    0 stands for decoding in this process. With n_jobs=None the number is torch's
    number of threads if processes are forked, since other ways to start a process
    import torch anew, which takes seconds. A dataset is then read in this process:
    a connection to a database cannot be shared by forked processes.
    """
    method = multiprocessing.get_start_method(allow_none=True)
    is_fork = (method or multiprocessing.get_all_start_methods()[0]) == "fork"
    # An array would be copied into each process that is not forked.
    needs_fork = n_jobs is None or collection.is_array
    if len(collection) < MIN_ROWS_FOR_WORKERS or (needs_fork and not is_fork):
        return 0
    if n_jobs is None and collection.is_dataset:
        return 0
    # A single worker would only add the cost of sending images between processes.
    count = torch.get_num_threads() if n_jobs is None else count_threads(n_jobs)
    return 0 if count == 1 else count


def check_class_labels(y, n: int) -> np.ndarray | None:
    """Return the classes of images as integers, or None if y holds no classes.

    Parameters
    ----------
    y : array-like or None
        One class for each image. NaN, None, NA and masked entries are unknown classes.
    n : int
        Number of images.

    Returns
    -------
    codes : ndarray of shape (n,), int64, or None
        -1 for unknown classes.

    Raises
    ------
    ValueError
        If y does not have `n` entries.
    """
    if y is None:
        return None
    values, is_unknown = read_classes(y)
    if values.shape[:1] != (n,):
        raise ValueError(
            f"Found input variables with inconsistent numbers of samples: X has {n}, "
            f"y has shape {values.shape}. Pass one entry for each image, or no y."
        )
    if values.ndim > 1:
        warn(
            f"y has shape {values.shape}, and is ignored: it should hold one class for "
            f"each image, of shape ({n},). Pass y.argmax(axis=1) if each row marks one "
            "class."
        )
        return None
    return encode_classes(values, is_unknown)
