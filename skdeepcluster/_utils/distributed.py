"""Processes that share one fit, and arrays with rows spread over processes."""

import atexit
import contextlib
import multiprocessing
import os
import pickle
import re
import time
import uuid
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import distributed

from .pages import take_rows

T = TypeVar("T")

# Such as "[../third_party/gloo/gloo/transport/tcp/pair.cc:545] Connection closed ...".
GLOO_SOURCE_LINE = re.compile(r"[/\\]gloo[/\\][\w/\\]+\.(cc|h):\d+")

# Seconds that a process waits at the start of a call for the remaining processes.
MEETING_SECONDS = 45.0


@dataclass(frozen=True)
class Processes:
    """The processes of one fit, which call the same methods in the same order.

    With a single process nothing is sent, and each method returns its argument.

    Parameters
    ----------
    rank : int
        Number of this process.
    size : int
        Number of processes.
    group : ProcessGroup or None
        Group of torch.distributed that sends data in main memory.

    Raises
    ------
    RuntimeError
        From each method that sends data, if another process is lost.
    """

    rank: int = 0
    size: int = 1
    group: Any = None

    def sum(self, values: np.ndarray) -> np.ndarray:
        """Return the sum of all processes' arrays, the same bits in each process."""
        if self.size == 1:
            return values
        total = torch.from_numpy(np.array(values))
        with self._explain_loss():
            distributed.all_reduce(total, group=self.group)
        return total.numpy()

    def sum_tensor(self, values: torch.Tensor) -> torch.Tensor:
        """Return the sum of all processes' small tensors, on any device."""
        if self.size == 1:
            return values
        group = self.group if values.device.type == "cpu" else None
        gathered = [torch.empty_like(values) for _ in range(self.size)]
        # Gathering small tensors is one round trip, an all-reduce would be two.
        with self._explain_loss():
            distributed.all_gather(gathered, values, group=group)
        return torch.stack(gathered).sum(dim=0)

    def all_gather_object(self, value: T) -> list[T]:
        """Return the values of all processes, ordered by rank."""
        if self.size == 1:
            return [value]
        gathered: list = [None] * self.size
        with self._explain_loss():
            distributed.all_gather_object(gathered, value, group=self.group)
        return gathered

    def any(self, condition: bool) -> bool:
        """Return whether the condition holds in any process."""
        return bool(self.sum_tensor(torch.tensor(int(condition))))

    def run_on_first(self, compute: Callable[[], T]) -> T:
        """Return the result of the first process, or raise its error."""
        if self.size == 1:
            return compute()
        result_and_error: list[Any] = [None, None]
        original_error = None
        if self.rank == 0:
            try:
                result_and_error[0] = compute()
            except Exception as error:
                original_error = error
                result_and_error[1] = _as_picklable(error)
        with self._explain_loss():
            distributed.broadcast_object_list(result_and_error, src=0, group=self.group)
        result, sent_error = result_and_error
        if sent_error is not None:
            raise original_error or sent_error
        return result

    def run_in_each(self, compute: Callable[[], T]) -> T:
        """Return the result of this process, or raise the first error of any process.

        Without it, processes without an error would wait for a process that has failed.
        """
        if self.size == 1:
            return compute()
        error, result = None, None
        try:
            result = compute()
        except Exception as own_error:
            error = own_error
        sent = None if error is None else _as_picklable(error)
        first_error = next(filter(None, self.all_gather_object(sent)), None)
        if first_error is not None:
            raise error or first_error
        return result  # type: ignore[return-value]

    def shard(self, n_rows: int) -> "Shard":
        """Divide rows evenly: each process gets consecutive rows."""
        share, rest = divmod(n_rows, self.size)
        starts = [rank * share + min(rank, rest) for rank in range(self.size)]
        return Shard(self, (*starts, n_rows))

    def shard_from_sizes(self, n_local_rows: int) -> "Shard":
        """Return the shard in which each process holds the number of rows it passes.

        All processes have to call it, since the numbers are gathered.
        """
        sizes = self.all_gather_object(n_local_rows)
        return Shard(self, (0, *np.cumsum(sizes).tolist()))

    def local_device(self, device: torch.device) -> torch.device:
        """Return the GPU of this process, where the machine has several."""
        is_numbered = ":" in str(device)
        if self.size == 1 or device.type in ("cpu", "mps") or is_numbered:
            return device
        count = torch.get_device_module(device).device_count()
        number = int(os.environ.get("LOCAL_RANK", self.rank)) % count
        return torch.device(device.type, number)

    def check_same(self, values: dict[str, Any]) -> None:
        """Raise ValueError in each process if their values differ, naming which."""
        of_each = self.all_gather_object(values)
        for rank, other in enumerate(of_each):
            differing = [name for name in values if other[name] != of_each[0][name]]
            if differing:
                raise ValueError(
                    f"The processes of torchrun differ: {', '.join(differing)} of rank "
                    f"{rank} and of rank 0 are not the same. Make the same calls in "
                    "each process, with the same parameters and all rows of X: the "
                    "processes divide the rows among themselves."
                )

    @contextlib.contextmanager
    def guard_collectives(self) -> Iterator[None]:
        """Warn from the first process only."""
        if not self.rank:
            yield
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield

    @contextlib.contextmanager
    def _explain_loss(self) -> Iterator[None]:
        """Explain the error that torch.distributed raises if another process is lost.

        It encloses nothing but the sending: an error of a user's dataset or callback
        may have the same type and text.
        """
        try:
            yield
        except RuntimeError as error:
            if not _is_lost_connection(error):
                raise
            cause = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise RuntimeError(
                f"Another process of this fit has stopped or cannot be reached, so "
                f"rank {self.rank} of {self.size} stops as well. Look for the first "
                "error of the other processes. With checkpoint_dir set, the same "
                f"command resumes from the last checkpoint. ({cause})"
            ) from error


