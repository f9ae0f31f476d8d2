"""The alternation of DeepCluster: cluster the features, train on the clusters."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from .._clustering.merging import diffusion_map, sample_merge_rows
from .._clustering.pixels import fit_pixel_projection, project_pixels
from .._clustering.pseudo_labels import Clusterer, PseudoLabels
from .._inputs.sources import Source
from .._training.augment import Augment
from .._training.epoch import (
    CALIBRATION_ROWS,
    TrainingState,
    calibrate_batch_norm,
    load_optimizer_state,
    optimizer_state,
    train_epoch,
)
from .._training.features import allocate_features, extract_features
from .._training.heads import (
    Head,
    centroid_head,
    count_labels,
    linear_head,
    predict_labels,
)
from .._training.network import Network
from .._training.sampling import loss_weights, sample_rows, split_into_passes
from .._utils.distributed import SINGLE_PROCESS, Processes, Shard, Sharded
from .._utils.random import RandomStreams
from .reporting import PhaseTimer, make_record
from .stability import measure_stability, mild_augment

STABILITY_ROWS = 1000  # images whose changed copies a round is judged by
PIXEL_ROWS = 20_000  # images that the principal components of the pixels come from
HEAD_PACE = 1.5  # learning rate of the head, where that of the network falls


@dataclass(frozen=True)
class Recipe:
    """Every choice of the training half, with nothing left to be resolved."""

    init: str
    max_iter: int
    updates_per_iter: int
    augment: Augment | None
    n_crops: tuple[int, int]  # views of each image, and small ones
    head: str
    temperature: float
    balance: str | None
    batch_size: int
    learning_rate: float
    schedule: str
    momentum: float
    weight_decay: float
    device: torch.device
    dtype: torch.dtype
    cache_dir: str | os.PathLike | None = None


@dataclass
class FitState:
    """Where a fit is: what its next step needs of those before, besides the network.

    It is the same object throughout, and changes with each step.
    """

    start: float  # how stable clusters of the features were before training
    labels: np.ndarray  # int32 (h, n), that this round trains on
    optimizer: torch.optim.SGD  # of the network
    schedule: torch.optim.lr_scheduler.LRScheduler
    n_rounds: int = 0  # of this fit that are complete
    seconds: dict[str, float] = field(default_factory=dict)  # of this round, by phase
    training: TrainingState | None = None  # of this round; None before it
    # Points of the images as training saw them last, where those are clustered; of
    # those images that this process holds.
    remembered: np.ndarray | None = None

    def state_dict(self, processes: Processes = SINGLE_PROCESS) -> dict:
        """Return tensors, arrays and plain values that `alternate` can go on from."""
        remembered = self.remembered
        if remembered is not None:
            remembered = Sharded(
                remembered, processes.shard_from_sizes(len(remembered))
            ).gather()
        return {
            "start": self.start,
            "labels": self.labels,
            "optimizer": optimizer_state(self.optimizer),
            "schedule": self.schedule.state_dict(),
            "n_rounds": self.n_rounds,
            "seconds": self.seconds,
            "training": self.training and self.training.state_dict(processes),
            "remembered": remembered,
        }


@dataclass(frozen=True)
class Round:
    """What one round leaves behind."""

    record: dict  # one entry of the estimator's `history_`
    # float32 (n, d), of the network now, for the images that this process holds; the
    # next round reuses it. None where what is clustered is remembered from training.
    features: np.ndarray | None
    found: PseudoLabels
    view: np.ndarray | None  # float32, what it contributes to groups
    progress: FitState


def run_rounds(
    source: Source,
    network: Network,
    recipe: Recipe,
    clusterer: Clusterer,
    streams: RandomStreams,
    n_done: int = 0,
    saved: dict | None = None,
    processes: Processes = SINGLE_PROCESS,
) -> Iterator[FitState | Round]:
    """Train `network` in place, yielding its progress after each batch, and each round.

    A round trains on the pseudo-labels, then extracts the features anew and clusters
    them, so each `Round` is complete: the clusters are those of the features that the
    network gives now (sections 3.2 to 3.4 of the paper). With a head of centroids the
    points that training gave are clustered instead, without another pass over the
    images (DeepCluster-v2: Caron et al., NeurIPS 2020, appendix).

    `n_done` is the number of rounds that the network has behind it, `saved` the state
    of the progress of this fit where it is to go on, with the network as it was.

    Several processes are given the same and yield the same, but for the features: each
    extracts those of a part of the images, and takes a part of each training batch.

    Raises
    ------
    ValueError
        If the loss or the features are no longer finite.
    """
    n = len(source)
    shard = processes.shard(n)
    computing: dict[str, Any] = {
        "batch_size": recipe.batch_size,
        "device": recipe.device,
        "dtype": recipe.dtype,
    }
    layout = torch.channels_last if len(source.shape) == 3 else torch.preserve_format
    network.to(recipe.device).to(memory_format=layout)
    sample = streams.sample("calibration", n, CALIBRATION_ROWS)
    grouped = sample_merge_rows(n, clusterer.n_clusters, streams)
    judged = streams.sample("stability", n, STABILITY_ROWS)
    few = source.take(judged)

    def judge(seen: np.ndarray | None = None) -> float:
        def compute() -> float:
            how = few, recipe.device, recipe.dtype
            own = extract_features(network, *how) if seen is None else seen
            view = extract_features(network, *how, mild_augment(few))
            return measure_stability(own, view, clusterer.n_clusters)

        return processes.run_on_first(compute)

    sizes = split_into_passes(recipe.updates_per_iter, n, recipe.batch_size)
    optimizer = _sgd(network, recipe, 1.0)
    falling = recipe.schedule == "cosine"
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
        *(optimizer, recipe.max_iter * recipe.updates_per_iter),
        eta_min=0.0 if falling else recipe.learning_rate,
    )
    points = allocate_features((len(shard), network.n_points), recipe.cache_dir)
    remembered = points if recipe.head == "centroids" else None
    from_pixels = recipe.init == "pixels" and not n_done
    if saved is None:
        calibrate_batch_norm(network, source, sample, **computing, processes=processes)
        start = judge()
        seed = streams.seed("kmeans", n_done)
        if remembered is not None or not from_pixels:
            _embed_points(network, source, recipe, points, shard)
        if from_pixels:
            labels = _first_labels(source, recipe, clusterer, streams, seed, shard)
        else:
            labels = clusterer.pseudo_labels(points, seed).labels
        progress = FitState(start, labels, optimizer, schedule, remembered=remembered)
        yield progress
    else:
        load_optimizer_state(optimizer, saved["optimizer"])
        schedule.load_state_dict(saved["schedule"])
        progress = FitState(
            *(saved["start"], saved["labels"], optimizer, schedule),
            *(saved["n_rounds"], saved["seconds"]),
            remembered=remembered,
        )
        if remembered is not None:
            remembered[:] = saved["remembered"][shard.rows]
    n_left = recipe.max_iter - progress.n_rounds
    for index in range(n_done + 1, n_done + 1 + n_left):
        clock = PhaseTimer(progress.seconds)
        labels, counts = progress.labels, count_labels(progress.labels)
        if remembered is None:
            head = linear_head(network.n_points, counts, streams.torch("head", index))
        else:
            head = centroid_head(
                *(remembered, labels[:, shard.rows], counts),
                *(recipe.temperature, processes),
            )
        head.to(recipe.device)
        of_head = _sgd(head, recipe, HEAD_PACE if falling else 1.0)
        training = TrainingState(head, of_head, streams.torch("augment", index))
        if saved is not None and saved["training"] is not None:
            training.load_state_dict(saved["training"], processes)
        saved = None
        progress.training = training
        sampler = streams.numpy("sampling", index)
        weights = None
        if recipe.balance == "loss":
            weights = [*map(loss_weights, labels, counts)]
        for epoch, size in enumerate(sizes):
            # Of several numbers of pseudo-labels the first is balanced.
            drawn = sample_rows(labels[0], recipe.balance, sampler, size)
            clock.tick("sample")
            if epoch < len(training.losses):
                continue  # it was complete when the fit was stopped
            for _ in train_epoch(
                network,
                training,
                optimizer,
                schedule,
                source,
                drawn,
                labels,
                weights=weights,
                augment=recipe.augment,
                n_crops=recipe.n_crops,
                remembered=remembered,
                **computing,
                processes=processes,
            ):
                clock.tick("train")
                yield progress
            clock.tick("train")
            _check_converging(training.losses[-1], "loss", index, recipe)
        calibrate_batch_norm(network, source, sample, **computing, processes=processes)
        if remembered is None:
            _embed_points(network, source, recipe, points, shard)
        with np.errstate(invalid="ignore"):  # of infinities of both signs
            total = float(processes.sum(points.sum(dtype=float)))
        _check_converging(total, "sum of features", index, recipe)
        clock.tick("embed")
        found = clusterer.pseudo_labels(points, streams.seed("kmeans", index))
        view = None
        if not clusterer.single:
            view = _confusions(
                *(
                    head,
                    Sharded(points, shard).take(grouped),
                    clusterer.n_clusters,
                    processes,
                )
            )
        clock.tick("cluster")
        features = points if remembered is None else None
        seen = None if features is None else Sharded(features, shard).take(judged)
        gain = judge(seen) - progress.start
        clock.tick("judge")
        record = make_record(
            *(index, training.losses, gain, labels, found, sum(sizes), clock)
        )
        progress.labels, progress.n_rounds = found.labels, progress.n_rounds + 1
        progress.training, progress.seconds = None, {}
        yield Round(record, features, found, view, progress)


def _embed_points(
    network: Network, source: Source, recipe: Recipe, out: np.ndarray, shard: Shard
) -> None:
    """Write the points of the shard's images, as they are, into `out`."""
    extract_features(
        *(network, source, recipe.device, recipe.dtype),
        out=out,
        points=True,
        rows=shard.rows,
    )


