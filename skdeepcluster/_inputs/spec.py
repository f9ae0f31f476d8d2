"""Parameters of reading, and the format of the images of a fit."""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from sklearn.utils.validation import check_array

from .decoding import ImageFormat


@dataclass(frozen=True, eq=False)
class InputFormat:
    """Format of the images or rows of a fit.

    Parameters
    ----------
    shape : tuple of int
        Shape of one image, (C, H, W), or of one row, (n_features,).
    dtype : type
        np.uint8 if the values are bytes, otherwise np.float32.
    mean, scale : ndarray of float32
        Statistics that standardize the values: one number for each channel of images,
        or for each feature of rows.
    image_format : ImageFormat or None, default=None
        Format into which new images are decoded. With None, `shape` and `dtype` decide.
    origin : ndarray of shape (n_features,), float64, or None, default=None
        See `ArraySource`.
    """

    shape: tuple[int, ...]
    dtype: type
    mean: np.ndarray
    scale: np.ndarray
    image_format: ImageFormat | None = None
    origin: np.ndarray | None = None

    @property
    def image_shape(self) -> tuple[int, int, int] | None:
        """Shape (C, H, W) of one image; None for plain rows."""
        if len(self.shape) != 3:
            return None
        channels, height, width = self.shape
        return channels, height, width

    @property
    def n_features(self) -> int:
        """Number of values of one image or row."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class InputSpec:
    """Parameters of `read_input`; the defaults read any image without a fit.

    Parameters
    ----------
    image_shape, image_size, resize, on_error, n_jobs, cache_dir
        Parameters of `DeepClusterEstimator`.
    validate_rows : callable, default=check_array
        Check of 2-D data, called as ``validate_rows(X, dtype=...,
        ensure_all_finite=False)``. An estimator passes scikit-learn's `validate_data`
        bound to itself, which compares the number and the names of the features.
    auto_size : int or None, default=None
        Side of the squares with ``image_size="auto"``. None depends on the images.
    max_auto_size : int or None, default=None
        Largest side of images of one size that are kept, and of squares. None is the
        default for networks with fresh weights.
    shorter_side : int or None, default=None
        See `ImageFormat`.
    interpolation : str, default="bilinear"
        See `ImageFormat`.
    reads_once : bool, default=False
        Whether a fit reads all images only once, so that decoded images need not be
        kept.
    shifts_rows : bool, default=False
        Whether rows that lie far from zero are shifted before they become float32. Rows
        that are embeddings already, or input of given weights, are used as they are.
    fitted : InputFormat or None, default=None
        Format that X must have, in place of `image_shape`, `image_size`, `resize`,
        `shorter_side` and `interpolation`.
    """

    image_shape: tuple[int, ...] | None = None
    image_size: str | int = "auto"
    resize: str = "auto"
    on_error: str = "raise"
    n_jobs: int | None = None
    cache_dir: str | os.PathLike | None = None
    validate_rows: Callable[..., np.ndarray] = check_array
    shorter_side: int | None = None
    interpolation: str = "bilinear"
    auto_size: int | None = None
    max_auto_size: int | None = None
    reads_once: bool = False
    shifts_rows: bool = False
    fitted: InputFormat | None = None
