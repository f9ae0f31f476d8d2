"""Exact neighbors, and the shapes that their graph follows."""

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


@pytest.mark.parametrize(("n", "d", "k"), [(300, 5, 10), (40, 1, 3), (12, 3, 11)])
def test_neighbors_equal_sklearns(n, d, k):
    points = RNG.standard_normal((n, d)).astype(np.float32)
    # Without points to look up, scikit-learn too leaves each point itself out.
    expected, rows = NearestNeighbors(n_neighbors=k).fit(points).kneighbors()
    found, distances = nearest_neighbors(points, k)
    assert_allclose(distances, expected**2, atol=1e-5)
    assert (found == rows).mean() > 0.99  # all but ties by rounding


@pytest.mark.parametrize("k", [2, 3, 10])
def test_no_more_neighbors_than_other_points(k):
    points = RNG.standard_normal((3, 2)).astype(np.float32)
    found, distances = nearest_neighbors(points, k)
    assert_array_equal(np.sort(found), [[1, 2], [0, 2], [0, 1]])
    assert distances.shape == (3, 2)


@pytest.mark.parametrize("k", [1, 4, 19])
@pytest.mark.parametrize("n_distinct", [1, 2, 5])
def test_among_duplicates_a_point_is_not_its_own_neighbor(n_distinct, k):
    distinct = RNG.standard_normal((n_distinct, 3)).astype(np.float32)
    points = np.tile(distinct, (20, 1))[:20]
    found, distances = nearest_neighbors(points, k)
    assert found.shape == (20, k)
    assert ((found >= 0) & (found != np.arange(20)[:, None])).all()
    assert all(len(set(row)) == k for row in found.tolist())
    expected = NearestNeighbors(n_neighbors=k).fit(points).kneighbors()[0]
    assert (distances >= 0).all()
    assert_allclose(distances, expected**2, atol=1e-5)


# Numbers of points on either side of the choice of the eigensolver.
SIZES = pytest.mark.parametrize("n", [240, 1200])


def test_sizes_are_on_both_sides_of_the_choice_of_the_eigensolver():
    assert 240 < DENSE_ROWS < 1200


def moons(n):
    return make_moons(n, noise=0.04, random_state=0)


def rings(n):
    return make_circles(n, noise=0.03, factor=0.4, random_state=0)


def embed(points, n_components, n_neighbors=10):
    embedding = spectral_embedding(points, n_neighbors, n_components)
    assert embedding.dtype == np.float32
    assert embedding.shape == (len(points), min(n_components, len(points) - 1))
    assert_allclose(np.linalg.norm(embedding, axis=1), 1, rtol=1e-5)
    return embedding


def cut(points, k, **parameters):
    """Clusters of the neighbor graph."""
    kmeans = KMeans(k, n_init=10, random_state=0)
    return kmeans.fit_predict(embed(points.astype(np.float32), k, **parameters))


@SIZES
@pytest.mark.parametrize("make", [moons, rings])
def test_the_graph_follows_shapes_that_kmeans_cuts_through(make, n):
    points, shapes = make(n)
    assert adjusted_rand_score(shapes, cut(points, 2)) == 1
    direct = KMeans(2, n_init=10, random_state=0).fit_predict(points)
    assert adjusted_rand_score(shapes, direct) < 0.7


def blobs(n, k, distance=20, seed=0):
    """Far-off blobs, whose graph falls into `k` parts, and which is which."""
    truth = np.arange(n) % k
    noise = np.random.default_rng(seed).standard_normal((n, 12))
    return (distance * np.eye(12)[truth] + noise).astype(np.float32), truth


@SIZES
@pytest.mark.parametrize("k", [2, 4, 12])
def test_parts_without_an_edge_between_them_are_told_apart(n, k):
    for seed in range(5):
        points, truth = blobs(n, k, seed=seed)
        assert adjusted_rand_score(truth, cut(points, k)) == 1


@SIZES
def test_parts_differ_where_they_are_more_than_the_components(n):
    points, truth = blobs(n, 12)
    embedding = embed(points, 5)
    ends = np.array([embedding[truth == part] for part in range(12)])
    assert_allclose(ends, np.broadcast_to(ends[:, :1], ends.shape), atol=1e-5)
    cosines = ends[:, 0] @ ends[:, 0].T
    assert cosines[~np.eye(12, dtype=bool)].max() < 0.95


@pytest.mark.parametrize("n_parts", [1, 3, 5, 6])
def test_both_eigensolvers_span_the_same_space(monkeypatch, n_parts):
    points, _ = blobs(480, n_parts)
    points[:, 0] *= 5  # the parts are long, which makes their second vectors lead
    dense = embed(points, 6).astype(float)
    monkeypatch.setattr("skdeepcluster._clustering.graph.DENSE_ROWS", 100)
    sparse = embed(points, 6).astype(float)
    assert_allclose(sparse @ sparse.T, dense @ dense.T, atol=1e-4)


def test_a_long_line_is_cut_into_runs_in_bounded_time():
    """Its leading eigenvalues are too close for the eigensolver."""
    line = np.arange(8000) + np.random.default_rng(0).uniform(-0.1, 0.1, 8000)
    labels = cut(line[:, np.newaxis], 2)
    assert 1 <= np.count_nonzero(np.diff(labels)) < 80


@SIZES
def test_neighboring_blobs_are_told_apart(n):
    points, truth = blobs(n, 4, distance=6)
    assert adjusted_rand_score(truth, cut(points, 4)) > 0.98


@SIZES
def test_scale_and_order_of_the_points_do_not_count(n):
    points, truth = blobs(n, 4)
    order = RNG.permutation(n)
    assert adjusted_rand_score(truth[order], cut(1e4 * points[order], 4)) == 1
    assert adjusted_rand_score(truth, cut(1e-4 * points, 4)) == 1


@SIZES
def test_the_embedding_is_repeatable_and_leaves_the_global_generator(n):
    points, _ = moons(n)
    points = points.astype(np.float32)
    before = np.random.get_state()
    assert_array_equal(embed(points, 5), embed(points, 5))
    for old, new in zip(before, np.random.get_state(), strict=True):
        assert_array_equal(old, new)


@pytest.mark.parametrize("n", [2, 3, 12, 600])
@pytest.mark.parametrize("n_distinct", [1, 2, 600])
def test_few_points_and_duplicates(n, n_distinct):
    points = RNG.standard_normal((600, 3)).astype(np.float32)
    embed(points[np.arange(n) % n_distinct], 3)


@SIZES
def test_an_outlier_stays_in_the_graph(n):
    points, truth = blobs(n, 2)
    points[0] += 1e3
    assert adjusted_rand_score(truth[1:], cut(points, 2)[1:]) == 1
