"""Backbones, fixed preprocessing, normalization and projection."""

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


def build(
    backbone,
    shape,
    *,
    sobel=False,
    head_norm="batch",
    mean=None,
    scale=None,
    n_projected=None,
):
    return build_network(
        backbone,
        shape,
        mean=np.zeros(shape[0]) if mean is None else mean,
        scale=np.ones(shape[0]) if scale is None else scale,
        sobel=sobel,
        head_norm=head_norm,
        n_projected=n_projected,
    )


def draw_images(shape, n=2):
    """Return images or rows, uniform between 0 and 1."""
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(0))


def check_features(network, shape):
    """Check features in training, and finite features of any batch in evaluation."""
    assert network.train()(draw_images(shape)).shape == (2, network.n_features)
    with torch.no_grad():
        for n in (1, 3):
            features = network.eval()(draw_images(shape, n))
            assert features.shape == (n, network.n_features)
            assert features.dtype == torch.float32
            assert features.isfinite().all()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("sobel", [False, True])
def test_convnet_takes_images_of_any_size(shape, sobel):
    check_features(build("auto", shape, sobel=sobel), shape)


@pytest.mark.parametrize("shape", [(1,), (5,), (3, 4, 6)], ids=str)
@pytest.mark.parametrize("head_norm", ["batch", None])
def test_mlp_takes_rows_and_images(shape, head_norm):
    check_features(build("mlp", shape, head_norm=head_norm), shape)


def test_auto_is_a_convnet_for_images_and_an_mlp_for_rows():
    for shape, is_image in (((1, 8, 8), True), ((64,), False)):
        layers = build("auto", shape).modules()
        assert any(isinstance(layer, nn.Conv2d) for layer in layers) is is_image


def test_larger_images_have_more_convolutions():
    counts = [
        sum(
            isinstance(layer, nn.Conv2d)
            for layer in build("convnet", (1, side, side)).modules()
        )
        for side in (3, 8, 16, 48, 96)
    ]
    assert counts == sorted(set(counts))


@pytest.fixture
def no_download(monkeypatch):
    """Make any download an error."""

    def refuse(*args, **kwargs):
        raise AssertionError("A backbone must not download weights.")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    monkeypatch.setattr(urllib.request, "urlretrieve", refuse)
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)


def test_alexnet_matches_paper():
    """Section 3.4 describes the layers."""
    network = build("alexnet", (3, 224, 224), sobel=True)
    layers = list(network.trunk)
    convolutions = [layer for layer in layers if isinstance(layer, nn.Conv2d)]
    assert convolutions[0].in_channels == 2
    assert [conv.out_channels for conv in convolutions] == [96, 256, 384, 384, 256]
    assert [conv.kernel_size[0] for conv in convolutions] == [11, 5, 3, 3, 3]
    for convolution in convolutions:
        assert isinstance(layers[layers.index(convolution) + 1], nn.BatchNorm2d)
    assert sum(isinstance(layer, nn.Dropout) for layer in layers) == 2
    assert network.n_features == 4096
    types = [type(layer) for layer in layers]
    pool = types.index(nn.AdaptiveAvgPool2d)
    assert types.count(nn.AdaptiveAvgPool2d) == 1
    # The pooling to 6x6 leaves images of 224 pixels as they are.
    with torch.no_grad():
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
def test_torchvision_model_takes_any_number_of_channels(name, shape, n_features):
    network = build(name, shape)
    assert network.n_features == n_features
    check_features(network, shape)


@pytest.mark.parametrize("name", ["googlenet", "squeezenet1_0"])
def test_unusual_torchvision_models_work_or_are_refused(name):
    """Some models have no linear layer, or return several tensors in training."""
    try:
        network = build(name, (3, 64, 64))
    except ValueError as error:
        assert f"backbone={name!r}" in str(error)  # noqa: PT017
    else:
        check_features(network, (3, 64, 64))


def test_error_about_unknown_backbone_lists_backbones():
    message = r"backbone='resnet19' is unknown.*'mlp', 'convnet'.*alexnet.*vgg16_bn"
    with pytest.raises(ValueError, match=message):
        build("resnet19", (3, 32, 32))


