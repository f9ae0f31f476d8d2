"""Parameters and data to a recipe: checks and choices before the network is built."""

import functools
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum
from numbers import Integral
from typing import Any

import numpy as np
import torch
from sklearn.base import ClusterMixin

from .._clustering.cluster_model import ClusterModel
from .._clustering.faiss_kmeans import FaissKMeans
from .._clustering.kmeans import KMeansOptions
from .._clustering.nearest_centers import resolve_kmeans_backend
from .._clustering.pixels import is_mirror_symmetric
from .._clustering.pseudo_labels import Clusterer
from .._inputs.sources import Source
from .._training.augment import PAPER_CROPS, Augment, RandomCrop, apply_user_augment
from .._training.epoch import BatchOptions
from .._training.network import BackboneSetup, resolve_backbone
from .._training.pretrained import (
    find_preprocessing,
    has_trained_weights,
    is_trainable,
    resolve_given_backbone,
)
from .._training.sampling import count_steps
from .._utils.compute import Compute
from .._utils.device import resolve_device, resolve_precision
from .._utils.distributed import SINGLE_PROCESS, Processes
from .._utils.random import RandomStreams
from .state import Recipe

# Number of pseudo-labels per cluster, and the fewest images per pseudo-label.
PSEUDO_LABELS_PER_CLUSTER = 5
IMAGES_PER_PSEUDO_LABEL = 20
# With n_clusters="auto", about the largest number of clusters that is found, and the
# fewest images per such cluster.
MAX_AUTO_CLUSTERS = 30
IMAGES_PER_AUTO_CLUSTER = 100
# Number of images that are mirrored to see whether they look like other images.
SYMMETRY_ROWS = 2_000
# Fewest SGD steps in a round with epochs_per_iter="auto". Small data sets get several
# epochs per round, but at most this many.
STEPS_PER_ROUND = 200
MAX_EPOCHS = 30
# Step size of SGD with learning_rate="auto", for fresh and for given weights. The
# former would destroy what given weights know.
LEARNING_RATE = 0.03
GIVEN_LEARNING_RATE = 0.002
# Parameters that have no effect if the network is not trained.
TRAINING_PARAMETERS = frozenset(
    {
        *("init", "max_iter", "epochs_per_iter", "augment", "n_crops", "balance"),
        *("head_norm", "temperature", "learning_rate", "schedule", "momentum"),
        *("weight_decay", "tol", "callbacks", "checkpoint_dir"),
    }
)
# Parameters that decide what the network is and how images are read for it. A fitted
# network keeps the values of its fit.
NETWORK_PARAMETERS = (
    "backbone",
    "weights",
    "preprocess",
    "image_shape",
    "image_size",
    "resize",
    "sobel",
    "head",
    "n_components",
    "head_norm",
)
# Number of outputs of the projection head, as in DeepCluster-v2.
PROJECTION_SIZE = 128


@dataclass(frozen=True)
class Parameters:
    """The parameters of `DeepClusterEstimator`, each valid by itself."""

    n_clusters: str | int
    n_pseudo_labels: Any
    init: str
    clusterer: str | ClusterMixin
    n_neighbors: int | None
    max_iter: int
    epochs_per_iter: str | float
    backbone: str | torch.nn.Module
    weights: Any
    fine_tune: str | bool
    preprocess: str | Callable
    image_shape: tuple[int, int, int] | None
    image_size: str | int
    resize: str
    on_error: str
    cache_dir: str | os.PathLike | None
    sobel: bool
    augment: str | Callable | None
    n_crops: Any
    n_components: str | int | None
    whiten: bool
    normalize: bool
    balance: str | None
    empty_clusters: str
    head: str
    temperature: float
    head_norm: str | None
    batch_size: int
    learning_rate: str | float
    schedule: str
    momentum: float
    weight_decay: float
    device: str | torch.device
    precision: str
    n_jobs: int | None
    random_state: int | np.random.RandomState | None
    verbose: int
    callbacks: Any
    warm_start: bool
    checkpoint_dir: str | os.PathLike | None
    tol: float

    def __post_init__(self):
        # torchvision's weights, such as ResNet18_Weights.DEFAULT, are enums.
        if isinstance(self.weights, Enum):
            object.__setattr__(self, "weights", str(self.weights))

    @property
    def n_projected(self) -> int | None:
        """Number of outputs of the projection head. None without a projection head."""
        if self.head != "centroids":
            return None
        is_number = isinstance(self.n_components, Integral)
        return int(self.n_components) if is_number else PROJECTION_SIZE  # type: ignore[arg-type]


