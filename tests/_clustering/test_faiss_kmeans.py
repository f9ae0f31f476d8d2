"""FaissKMeans: the results of k-means, its parameters, its input and its errors."""

import pickle
import random
import re

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.cluster import KMeans
from sklearn.exceptions import NotFittedError
from sklearn.metrics import adjusted_rand_score
from sklearn.utils.validation import check_is_fitted

from skdeepcluster import DeepClusterEstimator, FaissKMeans

BACKENDS = ["faiss", "torch"]


# Results of k-means.


# From these centers, one of 30 clusters becomes empty. scikit-learn moves its center to
# the farthest row. No cluster of 5 or 200 becomes empty.
@pytest.mark.parametrize(
    ("n_clusters", "policy"), [(5, "split"), (30, "farthest"), (200, "split")]
)
def test_inertia_matches_sklearn(points, n_clusters, policy):
    init = points[:n_clusters]
    reference = KMeans(n_clusters, init=init, n_init=1, max_iter=25, tol=1e-4)
    reference.fit(points)
    model = FaissKMeans(n_clusters, init=init, empty_clusters=policy).fit(points)
    assert model.inertia_ <= 1.01 * reference.inertia_
    assert model.n_iter_ == reference.n_iter_
    assert adjusted_rand_score(model.labels_, reference.labels_) > 0.98


def test_inertia_with_empty_clusters_matches_sklearn(collapsed_points):
    inertia, reference_inertia = 0.0, 0.0
    for seed in range(5):
        rng = np.random.default_rng(seed)
        init = collapsed_points[rng.choice(len(collapsed_points), 50, replace=False)]
        model = FaissKMeans(50, init=init, random_state=seed)
        inertia += model.fit(collapsed_points).inertia_
        reference = KMeans(50, init=init, max_iter=25)
        reference_inertia += reference.fit(collapsed_points).inertia_
    assert inertia <= 1.01 * reference_inertia


def test_spherical_clusters_are_directions():
    rng = np.random.default_rng(0)
    axis = rng.integers(3, size=300)
    rows = np.eye(3)[axis] + rng.normal(scale=0.05, size=(300, 3))
    # The lengths of the rows are independent of their cluster.
    rows *= rng.uniform(1, 50, size=(300, 1))
    for backend in BACKENDS:
        model = FaissKMeans(
            3, spherical=True, n_init=5, random_state=0, backend=backend
        )
        model.fit(rows)
        assert adjusted_rand_score(axis, model.labels_) == 1
        assert_allclose(np.linalg.norm(model.cluster_centers_, axis=1), 1, rtol=1e-6)
        assert_array_equal(model.predict(rows), model.labels_)


# Fitted attributes and parameters.


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


def test_init_array_is_a_single_run(points):
    model = FaissKMeans(30, init=points[:30], n_init=9, verbose=0).fit(points)
    single_run = FaissKMeans(30, init=points[:30]).fit(points)
    assert model.inertia_ == single_run.inertia_


def test_init_array_holds_initial_centers():
    rows = np.array([[0.0], [1], [10], [11]])
    model = FaissKMeans(2, init=[[11], [0]], random_state=0).fit(rows)
    assert_array_equal(model.labels_, [1, 1, 0, 0])
    assert_array_equal(model.cluster_centers_, [[10.5], [0.5]])


def test_max_iter_and_tol_end_iterations(points):
    models = {
        (max_iter, tol): FaissKMeans(
            30, init=points[:30], max_iter=max_iter, tol=tol
        ).fit(points)
        for max_iter, tol in [(1, 0), (3, 0), (300, 0), (300, 1e-2), (300, 1e9)]
    }
    n_iter = {key: model.n_iter_ for key, model in models.items()}
    assert (n_iter[1, 0], n_iter[3, 0], n_iter[300, 1e9]) == (1, 3, 1)
    assert 3 < n_iter[300, 1e-2] < n_iter[300, 0] < 300
    # With tol=0 the run ends at a fixed point, which another iteration keeps.
    centers = models[300, 0].cluster_centers_
    model = FaissKMeans(30, init=centers, max_iter=1, tol=0).fit(points)
    assert_array_equal(model.cluster_centers_, centers)


