"""How good features and clusters are, as the paper judges them: with labels."""

import time
import warnings
from functools import partial
from numbers import Integral, Real

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler, normalize
from sklearn.utils._param_validation import Interval, validate_params
from sklearn.utils.validation import check_is_fitted
from torch import nn

from ._estimator import DeepClusterEstimator
from ._images import LARGEST
from ._judged import Judged, Labelled, warn_of
from ._layers import (
    EMBEDDING,
    Layer,
    average_pooled,
    default_layers,
    find_layers,
    region_maxima,
    width,
)
from ._random import Streams
from ._tuning import fresh, tune
from ._validation import NO_GROUP
from ._whitening import fit_projection
from .metrics import clustering_accuracy, purity

__all__ = [
    "cluster_report",
    "cluster_table",
    "fine_tune",
    "knn_accuracy",
    "linear_probe",
    "low_shot",
    "retrieval_map",
    "stability",
    "untrained",
]

STRENGTH = 0.1  # inverse penalty of logistic regressions on standardised features
MAX_STEPS = 100  # of L-BFGS: accuracy has settled long before
PASS_BYTES = 2**30  # features of several layers that one pass over the images keeps
POOLED_VALUES = 9000  # values of a layer's maps, as in the paper
N_SCALES = 3  # of the regions that R-MAC pools over, as in the paper
RANKED_VALUES = 2**24  # similarities, of some queries to all images, at once

MODEL = [DeepClusterEstimator, nn.Module]
COUNT = Interval(Integral, 1, None, closed="left")


@validate_params(
    {
        "model": MODEL,
        "layers": [list, tuple, None],
        "n_values": [COUNT],
        "verbose": ["verbose"],
    },
    prefer_skip_nested_validation=True,
)
def linear_probe(
    model,
    X_train,
    y_train,
    X_test,
    y_test,
    *,
    layers=None,
    n_values=POOLED_VALUES,
    memory=None,
    verbose=0,
):
    """Tell classes by a logistic regression on each layer of a frozen network.

    Maps are average-pooled to at most `n_values` numbers and standardised.

    Parameters
    ----------
    model : DeepClusterEstimator or torch.nn.Module
        Fitted; or any network, which gets float32 in the units of `X_train`.
    X_train : array-like, tensor, folder, paths, pictures or dataset
        Images to learn the classes from, in any form that `model.fit` takes. A module
        takes arrays and tensors: (n, C, H, W), (n, H, W, C), (n, H, W) or rows.
    y_train : array-like of shape (n_train,)
        Classes of these images: integers or strings.
    X_test : array-like, tensor, folder, paths, pictures or dataset
        Images to judge by.
    y_test : array-like of shape (n_test,)
        Classes of these.
    layers : list of str, default=None
        Names. "conv1", "conv2" and so on are the convolutions in the order they are
        run, each after the norm and the rectifier that follow it; in networks without
        convolutions "layer1" and so on are the hidden activations. "embedding" is the
        network's output. Other names are paths of submodules, as in `named_modules`,
        whose last output counts. None is all but the submodules.
    n_values : int, default=9000
        Most numbers that are kept of a layer's maps, but at least one a channel. An
        output (n, d) is kept as it is.
    memory : None, str or object with the joblib.Memory interface, default=None
        Folder where features are kept, to be found again for the same weights and
        images. None for nowhere.
    verbose : int, default=0
        With 1, one line is printed for each layer.

    Returns
    -------
    table : list of dict
        A row for each layer: `layer`, `n_values`, `accuracy` on the test images.
        `pandas.DataFrame(table)` is a table.

    Raises
    ------
    ValueError
        If a layer is unknown, `X` and `y` differ in length, or either is not usable.

    See Also
    --------
    fine_tune : The network learns as well.
    low_shot : With few labels.

    Notes
    -----
    The section "Linear classification on activations" of the paper. There
    classifiers are trained by SGD on random crops; here by L-BFGS on the images
    themselves.

    Where a rectifier is no submodule but a function, or several convolutions meet in
    a sum before it, negative values of a convolution's own normalised maps are
    removed; of a sum in place, as in torchvision's ResNets, they are those of the sum.

    Images that cannot be read, with ``on_error="skip"``, are left out, with a warning.

    References
    ----------
    M. Caron, P. Bojanowski, A. Joulin and M. Douze, "Deep Clustering for Unsupervised
    Learning of Visual Features", European Conference on Computer Vision, 2018.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from skdeepcluster import DeepClusterEstimator
    >>> from skdeepcluster.evaluation import linear_probe
    >>> images, y = load_digits().images[:400], load_digits().target
    >>> model = DeepClusterEstimator(10, max_iter=1, epochs_per_iter=3, random_state=0)
    >>> data = images[:300], y[:300], images[300:], y[300:400]
    >>> table = linear_probe(model.fit(images), *data)
    >>> [row["layer"] for row in table]
    ['conv1', 'conv2', 'conv3', 'conv4', 'embedding']
    """
    judged = Judged.of(model)
    train, test = judged.split(X_train, y_train, X_test, y_test)
    pool = partial(average_pooled, n_values=n_values)
    table = []
    for group in _passes(judged.layers(train, layers), pool, train, test):
        known, y_known = judged.features(train, group, pool, memory)
        new, y_new = judged.features(test, group, pool, memory)
        stops = np.cumsum([width(layer, pool) for layer in group])
        for layer, stop in zip(group, stops, strict=True):
            began = time.perf_counter()
            columns = slice(stop - width(layer, pool), stop)
            scaler = StandardScaler().fit(known[:, columns])
            classifier = _logistic(scaler.transform(known[:, columns]), y_known)
            accuracy = _accuracy(classifier, scaler.transform(new[:, columns]), y_new)
            n_kept = width(layer, pool)
            row = {"layer": layer.name, "n_values": n_kept, "accuracy": accuracy}
            table.append(row)
            if verbose:
                seconds = time.perf_counter() - began
                print(
                    f"{layer.name:10s}  {n_kept:5d} values  "
                    f"accuracy {accuracy:.3f}  {seconds:.1f} s"
                )
    warn_of(train, test)
    return table