def _confusions(
    head: Head, points: np.ndarray, n_clusters: int, processes: Processes
) -> np.ndarray:
    """Return what the head's confusions contribute to the groups."""
    return processes.run_on_first(
        lambda: diffusion_map(predict_labels(head, points), n_clusters)
    )


def _first_labels(
    source: Source,
    recipe: Recipe,
    clusterer: Clusterer,
    streams: RandomStreams,
    seed: int,
    shard: Shard,
) -> np.ndarray:
    """Return pseudo-labels that come from the pixels alone."""
    rows = streams.sample("pixels", len(source), PIXEL_ROWS)
    projection = shard.processes.run_on_first(
        lambda: fit_pixel_projection(source, rows)
    )
    shape = len(shard), projection.components.shape[1]
    pixels = allocate_features(shape, recipe.cache_dir)
    project_pixels(source, projection, out=pixels, rows=shard.rows)
    return clusterer.first_labels(pixels, seed).labels


def _check_converging(value: float, name: str, index: int, recipe: Recipe) -> None:
    if not np.isfinite(value):
        raise ValueError(
            f"The {name} is {value} in round {index}: training diverged. Lower "
            f"learning_rate={recipe.learning_rate}, say to a tenth."
        )


def _sgd(module: torch.nn.Module, recipe: Recipe, pace: float) -> torch.optim.SGD:
    return torch.optim.SGD(
        module.parameters(),
        lr=pace * recipe.learning_rate,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
    )
