"""Calls of a function in worker processes, in order."""

import contextlib
import multiprocessing
import os
import signal
import stat
import threading
from collections.abc import Callable, Iterator
from typing import Any

import joblib
import torch
from torch.utils.data import DataLoader, Dataset

from .messages import warn

try:
    import fcntl
# Windows has no such module, and does not fork.
except ImportError:
    fcntl = None  # type: ignore[assignment]

# Number of results that each worker computes before they are needed.
PREFETCHED = 4


def map_in_workers(function: Callable, tasks: list, n_workers: int) -> Iterator:
    """Return an iterator over the results of a function, computed in worker processes.

    Results come in the order of the tasks, and workers start on later tasks while the
    caller uses a result. This process calls the function itself if there are no
    workers, if there is a single task, or if it may not start processes: a worker of
    Dask is a daemon. A worker that is killed is replaced, with a warning.

    Parameters
    ----------
    function : callable
        Takes a task and returns a result.
    tasks : list
    n_workers : int
        Number of processes; 0 for this process alone.

    Raises
    ------
    RuntimeError
        If workers are killed twice without a result in between.
    """
    is_daemon = multiprocessing.current_process().daemon
    if n_workers == 0 or len(tasks) < 2 or is_daemon:
        return map(function, tasks)
    return _map_in_processes(function, tasks, n_workers)


class _FunctionDataset(Dataset):
    """Function in the form that a DataLoader's workers call."""

    def __init__(self, function: Callable):
        self.function = function

    def __getitem__(self, task):
        return self.function(task)


def _pass_through(result):
    """Return the result of a worker, where a DataLoader would make a batch."""
    return result


def _separate_file_positions(worker: int) -> None:
    """Give this process its own positions in the files that it has inherited.

    Forked processes share the position of an open file: while one of them reads from a
    zip, tar or HDF5 file that a dataset holds open, another one moves the position.
    Opening each file again ends that. Systems without /proc do not fork by default.
    """
    folder = "/proc/self/fd"
    if not os.path.isdir(folder):
        return
    for name in os.listdir(folder):
        # The list contains the descriptor of the folder itself, which is closed by now.
        with contextlib.suppress(OSError):
            descriptor = int(name)
            flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
            is_file = stat.S_ISREG(os.fstat(descriptor).st_mode)
            is_readable = flags & os.O_ACCMODE in (os.O_RDONLY, os.O_RDWR)
            if not is_file or not is_readable or flags & os.O_APPEND:
                continue
            position = os.lseek(descriptor, 0, os.SEEK_CUR)
            is_inheritable = os.get_inheritable(descriptor)
            opened = os.open(f"{folder}/{name}", flags & os.O_ACCMODE)
            os.lseek(opened, position, os.SEEK_SET)
            os.dup2(opened, descriptor, inheritable=is_inheritable)
            os.close(opened)


def _map_in_processes(function: Callable, tasks: list, n_workers: int) -> Iterator:
    n_results = 0
    n_results_at_death = -1
    while n_results < len(tasks):
        remaining = tasks[n_results:]
        loader = DataLoader(
            _FunctionDataset(function),
            sampler=remaining,
            batch_size=None,
            collate_fn=_pass_through,
            num_workers=min(n_workers, len(remaining), joblib.cpu_count()),
            prefetch_factor=PREFETCHED,
            worker_init_fn=_separate_file_positions,
            # Seeds of workers must not be drawn from the global generator.
            generator=torch.Generator(),
        )
        results = _start_workers(loader)
        try:
            for result in results:
                n_results += 1
                yield result
        except (RuntimeError, OSError, EOFError) as error:
            if not _is_worker_death(error):
                raise
            if n_results == n_results_at_death:
                raise RuntimeError(
                    "Workers that decode images are killed again and again, perhaps "
                    "for lack of memory. Lower n_jobs: n_jobs=1 decodes in this "
                    f"process. ({error})"
                ) from error
            warn("A worker that decodes images was killed. It is replaced.")
            n_results_at_death = n_results
        finally:
            # Otherwise the workers live as long as the traceback of an error.
            results._shutdown_workers()


def _is_worker_death(error: Exception) -> bool:
    """Return whether a worker was killed, rather than its function raised the error."""
    if isinstance(error, RuntimeError):
        return str(error).startswith("DataLoader worker (pid")
    # A result was lost on its way, since the worker itself hands over its tensors.
    return not str(error).startswith("Caught ")


def _start_workers(loader: DataLoader) -> Any:
    """Start the workers, and keep the handler of SIGCHLD that the caller had.

    torch's handler raises the death of a worker at any line of the main thread, also in
    the middle of an update of the network. Without the handler, the death is noticed by
    the code that waits for a result.
    """
    is_main_thread = threading.current_thread() is threading.main_thread()
    if not hasattr(signal, "SIGCHLD") or not is_main_thread:
        return iter(loader)
    handler = signal.getsignal(signal.SIGCHLD)
    results = iter(loader)
    # None is a handler that was not installed by Python, and cannot be set again.
    if handler is not None:
        signal.signal(signal.SIGCHLD, handler)
    return results
