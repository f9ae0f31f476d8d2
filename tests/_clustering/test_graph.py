"""Exact nearest neighbors, and the spectral embedding of their graph."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.cluster import KMeans
from sklearn.datasets import make_circles, make_moons
from sklearn.metrics import adjusted_rand_score
from sklearn.neighbors import NearestNeighbors

from skdeepcluster._clustering.graph import (
    DENSE_ROWS,
    nearest_neighbors,
    spectral_embedding,
)

RNG = np.random.default_rng(0)
# The smaller graph goes to the dense eigensolver, the larger graph to the sparse one.
SMALL_SIZE, LARGE_SIZE = 240, 1200
SIZES = pytest.mark.parametrize("n", [SMALL_SIZE, LARGE_SIZE])


# Nearest neighbors.


@pytest.mark.parametrize(("n", "d", "k"), [(300, 5, 10), (40, 1, 3), (12, 3, 11)])
def test_neighbors_equal_sklearn(n, d, k):
    points = RNG.standard_normal((n, d)).astype(np.float32)
    # Without query points, scikit-learn excludes each point from its own neighbors.
    expected_distances, expected = (
        NearestNeighbors(n_neighbors=k).fit(points).kneighbors()
    )
    neighbors, distances = nearest_neighbors(points, k)
    assert_allclose(distances, expected_distances**2, atol=1e-5)
    # Rounding may swap neighbors at equal distances.
    assert (neighbors == expected).mean() > 0.99


@pytest.mark.parametrize("k", [2, 3, 10])
def test_number_of_neighbors_is_capped(k):
    points = RNG.standard_normal((3, 2)).astype(np.float32)
    neighbors, distances = nearest_neighbors(points, k)
    assert_array_equal(np.sort(neighbors), [[1, 2], [0, 2], [0, 1]])
    assert distances.shape == (3, 2)


@pytest.mark.parametrize("k", [1, 4, 19])
@pytest.mark.parametrize("n_distinct", [1, 2, 5])
def test_duplicates_are_not_their_own_neighbors(n_distinct, k):
    distinct = RNG.standard_normal((n_distinct, 3)).astype(np.float32)
    points = np.tile(distinct, (20, 1))[:20]
    neighbors, distances = nearest_neighbors(points, k)
    assert neighbors.shape == (20, k)
    assert ((neighbors >= 0) & (neighbors != np.arange(20)[:, None])).all()
    assert all(len(set(row)) == k for row in neighbors.tolist())
    expected = NearestNeighbors(n_neighbors=k).fit(points).kneighbors()[0]
    assert (distances >= 0).all()
    assert_allclose(distances, expected**2, atol=1e-5)


# Spectral embedding.


def make_blobs(n, n_blobs, distance=20, seed=0):
    """Draw Gaussian blobs, disconnected in the graph unless `distance` is small.

    Returns
    -------
    points : ndarray of shape (n, 12), float32
    blobs : ndarray of shape (n,), int
        Blob of each point.
    """
    blobs = np.arange(n) % n_blobs
    noise = np.random.default_rng(seed).standard_normal((n, 12))
    return (distance * np.eye(12)[blobs] + noise).astype(np.float32), blobs


def make_noisy_moons(n):
    return make_moons(n, noise=0.04, random_state=0)


def make_noisy_circles(n):
    return make_circles(n, noise=0.03, factor=0.4, random_state=0)


def embed(points, n_components, n_neighbors=10):
    embedding = spectral_embedding(points, n_neighbors, n_components)
    assert embedding.dtype == np.float32
    assert embedding.shape == (len(points), min(n_components, len(points) - 1))
    assert_allclose(np.linalg.norm(embedding, axis=1), 1, rtol=1e-5)
    return embedding


def spectral_clusters(points, n_clusters):
    embedding = embed(points.astype(np.float32), n_clusters)
    return KMeans(n_clusters, n_init=10, random_state=0).fit_predict(embedding)


def test_sizes_choose_different_eigensolvers():
    assert SMALL_SIZE < DENSE_ROWS < LARGE_SIZE


@SIZES
@pytest.mark.parametrize("make_shapes", [make_noisy_moons, make_noisy_circles])
def test_clusters_follow_shapes_that_kmeans_cuts(make_shapes, n):
    points, shapes = make_shapes(n)
    assert adjusted_rand_score(shapes, spectral_clusters(points, 2)) == 1
    labels = KMeans(2, n_init=10, random_state=0).fit_predict(points)
    assert adjusted_rand_score(shapes, labels) < 0.7


@SIZES
@pytest.mark.parametrize("n_blobs", [2, 4, 12])
def test_disconnected_components_are_separated(n, n_blobs):
    for seed in range(5):
        points, blobs = make_blobs(n, n_blobs, seed=seed)
        assert adjusted_rand_score(blobs, spectral_clusters(points, n_blobs)) == 1


@SIZES
def test_more_components_of_graph_than_of_embedding_differ(n):
    points, blobs = make_blobs(n, 12)
    embedding = embed(points, 5)
    rows = np.array([embedding[blobs == blob] for blob in range(12)])
    # Each component of the graph is a single point of the embedding.
    assert_allclose(rows, np.broadcast_to(rows[:, :1], rows.shape), atol=1e-5)
    cosines = rows[:, 0] @ rows[:, 0].T
    assert cosines[~np.eye(12, dtype=bool)].max() < 0.95


@pytest.mark.parametrize("n_blobs", [1, 3, 5, 6])
def test_eigensolvers_span_same_space(monkeypatch, n_blobs):
    points, _ = make_blobs(480, n_blobs)
    # Long blobs have second eigenvectors with large eigenvalues.
    points[:, 0] *= 5
    dense = embed(points, 6).astype(float)
    monkeypatch.setattr("skdeepcluster._clustering.graph.DENSE_ROWS", 100)
    sparse = embed(points, 6).astype(float)
    assert_allclose(sparse @ sparse.T, dense @ dense.T, atol=1e-4)


def test_long_line_is_cut_into_segments_in_bounded_time():
    """The leading eigenvalues of a line are too close for the sparse eigensolver."""
    line = np.arange(8000) + np.random.default_rng(0).uniform(-0.1, 0.1, 8000)
    labels = spectral_clusters(line[:, np.newaxis], 2)
    assert 1 <= np.count_nonzero(np.diff(labels)) < 80


@SIZES
def test_neighboring_blobs_are_separated(n):
    points, blobs = make_blobs(n, 4, distance=6)
    assert adjusted_rand_score(blobs, spectral_clusters(points, 4)) > 0.98


@SIZES
def test_clusters_are_independent_of_scale_and_order(n):
    points, blobs = make_blobs(n, 4)
    order = RNG.permutation(n)
    labels = spectral_clusters(1e4 * points[order], 4)
    assert adjusted_rand_score(blobs[order], labels) == 1
    assert adjusted_rand_score(blobs, spectral_clusters(1e-4 * points, 4)) == 1


@SIZES
def test_embedding_is_reproducible_and_keeps_global_generator(n):
    points, _ = make_noisy_moons(n)
    points = points.astype(np.float32)
    before = np.random.get_state()
    assert_array_equal(embed(points, 5), embed(points, 5))
    for old, new in zip(before, np.random.get_state(), strict=True):
        assert_array_equal(old, new)


@pytest.mark.parametrize("n", [2, 3, 12, 600])
@pytest.mark.parametrize("n_distinct", [1, 2, 600])
def test_few_points_and_duplicates_are_embedded(n, n_distinct):
    points = RNG.standard_normal((600, 3)).astype(np.float32)
    embed(points[np.arange(n) % n_distinct], 3)


@SIZES
def test_outlier_stays_in_graph(n):
    points, blobs = make_blobs(n, 2)
    points[0] += 1e3
    labels = spectral_clusters(points, 2)
    assert adjusted_rand_score(blobs[1:], labels[1:]) == 1
