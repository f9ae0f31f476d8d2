"""One of two processes calls `fit` alone."""

import os
import subprocess
import sys

# Seconds after which a process is said to hang.
TIMEOUT = 55
SCRIPT = """
import os
import sys
import torch
from torch import distributed
from sklearn.datasets import load_digits
from skdeepcluster import DeepClusterEstimator

torch.set_num_threads(1)
rank = int(os.environ["RANK"])
distributed.init_process_group(
    "gloo", init_method=f"file://{sys.argv[1]}", rank=rank, world_size=2
)
X = load_digits().images[:64]
model = DeepClusterEstimator(4, max_iter=1, epochs_per_iter=1, random_state=0)
if rank == 1:
    distributed.barrier()
else:
    try:
        model.fit(X)
    except RuntimeError as error:
        assert "Rank 1 of 2 has not called fit" in str(error), error
    else:
        sys.exit("fit of one process returned")
    distributed.barrier()
"""


def row_29(folder):
    """Call `fit` in one process alone, while another one waits at a barrier."""
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT, str(folder / "store")]
    processes = [
        subprocess.Popen(
            command,
            env=os.environ | {"RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        for process in processes:
            _, errors = process.communicate(timeout=TIMEOUT)
            if process.returncode:
                lines = errors.strip().splitlines() or [f"exit {process.returncode}"]
                return lines[-1]
    except subprocess.TimeoutExpired:
        return f"a process still waits after {TIMEOUT} seconds"
    finally:
        for process in processes:
            process.kill()
    return "ok"