@pytest.mark.filterwarnings("ignore:Number of distinct points")
def test_empty_clusters_policies():
    rows = np.repeat([[0.0], [1], [9]], 5, axis=0)
    # The last center is the nearest to no row.
    init = [[0.0], [9], [99]]
    split = FaissKMeans(3, init=init, empty_clusters="split", random_state=0).fit(rows)
    assert_array_equal(np.sort(split.cluster_centers_.ravel()), [0, 1, 9])
    drop = FaissKMeans(3, init=init, empty_clusters="drop").fit(rows)
    assert_array_equal(drop.cluster_centers_.ravel(), [0.5, 9])
    assert drop.n_empty_clusters_ == 1
    assert drop.transform(rows).shape == (15, 2)
    assert list(drop.get_feature_names_out()) == ["faisskmeans0", "faisskmeans1"]
    with pytest.raises(ValueError, match="1 of 3 clusters are empty"):
        FaissKMeans(3, init=init, empty_clusters="raise").fit(rows)
    model = FaissKMeans(8, random_state=0).fit(rows)
    assert len(model.cluster_centers_) == 3
    assert model.n_empty_clusters_ > 0


def test_verbose_prints_a_line_per_run(points, capfd):
    FaissKMeans(8, n_init=2, verbose=1, random_state=0).fit(points)
    out, err = capfd.readouterr()
    assert err == ""
    assert [line.split(":")[0] for line in out.splitlines()] == [
        "k-means run 1",
        "k-means run 2",
    ]


def test_no_output_by_default(capfd):
    """faiss would print warnings about few or many rows per cluster."""
    X = np.random.default_rng(0).normal(size=(5000, 4))
    for n_clusters, n_rows in [(5, 5), (4, 5000), (400, 500)]:
        FaissKMeans(n_clusters).fit(X[:n_rows]).predict(X)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("policy", ["split", "farthest"])
def test_random_state_makes_results_reproducible(collapsed_points, backend, policy):
    model = FaissKMeans(300, random_state=7, backend=backend, empty_clusters=policy)
    model.fit(collapsed_points)
    labels, centers = model.labels_, model.cluster_centers_
    model.fit(collapsed_points.copy())
    assert_array_equal(model.labels_, labels)
    assert model.cluster_centers_.tobytes() == centers.tobytes()
    model.set_params(random_state=8).fit(collapsed_points)
    assert (model.cluster_centers_ != centers).any()


@pytest.mark.parametrize("random_state", [None, 0])
def test_global_generators_are_unchanged(collapsed_points, random_state):
    def global_states():
        states = pickle.dumps((np.random.get_state(), random.getstate()))
        return states, torch.get_rng_state()

    before = global_states()
    model = FaissKMeans(300, random_state=random_state)
    model.fit(collapsed_points).predict(collapsed_points)
    after = global_states()
    assert before[0] == after[0]
    assert torch.equal(before[1], after[1])


# Input.


def test_input_of_any_type_gives_same_labels(points):
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
def test_data_frames(points, library):
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
def test_read_only_input_is_unchanged(points, backend):
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
def test_error_about_bad_value_names_row(value, message):
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
def test_clusters_of_tiny_rows_equal_clusters_of_rows(points, exponent, backend):
    """The squares of tiny values are 0 in float32."""
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
def test_predict_equals_labels_on_smallest_values(seed):
    """float32 rounds centers that lie between its smallest values."""
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


def test_largest_values_do_not_overflow(points):
    """Any warning would be an error."""
    model = FaissKMeans(3, init=np.full((3, 16), 1e18), tol=1e308).fit(points[:9])
    assert_array_equal(np.unique(model.labels_), [0, 1, 2])
    assert np.isfinite(model.cluster_centers_).all()


# Errors.


def test_error_about_bad_init_names_row(points):
    init = points[:3].astype(float)
    for value, message in [(1e300, "infinity"), (1e30, "too large"), (np.nan, "NaN")]:
        init[2, 1] = value
        with pytest.raises(ValueError, match=f"Input init contains .*{message}.*row 2"):
            FaissKMeans(3, init=init).fit(points)


def test_errors_name_parameter_and_value(points):
    with pytest.raises(ValueError, match=r"n_samples=5 should be >= n_clusters=8"):
        FaissKMeans().fit(points[:5])
    with pytest.raises(ValueError, match=r"init has shape \(3, 16\), .*\(8, 16\)"):
        FaissKMeans(init=points[:3]).fit(points)
    with pytest.raises(ValueError, match="init contains NaN"):
        FaissKMeans(1, init=[[np.nan] * 16]).fit(points)
    with pytest.raises(ValueError, match="device='nowhere'"):
        FaissKMeans(device="nowhere").fit(points)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n_clusters", 0),
        ("init", "best"),
        ("n_init", 0),
        ("max_iter", 0),
        ("tol", -1.0),
        ("empty_clusters", "keep"),
        ("backend", "numpy"),
    ],
)
def test_invalid_parameter_is_refused(points, name, value):
    with pytest.raises(ValueError, match=f"The '{name}' parameter of FaissKMeans"):
        FaissKMeans(**{name: value}).fit(points)