def check_warm_start(parameters: Parameters, previous: Parameters) -> None:
    """Raise ValueError if a warm start would continue with another network.

    Parameters
    ----------
    parameters : Parameters
    previous : Parameters
        Parameters of the fit that made the network.
    """
    for name in NETWORK_PARAMETERS:
        now, before = getattr(parameters, name), getattr(previous, name)
        if name == "n_components":
            # Only a projection head has that many outputs.
            is_same = parameters.n_projected == previous.n_projected
        elif isinstance(now, torch.nn.Module) or isinstance(before, torch.nn.Module):
            is_same = now is before
        elif isinstance(now, tuple | list) and before is not None:
            is_same = tuple(now) == tuple(before)
        else:
            is_same = now == before
        if not is_same:
            now, before = (
                type(value).__name__ if isinstance(value, torch.nn.Module) else value
                for value in (now, before)
            )
            raise ValueError(
                f"warm_start=True continues with the network of the previous fit, but "
                f"{name}={now!r} differs from {name}={before!r} of that fit. Keep the "
                "previous value, or set warm_start=False."
            )


def resolve_recipe(
    parameters: Parameters,
    source: Source,
    streams: RandomStreams,
    processes: Processes = SINGLE_PROCESS,
    is_given: bool = False,
) -> tuple[Recipe, Clusterer]:
    """Check parameters against each other and the data, and resolve each "auto".

    The exceptions are `backbone`, which `build_network` resolves, and `n_components`,
    which each clustering resolves from the features. `is_given` tells whether the
    weights of the backbone are given.

    Returns
    -------
    recipe : Recipe
        Choices of the training half.
    clusterer : Clusterer
        The clustering half, with its options.

    Raises
    ------
    ValueError, TypeError
        If parameters contradict each other, the data or the number of processes.
    """
    n = len(source)
    is_image = len(source.shape) == 3
    n_clusters = resolve_n_clusters(parameters, n)
    _check_process_shares(parameters.batch_size, n, processes)
    n_pseudo_labels = resolve_n_pseudo_labels(parameters, n_clusters, n)
    if parameters.preprocess == "imagenet" and not is_image:
        raise ValueError(
            "preprocess='imagenet' needs images, but X holds rows. Set image_shape=(C, "
            "H, W), or leave preprocess='auto'."
        )
    if parameters.sobel and not is_image:
        raise ValueError(
            "sobel=True needs images, but X holds rows. Set image_shape=(C, H, W)."
        )
    fine_tune = resolve_fine_tune(parameters, is_given, is_image)
    n_crops = resolve_n_crops(parameters)
    augment = None
    # A network that is only read sees no training batches.
    if fine_tune:
        augment = resolve_augment(
            parameters, n_clusters, n_crops, source, streams, processes
        )
    device = processes.local_device(resolve_device(parameters.device))
    precision = parameters.precision
    if precision == "auto" and not is_image:
        # Products of rows are small: bfloat16 would cost accuracy and save nothing.
        precision = "float32"
    method, kmeans_options = resolve_clusterer(parameters, device, n_pseudo_labels)
    clusterer = Clusterer(
        n_clusters=n_clusters,
        finds_n_clusters=parameters.n_clusters == "auto",
        n_pseudo_labels=n_pseudo_labels,
        n_neighbors=parameters.n_neighbors,
        n_components=parameters.n_components,
        whiten=parameters.whiten,
        normalize=parameters.normalize,
        method=method,
        kmeans_options=kmeans_options,
    )
    recipe = Recipe(
        fine_tune=fine_tune,
        init=resolve_init(parameters, is_given),
        max_iter=parameters.max_iter,
        steps_per_round=resolve_steps(parameters, n),
        head=parameters.head,
        temperature=parameters.temperature,
        balance=parameters.balance,
        batch_options=BatchOptions(
            batch_size=parameters.batch_size,
            compute=Compute(device, resolve_precision(precision, device)),
            augment=augment,
            n_crops=n_crops,
        ),
        learning_rate=resolve_learning_rate(parameters, is_given),
        schedule=parameters.schedule,
        momentum=parameters.momentum,
        weight_decay=parameters.weight_decay,
        cache_dir=parameters.cache_dir,
    )
    return recipe, clusterer


