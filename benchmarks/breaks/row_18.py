"""Embeddings of few images by networks with fully connected layers."""

import numpy as np

from skdeepcluster import DeepClusterEstimator


def row_18(folder):
    """Embed 1 to 3 images alone, and compare with their rows among many."""
    X = np.random.default_rng(0).integers(0, 256, (64, 64, 64), dtype=np.uint8)
    for backbone in ("mlp", "alexnet"):
        model = DeepClusterEstimator(
            2,
            backbone=backbone,
            max_iter=1,
            epochs_per_iter=1,
            precision="float32",
            n_jobs=1,
            random_state=0,
        ).fit(X[:32])
        embedding = model.transform(X[:32])
        for n in (1, 2, 3):
            error = abs(model.transform(X[:n]) - embedding[:n]).max()
            if error > 0:
                return f"{backbone}: {n} images differ by {error:.0e}"
    return "ok"
