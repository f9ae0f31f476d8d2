"""Compare the time of a fit, and of its phases, with the bare arithmetic.

    python benchmarks/speed.py                       (half an hour on two cores)
    python benchmarks/speed.py --quick               (a few minutes: smaller, rougher)
    python benchmarks/speed.py --only training k-means

Each row is the ratio of two times, "seconds" over "baseline". Both are measured
alternately in this process, as medians of five pairs after a warm-up; complete fits run
only once. The images are Fashion-MNIST. Print a table and write it as JSON.
"""

import argparse
import contextlib
import functools
import json
import math
import multiprocessing
import os
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
from data_sets import load_data_set
from PIL import Image
from quality import measure_probes
from sklearn.cluster import KMeans, MiniBatchKMeans
from sklearn.datasets import load_digits
from sklearn.metrics import normalized_mutual_info_score
from sklearn.model_selection import GridSearchCV, train_test_split
from torch import nn
from torchvision import transforms

from skdeepcluster import DeepClusterEstimator, FaissKMeans
from skdeepcluster._clustering import pseudo_labels
from skdeepcluster._clustering.empty_clusters import EmptyClusterPolicy
from skdeepcluster._clustering.whitening import Projection
from skdeepcluster._inputs.sources import ArraySource
from skdeepcluster._training.augment import RandomCrop
from skdeepcluster._training.epoch import BatchOptions, TrainingState, train_epoch
from skdeepcluster._training.heads import linear_head
from skdeepcluster._training.network import build_network
from skdeepcluster._training.sampling import sample_rows
from skdeepcluster._utils.compute import Compute
from skdeepcluster._utils.device import resolve_precision
from skdeepcluster.datasets import load_fashion_mnist

CPU = torch.device("cpu")
COMPUTE = Compute(CPU, resolve_precision("auto", CPU))
# Number of measurements of each pair of functions.
N_PAIRS = 5
# Defaults of DeepClusterEstimator with 10 clusters.
BATCH_SIZE = 64
N_PSEUDO_LABELS = 50
STEPS_PER_ROUND = 200
# Images of one bare forward pass: the fastest of 32 to 512.
FORWARD_SIZE = 128
# Functions inside the phases of `history_`, by the object that holds them.
TIMED_FUNCTIONS = {
    "augment": (RandomCrop, "__call__"),
    "pca": (pseudo_labels, "principal_components"),
    "whiten": (Projection, "__call__"),
    "graph": (pseudo_labels, "spectral_embedding"),
    "kmeans": (pseudo_labels, "kmeans"),
    "repair": (EmptyClusterPolicy, "repair"),
}


