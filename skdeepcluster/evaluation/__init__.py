"""How good features and clusters are, as the paper judges them: with labels."""

from ._fine_tune import fine_tune, untrained
from ._probes import knn_accuracy, linear_probe, low_shot
from ._reports import cluster_report, cluster_table, stability
from ._retrieval import retrieval_map

__all__ = [
    "cluster_report",
    "cluster_table",
    "fine_tune",
    "knn_accuracy",
    "linear_probe",
    "low_shot",
    "retrieval_map",
    "stability",
    "untrained",
]
