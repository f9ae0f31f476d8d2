"""Features: their order, their batches and their independence of batches."""

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
from skdeepcluster._training.network import Network, PointExtractor, build_network
from skdeepcluster._utils.compute import Compute

CPU = torch.device("cpu")
RNG = np.random.default_rng(0)
BATCH_SIZES = [1, 2, 7, 16, 23]


def draw_images(shape, n=70):
    return RNG.integers(0, 256, (n, *shape)).astype(np.uint8)


@pytest.fixture(scope="session")
def make_used_network(make_network):
    """Function that builds a network whose batch norms have statistics of X."""

    def make(X, backbone="auto", sobel=False):
        network = make_network(X, backbone, sobel=sobel)
        with torch.no_grad():
            network.train()(ArraySource(X).batch(slice(64)))
        return network

    return make


def extract(network, X, dtype=torch.float32, augment=None):
    source = ArraySource(X)
    features = extract_features(network, source, Compute(CPU, dtype), augment=augment)
    assert features.dtype == np.float32
    assert features.shape == (len(X), network.n_features)
    return features


class Recorder(nn.Module):
    """A trunk that flattens images, and records the batches that it receives."""

    def __init__(self):
        super().__init__()
        self.batches = []

    def forward(self, x):
        assert not self.training
        assert not torch.is_grad_enabled()
        self.batches.append(x.clone())
        return x.flatten(1)


def recording_network(n_features):
    return Network(Recorder(), n_features, nn.Identity(), None)


@pytest.mark.parametrize("n", [1, 2, 63, 511, 512, 513, 1300])
@pytest.mark.parametrize("shape", [(1, 1, 1), (1,)], ids=str)
def test_features_are_in_order_of_rows(n, shape):
    numbers = np.arange(n, dtype=np.float32).reshape(n, *shape)
    assert_array_equal(extract(recording_network(1), numbers)[:, 0], np.arange(n))


def test_size_of_batches_is_bounded(monkeypatch):
    monkeypatch.setattr(features_module, "CPU_BATCH_VALUES", 3000)
    network = recording_network(48)
    extract(network, draw_images((3, 4, 4), 200))
    sizes = [batch.numel() for batch in network.trunk.batches]
    assert sum(sizes) == 200 * 48
    assert max(sizes) <= 3000


def test_network_receives_uint8():
    network = recording_network(16)
    extract(network, draw_images((1, 4, 4)))
    assert network.trunk.batches[0].dtype == torch.uint8


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
def test_convnet_features_are_independent_of_batch(
    backbone, shape, sobel, dtype, make_used_network
):
    X = draw_images(shape, 24)
    network = make_used_network(X, backbone, sobel=sobel)
    expected = extract(network, X, dtype)
    for size in BATCH_SIZES:
        batches = [extract(network, X[i : i + size], dtype) for i in range(0, 24, size)]
        assert_array_equal(np.concatenate(batches), expected, err_msg=f"{size}")
    order = RNG.permutation(24)
    assert_array_equal(extract(network, X[order], dtype), expected[order])


def test_features_in_a_batch_of_one_row_equal_features_in_a_large_batch(
    make_used_network,
):
    X = draw_images((1, 8, 8), 513)
    network = make_used_network(X)
    assert_array_equal(extract(network, X)[500:], extract(network, X[500:]))


@pytest.mark.parametrize(
    "X",
    [RNG.random((70, 5), np.float32), draw_images((1, 6, 6))],
    ids=["rows", "images"],
)
def test_mlp_features_hardly_depend_on_batch(X, make_used_network):
    network = make_used_network(X, "mlp")
    expected = extract(network, X)
    for size in BATCH_SIZES:
        batches = [extract(network, X[i : i + size]) for i in range(0, 70, size)]
        assert_allclose(np.concatenate(batches), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("backbone", "shape"),
    [("mlp", (1, 8, 8)), ("mlp", (3, 20, 20)), ("alexnet", (1, 64, 64))],
)
def test_products_of_few_images_are_those_of_many(backbone, shape, make_used_network):
    X = draw_images(shape, 32)
    network = make_used_network(X, backbone)
    expected = extract(network, X)
    for n in (1, 2, 3, 9, 15):
        assert_array_equal(extract(network, X[:n]), expected[:n], err_msg=f"{n}")


