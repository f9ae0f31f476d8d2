"""Settings of torch and numpy are neutral inside a block, and as before after it."""

import contextlib
import threading

import numpy as np
import pytest
import torch

from skdeepcluster._utils.device import autocast
from skdeepcluster._utils.neutral_state import neutral_state


@contextlib.contextmanager
def float64_by_default():
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextlib.contextmanager
def meta_by_default():
    torch.set_default_device("meta")
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextlib.contextmanager
def deterministic():
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


STATES = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "errstate": lambda: np.errstate(all="raise"),
    "float64": float64_by_default,
    "default device": meta_by_default,
    "device context": lambda: torch.device("meta"),
    "deterministic": deterministic,
}


def read_state():
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
        np.geterr(),
        torch.get_default_dtype(),
        torch.get_default_device(),
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )


@pytest.mark.parametrize("state", STATES.values(), ids=STATES)
def test_state_is_neutral_inside_and_as_before_outside(state):
    neutral = read_state()
    with state():
        outer = read_state()
        assert outer != neutral
        with neutral_state():
            assert read_state() == neutral
            with neutral_state():
                assert read_state() == neutral
            assert read_state() == neutral
        assert read_state() == outer
        with pytest.raises(KeyError), neutral_state():
            raise KeyError
        assert read_state() == outer
    assert read_state() == neutral


@pytest.mark.parametrize("state", ["float64", "deterministic"])
def test_blocks_of_threads_end_in_any_order(state):
    first_has_entered, second_has_entered = threading.Event(), threading.Event()
    neutral, states = read_state(), []

    def run_first():
        with neutral_state():
            first_has_entered.set()
            second_has_entered.wait(10)

    with STATES[state]():
        outer = read_state()
        first = threading.Thread(target=run_first)
        first.start()
        first_has_entered.wait(10)
        with neutral_state():
            second_has_entered.set()
            first.join()
            states.append(read_state())
        assert read_state() == outer
    assert states == [neutral]


def test_weights_of_earlier_steps_are_not_cached_in_an_outer_autocast():
    weights, values = torch.eye(2, requires_grad=True), torch.ones(1, 2)
    with torch.autocast("cpu", torch.bfloat16):
        for factor in (1, 3):
            with torch.no_grad():
                weights.copy_(factor * torch.eye(2))
            with autocast(torch.device("cpu"), torch.bfloat16):
                product = values @ weights
            assert product.tolist() == [[factor, factor]]
