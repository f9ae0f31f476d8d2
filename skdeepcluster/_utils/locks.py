"""Locks that show which folders are in use, also by other processes."""

import os
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


class FolderLock:
    """Shared lock on a folder, which ends with the process if not before.

    Any number of users may hold it at the same time. File systems without locks are no
    error: each user is alone then.

    Parameters
    ----------
    folder : Path
        Folder that exists.
    """

    def __init__(self, folder: Path):
        self.descriptor: int | None = None
        if fcntl is not None:
            self.descriptor = os.open(folder, os.O_RDONLY)
            self._lock(fcntl.LOCK_SH)

    def is_alone(self) -> bool:
        """Return whether nobody else holds the lock.

        If so, all other users wait until this lock is released.
        """
        return fcntl is None or self._lock(fcntl.LOCK_EX | fcntl.LOCK_NB)

    def release(self) -> None:
        """End the lock."""
        if self.descriptor is not None:
            # Forked processes hold copies of the descriptor, which share the lock.
            self._lock(fcntl.LOCK_UN)
            os.close(self.descriptor)
            self.descriptor = None

    def _lock(self, operation: int) -> bool:
        """Return False if another lock is in the way."""
        assert self.descriptor is not None
        try:
            fcntl.flock(self.descriptor, operation)
        except BlockingIOError:
            return False
        except OSError:
            # Not each file system has locks.
            return True
        return True
