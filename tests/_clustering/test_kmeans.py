"""FaissKMeans: the clusters of k-means, at the speed of faiss."""

import pickle
import random

import faiss
import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.cluster import KMeans
from sklearn.datasets import make_blobs
from sklearn.exceptions import NotFittedError
from sklearn.metrics import adjusted_rand_score
from sklearn.utils.validation import check_is_fitted
from torch._subclasses.fake_tensor import FakeTensorMode

from skdeepcluster import FaissKMeans
from skdeepcluster._clustering.kmeans import (
    assign,
    draw_plus_plus,
    kmeans,
    nearest_tensors,
    resolve_kmeans_backend,
)
from skdeepcluster._utils.distributed import SINGLE_PROCESS

BACKENDS = ["faiss", "torch"]


@pytest.fixture(scope="module")
def points():
    """Overlapping blobs, float32 (3000, 16)."""
    return make_blobs(3000, 16, centers=30, cluster_std=3, random_state=0)[0].astype(
        "f4"
    )


@pytest.fixture(scope="module")
def collapsed():
    """The hard case: of 2,000 rows in 16 dimensions 60 % are the same."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(2000, 16)).astype(np.float32)
    rows[rng.random(2000) < 0.6] = rows[0]
    return rows


# The search ------------------------------------------------------------------------


@pytest.mark.parametrize("spherical", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_assign_against_all_distances(points, backend, spherical):
    centers = points[:50]
    labels, distances = assign(points, centers, spherical=spherical, backend=backend)
    assert (labels.dtype, distances.dtype) == (np.int32, np.float32)
    exact = np.square(points[:, None].astype(float) - centers).sum(axis=2)
    chosen = exact[np.arange(len(points)), labels]
    assert_allclose(distances, chosen, rtol=1e-4, atol=1e-3)
    if spherical:
        assert_array_equal(labels, (points @ centers.T).argmax(axis=1))
    else:
        assert_allclose(chosen, exact.min(axis=1), rtol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_assign_far_from_the_origin(points, backend):
    """‖x‖² - 2xc + ‖c‖² keeps no digit of these distances in float32."""
    near = points.round()
    shift = np.float32(2**15)  # as integers, both are exact
    expected = assign(near, near[:50], backend=backend)
    far = assign(near + shift, near[:50] + shift, backend=backend)
    assert np.mean(far[0] == expected[0]) > 0.99  # integers tie here and there
    assert_allclose(far[1], expected[1], rtol=1e-4, atol=0.01)


@pytest.mark.usefixtures("simulated_cuda")
@pytest.mark.parametrize("spherical", [False, True])
def test_torch_search_stays_on_its_device(spherical):
    """Under fake tensors a mix of devices or a wait for the device is an error."""
    with FakeTensorMode():
        rows = torch.empty(10, 4, device="cuda")
        labels, distances = nearest_tensors(rows, rows[:3], spherical)
    assert labels.device.type == distances.device.type == "cuda"
    assert labels.shape == distances.shape == (10,)


def test_backend_is_resolved(monkeypatch):
    cpu, cuda, mps = map(torch.device, ("cpu", "cuda", "mps"))
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 0)
    assert resolve_kmeans_backend("auto", cpu) == "faiss"
    assert resolve_kmeans_backend("auto", cuda) == "torch"
    assert resolve_kmeans_backend("faiss", cuda) == "faiss"
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 1)
    assert resolve_kmeans_backend("auto", cpu) == "faiss"
    assert resolve_kmeans_backend("auto", cuda) == "faiss-gpu"
    assert resolve_kmeans_backend("faiss", cuda) == "faiss-gpu"
    assert resolve_kmeans_backend("auto", mps) == "torch"
    for device in (cpu, cuda, mps):
        assert resolve_kmeans_backend("torch", device) == "torch"
        resolved = resolve_kmeans_backend("auto", device)
        assert resolve_kmeans_backend(resolved, device) == resolved


# The starts ------------------------------------------------------------------------


def test_starts_follow_the_law_of_d_squared():
    """Ordered triples are drawn as often as by the textbook's k-means++."""
    line = np.array([[0.0], [1], [3], [7]], dtype=np.float32)
    square = np.square(line - line.T).astype(float)
    expected = np.zeros((4, 4, 4))
    for i in range(4):
        first = square[i] / square[i].sum()
        for j in np.flatnonzero(first):
            both = np.minimum(square[i], square[j])
            expected[i, j] = first[j] / 4 * both / both.sum()

    def nearest(centers):
        return None, np.square(line - centers.T).min(axis=1)

    seen, rng = np.zeros((4, 4, 4)), np.random.default_rng(0)
    for _ in range(4000):
        starts = draw_plus_plus(
            line, 3, False, nearest, rng, SINGLE_PROCESS.shard(4)
        ).ravel()
        seen[tuple(np.searchsorted(line.ravel(), starts))] += 1
    error = np.sqrt(expected * (1 - expected) / 4000)
    assert (np.abs(seen / 4000 - expected) <= 4.5 * error).all()
    assert seen[expected == 0].sum() == 0


