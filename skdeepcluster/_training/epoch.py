"""Supervised training of the network on pseudo-labels, and its preparation."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from .._inputs.sources import Source
from .._utils.device import autocast
from .._utils.distributed import SINGLE_PROCESS, Processes, Sharded
from .._utils.memory import explain_memory_error
from .augment import Augment, make_views
from .batch_norm import synchronized_batch_norm
from .features import to_device
from .heads import Head
from .sampling import count_steps

CALIBRATION_ROWS = 4096  # images that batch-norm statistics are taken from


@dataclass
class TrainingState:
    """Training on one set of pseudo-labels, and how far it has come."""

    head: Head
    optimizer: torch.optim.SGD  # of the head
    generator: torch.Generator  # what `augment` draws from
    losses: list[float] = field(default_factory=list)  # of the passes that are complete
    n_batches: int = 0  # of the pass under way
    total: torch.Tensor | float = 0.0  # loss of its rows so far, in this process

    def state_dict(self, processes: Processes = SINGLE_PROCESS) -> dict:
        """Return what `load_state_dict` needs to go on at this batch."""
        return {
            "head": self.head.state_dict(),
            "optimizer": optimizer_state(self.optimizer),
            "generator": self.generator.get_state(),
            "losses": self.losses,
            "n_batches": self.n_batches,
            "totals": processes.all_gather_object(float(self.total)),
        }

    def load_state_dict(
        self, state: dict, processes: Processes = SINGLE_PROCESS
    ) -> None:
        """Take the place of another training on the same pseudo-labels."""
        self.head.load_state_dict(state["head"])
        load_optimizer_state(self.optimizer, state["optimizer"])
        self.generator.set_state(state["generator"])
        self.losses = list(state["losses"])
        self.n_batches = state["n_batches"]
        totals = state["totals"]
        if len(totals) != processes.size:  # as many as there were processes
            totals = [sum(totals)] + [0.0] * (processes.size - 1)
        self.total = totals[processes.rank]


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


def split_batches(rows: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Split rows into batches of nearly equal size."""
    return np.array_split(rows, count_steps(len(rows), batch_size))


