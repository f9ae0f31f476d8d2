"""Settings of torch and numpy that the caller has changed."""

import contextlib
from functools import partial

import numpy as np
import torch

from skdeepcluster import DeepClusterEstimator


@contextlib.contextmanager
def _setting(write, value, previous):
    write(value)
    try:
        yield
    finally:
        write(previous)


STATES = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": partial(torch.autocast, "cpu", torch.bfloat16),
    "errstate": partial(np.errstate, all="raise"),
    "default dtype": partial(
        _setting, torch.set_default_dtype, torch.float64, torch.float32
    ),
    "default device": partial(_setting, torch.set_default_device, "meta", None),
    "deterministic": partial(_setting, torch.use_deterministic_algorithms, True, False),
}


def row_20(folder):
    """Fit, save, load and transform in each state, and compare with none."""
    X = np.random.default_rng(0).integers(0, 256, (40, 16, 16), dtype=np.uint8)

    def run():
        model = DeepClusterEstimator(
            2, max_iter=1, epochs_per_iter=1, n_jobs=1, random_state=0
        )
        model.fit(X).save(folder / "model")
        model = DeepClusterEstimator.load(folder / "model")
        return model.labels_.tobytes(), model.transform(X).tobytes(), model.score(X)

    expected, failures = run(), []
    for name, state in STATES.items():
        try:
            with state():
                is_same = run() == expected
            if not is_same:
                failures.append(f"{name}: other results")
        except Exception as error:
            failures.append(f"{name}: {type(error).__name__}")
    return ", ".join(failures) or "ok"
