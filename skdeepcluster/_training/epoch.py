"""One training pass: the network and its head learn to predict pseudo-labels."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from .._inputs.sources import Source
from .._utils.compute import Compute
from .._utils.content import (
    Anything,
    InvalidContent,
    ListOf,
    Maybe,
    Number,
    Tensor,
    check_content,
)
from .._utils.distributed import SINGLE_PROCESS, Processes, Shard, Sharded
from .._utils.memory import explain_memory_error
from .._utils.pages import PageReleaser
from .augment import Augment, make_views
from .batch_norm import has_changing_buffers, synchronized_batch_norm
from .heads import Head
from .network import TrainableNetwork
from .sampling import choose_statistics_processes, split_batches

# Rounding may raise a constant learning rate by less than this factor.
MAX_GROWTH = 1.001
# Megabytes of gradients in one message between processes. Smaller networks send all
# gradients at once. In larger ones, messages overlap with the backward pass.
BUCKET_MB = 25


@dataclass(frozen=True)
class BatchOptions:
    """Size, views and precision of training batches.

    Parameters
    ----------
    batch_size : int
        Number of images in one SGD step, over all processes.
    compute : Compute
    augment : callable or None
        Applied to each batch on the device, as float32 in the units of X.
    n_crops : (int, int)
        Number of views of each image, and of small views.
    """

    batch_size: int
    compute: Compute
    augment: Augment | None = None
    n_crops: tuple[int, int] = (1, 0)


@dataclass
class TrainingState:
    """Training on one set of pseudo-labels, and its progress.

    Parameters
    ----------
    head : Head
    generator : torch.Generator
        Generator of the augmentation.
    head_optimizer : SGD or None
        Optimizer of the head. None if another optimizer steps the head as well.
    losses : list of float
        Mean loss of each complete pass.
    n_batches : int
        Number of complete batches in the current pass.
    total_loss : tensor or float
        Summed loss of this process's images in the current pass.
    """

    head: Head
    generator: torch.Generator
    head_optimizer: torch.optim.SGD | None = None
    losses: list[float] = field(default_factory=list)
    n_batches: int = 0
    total_loss: torch.Tensor | float = 0.0

    def state_dict(self, processes: Processes = SINGLE_PROCESS) -> dict:
        """Return the state from which training resumes at the current batch."""
        optimizer = self.head_optimizer
        return {
            "head": self.head.state_dict(),
            "optimizer": None if optimizer is None else optimizer_state(optimizer),
            "generator": self.generator.get_state(),
            "losses": self.losses,
            "n_batches": self.n_batches,
            "total_losses": processes.all_gather_object(float(self.total_loss)),
        }

    def load_state_dict(
        self, state: dict, n_passes: int, processes: Processes = SINGLE_PROCESS
    ) -> None:
        """Load the state of training on the same pseudo-labels.

        Raises
        ------
        InvalidContent
            If the state is not one of these pseudo-labels and of a round of `n_passes`.
        """
        schema = {
            "head": module_schema(self.head),
            "optimizer": None
            if self.head_optimizer is None
            else optimizer_schema(self.head_optimizer),
            "generator": GeneratorState(self.generator),
            # A round whose passes are all complete has no training state any more.
            "losses": ListOf(Number(), max_length=n_passes - 1),
            "n_batches": Number(0, is_integer=True),
            "total_losses": ListOf(Number(), min_length=1),
        }
        check_content(state, schema, "training")
        self.head.load_state_dict(state["head"])
        if self.head_optimizer is not None:
            load_optimizer_state(self.head_optimizer, state["optimizer"])
        self.generator.set_state(state["generator"])
        self.losses = list(state["losses"])
        self.n_batches = state["n_batches"]
        total_losses = state["total_losses"]
        if len(total_losses) != processes.size:
            # The number of processes has changed: the first one takes over the sum.
            total_losses = [sum(total_losses)] + [0.0] * (processes.size - 1)
        self.total_loss = total_losses[processes.rank]


def optimizer_state(optimizer: torch.optim.SGD) -> dict:
    """Return all values that steps of SGD change in the optimizer."""
    (group,) = optimizer.param_groups
    states = [optimizer.state.get(parameter, {}) for parameter in group["params"]]
    momenta = [state.get("momentum_buffer") for state in states]
    return {"learning_rate": group["lr"], "momenta": momenta}


def optimizer_schema(optimizer: torch.optim.SGD) -> dict:
    """Return the schema of `optimizer_state`, for `check_content`."""
    (group,) = optimizer.param_groups
    return {
        "learning_rate": Number(0, MAX_GROWTH * group["lr"]),
        "momenta": [Maybe(Tensor.like(parameter)) for parameter in group["params"]],
    }


def module_schema(module: nn.Module) -> dict:
    """Return the schema of `module.state_dict()`, for `check_content`."""
    # With keep_vars the values of parameters are parameters, which have to be finite.
    return {
        name: Tensor.like(value) if isinstance(value, torch.Tensor) else Anything()
        for name, value in module.state_dict(keep_vars=True).items()
    }


@dataclass(frozen=True)
class GeneratorState:
    """Schema of the state of a generator."""

    generator: torch.Generator

    def check(self, value, name: str) -> None:
        """Raise InvalidContent unless a generator of the same kind takes the state."""
        Tensor.like(self.generator.get_state()).check(value, name)
        try:
            torch.Generator(self.generator.device).set_state(value)
        except RuntimeError as error:
            raise InvalidContent(f"{name} is no state of a generator") from error


def load_optimizer_state(optimizer: torch.optim.SGD, state: dict) -> None:
    """Set the values that `optimizer_state` returned."""
    (group,) = optimizer.param_groups
    group["lr"] = state["learning_rate"]
    for parameter, momentum in zip(group["params"], state["momenta"], strict=True):
        if momentum is not None:
            # The buffer takes the layout of the parameter, since kernels for another
            # layout may round differently.
            buffer = torch.empty_like(parameter, requires_grad=False).copy_(momentum)
            optimizer.state[parameter]["momentum_buffer"] = buffer


class BatchLoss(nn.Module):
    """Loss of the views of a batch.

    The loss is the multinomial logistic loss of head(network.points(view)), averaged
    over images, views and classifiers (paper, equation 1).
    """

    def __init__(self, network: TrainableNetwork, head: Head, compute: Compute):
        super().__init__()
        self.network = network
        self.head = head
        self.compute = compute

    def forward(
        self,
        views: list[torch.Tensor],
        targets: torch.Tensor,
        weights: list[torch.Tensor] | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the loss, a float32 scalar, and the points of one view of each image.

        Parameters
        ----------
        views : list of tensors of shape (n_views * n, C, H, W)
            Views of n images, as `make_views` returns them.
        targets : tensor of shape (h, n)
            Pseudo-labels of the images, for each classifier of the head.
        weights : list of h tensors of shape (n_labels,), or None
            Weight of each pseudo-label.

        Returns
        -------
        loss : tensor of shape ()
        points : tensor of shape (n, n_points)
            Points of the first view of each image.
        """
        n = targets.shape[1]
        n_views = sum(map(len, views)) // n
        loss, points = torch.zeros((), device=self.compute.device), []
        for view in views:
            with self.compute.autocast():
                view_points = self.network.points(view)
                logits = self.head(view_points)
            points.append(view_points)
            n_copies = len(view) // n
            view_loss = _mean_loss(logits, targets.repeat(1, n_copies), weights)
            loss = loss + n_copies / n_views * view_loss
        return loss, points[0][:n].detach()


