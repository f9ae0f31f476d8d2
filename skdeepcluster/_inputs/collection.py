"""Folders, paths, PIL images and datasets as collections of single images."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset

from .arrays import check_dense
from .folders import list_image_files
from .headers import drop_label


@dataclass(frozen=True)
class ImageCollection:
    """Images that are read one at a time.

    Parameters
    ----------
    sequence : sequence or map-style dataset
        Images, paths, or pairs of an image and a label, in the order of X.
    paths : ndarray of str objects or None, default=None
        Path of each image, if the images are files.
    is_dataset : bool, default=False
        Whether rows are read by code of the user, which may hold open files or
        connections that processes cannot share.
    is_array : bool, default=False
        Whether the sequence is one array.
    """

    sequence: Any
    paths: np.ndarray | None = None
    is_dataset: bool = False
    is_array: bool = False

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.sequence)


def find_images(X, on_error: str = "raise") -> ImageCollection | None:
    """Return the collection of images in X, or None if X is an array or a table.

    Parameters
    ----------
    X : any
    on_error : {"raise", "skip"}, default="raise"
        Whether a folder that cannot be listed is an error.

    Raises
    ------
    ValueError, TypeError
        If X is a stream, a single image, or a path without images.
    """
    _check_not_iterable(X)
    if isinstance(X, Dataset):
        return ImageCollection(X, is_dataset=True)
    if isinstance(X, str | os.PathLike):
        paths = _as_array(list_image_files(X, on_error))
        return ImageCollection(paths, paths)
    sequence = _as_sequence(X)
    if sequence is None:
        return None
    # A missing image is reported with its row, wherever it is.
    examples = (entry for entry in sequence if entry is not None)
    example: Any = next(examples, None)
    if isinstance(example, tuple) and example and _is_path(example[0]):
        # The samples of torchvision's ImageFolder.
        sequence = [drop_label(pair) for pair in sequence]
        example = example[0]
    if _is_path(example):
        paths = _check_paths(sequence)
        return ImageCollection(paths, paths)
    if not isinstance(sequence, list | tuple | np.ndarray):
        # A column of a Hugging Face data set decodes its images when they are read.
        _check_not_mapping(example)
        if isinstance(example, Image.Image):
            return ImageCollection(sequence, is_dataset=True)
        sequence = list(sequence)
    _check_dense_rows(sequence)
    is_pair = isinstance(example, tuple) and len(example) > 0
    if (
        (is_pair and _is_image(example[0]))
        or isinstance(example, Image.Image)
        or (_is_image(example) and _differ_in_shape(sequence))
    ):
        return ImageCollection(sequence)
    return None


def _check_not_iterable(X) -> None:
    """Raise TypeError if X cannot be read by row."""
    if isinstance(X, IterableDataset):
        raise TypeError(
            "X is an IterableDataset, which cannot be read by row. Pass a map-style "
            "Dataset, with __len__ and __getitem__."
        )
    if isinstance(X, DataLoader):
        raise TypeError("X is a DataLoader, which makes batches. Pass X.dataset.")
    if isinstance(X, Image.Image):
        raise TypeError("X is a single image. Pass a list of images, such as [X].")


def _as_sequence(X) -> Any:
    """Return X as a non-empty 1-D sequence, or None if X has another form."""
    # Columns of pandas and polars have to_numpy.
    if isinstance(X, np.ndarray) or hasattr(X, "to_numpy"):
        X = np.asarray(X)
    elif not isinstance(X, Sequence) or isinstance(X, str | bytes):
        # A column of a Hugging Face data set is a sequence, but the data set is not.
        _check_not_mapping(X[0] if hasattr(X, "column_names") and len(X) else None)
        return None
    return X if getattr(X, "ndim", 1) == 1 and len(X) else None


def _check_not_mapping(row) -> None:
    """Raise TypeError if the rows of X have columns."""
    if isinstance(row, Mapping):
        names = list(row)
        raise TypeError(
            f"X has rows with the columns {names[:5]}. Pass the column of the images, "
            f"such as X[{names[0]!r}]."
        )


def _check_paths(sequence: Sequence) -> np.ndarray:
    """Return paths as an array of str."""
    for row, path in enumerate(sequence):
        if not _is_path(path):
            raise TypeError(
                f"X is a list of paths, but holds {path!r} in row {row}. Remove it."
            )
    paths = _as_array([os.fsdecode(path) for path in sequence])
    # scikit-learn indexes the path of a folder as if it were a sequence of images.
    if len(paths) > 1 and max(map(len, paths)) <= 1:
        raise ValueError(
            "X holds single letters, as if the path of a folder was split, which "
            "cross-validation does. Pass it the list of files, such as "
            "sorted(map(str, pathlib.Path(folder).rglob('*.jpg')))."
        )
    return paths


def _is_path(value) -> bool:
    return isinstance(value, str | os.PathLike)


def _as_array(paths: list[str]) -> np.ndarray:
    """Return paths as an array of str objects.

    In an array of numpy's own strings, each path takes the memory of the longest one.
    """
    # Strings of numpy and other subclasses become plain str.
    return np.array([str.__str__(path) for path in paths], dtype=object)


def _is_image(value) -> bool:
    """Return whether a value is an image, rather than a number or a row of numbers."""
    if _is_path(value) or isinstance(value, Image.Image):
        return True
    return isinstance(value, np.ndarray | torch.Tensor) and value.ndim in (2, 3)


def _check_dense_rows(sequence: Sequence) -> None:
    """Raise an error that names the first row that is no dense array."""
    for row, value in enumerate(sequence):
        value = value[0] if isinstance(value, tuple) and value else value
        if isinstance(value, np.ndarray | torch.Tensor) or scipy.sparse.issparse(value):
            check_dense(value, f"row {row} of X")


def _differ_in_shape(arrays: Sequence) -> bool:
    """Return whether arrays cannot be stacked."""
    return len({getattr(array, "shape", None) for array in arrays}) > 1