def _passes(
    layers: list[Layer], pool, train: Labelled, test: Labelled
) -> list[list[Layer]]:
    """Split layers into groups whose features fit into memory side by side."""
    n = len(train.y) + len(test.y)
    groups, size = [[]], 0
    for layer in layers:
        more = 4 * n * width(layer, pool)
        if groups[-1] and size + more > PASS_BYTES:
            groups.append([])
            size = 0
        groups[-1].append(layer)
        size += more
    return groups


def _logistic(points: np.ndarray, y: np.ndarray) -> LogisticRegression:
    classifier = LogisticRegression(C=STRENGTH, max_iter=MAX_STEPS)
    with warnings.catch_warnings():  # nearly converged is good enough
        warnings.simplefilter("ignore", ConvergenceWarning)
        # One label a class is a few labels all the same.
        warnings.filterwarnings("ignore", "The number of unique classes")
        return classifier.fit(points, y)


def _accuracy(classifier, points: np.ndarray, y: np.ndarray) -> float:
    return float(np.mean(classifier.predict(points) == y))


@validate_params(
    {"model": MODEL, "n_neighbors": [COUNT]}, prefer_skip_nested_validation=True
)
def knn_accuracy(
    model, X_train, y_train, X_test, y_test, *, n_neighbors=10, memory=None
):
    """Tell classes by the nearest neighbours in the embedding.

    Parameters
    ----------
    model : DeepClusterEstimator or torch.nn.Module
        As in `linear_probe`.
    X_train : array-like, tensor, folder, paths, pictures or dataset
        Images whose classes are known.
    y_train : array-like of shape (n_train,)
        Classes of these.
    X_test : array-like, tensor, folder, paths, pictures or dataset
        Images to judge by.
    y_test : array-like of shape (n_test,)
        Classes of these.
    n_neighbors : int, default=10
        Number of training images, the nearest by Euclidean distance, that vote.
    memory : None, str or object with the joblib.Memory interface, default=None
        As in `linear_probe`.

    Returns
    -------
    table : list of dict
        One row: `n_neighbors`, `accuracy` on the test images.

    Raises
    ------
    ValueError
        If there are fewer training images than neighbours, or as in `linear_probe`.

    See Also
    --------
    linear_probe : With weights for each feature.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from skdeepcluster import DeepClusterEstimator
    >>> from skdeepcluster.evaluation import knn_accuracy
    >>> images, y = load_digits().images[:400], load_digits().target
    >>> model = DeepClusterEstimator(10, max_iter=1, epochs_per_iter=3, random_state=0)
    >>> data = images[:300], y[:300], images[300:], y[300:400]
    >>> table = knn_accuracy(model.fit(images), *data)
    >>> table[0]["accuracy"] > 0.8
    True
    """
    judged = Judged.of(model)
    train, test = judged.split(X_train, y_train, X_test, y_test)
    n = len(train.y)
    if n_neighbors > n:
        raise ValueError(
            f"n_neighbors={n_neighbors} is more than the {n} images of X_train. Lower "
            "it."
        )
    known, y_known, new, y_new = _embeddings(judged, train, test, memory)
    # A few broken files may leave fewer.
    classifier = KNeighborsClassifier(min(n_neighbors, len(known)), algorithm="brute")
    accuracy = _accuracy(classifier.fit(known, y_known), new, y_new)
    warn_of(train, test)
    return [{"n_neighbors": int(n_neighbors), "accuracy": accuracy}]