@pytest.mark.parametrize(
    ("name", "similar"),
    [("resnet", "resnet18"), ("VGG16BN", "vgg16_bn"), ("cnn", "convnet")],
)
def test_error_about_unknown_backbone_suggests_similar_names(name, similar):
    message = rf"Did you mean [\w' ]*'{similar}'[\w' ]*\?"
    with pytest.raises(ValueError, match=message):
        build(name, (3, 32, 32))


@pytest.mark.parametrize("name", ["convnet", "resnet18"])
def test_rows_are_refused_by_a_backbone_for_images(name):
    message = f"backbone='{name}' takes images, but X holds rows of 64.*image_shape"
    with pytest.raises(ValueError, match=message):
        build(name, (64,))


def test_too_small_images_are_refused():
    message = r"backbone='alexnet' rejects .*\(n, 3, 8, 8\).*image_size"
    with pytest.raises(ValueError, match=message):
        build("alexnet", (3, 8, 8))


def test_pooling_returns_mean_and_maximum_of_each_channel():
    maps = torch.randn(4, 3, 5, 6)
    pooled = MeanMaxPool()(maps.bfloat16())
    assert pooled.dtype == torch.float32
    torch.testing.assert_close(pooled[:, :3], maps.mean((2, 3)), atol=0.01, rtol=0)
    torch.testing.assert_close(pooled[:, 3:], maps.amax((2, 3)), atol=0.02, rtol=0)


# Modules of the user.


class UserModule(nn.Module):
    """A convnet on 3 channels, followed by a function."""

    def __init__(self, function=lambda x: x.mean(dim=(2, 3))):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6))
        self.function = function

    def forward(self, x):
        return self.function(self.layers(x))


@pytest.mark.parametrize("training", [True, False])
def test_user_module_is_copied_with_weights_and_mode(training):
    module = UserModule().train(training)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    network = build(module, (3, 8, 8))
    trunk = network.trunk
    assert trunk is not module
    assert trunk.training == training
    # The batch that counts the outputs has not changed the statistics of batch norm.
    for name, value in trunk.state_dict().items():
        assert torch.equal(value, before[name])
    check_features(network, (3, 8, 8))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name])
    assert module.training == training


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: x, r"returns shape \(2, 6, 6, 6\) for 2 images.*AdaptiveAvgPool2d"),
        (lambda x: x.mean(), r"returns shape \(\) for 2 images"),
        (lambda x: x.mean(dim=(0, 2))[:1], r"returns shape \(1, 6\) for 2 images"),
        (lambda x: x[:, :0, 0, 0], r"returns shape \(2, 0\) for 2 images"),
        (lambda x: (x.flatten(1), x), "returns tuple, but must return a float tensor"),
        (lambda x: None, "returns NoneType, but must"),
        (lambda x: x.flatten(1).long(), "returns Tensor, but must return a float"),
        (lambda x: x.mean(dim=7), "rejects a batch"),
    ],
)
def test_user_module_with_unusable_output_is_refused(function, message):
    with pytest.raises(ValueError, match=rf"backbone='UserModule' {message}"):
        build(UserModule(function), (3, 8, 8))


@pytest.mark.parametrize(
    ("shape", "sobel", "expected"),
    [
        ((1, 8, 8), False, r"\(n, 1, 8, 8\)"),
        ((3, 8, 8), True, r"\(n, 2, 8, 8\)"),
        ((3, 2, 2), False, r"\(n, 3, 2, 2\)"),
        ((12,), False, r"\(n, 12\)"),
    ],
)
def test_user_module_that_rejects_images_is_refused(shape, sobel, expected):
    message = f"backbone='UserModule' rejects a batch of shape {expected}: "
    with pytest.raises(ValueError, match=message):
        build(UserModule(), shape, sobel=sobel)


@pytest.mark.parametrize("frozen", [nn.Flatten(), UserModule().requires_grad_(False)])
def test_user_module_without_trainable_parameters_is_kept(frozen):
    network = build(frozen, (3, 8, 8)).eval()
    images = torch.rand(2, 3, 8, 8)
    standardized = network.front(images)
    assert torch.equal(network.trunk(standardized), frozen.eval()(standardized))
    assert not any(weights.requires_grad for weights in network.parameters())