def describe_choices(
    parameters: Parameters,
    recipe: Recipe,
    clusterer: Clusterer,
    source: Source,
    n_components: int | None,
    cluster_model: ClusterModel,
    setup: BackboneSetup,
) -> dict:
    """Return the attribute `recipe_`: the choice for each parameter with an "auto".

    Parameters
    ----------
    parameters : Parameters
        `resize` is the choice that was made when the images were read.
    recipe : Recipe
    clusterer : Clusterer
    source : Source
        Training images.
    n_components : int or None
        Number of components in the last clustering. None with `head="centroids"`.
    cluster_model : ClusterModel
    setup : BackboneSetup
    """
    shape = source.shape
    augment = recipe.augment
    flips = isinstance(augment, RandomCrop) and augment.flip
    choice = parameters.augment
    if not isinstance(choice, str | None):
        choice = getattr(choice, "__qualname__", type(choice).__qualname__)
    elif augment is None:
        choice = None
    backbone: str | torch.nn.Module | None = parameters.backbone
    if isinstance(backbone, torch.nn.Module):
        backbone = type(backbone).__name__
    elif parameters.weights is not None:
        backbone = resolve_given_backbone(parameters.backbone)  # type: ignore[arg-type]
    elif not recipe.fine_tune:
        backbone = None
    else:
        backbone = resolve_backbone(parameters.backbone, shape)
    steps_per_epoch = count_steps(len(source), recipe.batch_size)
    epochs = recipe.steps_per_round / steps_per_epoch
    n_pseudo_labels = clusterer.n_pseudo_labels
    clusters_from = "features"
    if setup.is_given:
        clusters_from = "features" if cluster_model.from_start else "neighbors"
    elif cluster_model.from_start:
        clusters_from = "pixels"
    choices = {
        "clusters_from": clusters_from,
        "n_pseudo_labels": (
            n_pseudo_labels[0] if len(n_pseudo_labels) == 1 else n_pseudo_labels
        ),
        "epochs_per_iter": int(epochs) if epochs == int(epochs) else epochs,
        "backbone": backbone,
        "fine_tune": recipe.fine_tune,
        "init": recipe.init,
        "learning_rate": recipe.learning_rate,
        "image_shape": tuple(shape) if len(shape) == 3 else None,
        "resize": parameters.resize,
        "n_components": n_components or parameters.n_projected,
        "augment": choice,
        "mirror": flips,
        "device": str(recipe.compute.device),
        "precision": str(recipe.compute.dtype).removeprefix("torch."),
        "kmeans_backend": resolve_kmeans_backend(
            clusterer.kmeans_options.backend, recipe.compute.device
        ),
    }
    if setup.is_given and len(shape) == 3:
        choices["standardization"] = setup.name_of_preprocessing
    if not recipe.fine_tune:
        # The mirror belongs to augment="auto".
        choices |= dict.fromkeys(choices.keys() & {"mirror", *TRAINING_PARAMETERS})
    return choices


def resolve_backbone_setup(parameters: Parameters) -> BackboneSetup:
    """Return where the weights come from, and which images they expect.

    Parameters
    ----------
    parameters : Parameters

    Raises
    ------
    ValueError
        If there are no such weights.
    """
    backbone, preprocess = parameters.backbone, parameters.preprocess
    # Who says how pixels are preprocessed knows which pixels the weights have seen.
    is_given = parameters.weights is not None or (
        isinstance(backbone, torch.nn.Module)
        and (
            preprocess != "auto"
            or parameters.fine_tune is False
            or not is_trainable(backbone)
            or has_trained_weights(backbone)
        )
    )
    # Rows that are embeddings already need no network.
    is_given = is_given or (parameters.fine_tune is False and backbone == "auto")
    preprocessing = None
    if is_given or preprocess == "imagenet":
        preprocessing = find_preprocessing(
            backbone, parameters.weights, preprocess, parameters.image_size
        )
    return BackboneSetup(
        is_given=is_given,
        weights=parameters.weights,
        preprocessing=preprocessing,
        function=preprocess if callable(preprocess) else None,
    )


