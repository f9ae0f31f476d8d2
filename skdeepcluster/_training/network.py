"""Network: standardization, backbone, normalization, and the projection to points."""

import copy
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from .pixel_statistics import guess_statistics
from .pretrained import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    NETWORKS_WITH_AUXILIARY_HEADS,
    OWN_NETWORKS,
    TIMM_PREFIX,
    Preprocessing,
    build_timm,
    check_torchvision_name,
    drop_classifier,
    load_given_trunk,
    load_weight_file,
    warn_of_classifier,
)

# Number of channels of the small convnet's first stage.
WIDTH = 32
# Images with at least this shorter side are halved before the stages, which have most
# of their work in the first layers. At 64x64 pixels this saves three quarters of the
# multiplications.
MIN_HALVED_SIDE = 48
# Largest standardized value. No image is this far from the images of the fit.
MAX_STANDARDIZED = 1e6


class FeatureExtractor(Protocol):
    """A network that returns a row of features for each image."""

    n_features: int

    def eval(self) -> Any:
        """Set evaluation mode."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return features, float32 (n, n_features)."""


class TrainableNetwork(Protocol):
    """A network that is trained together with a head on its points."""

    def train(self, mode: bool = True) -> Any:
        """Set training mode."""

    def modules(self) -> Any:
        """Return all modules of the network."""

    def points(self, x: torch.Tensor) -> torch.Tensor:
        """Return the input of the head, float32 (n, n_points)."""


class Standardize(nn.Module):
    """Map pixels, uint8 or float, to zero mean and unit scale."""

    mean: torch.Tensor
    scale: torch.Tensor

    def __init__(self, mean: np.ndarray, scale: np.ndarray, item_ndim: int):
        super().__init__()
        shape = (-1,) + (1,) * (item_ndim - 1)
        self.register_buffer("mean", torch.as_tensor(mean).float().reshape(shape))
        self.register_buffer("scale", torch.as_tensor(scale).float().reshape(shape))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (x - mean) / scale, clipped so that no network overflows."""
        standardized = (x - self.mean) / self.scale
        return standardized.clamp_(-MAX_STANDARDIZED, MAX_STANDARDIZED)


class GivenInput(Standardize):
    """Map images to what given weights expect: size, color and standardization.

    Gray images become color by repetition.

    Parameters
    ----------
    preprocessing : Preprocessing
    black, white : float
        Values of black and white in the units of X.
    is_decoded : bool, default=False
        See `BackboneSetup`.
    """

    def __init__(
        self,
        preprocessing: Preprocessing,
        black: float,
        white: float,
        is_decoded: bool = False,
    ):
        mean = black + (white - black) * np.array(preprocessing.mean)
        scale = (white - black) * np.array(preprocessing.std)
        super().__init__(mean, scale, item_ndim=3)
        self.preprocessing = preprocessing
        self.black, self.white = black, white
        self.is_decoded = is_decoded

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return standardized images, float32 (n, 3, H, W)."""
        if self.white - self.black > 255:
            # Pixels beyond white, found as a quantile, are no brighter than white.
            x = x.clamp(self.black, self.white)
        side = self.preprocessing.image_size
        is_square = x.shape[2:] == (side, side)
        # Squares that decoding has cropped must not be cropped again.
        if side is not None and not (self.is_decoded and is_square):
            x = resize_batch(x, self.preprocessing)
        return super().forward(x)


