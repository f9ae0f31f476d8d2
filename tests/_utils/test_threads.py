"""Blocks limit threads, and end with the numbers of before."""

import faiss
import joblib
import pytest
import torch

from skdeepcluster._utils.threads import limit_threads


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
