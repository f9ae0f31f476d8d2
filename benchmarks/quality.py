"""How good are the clusters and the embedding, with nothing but n_clusters set?

    python benchmarks/quality.py --data-set digits --seeds 3
    python benchmarks/quality.py --data-set fashion-mnist --limit 20000
    python benchmarks/quality.py --data-set shapes
    python benchmarks/quality.py --data-set color     (needs the extra "bench")
    python benchmarks/quality.py --data-set FOLDER     (one sub-folder for each class)

"shapes" are 1,500 drawings in color, of five kinds; "color" are patches of ten
photographs (color.py). Prints a table, mean and standard deviation over seeds, and
writes it as JSON. Clusters are those of the images that are fitted. The probes are
judged on other images, for Fashion-MNIST and "color" the test set; elsewhere every
image is fitted, without labels, and the probes are judged on a fifth of the images,
whose labels they have not seen.
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
from color import load_color
from PIL import Image, ImageDraw
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from sklearn.model_selection import train_test_split
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skdeepcluster import DeepClusterEstimator
from skdeepcluster.datasets import load_fashion_mnist
from skdeepcluster.metrics import clustering_accuracy

COLUMNS = ["NMI", "ARI", "ACC", "linear", "10-NN", "seconds", "MiB"]
SIDE = 64  # pixels that images of a folder are resized to


def draw_shapes(n):
    """Draw circles, squares, triangles, rings and crosses, 32x32, in any colors."""
    rng = np.random.default_rng(0)
    labels, images = rng.integers(5, size=n), []
    for kind in labels:
        back, fill = (
            tuple(map(int, rng.integers(*r, 3))) for r in [(0, 99), (130, 256)]
        )
        image = Image.new("RGB", (32, 32), back)
        draw, r = ImageDraw.Draw(image), int(rng.integers(6, 12))
        x, y = map(int, rng.integers(r, 32 - r, 2))
        box = (x - r, y - r, x + r, y + r)
        if kind == 0:
            draw.ellipse(box, fill=fill)
        elif kind == 1:
            draw.rectangle(box, fill=fill)
        elif kind == 2:
            draw.polygon([(x, y - r), (x - r, y + r), (x + r, y + r)], fill=fill)
        elif kind == 3:
            draw.ellipse(box, outline=fill, width=3)
        else:
            draw.line([(x - r, y), (x + r, y)], fill=fill, width=4)
            draw.line([(x, y - r), (x, y + r)], fill=fill, width=4)
        images.append(np.array(image, dtype=int))
    noisy = np.stack(images) + rng.integers(-15, 15, (n, 32, 32, 3))
    return noisy.clip(0, 255).astype(np.uint8), labels


def load(name, limit):
    """Return images and labels, then test images (None: a part of them) and labels."""
    if name in ("fashion-mnist", "color"):
        if name == "color":
            images, labels, *test = load_color()
        else:
            images, labels = load_fashion_mnist("train")
            test = load_fashion_mnist("test")
        rows = np.random.default_rng(0).permutation(len(images))[:limit]
        return images[rows], labels[rows], *test
    if name == "digits":
        digits = load_digits()
        images, labels = digits.images.astype(np.uint8), digits.target
    elif name == "shapes":
        images, labels = draw_shapes(1500)
    else:
        paths = sorted(p for p in Path(name).glob("*/*") if p.is_file())
        resized = (Image.open(p).convert("RGB").resize((SIDE, SIDE)) for p in paths)
        images = np.stack([np.asarray(image) for image in resized])
        labels = np.unique([p.parent.name for p in paths], return_inverse=True)[1]
    rows = np.random.default_rng(0).permutation(len(images))[:limit]
    return images[rows], labels[rows], None, None


def ours(train, test, n_clusters, seed, **params):
    model = DeepClusterEstimator(n_clusters=n_clusters, random_state=seed, **params)
    embedding = model.fit_transform(train)
    return model.labels_, embedding, model.transform(test)


def untrained(train, test, n_clusters, seed):
    """The same network with all steps of size (nearly) zero."""
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


def pixels(train, test, n_clusters, seed):
    train, test = (
        x.reshape(len(x), -1).astype(np.float32) / 255 for x in (train, test)
    )
    labels = KMeans(n_clusters, n_init=10, random_state=seed).fit_predict(train)
    return labels, train, test


def umap(train, test, n_clusters, seed):
    from umap import UMAP

    _, train, test = pixels(train, test, n_clusters, seed)
    model = UMAP(n_components=n_clusters, min_dist=0.0, random_state=seed).fit(train)
    embedding = model.embedding_
    labels = KMeans(n_clusters, n_init=10, random_state=seed).fit_predict(embedding)
    return labels, embedding, model.transform(test)


def clustpy(name, train, test, n_clusters, seed):
    """A method of ClustPy's with its defaults, on flattened images in 0 to 1."""
    from clustpy import deep
    from umap import UMAP

    params = {"n_clusters": n_clusters, "random_state": seed}
    if name == "N2D":  # with UMAP as its paper has it, in place of t-SNE
        params["manifold_class"] = UMAP
        params["manifold_params"] = {"n_components": n_clusters, "n_neighbors": 20}
        params["manifold_params"]["min_dist"] = 0.0
    largest = train.max()
    train, test = (
        x.reshape(len(x), -1).astype(np.float32) / largest for x in (train, test)
    )
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
        model = getattr(deep, name)(**params).fit(train)  # with its progress bars
    return model.labels_, model.transform(train), model.transform(test)


