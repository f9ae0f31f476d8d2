"""How far is a fit from what the bare arithmetic costs?

    python benchmarks/speed.py                       (half an hour on two cores)
    python benchmarks/speed.py --quick               (a few minutes: smaller, rougher)
    python benchmarks/speed.py --only training k-means

Every row is a ratio of two things that are timed alternately in this process, the
median of five pairs after a warm-up, but for the whole fits, which run once. Images are
those of Fashion-MNIST. Prints a table and writes it as JSON.
"""

import argparse
import contextlib
import functools
import json
import multiprocessing
import platform
import resource
import statistics
import subprocess
import sys
import time
import warnings
from pathlib import Path

import faiss
import numpy as np
import torch
from PIL import Image
from sklearn.cluster import KMeans, MiniBatchKMeans
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV
from torch import nn
from torchvision import transforms

from skdeepcluster import DeepClusterEstimator, FaissKMeans, _clustering, _training
from skdeepcluster._clustering.empty_clusters import EmptyClusters
from skdeepcluster._clustering.whitening import Projection
from skdeepcluster._inputs.sources import ArraySource
from skdeepcluster._training.augment import RandomCrop
from skdeepcluster._training.heads import linear_head
from skdeepcluster._training.network import build_network
from skdeepcluster._training.sampling import sample_rows
from skdeepcluster._utils.device import autocast, resolve_precision
from skdeepcluster.datasets import load_fashion_mnist

CPU = torch.device("cpu")
DTYPE = resolve_precision("auto", CPU)
PAIRS = 5
BATCH, LABELS = 64, 50  # as the defaults have them
FORWARD = 128  # images of the bare forward pass: the fastest of 32 to 512


def timed(job):
    start = time.perf_counter()
    job()
    return time.perf_counter() - start


def compare(one, other):
    """Return median seconds of two jobs that are run alternately."""
    one(), other()
    pairs = [(timed(one), timed(other)) for _ in range(PAIRS)]
    return tuple(map(statistics.median, zip(*pairs, strict=True)))


def row(what, seconds, other, **more):
    """Print and return one row: a ratio of seconds, and how they came about."""
    found = {"what": what, "ratio": seconds / other, "s": seconds, "other_s": other}
    notes = "  ".join(f"{k} {v:.4g}" for k, v in more.items())
    print(f"{what:52s}{found['ratio']:8.2f}{seconds:10.3f}{other:10.3f}  {notes}")
    sys.stdout.flush()
    return {**found, **more}


def images_of(n):
    return load_fashion_mnist("train")[0][:n]


