"""A training pass: its loss, its views, its steps and its number of batches."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from skdeepcluster import DeepClusterEstimator
from skdeepcluster._inputs.sources import ArraySource
from skdeepcluster._training.augment import RandomCrop
from skdeepcluster._training.features import extract_features
from skdeepcluster._training.heads import Head, centroid_head, linear_head
from skdeepcluster._training.network import Network, build_network
from skdeepcluster._utils.compute import Compute
from skdeepcluster._utils.distributed import Sharded

CPU = torch.device("cpu")


def make_head(network, counts=(2,)):
    generator = torch.Generator().manual_seed(0)
    return linear_head(network.n_features, list(counts), generator)


@pytest.mark.parametrize("augment", [None, RandomCrop()])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("balance", ["weights", None])
@pytest.mark.parametrize("form", ["images", "rows"])
def test_loss_falls_on_separable_data(
    form, balance, dtype, augment, make_toy_images, make_network, train
):
    X, labels = make_toy_images()
    if form == "rows":
        X, augment = X.reshape(len(X), -1), None
    network = make_network(X).eval()
    head = make_head(network)
    weights = np.ones(2, np.float32) if balance else None
    losses = [
        train(network, head, X, labels, weights=weights, augment=augment, dtype=dtype)
        for _ in range(8)
    ]
    assert losses[-1] < 0.2 * losses[0]
    assert network.training


def test_views_have_labels_of_their_images(make_toy_images, make_network, train):
    """Two views and three small views of each image, and a head of two classifiers."""
    X, labels = make_toy_images()
    X = np.tile(X, (1, 1, 2, 2))
    network = make_network(X)
    inputs, outputs = [], []
    network.register_forward_pre_hook(lambda _, args: inputs.append(args[0].shape))
    network.register_forward_hook(lambda _, args, out: outputs.append(out.detach()))
    points = np.full((len(X), network.n_points), np.nan, np.float32)
    loss = train(
        network,
        make_head(network, counts=(2, 3)),
        X,
        np.stack([labels, np.arange(len(labels)) % 3]),
        learning_rate=0.0,
        batch_size=30,
        rows=[3, 9],
        augment=RandomCrop(),
        n_crops=(2, 3),
        training_points=Sharded.whole(points),
    )
    side = X.shape[2]
    assert [tuple(shape) for shape in inputs] == [
        (4, *X.shape[1:]),
        (6, X.shape[1], side // 2, side // 2),
    ]
    assert loss == pytest.approx((np.log(2) + np.log(3)) / 2, abs=0.1)
    # The points of the first view of each image are stored.
    assert_array_equal(points[[3, 9]], outputs[0][:2])
    assert np.isnan(np.delete(points, [3, 9], axis=0)).all()


def test_centroid_head_is_not_trained(make_toy_images, make_network, train):
    X, labels = make_toy_images()
    network = make_network(X)
    points = np.random.default_rng(0).standard_normal((len(X), network.n_points))
    points = Sharded.whole(points.astype(np.float32))
    head = centroid_head(points, labels[None], [labels.max() + 1], temperature=0.1)
    centers = [p.clone() for p in head.parameters()]
    weights = [p.detach().clone() for p in network.parameters()]
    train(network, head, X, labels)
    for old, new in zip(centers, head.parameters(), strict=True):
        assert torch.equal(old, new)
    for old, new in zip(weights, network.parameters(), strict=True):
        assert not torch.equal(old, new)


# The loss.


@pytest.fixture
def rows_and_labels():
    """Eleven rows with three labels, and a linear classifier."""
    rng = np.random.default_rng(0)
    X, labels = rng.standard_normal((11, 4)).astype(np.float32), rng.integers(0, 3, 11)
    classifier = nn.Linear(4, 3)
    with torch.no_grad():
        classifier.weight.copy_(torch.from_numpy(rng.standard_normal((3, 4))))
    return X, labels, classifier


@pytest.fixture
def identity_network():
    """A network that returns rows of four values as they are."""
    return Network(nn.Identity(), 4, nn.Identity(), None)


def cross_entropies(classifier, X, labels):
    """Return the cross-entropy of each row."""
    logits = classifier(torch.from_numpy(X))
    losses = nn.functional.cross_entropy(
        logits, torch.from_numpy(labels), reduction="none"
    )
    return losses.detach().numpy()


@pytest.mark.parametrize("batch_size", [1, 2, 5, 11, 100])
def test_loss_is_mean_over_rows(batch_size, rows_and_labels, identity_network, train):
    X, labels, classifier = rows_and_labels
    loss = train(
        identity_network,
        Head([classifier]),
        X,
        labels,
        learning_rate=0.0,
        batch_size=batch_size,
    )
    assert type(loss) is float
    assert loss == pytest.approx(
        cross_entropies(classifier, X, labels).mean(), rel=1e-5
    )


def test_loss_counts_repeated_rows(rows_and_labels, identity_network, train):
    X, labels, classifier = rows_and_labels
    rows = np.array([3, 3, 3, 10, 0])
    loss = train(
        identity_network, Head([classifier]), X, labels, learning_rate=0.0, rows=rows
    )
    expected = cross_entropies(classifier, X, labels)[rows].mean()
    assert loss == pytest.approx(expected, rel=1e-5)


def test_weights_multiply_loss_of_their_label(rows_and_labels, identity_network, train):
    X, labels, classifier = rows_and_labels
    weights = np.array([0.0, 2.0, 5.0], np.float32)
    loss = train(
        identity_network,
        Head([classifier]),
        X,
        labels,
        learning_rate=0.0,
        weights=weights,
        batch_size=4,
    )
    expected = (weights[labels] * cross_entropies(classifier, X, labels)).mean()
    assert loss == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("row", [0, 7])
@pytest.mark.parametrize("backbone", ["mlp", "convnet"])
def test_nan_in_image_gives_nan_loss(
    backbone, row, make_toy_images, make_network, train
):
    X, labels = make_toy_images(20)
    network = make_network(X, backbone)
    X = X.astype(np.float32)
    X[row, 0, 2, 2] = np.nan
    assert np.isnan(train(network, make_head(network), X, labels, batch_size=5))


# Steps.


def test_all_optimizers_step_and_old_gradients_are_discarded(
    make_toy_images, make_network, train
):
    X, labels = make_toy_images(32)
    network = make_network(X)
    head = make_head(network)
    parameters = [*network.parameters(), *head.parameters()]
    for parameter in parameters:
        parameter.grad = torch.full_like(parameter, torch.nan)
    before = [p.detach().clone() for p in parameters]
    assert np.isfinite(train(network, head, X, labels))
    assert all(p.isfinite().all() for p in parameters)
    assert not any(torch.equal(p, q) for p, q in zip(before, parameters, strict=True))


def test_augment_gets_float32_in_units_of_images(make_toy_images, make_network, train):
    X, labels = make_toy_images(20)
    network = make_network(X)
    rows = np.random.default_rng(0).permutation(20)
    batches, expected_generator = [], torch.Generator()

    def augment(images, generator, shard):
        assert generator is expected_generator
        assert images.dtype == torch.float32
        batches.append(images)
        return images * np.nan

    loss = train(
        network,
        make_head(network),
        X,
        labels,
        rows=rows,
        augment=augment,
        generator=expected_generator,
    )
    assert_array_equal(torch.cat(batches), X[rows])
    # The network is trained on the result of the augmentation.
    assert np.isnan(loss)


def test_training_is_reproducible(make_toy_images, make_network, train):
    X, labels = make_toy_images(40)

    def train_twice():
        network = make_network(X)
        head = make_head(network)
        losses = [
            train(network, head, X, labels, augment=RandomCrop()) for _ in range(2)
        ]
        return losses, extract_features(network, ArraySource(X), Compute(CPU))

    losses, features = train_twice()
    repeated_losses, repeated_features = train_twice()
    assert losses == repeated_losses
    assert_array_equal(features, repeated_features)


@pytest.mark.usefixtures("simulated_cuda")
@pytest.mark.parametrize("n_crops", [(1, 0), (2, 1)])
@pytest.mark.parametrize("n_projected", [None, 9])
def test_all_tensors_are_moved_to_device(
    monkeypatch, n_projected, n_crops, make_toy_images, train
):
    """A simulated CUDA device refuses to mix its tensors with tensors of the CPU."""
    losses = []
    # Simulated tensors have no values, and no backward pass without a real device.
    monkeypatch.setattr(torch.Tensor, "__float__", lambda tensor: 1.0)
    monkeypatch.setattr(torch.Tensor, "backward", lambda loss: losses.append(loss))
    X, labels = make_toy_images(20)
    with FakeTensorMode(allow_non_fake_inputs=True):
        with torch.device("cuda"):
            network = build_network(
                "convnet",
                (1, 8, 8),
                mean=[0.0],
                scale=[1.0],
                sobel=True,
                head_norm="batch",
                n_projected=n_projected,
            )
            head = Head([nn.Linear(network.n_points, 2)])
        train(
            network,
            head,
            X,
            labels,
            weights=np.ones(2, np.float32),
            augment=RandomCrop(),
            n_crops=n_crops,
            batch_size=8,
            device=torch.device("cuda"),
        )
    assert [loss.device.type for loss in losses] == ["cuda"] * 3


# The number of epochs in a round.


@pytest.fixture(scope="module")
def fit_and_count_batches(digits_images):
    """Function that fits images and returns the model and its number of batches."""
    images = digits_images[0][:200]

    def fit(epochs_per_iter, max_iter=1):
        sizes = []

        def augment(batch):
            sizes.append(len(batch))
            return batch

        model = DeepClusterEstimator(
            n_clusters=5,
            n_pseudo_labels=20,
            max_iter=max_iter,
            epochs_per_iter=epochs_per_iter,
            batch_size=25,
            augment=augment,
            random_state=0,
        )
        return model.fit(images), len(sizes)

    return fit


# A round has at least one step.
@pytest.mark.parametrize(
    ("epochs_per_iter", "n_batches"), [(0.5, 4), (1, 8), (1.5, 12), (0.001, 1)]
)
def test_epochs_per_iter_sets_steps_of_a_round(
    fit_and_count_batches, epochs_per_iter, n_batches
):
    model, count = fit_and_count_batches(epochs_per_iter)
    assert count == n_batches
    assert model.recipe_["epochs_per_iter"] == n_batches / 8


def test_half_epochs_train_on_half_of_the_images_in_each_round(fit_and_count_batches):
    _, count = fit_and_count_batches(0.5, max_iter=2)
    assert count == 8


def test_float_epochs_per_iter_equals_int(fit_and_count_batches):
    model, _ = fit_and_count_batches(1)
    by_float, _ = fit_and_count_batches(1.0)
    assert_array_equal(by_float.labels_, model.labels_)
    assert by_float.history_[0]["loss"] == model.history_[0]["loss"]
    assert by_float.recipe_ == model.recipe_
