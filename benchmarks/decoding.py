"""Measure how fast image files become training batches.

    python benchmarks/decoding.py [--images 5000] [--size 256] [--threads 1]

Write JPEG files, crops of the two photographs that scikit-learn ships. Read them in a
random order, in batches of 64 images of 64x64 pixels, on two workers:

skdeepcluster    decoding as in `DeepClusterEstimator` without a cache; each batch is
                 cropped, rotated and brightened as one tensor
bare DataLoader  PIL opens, converts and resizes; no augmentation
torchvision      the augmentation of skdeepcluster, image by image in the workers

The same batches without augmentation compare the ways to run workers: `map_in_workers`,
concurrent.futures on forked processes, and joblib's generator on loky.

Print images per second, as medians of five alternating passes, and write JSON.
"""

import argparse
import json
import multiprocessing
import statistics
import tempfile
import time
from collections import deque
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import joblib
import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from skdeepcluster._inputs.collection import find_images
from skdeepcluster._inputs.image_format import ImageFormat
from skdeepcluster._inputs.images import DecodedSource, _decode_rows
from skdeepcluster._training.augment import RandomCrop
from skdeepcluster._utils.workers import map_in_workers

# Batch size and image size that a default fit of large photographs has.
BATCH_SIZE = 64
IMAGE_SIZE = 64
# Processes that decode.
N_WORKERS = 2
# Number of passes of each way to read.
N_PASSES = 5
# Number of batches that a library computes ahead.
N_AHEAD = 8


def write_images(folder, n, size):
    """Write n JPEG files, random crops of two photographs."""
    rng = np.random.default_rng(0)
    photographs = load_sample_images().images
    for index in range(n):
        photograph = photographs[index % 2]
        height, width = photograph.shape[:2]
        crop_size = int(rng.integers(size // 2, min(height, width)))
        y = int(rng.integers(0, height - crop_size))
        x = int(rng.integers(0, width - crop_size))
        crop = Image.fromarray(photograph[y : y + crop_size, x : x + crop_size])
        crop.resize((size, size)).save(folder / f"{index:06d}.jpg", quality=90)


class FileDataset(Dataset):
    """Image files, transformed one by one."""

    def __init__(self, paths, transform):
        self.paths = paths
        self.transform = transform

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, row):
        with Image.open(self.paths[row]) as image:
            return self.transform(image.convert("RGB"))


def skdeepcluster_pass(images):
    """Return a function that reads all images through the package's own source."""
    image_format = ImageFormat((3, IMAGE_SIZE, IMAGE_SIZE), np.uint8)
    all_rows = np.arange(len(images))
    source = DecodedSource(images, image_format, all_rows, N_WORKERS, skip=False)
    # The default augmentation of images.
    augment = RandomCrop()
    generator = torch.Generator()

    def read_all():
        # Training reads images in a random order.
        rows = np.random.default_rng(0).permutation(len(images))
        batches = np.array_split(rows, -(-len(rows) // BATCH_SIZE))
        for batch in source.batches(batches):
            augment(batch.float(), generator)

    return read_all


def data_loader_pass(images, *steps):
    """Return a function that reads all images through a DataLoader."""
    # Tensors of bytes: scaling to floats would add work that a fit does not do.
    transform = transforms.Compose([*steps, transforms.PILToTensor()])
    loader = DataLoader(
        FileDataset(images.paths, transform),
        BATCH_SIZE,
        shuffle=True,
        num_workers=N_WORKERS,
    )

    def read_all():
        for _ in loader:
            pass

    return read_all


def map_in_futures(function, tasks):
    """Return the results of concurrent.futures in order, a few of them ahead."""
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(N_WORKERS, mp_context=context) as pool:
        pending = deque()
        for task in tasks:
            pending.append(pool.submit(function, task))
            if len(pending) > N_AHEAD:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def map_in_loky(function, tasks):
    """Return the results of joblib's generator in order, a few of them ahead."""
    parallel = joblib.Parallel(
        n_jobs=N_WORKERS, return_as="generator", pre_dispatch=N_AHEAD, batch_size=1
    )
    return parallel(joblib.delayed(function)(task) for task in tasks)


def worker_pass(images, map_tasks):
    """Return a function that decodes all images by a way to run workers."""
    image_format = ImageFormat((3, IMAGE_SIZE, IMAGE_SIZE), np.uint8)
    function = partial(_decode_rows, images, image_format)

    def read_all():
        rows = np.random.default_rng(0).permutation(len(images))
        for _ in map_tasks(function, np.array_split(rows, -(-len(rows) // BATCH_SIZE))):
            pass

    return read_all


def measure_rates(folder, n):
    """Return images per second of each way to read the files of a folder."""
    images = find_images(folder)
    passes = {
        "skdeepcluster": skdeepcluster_pass(images),
        "bare DataLoader": data_loader_pass(
            images, transforms.Resize((IMAGE_SIZE, IMAGE_SIZE))
        ),
        "torchvision": data_loader_pass(
            images,
            # The strengths of the default augmentation.
            transforms.RandomResizedCrop(IMAGE_SIZE, (0.6, 1.0)),
            transforms.RandomRotation(10),
            transforms.RandomHorizontalFlip(),
            transforms.ColorJitter(0.3, 0.3),
        ),
        "map_in_workers": worker_pass(
            images, partial(map_in_workers, n_workers=N_WORKERS)
        ),
        "concurrent.futures": worker_pass(images, map_in_futures),
        "joblib, loky": worker_pass(images, map_in_loky),
    }
    seconds = {name: [] for name in passes}
    # Passes alternate, so that a slow minute of the machine affects each equally.
    for _ in range(N_PASSES):
        for name, read_all in passes.items():
            start = time.perf_counter()
            read_all()
            seconds[name].append(time.perf_counter() - start)
    return {name: n / statistics.median(times) for name, times in seconds.items()}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=5000, help="number of files")
    parser.add_argument("--size", type=int, default=256, help="of a file, in pixels")
    parser.add_argument(
        "--threads", type=int, default=1, help="threads of torch, besides the workers"
    )
    parser.add_argument("--json", default="decoding.json", help="file to write")
    arguments = parser.parse_args()
    # More threads than free cores would take time from the workers.
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        write_images(Path(folder), arguments.images, size=arguments.size)
        rates = measure_rates(folder, arguments.images)
    print(
        f"{arguments.images} JPEG files of {arguments.size}x{arguments.size} pixels, "
        f"{N_WORKERS} workers, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}\n"
    )
    print(f"{'':20s}{'images/s':>10s}{'speed of skdeepcluster, relative':>36s}")
    for name, rate in rates.items():
        print(f"{name:20s}{rate:10.0f}{rates['skdeepcluster'] / rate:36.2f}")
    content = {"arguments": vars(arguments), "images_per_second": rates}
    Path(arguments.json).write_text(json.dumps(content, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