def resolve_fine_tune(parameters: Parameters, is_given: bool, is_image: bool) -> bool:
    """Return whether the network is trained."""
    backbone, fine_tune = parameters.backbone, parameters.fine_tune
    is_string = isinstance(backbone, str)
    reads_rows = not is_image and backbone == "auto"
    if fine_tune is False and is_string and not parameters.weights and not reads_rows:
        raise ValueError(
            "fine_tune=False reads a network without training it, but its weights are "
            "fresh. Set weights='DEFAULT', or pass a trained module as backbone."
        )
    is_frozen = isinstance(backbone, torch.nn.Module) and not is_trainable(backbone)
    if fine_tune is True and is_frozen:
        raise ValueError(
            f"fine_tune=True trains the backbone, but {type(backbone).__name__} has no "
            "parameters that require gradients. Call backbone.requires_grad_(True), or "
            "set fine_tune=False."
        )
    resolved = not is_given if fine_tune == "auto" else bool(fine_tune)
    if not resolved and parameters.head == "centroids":
        raise ValueError(
            "head='centroids' trains a projection head, but the network is not "
            "trained. Set fine_tune=True, or head='reset'."
        )
    return resolved


def resolve_init(parameters: Parameters, is_given: bool) -> str:
    """Return the source of the first pseudo-labels."""
    if parameters.init != "auto":
        return parameters.init
    return "features" if is_given else "pixels"


def resolve_learning_rate(parameters: Parameters, is_given: bool) -> float:
    """Return the step size of SGD."""
    if isinstance(parameters.learning_rate, str):
        return GIVEN_LEARNING_RATE if is_given else LEARNING_RATE
    # numpy's numbers are no JSON.
    return float(parameters.learning_rate)


def _check_process_shares(batch_size: int, n: int, processes: Processes) -> None:
    """Raise ValueError if a process would have no image of some batch."""
    # The smallest batch may have only half of the rows of a full batch.
    min_rows = 2 * processes.size
    if processes.size > 1 and batch_size < min_rows:
        raise ValueError(
            f"batch_size={batch_size} is too small for {processes.size} processes, "
            f"each of which needs images of each batch. Set it to {min_rows} or more, "
            "or start fewer processes."
        )
    if processes.size > 1 and n < min_rows:
        raise ValueError(
            f"n_samples={n} is too few for {processes.size} processes. Start fewer."
        )


