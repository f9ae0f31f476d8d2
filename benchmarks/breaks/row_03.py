"""Two processes pass different images to `predict` and `transform`."""

import os
import subprocess
import sys

# Seconds after which a process is said to hang.
TIMEOUT = 55
SCRIPT = """
import os
import sys
import numpy as np
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
model = DeepClusterEstimator(4, max_iter=1, epochs_per_iter=1, random_state=0).fit(X)
for images in (X[32 * rank :][:32], X[: 40 + rank]):
    for method in (model.predict, model.transform, model.predict_proba):
        try:
            method(images)
        except ValueError as error:
            assert "rank 1" in str(error), error
        else:
            sys.exit(f"{method.__name__} returned the rows of both processes")
assert np.array_equal(model.predict(X), model.labels_)
"""


def row_03(folder):
    """Pass the shard of each process to `predict`, `transform` and `predict_proba`."""
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