@dataclass(frozen=True)
class Shard:
    """Which process holds which rows: consecutive rows, ordered by rank.

    Parameters
    ----------
    processes : Processes
    starts : tuple of int
        First row of each process, then the number of all rows.
    """

    processes: Processes
    starts: tuple[int, ...]

    @property
    def n_rows(self) -> int:
        """Number of rows of all processes."""
        return self.starts[-1]

    def rows_of(self, rank: int) -> slice:
        """Return the rows of one process."""
        return slice(self.starts[rank], self.starts[rank + 1])

    @property
    def rows(self) -> slice:
        """Rows of this process."""
        return self.rows_of(self.processes.rank)

    def __len__(self) -> int:
        """Return the number of rows of this process."""
        return self.rows.stop - self.rows.start

    def locate(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return which of the rows this process holds, and their local positions."""
        is_local = (rows >= self.rows.start) & (rows < self.rows.stop)
        return is_local, rows[is_local] - self.rows.start


@dataclass(frozen=True)
class Sharded:
    """An array with rows spread over processes.

    `gather` and `take` send rows, so all processes have to call them.

    Parameters
    ----------
    values : ndarray with len(shard) rows
        Rows of this process.
    shard : Shard
        Which process holds which rows.
    """

    values: np.ndarray
    shard: Shard

    @classmethod
    def whole(cls, values: np.ndarray) -> "Sharded":
        """Return an array that one process holds by itself."""
        return cls(values, SINGLE_PROCESS.shard(len(values)))

    @property
    def processes(self) -> Processes:
        """Processes that hold the rows."""
        return self.shard.processes

    @property
    def n_rows(self) -> int:
        """Number of rows of all processes."""
        return self.shard.n_rows

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Return some rows of the whole array, the same in each process.

        Parameters
        ----------
        rows : ndarray of shape (m,), int
            Rows of the whole array, the same in each process.
        """
        if self.processes.size == 1:
            return take_rows(self.values, rows)
        taken = np.zeros((len(rows), *self.values.shape[1:]), self.values.dtype)
        is_local, positions = self.shard.locate(rows)
        taken[is_local] = take_rows(self.values, positions)
        # Each row is zero in all processes but one.
        return self.processes.sum(taken)

    def gather(self) -> np.ndarray:
        """Return the rows of all processes."""
        if self.processes.size == 1:
            return self.values
        shape = (self.n_rows, *self.values.shape[1:])
        gathered = np.empty(shape, self.values.dtype)
        gathered[self.shard.rows] = self.values
        tensor = torch.from_numpy(gathered)
        for rank in range(self.processes.size):
            if len(part := tensor[self.shard.rows_of(rank)]):
                with self.processes._explain_loss():
                    distributed.broadcast(part, rank, group=self.processes.group)
        return gathered


SINGLE_PROCESS = Processes()


def get_processes(call: str | None = None) -> Processes:
    """Return the processes that torchrun has started, or this one by itself.

    An existing process group of torch.distributed is used. Otherwise a group is formed,
    unless this process is a child of one that torchrun started, as in a search.

    Parameters
    ----------
    call : str or None, default=None
        Name of the public method or function that all processes have to call. This
        process waits until each process has done so. None does not wait.

    Raises
    ------
    RuntimeError
        If a process does not make any call within `MEETING_SECONDS`.
    ValueError
        If a process makes another call.
    """
    if not distributed.is_available():
        return SINGLE_PROCESS
    method = call or "this method"
    if not distributed.is_initialized():
        is_child = multiprocessing.parent_process() is not None
        if is_child or not distributed.is_torchelastic_launched():
            return SINGLE_PROCESS
        _init_process_group(method)
        atexit.register(_destroy_process_group)
    rank, size = distributed.get_rank(), distributed.get_world_size()
    if size == 1:
        return SINGLE_PROCESS
    world = distributed.group.WORLD
    if world not in _meetings:
        # Builds of torch without distributed have no such module.
        from torch.distributed.distributed_c10d import _get_default_store

        store = _get_default_store()
        # Also the formation of a group waits for all processes.
        Meeting(store, rank, size, name="group").wait(method)
        group = distributed.new_group(backend="gloo")
        processes = Processes(rank, size, group)
        # A second process group may use the same store.
        name = processes.all_gather_object(uuid.uuid4().hex)[0]
        _meetings[world] = processes, Meeting(store, rank, size, name)
    processes, meeting = _meetings[world]
    if call is not None:
        meeting.wait(call)
        processes.check_same({"the called method": call})
    return processes


class Meeting:
    """Place where processes wait for each other.

    A process that waits in an operation of torch.distributed would wait for half an
    hour, or forever. A store is shared by processes without any operation.

    Parameters
    ----------
    store : torch.distributed.Store or None
        None, as with MPI, does not wait.
    rank : int
    size : int
    name : str
        Name that is unique in the store.
    """

    def __init__(self, store, rank: int, size: int, name: str):
        self.store, self.rank, self.size, self.name = store, rank, size, name
        self.n_meetings = 0

    def wait(self, call: str) -> None:
        """Wait until all processes have made their next call."""
        if self.store is None:
            return
        keys = [self._key(rank) for rank in range(self.size)]
        self.store.set(keys[self.rank], call)
        end, pause = time.monotonic() + MEETING_SECONDS, 0.001
        while not self.store.check(keys):
            if time.monotonic() > end:
                missing = [
                    str(rank)
                    for rank, key in enumerate(keys)
                    if not self.store.check([key])
                ]
                # A process that comes later must not take this one for present.
                self.store.delete_key(keys[self.rank])
                raise RuntimeError(_describe_absence(missing, self.size, call))
            time.sleep(pause)
            pause = min(2 * pause, 0.05)
        self.n_meetings += 1
        if self.n_meetings > 1:
            # All processes have left the meeting before the last one.
            self.store.delete_key(self._key(self.rank, self.n_meetings - 2))

    def _key(self, rank: int, number: int | None = None) -> str:
        number = self.n_meetings if number is None else number
        return f"skdeepcluster/{self.name}/{number}/{rank}"


def _describe_absence(missing: list[str], size: int, call: str) -> str:
    return (
        f"Rank {', '.join(missing)} of {size} has not called {call} within "
        f"{MEETING_SECONDS:.0f} seconds. Call it in every process, with the same X, "
        "not under `if rank == 0`. If a process needs longer before the call, call "
        "torch.distributed.barrier() in each process first, which waits as long as "
        f"the process group allows. To call {call} in one process alone, do so in a "
        "child process that is spawned: concurrent.futures.ProcessPoolExecutor(1, "
        "mp_context=multiprocessing.get_context('spawn'))."
    )


# Processes and their meetings for each process group of torch.distributed.
_meetings: dict[Any, tuple[Processes, Meeting]] = {}


def _init_process_group(call: str) -> None:
    """Form the group of the processes that torchrun has started."""
    has_nccl = torch.cuda.is_available() and distributed.is_nccl_available()
    backend = "cpu:gloo,cuda:nccl" if has_nccl else "gloo"
    store, rank, size = next(distributed.rendezvous("env://"))
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    if os.environ.get("LOCAL_WORLD_SIZE") == str(size):
        # After a restart the store still holds the addresses of the processes before
        # it. The count of restarts separates both, but only on a single machine.
        store = distributed.PrefixStore(f"attempt{attempt}", store)
    Meeting(store, rank, size, name="start").wait(call)
    distributed.init_process_group(backend, store=store, rank=rank, world_size=size)


def _destroy_process_group() -> None:
    """End the process group before the interpreter ends, which would abort."""
    if distributed.is_initialized():
        _meetings.clear()
        distributed.destroy_process_group()


def _is_lost_connection(error: RuntimeError) -> bool:
    """Return whether torch.distributed raised the error because a process is gone.

    NCCL and the store raise subclasses of `DistError`. Gloo raises a plain RuntimeError
    whose text names a line of its source files.
    """
    return isinstance(error, distributed.DistError) or bool(
        GLOO_SOURCE_LINE.search(str(error))
    )


def _as_picklable(error: Exception) -> Exception:
    """Return an error that other processes can be sent."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
