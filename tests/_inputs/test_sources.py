"""Sources: batches, mean and scale, and the pages of memory maps."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

from skdeepcluster._inputs import sources as sources_module
from skdeepcluster._inputs.arrays import read_images, read_rows
from skdeepcluster._inputs.sources import ArraySource, RowsSource
from skdeepcluster._utils import pages

RNG = np.random.default_rng(0)
N, HEIGHT, WIDTH = 6, 5, 7
ROWS = np.array([4, 0, 0, 5])

LAYOUTS = {
    "gray": lambda x: x[:, 0],
    "channels first": lambda x: x,
    "channels last": lambda x: x.transpose(0, 2, 3, 1),
}


def make_images(channels=1, high=100):
    return RNG.integers(0, high, (N, channels, HEIGHT, WIDTH)).astype(np.uint8)


def read(X, image_shape=None, fitted=False):
    return read_images(X, image_shape, fitted)


def assert_source_equal(source, expected):
    """`source` gives the images `expected`, by slices and by any rows."""
    assert len(source) == len(expected)
    assert source.shape == expected.shape[1:]
    for rows in (slice(None), slice(1, 4), ROWS):
        batch = source.batch(rows)
        assert batch.dtype in (torch.uint8, torch.float32)
        assert_array_equal(batch.numpy(), expected[rows])


# Batches.


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["uint8", "float32", "float64"])
def test_memory_map(tmp_path, layout, dtype):
    images = make_images(channels=1 if layout == "gray" else 3)
    path = tmp_path / "images.npy"
    np.save(path, LAYOUTS[layout](images).astype(dtype))
    X = np.load(path, mmap_mode="r")
    source = read(X)
    assert_source_equal(source, images)
    assert np.shares_memory(source.values, X)


def test_read_only_images_are_copied():
    images = make_images()
    images.flags.writeable = False
    batch = read(images).batch(slice(None))
    before = images.copy()
    batch += 1
    assert_array_equal(images, before)


@pytest.mark.parametrize("rows", [slice(None), ROWS], ids=["slice", "rows"])
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_batch_is_a_copy(rows, dtype):
    images = make_images().astype(dtype)
    before = images.copy()
    read(images).batch(rows).zero_()
    assert_array_equal(images, before)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("make", [np.array, torch.tensor], ids=["array", "tensor"])
def test_uint8_is_neither_copied_nor_converted(make, layout):
    X = make(LAYOUTS[layout](make_images(channels=1 if layout == "gray" else 3)))
    source = read(X)
    assert np.shares_memory(source.values, np.asarray(X))
    assert source.values.dtype == np.uint8
    assert source.batch(ROWS).dtype == torch.uint8


def test_channels_last_layout_is_kept():
    batch = read(np.ascontiguousarray(make_images(3).transpose(0, 2, 3, 1))).batch(ROWS)
    assert batch.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("rows", [slice(None), slice(1, 3), np.array([2, 0, 0])])
def test_rows_of_a_source(rows):
    values = make_images(3)
    selected = np.array([5, 1, 2])
    source = RowsSource(ArraySource(values), selected)
    assert (len(source), source.shape, source.dtype) == (3, (3, 5, 7), np.uint8)
    assert_array_equal(source.batch(rows), values[selected][rows])
    (batch,) = source.batches([rows])
    assert_array_equal(batch, values[selected][rows])
    subset = source.subset(slice(1, None))
    assert_array_equal(subset.batch(slice(None)), values[[1, 2]])


@pytest.mark.parametrize("values", [1, 3, 10**9])
def test_split_covers_all_rows(monkeypatch, values):
    monkeypatch.setattr(sources_module, "CHUNK_VALUES", values)
    rows = RNG.permutation(20)
    batches = ArraySource(np.arange(10.0)[:, None]).split(rows)
    assert_array_equal(np.concatenate(batches), rows)
    assert len(batches) == -(-20 // values)


# Mean and scale.


def expected_statistics(values):
    values = values.astype(np.float32).astype(np.float64)
    if values.ndim == 4:
        return values.mean(axis=(0, 2, 3)), values.std(axis=(0, 2, 3))
    scale = np.sqrt(values.var(axis=0).mean())
    return values.mean(axis=0), np.full(values.shape[1], scale)


@pytest.mark.parametrize("chunk_values", [1, 200, 2**24])
@pytest.mark.parametrize("rows", [range(40), [3], [7, 1, 7, 30]])
@pytest.mark.parametrize(
    "values",
    [
        pytest.param(RNG.integers(0, 256, (40, 3, 4, 5)).astype(np.uint8), id="uint8"),
        pytest.param(RNG.standard_normal((40, 2, 4, 5)), id="float"),
        pytest.param(1e6 + RNG.standard_normal((40, 1, 4, 5)), id="large mean"),
        pytest.param(1e6 + RNG.standard_normal((40, 3)), id="rows with a large mean"),
        pytest.param(RNG.standard_normal((40, 3)) * [1, 9, 0], id="rows"),
        pytest.param(1e-20 * RNG.standard_normal((40, 3)), id="tiny rows"),
    ],
)
def test_statistics_equal_numpy(monkeypatch, values, rows, chunk_values):
    monkeypatch.setattr(sources_module, "CHUNK_VALUES", chunk_values)
    mean, scale = ArraySource(values).statistics(np.array(rows))
    expected_mean, expected_scale = expected_statistics(values[rows])
    assert_allclose(mean, expected_mean, rtol=1e-9, atol=1e-30)
    if len(rows) > 1 or values.ndim == 4:
        assert_allclose(scale, expected_scale, rtol=1e-6)
    # The spread of a single row is zero.
    else:
        assert_array_equal(scale, 1)


@pytest.mark.parametrize("chunk_values", [1, 50, 2**24])
@pytest.mark.parametrize("value", [0, 0.1, -7, 1e6 / 3, 1e-20, 255])
@pytest.mark.parametrize("shape", [(50, 1, 3, 3), (50, 4)])
def test_constants_have_scale_one(monkeypatch, shape, value, chunk_values):
    monkeypatch.setattr(sources_module, "CHUNK_VALUES", chunk_values)
    mean, scale = ArraySource(np.full(shape, value)).statistics(np.arange(50))
    assert_allclose(mean, np.float32(value), rtol=1e-6)
    assert_array_equal(scale, 1)


def test_constant_channel_has_scale_one():
    images = RNG.random((20, 3, 4, 4))
    images[:, 1] = 5
    _, scale = ArraySource(images).statistics(np.arange(20))
    assert scale[1] == 1
    assert_allclose(scale[[0, 2]], images[:, [0, 2]].std(axis=(0, 2, 3)), rtol=1e-5)


# Memory maps.


def count_resident_bytes(path):
    """Bytes of a mapped file that are resident in this process (Linux)."""
    total, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split(" ")[0]:
            inside = str(path) in line
        elif inside and line.startswith("Rss:"):
            total += 1024 * int(line.split()[1])
    return total


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs Linux")
@pytest.mark.parametrize("view", ["map", "transposed", "rows as images"])
def test_pages_of_a_memory_map_are_released(tmp_path, monkeypatch, view):
    path = tmp_path / "images.npy"
    # The file has 31 MB.
    np.save(path, np.zeros((40_000, 16, 16, 3), np.uint8))
    X = np.load(path, mmap_mode="r")
    monkeypatch.setattr(pages, "RELEASED_BYTES", 1_000_000)
    monkeypatch.setattr(pages, "ROW_BYTES", 10_000)
    if view == "rows as images":
        source = read_rows(np.asarray(X).reshape(40_000, -1), (3, 16, 16))
    else:
        source = read(X.transpose(0, 3, 1, 2) if view == "transposed" else X)
    batch_rows = np.array_split(np.arange(40_000), 200)
    max_resident = 0
    for number, _ in enumerate(source.batches(batch_rows)):
        # The file of mappings takes long to read.
        if number % 10 == 9:
            max_resident = max(max_resident, count_resident_bytes(path))
    assert max_resident < 8_000_000
    source.batch(np.random.default_rng(0).permutation(40_000)[:3000])
    assert count_resident_bytes(path) < 8_000_000
    # Subsets of large data release their pages, too.
    for start in range(0, 40_000, 1000):
        list(source.subset(slice(start, start + 1000)).batches([slice(None)]))
    assert count_resident_bytes(path) < 8_000_000
    # Without a release, the pages stay in memory.
    source.batch(slice(None))
    assert count_resident_bytes(path) > 25_000_000


def test_values_written_to_a_map_are_kept(tmp_path, monkeypatch):
    np.save(tmp_path / "images.npy", np.zeros((50, 8, 8), np.uint8))
    monkeypatch.setattr(pages, "RELEASED_BYTES", 1)
    for mode in ("c", "r+"):
        X = np.load(tmp_path / "images.npy", mmap_mode=mode)
        X[3] = 7
        source = read(X)
        list(source.batches([np.arange(25), np.arange(25)]))
        assert (X[3] == 7).all()
