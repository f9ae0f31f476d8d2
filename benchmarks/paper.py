"""Repeat the ablations of the DeepCluster paper, at a size that two CPU cores allow.

    python benchmarks/paper.py --table k --limit 5000
    python benchmarks/paper.py --table sobel --data-set fashion-mnist color

Tables:

k           number of clusters, the same in training and in the result (Fig. 2c)
time        agreement with the classes and with the last round, by round (Fig. 2a, 2b)
sobel       Sobel gradients in place of pixels
balance     images of which 90 % belong to one class, with and without the sampler
uncurated   balanced images, a long tail of classes, and a long tail with strays
layers      linear probe of each layer: trained, untrained and supervised (Table 1)
clusterers  k-means and power iteration clustering
v2          the first and the second version of DeepCluster, for the same wall time

Each table prints mean and standard deviation over seeds. All figures are written as
JSON after every row.

"paper" is the recipe of the paper: first clusters from the untrained network, k-means
on the features alone, no batch norm before the head, and 10 clusters for each class.

Probes are a logistic regression and 10 nearest neighbors on the embedding, scored on
held-out images. In "balance" and "uncurated" the probes learn from 500 images of each
class. These images are the same in all rows, so that only the features differ.
"""

import argparse
import json
import platform
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import faiss
import joblib
import numpy as np
import sklearn
import torch
from data_sets import draw_shapes, load_data_set
from PIL import Image
from quality import measure_probes
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import normalized_mutual_info_score
from sklearn.model_selection import train_test_split

from skdeepcluster import DeepClusterEstimator, evaluation, presets

# Numbers of clusters of table "k". Each cluster has MIN_CLUSTER_SIZE images on average.
N_CLUSTERS = (5, 10, 20, 50, 100, 300, 1000)
MIN_CLUSTER_SIZE = 20
PAPER_CLUSTERS_PER_CLASS = 10
# Parameters of the paper's recipe that differ from the defaults.
PAPER = {"init": "features", "n_neighbors": None, "head_norm": None}
# Share of the images that belong to one class in table "balance".
MAJORITY_SHARE = 0.9
# Images of each class that probes learn from in tables "balance" and "uncurated".
N_PROBE_IMAGES = 500
# Share of the images that belong to no class in table "uncurated".
STRAY_SHARE = 0.2
# Columns that are printed as whole numbers, without a deviation.
WHOLE_NUMBERS = ("seconds", "images", "clusters", "rounds")


class Job(NamedTuple):
    """A fit of a table. `run(seed=...)` returns figures by row name and column."""

    name: str
    run: Callable


def load_with_test_set(name):
    """Load a data set. If it has no test set, hold out a fifth of the images."""
    data = load_data_set(name)
    if data.test_images is not None:
        return data
    # Stratified, so that rare classes are in both sets.
    images, test_images, classes, test_classes = train_test_split(
        data.images, data.classes, test_size=0.2, stratify=data.classes, random_state=0
    )
    return data._replace(
        images=images,
        classes=classes,
        test_images=test_images,
        test_classes=test_classes,
    )


def limit_images(data, limit):
    """Keep at most `limit` training images. They are in random order."""
    return data._replace(images=data.images[:limit], classes=data.classes[:limit])


def count_classes(data):
    """Return the number of classes of the test set, which has each class."""
    return len(np.unique(data.test_classes))


def limit_clusters(data, clusters_per_class):
    """Return the number of clusters, limited so that each cluster has enough images."""
    n_classes = count_classes(data)
    # Small sets get fewer clusters, so that each has a minimum number of images.
    n_clusters = min(
        clusters_per_class * n_classes, len(data.images) // MIN_CLUSTER_SIZE
    )
    return max(n_classes, n_clusters)


def paper_recipe(data, clusters_per_class=PAPER_CLUSTERS_PER_CLASS):
    """Return the parameters of the paper's recipe for a data set."""
    n_clusters = limit_clusters(data, clusters_per_class)
    return PAPER | {"n_clusters": n_clusters, "n_pseudo_labels": n_clusters}


