"""Measure how threads, processes, precision and the k-means backend change a result.

    python benchmarks/determinism.py --data-set digits --seeds 3

"same model": one fitted model embeds and assigns its training images again.

    difference  largest difference of an embedding (features have unit variance)
    moved       share of the images that change their cluster

"second fit": the same parameters are fitted again.

    same bits   number of seeds whose labels and embeddings are equal bit for bit
    objective   largest relative difference of the objective of the last k-means
    NMI         agreement of the clusters of both fits

"repeated" is the same setting in another process. "2 processes" share a fit under
torchrun, with one thread each. "another seed" shows the spread to compare with.
"""

import argparse
import copy
import json
import os
import platform
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import joblib
import numpy as np
from data_sets import load_data_set
from sklearn.metrics import normalized_mutual_info_score

from skdeepcluster import DeepClusterEstimator, FaissKMeans

# Parameters of the reference fit. Later rows change one of them.
BASE = {
    "n_clusters": 10,
    "n_jobs": 1,
    "precision": "float32",
    "clusterer": FaissKMeans(backend="faiss"),
}
# Parameters that each row changes.
SETTINGS = {
    "repeated": {},
    "2 threads": {"n_jobs": 2},
    "2 processes": {},
    "bfloat16": {"precision": "bfloat16"},
    "k-means in torch": {"clusterer": FaissKMeans(backend="torch")},
    "another seed": {"random_state": 1000},
}


def fit(images, params):
    """Fit in this process."""
    warnings.simplefilter("ignore")
    return DeepClusterEstimator(**params).fit(images)


def fit_in_process(images, params):
    """Fit in another process, on as many threads as `n_jobs` allows."""
    # joblib starts a process only if the number of jobs is larger than one.
    with joblib.parallel_config("loky", inner_max_num_threads=params["n_jobs"]):
        (model,) = joblib.Parallel(2)([joblib.delayed(fit)(images, params)])
    return model


def fit_distributed(images, params):
    """Fit in two processes that torchrun starts."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "fit.joblib"
        joblib.dump((images, params), file)
        # This script is the worker, see `run_worker`.
        command = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node=2",
            __file__,
            "--worker",
            file,
        ]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        subprocess.run(command, check=True, env=environment, stderr=subprocess.PIPE)
        return joblib.load(file)


def run_worker(file):
    """Fit the images and parameters in a file as one of several processes."""
    images, params = joblib.load(file)
    model = fit(images, params)
    # All processes have the same result, so one file is enough.
    if os.environ["RANK"] == "0":
        joblib.dump(model, file)


# Settings which are not fitted in this process.
FIT_FUNCTIONS = {"repeated": fit_in_process, "2 processes": fit_distributed}


def last_inertia(model):
    """Return the objective of the last k-means over pseudo-labels."""
    return model.history_[-1]["inertia"]


def compare_models(images, classes, model, second, changed):
    """Return the figures of one row for one seed."""
    # Same model: only the numerical setting changes.
    embedding = model.transform(images)
    same_model = copy.deepcopy(model).set_params(**changed)
    # The precision is resolved in `fit`, so set_params does not change it by itself.
    same_model._dtype = second._dtype
    difference = np.abs(same_model.transform(images) - embedding).max()
    moved = np.mean(same_model.predict(images) != model.labels_)
    # Second fit: training amplifies any difference in rounding.
    same_bits = np.array_equal(second.labels_, model.labels_) and np.array_equal(
        second.transform(images), embedding
    )
    return {
        "difference": float(difference),
        "moved": float(moved),
        "same_bits": bool(same_bits),
        "objective": abs(last_inertia(second) / last_inertia(model) - 1),
        "nmi": normalized_mutual_info_score(second.labels_, model.labels_),
        "nmi_y": normalized_mutual_info_score(classes, second.labels_),
    }


def print_table(rows):
    """Print a line for each setting: means over the seeds, or the worst seed."""
    print(f"{'':18s}{'same model':>22s}{'second fit':>38s}")
    print(
        f"{'':18s}{'difference':>12s}{'moved':>10s}"
        f"{'same bits':>14s}{'objective':>12s}{'NMI':>10s}{'NMI to classes':>16s}"
    )
    # Differences are the worst of all seeds, agreements the mean.
    for setting in SETTINGS:
        of_setting = [row for row in rows if row["setting"] == setting]
        columns = {
            name: np.array([row[name] for row in of_setting])
            for name in of_setting[0]
            if name != "setting"
        }
        print(
            f"{setting:18s}{columns['difference'].max():12.2g}"
            f"{columns['moved'].mean():10.2%}"
            f"{columns['same_bits'].sum():10d} of {len(of_setting)}"
            f"{columns['objective'].max():12.2g}"
            f"{columns['nmi'].mean():10.3f}{columns['nmi_y'].mean():16.3f}"
        )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-set", default="digits", help="see data_sets.py")
    parser.add_argument("--limit", type=int, help="largest number of images")
    parser.add_argument("--seeds", type=int, default=3, help="fits of each setting")
    parser.add_argument("--max-iter", type=int, default=6, help="rounds of a fit")
    parser.add_argument("--json", default="determinism.json", help="file to write")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        run_worker(arguments.worker)
        return
    data = load_data_set(arguments.data_set, arguments.limit)
    rows = []
    for seed in range(arguments.seeds):
        params = BASE | {"random_state": seed, "max_iter": arguments.max_iter}
        model = fit(data.images, params)
        for setting, changed in SETTINGS.items():
            fit_setting = FIT_FUNCTIONS.get(setting, fit)
            second = fit_setting(data.images, params | changed)
            figures = compare_models(data.images, data.classes, model, second, changed)
            rows.append({"setting": setting, "seed": seed} | figures)
    print_table(rows)
    content = {
        "arguments": vars(arguments),
        "rows": rows,
        "machine": platform.platform(),
    }
    Path(arguments.json).write_text(json.dumps(content, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