def test_starts_are_as_good_as_those_of_faiss(collapsed):
    ours, theirs = [], []
    for seed in range(5):
        ours.append(kmeans(collapsed, 50, seed=seed, max_iter=1).inertia)
        start = faiss.Kmeans(
            16,
            50,
            seed=seed,
            niter=1,
            init_method=faiss.ClusteringInitMethod_KMEANS_PLUS_PLUS,
        )
        start.max_points_per_centroid, start.min_points_per_centroid = 10**6, 1
        start.train(collapsed)
        theirs.append(assign(collapsed, start.centroids)[1].sum())
    assert np.mean(ours) < 1.05 * np.mean(theirs)


def test_more_starts_than_distinct_rows():
    rows = np.repeat(np.eye(2, dtype=np.float32), 10, axis=0)
    rng, alone = np.random.default_rng(0), SINGLE_PROCESS.shard(20)
    starts = draw_plus_plus(rows, 9, False, lambda c: assign(rows, c), rng, alone)
    assert starts.shape == (9, 2)


# K-means ---------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=50)
@given(
    rows=hnp.arrays(
        np.float32,
        st.tuples(st.integers(12, 60), st.integers(1, 5)),
        elements=st.floats(-100, 100, width=32),
    ),
    k=st.integers(1, 12),
    spherical=st.booleans(),
    seed=st.integers(0, 2**31 - 1),
)
@pytest.mark.filterwarnings("ignore:Number of distinct points")
def test_labels_are_those_of_the_centers(backend, rows, k, spherical, seed):
    options = {"spherical": spherical, "backend": backend}
    result = kmeans(rows, k, seed=seed, max_iter=5, **options)
    labels, distances = assign(rows, result.centers, **options)
    assert_array_equal(result.labels, labels)
    assert result.labels.dtype == np.int32
    assert result.centers.dtype == np.float32
    assert_array_equal(np.unique(labels), np.arange(len(result.centers)))
    assert result.inertia == distances.sum(dtype=float)
    assert result.n_empty_after == 0


