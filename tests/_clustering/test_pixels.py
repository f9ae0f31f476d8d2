"""Pixels are reduced without a float copy of the set, and tell mirror symmetry."""

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


def test_components_are_those_of_pca(digits_images):
    images = digits_images[0][:300, None]
    source = ArraySource(images)
    found = project_pixels(source, fit_pixel_projection(source, np.arange(300)))
    expected = PCA(found.shape[1]).fit_transform(images.reshape(300, -1))
    assert_allclose(np.abs(found), np.abs(expected), atol=0.1)


@pytest.mark.parametrize("batch_values", [1, 700, 2**22])
def test_pieces_do_not_matter(digits_images, monkeypatch, batch_values):
    source = ArraySource(digits_images[0][:50, None])
    whole = project_pixels(source, fit_pixel_projection(source, np.arange(50)))
    monkeypatch.setattr(pixels_module, "BATCH_VALUES", batch_values)
    pieces = project_pixels(source, fit_pixel_projection(source, np.arange(50)))
    assert_allclose(np.abs(pieces), np.abs(whole), atol=1e-2)


@pytest.mark.parametrize(
    "shape", [(1, 8, 8), (3, 64, 40), (1, 1, 300), (13, 5, 5), (2000, 3, 2), (7,), (1,)]
)
def test_items_of_any_size_give_at_most_64_components(shape):
    items = np.random.default_rng(0).standard_normal((100, *shape))
    source = ArraySource(items.astype(np.float32))
    found = project_pixels(source, fit_pixel_projection(source, np.arange(80)))
    assert found.dtype == np.float32
    assert found.shape[0] == 100
    assert 1 <= found.shape[1] <= 64
    assert np.isfinite(found).all()


def test_digits_are_not_mirror_symmetric(digits_images):
    source = ArraySource(digits_images[0][:, None])
    assert not is_mirror_symmetric(source, np.arange(1000), 10)


@pytest.mark.parametrize("channels", [1, 3])
def test_images_with_a_side_by_chance_are_mirror_symmetric(digits_images, channels):
    images = digits_images[0][:1000].copy()
    images[::2] = images[::2, :, ::-1]
    stacked = np.repeat(images[:, None], channels, axis=1)
    assert is_mirror_symmetric(ArraySource(stacked), np.arange(1000), 10)


@pytest.mark.parametrize("kinds", [2, 4])
def test_images_whose_kind_is_a_side_are_not_mirror_symmetric(kinds):
    rng = np.random.default_rng(0)
    images = rng.normal(100, 20, (400, 1, 8, 8)).astype(np.float32)
    kind = rng.integers(0, kinds, 400)
    for image, k in zip(images, kind, strict=True):
        image[0, 4 * (k // 2) :, 4 * (k % 2) : 4 * (k % 2) + 4] += 60
    assert not is_mirror_symmetric(ArraySource(images), np.arange(400), kinds)


@pytest.mark.parametrize("spread", [0, 1e-40, 1e-30, 1.0])
def test_a_side_of_huge_values_is_not_mirror_symmetric(spread):
    """Squares of the distances to their mirror images overflow."""
    images = np.random.default_rng(0).normal(0, 1, (20, 1, 6, 6)) * spread
    images[..., 0] = 1e30
    source = ArraySource(images.astype(np.float32))
    assert not is_mirror_symmetric(source, np.arange(20), 3)
