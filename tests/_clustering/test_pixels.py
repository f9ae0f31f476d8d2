"""Principal components of pixels, and their mirror symmetry."""

import numpy as np
import pytest
from numpy.testing import assert_allclose
from sklearn.decomposition import PCA

from skdeepcluster._clustering import pixels as pixels_module
from skdeepcluster._clustering.pixels import (
    fit_pixel_projection,
    is_mirror_symmetric,
    project_pixels,
)
from skdeepcluster._inputs.sources import ArraySource


def fit_and_project(source, n_rows):
    """Return the components of all images, fitted to the leading rows."""
    return project_pixels(source, fit_pixel_projection(source, np.arange(n_rows)))


def test_components_equal_sklearn(digits_images):
    images = digits_images[0][:300, None]
    components = fit_and_project(ArraySource(images), 300)
    expected = PCA(components.shape[1]).fit_transform(images.reshape(300, -1))
    assert_allclose(np.abs(components), np.abs(expected), atol=0.1)


@pytest.mark.parametrize("batch_values", [1, 700, 2**22])
def test_components_are_independent_of_batches(
    digits_images, monkeypatch, batch_values
):
    source = ArraySource(digits_images[0][:50, None])
    expected = fit_and_project(source, 50)
    monkeypatch.setattr(pixels_module, "BATCH_VALUES", batch_values)
    components = fit_and_project(source, 50)
    assert_allclose(np.abs(components), np.abs(expected), atol=1e-2)


@pytest.mark.parametrize(
    "shape", [(1, 8, 8), (3, 64, 40), (1, 1, 300), (13, 5, 5), (2000, 3, 2), (7,), (1,)]
)
def test_images_of_any_size_have_at_most_64_components(shape):
    images = np.random.default_rng(0).standard_normal((100, *shape))
    components = fit_and_project(ArraySource(images.astype(np.float32)), 80)
    assert components.dtype == np.float32
    assert components.shape[0] == 100
    assert 1 <= components.shape[1] <= 64
    assert np.isfinite(components).all()


def test_digits_are_not_mirror_symmetric(digits_images):
    source = ArraySource(digits_images[0][:, None])
    assert not is_mirror_symmetric(source, np.arange(1000), 10)


@pytest.mark.parametrize("channels", [1, 3])
def test_randomly_mirrored_images_are_mirror_symmetric(digits_images, channels):
    images = digits_images[0][:1000].copy()
    images[::2] = images[::2, :, ::-1]
    stacked = np.repeat(images[:, None], channels, axis=1)
    assert is_mirror_symmetric(ArraySource(stacked), np.arange(1000), 10)


@pytest.mark.parametrize("n_classes", [2, 4])
def test_images_with_a_direction_as_class_are_not_mirror_symmetric(n_classes):
    rng = np.random.default_rng(0)
    images = rng.normal(100, 20, (400, 1, 8, 8)).astype(np.float32)
    # The class is the bright quadrant of the image.
    classes = rng.integers(0, n_classes, 400)
    for image, quadrant in zip(images, classes, strict=True):
        column = 4 * (quadrant % 2)
        image[0, 4 * (quadrant // 2) :, column : column + 4] += 60
    assert not is_mirror_symmetric(ArraySource(images), np.arange(400), n_classes)


@pytest.mark.parametrize("deviation", [0, 1e-40, 1e-30, 1.0])
def test_huge_values_in_a_column_are_not_mirror_symmetric(deviation):
    """The squared distances to the mirrored images overflow float32."""
    images = np.random.default_rng(0).normal(0, 1, (20, 1, 6, 6)) * deviation
    images[..., 0] = 1e30
    source = ArraySource(images.astype(np.float32))
    assert not is_mirror_symmetric(source, np.arange(20), 3)