class LossModule(nn.Module):
    """Views of a batch -> their loss, and the points of the first of them.

    Minimized is the multinomial logistic loss of head(network.points(view)), in the
    mean over images, views and classifiers.
    """

    def __init__(self, network: Any, head: Head, device: torch.device, dtype):
        super().__init__()
        self.network, self.head = network, head
        self.device, self.dtype = device, dtype

    def forward(
        self,
        seen: list[torch.Tensor],
        target: torch.Tensor,
        scales: list[torch.Tensor] | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the loss, a float32 scalar, and points (n, n_points).

        Parameters
        ----------
        seen : list of tensors of shape (n_views * n, C, H, W)
            As `views` returns them, of n images.
        target : tensor of shape (h, n)
            Pseudo-labels of the images, for each classifier of the head.
        scales : list of h tensors of shape (n_labels,), or None
            Weight of each pseudo-label.
        """
        n = target.shape[1]
        n_views = sum(map(len, seen)) // n
        loss, found = torch.zeros((), device=self.device), []
        for view in seen:
            with autocast(self.device, self.dtype):
                points = self.network.points(view)
                logits = self.head(points)
            found.append(points)
            count = len(view) // n
            losses = _loss(logits, target.repeat(1, count), scales)
            loss = loss + count / n_views * losses
        return loss, found[0][:n].detach()


def _synchronize_gradients(learner: LossModule, processes: Processes) -> nn.Module:
    """Return a learner whose gradients are the mean of those of all processes."""
    if processes.size == 1 or not any(p.requires_grad for p in learner.parameters()):
        return learner
    device = learner.device
    return DistributedDataParallel(
        learner,
        device_ids=None if device.index is None else [device],
        process_group=processes.group if device.type == "cpu" else None,
        static_graph=True,  # a module of the user's may have parameters without use
    )


def train_epoch(
    network: Any,
    training: TrainingState,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    source: Source,
    rows: np.ndarray,
    labels: np.ndarray,
    *,
    weights: list[np.ndarray] | None,
    augment: Augment | None,
    n_crops: tuple[int, int] = (1, 0),
    remembered: np.ndarray | None = None,
    batch_size: int,
    device: torch.device,
    dtype: torch.dtype,
    processes: Processes = SINGLE_PROCESS,
) -> Iterator[None]:
    """Train on `rows` once, by batches in that order, and yield after each.

    Batches that `training` has behind it are left out. The mean loss is appended to
    its `losses`. Several processes share each batch, and take the same steps.

    Parameters
    ----------
    network : Network on `device`
        Learns together with the head, see `Learner`.
    training : Training
        Its head is on `device`.
    optimizer : optimizer
        Of the network, stepped together with that of the head.
    schedule : learning rate scheduler
        Stepped after each batch.
    source : Source
    rows : ndarray of int
        Rows of the source, each drawn by its pseudo-label.
    labels : ndarray of shape (h, len(source)), int
        Pseudo-labels of each item of the source, one for each classifier of the head.
    weights : list of h ndarrays of shape (n_labels,), or None
        Weight of each pseudo-label in the loss.
    augment : callable or None
        Applied to each batch on the device, as float32 in the source's own units.
    n_crops : tuple of two int
        How many views `augment` makes of each image, and how many small ones.
    remembered : ndarray of shape (len(source), n_points), float32, or None
        Where the points of the first views are written; with several processes it
        holds the rows of this one's shard.
    processes : Ranks
    """
    network.train()
    step = _synchronize_gradients(
        LossModule(network, training.head, device, dtype), processes
    )
    held = processes.shard(len(source))
    optimizers = [optimizer, training.optimizer]
    scales = None
    if weights:
        scales = [torch.from_numpy(each).to(device) for each in weights]
    parts = split_batches(rows, batch_size)[training.n_batches :]
    shards = [processes.shard(len(part)) for part in parts]
    shares = [part[each.rows] for part, each in zip(parts, shards, strict=True)]
    what = f"training on batches of {batch_size}"
    for part, shard, share, batch in zip(
        parts, shards, shares, source.batches(shares), strict=True
    ):
        with (
            explain_memory_error(what, f"Lower batch_size={batch_size}."),
            synchronized_batch_norm(processes),
        ):
            images = to_device(batch, device)
            target = torch.from_numpy(labels[:, share].astype(np.int64)).to(device)
            seen = make_views(images, augment, n_crops, training.generator, shard)
            loss, points = step(seen, target, scales)
            if remembered is not None:
                places, rows_held = held.locate(part)
                remembered[rows_held] = Sharded(points.cpu().numpy(), shard).gather()[
                    places
                ]
            for each in optimizers:
                each.zero_grad(set_to_none=True)
            # Gradients are averaged over processes, whose shares may differ by a row.
            (loss * (processes.size * len(share) / len(part))).backward()
            for each in optimizers:
                each.step()
        schedule.step()
        training.total = training.total + loss.detach() * len(share)
        training.n_batches += 1
        yield
    total = float(processes.sum(np.array(float(training.total))))
    training.losses.append(total / len(rows))
    training.n_batches, training.total = 0, 0.0


def _loss(
    logits: list[torch.Tensor],
    targets: torch.Tensor,
    scales: list[torch.Tensor] | None,
) -> torch.Tensor:
    """Return the mean over classifiers of their logistic losses, float32 scalars."""
    means = []
    for i, (each, target) in enumerate(zip(logits, targets, strict=True)):
        losses = functional.cross_entropy(each.float(), target, reduction="none")
        means.append((losses if scales is None else losses * scales[i][target]).mean())
    return torch.stack(means).mean()


@explain_memory_error("calibration", "Lower batch_size.")
def calibrate_batch_norm(
    network: Any,
    source: Source,
    rows: np.ndarray,
    *,
    batch_size: int,
    device: torch.device,
    dtype: torch.dtype,
    processes: Processes = SINGLE_PROCESS,
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
    parts = split_batches(rows, batch_size)
    shares = [part[processes.shard(len(part)).rows] for part in parts]
    with torch.no_grad(), autocast(device, dtype), synchronized_batch_norm(processes):
        for batch in source.batches(shares):
            network.points(to_device(batch, device))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
