"""DeepCluster as a scikit-learn estimator: clusters and features without labels."""

import os
import sys

# Idle threads of GNU OpenMP keep a processor busy while they wait, and slow down other
# fits on the same processors. They read this limit when torch is imported first. A
# setting of the user stays.
if "torch" not in sys.modules and "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

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
