"""K-means: its starts, its iterations and its results on both backends."""

from types import SimpleNamespace

import faiss
import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from skdeepcluster._clustering.kmeans import KMeansOptions, draw_plus_plus, kmeans
from skdeepcluster._clustering.nearest_centers import assign, make_search
from skdeepcluster._utils.distributed import Sharded

BACKENDS = ["faiss", "torch"]


def run_kmeans(points, n_clusters, seed=0, **options):
    """Cluster points of a single process."""
    return kmeans(Sharded.whole(points), n_clusters, KMeansOptions(**options), seed)


def test_plus_plus_draws_follow_squared_distances():
    """Ordered triples are drawn as often as by the textbook's k-means++."""
    line = np.array([[0.0], [1], [3], [7]], dtype=np.float32)
    squares = np.square(line - line.T).astype(float)
    expected = np.zeros((4, 4, 4))
    for i in range(4):
        second = squares[i] / squares[i].sum()
        for j in np.flatnonzero(second):
            minimum = np.minimum(squares[i], squares[j])
            expected[i, j] = second[j] / 4 * minimum / minimum.sum()

    def nearest(centers):
        return None, np.square(line - centers.T).min(axis=1)

    search = SimpleNamespace(nearest=nearest)
    counts, rng = np.zeros((4, 4, 4)), np.random.default_rng(0)
    for _ in range(4000):
        starts = draw_plus_plus(Sharded.whole(line), 3, False, search, rng).ravel()
        counts[tuple(np.searchsorted(line.ravel(), starts))] += 1
    error = np.sqrt(expected * (1 - expected) / 4000)
    assert (np.abs(counts / 4000 - expected) <= 4.5 * error).all()
    assert counts[expected == 0].sum() == 0


def test_plus_plus_starts_match_faiss(collapsed_points):
    inertias, faiss_inertias = [], []
    for seed in range(5):
        result = run_kmeans(collapsed_points, 50, seed=seed, max_iter=1)
        inertias.append(result.inertia)
        reference = faiss.Kmeans(
            16,
            50,
            seed=seed,
            niter=1,
            init_method=faiss.ClusteringInitMethod_KMEANS_PLUS_PLUS,
        )
        # faiss would sample the rows otherwise.
        reference.max_points_per_centroid = 10**6
        reference.min_points_per_centroid = 1
        reference.train(collapsed_points)
        faiss_inertias.append(assign(collapsed_points, reference.centroids)[1].sum())
    assert np.mean(inertias) < 1.05 * np.mean(faiss_inertias)


def test_plus_plus_repeats_starts_if_distinct_rows_run_out():
    rows = np.repeat(np.eye(2, dtype=np.float32), 10, axis=0)
    search = make_search(rows, False, "faiss", torch.device("cpu"))
    rng = np.random.default_rng(0)
    starts = draw_plus_plus(Sharded.whole(rows), 9, False, search, rng)
    assert starts.shape == (9, 2)


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=50)
@given(
    rows=hnp.arrays(
        np.float32,
        st.tuples(st.integers(12, 60), st.integers(1, 5)),
        elements=st.floats(-100, 100, width=32),
    ),
    n_clusters=st.integers(1, 12),
    spherical=st.booleans(),
    seed=st.integers(0, 2**31 - 1),
)
def test_labels_are_nearest_centers(backend, rows, n_clusters, spherical, seed):
    result = run_kmeans(
        rows, n_clusters, seed=seed, max_iter=5, spherical=spherical, backend=backend
    )
    labels, distances = assign(
        rows, result.centers, spherical=spherical, backend=backend
    )
    assert_array_equal(result.labels, labels)
    assert result.labels.dtype == np.int32
    assert result.centers.dtype == np.float32
    assert_array_equal(np.unique(labels), np.arange(len(result.centers)))
    assert result.inertia == distances.sum(dtype=float)
    assert result.n_empty_after == 0


@pytest.mark.parametrize("n_clusters", [3, 30, 200])
def test_backends_agree_from_same_centers(points, n_clusters):
    by_faiss, by_torch = (
        run_kmeans(
            points,
            n_clusters,
            init=points[:n_clusters],
            tol=0,
            max_iter=10,
            backend=backend,
        )
        for backend in BACKENDS
    )
    assert by_faiss.n_iter == by_torch.n_iter
    assert np.mean(by_faiss.labels == by_torch.labels) > 0.999
    assert_allclose(by_faiss.centers, by_torch.centers, rtol=1e-3, atol=0.02)
    assert_allclose(by_faiss.inertia, by_torch.inertia, rtol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_backends_agree_from_same_seed(points, backend):
    expected = run_kmeans(points, 30, seed=5, spherical=False)
    result = run_kmeans(points, 30, seed=5, backend=backend)
    assert np.mean(expected.labels == result.labels) > 0.99


def test_iterations_equal_faiss(points):
    """faiss.Kmeans returns the same centers after the same number of iterations."""
    reference = faiss.Kmeans(16, 5, niter=7, seed=1, max_points_per_centroid=10**6)
    reference.train(points, init_centroids=points[:5])
    result = run_kmeans(points, 5, init=points[:5], max_iter=7, tol=0)
    assert_allclose(result.centers, reference.centroids, atol=1e-4)


@pytest.mark.parametrize("policy", ["split", "farthest"])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("init", ["k-means++", "random"])
def test_collapsed_points_fill_all_clusters(collapsed_points, policy, backend, init):
    result = run_kmeans(
        collapsed_points, 300, init=init, empty_clusters=policy, backend=backend
    )
    sizes = np.bincount(result.labels, minlength=300)
    assert sizes.min() >= 1
    # Equal rows stay in one cluster.
    assert sizes.max() >= 1100
    reference = faiss.Kmeans(16, 300, seed=0, min_points_per_centroid=1)
    reference.train(collapsed_points)
    assert result.inertia < assign(collapsed_points, reference.centroids)[1].sum()


def test_all_rows_are_used():
    """The center is the mean of all rows. faiss.Kmeans would sample 256 rows."""
    rows = np.arange(2000, dtype=np.float32)[:, None]
    assert run_kmeans(rows, 1).centers[0, 0] == 999.5


def test_as_many_clusters_as_rows(points):
    result = run_kmeans(points[:40], 40)
    assert_array_equal(np.sort(result.labels), np.arange(40))
    assert result.inertia < 1e-2


def test_n_init_lowers_inertia(points):
    single_run, best_run = (
        run_kmeans(points, 30, n_init=n_init).inertia for n_init in (1, 4)
    )
    assert best_run < single_run
