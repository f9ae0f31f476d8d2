"""Layout of points in few dimensions by their nearest neighbors."""

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits
from sklearn.manifold import trustworthiness
from sklearn.metrics import normalized_mutual_info_score
from sklearn.neighbors import NearestNeighbors

from skdeepcluster._clustering.neighbor_layout import neighbor_layout


def test_kmeans_of_the_layout_is_better_than_kmeans_of_the_points():
    points, classes = load_digits(return_X_y=True)

    def measure(rows):
        labels = KMeans(10, n_init=10, random_state=0).fit_predict(rows)
        return normalized_mutual_info_score(classes, labels)

    layout = neighbor_layout(points.astype(np.float32), 15, seed=0)
    assert measure(layout) > measure(points) + 0.1


def test_neighbors_lie_together():
    points = load_digits().data[:600].astype(np.float32)
    layout = neighbor_layout(points, 15, seed=0)
    assert layout.dtype == np.float32
    assert trustworthiness(points, layout, n_neighbors=15) > 0.95


def test_neighbors_are_pulled_together_and_others_pushed_away():
    points = load_digits().data[:600].astype(np.float32)
    layout = neighbor_layout(points, 15, seed=0)
    neighbors = NearestNeighbors(n_neighbors=5).fit(points).kneighbors()[1]
    others = np.random.default_rng(0).permutation(len(points))

    def measure(rows):
        """Return the median distances between neighbors, and between others."""
        steps = np.linalg.norm(rows[:, None] - rows[neighbors], axis=2)
        return np.median(steps), np.median(np.linalg.norm(rows - rows[others], axis=1))

    near, far = measure(layout)
    near_before, far_before = measure(points)
    assert far / near > 5 * far_before / near_before
    # The kernel 1 / (1 + distance^2) is near zero there.
    assert far > 3


def test_same_seed_gives_the_same_bits():
    points = load_digits().data[:200].astype(np.float32)
    layouts = [neighbor_layout(points, 15, seed) for seed in (0, 0, 1)]
    assert_array_equal(layouts[0], layouts[1])
    assert (layouts[0] != layouts[2]).any()


@pytest.mark.parametrize(
    "points",
    [
        np.zeros((50, 4)),
        np.repeat([[0.0, 1.0], [5.0, 1.0]], 40, axis=0),
        np.arange(2.0)[:, None],
        np.arange(30.0)[:, None] ** 8,
    ],
    ids=["equal", "two places", "two points", "growing distances"],
)
def test_points_of_any_distances_stay_finite(points):
    layout = neighbor_layout(points.astype(np.float32), 15, seed=0)
    assert layout.shape[0] == len(points)
    assert np.isfinite(layout).all()
    assert np.abs(layout).max() < 1000
