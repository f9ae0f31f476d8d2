"""Large arrays are in memory or in temporary files, and never end a process."""

import errno
import os
import tempfile

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from skdeepcluster._utils import allocation
from skdeepcluster._utils.allocation import allocate_array, allocate_in_memory

SHAPE = (50, 7)


def allocate(cache_dir=None):
    return allocate_array(SHAPE, np.float32, cache_dir, purpose="features")


@pytest.fixture
def small_budget(monkeypatch):
    monkeypatch.setattr(allocation, "MEMORY_BYTES", 4 * 50 * 7 - 1)


def fail_to_allocate(*args, **kwargs):
    raise MemoryError


def test_small_array_is_in_memory(tmp_path):
    for cache_dir in (None, tmp_path):
        values = allocate(cache_dir)
        assert type(values) is np.ndarray
        assert (values.shape, values.dtype) == (SHAPE, np.float32)


@pytest.mark.usefixtures("small_budget")
@pytest.mark.parametrize("has_folder", [True, False])
def test_large_array_is_in_an_unnamed_file(monkeypatch, tmp_path, has_folder):
    system_folder = tmp_path / "system"
    system_folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(system_folder))
    cache_dir = tmp_path / "new" / "folder" if has_folder else None
    values = allocate(cache_dir)
    assert isinstance(values, np.memmap)
    assert (values.shape, values.dtype) == (SHAPE, np.float32)
    values[:] = np.arange(7)
    assert_array_equal(values[49], np.arange(7))
    assert (tmp_path / "new" / "folder").exists() == has_folder
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.usefixtures("small_budget")
def test_file_takes_at_most_half_of_the_free_space(monkeypatch, tmp_path):
    usage = allocation.shutil.disk_usage(tmp_path)
    for free, is_mapped in ((2 * 4 * 50 * 7, True), (2 * 4 * 50 * 7 - 1, False)):
        monkeypatch.setattr(
            allocation.shutil,
            "disk_usage",
            lambda path, free=free: usage._replace(free=free),
        )
        for cache_dir in (None, tmp_path):
            assert (allocate(cache_dir) is not None) == is_mapped


@pytest.mark.usefixtures("small_budget")
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_full_disk_is_noticed_before_a_write(monkeypatch, tmp_path, number):
    def fail(descriptor, offset, length):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "posix_fallocate", fail, raising=False)
    assert allocate(tmp_path) is None
    assert allocate() is None


@pytest.mark.usefixtures("small_budget")
@pytest.mark.parametrize("is_missing", [True, False])
def test_space_is_reserved_by_zeros_without_posix_fallocate(
    monkeypatch, tmp_path, is_missing
):
    def fail(descriptor, offset, length):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "posix_fallocate", fail, raising=False)
    if is_missing:
        monkeypatch.delattr(os, "posix_fallocate")
    monkeypatch.setattr(allocation, "BLOCK_BYTES", 300)
    assert_array_equal(allocate(tmp_path), np.zeros(SHAPE))


@pytest.mark.usefixtures("small_budget")
def test_folders_that_cannot_be_written(monkeypatch, tmp_path):
    def fail(*args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(tempfile, "TemporaryFile", fail)
    assert allocate() is None
    with pytest.raises(PermissionError, match=r"cache_dir='.*Name a folder"):
        allocate(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"cache_dir=.*file"):
        allocate(tmp_path / "file")


def test_array_that_memory_does_not_hold_is_in_a_file(monkeypatch, tmp_path):
    monkeypatch.setattr(np, "empty", fail_to_allocate)
    assert isinstance(allocate(tmp_path), np.memmap)


def test_lack_of_memory_and_disk_names_cache_dir(monkeypatch, tmp_path):
    monkeypatch.setattr(np, "empty", fail_to_allocate)
    monkeypatch.setattr(allocation, "MAX_DISK_SHARE", 0.0)
    with pytest.raises(MemoryError, match=r"memory for features .*Set cache_dir"):
        allocate(tmp_path)
    with pytest.raises(MemoryError, match=r"memory for points .*Pass fewer"):
        allocate_in_memory(SHAPE, np.float32, "points", remedy="Pass fewer.")
