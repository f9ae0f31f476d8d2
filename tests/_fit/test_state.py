"""The state of a fit, written and read."""

import json
import pickle

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal

from skdeepcluster import DeepClusterEstimator
from skdeepcluster._fit.loop import FitSetup, resume, run_rounds
from skdeepcluster._fit.recipe import Parameters, resolve_recipe
from skdeepcluster._inputs.sources import ArraySource
from skdeepcluster._training.network import build_network
from skdeepcluster._utils.distributed import SINGLE_PROCESS
from skdeepcluster._utils.random import RandomStreams, isolated_torch_rng
from skdeepcluster._utils.tensors import pack, unpack

CPU = torch.device("cpu")


def prepare(images, **parameters):
    """Return the setup of a quick fit of three rounds, always with the same weights."""
    source = ArraySource(images[:, None])
    estimator = DeepClusterEstimator(
        4, max_iter=3, epochs_per_iter=1, batch_size=32, **parameters
    )
    parameters = Parameters(**estimator.get_params(deep=False))
    streams = RandomStreams(0)
    recipe, clusterer = resolve_recipe(parameters, source, streams)
    with isolated_torch_rng(0, CPU):
        mean, scale = source.statistics(np.arange(len(source)))
        network = build_network(
            "auto",
            source.shape,
            mean,
            scale,
            sobel=False,
            head_norm="batch",
            n_projected=parameters.n_projected,
        )
    return FitSetup.prepare(source, network, recipe, clusterer, streams, SINGLE_PROCESS)


def run_until(setup, n_rounds, n_batches):
    """Return the state after so many rounds, and batches of the round after them."""
    for state, _ in run_rounds(setup, []):
        training = state.training
        if state.n_rounds == n_rounds and n_batches == (
            0 if training is None else training.n_batches
        ):
            return state
    raise AssertionError("The fit has no such state.")


def copy_as_from_file(saved):
    """Return a copy that shares no memory with the fit."""
    tensors = {}
    packed = json.loads(json.dumps(pack(saved, tensors)))
    return unpack(packed, pickle.loads(pickle.dumps(tensors)))


def assert_equal_states(actual, expected):
    """Compare nested containers, their types, and the bits of tensors and arrays."""
    assert type(actual) is type(expected)
    if isinstance(expected, torch.Tensor):
        assert torch.equal(actual, expected)
    elif isinstance(expected, np.ndarray):
        assert_array_equal(actual, expected)
    elif isinstance(expected, dict):
        assert actual.keys() == expected.keys()
        for name in expected:
            assert_equal_states(actual[name], expected[name])
    elif isinstance(expected, str | bytes) or not hasattr(expected, "__iter__"):
        assert actual == expected
    else:
        for actual_value, value in zip(actual, expected, strict=True):
            assert_equal_states(actual_value, value)


@pytest.mark.parametrize("head", ["reset", "centroids"])
@pytest.mark.parametrize(
    ("n_rounds", "n_batches"), [(0, 0), (0, 2), (1, 0), (1, 1), (2, 0)]
)
def test_state_dict_round_trip(digits_images, head, n_rounds, n_batches):
    images = digits_images[0][:100]
    saved = run_until(prepare(images, head=head), n_rounds, n_batches).state_dict()
    saved = copy_as_from_file(saved)
    state = resume(prepare(images, head=head), saved)
    loaded = state.state_dict()
    assert (saved["training"] is None) == (n_batches == 0)
    assert_equal_states(loaded, saved)
    assert state.n_steps == 4 * n_rounds + n_batches


@pytest.mark.parametrize("head", ["reset", "centroids"])
def test_training_state_round_trip(digits_images, head):
    images = digits_images[0][:100]
    setup = prepare(images, head=head)
    saved = run_until(setup, n_rounds=1, n_batches=2).state_dict()
    saved = copy_as_from_file(saved)
    weights = {name: w.clone() for name, w in setup.network.state_dict().items()}
    resumed = prepare(images, head=head)
    resumed.network.load_state_dict(weights)
    state, finished = next(run_rounds(resumed, [], resume(resumed, saved)))
    # Resumed after two batches, the first state follows the third.
    assert finished is None
    assert state.training.n_batches == 3
    assert state.n_steps == 4 + 3
    assert len(state.history) == 1


def test_complete_round_prepares_the_next_round(digits_images):
    setup = prepare(digits_images[0][:100])
    for state, finished in run_rounds(setup, []):
        if finished is None:
            continue
        assert_array_equal(state.labels, finished.pseudo_labels.labels)
        assert state.history[-1] is finished.record
        assert_array_equal(state.diffusion_maps[-1], finished.diffusion_map)
        assert state.training is None
        assert state.seconds == {}
    assert state.n_rounds == len(state.history) == len(state.diffusion_maps) == 3
