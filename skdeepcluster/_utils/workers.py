"""Calls of a function in worker processes, in order.

All work in other processes goes through `map_in_workers`. With n workers, worker i
computes the tasks i, i + n, i + 2n, ... and sends the results through a pipe of its
own, which has no name in any file system. The pipe bounds the memory: a worker waits
with one result until this process has read the result before it. Nothing is placed in
shared memory, which containers limit to 64 MB.
"""

import contextlib
import multiprocessing
import os
import pickle
import random
import signal
import stat
import threading
import traceback
import weakref
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

import joblib
import numpy as np
import torch

from .interrupts import delay_interrupts
from .messages import warn

try:
    import fcntl
# Windows has no such module, and does not fork.
except ImportError:
    fcntl = None  # type: ignore[assignment]

# Seconds after which a silent worker is checked to be alive. Its pipe says so at once,
# unless another process has inherited the other end.
SECONDS_BETWEEN_CHECKS = 1.0
# Size of a pipe: 1 MiB is the largest size that Linux grants to each user by default
# (fs.pipe-max-size).
PIPE_BYTES = 2**20
# Seconds that an ended worker may take until the system has removed it.
SECONDS_TO_EXIT = 5.0

# Pools that a block of `stop_workers_at_end` stops, for each thread.
_THREAD = threading.local()


def map_in_workers(
    function: Callable,
    tasks: list,
    n_workers: int,
    on_death: Callable[[Any, str], Any] | None = None,
) -> Iterator:
    """Return an iterator over the results of a function, computed in worker processes.

    Results come in the order of the tasks, and workers start on later tasks while the
    caller uses a result. A single task is computed in a worker, too, since it may end
    its process. This process calls the function itself if there are no workers, or if
    it may not start processes: a worker of Dask is a daemon. If the system has no room
    for processes, it does so with a warning. A worker that is killed is replaced, with
    a warning.

    Parameters
    ----------
    function : callable
        Takes a task and returns a result, which can be pickled.
    tasks : list
    n_workers : int
        Number of processes; 0 for this process alone.
    on_death : callable or None
        Function that returns the result of a task that has killed two workers. It takes
        the task and the cause.

    Raises
    ------
    RuntimeError
        If a task kills two workers and there is no `on_death`.
    """
    is_daemon = multiprocessing.current_process().daemon
    if n_workers == 0 or not tasks or is_daemon:
        return map(function, tasks)
    return _map_in_processes(function, tasks, n_workers, on_death)


@contextlib.contextmanager
def stop_workers_at_end() -> Iterator[None]:
    """Stop the workers that this thread has started in the block, at its end.

    The traceback of an error, such as Ctrl-C, keeps variables alive. An iterator among
    them would keep its workers.
    """
    outer = getattr(_THREAD, "pools", None)
    # Finished pools are not kept.
    pools: weakref.WeakSet[_WorkerPool] = weakref.WeakSet()
    _THREAD.pools = pools
    try:
        yield
    finally:
        _THREAD.pools = outer
        for pool in pools:
            pool.stop()


class WorkerDeath(Exception):
    """A worker has ended before it has sent its result."""


class _WorkerPool:
    """Processes that compute tasks, see above.

    Parameters
    ----------
    function : callable
    tasks : list
    n_workers : int
        Largest number of processes. There are no more than tasks and processors.
    """

    def __init__(self, function: Callable, tasks: list, n_workers: int):
        self.function = function
        self.tasks = tasks
        self.n_workers = min(n_workers, len(tasks), joblib.cpu_count())
        self.workers: dict[int, tuple[BaseProcess, Connection]] = {}
        pools = getattr(_THREAD, "pools", None)
        if pools is not None:
            pools.add(self)

    def start(self, task: int) -> None:
        """Start the worker that computes a task and its later tasks."""
        context = multiprocessing.get_context()
        with delay_interrupts():
            # A forked worker closes the ends of the pipes of other workers. If it kept
            # them, the other workers would not notice the end of this process.
            inherited: list[Connection] = []
            if context.get_start_method() == "fork":
                inherited = [pipe for _, pipe in self.workers.values()]
            pipe, worker_pipe = context.Pipe(duplex=False)
            _enlarge(worker_pipe)
            tasks = self.tasks[task :: self.n_workers]
            # The number of its first task seeds each worker, so that no two workers
            # draw the same numbers.
            arguments = (self.function, tasks, worker_pipe, [*inherited, pipe], task)
            process = context.Process(target=_work, args=arguments, daemon=True)
            try:
                process.start()
            except BaseException:
                pipe.close()
                raise
            finally:
                # The death of the worker then ends the wait for its results.
                worker_pipe.close()
            self.workers[task % self.n_workers] = process, pipe

    def receive(self, task: int) -> Any:
        """Return the result of a task.

        Raises
        ------
        WorkerDeath
            If the worker has ended.
        Exception
            The error of the function.
        """
        process, pipe = self.workers[task % self.n_workers]
        try:
            while not pipe.poll(SECONDS_BETWEEN_CHECKS):
                if not process.is_alive() and not pipe.poll():
                    raise EOFError
            error, result = pickle.loads(pipe.recv_bytes())
        # The worker may die while it sends a result.
        except (EOFError, OSError) as end:
            process.join(SECONDS_TO_EXIT)
            raise WorkerDeath(_describe_exit(process.exitcode)) from end
        if error is not None:
            raise error
        return result

    def stop_worker(self, task: int) -> None:
        """Stop the worker of a task."""
        with delay_interrupts():
            process, pipe = self.workers.pop(task % self.n_workers)
            pipe.close()
            process.kill()
            process.join(SECONDS_TO_EXIT)
            # A process that waits for a broken disk cannot be killed.
            if process.exitcode is not None:
                process.close()

    def stop(self) -> None:
        """Stop all workers."""
        with delay_interrupts():
            for worker in [*self.workers]:
                self.stop_worker(worker)


