"""Results of workers come in order, and killed workers are replaced."""

import multiprocessing
import os
import signal

import pytest
from torch.utils.data import _utils, dataloader

from skdeepcluster._utils.workers import map_in_workers


class KilledFunction:
    """Identity that kills its process in the fifth task, a number of times."""

    def __init__(self, folder, n_deaths):
        self.folder = folder
        self.n_deaths = n_deaths

    def __call__(self, task):
        deaths = list(self.folder.iterdir())
        if task == 5 and len(deaths) < self.n_deaths:
            (self.folder / str(len(deaths))).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return task


@pytest.fixture
def short_interval(monkeypatch):
    """Let torch check every half second, instead of five, that workers live."""
    monkeypatch.setattr(_utils, "MP_STATUS_CHECK_INTERVAL", 0.5)
    waiting = dataloader._MultiProcessingDataLoaderIter._try_get_data
    monkeypatch.setattr(waiting, "__defaults__", (0.5,))


@pytest.mark.parametrize("n_workers", [0, 1, 3])
def test_results_come_in_order(n_workers):
    assert list(map_in_workers(len, [], n_workers)) == []
    assert list(map_in_workers(len, [[1, 2]], n_workers)) == [2]
    assert list(map_in_workers(len, [[1, 2], [], [1]], n_workers)) == [2, 0, 1]


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
@pytest.mark.usefixtures("short_interval")
def test_killed_worker_is_replaced(tmp_path):
    handler = signal.getsignal(signal.SIGCHLD)
    with pytest.warns(UserWarning, match="worker that decodes images was killed"):
        results = list(map_in_workers(KilledFunction(tmp_path, 1), [*range(9)], 2))
    assert results == [*range(9)]
    assert signal.getsignal(signal.SIGCHLD) == handler


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
@pytest.mark.usefixtures("short_interval")
@pytest.mark.filterwarnings("ignore:A worker that decodes images was killed")
def test_workers_that_are_killed_again_end_the_fit(tmp_path):
    results = map_in_workers(KilledFunction(tmp_path, 99), [*range(9)], 2)
    with pytest.raises(RuntimeError, match=r"again and again.* Lower n_jobs"):
        list(results)


def test_error_of_the_function_is_raised():
    def fail(task):
        raise RuntimeError("error of the function")

    children = multiprocessing.active_children()
    with pytest.raises(RuntimeError, match="error of the function"):
        list(map_in_workers(fail, [1, 2, 3], 2))
    # The workers end although the error and its traceback are alive.
    assert set(multiprocessing.active_children()) <= set(children)


def test_daemon_starts_no_workers(monkeypatch):
    """A daemon may have no children, as multiprocessing checks."""
    settings = multiprocessing.current_process()._config
    monkeypatch.setitem(settings, "daemon", True)
    results = set(map_in_workers(lambda task: os.getpid(), [1, 2, 3], 2))
    assert results == {os.getpid()}
