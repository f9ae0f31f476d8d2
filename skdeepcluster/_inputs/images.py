"""Source of images that are decoded by the batch."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import torch

from .._utils.pages import PageReleaser
from .._utils.workers import map_in_workers
from .collection import ImageCollection
from .decoding import decode, describe_failure
from .failures import ReadFailures
from .headers import read_header
from .image_format import ImageFormat
from .sources import Source


def _decode_rows(
    collection: ImageCollection, image_format: ImageFormat, rows: np.ndarray
) -> tuple[torch.Tensor, dict[int, str]]:
    """Return a batch of images, blank if unreadable, and the cause for each of these.

    Workers call this function.
    """
    shape = (len(rows), *image_format.shape)
    images: np.ndarray = np.zeros(shape, image_format.dtype)
    messages: dict[int, str] = {}
    for position, row in enumerate(rows.tolist()):
        image = None
        try:
            image = collection.sequence[row]
            images[position] = decode(image, image_format)
        except MemoryError:
            raise
        # A dataset of the user, and a broken file, may raise any error.
        except Exception as error:
            messages[row] = describe_failure(image, error)
    if collection.is_array:
        PageReleaser(collection.sequence).release()
    return torch.from_numpy(images), messages


def find_error(
    collection: ImageCollection, row: int, image_format: ImageFormat | None
) -> Exception | None:
    """Return the error of an unreadable image, which a worker has only described.

    Parameters
    ----------
    collection : ImageCollection
    row : int
    image_format : ImageFormat or None
        None reads the header alone.

    Returns
    -------
    error : Exception or None
        None if the image can be read now.
    """
    try:
        image = collection.sequence[row]
        if image_format is None:
            read_header(image)
        else:
            decode(image, image_format)
    except MemoryError:
        raise
    except Exception as error:
        return error
    return None


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
                cause = find_error(self.collection, min(messages), self.image_format)
                raise ReadFailures(messages).to_error() from cause
            self.failures.record(messages)
            yield images
