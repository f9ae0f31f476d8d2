"""The rounds of a fit: clusters of one round are the pseudo-labels of the next."""

import dataclasses

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.metrics import normalized_mutual_info_score

from skdeepcluster import DeepClusterEstimator
from skdeepcluster._fit import loop as loop_module
from skdeepcluster._fit.loop import FitSetup, run_rounds
from skdeepcluster._fit.recipe import Parameters, resolve_recipe
from skdeepcluster._inputs.sources import ArraySource
from skdeepcluster._training.features import extract_features
from skdeepcluster._training.network import build_network
from skdeepcluster._utils.distributed import SINGLE_PROCESS
from skdeepcluster._utils.random import RandomStreams, isolated_torch_rng

CPU = torch.device("cpu")


@pytest.fixture
def setup(digits_images):
    """A quick fit of three rounds, in float32."""
    source = ArraySource(digits_images[0][:150, None])
    estimator = DeepClusterEstimator(
        5, n_pseudo_labels=15, max_iter=3, epochs_per_iter=1, precision="float32"
    )
    parameters = Parameters(**estimator.get_params(deep=False))
    streams = RandomStreams(0)
    recipe, clusterer = resolve_recipe(parameters, source, streams)
    with isolated_torch_rng(0, CPU):
        mean, scale = source.statistics(np.arange(150))
        network = build_network(
            "auto", source.shape, mean, scale, sobel=False, head_norm="batch"
        )
    return FitSetup.prepare(source, network, recipe, clusterer, streams, SINGLE_PROCESS)


def change(setup, **fields):
    """Return a setup whose recipe has other values in some fields."""
    recipe = dataclasses.replace(setup.recipe, **fields)
    return dataclasses.replace(setup, recipe=recipe)


def finished_rounds(setup, history=()):
    """Yield the results of complete rounds, without the states inside rounds."""
    for _, finished in run_rounds(setup, list(history)):
        if finished is not None:
            yield finished


def test_features_are_those_of_the_current_network(setup):
    for finished in finished_rounds(setup):
        features = extract_features(setup.network, setup.source, setup.recipe.compute)
        assert_array_equal(finished.features.values, features)


def test_round_trains_on_clusters_of_previous_round(setup, monkeypatch):
    trained_on, train_epoch = [], loop_module.train_epoch

    def record_labels(*args, **kwargs):
        trained_on.append(args[6].copy())
        return train_epoch(*args, **kwargs)

    monkeypatch.setattr(loop_module, "train_epoch", record_labels)
    rounds = list(finished_rounds(setup))
    for finished, next_labels in zip(rounds, trained_on[1:], strict=False):
        assert_array_equal(finished.pseudo_labels.labels, next_labels)
    for finished, labels in zip(rounds, trained_on, strict=True):
        nmi = normalized_mutual_info_score(labels[0], finished.pseudo_labels.labels[0])
        assert finished.record["nmi_previous"] == pytest.approx(nmi)


def test_weights_move_less_from_round_to_round(setup):
    def copy_weights():
        return [weights.detach().clone() for weights in setup.network.parameters()]

    previous, shifts = copy_weights(), []
    for _ in finished_rounds(setup):
        current = copy_weights()
        pairs = zip(current, previous, strict=True)
        shifts.append(sum(float((new - old).square().sum()) for new, old in pairs))
        previous = current
    # The cosine schedule ends at a learning rate of zero.
    assert shifts[-1] < shifts[0] / 4


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_schedule_covers_all_steps_of_the_fit(setup, schedule):
    setup = change(setup, schedule=schedule)
    learning_rate = setup.recipe.learning_rate
    rates, head_rates = [], set()
    for state, finished in run_rounds(setup, []):
        if finished is not None:
            continue
        rates += [group["lr"] for group in state.optimizer.param_groups]
        if state.training is not None:
            groups = state.training.head_optimizer.param_groups
            head_rates |= {group["lr"] for group in groups}
    assert rates[0] == learning_rate
    if schedule == "constant":
        assert set(rates) == head_rates == {learning_rate}
    else:
        progress = np.linspace(0, 1, len(rates))
        cosine = (1 + np.cos(np.pi * progress)) / 2
        assert_allclose(rates, learning_rate * cosine, atol=1e-9)
        assert head_rates == {1.5 * learning_rate}


@pytest.mark.parametrize("n_steps", [1, 2, 7])
def test_round_has_steps_per_round(setup, n_steps):
    setup, counted = change(setup, steps_per_round=n_steps), 0
    for state, finished in run_rounds(setup, []):
        if finished is not None:
            assert counted == n_steps
            counted = 0
        elif state.training is not None:
            counted += 1
    assert state.n_steps == 3 * n_steps


def test_round_numbers_continue_after_warm_start(setup):
    history = [{"round": number} for number in range(1, 5)]
    rounds = finished_rounds(setup, history)
    assert [finished.record["round"] for finished in rounds] == [5, 6, 7]


def test_single_k_has_no_diffusion_map(setup):
    clusterer = dataclasses.replace(setup.clusterer, n_pseudo_labels=(5,))
    finished = next(finished_rounds(dataclasses.replace(setup, clusterer=clusterer)))
    assert finished.diffusion_map is None


def test_centroid_head_stores_points_instead_of_features(setup):
    finished = next(finished_rounds(change(setup, head="centroids")))
    assert finished.features is None


class NotFinite(torch.nn.Module):
    """A layer that returns NaN, in training or in evaluation only."""

    def __init__(self, in_training):
        super().__init__()
        self.in_training = in_training

    def forward(self, x):
        return x * float("nan") if self.training == self.in_training else x


@pytest.mark.parametrize(("in_training", "name"), [(True, "loss"), (False, "features")])
def test_values_that_are_not_finite_raise(setup, in_training, name):
    setup.network.trunk.append(NotFinite(in_training))
    with pytest.raises(ValueError, match=rf"{name} is nan in round 1.*learning_rate="):
        list(finished_rounds(setup))
