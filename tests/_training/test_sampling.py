"""Rows of a training pass, measured on the images that a network receives."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from torch import nn

from skdeepcluster._training.heads import Head
from skdeepcluster._training.network import Network
from skdeepcluster._training.sampling import (
    count_steps,
    loss_weights,
    sample_rows,
    split_batches,
    split_into_passes,
)


@given(st.integers(2, 400), st.integers(1, 500))
def test_batches_cover_rows_in_order_and_have_two_rows_or_more(n, batch_size):
    rows = np.random.default_rng(n).permutation(n)
    batches = split_batches(rows, batch_size)
    assert_array_equal(np.concatenate(batches), rows)
    sizes = [len(batch) for batch in batches]
    assert min(sizes) >= 2
    assert max(sizes) - min(sizes) <= 1
    assert max(sizes) <= max(batch_size, 3)


@st.composite
def label_vectors(draw):
    """Shuffled labels of clusters of any sizes or very unequal sizes, with gaps."""
    any_sizes = st.lists(st.integers(1, 30), min_size=1, max_size=12)
    unequal = st.sampled_from([[1, 90, 9], [1, 1], [1, 1, 1, 57], [90, 1], [2]])
    sizes = draw(any_sizes | unequal)
    if sum(sizes) < 2:
        sizes = [2]
    clusters = draw(
        st.lists(
            st.integers(0, 50), min_size=len(sizes), max_size=len(sizes), unique=True
        )
    )
    labels = np.repeat(np.array(clusters, np.int32), sizes)
    return np.random.default_rng(draw(st.integers(0, 99))).permutation(labels)


class Recorder(nn.Module):
    """A network that records the number in each image, and predicts its label."""

    def __init__(self, labels):
        super().__init__()
        self.labels = torch.from_numpy(labels.astype(np.int64))
        self.n_labels = int(labels.max()) + 1
        self.weight = nn.Parameter(torch.zeros(()))
        self.rows = []

    def points(self, images):
        assert images.shape[1:] == (1, 2, 2)
        rows = images.amax(dim=(1, 2, 3))
        assert torch.equal(rows, images.amin(dim=(1, 2, 3)))
        self.rows.extend(rows.int().tolist())
        one_hot = nn.functional.one_hot(self.labels[rows.long()], self.n_labels)
        return 100.0 * one_hot + self.weight


@pytest.fixture(scope="session")
def train_recorder(train):
    """Function that returns the rows of an epoch, and the loss of perfect logits."""

    def train_on(labels, balance, seed=0, batch_size=16):
        numbers = np.arange(len(labels), dtype=np.float32)
        images = np.tile(numbers[:, None, None, None], (1, 1, 2, 2))
        network = Recorder(labels)
        loss = train(
            network,
            Head([nn.Identity()]),
            images,
            labels,
            learning_rate=1.0,
            rows=sample_rows(labels, balance, np.random.default_rng(seed)),
            batch_size=batch_size,
        )
        return np.array(network.rows), loss

    return train_on


@given(labels=label_vectors(), seed=st.integers(0, 9), batch_size=st.integers(2, 70))
def test_network_receives_each_cluster_equally_often(
    train_recorder, labels, seed, batch_size
):
    rows, _ = train_recorder(labels, "uniform", seed, batch_size)
    assert len(rows) == len(labels)
    counts = np.bincount(labels[rows], minlength=labels.max() + 1)[np.unique(labels)]
    assert counts.max() - counts.min() <= 1


@given(labels=label_vectors(), seed=st.integers(0, 9))
def test_images_repeat_only_after_all_images_of_their_cluster(
    train_recorder, labels, seed
):
    rows, _ = train_recorder(labels, "uniform", seed)
    counts = np.bincount(rows, minlength=len(labels))
    for label in np.unique(labels):
        assert np.ptp(counts[labels == label]) <= 1


@pytest.mark.parametrize("balance", ["uniform", "loss", None])
@given(labels=label_vectors(), seed=st.integers(0, 9))
def test_targets_are_labels_of_images(train_recorder, balance, labels, seed):
    """The network predicts the labels, so that any other target would cost 100."""
    assert train_recorder(labels, balance, seed)[1] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("balance", ["loss", None])
@given(labels=label_vectors())
def test_each_image_is_drawn_once_without_uniform_sampling(
    train_recorder, balance, labels
):
    rows, _ = train_recorder(labels, balance)
    assert_array_equal(np.sort(rows), np.arange(len(labels)))


@pytest.mark.parametrize("balance", ["uniform", "loss", None])
def test_order_is_random_and_follows_generator(balance):
    labels = np.repeat([0, 1], [10, 190])
    rows, same_seed, new_seed = (
        sample_rows(labels, balance, np.random.default_rng(seed)) for seed in (0, 0, 1)
    )
    assert_array_equal(rows, same_seed)
    assert (rows != new_seed).any()
    # The order is not cluster by cluster.
    assert abs(labels[rows[:100]].mean() - labels[rows[100:]].mean()) < 0.3


def test_repeated_passes_draw_each_image_of_a_large_cluster():
    labels = np.repeat([0, 1], [2, 60])
    rng = np.random.default_rng(0)
    rows = np.concatenate([sample_rows(labels, "uniform", rng) for _ in range(20)])
    assert_array_equal(np.unique(rows), np.arange(62))


def test_remaining_draw_goes_to_a_random_cluster():
    labels = np.repeat([0, 1, 2], [3, 3, 4])
    rng = np.random.default_rng(0)
    counts = [
        np.bincount(labels[sample_rows(labels, "uniform", rng)]) for _ in range(40)
    ]
    assert set(np.argmax(counts, axis=1)) == {0, 1, 2}


@pytest.mark.parametrize("balance", ["uniform", "loss", None])
@given(labels=label_vectors(), percentage=st.integers(1, 100))
def test_incomplete_pass_is_balanced(balance, labels, percentage):
    n_rows = max(1, len(labels) * percentage // 100)
    rows = sample_rows(labels, balance, np.random.default_rng(0), n_rows)
    assert len(rows) == n_rows
    if balance == "uniform":
        counts = np.bincount(labels[rows], minlength=labels.max() + 1)
        assert np.ptp(counts[np.unique(labels)]) <= 1
    else:
        assert len(np.unique(rows)) == n_rows


@given(st.integers(1, 100), st.integers(1, 60), st.integers(2, 70))
def test_passes_have_the_steps_of_a_round(n_steps, n, batch_size):
    sizes = split_into_passes(n_steps, n, batch_size)
    assert sum(count_steps(size, batch_size) for size in sizes) == n_steps
    assert set(sizes[:-1]) <= {n}
    assert 1 <= sizes[-1] <= n


@given(label_vectors(), st.integers(0, 5))
def test_loss_weights_are_inverse_sizes_with_mean_one(labels, n_empty):
    n_labels = int(labels.max()) + 1 + n_empty
    weights = loss_weights(labels, n_labels)
    assert weights.dtype == np.float32
    assert weights.shape == (n_labels,)
    assert weights[labels].mean() == pytest.approx(1, rel=1e-5)
    sizes = np.bincount(labels, minlength=n_labels)
    assert (weights[sizes == 0] == 0).all()
    assert_allclose(np.ptp((weights * sizes)[sizes > 0]), 0, atol=1e-4 * len(labels))


def test_sampling_and_weighting_have_the_same_expected_gradient(train):
    # No image has label 1.
    labels = np.repeat([0, 2, 3], [1, 2, 9])
    X = np.random.default_rng(0).standard_normal((12, 3)).astype(np.float32)
    network = Network(nn.Identity(), 3, nn.Identity(), None)

    def gradient(balance, seed):
        """Return the negative gradient: the change of zero weights in one step."""
        classifier = nn.Linear(3, 4)
        nn.init.zeros_(classifier.weight)
        nn.init.zeros_(classifier.bias)
        train(
            network,
            Head([classifier]),
            X,
            labels,
            learning_rate=1.0,
            rows=sample_rows(labels, balance, np.random.default_rng(seed)),
            weights=loss_weights(labels, 4) if balance == "loss" else None,
        )
        return (
            -torch.column_stack([classifier.weight, classifier.bias]).detach().numpy()
        )

    weighted = gradient("loss", 0)
    sampled = np.mean([gradient("uniform", seed) for seed in range(800)], axis=0)
    unbalanced = gradient(None, 0)
    assert_allclose(sampled, weighted, atol=0.01)
    assert abs(unbalanced - weighted).max() > 0.1
