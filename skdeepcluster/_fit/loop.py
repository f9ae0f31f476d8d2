"""The rounds of DeepCluster: train on the pseudo-labels, cluster anew, repeat.

Points are what is clustered and classified: the features of the network or, with
`head="centroids"`, the outputs of a projection head on the features.
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from .._clustering.merging import diffusion_map, sample_merge_rows
from .._clustering.pixels import fit_pixel_projection, project_pixels
from .._clustering.pseudo_labels import Clusterer, PseudoLabels
from .._inputs.content import hash_images
from .._inputs.sources import RowsSource, Source
from .._training.batch_norm import CALIBRATION_ROWS, calibrate_batch_norm
from .._training.epoch import TrainingState, train_epoch
from .._training.features import allocate_features, extract_features
from .._training.heads import (
    Head,
    centroid_head,
    count_labels,
    linear_head,
    predict_labels,
)
from .._training.network import Network, PointExtractor
from .._training.sampling import loss_weights, sample_rows, split_into_passes
from .._utils.distributed import Processes, Shard, Sharded
from .._utils.hashing import hash_content
from .._utils.pages import row_blocks
from .._utils.random import RandomStreams
from .._utils.threads import limit_threads
from .reporting import PhaseTimer, make_record
from .stability import STABILITY_ROWS, StabilityProbe
from .state import FitState, Recipe, Round

# Number of images that the principal components of the pixels are fitted to.
PIXEL_ROWS = 20_000
# If the network is not trained, one of this many images is changed to see how stable
# clusters are, but at least so many.
IMAGES_PER_STABILITY_ROW = 10
MIN_STABILITY_ROWS = 100
# Learning rate of the head with a cosine schedule, as a multiple of the network's
# initial learning rate. The head is new in each round, so its rate does not decay.
HEAD_LEARNING_RATE = 1.5


@dataclass(frozen=True)
class FitSetup:
    """Everything that stays fixed during the rounds of a fit.

    Parameters
    ----------
    source : Source
        Training images.
    network : Network
        Trained in place.
    recipe : Recipe
    clusterer : Clusterer
    streams : RandomStreams
    points : Sharded array of shape (n, n_points), float32
        Memory for the points of this process's images, which each round overwrites.
    stability_probe : StabilityProbe
    calibration_rows : ndarray of int
        Rows of the images that batch-norm statistics are computed from.
    merge_rows : ndarray of int
        Rows of the images that the final clusters are made from.
    n_clustering_threads : int or None, default=None
        Number of threads of clusterings. None is the present number.
    """

    source: Source
    network: Network
    recipe: Recipe
    clusterer: Clusterer
    streams: RandomStreams
    points: Sharded
    stability_probe: StabilityProbe
    calibration_rows: np.ndarray
    merge_rows: np.ndarray
    n_clustering_threads: int | None = None

    @classmethod
    def prepare(
        cls,
        source: Source,
        network: Network,
        recipe: Recipe,
        clusterer: Clusterer,
        streams: RandomStreams,
        processes: Processes,
        n_clustering_threads: int | None = None,
    ) -> "FitSetup":
        """Draw the samples, allocate the memory, and move the network to its device."""
        n = len(source)
        is_image = len(source.shape) == 3
        layout = torch.channels_last if is_image else torch.preserve_format
        network.to(recipe.compute.device).to(memory_format=layout)
        shard = processes.shard(n)
        shape = len(shard), network.n_points
        n_rows = STABILITY_ROWS
        if not recipe.fine_tune:
            # Changed images cost a pass of the network, as all images do.
            n_rows = min(n_rows, max(MIN_STABILITY_ROWS, n // IMAGES_PER_STABILITY_ROW))
        rows = streams.sample("stability", n, n_rows)
        return cls(
            source=source,
            network=network,
            recipe=recipe,
            clusterer=clusterer,
            streams=streams,
            points=Sharded(allocate_features(shape, recipe.cache_dir), shard),
            stability_probe=StabilityProbe(
                # Images that are read once are not to be kept.
                source.take(rows) if recipe.fine_tune else RowsSource(source, rows),
                rows,
                clusterer.n_clusters,
            ),
            calibration_rows=streams.sample("calibration", n, CALIBRATION_ROWS),
            merge_rows=sample_merge_rows(n, clusterer.n_clusters, streams),
            n_clustering_threads=n_clustering_threads,
        )

    @property
    def shard(self) -> Shard:
        """Images that this process extracts features of."""
        return self.points.shard

    @property
    def processes(self) -> Processes:
        """Processes that share the fit."""
        return self.points.processes

    @functools.cached_property
    def features_hash(self) -> str:
        """Hash of all that the features of a frozen network depend on."""
        precision = str(self.recipe.compute.dtype)
        return hash_content(hash_images(self.source), self.network, precision)

    @functools.cached_property
    def merge_pixels(self) -> np.ndarray | None:
        """Principal components of the pixels of the images at `merge_rows`.

        None if the fit does not start from pixels: these are not to be trusted then.
        """
        if self.recipe.init != "pixels" or self.clusterer.labels_are_final:
            return None
        images = self.source.take(self.merge_rows)
        rows = np.arange(len(images))[:PIXEL_ROWS]
        return project_pixels(images, fit_pixel_projection(images, rows))

    @property
    def clusters_training_points(self) -> bool:
        """True if points of the training passes are clustered (DeepCluster-v2)."""
        return self.recipe.head == "centroids"

    @property
    def points_are_features(self) -> bool:
        """True if the points of un-augmented images are the features of the network."""
        # Features of given weights are normalized before they are clustered.
        return not (self.clusters_training_points or self.network.setup.is_given)


def run_rounds(
    setup: FitSetup, history: list[dict], state: FitState | None = None
) -> Iterator[tuple[FitState, Round | None]]:
    """Train the network in place, alternating training and clustering.

    Each round trains on the current pseudo-labels, extracts the features anew and
    clusters them. At the end of a round, its clusters are therefore clusters of the
    features that the network returns now (sections 3.2 to 3.4 of the paper). With
    `head="centroids"`, points stored during training are clustered instead.

    Parameters
    ----------
    setup : FitSetup
    history : list of dict
        Records of earlier fits if this is a warm start, else empty. Not used with
        `state`.
    state : FitState or None
        Result of `resume`, from which the fit continues.

    Yields
    ------
    state : FitState
        Before the first round, after each batch and after each round. It is the same
        object each time.
    finished : Round or None
        Results of the round that has just been completed. None before the first round
        and after a batch.

    Raises
    ------
    ValueError
        If the loss or the features are no longer finite.
    """
    if state is None:
        state = start(setup, history)
        yield state, None

    for _ in range(setup.recipe.max_iter - state.n_rounds):
        round_number = len(state.history) + 1
        timer = PhaseTimer(state.seconds)

        # Train network and head to predict the pseudo-labels (paper, equation 1).
        if state.training is None:
            state.training = new_training(setup, state, round_number)
        for _ in train_round(setup, state, round_number, timer):
            yield state, None

        # Extract the features of all images without augmentation, in evaluation mode
        # (section 3.4). Running batch-norm statistics average over earlier weights, so
        # they are recomputed first.
        points = points_to_cluster(setup, round_number)
        timer.tick("embed")

        # Cluster the features: the clusters are the next pseudo-labels (equation 2).
        with limit_threads(setup.n_clustering_threads):
            pseudo_labels = cluster(setup, points, round_number)
        # The head's confusions show which of the pseudo-labels that it was trained on
        # belong together. They are computed now: the next round replaces the head.
        with limit_threads(setup.n_clustering_threads):
            merge_map = make_merge_map(setup, state.training.head, points)
        timer.tick("cluster")

        # Measure without labels whether the network has improved.
        gain = measure_gain(setup, state, points)
        timer.tick("stability")

        finished = Round(
            record=make_record(
                index=round_number,
                losses=state.training.losses,
                gain=gain,
                previous_labels=state.labels,
                pseudo_labels=pseudo_labels,
                n_images=sum(pass_sizes(setup)),
                seconds=state.seconds,
            ),
            features=points if setup.points_are_features else None,
            pseudo_labels=pseudo_labels,
            diffusion_map=merge_map,
        )
        # Times differ between processes, so all take the record of the first one.
        finished.record.update(setup.processes.all_gather_object(finished.record)[0])
        state.complete_round(finished)
        yield state, finished


def start(setup: FitSetup, history: list[dict]) -> FitState:
    """Compute the first pseudo-labels, and return the state before the first round."""
    recipe, network = setup.recipe, setup.network
    # The running statistics of a fresh network are placeholders (0 and 1). Without
    # calibration, evaluation mode would give other features than training sees.
    calibrate(setup)
    initial_stability = setup.processes.run_on_first(
        lambda: setup.stability_probe.measure(network, recipe.compute)
    )
    # In a warm start the network is trained, and its features are better than pixels.
    from_pixels = recipe.init == "pixels" and not history
    # The first head of centroids needs points even if pixels give the labels.
    if setup.clusters_training_points or not from_pixels:
        extract_points(setup)
    seed = setup.streams.seed("kmeans", len(history))
    with limit_threads(setup.n_clustering_threads):
        if from_pixels:
            pseudo_labels = cluster_pixels(setup, seed)
        else:
            pseudo_labels = setup.clusterer.cluster_features(setup.points, seed)
    state = new_state(setup, initial_stability, pseudo_labels.labels)
    state.history = list(history)
    return state


def resume(setup: FitSetup, saved: dict) -> FitState:
    """Return the state of a checkpoint.

    Parameters
    ----------
    setup : FitSetup
    saved : dict
        Result of `FitState.state_dict`.

    Raises
    ------
    InvalidContent
        If `saved` is not a state of this fit.
    """
    shape = len(setup.clusterer.n_pseudo_labels), len(setup.source)
    state = new_state(setup, 0.0, np.zeros(shape, np.int32))
    state.load_state_dict(saved, setup.recipe, len(setup.merge_rows))
    if saved["training"] is not None:
        state.training = new_training(setup, state, len(state.history) + 1)
        n_passes = len(pass_sizes(setup))
        state.training.load_state_dict(saved["training"], n_passes, setup.processes)
    return state


def new_state(
    setup: FitSetup, initial_stability: float, labels: np.ndarray
) -> FitState:
    """Return the state before the first round, with a new optimizer and schedule."""
    recipe = setup.recipe
    optimizer = make_sgd(setup.network, recipe, recipe.learning_rate)
    is_constant = recipe.schedule == "constant"
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
        optimizer,
        recipe.max_iter * recipe.steps_per_round,
        # A final rate equal to the initial rate makes the cosine constant, as in the
        # paper.
        eta_min=recipe.learning_rate if is_constant else 0.0,
    )
    return FitState(
        initial_stability=initial_stability,
        labels=labels,
        optimizer=optimizer,
        schedule=schedule,
        training_points=setup.points if setup.clusters_training_points else None,
    )


def make_sgd(
    module: torch.nn.Module, recipe: Recipe, learning_rate: float
) -> torch.optim.SGD:
    """Return SGD for the parameters of a module."""
    return torch.optim.SGD(
        module.parameters(),
        lr=learning_rate,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
    )


def pass_sizes(setup: FitSetup) -> list[int]:
    """Return the number of images in each training pass of a round."""
    recipe = setup.recipe
    return split_into_passes(
        recipe.steps_per_round, len(setup.source), recipe.batch_size
    )


def new_training(setup: FitSetup, state: FitState, round_number: int) -> TrainingState:
    """Return a new head for a round, its optimizer and the generator of augmentation.

    Cluster numbers are arbitrary, so the head of one round does not fit the next. The
    paper draws a new linear layer (section 3.4). DeepCluster-v2 uses the cluster
    centers as weights.
    """
    recipe, streams = setup.recipe, setup.streams
    counts = count_labels(state.labels)
    if state.training_points is None:
        generator = streams.torch("head", round_number)
        head = linear_head(setup.network.n_points, counts, generator)
    else:
        labels = state.labels[:, setup.shard.rows]
        head = centroid_head(state.training_points, labels, counts, recipe.temperature)
    head.to(recipe.compute.device)
    factor = HEAD_LEARNING_RATE if recipe.schedule == "cosine" else 1.0
    return TrainingState(
        head=head,
        generator=streams.torch("augment", round_number),
        head_optimizer=make_sgd(head, recipe, factor * recipe.learning_rate),
    )


def train_round(
    setup: FitSetup, state: FitState, round_number: int, timer: PhaseTimer
) -> Iterator[None]:
    """Train network and head on the pseudo-labels, and yield after each batch."""
    recipe, training = setup.recipe, state.training
    assert training is not None
    assert training.head_optimizer is not None
    rng = setup.streams.numpy("sampling", round_number)
    weights = None
    if recipe.balance == "loss":
        counts = count_labels(state.labels)
        weights = list(map(loss_weights, state.labels, counts))
    for i_pass, n_rows in enumerate(pass_sizes(setup)):
        # With balance="uniform", rows are drawn uniformly over pseudo-labels: a giant
        # cluster would otherwise make one constant prediction optimal (section 3.3).
        # With several clusterings only the first is balanced.
        rows = sample_rows(state.labels[0], recipe.balance, rng, n_rows)
        timer.tick("sample")
        # A resumed round skips its complete passes, but draws their rows, so that the
        # generator is in the same state.
        if i_pass < len(training.losses):
            continue
        for _ in train_epoch(
            setup.network,
            training,
            [state.optimizer, training.head_optimizer],
            state.schedule,
            setup.source,
            rows,
            state.labels,
            recipe.batch_options,
            weights=weights,
            training_points=state.training_points,
            processes=setup.processes,
        ):
            timer.tick("train")
            yield
        # The end of a pass sums the losses of all processes.
        timer.tick("train")
        check_finite_training(training.losses[-1], "loss", round_number, recipe)


def calibrate(setup: FitSetup) -> None:
    """Set batch-norm statistics from the un-augmented images of the sample.

    The network is in training mode afterwards.
    """
    calibrate_batch_norm(
        setup.network,
        setup.source,
        setup.calibration_rows,
        batch_size=setup.recipe.batch_size,
        compute=setup.recipe.compute,
        processes=setup.processes,
    )


def extract_points(setup: FitSetup) -> None:
    """Write the points of this process's images into `setup.points`."""
    extract_features(
        PointExtractor(setup.network),
        setup.source,
        setup.recipe.compute,
        out=setup.points.values,
        rows=setup.shard.rows,
    )


