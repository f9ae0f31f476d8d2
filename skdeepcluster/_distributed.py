"""The processes that share a fit: how many, and what they tell each other."""

import atexit
import contextlib
import functools
import multiprocessing
import os
import pickle
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import distributed

T = TypeVar("T")

# How the libraries below torch say that another process no longer answers.
GONE = (
    *("connection closed", "connection reset", "connection refused", "broken pipe"),
    *("socket", "timed out", "timeout", "remote process exited", "nccl"),
)


@dataclass(frozen=True)
class Ranks:
    """The processes of one fit, all of which call the same methods in the same order.

    With a single process, nothing is sent, and what is given comes back as it is.
    """

    rank: int = 0  # this process
    size: int = 1  # processes
    group: Any = None  # of torch.distributed, for what lies in main memory

    def sum(self, values: np.ndarray) -> np.ndarray:
        """Return the sum of all processes' arrays, the same bits for everyone."""
        if self.size == 1:
            return values
        total = torch.from_numpy(np.array(values))
        distributed.all_reduce(total, group=self.group)
        return total.numpy()

    def sum_tensor(self, values: torch.Tensor) -> torch.Tensor:
        """Return the sum of all processes' small tensors, on whatever device.

        Little as they are, they are gathered: an all-reduce would pass twice through
        all processes.
        """
        if self.size == 1:
            return values
        group = self.group if values.device.type == "cpu" else None
        found = [torch.empty_like(values) for _ in range(self.size)]
        distributed.all_gather(found, values, group=group)
        return torch.stack(found).sum(dim=0)

    def everyone(self, told: T) -> list[T]:
        """Return what each process tells, in their order."""
        if self.size == 1:
            return [told]
        heard: list = [None] * self.size
        distributed.all_gather_object(heard, told, group=self.group)
        return heard

    def any(self, condition: bool) -> bool:
        """Tell whether it holds for any process."""
        return bool(self.sum_tensor(torch.tensor(int(condition))))

    def first(self, compute: Callable[[], T]) -> T:
        """Return what the first process computes, or raise what it raises."""
        if self.size == 1:
            return compute()
        told: list[Any] = [None, None]  # result, error
        if self.rank == 0:
            try:
                told[0] = compute()
            except Exception as error:
                told[1] = _portable(error)
        mine = told[1]
        distributed.broadcast_object_list(told, src=0, group=self.group)
        if told[1] is not None:
            raise mine or told[1]
        return told[0]

    def shard(self, n: int) -> "Shard":
        """Share `n` rows out evenly."""
        share, rest = divmod(n, self.size)
        starts = [rank * share + min(rank, rest) for rank in range(self.size)]
        return Shard(self, (*starts, n))

    def held(self, n: int) -> "Shard":
        """Return the shard of one who holds `n` rows, whatever the others hold."""
        return Shard(self, (0, *np.cumsum(self.everyone(n)).tolist()))

    def own(self, device: torch.device) -> torch.device:
        """Return this process's device of a kind, of which a machine has several."""
        numbered = ":" in str(device)
        if self.size == 1 or device.type in ("cpu", "mps") or numbered:
            return device
        count = torch.get_device_module(device).device_count()
        number = int(os.environ.get("LOCAL_RANK", self.rank)) % count
        return torch.device(device.type, number)

    def agree(self, told: dict[str, Any]) -> None:
        """Raise ValueError in each process if they tell different things, by name."""
        everyone = self.everyone(told)
        for rank, other in enumerate(everyone):
            differing = [name for name in told if other[name] != everyone[0][name]]
            if differing:
                raise ValueError(
                    f"The processes of this fit differ: {', '.join(differing)} of rank "
                    f"{rank} and of rank 0 are not the same. Start all with the same "
                    "data and parameters."
                )

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Let only the first process warn, and tell it clearly if another one is gone.

        Raises
        ------
        RuntimeError
            In the place of what the network's libraries raise.
        """
        if self.size == 1:
            yield
            return
        try:
            with warnings.catch_warnings():
                if self.rank:
                    warnings.simplefilter("ignore")
                yield
        except RuntimeError as error:
            cause = str(error).splitlines()[0] if str(error) else ""
            if not any(sign in str(error).lower() for sign in GONE):
                raise
            raise RuntimeError(
                f"Another process of this fit has stopped or cannot be reached, and "
                f"rank {self.rank} of {self.size} stops, too. Look for the first error "
                "of the others. With checkpoint_dir set, the same command goes on from "
                f"the last checkpoint. ({cause})"
            ) from error


@dataclass(frozen=True)
class Shard:
    """The rows, of those that all processes hold together, that this one holds.

    Processes hold consecutive rows, in their order.
    """

    ranks: Ranks
    starts: tuple[int, ...]  # first row of each process, and the number of all rows

    @property
    def n(self) -> int:
        """The number of rows that all hold together."""
        return self.starts[-1]

    def of(self, rank: int) -> slice:
        """Return the rows that a process holds."""
        return slice(self.starts[rank], self.starts[rank + 1])

    @property
    def rows(self) -> slice:
        """The rows that this process holds."""
        return self.of(self.ranks.rank)

    def __len__(self) -> int:
        return self.rows.stop - self.rows.start

    def mine(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return which of `rows` of all this process holds, and where it holds them."""
        held = (rows >= self.rows.start) & (rows < self.rows.stop)
        return held, rows[held] - self.rows.start

    def take(self, held: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Return some `rows` of all from those who hold them.

        Parameters
        ----------
        held : ndarray with len(self) rows
            What this process holds.
        rows : ndarray of shape (m,), int
            The same for all processes.
        """
        if self.ranks.size == 1:
            return held[rows]
        found = np.zeros((len(rows), *held.shape[1:]), held.dtype)
        there, places = self.mine(rows)
        found[there] = held[places]
        return self.ranks.sum(found)

    def gather(self, held: np.ndarray) -> np.ndarray:
        """Return the rows of all, of which this process holds some."""
        if self.ranks.size == 1:
            return held
        found = np.empty((self.n, *held.shape[1:]), held.dtype)
        found[self.rows] = held
        values = torch.from_numpy(found)
        for rank in range(self.ranks.size):
            if len(part := values[self.of(rank)]):
                distributed.broadcast(part, rank, group=self.ranks.group)
        return found


ALONE = Ranks()


def joined() -> Ranks:
    """Return the processes that torchrun has started, or this one alone.

    A process group of torch.distributed that is there already is used; else one is
    formed, unless this process was started by one of torchrun's, as for a search.
    """
    if not distributed.is_available():
        return ALONE
    if not distributed.is_initialized():
        is_child = multiprocessing.parent_process() is not None
        if is_child or not distributed.is_torchelastic_launched():
            return ALONE
        _meet()
        atexit.register(_part)
    if distributed.get_world_size() == 1:
        return ALONE
    group = _in_main_memory(distributed.group.WORLD)
    return Ranks(distributed.get_rank(), distributed.get_world_size(), group)


def _meet() -> None:
    """Form the process group of those that torchrun has started."""
    both = torch.cuda.is_available() and distributed.is_nccl_available()
    backend = "cpu:gloo,cuda:nccl" if both else "gloo"
    store, rank, size = next(distributed.rendezvous("env://"))
    if os.environ.get("LOCAL_WORLD_SIZE") == str(size):
        # The store is still that of the processes before a restart, whose addresses it
        # holds. On several machines the number of restarts is not one for all.
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        store = distributed.PrefixStore(f"attempt{attempt}", store)
    distributed.init_process_group(backend, store=store, rank=rank, world_size=size)


def _part() -> None:
    """End the process group before the interpreter ends, which would abort."""
    if distributed.is_initialized():
        _in_main_memory.cache_clear()
        distributed.destroy_process_group()


@functools.cache
def _in_main_memory(world) -> Any:
    """Return a group of its own: never in between what others send in theirs."""
    return distributed.new_group(backend="gloo")


def _portable(error: Exception) -> Exception:
    """Return an error that other processes can be sent."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
