"""Lock of the state of this process that all threads share.

It guards torch's default generators and the threads of BLAS libraries, which a fit
changes. So fits in several threads run one after another.
"""

import contextlib
import os
import threading
from collections.abc import Iterator

# Its methods with an underscore are those that threading.Condition uses.
_lock = threading.RLock()


@contextlib.contextmanager
def hold_process_lock(*, blocking: bool = True) -> Iterator[bool]:
    """Hold the lock inside the block, and return True.

    One thread can hold it several times. Without `blocking`, the block runs without the
    lock if another thread holds it, and the result is False.
    """
    lock = _lock
    is_held = lock.acquire(blocking)
    try:
        yield is_held
    finally:
        # Ctrl-C may have ended the wait for the lock in `release_process_lock`.
        if is_held and lock._is_owned():  # type: ignore[attr-defined]
            lock.release()


@contextlib.contextmanager
def release_process_lock() -> Iterator[None]:
    """Let other threads hold the lock inside the block."""
    lock = _lock
    count, _ = lock._release_save()  # type: ignore[attr-defined]
    try:
        yield
    finally:
        # `_acquire_restore` could not be interrupted by Ctrl-C.
        for _ in range(count):
            lock.acquire()


def _free_in_fork() -> None:
    """Free the lock in a forked process, in which other threads do not exist."""
    global _lock
    if not _lock._is_owned():  # type: ignore[attr-defined]
        _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_free_in_fork)
