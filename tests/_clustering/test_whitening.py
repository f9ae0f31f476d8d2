"""PCA, whitening and L2 normalization of features."""

import numpy as np
import pytest
from numpy.testing import assert_allclose
from sklearn.decomposition import PCA
from sklearn.preprocessing import normalize

from skdeepcluster._clustering import whitening as whitening_module
from skdeepcluster._clustering.whitening import fit_projection

RNG = np.random.default_rng(0)
N_COMPONENTS = ["auto", None, 1, 3, 10_000]


def features_of(scales, n=500, offset=5.0):
    """Features with these standard deviations along random directions."""
    d = len(scales)
    rotation = np.linalg.qr(RNG.standard_normal((d, d)))[0]
    white = RNG.standard_normal((n, d))
    white = np.linalg.qr(white - white.mean(axis=0))[0] * np.sqrt(n - 1)
    return (white * scales @ rotation + offset).astype(np.float32)


def points_of(features, n_components=None, whiten=True, normalize=False):
    points = fit_projection(features, n_components, whiten, normalize)(features)
    assert points.dtype == np.float32
    assert points.shape[0] == len(features)
    assert np.isfinite(points).all()
    return points


@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_whitened_points_have_unit_covariance(offset):
    points = points_of(features_of([10, 3, 1, 0.5, 0.1], offset=offset))
    assert_allclose(points.mean(axis=0), 0, atol=1e-3)
    assert_allclose(np.cov(points.T), np.eye(5), atol=2e-3)


def test_without_whitening_distances_are_kept():
    features = features_of([10, 3, 1])
    points = points_of(features, whiten=False)
    assert_allclose(np.cov(points.T), np.diag([100, 9, 1]), atol=0.01)
    assert_allclose(
        np.linalg.norm(points - points[0], axis=1),
        np.linalg.norm(features - features[0], axis=1),
        atol=1e-4,
    )


@pytest.mark.parametrize("n", [2, 3, 30, 99])
@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e20])
def test_fewer_rows_than_features_have_the_same_components(n, scale, monkeypatch):
    monkeypatch.setattr(whitening_module, "WIDE", 50)
    features = RNG.standard_normal((n, 100)) * np.linspace(3, 0.1, 100) * scale
    features = features.astype(np.float32)
    points = points_of(features, 20, whiten=True)
    assert points.shape[1] == min(20, n - 1)
    expected = PCA(points.shape[1], whiten=True).fit_transform(features / scale)
    signs = np.sign((points * expected).sum(axis=0))
    assert_allclose(points * signs, expected, atol=0.02)


