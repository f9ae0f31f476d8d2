"""Stability distinguishes a trained from an untrained network, without labels."""

import copy

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from sklearn.exceptions import ConvergenceWarning
from torch import nn

from skdeepcluster import DeepClusterEstimator
from skdeepcluster._fit.stability import StabilityProbe, measure_stability
from skdeepcluster._inputs.sources import ArraySource
from skdeepcluster._training.augment import MILD_CROP, RowNoise, mild_augment
from skdeepcluster._training.features import extract_features
from skdeepcluster._utils.compute import Compute

CPU = Compute(torch.device("cpu"))


@pytest.fixture(scope="module")
def trained(digits_images):
    model = DeepClusterEstimator(10, max_iter=2, epochs_per_iter=8, random_state=0)
    return model.fit(digits_images[0][:600])


def measure(model, images, n_clusters=10):
    """Return the stability of clusters of a model's features of images."""
    probe = StabilityProbe(
        ArraySource(images[:, None]), np.arange(len(images)), n_clusters
    )
    return probe.measure(model.module_, CPU)


def test_training_gains_stability(trained, digits_images):
    gains = [record["gain"] for record in trained.history_]
    assert len(gains) == 2
    assert all(0.1 < gain < 1 for gain in gains)
    untrained = copy.deepcopy(trained)
    for layer in untrained.module_.trunk.modules():
        if hasattr(layer, "reset_parameters"):
            layer.reset_parameters()
    held_out = digits_images[0][600:1200]
    assert measure(trained, held_out) > measure(untrained, held_out) + 0.1


def test_stability_has_bounds(trained, digits_images):
    images = digits_images[0][:100]
    assert 0 <= measure(trained, images) < 1
    assert measure(trained, images) == measure(trained, images)
    assert measure(trained, images, n_clusters=1) == 0
    assert 0 <= measure(trained, images[:2]) < 1
    assert measure(trained, np.zeros((20, 8, 8), np.uint8)) == 0


def test_features_that_are_passed_are_not_extracted_again(trained, digits_images):
    images = digits_images[0][:100]
    source = ArraySource(images[:, None])
    features = extract_features(trained.module_, source, CPU)
    probe = StabilityProbe(source, np.arange(100), n_clusters=10)
    n_images = []
    hook = trained.module_.register_forward_hook(
        lambda module, inputs, output: n_images.append(len(inputs[0]))
    )
    try:
        stability = probe.measure(trained.module_, CPU, features)
    finally:
        hook.remove()
    assert stability == measure(trained, images)
    assert sum(n_images) == 100


def test_mild_augment_depends_on_dimensions():
    assert mild_augment(3) is MILD_CROP
    assert isinstance(mild_augment(1), RowNoise)


def test_probe_holds_rows_of_the_data(digits_images):
    source = ArraySource(digits_images[0][:, None])
    rows = np.array([5, 7, 900])
    probe = StabilityProbe(source.take(rows), rows, n_clusters=2)
    assert_array_equal(probe.images.values, source.values[rows])


class Collapsing(nn.Module):
    """A network whose features become zero as soon as a step has changed it."""

    def __init__(self, network):
        super().__init__()
        self.network, self.factor = network, nn.Parameter(torch.ones(()))

    def forward(self, images):
        return self.network(images) * self.factor * (self.factor == 1)


# The fit warns of other symptoms as well.
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_network_that_lost_stability_is_warned_about(trained, digits_images):
    # A network that surely collapses: real training may or may not, by rounding.
    model = DeepClusterEstimator(
        10,
        backbone=Collapsing(trained.module_),
        # The trained network standardizes the images itself.
        preprocess=nn.Identity(),
        fine_tune=True,
        max_iter=1,
        epochs_per_iter=1,
        random_state=0,
    )
    with pytest.warns(ConvergenceWarning, match="no better than at its start"):
        model.fit(digits_images[0][:600].astype(np.float32))
    assert model.history_[-1]["gain"] < -0.15


@pytest.mark.parametrize("value", [1e38, np.inf, np.nan])
def test_huge_or_not_finite_features_have_no_stability(value):
    features = np.full((20, 4), value, np.float32)
    assert measure_stability(features, features, 2) == 0
    features[::2] *= -1
    assert measure_stability(np.zeros((20, 4), np.float32), features, 2) == 0
