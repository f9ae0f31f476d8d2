"""Data sets are found in the folders of packages, or an error says how to get them."""

import gzip

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from skdeepcluster.datasets import load_fashion_mnist

IMAGES = np.arange(5 * 28 * 28, dtype=np.uint8).reshape(5, 28, 28)
LABELS = np.array([3, 1, 4, 1, 5], np.uint8)


def encode_idx(array):
    sizes = np.array(array.shape, ">u4").tobytes()
    return bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes()


def write(folder, zipped, images=IMAGES, labels=LABELS, prefix="train"):
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in (("images-idx3", images), ("labels-idx1", labels)):
        path = folder / f"{prefix}-{name}-ubyte"
        if zipped:
            path.with_name(f"{path.name}.gz").write_bytes(
                gzip.compress(encode_idx(array))
            )
        else:
            path.write_bytes(encode_idx(array))


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("subfolder", ["", "FashionMNIST/raw"])
def test_files_are_found_in_each_folder_and_form(
    tmp_path, monkeypatch, subfolder, zipped
):
    write(tmp_path / subfolder, zipped)
    write(tmp_path / subfolder, zipped, IMAGES[:2], LABELS[:2], "t10k")
    images, labels = load_fashion_mnist(data_home=tmp_path)
    assert_array_equal(images, IMAGES)
    assert_array_equal(labels, LABELS)
    monkeypatch.setenv("SKDEEPCLUSTER_DATA", str(tmp_path))
    assert_array_equal(load_fashion_mnist("test")[0], IMAGES[:2])
    # The array can be written.
    images[0] = 0


def test_missing_file_is_named_with_the_remedy(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"t10k-images.*dataset-fashion-mnist"):
        load_fashion_mnist("test", data_home=tmp_path)
    with pytest.raises(ValueError, match="split='all'"):
        load_fashion_mnist("all", data_home=tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no idx file"),
        (encode_idx(LABELS), "no idx file"),
        (encode_idx(IMAGES)[:-1], "cut short"),
        (encode_idx(IMAGES[:4]), "4 images but 5 labels"),
    ],
)
def test_damaged_files_are_refused(tmp_path, content, message):
    write(tmp_path, zipped=False)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_fashion_mnist(data_home=tmp_path)
