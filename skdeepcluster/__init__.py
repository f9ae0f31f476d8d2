"""DeepCluster as a scikit-learn estimator: groups and features without labels."""

import torch  # noqa: F401  before faiss: on macOS both carry an OpenMP runtime

from . import callbacks, datasets, evaluation, inspection, io, metrics, presets
from ._estimator import DeepClusterEstimator
from ._faiss_kmeans import FaissKMeans
from ._plot_contingency import ContingencyDisplay
from ._plot_embedding import EmbeddingDisplay
from ._plot_filters import FiltersDisplay
from ._plot_sheet import ContactSheetDisplay
from ._plot_training import TrainingCurvesDisplay

__version__ = "0.1.0.dev0"

__all__ = [
    "ContactSheetDisplay",
    "ContingencyDisplay",
    "DeepClusterEstimator",
    "EmbeddingDisplay",
    "FaissKMeans",
    "FiltersDisplay",
    "TrainingCurvesDisplay",
    "callbacks",
    "datasets",
    "evaluation",
    "inspection",
    "io",
    "metrics",
    "presets",
]
