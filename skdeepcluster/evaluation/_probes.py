"""Classifiers on frozen features: linear probe, nearest neighbors, few labels."""

import time
import warnings
from dataclasses import dataclass
from functools import partial

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler
from sklearn.utils._param_validation import validate_params

from .._activations.layers import EMBEDDING, Layer, average_pool, reduced_width
from .._activations.model import (
    COUNT,
    MODEL,
    EvaluatedModel,
    LabeledImages,
    warn_unreadable_images,
)
from .._utils.neutral_state import with_neutral_state
from .._utils.random import RandomStreams

# Inverse penalty of logistic regressions on standardized features.
INVERSE_PENALTY = 0.1
# Limit of L-BFGS steps. The accuracy settles long before the loss converges.
MAX_STEPS = 100
# Largest size of the features that one pass over the images computes.
PASS_BYTES = 2**30
# Number of values of a layer's maps in the paper.
POOLED_VALUES = 9000


@dataclass(frozen=True)
class SplitFeatures:
    """Features and classes of training and test images."""

    train: np.ndarray
    y_train: np.ndarray
    test: np.ndarray
    y_test: np.ndarray


@with_neutral_state
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
    *,
    X_train,
    y_train,
    X_test,
    y_test,
    layers=None,
    n_values=POOLED_VALUES,
    memory=None,
    verbose=0,
):
    """Measure the accuracy of a logistic regression on each layer of a frozen network.

    Maps are average-pooled to at most `n_values` values and standardized.

    Parameters
    ----------
    model : DeepClusterEstimator or torch.nn.Module
        Fitted estimator, or any network. A module receives float32 images in the
        units of `X_train`.
    X_train : array-like, tensor, folder, paths, PIL images or dataset
        Training images, in any form that `model.fit` takes. A module takes arrays and
        tensors of shape (n, C, H, W), (n, H, W, C), (n, H, W) or (n, n_features).
    y_train : array-like of shape (n_train,)
        Classes of the training images, integers or strings.
    X_test : array-like, tensor, folder, paths, PIL images or dataset
        Test images.
    y_test : array-like of shape (n_test,)
        Classes of the test images.
    layers : list of str, default=None
        Names of the layers. "conv1", "conv2" and so on are the convolutions in
        execution order, each with the norm and the activation that follow. In
        networks without convolutions "layer1" and so on are the hidden activations.
        "embedding" is the output of the network. Other names are paths of submodules,
        as in `named_modules`; if a submodule is called several times, its last output
        is used. None selects all layers except submodules.
    n_values : int, default=9000
        Largest number of values of a layer's maps, at least one a channel. Vectors are
        not pooled. Lower it to save memory.
    memory : None, str or object with the joblib.Memory interface, default=None
        Cache of the features. Set it to a folder to reuse the features of the same
        weights and images in later calls. With None, nothing is stored.
    verbose : int, default=0
        Verbosity level. With 1, one line is printed for each layer.

    Returns
    -------
    table : list of dict
        One row for each layer, with the keys `layer`, `n_values` and `accuracy` on the
        test images. `pandas.DataFrame(table)` makes it a table.

    Raises
    ------
    ValueError
        If a layer is unknown, `X` and `y` differ in length, or either is invalid.

    See Also
    --------
    fine_tune : Train the network as well.
    low_shot : Train the classifier on a few labels.

    Notes
    -----
    This is the section "Linear classification on activations" of the paper. The paper
    trains the classifiers by SGD on random crops; this function uses L-BFGS on the
    images themselves.

    Negative values of a convolution's maps are removed even if the network applies
    its activation as a function, or after a sum of several convolutions. An in-place
    sum, as in torchvision's ResNets, is part of the maps.

    Images that cannot be read are left out with a warning if ``on_error="skip"``.

    References
    ----------
    M. Caron, P. Bojanowski, A. Joulin and M. Douze, "Deep Clustering for Unsupervised
    Learning of Visual Features", European Conference on Computer Vision, 2018.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from skdeepcluster import DeepClusterEstimator
    >>> from skdeepcluster.evaluation import linear_probe
    >>> images, y = load_digits().images[:400], load_digits().target[:400]
    >>> model = DeepClusterEstimator(10, max_iter=1, epochs_per_iter=3, random_state=0)
    >>> table = linear_probe(
    ...     model.fit(images),
    ...     X_train=images[:300],
    ...     y_train=y[:300],
    ...     X_test=images[300:],
    ...     y_test=y[300:],
    ... )
    >>> [row["layer"] for row in table]
    ['conv1', 'conv2', 'conv3', 'conv4', 'embedding']
    """
    evaluated = EvaluatedModel.from_model(model)
    train, test = evaluated.read_split(X_train, y_train, X_test, y_test)
    pool = partial(average_pool, n_values=n_values)
    n_images = len(train.y) + len(test.y)
    table = []
    for layer_group in _split_layers(
        evaluated.find_layers(train, layers), pool, n_images
    ):
        features = _extract_split(evaluated, train, test, layer_group, pool, memory)
        start = 0
        for layer in layer_group:
            # The time of the classifier alone: the layers of a group share their pass.
            start_time = time.perf_counter()
            width = reduced_width(layer, pool)
            accuracy = _probe_columns(features, slice(start, start + width))
            start += width
            table.append({"layer": layer.name, "n_values": width, "accuracy": accuracy})
            if verbose:
                seconds = time.perf_counter() - start_time
                print(
                    f"{layer.name:10s}  {width:5d} values  "
                    f"accuracy {accuracy:.3f}  {seconds:.1f} s"
                )
    warn_unreadable_images(train, test)
    return table


