"""Measure the clusters of generated sets, and the probabilities of real ones.

    python benchmarks/clusters.py                    (never worse than k-means?)
    python benchmarks/clusters.py --auto             (is the number of clusters found?)
    python benchmarks/clusters.py --auto --sets digits shapes fashion-mnist:3000
    python benchmarks/clusters.py --sets digits fashion-mnist:3000

Each set has classes of which the number is known. For each set and seed, print the NMI
with the classes of k-means (of the rows or pixels, 10 restarts) and of a default fit,
where the clusters of the fit come from, and the expected calibration error of
`probabilities_`: the mean difference, over 15 bins of the largest probability, between
this probability and the share of images in the majority class of their cluster.

With `--auto`, n_clusters="auto", and the number of clusters that three rules choose:
the best score, the largest gap between merges, and the rule of the package.

Sets of generated rows and images are described below. Other names are those of
data_sets.py, with the largest number of images after a colon.
"""

import argparse
import json
import time
import warnings
import zlib
from pathlib import Path

import numpy as np
from data_sets import load_data_set
from scipy.ndimage import zoom
from sklearn.cluster import KMeans
from sklearn.datasets import make_moons
from sklearn.metrics import normalized_mutual_info_score

from skdeepcluster import DeepClusterEstimator

N_BINS = 15


def draw_blobs(rng, n, n_classes, n_features, noise, weights=None, unit=False):
    """Draw normal blobs around random centers, on request at unit length."""
    centers = rng.normal(size=(n_classes, n_features))
    classes = rng.choice(n_classes, n, p=weights)
    rows = centers[classes] + rng.normal(0, noise, (n, n_features))
    if unit:
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows.astype(np.float32), classes


def draw_rings(rng, n, n_classes):
    """Draw concentric rings in the plane."""
    classes = rng.integers(n_classes, size=n)
    radius = 1 + 1.5 * classes + rng.normal(0, 0.1, n)
    angle = rng.uniform(0, 2 * np.pi, n)
    rows = np.column_stack([radius * np.cos(angle), radius * np.sin(angle)])
    return rows.astype(np.float32), classes


def draw_two_moons(rng, n):
    """Draw two interleaved half circles."""
    rows, classes = make_moons(n, noise=0.07, random_state=int(rng.integers(2**31)))
    return rows.astype(np.float32), classes


def draw_templates(rng, n, n_classes, size, noise, weights=None):
    """Draw smooth random images, one for each class, with noise in each pixel."""
    templates = zoom(rng.normal(size=(n_classes, 4, 4)), (1, size / 4, size / 4))
    classes = rng.choice(n_classes, n, p=weights)
    images = 128 + 40 * templates[classes] + rng.normal(0, noise, (n, size, size))
    return images.clip(0, 255).astype(np.uint8), classes


def draw_shapes_and_places(rng, n_each):
    """Draw 3 large shapes with a small square at 3 places; the class is the shape."""
    blocks = np.ones((4, 4))
    shapes = [np.kron(s, blocks) for s in (np.eye(4), 1 - np.eye(4), np.tri(4))]
    images, classes = [], []
    for name, shape in enumerate(shapes):
        for place in range(3):
            canvas = np.zeros((24, 24))
            canvas[:16, :16] = 200 * shape
            canvas[18:24, 8 * place : 8 * place + 6] = 200
            images.append(canvas + rng.normal(0, 8, (n_each, 24, 24)))
            classes += [name] * n_each
    images = np.concatenate(images).clip(0, 255).astype(np.uint8)
    return images, np.array(classes)


def draw_shapes_and_colors(rng, n_each):
    """Draw 3 shapes in 4 strong colors; the class is the color."""
    y, x = np.mgrid[:24, :24] - 11.5
    shapes = [np.hypot(y, x) < 8, np.maximum(abs(y), abs(x)) < 7, abs(y) + abs(x) < 9]
    colors = [(220, 40, 40), (40, 220, 40), (40, 40, 220), (220, 220, 40)]
    images, classes = [], []
    for shape in shapes:
        for name, color in enumerate(colors):
            canvas = np.where(shape[..., None], color, 0)
            images.append(canvas + rng.normal(0, 10, (n_each, 24, 24, 3)))
            classes += [name] * n_each
    images = np.concatenate(images).clip(0, 255).astype(np.uint8)
    return images, np.array(classes)


def one_large(n_classes):
    """Return weights of classes of which the first has half of the images."""
    return np.r_[0.5, np.full(n_classes - 1, 0.5 / (n_classes - 1))]


