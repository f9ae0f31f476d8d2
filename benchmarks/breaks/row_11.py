"""Parameters change between a fit and `save`, or before a warm start."""

import copy

import numpy as np
from sklearn.datasets import load_digits

from skdeepcluster import DeepClusterEstimator

CHANGED = {
    "head_norm": None,
    "sobel": True,
    "backbone": "mlp",
    "head": "centroids",
    "preprocess": "imagenet",
    "image_size": 16,
}


def row_11(folder):
    """Set parameters of the network after a fit; save, load and continue."""
    X = load_digits().images[:64]
    model = DeepClusterEstimator(
        4, max_iter=1, epochs_per_iter=1, random_state=0, warm_start=True
    ).fit(X)
    for name, value in CHANGED.items():
        changed = copy.copy(model).set_params(**{name: value})
        changed.save(folder / "model")
        try:
            loaded = DeepClusterEstimator.load(folder / "model")
        except ValueError as error:
            return f"load refuses what save wrote with {name}={value!r}: {error}"
        if not np.array_equal(loaded.predict(X), model.labels_):
            return f"predict changes with {name}={value!r}"
        try:
            changed.fit(X)
        except ValueError as error:
            if name not in str(error):
                return f"a warm start with {name}={value!r} raises {error}"
        else:
            return f"a warm start ignores {name}={value!r}"
    return "ok"