@pytest.mark.parametrize("k", [3, 30, 200])
def test_same_start_same_clusters_on_all_backends(points, k):
    options = {"init": points[:k], "seed": 0, "tol": 0, "max_iter": 10}
    by_faiss, by_torch = (kmeans(points, k, backend=b, **options) for b in BACKENDS)
    assert by_faiss.n_iter == by_torch.n_iter
    assert np.mean(by_faiss.labels == by_torch.labels) > 0.999
    assert_allclose(by_faiss.centers, by_torch.centers, rtol=1e-3, atol=0.02)
    assert_allclose(by_faiss.inertia, by_torch.inertia, rtol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_same_seed_same_clusters_on_all_backends(points, backend):
    expected = kmeans(points, 30, seed=5, spherical=False)
    got = kmeans(points, 30, seed=5, backend=backend)
    assert np.mean(expected.labels == got.labels) > 0.99


# From this start one of 30 clusters gets empty, which scikit-learn moves to the
# farthest row; none of 5 or 200 does.
@pytest.mark.parametrize(
    ("k", "policy"), [(5, "split"), (30, "farthest"), (200, "split")]
)
def test_objective_against_scikit_learn(points, k, policy):
    init = points[:k]
    theirs = KMeans(k, init=init, n_init=1, max_iter=25, tol=1e-4).fit(points)
    ours = FaissKMeans(k, init=init, empty_clusters=policy).fit(points)
    assert ours.inertia_ <= 1.01 * theirs.inertia_
    assert ours.n_iter_ == theirs.n_iter_
    assert adjusted_rand_score(ours.labels_, theirs.labels_) > 0.98


def test_objective_with_empty_clusters_against_scikit_learn(collapsed):
    ours, theirs = [], []
    for seed in range(5):
        rows = np.random.default_rng(seed).choice(len(collapsed), 50, replace=False)
        init = collapsed[rows]
        ours.append(FaissKMeans(50, init=init, random_state=seed).fit(collapsed))
        theirs.append(KMeans(50, init=init, max_iter=25).fit(collapsed))
    assert sum(m.inertia_ for m in ours) <= 1.01 * sum(m.inertia_ for m in theirs)


def test_iterations_of_faiss(points):
    """As many iterations give the centers that faiss.Kmeans gives."""
    theirs = faiss.Kmeans(16, 5, niter=7, seed=1, max_points_per_centroid=10**6)
    theirs.train(points, init_centroids=points[:5])
    ours = kmeans(points, 5, init=points[:5], max_iter=7, tol=0, seed=0)
    assert_allclose(ours.centers, theirs.centroids, atol=1e-4)


@pytest.mark.parametrize("policy", ["split", "farthest"])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("init", ["k-means++", "random"])
def test_collapsed_features(collapsed, policy, backend, init):
    result = kmeans(
        collapsed, 300, init=init, seed=0, empty_clusters=policy, backend=backend
    )
    sizes = np.bincount(result.labels, minlength=300)
    assert sizes.min() >= 1
    assert sizes.max() >= 1100  # the rows that are the same stay together
    bare = faiss.Kmeans(16, 300, seed=0, min_points_per_centroid=1)
    bare.train(collapsed)
    assert result.inertia < assign(collapsed, bare.centroids)[1].sum()


def test_all_rows_are_used():
    """The center is the mean of all rows: faiss would draw 256 of them by itself."""
    rows = np.arange(2000, dtype=np.float32)[:, None]
    assert kmeans(rows, 1, seed=0).centers[0, 0] == 999.5


def test_as_many_clusters_as_rows(points):
    rows = points[:40]
    result = kmeans(rows, 40, seed=0)
    assert_array_equal(np.sort(result.labels), np.arange(40))
    assert result.inertia < 1e-2


def test_spherical_clusters_directions():
    rng = np.random.default_rng(0)
    axis = rng.integers(3, size=300)
    rows = np.eye(3)[axis] + rng.normal(scale=0.05, size=(300, 3))
    rows *= rng.uniform(1, 50, size=(300, 1))  # lengths say nothing
    for backend in BACKENDS:
        model = FaissKMeans(
            3, spherical=True, n_init=5, random_state=0, backend=backend
        )
        model.fit(rows)
        assert adjusted_rand_score(axis, model.labels_) == 1
        assert_allclose(np.linalg.norm(model.cluster_centers_, axis=1), 1, rtol=1e-6)
        assert_array_equal(model.predict(rows), model.labels_)


# The estimator, parameter by parameter ---------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_fitted_attributes(points, backend):
    model = FaissKMeans(30, random_state=0, backend=backend).fit(points)
    assert_array_equal(model.predict(points), model.labels_)
    assert model.labels_.dtype == np.int32
    assert model.cluster_centers_.shape == (30, 16)
    assert model.cluster_centers_.dtype == np.float32
    assert 1 <= model.n_iter_ <= 25
    assert model.n_empty_clusters_ == 0
    assert model.score(points) == pytest.approx(-model.inertia_)
    distances = model.transform(points)
    assert distances.dtype == np.float32
    assert_allclose(np.square(distances.min(axis=1)).sum(), model.inertia_, rtol=1e-5)
    assert_array_equal(model.fit_predict(points), model.labels_)


def test_n_init_keeps_the_best(points):
    runs = [kmeans(points, 30, n_init=n, seed=0).inertia for n in (1, 4)]
    assert runs[1] < runs[0]
    # An array is one start.
    one = FaissKMeans(30, init=points[:30], n_init=9, verbose=0).fit(points)
    assert one.inertia_ == FaissKMeans(30, init=points[:30]).fit(points).inertia_


def test_init_array_is_where_it_starts():
    rows = np.array([[0.0], [1], [10], [11]])
    model = FaissKMeans(2, init=[[11], [0]], random_state=0).fit(rows)
    assert_array_equal(model.labels_, [1, 1, 0, 0])
    assert_array_equal(model.cluster_centers_, [[10.5], [0.5]])


def test_max_iter_and_tol(points):
    fits = {
        (n, tol): FaissKMeans(30, init=points[:30], max_iter=n, tol=tol).fit(points)
        for n, tol in [(1, 0), (3, 0), (300, 0), (300, 1e-2), (300, 1e9)]
    }
    n_iter = {key: model.n_iter_ for key, model in fits.items()}
    assert (n_iter[1, 0], n_iter[3, 0], n_iter[300, 1e9]) == (1, 3, 1)
    assert 3 < n_iter[300, 1e-2] < n_iter[300, 0] < 300
    # With tol=0 the end is a fixed point: one more iteration changes nothing.
    end = fits[300, 0]
    again = FaissKMeans(30, init=end.cluster_centers_, max_iter=1, tol=0).fit(points)
    assert_array_equal(again.cluster_centers_, end.cluster_centers_)


@pytest.mark.filterwarnings("ignore:Number of distinct points")
def test_empty_clusters():
    rows = np.repeat([[0.0], [1], [9]], 5, axis=0)
    far = [[0.0], [9], [99]]
    split = FaissKMeans(3, init=far, empty_clusters="split", random_state=0).fit(rows)
    assert_array_equal(np.sort(split.cluster_centers_.ravel()), [0, 1, 9])
    drop = FaissKMeans(3, init=far, empty_clusters="drop").fit(rows)
    assert_array_equal(drop.cluster_centers_.ravel(), [0.5, 9])
    assert drop.n_empty_clusters_ == 1
    assert drop.transform(rows).shape == (15, 2)
    assert list(drop.get_feature_names_out()) == ["faisskmeans0", "faisskmeans1"]
    with pytest.raises(ValueError, match="1 of 3 clusters are empty"):
        FaissKMeans(3, init=far, empty_clusters="raise").fit(rows)
    few = FaissKMeans(8, random_state=0).fit(rows)
    assert len(few.cluster_centers_) == 3
    assert few.n_empty_clusters_ > 0


def test_verbose_is_one_line_a_run(points, capfd):
    FaissKMeans(8, n_init=2, verbose=1, random_state=0).fit(points)
    out, err = capfd.readouterr()
    assert err == ""
    assert [line.split(":")[0] for line in out.splitlines()] == [
        "k-means run 1",
        "k-means run 2",
    ]


def test_no_output_by_default(capfd):
    """Neither for few rows a cluster nor for many does faiss's C++ print a line."""
    X = np.random.default_rng(0).normal(size=(5000, 4))
    for k, n in [(5, 5), (4, 5000), (400, 500)]:
        FaissKMeans(k).fit(X[:n]).predict(X)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("policy", ["split", "farthest"])
def test_same_seed_same_bits(collapsed, backend, policy):
    model = FaissKMeans(300, random_state=7, backend=backend, empty_clusters=policy)
    first = model.fit(collapsed)
    labels, centers = first.labels_, first.cluster_centers_
    model.fit(collapsed.copy())
    assert_array_equal(model.labels_, labels)
    assert model.cluster_centers_.tobytes() == centers.tobytes()
    other = model.set_params(random_state=8).fit(collapsed)
    assert (other.cluster_centers_ != centers).any()


@pytest.mark.parametrize("random_state", [None, 0])
def test_global_generators_stay_as_they_are(collapsed, random_state):
    def state():
        return pickle.dumps(
            (np.random.get_state(), random.getstate())
        ), torch.get_rng_state()

    before = state()
    FaissKMeans(300, random_state=random_state).fit(collapsed).predict(collapsed)
    after = state()
    assert before[0] == after[0]
    assert torch.equal(before[1], after[1])


# Input -----------------------------------------------------------------------------


def test_input_types(points):
    rows = points[:200].round()
    expected = FaissKMeans(5, random_state=0).fit(rows)
    inputs = [
        rows.astype(np.float64),
        rows.astype(np.int64),
        np.asfortranarray(rows),
        rows.tolist(),
    ]
    for X in inputs:
        model = FaissKMeans(5, random_state=0).fit(X)
        assert_array_equal(model.labels_, expected.labels_)
        assert_array_equal(model.predict(X), expected.labels_)


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_frames(points, library):
    frames = pytest.importorskip(library)
    rows, names = points[:200].round(), [f"x{i}" for i in range(16)]
    X = frames.DataFrame(dict(zip(names, rows.T, strict=True)))
    model = FaissKMeans(5, random_state=0).fit(X)
    labels = FaissKMeans(5, random_state=0).fit_predict(rows)
    assert_array_equal(model.labels_, labels)
    assert_array_equal(model.predict(X), labels)
    assert list(model.feature_names_in_) == names
    distances = model.set_output(transform=library).transform(X)
    assert isinstance(distances, frames.DataFrame)
    assert list(distances.columns) == [f"faisskmeans{i}" for i in range(5)]


@pytest.mark.parametrize("backend", BACKENDS)
def test_input_is_not_changed(points, backend):
    rows = points[:100].copy()
    rows.flags.writeable = False
    model = FaissKMeans(5, backend=backend, spherical=True, init=rows[:5]).fit(rows)
    model.transform(rows)
    assert_array_equal(rows, points[:100])


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.nan, "Input X contains NaN in row 3 "),
        (np.inf, "Input X contains infinity or a value too large in row 3 "),
        (1e300, "infinity or a value too large in row 3 .*scale X"),
        (1e30, "infinity or a value too large in row 3 .*below about 1e18"),
    ],
)
def test_bad_values_name_their_row(value, message):
    X = np.zeros((10, 2))
    X[3, 1] = value
    with pytest.raises(ValueError, match=message):
        FaissKMeans(2).fit(X)
    model = FaissKMeans(2, random_state=0).fit(np.eye(2))
    for method in (model.predict, model.transform, model.score):
        with pytest.raises(ValueError, match=message):
            method(X)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("exponent", [-40, -90, -120])