def time_once(function):
    """Return the seconds of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def time_pair(function, baseline):
    """Return the median seconds of two functions that run alternately."""
    # The first calls compile kernels and allocate memory.
    function()
    baseline()
    pairs = [(time_once(function), time_once(baseline)) for _ in range(N_PAIRS)]
    seconds, baseline_seconds = zip(*pairs, strict=True)
    return statistics.median(seconds), statistics.median(baseline_seconds)


def make_row(name, seconds, baseline_seconds, **notes):
    """Print and return one row of the table."""
    ratio = seconds / baseline_seconds
    text = "  ".join(f"{key} {value:.4g}" for key, value in notes.items())
    print(f"{name:52s}{ratio:8.2f}{seconds:10.3f}{baseline_seconds:10.3f}  {text}")
    sys.stdout.flush()
    return {
        "name": name,
        "ratio": ratio,
        "seconds": seconds,
        "baseline_seconds": baseline_seconds,
        **notes,
    }


def load_images(n):
    """Return the first n images of Fashion-MNIST."""
    return load_fashion_mnist("train")[0][:n]


class ImageDataset(torch.utils.data.Dataset):
    """Images and labels, transformed one by one."""

    def __init__(self, images, labels, transform):
        self.images = [Image.fromarray(image) for image in images]
        self.labels = labels
        self.transform = transform

    def __len__(self):
        return len(self.images)

    def __getitem__(self, row):
        return self.transform(self.images[row]).float(), self.labels[row]


class TrainingPasses:
    """Training passes over the same images, by networks with the same weights."""

    def __init__(self, images):
        self.source = ArraySource(images[:, None])
        rng = np.random.default_rng(0)
        self.labels = rng.integers(0, N_PSEUDO_LABELS, (1, len(images)))

    def make_modules(self):
        """Return a new network and its head."""
        # Fresh weights come from the default generator of torch.
        torch.manual_seed(0)
        mean, scale = self.source.statistics(np.arange(len(self.source)))
        network = build_network(
            "auto", self.source.shape, mean, scale, sobel=False, head_norm="batch"
        )
        head = linear_head(network.n_features, [N_PSEUDO_LABELS], torch.Generator())
        return network, head

    def make_sgd(self, module):
        """Return SGD for the parameters of a module."""
        return torch.optim.SGD(module.parameters(), lr=1e-3, momentum=0.9)

    def skdeepcluster_pass(self):
        """Return a pass of the package, with its sampler and its crops."""
        network, head = self.make_modules()
        # The layout that the package uses, which is faster on CPUs.
        network.to(memory_format=torch.channels_last)
        training = TrainingState(
            head, torch.Generator(), head_optimizer=self.make_sgd(head)
        )
        optimizer = self.make_sgd(network)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10**9)
        options = BatchOptions(BATCH_SIZE, COMPUTE, augment=RandomCrop())
        rng = np.random.default_rng(0)

        def train():
            rows = sample_rows(self.labels[0], "uniform", rng)
            for _ in train_epoch(
                network,
                training,
                [optimizer, training.head_optimizer],
                schedule,
                self.source,
                rows,
                self.labels,
                options,
            ):
                pass

        return train

    def bare_pass(self):
        """Return a pass with forward, backward and step on slices of one tensor."""
        network, head = self.make_modules()
        network.to(memory_format=torch.channels_last)
        optimizer = self.make_sgd(nn.ModuleList([network, head]))
        # Conversion and layout are not part of the measurement.
        data = torch.from_numpy(self.source.values).float()
        data = data.contiguous(memory_format=torch.channels_last)
        all_targets = torch.from_numpy(self.labels[0])

        def train():
            network.train()
            for images, targets in zip(
                data.split(BATCH_SIZE), all_targets.split(BATCH_SIZE), strict=True
            ):
                with COMPUTE.autocast():
                    (logits,) = head(network(images))
                optimizer.zero_grad()
                nn.functional.cross_entropy(logits.float(), targets).backward()
                optimizer.step()

        return train

    def data_loader_pass(self):
        """Return a pass as in many scripts: a DataLoader of PIL images, float32."""
        network, head = self.make_modules()
        optimizer = self.make_sgd(nn.ModuleList([network, head]))
        transform = transforms.Compose(
            [
                # The strengths of the package's default augmentation.
                transforms.RandomResizedCrop(self.source.shape[1:], (0.6, 1.0)),
                transforms.RandomRotation(10),
                transforms.RandomHorizontalFlip(),
                transforms.ColorJitter(0.3, 0.3),
                transforms.PILToTensor(),
            ]
        )
        dataset = ImageDataset(self.source.values[:, 0], self.labels[0], transform)
        loader = torch.utils.data.DataLoader(dataset, BATCH_SIZE, shuffle=True)

        def train():
            network.train()
            for images, targets in loader:
                optimizer.zero_grad()
                (logits,) = head(network(images))
                nn.functional.cross_entropy(logits, targets).backward()
                optimizer.step()

        return train


def bare_forward(network, images):
    """Return a function that embeds slices of one tensor."""
    data = torch.from_numpy(images).float()
    data = data.contiguous(memory_format=torch.channels_last)

    def forward():
        network.eval()
        with torch.no_grad(), COMPUTE.autocast():
            return [network(batch) for batch in data.split(FORWARD_SIZE)]

    return forward


# Each section below takes whether the run is quick, and returns rows.


def measure_training(is_quick):
    """Compare training passes."""
    passes = TrainingPasses(load_images(1280 if is_quick else 6400))
    n = len(passes.source)
    seconds, bare = time_pair(passes.skdeepcluster_pass(), passes.bare_pass())
    usual, again = time_pair(passes.data_loader_pass(), passes.skdeepcluster_pass())
    return [
        make_row("training pass / bare loop", seconds, bare, images_per_s=n / seconds),
        make_row("DataLoader of PIL images / training pass", usual, again),
    ]


def measure_features(is_quick):
    """Compare `transform` with the forward pass."""
    images = load_images(2000 if is_quick else 10_000)
    model = DeepClusterEstimator(10, max_iter=1, epochs_per_iter=1, random_state=0)
    model.fit(images[:2000])
    forward = bare_forward(model.module_, images[:, None])
    seconds, bare = time_pair(lambda: model.transform(images), forward)
    rate = len(images) / seconds
    return [make_row("transform / bare forward", seconds, bare, images_per_s=rate)]


@contextlib.contextmanager
def sum_seconds(functions):
    """Sum the seconds spent in functions.

    Parameters
    ----------
    functions : dict of str to (object, str)
        Owner and attribute of each function.

    Yields
    ------
    seconds : dict of str to float
    """
    seconds = dict.fromkeys(functions, 0.0)
    originals = {
        name: getattr(owner, attribute)
        for name, (owner, attribute) in functions.items()
    }

    def timed(name, function):
        @functools.wraps(function)
        def call(*args, **kwargs):
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                seconds[name] += time.perf_counter() - start

        return call

    for name, (owner, attribute) in functions.items():
        setattr(owner, attribute, timed(name, originals[name]))
    try:
        yield seconds
    finally:
        for name, (owner, attribute) in functions.items():
            setattr(owner, attribute, originals[name])


def measure_fit(is_quick):
    """Compare a fit with the bare passes over as many images, trained and embedded."""
    n, n_rounds = (6000, 2) if is_quick else (60_000, 10)
    images = load_images(n)
    passes = TrainingPasses(images[:3200])
    bare_pass = passes.bare_pass()
    forward = bare_forward(passes.make_modules()[0], passes.source.values)
    model = DeepClusterEstimator(10, max_iter=n_rounds, random_state=0)
    # The baseline is timed before and after the fit, since a machine's speed drifts.
    early = time_pair(bare_pass, forward)
    with sum_seconds(TIMED_FUNCTIONS) as function_seconds:
        seconds = time_once(lambda: model.fit(images))
    late = time_pair(bare_pass, forward)
    train, embed = np.mean([early, late], axis=0) / len(passes.source)
    # Each round trains for some epochs, then embeds all images once.
    n_epochs = math.ceil(STEPS_PER_ROUND / math.ceil(n / BATCH_SIZE))
    bare = n_rounds * n * (n_epochs * train + embed)
    phases = {
        key.removeprefix("seconds_"): sum(record[key] for record in model.history_)
        for key in model.history_[0]
        if key.startswith("seconds_")
    }
    phases["rest"] = seconds - sum(phases.values())
    phases |= {f"of_which_{name}": spent for name, spent in function_seconds.items()}
    name = f"fit of {n:,} images, {n_rounds} rounds / bare loops"
    return [make_row(name, seconds, bare, **phases)]


class KMeansComparison:
    """Implementations of k-means on the same points, from the same initial centers.

    `objectives` holds the last objective of each implementation.
    """

    def __init__(self, n, n_features, n_clusters, n_iter=10):
        rng = np.random.default_rng(0)
        # Twice as many Gaussian clusters as centers, so that no solution is exact.
        means = rng.standard_normal((2 * n_clusters, n_features))
        mean_rows = rng.integers(0, 2 * n_clusters, n)
        points = means[mean_rows] + rng.standard_normal((n, n_features))
        self.points = points.astype(np.float32)
        self.init = self.points[rng.choice(n, n_clusters, replace=False)]
        self.n_clusters = n_clusters
        self.n_iter = n_iter
        self.objectives = {}

    def fit_skdeepcluster(self):
        model = FaissKMeans(
            self.n_clusters, init=self.init, max_iter=self.n_iter, tol=0.0
        )
        self.objectives["FaissKMeans"] = model.fit(self.points).inertia_

    def fit_faiss(self):
        n, n_features = self.points.shape
        model = faiss.Kmeans(
            n_features,
            self.n_clusters,
            niter=self.n_iter,
            # faiss would otherwise warn of few points, and sample many points.
            min_points_per_centroid=1,
            max_points_per_centroid=n,
        )
        model.train(self.points, init_centroids=self.init)
        distances, _ = model.index.search(self.points, 1)
        self.objectives["faiss.Kmeans"] = float(distances.sum())

    def fit_sklearn(self, name, model):
        model.set_params(
            n_clusters=self.n_clusters, init=self.init, n_init=1, max_iter=self.n_iter
        )
        with warnings.catch_warnings():
            # Ten iterations are too few to converge.
            warnings.simplefilter("ignore")
            self.objectives[name] = model.fit(self.points).inertia_

    def objective_ratio(self, name, baseline):
        """Return the ratio of the objectives of two implementations."""
        return self.objectives[name] / self.objectives[baseline]


def measure_kmeans(is_quick):
    """Compare k-means with faiss and scikit-learn."""
    n = 10_000 if is_quick else 60_000
    sklearn_models = {
        "KMeans, Lloyd": KMeans(tol=0.0),
        "KMeans, Elkan": KMeans(tol=0.0, algorithm="elkan"),
        "MiniBatchKMeans": MiniBatchKMeans(random_state=0),
    }
    rows = []
    for n_features, n_clusters in [(256, 100), (256, 1000), (64, 30)]:
        comparison = KMeansComparison(n, n_features, n_clusters)
        size = f"{n:,}x{n_features}, k={n_clusters:,}"
        # All implementations run the same number of iterations.
        seconds, baseline = time_pair(
            comparison.fit_skdeepcluster, comparison.fit_faiss
        )
        objective = comparison.objective_ratio("FaissKMeans", "faiss.Kmeans")
        name = f"{size}: FaissKMeans / faiss.Kmeans"
        rows.append(make_row(name, seconds, baseline, objective=objective))
        for model_name, model in sklearn_models.items():
            seconds, baseline = time_pair(
                functools.partial(comparison.fit_sklearn, model_name, model),
                comparison.fit_skdeepcluster,
            )
            objective = comparison.objective_ratio(model_name, "FaissKMeans")
            name = f"{size}: {model_name} / FaissKMeans"
            rows.append(make_row(name, seconds, baseline, objective=objective))
    return rows


def measure_many_clusters(is_quick):
    """Compare k-means with up to 10,000 clusters, as in the paper.

    Each implementation is timed without a warm-up. faiss.Kmeans is left out where an
    iteration takes it minutes.
    """
    sizes = [(40_000, 1000, 10), (200_000, 10_000, 1)]
    if is_quick:
        sizes = [(10_000, 1000, 2), (20_000, 4000, 1)]
    rows = []
    for n, n_clusters, n_iter in sizes:
        comparison = KMeansComparison(n, 256, n_clusters, n_iter)
        peers = {
            "KMeans, Lloyd": functools.partial(
                comparison.fit_sklearn, "KMeans, Lloyd", KMeans(tol=0.0)
            )
        }
        if n_clusters < 10_000:
            peers["faiss.Kmeans"] = comparison.fit_faiss
        for name, fit in peers.items():
            # A machine's speed drifts, so the fastest one is timed before and after.
            seconds = time_once(comparison.fit_skdeepcluster)
            peer_seconds = time_once(fit)
            seconds = (seconds + time_once(comparison.fit_skdeepcluster)) / 2
            rows.append(
                make_row(
                    f"{n:,}x256, k={n_clusters:,}: {name} / FaissKMeans",
                    peer_seconds,
                    seconds,
                    objective=comparison.objective_ratio(name, "FaissKMeans"),
                )
            )
    return rows


def measure_exponent(name, values, function):
    """Time a function at several sizes; print the exponent p of seconds ~ size^p."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # The first call also imports and allocates.
        function(values[0])
        seconds = [time_once(functools.partial(function, value)) for value in values]
    # The slope of a line through the logarithms.
    exponent = np.polyfit(np.log(values), np.log(seconds), deg=1)[0]
    print(f"{name:52s}{exponent:8.2f}  seconds", *(f"{s:.1f}" for s in seconds))
    return {"name": name, "exponent": exponent, "seconds": seconds, "values": values}


