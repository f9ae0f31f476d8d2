"""Points that several tests of clustering use."""

import numpy as np
import pytest
from sklearn.datasets import make_blobs


@pytest.fixture(scope="session")
def points():
    """Overlapping blobs, float32 (3000, 16)."""
    blobs, _ = make_blobs(3000, 16, centers=30, cluster_std=3, random_state=0)
    return blobs.astype(np.float32)


@pytest.fixture(scope="session")
def collapsed_points():
    """Collapsed features, float32 (2000, 16): 60 % of the rows are the same."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(2000, 16)).astype(np.float32)
    rows[rng.random(2000) < 0.6] = rows[0]
    return rows