def _embeddings(judged: Judged, train: Labelled, test: Labelled, memory) -> tuple:
    layers = judged.layers(train, [EMBEDDING])
    whole = partial(average_pooled, n_values=POOLED_VALUES)
    return (
        *judged.features(train, layers, whole, memory),
        *judged.features(test, layers, whole, memory),
    )


@validate_params(
    {
        "model": MODEL,
        "n_labels": ["array-like", COUNT],
        "n_repeats": [COUNT],
        "random_state": ["random_state"],
    },
    prefer_skip_nested_validation=True,
)
def low_shot(
    model,
    X_train,
    y_train,
    X_test,
    y_test,
    *,
    n_labels=(1, 2, 4, 8, 16, 32, 64, 96),
    n_repeats=5,
    random_state=None,
    memory=None,
):
    """Tell classes by a logistic regression that saw few labels of each.

    It is on the embedding, standardised by all training images, which takes no label.

    Parameters
    ----------
    model : DeepClusterEstimator or torch.nn.Module
        As in `linear_probe`.
    X_train : array-like, tensor, folder, paths, pictures or dataset
        Images that labelled ones are drawn from.
    y_train : array-like of shape (n_train,)
        Classes of these.
    X_test : array-like, tensor, folder, paths, pictures or dataset
        Images to judge by.
    y_test : array-like of shape (n_test,)
        Classes of these.
    n_labels : int or sequence of int, default=(1, 2, 4, 8, 16, 32, 64, 96)
        Numbers of labels a class. Those larger than the smallest class are left out.
    n_repeats : int, default=5
        Number of draws. In each of them fewer labels are some of the more.
    random_state : int, RandomState instance or None, default=None
        Seed of the draws. No global generator is read or advanced.
    memory : None, str or object with the joblib.Memory interface, default=None
        As in `linear_probe`.

    Returns
    -------
    table : list of dict
        A row for each number: `n_labels`, `accuracy` on the test images, which is the
        mean over the draws, and `accuracy_std`, their standard deviation.

    Raises
    ------
    ValueError
        If every number is larger than the smallest class, or as in `linear_probe`.

    See Also
    --------
    linear_probe : With all labels, on each layer.

    References
    ----------
    P. Goyal, D. Mahajan, A. Gupta and I. Misra, "Scaling and Benchmarking
    Self-Supervised Visual Representation Learning", International Conference on
    Computer Vision, 2019.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from skdeepcluster import DeepClusterEstimator
    >>> from skdeepcluster.evaluation import low_shot
    >>> images, y = load_digits().images[:400], load_digits().target
    >>> model = DeepClusterEstimator(10, max_iter=1, epochs_per_iter=3, random_state=0)
    >>> data = images[:300], y[:300], images[300:], y[300:400]
    >>> table = low_shot(model.fit(images), *data)
    >>> [row["n_labels"] for row in table]
    [1, 2, 4, 8, 16]
    """
    judged = Judged.of(model)
    wanted = np.atleast_1d(n_labels).tolist()
    if not all(isinstance(count, int) and count > 0 for count in wanted):
        raise ValueError(f"n_labels={n_labels} should be positive integers.")
    train, test = judged.split(X_train, y_train, X_test, y_test)
    _counts(wanted, train.y)
    streams = Streams.from_random_state(random_state)
    known, y_known, new, y_new = _embeddings(judged, train, test, memory)
    scaler = StandardScaler().fit(known)
    known, new = scaler.transform(known), scaler.transform(new)
    counts = _counts(wanted, y_known)
    accuracies = np.empty((len(counts), n_repeats))
    for repeat in range(n_repeats):
        order = streams.numpy("low shot", repeat).permutation(len(y_known))
        members = [order[y_known[order] == label] for label in np.unique(y_known)]
        for place, count in enumerate(counts):
            rows = np.concatenate([rows[:count] for rows in members])
            classifier = _logistic(known[rows], y_known[rows])
            accuracies[place, repeat] = _accuracy(classifier, new, y_new)
    warn_of(train, test)
    return [
        {
            "n_labels": count,
            "accuracy": float(found.mean()),
            "accuracy_std": float(found.std()),
        }
        for count, found in zip(counts, accuracies, strict=True)
    ]


