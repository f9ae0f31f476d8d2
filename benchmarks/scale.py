"""Estimate the cost of 100 million images and of a billion; time two processes.

    python benchmarks/scale.py            (ten minutes on two cores)
    python benchmarks/scale.py --plan     (the estimate alone, a minute)
    python benchmarks/scale.py --speed    (one and two processes, ten minutes)
    python benchmarks/scale.py --speed --images 2000 --rounds 1

First measure the traffic and the memory of 1, 2 and 4 processes on this machine, and
compare them with formulas. Then apply the formulas to the size of YFCC100M, and to ten
times this size, with `presets.deepcluster_uncurated`: AlexNet on 224x224 pixels and
10,000 clusters. Each process handles the labels of all images by itself; this cost is
measured with a million images and scaled up.

Traffic is measured on the loopback device (Linux), and includes packet headers. With n
processes, a ring sends 2 S (n - 1) bytes for an all-reduce of S bytes, S n (n - 1) for
an all-gather of S bytes per process, and S (n - 1) for a broadcast, in total over all
processes.

`--speed` fits Fashion-MNIST in one process and in two, on one thread each. "seconds"
and "training" are the time of the fit and of its SGD steps. The fit gains
less than its training, since the first process merges pseudo-labels by itself.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import normalized_mutual_info_score
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from skdeepcluster import DeepClusterEstimator
from skdeepcluster._clustering.merging import MERGE_ROWS, ROWS_PER_CLUSTER
from skdeepcluster._clustering.pseudo_labels import KMEANS_ROWS
from skdeepcluster._fit.reporting import mean_nmi
from skdeepcluster._fit.stability import STABILITY_ROWS
from skdeepcluster._training.batch_norm import CALIBRATION_ROWS
from skdeepcluster._training.network import build_network
from skdeepcluster._training.sampling import (
    MIN_LOCAL_ROWS,
    count_steps,
    sample_rows,
)
from skdeepcluster.datasets import load_fashion_mnist
from skdeepcluster.presets import deepcluster_uncurated

# Largest number of iterations of k-means.
KMEANS_ITERATIONS = 25
# Size of the measured fits: rows, numbers in a row, and SGD steps in a round.
N_ROWS = 200_000
N_FEATURES = 8
STEPS_PER_ROUND = 40
BATCH_SIZE = 64
N_COMPONENTS = 32
MEASURED_FIT = {
    "n_clusters": 10,
    "backbone": "mlp",
    "n_neighbors": None,
    "n_components": N_COMPONENTS,
    "batch_size": BATCH_SIZE,
    "epochs_per_iter": STEPS_PER_ROUND / count_steps(N_ROWS, BATCH_SIZE),
    "random_state": 0,
}
# Batch sizes of `--speed`: the default, and the smallest that the docs recommend.
SPEED_BATCH_SIZES = (64, 512)
# With the defaults, each of the clusters has five pseudo-labels.
N_PSEUDO_LABELS = 50


@dataclass
class Plan:
    """Formulas for one round.

    Parameters
    ----------
    n_images : int
    n_processes : int
    network : Network
    shape : tuple of int
        Shape of one image or row.
    n_pseudo_labels : int
    n_clusters : int
    n_components : int
        Number of principal components that are clustered.
    batch_size : int
    n_steps : int
        Number of SGD steps.
    labels_are_final : bool
        Whether the pseudo-labels are the final clusters.
    bytes_per_image : float
        Memory of each process for each image.
    """

    n_images: int
    n_processes: int
    network: nn.Module
    shape: tuple[int, ...]
    n_pseudo_labels: int
    n_clusters: int
    n_components: int
    batch_size: int
    n_steps: int
    labels_are_final: bool
    bytes_per_image: float

    def __post_init__(self):
        modules = list(self.network.modules())
        norms = [m for m in modules if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        self.n_norms = len(norms)
        self.n_channels = sum(norm.num_features for norm in norms)
        self.n_buffers = sum(buffer.numel() for buffer in self.network.buffers())
        self.n_features = self.network.n_features
        self.n_head_weights = (self.n_features + 1) * self.n_pseudo_labels
        self.n_weights = self.n_head_weights + sum(
            parameter.numel() for parameter in self.network.parameters()
        )

    def all_reduce(self, n_bytes):
        """Return the bytes that all processes send to sum an array."""
        return 2 * n_bytes * (self.n_processes - 1)

    def all_gather(self, n_bytes):
        """Return the bytes that all processes send to exchange an array of each."""
        return n_bytes * self.n_processes * (self.n_processes - 1)

    def broadcast(self, n_bytes):
        """Return the bytes that all processes send to copy the array of the first."""
        return n_bytes * (self.n_processes - 1)

    def traffic(self) -> dict[str, float]:
        """Return the bytes that all processes send in a round, by purpose."""
        d, k, m = self.n_features, self.n_pseudo_labels, self.n_components
        # Weights and gradients are float32.
        gradients = self.all_reduce(4 * self.n_weights)
        state = self.broadcast(4 * (self.n_weights + self.n_buffers))
        # Batch norm exchanges float64 sums: two a channel forward, one backward.
        forward = self.all_gather(8 * (2 * self.n_channels + self.n_norms))
        backward = self.all_gather(8 * self.n_channels)
        # Large shares of a batch have statistics of their own, except in calibration.
        is_shared = self.batch_size // self.n_processes < MIN_LOCAL_ROWS
        n_shared_steps = self.n_steps if is_shared else 0
        calibration_steps = count_steps(
            min(self.n_images, CALIBRATION_ROWS), self.batch_size
        )
        n_epochs = -(-self.n_steps * self.batch_size // self.n_images)
        # k-means exchanges float64 sums and sizes of clusters in each iteration.
        kmeans = self.all_reduce(8 * k * (m + 2)) * KMEANS_ITERATIONS
        initial_centers = self.all_reduce(4 * k * (m + 1))
        n_stability = min(self.n_images, STABILITY_ROWS)
        merging = 0
        if not self.labels_are_final:
            n_merged = min(
                self.n_images, max(MERGE_ROWS, ROWS_PER_CLUSTER * self.n_clusters)
            )
            # A diffusion map has a third more components than there are clusters.
            map_width = self.n_clusters + self.n_clusters // 3
            merging = self.all_reduce(4 * d * n_merged)
            merging += self.broadcast(4 * map_width * n_merged)
        return {
            "gradients": gradients * self.n_steps,
            "network": state * n_epochs,
            "batch norm": (forward + backward) * n_shared_steps
            + forward * calibration_steps,
            "PCA": self.all_reduce(8 * (d * d + d)) + self.broadcast(8 * (d * d + d)),
            "k-means": kmeans + initial_centers,
            # Labels are int32, of all images, in every process.
            "labels": self.broadcast(4 * self.n_images),
            "merging, stability": merging + self.all_reduce(4 * d * n_stability),
        }

    def memory(self) -> dict[str, float]:
        """Return the bytes that one process holds in a round, by content."""
        n_local = -(-self.n_images // self.n_processes)
        n_sampled = -(-min(self.n_images, KMEANS_ROWS) // self.n_processes)
        return {
            # Each process holds the features of its share of the images.
            "features": 4 * n_local * self.n_features,
            "points of k-means": 4 * n_sampled * self.n_components,
            "labels and order": self.bytes_per_image * self.n_images,
            # Weights, gradients, momenta and the buckets of the all-reduce.
            "weights": 4 * 4 * self.n_weights,
            "PCA": 3 * 8 * self.n_features**2,
        }

    def operations(self) -> dict[str, float]:
        """Return the operations of all processes in a round, by phase."""
        self.network.eval()
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            self.network(torch.zeros(1, *self.shape))
        forward = counter.get_total_flops()
        n, d = self.n_images, self.n_features
        k, m = self.n_pseudo_labels, self.n_components
        n_sampled = min(n, KMEANS_ROWS)
        # Larger sets are assigned once more, after k-means on a sample.
        n_assigned = n if n > KMEANS_ROWS else 0
        return {
            # The backward pass costs about two forward passes.
            "training": 3 * forward * self.n_steps * self.batch_size,
            "features": forward * n,
            "PCA, projection": 2 * n * d * (d + m),
            # One product and one sum for each point, center and component.
            "k-means": 2 * n_sampled * k * m * KMEANS_ITERATIONS
            + 2 * n_assigned * k * m,
        }


def peak_bytes():
    """Return the largest resident memory of this process so far (Linux)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def print_json(content):
    """Print one line for `run_script`."""
    sys.stdout.write(json.dumps(content) + "\n")


