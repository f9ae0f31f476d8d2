"""The ablations of the DeepCluster paper, at a size that two CPU cores allow.

    python benchmarks/paper.py --table k --limit 5000
    python benchmarks/paper.py --table sobel --data-set fashion-mnist color

Tables:

k           the number of clusters, one k for training and result (Fig. 2c)
time        agreement with the classes and with the last round, by rounds (Fig. 2a, 2b)
sobel       Sobel gradients in place of pixels
balance     90 % of the images are of one class: what the sampler does about it
uncurated   balanced images against a long tail of classes and unrelated images
layers      linear probes layer by layer: ours, untrained and supervised (Table 1)
clusterers  k-means against power iteration clustering
v2          the first version of DeepCluster against the second, at the same wall time

Each prints mean and standard deviation over seeds, and writes all figures as JSON after
every row. "Paper" is the paper's recipe: first clusters from the untrained network,
k-means on the features alone, a bare head, and one k, 10 for each class. Probes are a
logistic regression and 10 nearest neighbors on the embedding, judged on held-out
images. In "balance" and "uncurated" they learn from 500 images of each class, the same
in all rows, so that only the features differ.
"""

import argparse
import json
import platform
import time
import warnings
from functools import partial
from pathlib import Path
from typing import NamedTuple

import faiss
import joblib
import numpy as np
import sklearn
import torch
from PIL import Image
from quality import draw_shapes, load, probe
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import normalized_mutual_info_score
from sklearn.model_selection import train_test_split

from skdeepcluster import DeepClusterEstimator, evaluation, presets

KS = (5, 10, 20, 50, 100, 300, 1000)
BARE = {"init": "features", "n_neighbors": None, "head_norm": None}
SHARE = 0.9  # of the images, that are of one class in "balance"
LABELED = 500  # images of each class that probes learn from in "balance", "uncurated"
FOREIGN = 0.2  # of the images, that are of no class in "uncurated"


class Data(NamedTuple):
    """Images and classes to learn from, and held-out ones."""

    images: np.ndarray
    classes: np.ndarray
    test: np.ndarray
    test_classes: np.ndarray

    @property
    def n_classes(self):
        return len(np.unique(self.test_classes))


def split(name):
    """Load all of a data set; a fifth is held out where it has no test set."""
    images, classes, test, test_classes = load(name, None)
    if test is None:
        images, test, classes, test_classes = train_test_split(
            images, classes, test_size=0.2, stratify=classes, random_state=0
        )
    return Data(images, classes, test, test_classes)


def first(data, limit):
    """Keep `limit` images to learn from; they come in random order."""
    return data._replace(images=data.images[:limit], classes=data.classes[:limit])