def default_recipe(data):
    """Return the parameters of the defaults."""
    return {}


def make_model(data, seed, params):
    """Return an estimator with one cluster for each class, unless `params` differs."""
    defaults = {"n_clusters": count_classes(data), "random_state": seed}
    return DeepClusterEstimator(**defaults | params)


def cluster_agreement(model, data):
    """Return the NMI of the clusters of the training images with their classes."""
    return normalized_mutual_info_score(data.classes, model.labels_)


def measure_fit(name, data, seed, params):
    """Fit, and return the figures of one row."""
    # `fit_transform` reuses the features of the last round.
    start = time.perf_counter()
    model = make_model(data, seed, params)
    embedding = model.fit_transform(data.images, data.classes)
    seconds = time.perf_counter() - start
    linear, nearest = measure_probes(
        embedding, data.classes, model.transform(data.test_images), data.test_classes
    )
    figures = {
        "NMI": cluster_agreement(model, data),
        "clusters": len(np.unique(model.labels_)),
        "linear": linear,
        "10-NN": nearest,
        "rounds": model.n_iter_,
        "seconds": seconds,
    }
    return {name: figures}


def draw_images(data, counts, rng):
    """Draw a number of training images of each class, in random order."""
    rows = [
        rng.choice(np.flatnonzero(data.classes == number), count, replace=False)
        for number, count in enumerate(counts)
    ]
    rows = rng.permutation(np.concatenate(rows))
    return data._replace(images=data.images[rows], classes=data.classes[rows])


def measure_features(model, data, seed):
    """Score probes that learn from equally many labeled images of each class."""
    # As many images as the rarest class has, if that is fewer.
    n = min(N_PROBE_IMAGES, np.bincount(data.classes).min())
    labeled = draw_images(
        data, [n] * count_classes(data), rng=np.random.default_rng(seed)
    )
    linear, nearest = measure_probes(
        model.transform(labeled.images),
        labeled.classes,
        model.transform(data.test_images),
        data.test_classes,
    )
    return {"linear": linear, "10-NN": nearest}


def largest_share(model):
    """Return the share of the images in the largest pseudo-label of the last round."""
    return model.history_[-1]["largest_cluster"] / len(model.labels_)


# Each table below takes a data set, the limit of training images and parameters of all
# fits. It returns jobs.


def table_k(data, limit, params):
    """Vary the number of clusters (Fig. 2c)."""
    data = limit_images(data, limit)
    jobs = []
    for n_clusters in N_CLUSTERS:
        if n_clusters <= len(data.images) // MIN_CLUSTER_SIZE:
            # One k for training and result, as in the paper.
            changed = {
                "init": "features",
                "n_neighbors": None,
                "n_clusters": n_clusters,
                "n_pseudo_labels": n_clusters,
            }
            name = f"k={n_clusters}"
            run = partial(measure_fit, name, data, params=changed | params)
            jobs.append(Job(name, run))
    return jobs


def measure_rounds(name, data, seed, params):
    """Fit, and return the figures of one row for each round."""
    model = make_model(data, seed, params).fit(data.images, data.classes)
    return {
        f"{name}, round {record['round']}": {
            "NMI": record["nmi_y"],
            "NMI to last": record["nmi_previous"],
            "largest": record["largest_cluster"] / len(data.images),
            "loss": record["loss"],
        }
        for record in model.history_
    }


def table_time(data, limit, params):
    """Follow the pseudo-labels through the rounds (Fig. 2a, 2b)."""
    data = limit_images(data, limit)
    # Twice the default number of rounds, to see where the curves level off.
    params = {"max_iter": 12} | params
    recipes = {"defaults": {}, "paper": paper_recipe(data)}
    return [
        Job(name, partial(measure_rounds, name, data, params=recipe | params))
        for name, recipe in recipes.items()
    ]


def table_sobel(data, limit, params):
    """Train on pixels or on Sobel gradients."""
    data = limit_images(data, limit)
    jobs = []
    for recipe_name, recipe in {"defaults": {}, "paper": paper_recipe(data)}.items():
        for sobel in (False, True):
            name = f"{recipe_name}, sobel={sobel}"
            changed = {"sobel": sobel} | recipe | params
            jobs.append(Job(name, partial(measure_fit, name, data, params=changed)))
    return jobs


