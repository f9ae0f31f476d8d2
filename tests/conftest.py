"""Fixtures of several test modules."""

import io
import struct
import zlib

import hypothesis
import joblib
import numpy as np
import pytest
import torch
from PIL import Image
from pretrained import load_efficientnet_lite0
from sklearn.datasets import load_digits
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from skdeepcluster import DeepClusterEstimator
from skdeepcluster._clustering.pseudo_labels import Clusterer
from skdeepcluster._utils import allocation

# Every run tests the same examples, so that a failure can be repeated. Search for new
# examples with pytest --hypothesis-profile=default.
hypothesis.settings.register_profile("fixed", deadline=None, derandomize=True)
hypothesis.settings.load_profile("fixed")


@pytest.fixture(scope="session")
def digits_images():
    """All 1,797 digits: uint8 images (n, 8, 8) over 0..255, and int labels (n,)."""
    digits = load_digits()
    return (digits.images * 255 / 16).astype(np.uint8), digits.target


@pytest.fixture(scope="session")
def efficientnet_lite0():
    """EfficientNet-Lite0 with ImageNet weights: (n, 3, H, W) to (n, 1280).

    Its preprocessing is `pretrained.Scale`. Tests share it: copy it before changing it.
    """
    return load_efficientnet_lite0()


@pytest.fixture
def simulated_cuda():
    """Skip if torch cannot simulate CUDA: CPU builds, and 2.6 without a GPU."""
    try:
        with FakeTensorMode():
            torch.empty(2, device="cuda")[:1]
    except RuntimeError as error:
        pytest.skip(f"torch cannot simulate CUDA: {error}".splitlines()[0])


@pytest.fixture
def bomb():
    """Content of a PNG file whose header claims 1.6 billion pixels."""
    file = io.BytesIO()
    Image.new("1", (8, 8)).save(file, "PNG")
    content = bytearray(file.getvalue())
    content[16:24] = struct.pack(">II", 40_000, 40_000)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    return bytes(content)


@pytest.fixture
def clusterer():
    """Clusterer for two clusters of features without whitening or normalization."""
    return Clusterer(
        n_clusters=2,
        n_pseudo_labels=(12,),
        n_neighbors=10,
        n_components="auto",
        whiten=False,
        normalize=False,
    )


@pytest.fixture
def make_cache(monkeypatch, tmp_path_factory):
    """Function that sets up a kind of cache, and returns the parameter `cache_dir`."""

    def make(kind):
        if kind in ("temporary file", "none"):
            monkeypatch.setattr(allocation, "MEMORY_BYTES", 0)
        if kind == "none":
            monkeypatch.setattr(allocation, "MAX_DISK_SHARE", 0.0)
        return tmp_path_factory.mktemp("cache") if kind == "folder" else None

    return make


@pytest.fixture(scope="session")
def digits_split(digits_images):
    """300 training and 200 test digits, as keyword arguments of `linear_probe`."""
    X, y = digits_images
    return {
        "X_train": X[:300],
        "y_train": y[:300],
        "X_test": X[300:500],
        "y_test": y[300:500],
    }


@pytest.fixture(scope="session")
def digits_model(digits_split):
    """Estimator with 10 clusters, fitted on the training digits."""
    return DeepClusterEstimator(
        10, max_iter=2, epochs_per_iter=12, precision="float32", random_state=0
    ).fit(digits_split["X_train"])


@pytest.fixture
def make_plain_network():
    """Function that builds a network with in-place ReLUs for one-channel images."""

    def make(inplace=True):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return nn.Sequential(
                nn.Conv2d(1, 4, 3, padding=1),
                nn.BatchNorm2d(4),
                nn.ReLU(inplace),
                nn.MaxPool2d(2),
                nn.Conv2d(4, 6, 3, padding=1),
                nn.ReLU(inplace),
                nn.Flatten(),
                nn.Dropout(),
                nn.Linear(96, 5),
            )

    return make


@pytest.fixture
def module_state():
    """Function that returns everything an evaluation must not change in a module."""

    def get_state(module):
        modules = list(module.modules())
        return {
            "weights": {
                name: joblib.hash(weights.numpy())
                for name, weights in module.state_dict().items()
            },
            "training": [m.training for m in modules],
            "hooks": [len(m._forward_hooks) for m in modules],
            "pre_hooks": [len(m._forward_pre_hooks) for m in modules],
            "requires_grad": [p.requires_grad for p in module.parameters()],
            "torch_generator": torch.get_rng_state().tolist(),
            "numpy_generator": np.random.get_state()[1].tolist(),
        }

    return get_state


@pytest.fixture
def pyplot():
    """matplotlib.pyplot with its default style; all figures are closed at the end."""
    pytest.importorskip("matplotlib").use("Agg")
    plt = pytest.importorskip("matplotlib.pyplot")
    with plt.style.context("default"):
        yield plt
    plt.close("all")


@pytest.fixture(scope="session")
def display_images(digits_images):
    """60 digits, which the tests of the Displays draw."""
    return digits_images[0][:60]


@pytest.fixture(scope="session")
def display_classes(digits_images):
    """Classes of `display_images`."""
    return digits_images[1][:60]


@pytest.fixture(scope="session")
def display_model(display_images, display_classes):
    """Estimator with 3 clusters, fitted on `display_images` for one round."""
    return DeepClusterEstimator(
        3, on_error="skip", max_iter=1, epochs_per_iter=1, random_state=0
    ).fit(display_images, display_classes)


@pytest.fixture
def display_folder(display_images, tmp_path):
    """Files of `display_images`. Two are broken.

    File 3 is not an image. File 4 is truncated, which shows only when it is decoded.
    """
    folder = tmp_path / "images"
    folder.mkdir()
    for i, values in enumerate(display_images):
        Image.fromarray(values).save(folder / f"{i:03d}.png")
    (folder / "003.png").write_text("not an image")
    (folder / "004.png").unlink()
    Image.fromarray(display_images[4]).save(folder / "004.jpg")
    content = (folder / "004.jpg").read_bytes()
    (folder / "004.jpg").write_bytes(content[:-20])
    return folder