def measure_growth(is_quick):
    """Measure how fits of one epoch grow with the images and the pseudo-labels."""
    sizes = [2500, 5000, 10_000] if is_quick else [5000, 10_000, 20_000, 40_000, 60_000]
    counts = [10, 100, 1000] if is_quick else [10, 100, 1000, 10_000]
    images = load_images(sizes[-1])
    subset = images[: 2500 if is_quick else 20_000]
    model = DeepClusterEstimator(10, max_iter=1, epochs_per_iter=1, random_state=0)

    def fit_images(n):
        model.set_params(n_pseudo_labels="auto").fit(images[:n])

    def fit_pseudo_labels(n_pseudo_labels):
        model.set_params(n_pseudo_labels=n_pseudo_labels).fit(subset)

    return [
        measure_exponent(
            f"exponent in images, {sizes[0]:,} to {sizes[-1]:,}", sizes, fit_images
        ),
        measure_exponent(
            f"exponent in pseudo-labels, 10 to {counts[-1]:,}",
            counts,
            fit_pseudo_labels,
        ),
    ]


def _send_peak(n, queue):
    """Put the bytes that a fit takes above its input, and the bytes of the features."""
    images = load_images(n)
    small = DeepClusterEstimator(10, max_iter=1, epochs_per_iter=1, random_state=0)
    # The first fit loads modules, which should not count.
    small.fit(images[:500])
    # Resident memory before the fit, in pages.
    n_pages = int(Path("/proc/self/statm").read_text().split()[1])
    model = DeepClusterEstimator(10, max_iter=2, random_state=0).fit(images)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    n_features = model.transform(images[:2]).shape[1]
    queue.put((peak - n_pages * resource.getpagesize(), 4 * len(images) * n_features))