class Training:
    """Epochs over the same images on networks that start alike."""

    def __init__(self, images):
        self.source = ArraySource(images[:, None])
        self.labels = np.random.default_rng(0).integers(0, LABELS, (1, len(images)))

    def modules(self):
        torch.manual_seed(0)
        shape, rows = self.source.shape, np.arange(len(self.source))
        network = build_network(
            "auto", shape, *self.source.statistics(rows), sobel=False, head_norm="batch"
        )
        head = linear_head(network.n_features, [LABELS], torch.Generator())
        return network, head

    def sgd(self, module):
        return torch.optim.SGD(module.parameters(), lr=1e-3, momentum=0.9)

    def ours(self):
        """The estimator's epoch, with its sampler and its crops."""
        network, head = self.modules()
        network.to(memory_format=torch.channels_last)
        optimizer = self.sgd(network)
        training = _training.Training(head, self.sgd(head), torch.Generator())
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10**9)
        rng = np.random.default_rng(0)

        def epoch():
            rows = sample_rows(self.labels[0], "uniform", rng)
            steps = _training.train_epoch(
                network,
                training,
                optimizer,
                schedule,
                self.source,
                rows,
                self.labels,
                weights=None,
                augment=RandomCrop(),
                batch_size=BATCH,
                device=CPU,
                dtype=DTYPE,
            )
            for _ in steps:
                pass

        return epoch

    def floor(self):
        """Slices of a tensor, forward, backward, step: nothing else."""
        model = nn.Sequential(*self.modules()).to(memory_format=torch.channels_last)
        data = torch.from_numpy(self.source.values).float()
        data = data.contiguous(memory_format=torch.channels_last)
        targets, optimizer = torch.from_numpy(self.labels[0]), self.sgd(model)

        def epoch():
            model.train()
            for images, target in zip(
                data.split(BATCH), targets.split(BATCH), strict=True
            ):
                with autocast(CPU, DTYPE):
                    logits = model(images)
                optimizer.zero_grad()
                nn.functional.cross_entropy(logits.float(), target).backward()
                optimizer.step()

        return epoch

    def usual(self):
        """Float32, NCHW, and a DataLoader over PIL images, changed one by one."""
        model = nn.Sequential(*self.modules())
        change = transforms.Compose(
            [
                transforms.RandomResizedCrop(self.source.shape[1:], (0.6, 1.0)),
                transforms.RandomRotation(10),
                transforms.RandomHorizontalFlip(),
                transforms.ColorJitter(0.3, 0.3),
                transforms.PILToTensor(),
            ]
        )
        pictures = [Image.fromarray(image[0]) for image in self.source.values]

        class Pictures(torch.utils.data.Dataset):
            def __len__(_):
                return len(pictures)

            def __getitem__(_, i):
                return change(pictures[i]).float(), self.labels[0, i]

        loader = torch.utils.data.DataLoader(Pictures(), BATCH, shuffle=True)
        optimizer = self.sgd(model)

        def epoch():
            model.train()
            for images, target in loader:
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(images), target).backward()
                optimizer.step()

        return epoch


def bare_forward(network, images):
    """Return a job that embeds images: slices of a tensor, forward, nothing else."""
    data = torch.from_numpy(images).float()
    data = data.contiguous(memory_format=torch.channels_last)

    def forward():
        network.eval()
        with torch.no_grad(), autocast(CPU, DTYPE):
            return [network(part) for part in data.split(FORWARD)]

    return forward


def training(quick):
    jobs = Training(images_of(1280 if quick else 6400))
    ours, floor = compare(jobs.ours(), jobs.floor())
    usual, again = compare(jobs.usual(), jobs.ours())
    n = len(jobs.source)
    return [
        row("training epoch / bare loop", ours, floor, images_per_s=n / ours),
        row("the usual way / training epoch", usual, again),
    ]


def features(quick):
    images = images_of(2000 if quick else 10_000)
    model = DeepClusterEstimator(10, max_iter=1, epochs_per_iter=1, random_state=0)
    model.fit(images[:2000])
    forward = bare_forward(model.module_, images[:, None])
    ours, floor = compare(lambda: model.transform(images), forward)
    return [
        row("transform / bare forward", ours, floor, images_per_s=len(images) / ours)
    ]


@contextlib.contextmanager
def stopwatches(places):
    """Sum the seconds spent in functions, given as name to (owner, attribute)."""
    spent, before = dict.fromkeys(places, 0.0), {}

    def watched(name, function):
        @functools.wraps(function)
        def call(*args, **kwargs):
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                spent[name] += time.perf_counter() - start

        return call

    for name, (owner, attribute) in places.items():
        before[name] = getattr(owner, attribute)
        setattr(owner, attribute, watched(name, before[name]))
    try:
        yield spent
    finally:
        for name, (owner, attribute) in places.items():
            setattr(owner, attribute, before[name])


# Parts of the phases of `history_`: of training, and of clustering.
PARTS = {
    "augment": (RandomCrop, "__call__"),
    "pca": (_clustering, "principal_components"),
    "whiten": (Projection, "__call__"),
    "graph": (_clustering, "spectral_embedding"),
    "kmeans": (_clustering, "kmeans"),
    "repair": (EmptyClusters, "repair"),
}


