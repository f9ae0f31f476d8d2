"""A fit that fails warns early, and names the parameter to change."""

import re
import warnings

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from torch import nn

from skdeepcluster import DeepClusterEstimator, FaissKMeans
from skdeepcluster._fit.recipe import Parameters
from skdeepcluster._fit.symptoms import final_symptoms, round_symptoms

HEALTHY = {
    "round": 1,
    "n_pseudo_labels": 50,
    "loss": 2.0,
    "gain": 0.3,
    "largest_cluster": 40,
    "nmi_previous": 0.8,
}


def make_history(**changes):
    return [{**HEALTHY, "round": index, **changes} for index in (1, 2, 3)]


def make_parameters(**parameters):
    return Parameters(**DeepClusterEstimator(**parameters).get_params(deep=False))


DEFAULTS = make_parameters(n_clusters=10)


def test_healthy_round_has_no_symptoms():
    assert round_symptoms(make_history(), 1000, DEFAULTS) == {}
    assert final_symptoms(make_history(), 10, None, DEFAULTS) == []


@pytest.mark.parametrize(
    ("changes", "symptom", "name"),
    [
        ({"loss": 3.9}, "guessing", "head_norm"),
        ({"largest_cluster": 600}, "giant", "balance"),
    ],
)
def test_symptoms_of_a_round(changes, symptom, name):
    history = make_history(**changes)[:2]
    messages = round_symptoms(history, 1000, DEFAULTS)
    assert list(messages) == [symptom]
    assert "learning_rate" in messages[symptom]
    # The default is no advice, unless another value is set.
    assert name not in messages[symptom]
    messages = round_symptoms(history, 1000, make_parameters(**{name: None}))
    assert f"{name}='" in messages[symptom]


def test_single_round_may_be_too_short_to_learn():
    guessing, healthy = make_history(loss=3.9), make_history()
    assert round_symptoms(guessing[:1], 1000, DEFAULTS) == {}
    assert round_symptoms([guessing[0], *healthy[1:]], 1000, DEFAULTS) == {}
    assert round_symptoms([healthy[0], guessing[1]], 1000, DEFAULTS) == {}


@pytest.mark.parametrize(
    "changes",
    [
        {"n_pseudo_labels": 1, "loss": 0.0, "largest_cluster": 1000},
        {"n_pseudo_labels": 2, "loss": 0.3, "largest_cluster": 900},
    ],
)
def test_few_pseudo_labels_are_no_symptom(changes):
    assert round_symptoms(make_history(**changes), 1000, DEFAULTS) == {}


def test_symptoms_of_a_whole_fit():
    unsettled_history = make_history(nmi_previous=0.1)
    (unsettled,) = final_symptoms(unsettled_history, 10, None, DEFAULTS)
    assert "did not settle" in unsettled
    assert "learning_rate" in unsettled
    assert final_symptoms(unsettled_history[:2], 10, None, DEFAULTS) == []
    (worse,) = final_symptoms(make_history(gain=-0.2), 10, None, DEFAULTS)
    assert "no better than at its start" in worse
    assert "learning_rate" in worse
    assert "head_norm" not in worse
    (too_few,) = final_symptoms(make_history(), 7, None, DEFAULTS)
    assert "Only 7 clusters of n_clusters=10" in too_few
    # The fit has named the cause already.
    assert final_symptoms(make_history(), 7, 7, DEFAULTS) == []


@pytest.mark.parametrize(
    ("parameters", "cure"),
    [
        ({"n_clusters": 10}, "n_pseudo_labels to less than 50"),
        ({"n_clusters": 10, "n_pseudo_labels": 50}, "lower n_pseudo_labels"),
        ({"n_clusters": 50}, "lower n_clusters"),
    ],
)
def test_unsettled_fit_names_the_number_that_can_be_lowered(parameters, cure):
    (message,) = final_symptoms(
        make_history(nmi_previous=0.1), 50, None, make_parameters(**parameters)
    )
    assert cure in message


