"""Each preset is a plain dict of parameters, and a fit with it runs."""

import inspect

import numpy as np
import pytest

from skdeepcluster import DeepClusterEstimator, presets

NAMES = presets.__all__


def make_params(name):
    arguments = {"n_images": 100_000_000} if name == "deepcluster_uncurated" else {}
    return getattr(presets, name)(**arguments)


@pytest.mark.parametrize("name", NAMES)
def test_preset_is_a_fresh_dict_of_valid_parameters(name):
    params = make_params(name)
    assert params is not make_params(name)
    parameters = inspect.signature(DeepClusterEstimator).parameters
    assert set(params) <= set(parameters)
    DeepClusterEstimator(**params)._validate_params()
    plain = (int, float, str, tuple, type(None))
    assert {type(value) for value in params.values()} <= {*plain, bool}


def test_rounds_on_uncurated_images_have_as_many_steps_as_an_epoch_of_imagenet():
    params = presets.deepcluster_uncurated(n_images=96_000_000)
    n_steps = params["epochs_per_iter"] * 96_000_000 / params["batch_size"]
    assert n_steps == pytest.approx(5_000)
    alexnet = presets.deepcluster_alexnet()
    assert params == alexnet | {"epochs_per_iter": params["epochs_per_iter"]}


def make_images(n: int) -> np.ndarray:
    """Return images (n, 240, 224, 3) of colored stripes in four directions."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:240, :224] / 20
    angles = rng.integers(4, size=(n, 1, 1)) * np.pi / 4
    waves = np.sin(np.cos(angles) * x + np.sin(angles) * y + rng.random((n, 1, 1)) * 6)
    return (128 + 90 * waves[..., None] * rng.random((n, 1, 1, 3))).astype(np.uint8)


def fit_preset(name: str, n: int) -> DeepClusterEstimator:
    """Fit two rounds at 224 pixels, with fewer clusters and smaller batches."""
    params = make_params(name) | {"max_iter": 2, "batch_size": 32}
    k = (8, 8, 8) if name == "deepcluster_v2" else 8
    params |= {"n_clusters": 4, "n_pseudo_labels": k, "random_state": 0}
    if name == "deepcluster_uncurated":
        # Three steps.
        params["epochs_per_iter"] = 3 * params["batch_size"] / n
    return DeepClusterEstimator(**params).fit(make_images(n))


def check_fitted(model: DeepClusterEstimator, n: int) -> None:
    assert model.n_iter_ == 2
    assert model.image_shape_ == (3, 224, 224)
    assert np.isfinite([record["loss"] for record in model.history_]).all()
    assert model.labels_.shape == (n,)
    assert len(np.unique(model.labels_)) == 4
    images = make_images(n)[:8]
    assert np.array_equal(model.predict(images), model.labels_[:8])


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_recipe_of_the_paper_runs():
    check_fitted(fit_preset("deepcluster_alexnet", 12), 12)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("name", NAMES)
def test_preset_runs(name):
    check_fitted(fit_preset(name, 256), 256)