def paper(data, per_class=10):
    """Return the paper's recipe: k is 10 for each class, where 20 images have one."""
    k = max(data.n_classes, min(per_class * data.n_classes, len(data.images) // 20))
    return {**BARE, "n_clusters": k, "n_pseudo_labels": k}


def fitted(data, seed, **params):
    """Fit, and return the model with its embedding of the images."""
    model = DeepClusterEstimator(
        **{"n_clusters": data.n_classes, "random_state": seed, **params}
    )
    return model, model.fit_transform(data.images, data.classes)


def judged(name, data, seed, **params):
    """One row: a fit, its groups and its embedding."""
    start = time.perf_counter()
    model, embedding = fitted(data, seed, **params)
    seconds = time.perf_counter() - start
    test = model.transform(data.test)
    linear, nearest = probe(embedding, data.classes, test, data.test_classes)
    figures = {
        "NMI": normalized_mutual_info_score(data.classes, model.labels_),
        "groups": len(np.unique(model.labels_)),
        "linear": linear,
        "10-NN": nearest,
        "rounds": model.n_iter_,
        "seconds": seconds,
    }
    return {name: figures}


def drawn(data, counts, rng):
    """Draw so many images of each class, in random order."""
    rows = [
        rng.choice(np.flatnonzero(data.classes == kind), n, replace=False)
        for kind, n in enumerate(counts)
    ]
    rows = rng.permutation(np.concatenate(rows))
    return data._replace(images=data.images[rows], classes=data.classes[rows])


def features_judged(model, data, seed):
    """Judge features by probes that see as many labeled images of each class."""
    n = min(LABELED, np.bincount(data.classes).min())
    seen = drawn(data, [n] * data.n_classes, np.random.default_rng(seed))
    embedding, test = (model.transform(x) for x in (seen.images, data.test))
    linear, nearest = probe(embedding, seen.classes, test, data.test_classes)
    return {"linear": linear, "10-NN": nearest}


def largest(model):
    """Return the share of the largest pseudo-label of the last round."""
    return model.history_[-1]["largest_cluster"] / len(model.labels_)


# --- tables: each takes data, limit and parameters of all fits, and returns jobs, which
# take a seed and return figures by row and column ---


def table_k(data, limit, **params):
    data = first(data, limit)
    params = {"init": "features", "n_neighbors": None, **params}
    return [
        partial(judged, f"k={k}", data, n_clusters=k, n_pseudo_labels=k, **params)
        for k in KS
        if k <= len(data.images) // 20
    ]


def rounds(name, data, seed, **params):
    """One row for each round."""
    history = fitted(data, seed, **params)[0].history_
    return {
        f"{name}, round {record['round']}": {
            "NMI": record["nmi_y"],
            "NMI to last": record["nmi_previous"],
            "largest": record["largest_cluster"] / len(data.images),
            "loss": record["loss"],
        }
        for record in history
    }


def table_time(data, limit, **params):
    data, params = first(data, limit), {"max_iter": 12, **params}
    recipes = {"defaults": {}, "paper": paper(data)}
    return [partial(rounds, k, data, **v, **params) for k, v in recipes.items()]


def table_sobel(data, limit, **params):
    data = first(data, limit)
    recipes = {"defaults": {}, "paper": paper(data)}
    return [
        partial(judged, f"{name}, sobel={sobel}", data, sobel=sobel, **recipe, **params)
        for name, recipe in recipes.items()
        for sobel in (False, True)
    ]


def shares_of(n, shares):
    """Share n images out, at least one for each."""
    return np.maximum(1, n * shares + 1e-6).astype(int)


def largest_size(data, limit, shares):
    """Return how many images there can be with the largest share in any class."""
    available = np.bincount(data.classes).min() / shares.max()
    return min(limit or len(data.images), int(available))


def unbalanced(name, data, limit, seed, *, recipe, **params):
    n_classes = data.n_classes
    shares = np.full(n_classes, (1 - SHARE) / (n_classes - 1))
    shares[seed % n_classes] = SHARE
    counts = shares_of(largest_size(data, limit, shares), shares)
    seen = drawn(data, counts, np.random.default_rng(seed))
    model, _ = fitted(seen, seed, **recipe(seen), **params)
    figures = {
        "images": len(seen.images),
        "largest": largest(model),
        "NMI": normalized_mutual_info_score(seen.classes, model.labels_),
        **features_judged(model, data, seed),
    }
    return {name: figures}


def table_balance(data, limit, **params):
    recipes = {
        "defaults": lambda seen: {},
        "paper": paper,
        "paper, k = classes": partial(paper, per_class=1),
    }
    return [
        partial(
            *(unbalanced, f"{name}, {how}", data, limit),
            **{"recipe": recipe, "balance": how, **params},
        )
        for name, recipe in recipes.items()
        for how in ("uniform", "loss", None)
    ]


def foreign(n, like, rng):
    """Make n images that belong nowhere: drawings and plain noise, one half each."""
    height, width = like.shape[1:3]
    mode = "L" if like.ndim == 3 else "RGB"
    drawings = [
        np.asarray(Image.fromarray(x).convert(mode).resize((width, height)))
        for x in draw_shapes(n // 2)[0]
    ]
    noise = rng.integers(0, 256, (n - n // 2, *like.shape[1:]))
    images = np.concatenate([np.stack(drawings), noise]) * (like.max() / 255)
    return images.astype(like.dtype)


def curation(name, data, limit, seed, *, long_tail, stray, **params):
    rng, n_classes = np.random.default_rng(seed), data.n_classes
    zipf = 1 / np.arange(1, n_classes + 1)
    zipf /= zipf.sum()
    n = largest_size(data, limit, zipf)  # the same for all rows
    n_stray = round(FOREIGN * n) if stray else 0
    even = np.full(n_classes, 1 / n_classes)
    counts = shares_of(n - n_stray, rng.permutation(zipf) if long_tail else even)
    seen = drawn(data, counts, rng)
    if stray:
        images = np.concatenate([seen.images, foreign(n_stray, seen.images, rng)])
        classes = np.concatenate([seen.classes, np.full(n_stray, n_classes)])
        order = rng.permutation(len(images))
        seen = seen._replace(images=images[order], classes=classes[order])
    model, _ = fitted(seen, seed, **params)
    figures = {"images": len(seen.images), "largest": largest(model)}
    return {name: {**figures, **features_judged(model, data, seed)}}


def table_uncurated(data, limit, **params):
    rows = {
        "balanced": {"long_tail": False, "stray": False},
        "long tail": {"long_tail": True, "stray": False},
        "long tail and strays": {"long_tail": True, "stray": True},
    }
    recipes = {"defaults": {}, "paper": paper(first(data, limit))}
    return [
        partial(curation, f"{name}, {row}", data, limit, **how, **recipe, **params)
        for name, recipe in recipes.items()
        for row, how in rows.items()
    ]


def by_layers(data, n_epochs, seed, **params):
    model, _ = fitted(data, seed, **params)
    blank = evaluation.untrained(model, random_state=seed)
    _, module = evaluation.fine_tune(blank, *data, n_epochs=n_epochs, random_state=seed)
    nets = {"ours": model, "untrained": blank, "supervised": module.network}
    return {
        name: {
            row["layer"]: row["accuracy"] for row in evaluation.linear_probe(net, *data)
        }
        for name, net in nets.items()
    }


def table_layers(data, limit, *, n_epochs=20, **params):
    return [partial(by_layers, first(data, limit), n_epochs, **params)]


def table_clusterers(data, limit, **params):
    data = first(data, limit)
    recipes = {"defaults": {}, "paper": paper(data)}
    return [
        partial(judged, f"{name}, {clusterer}", data, **chosen, **recipe, **params)
        for name, recipe in recipes.items()
        for clusterer, chosen in {"k-means": {}, "pic": {"clusterer": "pic"}}.items()
    ]


def versions(data, seed, **params):
    """Recipes that take as long as the defaults do, by their number of rounds."""
    k = max(data.n_classes, min(5 * data.n_classes, len(data.images) // 20))
    small = {"backbone": "auto", "image_size": "auto", "augment": "auto"}
    small |= {"batch_size": 64, "epochs_per_iter": "auto", "n_clusters": data.n_classes}
    recipes = {
        "DeepCluster": presets.deepcluster_alexnet() | small | {"n_pseudo_labels": k},
        "DeepCluster-v2": presets.deepcluster_v2()
        | small
        | {"n_pseudo_labels": (k,) * 3},
        "defaults, centroids": {"head": "centroids"},
    }
    rows = judged("defaults", data, seed, **params)
    wanted = rows["defaults"]["seconds"]
    for name, recipe in recipes.items():
        start = time.perf_counter()
        model, _ = fitted(data, seed, **recipe | {"max_iter": 1})
        left = wanted - (time.perf_counter() - start)
        (record,) = model.history_
        round_seconds = sum(v for k, v in record.items() if k.startswith("seconds"))
        n_rounds = max(1, 1 + round(left / round_seconds))
        rows |= judged(name, data, seed, **recipe | {"max_iter": n_rounds})
    return rows


def table_v2(data, limit, **params):
    return [partial(versions, first(data, limit), **params)]


TABLES = {
    name.removeprefix("table_"): function
    for name, function in list(globals().items())
    if name.startswith("table_")
}


def print_row(name, rows, width, header):
    """Print mean and deviation over the seeds, under a header where columns change."""
    columns = list(rows[0])
    if columns != header:
        print(f"{'':{width}s}" + "".join(f"{column:>16s}" for column in columns))
    cells = []
    for column in columns:
        values = [row[column] for row in rows if column in row]
        whole = column in ("seconds", "images", "groups", "rounds")
        cells.append(
            f"{np.mean(values):.0f}"
            if whole
            else f"{np.mean(values):.3f} ± {np.std(values):.3f}"
        )
    print(f"{name:{width}s}" + "".join(f"{cell:>16s}" for cell in cells), flush=True)
    return columns


def quietly(job, seed):
    """Run a job: some fits are meant to fail, and some probes to end early."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return job(seed=seed)


def measure(name, data_set, arguments, params):
    """Run the jobs of a table for all seeds, and yield rows as they come."""
    jobs = TABLES[name](split(data_set), arguments.limit, **params)
    if arguments.rows:
        jobs = [job for job in jobs if job.args[0].startswith(tuple(arguments.rows))]
    header = None
    for job in jobs:
        results = joblib.Parallel(n_jobs=arguments.jobs)(
            joblib.delayed(quietly)(job, seed) for seed in range(arguments.seeds)
        )
        for row in results[0]:
            rows = [result[row] for result in results if row in result]
            header = print_row(row, rows, 32, header)
            yield row, rows


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--table", choices=TABLES, required=True)
    sets_help = '"fashion-mnist", "color", or as quality.py has them'
    parser.add_argument(
        "--data-set", nargs="+", default=["fashion-mnist"], help=sets_help
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--limit", type=int, help="use this many training images")
    parser.add_argument("--max-iter", type=int, help="rounds of each fit")
    parser.add_argument("--epochs-per-iter", type=int, help="passes in a round")
    parser.add_argument("--rows", nargs="+", help="only those that begin like this")
    parser.add_argument("--jobs", type=int, default=1, help="seeds side by side")
    parser.add_argument("--json", help="file to write")
    arguments = parser.parse_args()
    params = {
        name: vars(arguments)[name]
        for name in ("max_iter", "epochs_per_iter")
        if vars(arguments)[name]
    }
    machine = {
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "faiss": faiss.__version__,
        "scikit-learn": sklearn.__version__,
    }
    content = {"arguments": vars(arguments), **machine, "rows": {}}
    path = Path(arguments.json or f"paper-{arguments.table}.json")
    for data_set in arguments.data_set:
        print(
            f"\n{arguments.table}: {data_set}, {arguments.limit or 'all'} images, "
            f"{arguments.seeds} seeds; {machine['machine']}, {machine['threads']} "
            f"threads, torch {machine['torch']}, faiss {machine['faiss']}, "
            f"scikit-learn {machine['scikit-learn']}\n",
            flush=True,
        )
        done = content["rows"][data_set] = {}
        for row, rows in measure(arguments.table, data_set, arguments, params):
            done[row] = rows
            path.write_text(json.dumps(content, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
