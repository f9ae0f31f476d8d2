"""The alternation of DeepCluster: cluster the features, train on the clusters."""

import os
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from ._augment import Augment
from ._clustering import Clusterer, PseudoLabels
from ._convnets import Network, new_head
from ._features import allocate, embed
from ._groups import diffusion_map, grouped_rows
from ._history import Clock, make_record
from ._images import Source
from ._pixels import embed_pixels, fit_pixels
from ._random import Streams
from ._sampling import epoch_rows, loss_weights
from ._stability import mild_view, stability
from ._training import batches, calibrate, train_epoch

CALIBRATION_ROWS = 4096
STABILITY_ROWS = 1000  # images whose changed copies a round is judged by
PIXEL_ROWS = 20_000  # images that the principal components of the pixels come from
HEAD_PACE = 1.5  # the head's learning rate, relative to the network's


@dataclass(frozen=True)
class Recipe:
    """Every choice of the training half, with nothing left to be resolved."""

    init: str
    max_iter: int
    epochs_per_iter: int
    augment: Augment | None
    balance: str | None
    batch_size: int
    learning_rate: float
    momentum: float
    weight_decay: float
    device: torch.device
    dtype: torch.dtype
    features_dir: str | os.PathLike | None = None


@dataclass(frozen=True)
class Progress:
    """What the next round needs of those before it, besides the network."""

    n_rounds: int  # of this fit
    start: float  # how stable clusters of the features were before training
    optimizer: dict  # states of the optimizer and of its schedule
    schedule: dict


@dataclass(frozen=True)
class Round:
    """What one round leaves behind."""

    record: dict  # one entry of the estimator's `history_`
    features: np.ndarray  # float32 (n, d), of the network now; the next round reuses it
    found: PseudoLabels  # of these features
    view: np.ndarray | None  # float32, what it contributes to groups: a row for each of
    rows: np.ndarray  # images that stand for all
    progress: Progress


def alternate(
    source: Source,
    network: Network,
    recipe: Recipe,
    clusterer: Clusterer,
    streams: Streams,
    n_done: int = 0,
    progress: Progress | None = None,
) -> Iterator[Round]:
    """Train `network` in place, yielding a state after each round.

    A round trains on the pseudo-labels, then extracts the features anew and clusters
    them, so each state is complete: the clusters are those of the features that the
    network gives now (sections 3.2 to 3.4 of the paper). `n_done` is the number of
    rounds that the network has behind it, `progress` what those of them that belong to
    this fit have left.

    Raises
    ------
    ValueError
        If the loss or the features are no longer finite.
    """
    n = len(source)
    computing = {
        "batch_size": recipe.batch_size,
        "device": recipe.device,
        "dtype": recipe.dtype,
    }
    layout = torch.channels_last if len(source.shape) == 3 else torch.preserve_format
    network.to(recipe.device, memory_format=layout)
    sample = streams.sample("calibration", n, CALIBRATION_ROWS)
    if progress is None:
        calibrate(network, source, sample, **computing)
    grouped = grouped_rows(n, clusterer.n_clusters, streams)
    judged = streams.sample("stability", n, STABILITY_ROWS)
    few = source.take(judged)

    def judge(seen: np.ndarray) -> float:
        view = embed(network, few, recipe.device, recipe.dtype, mild_view(few))
        return stability(seen, view, clusterer.n_clusters)

    if progress is None:
        start = judge(embed(network, few, recipe.device, recipe.dtype))
    else:
        start = progress.start
    seed = streams.seed("kmeans", n_done)
    features = allocate((n, network.n_features), recipe.features_dir)
    if recipe.init == "pixels" and not n_done:
        rows = streams.sample("pixels", n, PIXEL_ROWS)
        projection = fit_pixels(source, rows)
        shape = n, projection.components.shape[1]
        pixels = allocate(shape, recipe.features_dir)
        embed_pixels(source, projection, out=pixels)
        found = clusterer.first_labels(pixels, seed)
        del pixels
    else:
        embed(network, source, recipe.device, recipe.dtype, out=features)
        found = clusterer.pseudo_labels(features, seed)

    n_steps = len(batches(np.arange(n), recipe.batch_size))
    optimizer = _sgd(network, recipe, 1.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
        optimizer, recipe.max_iter * recipe.epochs_per_iter * n_steps
    )
    n_rounds = 0
    if progress is not None:
        optimizer.load_state_dict(progress.optimizer)
        schedule.load_state_dict(progress.schedule)
        n_rounds = progress.n_rounds
    for index in range(n_done + 1, n_done + 1 + recipe.max_iter - n_rounds):
        clock = Clock()
        labels, n_labels = found.labels, int(found.labels.max()) + 1
        head = new_head(network.n_features, n_labels, streams.torch("head", index))
        head.to(recipe.device)
        optimizers = [optimizer, _sgd(head, recipe, HEAD_PACE)]
        sampler = streams.numpy("sampling", index)
        generator = streams.torch("augment", index)
        weights = loss_weights(labels, n_labels) if recipe.balance == "loss" else None
        losses = []
        for _ in range(recipe.epochs_per_iter):
            drawn = epoch_rows(labels, recipe.balance, sampler)
            clock.tick("sample")
            losses.append(
                train_epoch(
                    network,
                    head,
                    optimizers,
                    schedule,
                    source,
                    drawn,
                    labels,
                    weights=weights,
                    augment=recipe.augment,
                    generator=generator,
                    **computing,
                )
            )
            clock.tick("train")
            _check_converging(losses[-1], "loss", index, recipe)
        calibrate(network, source, sample, **computing)
        embed(network, source, recipe.device, recipe.dtype, out=features)
        _check_converging(features.sum(dtype=float), "sum of features", index, recipe)
        clock.tick("embed")
        seed = streams.seed("kmeans", index)
        found = clusterer.pseudo_labels(features, seed)
        view = None
        if not clusterer.single:
            predicted = predict_labels(head, features[grouped])
            view = diffusion_map(predicted, clusterer.n_clusters)
        clock.tick("cluster")
        gain = judge(features[judged]) - start
        clock.tick("judge")
        record = make_record(index, n_labels, losses, gain, labels, found, clock)
        n_rounds += 1
        progress = Progress(
            n_rounds, start, optimizer.state_dict(), schedule.state_dict()
        )
        yield Round(record, features, found, view, grouped, progress)


def predict_labels(head: torch.nn.Linear, features: np.ndarray) -> np.ndarray:
    """Return the head's probability of each pseudo-label, float32 (n, k)."""
    with torch.inference_mode():
        logits = head.cpu()(torch.from_numpy(features))
        return logits.softmax(dim=1).numpy()


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