def _split_layers(layers: list[Layer], pool, n_images: int) -> list[list[Layer]]:
    """Split layers into groups whose features fit into `PASS_BYTES`."""
    groups: list[list[Layer]] = [[]]
    group_bytes = 0
    for layer in layers:
        layer_bytes = 4 * n_images * reduced_width(layer, pool)
        if groups[-1] and group_bytes + layer_bytes > PASS_BYTES:
            groups.append([])
            group_bytes = 0
        groups[-1].append(layer)
        group_bytes += layer_bytes
    return groups


def _extract_split(
    model: EvaluatedModel,
    train: LabeledImages,
    test: LabeledImages,
    layers: list[Layer],
    pool,
    memory,
) -> SplitFeatures:
    """Compute the features of the training and test images that can be read."""
    train_features, y_train = model.extract_features(train, layers, pool, memory)
    test_features, y_test = model.extract_features(test, layers, pool, memory)
    return SplitFeatures(
        train=train_features, y_train=y_train, test=test_features, y_test=y_test
    )


def _probe_columns(features: SplitFeatures, columns: slice) -> float:
    """Return the accuracy of a logistic regression on some columns, standardized."""
    scaler = StandardScaler().fit(features.train[:, columns])
    classifier = _fit_logistic(
        scaler.transform(features.train[:, columns]), features.y_train
    )
    return _accuracy(
        classifier, scaler.transform(features.test[:, columns]), features.y_test
    )


def _fit_logistic(points: np.ndarray, y: np.ndarray) -> LogisticRegression:
    classifier = LogisticRegression(C=INVERSE_PENALTY, max_iter=MAX_STEPS)
    # The limit on steps is reached on purpose, see MAX_STEPS.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        # With one label a class, scikit-learn suspects a regression target.
        warnings.filterwarnings("ignore", "The number of unique classes")
        return classifier.fit(points, y)


def _accuracy(classifier, points: np.ndarray, y: np.ndarray) -> float:
    return float(np.mean(classifier.predict(points) == y))


