"""The alternation of DeepCluster: cluster the features, train on the clusters."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ._augment import Augment
from ._clustering import Clusterer, PseudoLabels
from ._convnets import Network
from ._distributed import ALONE, Ranks, Shard
from ._features import allocate, embed
from ._groups import diffusion_map, grouped_rows
from ._heads import (
    Head,
    centroid_head,
    count_labels,
    fresh_head,
    predict_labels,
)
from ._history import Clock, make_record
from ._images import Source
from ._pixels import embed_pixels, fit_pixels
from ._random import Streams
from ._sampling import epoch_rows, loss_weights, passes
from ._stability import mild_view, stability
from ._training import (
    CALIBRATION_ROWS,
    Training,
    calibrate,
    load_optimizer_state,
    optimizer_state,
    train_epoch,
)

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
    features_dir: str | os.PathLike | None = None


@dataclass
class Progress:
    """Where a fit is: what its next step needs of those before, besides the network.

    It is the same object throughout, and changes with each step.
    """

    start: float  # how stable clusters of the features were before training
    labels: np.ndarray  # int32 (h, n), that this round trains on
    optimizer: torch.optim.SGD  # of the network
    schedule: torch.optim.lr_scheduler.LRScheduler
    n_rounds: int = 0  # of this fit that are complete
    seconds: dict[str, float] = field(default_factory=dict)  # of this round, by phase
    training: Training | None = None  # of this round; None before it
    # Points of the images as training saw them last, where those are clustered; of
    # those images that this process holds.
    remembered: np.ndarray | None = None

    def state_dict(self, ranks: Ranks = ALONE) -> dict:
        """Return tensors, arrays and plain values that `alternate` can go on from."""
        remembered = self.remembered
        if remembered is not None:
            remembered = ranks.held(len(remembered)).gather(remembered)
        return {
            "start": self.start,
            "labels": self.labels,
            "optimizer": optimizer_state(self.optimizer),
            "schedule": self.schedule.state_dict(),
            "n_rounds": self.n_rounds,
            "seconds": self.seconds,
            "training": self.training and self.training.state_dict(ranks),
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
    progress: Progress


def alternate(
    source: Source,
    network: Network,
    recipe: Recipe,
    clusterer: Clusterer,
    streams: Streams,
    n_done: int = 0,
    saved: dict | None = None,
    ranks: Ranks = ALONE,
) -> Iterator[Progress | Round]:
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
    shard = ranks.shard(n)
    computing: dict[str, Any] = {
        "batch_size": recipe.batch_size,
        "device": recipe.device,
        "dtype": recipe.dtype,
    }
    layout = torch.channels_last if len(source.shape) == 3 else torch.preserve_format
    network.to(recipe.device).to(memory_format=layout)
    sample = streams.sample("calibration", n, CALIBRATION_ROWS)
    grouped = grouped_rows(n, clusterer.n_clusters, streams)
    judged = streams.sample("stability", n, STABILITY_ROWS)
    few = source.take(judged)

    def judge(seen: np.ndarray | None = None) -> float:
        def compute() -> float:
            how = few, recipe.device, recipe.dtype
            own = embed(network, *how) if seen is None else seen
            view = embed(network, *how, mild_view(few))
            return stability(own, view, clusterer.n_clusters)

        return ranks.first(compute)

    sizes = passes(recipe.updates_per_iter, n, recipe.batch_size)
    optimizer = _sgd(network, recipe, 1.0)
    falling = recipe.schedule == "cosine"
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
        *(optimizer, recipe.max_iter * recipe.updates_per_iter),
        eta_min=0.0 if falling else recipe.learning_rate,
    )
    points = allocate((len(shard), network.n_points), recipe.features_dir)
    remembered = points if recipe.head == "centroids" else None
    from_pixels = recipe.init == "pixels" and not n_done
    if saved is None:
        calibrate(network, source, sample, **computing, ranks=ranks)
        start = judge()
        seed = streams.seed("kmeans", n_done)
        if remembered is not None or not from_pixels:
            _embed_points(network, source, recipe, points, shard)
        if from_pixels:
            labels = _first_labels(source, recipe, clusterer, streams, seed, shard)
        else:
            labels = clusterer.pseudo_labels(points, seed).labels
        progress = Progress(start, labels, optimizer, schedule, remembered=remembered)
        yield progress
    else:
        load_optimizer_state(optimizer, saved["optimizer"])
        schedule.load_state_dict(saved["schedule"])
        progress = Progress(
            *(saved["start"], saved["labels"], optimizer, schedule),
            *(saved["n_rounds"], saved["seconds"]),
            remembered=remembered,
        )
        if remembered is not None:
            remembered[:] = saved["remembered"][shard.rows]
    n_left = recipe.max_iter - progress.n_rounds
    for index in range(n_done + 1, n_done + 1 + n_left):
        clock = Clock(progress.seconds)
        labels, counts = progress.labels, count_labels(progress.labels)
        if remembered is None:
            head = fresh_head(network.n_points, counts, streams.torch("head", index))
        else:
            head = centroid_head(
                *(remembered, labels[:, shard.rows], counts),
                *(recipe.temperature, ranks),
            )
        head.to(recipe.device)
        of_head = _sgd(head, recipe, HEAD_PACE if falling else 1.0)
        training = Training(head, of_head, streams.torch("augment", index))
        if saved is not None and saved["training"] is not None:
            training.load_state_dict(saved["training"], ranks)
        saved = None
        progress.training = training
        sampler = streams.numpy("sampling", index)
        weights = None
        if recipe.balance == "loss":
            weights = [*map(loss_weights, labels, counts)]
        for epoch, size in enumerate(sizes):
            # Of several numbers of pseudo-labels the first is balanced.
            drawn = epoch_rows(labels[0], recipe.balance, sampler, size)
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
                ranks=ranks,
            ):
                clock.tick("train")
                yield progress
            clock.tick("train")
            _check_converging(training.losses[-1], "loss", index, recipe)
        calibrate(network, source, sample, **computing, ranks=ranks)
        if remembered is None:
            _embed_points(network, source, recipe, points, shard)
        with np.errstate(invalid="ignore"):  # of infinities of both signs
            total = float(ranks.sum(points.sum(dtype=float)))
        _check_converging(total, "sum of features", index, recipe)
        clock.tick("embed")
        found = clusterer.pseudo_labels(points, streams.seed("kmeans", index))
        view = None
        if not clusterer.single:
            view = _confusions(
                *(head, shard.take(points, grouped), clusterer.n_clusters, ranks)
            )
        clock.tick("cluster")
        features = points if remembered is None else None
        seen = None if features is None else shard.take(features, judged)
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
    embed(
        *(network, source, recipe.device, recipe.dtype),
        out=out,
        points=True,
        rows=shard.rows,
    )


def _confusions(
    head: Head, points: np.ndarray, n_clusters: int, ranks: Ranks
) -> np.ndarray:
    """Return what the head's confusions contribute to the groups."""
    return ranks.first(lambda: diffusion_map(predict_labels(head, points), n_clusters))


def _first_labels(
    source: Source,
    recipe: Recipe,
    clusterer: Clusterer,
    streams: Streams,
    seed: int,
    shard: Shard,
) -> np.ndarray:
    """Return pseudo-labels that come from the pixels alone."""
    rows = streams.sample("pixels", len(source), PIXEL_ROWS)
    projection = shard.ranks.first(lambda: fit_pixels(source, rows))
    shape = len(shard), projection.components.shape[1]
    pixels = allocate(shape, recipe.features_dir)
    embed_pixels(source, projection, out=pixels, rows=shard.rows)
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