@pytest.mark.parametrize("whiten", [True, False])
@pytest.mark.parametrize("n_components", ["auto", None, 2, 3])
def test_normalized_points_have_unit_length(n_components, whiten):
    features = features_of([3, 2, 1, 0.5])
    points = points_of(features, n_components, whiten, normalize=True)
    assert_allclose(np.linalg.norm(points, axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize("features", [features_of([1.0]), features_of([100, 0.1])])
def test_points_on_a_line_are_not_normalized(features):
    """All but their signs would be lost."""
    assert np.ptp(abs(points_of(features, "auto", normalize=True))) > 1


@pytest.mark.parametrize("whiten", [True, False])
@pytest.mark.parametrize("n_components", [2, 4])
def test_agrees_with_sklearn_up_to_sign(n_components, whiten):
    features = features_of([8, 4, 2, 1])
    points = points_of(features, n_components, whiten, normalize=True)
    expected = PCA(n_components, whiten=whiten).fit_transform(features)
    signs = np.sign((points * expected).sum(axis=0))
    assert_allclose(points * signs, normalize(expected), atol=1e-3)


def test_new_features_are_mapped_by_the_fitted_projection():
    features = features_of([3, 2, 1])
    project = fit_projection(features, None, True, True)
    assert_allclose(project(features[5:9]), project(features)[5:9], atol=1e-6)
    before = features.copy()
    project(features)
    assert (features == before).all()


@pytest.mark.parametrize(
    ("variances", "kept"),
    [([980, 11, 9], 2), ([980, 8, 8], 2), ([978, 11, 11], 3), ([995, 3, 2], 1)],
)
def test_auto_keeps_99_percent_of_the_variance(variances, kept):
    features = features_of(np.sqrt(variances))
    assert points_of(features, "auto").shape[1] == kept


def test_auto_keeps_the_papers_number_at_most():
    features = RNG.standard_normal((1200, 400), np.float32)
    assert points_of(features, "auto").shape[1] == 256
    assert points_of(features, None).shape[1] == 400


@pytest.mark.parametrize(("n_components", "kept"), [(1, 1), (3, 3), (9, 4), (None, 4)])
def test_an_integer_is_an_upper_bound(n_components, kept):
    assert points_of(features_of([4, 3, 2, 1]), n_components).shape[1] == kept


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("whiten", [True, False])
@pytest.mark.parametrize("n_components", N_COMPONENTS)
@pytest.mark.parametrize(
    "features",
    [
        pytest.param(features_of([2, 1, 0, 0, 0]), id="rank deficient"),
        pytest.param(np.full((20, 4), 3.7, np.float32), id="constant"),
        pytest.param(np.zeros((20, 4), np.float32), id="zero"),
        pytest.param(features_of([1.0]), id="one feature"),
        pytest.param(RNG.random((2, 30), np.float32), id="two rows"),
        pytest.param(RNG.random((7, 30), np.float32), id="fewer rows than features"),
        pytest.param(np.repeat(np.eye(3, dtype=np.float32), 9, 0), id="duplicates"),
        pytest.param(features_of([1e-12, 1e-13], offset=0), id="tiny"),
        pytest.param(features_of([1e12, 1e11], offset=0), id="huge"),
        pytest.param(features_of([1e-40, 1e-41], offset=0), id="denormal"),
        pytest.param(features_of([1e29, 1e20, 1.0], offset=1e30), id="square too huge"),
        pytest.param(np.full((20, 4), 1e30, np.float32), id="huge constant"),
    ],
)
def test_degenerate_features_give_finite_points(
    features, n_components, whiten, normalize
):
    points = points_of(features, n_components, whiten, normalize)
    assert points.shape[1] >= 1


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("whiten", [True, False])
@pytest.mark.parametrize("exponent", [-110, -70, 30, 98])
def test_points_do_not_depend_on_the_unit(exponent, whiten, normalize):
    """Squares of the features themselves are 0 or infinite in float32."""
    features = features_of([4, 2, 1], offset=3)
    expected = points_of(features, None, whiten, normalize)
    points = points_of(features * np.float32(2.0**exponent), None, whiten, normalize)
    if not (whiten or normalize):  # then they are of moderate size, whatever it was
        points *= expected.std() / points.std()
    assert_allclose(points, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("n", "rank"), [(2000, 5), (5000, 20), (50, 1)])
def test_directions_without_variance_are_dropped(n, rank):
    """Whitening them would blow up rounding errors to the size of the signal."""
    features = features_of(np.r_[np.ones(rank), np.zeros(64 - rank)], n=max(n, 65))
    assert points_of(features).shape[1] == rank


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("whiten", [True, False])
@pytest.mark.parametrize("scale", [1e-40, 1e-30, 1.0])
@pytest.mark.parametrize("n_components", [None, 1])
def test_points_far_from_the_features_of_the_fit_can_be_squared(
    n_components, scale, whiten, normalize
):
    features = features_of([scale, scale / 2], offset=0)
    projection = fit_projection(features, n_components, whiten, normalize)
    far = np.array([[1e30, 1e30], [-1e30, 1e30]], np.float32)
    points = projection(far)
    assert np.isfinite(np.square(points).sum(axis=1)).all()
    # Also where infinities of both signs are summed.
    assert (np.abs(points).max(axis=1) > (0.5 if normalize else 1e14)).all()
