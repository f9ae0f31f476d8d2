"""Stability tells a trained network from an untrained one, without labels."""

import copy

import numpy as np
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning
from torch import nn

from skdeepcluster import DeepClusterEstimator
from skdeepcluster._fit.stability import MILD_CROP, measure_stability, mild_augment
from skdeepcluster._inputs.sources import ArraySource
from skdeepcluster._training.augment import RowNoise
from skdeepcluster._training.features import extract_features

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def trained(digits_images):
    return DeepClusterEstimator(10, max_iter=2, random_state=0).fit(
        digits_images[0][:600]
    )


def of(model, images, n_clusters=10):
    source = ArraySource(images[:, None])
    seen, viewed = (
        extract_features(model.module_, source, CPU, torch.float32, view)
        for view in (None, mild_augment(source))
    )
    return measure_stability(seen, viewed, n_clusters)


def test_training_gains_and_the_history_says_how_much(trained, digits_images):
    gains = [record["gain"] for record in trained.history_]
    assert len(gains) == 2
    assert all(0.1 < gain < 1 for gain in gains)
    fresh = copy.deepcopy(trained)
    for layer in fresh.module_.trunk.modules():
        if hasattr(layer, "reset_parameters"):
            layer.reset_parameters()
    held_out = digits_images[0][600:1200]
    assert of(trained, held_out) > of(fresh, held_out) + 0.1


def test_bounds(trained, digits_images):
    images = digits_images[0][:100]
    assert 0 <= of(trained, images) < 1
    assert of(trained, images) == of(trained, images)
    assert of(trained, images, n_clusters=1) == 0
    assert 0 <= of(trained, images[:2]) < 1
    assert of(trained, np.zeros((20, 8, 8), np.uint8)) == 0


def test_views_are_of_images_and_of_rows():
    assert mild_augment(ArraySource(np.zeros((2, 1, 8, 8)))) is MILD_CROP
    assert isinstance(mild_augment(ArraySource(np.zeros((2, 8)))), RowNoise)


class Dying(nn.Module):
    """A network that sees nothing any more once a step has changed it."""

    def __init__(self, network):
        super().__init__()
        self.network, self.life = network, nn.Parameter(torch.ones(()))

    def forward(self, images):
        return self.network(images) * self.life * (self.life == 1)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")  # others
def test_a_network_that_training_spoils_is_told_of(trained, digits_images):
    # How far real training spoils one depends on the least rounding.
    spoiled = DeepClusterEstimator(
        10, backbone=Dying(trained.module_), max_iter=1, random_state=0
    )
    with pytest.warns(ConvergenceWarning, match="no better than at its start"):
        spoiled.fit(digits_images[0][:600].astype(np.float32))
    assert spoiled.history_[-1]["gain"] < -0.15


@pytest.mark.parametrize("value", [1e38, np.inf, np.nan])
def test_huge_features_and_those_that_are_not_finite_have_none(value):
    features = np.full((20, 4), value, np.float32)
    assert measure_stability(features, features, 2) == 0
    features[::2] *= -1
    assert measure_stability(np.zeros((20, 4), np.float32), features, 2) == 0