def run_script(arguments, launcher=()):
    """Run this script in new processes; return the objects that they print as JSON."""
    # Only the objects of JSON matter: torchrun prints lines of its own.
    completed = subprocess.run(
        [sys.executable, *launcher, __file__, *arguments],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    lines = completed.stdout.splitlines()
    return [json.loads(line) for line in lines if line.startswith("{")]


def measure_labels(n=1_000_000, n_labels=10_000):
    """Print the cost of the labels of all images in each process, for each image."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, n_labels, (2, n), dtype=np.int32)
    peak_at_start, start = peak_bytes(), time.perf_counter()
    # Each process draws the rows of an epoch by itself, from the same seed.
    sample_rows(labels[0], "uniform", rng)
    sampled = time.perf_counter()
    # Each process compares the labels of two rounds.
    mean_nmi(labels[:1], labels[1:])
    compared = time.perf_counter()
    print_json(
        {
            "bytes": (peak_bytes() - peak_at_start + labels.nbytes) / n,
            "sample_seconds": (sampled - start) / n,
            "nmi_seconds": (compared - sampled) / n,
        }
    )


def measure_fit(n_rounds):
    """Fit rows in one or several processes; print the memory of this one."""
    warnings.simplefilter("ignore")
    rng = np.random.default_rng(0)
    X = rng.normal(size=(N_ROWS, N_FEATURES)).astype(np.float32)
    model = DeepClusterEstimator(**MEASURED_FIT, max_iter=1)
    # The first fit of a process allocates memory that later fits reuse.
    model.fit(X[:500])
    model.set_params(max_iter=n_rounds)
    peak_at_start = peak_bytes()
    model.fit(X)
    print_json({"bytes": peak_bytes() - peak_at_start})


def measure_speed(n_images, n_rounds, batch_size):
    """Fit images in one or several processes; print the time and the quality."""
    warnings.simplefilter("ignore")
    images, classes = load_fashion_mnist()
    images, classes = images[:n_images], classes[:n_images]
    model = DeepClusterEstimator(
        n_clusters=10, batch_size=batch_size, n_jobs=1, random_state=0
    )
    # The first fit of a process imports modules and allocates memory.
    model.set_params(max_iter=1, epochs_per_iter=0.2).fit(images[:500])
    model.set_params(max_iter=n_rounds, epochs_per_iter="auto")
    start = time.perf_counter()
    model.fit(images)
    seconds = time.perf_counter() - start
    if os.environ.get("RANK", "0") == "0":
        print_json(
            {
                "seconds": seconds,
                "training": sum(record["seconds_train"] for record in model.history_),
                "nmi": normalized_mutual_info_score(classes, model.labels_),
            }
        )


def compare_speed(n_images, n_rounds):
    """Time fits in one process and in two, and print the ratios.

    Returns
    -------
    figures : list of dict
        Seconds and NMI with the classes, one record for each batch size.
    """
    figures = []
    options = ["--images", str(n_images), "--rounds", str(n_rounds)]
    for batch_size in SPEED_BATCH_SIZES:
        arguments = ["--timed-fit", str(batch_size), *options]
        (one,) = run_script(arguments)
        (two,) = run_script(arguments, launcher=torchrun(2))
        figures.append({"batch_size": batch_size, "one": one, "two": two})
        rows = [("", "one", "two", "ratio")]
        for key in ("seconds", "training"):
            ratio = one[key] / two[key]
            rows.append((key, f"{one[key]:.1f}", f"{two[key]:.1f}", f"{ratio:.2f}"))
        rows.append(("NMI with the classes", f"{one['nmi']:.3f}", f"{two['nmi']:.3f}"))
        print_table(
            f"{n_images:,} images, {n_rounds} rounds, batches of {batch_size}", rows
        )
    return figures


def torchrun(n_processes):
    """Return the arguments of Python that start a script in several processes."""
    return [
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={n_processes}",
    ]


def loopback_bytes():
    """Return the bytes that the loopback device has sent so far."""
    lines = Path("/proc/net/dev").read_text().splitlines()
    (line,) = [line for line in lines if line.strip().startswith("lo:")]
    return int(line.split()[1])


def measure_processes(n_processes, n_rounds):
    """Return the bytes that a fit sends, and the memory of its largest process."""
    sent_at_start = loopback_bytes()
    fits = run_script(["--fit", str(n_rounds)], launcher=torchrun(n_processes))
    return loopback_bytes() - sent_at_start, max(fit["bytes"] for fit in fits)


def plan_measured_fit(n_processes, bytes_per_image):
    """Return the plan of the fits that are measured."""
    network = build_network(
        "mlp",
        (N_FEATURES,),
        np.zeros(N_FEATURES),
        np.ones(N_FEATURES),
        sobel=False,
        head_norm="batch",
    )
    return Plan(
        n_images=N_ROWS,
        n_processes=n_processes,
        network=network,
        shape=(N_FEATURES,),
        n_pseudo_labels=N_PSEUDO_LABELS,
        n_clusters=MEASURED_FIT["n_clusters"],
        n_components=N_COMPONENTS,
        batch_size=BATCH_SIZE,
        n_steps=STEPS_PER_ROUND,
        labels_are_final=False,
        bytes_per_image=bytes_per_image,
    )


def plan_large_fit(n_images, n_processes, bytes_per_image):
    """Return the plan of the paper's recipe for uncurated images."""
    params = deepcluster_uncurated(n_images)
    shape = (3, params["image_size"], params["image_size"])
    network = build_network(
        params["backbone"],
        shape,
        np.zeros(3),
        np.ones(3),
        sobel=params["sobel"],
        head_norm=params["head_norm"],
    )
    # The preset is a share of an epoch that is 5,000 steps.
    steps_per_epoch = count_steps(n_images, params["batch_size"])
    return Plan(
        n_images=n_images,
        n_processes=n_processes,
        network=network,
        shape=shape,
        n_pseudo_labels=params["n_pseudo_labels"],
        n_clusters=params["n_clusters"],
        n_components=params["n_components"],
        batch_size=params["batch_size"],
        n_steps=round(params["epochs_per_iter"] * steps_per_epoch),
        labels_are_final=True,
        bytes_per_image=bytes_per_image,
    )


def print_table(title, rows):
    """Print rows of a name and values."""
    print(f"\n{title}")
    for name, *values in rows:
        print(f"  {name:28s}" + "".join(f"{value:>14s}" for value in values))
    sys.stdout.flush()


def compare_with_formulas(bytes_per_image):
    """Measure fits of several processes, and print them beside the formulas.

    Returns
    -------
    figures : list of dict
        Megabytes, one record for each number of processes.
    """
    figures = []
    for n_processes in (1, 2, 4):
        # The difference of fits of three rounds and of one round leaves two rounds.
        sent_in_one, _ = measure_processes(n_processes, n_rounds=1)
        sent_in_three, memory = measure_processes(n_processes, n_rounds=3)
        plan = plan_measured_fit(n_processes, bytes_per_image)
        figures.append(
            {
                "processes": n_processes,
                "sent": (sent_in_three - sent_in_one) / 2e6,
                "sent_by_formula": sum(plan.traffic().values()) / 1e6,
                "memory": memory / 1e6,
                "memory_by_formula": sum(plan.memory().values()) / 1e6,
            }
        )
    titles = {
        "sent": "MB sent by all in a round",
        "sent_by_formula": "by formula",
        "memory": "MB of memory of each",
        "memory_by_formula": "by formula",
    }
    rows = [("processes", *(str(record["processes"]) for record in figures))]
    for key, title in titles.items():
        rows.append((title, *(f"{record[key]:.1f}" for record in figures)))
    print_table(f"{N_ROWS:,} rows, {STEPS_PER_ROUND} steps in a round, measured", rows)
    return figures


def print_plan(n_images, n_processes, label_cost):
    """Print the cost of a round of many images; return all figures."""
    plan = plan_large_fit(n_images, n_processes, label_cost["bytes"])
    traffic, memory, operations = plan.traffic(), plan.memory(), plan.operations()
    label_seconds = n_images * (
        label_cost["sample_seconds"] + label_cost["nmi_seconds"]
    )
    rows = [("GB sent by each process",)]
    for name, n_bytes in traffic.items():
        rows.append((f"  {name}", f"{n_bytes / n_processes / 1e9:,.2f}"))
    rows.append(("GB of memory of each process",))
    for name, n_bytes in memory.items():
        rows.append((f"  {name}", f"{n_bytes / 1e9:,.2f}"))
    rows.append(("10^15 operations of all",))
    for name, count in operations.items():
        rows.append((f"  {name}", f"{count / 1e15:,.1f}"))
    rows.append(("seconds of each, for labels", f"{label_seconds:,.0f}"))
    print_table(
        f"{n_images:,} images, {n_processes} processes, a round of {plan.n_steps:,} "
        "steps",
        rows,
    )
    return {
        "images": n_images,
        "processes": n_processes,
        "traffic": traffic,
        "memory": memory,
        "operations": operations,
        "label_seconds": label_seconds,
    }


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--fit", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--labels", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--plan", action="store_true", help="measure no fits")
    parser.add_argument("--timed-fit", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--speed", action="store_true", help="time two processes")
    parser.add_argument("--images", type=int, default=24_000, help="for --speed")
    parser.add_argument("--rounds", type=int, default=6, help="for --speed")
    parser.add_argument("--json", type=Path, help="file to write")
    arguments = parser.parse_args()
    if arguments.fit:
        measure_fit(arguments.fit)
        return
    if arguments.labels:
        measure_labels()
        return

    if arguments.timed_fit:
        measure_speed(arguments.images, arguments.rounds, arguments.timed_fit)
        return

    if arguments.speed:
        content = {"speed": compare_speed(arguments.images, arguments.rounds)}
    else:
        content = estimate_cost(arguments.plan)
    if arguments.json:
        arguments.json.write_text(json.dumps(content, indent=1), encoding="utf-8")


def estimate_cost(only_plan):
    """Print the cost of fits of many images; return all figures."""
    (label_cost,) = run_script(["--labels"])
    print(
        f"For each image, every process takes {label_cost['bytes']:.0f} bytes, "
        f"{1e6 * label_cost['sample_seconds']:.2f} us to sample an epoch and "
        f"{1e6 * label_cost['nmi_seconds']:.2f} us for the NMI"
    )
    content = {"labels": label_cost}
    if not only_plan:
        content["measured"] = compare_with_formulas(label_cost["bytes"])
    content["plans"] = [
        print_plan(n_images, n_processes, label_cost)
        for n_images, n_processes in ((10**8, 64), (10**9, 64), (10**9, 512))
    ]
    return content


if __name__ == "__main__":
    main()
