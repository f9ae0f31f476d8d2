"""Workers return results in order, die alone, and end with the call."""

import contextlib
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from skdeepcluster._utils import interrupts, workers
from skdeepcluster._utils.workers import map_in_workers, stop_workers_at_end

pytestmark = pytest.mark.skipif(os.name == "nt", reason="processes of POSIX")


def list_children():
    """Return the numbers of the processes that this process has started."""
    children = Path("/proc/self/task").glob("*/children")
    return {number for path in children for number in path.read_text().split()}


@pytest.fixture
def no_new_processes():
    """Fail if a process is left at the end of the test."""
    before = list_children()
    yield
    assert list_children() <= before


class KilledFunction:
    """Identity that ends its process in some tasks.

    Parameters
    ----------
    folder : Path
        Counts the deaths of each task.
    n_deaths : dict of int to int
        Number of times that a task ends its process.
    """

    def __init__(self, folder, n_deaths):
        self.folder = folder
        self.n_deaths = n_deaths

    def __call__(self, task):
        deaths = list(self.folder.glob(f"{task}-*"))
        if len(deaths) < self.n_deaths.get(task, 0):
            (self.folder / f"{task}-{len(deaths)}").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return task


@pytest.mark.parametrize("n_workers", [0, 1, 3])
def test_results_come_in_order(n_workers, no_new_processes):
    assert list(map_in_workers(len, [], n_workers)) == []
    assert list(map_in_workers(len, [[1, 2]], n_workers)) == [2]
    assert list(map_in_workers(len, [[1, 2], [], [1]], n_workers)) == [2, 0, 1]


def test_large_results_and_tasks(no_new_processes):
    """Results larger than the buffer of a pipe, and tasks as large, do not block."""
    tasks = [np.arange(size) for size in (300_000, 10, 1_000_000, 0, 300_000)]
    for task, result in zip(tasks, map_in_workers(np.negative, tasks, 2), strict=True):
        np.testing.assert_array_equal(result, -task)


def test_waiting_workers_hold_one_result_each(tmp_path, no_new_processes):
    def touch(task):
        (tmp_path / str(task)).touch()
        return np.zeros(1_000_000)

    results = map_in_workers(touch, [*range(20)], 2)
    next(results)
    time.sleep(0.3)
    # One result was read, and each worker waits with the result after it.
    assert len(list(tmp_path.iterdir())) <= 4
    results.close()


@pytest.mark.parametrize("n_deaths", [{5: 1}, {0: 1, 8: 1}, {3: 1, 4: 1, 5: 1}])
def test_killed_worker_is_replaced(tmp_path, n_deaths, no_new_processes):
    function = KilledFunction(tmp_path, n_deaths)
    with pytest.warns(UserWarning, match=r"worker process has ended early \(SIGKILL\)"):
        results = list(map_in_workers(function, [*range(9)], 2))
    assert results == [*range(9)]


@pytest.mark.filterwarnings("ignore:A worker process has ended early")
def test_task_that_kills_two_workers(tmp_path, no_new_processes):
    function = KilledFunction(tmp_path, {1: 9, 4: 9, 8: 9})
    with pytest.raises(RuntimeError, match=r"again and again.* Lower n_jobs"):
        list(map_in_workers(function, [*range(9)], 2))
    results = map_in_workers(
        function, [*range(9)], 2, on_death=lambda task, cause: f"{task} {cause}"
    )
    expected = [0, "1 SIGKILL", 2, 3, "4 SIGKILL", 5, 6, 7, "8 SIGKILL"]
    assert list(results) == expected


def test_error_of_the_function_is_raised(no_new_processes):
    class LocalError(Exception):
        """An error that cannot be pickled."""

    def fail(task):
        if task == 1:
            raise RuntimeError("error of the function")
        raise LocalError("error without a pickle")

    with pytest.raises(RuntimeError, match="error of the function") as caught:
        list(map_in_workers(fail, [1, 2, 3], 2))
    assert "in fail" in "".join(caught.value.__notes__)
    # The workers end although the error and its traceback are alive.
    with pytest.raises(RuntimeError, match="LocalError: error without a pickle"):
        list(map_in_workers(fail, [2, 1], 2))