def fit(quick):
    """Seconds of the floor are those that as many images take, trained and embedded."""
    n, rounds = (6000, 2) if quick else (60_000, 10)
    images = images_of(n)
    jobs = Training(images[:3200])
    forward = bare_forward(jobs.modules()[0], jobs.source.values)
    model = DeepClusterEstimator(10, max_iter=rounds, random_state=0)
    before = compare(jobs.floor(), forward)
    with stopwatches(PARTS) as parts:
        seconds = timed(lambda: model.fit(images))
    after = compare(jobs.floor(), forward)
    train, embed = np.mean([before, after], axis=0) / len(jobs.source)
    epochs = max(1, int(np.ceil(200 / np.ceil(n / BATCH))))
    floor = rounds * n * (epochs * train + embed)
    phases = {
        name[8:]: sum(record[name] for record in model.history_)
        for name in model.history_[0]
        if name.startswith("seconds_")
    }
    phases["rest"] = seconds - sum(phases.values())
    phases |= {f"of_which_{name}": spent for name, spent in parts.items()}
    return [
        row(f"fit of {n:,} images, {rounds} rounds / floor", seconds, floor, **phases)
    ]


def k_means(quick):
    sizes = [(256, 100), (256, 1000), (64, 30)]
    n = 10_000 if quick else 60_000
    return [found for d, k in sizes for found in compare_k_means(n, d, k)]


def compare_k_means(n, d, k, iterations=10):
    """Time implementations from the same start, for as many iterations."""
    rng = np.random.default_rng(0)
    middles = rng.standard_normal((2 * k, d))
    points = middles[rng.integers(0, 2 * k, n)] + rng.standard_normal((n, d))
    points = points.astype(np.float32)
    start = points[rng.choice(n, k, replace=False)]
    objective = {}

    def ours():
        model = FaissKMeans(k, init=start, max_iter=iterations, tol=0.0)
        objective["ours"] = model.fit(points).inertia_

    def bare():
        model = faiss.Kmeans(
            d,
            k,
            niter=iterations,
            min_points_per_centroid=1,
            max_points_per_centroid=n,
        )
        model.train(points, init_centroids=start)
        objective["bare"] = float(model.index.search(points, 1)[0].sum())

    def sklearns(name, kind, **params):
        def job():
            model = kind(k, init=start, n_init=1, max_iter=iterations, **params)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                objective[name] = model.fit(points).inertia_

        return job

    others = {
        "KMeans, Lloyd": (KMeans, {"tol": 0.0}),
        "KMeans, Elkan": (KMeans, {"tol": 0.0, "algorithm": "elkan"}),
        "MiniBatchKMeans": (MiniBatchKMeans, {"random_state": 0}),
    }
    what = f"{n:,}x{d}, k={k:,}: "
    seconds = compare(ours, bare)
    loss = objective["ours"] / objective["bare"]
    rows = [row(what + "FaissKMeans / faiss.Kmeans", *seconds, objective=loss)]
    for name, (kind, params) in others.items():
        seconds = compare(sklearns(name, kind, **params), ours)
        loss = objective[name] / objective["ours"]
        rows.append(row(f"{what}{name} / FaissKMeans", *seconds, objective=loss))
    return rows


def growth(quick):
    """Exponents p of seconds ~ size^p, of fits of one epoch in one round."""
    sizes = [2500, 5000, 10_000] if quick else [5000, 10_000, 20_000, 40_000, 60_000]
    images = images_of(sizes[-1])
    common = {"max_iter": 1, "epochs_per_iter": 1, "random_state": 0}
    rows = []

    def exponent(what, values, job):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            job(values[0])
            seconds = [timed(lambda v=v: job(v)) for v in values]
        slope = np.polyfit(np.log(values), np.log(seconds), 1)[0]
        print(f"{what:52s}{slope:8.2f}  seconds", *(f"{s:.1f}" for s in seconds))
        rows.append({"what": what, "exponent": slope, "s": seconds, "at": values})

    exponent(
        f"exponent in images, {sizes[0]:,} to {sizes[-1]:,}",
        sizes,
        lambda n: DeepClusterEstimator(10, **common).fit(images[:n]),
    )
    counts = [10, 100, 1000] if quick else [10, 100, 1000, 10_000]
    few = images[: 2500 if quick else 20_000]
    exponent(
        f"exponent in pseudo-labels, 10 to {counts[-1]:,}",
        counts,
        lambda k: DeepClusterEstimator(10, n_pseudo_labels=k, **common).fit(few),
    )
    return rows


