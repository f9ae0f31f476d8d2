"""Every accepted array gives the same batches; errors name the row or the parameter."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal

from skdeepcluster._inputs import sources as sources_module
from skdeepcluster._inputs.arrays import as_array, check_finite, read_images, read_rows
from skdeepcluster._inputs.sources import ArraySource

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
    "strided": lambda x: np.repeat(x, 2, axis=0)[::2],
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


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_form_gives_the_same_batches(form, layout):
    images = make_images(channels=1 if layout == "gray" else 3)
    assert_source_equal(read(FORMS[form](LAYOUTS[layout](images))), images)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_bool_becomes_zero_and_one(layout):
    images = make_images(channels=1 if layout == "gray" else 3, high=2)
    source = read(LAYOUTS[layout](images).astype(bool))
    assert_source_equal(source, images)
    assert source.batch(ROWS).dtype == torch.uint8


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_smaller_dimension_holds_the_channels(channels):
    images = make_images(channels)
    assert_source_equal(read(images), images)
    assert_source_equal(read(images.transpose(0, 2, 3, 1)), images)


def test_thirteen_channels():
    images = RNG.random((N, 13, 16, 20), np.float32)
    assert_source_equal(read(images), images)
    assert_source_equal(read(images.transpose(0, 2, 3, 1)), images)


@pytest.mark.parametrize("fitted", [True, False])
def test_image_shape_settles_the_layout(fitted):
    images = RNG.random((N, 13, 9, 9), np.float32)  # more channels than pixels a side
    assert read(images).shape == (9, 13, 9)
    assert_source_equal(read(images, (13, 9, 9), fitted), images)
    assert_source_equal(read(images.transpose(0, 2, 3, 1), (13, 9, 9), fitted), images)


@pytest.mark.parametrize("image_shape", [(5, 4, 5), None])
def test_ambiguous_layout_is_channels_first(image_shape):
    images = RNG.random((N, 5, 4, 5), np.float32)
    assert_source_equal(read(images, image_shape), images)


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
def test_images_without_numbers(dtype):
    with pytest.raises(
        TypeError, match=r"X holds .* values, not numbers. Pass an array"
    ):
        read(np.zeros((2, 5, 7), int).astype(dtype))


def test_images_of_different_sizes():
    images = [np.zeros((4, 4)), np.zeros((4, 4)), np.zeros((4, 5))]
    with pytest.raises(ValueError, match=r"row 2 has .*\(4, 5\), row 0 has \(4, 4"):
        read(images)
    with pytest.raises(ValueError, match=r"row 1 has shape \(4, 4\), row 0 has \(4, 5"):
        read([torch.zeros(4, 5), *images])


def test_arrays_are_not_copied():
    X = np.asfortranarray(RNG.random((3, 4)))
    assert as_array(X) is X
    assert as_array([[1, 2], [3, 4]]).tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize("order", ["C", "F"])
def test_flattened_images_are_not_copied(order):
    images = make_images(3)
    rows = np.array(images.reshape(N, -1), order=order)
    source = read_rows(rows, (3, HEIGHT, WIDTH))
    assert_source_equal(source, images)
    assert np.shares_memory(source.values, rows)


def test_rows_without_image_shape():
    rows = RNG.random((4, 6))
    source = read_rows(rows, None)
    assert source.shape == (6,)
    assert source.values is rows


def test_rows_of_another_length_than_image_shape():
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
    ("value", "problem"),
    [(np.nan, "NaN"), (np.inf, "infinity"), (-np.inf, "infinity"), (1e39, "infinity")],
)
def test_non_finite_value_names_its_row(value, problem, row):
    images = make_images().astype(float)
    images[row, 0, 2, 3] = value
    images[min(row + 1, N - 1), 0, 1, 1] = value  # the first row is named
    with pytest.raises(ValueError, match=f"contains {problem}.* in row {row}. Remove"):
        check_finite(read(images))


@pytest.mark.usefixtures("small_chunks")
def test_opposite_infinities_are_reported():
    images = make_images().astype(np.float32)
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
def test_large_finite_values_are_accepted(value):
    check_finite(ArraySource(np.full((9, 4), value, np.float32)))


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("value", [3e38, -3.4e38, 2e30])
def test_too_large_value_names_its_row(value):
    images = make_images().astype(np.float32)
    images[3, 0, 2, 3] = value
    with pytest.raises(
        ValueError, match=r"too large .*e\+3.* in row 3\. Remove.*scale X"
    ):
        check_finite(read(images))


@pytest.mark.parametrize("dtype", ["uint8", "int64", "bool"])
def test_integers_are_finite(dtype):
    check_finite(read(make_images().astype(dtype)))
