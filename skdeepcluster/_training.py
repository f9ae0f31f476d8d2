"""Supervised training of the network on pseudo-labels, and its preparation."""

import math

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from ._augment import Augment
from ._convnets import Network
from ._device import autocast
from ._features import to_device
from ._images import Source


def batches(rows: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Split rows into batches of nearly equal size, none of which is a single row.

    Batch norm has no statistics for a single row, as a short last batch can be.
    """
    n_batches = min(math.ceil(len(rows) / batch_size), len(rows) // 2)
    return np.array_split(rows, max(1, n_batches))


def train_epoch(
    network: Network,
    head: nn.Linear,
    optimizers: list[torch.optim.Optimizer],
    schedule: torch.optim.lr_scheduler.LRScheduler,
    source: Source,
    rows: np.ndarray,
    labels: np.ndarray,
    *,
    weights: np.ndarray | None,
    augment: Augment | None,
    generator: torch.Generator,
    batch_size: int,
    device: torch.device,
    dtype: torch.dtype,
) -> float:
    """Train on `rows` once, by batches in that order, and return the mean loss.

    Parameters
    ----------
    network, head : modules on `device`
        Minimising the multinomial logistic loss of head(network(images)).
    optimizers : list of optimizers
        All are stepped together.
    schedule : learning rate scheduler
        Stepped after each batch.
    source : Source
    rows : ndarray of int
        Rows of the source, each drawn by its pseudo-label.
    labels : ndarray of shape (len(source),), int
        Pseudo-label of each item of the source.
    weights : ndarray of shape (n_labels,) or None
        Weight of each pseudo-label in the loss.
    augment : callable or None
        Applied to each batch on the device, as float32 in the source's own units.
    generator : torch.Generator
        What `augment` draws from.
    """
    network.train()
    targets = torch.from_numpy(labels.astype(np.int64))
    scale = None if weights is None else torch.from_numpy(weights).to(device)
    total = torch.zeros((), device=device)
    parts = batches(rows, batch_size)
    for part, batch in zip(parts, source.batches(parts), strict=True):
        images = to_device(batch, device)
        target = targets[part].to(device, non_blocking=True)
        if augment is not None:
            images = augment(images.float(), generator)
        with autocast(device, dtype):
            logits = head(network(images))
        losses = functional.cross_entropy(logits.float(), target, reduction="none")
        loss = (losses if scale is None else losses * scale[target]).mean()
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        schedule.step()
        total += loss.detach() * len(part)
    return float(total) / len(rows)


def calibrate(
    network: Network,
    source: Source,
    rows: np.ndarray,
    *,
    batch_size: int,
    device: torch.device,
    dtype: torch.dtype,
) -> None:
    """Set the batch-norm statistics to those of `rows`, un-augmented.

    A fresh network's running statistics are those of nothing: without this the first
    clustering, in evaluation mode, sees other features than the training does.
    """
    norms = [
        m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)
    ]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average over the batches
    network.train()
    with torch.no_grad(), autocast(device, dtype):
        for batch in source.batches(batches(rows, batch_size)):
            network(to_device(batch, device))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
