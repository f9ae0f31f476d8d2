"""Backbones, the fixed front-end, and what leads from features to points."""

import copy
import difflib
import math
from typing import Any

import numpy as np
import torch
from torch import nn

WIDTH = 32  # channels of the small convnet's first stage
FARTHEST = 1e6  # standardized value; no image is as far from those of the fit


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
        """Return (x - mean) / scale, within limits at which no network overflows."""
        return ((x - self.mean) / self.scale).clamp_(-FARTHEST, FARTHEST)


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
    """Pool each channel over all positions, to its mean and to its maximum.

    The maximum keeps what is small: as much of it as there is at its best place.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (n, 2 C) for maps (n, C, H, W)."""
        positions = x.float().flatten(2)
        return torch.cat([positions.mean(dim=2), positions.amax(dim=2)], dim=1)


class UnitLength(nn.Module):
    """Scale rows to unit length."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return rows of length 1, float32; rows of zeros stay."""
        return nn.functional.normalize(x.float(), dim=1)


def projection_head(n_features: int, size: int) -> nn.Module:
    """Return the projection head of DeepCluster-v2: a perceptron to the unit sphere."""
    return nn.Sequential(
        nn.Linear(n_features, n_features, bias=False),
        nn.BatchNorm1d(n_features),
        nn.ReLU(inplace=True),
        nn.Linear(n_features, size),
        UnitLength(),
    )