class CustomInput(Standardize):
    """Map images to a network's input by a user's function.

    The statistics of the data only serve to recognize data in other units.
    """

    def __init__(
        self, function: Callable, mean: np.ndarray, scale: np.ndarray, item_ndim: int
    ):
        super().__init__(mean, scale, item_ndim)
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return what the function makes of a float32 batch in the units of X."""
        return self.function(x.float())


def resize_batch(images: torch.Tensor, preprocessing: Preprocessing) -> torch.Tensor:
    """Scale the shorter side, and crop squares around the center, as torchvision does.

    Parameters
    ----------
    images : tensor of shape (n, C, H, W), uint8 or float
    preprocessing : Preprocessing
    """
    from torchvision.transforms import InterpolationMode, functional

    side = preprocessing.image_size
    resized = functional.resize(
        images,
        [preprocessing.shorter_side or side],
        interpolation=InterpolationMode(preprocessing.interpolation),
        antialias=True,
    )
    return functional.center_crop(resized, [side, side])


class Sobel(nn.Module):
    """Average the channels to gray, then take fixed Sobel gradients (section 3.4)."""

    kernels: torch.Tensor

    def __init__(self):
        super().__init__()
        slope = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]])
        self.register_buffer("kernels", torch.stack([slope, slope.T])[:, None])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return horizontal and vertical gradients, (n, 2, H, W)."""
        gray = x.mean(dim=1, keepdim=True)
        return nn.functional.conv2d(gray, self.kernels.to(gray.dtype), padding=1)


class MeanMaxPool(nn.Module):
    """Pool each channel over all positions, to its mean and its maximum.

    The mean measures how much of a pattern there is. The maximum keeps small patterns,
    which a mean over many positions hides.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (n, 2 C) for maps (n, C, H, W)."""
        positions = x.float().flatten(2)
        return torch.cat([positions.mean(dim=2), positions.amax(dim=2)], dim=1)


class UnitLength(nn.Module):
    """Scale rows to unit length."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return rows of length 1, float32. Rows of zeros stay zero."""
        return nn.functional.normalize(x.float(), dim=1)


def projection_head(n_features: int, n_outputs: int) -> nn.Module:
    """Return the projection head of DeepCluster-v2: an MLP to the unit sphere."""
    return nn.Sequential(
        nn.Linear(n_features, n_features, bias=False),
        nn.BatchNorm1d(n_features),
        nn.ReLU(inplace=True),
        nn.Linear(n_features, n_outputs),
        UnitLength(),
    )


