"""Run a script in two processes of torch.distributed."""

import os
import subprocess
import sys

# Seconds after which a process is said to hang.
TIMEOUT = 55
# Start of each script: it forms the group, and reads X.
START = """
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
"""


def run_in_two_processes(script, folder):
    """Run a script in two processes, and return "ok" or the last line of an error."""
    command = [sys.executable, "-W", "ignore", "-c", START + script]
    processes = [
        subprocess.Popen(
            [*command, str(folder / "store")],
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
