"""Supervised training of the network on pseudo-labels, and its preparation."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from ._augment import Augment
from ._convnets import Network
from ._device import autocast
from ._features import to_device
from ._images import Source
from ._memory import memory_for


@dataclass
class Training:
    """Training on one set of pseudo-labels, and how far it has come."""

    head: nn.Linear
    optimizer: torch.optim.SGD  # of the head
    generator: torch.Generator  # what `augment` draws from
    losses: list[float] = field(default_factory=list)  # of the passes that are complete
    n_batches: int = 0  # of the pass under way
    total: torch.Tensor | float = 0.0  # loss of its rows so far

    def state_dict(self) -> dict:
        """Return what `load_state_dict` needs to go on at this batch."""
        return {
            "head": self.head.state_dict(),
            "optimizer": optimizer_state(self.optimizer),
            "generator": self.generator.get_state(),
            "losses": self.losses,
            "n_batches": self.n_batches,
            "total": float(self.total),
        }

    def load_state_dict(self, state: dict) -> None:
        """Take the place of another training on the same pseudo-labels."""
        self.head.load_state_dict(state["head"])
        load_optimizer_state(self.optimizer, state["optimizer"])
        self.generator.set_state(state["generator"])
        self.losses = list(state["losses"])
        self.n_batches, self.total = state["n_batches"], state["total"]


def optimizer_state(optimizer: torch.optim.SGD) -> dict:
    """Return all that steps of SGD have changed in their optimizer."""
    (group,) = optimizer.param_groups
    states = [optimizer.state.get(parameter, {}) for parameter in group["params"]]
    momenta = [state.get("momentum_buffer") for state in states]
    return {"learning_rate": group["lr"], "momenta": momenta}


def load_optimizer_state(optimizer: torch.optim.SGD, state: dict) -> None:
    """Set what `optimizer_state` returned."""
    (group,) = optimizer.param_groups
    group["lr"] = state["learning_rate"]
    for parameter, momentum in zip(group["params"], state["momenta"], strict=True):
        if momentum is not None:
            # In the parameter's own layout: other layouts may round differently.
            own = torch.empty_like(parameter, requires_grad=False).copy_(momentum)
            optimizer.state[parameter]["momentum_buffer"] = own


def batches(rows: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Split rows into batches of nearly equal size, none of which is a single row.

    Batch norm has no statistics for a single row, as a short last batch can be.
    """
    n_batches = min(math.ceil(len(rows) / batch_size), len(rows) // 2)
    return np.array_split(rows, max(1, n_batches))


def train_epoch(
    network: Network,
    training: Training,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    source: Source,
    rows: np.ndarray,
    labels: np.ndarray,
    *,
    weights: np.ndarray | None,
    augment: Augment | None,
    batch_size: int,
    device: torch.device,
    dtype: torch.dtype,
) -> Iterator[None]:
    """Train on `rows` once, by batches in that order, and yield after each.

    Batches that `training` has behind it are left out. The mean loss is appended to
    its `losses`.

    Parameters
    ----------
    network : Network on `device`
        Minimising, with the head, the multinomial logistic loss of
        head(network(images)).
    training : Training
        Its head is on `device`.
    optimizer : optimizer
        Of the network, stepped together with that of the head.
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
    """
    network.train()
    optimizers = [optimizer, training.optimizer]
    targets = torch.from_numpy(labels.astype(np.int64))
    scale = None if weights is None else torch.from_numpy(weights).to(device)
    parts = batches(rows, batch_size)[training.n_batches :]
    what = f"training on batches of {batch_size}"
    for part, batch in zip(parts, source.batches(parts), strict=True):
        with memory_for(what, f"Lower batch_size={batch_size}."):
            images = to_device(batch, device)
            target = targets[part].to(device, non_blocking=True)
            if augment is not None:
                images = augment(images.float(), training.generator)
            with autocast(device, dtype):
                logits = training.head(network(images))
            losses = functional.cross_entropy(logits.float(), target, reduction="none")
            loss = (losses if scale is None else losses * scale[target]).mean()
            for each in optimizers:
                each.zero_grad(set_to_none=True)
            loss.backward()
            for each in optimizers:
                each.step()
        schedule.step()
        training.total = training.total + loss.detach() * len(part)
        training.n_batches += 1
        yield
    training.losses.append(float(training.total) / len(rows))
    training.n_batches, training.total = 0, 0.0


@memory_for("calibration", "Lower batch_size.")
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
    network.train()
    kind = nn.modules.batchnorm._BatchNorm
    norms = [m for m in network.modules() if isinstance(m, kind) and m.training]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average over the batches
    with torch.no_grad(), autocast(device, dtype):
        for batch in source.batches(batches(rows, batch_size)):
            network(to_device(batch, device))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
