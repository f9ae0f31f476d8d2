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
from skdeepcluster._utils.content import InvalidContent
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
    loaded = copy_as_from_file(state.state_dict())
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


# Forged states.

NAN, HUGE = float("nan"), 10**400
FORGED = [
    *(("initial_stability", value) for value in ("x", NAN, HUGE, None, True)),
    *(("labels", value) for value in (None, [0, 1], "x", 3)),
    *(("optimizer", value) for value in (None, {}, [])),
    *(("optimizer.learning_rate", value) for value in (1e30, -0.1, "x", NAN)),
    ("optimizer.momenta", lambda momenta: momenta[:-1]),
    ("optimizer.momenta", lambda momenta: momenta[::-1]),
    ("optimizer.momenta", lambda momenta: ["x"] * len(momenta)),
    *(("n_steps", value) for value in (-1, HUGE, 1.5, None, True)),
    *(("n_rounds", value) for value in (-1, 3, HUGE, 1.0, None)),
    *(("history", value) for value in ([], None, [{}], [1], {})),
    ("history.0.n_pseudo_labels", 0),
    ("history.0.loss", "x"),
    *(("diffusion_maps", value) for value in (None, [1.0], [None] * 99)),
    *(("seconds", value) for value in (None, [], {"train": "x"}, {"train": -1})),
    *(("training", value) for value in ({}, [], 3)),
    ("training_points", 3),
    *(("training.losses", value) for value in (None, ["x"], [0.1], {})),
    *(("training.n_batches", value) for value in (-3, None, 0.5, HUGE)),
    *(("training.total_losses", value) for value in ([], ["x"], 3, [HUGE])),
    *((f"training.{name}", None) for name in ("head", "optimizer", "generator")),
    ("labels", lambda labels: labels.astype(float)),
    ("labels", lambda labels: labels[:, :-1]),
    ("labels", lambda labels: labels + 1),
    ("labels", lambda labels: labels - 1),
    ("labels", lambda labels: labels * 2**20),
    ("labels", torch.from_numpy),
    ("optimizer.momenta.0", lambda momentum: momentum * torch.inf),
    ("optimizer.momenta.0", lambda momentum: momentum.flatten()),
    ("optimizer.momenta.0", lambda momentum: momentum.bfloat16()),
    ("diffusion_maps.0", lambda points: points[:-1]),
    ("diffusion_maps.0", lambda points: points * np.nan),
    ("diffusion_maps.0", lambda points: points[..., None]),
    ("training.head", lambda weights: dict(list(weights.items())[1:])),
    ("training.head", lambda weights: {n: w[:-1] for n, w in weights.items()}),
    ("training.head", lambda weights: {n: w * NAN for n, w in weights.items()}),
    ("training.generator", lambda state: state[:-1]),
    ("training.generator", lambda state: torch.full_like(state, 255)),
]


@pytest.fixture(scope="module")
def setup(digits_images):
    return prepare(digits_images[0][:100])


@pytest.fixture(scope="module")
def saved_inside_a_round(digits_images):
    setup = prepare(digits_images[0][:100])
    return run_until(setup, n_rounds=1, n_batches=2).state_dict()


@pytest.mark.parametrize(("path", "value"), FORGED)
def test_forged_state_is_refused(setup, saved_inside_a_round, path, value):
    saved = copy_as_from_file(saved_inside_a_round)
    *parents, key = [int(k) if k.isdigit() else k for k in path.split(".")]
    nested = saved
    for parent in parents:
        nested = nested[parent]
    nested[key] = value(nested[key]) if callable(value) else value
    with pytest.raises(InvalidContent, match=parents[0] if parents else key):
        resume(setup, saved)


@pytest.mark.parametrize("path", ["", "optimizer", "training"])
def test_each_missing_value_is_refused(setup, saved_inside_a_round, path):
    for key in list(saved_inside_a_round.get(path, saved_inside_a_round)):
        saved = copy_as_from_file(saved_inside_a_round)
        del saved.get(path, saved)[key]
        with pytest.raises(InvalidContent, match=key):
            resume(setup, saved)
