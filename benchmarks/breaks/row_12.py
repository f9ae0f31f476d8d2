"""A stopped fit is called again with another function, or with equal values."""

import contextlib
import functools
import warnings

import numpy as np
import torch
from sklearn.datasets import load_digits

from skdeepcluster import DeepClusterEstimator


class Stop(Exception):
    """Ends a fit after its first round."""


class Scale:
    """An augmentation with an attribute."""

    def __init__(self, factor):
        self.factor = factor

    def __call__(self, batch):
        """Scale a batch."""
        return self.factor * batch


class Shift:
    """An augmentation that calls a static method."""

    @staticmethod
    def offset():
        """Return the number that is added."""
        return 1

    def __call__(self, batch):
        """Shift a batch."""
        return batch + self.offset()


class OtherShift(Shift):
    """The same with another method."""

    @staticmethod
    def offset():
        """Return another number."""
        return 2


# The second class has the name of the first, as after an edit of the file.
OtherShift.__name__ = OtherShift.__qualname__ = "Shift"

DIFFERENT = [
    (
        "partial",
        functools.partial(torch.mul, other=2),
        functools.partial(torch.mul, other=3),
    ),
    ("lambda", lambda batch: 2 * batch, lambda batch: 3 * batch),
    ("object", Scale(2), Scale(3)),
    ("static method", Shift(), OtherShift()),
]
EQUAL = [
    ("numpy's integer", {"n_clusters": np.int64(4)}, {"n_clusters": 4}),
    ("list", {"n_crops": [2, 0]}, {"n_crops": (2, 0)}),
    ("device", {"device": torch.device("cpu")}, {"device": "cpu"}),
    ("numpy's float", {"momentum": np.float32(0.5)}, {"momentum": 0.5}),
]


def resumes(folder, parameters, other_parameters):
    """Return whether a fit goes on from the checkpoint of other parameters."""
    images = load_digits().images[:100]
    n_complete = []

    # A fit that stops in its second round has a checkpoint of the first.
    def stop(history, fitted):
        if len(history) == 2:
            raise Stop

    def record(history, fitted):
        n_complete.append(len(history))

    def fit(callback, values):
        model = DeepClusterEstimator(
            **{
                "n_clusters": 4,
                "backbone": "mlp",
                "max_iter": 3,
                "epochs_per_iter": 1,
                "random_state": 0,
                "checkpoint_dir": folder,
                "callbacks": callback,
                **values,
            }
        )
        model.fit(images)

    with contextlib.suppress(Stop):
        fit(stop, parameters)
    try:
        fit(record, other_parameters)
    except ValueError:
        return False
    return n_complete[0] == 2


def row_12(folder):
    """Resume with functions that do something else, and with values that are equal."""
    warnings.simplefilter("ignore")
    for name, augment, other in DIFFERENT:
        if resumes(folder / name, {"augment": augment}, {"augment": other}):
            return f"another {name} goes on silently"
    for name, parameters, other_parameters in EQUAL:
        if not resumes(folder / name, parameters, other_parameters):
            return f"an equal value is refused: {name}"
    return "ok"
