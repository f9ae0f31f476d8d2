"""Source of images that are decoded by the batch."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import torch

from .._utils.pages import PageReleaser
from .collection import ImageCollection
from .decoding import decode
from .failures import ReadFailures
from .image_format import ImageFormat
from .row_readers import RowReader, read_each
from .sources import Source


def _decode_rows(
    collection: ImageCollection, image_format: ImageFormat, rows: np.ndarray
) -> tuple[np.ndarray, ReadFailures]:
    """Return a batch of images, blank if unreadable, and the record of these."""
    images = _make_blank(image_format, rows)

    def read(position: int, image) -> None:
        images[position] = decode(image, image_format)

    failures = read_each(collection, rows, read)
    if collection.is_array:
        PageReleaser(collection.sequence).release()
    return images, failures


def _make_blank(image_format: ImageFormat, rows: np.ndarray) -> np.ndarray:
    """Return images for rows that cannot be read."""
    return np.zeros((len(rows), *image_format.shape), image_format.dtype)


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
        reader = RowReader(
            self.collection,
            read=partial(_decode_rows, self.collection, self.image_format),
            blank=partial(_make_blank, self.image_format),
            concatenate=np.concatenate,
        )
        tasks = [self.rows[rows] for rows in batch_rows]
        for images, failures in reader.map(tasks, self.n_workers):
            if failures and not self.skip:
                raise failures.to_error()
            self.failures.update(failures)
            yield torch.from_numpy(images)