def fit_messages(X, **parameters):
    """Return the messages of all warnings of a fit."""
    model = DeepClusterEstimator(
        **{"n_clusters": 4, "epochs_per_iter": 1, "max_iter": 3, "backbone": "mlp"}
        | {"random_state": 0}
        | parameters
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.fit(X)
    return [str(w.message) for w in caught]


# Images, of which there are 3 distinct ones, and the numbers that warnings name. With
# 400 images and 4 clusters, "auto" is 20 pseudo-labels.
REPEATS = {
    "auto": ({}, {"n_clusters": 4}),
    "set": ({"n_pseudo_labels": 12}, {"n_clusters": 4, "n_pseudo_labels": 12}),
    "tuple": ({"n_pseudo_labels": (5, 9)}, {"n_clusters": 4, "n_pseudo_labels": 9}),
    "enough for the clusters": (
        {"n_clusters": 2, "n_pseudo_labels": 9},
        {"n_pseudo_labels": 9},
    ),
    "centroids": ({"head": "centroids"}, {"n_clusters": 4}),
    "n_init": ({"clusterer": FaissKMeans(n_init=3)}, {"n_clusters": 4}),
    "scikit-learn": ({"clusterer": KMeans(7)}, {"n_clusters": 4}),
    "pic": ({"clusterer": "pic"}, {"n_clusters": 4}),
    "drop": ({"empty_clusters": "drop"}, {"n_clusters": 4}),
}


@pytest.mark.parametrize("name", REPEATS)
def test_repeated_images_name_the_numbers_that_were_set_once(digits_images, name):
    parameters, numbers = REPEATS[name]
    X = np.tile(digits_images[0][:3], (134, 1, 1))[:400]
    messages = fit_messages(X, **parameters)
    named = [m for m in messages if re.search(r"n_clusters|n_pseudo_labels", m)]
    assert len(named) == 1
    pattern = r"(n_clusters|n_pseudo_labels)(?: \(|=)(\d+)"
    assert dict(re.findall(pattern, named[0])) == {
        key: str(value) for key, value in numbers.items()
    }


def test_frozen_fit_names_the_number_that_was_set_once(digits_images):
    rows = np.tile(digits_images[0][:3].reshape(3, -1), (20, 1)).astype(np.float32)
    model = DeepClusterEstimator(4, fine_tune=False, random_state=0)
    with pytest.warns(ConvergenceWarning, match=r"n_clusters \(4\)") as caught:
        model.fit(rows)
    assert len(caught) == 1


def test_repeats_are_no_problem_with_enough_for_the_clusters(digits_images):
    X = np.tile(digits_images[0][:8], (50, 1, 1))
    messages = fit_messages(X, n_clusters=2, max_iter=1)
    assert not [message for message in messages if "distinct" in message]


@pytest.mark.parametrize(
    ("parameters", "cure"),
    [
        ({}, "n_pseudo_labels to less than 20"),
        ({"n_pseudo_labels": 12}, "Lower n_pseudo_labels"),
        # At most one pseudo-label for 20 images.
        ({"n_clusters": 20}, "Lower n_clusters"),
    ],
)
def test_error_about_empty_clusters_names_the_number(digits_images, parameters, cure):
    X = np.tile(digits_images[0][:3], (134, 1, 1))[:400]
    with pytest.raises(ValueError, match=f"empty.*{cure}"):
        fit_messages(X, empty_clusters="raise", **parameters)


def test_warning_of_a_clusterer_has_its_name_and_comes_once(digits_images):
    clusterer = GaussianMixture(max_iter=1)
    messages = fit_messages(digits_images[0][:60], clusterer=clusterer)
    (message,) = [m for m in messages if "did not converge" in m]
    assert "clusterer=GaussianMixture" in message


@pytest.mark.parametrize("value", [200, (5, 200), ()])
def test_automatic_number_of_clusters_is_in_no_error(digits_images, value):
    with pytest.raises(ValueError, match="n_pseudo_labels") as error:
        fit_messages(digits_images[0][:60], n_clusters="auto", n_pseudo_labels=value)
    assert "n_clusters" not in str(error.value)


class NoiseNetwork(nn.Module):
    """A network whose output is noise, so that there is nothing to learn."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x):
        # Noise depends on the image in evaluation, and is new in each training step.
        generator = torch.Generator().manual_seed(int(x.sum()) % 2**31)
        if self.training:
            generator.seed()
        return self.scale * torch.randn(len(x), 16, generator=generator)


def test_network_that_learns_nothing_is_reported_once(digits_images):
    model = DeepClusterEstimator(
        5, backbone=NoiseNetwork(), max_iter=3, epochs_per_iter=1, random_state=0
    )
    with pytest.warns(ConvergenceWarning) as caught:
        model.fit(digits_images[0][:300])
    messages = [str(w.message) for w in caught]
    assert sum("learned nothing" in message for message in messages) == 1
    assert caught[0].filename == __file__


def test_giant_pseudo_label_is_reported(digits_images):
    mostly_blank = np.zeros((300, 8, 8), np.uint8)
    mostly_blank[:100] = digits_images[0][:100]
    with pytest.warns(ConvergenceWarning, match="holds 6[67]% of the images"):
        DeepClusterEstimator(5, max_iter=1, epochs_per_iter=5, random_state=0).fit(
            mostly_blank
        )
