"""A fit that fails warns early, and names the parameter to change."""

import numpy as np
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning
from torch import nn

from skdeepcluster import DeepClusterEstimator
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


def test_healthy_round_has_no_symptoms():
    assert round_symptoms(make_history(), 1000) == {}
    assert final_symptoms(make_history(), 10, 10) == []


@pytest.mark.parametrize(
    ("changes", "symptom", "parameter"),
    [
        ({"loss": 3.9}, "guessing", "learning_rate"),
        ({"largest_cluster": 600}, "giant", "balance='uniform'"),
    ],
)
def test_symptoms_of_a_round(changes, symptom, parameter):
    messages = round_symptoms(make_history(**changes)[:2], 1000)
    assert list(messages) == [symptom]
    assert parameter in messages[symptom]


def test_single_round_may_be_too_short_to_learn():
    guessing, healthy = make_history(loss=3.9), make_history()
    assert round_symptoms(guessing[:1], 1000) == {}
    assert round_symptoms([guessing[0], *healthy[1:]], 1000) == {}
    assert round_symptoms([healthy[0], guessing[1]], 1000) == {}


@pytest.mark.parametrize(
    "changes",
    [
        {"n_pseudo_labels": 1, "loss": 0.0, "largest_cluster": 1000},
        {"n_pseudo_labels": 2, "loss": 0.3, "largest_cluster": 900},
    ],
)
def test_few_pseudo_labels_are_no_symptom(changes):
    assert round_symptoms(make_history(**changes), 1000) == {}


def test_symptoms_of_a_whole_fit():
    (unsettled,) = final_symptoms(make_history(nmi_previous=0.1), 10, 10)
    assert "did not settle" in unsettled
    assert "learning_rate" in unsettled
    assert final_symptoms(make_history(nmi_previous=0.1)[:2], 10, 10) == []
    (worse,) = final_symptoms(make_history(gain=-0.2), 10, 10)
    assert "no better than at its start" in worse
    assert "learning_rate" in worse
    (too_few,) = final_symptoms(make_history(), 7, 10)
    assert "Only 7 clusters of n_clusters=10" in too_few


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
