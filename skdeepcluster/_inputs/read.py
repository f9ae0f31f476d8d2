"""What a user passes to `fit`, `transform` and the rest -> a source and classes."""

import math
import multiprocessing
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from sklearn.utils.multiclass import type_of_target
from sklearn.utils.validation import validate_data

from .._training.network import Standardize
from .._utils.device import count_threads
from .._utils.distributed import Processes
from .._utils.messages import warn
from .cache import cache_decoded
from .decoding import ImageFormat
from .images import (
    DecodedSource,
    ImageCollection,
    find_common_format,
    find_images,
    unreadable_error,
)
from .sources import (
    ArraySource,
    Source,
    as_array,
    check_finite,
    check_image_shape,
    is_table,
    read_images,
    read_rows,
)
from .tables import IMAGE_FORMS, check_rows

NO_CLUSTER = -1  # label of an image that cannot be read
FEW_ITEMS = 64  # pictures that are not worth the start of processes
CHANNELS = (3, 4)  # of color images
FAR = 100  # standard deviations that a pixel is hardly ever away from the mean
UNIT_ROWS = 16  # images that tell in which unit the others are, too


@dataclass(frozen=True)
class InputData:
    """What X holds, after checks."""

    source: Source
    n: int  # items of X
    rows: np.ndarray  # of X, those of the source's items
    failures: Mapping[int, str]  # of X's rows that cannot be read; grows with reading
    paths: np.ndarray | None = None
    start: int = 0  # row of X that is the first of these items

    def part(self, start: int, stop: int) -> "InputData":
        """Return some of the items of X, where all of them are in the source."""
        source = self.source.part(slice(start, stop))
        rows = self.rows[start:stop]
        paths = None if self.paths is None else self.paths[start:stop]
        return InputData(source, len(rows), rows, source.failures, paths, start)

    def share_failures(self, processes: Processes) -> None:
        """Learn what other processes could not read."""
        if isinstance(self.failures, dict):  # else nothing can fail
            for told in processes.all_gather_object(dict(self.failures)):
                self.failures.update(told)

    def in_place(self, values: np.ndarray, blank: float) -> np.ndarray:
        """Put values of the source's items where X has them, `blank` elsewhere."""
        if not self.failures:
            return values
        found = np.full((self.n, *values.shape[1:]), blank, values.dtype)
        found[self.rows - self.start] = values
        found[np.array(list(self.failures)) - self.start] = blank
        return found


def warn_unreadable(failures: Mapping[int, str], n: int) -> None:
    """Warn of those of `n` rows that could not be read, if there are any."""
    if failures:
        row = min(failures)
        warn(
            f"{len(failures)} of {n} images cannot be read and are skipped. The first, "
            f"in row {row}: {failures[row]}",
        )


def read_input(estimator, X, fitting: bool = False, reset: bool = False) -> InputData:
    """Return what X holds, after checks.

    Parameters
    ----------
    estimator : DeepClusterEstimator
        Its `n_features_in_` and `feature_names_in_` are set, or compared with.
    X : images in any form that `fit` takes
    fitting : bool
        Whether X is what `fit` learns from, and so is read again and again.
    reset : bool
        Whether the format of images is to be taken from X, rather than compared with
        that of an earlier `fit`.

    Raises
    ------
    ValueError, TypeError
        Saying what is wrong with X.
    """
    if isinstance(X, str | os.PathLike) and os.fspath(X).endswith(".npy"):
        X = _open_array(X)
    items = None if is_table(X) else find_images(X)
    if items is None:
        values = X if is_table(X) else as_array(X)
        X = values if getattr(values, "ndim", 2) else X  # what is no array stays
        if getattr(X, "ndim", 2) in (3, 4) and estimator.image_size != "auto":
            items = ImageCollection(X, None)
    if items is None:
        source = _read_array(estimator, X, reset)
        given = InputData(source, len(source), np.arange(len(source)), {})
    else:
        given = _read_items(estimator, items, fitting, reset)
    # Pixels of files are bytes, and those of the fit as well: none is decoded for this.
    if not reset and len(given.source.shape) == 3 and given.paths is None:
        _check_unit(estimator.module_, given.source.part(slice(UNIT_ROWS)))
    if fitting and len(given.rows) < 2:
        raise ValueError(
            f"Found array with {len(given.rows)} sample(s) (n_samples="
            f"{len(given.rows)}) while a minimum of 2 is required: one image cannot be "
            "clustered."
        )
    return given


def _check_unit(network: torch.nn.Module, few: Source) -> None:
    """Warn if images seem to be in another unit than those of the fit."""
    front = next((m for m in network.modules() if isinstance(m, Standardize)), None)
    if front is None:  # a module of the user's own
        return
    low, high = map(float, torch.aminmax(few.batch(slice(None)).float()))
    mean, scale = float(front.mean.max()), float(front.scale.max())
    # What lies between 0 and 1 has no larger mean or deviation than that.
    smaller = 0 <= low < high <= 1 and (mean > 1 or scale > 0.5)
    if smaller or high > mean + FAR * scale:
        warn(
            f"X holds values from {low:.3g} to {high:.3g}, but in fit their mean was "
            f"{mean:.3g}. Scale X as in fit: 0 to 1, say, is not 0 to 255."
        )


