"""Fixtures of several test modules."""

import io
import struct
import zlib

import hypothesis
import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch._subclasses.fake_tensor import FakeTensorMode

from skdeepcluster._clustering.pseudo_labels import Clusterer

# Every run tests the same examples, so that a failure can be repeated. Search for new
# examples with pytest --hypothesis-profile=default.
hypothesis.settings.register_profile("fixed", deadline=None, derandomize=True)
hypothesis.settings.load_profile("fixed")


@pytest.fixture(scope="session")
def digits_images():
    """All 1,797 digits: uint8 images (n, 8, 8) over 0..255, and int labels (n,)."""
    digits = load_digits()
    return (digits.images * 255 / 16).astype(np.uint8), digits.target


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
