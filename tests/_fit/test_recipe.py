"""Each "auto" depends on the data, and becomes the value in the documentation."""

import copy
import inspect
import math
import pickle
from dataclasses import fields

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from sklearn.metrics import adjusted_rand_score
from torch import nn

from skdeepcluster import DeepClusterEstimator, FaissKMeans
from skdeepcluster._fit.recipe import Parameters, resolve_recipe
from skdeepcluster._inputs.sources import ArraySource
from skdeepcluster._training.augment import RandomCrop
from skdeepcluster._utils.random import RandomStreams

# Fits this short may warn about their symptoms.
pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def resolve(values, **parameters):
    estimator = DeepClusterEstimator(**parameters)
    return resolve_recipe(
        Parameters(**estimator.get_params(deep=False)),
        ArraySource(values),
        RandomStreams(0),
    )


def random_images(n, side=8):
    rng = np.random.default_rng(0)
    return rng.integers(0, 255, (n, 1, side, side), np.uint8)


def test_parameters_are_those_of_the_estimator():
    names = [field.name for field in fields(Parameters)]
    assert names == [*inspect.signature(DeepClusterEstimator).parameters]


# Recipe and clusterer.


@pytest.mark.parametrize(
    ("n", "n_clusters", "expected"),
    [(2000, 10, 50), (10**4, 2, 10), (100, 10, 10), (600, 10, 30), (60, 3, 3)],
)
def test_n_pseudo_labels_auto(n, n_clusters, expected):
    _, clusterer = resolve(random_images(n, 2), n_clusters=n_clusters)
    assert clusterer.n_pseudo_labels == (expected,)


@pytest.mark.parametrize(
    ("n", "batch_size", "expected"),
    [(1797, 64, 7), (10**5, 64, 1), (100, 64, 30), (640, 64, 20), (6400, 16, 1)],
)
def test_epochs_per_iter_auto(n, batch_size, expected):
    recipe, _ = resolve(random_images(n, 2), batch_size=batch_size)
    assert recipe.steps_per_round == expected * math.ceil(n / batch_size)


@pytest.mark.parametrize(
    ("epochs", "n_steps"),
    [(1, 29), (2, 58), (2.0, 58), (0.5, 14), (1.5, 44), (3 / 29, 3), (1e-9, 1)],
)
def test_epochs_per_iter_may_be_part_of_an_epoch(epochs, n_steps):
    recipe, _ = resolve(random_images(1797, 2), epochs_per_iter=epochs)
    assert recipe.steps_per_round == n_steps


def test_images_are_mirrored_if_mirrored_images_look_alike(digits_images):
    digits = digits_images[0][:, None]
    recipe, _ = resolve(digits)
    assert recipe.augment == RandomCrop(flip=False)
    recipe, _ = resolve(np.concatenate([digits, digits[..., ::-1]]))
    assert recipe.augment == RandomCrop(flip=True)


def test_rows_are_not_augmented_and_stay_float32():
    rows = np.zeros((50, 3), np.float32)
    recipe, _ = resolve(rows)
    assert recipe.augment is None
    assert recipe.compute.dtype == torch.float32
    recipe, _ = resolve(rows, precision="bfloat16")
    assert recipe.compute.dtype == torch.bfloat16


def test_values_other_than_auto_are_kept():
    recipe, clusterer = resolve(
        random_images(50),
        n_clusters=4,
        n_pseudo_labels=9,
        epochs_per_iter=3,
        augment=None,
        init="features",
        n_neighbors=None,
    )
    assert (clusterer.n_clusters, clusterer.n_pseudo_labels) == (4, (9,))
    assert clusterer.n_neighbors is None
    assert (recipe.steps_per_round, recipe.augment) == (3, None)
    assert recipe.init == "features"


def test_faiss_kmeans_sets_options_of_kmeans():
    options = {
        "init": "random",
        "n_init": 3,
        "max_iter": 7,
        "tol": 0.5,
        "empty_clusters": "drop",
        "backend": "torch",
    }
    # Its own policy for empty clusters applies, not the estimator's.
    _, clusterer = resolve(
        random_images(50), clusterer=FaissKMeans(**options), empty_clusters="raise"
    )
    assert clusterer.method == "kmeans"
    for name, value in options.items():
        assert getattr(clusterer.kmeans_options, name) == value, name


def test_faiss_kmeans_with_initial_centers_raises():
    clusterer = FaissKMeans(init=np.zeros((8, 2)))
    with pytest.raises(ValueError, match=r"FaissKMeans\(init=.*init='k-means\+\+'"):
        resolve(random_images(50), clusterer=clusterer)


# The attribute `recipe_`.


def fit(X, **parameters):
    parameters = {
        "n_clusters": 4,
        "max_iter": 1,
        "epochs_per_iter": 1,
        "random_state": 0,
        "device": "cpu",
        **parameters,
    }
    return DeepClusterEstimator(**parameters).fit(X)


