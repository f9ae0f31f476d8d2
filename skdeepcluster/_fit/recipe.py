"""Parameters and data -> a recipe: what each "auto" stands for."""

import functools
import math
from numbers import Integral

from .._clustering.kmeans import resolve_kmeans_backend
from .._clustering.pixels import is_mirror_symmetric
from .._clustering.pseudo_labels import Clusterer
from .._inputs.sources import Source
from .._training.augment import PAPER_CROPS, Augment, RandomCrop, apply_user_augment
from .._training.sampling import count_steps
from .._utils.device import resolve_device, resolve_precision
from .._utils.distributed import SINGLE_PROCESS, Processes
from .._utils.random import RandomStreams
from .loop import Recipe

PSEUDO_LABELS_PER_CLUSTER = 5
IMAGES_PER_PSEUDO_LABEL = 20  # at least
SYMMETRY_ROWS = 2_000  # images that are mirrored to see whether they still fit in
STEPS_PER_ROUND = 200  # SGD steps at least: small sets get several epochs a round,
MAX_EPOCHS = 30  # but no more than these
PROJECTED = 128  # outputs of the projection head, as in DeepCluster-v2


def resolve_recipe(
    params: dict,
    source: Source,
    streams: RandomStreams,
    processes: Processes = SINGLE_PROCESS,
) -> tuple[Recipe, Clusterer]:
    """Check parameters against each other and the data; resolve every "auto".

    Parameters
    ----------
    params : dict
        The estimator's parameters, each valid by itself.
    source : Source
    streams : Streams
    processes : Ranks

    Raises
    ------
    ValueError
        If parameters do not fit each other, the data or the number of processes.
    """
    n = len(source)
    is_image = len(source.shape) == 3
    n_clusters = params["n_clusters"]
    if n_clusters > n:
        raise ValueError(
            f"n_samples={n} should be >= n_clusters={n_clusters}. Pass more images or "
            "lower n_clusters."
        )
    _check_shares(params["batch_size"], n, processes)
    n_pseudo_labels = _numbers_of_labels(params, n)
    if params["sobel"] and not is_image:
        raise ValueError(
            "sobel=True needs images, but X holds rows. Set image_shape=(C, H, W)."
        )
    if isinstance(params["clusterer"], type):
        name = params["clusterer"].__name__
        raise TypeError(f"clusterer={name} is a class. Pass an instance: {name}().")
    n_crops = _n_crops(params)
    augment = _augment(params, n_crops, source, streams, processes)
    device = processes.local_device(resolve_device(params["device"]))
    precision = params["precision"]
    if precision == "auto" and not is_image:
        # Products of rows are small: bfloat16 would cost accuracy and save nothing.
        precision = "float32"

    def given(*names: str) -> dict:
        return {name: params[name] for name in names}

    clusterer = Clusterer(
        n_pseudo_labels=n_pseudo_labels,
        method=params["clusterer"],
        spherical=params["head"] == "centroids",
        backend=resolve_kmeans_backend(params["kmeans_backend"], device),
        device=device,
        processes=processes,
        **given("n_clusters", "n_neighbors", "n_components"),
        **given("whiten", "normalize", "empty_clusters"),
    )
    recipe = Recipe(
        updates_per_iter=_n_updates(params, n),
        n_crops=n_crops,
        augment=augment,
        device=device,
        dtype=resolve_precision(precision, device),
        **given("init", "max_iter", "balance"),
        **given("batch_size", "learning_rate", "schedule", "momentum"),
        **given("weight_decay", "head", "temperature"),
        **given("cache_dir"),
    )
    return recipe, clusterer


