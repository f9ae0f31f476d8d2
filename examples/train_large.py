"""
A memory-mapped million
=======================

Cluster more images than memory should hold: an array on disk goes in, a table of
embeddings on disk comes out, and what is in memory besides is the features. Run it with
``--images 1000000`` for the full size, which takes 3 GB of disk.
"""

import argparse
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

from skdeepcluster import DeepClusterEstimator
from skdeepcluster.io import write_embeddings


def write_images(path, n):
    """Write noisy color images, 32x32, of ten kinds, as one .npy file."""
    rng = np.random.default_rng(0)
    kinds = rng.integers(0, 176, (10, 8, 8, 3), dtype=np.uint8)
    kinds = kinds.repeat(4, axis=1).repeat(4, axis=2)
    with open(path, "wb") as file:
        head = {"descr": "|u1", "fortran_order": False, "shape": (n, 32, 32, 3)}
        np.lib.format.write_array_header_1_0(file, head)
        for start in range(0, n, 1000):
            size = min(1000, n - start)
            noise = rng.integers(0, 80, (size, 32, 32, 3), dtype=np.uint8)
            file.write((kinds[rng.integers(0, 10, size)] + noise).data)


def small_network():
    """64 features: with a million images they are 256 MB."""
    return nn.Sequential(
        nn.Conv2d(3, 32, 4, stride=4),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, stride=2, padding=1),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )


def peak():
    """Largest resident memory of this process so far, in MB (Linux)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument(
        "--folder", help="where the files go; a temporary one if not set"
    )
    parser.add_argument(
        "--mapped", action="store_true", help="features on disk as well"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        images, table = Path(folder) / "images.npy", Path(folder) / "embeddings.npy"
        write_images(images, arguments.images)
        print(f"{arguments.images:,} images on disk, {peak():.0f} MB of memory")
        torch.manual_seed(0)
        model = DeepClusterEstimator(
            n_clusters=10,
            backbone=small_network(),
            max_iter=1,
            batch_size=256,
            features_dir=folder if arguments.mapped else None,
            random_state=0,
        )
        start = time.perf_counter()
        model.fit(images)
        print(f"fitted in {time.perf_counter() - start:.0f} s, peak {peak():.0f} MB")
        start = time.perf_counter()
        write_embeddings(model, images, table)
        shape = np.load(table, mmap_mode="r").shape
        print(
            f"{shape} embeddings on disk in {time.perf_counter() - start:.0f} s, "
            f"peak {peak():.0f} MB"
        )


if __name__ == "__main__":
    main()