def _mean_loss(
    logits: list[torch.Tensor],
    targets: torch.Tensor,
    weights: list[torch.Tensor] | None,
) -> torch.Tensor:
    """Return the mean logistic loss of all classifiers, a float32 scalar."""
    means = []
    # The loss is computed in float32: bfloat16 would round small differences away.
    for i, (scores, target) in enumerate(zip(logits, targets, strict=True)):
        losses = functional.cross_entropy(scores.float(), target, reduction="none")
        losses = losses if weights is None else losses * weights[i][target]
        means.append(losses.mean())
    return torch.stack(means).mean()


def _average_gradients(batch_loss: BatchLoss, processes: Processes) -> nn.Module:
    """Return a module that averages its gradients over all processes."""
    has_gradients = any(p.requires_grad for p in batch_loss.parameters())
    if processes.size == 1 or not has_gradients:
        return batch_loss
    device = batch_loss.compute.device
    return DistributedDataParallel(
        batch_loss,
        device_ids=None if device.index is None else [device],
        process_group=processes.group if device.type == "cpu" else None,
        # Buffers would be sent in each step.
        broadcast_buffers=has_changing_buffers(batch_loss.network),
        bucket_cap_mb=BUCKET_MB,
        gradient_as_bucket_view=True,
        # A user's module may have parameters that the loss does not depend on.
        static_graph=True,
    )


