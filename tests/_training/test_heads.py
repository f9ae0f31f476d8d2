"""Heads: fresh linear layers, and centers of clusters."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

from skdeepcluster._training.heads import (
    Head,
    centroid_head,
    count_labels,
    linear_head,
    predict_labels,
)

RNG = np.random.default_rng(0)


def test_a_fresh_head_is_drawn_from_its_own_generator():
    before = torch.get_rng_state()
    heads = [
        linear_head(512, [300, 5], torch.Generator().manual_seed(seed))
        for seed in (0, 0, 1)
    ]
    assert torch.equal(torch.get_rng_state(), before)
    (head, small), (again, _), (other, _) = (h.classifiers for h in heads)
    assert head.weight.shape == (300, 512)
    assert small.weight.shape == (5, 512)
    assert head.weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert head.weight.mean().item() == pytest.approx(0, abs=1e-4)
    assert torch.equal(head.bias, torch.zeros(300))
    assert torch.equal(head.weight, again.weight)
    assert not torch.equal(head.weight, other.weight)
    assert head.weight.requires_grad
    assert head.bias.requires_grad


def test_centroids_are_mean_directions_that_are_not_trained():
    points = RNG.standard_normal((60, 4)).astype(np.float32)
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    labels = np.stack([RNG.permutation(np.arange(60) % k) for k in (3, 5)])
    head = centroid_head(points, labels, [3, 5], temperature=0.2)
    assert not any(parameter.requires_grad for parameter in head.parameters())
    logits = head(torch.from_numpy(points))
    for row, found in zip(labels, logits, strict=True):
        means = np.stack(
            [points[row == label].mean(axis=0) for label in np.unique(row)]
        )
        cosines = points @ (means / np.linalg.norm(means, axis=1, keepdims=True)).T
        assert_allclose(found, cosines / 0.2, atol=1e-5)


def test_predicted_labels_are_probabilities_for_each_number_of_them():
    head = linear_head(4, [3, 2], torch.Generator().manual_seed(0))
    points = 100 * RNG.standard_normal((10, 4)).astype(np.float32)
    found = predict_labels(head, points)
    assert found.shape == (10, 5)
    assert_allclose(found[:, :3].sum(axis=1), 1, rtol=1e-5)
    assert_allclose(found[:, 3:].sum(axis=1), 1, rtol=1e-5)
    logits = points @ head.classifiers[0].weight.detach().numpy().T
    assert_array_equal(found[:, :3].argmax(axis=1), logits.argmax(axis=1))


def test_labels_are_counted_for_each_number_of_them():
    assert count_labels(np.array([[0, 1, 2], [1, 0, 0]])) == [3, 2]
    assert isinstance(linear_head(2, [3], torch.Generator()), Head)
