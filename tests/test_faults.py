"""Fits survive real faults: processes are killed, starved and interrupted.

The faults are caused by `benchmarks/faults.py`, which repeats each of them more often.
"""

import importlib
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="needs signals and /proc of Linux"
)


@pytest.fixture(scope="module")
def faults():
    """The benchmark as a module, importable by name in its processes as well."""
    sys.path.insert(0, str(BENCHMARKS))
    yield importlib.import_module("faults")
    sys.path.remove(str(BENCHMARKS))


TRIALS = {
    "killed": lambda faults, folder: faults.kill_fits(3, folder),
    "interrupted": lambda faults, folder: faults.interrupt_fits(1, folder, max_iter=2),
    "interrupted calls": lambda faults, folder: faults.interrupt_calls(3, folder),
    "disk full": lambda faults, folder: faults.fill_disk(1, folder),
    "damaged": lambda faults, folder: faults.damage_checkpoints(2, folder),
    "worker killed": lambda faults, folder: faults.kill_workers(1, folder, n_kills=1),
    "out of memory": lambda faults, folder: faults.exhaust_memory(
        folder, ["training", "images"]
    ),
    "poisoned": lambda faults, folder: faults.poison_weights(1, folder),
    "raising": lambda faults, folder: faults.raise_errors(1, folder),
    "soak": lambda faults, folder: faults.repeat_fits(16, folder),
}


# tests/_utils/test_workers.py kills workers without whole fits, in seconds.
SLOW = {"worker killed"}


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(fault, marks=pytest.mark.slow) if fault in SLOW else fault
        for fault in TRIALS
    ],
)
def test_fit_recovers(faults, fault, tmp_path):
    result = TRIALS[fault](faults, tmp_path)
    assert result.n_trials > 0
    assert result.n_recovered == result.n_trials, result