def test_tiny_rows_are_clustered_like_others(points, exponent, backend):
    """The squares of their values are 0 in float32."""
    unit = np.float32(2.0**exponent)
    rows = points[:300]
    expected = FaissKMeans(9, backend=backend, init=rows[:9]).fit(rows)
    model = FaissKMeans(9, backend=backend, init=rows[:9] * unit).fit(rows * unit)
    assert_array_equal(model.labels_, expected.labels_)
    assert_array_equal(model.predict(rows * unit), expected.labels_)
    assert_allclose(model.cluster_centers_, expected.cluster_centers_ * unit, rtol=1e-4)
    assert_allclose(model.inertia_, expected.inertia_ * float(unit) ** 2, rtol=1e-4)
    assert_allclose(model.score(rows * unit), -model.inertia_)
    distances = expected.transform(rows) * unit
    assert_allclose(model.transform(rows * unit), distances, rtol=1e-3)
    with pytest.raises(ValueError, match="too large in row 0 "):
        model.predict(np.float32(1e15) * rows)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("seed", range(5))
def test_labels_of_the_smallest_values_are_those_of_their_centers(seed):
    """Centers between them are rounded to multiples of the smallest float32."""
    rng = np.random.default_rng(seed)
    X = rng.integers(0, 9, (40, 2)) * np.finfo(np.float32).smallest_subnormal
    model = FaissKMeans(3, random_state=0).fit(X)
    assert_array_equal(model.predict(X), model.labels_)
    assert len(np.unique(model.labels_)) == 3