def train_epoch(
    network: TrainableNetwork,
    training: TrainingState,
    optimizers: list[torch.optim.Optimizer],
    schedule: torch.optim.lr_scheduler.LRScheduler,
    source: Source,
    rows: np.ndarray,
    labels: np.ndarray,
    options: BatchOptions,
    *,
    weights: list[np.ndarray] | None = None,
    training_points: Sharded | None = None,
    processes: Processes = SINGLE_PROCESS,
) -> Iterator[None]:
    """Train on `rows` once, in their order, and yield after each batch.

    Batches that `training` has completed are skipped. The mean loss is appended to
    `training.losses`. Processes share each batch and take the same steps.

    Parameters
    ----------
    network : TrainableNetwork
        On the device. It is trained together with the head.
    training : TrainingState
        With its head on the device.
    optimizers : list of optimizers
        All of them are stepped after each batch.
    schedule : learning rate scheduler
        Stepped after each batch.
    source : Source
    rows : ndarray of int
        Rows of the source, see `sample_rows`.
    labels : ndarray of shape (h, len(source)), int
        Pseudo-labels of each image, one row for each classifier of the head.
    options : BatchOptions
    weights : list of h ndarrays of shape (n_labels,), or None
        Weight of each pseudo-label in the loss.
    training_points : Sharded array of shape (len(source), n_points), or None
        Array that the points of the first views are written to.
    processes : Processes
    """
    compute = options.compute
    # Extraction of features leaves the network in evaluation mode.
    network.train()
    batch_loss = _average_gradients(
        BatchLoss(network, training.head, compute), processes
    )
    label_weights = None
    if weights:
        label_weights = [torch.from_numpy(w).to(compute.device) for w in weights]
    batches = split_batches(rows, options.batch_size)[training.n_batches :]
    shards = [processes.shard(len(batch_rows)) for batch_rows in batches]
    local_batches = [
        batch_rows[shard.rows]
        for batch_rows, shard in zip(batches, shards, strict=True)
    ]
    for batch_rows, shard, local_rows, images in zip(
        batches, shards, local_batches, source.batches(local_batches), strict=True
    ):
        with (
            explain_memory_error(
                f"training on batches of {options.batch_size}",
                f"Lower batch_size={options.batch_size}.",
            ),
            synchronized_batch_norm(choose_statistics_processes(shard)),
        ):
            images = compute.move(images)
            batch_labels = labels[:, local_rows].astype(np.int64)
            targets = torch.from_numpy(batch_labels).to(compute.device)
            views = make_views(
                images, options.augment, options.n_crops, training.generator, shard
            )
            loss, points = batch_loss(views, targets, label_weights)
            if training_points is not None:
                _store_points(training_points, batch_rows, points, shard)
            for optimizer in optimizers:
                optimizer.zero_grad(set_to_none=True)
            # Gradients are averaged over processes, and the numbers of images may
            # differ by one. The factor makes them the gradients of the whole batch.
            share = processes.size * len(local_rows) / len(batch_rows)
            (loss * share).backward()
            for optimizer in optimizers:
                optimizer.step()
        schedule.step()
        # The sum stays on the device: reading it in each step would stall a GPU.
        training.total_loss = training.total_loss + loss.detach() * len(local_rows)
        training.n_batches += 1
        yield
    total_loss = float(processes.sum(np.array(float(training.total_loss))))
    training.losses.append(total_loss / len(rows))
    training.n_batches, training.total_loss = 0, 0.0


def _store_points(
    training_points: Sharded, batch_rows: np.ndarray, points: torch.Tensor, shard: Shard
) -> None:
    """Write the points of a batch to the processes that hold its rows."""
    is_local, positions = training_points.shard.locate(batch_rows)
    batch_points = Sharded(points.cpu().numpy(), shard).gather()
    training_points.values[positions] = batch_points[is_local]
    PageReleaser(training_points.values).release()