def _peak(n, queue):
    images = images_of(n)
    small = DeepClusterEstimator(10, max_iter=1, epochs_per_iter=1, random_state=0)
    small.fit(images[:500])  # so that modules loaded at the first step do not count
    before = int(Path("/proc/self/statm").read_text().split()[1])
    before *= resource.getpagesize()
    model = DeepClusterEstimator(10, max_iter=2, random_state=0).fit(images)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    queue.put((peak - before, len(images) * model.transform(images[:2]).shape[1] * 4))


def memory(quick):
    """Peak resident memory of a fit above what was there before, in MB."""
    n = 6000 if quick else 60_000
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_peak, args=(n, queue))
    process.start()
    above, matrix = (size / 1e6 for size in queue.get())
    process.join()
    what = f"peak above the input, {n:,} images, MB"
    print(f"{what:52s}{above:8.0f}  of which the features are {matrix:.0f}")
    return [{"what": what, "mb": above, "features_mb": matrix}]


def small(quick):
    digits = load_digits().images.astype(np.uint8)[:500]
    model = DeepClusterEstimator(10, random_state=0)
    jobs = Training(digits)
    model.fit(digits)
    forward = bare_forward(model.module_, digits[:, None])
    seconds = timed(lambda: model.fit(digits))
    train, embed = compare(jobs.floor(), forward)
    rounds = len(model.history_)
    floor = rounds * (25 * train + embed)  # 200 steps a round are 25 epochs
    rows = [row("fit of 500 digits, 6 rounds / floor", seconds, floor)]
    one = bare_forward(model.module_, digits[:1, None])
    rows.append(
        row(
            "predict of one image / bare forward",
            *compare(lambda: model.predict(digits[:1]), one),
        )
    )

    def importing(names):
        return lambda: subprocess.run([sys.executable, "-c", f"import {names}"])

    bare = importing("torch, sklearn.linear_model, sklearn.cluster, faiss")
    rows.append(
        row(
            "import / its dependencies' import",
            *compare(importing("skdeepcluster"), bare),
        )
    )
    return rows


def many(quick):
    images = load_digits().images.astype(np.uint8)
    model = DeepClusterEstimator(10, max_iter=2, random_state=0)
    grid = {"n_clusters": [5, 10, 15, 20]}

    def search(n_jobs):
        return lambda: GridSearchCV(model, grid, n_jobs=n_jobs, cv=2).fit(images)

    search(2)()  # starts the workers
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        seconds, other = timed(search(2)), timed(search(1))
    return [row("GridSearchCV, 8 fits: n_jobs=2 / n_jobs=1", seconds, other)]


SECTIONS = {
    "training": training,
    "features": features,
    "fit": fit,
    "k-means": k_means,
    "growth": growth,
    "memory": memory,
    "small": small,
    "many": many,
}


def processor():
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if "model name" in line]
    return names[0] if names else platform.processor()


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", nargs="*", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--json", default="speed.json", help="file to write")
    arguments = parser.parse_args()
    machine = (
        f"{processor()}, {torch.get_num_threads()} threads, {DTYPE}, "
        f"torch {torch.__version__}, faiss {faiss.__version__}"
    )
    print(machine, f"\n\n{'':52s}{'ratio':>8s}{'seconds':>10s}{'other':>10s}")
    rows = {name: SECTIONS[name](arguments.quick) for name in arguments.only}
    content = {"machine": machine, "arguments": vars(arguments), "rows": rows}
    Path(arguments.json).write_text(json.dumps(content, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
