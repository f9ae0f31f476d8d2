"""Functions that read some rows of a collection, also in worker processes."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from PIL import Image

from .._utils.workers import map_in_workers
from .collection import ImageCollection
from .decoding import describe_failure
from .failures import ReadFailures


def read_each(
    collection: ImageCollection, rows: np.ndarray, read: Callable[[int, Any], None]
) -> ReadFailures:
    """Pass images to a function one by one, and return the record of its errors.

    Parameters
    ----------
    collection : ImageCollection
    rows : ndarray of int
    read : callable
        Takes the position of a row in `rows`, and the image.
    """
    failures = ReadFailures()
    for position, row in enumerate(rows.tolist()):
        image = None
        try:
            image = collection.sequence[row]
            read(position, image)
        except MemoryError:
            raise
        # A dataset of the user, and a broken file, may raise any error.
        except Exception as error:
            failures.record({row: describe_failure(image, error)}, error)
    return failures


def _read_with_limit(read: Callable, max_pixels: int | None, rows: np.ndarray):
    """Read rows with a limit of the number of pixels of an image."""
    Image.MAX_IMAGE_PIXELS = max_pixels
    return read(rows)


@dataclass(frozen=True)
class RowReader:
    """Reader of some rows of a collection, in this process or in workers.

    Parameters
    ----------
    collection : ImageCollection
    read : callable
        Takes rows, ndarray of int, and returns their values and a `ReadFailures`.
    blank : callable
        Takes rows that cannot be read, and returns their values.
    concatenate : callable
        Joins a list of values.
    """

    collection: ImageCollection
    read: Callable[[np.ndarray], tuple[Any, ReadFailures]]
    blank: Callable[[np.ndarray], Any]
    concatenate: Callable[[list], Any]

    def map(
        self, batch_rows: Sequence[np.ndarray], n_workers: int
    ) -> Iterator[tuple[Any, ReadFailures]]:
        """Return values and failures of one batch after another, read in workers."""
        # A worker that is not forked does not know a limit that the user has set.
        function = partial(_read_with_limit, self.read, Image.MAX_IMAGE_PIXELS)
        return map_in_workers(function, [*batch_rows], n_workers, self._isolate)

    def _isolate(self, rows: np.ndarray, cause: str) -> tuple[Any, ReadFailures]:
        """Read rows one by one, since one row has killed its worker.

        Each row is a task of its own, so that the failure names the image.
        """
        if len(rows) > 1:
            tasks = [rows[i : i + 1] for i in range(len(rows))]
            results = list(self.map(tasks, n_workers=1))
            failures = ReadFailures()
            for _, row_failures in results:
                failures.update(row_failures)
            return self.concatenate([values for values, _ in results]), failures
        (row,) = rows.tolist()
        paths = self.collection.paths
        message = describe_failure(
            None if paths is None else paths[row],
            RuntimeError(f"it ends the process that decodes it ({cause})"),
        )
        return self.blank(rows), ReadFailures({row: message})
