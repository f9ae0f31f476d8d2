"""The search that screens centers in bfloat16, against exact distances and faiss."""

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from skdeepcluster import FaissKMeans
from skdeepcluster._clustering.nearest_centers import (
    FaissSearch,
    ScreenedSearch,
    TorchSearch,
    assign,
    make_search,
)
from skdeepcluster._clustering.screening import ScreenedCenters
from skdeepcluster._utils.device import multiplies_bfloat16
from skdeepcluster._utils.threads import limit_threads

CPU = torch.device("cpu")
N, D, K = 2000, 64, 150


def exact_costs(points, centers, spherical):
    """Return half squared distances, or negative products, float64 (n, k)."""
    points, centers = points.astype(float), centers.astype(float)
    if spherical:
        return -np.array([(row * centers).sum(axis=1) for row in points])
    return np.array([np.square(row - centers).sum(axis=1) for row in points]) / 2


def check_nearest(points, centers, labels, spherical):
    """Check that labels are the nearest centers, of equal ones the first."""
    costs = exact_costs(points, centers, spherical)
    # Float64 rounds the sums.
    sizes = np.square(np.linalg.norm(points.astype(float), axis=1))
    sizes += np.square(np.linalg.norm(centers.astype(float), axis=1)).max()
    limits = costs.min(axis=1) + 1e-12 * sizes
    assert (costs[np.arange(len(points)), labels] <= limits).all()
    # No center before the label is as near.
    is_before = np.arange(len(centers)) < labels[:, None]
    is_equal = costs == costs.min(axis=1, keepdims=True)
    assert not (is_equal & is_before).any()


