"""The alternation: what is trained on is what was clustered, round after round."""

import dataclasses

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.metrics import normalized_mutual_info_score

from skdeepcluster import DeepClusterEstimator
from skdeepcluster._fit import loop as loop_module
from skdeepcluster._fit.loop import Round, run_rounds
from skdeepcluster._fit.recipe import resolve_recipe
from skdeepcluster._inputs.sources import ArraySource
from skdeepcluster._training.features import extract_features
from skdeepcluster._training.network import build_network
from skdeepcluster._utils.random import RandomStreams, isolated_torch_rng

CPU = torch.device("cpu")


@pytest.fixture
def parts(digits_images):
    """Source, network, recipe, clusterer and streams of a quick fit."""
    source = ArraySource(digits_images[0][:150, None])
    params = DeepClusterEstimator(
        5, n_pseudo_labels=15, max_iter=3, epochs_per_iter=1, precision="float32"
    ).get_params(deep=False)
    streams = RandomStreams(0)
    recipe, clusterer = resolve_recipe(params, source, streams)
    with isolated_torch_rng(0, CPU):
        statistics = source.statistics(np.arange(150))
        network = build_network(
            "auto", source.shape, *statistics, sobel=False, head_norm="batch"
        )
    return source, network, recipe, clusterer, streams


def rounds(*args, **kwargs):
    """The states at the ends of rounds."""
    return (s for s in run_rounds(*args, **kwargs) if isinstance(s, Round))


def test_each_state_is_that_of_the_network_as_it_is(parts):
    source, network, recipe, *_ = parts
    for state in rounds(*parts):
        features = extract_features(network, source, CPU, recipe.dtype)
        assert_array_equal(state.features, features)


def test_a_round_trains_on_what_the_last_one_found(parts, monkeypatch):
    trained_on, train_epoch = [], loop_module.train_epoch

    def recording(*args, **kwargs):
        trained_on.append(args[6].copy())
        return train_epoch(*args, **kwargs)

    monkeypatch.setattr(loop_module, "train_epoch", recording)
    states = list(rounds(*parts))
    for state, following in zip(states, trained_on[1:], strict=False):
        assert_array_equal(state.found.labels, following)
    for state, labels in zip(states, trained_on, strict=True):
        nmi = normalized_mutual_info_score(labels[0], state.found.labels[0])
        assert state.record["nmi_previous"] == pytest.approx(nmi)


def test_the_learning_rate_falls_to_zero_over_the_whole_fit(parts):
    source, network, recipe, clusterer, streams = parts
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    moved = []
    for _ in rounds(source, network, recipe, clusterer, streams):
        shift = sum(
            float((p.detach() - before[name]).square().sum())
            for name, p in network.named_parameters()
        )
        before = {name: p.detach().clone() for name, p in network.named_parameters()}
        moved.append(shift)
    assert moved[-1] < moved[0] / 4


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_the_schedule_is_that_of_all_steps(parts, schedule):
    source, network, recipe, clusterer, streams = parts
    recipe = dataclasses.replace(recipe, schedule=schedule)
    rates, of_head = [], set()
    for state in run_rounds(source, network, recipe, clusterer, streams):
        if not isinstance(state, Round):
            rates += [group["lr"] for group in state.optimizer.param_groups]
        if not isinstance(state, Round) and state.training is not None:
            of_head |= {g["lr"] for g in state.training.optimizer.param_groups}
    assert rates[0] == recipe.learning_rate
    if schedule == "constant":
        assert set(rates) == of_head == {recipe.learning_rate}
    else:
        done = np.linspace(0, 1, len(rates))
        cosine = (1 + np.cos(np.pi * done)) / 2
        assert_allclose(rates, recipe.learning_rate * cosine, atol=1e-9)
        assert of_head == {1.5 * recipe.learning_rate}


@pytest.mark.parametrize("n_updates", [1, 2, 7])
def test_a_round_has_as_many_updates_as_asked_for(parts, n_updates):
    source, network, recipe, clusterer, streams = parts
    recipe = dataclasses.replace(recipe, updates_per_iter=n_updates)
    steps = []
    for state in run_rounds(source, network, recipe, clusterer, streams):
        if isinstance(state, Round):
            assert len(steps) == n_updates
            steps = []
        elif state.training is not None:
            steps.append(state)


def test_rounds_go_on_from_those_done(parts):
    *first, streams = parts
    states = list(rounds(*first, streams, n_done=4))
    assert [state.record["round"] for state in states] == [5, 6, 7]


def test_a_single_k_needs_no_view(parts):
    source, network, recipe, clusterer, streams = parts
    single = dataclasses.replace(clusterer, n_pseudo_labels=(5,))
    state = next(rounds(source, network, recipe, single, streams))
    assert state.view is None


class Overflowing(torch.nn.Module):
    """Gives NaN, in training or in evaluation only."""

    def __init__(self, in_training):
        super().__init__()
        self.in_training = in_training

    def forward(self, x):
        return x * float("nan") if self.training == self.in_training else x


@pytest.mark.parametrize(("in_training", "name"), [(True, "loss"), (False, "features")])
def test_what_is_not_finite_is_named(parts, in_training, name):
    _, network, *_ = parts
    network.trunk.append(Overflowing(in_training))
    with pytest.raises(ValueError, match=rf"{name} is nan in round 1.*learning_rate="):
        list(rounds(*parts))
