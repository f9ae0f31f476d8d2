"""A forked child of a process with several threads."""

import os
import time

import numpy as np
import torch

from skdeepcluster import DeepClusterEstimator


def row_31(folder):
    """Predict in a forked child of a process that has computed on two threads."""
    X = np.random.default_rng(0).integers(0, 256, (64, 32, 32), dtype=np.uint8)
    torch.set_num_threads(2)
    model = DeepClusterEstimator(
        2, max_iter=1, epochs_per_iter=1, random_state=0, backbone="mlp"
    ).fit(X)
    torch.ones(600, 600) @ torch.ones(600, 600)
    child = os.fork()
    if child == 0:
        os._exit(0 if (model.predict(X) == model.labels_).all() else 1)
    for _ in range(400):
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return "ok" if status == 0 else f"the child ends with status {status}"
        time.sleep(0.05)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return "the child hangs"
