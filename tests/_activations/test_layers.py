"""Layers of a network: their names, their outputs and pooling."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from torch import nn
from torchvision import models

from skdeepcluster import DeepClusterEstimator
from skdeepcluster._activations.layers import (
    LayerOutputs,
    average_pool,
    default_layers,
    extract_layer_features,
    find_layers,
    trace_calls,
)
from skdeepcluster._inputs.sources import ArraySource

CPU = torch.device("cpu")


class FunctionalActivation(nn.Module):
    """A convolution whose ReLU is a function, not a submodule."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3)

    def forward(self, x):
        return nn.functional.relu_(self.norm(self.conv(x))).mean(dim=(2, 3))


class SharedActivation(nn.Module):
    """One ReLU that is called twice, and a shortcut that is added in place."""

    def __init__(self):
        super().__init__()
        self.conv_a, self.conv_b = nn.Conv2d(1, 2, 1), nn.Conv2d(2, 2, 1)
        self.norm, self.relu = nn.GroupNorm(1, 2), nn.ReLU(inplace=True)

    def forward(self, x):
        shortcut = self.relu(self.conv_a(x))
        maps = self.norm(self.conv_b(shortcut))
        maps += shortcut
        return self.relu(maps).mean(dim=(2, 3))


def random_images(n, size):
    rng = np.random.default_rng(0)
    return rng.normal(size=(n, 1, size, size)).astype(np.float32)


def layer_names(network, *shape):
    return list(default_layers(trace_calls(network, shape, CPU, torch.float32)))


def compute_features(network, images, names, n_values=10**6):
    """Return the features of each layer, computed in a pass of its own."""
    shape = images.shape[1:]
    layers = find_layers(trace_calls(network, shape, CPU, torch.float32), names)

    def pool(maps):
        return average_pool(maps, n_values)

    source = ArraySource(images)
    return [
        extract_layer_features(network, source, CPU, torch.float32, [layer], pool)
        for layer in layers
    ]


def compute_raw_maps(network, images, *names):
    """Return the maps of each layer before its activation, all from one pass."""
    calls = trace_calls(network, images.shape[1:], CPU, torch.float32)
    layers = find_layers(calls, list(names))
    outputs = LayerOutputs(network, layers, lambda maps: maps.flatten(1), raw=True)
    sizes = [int(np.prod(layer.shape)) for layer in layers]
    with torch.no_grad():
        columns = outputs(images).split(sizes, dim=1)
    return [maps.reshape(len(images), -1) for maps in columns]


def test_layers_of_the_default_convnet(digits_model):
    expected = ["conv1", "conv2", "conv3", "conv4", "embedding"]
    assert layer_names(digits_model.module_, 1, 8, 8) == expected


def test_layers_without_convolutions_are_activations(digits_split):
    rows = digits_split["X_train"].reshape(300, -1).astype(np.float32)
    model = DeepClusterEstimator(4, max_iter=1, epochs_per_iter=1, random_state=0)
    model.fit(rows)
    assert layer_names(model.module_, 64) == ["layer1", "layer2", "embedding"]


@pytest.mark.parametrize(
    ("name", "n_convolutions"), [("resnet18", 20), ("alexnet", 5), ("vgg11_bn", 8)]
)
def test_layers_of_torchvision_networks(name, n_convolutions):
    network = models.get_model(name, weights=None)
    names = layer_names(network, 3, 64, 64)
    assert names == [*(f"conv{i + 1}" for i in range(n_convolutions)), "embedding"]


@pytest.mark.parametrize("inplace", [True, False])
def test_convolution_includes_norm_and_relu(make_plain_network, inplace):
    network = make_plain_network(inplace).eval()
    images = random_images(7, size=8)
    x = torch.from_numpy(images)
    with torch.no_grad():
        conv1 = network[1](network[0](x)).relu()
        conv2 = network[4](network[3](conv1.clone())).relu()
        output = network(x)
    features = compute_features(network, images, ["conv1", "conv2", "embedding", "3"])
    assert_allclose(features[0], conv1.flatten(1), rtol=1e-4, atol=1e-5)
    assert_allclose(features[1], conv2.flatten(1), rtol=1e-4, atol=1e-5)
    assert_allclose(features[2], output, atol=1e-5)
    assert_allclose(features[3], network[3](conv1).flatten(1), atol=1e-5)


def test_functional_activation_is_applied():
    network = FunctionalActivation().eval()
    images = random_images(5, size=6)
    with torch.no_grad():
        maps = network.norm(network.conv(torch.from_numpy(images)))
    assert maps.min() < 0
    (features,) = compute_features(network, images, ["conv1"])
    assert_allclose(features, maps.relu().flatten(1), atol=1e-5)


def test_module_called_twice():
    network = SharedActivation().eval()
    images = random_images(5, size=6)
    with torch.no_grad():
        conv1 = network.conv_a(torch.from_numpy(images)).relu()
        conv2 = (network.norm(network.conv_b(conv1)) + conv1).relu()
    features = compute_features(network, images, ["conv1", "conv2", "relu"])
    assert_allclose(features[0], conv1.flatten(1), rtol=1e-4, atol=1e-5)
    assert_allclose(features[1], conv2.flatten(1), rtol=1e-4, atol=1e-5)
    assert_allclose(features[2], conv2.flatten(1), rtol=1e-4, atol=1e-5)


