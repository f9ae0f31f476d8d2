"""A copy of a network, with other weights: fresh ones, or those that labels teach."""

import copy
from collections import OrderedDict
from functools import partial
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from sklearn.utils._param_validation import Interval, validate_params
from torch import nn

from .._activations.layers import (
    EMBEDDING,
    Call,
    average_pooled,
    find_layers,
    trace_calls,
)
from .._activations.model import (
    COUNT,
    MODEL,
    EvaluatedModel,
    LabeledImages,
    warn_unreadable_images,
)
from .._inputs.arrays import MAX_ABS_VALUE
from .._training.batch_norm import CALIBRATION_ROWS, calibrate_batch_norm
from .._training.epoch import BatchOptions, TrainingState, train_epoch
from .._training.heads import linear_head
from .._training.sampling import sample_rows, split_batches
from .._utils.compute import Compute
from .._utils.device import limit_threads
from .._utils.random import RandomStreams, isolated_torch_rng

MOMENTUM = 0.9


@validate_params(
    {
        "model": MODEL,
        "from_layer": [str, None],
        "n_epochs": [COUNT],
        "learning_rate": [Interval(Real, 0, MAX_ABS_VALUE, closed="right")],
        "batch_size": [Interval(Integral, 2, None, closed="left")],
        "random_state": ["random_state"],
        "verbose": ["verbose"],
    },
    prefer_skip_nested_validation=True,
)
def fine_tune(
    model,
    X_train,
    y_train,
    X_test,
    y_test,
    *,
    from_layer=None,
    n_epochs=10,
    learning_rate=0.01,
    batch_size=64,
    random_state=None,
    verbose=0,
):
    """Train a copy of the network, and a linear classifier on it, to tell classes.

    On an `untrained` network it is supervised learning from scratch.

    Parameters
    ----------
    model : DeepClusterEstimator or torch.nn.Module
        As in `linear_probe`. It stays as it is.
    X_train : array-like, tensor, folder, paths, pictures or dataset
        Images to learn from, as they are.
    y_train : array-like of shape (n_train,)
        Classes of these.
    X_test : array-like, tensor, folder, paths, pictures or dataset
        Images to judge by.
    y_test : array-like of shape (n_test,)
        Classes of these.
    from_layer : str, default=None
        Name, as in `linear_probe`, of the first layer that learns. What is run before
        it keeps its weights and its batch-norm statistics. "embedding" is the
        classifier alone; None is everything.
    n_epochs : int, default=10
        Number of passes over the images.
    learning_rate : float, default=0.01
        Step size of SGD with momentum 0.9, falling to 0 by a cosine.
    batch_size : int, default=64
        Images in one step, at least 2.
    random_state : int, RandomState instance or None, default=None
        Seed of the classifier, of the order of images and of dropout. No global
        generator is read or advanced.
    verbose : int, default=0
        With 1, one line is printed for each epoch.

    Returns
    -------
    table : list of dict
        A row for each epoch: `epoch`, `loss`, `accuracy` on the test images.
    module : torch.nn.Module
        From float32 images to logits, in evaluation mode. ``module.network`` is the
        copy, ``module.classifier`` the classifier of the sorted classes.

    Raises
    ------
    ValueError
        If the loss diverges, or as in `linear_probe`.

    See Also
    --------
    linear_probe : The network stays as it is.
    untrained : The same network with fresh weights.

    Notes
    -----
    The section "Pascal VOC 2007" of the paper, where either the last, fully connected
    layers are trained or all.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from skdeepcluster import DeepClusterEstimator
    >>> from skdeepcluster.evaluation import fine_tune
    >>> images, y = load_digits().images[:400], load_digits().target
    >>> model = DeepClusterEstimator(10, max_iter=1, epochs_per_iter=3, random_state=0)
    >>> data = images[:300], y[:300], images[300:], y[300:400]
    >>> table, module = fine_tune(
    ...     model.fit(images), *data, from_layer="conv3", n_epochs=2
    ... )
    >>> [row["epoch"] for row in table]
    [1, 2]
    """
    judged = EvaluatedModel.of(model)
    train, test = judged.split(X_train, y_train, X_test, y_test, fitting=True)
    table, module = train_classifier(
        judged,
        train,
        test,
        from_layer=from_layer,
        n_epochs=n_epochs,
        learning_rate=learning_rate,
        batch_size=batch_size,
        streams=RandomStreams.from_random_state(random_state),
        verbose=verbose,
    )
    warn_unreadable_images(train, test)
    return table, module


