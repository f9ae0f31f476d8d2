"""Random crops, flips and noise: parameters of its own for each image."""

import numpy as np
import pytest
import torch

from skdeepcluster._training.augment import (
    RandomCrop,
    RowNoise,
    apply_user_augment,
    make_views,
)

N, HEIGHT, WIDTH = 400, 24, 32


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def crop_only(min_area=0.6, max_stretch=4 / 3, flip=True):
    """Crops and flips alone: no rotation, and the pixels' own values."""
    return RandomCrop(
        min_area, max_stretch, max_angle=0.0, flip=flip, jitter=0.0, tint=0.0
    )


def ramps(n=N):
    """Images whose two channels hold each pixel's own x and y."""
    y, x = torch.meshgrid(torch.arange(HEIGHT), torch.arange(WIDTH), indexing="ij")
    return torch.stack([x, y]).float().expand(n, -1, -1, -1).contiguous()


def geometry(crops):
    """Width and height (share of the image, width < 0 if mirrored), center of crops."""
    x, y = crops[:, 0], crops[:, 1]
    width = x[:, 12, 17] - x[:, 12, 16]
    height = y[:, 13, 16] - y[:, 12, 16]
    center_x = (x[:, 12, 16] + x[:, 12, 15] + 1) / 2 / WIDTH
    center_y = (y[:, 12, 16] + y[:, 11, 16] + 1) / 2 / HEIGHT
    return width, height, center_x, center_y


