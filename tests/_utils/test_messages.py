"""Warnings point to the line of the user, whatever was called there."""

import inspect
import warnings

import numpy as np
import pytest
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skdeepcluster import DeepClusterEstimator, FaissKMeans


def in_a_pipeline():
    model = DeepClusterEstimator(3, max_iter=1, epochs_per_iter=1, random_state=0)
    return make_pipeline(StandardScaler(with_std=False), model)


CALLS = {
    "k-means": lambda X: FaissKMeans(3, random_state=0).fit(X),
    "fit_predict": lambda X: FaissKMeans(3, random_state=0).fit_predict(X),
    "fit": lambda X: in_a_pipeline()[1].fit(X),
    "fit_transform": lambda X: in_a_pipeline()[1].fit_transform(X),
    "pipeline": lambda X: in_a_pipeline().fit(X),
}


@pytest.mark.parametrize("name", CALLS)
def test_the_place_of_a_warning_is_the_users_line(name):
    X = np.ones((30, 4))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        CALLS[name](X)
    told = [w for w in told if "distinct points" in str(w.message)]
    assert told
    assert {w.filename for w in told} == {__file__}
    lines, start = inspect.getsourcelines(CALLS[name])
    assert {w.lineno for w in told} <= set(range(start, start + len(lines)))
