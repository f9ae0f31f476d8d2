"""What changes with the number of threads, the precision, and the k-means backend?

    python benchmarks/determinism.py --data-set digits --seeds 3

"same model" takes one fitted model and lets it embed and assign the images again: the
largest difference of an embedding (features have about unit variance) and the share of
images that change their group. "another fit" fits again: whether it is the same bit for
bit, how far the groups agree (NMI), and how far the objective of the last k-means is
from the first fit's, at most. "repeated" is the same setting once more, in a process of
its own; "2 processes" share a fit under torchrun, on a thread each. Another seed stands
beside them, to compare with.
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
from quality import load
from sklearn.metrics import normalized_mutual_info_score

from skdeepcluster import DeepClusterEstimator

BASE = {"n_jobs": 1, "precision": "float32", "kmeans_backend": "faiss"}
SETTINGS = {
    "repeated": {},
    "2 threads": {"n_jobs": 2},
    "2 processes": {},
    "bfloat16": {"precision": "bfloat16"},
    "k-means in torch": {"kmeans_backend": "torch"},
    "another seed": {"random_state": 1000},
}


def fit(images, params):
    warnings.simplefilter("ignore")
    return DeepClusterEstimator(10, **params).fit(images)


def in_process(images, params):
    """Fit in a process of its own, on as many threads as `params` say."""
    with joblib.parallel_config("loky", inner_max_num_threads=params["n_jobs"]):
        return joblib.Parallel(2)([joblib.delayed(fit)(images, params)])[0]


def shared(images, params):
    """Fit in two processes that torchrun starts."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "fit.joblib"
        joblib.dump((images, params), file)
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += ["--nproc-per-node=2", __file__, "--share", file]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        subprocess.run(command, check=True, env=environment, stderr=subprocess.PIPE)
        return joblib.load(file)


def take_part(file):
    model = fit(*joblib.load(file))
    if os.environ["RANK"] == "0":
        joblib.dump(model, file)


HOW = {"repeated": in_process, "2 processes": shared}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-set", default="digits")
    parser.add_argument("--limit", type=int, help="use this many images")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--max-iter", type=int, default=6, help="rounds of a fit")
    parser.add_argument("--json", default="determinism.json", help="file to write")
    parser.add_argument("--share", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.share:
        return take_part(arguments.share)
    images, classes, *_ = load(arguments.data_set, arguments.limit)
    rows = []
    for seed in range(arguments.seeds):
        base = {**BASE, "random_state": seed, "max_iter": arguments.max_iter}
        model = fit(images, base)
        embedding = model.transform(images)
        for name, changed in SETTINGS.items():
            params = {**base, **changed}
            other = HOW.get(name, fit)(images, params)
            again = copy.deepcopy(model).set_params(**changed)
            again._dtype = other._dtype
            there, labels = again.transform(images), again.predict(images)
            row = {
                "setting": name,
                "seed": seed,
                "difference": float(np.abs(there - embedding).max()),
                "moved": float(np.mean(labels != model.labels_)),
                "same": bool(
                    np.array_equal(other.labels_, model.labels_)
                    and np.array_equal(other.transform(images), embedding)
                ),
                "objective": abs(other.inertia_ / model.inertia_ - 1),
                "nmi": normalized_mutual_info_score(other.labels_, model.labels_),
                "nmi_y": normalized_mutual_info_score(classes, other.labels_),
            }
            rows.append(row)
    print(f"{'':18s}{'same model':>22s}{'another fit':>38s}")
    print(
        f"{'':18s}{'difference':>12s}{'moved':>10s}"
        f"{'same bits':>14s}{'objective':>12s}{'NMI':>10s}{'NMI to classes':>16s}"
    )
    for name in SETTINGS:
        found = [row for row in rows if row["setting"] == name]
        mean = {k: np.mean([r[k] for r in found]) for k in ("moved", "nmi", "nmi_y")}
        print(
            f"{name:18s}{max(r['difference'] for r in found):12.2g}"
            f"{mean['moved']:10.2%}{sum(r['same'] for r in found):10d} of {len(found)}"
            f"{max(r['objective'] for r in found):12.2g}"
            f"{mean['nmi']:10.3f}{mean['nmi_y']:16.3f}"
        )
    content = {
        "arguments": vars(arguments),
        "rows": rows,
        "machine": platform.platform(),
    }
    Path(arguments.json).write_text(json.dumps(content, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
