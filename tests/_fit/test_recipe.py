"""What "auto" stands for depends on the data, and is what the documentation says."""

import math

import numpy as np
import pytest
import torch

from skdeepcluster import DeepClusterEstimator
from skdeepcluster._fit.recipe import resolve_recipe
from skdeepcluster._inputs.sources import ArraySource
from skdeepcluster._training.augment import RandomCrop
from skdeepcluster._utils.random import RandomStreams


def resolved(values, **parameters):
    params = DeepClusterEstimator(**parameters).get_params(deep=False)
    return resolve_recipe(params, ArraySource(values), RandomStreams(0))


def images(n, side=8):
    rng = np.random.default_rng(0)
    return rng.integers(0, 255, (n, 1, side, side), np.uint8)


@pytest.mark.parametrize(
    ("n", "n_clusters", "expected"),
    [(2000, 10, 50), (10**4, 2, 10), (100, 10, 10), (600, 10, 30), (60, 3, 3)],
)
def test_pseudo_labels(n, n_clusters, expected):
    _, clusterer = resolved(images(n, 2), n_clusters=n_clusters)
    assert clusterer.n_pseudo_labels == (expected,)


@pytest.mark.parametrize(
    ("n", "batch_size", "expected"),
    [(1797, 64, 7), (10**5, 64, 1), (100, 64, 30), (640, 64, 20), (6400, 16, 1)],
)
def test_epochs(n, batch_size, expected):
    recipe, _ = resolved(images(n, 2), batch_size=batch_size)
    assert recipe.updates_per_iter == expected * math.ceil(n / batch_size)
    recipe, _ = resolved(images(n, 2), batch_size=batch_size, updates_per_iter=3)
    assert recipe.updates_per_iter == 3


def test_flips_only_where_mirrored_images_fit_in(digits_images):
    digits = digits_images[0][:, None]
    recipe, _ = resolved(digits)
    assert recipe.augment == RandomCrop(flip=False)
    recipe, _ = resolved(np.concatenate([digits, digits[..., ::-1]]))
    assert recipe.augment == RandomCrop(flip=True)


def test_rows_are_not_augmented_and_stay_float32():
    recipe, _ = resolved(np.zeros((50, 3), np.float32))
    assert recipe.augment is None
    assert recipe.dtype == torch.float32
    recipe, _ = resolved(np.zeros((50, 3), np.float32), precision="bfloat16")
    assert recipe.dtype == torch.bfloat16


def test_given_values_are_taken_as_they_are():
    recipe, clusterer = resolved(
        images(50),
        n_clusters=4,
        n_pseudo_labels=9,
        epochs_per_iter=3,
        augment=None,
        init="features",
        n_neighbors=None,
    )
    assert (clusterer.n_clusters, clusterer.n_pseudo_labels) == (4, (9,))
    assert clusterer.n_neighbors is None
    assert (recipe.updates_per_iter, recipe.augment) == (3, None)
    assert recipe.init == "features"
