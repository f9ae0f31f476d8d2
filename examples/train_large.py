"""
Cluster a million images on disk
================================

After this example you can cluster more images than fit into memory: ``fit`` reads an
array on disk, and ``write_embeddings`` writes a table of embeddings to disk. Features
of more than 128 MiB lie in a temporary file. The full size is ``--images 1000000``,
which takes 3 GB of disk. ``--default`` measures the memory of a fit with the default
network, whose features take another 2 GB of disk. It trains on 1 % of the images only,
since a whole epoch takes an hour on two cores, and no more memory.
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
    """Write noisy color images of ten classes, 32x32 pixels, as one .npy file."""
    rng = np.random.default_rng(0)
    patterns = rng.integers(0, 176, (10, 8, 8, 3), dtype=np.uint8)
    patterns = patterns.repeat(4, axis=1).repeat(4, axis=2)
    header = {"descr": "|u1", "fortran_order": False, "shape": (n, 32, 32, 3)}
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        # A thousand images at a time, so that memory never holds all images.
        for start in range(0, n, 1000):
            size = min(1000, n - start)
            noise = rng.integers(0, 80, (size, 32, 32, 3), dtype=np.uint8)
            file.write((patterns[rng.integers(0, 10, size)] + noise).data)


def small_network():
    """Return a network with 64 features, which take 256 MB for a million images."""
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


def peak_memory():
    """Return the largest resident memory of this process so far, in MB (Linux)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument(
        "--folder", help="folder of the files; a temporary one if unset"
    )
    parser.add_argument(
        "--default", action="store_true", help="fit the default network, 20 clusters"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        image_path = Path(folder) / "images.npy"
        embedding_path = Path(folder) / "embeddings.npy"
        write_images(image_path, arguments.images)
        print(f"{arguments.images:,} images on disk, {peak_memory():.0f} MB of memory")
        torch.manual_seed(0)
        if arguments.default:
            model = DeepClusterEstimator(
                n_clusters=20, max_iter=1, epochs_per_iter=0.01, random_state=0
            )
        else:
            model = DeepClusterEstimator(
                n_clusters=10,
                backbone=small_network(),
                max_iter=1,
                batch_size=256,
                random_state=0,
            )
        start = time.perf_counter()
        model.fit(image_path)
        seconds = time.perf_counter() - start
        print(f"fitted in {seconds:.0f} s, peak {peak_memory():.0f} MB")
        start = time.perf_counter()
        write_embeddings(model, image_path, embedding_path)
        seconds = time.perf_counter() - start
        shape = np.load(embedding_path, mmap_mode="r").shape
        print(
            f"{shape} embeddings on disk in {seconds:.0f} s, "
            f"peak {peak_memory():.0f} MB"
        )


if __name__ == "__main__":
    main()
