"""Images that maximize the activation of filters."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from torch import nn

from skdeepcluster import DeepClusterEstimator
from skdeepcluster._activations import maps as maps_module
from skdeepcluster.inspection import _ascent, maximal_images

# Quick fits may not converge.
pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

SHAPE = (1, 8, 8)


def mean_activations(maps):
    """Return the mean activation of the filter of each generated image."""
    return maps.mean(axis=(2, 3)).diagonal()


def relative_detail(images):
    """Return the energy of differences between neighboring pixels."""
    images = images - images.mean(axis=(2, 3), keepdims=True)
    return np.square(np.diff(images, axis=3)).sum() / np.square(images).sum()


@pytest.mark.parametrize("layer", ["conv2", "conv3"])
def test_maximal_images_activate_more_than_images_and_noise(
    model, images, compute_maps, layer
):
    generated = maximal_images(model, layer, random_state=0)
    assert generated.dtype == np.float32
    assert generated.min() >= 0
    assert generated.max() <= 255
    activations = mean_activations(compute_maps(layer, generated))
    rng = np.random.default_rng(0)
    noise = rng.normal(generated.mean(), generated.std(), (200, *SHAPE))
    for candidates in (images, noise.clip(0, 255)):
        best = compute_maps(layer, candidates).mean(axis=(2, 3)).max(axis=0)
        assert len(activations) == len(best)
        assert np.mean(activations > 1.1 * best) > 0.95
        assert np.median(activations / best) > 1.4


def test_activation_grows_with_n_steps(model, compute_maps):
    short, long = (
        mean_activations(
            compute_maps(
                "conv4",
                maximal_images(model, "conv4", n_steps=n_steps, random_state=0),
            )
        )
        for n_steps in (1, 40)
    )
    assert np.all(long > short)


def test_maximal_images_depend_on_random_state_only(model):
    first, second, other_seed = (
        maximal_images(model, "conv2", [4, 1, 7], n_steps=5, random_state=seed)
        for seed in (3, 3, 4)
    )
    assert_array_equal(first, second)
    assert np.abs(other_seed - first)[1].max() > 20


def test_maximal_images_do_not_depend_on_the_selected_filters(model):
    images = maximal_images(model, "conv2", [4, 1, 7], n_steps=5, random_state=3)
    single = maximal_images(model, "conv2", [1], n_steps=5, random_state=3)
    assert_allclose(single[0], images[1], atol=0.5)
    other_seed = maximal_images(model, "conv2", [1], n_steps=5, random_state=4)
    assert np.abs(other_seed - single).max() > 20


def test_maximal_images_do_not_depend_on_the_batch_size(model, monkeypatch):
    images = maximal_images(model, "conv2", range(6), n_steps=5, random_state=0)
    monkeypatch.setattr(maps_module, "MAX_BATCH_SIZE", 2)
    batched = maximal_images(model, "conv2", range(6), n_steps=5, random_state=0)
    assert_allclose(batched, images, atol=0.5)


def test_blur_removes_detail(model):
    sharp, blurred = (
        maximal_images(model, "conv4", range(16), n_steps=30, blur=blur, random_state=0)
        for blur in (0, 2)
    )
    assert relative_detail(blurred) < 0.8 * relative_detail(sharp)


def test_gaussian_blur_keeps_mean_and_shape():
    images = torch.zeros(1, 2, 9, 9)
    images[0, 0, 4, 4] = 1
    blurred = _ascent._gaussian_blur(images, 1.0)
    assert blurred.shape == images.shape
    assert_allclose(blurred.sum(dim=(2, 3)), [[1, 0]], atol=1e-6)
    variance = (blurred[0, 0].sum(dim=0) * (torch.arange(9) - 4) ** 2).sum()
    assert variance == pytest.approx(1.0, abs=0.05)
    assert _ascent._gaussian_blur(images, 0.0) is images


def test_maximal_images_of_float_images_are_near_their_mean(images):
    values = np.float32(images[:40]) / 255 - 5
    model = DeepClusterEstimator(2, max_iter=1, epochs_per_iter=1, random_state=0)
    generated = maximal_images(model.fit(values), "conv2", random_state=0, n_steps=20)
    assert np.abs(generated - values.mean()).max() <= 3.001 * values.std()
    assert generated.std() > 0.5 * values.std()


def test_maximal_images_of_a_module(make_network):
    generated = maximal_images(
        make_network(), "conv2", n_steps=30, image_shape=(1, 12, 10), random_state=0
    )
    assert generated.shape == (6, 1, 12, 10)
    assert np.abs(generated).max() <= 3
    with pytest.raises(ValueError, match="Set image_shape"):
        maximal_images(make_network(), "conv2")


def test_maximal_images_of_another_size(model):
    generated = maximal_images(model, "conv1", [0], n_steps=2, image_shape=(1, 13, 16))
    assert generated.shape == (1, 1, 13, 16)


def test_maximal_images_of_gradient_filters(images):
    model = DeepClusterEstimator(
        2, sobel=True, max_iter=1, epochs_per_iter=1, random_state=0
    ).fit(images[:40])
    assert maximal_images(model, "conv1", [0], n_steps=2).shape == (1, *SHAPE)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_gradients_are_computed_in_any_mode(model, make_network, mode):
    expected = maximal_images(model, "conv1", [0], n_steps=3, random_state=0)
    network = make_network()
    with mode(), torch.autocast("cpu", torch.bfloat16):
        generated = maximal_images(model, "conv1", [0], n_steps=3, random_state=0)
        maximal_images(network, "conv1", n_steps=1, image_shape=SHAPE)
    assert_array_equal(generated, expected)


def test_silent_filter_becomes_active(make_network):
    network = make_network()
    with torch.no_grad():
        # Five times the contribution of the noise.
        network[0].bias.fill_(-3)
    generated = maximal_images(network, "conv1", image_shape=SHAPE, random_state=0)
    with torch.no_grad():
        maps = network[0](torch.from_numpy(generated))
    assert mean_activations(maps.numpy()).max() > 0


def test_silent_unit_of_a_perceptron_becomes_active():
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.ReLU(inplace=True))
    network.append(nn.Linear(4, 2))
    with torch.no_grad():
        network[1].bias.fill_(-3)

    def generate(layer):
        images = maximal_images(network, layer, image_shape=SHAPE, random_state=0)
        return torch.from_numpy(images)

    with torch.no_grad():
        assert network[:2](generate("layer1")).diagonal().max() > 0
        # A path is the output of the ReLU itself, which has no gradient at zero.
        assert network[:2](generate("2")).diagonal().max() < 0


def test_each_filter_starts_from_its_own_noise(make_network):
    network = make_network()
    weight, bias = network[0].weight, network[0].bias
    with torch.no_grad():
        weight[1], bias[1] = weight[0], bias[0]
    image_a, image_b = maximal_images(
        network, "conv1", [0, 1], n_steps=1, image_shape=SHAPE, random_state=0
    )
    assert abs(np.corrcoef(image_a.ravel(), image_b.ravel())[0, 1]) < 0.5


def test_channel_without_gradient_decays_to_the_mean():
    network = nn.Conv2d(2, 1, 3, padding=1)
    with torch.no_grad():
        network.weight[:, 1] = 0
    used, unused = maximal_images(
        network, "conv1", n_steps=200, blur=0, image_shape=(2, 8, 8), random_state=0
    )[0]
    assert used.std() > 0.5
    assert unused.std() == pytest.approx((1 - _ascent.DECAY) ** 200, rel=0.2)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"n_steps": 0}, "n_steps"),
        ({"blur": -1}, "blur"),
        ({"image_shape": (8, 8)}, "image_shape"),
        ({"image_shape": (3, 8, 8)}, r"does not take a batch of shape \(n, 3, 8, 8\)"),
    ],
)
def test_maximal_images_rejects_wrong_parameters(model, params, message):
    with pytest.raises(ValueError, match=message):
        maximal_images(model, "conv1", **params)


def test_maximal_images_of_rows_needs_an_image_shape(rows_model):
    with pytest.raises(ValueError, match="Set image_shape"):
        maximal_images(rows_model, "trunk.0")