def test_convolutions_are_in_execution_order():
    class ReverseOrder(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.norm = nn.Conv2d(3, 5, 1), nn.BatchNorm2d(3)
            self.conv0 = nn.Conv2d(1, 3, 1)

        def forward(self, x):
            return self.conv1(self.norm(self.conv0(x)).relu_()).mean(dim=(2, 3))

    calls = trace_calls(ReverseOrder(), (1, 8, 8), CPU, torch.float32)
    layers = find_layers(calls, ["conv1", "conv2", "conv0", "embedding"])
    assert [(layer.start_path, layer.path) for layer in layers] == [
        ("conv0", "norm"),
        ("conv1", "conv1"),
        ("conv0", "conv0"),
        ("", ""),
    ]
    assert [layer.rectified for layer in layers] == [True, True, False, False]
    assert [layer.shape[0] for layer in layers] == [3, 5, 3, 5]


@pytest.mark.parametrize("inplace", [True, False])
def test_raw_maps_of_activation_modules(make_plain_network, inplace):
    images = torch.from_numpy(random_images(5, size=8))
    network = make_plain_network(inplace).eval()
    raw_maps = compute_raw_maps(network, images, "conv1", "2", "embedding")
    with torch.no_grad():
        conv1, output = network[:2](images).flatten(1), network(images)
    assert conv1.min() < 0
    for maps, expected in zip(raw_maps, [conv1, conv1.relu(), output], strict=True):
        assert_allclose(maps, expected, atol=1e-5)


def test_raw_maps_of_a_functional_activation():
    images = torch.from_numpy(random_images(5, size=8))
    network = FunctionalActivation().eval()
    with torch.no_grad():
        conv1 = network.norm(network.conv(images)).flatten(1)
    assert_allclose(compute_raw_maps(network, images, "conv1")[0], conv1, atol=1e-5)


def test_raw_maps_include_the_sum_with_a_shortcut():
    images = torch.from_numpy(random_images(5, size=8))
    network = SharedActivation().eval()
    with torch.no_grad():
        conv1 = network.conv_a(images)
        conv2 = network.norm(network.conv_b(conv1.relu())) + conv1.relu()
    raw_maps = compute_raw_maps(network, images, "conv2", "conv1")
    assert_allclose(raw_maps[0], conv2.flatten(1), atol=1e-5)
    assert_allclose(raw_maps[1], conv1.flatten(1), atol=1e-5)


@pytest.mark.parametrize("inplace", [True, False])
def test_raw_values_of_a_perceptron(inplace):
    images = torch.from_numpy(random_images(5, size=8))
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 9), nn.ReLU(inplace))
    expected = network[:2](images).detach()
    for values in compute_raw_maps(network, images, "layer1", "1", "embedding")[:2]:
        assert_allclose(values, expected, atol=1e-5)


def test_forward_pass_stops_at_the_last_layer(make_plain_network):
    network = make_plain_network().eval()
    calls = trace_calls(network, (1, 8, 8), CPU, torch.float32)
    layers = find_layers(calls, ["conv2", "conv1"])
    network[6].register_forward_pre_hook(lambda *call: pytest.fail("went on"))
    outputs = LayerOutputs(network, layers, lambda maps: maps.flatten(1))
    assert outputs(torch.zeros(2, 1, 8, 8)).shape == (2, 6 * 16 + 4 * 64)
    with pytest.raises(pytest.fail.Exception):
        network(torch.zeros(2, 1, 8, 8))


def test_memory_error_is_not_reported_as_wrong_shape():
    class LargeModule(nn.Module):
        def forward(self, x):
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    with pytest.raises(MemoryError, match=r"a forward pass\. Pass smaller images"):
        trace_calls(LargeModule(), (1, 8, 8), CPU, torch.float32)


@given(
    shape=st.tuples(*[st.integers(1, n) for n in (600, 40, 40)]),
    n_values=st.integers(1, 9000),
)
def test_average_pool_limits_the_number_of_values(shape, n_values):
    pooled = average_pool(torch.ones(2, *shape), n_values)
    assert pooled.shape[1] <= max(n_values, shape[0])
    assert_allclose(pooled, 1)
    if np.prod(shape) <= n_values:
        assert pooled.shape[1] == np.prod(shape)


def test_average_pool_averages():
    maps = torch.arange(16.0).reshape(1, 1, 4, 4)
    assert average_pool(maps, 4).tolist() == [[2.5, 4.5, 10.5, 12.5]]


def test_features_do_not_depend_on_the_number_of_images(digits_model, digits_split):
    network, images = digits_model.module_, digits_split["X_train"][:, None]
    rows = np.random.default_rng(0).permutation(300)[:97]
    names = ["conv1", "conv4", "embedding"]
    all_features = compute_features(network, images, names)
    row_features = compute_features(network, images[rows], names)
    for expected, features in zip(all_features, row_features, strict=True):
        assert_array_equal(expected[rows], features)
