"""A callback in two processes raises errors that resemble a lost connection."""

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
distributed.init_process_group(
    "gloo",
    init_method=f"file://{sys.argv[1]}",
    rank=int(os.environ["RANK"]),
    world_size=2,
)
X = load_digits().images[:64]
for text in (
    "the data base timed out",
    "[third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer",
):

    def fail(history, fitted):
        raise RuntimeError(text)

    model = DeepClusterEstimator(4, max_iter=1, epochs_per_iter=1, callbacks=fail)
    try:
        model.fit(X)
    except RuntimeError as error:
        if str(error) != text:
            sys.exit(f"a user's error {text!r} became {str(error)[:60]!r}")
"""


def row_25(folder):
    """Raise errors of a user in a callback of two processes."""
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
