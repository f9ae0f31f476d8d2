"""Models, layers and filters that all functions of inspection share."""

import copy
import random

import numpy as np
import pytest
import torch
from sklearn.exceptions import NotFittedError

from skdeepcluster import DeepClusterEstimator
from skdeepcluster.inspection import (
    contact_sheet,
    first_layer_filters,
    maximal_images,
    top_images,
)

# Quick fits may not converge.
pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

SHAPE = (1, 8, 8)


@pytest.fixture
def training_model(model):
    """A copy of the model in training mode."""
    model = copy.deepcopy(model)
    model.module_.train()
    return model


def test_global_generators_are_not_advanced(model, images, make_network):
    network = make_network()
    before = random.getstate(), np.random.get_state()[1].tolist()
    torch_state = torch.get_rng_state()
    inspect_all(model, images)
    inspect_module(network, images)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before
    assert torch.equal(torch_state, torch.get_rng_state())


def inspect_all(model, images):
    """Call every function of inspection on an estimator."""
    inspect_module(model, images, image_shape=None)
    for order in ("nearest", "random"):
        contact_sheet(model, images[:20], order=order)


def inspect_module(network, images, image_shape=SHAPE):
    first_layer_filters(network)
    maximal_images(network, "conv2", [0], n_steps=2, image_shape=image_shape)
    top_images(network, images[:20, None].astype(np.float32), "conv2")


def test_estimator_is_not_changed(training_model, images, module_state):
    network = training_model.module_
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = module_state(network)
    inspect_all(training_model, images)
    assert module_state(network) == before
    assert all(module.training for module in network.modules())
    assert all((p.grad == 1).all() for p in network.parameters())


def test_module_is_not_changed(images, make_network, module_state):
    network = make_network()
    network[0].train()
    network[2].eval()
    network[2].weight.requires_grad_(False)
    network[0].weight.grad = torch.ones_like(network[0].weight)
    before = module_state(network)
    inspect_module(network, images)
    assert module_state(network) == before
    assert (network[0].training, network[2].training) == (True, False)
    assert not network[2].weight.requires_grad
    assert (network[0].weight.grad == 1).all()
    assert network[0].bias.grad is None


def test_module_is_restored_after_an_error(training_model):
    with pytest.raises(ValueError, match="'conv9' is not a layer"):
        maximal_images(training_model, "conv9")
    modules = list(training_model.module_.modules())
    assert all(module.training for module in modules)
    assert not any(module._forward_hooks for module in modules)


@pytest.mark.parametrize(
    ("filters", "message"),
    [
        ([0, 32], "filters holds 32, but layer='conv1' has 32 filters.*from 0 to 31"),
        ([-1], "filters holds -1"),
        ([], "should be a list of integers"),
        (3, "should be a list of integers"),
        ([0.5], "should be a list of integers"),
    ],
)
def test_wrong_filters(model, images, filters, message):
    with pytest.raises(ValueError, match=message):
        maximal_images(model, "conv1", filters)
    with pytest.raises(ValueError, match=message):
        top_images(model, images, "conv1", filters)


@pytest.mark.parametrize("layer", ["conv5", "trunk.99", "", None])
def test_unknown_layer_lists_the_layers(model, images, layer):
    message = (
        f"{layer!r} is not a layer of the model. Its layers are conv1, conv2, conv3, "
        "conv4, embedding, and its submodules front, front.0, "
    )
    with pytest.raises(ValueError, match=message):
        top_images(model, images, layer)


def test_wrong_model(images):
    with pytest.raises(ValueError, match="'model' param"):
        maximal_images("model", "conv1")
    with pytest.raises(ValueError, match="'model' param"):
        top_images("model", images, "conv1")
    with pytest.raises(ValueError, match="'model' param"):
        first_layer_filters("model")


def test_unfitted_model(images):
    unfitted = DeepClusterEstimator()
    with pytest.raises(NotFittedError):
        first_layer_filters(unfitted)
    with pytest.raises(NotFittedError):
        maximal_images(unfitted, "conv1")
    with pytest.raises(NotFittedError):
        top_images(unfitted, images, "conv1")
    with pytest.raises(NotFittedError):
        contact_sheet(unfitted, images)