class Network(nn.Module):
    """Pixels -> standardized features: front-end, trunk, normalization.

    The normalization is a batch norm without weights between features and head: a
    fresh N(0, 0.01) head hardly learns from pooled features, whose scale is tiny, in
    the few hundred steps that a small set gives it. The paper has none (`None`).

    What is clustered and classified are its points: the features, or `n_projected`
    outputs of a projection head on top of them.
    """

    def __init__(
        self,
        trunk: nn.Module,
        n_features: int,
        front: nn.Module,
        head_norm: str | None,
        n_projected: int | None = None,
    ):
        super().__init__()
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
    def statistics(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and scale of each channel or feature in the fit, float32."""
        mean, scale = self.get_buffer("front.0.mean"), self.get_buffer("front.0.scale")
        return mean.cpu().numpy().flatten(), scale.cpu().numpy().flatten()

    def points(self, x: torch.Tensor) -> torch.Tensor:
        """Return what is clustered, float32 (n, n_points)."""
        return self.projection(self(x))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return features, float32 (n, n_features)."""
        features = self.trunk(self.front(x)).float()
        with torch.autocast(features.device.type, enabled=False):
            return self.norm(features)


def build_network(
    backbone: str | nn.Module,
    shape: tuple[int, ...],
    mean: np.ndarray,
    scale: np.ndarray,
    *,
    sobel: bool,
    head_norm: str | None,
    n_projected: int | None = None,
) -> Network:
    """Build the network for items of `shape`, on the CPU, with fresh weights.

    Weights come from torch's default generator: seed it around the call. A module
    given as `backbone` is copied and keeps the weights it has.

    Raises
    ------
    ValueError
        If the backbone is unknown, does not take such items, or does not return one
        vector of numbers for each.
    """
    front: list[nn.Module] = [Standardize(mean, scale, len(shape))]
    if sobel:
        front.append(Sobel())
        shape = (2, *shape[1:])
    trunk = _build_trunk(backbone, shape)
    name = type(backbone).__name__ if isinstance(backbone, nn.Module) else backbone
    n_features = _output_size(trunk, shape, f"backbone={name!r}")
    if not any(parameter.requires_grad for parameter in trunk.parameters()):
        raise ValueError(
            f"backbone={name!r} has no parameters that require gradients: there is "
            "nothing to train."
        )
    return Network(trunk, n_features, nn.Sequential(*front), head_norm, n_projected)


def small_convnet(shape: tuple[int, ...], width: int = WIDTH) -> nn.Module:
    """Return a batch-norm convnet for images of `shape` (C, H, W).

    Stages of two 3x3 convolutions, twice as wide after each 2x2 pooling, then mean and
    maximum over positions: 1 stage below 4 pixels, 2 from 4, 3 from 16, 4 from 48.
    Larger images are first halved by strided convolutions until their shorter side is
    below 96.
    """
    channels, height, breadth = shape
    side = min(height, breadth)
    layers: list[nn.Module] = []
    while side >= 96:
        layers += _convolution(channels, width, stride=2)
        channels, side = width, (side + 1) // 2
    n_stages = 1 + (side >= 4) + (side >= 16) + (side >= 48)
    for stage in range(n_stages):
        out = width * 2**stage
        last = out * 2 if stage == n_stages - 1 else out
        layers += [nn.MaxPool2d(2)] if stage else []
        layers += [*_convolution(channels, out), *_convolution(out, last)]
        channels = last
    return nn.Sequential(*layers, MeanMaxPool())


def alexnet(channels: int) -> nn.Module:
    """Return AlexNet as the paper has it, for images of about 224 pixels a side.

    Convolutions to 96, 256, 384, 384 and 256 channels, each with batch norm in place
    of local response normalization, then dropout and two layers of 4,096 (section 3.4).
    """
    return nn.Sequential(
        *_convolution(channels, 96, 11, stride=4, padding=2),
        nn.MaxPool2d(3, 2),
        *_convolution(96, 256, 5, padding=2),
        nn.MaxPool2d(3, 2),
        *_convolution(256, 384),
        *_convolution(384, 384),
        *_convolution(384, 256),
        nn.MaxPool2d(3, 2),
        nn.AdaptiveAvgPool2d(6),  # for crops of other sizes; at 224 it does nothing
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


def _convolution(
    channels: int, out: int, side: int = 3, stride: int = 1, padding: int = 1
) -> list[nn.Module]:
    convolution = nn.Conv2d(channels, out, side, stride, padding, bias=False)
    return [convolution, nn.BatchNorm2d(out), nn.ReLU(inplace=True)]


def _build_trunk(backbone: str | nn.Module, shape: tuple[int, ...]) -> nn.Module:
    if isinstance(backbone, nn.Module):
        return copy.deepcopy(backbone)
    is_image = len(shape) == 3
    if backbone == "auto":
        backbone = "convnet" if is_image else "mlp"
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
    return _torchvision_trunk(backbone, shape[0])


def _torchvision_trunk(name: str, channels: int) -> nn.Module:
    """Return a torchvision classifier without weights and without its last layer."""
    from torchvision import models  # takes seconds, so only where it is used

    known = models.list_models(models)
    if name not in known:
        near = difflib.get_close_matches(name.lower(), ["convnet", "mlp", *known])
        ask = f"Did you mean {' or '.join(map(repr, near))}? " if near else ""
        raise ValueError(
            f"backbone={name!r} is unknown. {ask}Use 'auto', 'mlp', 'convnet', "
            "'alexnet', a torch nn.Module, or one of torchvision's: "
            f"{', '.join(known)}."
        )
    options = {}
    if name in ("googlenet", "inception_v3"):  # else they return tuples in training
        options = {"aux_logits": False, "init_weights": False}
    model = models.get_model(name, weights=None, **options)
    linear = [path for path, m in model.named_modules() if isinstance(m, nn.Linear)]
    if not linear:
        raise ValueError(
            f"backbone={name!r} has no linear layer at its end to be replaced. Choose "
            "another model, or pass an nn.Module that returns (n, d)."
        )
    model.set_submodule(linear[-1], nn.Identity())
    path, first = next(
        (path, m) for path, m in model.named_modules() if isinstance(m, nn.Conv2d)
    )
    if first.in_channels != channels:
        same: dict[str, Any] = {
            name: getattr(first, name)
            for name in ("out_channels", "kernel_size", "stride", "padding")
        }
        adapted = nn.Conv2d(channels, bias=first.bias is not None, **same)
        model.set_submodule(path, adapted)
    return model


def _output_size(trunk: nn.Module, shape: tuple[int, ...], name: str) -> int:
    """Return d of the trunk's output (n, d), or say what is wrong with it."""
    was_training = trunk.training
    device = next((p.device for p in trunk.parameters()), torch.device("cpu"))
    try:
        with torch.no_grad():
            features = trunk.eval()(torch.zeros(2, *shape, device=device))
    except Exception as error:  # whatever a user's module raises
        raise ValueError(
            f"{name} does not take a batch of shape (n, {', '.join(map(str, shape))}): "
            f"{error}. Set image_size or image_shape to what it takes, or choose "
            "another backbone."
        ) from error
    finally:
        trunk.train(was_training)
    if not isinstance(features, torch.Tensor) or not features.is_floating_point():
        raise ValueError(
            f"{name} returns {type(features).__name__}, but must return a float tensor "
            "of shape (n, d)."
        )
    if features.ndim != 2 or len(features) != 2 or features.shape[1] == 0:
        raise ValueError(
            f"{name} returns shape {tuple(features.shape)} for 2 items, but must "
            "return (n, d), one vector for each. Append nn.AdaptiveAvgPool2d(1) and "
            "nn.Flatten() to it."
        )
    return features.shape[1]
