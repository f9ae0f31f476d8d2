"""Random crops, flips and noise, different for each image."""

import numpy as np
import pytest
import torch

from skdeepcluster._training.augment import (
    RandomCrop,
    RowNoise,
    apply_user_augment,
    make_views,
    mild_augment,
)

N, HEIGHT, WIDTH = 400, 24, 32


def make_generator(seed=0):
    return torch.Generator().manual_seed(seed)


def crop_only(min_area=0.6, max_stretch=4 / 3, flip=True):
    """Return crops and flips without rotation and without changes of light."""
    return RandomCrop(
        min_area=min_area,
        max_stretch=max_stretch,
        max_angle=0.0,
        flip=flip,
        jitter=0.0,
        tint=0.0,
    )


def make_ramps(n=N):
    """Return images whose two channels hold the x and the y of each pixel."""
    y, x = torch.meshgrid(torch.arange(HEIGHT), torch.arange(WIDTH), indexing="ij")
    return torch.stack([x, y]).float().expand(n, -1, -1, -1).contiguous()


def measure_geometry(crops):
    """Return width, height and center of crops of ramps, as shares of the image.

    The width of mirrored crops is negative.
    """
    x, y = crops[:, 0], crops[:, 1]
    width = x[:, 12, 17] - x[:, 12, 16]
    height = y[:, 13, 16] - y[:, 12, 16]
    center_x = (x[:, 12, 16] + x[:, 12, 15] + 1) / 2 / WIDTH
    center_y = (y[:, 12, 16] + y[:, 11, 16] + 1) / 2 / HEIGHT
    return width, height, center_x, center_y


