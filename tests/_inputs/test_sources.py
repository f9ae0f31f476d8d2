"""Every accepted array -> the same batches; errors that name the row or parameter."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

from skdeepcluster._inputs import sources as sources_module
from skdeepcluster._inputs.sources import (
    ArraySource,
    as_array,
    check_finite,
    read_images,
    read_rows,
)

RNG = np.random.default_rng(0)
N, HEIGHT, WIDTH = 6, 5, 7
ROWS = np.array([4, 0, 0, 5])

LAYOUTS = {
    "gray": lambda x: x[:, 0],
    "channels first": lambda x: x,
    "channels last": lambda x: x.transpose(0, 2, 3, 1),
}
FORMS = {
    "contiguous": np.ascontiguousarray,
    "Fortran order": np.asfortranarray,
    "negative strides": lambda x: np.flip(np.flip(x).copy()),
    "every second": lambda x: np.repeat(x, 2, axis=0)[::2],
    "list": list,
    "tuple of tensors": lambda x: tuple(map(torch.tensor, x)),
    "nested lists": lambda x: x.tolist(),
    "tensor": torch.tensor,
    "tensor view": lambda x: torch.tensor(x).mT.contiguous().mT,
    "tensor with gradient": lambda x: torch.tensor(x).float().requires_grad_(),
    "bfloat16 tensor": lambda x: torch.tensor(x, dtype=torch.bfloat16),
}
for dtype in (
    *("int8", "uint16", "int64", "float16", "float32", "float64"),
    *(">i2", ">u2", ">f4", ">f8"),
):
    FORMS[dtype] = lambda x, dtype=dtype: x.astype(dtype)


def pixels(channels=1, high=100):
    return RNG.integers(0, high, (N, channels, HEIGHT, WIDTH)).astype(np.uint8)


def read(X, image_shape=None, fitted=False):
    return read_images(X, image_shape, fitted)


def assert_holds(source, expected):
    """`source` gives the images `expected`, by slices and by any rows."""
    assert len(source) == len(expected)
    assert source.shape == expected.shape[1:]
    for rows in (slice(None), slice(1, 4), ROWS):
        batch = source.batch(rows)
        assert batch.dtype in (torch.uint8, torch.float32)
        assert_array_equal(batch.numpy(), expected[rows])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_form_gives_the_same_batches(form, layout):
    images = pixels(channels=1 if layout == "gray" else 3)
    assert_holds(read(FORMS[form](LAYOUTS[layout](images))), images)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_bool_is_zero_and_one(layout):
    images = pixels(channels=1 if layout == "gray" else 3, high=2)
    source = read(LAYOUTS[layout](images).astype(bool))
    assert_holds(source, images)
    assert source.batch(ROWS).dtype == torch.uint8


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["uint8", "float32", "float64"])
def test_memory_map(tmp_path, layout, dtype):
    images = pixels(channels=1 if layout == "gray" else 3)
    path = tmp_path / "images.npy"
    np.save(path, LAYOUTS[layout](images).astype(dtype))
    X = np.load(path, mmap_mode="r")
    source = read(X)
    assert_holds(source, images)
    assert np.shares_memory(source.values, X)


def test_read_only_images_stay_as_they_are():
    images = pixels()
    images.flags.writeable = False
    batch = read(images).batch(slice(None))
    before = images.copy()
    batch += 1
    assert_array_equal(images, before)


@pytest.mark.parametrize("rows", [slice(None), ROWS], ids=["slice", "rows"])
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_a_batch_is_a_copy(rows, dtype):
    images = pixels().astype(dtype)
    before = images.copy()
    read(images).batch(rows).zero_()
    assert_array_equal(images, before)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("make", [np.array, torch.tensor], ids=["array", "tensor"])
def test_uint8_is_neither_copied_nor_widened(make, layout):
    X = make(LAYOUTS[layout](pixels(channels=1 if layout == "gray" else 3)))
    source = read(X)
    assert np.shares_memory(source.values, np.asarray(X))
    assert source.values.dtype == np.uint8
    assert source.batch(ROWS).dtype == torch.uint8


def test_channels_last_images_stay_channels_last_in_memory():
    batch = read(np.ascontiguousarray(pixels(3).transpose(0, 2, 3, 1))).batch(ROWS)
    assert batch.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_the_smaller_of_second_and_last_dimension_is_the_channels(channels):
    images = pixels(channels)
    assert_holds(read(images), images)
    assert_holds(read(images.transpose(0, 2, 3, 1)), images)


def test_thirteen_channels():
    images = RNG.random((N, 13, 16, 20), np.float32)
    assert_holds(read(images), images)
    assert_holds(read(images.transpose(0, 2, 3, 1)), images)


@pytest.mark.parametrize("fitted", [True, False])
def test_image_shape_settles_an_ambiguous_layout(fitted):
    images = RNG.random((N, 13, 9, 9), np.float32)  # more channels than pixels a side
    assert read(images).shape == (9, 13, 9)
    assert_holds(read(images, (13, 9, 9), fitted), images)
    assert_holds(read(images.transpose(0, 2, 3, 1), (13, 9, 9), fitted), images)


@pytest.mark.parametrize("image_shape", [(5, 4, 5), None])
def test_what_fits_both_readings_is_channels_first(image_shape):
    images = RNG.random((N, 5, 4, 5), np.float32)
    assert_holds(read(images, image_shape), images)


@pytest.mark.parametrize(
    ("X", "image_shape", "fitted", "message"),
    [
        (np.zeros((2, 5, 7)), (3, 5, 7), False, r"\(1, 5, 7\), but image_shape=\(3, 5"),
        (np.zeros((2, 5, 7)), (1, 5, 8), True, r"\(1, 5, 7\), but fit saw .*\(1, 5, 8"),
        (np.zeros((2, 3, 5, 7)), (3, 7, 5), False, r"image_shape=\(3, 7, 5\)"),
        (np.zeros((0, 5, 7)), None, False, r"0 sample.*\(0, 5, 7\).*X is empty"),
        (np.zeros((2, 0, 7)), None, False, r"without pixels.*\(2, 0, 7\)"),
        (np.zeros((2, 5, 7, 0)), None, False, r"without pixels.*\(2, 5, 7, 0\)"),
        (np.zeros((2, 5, 7), complex), None, False, "Complex data not supported"),
    ],
)
def test_unusable_images(X, image_shape, fitted, message):
    with pytest.raises(ValueError, match=message):
        read(X, image_shape, fitted)


@pytest.mark.parametrize("dtype", ["U3", "S3", object, "datetime64[s]", "m8[s]"])
def test_images_that_hold_no_numbers(dtype):
    with pytest.raises(
        TypeError, match=r"X holds .* values, not numbers. Pass an array"
    ):
        read(np.zeros((2, 5, 7), int).astype(dtype))


def test_images_of_different_sizes_name_the_row():
    images = [np.zeros((4, 4)), np.zeros((4, 4)), np.zeros((4, 5))]
    with pytest.raises(ValueError, match=r"row 2 has .*\(4, 5\), row 0 has \(4, 4"):
        read(images)
    with pytest.raises(ValueError, match=r"row 1 has shape \(4, 4\), row 0 has \(4, 5"):
        read([torch.zeros(4, 5), *images])


def test_arrays_pass_as_they_are():
    X = np.asfortranarray(RNG.random((3, 4)))
    assert as_array(X) is X
    assert as_array([[1, 2], [3, 4]]).tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize("order", ["C", "F"])
def test_rows_are_read_as_flattened_images_without_a_copy(order):
    images = pixels(3)
    rows = np.array(images.reshape(N, -1), order=order)
    source = read_rows(rows, (3, HEIGHT, WIDTH))
    assert_holds(source, images)
    assert np.shares_memory(source.values, rows)


def test_rows_without_image_shape_stay_rows():
    rows = RNG.random((4, 6))
    source = read_rows(rows, None)
    assert source.shape == (6,)
    assert source.values is rows


def test_rows_that_do_not_fit_image_shape():
    message = r"image_shape=\(1, 2, 4\) takes rows of 8 values, but X has 6 features"
    with pytest.raises(ValueError, match=message):
        read_rows(np.zeros((4, 6)), (1, 2, 4))


# Finite values. Chunks of two images each, so that every case crosses chunks.


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(sources_module, "CHUNK_VALUES", 2 * HEIGHT * WIDTH + 1)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("row", range(N))
@pytest.mark.parametrize(
    ("value", "kind"),
    [(np.nan, "NaN"), (np.inf, "infinity"), (-np.inf, "infinity"), (1e39, "infinity")],
)
def test_a_value_that_is_not_finite_names_its_row(value, kind, row):
    images = pixels().astype(float)
    images[row, 0, 2, 3] = value
    images[min(row + 1, N - 1), 0, 1, 1] = value  # the first row is named
    with pytest.raises(ValueError, match=f"contains {kind}.* in row {row}. Remove"):
        check_finite(read(images))


@pytest.mark.usefixtures("small_chunks")
def test_opposite_infinities_are_infinite():
    images = pixels().astype(np.float32)
    images[3, 0, 0, :2] = np.inf, -np.inf
    with pytest.raises(ValueError, match=r"infinity.* in row 3"):
        check_finite(read(images))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", ">f8"])
def test_rows_are_checked_in_every_float_type(dtype):
    rows = np.ones((5, 3)).astype(dtype)
    check_finite(ArraySource(rows))
    rows[4, 2] = np.nan
    with pytest.raises(ValueError, match="NaN in row 4"):
        check_finite(ArraySource(rows))


@pytest.mark.parametrize("value", [1e30, 0.0, -1e30])
def test_large_finite_values_pass(value):
    check_finite(ArraySource(np.full((9, 4), value, np.float32)))


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("value", [3e38, -3.4e38, 2e30])
def test_a_value_whose_sums_overflow_names_its_row(value):
    images = pixels().astype(np.float32)
    images[3, 0, 2, 3] = value
    with pytest.raises(
        ValueError, match=r"too large .*e\+3.* in row 3\. Remove.*scale X"
    ):
        check_finite(read(images))


@pytest.mark.parametrize("dtype", ["uint8", "int64", "bool"])
def test_integers_pass(dtype):
    check_finite(read(pixels().astype(dtype)))


@pytest.mark.parametrize("values", [1, 3, 10**9])
def test_pieces_cover_the_rows_once(monkeypatch, values):
    monkeypatch.setattr(sources_module, "CHUNK_VALUES", values)
    rows = RNG.permutation(20)
    pieces = ArraySource(np.arange(10.0)[:, None]).split(rows)
    assert_array_equal(np.concatenate(pieces), rows)
    assert len(pieces) == -(-20 // values)


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
def test_statistics_equal_numpys(monkeypatch, values, rows, chunk_values):
    monkeypatch.setattr(sources_module, "CHUNK_VALUES", chunk_values)
    mean, scale = ArraySource(values).statistics(np.array(rows))
    expected_mean, expected_scale = expected_statistics(values[rows])
    assert_allclose(mean, expected_mean, rtol=1e-9, atol=1e-30)
    if len(rows) > 1 or values.ndim == 4:
        assert_allclose(scale, expected_scale, rtol=1e-6)
    else:  # one row does not spread
        assert_array_equal(scale, 1)


@pytest.mark.parametrize("chunk_values", [1, 50, 2**24])
@pytest.mark.parametrize("value", [0, 0.1, -7, 1e6 / 3, 1e-20, 255])
@pytest.mark.parametrize("shape", [(50, 1, 3, 3), (50, 4)])
def test_constants_have_scale_one(monkeypatch, shape, value, chunk_values):
    monkeypatch.setattr(sources_module, "CHUNK_VALUES", chunk_values)
    mean, scale = ArraySource(np.full(shape, value)).statistics(np.arange(50))
    assert_allclose(mean, np.float32(value), rtol=1e-6)
    assert_array_equal(scale, 1)


def test_a_constant_channel_has_scale_one_beside_others():
    images = RNG.random((20, 3, 4, 4))
    images[:, 1] = 5
    _, scale = ArraySource(images).statistics(np.arange(20))
    assert scale[1] == 1
    assert_allclose(scale[[0, 2]], images[:, [0, 2]].std(axis=(0, 2, 3)), rtol=1e-5)


# Memory maps.


def resident(path):
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
def test_pages_of_a_memory_map_are_given_back(tmp_path, monkeypatch, view):
    path = tmp_path / "images.npy"
    np.save(path, np.zeros((40_000, 16, 16, 3), np.uint8))  # 31 MB
    X = np.load(path, mmap_mode="r")
    monkeypatch.setattr(sources_module, "MAPPED_BYTES", 1_000_000)
    monkeypatch.setattr(sources_module, "MAPPED_ROWS", 100)
    if view == "rows as images":
        source = read_rows(np.asarray(X).reshape(40_000, -1), (3, 16, 16))
    else:
        source = read(X.transpose(0, 3, 1, 2) if view == "transposed" else X)
    parts = np.array_split(np.arange(40_000), 200)
    most = 0
    for number, _ in enumerate(source.batches(parts)):
        if number % 10 == 9:  # the file of mappings takes long to read
            most = max(most, resident(path))
    assert most < 8_000_000
    source.batch(np.random.default_rng(0).permutation(40_000)[:3000])
    assert resident(path) < 8_000_000
    for start in range(0, 40_000, 1000):  # as in pieces of a large set
        list(source.part(slice(start, start + 1000)).batches([slice(None)]))
    assert resident(path) < 8_000_000
    source.batch(slice(None))
    assert resident(path) > 25_000_000  # what would be there


def test_what_was_written_to_a_map_stays(tmp_path, monkeypatch):
    np.save(tmp_path / "images.npy", np.zeros((50, 8, 8), np.uint8))
    monkeypatch.setattr(sources_module, "MAPPED_BYTES", 1)
    for mode in ("c", "r+"):
        X = np.load(tmp_path / "images.npy", mmap_mode=mode)
        X[3] = 7
        source = read(X)
        list(source.batches([np.arange(25), np.arange(25)]))
        assert (X[3] == 7).all()
