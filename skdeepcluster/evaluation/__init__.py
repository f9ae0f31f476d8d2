"""Evaluate features and clusters with labels, as the paper does."""

from ._fine_tune import fine_tune, untrained
from ._plot.contingency import ContingencyDisplay
from ._plot.training_curves import TrainingCurvesDisplay
from ._probes import knn_accuracy, linear_probe, low_shot
from ._reports import cluster_report, cluster_table
from ._retrieval import retrieval_map

__all__ = [
    "ContingencyDisplay",
    "TrainingCurvesDisplay",
    "cluster_report",
    "cluster_table",
    "fine_tune",
    "knn_accuracy",
    "linear_probe",
    "low_shot",
    "retrieval_map",
    "untrained",
]
