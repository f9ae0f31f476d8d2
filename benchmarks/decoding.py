"""How fast do files become training batches?

    python benchmarks/decoding.py [--images 5000] [--side 256] [--threads 1]

Writes JPEG files, crops of the two photographs that scikit-learn ships, and reads them
in a random order, in batches of 64 images of 64x64 pixels, on two workers:

ours              decoded as `DeepClusterEstimator` does without a cache, then cropped,
                  turned and relit by the batch
bare DataLoader   PIL opens, converts and resizes; nothing is changed
torchvision       the same changes as ours, image by image in the workers

Prints images a second and ratios, medians of three alternating passes, and writes JSON.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from skdeepcluster._inputs.collection import find_images
from skdeepcluster._inputs.decoding import ImageFormat
from skdeepcluster._inputs.images import DecodedSource
from skdeepcluster._training.augment import RandomCrop

BATCH, SIZE, WORKERS, PASSES = 64, 64, 2, 3


def write_images(folder, n, side):
    rng, photographs = np.random.default_rng(0), load_sample_images().images
    for i in range(n):
        photograph = photographs[i % 2]
        cut = int(rng.integers(side // 2, min(photograph.shape[:2])))
        y, x = (int(rng.integers(0, s - cut)) for s in photograph.shape[:2])
        image = Image.fromarray(photograph[y : y + cut, x : x + cut])
        image.resize((side, side)).save(folder / f"{i:06d}.jpg", quality=90)


class Files(Dataset):
    def __init__(self, paths, change):
        self.paths, self.change = paths, change

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, row):
        with Image.open(self.paths[row]) as image:
            return self.change(image.convert("RGB"))


def ours(items):
    wanted = ImageFormat((3, SIZE, SIZE), np.uint8)
    source = DecodedSource(items, wanted, np.arange(len(items)), WORKERS, skip=False)
    augment, generator = RandomCrop(), torch.Generator()

    def one_pass():
        rows = np.random.default_rng(0).permutation(len(items))
        parts = np.array_split(rows, -(-len(rows) // BATCH))
        for batch in source.batches(parts):
            augment(batch.float(), generator)

    return one_pass


def loaded(items, *changes):
    change = transforms.Compose([*changes, transforms.PILToTensor()])
    loader = DataLoader(
        Files(items.paths, change), BATCH, shuffle=True, num_workers=WORKERS
    )

    def one_pass():
        for _ in loader:
            pass

    return one_pass


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--threads", type=int, default=1, help="beside the workers")
    parser.add_argument("--json", default="decoding.json", help="file to write")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    seconds = {}
    with tempfile.TemporaryDirectory() as folder:
        write_images(Path(folder), arguments.images, arguments.side)
        items = find_images(folder)
        passes = {
            "ours": ours(items),
            "bare DataLoader": loaded(items, transforms.Resize((SIZE, SIZE))),
            "torchvision": loaded(
                items,
                transforms.RandomResizedCrop(SIZE, (0.6, 1.0)),
                transforms.RandomRotation(10),
                transforms.RandomHorizontalFlip(),
                transforms.ColorJitter(0.3, 0.3),
            ),
        }
        for _ in range(PASSES):
            for name, one_pass in passes.items():
                start = time.perf_counter()
                one_pass()
                seconds.setdefault(name, []).append(time.perf_counter() - start)
    rates = {
        name: arguments.images / statistics.median(s) for name, s in seconds.items()
    }
    print(
        f"{arguments.images} JPEG files of {arguments.side}x{arguments.side}, "
        f"{WORKERS} workers, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}\n"
    )
    for name, rate in rates.items():
        print(
            f"{name:18s}{rate:8.0f} images/s   ours / this {rates['ours'] / rate:.2f}"
        )
    content = {"arguments": vars(arguments), "images_per_second": rates}
    Path(arguments.json).write_text(json.dumps(content, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
