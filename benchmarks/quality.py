"""Measure the clusters and the embedding of a default fit, with n_clusters set.

    python benchmarks/quality.py --data-set digits --seeds 3
    python benchmarks/quality.py --data-set digits --peers  (needs the extra "bench")
    python benchmarks/quality.py --data-set fashion-mnist --limit 20000
    python benchmarks/quality.py --data-set shapes
    python benchmarks/quality.py --data-set clip-art --limit 800 --image-size 64
    python benchmarks/quality.py --data-set color           (needs the extra "bench")
    python benchmarks/quality.py --data-set FOLDER          (a subfolder for each class)

Print the mean and the standard deviation over seeds, and write all figures as JSON. The
data sets are described in data_sets.py.

NMI, ARI and ACC compare the clusters of the fitted images with their classes. The
probes, a logistic regression and 10 nearest neighbors on the embedding, are scored on
the test set. If the data set has no test set, the fit sees every image without labels,
and the probes learn from four fifths of the labels and are scored on the last fifth.
"""

import argparse
import contextlib
import functools
import json
import multiprocessing
import os
import platform
import resource
import time
from pathlib import Path

import numpy as np
import torch
from data_sets import load_data_set
from sklearn.cluster import KMeans
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from sklearn.model_selection import train_test_split
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skdeepcluster import DeepClusterEstimator
from skdeepcluster.metrics import clustering_accuracy

COLUMNS = ("NMI", "ARI", "ACC", "linear", "10-NN", "seconds", "MiB")
# Columns that are printed as whole numbers, without a deviation.
WHOLE_NUMBERS = ("seconds", "MiB")


# Each method takes training images, test images, the number of clusters and a seed. It
# returns the clusters and the embedding of the training images, and the embedding of
# the test images.


def fit_skdeepcluster(train, test, n_clusters, seed, **params):
    """Fit DeepClusterEstimator with its defaults, except for `params`."""
    model = DeepClusterEstimator(n_clusters=n_clusters, random_state=seed, **params)
    embedding = model.fit_transform(train)
    return model.labels_, embedding, model.transform(test)


def fit_untrained(train, test, n_clusters, seed):
    """Cluster the features of a network that is trained with steps of no effect."""
    model = DeepClusterEstimator(
        n_clusters=n_clusters,
        random_state=seed,
        max_iter=1,
        epochs_per_iter=1,
        learning_rate=1e-12,
        weight_decay=0.0,
    )
    embedding = model.fit_transform(train)
    labels = KMeans(n_clusters, n_init=10, random_state=seed).fit_predict(embedding)
    return labels, embedding, model.transform(test)


def flatten_pixels(images, white=255):
    """Return pixels from 0 to 1, one row for each image."""
    return images.reshape(len(images), -1).astype(np.float32) / white


def fit_pixels(train, test, n_clusters, seed):
    """Cluster the raw pixels by k-means."""
    train, test = flatten_pixels(train), flatten_pixels(test)
    labels = KMeans(n_clusters, n_init=10, random_state=seed).fit_predict(train)
    return labels, train, test


def fit_umap(train, test, n_clusters, seed):
    """Cluster a UMAP embedding of the pixels by k-means."""
    from umap import UMAP

    train, test = flatten_pixels(train), flatten_pixels(test)
    model = UMAP(n_components=n_clusters, min_dist=0.0, random_state=seed).fit(train)
    embedding = model.embedding_
    labels = KMeans(n_clusters, n_init=10, random_state=seed).fit_predict(embedding)
    return labels, embedding, model.transform(test)


def fit_clustpy(name, train, test, n_clusters, seed):
    """Fit a method of ClustPy with its defaults, on pixels from 0 to 1."""
    from clustpy import deep
    from umap import UMAP

    params = {"n_clusters": n_clusters, "random_state": seed}
    if name == "N2D":
        # The paper of N2D uses UMAP; the default of ClustPy is t-SNE.
        params["manifold_class"] = UMAP
        params["manifold_params"] = {
            "n_components": n_clusters,
            "n_neighbors": 20,
            "min_dist": 0.0,
        }
    white = train.max()
    train, test = flatten_pixels(train, white), flatten_pixels(test, white)
    # ClustPy draws progress bars on stderr, which would tear the table apart.
    with open(os.devnull, "w") as null, contextlib.redirect_stderr(null):
        model = getattr(deep, name)(**params).fit(train)
    return model.labels_, model.transform(train), model.transform(test)


METHODS = {
    "skdeepcluster": fit_skdeepcluster,
    "untrained network": fit_untrained,
    "raw pixels": fit_pixels,
}
PEERS = {
    "UMAP + k-means": fit_umap,
    "N2D": functools.partial(fit_clustpy, "N2D"),
    "DEC": functools.partial(fit_clustpy, "DEC"),
    "IDEC": functools.partial(fit_clustpy, "IDEC"),
}


