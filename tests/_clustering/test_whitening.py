"""PCA, whitening and L2 normalization of features."""

import numpy as np
import pytest
from numpy.testing import assert_allclose
from sklearn.decomposition import PCA
from sklearn.preprocessing import normalize as scale_rows

from skdeepcluster._clustering import whitening as whitening_module
from skdeepcluster._clustering.whitening import fit_projection

RNG = np.random.default_rng(0)
N_COMPONENTS = ["auto", None, 1, 3, 10_000]


def make_features(scales, n=500, offset=5.0):
    """Draw features with these standard deviations along random directions."""
    d = len(scales)
    rotation = np.linalg.qr(RNG.standard_normal((d, d)))[0]
    white = RNG.standard_normal((n, d))
    white = np.linalg.qr(white - white.mean(axis=0))[0] * np.sqrt(n - 1)
    return (white * scales @ rotation + offset).astype(np.float32)


def fit_and_project(features, n_components=None, whiten=True, normalize=False):
    points = fit_projection(features, n_components, whiten, normalize)(features)
    assert points.dtype == np.float32
    assert points.shape[0] == len(features)
    assert np.isfinite(points).all()
    return points


@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_whitened_points_have_unit_covariance(offset):
    points = fit_and_project(make_features([10, 3, 1, 0.5, 0.1], offset=offset))
    assert_allclose(points.mean(axis=0), 0, atol=1e-3)
    assert_allclose(np.cov(points.T), np.eye(5), atol=2e-3)


def test_projection_without_whitening_keeps_distances():
    features = make_features([10, 3, 1])
    points = fit_and_project(features, whiten=False)
    assert_allclose(np.cov(points.T), np.diag([100, 9, 1]), atol=0.01)
    assert_allclose(
        np.linalg.norm(points - points[0], axis=1),
        np.linalg.norm(features - features[0], axis=1),
        atol=1e-4,
    )


@pytest.mark.parametrize("n", [2, 3, 30, 99])
@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e20])
def test_fewer_rows_than_features_match_sklearn(n, scale, monkeypatch):
    """The products of rows are decomposed instead of the covariance."""
    monkeypatch.setattr(whitening_module, "WIDE_FEATURES", 50)
    features = RNG.standard_normal((n, 100)) * np.linspace(3, 0.1, 100) * scale
    features = features.astype(np.float32)
    points = fit_and_project(features, 20, whiten=True)
    assert points.shape[1] == min(20, n - 1)
    expected = PCA(points.shape[1], whiten=True).fit_transform(features / scale)
    signs = np.sign((points * expected).sum(axis=0))
    assert_allclose(points * signs, expected, atol=0.02)