def _check_shares(batch_size: int, n: int, processes: Processes) -> None:
    """Raise ValueError if a process would be without an image of a batch."""
    fewest = 2 * processes.size  # the smallest batch has about half of the rows
    if processes.size > 1 and batch_size < fewest:
        raise ValueError(
            f"batch_size={batch_size} is shared by {processes.size} processes, each of "
            f"which needs some of it. Set it to {fewest} or more, or start fewer."
        )
    if processes.size > 1 and n < fewest:
        raise ValueError(
            f"n_samples={n} is too few for {processes.size} processes. Start fewer."
        )


def _numbers_of_labels(params: dict, n: int) -> tuple[int, ...]:
    """Return how many pseudo-labels each clustering has."""
    n_clusters, numbers = params["n_clusters"], params["n_pseudo_labels"]
    if numbers == "auto":
        most = PSEUDO_LABELS_PER_CLUSTER * n_clusters
        numbers = max(n_clusters, min(most, n // IMAGES_PER_PSEUDO_LABEL))
    numbers = (numbers,) if isinstance(numbers, Integral) else tuple(numbers)
    for k in numbers:
        if not (isinstance(k, Integral) and n_clusters <= k <= n):
            raise ValueError(
                f"n_pseudo_labels={k} should lie between n_clusters={n_clusters}, "
                f"which it is merged into, and n_samples={n}. Change it, or set it "
                "to 'auto'."
            )
    if not numbers:
        raise ValueError("n_pseudo_labels is empty. Name at least one number.")
    return tuple(map(int, numbers))


def _n_crops(params: dict) -> tuple[int, int]:
    """Return how many views of an image there are, and how many small ones."""
    given, augment = params["n_crops"], params["augment"]
    n_crops = (given, 0) if isinstance(given, Integral) else tuple(given)
    whole = all(isinstance(count, Integral) for count in n_crops)
    if len(n_crops) != 2 or not whole or n_crops[0] < 1 or n_crops[1] < 0:
        raise ValueError(
            f"n_crops={given} should be the number of crops of each image, at least 1, "
            "or that and the number of small ones."
        )
    if n_crops[1] and augment not in ("auto", "crops"):
        raise ValueError(
            f"n_crops={given} asks for small crops, which need augment='auto' or "
            "'crops'."
        )
    return n_crops


def _augment(
    params: dict,
    n_crops: tuple[int, int],
    source: Source,
    streams: RandomStreams,
    processes: Processes,
) -> Augment | None:
    """Return what changes training batches; raise ValueError if it cannot."""
    augment = params["augment"]
    if len(source.shape) != 3 and augment in ("auto", "crops"):
        if augment == "crops":
            raise ValueError(
                "augment='crops' needs images, but X holds rows. Set image_shape=(C, "
                "H, W), or leave augment='auto'."
            )
        augment = None
    if augment is None and n_crops != (1, 0):
        raise ValueError(
            f"n_crops={params['n_crops']} needs random crops, but there are none: set "
            "augment, or n_crops=1."
        )
    if augment == "auto":
        rows = streams.sample("symmetry", len(source), SYMMETRY_ROWS)
        k = params["n_clusters"]
        flip = processes.run_on_first(lambda: is_mirror_symmetric(source, rows, k))
        return RandomCrop(flip=flip)
    if augment == "crops":
        return PAPER_CROPS
    return None if augment is None else functools.partial(apply_user_augment, augment)


def _n_updates(params: dict, n: int) -> int:
    """Return the SGD steps of a round."""
    epochs, batch_size = params["epochs_per_iter"], params["batch_size"]
    if params["updates_per_iter"] is not None:
        return params["updates_per_iter"]
    if epochs == "auto":
        steps = math.ceil(n / batch_size)
        epochs = min(MAX_EPOCHS, math.ceil(STEPS_PER_ROUND / steps))
    return epochs * count_steps(n, batch_size)


def projected_size(params: dict) -> int | None:
    """Return the outputs of the projection head, or None where there is none."""
    if params["head"] != "centroids":
        return None
    n_components = params["n_components"]
    return int(n_components) if isinstance(n_components, Integral) else PROJECTED