@validate_params(
    {"model": MODEL, "random_state": ["random_state"]},
    prefer_skip_nested_validation=True,
)
def untrained(model, random_state=None):
    """Copy the network and give it fresh random weights: what learning starts from.

    Parameters
    ----------
    model : DeepClusterEstimator or torch.nn.Module
        As in `linear_probe`. It stays as it is.
    random_state : int, RandomState instance or None, default=None
        Seed of the weights. No global generator is read or advanced.

    Returns
    -------
    module : torch.nn.Module
        With weights by each submodule's ``reset_parameters``, and batch-norm
        statistics of nothing: mean 0 and variance 1. Weights that require no gradients
        are kept. Where `X` is no array, put it into a copy of the estimator:
        ``other = copy.copy(model); other.module_ = untrained(model)``.

    Raises
    ------
    ValueError
        If a submodule has weights of its own but no ``reset_parameters``.

    See Also
    --------
    linear_probe : Judges it, for the row "Random" of the paper's table.
    fine_tune : Trains it with labels.

    Examples
    --------
    >>> from torch import nn
    >>> from skdeepcluster.evaluation import untrained
    >>> network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten())
    >>> new = untrained(network, random_state=0)
    >>> bool((new[0].weight != network[0].weight).all())
    True
    """
    seed = RandomStreams.from_random_state(random_state).seed("untrained")
    return with_fresh_weights(EvaluatedModel.of(model).network, seed)


def with_fresh_weights(network: nn.Module, seed: int) -> nn.Module:
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


class PartlyTrained(nn.Module):
    """A network of which only some parts are ever in training mode."""

    def __init__(self, network: nn.Module, trained: set[nn.Module]):
        super().__init__()
        self.network = network
        self.fixed = [part for part in network.modules() if part not in trained]

    def train(self, mode: bool = True) -> "PartlyTrained":
        """Set the mode of the parts that learn; the others stay in evaluation."""
        super().train(mode)
        for part in self.fixed:
            part.training = False
        return self

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return features, float32 (n, d)."""
        return self.network(images.float()).float()

    points = forward  # what the classifier sees


def train_classifier(
    judged: EvaluatedModel,
    train: LabeledImages,
    test: LabeledImages,
    *,
    from_layer: str | None,
    n_epochs: int,
    learning_rate: float,
    batch_size: int,
    streams: RandomStreams,
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
    running: dict[str, Any] = {"device": judged.device, "dtype": judged.dtype}
    sample = streams.sample("calibration", len(source), CALIBRATION_ROWS)
    classes, labels = np.unique(train.y, return_inverse=True)
    network = copy.deepcopy(judged.network)
    calls = trace_calls(network, source.shape, **running)
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
    head = linear_head(*embedding.shape, [len(classes)], streams.torch("head"))
    head.to(judged.device)
    trained: list[dict[str, Any]] = [
        {"params": learning},
        {"params": head.parameters()},
    ]
    optimizer = torch.optim.SGD(trained, lr=learning_rate, momentum=MOMENTUM)
    n_steps = len(split_batches(np.arange(len(source)), batch_size))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, n_epochs * n_steps)
    training = TrainingState(head, streams.torch("augment"))
    options = BatchOptions(batch_size, Compute(judged.device, judged.dtype))
    partly, sampler = PartlyTrained(network, set(parts)), streams.numpy("sampling")
    (classifier,) = head.classifiers
    module = nn.Sequential(OrderedDict(network=network, classifier=classifier))
    logits = find_layers(trace_calls(module, source.shape, **running), [EMBEDDING])
    pool = partial(average_pooled, n_values=1)
    table = []
    with (
        limit_threads(judged.n_jobs),
        isolated_torch_rng(streams.seed("torch"), judged.device),
    ):
        for epoch in range(1, n_epochs + 1):
            for _ in train_epoch(
                partly,
                training,
                [optimizer],
                schedule,
                source,
                sample_rows(labels, None, sampler),
                labels[None],
                options,
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
                calibrate_batch_norm(
                    partly, source, sample, batch_size, options.compute
                )
            now = EvaluatedModel(module, judged.device, judged.dtype, judged.estimator)
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