def test_failed_fit_sets_no_attributes():
    model = FaissKMeans(3, init=[[0.0], [9], [99]], empty_clusters="raise")
    with pytest.raises(ValueError, match="empty"):
        model.fit(np.repeat([[0.0], [1], [9]], 5, axis=0))
    assert not hasattr(model, "labels_")
    assert not hasattr(model, "cluster_centers_")


def test_failed_fit_leaves_model_unfitted(points):
    model = FaissKMeans(n_clusters=99)
    with pytest.raises(ValueError, match="n_samples=50"):
        model.fit(points[:50])
    with pytest.raises(NotFittedError):
        check_is_fitted(model)


@pytest.mark.parametrize("backend", BACKENDS)
def test_pickled_model_predicts_labels(points, backend):
    model = FaissKMeans(5, random_state=0, backend=backend).fit(points)
    loaded = pickle.loads(pickle.dumps(model))
    assert_array_equal(loaded.predict(points), model.labels_)


# FaissKMeans as the clusterer of DeepClusterEstimator.


@pytest.fixture(scope="module")
def images(digits_images):
    return digits_images[0][:200]


def quick_fit(images, **parameters):
    model = DeepClusterEstimator(
        n_clusters=5,
        n_pseudo_labels=20,
        max_iter=2,
        epochs_per_iter=1,
        random_state=0,
        **parameters,
    )
    return model.fit(images)


def history_without_times(model):
    return [
        {name: value for name, value in record.items() if "second" not in name}
        for record in model.history_
    ]


def test_default_clusterer_equals_kmeans(images):
    by_name, by_estimator = (
        quick_fit(images, clusterer=clusterer)
        for clusterer in ("kmeans", FaissKMeans())
    )
    assert_array_equal(by_estimator.labels_, by_name.labels_)
    assert history_without_times(by_estimator) == history_without_times(by_name)
    assert_array_equal(by_estimator.transform(images), by_name.transform(images))
    assert by_estimator.recipe_ == by_name.recipe_


def test_clusterer_sets_runs_and_iterations_of_kmeans(images, capfd):
    model = quick_fit(
        images, clusterer=FaissKMeans(n_init=3, max_iter=1, init="random", verbose=1)
    )
    pattern = r"k-means run (\d): inertia (\S+) after (\d+) iterations"
    runs = re.findall(pattern, capfd.readouterr().out)
    # The pixels are clustered, and the features of both rounds.
    assert [run for run, _, _ in runs] == ["1", "2", "3"] * 3
    assert {n_iter for _, _, n_iter in runs} == {"1"}
    inertia = np.array([float(inertia) for _, inertia, _ in runs]).reshape(3, 3)
    for record, best_inertia in zip(
        model.history_, inertia[1:].min(axis=1), strict=True
    ):
        assert record["inertia"] == pytest.approx(best_inertia, rel=1e-5)


def test_clusterer_sets_backend_of_kmeans(images):
    model = quick_fit(images, clusterer=FaissKMeans(backend="torch"))
    assert model.recipe_["kmeans_backend"] == "torch"
    assert quick_fit(images).recipe_["kmeans_backend"] != "torch"


def test_clusterer_sets_policy_for_empty_clusters(images):
    """The clusterer's policy replaces `empty_clusters` of the estimator."""
    repeated = np.repeat(images[:10], 10, axis=0)
    clusterer = FaissKMeans(empty_clusters="raise")
    with pytest.raises(ValueError, match=r"clusters are empty.*empty_clusters='split'"):
        quick_fit(repeated, clusterer=clusterer, empty_clusters="drop")
    # Without a warning about distinct points, which "split" would raise.
    clusterer = FaissKMeans(n_init=2, backend="torch", empty_clusters="drop")
    model = quick_fit(repeated, clusterer=clusterer, empty_clusters="raise")
    assert_array_equal(np.unique(model.labels_), np.arange(model.labels_.max() + 1))


@pytest.mark.parametrize(
    "params", [{"backend": "cupy"}, {"n_init": 0}, {"max_iter": -1}, {"tol": "x"}]
)
def test_parameters_of_the_clusterer_are_validated(images, params):
    (name,) = params
    with pytest.raises(ValueError, match=f"'{name}' parameter of FaissKMeans"):
        quick_fit(images, clusterer=FaissKMeans(**params))


def test_clusterer_with_init_array_is_refused(images):
    clusterer = FaissKMeans(init=np.zeros((20, 64)))
    with pytest.raises(ValueError, match=r"FaissKMeans\(init=\.\.\.\).*'k-means\+\+'"):
        quick_fit(images, clusterer=clusterer)
