"""
Several processes, one fit
==========================

Start it with ``torchrun --nproc-per-node=2 examples/train_distributed.py``, or with
``python`` for a single process, and compare. Only the last lines know that there are
processes: the estimator is told nothing, and every process gets the same result.
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
    parser.add_argument("--checkpoints", help="folder, to go on after a crash")
    arguments = parser.parse_args()

    X, y = load_fashion_mnist()
    X, y = X[: arguments.images], y[: arguments.images]
    model = DeepClusterEstimator(
        n_clusters=10,
        max_iter=arguments.rounds,
        batch_size=arguments.batch_size,  # of all processes together
        checkpoint_dir=arguments.checkpoints,
        verbose=1,
        random_state=0,
    )
    before, start = peak(), time.perf_counter()
    model.fit(X)
    seconds = time.perf_counter() - start

    rank, size = (int(os.environ.get(name, "0")) for name in ("RANK", "WORLD_SIZE"))
    agreement = normalized_mutual_info_score(y, model.labels_)
    print(
        f"process {rank + 1} of {max(size, 1)}: {seconds:.1f} s, "
        f"{peak() - before:.0f} MB more than before the fit, "
        f"NMI to the classes {agreement:.3f}",
        flush=True,
    )


def peak():
    """Largest resident memory of this process so far, in MB (Linux)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


if __name__ == "__main__":
    main()
