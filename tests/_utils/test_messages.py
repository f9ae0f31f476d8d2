"""Warnings point to the line of the user, whichever method was called there."""

import contextlib
import inspect
import os
import warnings
from pathlib import Path

import numpy as np
import pytest
import sklearn
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import skdeepcluster
from skdeepcluster import DeepClusterEstimator, FaissKMeans
from skdeepcluster._utils.messages import warn


def make_model():
    model = DeepClusterEstimator(3, max_iter=1, epochs_per_iter=1, random_state=0)
    return make_pipeline(StandardScaler(with_std=False), model)


CALLS = {
    "k-means": lambda X: FaissKMeans(3, random_state=0).fit(X),
    "fit_predict": lambda X: FaissKMeans(3, random_state=0).fit_predict(X),
    "fit": lambda X: make_model()[1].fit(X),
    "fit_transform": lambda X: make_model()[1].fit_transform(X),
    "pipeline": lambda X: make_model().fit(X),
}


@pytest.mark.parametrize("name", CALLS)
def test_warning_points_to_the_users_line(name):
    X = np.ones((30, 4))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        CALLS[name](X)
    caught = [w for w in caught if "distinct points" in str(w.message)]
    assert caught
    assert {w.filename for w in caught} == {__file__}
    lines, start = inspect.getsourcelines(CALLS[name])
    assert {w.lineno for w in caught} <= set(range(start, start + len(lines)))


@pytest.mark.parametrize(
    ("path", "is_internal"),
    [
        (Path(sklearn.__file__).parent / "pipeline.py", True),
        (Path(skdeepcluster.__file__).parent / "_fit" / "fit.py", True),
        (Path(contextlib.__file__), True),
        (Path(f"{Path(sklearn.__file__).parent}_extra") / "cluster.py", False),
        (Path(f"{Path(skdeepcluster.__file__).parent}_zoo") / "models.py", False),
    ],
    ids=lambda value: os.path.basename(str(value)),
)
def test_only_this_package_and_scikit_learn_are_skipped(path, is_internal):
    namespace = {"warn": warn}
    code = compile("def call():\n    warn('a message')", str(path), "exec")
    exec(code, namespace)
    with pytest.warns(UserWarning, match="a message") as caught:
        namespace["call"]()
    assert caught[0].filename == (__file__ if is_internal else str(path))