@with_neutral_state
@validate_params(
    {"model": MODEL, "n_neighbors": [COUNT]}, prefer_skip_nested_validation=True
)
def knn_accuracy(
    model, *, X_train, y_train, X_test, y_test, n_neighbors=10, memory=None
) -> float:
    """Measure the accuracy of a nearest-neighbor classifier on the embedding.

    Parameters
    ----------
    model : DeepClusterEstimator or torch.nn.Module
        Fitted estimator or network, as in `linear_probe`.
    X_train : array-like, tensor, folder, paths, PIL images or dataset
        Training images.
    y_train : array-like of shape (n_train,)
        Classes of the training images.
    X_test : array-like, tensor, folder, paths, PIL images or dataset
        Test images.
    y_test : array-like of shape (n_test,)
        Classes of the test images.
    n_neighbors : int, default=10
        Number of neighbors that vote, by Euclidean distance. Lower it if the smallest
        class has fewer images.
    memory : None, str or object with the joblib.Memory interface, default=None
        Cache of the features, as in `linear_probe`.

    Returns
    -------
    accuracy : float
        Accuracy on the test images.

    Raises
    ------
    ValueError
        If `n_neighbors` exceeds the number of training images, and for the reasons
        given in `linear_probe`.

    See Also
    --------
    linear_probe : Train a linear classifier instead.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from skdeepcluster import DeepClusterEstimator
    >>> from skdeepcluster.evaluation import knn_accuracy
    >>> images, y = load_digits().images[:400], load_digits().target[:400]
    >>> model = DeepClusterEstimator(10, max_iter=1, epochs_per_iter=3, random_state=0)
    >>> accuracy = knn_accuracy(
    ...     model.fit(images),
    ...     X_train=images[:300],
    ...     y_train=y[:300],
    ...     X_test=images[300:],
    ...     y_test=y[300:],
    ... )
    >>> accuracy > 0.8
    True
    """
    evaluated = EvaluatedModel.from_model(model)
    train, test = evaluated.read_split(X_train, y_train, X_test, y_test)
    n_train = len(train.y)
    if n_neighbors > n_train:
        raise ValueError(
            f"n_neighbors={n_neighbors} is more than the {n_train} images of X_train. "
            f"Lower it to {n_train} or less."
        )
    features = _extract_embeddings(evaluated, train, test, memory)
    # Broken files may leave fewer training images than neighbors.
    classifier = KNeighborsClassifier(
        min(n_neighbors, len(features.train)), algorithm="brute"
    )
    classifier.fit(features.train, features.y_train)
    accuracy = _accuracy(classifier, features.test, features.y_test)
    warn_unreadable_images(train, test)
    return accuracy


def _extract_embeddings(
    model: EvaluatedModel, train: LabeledImages, test: LabeledImages, memory
) -> SplitFeatures:
    layers = model.find_layers(train, [EMBEDDING])
    # A network may end in maps. They are pooled as those of any layer.
    pool = partial(average_pool, n_values=POOLED_VALUES)
    return _extract_split(model, train, test, layers, pool, memory)


