"""What would 100 million images take, and a billion?

    python benchmarks/scale.py            (ten minutes on two cores)
    python benchmarks/scale.py --plan     (the plan alone, a minute)

First what 1, 2 and 4 processes on this machine send to each other and hold, beside
what the formulas here say. Then the same formulas for as many images as YFCC100M has,
and ten times as many, by `presets.deepcluster_uncurated`: AlexNet on 224x224 pixels,
10,000 clusters. What a process does alone for all images is measured, at a million, and
scaled up.

Traffic is that of the loopback device (Linux), with its packets' headers. A ring passes
an all-reduce of S bytes through n processes as 2 S (n - 1) bytes, an all-gather of S
bytes from each as S n (n - 1), a broadcast as S (n - 1), all processes together.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from skdeepcluster import DeepClusterEstimator
from skdeepcluster._clustering.merging import MERGE_ROWS, ROWS_PER_CLUSTER
from skdeepcluster._clustering.pseudo_labels import KMEANS_ROWS
from skdeepcluster._fit.loop import STABILITY_ROWS
from skdeepcluster._training.epoch import CALIBRATION_ROWS
from skdeepcluster._training.network import build_network
from skdeepcluster._training.sampling import count_steps
from skdeepcluster.presets import deepcluster_uncurated

ITERATIONS = 25  # of k-means, at most
ROWS = 200_000  # of the measured fits, of 8 numbers each
STEPS = 40  # of their training
COMPONENTS = 32
SMALL = {
    "n_clusters": 10,
    "backbone": "mlp",
    "n_neighbors": None,
    "n_components": COMPONENTS,
    "random_state": 0,
}


@dataclass
class Plan:
    """One round, by formulas. Bytes sent are those of all processes together."""

    n: int  # images
    size: int  # processes
    network: nn.Module
    shape: tuple[int, ...]
    n_pseudo_labels: int
    n_clusters: int
    n_components: int
    batch_size: int
    steps: int
    single: bool  # whether groups are the pseudo-labels
    per_image: float  # bytes that every process holds for each image

    def __post_init__(self):
        values = [*self.network.parameters()]
        self.n_parameters = sum(p.numel() for p in values)
        kind = nn.modules.batchnorm._BatchNorm
        norms = [m for m in self.network.modules() if isinstance(m, kind)]
        self.channels = sum(norm.num_features for norm in norms)
        self.n_norms = len(norms)
        self.n_buffers = sum(b.numel() for b in self.network.buffers())
        self.d = self.network.n_features
        self.head = (self.d + 1) * self.n_pseudo_labels

    def reduced(self, n_bytes):
        return 2 * n_bytes * (self.size - 1)

    def gathered(self, n_bytes):
        return n_bytes * self.size * (self.size - 1)

    def told(self, n_bytes):
        return n_bytes * (self.size - 1)

    def sent(self) -> dict[str, float]:
        """Return the bytes that a round sends, by what they are."""
        d, k, m = self.d, self.n_pseudo_labels, self.n_components
        gradient = self.reduced(4 * (self.n_parameters + self.head))
        state = self.told(4 * (self.n_parameters + self.head + self.n_buffers))
        forward = self.gathered(8 * (2 * self.channels + self.n_norms))
        backward = self.gathered(8 * self.channels)
        calibration = count_steps(min(self.n, CALIBRATION_ROWS), self.batch_size)
        grouped = min(self.n, max(MERGE_ROWS, ROWS_PER_CLUSTER * self.n_clusters))
        judged = min(self.n, STABILITY_ROWS)
        passes = -(-self.steps * self.batch_size // self.n)
        kmeans = self.reduced(8 * k * (m + 2)) * ITERATIONS
        starts = self.reduced(4 * k * (m + 1))
        view = self.n_clusters + self.n_clusters // 3
        groups = 0
        if not self.single:
            groups = self.reduced(4 * d * grouped) + self.told(4 * view * grouped)
        return {
            "gradients": gradient * self.steps,
            "network": state * passes + self.told(4 * self.n_buffers) * self.steps,
            "batch norm": (forward + backward) * self.steps + forward * calibration,
            "PCA": self.reduced(8 * (d * d + d)) + self.told(8 * (d * d + d)),
            "k-means": kmeans + starts,
            "labels": self.told(4 * self.n),
            "groups, judgment": groups + self.reduced(4 * d * judged),
        }

    def held(self) -> dict[str, float]:
        """Return the bytes that one process holds in a round, by what they are."""
        own = -(-self.n // self.size)
        sample = min(self.n, KMEANS_ROWS)
        return {
            "features": 4 * own * self.d,
            "points of k-means": 4 * -(-sample // self.size) * self.n_components,
            "labels and order": self.per_image * self.n,
            "weights": 4 * 4 * (self.n_parameters + self.head),
            "PCA": 3 * 8 * self.d**2,
        }

    def flops(self) -> dict[str, float]:
        """Return the operations of a round, of all processes together."""
        self.network.eval()
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            self.network(torch.zeros(1, *self.shape))
        forward = counter.get_total_flops()
        sample, k, m = min(self.n, KMEANS_ROWS), self.n_pseudo_labels, self.n_components
        assigned = self.n if self.n > KMEANS_ROWS else 0
        return {
            "training": 3 * forward * self.steps * self.batch_size,
            "features": forward * self.n,
            "PCA, projection": 2 * self.n * self.d * (self.d + m),
            "k-means": 2 * sample * k * m * ITERATIONS + 2 * assigned * k * m,
        }


def alone(n=1_000_000, k=10_000):
    """Return bytes and seconds per image of what each process does for all images."""
    script = f"""
