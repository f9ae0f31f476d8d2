"""Callbacks change the history that they get."""

import numpy as np
from sklearn.datasets import load_digits

from skdeepcluster import DeepClusterEstimator


def clear(history, fitted):
    """Remove all records."""
    history.clear()


def clear_record(history, fitted):
    """Remove the numbers of the last round."""
    history[-1].clear()


def add_numbers(history, fitted):
    """Put numbers of numpy into the last record."""
    history[-1].update(mine=np.float32(1), array=np.zeros(2), loss=np.nan)


def row_24(folder):
    """Clear and change the history in a callback of a fit with checkpoints."""
    X = load_digits().images[:64]
    for change in (clear, clear_record, add_numbers):
        model = DeepClusterEstimator(
            4,
            max_iter=2,
            epochs_per_iter=1,
            random_state=0,
            callbacks=change,
            checkpoint_dir=folder / "checkpoints",
        )
        try:
            model.fit(X)
            model.set_params(callbacks=None).save(folder / "model")
        except Exception as error:
            return f"{change.__name__}: {type(error).__name__}: {error}"
        if len(model.history_) != 2 or not np.isfinite(model.history_[-1]["loss"]):
            return f"{change.__name__} changes history_"
    return "ok"
