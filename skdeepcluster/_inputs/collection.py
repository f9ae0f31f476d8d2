"""Folders, paths, PIL images and datasets as collections of single images."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset

from .folders import list_image_files


@dataclass(frozen=True)
class ImageCollection:
    """Images that are read one at a time.

    Parameters
    ----------
    sequence : sequence or map-style dataset
        Images, paths, or pairs of an image and a label, in the order of X.
    paths : ndarray of str or None
        Path of each image, if the images are files.
    """

    sequence: Any
    paths: np.ndarray | None

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
        return ImageCollection(X, None)
    if isinstance(X, str | os.PathLike):
        paths = np.array(list_image_files(X, on_error))
        return ImageCollection(paths, paths)
    sequence = _as_sequence(X)
    if sequence is None:
        return None
    example = sequence[0]
    if isinstance(example, str | os.PathLike):
        paths = _check_paths(sequence)
        return ImageCollection(paths, paths)
    is_pair = isinstance(example, tuple) and len(example) > 0
    if (
        (is_pair and _is_image(example[0]))
        or isinstance(example, Image.Image)
        or (_is_image(example) and _differ_in_shape(sequence))
    ):
        return ImageCollection(sequence, None)
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
    elif not isinstance(X, list | tuple):
        return None
    return X if getattr(X, "ndim", 1) == 1 and len(X) else None


def _check_paths(sequence: Sequence) -> np.ndarray:
    """Return paths as an array of str."""
    for row, path in enumerate(sequence):
        if not isinstance(path, str | os.PathLike):
            raise TypeError(
                f"X is a list of paths, but holds {path!r} in row {row}. Remove it."
            )
    paths = np.array([os.fspath(path) for path in sequence])
    # scikit-learn indexes the path of a folder as if it were a sequence of images.
    if len(paths) > 1 and paths.dtype == "U1":
        raise ValueError(
            "X holds single letters, as if the path of a folder was split, which "
            "cross-validation does. Pass it the list of files, such as "
            "sorted(map(str, pathlib.Path(folder).rglob('*.jpg')))."
        )
    return paths


def _is_image(value) -> bool:
    """Return whether a value is an image, rather than a number or a row of numbers."""
    if isinstance(value, str | os.PathLike | Image.Image):
        return True
    return isinstance(value, np.ndarray | torch.Tensor) and value.ndim in (2, 3)


def _differ_in_shape(arrays: Sequence) -> bool:
    """Return whether arrays cannot be stacked."""
    return len({getattr(array, "shape", None) for array in arrays}) > 1