# Preprocessing, normalization and projection.


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("shape", [(4,), (4, 3, 5)])
def test_standardize_divides_by_scale_of_each_channel(shape, dtype):
    mean, scale = np.array([0.0, 100, 3, -7]), np.array([1.0, 50, 0.1, 2])
    x = (255 * draw_images(shape)).to(dtype)
    standardized = Standardize(mean, scale, len(shape))(x)
    assert standardized.dtype == torch.float32
    for channel in range(4):
        expected = (x[:, channel].numpy() - mean[channel]) / scale[channel]
        np.testing.assert_allclose(standardized[:, channel], expected, rtol=1e-4)


def test_standardized_values_are_clipped():
    standardize = Standardize(np.array([5.0]), np.array([1e-20]), 2)
    x = torch.tensor([[1e30], [-1e30], [5.0]])
    assert torch.equal(standardize(x), torch.tensor([[1e6], [-1e6], [0]]))
    network = build("mlp", (1,), mean=np.array([5.0]), scale=np.array([1e-20])).eval()
    assert network(x).isfinite().all()


@pytest.mark.parametrize("channels", [1, 3])
def test_sobel_equals_scipy_inside_the_image(channels):
    images = draw_images((channels, 9, 12))
    gradients = Sobel()(images)
    assert gradients.shape == (2, 2, 9, 12)
    gray = images.double().mean(dim=1).numpy()
    for gradient, axis in ((gradients[:, 0], 2), (gradients[:, 1], 1)):
        expected = [scipy.ndimage.sobel(image, axis - 1) for image in gray]
        inside = np.array(expected)[:, 1:-1, 1:-1]
        np.testing.assert_allclose(gradient[:, 1:-1, 1:-1], inside, atol=1e-5)


class ScaledFlatten(nn.Module):
    """Flatten images, and multiply them by the only parameter."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return self.weight * x.flatten(1)


@pytest.mark.parametrize("sobel", [True, False])
def test_preprocessing_is_fixed_and_precedes_backbone(sobel):
    mean, scale = np.array([9.0, 99, 999]), np.array([2.0, 3, 4])
    shape = (3, 5, 5)
    network = build(
        ScaledFlatten(), shape, sobel=sobel, mean=mean, scale=scale, head_norm=None
    )
    images = 100 * draw_images(shape)
    expected = Standardize(mean, scale, 3)(images)
    expected = Sobel()(expected) if sobel else expected
    assert torch.equal(network(images), expected.flatten(1))
    assert len(list(network.parameters())) == 1
    # The constants are saved together with the weights.
    assert "front.0.mean" in network.state_dict()


@torch.no_grad()
def test_head_norm_standardizes_a_batch_in_float32():
    x = draw_images((3, 8, 8), 64)
    with torch.autocast("cpu", torch.bfloat16):
        features = build("convnet", (3, 8, 8)).train()(x)
        plain = build("convnet", (3, 8, 8), head_norm=None).train()(x)
    assert features.dtype == plain.dtype == torch.float32
    torch.testing.assert_close(features.mean(0), torch.zeros(256), rtol=0, atol=1e-5)
    assert features.std(dim=0).median().item() == pytest.approx(1, abs=0.05)
    assert plain.std(dim=0).median() < 0.5


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_points_are_features_or_projections_of_unit_length(dtype):
    x = draw_images((1, 8, 8), 6)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        plain = build("convnet", (1, 8, 8)).eval()
        assert torch.equal(plain.points(x), plain(x))
        assert plain.n_points == plain.n_features
        network = build("convnet", (1, 8, 8), n_projected=7).eval()
        points = network.points(x)
    assert (network.n_points, network.n_features) == (7, 256)
    assert points.shape == (6, 7)
    assert points.dtype == torch.float32
    torch.testing.assert_close(points.norm(dim=1), torch.ones(6))
    assert network(x).shape == (6, 256)