class Network(nn.Module):
    """Standardization, backbone and normalization: images to features.

    Between features and head there is a batch norm without weights. Pooled features
    have a tiny scale, from which a fresh N(0, 0.01) head hardly learns in the few
    hundred steps of a small data set. The paper has no such norm (`head_norm=None`).

    Points are clustered and classified. They are the features, or the outputs of a
    projection head on the features.

    Parameters
    ----------
    trunk : nn.Module
        Backbone: a batch of images to (n, n_features).
    n_features : int
    front : nn.Sequential
        Fixed preprocessing. Its first module is `Standardize`.
    head_norm : "batch" or None
    n_projected : int or None
        Number of outputs of the projection head. None is no projection head.
    setup : BackboneSetup or None
        If the weights of the backbone are given, its batch-norm statistics are kept,
        also in training, and features are the backbone's own outputs.
    """

    def __init__(
        self,
        trunk: nn.Module,
        n_features: int,
        front: nn.Sequential,
        head_norm: str | None,
        n_projected: int | None = None,
        setup: "BackboneSetup | None" = None,
    ):
        super().__init__()
        self.setup = setup or BackboneSetup()
        self.front = front
        self.trunk = trunk
        self.norm = (
            nn.BatchNorm1d(n_features, affine=False) if head_norm else nn.Identity()
        )
        self.n_features = n_features
        self.n_points = n_projected or n_features
        self.projection = (
            projection_head(n_features, n_projected) if n_projected else nn.Identity()
        )

    @property
    def input_statistics(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and scale of each channel or feature in the fit, float32."""
        mean, scale = self.get_buffer("front.0.mean"), self.get_buffer("front.0.scale")
        return mean.cpu().numpy().flatten(), scale.cpu().numpy().flatten()

    def guess_preprocessing(self, size: tuple[int, int]) -> bool:
        """Standardize pixels as in the training of the backbone, if that can be seen.

        Returns
        -------
        is_changed : bool
            Whether images are now standardized in another way than before.
        """
        setup = self.setup
        assert setup.preprocessing is not None
        side = setup.preprocessing.image_size
        mean, std = guess_statistics(self.trunk, (side, side) if side else size)
        guessed = replace(setup.preprocessing, mean=mean, std=std)
        first = GivenInput(guessed, setup.black, setup.white, setup.is_decoded)
        self.setup = replace(setup, preprocessing=guessed)
        self.front = nn.Sequential(first, *self.front[1:])
        return guessed != setup.preprocessing

    def points(self, x: torch.Tensor) -> torch.Tensor:
        """Return points, float32 (n, n_points)."""
        features = self(x)
        return self.projection(
            self._normalize(features) if self.setup.is_given else features
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return features, float32 (n, n_features)."""
        features = self.trunk(self.front(x)).float()
        return features if self.setup.is_given else self._normalize(features)

    def train(self, mode: bool = True) -> "Network":
        """Set training mode, except for a backbone with given weights."""
        super().train(mode)
        if self.setup.is_given:
            # Statistics of few images would replace the statistics of the training.
            self.trunk.eval()
        return self

    def _normalize(self, features: torch.Tensor) -> torch.Tensor:
        # Statistics in bfloat16 would lose the small differences between features.
        with torch.autocast(features.device.type, enabled=False):
            return self.norm(features)


class PointExtractor(nn.Module):
    """A network that returns the points of another network as its features."""

    def __init__(self, network: Network):
        super().__init__()
        self.network = network
        self.n_features = network.n_points

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return points, float32 (n, n_points)."""
        return self.network.points(x)


@dataclass(frozen=True)
class BackboneSetup:
    """Where the weights of a backbone come from, and which images it expects.

    Parameters
    ----------
    is_given : bool
        False draws fresh weights, except for a module, which keeps its own.
    weights : str, path-like or None
        Parameter `weights`. None for a module with its own weights, and for rows that
        are embeddings already.
    preprocessing : Preprocessing or None
        None standardizes by the data.
    function : callable or None
        Parameter `preprocess`, if it is a function. It replaces all of `preprocessing`
        but the size of files.
    black, white : float
        Values of black and white in the units of X.
    is_decoded : bool
        Whether images get the expected size when they are decoded. False resizes them
        in the network, if `image_shape` is another size.
    """

    is_given: bool = False
    weights: str | os.PathLike | None = None
    preprocessing: Preprocessing | None = None
    function: Callable | None = None
    black: float = 0.0
    white: float = 255.0
    is_decoded: bool = False

    @property
    def name_of_preprocessing(self) -> str:
        """Name or formula of the preprocessing of pixels, for `recipe_`."""
        if self.function is not None:
            return name_of_function(self.function)
        assert self.preprocessing is not None
        mean, std = self.preprocessing.mean, self.preprocessing.std
        if (mean, std) == (IMAGENET_MEAN, IMAGENET_STD):
            return "imagenet"
        # White is 1 in these units.
        return f"(pixels - {_format(mean)}) / {_format(std)}"

    @property
    def uses_preprocessing(self) -> bool:
        """Whether `preprocessing` makes the input of the backbone."""
        return self.preprocessing is not None and self.function is None


def name_of_function(function: Callable) -> str:
    """Return the name of a function, or of the class of a callable object."""
    return getattr(function, "__qualname__", type(function).__qualname__)


def _format(values: tuple[float, ...]) -> str:
    """Return one number if all values are equal, otherwise all values."""
    values = values[:1] if len(set(values)) == 1 else values
    return ", ".join(f"{value:.4g}" for value in values)


def build_network(
    backbone: str | nn.Module,
    shape: tuple[int, ...],
    mean: np.ndarray,
    scale: np.ndarray,
    *,
    sobel: bool,
    head_norm: str | None,
    n_projected: int | None = None,
    setup: BackboneSetup | None = None,
    loads_weights: bool = True,
) -> Network:
    """Build the network for images or rows of `shape`, on the CPU.

    Fresh weights come from torch's default generator: seed it around the call. A module
    as `backbone` is copied and keeps its weights.

    Parameters
    ----------
    backbone : str or nn.Module
    shape : tuple of int
        Shape of one image, (C, H, W), or one row, (d,).
    mean, scale : ndarrays of shape (C,) or (d,)
        Constants of the standardization.
    sobel : bool
    head_norm : "batch" or None
    n_projected : int or None
    setup : BackboneSetup or None
        None is fresh weights, and standardization by the data.
    loads_weights : bool, default=True
        False leaves out given weights, since later weights replace them.

    Raises
    ------
    ValueError
        If the backbone is unknown, rejects images of this shape, or does not return one
        vector per image.
    OSError
        If weights cannot be downloaded.
    """
    setup = setup or BackboneSetup()
    name = type(backbone).__name__ if isinstance(backbone, nn.Module) else backbone
    layers = [_first_layer(shape, mean, scale, setup)]
    if sobel:
        layers.append(Sobel())
    front = nn.Sequential(*layers)
    label = f"backbone={name!r}"
    zeros = torch.zeros(2, *shape)
    if setup.function is None:
        example = _call(front, zeros, label)
    else:
        example = _call_user_function(front, zeros)
    trunk = _build_trunk(backbone, tuple(example.shape[1:]), setup, loads_weights)
    n_features = _count_outputs(trunk, example, label)
    if setup.is_given and isinstance(backbone, nn.Module):
        warn_of_classifier(trunk, n_features, name)
    return Network(trunk, n_features, front, head_norm, n_projected, setup)


def _call_user_function(front: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    """Return what the user's `preprocess` makes of a batch, or explain its error."""
    shape = tuple(batch.shape)
    promise = (
        "It should take and return a float32 tensor with one entry for each image, as "
        "(n, C, H, W)."
    )
    try:
        with torch.no_grad():
            result = front(batch)
    except Exception as error:
        # A user's function may raise anything.
        raise ValueError(
            f"preprocess fails on a batch of shape {shape}: {error}. {promise}"
        ) from error
    is_tensor = isinstance(result, torch.Tensor) and result.ndim >= 2
    if not is_tensor or len(result) != len(batch) or result.dtype != torch.float32:
        kind = type(result).__name__
        if isinstance(result, torch.Tensor):
            kind = f"{result.dtype} {tuple(result.shape)}"
        raise ValueError(
            f"preprocess returns {kind} for a batch of shape {shape}. {promise}"
        )
    return result


def _first_layer(
    shape: tuple[int, ...], mean: np.ndarray, scale: np.ndarray, setup: BackboneSetup
) -> nn.Module:
    """Return the module that maps X to the input of the backbone."""
    if setup.function is not None:
        return CustomInput(setup.function, mean, scale, len(shape))
    is_image = len(shape) == 3
    if setup.is_given and not is_image:
        # A network with given weights takes rows as they are.
        return CustomInput(nn.Identity(), mean, scale, len(shape))
    if setup.preprocessing is None or not is_image:
        return Standardize(mean, scale, len(shape))
    if shape[0] not in (1, 3):
        raise ValueError(
            f"Networks with given weights take gray or color images, but X has "
            f"{shape[0]} channels. Pass three of them, or a function as preprocess."
        )
    return GivenInput(setup.preprocessing, setup.black, setup.white, setup.is_decoded)


def small_convnet(shape: tuple[int, ...], width: int = WIDTH) -> nn.Module:
    """Return a batch-norm convnet for images of `shape` (C, H, W).

    Each stage has two 3x3 convolutions. After each stage, 2x2 pooling halves the sides
    and the width doubles. Mean and maximum over positions come last. The shorter side
    decides the number of stages: 1 below 4 pixels, 2 from 4, 3 from 16. Strided
    convolutions halve larger images until the shorter side is below 48.
    """
    channels, height, breadth = shape
    shorter_side = min(height, breadth)
    layers: list[nn.Module] = []
    while shorter_side >= MIN_HALVED_SIDE:
        layers += _conv_block(channels, width, stride=2)
        channels, shorter_side = width, (shorter_side + 1) // 2
    n_stages = 1 + (shorter_side >= 4) + (shorter_side >= 16)
    for stage in range(n_stages):
        n_channels = width * 2**stage
        n_outputs = n_channels * 2 if stage == n_stages - 1 else n_channels
        layers += [nn.MaxPool2d(2)] if stage else []
        layers += _conv_block(channels, n_channels)
        layers += _conv_block(n_channels, n_outputs)
        channels = n_outputs
    return nn.Sequential(*layers, MeanMaxPool())


def alexnet(channels: int) -> nn.Module:
    """Return the paper's AlexNet, for images of about 224 pixels a side.

    Five convolutions have 96, 256, 384, 384 and 256 channels. Batch norm replaces local
    response normalization. Dropout and two layers of 4,096 follow (section 3.4).
    """
    return nn.Sequential(
        *_conv_block(channels, 96, 11, stride=4, padding=2),
        nn.MaxPool2d(3, 2),
        *_conv_block(96, 256, 5, padding=2),
        nn.MaxPool2d(3, 2),
        *_conv_block(256, 384),
        *_conv_block(384, 384),
        *_conv_block(384, 256),
        nn.MaxPool2d(3, 2),
        # Crops of other sizes than 224 pixels are averaged to 6x6 as well.
        nn.AdaptiveAvgPool2d(6),
        nn.Flatten(),
        nn.Dropout(),
        nn.Linear(256 * 6 * 6, 4096),
        nn.ReLU(inplace=True),
        nn.Dropout(),
        nn.Linear(4096, 4096),
        nn.ReLU(inplace=True),
    )


def mlp(n_inputs: int, width: int = 256) -> nn.Module:
    """Return a batch-norm perceptron with two hidden layers for rows."""
    return nn.Sequential(
        nn.Linear(n_inputs, width, bias=False),
        nn.BatchNorm1d(width),
        nn.ReLU(),
        nn.Linear(width, width // 2, bias=False),
        nn.BatchNorm1d(width // 2),
        nn.ReLU(),
    )


def _conv_block(
    channels: int, n_outputs: int, kernel: int = 3, stride: int = 1, padding: int = 1
) -> list[nn.Module]:
    convolution = nn.Conv2d(channels, n_outputs, kernel, stride, padding, bias=False)
    return [convolution, nn.BatchNorm2d(n_outputs), nn.ReLU(inplace=True)]


def resolve_backbone(
    backbone: str | nn.Module, shape: tuple[int, ...]
) -> str | nn.Module:
    """Turn "auto" into "convnet" for images and "mlp" for rows."""
    if isinstance(backbone, str) and backbone == "auto":
        return "convnet" if len(shape) == 3 else "mlp"
    return backbone


def _build_trunk(
    backbone: str | nn.Module,
    shape: tuple[int, ...],
    setup: BackboneSetup,
    loads_weights: bool,
) -> nn.Module:
    """Return the backbone for input of `shape`, with its weights."""
    weights = setup.weights
    if isinstance(backbone, nn.Module):
        trunk = copy.deepcopy(backbone)
    elif setup.is_given and weights is None:
        # Rows that are embeddings already.
        return nn.Identity()
    elif setup.is_given and backbone not in OWN_NETWORKS:
        assert weights is not None
        if setup.preprocessing is None:
            raise ValueError(
                f"weights={os.fspath(weights)!r} are for images, but X holds rows. Set "
                "image_shape=(C, H, W). If the rows are embeddings already, set "
                "fine_tune=False and remove weights."
            )
        return load_given_trunk(backbone, weights, setup.preprocessing, loads_weights)
    else:
        name = resolve_backbone(backbone, shape)
        trunk = _build_fresh_trunk(name, shape)  # type: ignore[arg-type]
    if weights is not None and loads_weights:
        load_weight_file(trunk, weights)
    return trunk


def _build_fresh_trunk(backbone: str, shape: tuple[int, ...]) -> nn.Module:
    is_image = len(shape) == 3
    if backbone == "mlp":
        layers = mlp(math.prod(shape))
        return nn.Sequential(nn.Flatten(), layers) if is_image else layers
    if not is_image:
        raise ValueError(
            f"backbone={backbone!r} takes images, but X holds rows of {shape[0]} "
            "values. Set image_shape=(C, H, W), or use backbone='mlp'."
        )
    if backbone == "convnet":
        return small_convnet(shape)
    if backbone == "alexnet":
        return alexnet(shape[0])
    if backbone.startswith(TIMM_PREFIX):
        return build_timm(backbone, shape[1], in_chans=shape[0])
    return _torchvision_trunk(backbone, shape[0])


def _torchvision_trunk(name: str, channels: int) -> nn.Module:
    """Return a torchvision classifier with fresh weights and without its last layer."""
    # The import takes seconds, so that only users of these backbones wait for it.
    from torchvision import models

    check_torchvision_name(name)
    options = {}
    if name in NETWORKS_WITH_AUXILIARY_HEADS:
        options = {"aux_logits": False, "init_weights": False}
    model = models.get_model(name, weights=None, **options)
    drop_classifier(model, name)
    _set_input_channels(model, channels)
    return model


def _set_input_channels(model: nn.Module, channels: int) -> None:
    """Replace the first convolution if it takes another number of channels."""
    path, convolution = next(
        (path, module)
        for path, module in model.named_modules()
        if isinstance(module, nn.Conv2d)
    )
    if convolution.in_channels == channels:
        return
    model.set_submodule(
        path,
        nn.Conv2d(
            channels,
            convolution.out_channels,
            kernel_size=convolution.kernel_size,  # type: ignore[arg-type]
            stride=convolution.stride,  # type: ignore[arg-type]
            padding=convolution.padding,  # type: ignore[arg-type]
            bias=convolution.bias is not None,
        ),
    )


def _call(module: nn.Module, batch: torch.Tensor, name: str) -> torch.Tensor:
    """Return the output of a module in evaluation mode, or explain its error."""
    was_training = module.training
    device = next((p.device for p in module.parameters()), batch.device)
    try:
        with torch.no_grad():
            return module.eval()(batch.to(device))
    except Exception as error:
        # A user's module may raise anything.
        shape = ", ".join(map(str, batch.shape[1:]))
        cure = (
            "If the size is the reason, set image_size or image_shape to one that it "
            "takes"
        )
        dtypes = {p.dtype for p in module.parameters() if p.is_floating_point()}
        if dtypes - {torch.float32}:
            cure = "Its weights are not float32: call backbone.float() first"
        raise ValueError(
            f"{name} rejects a batch of shape (n, {shape}): {error}. {cure}."
        ) from error
    finally:
        module.train(was_training)


def _count_outputs(trunk: nn.Module, example: torch.Tensor, name: str) -> int:
    """Return d of the trunk's output (n, d), or raise an error that explains it."""
    features = _call(trunk, example, name)
    if not isinstance(features, torch.Tensor) or not features.is_floating_point():
        raise ValueError(
            f"{name} returns {type(features).__name__}, but must return a float tensor "
            "of shape (n, d)."
        )
    if features.ndim != 2 or len(features) != 2 or features.shape[1] == 0:
        raise ValueError(
            f"{name} returns shape {tuple(features.shape)} for 2 images, but must "
            "return (n, d), one vector per image. Append nn.AdaptiveAvgPool2d(1) and "
            "nn.Flatten() to it."
        )
    return features.shape[1]