def test_spherical_centers_of_tiny_rows_have_unit_length(points):
    rows = points[:100] * np.float32(1e-12)
    model = FaissKMeans(3, spherical=True, random_state=0).fit(rows)
    assert_allclose(np.linalg.norm(model.cluster_centers_, axis=1), 1, rtol=1e-6)
    assert_allclose(model.transform(rows), 1, rtol=1e-6)


def test_the_largest_values_do_not_overflow(points):
    """A warning is an error."""
    model = FaissKMeans(3, init=np.full((3, 16), 1e18), tol=1e308).fit(points[:9])
    assert_array_equal(np.unique(model.labels_), [0, 1, 2])
    assert np.isfinite(model.cluster_centers_).all()


def test_init_is_checked_like_rows(points):
    init = points[:3].astype(float)
    for value, message in [(1e300, "infinity"), (1e30, "too large"), (np.nan, "NaN")]:
        init[2, 1] = value
        with pytest.raises(ValueError, match=f"Input init contains .*{message}.*row 2"):
            FaissKMeans(3, init=init).fit(points)


def test_errors_say_what_is_wrong(points):
    with pytest.raises(ValueError, match=r"n_samples=5 should be >= n_clusters=8"):
        FaissKMeans().fit(points[:5])
    with pytest.raises(ValueError, match=r"init has shape \(3, 16\), .*\(8, 16\)"):
        FaissKMeans(init=points[:3]).fit(points)
    with pytest.raises(ValueError, match="init contains NaN"):
        FaissKMeans(1, init=[[np.nan] * 16]).fit(points)
    with pytest.raises(ValueError, match="device='nowhere'"):
        FaissKMeans(device="nowhere").fit(points)
    for wrong in (
        {"n_clusters": 0},
        {"init": "best"},
        {"n_init": 0},
        {"max_iter": 0},
        {"tol": -1.0},
        {"empty_clusters": "keep"},
        {"backend": "numpy"},
    ):
        name = next(iter(wrong))
        with pytest.raises(ValueError, match=f"The '{name}' parameter of FaissKMeans"):
            FaissKMeans(**wrong).fit(points)


def test_nothing_half_fitted_is_left():
    model = FaissKMeans(3, init=[[0.0], [9], [99]], empty_clusters="raise")
    with pytest.raises(ValueError, match="empty"):
        model.fit(np.repeat([[0.0], [1], [9]], 5, axis=0))
    assert not hasattr(model, "labels_")
    assert not hasattr(model, "cluster_centers_")


@pytest.mark.parametrize("backend", BACKENDS)
def test_pickle(points, backend):
    model = FaissKMeans(5, random_state=0, backend=backend).fit(points)
    again = pickle.loads(pickle.dumps(model))
    assert_array_equal(again.predict(points), model.labels_)


def test_a_failed_fit_leaves_it_unfitted(points):
    model = FaissKMeans(n_clusters=99)
    with pytest.raises(ValueError, match="n_samples=50"):
        model.fit(points[:50])
    with pytest.raises(NotFittedError):
        check_is_fitted(model)
