"""Training with labels: fine-tune a copy of a network, or reset its weights."""

import copy
from collections import OrderedDict
from dataclasses import dataclass
from functools import partial
from numbers import Integral, Real

import numpy as np
import torch
from sklearn.utils._param_validation import Interval, validate_params
from torch import nn

from .._activations.layers import (
    EMBEDDING,
    Call,
    Layer,
    average_pool,
    find_layers,
)
from .._activations.model import (
    COUNT,
    MODEL,
    EvaluatedModel,
    LabeledImages,
    warn_unreadable_images,
)
from .._inputs.arrays import MAX_ABS_VALUE
from .._inputs.sources import Source
from .._training.batch_norm import CALIBRATION_ROWS, calibrate_batch_norm
from .._training.epoch import BatchOptions, TrainingState, train_epoch
from .._training.heads import linear_head
from .._training.sampling import sample_rows, split_batches
from .._utils.compute import Compute
from .._utils.neutral_state import with_neutral_state
from .._utils.random import RandomStreams, isolated_torch_rng
from .._utils.threads import limit_threads

# Momentum of SGD, as in pretraining.
MOMENTUM = 0.9


@with_neutral_state
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
    *,
    X_train,
    y_train,
    X_test,
    y_test,
    from_layer=None,
    n_epochs=10,
    learning_rate=0.01,
    batch_size=64,
    random_state=None,
    verbose=0,
):
    """Train a copy of the network and a linear classifier on classes.

    Applied to an `untrained` network, this is supervised learning from scratch.

    Parameters
    ----------
    model : DeepClusterEstimator or torch.nn.Module
        Fitted estimator or network, as in `linear_probe`. It is not changed.
    X_train : array-like, tensor, folder, paths, PIL images or dataset
        Training images. They are not augmented.
    y_train : array-like of shape (n_train,)
        Classes of the training images.
    X_test : array-like, tensor, folder, paths, PIL images or dataset
        Test images.
    y_test : array-like of shape (n_test,)
        Classes of the test images.
    from_layer : str, default=None
        Name of the first layer to train, as in `linear_probe`. Earlier layers keep
        their weights and batch-norm statistics. "embedding" trains the classifier
        alone; None trains the whole network. Set it if there are few labels.
    n_epochs : int, default=10
        Number of passes over the training images.
    learning_rate : float, default=0.01
        Initial step size of SGD with momentum 0.9. It falls to 0 along a cosine. Lower
        it if the loss diverges.
    batch_size : int, default=64
        Number of images in one step, at least 2.
    random_state : int, RandomState instance or None, default=None
        Seed of the classifier, the order of images and dropout. Pass an int for
        reproducible results. Global generators are neither read nor advanced.
    verbose : int, default=0
        Verbosity level. With 1, one line is printed for each epoch.

    Returns
    -------
    table : list of dict
        One row for each epoch, with the keys `epoch`, `loss` and `accuracy` on the
        test images.
    module : torch.nn.Module
        Trained network in evaluation mode, from float32 images to logits.
        ``module.network`` is the copy, ``module.classifier`` the classifier of the
        sorted classes.

    Raises
    ------
    ValueError
        If the loss diverges, and for the reasons given in `linear_probe`.

    See Also
    --------
    linear_probe : Train a classifier on each layer of the unchanged network.
    untrained : Copy the network with new random weights.

    Notes
    -----
    This is the section "Pascal VOC 2007" of the paper, which trains either the last,
    fully connected layers or all layers.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from skdeepcluster import DeepClusterEstimator
    >>> from skdeepcluster.evaluation import fine_tune
    >>> images, y = load_digits().images[:400], load_digits().target[:400]
    >>> model = DeepClusterEstimator(10, max_iter=1, epochs_per_iter=3, random_state=0)
    >>> table, module = fine_tune(
    ...     model.fit(images),
    ...     X_train=images[:300],
    ...     y_train=y[:300],
    ...     X_test=images[300:],
    ...     y_test=y[300:],
    ...     from_layer="conv3",
    ...     n_epochs=2,
    ... )
    >>> [row["epoch"] for row in table]
    [1, 2]
    """
    evaluated = EvaluatedModel.from_model(model)
    train, test = evaluated.read_split(X_train, y_train, X_test, y_test, fitting=True)
    table, module = train_classifier(
        evaluated,
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


@with_neutral_state
@validate_params(
    {"model": MODEL, "random_state": ["random_state"]},
    prefer_skip_nested_validation=True,
)
def untrained(model, random_state=None):
    """Copy the network and reset its weights to new random values.

    Parameters
    ----------
    model : DeepClusterEstimator or torch.nn.Module
        Fitted estimator or network, as in `linear_probe`. It is not changed.
    random_state : int, RandomState instance or None, default=None
        Seed of the weights. Pass an int for reproducible results. Global generators
        are neither read nor advanced.

    Returns
    -------
    module : torch.nn.Module
        Copy with weights from each submodule's ``reset_parameters`` and batch-norm
        statistics of mean 0 and variance 1. Weights that require no gradient are kept.
        To evaluate it on files, put it into a copy of the estimator:
        ``random_model = copy.copy(model); random_model.module_ = untrained(model)``.

    Raises
    ------
    ValueError
        If a submodule has weights but no method ``reset_parameters``.

    See Also
    --------
    linear_probe : Evaluate the network, for the row "Random" of the paper's table.
    fine_tune : Train the network with labels.

    Examples
    --------
    >>> from torch import nn
    >>> from skdeepcluster.evaluation import untrained
    >>> network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten())
    >>> random_network = untrained(network, random_state=0)
    >>> bool((random_network[0].weight != network[0].weight).all())
    True
    """
    seed = RandomStreams.from_random_state(random_state).seed("untrained")
    return copy_with_new_weights(EvaluatedModel.from_model(model).network, seed)


def copy_with_new_weights(network: nn.Module, seed: int) -> nn.Module:
    """Return a copy with new random weights, the same on every device.

    Raises
    ------
    ValueError
        If a submodule has weights but no method `reset_parameters`.
    """
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    # Generators differ between devices: the weights are always drawn on the CPU.
    new_network = copy.deepcopy(network).cpu()
    with isolated_torch_rng(seed, torch.device("cpu")):
        for path, module in new_network.named_modules():
            parameters = list(module.parameters(recurse=False))
            if parameters and not any(p.requires_grad for p in parameters):
                # Frozen on purpose, such as the kernels of a Sobel filter.
                continue
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
            elif parameters:
                raise ValueError(
                    f"Submodule {path or type(module).__name__!r} of the model has "
                    "weights but no method reset_parameters. Add that method, or build "
                    "the network again."
                )
    return new_network.to(device)


class PartiallyTrainedNetwork(nn.Module):
    """Wrap a network so that only some submodules enter training mode."""

    def __init__(self, network: nn.Module, trained: set[nn.Module]):
        super().__init__()
        self.network = network
        self.trained = trained

    def train(self, mode: bool = True) -> "PartiallyTrainedNetwork":
        """Set the mode of the trained submodules; keep the frozen ones in evaluation.

        In training mode, batch norm would update the statistics of frozen layers.
        """
        super().train(mode)
        for module in self.network.modules():
            if module not in self.trained:
                module.training = False
        return self

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return features, float32 (n, d)."""
        return self.network(images.float()).float()

    # `train_epoch` passes the points of a network to the head.
    points = forward


@dataclass(frozen=True)
class SupervisedTraining:
    """Everything that one epoch of supervised training needs.

    Attributes
    ----------
    network : PartiallyTrainedNetwork
        The copy that is trained, on `model.device`.
    model : EvaluatedModel
        The network with its classifier, which returns logits.
    state : TrainingState
    optimizer : torch.optim.SGD
        Optimizer of the network and of the classifier.
    schedule : CosineAnnealingLR
        Stepped after each batch.
    source : Source
    labels : ndarray of shape (n,), int
        Index of each image's class among the sorted classes.
    calibration_rows : ndarray of int
        Rows from which the batch-norm statistics are computed.
    options : BatchOptions
    """

    network: PartiallyTrainedNetwork
    model: EvaluatedModel
    state: TrainingState
    optimizer: torch.optim.SGD
    schedule: torch.optim.lr_scheduler.CosineAnnealingLR
    source: Source
    labels: np.ndarray
    calibration_rows: np.ndarray
    options: BatchOptions


def train_classifier(
    model: EvaluatedModel,
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
    """Train a copy of a network and a linear classifier; the parameters of `fine_tune`.

    Returns
    -------
    table : list of dict
        One row for each epoch, with the keys `epoch`, `loss` and `accuracy` on the
        test images.
    module : torch.nn.Module
        The copy and the classifier, from images to logits, in evaluation mode.

    Raises
    ------
    ValueError
        If the layer is unknown, the network returns no vectors, or the loss diverges.
    """
    # Training changes the weights and freezes layers: the model keeps its network.
    network = copy.deepcopy(model.network)
    requires_grad = [(p, p.requires_grad) for p in network.parameters()]
    training = _prepare_training(
        replace_network(model, network),
        train,
        from_layer=from_layer,
        n_epochs=n_epochs,
        learning_rate=learning_rate,
        batch_size=batch_size,
        streams=streams,
    )
    classes = np.unique(train.y)
    sampler = streams.numpy("sampling")
    (logits,) = training.model.find_layers(train, [EMBEDDING])
    table = []
    with (
        limit_threads(model.n_jobs),
        isolated_torch_rng(streams.seed("torch"), model.device),
    ):
        for epoch in range(1, n_epochs + 1):
            loss = _train_one_epoch(training, sampler)
            if not np.isfinite(loss):
                raise ValueError(
                    f"The loss is {loss} in epoch {epoch}: training diverged. Lower "
                    f"learning_rate={learning_rate}, for example to "
                    f"{learning_rate / 10:g}."
                )
            accuracy = _measure_accuracy(training.model, test, logits, classes)
            table.append({"epoch": epoch, "loss": loss, "accuracy": accuracy})
            if verbose:
                print(f"epoch {epoch:3d}  loss {loss:.3f}  accuracy {accuracy:.3f}")
    # The returned copy can be trained further, as the original.
    for parameter, value in requires_grad:
        parameter.requires_grad_(value)
    return table, training.model.network.eval()


def replace_network(model: EvaluatedModel, network: nn.Module) -> EvaluatedModel:
    """Return a model that runs another network in the same way."""
    return EvaluatedModel(
        network=network,
        device=model.device,
        dtype=model.dtype,
        estimator=model.estimator,
    )


def _prepare_training(
    model: EvaluatedModel,
    train: LabeledImages,
    *,
    from_layer: str | None,
    n_epochs: int,
    learning_rate: float,
    batch_size: int,
    streams: RandomStreams,
) -> SupervisedTraining:
    """Freeze the first layers of `model.network` and add a classifier."""
    network, source = model.network, train.data.source
    classes, labels = np.unique(train.y, return_inverse=True)
    calls = model.trace(train)
    (embedding,) = find_layers(calls, [EMBEDDING])
    if len(embedding.shape) != 1:
        raise ValueError(
            f"model returns maps of shape {embedding.shape}, but a classifier needs "
            "one vector for each image. Append nn.AdaptiveAvgPool2d(1) and "
            "nn.Flatten()."
        )
    trained_modules = _trained_modules(network, calls, from_layer)
    trained_parameters = _freeze_all_but(network, trained_modules)
    (n_features,) = embedding.shape
    head = linear_head(n_features, [len(classes)], streams.torch("head"))
    head.to(model.device)
    optimizer = torch.optim.SGD(
        [*trained_parameters, *head.parameters()], lr=learning_rate, momentum=MOMENTUM
    )
    n_steps = len(split_batches(np.arange(len(source)), batch_size))
    (classifier,) = head.classifiers
    module = nn.Sequential(OrderedDict(network=network, classifier=classifier))
    return SupervisedTraining(
        network=PartiallyTrainedNetwork(network, set(trained_modules)),
        model=replace_network(model, module),
        state=TrainingState(head, streams.torch("augment")),
        optimizer=optimizer,
        schedule=torch.optim.lr_scheduler.CosineAnnealingLR(
            optimizer, n_epochs * n_steps
        ),
        source=source,
        labels=labels,
        calibration_rows=streams.sample("calibration", len(source), CALIBRATION_ROWS),
        options=BatchOptions(batch_size, Compute(model.device, model.dtype)),
    )


def _freeze_all_but(network: nn.Module, modules: list[nn.Module]) -> list[nn.Parameter]:
    """Return the trainable parameters of modules and freeze all other parameters.

    Parameters that a user froze stay frozen.
    """
    parameters = [
        parameter
        for module in modules
        for parameter in module.parameters(recurse=False)
        if parameter.requires_grad
    ]
    network.requires_grad_(False)
    for parameter in parameters:
        parameter.requires_grad_(True)
    return parameters


def _train_one_epoch(
    training: SupervisedTraining, sampler: np.random.Generator
) -> float:
    """Train on every image once, update the batch-norm statistics, return the loss."""
    for _ in train_epoch(
        training.network,
        training.state,
        [training.optimizer],
        training.schedule,
        training.source,
        sample_rows(training.labels, None, sampler),
        training.labels[None],
        training.options,
    ):
        pass
    if training.network.trained:
        # The running averages of an epoch lag behind the weights, in particular if
        # the epoch has few steps.
        calibrate_batch_norm(
            training.network,
            training.source,
            training.calibration_rows,
            batch_size=training.options.batch_size,
            compute=training.options.compute,
        )
    return training.state.losses[-1]


def _measure_accuracy(
    model: EvaluatedModel, images: LabeledImages, logits: Layer, classes: np.ndarray
) -> float:
    """Return the share of images whose largest logit is that of their class."""
    # Logits are vectors, which pooling returns as they are.
    pool = partial(average_pool, n_values=1)
    scores, y = model.extract_features(images, [logits], pool, memory=None)
    return float(np.mean(classes[scores.argmax(axis=1)] == y))


def _trained_modules(
    network: nn.Module, calls: list[Call], from_layer: str | None
) -> list[nn.Module]:
    """Return the submodules that the forward pass enters at a layer or later.

    All descendants of such a submodule belong to it; the ancestors of the layer are
    entered earlier and do not count.
    """
    if from_layer is None:
        return list(network.modules())
    (layer,) = find_layers(calls, [from_layer])
    if layer.name == EMBEDDING:
        return []
    start = next(i for i, call in enumerate(calls) if call.path == layer.start_path)
    entered_earlier = {call.module for call in calls[:start]}
    entered = [c.module for c in calls[start:] if c.module not in entered_earlier]
    # A submodule may hold modules that the forward pass uses without calling them.
    trained = {descendant for module in entered for descendant in module.modules()}
    return [module for module in network.modules() if module in trained]
