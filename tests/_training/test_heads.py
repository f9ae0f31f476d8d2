"""Heads: fresh linear layers, and cluster centers."""

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
from skdeepcluster._utils.distributed import Sharded

RNG = np.random.default_rng(0)


def test_linear_head_is_drawn_from_its_generator():
    before = torch.get_rng_state()
    heads = [
        linear_head(512, [300, 5], torch.Generator().manual_seed(seed))
        for seed in (0, 0, 1)
    ]
    assert torch.equal(torch.get_rng_state(), before)
    (large, small), (same_seed, _), (new_seed, _) = (head.classifiers for head in heads)
    assert large.weight.shape == (300, 512)
    assert small.weight.shape == (5, 512)
    assert large.weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert large.weight.mean().item() == pytest.approx(0, abs=1e-4)
    assert torch.equal(large.bias, torch.zeros(300))
    assert torch.equal(large.weight, same_seed.weight)
    assert not torch.equal(large.weight, new_seed.weight)
    assert large.weight.requires_grad
    assert large.bias.requires_grad


def test_centroid_head_holds_fixed_mean_directions():
    points = RNG.standard_normal((60, 4)).astype(np.float32)
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    labels = np.stack([RNG.permutation(np.arange(60) % k) for k in (3, 5)])
    head = centroid_head(Sharded.whole(points), labels, [3, 5], temperature=0.2)
    assert not any(parameter.requires_grad for parameter in head.parameters())
    for row, logits in zip(labels, head(torch.from_numpy(points)), strict=True):
        means = np.stack([points[row == i].mean(axis=0) for i in np.unique(row)])
        cosines = points @ (means / np.linalg.norm(means, axis=1, keepdims=True)).T
        assert_allclose(logits, cosines / 0.2, atol=1e-5)


def test_predictions_are_probabilities_for_each_classifier():
    head = linear_head(4, [3, 2], torch.Generator().manual_seed(0))
    points = 100 * RNG.standard_normal((10, 4)).astype(np.float32)
    probabilities = predict_labels(head, points)
    assert probabilities.shape == (10, 5)
    assert_allclose(probabilities[:, :3].sum(axis=1), 1, rtol=1e-5)
    assert_allclose(probabilities[:, 3:].sum(axis=1), 1, rtol=1e-5)
    logits = points @ head.classifiers[0].weight.detach().numpy().T
    assert_array_equal(probabilities[:, :3].argmax(axis=1), logits.argmax(axis=1))


def test_labels_are_counted_in_each_row():
    assert count_labels(np.array([[0, 1, 2], [1, 0, 0]])) == [3, 2]
    assert isinstance(linear_head(2, [3], torch.Generator()), Head)