ROWS = {
    "separated blobs, 2-D": lambda rng: draw_blobs(rng, 600, 5, 2, 0.07),
    "separated blobs, 16-D": lambda rng: draw_blobs(rng, 600, 8, 16, 0.4),
    "overlapping blobs, 2-D": lambda rng: draw_blobs(rng, 800, 4, 2, 0.35),
    "overlapping blobs, 16-D": lambda rng: draw_blobs(rng, 800, 6, 16, 1.0),
    "overlapping blobs, 64-D": lambda rng: draw_blobs(rng, 500, 7, 64, 1.8),
    "unit length, 64-D": lambda rng: draw_blobs(rng, 500, 7, 64, 1.1, unit=True),
    "unit length, 128-D": lambda rng: draw_blobs(rng, 1000, 10, 128, 2.0, unit=True),
    "unbalanced blobs": lambda rng: draw_blobs(rng, 800, 6, 16, 0.5, one_large(6)),
    "rings": lambda rng: draw_rings(rng, 600, 3),
    "moons": lambda rng: draw_two_moons(rng, 500),
}
IMAGES = {
    "shape x place": lambda rng: draw_shapes_and_places(rng, 60),
    "shape x color": lambda rng: draw_shapes_and_colors(rng, 60),
    "templates": lambda rng: draw_templates(rng, 600, 6, 16, 30),
    "noisy templates": lambda rng: draw_templates(rng, 800, 8, 16, 120),
    "unbalanced templates": lambda rng: draw_templates(
        rng, 800, 6, 20, 40, one_large(6)
    ),
}
GENERATED = ROWS | IMAGES


def load_set(name, seed):
    """Return a generated set, another one for each seed, or a set of data_sets.py."""
    if name in GENERATED:
        return GENERATED[name](np.random.default_rng([seed, zlib.crc32(name.encode())]))
    name, _, limit = name.partition(":")
    data = load_data_set(name, int(limit) if limit else None)
    return data.images, data.classes


def calibration_error(probabilities, labels, classes):
    """Return the expected calibration error, and the two means that it compares."""
    confidence = probabilities.max(axis=1)
    is_majority = np.zeros(len(labels), bool)
    for cluster in np.unique(labels):
        rows = np.flatnonzero(labels == cluster)
        names, counts = np.unique(classes[rows], return_counts=True)
        is_majority[rows] = classes[rows] == names[counts.argmax()]
    bins = np.minimum((confidence * N_BINS).astype(int), N_BINS - 1)
    errors = [
        (bins == i).mean() * abs((confidence - is_majority)[bins == i].mean())
        for i in np.unique(bins)
    ]
    return float(sum(errors)), float(confidence.mean()), float(is_majority.mean())


def measure(name, seed, auto):
    """Fit a set once, and return all figures by name."""
    X, classes = load_set(name, seed)
    n_classes = len(np.unique(classes))
    pixels = X.reshape(len(X), -1).astype(np.float32)
    kmeans = KMeans(n_classes, n_init=10, random_state=seed).fit(pixels)
    start = time.perf_counter()
    n_clusters = "auto" if auto else n_classes
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = DeepClusterEstimator(n_clusters, random_state=seed).fit(X)
    error, confidence, majority = calibration_error(
        model.probabilities_, model.labels_, classes
    )
    figures = {
        "set": name,
        "seed": seed,
        "classes": n_classes,
        "kmeans": normalized_mutual_info_score(classes, kmeans.labels_),
        "nmi": normalized_mutual_info_score(classes, model.labels_),
        "from": model.recipe_["clusters_from"],
        "error": error,
        "confidence": confidence,
        "majority": majority,
        "seconds": time.perf_counter() - start,
    }
    if auto:
        scores = model.cut_scores_
        figures["best score"] = int(scores["n_clusters"][scores["score"].argmax()])
        figures["largest gap"] = int(scores["n_clusters"][scores["gap"].argmax()])
        figures["found"] = model.n_clusters_
    return figures


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sets", nargs="+", default=list(GENERATED), metavar="SET")
    parser.add_argument("--seeds", type=int, default=1, help="sets and fits of each")
    parser.add_argument("--auto", action="store_true", help="find n_clusters")
    parser.add_argument("--json", default="clusters.json", help="file to write")
    arguments = parser.parse_args()
    columns = ["k-means", "ours", "from", "ECE", "conf.", "major.", "s"]
    if arguments.auto:
        columns += ["classes", "score", "gap", "found"]
    print(f"{'':26s}" + "".join(f"{column:>10s}" for column in columns), flush=True)
    results = []
    for name in arguments.sets:
        for seed in range(arguments.seeds):
            row = measure(name, seed, arguments.auto)
            results.append(row)
            cells = [f"{row['kmeans']:.3f}", f"{row['nmi']:.3f}", row["from"]]
            cells += [f"{row[key]:.3f}" for key in ("error", "confidence", "majority")]
            cells.append(f"{row['seconds']:.0f}")
            if arguments.auto:
                keys = ("classes", "best score", "largest gap", "found")
                cells += [str(row[key]) for key in keys]
            print(f"{name:26s}" + "".join(f"{cell:>10s}" for cell in cells), flush=True)
    Path(arguments.json).write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