def test_bfloat16_features_are_close_to_float32(make_used_network):
    X = draw_images((3, 16, 16))
    network = make_used_network(X)
    single, half = (extract(network, X, d) for d in (torch.float32, torch.bfloat16))
    assert (single != half).any()
    assert_allclose(half, single, atol=0.5)
    assert np.corrcoef(half.ravel(), single.ravel())[0, 1] > 0.999


def test_network_is_in_evaluation_mode_and_unchanged(make_used_network):
    X = draw_images((1, 8, 8))
    network = make_used_network(X).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    extract(network, X)
    assert not any(module.training for module in network.modules())
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("augment", "X"),
    [
        (RandomCrop(), draw_images((1, 32, 32), 600)),
        (RowNoise(), RNG.random((600, 4), np.float32)),
    ],
    ids=["images", "rows"],
)
def test_augmented_images_are_the_same_in_each_call(augment, X, dtype):
    """Crops are computed in float32, also for a network in bfloat16."""
    network = recording_network(X[0].size)
    global_state = torch.get_rng_state()
    features = extract(network, X, dtype, augment)
    assert_array_equal(extract(network, X, dtype, augment), features)
    in_float32 = extract(recording_network(X[0].size), X, augment=augment)
    assert_array_equal(features, in_float32)
    assert (features != X.reshape(len(X), -1)).any(axis=1).all()
    assert all(batch.dtype == torch.float32 for batch in network.trunk.batches)
    assert torch.equal(torch.get_rng_state(), global_state)


def test_augment_gets_images_in_their_units():
    X, batches = draw_images((1, 4, 4), 20), []

    def augment(images, generator):
        batches.append(images)
        return images + 1000

    features = extract(recording_network(16), X, augment=augment)
    assert_array_equal(batches[0], X)
    assert_array_equal(features, X.reshape(20, 16) + 1000.0)


@pytest.mark.usefixtures("simulated_cuda")
@pytest.mark.parametrize("augment", [None, RandomCrop()])
def test_all_tensors_are_moved_to_device(monkeypatch, augment):
    """A simulated CUDA device refuses to mix its tensors with tensors of the CPU."""

    def as_zeros(tensor):
        assert tensor.device == CPU
        return np.zeros(tensor.shape, np.float32)

    # Simulated tensors have no values.
    monkeypatch.setattr(torch.Tensor, "numpy", as_zeros)
    X, cuda = draw_images((3, 8, 8)), torch.device("cuda")
    with FakeTensorMode(allow_non_fake_inputs=True):
        with cuda:
            network = build_network(
                "convnet", (3, 8, 8), [0] * 3, [1] * 3, sobel=True, head_norm="batch"
            )
        features = extract_features(
            network, ArraySource(X), Compute(cuda), augment=augment
        )
    assert features.shape == (70, network.n_features)


def test_features_are_written_to_out(make_used_network):
    X = draw_images((1, 8, 8))
    network = make_used_network(X)
    out = np.full((70, network.n_features), np.nan, np.float32)
    assert extract_features(network, ArraySource(X), Compute(CPU), out=out) is out
    assert_array_equal(out, extract(network, X))


def test_features_of_some_rows(make_used_network):
    X = draw_images((1, 8, 8))
    network, source = make_used_network(X), ArraySource(X)
    features = extract_features(network, source, Compute(CPU), rows=slice(20, 50))
    assert_array_equal(features, extract(network, X)[20:50])


def test_point_extractor_returns_points():
    X = draw_images((1, 8, 8))
    network = build_network(
        "convnet",
        (1, 8, 8),
        mean=[128.0],
        scale=[70.0],
        sobel=False,
        head_norm="batch",
        n_projected=7,
    )
    points = extract(PointExtractor(network), X)
    assert points.shape == (70, 7)
    with torch.inference_mode():
        expected = network.eval().points(torch.from_numpy(X))
    assert_allclose(points, expected, atol=1e-5)