@pytest.fixture(scope="module")
def images(digits_images):
    """100 digits of 4x4 pixels, which are fitted in a fraction of a second."""
    return digits_images[0][:100, ::2, ::2]


@pytest.fixture(scope="module")
def fitted(images):
    return fit(images, epochs_per_iter="auto")


def test_recipe_of_images(fitted):
    assert type(fitted.recipe_) is dict
    recipe = dict(fitted.recipe_)
    n_components, precision = recipe.pop("n_components"), recipe.pop("precision")
    assert recipe.pop("clusters_from") in ("features", "pixels")
    assert recipe == {
        # One per 20 images, which is fewer than 5 per cluster.
        "n_pseudo_labels": 5,
        # The maximum, since epochs of two batches are far from 200 steps.
        "epochs_per_iter": 30,
        "backbone": "convnet",
        "fine_tune": True,
        "init": "pixels",
        "learning_rate": 0.03,
        "image_shape": (1, 4, 4),
        "resize": "crop",
        "augment": "auto",
        "mirror": False,
        "device": "cpu",
        "kmeans_backend": "faiss",
    }
    assert 1 < n_components < 100
    assert precision in ("float32", "bfloat16")


def test_recipe_of_clusters_of_the_pixels():
    """Blobs are clusters of the pixels, which a network cannot improve."""
    rng = np.random.default_rng(0)
    blobs = np.arange(100) % 4
    X = 9 * rng.normal(size=(4, 8))[blobs] + rng.normal(size=(100, 8))
    model = fit(X)
    assert model.recipe_["clusters_from"] == "pixels"
    assert adjusted_rand_score(blobs, model.labels_) == 1


def test_recipe_of_rows(images):
    recipe = fit(images.reshape(100, -1)).recipe_
    assert recipe["backbone"] == "mlp"
    assert recipe["image_shape"] is None
    assert recipe["resize"] == "auto"
    assert recipe["augment"] is None
    assert recipe["mirror"] is False
    assert recipe["precision"] == "float32"


def test_recipe_of_mirrored_images(digits_images):
    digits = digits_images[0][:100]
    recipe = fit(np.concatenate([digits, digits[..., ::-1]]), backbone="mlp").recipe_
    assert recipe["augment"] == "auto"
    assert recipe["mirror"] is True


def test_recipe_of_centroid_head(images):
    assert fit(images, head="centroids").recipe_["n_components"] == 128
    recipe = fit(images, head="centroids", n_components=16).recipe_
    assert recipe["n_components"] == 16


def test_recipe_of_several_numbers_of_pseudo_labels(images):
    recipe = fit(images, n_pseudo_labels=[5, 9]).recipe_
    assert recipe["n_pseudo_labels"] == (5, 9)


@pytest.mark.parametrize(("epochs", "expected"), [(0.5, 0.5), (1.5, 1.5), (2.0, 2)])
def test_recipe_of_part_of_an_epoch(images, epochs, expected):
    chosen = fit(images, epochs_per_iter=epochs).recipe_["epochs_per_iter"]
    assert chosen == expected
    assert type(chosen) is type(expected)


def test_recipe_names_functions_and_modules(images):
    def brighten(batch):
        return 1.1 * batch

    backbone = nn.Sequential(nn.Flatten(), nn.Linear(16, 8))
    recipe = fit(images, augment=brighten, backbone=backbone).recipe_
    assert recipe["augment"].endswith("brighten")
    assert recipe["backbone"] == "Sequential"


def test_recipe_of_faiss_kmeans_with_backend(images):
    recipe = fit(images, clusterer=FaissKMeans(backend="torch")).recipe_
    assert recipe["kmeans_backend"] == "torch"


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))]
)
def test_recipe_survives_copy_and_pickle(fitted, duplicate):
    duplicated = duplicate(fitted)
    assert duplicated.recipe_ == fitted.recipe_
    assert type(duplicated.recipe_) is dict


def assert_choices_give_the_same_fit(model, images, **parameters):
    """Fit with the values of `recipe_` in place of each "auto"."""
    choices = dict(model.recipe_)
    # The mirror belongs to augment="auto", and the merge makes a choice of its own.
    del choices["mirror"], choices["clusters_from"]
    clusterer = FaissKMeans(backend=choices.pop("kmeans_backend"))
    repeated = fit(images, clusterer=clusterer, **parameters | choices)
    assert_array_equal(repeated.labels_, model.labels_)
    assert_array_equal(repeated.transform(images), model.transform(images))
    assert repeated.recipe_ == model.recipe_


def test_choices_of_auto_give_the_same_fit(fitted, images):
    assert_choices_give_the_same_fit(fitted, images)


def test_choices_of_centroid_head_give_the_same_fit(images):
    parameters = {"head": "centroids", "n_pseudo_labels": (5, 9)}
    model = fit(images, **parameters)
    assert_choices_give_the_same_fit(model, images, **parameters)


def test_choices_of_rows_give_the_same_fit(images):
    rows = images.reshape(100, -1)
    assert_choices_give_the_same_fit(fit(rows), rows)
