"""Arrays in files are mapped as they were written, or noticed to be damaged."""

import os

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from skdeepcluster._utils import array_files
from skdeepcluster._utils.array_files import read_array, write_array

VALUES = np.arange(60, dtype=np.float32).reshape(10, 6)


@pytest.fixture
def path(tmp_path):
    blocks = [VALUES[:7], VALUES[7:]]
    write_array(
        tmp_path / "x.npy",
        VALUES.shape,
        np.float32,
        blocks,
        argument="cache_dir='x'",
        describe=lambda: {"unreadable": [3]},
    )
    return tmp_path / "x.npy"


@pytest.mark.parametrize("block_bytes", [7, 240, 1000])
def test_array_is_mapped(monkeypatch, path, block_bytes):
    monkeypatch.setattr(array_files, "BLOCK_BYTES", block_bytes)
    values, metadata = read_array(path, VALUES.shape, np.float32)
    assert isinstance(values, np.memmap)
    assert metadata == {"unreadable": [3]}
    assert_array_equal(values, VALUES)
    assert_array_equal(np.load(path), VALUES)


def test_missing_file_is_no_damage(tmp_path):
    assert read_array(tmp_path / "x.npy", VALUES.shape, np.float32) is None


def test_each_flipped_bit_is_noticed(path):
    content = path.read_bytes()
    for position in range(len(content)):
        damaged = bytearray(content)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        # A space of the header may become a tab, for instance.
        if position >= 128:
            with pytest.warns(UserWarning, match=r"x\.npy cannot be used and is writ"):
                assert read_array(path, VALUES.shape, np.float32) is None


@pytest.mark.parametrize("n_bytes", [0, 5, 100, 128, 300, -1])
def test_truncated_file_is_noticed(path, n_bytes):
    path.write_bytes(path.read_bytes()[:n_bytes])
    with pytest.warns(UserWarning, match=r"x\.npy cannot be used and is written"):
        assert read_array(path, VALUES.shape, np.float32) is None


@pytest.mark.parametrize("kind", ["no checksum", "shape", "pickle", "folder"])
def test_other_files_are_noticed(path, kind):
    shape = VALUES.shape
    if kind == "no checksum":
        np.save(path, VALUES)
    elif kind == "shape":
        shape = (6, 10)
    elif kind == "pickle":
        np.save(path, np.array([{}]), allow_pickle=True)
    else:
        os.unlink(path)
        path.mkdir()
    with pytest.warns(UserWarning, match=r"x\.npy cannot be used and is written"):
        assert read_array(path, shape, np.float32) is None
