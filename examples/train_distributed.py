"""
Share one fit among several processes
=====================================

After this example you can run one fit on several processes or GPUs. Start it with
``torchrun --nproc-per-node=2 examples/train_distributed.py``, and with ``python`` for a
single process to compare. The estimator needs no parameter for it: the processes find
each other, and each process gets the same result.
"""

import argparse
import os
import resource
import time

from sklearn.metrics import normalized_mutual_info_score

from skdeepcluster import DeepClusterEstimator
from skdeepcluster.datasets import load_fashion_mnist


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=60_000)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--checkpoints", help="folder, to resume after a crash")
    arguments = parser.parse_args()

    X, y = load_fashion_mnist()
    X, y = X[: arguments.images], y[: arguments.images]
    # The batch size counts the images of all processes together.
    model = DeepClusterEstimator(
        n_clusters=10,
        max_iter=arguments.rounds,
        batch_size=arguments.batch_size,
        checkpoint_dir=arguments.checkpoints,
        verbose=1,
        random_state=0,
    )
    peak_at_start, start = peak_memory(), time.perf_counter()
    model.fit(X)
    seconds = time.perf_counter() - start

    # torchrun sets these variables; they are not set for a single process.
    rank = int(os.environ.get("RANK", "0"))
    n_processes = int(os.environ.get("WORLD_SIZE", "1"))
    nmi = normalized_mutual_info_score(y, model.labels_)
    print(
        f"process {rank + 1} of {n_processes}: {seconds:.1f} s, "
        f"{peak_memory() - peak_at_start:.0f} MB for the fit, "
        f"NMI with the classes {nmi:.3f}",
        flush=True,
    )


def peak_memory():
    """Return the largest resident memory of this process so far, in MB (Linux)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


if __name__ == "__main__":
    main()