def test_small_crops_have_half_the_side_and_a_smaller_area():
    small = crop_only(min_area=0.6, max_stretch=4 / 3, flip=False).small()
    crops = small(make_ramps(), make_generator())
    assert crops.shape == (N, 2, HEIGHT // 2, WIDTH // 2)
    x, y = crops[:, 0], crops[:, 1]
    width = (x[:, 6, 9] - x[:, 6, 8]) / 2
    height = (y[:, 7, 8] - y[:, 6, 8]) / 2
    area = width * height
    assert 0.2 - 1e-3 <= area.min() < 0.3
    assert 0.5 < area.max() <= 0.6 + 1e-3


def test_views_are_copies_of_the_batch():
    images = make_ramps(3)
    crop = RandomCrop()
    large, small = make_views(images, crop, (2, 3), make_generator())
    assert large.shape == (6, 2, HEIGHT, WIDTH)
    assert small.shape == (9, 2, HEIGHT // 2, WIDTH // 2)
    generator = make_generator()
    large_crops = [crop(images, generator) for _ in range(2)]
    small_crops = [crop.small()(images, generator) for _ in range(3)]
    assert torch.equal(large, torch.cat(large_crops))
    assert torch.equal(small, torch.cat(small_crops))


def test_single_view_is_a_single_crop():
    images, crop = make_ramps(3), RandomCrop()
    (view,) = make_views(images, crop, (1, 0), make_generator())
    assert torch.equal(view, crop(images, make_generator()))


def test_view_without_augmentation_is_the_batch():
    images = make_ramps(3)
    assert make_views(images, None, (1, 0), make_generator())[0] is images


@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize(
    ("min_area", "max_stretch"), [(0.6, 4 / 3), (0.2, 2.0), (0.9, 4 / 3), (0.5, 1.0)]
)
def test_geometry_of_crops_is_within_bounds(min_area, max_stretch, flip):
    crops = crop_only(min_area, max_stretch, flip)(make_ramps(), make_generator())
    width, height, center_x, center_y = measure_geometry(crops)
    area, ratio = width.abs() * height, width.abs() / height
    tolerance = 1e-3
    assert area.min() >= min_area - tolerance
    assert area.max() <= 1 + tolerance
    assert area.max() - area.min() > 0.6 * (1 - min_area)
    assert ratio.min() >= 1 / max_stretch - tolerance
    assert ratio.max() <= max_stretch + tolerance
    if max_stretch > 1 and min_area < 0.9:
        assert ratio.min() < 1 / max_stretch**0.8
        assert ratio.max() > max_stretch**0.8
    for size, center in ((width.abs(), center_x), (height, center_y)):
        # Crops lie inside the image, at various positions.
        assert (center - size / 2).min() >= -tolerance
        assert (center + size / 2).max() <= 1 + tolerance
        assert (center - size / 2).max() > 0.5 * (1 - size).max()
    mirrored = (width < 0).float().mean()
    assert (0.4 < mirrored < 0.6) if flip else mirrored == 0


@pytest.mark.parametrize("max_angle", [5.0, 30.0])
def test_rotations_are_rigid_and_within_max_angle(max_angle):
    crop = RandomCrop(0.5, 1.2, max_angle, flip=False, jitter=0.0, tint=0.0)
    x, y = crop(make_ramps(), make_generator()).unbind(dim=1)
    right = y[:, 12, 17] - y[:, 12, 16], x[:, 12, 17] - x[:, 12, 16]
    down = x[:, 12, 16] - x[:, 13, 16], y[:, 13, 16] - y[:, 12, 16]
    angles = torch.rad2deg(torch.atan2(*right))
    angles_down = torch.rad2deg(torch.atan2(*down))
    torch.testing.assert_close(angles_down, angles, rtol=0, atol=1e-2)
    assert angles.abs().max() <= max_angle * 1.001
    assert angles.min() < -0.8 * max_angle
    assert angles.max() > 0.8 * max_angle


@pytest.mark.parametrize(("jitter", "tint"), [(0.0, 0.1), (0.3, 0.0), (0.3, 0.1)])
def test_contrast_and_brightness_change_within_bounds(jitter, tint):
    images = 50 + 9 * torch.randn(N, 2, 6, 6, generator=make_generator())
    crop = RandomCrop(1.0, 1.0, max_angle=0.0, flip=False, jitter=jitter, tint=tint)
    before, after = images.flatten(2), crop(images, make_generator()).flatten(2)
    centered = before - before.mean(dim=2, keepdim=True)
    contrast = (centered * after).sum(dim=2) / (centered**2).sum(dim=2) - 1
    level = after.mean(dim=2) - images.mean()
    brightness = level - (1 + contrast) * (before.mean(dim=2) - images.mean())
    for change in (contrast, brightness / images.std()):
        assert change.abs().max() <= (jitter + tint) * 1.001
        assert change.min() < -0.8 * (jitter + tint)
        assert change.max() > 0.8 * (jitter + tint)
        difference = (change[:, 0] - change[:, 1]).abs()
        assert difference.max() <= 2 * tint * 1.001 + 1e-4
        assert difference.max() >= 1.6 * tint
        assert change[:, 0].unique().numel() == N
    # The change is linear in the pixels.
    expected = (1 + contrast)[..., None] * centered + after.mean(dim=2, keepdim=True)
    torch.testing.assert_close(after, expected, rtol=0, atol=1e-2)


def test_equal_images_in_a_batch_have_different_crops():
    crops = crop_only()(make_ramps(30), make_generator()).flatten(1)
    assert torch.pdist(crops).min() > 0.1


def test_channels_of_an_image_have_the_same_crop():
    gray = torch.rand(5, 1, 9, 9, generator=make_generator())
    crops = crop_only()(gray.expand(-1, 3, -1, -1), make_generator())
    assert torch.equal(crops[:, 0], crops[:, 1])
    assert torch.equal(crops[:, 0], crops[:, 2])


@pytest.mark.parametrize("shape", [(7, 1, 8, 8), (7, 3, 5, 9), (7, 2, 1, 1)])
def test_crop_of_full_area_without_flip_is_the_image(shape):
    images = 255 * torch.rand(shape, generator=make_generator())
    crops = crop_only(1.0, 1.0, flip=False)(images, make_generator())
    torch.testing.assert_close(crops, images, rtol=0, atol=1e-3)


def test_crop_of_full_area_with_flip_is_the_image_or_its_mirror():
    images = torch.rand(40, 1, 8, 8, generator=make_generator())
    crops = crop_only(1.0, 1.0, flip=True)(images, make_generator())
    is_equal = (crops - images).abs().amax(dim=(1, 2, 3)) < 1e-4
    is_mirrored = (crops - images.flip(3)).abs().amax(dim=(1, 2, 3)) < 1e-4
    assert (is_equal ^ is_mirrored).all()
    assert 0 < is_equal.sum() < 40


def test_constant_images_stay_constant():
    images = torch.tensor([0.0, 200.0, -3.5])[:, None, None, None].expand(3, 2, 9, 6)
    torch.testing.assert_close(crop_only()(images, make_generator()), images)


def test_values_of_crops_are_within_range_of_the_image():
    images = torch.randn(50, 3, 7, 7, generator=make_generator())
    crops = crop_only(0.1)(images, make_generator()).flatten(1)
    assert (crops.amax(dim=1) <= images.flatten(1).amax(dim=1) + 1e-5).all()
    assert (crops.amin(dim=1) >= images.flatten(1).amin(dim=1) - 1e-5).all()


@pytest.mark.parametrize(
    ("augment", "batch"),
    [(RandomCrop(), torch.rand(6, 3, 8, 8)), (RowNoise(), torch.rand(6, 9))],
)
def test_draws_depend_only_on_generator(augment, batch):
    before, global_state = batch.clone(), torch.get_rng_state()
    augmented, same_seed, new_seed = (
        augment(batch, make_generator(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(augmented, same_seed)
    assert not torch.equal(augmented, new_seed)
    assert torch.equal(batch, before)
    assert torch.equal(torch.get_rng_state(), global_state)
    generator = make_generator(1)
    assert not torch.equal(augment(batch, generator), augment(batch, generator))


@pytest.mark.parametrize("relative_scale", [0.1, 0.5])
def test_row_noise_is_relative_to_deviation_of_rows(relative_scale):
    rows = 1000 + 5 * torch.randn(500, 20, generator=make_generator())
    # The means of the features have no influence.
    rows += torch.arange(20) * 100
    noise = RowNoise(relative_scale)(rows, make_generator(1)) - rows
    assert noise.std().item() == pytest.approx(relative_scale * 5, rel=0.05)
    assert noise.mean().item() == pytest.approx(0, abs=0.05)
    assert np.corrcoef(noise.T).shape == (20, 20)
    assert np.abs(np.corrcoef(noise.T) - np.eye(20)).max() < 0.3


def test_row_noise_keeps_equal_rows():
    rows = torch.full((4, 3), 7.0)
    assert torch.equal(RowNoise()(rows, make_generator()), rows)


def test_mild_augment_suits_images_and_rows():
    assert isinstance(mild_augment(3), RandomCrop)
    assert isinstance(mild_augment(1), RowNoise)


def test_user_augment_gets_the_batch():
    images = torch.rand(2, 1, 3, 3)
    augmented = apply_user_augment(lambda x: 2 * x, images, make_generator())
    assert torch.equal(augmented, 2 * images)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_user_augment_with_nan_or_infinity_is_refused(value):
    images = torch.ones(2, 1, 3, 3)
    with pytest.raises(ValueError, match=r"augment returned NaN or infinite.*float32"):
        apply_user_augment(lambda x: x * value, images, make_generator())


@pytest.mark.parametrize(
    ("augmented", "description"),
    [
        (None, "None"),
        (3.5, "float"),
        (np.zeros((2, 1, 3, 3)), r"\(2, 1, 3, 3\)"),
        (torch.zeros(2, 1, 3, 4), r"\(2, 1, 3, 4\)"),
        (torch.zeros(1, 1, 3, 3), r"\(1, 1, 3, 3\)"),
        (torch.zeros(2, 3, 3), r"\(2, 3, 3\)"),
    ],
)
def test_user_augment_with_another_shape_is_refused(augmented, description):
    images = torch.zeros(2, 1, 3, 3)
    message = (
        r"augment must return a tensor of shape \(2, 1, 3, 3\).*returned " + description
    )
    with pytest.raises(ValueError, match=message):
        apply_user_augment(lambda x: augmented, images, make_generator())