def points_to_cluster(setup: FitSetup, round_number: int) -> Sharded:
    """Calibrate batch norm, and return the points that are clustered after a round.

    Raises
    ------
    ValueError
        If the points are not finite.
    """
    calibrate(setup)
    # DeepCluster-v2 clusters the points that the training passes have stored, which
    # saves a pass over the images (Caron et al., NeurIPS 2020, appendix).
    if not setup.clusters_training_points:
        extract_points(setup)
    total = sum_values(setup.points)
    check_finite_training(total, "sum of features", round_number, setup.recipe)
    return setup.points


def sum_values(points: Sharded) -> float:
    """Return the sum of all values, which is NaN or infinite if one of them is."""
    total = 0.0
    # Infinities of both signs sum to NaN.
    with np.errstate(invalid="ignore"):
        for rows in row_blocks(points.values):
            total += float(points.values[rows].sum(dtype=float))
        return float(points.processes.sum(np.array(total)))


def cluster(setup: FitSetup, points: Sharded, round_number: int) -> PseudoLabels:
    """Return the pseudo-labels of all images after a round."""
    return setup.clusterer.cluster_features(
        points, setup.streams.seed("kmeans", round_number)
    )


def cluster_pixels(setup: FitSetup, seed: int) -> PseudoLabels:
    """Return pseudo-labels that come from the pixels, before any training."""
    source, recipe = setup.source, setup.recipe
    rows = setup.streams.sample("pixels", len(source), PIXEL_ROWS)
    projection = setup.processes.run_on_first(
        lambda: fit_pixel_projection(source, rows)
    )
    shape = len(setup.shard), projection.components.shape[1]
    pixels = allocate_features(shape, recipe.cache_dir)
    project_pixels(source, projection, out=pixels, rows=setup.shard.rows)
    return setup.clusterer.cluster_pixels(Sharded(pixels, setup.shard), seed)