def _counts(wanted: list[int], y: np.ndarray) -> list[int]:
    """Return those numbers of labels that every class has."""
    classes, sizes = np.unique(y, return_counts=True)
    counts = [count for count in wanted if count <= sizes.min()]
    if not counts:
        raise ValueError(
            f"n_labels={wanted} are all more than the {sizes.min()} images of class "
            f"{classes[sizes.argmin()]} in y_train. Pass a smaller one."
        )
    return counts


@validate_params(
    {"model": MODEL, "queries": ["array-like", None], "layer": [str, None]},
    prefer_skip_nested_validation=True,
)
def retrieval_map(model, X, y, *, queries=None, layer=None, memory=None):
    """Compute the mean average precision of searches for images of the same class.

    Images are ranked by cosine similarity of their R-MAC: the maxima of a layer's maps
    in regions of three scales, each scaled to unit length, whitened and scaled again,
    are summed.

    Parameters
    ----------
    model : DeepClusterEstimator or torch.nn.Module
        As in `linear_probe`.
    X : array-like, tensor, folder, paths, pictures or dataset
        Images that are searched.
    y : array-like of shape (n,)
        Classes of these.
    queries : array-like of int, default=None
        Rows of `X` that are searched for, each among the other images. None is all.
    layer : str, default=None
        Name, as in `linear_probe`. None is the last convolution, or the embedding of
        networks without; an output (n, d) counts as a single region.
    memory : None, str or object with the joblib.Memory interface, default=None
        As in `linear_probe`.

    Returns
    -------
    table : list of dict
        One row: `layer`, `n_queries` with at least one other image of their class,
        `mean_average_precision` over these.

    Raises
    ------
    ValueError
        If a query is no row of `X` or none has another image of its class, or as in
        `linear_probe`.

    See Also
    --------
    knn_accuracy : Only the nearest images count.

    Notes
    -----
    The section "Evaluation on instance retrieval" of the paper, whose images are
    whitened by what other images have taught. Here the whitening is that of `X`, to
    as many components as explain 99 % of the variance, at most 256.

    References
    ----------
    G. Tolias, R. Sicre and H. Jégou, "Particular Object Retrieval with Integral
    Max-Pooling of CNN Activations", International Conference on Learning
    Representations, 2016.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from skdeepcluster import DeepClusterEstimator
    >>> from skdeepcluster.evaluation import retrieval_map
    >>> images, y = load_digits().images[:300], load_digits().target[:300]
    >>> model = DeepClusterEstimator(10, max_iter=1, epochs_per_iter=3, random_state=0)
    >>> retrieval_map(model.fit(images), images, y)
    [{'layer': 'conv4', 'n_queries': 300, 'mean_average_precision': ...}]
    """
    judged = Judged.of(model)
    images = judged.labelled(X, y)
    n = images.given.n
    asked = np.arange(n) if queries is None else np.asarray(queries)
    if asked.ndim != 1 or asked.dtype.kind not in "iu" or not asked.size:
        raise ValueError("queries should be integers, the rows of X to search for.")
    if asked.min() < 0 or asked.max() >= n:
        raise ValueError(f"queries should lie between 0 and {n - 1}, the rows of X.")
    _check_answerable(images.y, asked)
    calls = judged.trace(images)
    if layer is None:
        names = [name for name in default_layers(calls) if name.startswith("conv")]
        layer = names[-1] if names else EMBEDDING
    (searched,) = find_layers(calls, [layer])
    regions = partial(region_maxima, n_scales=N_SCALES)
    maxima, y = judged.features(images, [searched], regions, memory)
    points = _aggregate(maxima.reshape(-1, searched.shape[0]), len(y))
    places = np.cumsum(images.readable) - 1
    asked = places[asked[images.readable[asked]]]
    precisions = _average_precisions(points, y, _check_answerable(y, asked))
    warn_of(images)
    return [
        {
            "layer": layer,
            "n_queries": len(precisions),
            "mean_average_precision": float(np.mean(precisions)),
        }
    ]


