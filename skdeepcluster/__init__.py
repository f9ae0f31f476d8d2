"""DeepCluster as a scikit-learn estimator: groups and features without labels."""

import torch  # noqa: F401  before faiss: on macOS both carry an OpenMP runtime

from . import callbacks, datasets, evaluation, inspection, io, metrics, presets
from ._clustering.faiss_kmeans import FaissKMeans
from ._estimator import DeepClusterEstimator
from .evaluation._plot.contingency import ContingencyDisplay
from .evaluation._plot.training_curves import TrainingCurvesDisplay
from .inspection._plot.contact_sheet import ContactSheetDisplay
from .inspection._plot.embedding import EmbeddingDisplay
from .inspection._plot.filters import FiltersDisplay

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
