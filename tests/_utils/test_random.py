"""Streams from one seed are independent, and global generators stay unchanged."""

import itertools
import random
import threading

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal

from skdeepcluster._utils.process_lock import release_process_lock
from skdeepcluster._utils.random import RandomStreams, isolated_torch_rng

CPU = torch.device("cpu")


@pytest.fixture
def global_states():
    """Return a function that reads the states of all global generators."""

    def read():
        name, keys, *rest = np.random.get_state()
        return (
            torch.get_rng_state().tolist(),
            random.getstate(),
            (name, keys.tolist(), *rest),
        )

    return read


def test_seeds_differ_by_purpose_round_and_entropy():
    keys = [(), (0,), (1,), (2,), (0, 1), (1, 0)]
    seeds = [
        RandomStreams(entropy).seed(purpose, *key)
        for entropy, purpose, key in itertools.product(
            [0, 1], ["kmeans", "sampling", "augment", "head"], keys
        )
    ]
    assert len(set(seeds)) == len(seeds)


@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_draws_of_a_stream_do_not_change_another_stream(library):
    def draw(stream, count):
        if library == "numpy":
            return stream.random(count)
        return torch.rand(count, generator=stream).numpy()

    expected = draw(getattr(RandomStreams(7), library)("sampling", 2), 5)
    streams = RandomStreams(7)
    draw(getattr(streams, library)("augment", 2), 1000)
    draw(getattr(streams, library)("sampling", 1), 1000)
    assert_array_equal(draw(getattr(streams, library)("sampling", 2), 5), expected)
    other = draw(getattr(streams, library)("augment", 2), 5)
    assert not np.isin(other, expected).any()


def test_seeds_fit_a_signed_32_bit_integer():
    seeds = [RandomStreams(e).seed("x", i) for e in (0, 2**31 - 2) for i in range(500)]
    assert min(seeds) >= 0
    assert 2**30 < max(seeds) < 2**31


@pytest.mark.parametrize("seed", [0, 42, np.int64(42)])
def test_integer_gives_the_same_streams_each_time(seed):
    assert RandomStreams.from_random_state(seed) == RandomStreams.from_random_state(
        int(seed)
    )
    assert RandomStreams.from_random_state(seed) != RandomStreams.from_random_state(1)


def test_random_state_is_drawn_from():
    random_state, twin = np.random.RandomState(3), np.random.RandomState(3)
    first, second = (RandomStreams.from_random_state(random_state) for _ in range(2))
    assert first != second
    assert first == RandomStreams.from_random_state(twin)


def test_none_draws_new_entropy_and_not_from_global_generators(global_states):
    before = global_states()
    assert RandomStreams.from_random_state(None) != RandomStreams.from_random_state(
        None
    )
    assert global_states() == before


def test_invalid_random_state_is_refused():
    with pytest.raises(ValueError, match="cannot be used to seed"):
        RandomStreams.from_random_state("seed")


def test_streams_do_not_draw_from_global_generators(global_states):
    before = global_states()
    streams = RandomStreams.from_random_state(0)
    streams.numpy("a").random(3)
    torch.rand(3, generator=streams.torch("a"))
    assert global_states() == before


def test_isolated_torch_rng_seeds_the_block():
    draws = []
    for seed in (1, 1, 2):
        with isolated_torch_rng(seed, CPU):
            draws.append(torch.rand(4).tolist())
        torch.rand(1)
    assert draws[0] == draws[1] != draws[2]


def test_isolated_torch_rng_restores_the_global_generators(global_states):
    before = global_states()
    with isolated_torch_rng(1, CPU):
        torch.rand(3)
    assert global_states() == before


def test_isolated_torch_rng_restores_after_an_error(global_states):
    before = global_states()
    with pytest.raises(KeyError), isolated_torch_rng(1, CPU):
        raise KeyError(torch.rand(3))
    assert global_states() == before


def test_isolated_torch_rng_nests():
    with isolated_torch_rng(1, CPU):
        torch.rand(2)
        expected = torch.rand(2)
    with isolated_torch_rng(1, CPU):
        torch.rand(2)
        with isolated_torch_rng(5, CPU):
            torch.rand(9)
        assert torch.equal(torch.rand(2), expected)


@pytest.mark.parametrize("size", [1, 10, 50, 70])
def test_sample_has_distinct_rows_in_ascending_order(size):
    rows = RandomStreams(0).sample("graph", 50, size)
    assert len(rows) == min(size, 50)
    assert (np.diff(rows) > 0).all()
    assert 0 <= rows[0] <= rows[-1] < 50
    assert_array_equal(rows, RandomStreams(0).sample("graph", 50, size))
    others = [RandomStreams(e).sample("graph", 50, size).tolist() for e in range(5)]
    assert len(set(map(tuple, others))) > 1 or size >= 50


def test_isolated_torch_rng_of_threads_ends_in_any_order(global_states):
    before = global_states()
    first_has_released, second_has_released = threading.Event(), threading.Event()
    draws = {}

    def draw(seed, released, wait):
        with isolated_torch_rng(seed, CPU):
            first = torch.rand(2).tolist()
            with isolated_torch_rng(9, CPU), release_process_lock():
                released.set()
                wait()
            draws[seed] = [first, torch.rand(2).tolist()]

    first = threading.Thread(
        target=draw, args=(1, first_has_released, lambda: second_has_released.wait(30))
    )
    first.start()
    first_has_released.wait(30)
    draw(2, second_has_released, lambda: first.join(30))
    for seed in (1, 2):
        expected = torch.rand(2, 2, generator=torch.Generator().manual_seed(seed))
        assert draws[seed] == expected.tolist()
    assert global_states() == before
