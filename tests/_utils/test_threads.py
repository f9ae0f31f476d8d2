"""Blocks limit threads, and end with the numbers of before."""

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import faiss
import joblib
import pytest
import torch
from threadpoolctl import ThreadpoolController

from skdeepcluster._utils.process_lock import hold_process_lock
from skdeepcluster._utils.threads import (
    IMAGES_PER_THREAD,
    PIXELS_PER_THREAD,
    choose_threads,
    limit_threads,
    release_threads,
)


def count_threads():
    return torch.get_num_threads(), faiss.omp_get_max_threads()


@pytest.mark.parametrize("n_jobs", [1, 2, 3])
def test_limit_threads_ends_with_the_block(n_jobs):
    before = count_threads()
    with limit_threads(n_jobs):
        assert count_threads() == (n_jobs, n_jobs)
    assert count_threads() == before


def test_limit_threads_ends_after_an_error():
    before = count_threads()
    with pytest.raises(KeyError), limit_threads(3):
        raise KeyError
    assert count_threads() == before


def test_none_keeps_the_number_of_threads():
    before = count_threads()
    with limit_threads(None):
        assert count_threads() == before


@pytest.mark.parametrize(("n_jobs", "expected"), [(-1, 4), (-2, 3), (-9, 1)])
def test_negative_n_jobs_counts_from_the_processors(monkeypatch, n_jobs, expected):
    monkeypatch.setattr("joblib.cpu_count", lambda: 4)
    with limit_threads(n_jobs):
        assert count_threads() == (expected, expected)


@pytest.mark.parametrize("backend", ["sequential", "threading", "loky"])
def test_limit_threads_works_in_each_backend_of_joblib(backend):
    with joblib.parallel_config(backend), limit_threads(3):
        assert count_threads() == (3, 3)


def test_zero_threads_are_refused():
    with pytest.raises(ValueError, match=r"n_jobs=0 .*-1 for all"), limit_threads(0):
        pass


@pytest.mark.parametrize(
    ("work", "work_per_thread", "expected"),
    [
        # Batches of 64 images of 8x8, 16x16, 28x28 and 64x64 pixels.
        (64 * 8**2, PIXELS_PER_THREAD, 1),
        (64 * 16**2, PIXELS_PER_THREAD, 2),
        (64 * 28**2, PIXELS_PER_THREAD, 4),
        (64 * 64**2, PIXELS_PER_THREAD, 4),
        # Many images are clustered by several threads.
        (1_797, IMAGES_PER_THREAD, 1),
        (60_000, IMAGES_PER_THREAD, 4),
    ],
)
def test_threads_are_chosen_by_the_work(monkeypatch, work, work_per_thread, expected):
    monkeypatch.setattr("torch.get_num_threads", lambda: 4)
    monkeypatch.setattr("joblib.cpu_count", lambda: 8)
    assert choose_threads(work, work_per_thread) == expected


@pytest.mark.parametrize(("n_torch", "n_processors"), [(4, 2), (2, 4)])
def test_no_more_threads_than_the_process_may_use(monkeypatch, n_torch, n_processors):
    monkeypatch.setattr("torch.get_num_threads", lambda: n_torch)
    monkeypatch.setattr("joblib.cpu_count", lambda: n_processors)
    assert choose_threads(work=10**6, work_per_thread=1) == 2


def print_spin_count(code, **variables):
    """Return what a new process prints for the spinning of idle threads."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    }
    code += "import os, skdeepcluster; print(os.environ.get('GOMP_SPINCOUNT'))"
    command = [sys.executable, "-c", code]
    result = subprocess.run(
        command, env=environment | variables, capture_output=True, check=True, text=True
    )
    return result.stdout.strip()


def test_idle_threads_spin_briefly():
    assert print_spin_count("") == "1000"
    assert print_spin_count("", GOMP_SPINCOUNT="7") == "7"
    assert print_spin_count("", OMP_WAIT_POLICY="passive") == "None"
    # torch has read the variable already.
    assert print_spin_count("import torch; ") == "None"


def run_in_thread(function):
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result(30)


def count_blas_threads():
    libraries = ThreadpoolController().select(user_api="blas").lib_controllers
    # The remaining libraries count per thread of this process.
    shared = [library for library in libraries if library.threading_layer != "openmp"]
    return [library.num_threads for library in shared]


def test_limit_threads_leaves_torch_in_other_threads_alone():
    before = torch.get_num_threads()
    with limit_threads(before + 2):
        assert run_in_thread(torch.get_num_threads) == before


def test_limit_of_another_thread_leaves_blas_to_the_holder_of_the_lock():
    def limit():
        with limit_threads(3):
            return count_threads(), count_blas_threads()

    with hold_process_lock():
        blas = count_blas_threads()
        assert run_in_thread(limit) == ((3, 3), blas)
    assert run_in_thread(limit) == ((3, 3), [3] * len(blas))
    assert count_blas_threads() == blas


def test_limits_of_threads_end_in_any_order():
    before, blas = count_threads(), count_blas_threads()
    first_has_released, second_has_ended = threading.Event(), threading.Event()
    counts = []

    def run_first():
        with hold_process_lock(), limit_threads(3):
            with release_threads():
                first_has_released.set()
                second_has_ended.wait(30)
            counts.append(count_blas_threads())

    first = threading.Thread(target=run_first)
    first.start()
    first_has_released.wait(30)
    with hold_process_lock(), limit_threads(2):
        assert count_blas_threads() == [2] * len(blas)
        with release_threads():
            assert count_blas_threads() == blas
            second_has_ended.set()
            first.join(30)
        assert count_blas_threads() == [2] * len(blas)
    assert counts == [[3] * len(blas)]
    assert (count_threads(), count_blas_threads()) == (before, blas)