def measure_memory(is_quick):
    """Measure the memory of a fit in a process of its own."""
    n = 6000 if is_quick else 60_000
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_send_peak, args=(n, queue))
    process.start()
    peak, features = queue.get()
    process.join()
    name = f"peak memory above the input, {n:,} images, MB"
    print(f"{name:52s}{peak / 1e6:8.0f}  of which features {features / 1e6:.0f}")
    return [{"name": name, "mb": peak / 1e6, "features_mb": features / 1e6}]


def measure_small(is_quick):
    """Measure small fits, single images and the import."""
    digits = load_digits().images.astype(np.uint8)[:500]
    passes = TrainingPasses(digits)
    model = DeepClusterEstimator(10, random_state=0).fit(digits)
    forward = bare_forward(model.module_, digits[:, None])
    seconds = time_once(lambda: model.fit(digits))
    train, embed = time_pair(passes.bare_pass(), forward)
    # 200 steps in a round are 25 epochs of so few images.
    n_epochs = math.ceil(STEPS_PER_ROUND / math.ceil(len(digits) / BATCH_SIZE))
    n_rounds = len(model.history_)
    bare = n_rounds * (n_epochs * train + embed)
    rows = [make_row(f"fit of 500 digits, {n_rounds} rounds / bare", seconds, bare)]

    single_forward = bare_forward(model.module_, digits[:1, None])
    seconds, bare = time_pair(lambda: model.predict(digits[:1]), single_forward)
    rows.append(make_row("predict of one image / bare forward", seconds, bare))

    # An import needs a process that has imported nothing.
    def run_import(names):
        subprocess.run([sys.executable, "-c", f"import {names}"], check=True)

    dependencies = "torch, sklearn.linear_model, sklearn.cluster, faiss"
    seconds, bare = time_pair(
        functools.partial(run_import, "skdeepcluster"),
        functools.partial(run_import, dependencies),
    )
    rows.append(make_row("import / import of its dependencies", seconds, bare))
    return rows


