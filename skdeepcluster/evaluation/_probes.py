"""Frozen features and labels -> how well simple classifiers tell classes by them."""

import time
import warnings
from functools import partial

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler
from sklearn.utils._param_validation import validate_params

from .._activations.layers import EMBEDDING, Layer, average_pooled, reduced_width
from .._activations.model import (
    COUNT,
    MODEL,
    EvaluatedModel,
    LabeledImages,
    warn_unreadable_images,
)
from .._utils.random import RandomStreams

STRENGTH = 0.1  # inverse penalty of logistic regressions on standardized features
MAX_STEPS = 100  # of L-BFGS: accuracy has settled long before
PASS_BYTES = 2**30  # features of several layers that one pass over the images keeps
POOLED_VALUES = 9000  # values of a layer's maps, as in the paper


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

    Maps are average-pooled to at most `n_values` numbers and standardized.

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
    a sum before it, negative values of a convolution's own normalized maps are
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
    judged = EvaluatedModel.of(model)
    train, test = judged.split(X_train, y_train, X_test, y_test)
    pool = partial(average_pooled, n_values=n_values)
    table = []
    for group in _passes(judged.layers(train, layers), pool, train, test):
        known, y_known = judged.features(train, group, pool, memory)
        new, y_new = judged.features(test, group, pool, memory)
        stops = np.cumsum([reduced_width(layer, pool) for layer in group])
        for layer, stop in zip(group, stops, strict=True):
            began = time.perf_counter()
            columns = slice(stop - reduced_width(layer, pool), stop)
            scaler = StandardScaler().fit(known[:, columns])
            classifier = _logistic(scaler.transform(known[:, columns]), y_known)
            accuracy = _accuracy(classifier, scaler.transform(new[:, columns]), y_new)
            n_kept = reduced_width(layer, pool)
            row = {"layer": layer.name, "n_values": n_kept, "accuracy": accuracy}
            table.append(row)
            if verbose:
                seconds = time.perf_counter() - began
                print(
                    f"{layer.name:10s}  {n_kept:5d} values  "
                    f"accuracy {accuracy:.3f}  {seconds:.1f} s"
                )
    warn_unreadable_images(train, test)
    return table


def _passes(
    layers: list[Layer], pool, train: LabeledImages, test: LabeledImages
) -> list[list[Layer]]:
    """Split layers into groups whose features fit into memory side by side."""
    n = len(train.y) + len(test.y)
    groups: list[list[Layer]] = [[]]
    size = 0
    for layer in layers:
        more = 4 * n * reduced_width(layer, pool)
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
    """Tell classes by the nearest neighbors in the embedding.

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
        If there are fewer training images than neighbors, or as in `linear_probe`.

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
    judged = EvaluatedModel.of(model)
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
    warn_unreadable_images(train, test)
    return [{"n_neighbors": int(n_neighbors), "accuracy": accuracy}]


def _embeddings(
    judged: EvaluatedModel, train: LabeledImages, test: LabeledImages, memory
) -> tuple:
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

    It is on the embedding, standardized by all training images, which takes no label.

    Parameters
    ----------
    model : DeepClusterEstimator or torch.nn.Module
        As in `linear_probe`.
    X_train : array-like, tensor, folder, paths, pictures or dataset
        Images that labeled ones are drawn from.
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
    judged = EvaluatedModel.of(model)
    wanted = np.atleast_1d(n_labels).tolist()
    if not all(isinstance(count, int) and count > 0 for count in wanted):
        raise ValueError(f"n_labels={n_labels} should be positive integers.")
    train, test = judged.split(X_train, y_train, X_test, y_test)
    _counts(wanted, train.y)
    streams = RandomStreams.from_random_state(random_state)
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
    warn_unreadable_images(train, test)
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
