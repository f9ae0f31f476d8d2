"""Features in row order, whatever the batches."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from skdeepcluster._inputs.sources import ArraySource
from skdeepcluster._training import features as features_module
from skdeepcluster._training.augment import RandomCrop, RowNoise
from skdeepcluster._training.features import extract_features
from skdeepcluster._training.network import Network, build_network

CPU = torch.device("cpu")
RNG = np.random.default_rng(0)


def images_of(shape, n=70):
    return RNG.integers(0, 256, (n, *shape)).astype(np.uint8)


def network_for(X, backbone="auto", **parameters):
    """A network with statistics of its own, as after some training."""
    parameters = {"sobel": False, "head_norm": "batch", **parameters}
    axes = (0, *range(2, X.ndim))
    statistics = X.mean(axis=axes), X.std(axis=axes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = build_network(backbone, X.shape[1:], *statistics, **parameters)
        with torch.no_grad():
            network.train()(ArraySource(X).batch(slice(64)))
    return network


def features_of(network, X, dtype=torch.float32, augment=None):
    features = extract_features(network, ArraySource(X), CPU, dtype, augment)
    assert features.dtype == np.float32
    assert features.shape == (len(X), network.n_features)
    return features


class Recorder(nn.Module):
    """Pass flattened items on, and record the batches."""

    def __init__(self):
        super().__init__()
        self.received = []

    def forward(self, x):
        assert not self.training
        assert not torch.is_grad_enabled()
        self.received.append(x.clone())
        return x.flatten(1)


def recorder(n_features):
    return Network(Recorder(), n_features, nn.Identity(), None)


@pytest.mark.parametrize("n", [1, 2, 63, 511, 512, 513, 1300])
@pytest.mark.parametrize("shape", [(1, 1, 1), (1,)], ids=str)
def test_features_are_in_row_order(n, shape):
    numbers = np.arange(n, dtype=np.float32).reshape(n, *shape)
    assert_array_equal(features_of(recorder(1), numbers)[:, 0], np.arange(n))


def test_batches_are_bounded(monkeypatch):
    monkeypatch.setattr(features_module, "CACHED_VALUES", 3000)
    network = recorder(48)
    features_of(network, images_of((3, 4, 4), 200))
    sizes = [batch.numel() for batch in network.trunk.received]
    assert sum(sizes) == 200 * 48
    assert max(sizes) <= 3000


def test_uint8_reaches_the_network_as_uint8():
    network = recorder(16)
    features_of(network, images_of((1, 4, 4)))
    assert network.trunk.received[0].dtype == torch.uint8


SPLITS = [1, 2, 7, 16, 23]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("backbone", "shape", "sobel"),
    [
        ("convnet", (1, 8, 8), False),
        ("convnet", (1, 28, 28), False),
        ("convnet", (3, 20, 28), True),
        ("convnet", (3, 48, 48), False),
        ("resnet18", (1, 16, 16), False),
    ],
)
def test_features_of_a_convnet_do_not_depend_on_the_batch(
    backbone, shape, sobel, dtype
):
    X = images_of(shape, 24)
    network = network_for(X, backbone, sobel=sobel)
    together = features_of(network, X, dtype)
    for size in SPLITS:
        parts = [
            features_of(network, X[i : i + size], dtype) for i in range(0, 24, size)
        ]
        assert_array_equal(np.concatenate(parts), together, err_msg=f"{size}")
    order = RNG.permutation(24)
    assert_array_equal(features_of(network, X[order], dtype), together[order])


def test_a_last_batch_of_one_row_is_like_any_other():
    X = images_of((1, 8, 8), 513)
    network = network_for(X)
    assert_array_equal(features_of(network, X)[500:], features_of(network, X[500:]))


@pytest.mark.parametrize(
    "X", [RNG.random((70, 5), np.float32), images_of((1, 6, 6))], ids=["rows", "images"]
)
def test_features_of_an_mlp_hardly_depend_on_the_batch(X):
    network = network_for(X, "mlp")
    together = features_of(network, X)
    for size in SPLITS:
        parts = [features_of(network, X[i : i + size]) for i in range(0, 70, size)]
        assert_allclose(np.concatenate(parts), together, atol=1e-5)


def test_bfloat16_is_close_to_float32():
    X = images_of((3, 16, 16))
    network = network_for(X)
    single, half = (features_of(network, X, d) for d in (torch.float32, torch.bfloat16))
    assert (single != half).any()
    assert_allclose(half, single, atol=0.5)
    assert np.corrcoef(half.ravel(), single.ravel())[0, 1] > 0.999


def test_the_network_is_left_in_evaluation_mode_and_unchanged():
    X = images_of((1, 8, 8))
    network = network_for(X).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    features_of(network, X)
    assert not any(module.training for module in network.modules())
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("augment", "X"),
    [
        (RandomCrop(), images_of((1, 32, 32), 600)),
        (RowNoise(), RNG.random((600, 4), np.float32)),
    ],
    ids=["images", "rows"],
)
def test_augmented_items_are_the_same_at_each_call(augment, X, dtype):
    """Whatever the precision of the network: crops are not products of it."""
    network, reference = recorder(X[0].size), recorder(X[0].size)
    global_state = torch.get_rng_state()
    first, again = (features_of(network, X, dtype, augment) for _ in range(2))
    assert_array_equal(first, again)
    assert_array_equal(first, features_of(reference, X, augment=augment))
    assert (first != X.reshape(len(X), -1)).any(axis=1).all()
    assert all(batch.dtype == torch.float32 for batch in network.trunk.received)
    assert torch.equal(torch.get_rng_state(), global_state)


def test_augment_sees_the_items_in_their_own_units():
    X, seen = images_of((1, 4, 4), 20), []

    def augment(images, generator):
        seen.append(images)
        return images + 1000

    features = features_of(recorder(16), X, augment=augment)
    assert_array_equal(seen[0], X)
    assert_array_equal(features, X.reshape(20, 16) + 1000.0)


@pytest.mark.usefixtures("simulated_cuda")
@pytest.mark.parametrize("augment", [None, RandomCrop()])
def test_every_tensor_is_moved_to_the_device(monkeypatch, augment):
    """On a simulated CUDA device, which refuses to mix with tensors of the CPU."""
    monkeypatch.setattr(torch.Tensor, "numpy", as_zeros)
    X = images_of((3, 8, 8))
    cuda = torch.device("cuda")
    with FakeTensorMode(allow_non_fake_inputs=True):
        with cuda:
            network = build_network(
                "convnet", (3, 8, 8), [0] * 3, [1] * 3, sobel=True, head_norm="batch"
            )
        features = extract_features(
            network, ArraySource(X), cuda, torch.float32, augment
        )
    assert features.shape == (70, network.n_features)


def as_zeros(tensor):
    """Stand in for the values that a simulated tensor does not have."""
    assert tensor.device == CPU
    return np.zeros(tensor.shape, np.float32)


def test_features_go_where_they_are_wanted():
    X = images_of((1, 8, 8))
    network = network_for(X)
    out = np.full((70, network.n_features), np.nan, np.float32)
    assert extract_features(network, ArraySource(X), CPU, torch.float32, out=out) is out
    assert_array_equal(out, features_of(network, X))
