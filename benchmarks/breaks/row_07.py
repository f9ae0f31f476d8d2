"""Fits in several threads."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from threadpoolctl import threadpool_info

from skdeepcluster import DeepClusterEstimator


def row_07(folder):
    """Fit in two threads at once, and compare with the same fits one after another."""
    X = np.random.default_rng(0).integers(0, 256, (80, 16, 16), dtype=np.uint8)

    def fit(seed):
        model = DeepClusterEstimator(
            4, max_iter=1, epochs_per_iter=1, n_jobs=1, random_state=seed
        )
        return model.fit(X).transform(X).tobytes()

    def read_state():
        counts = [library["num_threads"] for library in threadpool_info()]
        return torch.get_rng_state().tolist(), torch.get_num_threads(), counts

    expected = [fit(seed) for seed in range(4)]
    before = read_state()
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(fit, range(4)))
    if results != expected:
        return "other bits than alone"
    rng, *threads = (a == b for a, b in zip(before, read_state(), strict=True))
    if not rng:
        return "the global generator of torch has moved"
    return "ok" if all(threads) else "numbers of threads have changed"
