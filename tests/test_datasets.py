"""Data sets are found where packages put them, or the error says how to get them."""

import gzip

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from skdeepcluster.datasets import load_fashion_mnist

IMAGES = np.arange(5 * 28 * 28, dtype=np.uint8).reshape(5, 28, 28)
LABELS = np.array([3, 1, 4, 1, 5], np.uint8)


def idx(array):
    sizes = np.array(array.shape, ">u4").tobytes()
    return bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes()


def write(folder, zipped, images=IMAGES, labels=LABELS, prefix="train"):
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in (("images-idx3", images), ("labels-idx1", labels)):
        path = folder / f"{prefix}-{name}-ubyte"
        if zipped:
            path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(idx(array)))
        else:
            path.write_bytes(idx(array))


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("below", ["", "FashionMNIST/raw"])
def test_every_place_and_form(tmp_path, monkeypatch, below, zipped):
    write(tmp_path / below, zipped)
    write(tmp_path / below, zipped, IMAGES[:2], LABELS[:2], "t10k")
    images, labels = load_fashion_mnist(data_home=tmp_path)
    assert_array_equal(images, IMAGES)
    assert_array_equal(labels, LABELS)
    monkeypatch.setenv("SKDEEPCLUSTER_DATA", str(tmp_path))
    assert_array_equal(load_fashion_mnist("test")[0], IMAGES[:2])
    images[0] = 0  # its own memory


def test_what_is_missing_is_named_with_the_remedy(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"t10k-images.*dataset-fashion-mnist"):
        load_fashion_mnist("test", data_home=tmp_path)
    with pytest.raises(ValueError, match="split='all'"):
        load_fashion_mnist("all", data_home=tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no idx file"),
        (idx(LABELS), "no idx file"),
        (idx(IMAGES)[:-1], "cut short"),
        (idx(IMAGES[:4]), "4 images but 5 labels"),
    ],
)
def test_damaged_files(tmp_path, content, message):
    write(tmp_path, zipped=False)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_fashion_mnist(data_home=tmp_path)