def make_merge_map(setup: FitSetup, head: Head, points: Sharded) -> np.ndarray | None:
    """Return the diffusion map by which pseudo-labels are merged.

    It is None if the pseudo-labels are the final clusters. With given weights it is
    None, too: clusters of the neighbors in good features are better than what a head
    confuses that was trained for a few epochs.
    """
    if setup.clusterer.labels_are_final or setup.network.setup.is_given:
        return None
    # The merge of pseudo-labels compares images with each other, so a sample bounds
    # its time.
    sample = points.take(setup.merge_rows)
    return setup.processes.run_on_first(
        lambda: diffusion_map(predict_labels(head, sample), setup.clusterer.n_clusters)
    )


def measure_gain(setup: FitSetup, state: FitState, points: Sharded) -> float:
    """Return how much stability has grown since before training."""
    probe = setup.stability_probe
    features = None
    # The features may have just been extracted. Otherwise the probe extracts them.
    if setup.points_are_features:
        features = points.take(probe.rows)
    stability = setup.processes.run_on_first(
        lambda: probe.measure(setup.network, setup.recipe.compute, features)
    )
    return stability - state.initial_stability


def check_finite_training(
    value: float, name: str, round_number: int, recipe: Recipe
) -> None:
    """Raise ValueError if training has diverged."""
    if not np.isfinite(value):
        raise ValueError(
            f"The {name} is {value} in round {round_number}: training diverged. Lower "
            f"learning_rate, for example to a tenth: learning_rate="
            f"{recipe.learning_rate / 10:g}."
        )
