"""Parameters and data -> a recipe: what each "auto" stands for."""

import functools
import math
from numbers import Integral

from ._augment import CROPS, RandomCrop, user_augment
from ._clustering import Clusterer
from ._device import resolve_device, resolve_precision
from ._images import Source
from ._kmeans import resolve_kmeans_backend
from ._loop import Recipe
from ._pixels import is_mirror_symmetric
from ._random import Streams
from ._sampling import n_updates

PSEUDO_LABELS_PER_CLUSTER = 5
IMAGES_PER_PSEUDO_LABEL = 20  # at least
SYMMETRY_ROWS = 2_000  # images that are mirrored to see whether they still fit in
STEPS_PER_ROUND = 200  # SGD steps at least: small sets get several epochs a round,
MAX_EPOCHS = 30  # but no more than these
PROJECTED = 128  # outputs of the projection head, as in DeepCluster-v2


def resolve(params: dict, source: Source, streams: Streams) -> tuple[Recipe, Clusterer]:
    """Check parameters against each other and the data; resolve every "auto".

    Parameters
    ----------
    params : dict
        The estimator's parameters, each valid by itself.
    source : Source
    streams : Streams

    Raises
    ------
    ValueError
        If parameters do not fit each other or the data.
    """
    n = len(source)
    is_image = len(source.shape) == 3
    n_clusters = params["n_clusters"]
    if n_clusters > n:
        raise ValueError(
            f"n_samples={n} should be >= n_clusters={n_clusters}. Pass more images or "
            "lower n_clusters."
        )
    n_pseudo_labels = params["n_pseudo_labels"]
    if n_pseudo_labels == "auto":
        most = PSEUDO_LABELS_PER_CLUSTER * n_clusters
        n_pseudo_labels = max(n_clusters, min(most, n // IMAGES_PER_PSEUDO_LABEL))
    if isinstance(n_pseudo_labels, Integral):
        n_pseudo_labels = (n_pseudo_labels,)
    for k in n_pseudo_labels:
        if not (isinstance(k, Integral) and n_clusters <= k <= n):
            raise ValueError(
                f"n_pseudo_labels={k} should lie between n_clusters={n_clusters}, "
                f"which it is merged into, and n_samples={n}."
            )
    if not n_pseudo_labels:
        raise ValueError("n_pseudo_labels is empty. Name at least one number.")
    if params["sobel"] and not is_image:
        raise ValueError(
            "sobel=True needs images, but X holds rows. Set image_shape=(C, H, W)."
        )
    augment = params["augment"]
    if augment == "auto":
        augment = None
        if is_image:
            rows = streams.sample("symmetry", n, SYMMETRY_ROWS)
            flip = is_mirror_symmetric(source, rows, n_clusters)
            augment = RandomCrop(flip=flip)
    elif augment == "crops":
        if not is_image:
            raise ValueError(
                "augment='crops' needs images, but X holds rows. Set image_shape=(C, "
                "H, W), or leave augment='auto'."
            )
        augment = CROPS
    elif augment is not None:
        augment = functools.partial(user_augment, augment)
    if isinstance(params["clusterer"], type):
        name = params["clusterer"].__name__
        raise TypeError(f"clusterer={name} is a class. Pass an instance: {name}().")
    n_crops = params["n_crops"]
    n_crops = (n_crops, 0) if isinstance(n_crops, Integral) else tuple(n_crops)
    if not (
        len(n_crops) == 2
        and all(isinstance(count, Integral) for count in n_crops)
        and n_crops[0] >= 1
        and n_crops[1] >= 0
    ):
        raise ValueError(
            f"n_crops={params['n_crops']} should be the number of crops of each image, "
            "at least 1, or that and the number of small ones."
        )
    if augment is None and n_crops != (1, 0):
        raise ValueError(
            f"n_crops={params['n_crops']} needs random crops, but there are none: set "
            "augment, or n_crops=1."
        )
    if n_crops[1] and not isinstance(augment, RandomCrop):
        raise ValueError(
            f"n_crops={params['n_crops']} asks for small crops, which need "
            "augment='auto' or 'crops'."
        )
    epochs, updates = params["epochs_per_iter"], params["updates_per_iter"]
    if updates is None:
        if epochs == "auto":
            steps = math.ceil(n / params["batch_size"])
            epochs = min(MAX_EPOCHS, math.ceil(STEPS_PER_ROUND / steps))
        updates = epochs * n_updates(n, params["batch_size"])
    device = resolve_device(params["device"])
    precision = params["precision"]
    if precision == "auto" and not is_image:
        # Products of rows are small: bfloat16 would cost accuracy and save nothing.
        precision = "float32"

    def given(*names: str) -> dict:
        return {name: params[name] for name in names}

    clusterer = Clusterer(
        n_pseudo_labels=tuple(map(int, n_pseudo_labels)),
        method=params["clusterer"],
        spherical=params["head"] == "centroids",
        backend=resolve_kmeans_backend(params["kmeans_backend"], device),
        device=device,
        **given("n_clusters", "n_neighbors", "n_components"),
        **given("whiten", "normalize", "empty_clusters"),
    )
    recipe = Recipe(
        updates_per_iter=updates,
        n_crops=n_crops,
        augment=augment,
        device=device,
        dtype=resolve_precision(precision, device),
        **given("init", "max_iter", "balance"),
        **given("batch_size", "learning_rate", "schedule", "momentum"),
        **given("weight_decay", "head", "temperature"),
        **given("features_dir"),
    )
    return recipe, clusterer


def projected_size(params: dict) -> int | None:
    """Return the outputs of the projection head, or None where there is none."""
    if params["head"] != "centroids":
        return None
    n_components = params["n_components"]
    return n_components if isinstance(n_components, Integral) else PROJECTED
