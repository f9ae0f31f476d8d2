"""Toy images, networks and a training pass that several tests of training use."""

import numpy as np
import pytest
import torch
from torch import nn

from skdeepcluster._inputs.sources import ArraySource
from skdeepcluster._training.epoch import BatchOptions, TrainingState, train_epoch
from skdeepcluster._training.network import build_network
from skdeepcluster._training.sampling import split_batches
from skdeepcluster._utils.compute import Compute

CPU = torch.device("cpu")

# The fixtures are functions with session scope: Hypothesis calls a test many times and
# would share a fixture with a state between its examples.


@pytest.fixture(scope="session")
def make_toy_images():
    """Function that returns dark and bright noisy images, and their labels 0 and 1."""

    def make(n=60):
        labels = np.arange(n) % 2
        noise = np.random.default_rng(0).integers(0, 100, (n, 1, 8, 8))
        return (noise + 100 * labels[:, None, None, None]).astype(np.uint8), labels

    return make


@pytest.fixture(scope="session")
def make_network():
    """Function that builds a network for X with fixed fresh weights."""

    def make(X, backbone="auto", *, sobel=False, head_norm="batch"):
        axes = (0, *range(2, X.ndim))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return build_network(
                backbone,
                X.shape[1:],
                mean=X.mean(axis=axes),
                # Some features are constant, and have no deviation to divide by.
                scale=X.std(axis=axes) + 1e-3,
                sobel=sobel,
                head_norm=head_norm,
            )

    return make


def sgd(module, learning_rate):
    """Return an optimizer of the module, which may have no parameters."""
    parameters = [*module.parameters(), nn.Parameter(torch.zeros(()))]
    return torch.optim.SGD(parameters, learning_rate)


@pytest.fixture(scope="session")
def train():
    """Function that trains a network and a head for an epoch, and returns the loss."""

    def train_on(
        network,
        head,
        X,
        labels,
        *,
        learning_rate=0.05,
        rows=None,
        generator=None,
        weights=None,
        training_points=None,
        batch_size=16,
        augment=None,
        n_crops=(1, 0),
        device=CPU,
        dtype=torch.float32,
    ):
        if rows is None:
            rows = np.random.default_rng(0).permutation(len(X))
        if generator is None:
            generator = torch.Generator().manual_seed(0)
        optimizer = sgd(network, learning_rate)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
        training = TrainingState(head, generator)
        options = BatchOptions(
            batch_size=batch_size,
            compute=Compute(device, dtype),
            augment=augment,
            n_crops=n_crops,
        )
        steps = train_epoch(
            network,
            training,
            [optimizer, sgd(head, learning_rate)],
            schedule,
            ArraySource(X),
            rows,
            np.atleast_2d(labels),
            options,
            weights=None if weights is None else [weights],
            training_points=training_points,
        )
        n_batches = len(split_batches(rows, batch_size))
        assert [training.n_batches for _ in steps] == [*range(1, n_batches + 1)]
        assert schedule.last_epoch == n_batches
        (loss,) = training.losses
        return loss

    return train_on