def resolve_n_clusters(parameters: Parameters, n: int) -> int:
    """Return the number of clusters, or about the largest number that may be found."""
    n_clusters = parameters.n_clusters
    if isinstance(n_clusters, str):
        _check_n_pseudo_labels(parameters, 1, n)
        n_clusters = max(2, min(MAX_AUTO_CLUSTERS, n // IMAGES_PER_AUTO_CLUSTER))
        # Pseudo-labels are merged into clusters, so that there cannot be fewer of them.
        if not isinstance(parameters.n_pseudo_labels, str):
            n_clusters = min(n_clusters, int(np.min(parameters.n_pseudo_labels)))
        return min(n_clusters, n)
    if n_clusters > n:
        raise ValueError(
            f"n_samples={n} should be >= n_clusters={n_clusters}. Pass more images or "
            "lower n_clusters."
        )
    return n_clusters


def resolve_n_pseudo_labels(
    parameters: Parameters, n_clusters: int, n: int
) -> tuple[int, ...]:
    """Return the number of pseudo-labels of each clustering."""
    value = parameters.n_pseudo_labels
    if isinstance(value, str):
        max_labels = PSEUDO_LABELS_PER_CLUSTER * n_clusters
        value = max(n_clusters, min(max_labels, n // IMAGES_PER_PSEUDO_LABEL))
    numbers = (value,) if isinstance(value, Integral) else tuple(value)
    _check_n_pseudo_labels(parameters, n_clusters, n)
    return tuple(map(int, numbers))


def _check_n_pseudo_labels(parameters: Parameters, minimum: int, n: int) -> None:
    """Raise ValueError if a number of pseudo-labels is smaller than the minimum.

    The minimum is the number of clusters, if the user has set it.
    """
    value = parameters.n_pseudo_labels
    if isinstance(value, str):
        return
    numbers = (value,) if isinstance(value, Integral) else tuple(value)
    if not numbers:
        raise ValueError("n_pseudo_labels is empty. Pass at least one number.")
    # Pseudo-labels are merged into clusters, so that there cannot be fewer of them.
    for k in numbers:
        if not isinstance(k, Integral) or not minimum <= int(k) <= n:
            is_set = not isinstance(parameters.n_clusters, str)
            lower = f"n_clusters={minimum}" if is_set else "1"
            raise ValueError(
                f"n_pseudo_labels={k} should be a number between {lower} and "
                f"n_samples={n}, since pseudo-labels are merged into clusters. Change "
                "it, or set it to 'auto'."
            )


def resolve_n_crops(parameters: Parameters) -> tuple[int, int]:
    """Return the number of views of each image, and of small views."""
    value = parameters.n_crops
    n_crops = (value, 0) if isinstance(value, Integral) else tuple(value)
    all_integers = all(isinstance(count, Integral) for count in n_crops)
    if len(n_crops) != 2 or not all_integers or n_crops[0] < 1 or n_crops[1] < 0:
        raise ValueError(
            f"n_crops={value} should be the number of crops of each image, at least 1, "
            "or a pair: the number of crops and of small crops."
        )
    if n_crops[1] and parameters.augment not in ("auto", "crops"):
        raise ValueError(
            f"n_crops={value} asks for small crops, which need augment='auto' or "
            "augment='crops'."
        )
    return n_crops


def resolve_augment(
    parameters: Parameters,
    n_clusters: int,
    n_crops: tuple[int, int],
    source: Source,
    streams: RandomStreams,
    processes: Processes,
) -> Augment | None:
    """Return the augmentation of training batches."""
    augment = parameters.augment
    if len(source.shape) != 3 and augment in ("auto", "crops"):
        if augment == "crops":
            raise ValueError(
                "augment='crops' needs images, but X holds rows. Set image_shape=(C, "
                "H, W), or leave augment='auto'."
            )
        augment = None
    if augment is None and n_crops != (1, 0):
        raise ValueError(
            f"n_crops={parameters.n_crops} needs random crops, but there are none. Set "
            "augment, or set n_crops=1."
        )
    if augment == "auto":
        # Mirroring digits or letters makes other signs, so the data decides.
        rows = streams.sample("symmetry", len(source), SYMMETRY_ROWS)
        flip = processes.run_on_first(
            lambda: is_mirror_symmetric(source, rows, n_clusters)
        )
        return RandomCrop(flip=flip)
    if augment == "crops":
        return PAPER_CROPS
    if callable(augment):
        return functools.partial(apply_user_augment, augment)
    return None


def _describe_fewer_labels(
    parameters: Parameters, n_pseudo_labels: tuple[int, ...]
) -> str:
    """Return the way to ask for fewer pseudo-labels, by the parameter that was set."""
    if not isinstance(parameters.n_pseudo_labels, str):
        return "Lower n_pseudo_labels"
    (k,) = n_pseudo_labels
    if parameters.n_clusters == k:
        return "Lower n_clusters"
    return f"Set n_pseudo_labels to less than {k}, the choice of 'auto'"


def resolve_clusterer(
    parameters: Parameters, device: torch.device, n_pseudo_labels: tuple[int, ...]
) -> tuple[str | ClusterMixin, KMeansOptions]:
    """Return the clustering method and the options of k-means."""
    clusterer = parameters.clusterer
    # A class has `fit_predict`, too, and passes the validation of parameters.
    if isinstance(clusterer, type):
        name = clusterer.__name__
        raise TypeError(f"clusterer={name} is a class. Pass an instance: {name}().")
    options = KMeansOptions(
        spherical=parameters.head == "centroids",
        empty_clusters=parameters.empty_clusters,
        backend=resolve_kmeans_backend("auto", device),
        device=device,
        cure=_describe_fewer_labels(parameters, n_pseudo_labels),
    )
    # FaissKMeans runs on points that are spread over processes, and its centers can
    # assign new images. Any other estimator needs all points in one process.
    if not isinstance(clusterer, FaissKMeans):
        return clusterer, options
    # Its own `fit`, which would validate the parameters, is not called.
    clusterer._validate_params()
    if not isinstance(clusterer.init, str):
        raise ValueError(
            "clusterer=FaissKMeans(init=...) has initial centers, but points change in "
            "each round. Set init='k-means++' or init='random'."
        )
    return "kmeans", replace(
        options,
        init=clusterer.init,
        n_init=clusterer.n_init,
        max_iter=clusterer.max_iter,
        tol=clusterer.tol,
        empty_clusters=clusterer.empty_clusters,
        backend=resolve_kmeans_backend(clusterer.backend, device),
        verbose=clusterer.verbose,
    )


def resolve_steps(parameters: Parameters, n: int) -> int:
    """Return the number of SGD steps in a round."""
    epochs, batch_size = parameters.epochs_per_iter, parameters.batch_size
    if isinstance(epochs, str):
        n_batches = math.ceil(n / batch_size)
        epochs = min(MAX_EPOCHS, math.ceil(STEPS_PER_ROUND / n_batches))
    return max(1, round(epochs * count_steps(n, batch_size)))
