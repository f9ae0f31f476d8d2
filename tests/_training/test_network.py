"""Backbones, the fixed front-end, and the head."""

import urllib.request

import numpy as np
import pytest
import scipy.ndimage
import torch
from torch import nn

from skdeepcluster._training.network import (
    MeanMaxPool,
    Sobel,
    Standardize,
    build_network,
)

SHAPES = [
    (1, 1, 1),
    (1, 2, 3),
    (1, 8, 8),
    (3, 5, 5),
    (1, 28, 28),
    (13, 64, 64),
    (3, 20, 200),
    (3, 97, 3),
    (3, 96, 130),
    (3, 224, 224),
]


def build(backbone, shape, *, sobel=False, head_norm="batch", mean=None, scale=None):
    channels = shape[0]
    mean = np.zeros(channels) if mean is None else mean
    scale = np.ones(channels) if scale is None else scale
    return build_network(backbone, shape, mean, scale, sobel=sobel, head_norm=head_norm)


def items(shape, n=2):
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(0))


def assert_gives_features(network, shape):
    """Finite features (n, d) in training and, for any n, in evaluation."""
    assert network.train()(items(shape)).shape == (2, network.n_features)
    with torch.no_grad():
        for n in (1, 3):
            features = network.eval()(items(shape, n))
            assert features.shape == (n, network.n_features)
            assert features.dtype == torch.float32
            assert features.isfinite().all()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("sobel", [False, True])
def test_convnet_takes_images_of_any_size(shape, sobel):
    assert_gives_features(build("auto", shape, sobel=sobel), shape)


@pytest.mark.parametrize("shape", [(1,), (5,), (3, 4, 6)], ids=str)
@pytest.mark.parametrize("head_norm", ["batch", None])
def test_mlp_takes_rows_and_images(shape, head_norm):
    assert_gives_features(build("mlp", shape, head_norm=head_norm), shape)


def test_auto_is_a_convnet_for_images_and_a_perceptron_for_rows():
    for shape, expected in (((1, 8, 8), True), ((64,), False)):
        layers = build("auto", shape).modules()
        assert any(isinstance(layer, nn.Conv2d) for layer in layers) is expected


def test_more_pixels_give_deeper_networks():
    counts = [
        sum(isinstance(m, nn.Conv2d) for m in build("convnet", (1, s, s)).modules())
        for s in (3, 8, 16, 48, 96)
    ]
    assert counts == sorted(set(counts))


@pytest.fixture
def no_download(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("tried to download")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    monkeypatch.setattr(urllib.request, "urlretrieve", refuse)
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)


def test_alexnet_is_that_of_the_paper():
    network = build("alexnet", (3, 224, 224), sobel=True)
    layers = list(network.trunk)
    convolutions = [m for m in layers if isinstance(m, nn.Conv2d)]
    assert convolutions[0].in_channels == 2
    assert [m.out_channels for m in convolutions] == [96, 256, 384, 384, 256]
    assert [m.kernel_size[0] for m in convolutions] == [11, 5, 3, 3, 3]
    for convolution in convolutions:
        assert isinstance(layers[layers.index(convolution) + 1], nn.BatchNorm2d)
    assert sum(isinstance(m, nn.Dropout) for m in layers) == 2
    assert network.n_features == 4096
    (pool,) = (i for i, m in enumerate(layers) if isinstance(m, nn.AdaptiveAvgPool2d))
    with torch.no_grad():  # which changes nothing at 224 pixels
        maps = network.trunk[:pool].eval()(torch.zeros(1, 2, 224, 224))
    assert maps.shape[2:] == (6, 6)


@pytest.mark.usefixtures("no_download")
@pytest.mark.parametrize(
    ("name", "shape", "n_features"),
    [
        ("resnet18", (3, 32, 32), 512),
        ("resnet18", (1, 33, 40), 512),
        ("alexnet", (1, 224, 224), 4096),
        ("mobilenet_v3_small", (13, 32, 32), 1024),
    ],
)
def test_torchvision_model_with_any_number_of_channels(name, shape, n_features):
    network = build(name, shape)
    assert network.n_features == n_features
    assert_gives_features(network, shape)


