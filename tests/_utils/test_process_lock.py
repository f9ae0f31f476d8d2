"""One thread at a time holds the process lock, and no wait is without end."""

import os
import threading
import time

import pytest

from skdeepcluster._utils.process_lock import hold_process_lock, release_process_lock


def run_in_thread(function, seconds=10.0):
    """Return the result of a function in another thread, or None if it waits."""
    results = []
    thread = threading.Thread(target=lambda: results.append(function()), daemon=True)
    thread.start()
    thread.join(seconds)
    return results[0] if results else None


def try_to_hold():
    with hold_process_lock(blocking=False) as is_held:
        return is_held


def hold():
    with hold_process_lock():
        return True


def test_another_thread_waits():
    with hold_process_lock() as is_held, hold_process_lock() as is_held_again:
        assert is_held
        assert is_held_again
        assert run_in_thread(try_to_hold) is False
        assert run_in_thread(hold, seconds=0.1) is None
    assert run_in_thread(hold)


def test_lock_is_free_after_an_error():
    with pytest.raises(KeyError), hold_process_lock():
        raise KeyError
    assert run_in_thread(try_to_hold)


def test_other_threads_hold_a_released_lock():
    with hold_process_lock(), hold_process_lock():
        with release_process_lock():
            assert run_in_thread(hold)
        assert run_in_thread(try_to_hold) is False
    assert run_in_thread(try_to_hold)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
@pytest.mark.parametrize("is_holder", [True, False])
def test_lock_in_a_forked_process(is_holder):
    def fork_and_hold():
        child = os.fork()
        if child == 0:
            os._exit(0 if hold() else 1)
        for _ in range(200):
            pid, status = os.waitpid(child, os.WNOHANG)
            if pid:
                return status
            time.sleep(0.05)
        os.kill(child, 9)
        os.waitpid(child, 0)
        return "waits without end"

    with hold_process_lock():
        assert (fork_and_hold() if is_holder else run_in_thread(fork_and_hold, 20)) == 0