def split_by_share(n, shares):
    """Return the number of images of each class, at least one."""
    # The small term keeps products such as 0.1 * 30 from being rounded down.
    return np.maximum(1, n * shares + 1e-6).astype(int)


def count_available(data, limit, shares):
    """Return how many images there are if any class may have the largest share."""
    n_available = np.bincount(data.classes).min() / shares.max()
    return min(limit or len(data.images), int(n_available))


def measure_unbalanced(name, data, limit, seed, make_recipe, params):
    """Fit images that mostly belong to one class, a different one for each seed."""
    n_classes = count_classes(data)
    shares = np.full(n_classes, (1 - MAJORITY_SHARE) / (n_classes - 1))
    # The class differs between seeds, so that no single class decides the table.
    shares[seed % n_classes] = MAJORITY_SHARE
    counts = split_by_share(count_available(data, limit, shares), shares)
    train = draw_images(data, counts, rng=np.random.default_rng(seed))
    model = make_model(train, seed, make_recipe(train) | params)
    model.fit(train.images, train.classes)
    figures = {
        "images": len(train.images),
        "largest": largest_share(model),
        "NMI": cluster_agreement(model, train),
    }
    return {name: figures | measure_features(model, data, seed)}


def table_balance(data, limit, params):
    """Train on unbalanced images with and without the uniform sampler."""
    recipes = {
        "defaults": default_recipe,
        "paper": paper_recipe,
        # One k for each class, so that the largest class may become a giant cluster.
        "paper, k = classes": partial(paper_recipe, clusters_per_class=1),
    }
    jobs = []
    for recipe_name, make_recipe in recipes.items():
        for balance in ("uniform", "loss", None):
            name = f"{recipe_name}, {balance}"
            run = partial(
                measure_unbalanced,
                name,
                data,
                limit,
                make_recipe=make_recipe,
                params={"balance": balance} | params,
            )
            jobs.append(Job(name, run))
    return jobs


