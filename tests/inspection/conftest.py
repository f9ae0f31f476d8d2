"""Digits and a fitted estimator for the tests of inspection."""

import copy

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from skdeepcluster import DeepClusterEstimator


@pytest.fixture(scope="session")
def images(digits_images):
    return digits_images[0][:200]


@pytest.fixture(scope="session")
def model(images):
    return DeepClusterEstimator(5, max_iter=1, epochs_per_iter=10, random_state=0).fit(
        images
    )


@pytest.fixture(scope="session")
def skipping_model(model):
    return copy.deepcopy(model).set_params(on_error="skip")


@pytest.fixture(scope="session")
def rows(images):
    return images.reshape(200, -1)


@pytest.fixture(scope="session")
def rows_model(rows):
    return DeepClusterEstimator(2, max_iter=1, epochs_per_iter=1, random_state=0).fit(
        rows
    )


@pytest.fixture
def broken_folder(images, tmp_path):
    """PNG files of the first 30 images. Row 3 is not an image."""
    for i, values in enumerate(images[:30]):
        Image.fromarray(values).save(tmp_path / f"{i:03d}.png")
    (tmp_path / "003.png").write_text("not an image")
    return tmp_path


@pytest.fixture
def make_network():
    """Function that builds two convolutions, of which one has a ReLU."""

    def make():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(4, 6, 3, stride=2),
            nn.Flatten(),
        )

    return make


@pytest.fixture
def compute_maps(model):
    """Function that computes the maps of "conv1" to "conv4" of `model`."""

    def compute(layer, images):
        trunk = model.module_.trunk
        relus = [i for i, m in enumerate(trunk) if isinstance(m, nn.ReLU)]
        convolutions = trunk[: relus[int(layer[-1]) - 1] + 1]
        with torch.no_grad():
            x = torch.as_tensor(np.asarray(images), dtype=torch.float32)
            x = x if x.ndim == 4 else x[:, None]
            return convolutions(model.module_.front(x)).numpy()

    return compute


@pytest.fixture
def sheet_cells():
    """Function that cuts a sheet into its cells, (rows, columns, size, size, 3)."""

    def cut(sheet, size):
        n_rows, n_columns = ((n - 2) // (size + 2) for n in sheet.shape[:2])
        cells = sheet[2:, 2:].reshape(n_rows, size + 2, n_columns, size + 2, 3)
        return cells.swapaxes(1, 2)[:, :, :size, :size]

    return cut
