"""A module with weights of 16 bits is fitted with checkpoints, saved and loaded."""

import warnings

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

from skdeepcluster import DeepClusterEstimator


class Half(nn.Module):
    """A network with weights of 16 bits."""

    def __init__(self, dtype):
        super().__init__()
        self.dtype = dtype
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 8)).to(dtype)

    def forward(self, images):
        """Return features of 32 bits."""
        return self.layers(images.to(self.dtype)).float()


def row_19(folder):
    """Fit, save and load modules of bfloat16 and float16."""
    warnings.simplefilter("ignore")
    images = load_digits().images[:100]
    for dtype in (torch.bfloat16, torch.float16):
        path = folder / f"{dtype}"
        try:
            model = DeepClusterEstimator(
                4,
                backbone=Half(dtype),
                max_iter=2,
                epochs_per_iter=1,
                checkpoint_dir=folder / "checkpoints",
                random_state=0,
            ).fit(images)
            model.save(path)
            loaded = DeepClusterEstimator.load(path, backbone=Half(dtype))
            embedding = loaded.transform(images)
        except Exception as error:
            return f"{dtype}: {type(error).__name__}: {error}"
        if not np.array_equal(embedding, model.transform(images)):
            return f"{dtype}: the loaded model differs"
    return "ok"