@pytest.mark.parametrize("name", ["googlenet", "squeezenet1_0"])
def test_unusual_torchvision_models_work_or_are_refused(name):
    """Not all end in a linear layer, or return one tensor in training."""
    try:
        network = build(name, (3, 64, 64))
    except ValueError as error:
        assert f"backbone={name!r}" in str(error)  # noqa: PT017  either is right
    else:
        assert_gives_features(network, (3, 64, 64))


def test_unknown_backbone_lists_the_known_ones():
    message = r"backbone='resnet19' is unknown.*'mlp', 'convnet'.*alexnet.*vgg16_bn"
    with pytest.raises(ValueError, match=message):
        build("resnet19", (3, 32, 32))


@pytest.mark.parametrize(
    ("name", "near"),
    [("resnet", "resnet18"), ("VGG16BN", "vgg16_bn"), ("cnn", "convnet")],
)
def test_unknown_backbone_tells_what_is_near(name, near):
    with pytest.raises(ValueError, match=rf"Did you mean [\w' ]*'{near}'[\w' ]*\?"):
        build(name, (3, 32, 32))


@pytest.mark.parametrize("name", ["convnet", "resnet18"])
def test_rows_in_a_network_for_images(name):
    message = f"backbone='{name}' takes images, but X holds rows of 64.*image_shape"
    with pytest.raises(ValueError, match=message):
        build(name, (64,))


def test_images_too_small_for_a_model():
    with pytest.raises(ValueError, match=r"'alexnet' does not take .*\(n, 3, 8, 8\)"):
        build("alexnet", (3, 8, 8))


def test_pooling_keeps_mean_and_maximum_of_each_channel():
    maps = torch.randn(4, 3, 5, 6)
    pooled = MeanMaxPool()(maps.bfloat16())
    assert pooled.dtype == torch.float32
    torch.testing.assert_close(pooled[:, :3], maps.mean((2, 3)), atol=0.01, rtol=0)
    torch.testing.assert_close(pooled[:, 3:], maps.amax((2, 3)), atol=0.02, rtol=0)


# Modules of the user's own.


class Own(nn.Module):
    """A convnet on 3 channels, whose output goes through a function."""

    def __init__(self, function=lambda x: x.mean(dim=(2, 3))):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6))
        self.function = function

    def forward(self, x):
        return self.function(self.layers(x))


@pytest.mark.parametrize("training", [True, False])
def test_own_module_is_copied_with_its_weights_and_mode(training):
    module = Own().train(training)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    network = build(module, (3, 8, 8))
    trunk = network.trunk
    assert trunk is not module
    assert trunk.training == training
    for name, value in trunk.state_dict().items():
        assert torch.equal(value, before[name])  # its batch norm has seen no zeros
    assert_gives_features(network, (3, 8, 8))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name])
    assert module.training == training


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: x, r"returns shape \(2, 6, 6, 6\) for 2 items.*AdaptiveAvgPool2d"),
        (lambda x: x.mean(), r"returns shape \(\) for 2 items"),
        (lambda x: x.mean(dim=(0, 2))[:1], r"returns shape \(1, 6\) for 2 items"),
        (lambda x: x[:, :0, 0, 0], r"returns shape \(2, 0\) for 2 items"),
        (lambda x: (x.flatten(1), x), "returns tuple, but must return a float tensor"),
        (lambda x: None, "returns NoneType, but must"),
        (lambda x: x.flatten(1).long(), "returns Tensor, but must return a float"),
        (lambda x: x.mean(dim=7), "does not take a batch"),
    ],
)
def test_unusable_output_of_an_own_module(function, message):
    with pytest.raises(ValueError, match=rf"backbone='Own' {message}"):
        build(Own(function), (3, 8, 8))


@pytest.mark.parametrize(
    ("shape", "sobel", "seen"),
    [
        ((1, 8, 8), False, r"\(n, 1, 8, 8\)"),
        ((3, 8, 8), True, r"\(n, 2, 8, 8\)"),
        ((3, 2, 2), False, r"\(n, 3, 2, 2\)"),
        ((12,), False, r"\(n, 12\)"),
    ],
)
def test_own_module_that_does_not_take_the_items(shape, sobel, seen):
    message = f"backbone='Own' does not take a batch of shape {seen}: "
    with pytest.raises(ValueError, match=message):
        build(Own(), shape, sobel=sobel)