def make_strays(n, images, rng):
    """Make n images that belong to no class: half of them drawings, half noise."""
    height, width = images.shape[1:3]
    mode = "L" if images.ndim == 3 else "RGB"
    shapes, _ = draw_shapes(n // 2)
    drawings = [
        np.asarray(Image.fromarray(shape).convert(mode).resize((width, height)))
        for shape in shapes
    ]
    noise = rng.integers(0, 256, size=(n - n // 2, *images.shape[1:]))
    strays = np.concatenate([np.stack(drawings), noise]) * (images.max() / 255)
    return strays.astype(images.dtype)


def measure_uncurated(name, data, limit, seed, has_long_tail, has_strays, params):
    """Fit images with a long tail of classes, or with strays that have no class."""
    rng = np.random.default_rng(seed)
    n_classes = count_classes(data)
    # The k-th class has 1/k of the images of the first.
    zipf_shares = 1 / np.arange(1, n_classes + 1)
    zipf_shares /= zipf_shares.sum()
    even_shares = np.full(n_classes, 1 / n_classes)
    # The number of images is the same for all rows.
    n = count_available(data, limit, zipf_shares)
    n_strays = round(STRAY_SHARE * n) if has_strays else 0
    shares = rng.permutation(zipf_shares) if has_long_tail else even_shares
    train = draw_images(data, split_by_share(n - n_strays, shares), rng=rng)
    if has_strays:
        strays = make_strays(n_strays, train.images, rng)
        images = np.concatenate([train.images, strays])
        classes = np.concatenate([train.classes, np.full(n_strays, n_classes)])
        # Strays are one more class, which no probe learns.
        order = rng.permutation(len(images))
        train = train._replace(images=images[order], classes=classes[order])
    model = make_model(train, seed, params).fit(train.images, train.classes)
    figures = {"images": len(train.images), "largest": largest_share(model)}
    return {name: figures | measure_features(model, data, seed)}


def table_uncurated(data, limit, params):
    """Train on images that nobody selected or balanced."""
    conditions = {
        "balanced": {"has_long_tail": False, "has_strays": False},
        "long tail": {"has_long_tail": True, "has_strays": False},
        "long tail and strays": {"has_long_tail": True, "has_strays": True},
    }
    recipes = {"defaults": {}, "paper": paper_recipe(limit_images(data, limit))}
    jobs = []
    for recipe_name, recipe in recipes.items():
        for condition_name, condition in conditions.items():
            name = f"{recipe_name}, {condition_name}"
            run = partial(
                measure_uncurated,
                name,
                data,
                limit,
                params=recipe | params,
                **condition,
            )
            jobs.append(Job(name, run))
    return jobs


def measure_layers(data, n_epochs, seed, params):
    """Probe each layer of a trained, an untrained and a supervised network."""
    arrays = {
        "X_train": data.images,
        "y_train": data.classes,
        "X_test": data.test_images,
        "y_test": data.test_classes,
    }
    model = make_model(data, seed, params).fit(data.images, data.classes)
    untrained = evaluation.untrained(model, random_state=seed)
    # Fine-tuning all layers of an untrained network is supervised training.
    _, supervised = evaluation.fine_tune(
        untrained, **arrays, n_epochs=n_epochs, random_state=seed
    )
    models = {
        "DeepCluster": model,
        "untrained": untrained,
        "supervised": supervised.network,
    }
    return {
        name: {
            record["layer"]: record["accuracy"]
            for record in evaluation.linear_probe(probed, **arrays)
        }
        for name, probed in models.items()
    }


def table_layers(data, limit, params, n_epochs=20):
    """Compare the layers of three networks (Table 1)."""
    data = limit_images(data, limit)
    return [Job("layers", partial(measure_layers, data, n_epochs, params=params))]


def table_clusterers(data, limit, params):
    """Cluster by k-means or by power iteration clustering."""
    data = limit_images(data, limit)
    recipes = {"defaults": {}, "paper": paper_recipe(data)}
    clusterers = {"k-means": {}, "pic": {"clusterer": "pic"}}
    jobs = []
    for recipe_name, recipe in recipes.items():
        for clusterer_name, clusterer in clusterers.items():
            name = f"{recipe_name}, {clusterer_name}"
            changed = clusterer | recipe | params
            jobs.append(Job(name, partial(measure_fit, name, data, params=changed)))
    return jobs


def version_recipes(data):
    """Return both versions of DeepCluster, scaled down to small images and sets."""
    n_pseudo_labels = limit_clusters(data, clusters_per_class=5)
    # Presets are recipes for ImageNet. These parameters depend on the data.
    small = {
        "backbone": "auto",
        "image_size": "auto",
        "augment": "auto",
        "batch_size": 64,
        "epochs_per_iter": "auto",
        "n_clusters": count_classes(data),
    }
    first_version = presets.deepcluster_alexnet() | small
    second_version = presets.deepcluster_v2() | small
    return {
        "DeepCluster": first_version | {"n_pseudo_labels": n_pseudo_labels},
        "DeepCluster-v2": second_version | {"n_pseudo_labels": (n_pseudo_labels,) * 3},
        "defaults, centroids": {"head": "centroids"},
    }


def measure_versions(data, seed, params):
    """Fit each recipe for as many rounds as take the time of a default fit."""
    rows = measure_fit("defaults", data, seed, params)
    available_seconds = rows["defaults"]["seconds"]
    for name, recipe in version_recipes(data).items():
        # A fit of one round gives the time of a round, and the time around rounds.
        start = time.perf_counter()
        model = make_model(data, seed, recipe | {"max_iter": 1})
        model.fit_transform(data.images, data.classes)
        remaining_seconds = available_seconds - (time.perf_counter() - start)
        (record,) = model.history_
        round_seconds = sum(
            value for key, value in record.items() if key.startswith("seconds")
        )
        n_rounds = max(1, 1 + round(remaining_seconds / round_seconds))
        rows |= measure_fit(name, data, seed, recipe | {"max_iter": n_rounds})
    return rows


def table_v2(data, limit, params):
    """Compare the first and the second version of DeepCluster."""
    data = limit_images(data, limit)
    return [Job("v2", partial(measure_versions, data, params=params))]


TABLES = {
    "k": table_k,
    "time": table_time,
    "sobel": table_sobel,
    "balance": table_balance,
    "uncurated": table_uncurated,
    "layers": table_layers,
    "clusterers": table_clusterers,
    "v2": table_v2,
}


def print_row(name, figures, width, previous_columns):
    """Print mean and deviation over seeds; print the columns if they have changed."""
    columns = list(figures[0])
    if columns != previous_columns:
        print(f"{'':{width}s}" + "".join(f"{column:>16s}" for column in columns))
    cells = []
    for column in columns:
        values = [record[column] for record in figures if column in record]
        mean, deviation = np.mean(values), np.std(values)
        is_whole = column in WHOLE_NUMBERS
        cells.append(f"{mean:.0f}" if is_whole else f"{mean:.3f} ± {deviation:.3f}")
    print(f"{name:{width}s}" + "".join(f"{cell:>16s}" for cell in cells), flush=True)
    return columns


def run_quietly(job, seed):
    """Run a job without warnings: some of its fits and probes do not converge."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return job.run(seed=seed)


def measure_table(table, data_set, arguments, params):
    """Run the jobs of a table for all seeds, and yield each row when it is done."""
    jobs = TABLES[table](
        load_with_test_set(data_set), limit=arguments.limit, params=params
    )
    if arguments.rows:
        jobs = [job for job in jobs if job.name.startswith(tuple(arguments.rows))]
    columns = None
    for job in jobs:
        # Seeds are independent fits, so they can run in parallel.
        results = joblib.Parallel(n_jobs=arguments.jobs)(
            joblib.delayed(run_quietly)(job, seed) for seed in range(arguments.seeds)
        )
        for row in results[0]:
            figures = [result[row] for result in results if row in result]
            columns = print_row(row, figures, width=32, previous_columns=columns)
            yield row, figures


def parse_arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--table", choices=TABLES, required=True)
    parser.add_argument(
        "--data-set", nargs="+", default=["fashion-mnist"], help="see data_sets.py"
    )
    parser.add_argument("--seeds", type=int, default=3, help="number of fits a row")
    parser.add_argument("--limit", type=int, help="largest number of training images")
    parser.add_argument("--max-iter", type=int, help="rounds of each fit")
    parser.add_argument("--epochs-per-iter", type=float, help="epochs of each round")
    parser.add_argument("--rows", nargs="+", help="starts of the rows to measure")
    parser.add_argument("--jobs", type=int, default=1, help="seeds to run in parallel")
    parser.add_argument("--json", help="file to write")
    return parser.parse_args()


def main():
    arguments = parse_arguments()
    params = {
        "max_iter": arguments.max_iter,
        "epochs_per_iter": arguments.epochs_per_iter,
    }
    params = {name: value for name, value in params.items() if value is not None}
    machine = {
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "faiss": faiss.__version__,
        "scikit-learn": sklearn.__version__,
    }
    rows_by_data_set = {}
    content = {"arguments": vars(arguments), **machine, "rows": rows_by_data_set}
    path = Path(arguments.json or f"paper-{arguments.table}.json")
    for data_set in arguments.data_set:
        print(
            f"\n{arguments.table}: {data_set}, {arguments.limit or 'all'} images, "
            f"{arguments.seeds} seeds; {machine['machine']}, {machine['threads']} "
            f"threads, torch {machine['torch']}, faiss {machine['faiss']}, "
            f"scikit-learn {machine['scikit-learn']}\n",
            flush=True,
        )
        rows = rows_by_data_set[data_set] = {}
        for row, figures in measure_table(arguments.table, data_set, arguments, params):
            rows[row] = figures
            # A table can take hours, so each row is saved.
            path.write_text(json.dumps(content, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