def test_process_without_room_for_workers(no_new_processes):
    """Without file descriptors for a pipe, this process calls the function."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with open(os.devnull) as file:
        lowest_free = file.fileno()
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free + 1, hard))
    try:
        with pytest.warns(UserWarning, match="cannot be started"):
            results = list(map_in_workers(len, [[1, 2], [], [1]], 2))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert results == [2, 0, 1]


def test_daemon_starts_no_workers(monkeypatch):
    """A daemon may have no children, as multiprocessing checks."""
    settings = multiprocessing.current_process()._config
    monkeypatch.setitem(settings, "daemon", True)
    results = set(map_in_workers(lambda task: os.getpid(), [1, 2, 3], 2))
    assert results == {os.getpid()}


def test_iterator_in_a_traceback_keeps_no_workers():
    before = list_children()

    def fail():
        # A variable of the traceback holds the iterator.
        results = map_in_workers(abs, [*range(9)], 2)
        for _ in results:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught, stop_workers_at_end():
        fail()
    # The traceback is still alive.
    assert caught.tb is not None
    assert list_children() <= before


class InterruptAtLine:
    """Press Ctrl-C before the n-th line of some modules."""

    def __init__(self, n, modules):
        self.n = n
        self.files = {module.__file__ for module in modules}
        self.n_lines = 0

    def __call__(self, frame, event, argument):
        if frame.f_code.co_filename not in self.files:
            return None
        if event == "line":
            self.n_lines += 1
            if self.n_lines == self.n:
                signal.raise_signal(signal.SIGINT)
        return self


@pytest.fixture
def heard_interrupts():
    """Ctrl-C raises KeyboardInterrupt, also where a shell lets processes ignore it."""
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, handler)


@pytest.mark.usefixtures("heard_interrupts", "no_new_processes")
def test_interrupt_at_each_line_leaves_no_worker():
    n, has_ended = 0, False
    while not has_ended:
        n += 1
        interrupt = InterruptAtLine(n, [workers, interrupts])
        results = []
        sys.settrace(interrupt)
        try:
            with stop_workers_at_end():
                results.extend(map_in_workers(abs, [1, 2], 1))
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(None)
        has_ended = interrupt.n_lines < n
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        assert not multiprocessing.active_children(), n
    assert results == [1, 2]
    assert n > 40


def test_threads_have_their_own_workers(no_new_processes):
    """The end of one thread's block does not stop the workers of another thread."""
    results = map_in_workers(abs, [*range(40)], 2)
    next(results)

    def run_block():
        with stop_workers_at_end():
            list(map_in_workers(abs, [*range(4)], 2))

    thread = threading.Thread(target=run_block)
    thread.start()
    thread.join()
    assert list(results) == [*range(1, 40)]


SCRIPT = """
import sys, time
from skdeepcluster._utils.workers import map_in_workers

def work(task):
    print(__import__("os").getpid(), flush=True)
    time.sleep(SECONDS)
    return bytes(1_000_000)

for _ in map_in_workers(work, [*range(50)], 2):
    time.sleep(60)
"""


@pytest.mark.parametrize("seconds", [0.0, 1.0])
def test_workers_of_a_killed_process_end(seconds):
    """Both workers that wait with a result and workers that compute one."""
    script = SCRIPT.replace("SECONDS", str(seconds))
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        pids = {int(process.stdout.readline()) for _ in range(2)}
        process.kill()
    deadline = time.monotonic() + 20
    while pids and time.monotonic() < deadline:
        for pid in [*pids]:
            with contextlib.suppress(FileNotFoundError):
                # A zombie has ended.
                state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
                if state[0] != "Z":
                    continue
            pids.discard(pid)
        time.sleep(0.05)
    assert not pids