import resource, time, numpy as np
from skdeepcluster._fit.reporting import mean_nmi
from skdeepcluster._training.sampling import epoch_rows
rng = np.random.default_rng(0)
labels = rng.integers(0, {k}, (2, {n}), dtype=np.int32)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before, start = peak(), time.perf_counter()
epoch_rows(labels[0], "uniform", rng)
drawn = time.perf_counter() - start
mean_nmi(labels[:1], labels[1:])
print(peak() - before + labels.nbytes, drawn, time.perf_counter() - start - drawn)
"""
    command = [sys.executable, "-c", script]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    return [float(value) / n for value in found.stdout.split()]


def loopback():
    """Return the bytes that the loopback device has passed on so far."""
    lines = Path("/proc/net/dev").read_text().splitlines()
    return int(next(x for x in lines if x.strip().startswith("lo:")).split()[1])


def fit(rounds):
    """Fit rows in the processes that there are; print what this one came to hold."""
    warnings.simplefilter("ignore")
    X = np.random.default_rng(0).normal(size=(ROWS, 8)).astype(np.float32)
    model = DeepClusterEstimator(**SMALL, max_iter=1, updates_per_iter=STEPS)
    model.fit(X[:500])  # what the first fit of a process allocates once
    model.set_params(max_iter=rounds)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    model.fit(X)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    sys.stdout.write(json.dumps({"MB": (after - before) / 1000}) + "\n")


def measure(size, rounds):
    """Return bytes that a fit sends, and the MB that the largest process takes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={size}", __file__, "--fit", str(rounds)]
    before = loopback()
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    told = [json.loads(x) for x in done.stdout.splitlines() if x.startswith("{")]
    return loopback() - before, max(each["MB"] for each in told)


def small_plan(size, per_image):
    network = build_network(
        "mlp", (8,), np.zeros(8), np.ones(8), sobel=False, head_norm="batch"
    )
    return Plan(
        ROWS, size, network, (8,), 50, 10, COMPONENTS, 64, STEPS, False, per_image
    )


def large_plan(n, size, per_image):
    params = deepcluster_uncurated()
    network = build_network(
        params["backbone"],
        (3, 224, 224),
        np.zeros(3),
        np.ones(3),
        sobel=params["sobel"],
        head_norm=params["head_norm"],
    )
    k, batch_size, steps = (
        params[name] for name in ("n_clusters", "batch_size", "updates_per_iter")
    )
    return Plan(
        *(n, size, network, (3, 224, 224), k, k, 256, batch_size, steps),
        *(True, per_image),
    )


def table(title, rows):
    print(f"\n{title}")
    for name, values in rows:
        print(f"  {name:28s}" + "".join(f"{value:>14s}" for value in values))
    sys.stdout.flush()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fit", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--plan", action="store_true", help="measure no fits")
    parser.add_argument("--json", type=Path, help="also write what was found")
    arguments = parser.parse_args()
    if arguments.fit:
        return fit(arguments.fit)

    n_bytes, drawn, compared = alone()
    found = {"alone": (n_bytes, drawn, compared)}
    print(
        f"For each image every process takes {n_bytes:.0f} bytes, "
        f"{1e6 * drawn:.2f} us to draw an epoch and {1e6 * compared:.2f} us for NMI"
    )
    if not arguments.plan:
        columns = []
        for size in (1, 2, 4):
            (one, _), (three, held) = measure(size, 1), measure(size, 3)
            plan = small_plan(size, n_bytes)
            sent = (three - one) / 2e6
            found[size] = sent, sum(plan.sent().values()) / 1e6
            found[size] += held, sum(plan.held().values()) / 1e6
            columns.append([f"{size}", *(f"{value:.1f}" for value in found[size])])
        names = ["processes", "MB sent a round, by all", "by formula"]
        names += ["MB taken by each", "by formula"]
        measured = zip(names, zip(*columns, strict=True), strict=True)
        table(f"{ROWS:,} rows, {STEPS} steps a round, measured", measured)

    for n, size in ((10**8, 64), (10**9, 64), (10**9, 512)):
        plan = large_plan(n, size, n_bytes)
        title = f"{n:,} images, {size} processes, a round of {plan.steps:,} steps"
        sent, held, flops = plan.sent(), plan.held(), plan.flops()
        found[title] = {"sent": sent, "held": held, "flops": flops}
        table(
            title,
            [
                ("GB sent by each", [""]),
                *((f"  {k}", [f"{v / size / 1e9:,.2f}"]) for k, v in sent.items()),
                ("GB held by each", [""]),
                *((f"  {k}", [f"{v / 1e9:,.2f}"]) for k, v in held.items()),
                ("10^15 operations of all", [""]),
                *((f"  {k}", [f"{v / 1e15:,.1f}"]) for k, v in flops.items()),
                ("seconds of each, alone", [f"{n * (drawn + compared):,.0f}"]),
            ],
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1, default=str))


if __name__ == "__main__":
    main()
