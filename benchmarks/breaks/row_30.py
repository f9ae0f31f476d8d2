"""A dataset with random transforms."""

import warnings

import numpy as np
import torch
from sklearn.datasets import load_digits

from skdeepcluster import DeepClusterEstimator


class Digits(torch.utils.data.Dataset):
    """The digits, which are flipped at random or not at all."""

    def __init__(self, is_random):
        self.images = load_digits().images[:64]
        self.is_random = is_random
        self.rng = np.random.default_rng(0)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, row):
        image = self.images[row]
        return image[:, ::-1] if self.is_random and self.rng.random() < 0.5 else image


def row_30(folder):
    """Fit a dataset with random transforms, and one without."""
    for is_random in (True, False):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            DeepClusterEstimator(4, max_iter=1, epochs_per_iter=1).fit(
                Digits(is_random)
            )
        warns = any("each time that it is read" in str(w.message) for w in caught)
        if warns != is_random:
            return "no warning" if is_random else "a warning without a cause"
    return "ok"
