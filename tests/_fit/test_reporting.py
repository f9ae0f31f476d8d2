"""Records of rounds, and the line that is printed for a round."""

import numpy as np
import pytest

from skdeepcluster._clustering.kmeans import Clusters
from skdeepcluster._clustering.pseudo_labels import PseudoLabels
from skdeepcluster._fit.reporting import (
    PhaseTimer,
    format_round,
    make_record,
    mean_nmi,
)

HALVES = np.array([[0, 0, 1, 1]])
PARITY = np.array([[0, 1, 0, 1]])


def make_clusters(labels, inertia, n_empty_before):
    return Clusters(
        centers=np.zeros((2, 3), np.float32),
        labels=labels,
        inertia=inertia,
        n_iter=1,
        n_empty_before=n_empty_before,
        n_empty_after=0,
    )


@pytest.fixture
def record():
    """Record of a round with two clusterings of four images."""
    pseudo_labels = PseudoLabels(
        [
            make_clusters(np.array([0, 0, 0, 1]), inertia=1.5, n_empty_before=1),
            make_clusters(HALVES[0], inertia=2.0, n_empty_before=2),
        ]
    )
    return make_record(
        index=3,
        losses=[2.0, 1.0],
        gain=0.25,
        previous_labels=np.array([[0, 0, 0, 1], [0, 1, 0, 1]]),
        pseudo_labels=pseudo_labels,
        n_images=80,
        seconds={"sample": 1.0, "train": 4.0},
    )


def test_record_of_several_clusterings(record):
    assert record == {
        "round": 3,
        "n_pseudo_labels": 2,
        "loss": 1.5,
        "gain": 0.25,
        "inertia": 3.5,
        # The first clustering is as before, the second is independent of its past.
        "nmi_previous": pytest.approx(0.5),
        "n_empty_before": 3,
        "n_empty_after": 0,
        "largest_cluster": 3,
        "smallest_cluster": 1,
        "images_per_second": 20.0,
        "seconds_sample": 1.0,
        "seconds_train": 4.0,
    }


def test_mean_nmi():
    assert mean_nmi(HALVES, 1 - HALVES) == pytest.approx(1)
    assert mean_nmi(HALVES, PARITY) == pytest.approx(0)


def test_printed_line_has_remaining_time_and_classes(record):
    line = format_round(record, n_remaining=2)
    assert "round   3: loss 1.500, NMI 0.500, 3 empty, largest 3" in line
    assert "20 images/s" in line
    assert line.endswith("0:00:10 left")
    line = format_round({**record, "nmi_y": 0.75}, n_remaining=0)
    assert "NMI 0.500 (y 0.750)" in line
    assert "left" not in line


def test_timer_adds_to_earlier_seconds():
    seconds = {"train": 100.0}
    timer = PhaseTimer(seconds)
    timer.tick("train")
    timer.tick("embed")
    assert 100 <= seconds["train"] < 110
    assert 0 <= seconds["embed"] < 10