def test_small_crops_are_half_as_large_of_smaller_parts():
    crop = crop_only(0.6, 4 / 3, False).small()
    crops = crop(ramps(), generator())
    assert crops.shape == (N, 2, HEIGHT // 2, WIDTH // 2)
    x, y = crops[:, 0], crops[:, 1]
    width = (x[:, 6, 9] - x[:, 6, 8]) / 2
    height = (y[:, 7, 8] - y[:, 6, 8]) / 2
    area = width * height
    assert 0.2 - 1e-3 <= area.min() < 0.3
    assert 0.5 < area.max() <= 0.6 + 1e-3


def test_views_of_a_batch_come_batch_by_batch():
    images = ramps(3)
    crop = RandomCrop()
    large, small = make_views(images, crop, (2, 3), generator())
    assert large.shape == (6, 2, HEIGHT, WIDTH)
    assert small.shape == (9, 2, HEIGHT // 2, WIDTH // 2)
    again = generator()
    expected = [crop(images, again) for _ in range(2)]
    expected += [crop.small()(images, again) for _ in range(3)]
    assert torch.equal(large, torch.cat(expected[:2]))
    assert torch.equal(small, torch.cat(expected[2:]))
    (alone,) = make_views(images, crop, (1, 0), generator())
    assert torch.equal(alone, expected[0])
    assert make_views(images, None, (1, 0), generator())[0] is images


@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize(
    ("min_area", "max_stretch"), [(0.6, 4 / 3), (0.2, 2.0), (0.9, 4 / 3), (0.5, 1.0)]
)
def test_crops_have_the_stated_geometry(min_area, max_stretch, flip):
    crop = crop_only(min_area, max_stretch, flip)
    width, height, center_x, center_y = geometry(crop(ramps(), generator()))
    area, ratio = width.abs() * height, width.abs() / height
    small = 1e-3
    assert area.min() >= min_area - small
    assert area.max() <= 1 + small
    assert area.max() - area.min() > 0.6 * (1 - min_area)
    assert ratio.min() >= 1 / max_stretch - small
    assert ratio.max() <= max_stretch + small
    if max_stretch > 1 and min_area < 0.9:
        assert ratio.min() < 1 / max_stretch**0.8
        assert ratio.max() > max_stretch**0.8
    for size, center in ((width.abs(), center_x), (height, center_y)):
        assert (center - size / 2).min() >= -small  # no crop leaves the image
        assert (center + size / 2).max() <= 1 + small
        assert (center - size / 2).max() > 0.5 * (1 - size).max()  # but it moves
    mirrored = (width < 0).float().mean()
    assert (0.4 < mirrored < 0.6) if flip else mirrored == 0


@pytest.mark.parametrize("max_angle", [5.0, 30.0])
def test_rotations_are_rigid_and_within_the_angle(max_angle):
    crop = RandomCrop(0.5, 1.2, max_angle, flip=False, jitter=0.0, tint=0.0)
    x, y = crop(ramps(), generator()).unbind(dim=1)
    right = y[:, 12, 17] - y[:, 12, 16], x[:, 12, 17] - x[:, 12, 16]
    down = x[:, 12, 16] - x[:, 13, 16], y[:, 13, 16] - y[:, 12, 16]
    angles = torch.rad2deg(torch.atan2(*right))
    other = torch.rad2deg(torch.atan2(*down))
    torch.testing.assert_close(other, angles, rtol=0, atol=1e-2)
    assert angles.abs().max() <= max_angle * 1.001
    assert angles.min() < -0.8 * max_angle
    assert angles.max() > 0.8 * max_angle


@pytest.mark.parametrize(("jitter", "tint"), [(0.0, 0.1), (0.3, 0.0), (0.3, 0.1)])
def test_contrast_and_brightness_of_images_and_of_channels(jitter, tint):
    images = 50 + 9 * torch.randn(N, 2, 6, 6, generator=generator())
    crop = RandomCrop(1.0, 1.0, max_angle=0.0, flip=False, jitter=jitter, tint=tint)
    before, after = images.flatten(2), crop(images, generator()).flatten(2)
    centered = before - before.mean(dim=2, keepdim=True)
    contrast = (centered * after).sum(dim=2) / (centered**2).sum(dim=2) - 1
    level = after.mean(dim=2) - images.mean()
    brightness = level - (1 + contrast) * (before.mean(dim=2) - images.mean())
    for change in (contrast, brightness / images.std()):
        assert change.abs().max() <= (jitter + tint) * 1.001
        assert change.min() < -0.8 * (jitter + tint)
        assert change.max() > 0.8 * (jitter + tint)
        between = (change[:, 0] - change[:, 1]).abs()
        assert between.max() <= 2 * tint * 1.001 + 1e-4
        assert between.max() >= 1.6 * tint
        assert change[:, 0].unique().numel() == N
    fitted = (1 + contrast)[..., None] * centered + after.mean(dim=2, keepdim=True)
    torch.testing.assert_close(after, fitted, rtol=0, atol=1e-2)  # nothing else changes


def test_equal_images_in_a_batch_get_different_crops():
    crops = crop_only()(ramps(30), generator()).flatten(1)
    assert torch.pdist(crops).min() > 0.1


def test_channels_of_an_image_get_the_same_crop():
    gray = torch.rand(5, 1, 9, 9, generator=generator())
    crops = crop_only()(gray.expand(-1, 3, -1, -1), generator())
    assert torch.equal(crops[:, 0], crops[:, 1])
    assert torch.equal(crops[:, 0], crops[:, 2])


@pytest.mark.parametrize("shape", [(7, 1, 8, 8), (7, 3, 5, 9), (7, 2, 1, 1)])
def test_the_whole_image_without_flip_is_the_identity(shape):
    images = 255 * torch.rand(shape, generator=generator())
    same = crop_only(1.0, 1.0, flip=False)(images, generator())
    torch.testing.assert_close(same, images, rtol=0, atol=1e-3)


def test_the_whole_image_with_flip_is_the_image_or_its_mirror():
    images = torch.rand(40, 1, 8, 8, generator=generator())
    seen = crop_only(1.0, 1.0, flip=True)(images, generator())
    same = (seen - images).abs().amax(dim=(1, 2, 3)) < 1e-4
    mirrored = (seen - images.flip(3)).abs().amax(dim=(1, 2, 3)) < 1e-4
    assert (same ^ mirrored).all()
    assert 0 < same.sum() < 40


def test_constant_images_stay_constant():
    images = torch.tensor([0.0, 200.0, -3.5])[:, None, None, None].expand(3, 2, 9, 6)
    torch.testing.assert_close(crop_only()(images, generator()), images)


def test_values_stay_within_those_of_the_image():
    images = torch.randn(50, 3, 7, 7, generator=generator())
    crops = crop_only(0.1)(images, generator()).flatten(1)
    assert (crops.amax(dim=1) <= images.flatten(1).amax(dim=1) + 1e-5).all()
    assert (crops.amin(dim=1) >= images.flatten(1).amin(dim=1) - 1e-5).all()


@pytest.mark.parametrize(
    ("augment", "batch"),
    [(RandomCrop(), torch.rand(6, 3, 8, 8)), (RowNoise(), torch.rand(6, 9))],
)
def test_the_generator_alone_decides(augment, batch):
    before, global_state = batch.clone(), torch.get_rng_state()
    first, again, other = (augment(batch, generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(batch, before)
    assert torch.equal(torch.get_rng_state(), global_state)
    drawn = generator(1)
    assert not torch.equal(augment(batch, drawn), augment(batch, drawn))


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_jitter_is_a_share_of_the_spread_of_the_rows(share):
    rows = 1000 + 5 * torch.randn(500, 20, generator=generator())
    rows += torch.arange(20) * 100  # where features lie does not count
    noise = RowNoise(share)(rows, generator(1)) - rows
    assert noise.std().item() == pytest.approx(share * 5, rel=0.05)
    assert noise.mean().item() == pytest.approx(0, abs=0.05)
    assert np.corrcoef(noise.T).shape == (20, 20)
    assert np.abs(np.corrcoef(noise.T) - np.eye(20)).max() < 0.3


def test_jitter_leaves_equal_rows():
    rows = torch.full((4, 3), 7.0)
    assert torch.equal(RowNoise()(rows, generator()), rows)


def test_user_augment_passes_the_batch():
    images = torch.rand(2, 1, 3, 3)
    assert torch.equal(
        apply_user_augment(lambda x: 2 * x, images, generator()), 2 * images
    )


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_user_augment_refuses_nan(value):
    with pytest.raises(ValueError, match="augment returned values that are NaN or inf"):
        apply_user_augment(lambda x: x * value, torch.ones(2, 1, 3, 3), generator())


@pytest.mark.parametrize(
    ("returned", "got"),
    [
        (None, "None"),
        (3.5, "float"),
        (np.zeros((2, 1, 3, 3)), r"\(2, 1, 3, 3\)"),
        (torch.zeros(2, 1, 3, 4), r"\(2, 1, 3, 4\)"),
        (torch.zeros(1, 1, 3, 3), r"\(1, 1, 3, 3\)"),
        (torch.zeros(2, 3, 3), r"\(2, 3, 3\)"),
    ],
)
def test_user_augment_refuses_another_shape(returned, got):
    message = rf"augment must return a tensor of shape \(2, 1, 3, 3\).*returned {got}"
    with pytest.raises(ValueError, match=message):
        apply_user_augment(lambda x: returned, torch.zeros(2, 1, 3, 3), generator())
