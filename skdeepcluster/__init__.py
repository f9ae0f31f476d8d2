"""DeepCluster as a scikit-learn estimator: groups and features without labels."""

import torch  # noqa: F401  before faiss: on macOS both carry an OpenMP runtime

from . import callbacks, datasets, evaluation, inspection, io, metrics, presets
from ._clustering.faiss_kmeans import FaissKMeans
from ._estimator import DeepClusterEstimator

__version__ = "0.1.0.dev0"

__all__ = [
    "DeepClusterEstimator",
    "FaissKMeans",
    "callbacks",
    "datasets",
    "evaluation",
    "inspection",
    "io",
    "metrics",
    "presets",
]