def _check_answerable(y: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """Return the queries that have something to find."""
    _, names, sizes = np.unique(y, return_inverse=True, return_counts=True)
    found = asked[sizes[names[asked]] > 1]
    if not len(found):
        raise ValueError(
            "None of the queries has another image of its class in y. Pass more images."
        )
    return found


def _aggregate(maxima: np.ndarray, n: int) -> np.ndarray:
    """Return R-MAC of `n` images, from the maxima of all their regions."""
    maxima = normalize(maxima)
    projection = fit_projection(maxima, "auto", whiten=True, normalize=True)
    regions = projection(maxima).reshape(n, -1, projection.components.shape[1])
    return normalize(regions.sum(axis=1))


def _average_precisions(
    points: np.ndarray, y: np.ndarray, asked: np.ndarray
) -> np.ndarray:
    """Return the average precision of each query among all points but itself."""
    step = max(1, RANKED_VALUES // len(points))
    ranks = np.arange(1, len(points))
    found = []
    for start in range(0, len(asked), step):
        some = asked[start : start + step]
        similarities = points[some] @ points.T
        similarities[np.arange(len(some)), some] = -np.inf  # itself, which comes last
        order = np.argsort(-similarities, axis=1, kind="stable")[:, :-1]
        hits = y[order] == y[some, None]
        precisions = hits.cumsum(axis=1) / ranks
        found.append((precisions * hits).sum(axis=1) / hits.sum(axis=1))
    return np.concatenate(found)


@validate_params(
    {
        "model": MODEL,
        "from_layer": [str, None],
        "n_epochs": [COUNT],
        "learning_rate": [Interval(Real, 0, LARGEST, closed="right")],
        "batch_size": [Interval(Integral, 2, None, closed="left")],
        "random_state": ["random_state"],
        "verbose": ["verbose"],
    },
    prefer_skip_nested_validation=True,
)
def fine_tune(
    model,
    X_train,
    y_train,
    X_test,
    y_test,
    *,
    from_layer=None,
    n_epochs=10,
    learning_rate=0.01,
    batch_size=64,
    random_state=None,
    verbose=0,
):
    """Train a copy of the network, and a linear classifier on it, to tell classes.

    On an `untrained` network it is supervised learning from scratch.

    Parameters
    ----------
    model : DeepClusterEstimator or torch.nn.Module
        As in `linear_probe`. It stays as it is.
    X_train : array-like, tensor, folder, paths, pictures or dataset
        Images to learn from, as they are.
    y_train : array-like of shape (n_train,)
        Classes of these.
    X_test : array-like, tensor, folder, paths, pictures or dataset
        Images to judge by.
    y_test : array-like of shape (n_test,)
        Classes of these.
    from_layer : str, default=None
        Name, as in `linear_probe`, of the first layer that learns. What is run before
        it keeps its weights and its batch-norm statistics. "embedding" is the
        classifier alone; None is everything.
    n_epochs : int, default=10
        Number of passes over the images.
    learning_rate : float, default=0.01
        Step size of SGD with momentum 0.9, falling to 0 by a cosine.
    batch_size : int, default=64
        Images in one step, at least 2.
    random_state : int, RandomState instance or None, default=None
        Seed of the classifier, of the order of images and of dropout. No global
        generator is read or advanced.
    verbose : int, default=0
        With 1, one line is printed for each epoch.

    Returns
    -------
    table : list of dict
        A row for each epoch: `epoch`, `loss`, `accuracy` on the test images.
    module : torch.nn.Module
        From float32 images to logits, in evaluation mode. ``module.network`` is the
        copy, ``module.classifier`` the classifier of the sorted classes.

    Raises
    ------
    ValueError
        If the loss diverges, or as in `linear_probe`.

    See Also
    --------
    linear_probe : The network stays as it is.
    untrained : The same network with fresh weights.

    Notes
    -----
    The section "Pascal VOC 2007" of the paper, where either the last, fully connected
    layers are trained or all.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from skdeepcluster import DeepClusterEstimator
    >>> from skdeepcluster.evaluation import fine_tune
    >>> images, y = load_digits().images[:400], load_digits().target
    >>> model = DeepClusterEstimator(10, max_iter=1, epochs_per_iter=3, random_state=0)
    >>> data = images[:300], y[:300], images[300:], y[300:400]
    >>> table, module = fine_tune(
    ...     model.fit(images), *data, from_layer="conv3", n_epochs=2
    ... )
    >>> [row["epoch"] for row in table]
    [1, 2]
    """
    judged = Judged.of(model)
    train, test = judged.split(X_train, y_train, X_test, y_test, fitting=True)
    table, module = tune(
        judged,
        train,
        test,
        from_layer=from_layer,
        n_epochs=n_epochs,
        learning_rate=learning_rate,
        batch_size=batch_size,
        streams=Streams.from_random_state(random_state),
        verbose=verbose,
    )
    warn_of(train, test)
    return table, module


@validate_params(
    {"model": MODEL, "random_state": ["random_state"]},
    prefer_skip_nested_validation=True,
)
def untrained(model, random_state=None):
    """Copy the network and give it fresh random weights: what learning starts from.

    Parameters
    ----------
    model : DeepClusterEstimator or torch.nn.Module
        As in `linear_probe`. It stays as it is.
    random_state : int, RandomState instance or None, default=None
        Seed of the weights. No global generator is read or advanced.

    Returns
    -------
    module : torch.nn.Module
        With weights by each submodule's ``reset_parameters``, and batch-norm
        statistics of nothing: mean 0 and variance 1. Weights that require no gradients
        are kept. Where `X` is no array, put it into a copy of the estimator:
        ``other = copy.copy(model); other.module_ = untrained(model)``.

    Raises
    ------
    ValueError
        If a submodule has weights of its own but no ``reset_parameters``.

    See Also
    --------
    linear_probe : Judges it, for the row "Random" of the paper's table.
    fine_tune : Trains it with labels.

    Examples
    --------
    >>> from torch import nn
    >>> from skdeepcluster.evaluation import untrained
    >>> network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten())
    >>> new = untrained(network, random_state=0)
    >>> bool((new[0].weight != network[0].weight).all())
    True
    """
    seed = Streams.from_random_state(random_state).seed("untrained")
    return fresh(Judged.of(model).network, seed)


def _named(y_true, labels) -> tuple[np.ndarray, np.ndarray]:
    """Return the classes and clusters of images that have a cluster."""
    y_true, labels = np.asarray(y_true), np.asarray(labels)
    if labels.ndim != 1 or y_true.shape != labels.shape:
        raise ValueError(
            f"y_true has shape {y_true.shape}, but labels has {labels.shape}: both "
            "should hold one entry for each image."
        )
    known = labels != NO_GROUP
    if not known.any():
        raise ValueError("labels holds no image with a cluster: all are -1, or none.")
    return y_true[known], labels[known]


def cluster_report(y_true, labels):
    """Compare clusters with classes, in one row.

    Parameters
    ----------
    y_true : array-like of shape (n,)
        Classes.
    labels : array-like of shape (n,), int
        Clusters, such as `labels_`. Images of cluster -1, which could not be read, are
        left out.

    Returns
    -------
    table : list of dict
        One row: `n_images`, `n_clusters`, `accuracy` under the best matching of
        clusters and classes, `nmi`, `ari`, `purity`, and the sizes `largest`, `median`
        and `smallest`.

    Raises
    ------
    ValueError
        If lengths differ, or no image has a cluster.

    See Also
    --------
    cluster_table : Each cluster by itself.
    metrics.clustering_accuracy : The accuracy alone.

    Examples
    --------
    >>> from skdeepcluster.evaluation import cluster_report
    >>> (row,) = cluster_report(["a", "a", "b", "b", "b"], [1, 1, 0, 1, -1])
    >>> row["n_images"], row["accuracy"], row["largest"]
    (4, 0.75, 3)
    """
    y_true, labels = _named(y_true, labels)
    sizes = np.unique(labels, return_counts=True)[1]
    return [
        {
            "n_images": len(labels),
            "n_clusters": len(sizes),
            "accuracy": clustering_accuracy(y_true, labels),
            "nmi": float(normalized_mutual_info_score(y_true, labels)),
            "ari": float(adjusted_rand_score(y_true, labels)),
            "purity": purity(y_true, labels),
            "largest": int(sizes.max()),
            "median": float(np.median(sizes)),
            "smallest": int(sizes.min()),
        }
    ]


def cluster_table(y_true, labels):
    """Describe each cluster by its most frequent class.

    Parameters
    ----------
    y_true : array-like of shape (n,)
        Classes.
    labels : array-like of shape (n,), int
        As in `cluster_report`.

    Returns
    -------
    table : list of dict
        A row for each cluster, in their order: `cluster`, `size`, `most_frequent` of
        the classes (the first of equals), and `purity`, its share.

    Raises
    ------
    ValueError
        If lengths differ, or no image has a cluster.

    See Also
    --------
    cluster_report : All clusters in one row.

    Examples
    --------
    >>> from skdeepcluster.evaluation import cluster_table
    >>> for row in cluster_table(["a", "a", "b", "b", "b"], [1, 1, 0, 1, -1]):
    ...     print(row["cluster"], row["size"], row["most_frequent"])
    0 1 b
    1 3 a
    """
    y_true, labels = _named(y_true, labels)
    table = []
    for cluster in np.unique(labels):
        classes, sizes = np.unique(y_true[labels == cluster], return_counts=True)
        row = {
            "cluster": cluster.item(),
            "size": int(sizes.sum()),
            "most_frequent": classes.tolist()[sizes.argmax()],
            "purity": float(sizes.max() / sizes.sum()),
        }
        table.append(row)
    return table


@validate_params({"model": [DeepClusterEstimator]}, prefer_skip_nested_validation=True)
def stability(model):
    """Tell how much pseudo-labels changed from round to round.

    Parameters
    ----------
    model : DeepClusterEstimator
        Fitted.

    Returns
    -------
    table : list of dict
        A row for each round: `round`, `nmi_previous`, to the round before, and `nmi_y`,
        to the classes, where `fit` was given some.

    See Also
    --------
    DeepClusterEstimator : All that it logs is in `history_`.

    Notes
    -----
    Figures 2a and 2b of the paper.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from skdeepcluster import DeepClusterEstimator
    >>> from skdeepcluster.evaluation import stability
    >>> model = DeepClusterEstimator(10, max_iter=2, epochs_per_iter=2, random_state=0)
    >>> [row["round"] for row in stability(model.fit(load_digits().images[:300]))]
    [1, 2]
    """
    check_is_fitted(model)
    names = ("round", "nmi_previous", "nmi_y")
    return [
        {name: record[name] for name in names if name in record}
        for record in model.history_
    ]
