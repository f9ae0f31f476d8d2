"""Each preset is a plain dict of parameters, with which a fit runs."""

import inspect

import numpy as np
import pytest

from skdeepcluster import DeepClusterEstimator, presets

NAMES = presets.__all__


@pytest.mark.parametrize("name", NAMES)
def test_preset_is_a_fresh_dict_of_valid_parameters(name):
    params = getattr(presets, name)()
    assert params is not getattr(presets, name)()
    known = inspect.signature(DeepClusterEstimator).parameters
    assert set(params) <= set(known)
    DeepClusterEstimator(**params)._validate_params()
    plain = (int, float, str, tuple, type(None))
    assert {type(value) for value in params.values()} <= {*plain, bool}


def photographs(n: int) -> np.ndarray:
    """Images (n, 240, 224, 3) of random stripes, of four directions and any colors."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:240, :224] / 20
    angles = rng.integers(4, size=(n, 1, 1)) * np.pi / 4
    waves = np.sin(np.cos(angles) * x + np.sin(angles) * y + rng.random((n, 1, 1)) * 6)
    return (128 + 90 * waves[..., None] * rng.random((n, 1, 1, 3))).astype(np.uint8)


def fitted(name: str, n: int) -> DeepClusterEstimator:
    """Two rounds at 224 pixels, at a reduced k and batch."""
    params = getattr(presets, name)() | {"max_iter": 2, "batch_size": 32}
    k = (8, 8, 8) if name == "deepcluster_v2" else 8
    params |= {"n_clusters": 4, "n_pseudo_labels": k, "random_state": 0}
    if "updates_per_iter" in params:
        params["updates_per_iter"] = 3
    return DeepClusterEstimator(**params).fit(photographs(n))


def check(model: DeepClusterEstimator, n: int) -> None:
    assert model.n_iter_ == 2
    assert model.image_shape_ == (3, 224, 224)
    assert np.isfinite([record["loss"] for record in model.history_]).all()
    assert model.labels_.shape == (n,)
    assert len(np.unique(model.labels_)) == 4
    images = photographs(n)[:8]
    assert np.array_equal(model.predict(images), model.labels_[:8])


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_the_paper_s_recipe_runs():
    check(fitted("deepcluster_alexnet", 12), 12)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("name", NAMES)
def test_preset_runs(name):
    check(fitted(name, 256), 256)