def measure_search(is_quick):
    """Compare a grid search in two processes with a search in one."""
    images = load_digits().images.astype(np.uint8)
    model = DeepClusterEstimator(10, max_iter=2, random_state=0)
    grid = {"n_clusters": [5, 10, 15, 20]}

    def search(n_jobs):
        GridSearchCV(model, grid, n_jobs=n_jobs, cv=2).fit(images)

    # The first search starts the worker processes.
    search(n_jobs=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        seconds = time_once(functools.partial(search, n_jobs=2))
        sequential = time_once(functools.partial(search, n_jobs=1))
    name = "GridSearchCV, 8 fits: n_jobs=2 / n_jobs=1"
    return [make_row(name, seconds, sequential)]


# Program of one fit in a process of its own. It waits for a line, so that several
# processes start their fits at once, and prints the seconds of the fit.
TIMED_FIT = """
import sys, time
from skdeepcluster import DeepClusterEstimator
from data_sets import load_data_set
images = load_data_set(sys.argv[1], limit=int(sys.argv[2])).images
model = DeepClusterEstimator(n_clusters=10, random_state=0)
print("ready", flush=True)
sys.stdin.readline()
start = time.perf_counter()
model.fit(images)
print(time.perf_counter() - start)
"""


def time_fits(n_processes, data_set, limit):
    """Return the seconds of the slowest of several fits that start at once."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", TIMED_FIT, data_set, str(limit)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            # The data sets are a module beside this script.
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )
        for _ in range(n_processes)
    ]
    for process in processes:
        process.stdout.readline()
    for process in processes:
        process.stdin.write("start\n")
        process.stdin.flush()
    return max(float(process.communicate()[0]) for process in processes)


def measure_side_by_side(is_quick):
    """Compare two fits at once, each in its process, with one fit alone."""
    rows = []
    for data_set, limit in [("digits", 1797), ("fashion-mnist", 4000)]:
        limit = limit // 4 if is_quick else limit
        alone = time_fits(1, data_set, limit)
        together = time_fits(2, data_set, limit)
        rows.append(make_row(f"{data_set}, {limit:,}: two fits / one", together, alone))
    return rows


# Settings that trade quality for time, one at a time.
KNEE_SETTINGS = {
    "defaults": {},
    "1 round": {"max_iter": 1},
    "2 rounds": {"max_iter": 2},
    "3 rounds": {"max_iter": 3},
    "4 rounds": {"max_iter": 4},
    "10 rounds": {"max_iter": 10},
    "batches of 128": {"batch_size": 128},
    "2 crops": {"n_crops": 2},
}
KNEE_DATA_SETS = {
    "digits": {},
    "shapes": {},
    "color": {},
    "clip-art": {"image_size": 64},
    "fashion-mnist": {"limit": 10_000},
}


def measure_knee(is_quick):
    """Compare quality and seconds of fits with a default setting changed."""
    rows = []
    names = ["digits"] if is_quick else KNEE_DATA_SETS
    for name in names:
        data = load_data_set(name, **KNEE_DATA_SETS[name])
        n_clusters = len(np.unique(data.classes))
        default_seconds = None
        for setting, params in KNEE_SETTINGS.items():
            model = DeepClusterEstimator(n_clusters, random_state=0, **params)
            start = time.perf_counter()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                embedding = model.fit_transform(data.images)
            seconds = time.perf_counter() - start
            if default_seconds is None:
                default_seconds = seconds
            rows.append(
                make_row(
                    f"{name}: {setting} / defaults",
                    seconds,
                    default_seconds,
                    nmi=normalized_mutual_info_score(data.classes, model.labels_),
                    linear=score_linear(embedding, data.classes),
                )
            )
    return rows


def score_linear(embedding, classes):
    """Return the accuracy of a logistic regression on a fifth of the images."""
    parts = train_test_split(
        embedding, classes, test_size=0.2, stratify=classes, random_state=0
    )
    train, test, train_classes, test_classes = parts
    return measure_probes(train, train_classes, test, test_classes)[0]


SECTIONS = {
    "training": measure_training,
    "features": measure_features,
    "fit": measure_fit,
    "k-means": measure_kmeans,
    "many-clusters": measure_many_clusters,
    "growth": measure_growth,
    "memory": measure_memory,
    "small": measure_small,
    "search": measure_search,
    "side-by-side": measure_side_by_side,
    "knee": measure_knee,
}


def processor_name():
    """Return the name of the processor (Linux), or of its architecture."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":")[1].strip() for line in lines if "model name" in line]
    return names[0] if names else platform.processor()


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="smaller and rougher")
    parser.add_argument(
        "--only",
        nargs="*",
        choices=SECTIONS,
        default=list(SECTIONS),
        help="sections to run",
    )
    parser.add_argument("--json", default="speed.json", help="file to write")
    arguments = parser.parse_args()
    machine = (
        f"{processor_name()}, {torch.get_num_threads()} threads, {COMPUTE.dtype}, "
        f"torch {torch.__version__}, faiss {faiss.__version__}"
    )
    print(machine, f"\n\n{'':52s}{'ratio':>8s}{'seconds':>10s}{'baseline':>10s}")
    rows = {name: SECTIONS[name](arguments.quick) for name in arguments.only}
    content = {"machine": machine, "arguments": vars(arguments), "rows": rows}
    Path(arguments.json).write_text(json.dumps(content, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
