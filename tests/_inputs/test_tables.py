"""Both estimators name the content of X that is no rows, and the forms to pass."""

import io

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from sklearn.datasets import load_digits

from skdeepcluster import DeepClusterEstimator, FaissKMeans

ESTIMATORS = (DeepClusterEstimator, FaissKMeans)
IMAGES = load_digits().images[:60]
ROWS = IMAGES.reshape(60, -1)

INVALID = {
    "nothing": (None, TypeError, "of type NoneType, not an array"),
    "number": (3, TypeError, "of type int, not an array. Pass"),
    "dict": ({"images": ROWS}, TypeError, r"of type dict, .*X\['images'\]"),
    "generator": ((x for x in ROWS), TypeError, r"generator, .*Pass list\(X\)"),
    "set": ({1, 2}, TypeError, "of type set, not an array"),
    "empty": ([], ValueError, "X is empty. Pass"),
    "empty array": (np.zeros(0), ValueError, "X is empty. Pass"),
    "labels": (list(range(60)), ValueError, r"shape \(60,\), one .*Labels belong"),
    "bytes": ([b"a.png", b"b.png"], TypeError, "holds b'a.png', of type bytes, in row"),
    "files": ([io.BytesIO()] * 9, TypeError, "of type BytesIO, in row 0. Pass"),
    "nothings": ([None] * 9, TypeError, "of type NoneType, in row 0. Pass"),
    "5-D": (np.zeros((9, 2, 3, 4, 5)), ValueError, "X has 5 dimensions.* Pass"),
    "ragged lists": (
        [[1, 2], [3]],
        ValueError,
        "lengths. Rows must have one",
    ),
    "ragged arrays": (
        [np.ones(2), np.ones(3)],
        ValueError,
        "row 1 has .* Rows must",
    ),
    "text": (ROWS.astype(str), TypeError, "holds <U32 values, not numbers"),
    "dates": (ROWS.astype("M8[s]"), TypeError, "holds datetime64.* not numbers"),
    "complex": (ROWS * 1j, ValueError, "Complex data not supported: X must hold real"),
    "text as objects": (
        np.array([["a", 1.0]] * 9, dtype=object),
        ValueError,
        "'a' in column 0, where numbers are needed. Pass",
    ),
}


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("name", INVALID)
def test_invalid_rows(name, estimator):
    X, error, message = INVALID[name]
    with pytest.raises(error, match=message):
        estimator(2).fit(X)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_columns_without_numbers(estimator):
    pandas = pytest.importorskip("pandas")
    ragged = pandas.Series([np.ones(2), np.ones(3)])
    with pytest.raises(ValueError, match=r"row 1 has shape .*Rows must have"):
        estimator(2).fit(ragged)
    for values, error, message in (
        (["a.png"] * 60, ValueError, "'a.png' in column 'value', where numbers are"),
        (pandas.date_range("2020-01-01", periods=60), TypeError, "Timestamp.* 'value'"),
        (list(IMAGES), ValueError, "array.* in column 'value', where numbers"),
    ):
        with pytest.raises(error, match=message):
            estimator(2).fit(pandas.DataFrame({"size": 1.0, "value": values}))


def test_cure_depends_on_the_estimator():
    frame = pytest.importorskip("pandas").DataFrame({"path": ["a.png"] * 9})
    with pytest.raises(ValueError, match=r"Drop it, or pass X\['path'\] alone if"):
        DeepClusterEstimator(2).fit(frame)
    with pytest.raises(ValueError, match=r"Pass rows \(n, n_features\)"):
        FaissKMeans(2).fit(frame)
    with pytest.raises(ValueError, match=r"Pass rows .*reshape\(len\(images\), -1\)"):
        FaissKMeans(2).fit(IMAGES)


def test_errors_of_scikit_learn_are_kept():
    frame = pytest.importorskip("pandas").DataFrame({"a": np.arange(9.0), "b": 1.0})
    model = FaissKMeans(2).fit(frame)
    with pytest.raises(ValueError, match=r"feature names should match.*\n.*\n- c"):
        model.predict(frame.rename(columns={"a": "c"}))


def test_tensors_and_columns_of_arrays():
    expected = FaissKMeans(3, random_state=0).fit(ROWS).labels_
    column = np.empty(60, dtype=object)
    column[:] = list(ROWS)
    for X in (torch.tensor(ROWS, requires_grad=True), column):
        assert_array_equal(FaissKMeans(3, random_state=0).fit(X).labels_, expected)


def test_column_of_images_of_one_size():
    params = {"max_iter": 1, "epochs_per_iter": 1, "random_state": 0}
    model = DeepClusterEstimator(3, **params).fit(IMAGES)
    column = pytest.importorskip("pandas").Series(list(IMAGES))
    assert_array_equal(model.transform(column), model.transform(IMAGES))
