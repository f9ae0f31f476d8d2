"""Balanced epochs, measured on what the network receives."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from torch import nn

from skdeepcluster._inputs.sources import ArraySource
from skdeepcluster._training.epoch import TrainingState, train_epoch
from skdeepcluster._training.heads import Head
from skdeepcluster._training.sampling import (
    count_steps,
    loss_weights,
    sample_rows,
    split_into_passes,
)


@st.composite
def label_vectors(draw):
    """Label vectors: any; one of few very unequal clusters; all with gaps."""
    any_sizes = st.lists(st.integers(1, 30), min_size=1, max_size=12)
    unequal = st.sampled_from([[1, 90, 9], [1, 1], [1, 1, 1, 57], [90, 1], [2]])
    sizes = draw(any_sizes | unequal)
    if sum(sizes) < 2:
        sizes = [2]
    names = draw(
        st.lists(
            st.integers(0, 50), min_size=len(sizes), max_size=len(sizes), unique=True
        )
    )
    labels = np.repeat(np.array(names, np.int32), sizes)
    return np.random.default_rng(draw(st.integers(0, 99))).permutation(labels)


class Recorder(nn.Module):
    """Record the number that each image holds; tell the head its row's own label."""

    def __init__(self, labels):
        super().__init__()
        self.labels = torch.from_numpy(labels.astype(np.int64))
        self.n_labels = int(labels.max()) + 1
        self.weight = nn.Parameter(torch.zeros(()))
        self.received = []

    def forward(self, images):
        assert images.shape[1:] == (1, 2, 2)
        rows = images.amax(dim=(1, 2, 3))
        assert torch.equal(rows, images.amin(dim=(1, 2, 3)))
        self.received.extend(rows.int().tolist())
        known = nn.functional.one_hot(self.labels[rows.long()], self.n_labels)
        return 100.0 * known + self.weight

    points = forward


class Handing(nn.Identity):
    """Hand rows on as they are."""

    points = nn.Identity.forward


def train(network, head, source, rows, labels, *, weights=None, batch_size=16):
    """Train for one epoch with learning rate 1, and return the loss."""
    # One that has no parameters has an optimizer all the same.
    optimizer, of_head = (
        torch.optim.SGD([*module.parameters(), nn.Parameter(torch.zeros(()))], lr=1.0)
        for module in (network, head)
    )
    training = TrainingState(Head([head]), of_head, torch.Generator())
    steps = train_epoch(
        network,
        training,
        optimizer,
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0),
        source,
        rows,
        labels[None],
        weights=None if weights is None else [weights],
        augment=None,
        batch_size=batch_size,
        device=torch.device("cpu"),
        dtype=torch.float32,
    )
    for _ in steps:
        pass
    return training.losses[-1]


def receive(labels, balance, seed=0, batch_size=16):
    """Rows that a network receives in one epoch, and the loss of a perfect one."""
    numbers = np.arange(len(labels), dtype=np.float32)
    source = ArraySource(np.tile(numbers[:, None, None, None], (1, 1, 2, 2)))
    network = Recorder(labels)
    rows = sample_rows(labels, balance, np.random.default_rng(seed))
    loss = train(network, nn.Identity(), source, rows, labels, batch_size=batch_size)
    return np.array(network.received), loss


@given(label_vectors(), st.integers(0, 9), st.integers(2, 70))
def test_network_receives_each_cluster_equally_often(labels, seed, batch_size):
    received, _ = receive(labels, "uniform", seed, batch_size)
    assert len(received) == len(labels)
    counts = np.bincount(labels[received], minlength=labels.max() + 1)[
        np.unique(labels)
    ]
    assert counts.max() - counts.min() <= 1


@given(label_vectors(), st.integers(0, 9))
def test_no_image_is_repeated_before_its_whole_cluster_was_drawn(labels, seed):
    received, _ = receive(labels, "uniform", seed)
    counts = np.bincount(received, minlength=len(labels))
    for label in np.unique(labels):
        assert np.ptp(counts[labels == label]) <= 1


@pytest.mark.parametrize("balance", ["uniform", "loss", None])
@given(label_vectors(), st.integers(0, 9))
def test_each_image_comes_with_its_own_label(balance, labels, seed):
    """The network knows the labels, so that any other target would cost 100."""
    assert receive(labels, balance, seed)[1] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("balance", ["loss", None])