METHODS = {"ours": ours, "untrained net": untrained, "raw pixels": pixels}
PEERS = {
    "UMAP + k-means": umap,
    **{name: functools.partial(clustpy, name) for name in ("N2D", "DEC", "IDEC")},
}


def probe(embedding, classes, test_embedding, test_classes):
    """Return the accuracies of a logistic regression and of 10 nearest neighbors."""
    probes = [
        make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=300)),
        KNeighborsClassifier(10),
    ]
    return [
        probe.fit(embedding, classes).score(test_embedding, test_classes)
        for probe in probes
    ]


def run(method, data_set, limit, seed, queue):
    """One call of a method in a process of its own, whose memory peak is its own."""
    images, classes, test, test_classes = load(data_set, limit)
    n_clusters = len(np.unique(classes))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    labels, embedding, test_embedding = method(
        images, images[:1] if test is None else test, n_clusters, seed
    )
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    seen_classes = classes
    if test is None:
        embedding, test_embedding, seen_classes, test_classes = train_test_split(
            embedding, classes, test_size=0.2, stratify=classes, random_state=seed
        )
    queue.put(
        [
            normalized_mutual_info_score(classes, labels),
            adjusted_rand_score(classes, labels),
            clustering_accuracy(classes, labels),
            *probe(embedding, seen_classes, test_embedding, test_classes),
            seconds,
            peak / 1024,
        ]
    )


def measure(methods, data_set, limit, seeds):
    """Print a table, a row for each method by name, and return all figures."""
    print(
        f"{data_set}, {limit or 'all'} images, {seeds} seeds; {platform.machine()}, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}\n"
    )
    width = max(map(len, methods)) + 1
    print(f"{'':{width}s}" + "".join(f"{column:>16s}" for column in COLUMNS))
    context = multiprocessing.get_context("spawn")
    results = {}
    for name, method in methods.items():
        rows = []
        for seed in range(seeds):
            queue = context.Queue()
            job = (method, data_set, limit, seed, queue)
            process = context.Process(target=run, args=job)
            process.start()
            while process.is_alive() and queue.empty():
                time.sleep(0.2)
            if queue.empty():
                raise SystemExit(f"{name} failed with seed {seed}: see above")
            rows.append(queue.get())
            process.join()
        results[name] = rows
        means, deviations = np.mean(rows, axis=0), np.std(rows, axis=0)
        cells = [f"{m:.3f} ± {d:.3f}" for m, d in zip(means, deviations, strict=True)]
        cells[5:] = [f"{m:.0f}" for m in means[5:]]
        line = "".join(f"{cell:>16s}" for cell in cells)
        print(f"{name:{width}s}{line}", flush=True)
    return results


def arguments_parser(description, json_file):
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-set", default="digits")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--limit", type=int, help="use this many training images")
    parser.add_argument("--methods", nargs="*", help="only these rows")
    parser.add_argument("--json", default=json_file, help="file to write")
    return parser


def report(methods, arguments):
    """Measure what the arguments ask for, and write it as JSON."""
    methods = {name: methods[name] for name in arguments.methods or methods}
    rows = measure(methods, arguments.data_set, arguments.limit, arguments.seeds)
    content = {"columns": COLUMNS, "arguments": vars(arguments), "rows": rows}
    Path(arguments.json).write_text(json.dumps(content, indent=1), encoding="utf-8")


def main():
    parser = arguments_parser(__doc__, "quality.json")
    parser.add_argument("--peers", action="store_true", help="needs the extra 'bench'")
    arguments = parser.parse_args()
    wanted = arguments.peers or arguments.methods
    report({**METHODS, **(PEERS if wanted else {})}, arguments)


if __name__ == "__main__":
    main()
