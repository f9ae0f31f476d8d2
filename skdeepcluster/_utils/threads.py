"""Limits of the number of threads, which end with a block."""

import contextlib
import ctypes
import os
import threading
from collections.abc import Iterator

import joblib
import torch
from threadpoolctl import ThreadpoolController

from .process_lock import hold_process_lock, release_process_lock

# Fewest pixels of a batch per thread of a network. With less work, threads wait for
# each other longer than they compute: a second thread makes training on 64 images of
# 8x8 pixels slower, and on 64 images of 28x28 pixels faster.
PIXELS_PER_THREAD = 8_192
# Fewest images per thread of a clustering, which has many short steps.
IMAGES_PER_THREAD = 10_000


def choose_threads(work: int, work_per_thread: int) -> int:
    """Return the number of threads of a part of a fit with `n_jobs=None`.

    Parameters
    ----------
    work : int
        Number of pixels of all images of a batch (or of values if images are rows), or
        number of images to be clustered.
    work_per_thread : int
        `PIXELS_PER_THREAD` or `IMAGES_PER_THREAD`.

    Returns
    -------
    n_threads : int
        Deterministic, so that results are reproducible. At most torch's number of
        threads, and the number of processors that CPU affinity and the limits of a
        container leave to this process.
    """
    n_useful = max(work // work_per_thread, 1)
    return min(n_useful, torch.get_num_threads(), joblib.cpu_count())


def count_threads(n_jobs: int) -> int:
    """Return the number of threads for `n_jobs`. -1 means all processors.

    `joblib.effective_n_jobs` is no substitute: inside a search on a compute cluster it
    returns the number of the cluster's workers for any `n_jobs`.

    Raises
    ------
    ValueError
        If `n_jobs` is 0.
    """
    if n_jobs == 0:
        raise ValueError(
            "n_jobs=0 is no number of threads. Use 1 or more, -1 for all processors, "
            "or None."
        )
    return n_jobs if n_jobs > 0 else max(1, joblib.cpu_count() + 1 + n_jobs)


@contextlib.contextmanager
def limit_threads(n_jobs: int | None) -> Iterator[None]:
    """Run a block on `n_jobs` CPU threads; None keeps the present settings.

    The limits of torch, faiss and scikit-learn hold for this thread of Python alone.
    The BLAS libraries of numpy and scipy have one limit for all threads of Python. Only
    the thread that holds the process lock sets it, so that a fit has the same number
    throughout. A forked process works on one thread.
    """
    if _IS_FORKED:
        n_jobs = 1
    if n_jobs is None:
        yield
        return
    n_threads = count_threads(n_jobs)
    # At its first use in a thread of this process, torch sets the number itself.
    torch.get_num_threads()
    controller = ThreadpoolController()
    openmp, blas = (controller.select(user_api=api) for api in ("openmp", "blas"))
    with (
        _limit_mkl(n_threads),
        _limit_openmp(openmp, n_threads),
        hold_process_lock(blocking=False) as is_held,
        _limit_blas(blas, n_threads) if is_held else contextlib.nullcontext(),
    ):
        yield


@contextlib.contextmanager
def release_threads() -> Iterator[None]:
    """Let other threads limit threads and hold the process lock inside the block."""
    limits = _BLAS_LIMITS.of_this_thread
    for limit in reversed(limits):
        limit.__exit__(None, None, None)
    try:
        with release_process_lock():
            yield
    finally:
        for limit in limits:
            limit.__enter__()


@contextlib.contextmanager
def _limit_openmp(openmp: ThreadpoolController, n_threads: int) -> Iterator[None]:
    limiter = openmp.limit(limits=n_threads)
    # Inside a context of threadpoolctl, other threads cannot limit BLAS libraries.
    try:
        yield
    finally:
        limiter.restore_original_limits()


class _BlasLimit:
    """Number of threads of BLAS libraries, a context that can be entered again."""

    def __init__(self, blas: ThreadpoolController, n_threads: int):
        self.blas, self.n_threads = blas, n_threads

    def __enter__(self) -> None:
        self.limiter = self.blas.limit(limits=self.n_threads)
        self.limiter.__enter__()

    def __exit__(self, *error) -> None:
        self.limiter.__exit__(*error)


class _BlasLimits(threading.local):
    """Limits that this thread has set, from the outermost to the innermost."""

    def __init__(self):
        self.of_this_thread: list[_BlasLimit] = []


_BLAS_LIMITS = _BlasLimits()


@contextlib.contextmanager
def _limit_blas(blas: ThreadpoolController, n_threads: int) -> Iterator[None]:
    limits, limit = _BLAS_LIMITS.of_this_thread, _BlasLimit(blas, n_threads)
    with limit:
        limits.append(limit)
        try:
            yield
        finally:
            limits.pop()


@contextlib.contextmanager
def _limit_mkl(n_threads: int) -> Iterator[None]:
    """Limit the MKL in torch, which ignores OpenMP after `torch.set_num_threads`.

    threadpoolctl does not find it, and `torch.set_num_threads` would also change other
    threads of this process.
    """
    set_number = getattr(
        ctypes.CDLL(torch._C.__file__), "MKL_Set_Num_Threads_Local", None
    )
    if set_number is None:
        yield
        return
    previous = set_number(n_threads)
    try:
        yield
    finally:
        set_number(previous)


_IS_FORKED = False


def _notice_fork() -> None:
    """Remember that the threads of OpenMP do not exist in this forked process.

    OpenMP would wait for them forever.
    """
    global _IS_FORKED
    _IS_FORKED = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_notice_fork)