def measure_probes(embedding, classes, test_embedding, test_classes):
    """Return the test accuracy of a logistic regression and of 10 nearest neighbors."""
    probes = [
        make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=300)),
        KNeighborsClassifier(10),
    ]
    return [
        probe.fit(embedding, classes).score(test_embedding, test_classes)
        for probe in probes
    ]


def peak_kib():
    """Return the largest resident memory of this process so far, in KiB (Linux)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def measure_fit(method, seed, selection):
    """Run a method once, and return its figures in the order of `COLUMNS`.

    `selection` holds the arguments of `load_data_set`.
    """
    data = load_data_set(**selection)
    n_clusters = len(np.unique(data.classes))
    has_test_set = data.test_images is not None
    # Methods embed a test set in any case; without one, a single image stands for it.
    test_images = data.test_images if has_test_set else data.images[:1]
    peak_at_start = peak_kib()
    # Loading the data is not part of the measurement.
    start = time.perf_counter()
    labels, embedding, test_embedding = method(
        data.images, test_images, n_clusters, seed
    )
    seconds = time.perf_counter() - start
    n_kib = peak_kib() - peak_at_start
    train_classes, test_classes = data.classes, data.test_classes
    # The probes never see the labels of their test images.
    if not has_test_set:
        embedding, test_embedding, train_classes, test_classes = train_test_split(
            embedding,
            data.classes,
            test_size=0.2,
            stratify=data.classes,
            random_state=seed,
        )
    return [
        normalized_mutual_info_score(data.classes, labels),
        adjusted_rand_score(data.classes, labels),
        clustering_accuracy(data.classes, labels),
        *measure_probes(embedding, train_classes, test_embedding, test_classes),
        seconds,
        n_kib / 1024,
    ]


def _send_figures(queue, method, seed, selection):
    queue.put(measure_fit(method, seed, selection))


def measure_in_process(name, method, seed, selection):
    """Run a method in a process of its own, so that its memory peak is its own."""
    # A spawned process shares no memory with this one.
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(
        target=_send_figures, args=(queue, method, seed, selection)
    )
    process.start()
    # A process that died puts nothing, and a plain queue.get() would wait forever.
    while process.is_alive() and queue.empty():
        time.sleep(0.2)
    if queue.empty():
        raise SystemExit(f"{name} failed with seed {seed}: see above")
    figures = queue.get()
    process.join()
    return figures


def measure_methods(methods, seeds, selection):
    """Print a table with a row for each method, and return all figures by method."""
    print(
        f"{selection['name']}, {selection['limit'] or 'all'} images, {seeds} seeds; "
        f"{platform.machine()}, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}\n"
    )
    width = max(map(len, methods)) + 1
    print(f"{'':{width}s}" + "".join(f"{column:>16s}" for column in COLUMNS))
    results = {}
    for name, method in methods.items():
        results[name] = [
            measure_in_process(name, method, seed, selection) for seed in range(seeds)
        ]
        cells = []
        for column, values in zip(COLUMNS, np.transpose(results[name]), strict=True):
            mean, deviation = values.mean(), values.std()
            is_whole = column in WHOLE_NUMBERS
            cells.append(f"{mean:.0f}" if is_whole else f"{mean:.3f} ± {deviation:.3f}")
        line = "".join(f"{cell:>16s}" for cell in cells)
        print(f"{name:{width}s}{line}", flush=True)
    return results


def make_parser(description, json_file):
    """Return the command line of this script and of ablation.py."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-set", default="digits", help="see data_sets.py")
    parser.add_argument("--seeds", type=int, default=3, help="number of fits a row")
    parser.add_argument("--limit", type=int, help="largest number of training images")
    parser.add_argument(
        "--image-size", type=int, help="side of RGB squares that images are resized to"
    )
    parser.add_argument("--methods", nargs="*", help="names of the rows to measure")
    parser.add_argument("--json", default=json_file, help="file to write")
    return parser


def run_benchmark(methods, arguments):
    """Measure the methods on the command line, and write the figures as JSON."""
    if arguments.methods:
        methods = {name: methods[name] for name in arguments.methods}
    selection = {
        "name": arguments.data_set,
        "limit": arguments.limit,
        "image_size": arguments.image_size,
    }
    rows = measure_methods(methods, arguments.seeds, selection)
    content = {"columns": COLUMNS, "arguments": vars(arguments), "rows": rows}
    Path(arguments.json).write_text(json.dumps(content, indent=1), encoding="utf-8")


def main():
    parser = make_parser(__doc__, "quality.json")
    parser.add_argument(
        "--peers", action="store_true", help="also measure UMAP, N2D, DEC and IDEC"
    )
    arguments = parser.parse_args()
    methods = dict(METHODS)
    if arguments.peers or arguments.methods:
        methods |= PEERS
    run_benchmark(methods, arguments)


if __name__ == "__main__":
    main()
