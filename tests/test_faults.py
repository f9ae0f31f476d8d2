"""Faults as they happen: processes are killed, starved and interrupted.

What happens is told by `benchmarks/faults.py`, which does the same more often.
"""

import importlib
import sys
from pathlib import Path

import pytest

NAME = "faults"
PATH = Path(__file__).parent.parent / "benchmarks" / f"{NAME}.py"


pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="signals, limits and /proc of Linux"
)


@pytest.fixture(scope="module")
def faults():
    """The benchmark as a module, under a name that its processes know as well."""
    sys.path.insert(0, str(PATH.parent))
    yield importlib.import_module(NAME)
    sys.path.remove(str(PATH.parent))


TRIALS = {
    "killed": lambda faults, folder: faults.killed(3, folder),
    "interrupted": lambda faults, folder: faults.interrupted(1, folder, max_iter=2),
    "disk full": lambda faults, folder: faults.disk_full(1, folder),
    "damaged": lambda faults, folder: faults.damaged(2, folder),
    "decoder killed": lambda faults, folder: faults.decoder_killed(1, folder, 1),
    "out of memory": lambda faults, folder: faults.out_of_memory(folder),
    "poisoned": lambda faults, folder: faults.poisoned(1, folder),
    "raising": lambda faults, folder: faults.raising(1, folder),
    "soak": lambda faults, folder: faults.soak(16, folder),
}


@pytest.mark.parametrize("fault", TRIALS)
def test_a_fit_comes_through(faults, fault, tmp_path):
    row = TRIALS[fault](faults, tmp_path)
    assert row.tried > 0
    assert row.recovered == row.tried, row