@given(label_vectors())
def test_without_a_sampler_each_image_comes_once(balance, labels):
    received, _ = receive(labels, balance)
    assert_array_equal(np.sort(received), np.arange(len(labels)))


@pytest.mark.parametrize("balance", ["uniform", "loss", None])
def test_order_is_random_and_follows_the_generator(balance):
    labels = np.repeat([0, 1], [10, 190])
    rows = [sample_rows(labels, balance, np.random.default_rng(s)) for s in (0, 0, 1)]
    assert_array_equal(rows[0], rows[1])
    assert (rows[0] != rows[2]).any()
    halves = labels[rows[0][:100]].mean(), labels[rows[0][100:]].mean()
    assert abs(halves[0] - halves[1]) < 0.3  # not cluster by cluster


def test_each_image_of_a_large_cluster_is_drawn_in_some_epoch():
    labels = np.repeat([0, 1], [2, 60])
    rng = np.random.default_rng(0)
    drawn = np.concatenate([sample_rows(labels, "uniform", rng) for _ in range(20)])
    assert_array_equal(np.unique(drawn), np.arange(62))


def test_the_odd_draw_goes_to_any_cluster():
    labels = np.repeat([0, 1, 2], [3, 3, 4])
    rng = np.random.default_rng(0)
    counts = [
        np.bincount(labels[sample_rows(labels, "uniform", rng)]) for _ in range(40)
    ]
    assert set(np.argmax(counts, axis=1)) == {0, 1, 2}


@pytest.mark.parametrize("balance", ["uniform", "loss", None])
@given(label_vectors(), st.integers(1, 100))
def test_a_part_of_a_pass_is_as_balanced(balance, labels, share):
    n_drawn = max(1, len(labels) * share // 100)
    rows = sample_rows(labels, balance, np.random.default_rng(0), n_drawn)
    assert len(rows) == n_drawn
    if balance == "uniform":
        counts = np.bincount(labels[rows], minlength=labels.max() + 1)
        assert np.ptp(counts[np.unique(labels)]) <= 1
    else:
        assert len(np.unique(rows)) == n_drawn


@given(st.integers(1, 100), st.integers(1, 60), st.integers(2, 70))
def test_passes_make_up_the_updates_of_a_round(updates, n, batch_size):
    sizes = split_into_passes(updates, n, batch_size)
    assert sum(count_steps(size, batch_size) for size in sizes) == updates
    assert set(sizes[:-1]) <= {n}
    assert 1 <= sizes[-1] <= n


@given(label_vectors(), st.integers(0, 5))
def test_loss_weights_are_inverse_sizes_that_average_to_one(labels, more):
    n_labels = int(labels.max()) + 1 + more
    weights = loss_weights(labels, n_labels)
    assert weights.dtype == np.float32
    assert weights.shape == (n_labels,)
    assert weights[labels].mean() == pytest.approx(1, rel=1e-5)
    sizes = np.bincount(labels, minlength=n_labels)
    assert (weights[sizes == 0] == 0).all()
    assert_allclose(np.ptp((weights * sizes)[sizes > 0]), 0, atol=1e-4 * len(labels))


def test_sampling_and_weighting_have_the_same_expected_gradient():
    labels = np.repeat([0, 2, 3], [1, 2, 9])  # no image has label 1
    rng = np.random.default_rng(0)
    source = ArraySource(rng.standard_normal((12, 3)).astype(np.float32))

    def gradient(balance, seed):
        head = nn.Linear(3, 4)
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
        rows = sample_rows(labels, balance, np.random.default_rng(seed))
        weights = loss_weights(labels, 4) if balance == "loss" else None
        train(Handing(), head, source, rows, labels, weights=weights)
        return -torch.column_stack([head.weight, head.bias]).detach().numpy()

    weighted = gradient("loss", 0)
    sampled = np.mean([gradient("uniform", seed) for seed in range(800)], axis=0)
    unbalanced = gradient(None, 0)
    assert_allclose(sampled, weighted, atol=0.01)
    assert abs(unbalanced - weighted).max() > 0.1
