"""Calibration of batch-norm statistics before the first clustering."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from skdeepcluster._inputs.sources import ArraySource
from skdeepcluster._training.batch_norm import calibrate_batch_norm
from skdeepcluster._training.features import extract_features
from skdeepcluster._training.network import Network, build_network
from skdeepcluster._utils.compute import Compute

CPU = torch.device("cpu")
COMPUTE = Compute(CPU)
MOMENTA = [0.3, None, 0.01, 0.1]


@pytest.fixture
def batch_norm_network(make_toy_images, make_network):
    """A network whose batch norms have the momenta `MOMENTA`."""
    X, _ = make_toy_images()
    module = nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4, momentum=0.3),
        nn.BatchNorm2d(4, momentum=None),
        nn.BatchNorm2d(4, momentum=0.01, track_running_stats=False),
        nn.Flatten(),
    )
    return make_network(X, module)


def get_momenta(network):
    return [m.momentum for m in network.modules() if hasattr(m, "momentum")]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("batch_size", [512, 128])
@pytest.mark.parametrize("backbone", ["convnet", "mlp"])
def test_calibrated_features_have_zero_mean_and_unit_variance(
    digits_images, backbone, batch_size, dtype, make_network
):
    X = digits_images[0][:, None]
    rows = np.random.default_rng(0).permutation(len(X))[:512]
    network, compute = make_network(X, backbone), Compute(CPU, dtype)
    fresh = extract_features(network, ArraySource(X[rows]), compute)
    calibrate_batch_norm(network, ArraySource(X), rows, batch_size, compute)
    features = extract_features(network, ArraySource(X[rows]), compute)
    assert abs(np.median(fresh.var(axis=0)) - 1) > 0.1
    assert_allclose(features.mean(axis=0), 0, atol=0.1)
    assert_allclose(features.var(axis=0), 1, atol=0.15)
    assert_allclose(np.median(features.var(axis=0)), 1, atol=0.03)


def test_calibration_discards_earlier_statistics(make_toy_images, make_network):
    X, _ = make_toy_images()
    fresh, used = make_network(X), make_network(X)
    with torch.no_grad():
        used.train()(torch.rand(30, 1, 8, 8) * 1e4)
    for network in (fresh, used):
        calibrate_batch_norm(
            network, ArraySource(X), np.arange(40), batch_size=10, compute=COMPUTE
        )
    for name, value in fresh.state_dict().items():
        assert torch.equal(value, used.state_dict()[name]), name


def test_calibration_restores_momenta_and_keeps_weights(
    make_toy_images, batch_norm_network
):
    X, _ = make_toy_images()
    before = [p.detach().clone() for p in batch_norm_network.parameters()]
    calibrate_batch_norm(
        batch_norm_network,
        ArraySource(X),
        np.arange(60),
        batch_size=16,
        compute=COMPUTE,
    )
    assert get_momenta(batch_norm_network) == MOMENTA
    for old, new in zip(before, batch_norm_network.parameters(), strict=True):
        assert torch.equal(old, new)
        assert new.grad is None


class FailingSource(ArraySource):
    """A source whose second batch cannot be read."""

    def batches(self, rows):
        yield next(iter(super().batches(rows)))
        raise OSError("The disk is gone.")


def test_calibration_restores_momenta_if_source_fails(
    make_toy_images, batch_norm_network
):
    X, _ = make_toy_images()
    with pytest.raises(OSError, match="disk"):
        calibrate_batch_norm(
            batch_norm_network,
            FailingSource(X),
            np.arange(60),
            batch_size=16,
            compute=COMPUTE,
        )
    assert get_momenta(batch_norm_network) == MOMENTA


def test_calibration_restores_momenta_if_network_fails(
    make_toy_images, batch_norm_network
):
    X, _ = make_toy_images()

    def fail(module, args):
        raise RuntimeError("This layer fails.")

    batch_norm_network.trunk[-1].register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="This layer fails"):
        calibrate_batch_norm(
            batch_norm_network,
            ArraySource(X),
            np.arange(60),
            batch_size=16,
            compute=COMPUTE,
        )
    assert get_momenta(batch_norm_network) == MOMENTA


def test_calibration_without_batch_norm(make_toy_images):
    X, _ = make_toy_images()
    network = Network(nn.Flatten(), 64, nn.Identity(), None)
    calibrate_batch_norm(
        network, ArraySource(X), np.arange(60), batch_size=16, compute=COMPUTE
    )


@pytest.mark.usefixtures("simulated_cuda")
@pytest.mark.parametrize("n_projected", [None, 9])
def test_all_tensors_are_moved_to_device(monkeypatch, n_projected, make_toy_images):
    """A simulated CUDA device refuses to mix its tensors with tensors of the CPU."""
    # Simulated tensors have no values, such as the number of batches.
    monkeypatch.setattr(torch.Tensor, "__float__", lambda tensor: 1.0)
    X, _ = make_toy_images(20)
    cuda = torch.device("cuda")
    with FakeTensorMode(allow_non_fake_inputs=True):
        with cuda:
            network = build_network(
                "convnet",
                (1, 8, 8),
                mean=[0.0],
                scale=[1.0],
                sobel=True,
                head_norm="batch",
                n_projected=n_projected,
            )
        calibrate_batch_norm(
            network, ArraySource(X), np.arange(20), batch_size=8, compute=Compute(cuda)
        )
        devices = {value.device.type for value in network.state_dict().values()}
    assert devices == {"cuda"}
