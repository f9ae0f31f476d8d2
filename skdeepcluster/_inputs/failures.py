"""Record of the rows of X that cannot be read."""

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from .._utils.distributed import Processes
from .._utils.files import escape_path
from .._utils.messages import warn
from .._utils.workers import as_picklable


class ReadFailures:
    """Rows of X that cannot be read, and the cause for each row.

    The source that decodes images adds to this record, since broken files are noticed
    only when they are decoded. Other code only reads the record.

    Parameters
    ----------
    messages : mapping of int to str, default=None
        Cause for each row that is known to be unreadable.
    """

    def __init__(self, messages: Mapping[int, str] | None = None):
        self._messages = dict(messages or {})
        # One error, for its traceback, and its row.
        self._error: Exception | None = None
        self._error_row: int | None = None

    def __getstate__(self) -> dict:
        # Workers send their records to this process.
        error = self._error
        return vars(self) | {"_error": error and as_picklable(error)}

    def __len__(self) -> int:
        """Return the number of unreadable rows."""
        return len(self._messages)

    def record(
        self, messages: Mapping[int, str], error: Exception | None = None
    ) -> None:
        """Add rows, with the cause for each row, and the error of the first one."""
        self._messages.update(messages)
        if error is not None:
            self._keep_first(error, min(messages))

    def update(self, other: "ReadFailures") -> None:
        """Add the rows of another record."""
        self._messages.update(other._messages)
        if other._error is not None and other._error_row is not None:
            self._keep_first(other._error, other._error_row)

    def _keep_first(self, error: Exception, row: int) -> None:
        """Keep an error if it belongs to the first row with an error."""
        if self._error_row is None or row < self._error_row:
            self._error, self._error_row = error, row

    @property
    def messages(self) -> Mapping[int, str]:
        """Cause for each row, read-only."""
        return MappingProxyType(self._messages)

    @property
    def rows(self) -> np.ndarray:
        """Rows of X in ascending order, int64."""
        return np.array(sorted(self._messages), dtype=np.int64)

    def mask(self, rows: np.ndarray) -> np.ndarray:
        """Return a mask over `rows`, True for each row that cannot be read."""
        return np.isin(rows, self.rows)

    def share(self, processes: Processes) -> None:
        """Add the rows that other processes could not read.

        All processes have to call this method.
        """
        for failures in processes.all_gather_object(self):
            self.update(failures)

    def warn(self, n: int) -> None:
        """Warn if any of the `n` rows of X cannot be read."""
        if self._messages:
            row = min(self._messages)
            warn(
                f"{len(self)} of {n} images cannot be read and are skipped. The first "
                f"is in row {row}: {self._messages[row]}"
            )

    def to_error(self, skippable: bool = True) -> ValueError:
        """Return an error that names the first unreadable row.

        Parameters
        ----------
        skippable : bool, default=True
            False if no image of X can be read, so that on_error="skip" is no cure.
        """
        row = min(self._messages)
        count = f" ({len(self)} such rows so far)" if len(self) > 1 else ""
        cure = "Remove it, or set on_error='skip'" if skippable else "Pass images"
        cause = escape_path(self._messages[row])
        error = ValueError(f"X cannot be read in row {row}: {cause}{count}. {cure}.")
        if row == self._error_row:
            error.__cause__ = self._error
        return error