@pytest.mark.parametrize("frozen", [nn.Flatten(), Own().requires_grad_(False)])
def test_own_module_without_anything_to_train(frozen):
    with pytest.raises(ValueError, match=r"backbone='\w+' has no parameters that"):
        build(frozen, (3, 8, 8))


# Front-end and normalization.


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("shape", [(4,), (4, 3, 5)])
def test_standardize(shape, dtype):
    mean, scale = np.array([0.0, 100, 3, -7]), np.array([1.0, 50, 0.1, 2])
    x = (255 * items(shape)).to(dtype)
    standardized = Standardize(mean, scale, len(shape))(x)
    assert standardized.dtype == torch.float32
    for channel in range(4):
        expected = (x[:, channel].numpy() - mean[channel]) / scale[channel]
        np.testing.assert_allclose(standardized[:, channel], expected, rtol=1e-4)


def test_what_is_far_from_the_images_of_the_fit_stays_finite():
    standardize = Standardize(np.array([5.0]), np.array([1e-20]), 2)
    x = torch.tensor([[1e30], [-1e30], [5.0]])
    assert torch.equal(standardize(x), torch.tensor([[1e6], [-1e6], [0]]))
    network = build("mlp", (1,), mean=np.array([5.0]), scale=np.array([1e-20])).eval()
    assert network(x).isfinite().all()


@pytest.mark.parametrize("channels", [1, 3])
def test_sobel_equals_scipys_inside_the_image(channels):
    images = items((channels, 9, 12))
    gradients = Sobel()(images)
    assert gradients.shape == (2, 2, 9, 12)
    gray = images.double().mean(dim=1).numpy()
    for gradient, axis in ((gradients[:, 0], 2), (gradients[:, 1], 1)):
        expected = [scipy.ndimage.sobel(image, axis - 1) for image in gray]
        inside = np.array(expected)[:, 1:-1, 1:-1]
        np.testing.assert_allclose(gradient[:, 1:-1, 1:-1], inside, atol=1e-5)


class Flat(nn.Module):
    """Flatten, with a weight so that there is something to train."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return self.weight * x.flatten(1)


@pytest.mark.parametrize("sobel", [True, False])
def test_the_front_end_comes_first_and_is_not_learned(sobel):
    mean, scale = np.array([9.0, 99, 999]), np.array([2.0, 3, 4])
    shape = (3, 5, 5)
    network = build(Flat(), shape, sobel=sobel, mean=mean, scale=scale, head_norm=None)
    expected = Standardize(mean, scale, 3)(100 * items(shape))
    expected = Sobel()(expected) if sobel else expected
    assert torch.equal(network(100 * items(shape)), expected.flatten(1))
    assert len(list(network.parameters())) == 1
    assert "front.0.mean" in network.state_dict()  # saved with the weights


@torch.no_grad()
def test_head_norm_standardizes_a_batch_in_float32():
    x = items((3, 8, 8), 64)
    with torch.autocast("cpu", torch.bfloat16):
        features = build("convnet", (3, 8, 8)).train()(x)
        plain = build("convnet", (3, 8, 8), head_norm=None).train()(x)
    assert features.dtype == plain.dtype == torch.float32
    torch.testing.assert_close(features.mean(0), torch.zeros(256), rtol=0, atol=1e-5)
    assert features.std(dim=0).median().item() == pytest.approx(1, abs=0.05)
    assert plain.std(dim=0).median() < 0.5


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_points_are_the_features_or_projected_to_the_unit_sphere(dtype):
    x = items((1, 8, 8), 6)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        plain = build("convnet", (1, 8, 8)).eval()
        assert torch.equal(plain.points(x), plain(x))
        assert plain.n_points == plain.n_features
        zeros, ones = np.zeros(1), np.ones(1)
        options = {"sobel": False, "head_norm": "batch", "n_projected": 7}
        network = build_network("convnet", (1, 8, 8), zeros, ones, **options).eval()
        points = network.points(x)
    assert (network.n_points, network.n_features) == (7, 256)
    assert points.shape == (6, 7)
    assert points.dtype == torch.float32
    torch.testing.assert_close(points.norm(dim=1), torch.ones(6))
    assert network(x).shape == (6, 256)
