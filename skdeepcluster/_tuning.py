"""A copy of a network, with other weights: fresh ones, or those that labels teach."""

import copy
from collections import OrderedDict
from functools import partial

import numpy as np
import torch
from torch import nn

from ._convnets import new_head
from ._device import limited_threads
from ._judged import Judged, Labelled
from ._layers import EMBEDDING, Call, average_pooled, find_layers, trace
from ._random import Streams, isolated_torch_rng
from ._sampling import epoch_rows
from ._training import Training, batches, calibrate, train_epoch

MOMENTUM = 0.9
CALIBRATION_ROWS = 4096  # images that batch-norm statistics are taken from


def fresh(network: nn.Module, seed: int) -> nn.Module:
    """Return a copy with new random weights, the same on every device.

    Raises
    ------
    ValueError
        If a submodule has weights that it cannot draw anew.
    """
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    new = copy.deepcopy(network).cpu()  # whose generator all devices share
    with isolated_torch_rng(seed, torch.device("cpu")):
        for path, module in new.named_modules():
            own = list(module.parameters(recurse=False))
            if own and not any(parameter.requires_grad for parameter in own):
                continue  # fixed by intention, such as kernels for gradients
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
            elif own:
                raise ValueError(
                    f"The model's part {path or type(module).__name__!r} has weights "
                    "but no method reset_parameters that draws them anew. Give it one, "
                    "or build the network again."
                )
    return new.to(device)


class Partly(nn.Module):
    """A network of which only some parts are ever in training mode."""

    def __init__(self, network: nn.Module, trained: set[nn.Module]):
        super().__init__()
        self.network = network
        self.fixed = [part for part in network.modules() if part not in trained]

    def train(self, mode: bool = True) -> "Partly":
        """Set the mode of the parts that learn; the others stay in evaluation."""
        super().train(mode)
        for part in self.fixed:
            part.training = False
        return self

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return features, float32 (n, d)."""
        return self.network(images.float()).float()


def tune(
    judged: Judged,
    train: Labelled,
    test: Labelled,
    *,
    from_layer: str | None,
    n_epochs: int,
    learning_rate: float,
    batch_size: int,
    streams: Streams,
    verbose: int,
) -> tuple[list[dict], nn.Module]:
    """Train a copy of a network, and a linear classifier on it, to tell classes.

    Returns
    -------
    table : list of dict
        A row for each epoch: `epoch`, `loss`, `accuracy` on the test images.
    module : torch.nn.Module
        The copy and the classifier, from images to logits, in evaluation mode.

    Raises
    ------
    ValueError
        If the layer is unknown, the network gives no vectors, or the loss diverges.
    """
    source = train.given.source
    running = {"device": judged.device, "dtype": judged.dtype}
    sample = streams.sample("calibration", len(source), CALIBRATION_ROWS)
    classes, labels = np.unique(train.y, return_inverse=True)
    network = copy.deepcopy(judged.network)
    calls = trace(network, source.shape, **running)
    (embedding,) = find_layers(calls, [EMBEDDING])
    if len(embedding.shape) != 1:
        raise ValueError(
            f"model gives maps of shape {embedding.shape}, but a classifier needs a "
            "vector for each image. Append nn.AdaptiveAvgPool2d(1) and nn.Flatten()."
        )
    parts = _trained_parts(network, calls, from_layer)
    wishes = [
        (parameter, parameter.requires_grad) for parameter in network.parameters()
    ]
    learning = [
        parameter
        for part in parts
        for parameter in part.parameters(recurse=False)
        if parameter.requires_grad
    ]
    network.requires_grad_(False)
    for parameter in learning:
        parameter.requires_grad_(True)
    head = new_head(*embedding.shape, len(classes), streams.torch("head"))
    head.to(judged.device)
    optimizer = torch.optim.SGD(
        [{"params": learning}, {"params": head.parameters()}],
        lr=learning_rate,
        momentum=MOMENTUM,
    )
    n_steps = len(batches(np.arange(len(source)), batch_size))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, n_epochs * n_steps)
    # Both are stepped by that one, whose rate falls: the head has none of its own.
    none = torch.optim.SGD([{"params": []}])
    training = Training(head, none, streams.torch("augment"))
    partly, sampler = Partly(network, set(parts)), streams.numpy("sampling")
    module = nn.Sequential(OrderedDict(network=network, classifier=head))
    logits = find_layers(trace(module, source.shape, **running), [EMBEDDING])
    pool = partial(average_pooled, n_values=1)
    table = []
    with (
        limited_threads(judged.n_jobs),
        isolated_torch_rng(streams.seed("torch"), judged.device),
    ):
        for epoch in range(1, n_epochs + 1):
            for _ in train_epoch(
                *(partly, training, optimizer, schedule, source),
                epoch_rows(labels, None, sampler),
                labels,
                weights=None,
                augment=None,
                batch_size=batch_size,
                **running,
            ):
                pass
            loss = training.losses[-1]
            if not np.isfinite(loss):
                raise ValueError(
                    f"The loss is {loss} in epoch {epoch}: training diverged. Lower "
                    f"learning_rate={learning_rate}, say to a tenth."
                )
            if parts:
                # Running averages of few steps are those of a network that is gone.
                calibrate(partly, source, sample, batch_size=batch_size, **running)
            now = Judged(module, judged.device, judged.dtype, judged.estimator)
            scores, y = now.features(test, logits, pool, None)
            accuracy = float(np.mean(classes[scores.argmax(axis=1)] == y))
            table.append({"epoch": epoch, "loss": loss, "accuracy": accuracy})
            if verbose:
                print(f"epoch {epoch:3d}  loss {loss:.3f}  accuracy {accuracy:.3f}")
    for parameter, wish in wishes:
        parameter.requires_grad_(wish)
    return table, module.eval()


def _trained_parts(
    network: nn.Module, calls: list[Call], from_layer: str | None
) -> list[nn.Module]:
    """Return the submodules that learn: those that are entered from a layer on.

    What is inside one of them belongs to it; what is around the layer does not.
    """
    if from_layer is None:
        return list(network.modules())
    (layer,) = find_layers(calls, [from_layer])
    if layer.name == EMBEDDING:
        return []
    first = next(i for i, call in enumerate(calls) if call.path == layer.start)
    before = {call.module for call in calls[:first]}
    entered = [call.module for call in calls[first:] if call.module not in before]
    found = {part for module in entered for part in module.modules()}
    return [part for part in network.modules() if part in found]