@pytest.mark.parametrize("whiten", [True, False])
@pytest.mark.parametrize("n_components", ["auto", None, 2, 3])
def test_normalized_points_have_unit_length(n_components, whiten):
    features = make_features([3, 2, 1, 0.5])
    points = fit_and_project(features, n_components, whiten, normalize=True)
    assert_allclose(np.linalg.norm(points, axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize("features", [make_features([1.0]), make_features([100, 0.1])])
def test_single_component_is_not_normalized(features):
    """Unit length would leave only the signs of the points."""
    assert np.ptp(abs(fit_and_project(features, "auto", normalize=True))) > 1


@pytest.mark.parametrize("whiten", [True, False])
@pytest.mark.parametrize("n_components", [2, 4])
def test_points_match_sklearn_up_to_signs(n_components, whiten):
    features = make_features([8, 4, 2, 1])
    points = fit_and_project(features, n_components, whiten, normalize=True)
    expected = PCA(n_components, whiten=whiten).fit_transform(features)
    signs = np.sign((points * expected).sum(axis=0))
    assert_allclose(points * signs, scale_rows(expected), atol=1e-3)


def test_projection_of_rows_is_independent_of_batch():
    features = make_features([3, 2, 1])
    project = fit_projection(features, None, whiten=True, normalize=True)
    assert_allclose(project(features[5:9]), project(features)[5:9], atol=1e-6)
    before = features.copy()
    project(features)
    assert (features == before).all()


@pytest.mark.parametrize(
    ("variances", "n_components"),
    [([980, 11, 9], 2), ([980, 8, 8], 2), ([978, 11, 11], 3), ([995, 3, 2], 1)],
)
def test_auto_explains_99_percent_of_variance(variances, n_components):
    features = make_features(np.sqrt(variances))
    assert fit_and_project(features, "auto").shape[1] == n_components


def test_auto_has_at_most_256_components():
    features = RNG.standard_normal((1200, 400), np.float32)
    assert fit_and_project(features, "auto").shape[1] == 256
    assert fit_and_project(features, None).shape[1] == 400


@pytest.mark.parametrize(
    ("n_components", "expected"), [(1, 1), (3, 3), (9, 4), (None, 4)]
)
def test_n_components_is_an_upper_bound(n_components, expected):
    points = fit_and_project(make_features([4, 3, 2, 1]), n_components)
    assert points.shape[1] == expected


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("whiten", [True, False])
@pytest.mark.parametrize("n_components", N_COMPONENTS)
@pytest.mark.parametrize(
    "features",
    [
        pytest.param(make_features([2, 1, 0, 0, 0]), id="rank deficient"),
        pytest.param(np.full((20, 4), 3.7, np.float32), id="constant"),
        pytest.param(np.zeros((20, 4), np.float32), id="zero"),
        pytest.param(make_features([1.0]), id="one feature"),
        pytest.param(RNG.random((2, 30), np.float32), id="two rows"),
        pytest.param(RNG.random((7, 30), np.float32), id="fewer rows than features"),
        pytest.param(np.repeat(np.eye(3, dtype=np.float32), 9, 0), id="duplicates"),
        pytest.param(make_features([1e-12, 1e-13], offset=0), id="tiny"),
        pytest.param(make_features([1e12, 1e11], offset=0), id="huge"),
        pytest.param(make_features([1e-40, 1e-41], offset=0), id="denormal"),
        pytest.param(
            make_features([1e29, 1e20, 1.0], offset=1e30), id="square overflows"
        ),
        pytest.param(np.full((20, 4), 1e30, np.float32), id="huge constant"),
    ],
)
def test_degenerate_features_give_finite_points(
    features, n_components, whiten, normalize
):
    points = fit_and_project(features, n_components, whiten, normalize)
    assert points.shape[1] >= 1


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("whiten", [True, False])
@pytest.mark.parametrize("exponent", [-110, -70, 30, 98])
def test_points_are_independent_of_unit(exponent, whiten, normalize):
    """In float32 the squares of these features are 0 or infinite."""
    features = make_features([4, 2, 1], offset=3)
    unit = np.float32(2.0**exponent)
    expected = fit_and_project(features, None, whiten, normalize)
    points = fit_and_project(features * unit, None, whiten, normalize)
    # Points have a moderate size, but without scaling not the same size.
    if not (whiten or normalize):
        points *= expected.std() / points.std()
    assert_allclose(points, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("n", "rank"), [(2000, 5), (5000, 20), (50, 1)])
def test_directions_without_variance_are_dropped(n, rank):
    """Whitening would amplify their rounding errors to the size of the signal."""
    scales = np.r_[np.ones(rank), np.zeros(64 - rank)]
    assert fit_and_project(make_features(scales, n=max(n, 65))).shape[1] == rank


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("whiten", [True, False])
@pytest.mark.parametrize("scale", [1e-40, 1e-30, 1.0])
@pytest.mark.parametrize("n_components", [None, 1])
def test_points_of_distant_features_have_finite_squares(
    n_components, scale, whiten, normalize
):
    features = make_features([scale, scale / 2], offset=0)
    projection = fit_projection(features, n_components, whiten, normalize)
    # In some directions, infinities of both signs are added.
    distant = np.array([[1e30, 1e30], [-1e30, 1e30]], np.float32)
    points = projection(distant)
    assert np.isfinite(np.square(points).sum(axis=1)).all()
    assert (np.abs(points).max(axis=1) > (0.5 if normalize else 1e14)).all()