def make_inputs(name):
    """Return points and centers, float32 (N, D) and (K or 2 K, D)."""
    rng = np.random.default_rng(0)
    points = rng.standard_normal((N, D)).astype(np.float32)
    centers = points[:K].copy()
    if name == "clusters":
        points = (3 * centers[rng.integers(K, size=N)] + points).astype(np.float32)
        centers = points[:K].copy()
    elif name == "near ties":
        centers[1::2] = centers[::2] + 1e-6 * centers[1::2]
    elif name == "duplicates":
        centers[K // 2 :] = centers[: K // 2]
    elif name == "equal points":
        points[:] = points[0]
    elif name == "equal centers":
        centers[:] = centers[0]
    elif name == "integers":
        points, centers = points.round(), centers.round()
    elif name == "exact in bfloat16":
        # Integers up to 256 with mean zero. Their squares have more than 8 bits.
        near = np.clip(60 * points[: K // 2], -200, 200).round()
        centers = np.concatenate([near, near + centers[: len(near)].round()])
        centers = np.concatenate([centers, -centers])
        points = near[np.arange(N) % len(near)] + points.round()
    elif name == "outlier":
        centers[7] *= 1e4
    elif name == "far from zero":
        points, centers = points + np.float32(2**12), centers + np.float32(2**12)
    elif name in ("huge", "small", "tiny"):
        scale = np.float32({"huge": 1e15, "small": 1e-12, "tiny": 1e-20}[name])
        points, centers = points * scale, centers * scale
    return points, centers


INPUTS = [
    "random",
    "clusters",
    "near ties",
    "duplicates",
    "equal points",
    "equal centers",
    "integers",
    "exact in bfloat16",
    "outlier",
    "far from zero",
    "huge",
    "small",
    "tiny",
]


@pytest.mark.parametrize("spherical", [False, True])
@pytest.mark.parametrize("name", INPUTS)
def test_labels_are_the_nearest_centers(name, spherical):
    points, centers = make_inputs(name)
    labels, distances = ScreenedSearch(points, spherical).nearest(centers)
    assert (labels.dtype, distances.dtype) == (np.int32, np.float32)
    check_nearest(points, centers, labels, spherical)
    differences = points.astype(float) - centers[labels]
    expected = np.einsum("ij,ij->i", differences, differences)
    # The smallest number of float32 is 1e-45.
    assert_allclose(distances, expected, rtol=1e-5, atol=1e-44)


@pytest.mark.parametrize("spherical", [False, True])
@pytest.mark.parametrize("name", INPUTS)
def test_labels_equal_faiss_where_float32_decides(name, spherical):
    points, centers = make_inputs(name)
    labels, _ = ScreenedSearch(points, spherical).nearest(centers)
    expected, _ = FaissSearch(points, spherical, None).nearest(centers)
    costs = exact_costs(points, centers, spherical)
    rows = np.arange(N)
    lost = costs[rows, expected] - costs[rows, labels]
    # The error of a sum of float32, by the largest distance from the mean or from zero.
    origin = 0 if spherical else centers.mean(axis=0, dtype=float)
    sizes = np.square(points - origin).sum(axis=1)
    sizes += np.square(centers - origin).sum(axis=1).max()
    error = (D + 16) * 2.0**-24 * 100 * sizes
    assert (lost <= error).all()
    # faiss takes any of the centers whose inner products are equal.
    names_without_ties = ["random", "clusters", "huge", "small"]
    if name in names_without_ties or (name == "integers" and not spherical):
        assert_array_equal(labels, expected)


@pytest.mark.parametrize("name", ["random", "near ties", "duplicates", "far from zero"])
def test_labels_do_not_depend_on_other_points(name):
    points, centers = make_inputs(name)
    labels, distances = ScreenedSearch(points, False).nearest(centers)
    for n in (1, 3, 19, 20, 333):
        rows = np.random.default_rng(n).permutation(N)[:n]
        result = ScreenedSearch(points[rows], False).nearest(centers)
        assert_array_equal(result[0], labels[rows])
        assert_allclose(result[1], distances[rows], rtol=1e-5)


@settings(max_examples=200)
@given(
    rows=hnp.arrays(
        np.float32,
        st.tuples(st.integers(2, 40), st.integers(1, 40)),
        elements=st.floats(-1e4, 1e4, width=32),
    ),
    n_clusters=st.integers(1, 30),
    spherical=st.booleans(),
    step=st.sampled_from([0.0, 1e-7, 1e-3, 1.0]),
)
def test_candidates_include_the_nearest_center(rows, n_clusters, spherical, step):
    """Also for points between centers that lie close to each other."""
    centers = rows[:n_clusters] + np.float32(step) * rows[-n_clusters:][: len(rows)]
    centers = np.concatenate([rows[:n_clusters], centers[: len(rows)]])
    labels, _ = ScreenedCenters(centers, spherical).nearest(rows)
    check_nearest(rows, centers, labels, spherical)


def test_points_near_boundaries_are_decided():
    """bfloat16 alone confuses one in forty of these points."""
    rng = np.random.default_rng(1)
    centers = rng.standard_normal((K, D)).astype(np.float32)
    first, second = rng.integers(K, size=(2, N))
    shares = rng.uniform(0.49, 0.51, (N, 1)).astype(np.float32)
    points = shares * centers[first] + (1 - shares) * centers[second]
    labels, _ = ScreenedSearch(points, False).nearest(centers)
    check_nearest(points, centers, labels, spherical=False)
    rounded = [torch.from_numpy(values).bfloat16() for values in (points, centers)]
    squares = np.square(centers).sum(axis=1)
    products = (rounded[0] @ rounded[1].T).float().numpy()
    assert np.mean((squares / 2 - products).argmin(axis=1) != labels) > 0.01


def test_no_points():
    labels, distances = ScreenedSearch(np.empty((0, D), np.float32), False).nearest(
        make_inputs("random")[1]
    )
    assert labels.shape == distances.shape == (0,)


def test_processors_without_bfloat16_search_by_faiss():
    points, _ = make_inputs("random")
    search = make_search(points, False, "auto", CPU, screens=False)
    assert type(search) is FaissSearch
    assert isinstance(
        make_search(points, False, "torch", CPU, screens=True), TorchSearch
    )
    search = make_search(points, False, "auto", CPU, screens=True)
    assert type(search) is ScreenedSearch
    default = make_search(points, False, "auto", CPU)
    assert isinstance(default, ScreenedSearch) == multiplies_bfloat16(CPU)


@pytest.mark.parametrize("shape", [(10, D), (K, 16), (70, 64)])
def test_small_centers_are_left_to_faiss(shape):
    points, centers = make_inputs("random")
    points, centers = (
        np.ascontiguousarray(values[:, : shape[1]]) for values in (points, centers)
    )
    results = [
        search.nearest(centers[: shape[0]])
        for search in (ScreenedSearch(points, False), FaissSearch(points, False, None))
    ]
    assert_array_equal(results[0][0], results[1][0])
    # The screen would compute distances by differences.
    assert_array_equal(results[0][1], results[1][1])


@pytest.mark.parametrize("spherical", [False, True])
def test_predict_returns_the_labels_of_fit_for_any_number_of_rows(spherical):
    points, _ = make_inputs("clusters")
    model = FaissKMeans(K, spherical=spherical, random_state=0).fit(points)
    assert_array_equal(model.predict(points), model.labels_)
    parts = [model.predict(points[start : start + 7]) for start in range(0, N, 7)]
    assert_array_equal(np.concatenate(parts), model.labels_)
    if not spherical:
        centers = model.cluster_centers_.astype(np.float32)
        assert_array_equal(assign(points, centers)[0], model.labels_)


def test_threads_do_not_change_the_labels():
    rng = np.random.default_rng(0)
    points = rng.standard_normal((5_000, D), np.float32)
    search = ScreenedSearch(points, False)
    with limit_threads(1):
        expected_labels, expected_distances = search.nearest(points[:K])
    # Each thread gets a part of the points.
    with limit_threads(3):
        labels, distances = search.nearest(points[:K])
    assert_array_equal(labels, expected_labels)
    assert_allclose(distances, expected_distances, rtol=1e-5)
