"""FaissKMeans is as exact as scikit-learn's KMeans on rows that lie far from zero."""

import pickle

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score
from sklearn.metrics.pairwise import paired_distances

from skdeepcluster import FaissKMeans

N_CLUSTERS = 4
rng = np.random.default_rng(0)
CLASSES = rng.integers(N_CLUSTERS, size=200)
# Well separated clusters of unit variance.
PLANE = 15 * np.array([[0, 0], [0, 1], [1, 0], [2, 2]])[CLASSES]
PLANE = PLANE + rng.normal(size=PLANE.shape)
SECONDS = 1.76e9 + 600 * CLASSES[:, None] + rng.normal(0, 40, (200, 1))

ROWS = {
    "timestamps": SECONDS,
    "integer seconds": SECONDS.astype(np.int64),
    "nanoseconds": (1e9 * SECONDS).astype(np.int64),
    "unsigned": (2**40 + 100 * PLANE.clip(0)).astype(np.uint64),
    "UTM": PLANE + np.array([5e5, 5e6]),
    "UTM, float32": (PLANE + np.array([5e5, 5e6])).astype(np.float32),
    "one column of time": PLANE + np.array([1.76e9, 0]),
    "years": 1900 + 30 * CLASSES[:, None] + rng.integers(-3, 4, (200, 1)),
    "millikelvin": (293_000 + 20 * PLANE).round(),
    "negative": PLANE - 1e9,
    "small spread": 1e9 + 1e-3 * PLANE,
    "large": 1e30 + 1e17 * PLANE,
    "constant column": np.c_[PLANE, np.full(200, 1e9)],
    "near zero": PLANE,
    "bytes": (4 * PLANE + 100).clip(0, 255).astype(np.uint8),
}


def fit(X, **parameters):
    parameters = {"n_init": 5, "max_iter": 100, "random_state": 0} | parameters
    return FaissKMeans(N_CLUSTERS, **parameters).fit(X)


def relative_to_first_row(X, centers):
    """Return rows and centers in float64, near zero."""
    origin = X[0].astype(np.float64)
    return X.astype(np.float64) - origin, centers.astype(np.float64) - origin


@pytest.mark.parametrize("backend", ["faiss", "torch"])
@pytest.mark.parametrize("name", ROWS)
def test_results_match_scikit_learn(name, backend):
    X = ROWS[name]
    model = fit(X, backend=backend)
    reference = KMeans(N_CLUSTERS, n_init=5, random_state=0).fit(X)
    assert adjusted_rand_score(model.labels_, reference.labels_) == 1
    assert adjusted_rand_score(model.labels_, CLASSES) == 1
    rows, centers = relative_to_first_row(X, model.cluster_centers_)
    means = np.stack([rows[model.labels_ == i].mean(axis=0) for i in range(N_CLUSTERS)])
    # The last places of float64 at 1e9 are 1e-7.
    rounding = 2 * np.spacing(np.abs(X[0].astype(np.float64)).max())
    assert_allclose(centers, means, rtol=1e-5, atol=1e-6 * rows.std() + rounding)
    inertia = np.square(rows - means[model.labels_]).sum()
    assert model.inertia_ == pytest.approx(inertia, rel=1e-4)


@pytest.mark.parametrize("name", ROWS)
def test_methods_agree_with_attributes(name):
    X = ROWS[name]
    model = fit(X)
    assert_array_equal(model.predict(X), model.labels_)
    assert_array_equal(pickle.loads(pickle.dumps(model)).predict(X), model.labels_)
    assert model.score(X) == pytest.approx(-model.inertia_, rel=1e-6)
    rows, centers = relative_to_first_row(X, model.cluster_centers_)
    distances = model.transform(X)
    assert distances.dtype == np.float32
    for i, center in enumerate(centers):
        expected = paired_distances(rows, np.tile(center, (len(rows), 1)))
        assert_allclose(distances[:, i], expected, rtol=1e-5)


@pytest.mark.parametrize("policy", ["split", "farthest", "drop", "raise"])
@pytest.mark.parametrize("name", ["timestamps", "UTM, float32", "integer seconds"])
def test_initial_centers_have_the_units_of_the_rows(name, policy):
    X = ROWS[name]
    init = np.stack([X[CLASSES.tolist().index(i)] for i in range(N_CLUSTERS)])
    model = fit(X, init=init, empty_clusters=policy)
    assert_array_equal(model.labels_, CLASSES)
    with pytest.raises(ValueError, match=r"init.*row 1"):
        fit(X, init=np.where(np.arange(4)[:, None] == 1, 1e30, init))