def _open_array(path) -> np.ndarray:
    if not os.path.isfile(path):
        raise ValueError(f"X={os.fspath(path)!r} is no file, seen from {os.getcwd()}.")
    try:
        return np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(
            f"X={os.fspath(path)!r} is no array on disk: {error}."
        ) from error


def _read_array(estimator, X, reset: bool) -> ArraySource:
    given = estimator.image_shape
    shape = check_image_shape(given) if reset else estimator.image_shape_
    if getattr(X, "ndim", 2) in (3, 4):
        if not reset and shape is None:
            raise ValueError(
                f"X has shape {X.shape}, but fit saw rows of "
                f"{estimator.n_features_in_} values. Pass rows (n, "
                f"{estimator.n_features_in_})."
            )
        source = read_images(X, shape, fitted=not reset)
        if reset:
            _set_n_features(estimator, source)
            if X.ndim == 3 and X.shape[1] > X.shape[2] in CHANNELS and given is None:
                warn(
                    f"X has shape {X.shape}: {len(X)} gray images of {X.shape[1]}x"
                    f"{X.shape[2]} pixels. A single color image is X[None]."
                )
    else:
        if not reset and shape is not None and given is None:
            raise ValueError(
                f"X has 2 dimensions, but fit saw images of shape {shape}. Reshape "
                f"X to (n, {', '.join(map(str, shape))}), with n=1 for a single image."
            )
        # What is in the list of dtypes stays as it is, in particular uint8.
        check = partial(
            validate_data,
            estimator,
            reset=reset,
            dtype=[np.float32, np.float64, np.uint8, np.float16],
            ensure_all_finite=False,
        )
        with np.errstate(over="ignore"):  # too large for float32: found below
            values = check_rows(X, IMAGE_FORMS, check)
        source = read_rows(values, shape)
    check_finite(source)
    return source


def _read_items(
    estimator, items: ImageCollection, fitting: bool, reset: bool
) -> InputData:
    n, skip = len(items), estimator.on_error == "skip"
    if n == 0:
        raise ValueError("Found 0 sample(s) while a minimum of 1 is required.")
    n_workers = _decoding_workers(estimator.n_jobs, n)
    failures: dict[int, str] = {}
    if reset:
        shape = check_image_shape(estimator.image_shape)
        wanted, failures = find_common_format(
            items, shape, estimator.image_size, n_workers
        )
        if wanted is None or (failures and not skip):
            raise unreadable_error(failures, skippable=wanted is not None)
        rows = np.setdiff1d(np.arange(n), list(failures))
    elif estimator.image_shape_ is None:
        raise ValueError(
            "X holds pictures, but fit saw rows of "
            f"{estimator.n_features_in_} values. Pass rows (n, n_features)."
        )
    else:
        wanted = ImageFormat(estimator.image_shape_, estimator._image_dtype)
        rows = np.arange(n)
        if wanted.dtype != np.uint8 and items.paths is not None:
            raise ValueError(
                "X holds files, whose pixels are bytes from 0 to 255, but fit saw "
                "floating-point numbers. Pass arrays as in fit, or fit on files."
            )
    decoded = DecodedSource(items, wanted, rows, n_workers, skip, failures)
    source: Source = decoded
    if fitting:
        source = cache_decoded(decoded, estimator.cache_dir or "memory", 2**30)
        rows = np.setdiff1d(rows, list(decoded.failures))
    if reset:
        _set_n_features(estimator, source)
    return InputData(source, n, rows, decoded.failures, items.paths)


def _set_n_features(estimator, source: Source) -> None:
    estimator.n_features_in_ = math.prod(source.shape)
    vars(estimator).pop("feature_names_in_", None)


def _decoding_workers(n_jobs: int | None, n: int) -> int:
    """Return the number of processes that decode pictures; 0 for this one alone.

    With None it is torch's number of threads, where starting a process is cheap.
    """
    chosen = multiprocessing.get_start_method(allow_none=True)
    cheap = (chosen or multiprocessing.get_all_start_methods()[0]) == "fork"
    if n < FEW_ITEMS or (n_jobs is None and not cheap):
        return 0
    count = torch.get_num_threads() if n_jobs is None else count_threads(n_jobs)
    return 0 if count == 1 else count


def check_class_labels(y, n: int) -> np.ndarray | None:
    """Return y where it holds one class for each image, else None."""
    if y is None:
        return None
    y = np.asarray(y)
    if y.shape[:1] != (n,):
        raise ValueError(
            f"Found input variables with inconsistent numbers of samples: X has {n}, "
            f"y has shape {y.shape}. Pass one entry for each image, or no y."
        )
    return y if y.ndim == 1 and type_of_target(y) in ("binary", "multiclass") else None