@with_neutral_state
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
    *,
    X_train,
    y_train,
    X_test,
    y_test,
    n_labels=(1, 2, 4, 8, 16, 32, 64, 96),
    n_repeats=5,
    random_state=None,
    memory=None,
):
    """Measure the accuracy of a logistic regression trained on few labels a class.

    The classifier receives the embedding, standardized on all training images, which
    needs no labels.

    Parameters
    ----------
    model : DeepClusterEstimator or torch.nn.Module
        Fitted estimator or network, as in `linear_probe`.
    X_train : array-like, tensor, folder, paths, PIL images or dataset
        Training images, from which the labeled images are drawn.
    y_train : array-like of shape (n_train,)
        Classes of the training images.
    X_test : array-like, tensor, folder, paths, PIL images or dataset
        Test images.
    y_test : array-like of shape (n_test,)
        Classes of the test images.
    n_labels : int or sequence of int, default=(1, 2, 4, 8, 16, 32, 64, 96)
        Numbers of labels a class. Numbers larger than the smallest class are left out.
    n_repeats : int, default=5
        Number of random draws. Within a draw, smaller labeled sets are subsets of
        larger ones. Raise it for a smaller error of the mean.
    random_state : int, RandomState instance or None, default=None
        Seed of the draws. Pass an int for reproducible results. Global generators are
        neither read nor advanced.
    memory : None, str or object with the joblib.Memory interface, default=None
        Cache of the features, as in `linear_probe`.

    Returns
    -------
    table : list of dict
        One row for each number of labels, with the keys `n_labels`, `accuracy`, the
        mean over the draws, and `accuracy_std`, its standard deviation.

    Raises
    ------
    ValueError
        If every number of labels is larger than the smallest class, and for the
        reasons given in `linear_probe`.

    See Also
    --------
    linear_probe : Train on all labels, for each layer.

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
    >>> images, y = load_digits().images[:400], load_digits().target[:400]
    >>> model = DeepClusterEstimator(10, max_iter=1, epochs_per_iter=3, random_state=0)
    >>> table = low_shot(
    ...     model.fit(images),
    ...     X_train=images[:300],
    ...     y_train=y[:300],
    ...     X_test=images[300:],
    ...     y_test=y[300:],
    ... )
    >>> [row["n_labels"] for row in table]
    [1, 2, 4, 8, 16]
    """
    evaluated = EvaluatedModel.from_model(model)
    counts = np.atleast_1d(n_labels).tolist()
    if not all(isinstance(count, int) and count > 0 for count in counts):
        raise ValueError(
            f"n_labels={n_labels} should be positive integers, such as [1, 10]."
        )
    train, test = evaluated.read_split(X_train, y_train, X_test, y_test)
    # Checked here as well, so that an error comes before the features are computed.
    _feasible_counts(counts, train.y)
    streams = RandomStreams.from_random_state(random_state)
    features = _extract_embeddings(evaluated, train, test, memory)
    # Broken files may have made the smallest class smaller.
    counts = _feasible_counts(counts, features.y_train)
    accuracies = _low_shot_accuracies(features, counts, n_repeats, streams)
    warn_unreadable_images(train, test)
    return [
        {
            "n_labels": count,
            "accuracy": float(scores.mean()),
            "accuracy_std": float(scores.std()),
        }
        for count, scores in zip(counts, accuracies, strict=True)
    ]


def _low_shot_accuracies(
    features: SplitFeatures, counts: list[int], n_repeats: int, streams: RandomStreams
) -> np.ndarray:
    """Return accuracies of shape (n_counts, n_repeats)."""
    y = features.y_train
    scaler = StandardScaler().fit(features.train)
    train, test = scaler.transform(features.train), scaler.transform(features.test)
    accuracies = np.empty((len(counts), n_repeats))
    for repeat in range(n_repeats):
        order = streams.numpy("low shot", repeat).permutation(len(y))
        members = [order[y[order] == label] for label in np.unique(y)]
        for i, count in enumerate(counts):
            # Prefixes of one permutation: the labeled sets of a draw are nested.
            rows = np.concatenate([class_rows[:count] for class_rows in members])
            classifier = _fit_logistic(train[rows], y[rows])
            accuracies[i, repeat] = _accuracy(classifier, test, features.y_test)
    return accuracies


def _feasible_counts(counts: list[int], y: np.ndarray) -> list[int]:
    """Return the numbers of labels that do not exceed the smallest class."""
    classes, sizes = np.unique(y, return_counts=True)
    feasible = [count for count in counts if count <= sizes.min()]
    if not feasible:
        raise ValueError(
            f"n_labels={counts} are all more than the {sizes.min()} images of class "
            f"{classes[sizes.argmin()]} in y_train. Pass n_labels={sizes.min()} or "
            "less."
        )
    return feasible
