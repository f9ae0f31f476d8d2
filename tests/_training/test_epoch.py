"""One pass of training on pseudo-labels, and the calibration before the first."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from skdeepcluster._inputs.sources import ArraySource
from skdeepcluster._training.augment import RandomCrop
from skdeepcluster._training.epoch import (
    TrainingState,
    calibrate_batch_norm,
    split_batches,
    train_epoch,
)
from skdeepcluster._training.features import extract_features
from skdeepcluster._training.heads import Head, centroid_head, linear_head
from skdeepcluster._training.network import Network, build_network

CPU = torch.device("cpu")
SINGLE = {"device": CPU, "dtype": torch.float32}
RNG = np.random.default_rng(0)


@given(st.integers(2, 400), st.integers(1, 500))
def test_batches_cover_the_rows_in_order_and_none_is_a_single_row(n, batch_size):
    rows = np.random.default_rng(n).permutation(n)
    parts = split_batches(rows, batch_size)
    assert_array_equal(np.concatenate(parts), rows)
    sizes = [len(part) for part in parts]
    assert min(sizes) >= 2
    assert max(sizes) - min(sizes) <= 1
    assert max(sizes) <= max(batch_size, 3)


def toy_images(n=60):
    """Dark and bright noisy images, and which they are."""
    labels = np.arange(n) % 2
    images = RNG.integers(0, 100, (n, 1, 8, 8)) + 100 * labels[:, None, None, None]
    return images.astype(np.uint8), labels


def network_for(X, backbone="auto", head_norm="batch"):
    axes = (0, *range(2, X.ndim))
    statistics = X.mean(axis=axes), X.std(axis=axes) + 1e-3  # some pixels are constant
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build_network(
            backbone, X.shape[1:], *statistics, sobel=False, head_norm=head_norm
        )


def train(
    network,
    head,
    X,
    labels,
    learning_rate=0.05,
    rows=None,
    generator=None,
    **parameters,
):
    """Mean loss of one epoch; augmented, weighted and so on where told."""
    parameters = {
        "weights": None,
        "augment": None,
        "batch_size": 16,
        **SINGLE,
        **parameters,
    }
    if parameters["weights"] is not None:
        parameters["weights"] = [parameters["weights"]]
    head = head if isinstance(head, Head) else Head([head])
    rows = np.random.default_rng(0).permutation(len(X)) if rows is None else rows
    # A network without parameters has an optimizer all the same.
    optimizer, of_head = (
        torch.optim.SGD(
            [*module.parameters(), nn.Parameter(torch.zeros(()))], learning_rate
        )
        for module in (network, head)
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    if generator is None:
        generator = torch.Generator().manual_seed(0)
    training = TrainingState(head, of_head, generator)
    n_batches = len(split_batches(rows, parameters["batch_size"]))
    steps = train_epoch(
        *(
            network,
            training,
            optimizer,
            schedule,
            ArraySource(X),
            rows,
            np.atleast_2d(labels),
        ),
        **parameters,
    )
    assert [training.n_batches for _ in steps] == [*range(1, n_batches + 1)]
    assert schedule.last_epoch == n_batches
    (loss,) = training.losses
    return loss


@pytest.mark.parametrize("augment", [None, RandomCrop()])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("balance", ["weights", None])
@pytest.mark.parametrize("kind", ["images", "rows"])
def test_loss_falls_on_separable_data(kind, balance, dtype, augment):
    X, labels = toy_images()
    if kind == "rows":
        X, augment = X.reshape(len(X), -1), None
    network = network_for(X).eval()
    head = linear_head(network.n_features, [2], torch.Generator().manual_seed(0))
    weights = np.ones(2, np.float32) if balance else None
    losses = [
        train(network, head, X, labels, weights=weights, augment=augment, dtype=dtype)
        for _ in range(8)
    ]
    assert losses[-1] < 0.2 * losses[0]
    assert network.training


def test_views_heads_and_memory():
    """Two views and three small ones are of the same labels, for each of two k."""
    X, labels = toy_images()
    X = np.tile(X, (1, 1, 2, 2))
    network, seen = network_for(X), []
    network.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape))
    given = []
    network.register_forward_hook(lambda module, args, out: given.append(out.detach()))
    twice = np.stack([labels, np.arange(len(labels)) % 3])
    head = linear_head(network.n_features, [2, 3], torch.Generator().manual_seed(0))
    remembered = np.full((len(X), network.n_points), np.nan, np.float32)
    side = X.shape[2]
    options = {"augment": RandomCrop(), "n_crops": (2, 3), "remembered": remembered}
    loss = train(network, head, X, twice, 0.0, batch_size=30, rows=[3, 9], **options)
    assert [tuple(shape) for shape in seen] == [
        (4, *X.shape[1:]),
        (6, X.shape[1], side // 2, side // 2),
    ]
    assert loss == pytest.approx((np.log(2) + np.log(3)) / 2, abs=0.1)
    assert_array_equal(remembered[[3, 9]], given[0][:2])  # the first views
    assert np.isnan(np.delete(remembered, [3, 9], axis=0)).all()


def test_centroids_stay_while_the_network_moves():
    X, labels = toy_images()
    network = network_for(X)
    points = RNG.standard_normal((len(X), network.n_points)).astype(np.float32)
    head = centroid_head(points, labels[None], [labels.max() + 1], 0.1)
    before = [p.clone() for p in head.parameters()]
    moved = [p.detach().clone() for p in network.parameters()]
    train(network, head, X, labels)
    pairs = zip(before, head.parameters(), strict=True)
    assert all(torch.equal(old, new) for old, new in pairs)
    pairs = zip(moved, network.parameters(), strict=True)
    assert not any(torch.equal(old, new) for old, new in pairs)


def linear(X, n_labels=3):
    """A network that hands its rows on, and a head with weights."""
    head = nn.Linear(X.shape[1], n_labels)
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(RNG.standard_normal(head.weight.shape)))
    return Network(nn.Identity(), X.shape[1], nn.Identity(), None), head


def cross_entropies(head, X, labels):
    logits = head(torch.from_numpy(X))
    target = torch.from_numpy(labels)
    return (
        nn.functional.cross_entropy(logits, target, reduction="none").detach().numpy()
    )


@pytest.mark.parametrize("batch_size", [1, 2, 5, 11, 100])
def test_the_loss_is_the_mean_over_the_rows_whatever_the_batches(batch_size):
    X, labels = RNG.standard_normal((11, 4)).astype(np.float32), RNG.integers(0, 3, 11)
    network, head = linear(X)
    loss = train(network, head, X, labels, 0.0, batch_size=batch_size)
    assert type(loss) is float
    assert loss == pytest.approx(cross_entropies(head, X, labels).mean(), rel=1e-5)


def test_the_loss_of_repeated_rows_counts_them_as_often():
    X, labels = RNG.standard_normal((11, 4)).astype(np.float32), RNG.integers(0, 3, 11)
    network, head = linear(X)
    rows = np.array([3, 3, 3, 10, 0])
    loss = train(network, head, X, labels, 0.0, rows=rows)
    assert loss == pytest.approx(
        cross_entropies(head, X, labels)[rows].mean(), rel=1e-5
    )


def test_weights_multiply_the_loss_of_their_label():
    X, labels = RNG.standard_normal((11, 4)).astype(np.float32), RNG.integers(0, 3, 11)
    network, head = linear(X)
    weights = np.array([0.0, 2.0, 5.0], np.float32)
    loss = train(network, head, X, labels, 0.0, weights=weights, batch_size=4)
    expected = (weights[labels] * cross_entropies(head, X, labels)).mean()
    assert loss == pytest.approx(expected, rel=1e-5)


def test_every_optimizer_is_stepped_and_gradients_do_not_add_up():
    X, labels = toy_images(32)
    network = network_for(X)
    head = linear_head(network.n_features, [2], torch.Generator().manual_seed(0))
    for module in (network, head):
        for parameter in module.parameters():
            parameter.grad = torch.full_like(parameter, torch.nan)  # left by another
    before = [p.detach().clone() for m in (network, head) for p in m.parameters()]
    assert np.isfinite(train(network, head, X, labels))
    after = [p for m in (network, head) for p in m.parameters()]
    assert all(p.isfinite().all() for p in after)
    assert not any(torch.equal(p, q) for p, q in zip(before, after, strict=True))


def test_augment_sees_float32_in_the_images_own_units():
    X, labels = toy_images(20)
    network = network_for(X)
    head = linear_head(network.n_features, [2], torch.Generator().manual_seed(0))
    rows, seen, given = RNG.permutation(20), [], torch.Generator()

    def augment(images, generator, shard):
        assert generator is given
        assert images.dtype == torch.float32
        seen.append(images)
        return images * np.nan

    loss = train(network, head, X, labels, rows=rows, augment=augment, generator=given)
    assert_array_equal(torch.cat(seen), X[rows])
    assert np.isnan(loss)  # what augment returns is what the network gets


@pytest.mark.parametrize("row", [0, 7])
@pytest.mark.parametrize("backbone", ["mlp", "convnet"])
def test_nan_in_an_image_shows_in_the_loss(backbone, row):
    X, labels = toy_images(20)
    network = network_for(X, backbone)
    X = X.astype(np.float32)
    X[row, 0, 2, 2] = np.nan
    head = linear_head(network.n_features, [2], torch.Generator().manual_seed(0))
    assert np.isnan(train(network, head, X, labels, batch_size=5))


def test_training_is_repeatable():
    X, labels = toy_images(40)

    def trained():
        network = network_for(X)
        head = linear_head(network.n_features, [2], torch.Generator().manual_seed(0))
        losses = [
            train(network, head, X, labels, augment=RandomCrop()) for _ in range(2)
        ]
        return losses, extract_features(network, ArraySource(X), CPU, torch.float32)

    (losses, features), (other_losses, other_features) = trained(), trained()
    assert losses == other_losses
    assert_array_equal(features, other_features)


# Calibration.


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("kind", "batch_size"), [("images", 512), ("images", 128)])
@pytest.mark.parametrize("backbone", ["convnet", "mlp"])
def test_calibrated_features_have_zero_mean_and_unit_variance(
    digits_images, backbone, kind, batch_size, dtype
):
    X = digits_images[0][:, None]
    rows = np.random.default_rng(0).permutation(len(X))[:512]
    network = network_for(X, backbone)
    fresh = extract_features(network, ArraySource(X[rows]), CPU, dtype)
    parameters = {"batch_size": batch_size, "device": CPU, "dtype": dtype}
    calibrate_batch_norm(network, ArraySource(X), rows, **parameters)
    features = extract_features(network, ArraySource(X[rows]), CPU, dtype)
    assert abs(np.median(fresh.var(axis=0)) - 1) > 0.1
    assert_allclose(features.mean(axis=0), 0, atol=0.1)
    assert_allclose(features.var(axis=0), 1, atol=0.15)
    assert_allclose(np.median(features.var(axis=0)), 1, atol=0.03)


def test_calibration_forgets_what_the_network_has_seen_before():
    X, _ = toy_images()
    source, rows = ArraySource(X), np.arange(40)
    fresh, used = network_for(X), network_for(X)
    with torch.no_grad():
        used.train()(torch.rand(30, 1, 8, 8) * 1e4)
    for network in (fresh, used):
        calibrate_batch_norm(network, source, rows, batch_size=10, **SINGLE)
    for name, value in fresh.state_dict().items():
        assert torch.equal(value, used.state_dict()[name]), name


def test_calibration_restores_momenta_and_leaves_the_weights():
    X, _ = toy_images()
    module = nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4, momentum=0.3),
        nn.BatchNorm2d(4, momentum=None),
        nn.BatchNorm2d(4, momentum=0.01, track_running_stats=False),
        nn.Flatten(),
    )
    network = network_for(X, module)
    norms = [m for m in network.modules() if hasattr(m, "momentum")]
    before = [p.detach().clone() for p in network.parameters()]
    calibrate_batch_norm(
        network, ArraySource(X), np.arange(60), batch_size=16, **SINGLE
    )
    assert [norm.momentum for norm in norms] == [0.3, None, 0.01, 0.1]
    for old, new in zip(before, network.parameters(), strict=True):
        assert torch.equal(old, new)
        assert new.grad is None


def test_calibration_without_batch_norm():
    X, _ = toy_images()
    network = Network(nn.Flatten(), 64, nn.Identity(), None)
    calibrate_batch_norm(
        network, ArraySource(X), np.arange(60), batch_size=16, **SINGLE
    )


@pytest.mark.usefixtures("simulated_cuda")
@pytest.mark.parametrize("n_crops", [(1, 0), (2, 1)])
@pytest.mark.parametrize("n_projected", [None, 9])
def test_every_tensor_is_moved_to_the_device(monkeypatch, n_projected, n_crops):
    """On a simulated CUDA device, which refuses to mix with tensors of the CPU.

    It has no values, and no backward pass where there is no real one.
    """
    received = []
    monkeypatch.setattr(torch.Tensor, "__float__", lambda tensor: 1.0)
    monkeypatch.setattr(torch.Tensor, "backward", lambda loss: received.append(loss))
    X, labels = toy_images(20)
    parameters = {"device": torch.device("cuda"), "dtype": torch.float32}
    with FakeTensorMode(allow_non_fake_inputs=True):
        with torch.device("cuda"):
            network = build_network(
                *("convnet", (1, 8, 8), [0.0], [1.0]),
                sobel=True,
                head_norm="batch",
                n_projected=n_projected,
            )
            head = nn.Linear(network.n_points, 2)
        calibrate_batch_norm(
            network, ArraySource(X), np.arange(20), batch_size=8, **parameters
        )
        train(
            network,
            head,
            X,
            labels,
            weights=np.ones(2, np.float32),
            augment=RandomCrop(),
            n_crops=n_crops,
            batch_size=8,
            **parameters,
        )
    assert [loss.device.type for loss in received] == ["cuda"] * 3