@pytest.mark.parametrize("policy", ["split", "farthest"])
def test_empty_clusters_are_filled_far_from_zero(policy):
    # All initial centers but one are empty.
    init = np.full((N_CLUSTERS, 1), 1.76e9)
    model = fit(ROWS["timestamps"], init=init, empty_clusters=policy)
    assert_array_equal(np.unique(model.labels_), np.arange(N_CLUSTERS))


def test_shift_leaves_results_unchanged():
    """Integers are exact in float64 and, after the shift, in float32."""
    X = PLANE.round()
    model, shifted = fit(X), fit(X + 2.0**40)
    assert_array_equal(shifted.labels_, model.labels_)
    assert shifted.inertia_ == pytest.approx(model.inertia_, rel=1e-6)
    assert_array_equal(shifted.predict(X + 2.0**40), model.predict(X))


# Rows of two scales, which float32 does not hold at the same time.
TWO_SCALES = {
    "zeros for missing times": np.r_[SECONDS, np.zeros((20, 1))],
    "times of two years": np.r_[SECONDS, SECONDS + 3e7, SECONDS[:20] + 9e7],
    "far apart": 1.76e9 + 3e6 * CLASSES[:, None] + rng.normal(size=(200, 1)),
    "places in a country": PLANE[rng.integers(200, size=400)]
    + rng.choice([0, 3e5], (400, 1))
    + np.array([5e5, 5e6]),
}


@pytest.mark.parametrize("name", TWO_SCALES)
def test_small_clusters_far_from_each_other(name):
    X = TWO_SCALES[name]
    reference = KMeans(5, n_init=10, random_state=0).fit(X)
    init = reference.cluster_centers_
    model = FaissKMeans(5, init=init, empty_clusters="drop", tol=0, max_iter=300)
    model.fit(X)
    assert model.inertia_ <= 1.001 * reference.inertia_
    reference.set_params(init=init, n_init=1, tol=0).fit(X)
    assert_array_equal(model.labels_, reference.labels_)
    assert_allclose(model.cluster_centers_, reference.cluster_centers_, atol=1e-5)
    assert model.inertia_ == pytest.approx(reference.inertia_, rel=1e-6)
    assert_array_equal(model.predict(X), model.labels_)
    centers = model.cluster_centers_[model.labels_]
    distances = np.linalg.norm(X - centers, axis=1)
    assert_allclose(model.transform(X).min(axis=1), distances, rtol=1e-5, atol=1e-6)
    assert model.score(X) == pytest.approx(-model.inertia_)


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_data_frame_with_a_column_far_from_zero(library):
    frames = pytest.importorskip(library)
    values = {"time": SECONDS[:, 0].astype(np.int64), "x": PLANE[:, 0].astype("f4")}
    X = frames.DataFrame(values)
    model = fit(X)
    assert_array_equal(model.labels_, fit(ROWS["integer seconds"]).labels_)
    assert_array_equal(model.predict(X), model.labels_)


def test_centers_have_the_type_of_the_rows():
    for dtype, expected in [("f4", "f4"), ("f8", "f8"), ("i8", "f8"), ("u1", "f8")]:
        model = fit((PLANE + 50).clip(0).astype(dtype))
        assert model.cluster_centers_.dtype == expected


def test_directions_are_not_shifted():
    """Directions of rows far from zero are nearly the same."""
    X = PLANE + 1000
    model = fit(X, spherical=True, empty_clusters="drop")
    assert_allclose(np.linalg.norm(model.cluster_centers_, axis=1), 1, rtol=1e-6)
    assert_allclose(model.cluster_centers_, np.sqrt(0.5), rtol=0.05)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
def test_error_names_the_bad_row_far_from_zero(value):
    X = SECONDS.copy()
    X[7] = value
    with pytest.raises(ValueError, match=r"row 7 \(1 such rows\)"):
        fit(X)
    model = fit(SECONDS)
    for method in (model.predict, model.transform, model.score):
        with pytest.raises(ValueError, match=r"row 7 \(1 such rows\)"):
            method(X)


def test_single_row_far_from_zero():
    model = FaissKMeans(1).fit([[1.76e9, 5e6]])
    assert_array_equal(model.cluster_centers_, [[1.76e9, 5e6]])
    assert model.inertia_ == 0