def _enlarge(pipe: Connection) -> None:
    """Let a pipe hold a result, so that its worker can go on with the next task."""
    # Linux alone has this operation, and may refuse it if a user has many pipes.
    with contextlib.suppress(AttributeError, OSError):
        fcntl.fcntl(pipe.fileno(), fcntl.F_SETPIPE_SZ, PIPE_BYTES)


def _map_in_processes(
    function: Callable, tasks: list, n_workers: int, on_death: Callable | None
) -> Iterator:
    pool = _WorkerPool(function, tasks, n_workers)
    try:
        try:
            try:
                for task in range(pool.n_workers):
                    pool.start(task)
            except OSError as error:
                pool.stop()
                warn(
                    f"Worker processes cannot be started ({error}). This process "
                    "decodes the images by itself, which takes longer."
                )
                yield from map(function, tasks)
            else:
                yield from _receive_all(pool, on_death)
        finally:
            pool.stop()
    finally:
        # Ctrl-C may come just before the line above.
        pool.stop()


def _receive_all(pool: _WorkerPool, on_death: Callable | None) -> Iterator:
    """Return the results of all tasks, and replace workers that have ended."""
    for task, content in enumerate(pool.tasks):
        try:
            result = pool.receive(task)
        except WorkerDeath as death:
            warn(f"A worker process has ended early ({death}). It is replaced.")
            pool.stop_worker(task)
            pool.start(task)
            try:
                result = pool.receive(task)
            except WorkerDeath as second_death:
                if on_death is None:
                    raise RuntimeError(
                        f"Worker processes are killed again and again ({second_death}),"
                        " perhaps for lack of memory. Lower n_jobs: n_jobs=1 decodes "
                        "in this process."
                    ) from second_death
                pool.stop_worker(task)
                result = on_death(content, str(second_death))
                if task + pool.n_workers < len(pool.tasks):
                    pool.start(task + pool.n_workers)
        yield result


def _describe_exit(code: int | None) -> str:
    """Return how a process has ended."""
    if code is None or code >= 0:
        return f"exit code {code}"
    with contextlib.suppress(ValueError):
        return signal.Signals(-code).name
    return f"signal {-code}"


def _work(
    function: Callable,
    tasks: list,
    pipe: Connection,
    pipes_to_close: list[Connection],
    seed: int,
) -> None:
    """Compute tasks and send their results. This is the life of a worker process."""
    # Ctrl-C reaches all processes of a terminal, and this one is stopped by its parent.
    # Before this line it ends this process, and the parent hears it as well.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A handler of the parent is not meant for this process.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for other in pipes_to_close:
        other.close()
    _separate_file_positions()
    # A forked process cannot use the threads that its parent had.
    torch.set_num_threads(1)
    # Datasets with random transforms would otherwise repeat the draws of other workers.
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.manual_seed(seed)
    # The pipe is closed if this process's parent has ended or needs no more results.
    with contextlib.suppress(BrokenPipeError):
        for task in tasks:
            try:
                content = pickle.dumps((None, function(task)), pickle.HIGHEST_PROTOCOL)
            except Exception as error:
                content = pickle.dumps((as_picklable(error), None))
            pipe.send_bytes(content)


def as_picklable(error: Exception) -> Exception:
    """Return an error with the text of its traceback, which pickles leave out."""
    error.add_note("".join(traceback.format_exception(error)))
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _separate_file_positions() -> None:
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
        # A file that cannot be opened again keeps its shared position.
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
