"""Classes y that are partly unknown: the NMI of a fit counts the known ones."""

import warnings

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from sklearn.metrics import normalized_mutual_info_score

from skdeepcluster import DeepClusterEstimator

# Fits of a few steps warn that they did not converge.
pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

N = 60
IS_KNOWN = np.arange(N) % 3 > 0


def fit(X, y):
    # With as many pseudo-labels as clusters, the last ones are `labels_`.
    model = DeepClusterEstimator(
        4,
        n_pseudo_labels=4,
        n_neighbors=None,
        max_iter=1,
        epochs_per_iter=1,
        backbone="mlp",
        random_state=0,
        on_error="skip",
    )
    return model.fit(X, y)


@pytest.fixture(scope="module")
def data(digits_images):
    images, classes = digits_images
    return images[:N], np.asarray(classes[:N])


@pytest.fixture(scope="module")
def expected(data):
    images, classes = data
    labels = fit(images, None).labels_
    return normalized_mutual_info_score(classes[IS_KNOWN], labels[IS_KNOWN])


def with_gaps(classes, gap, to_value=int):
    pairs = zip(classes, IS_KNOWN, strict=True)
    return [to_value(value) if known else gap for value, known in pairs]


def pandas_series(dtype, to_value=int):
    def make(classes):
        pandas = pytest.importorskip("pandas")
        return pandas.Series(with_gaps(classes, None, to_value), dtype=dtype)

    return make


def polars_series(classes):
    return pytest.importorskip("polars").Series(with_gaps(classes, None, str))


def mixed_gaps(classes):
    pandas = pytest.importorskip("pandas")
    y = with_gaps(classes, np.nan, str)
    gaps = [None, pandas.NA, pandas.NaT, float("nan")]
    for i, row in enumerate(np.flatnonzero(~IS_KNOWN)):
        y[row] = gaps[i % 4]
    return y


FORMS = {
    "floats": lambda y: np.where(IS_KNOWN, y, np.nan),
    "list of numbers": lambda y: with_gaps(y, None),
    "list of strings": lambda y: with_gaps(y, None, str),
    # Numpy would make the string "nan" of this gap.
    "strings and NaN": lambda y: with_gaps(y, np.nan, str),
    "all gaps": mixed_gaps,
    "objects": lambda y: np.array(with_gaps(y, None, str), dtype=object),
    "numbers and strings": lambda y: with_gaps(
        y, None, lambda value: int(value) if value % 2 else str(value)
    ),
    "masked": lambda y: np.ma.masked_array(y, ~IS_KNOWN),
    "column": lambda y: np.where(IS_KNOWN, y, np.nan)[:, None],
    "tensor": lambda y: torch.from_numpy(np.where(IS_KNOWN, y, np.nan)),
    "Int64": pandas_series("Int64"),
    "string": pandas_series("string", str),
    "category": pandas_series("category", str),
    "polars": polars_series,
}


@pytest.mark.parametrize("form", FORMS)
def test_nmi_leaves_out_unknown_classes(data, expected, form):
    images, classes = data
    model = fit(images, FORMS[form](classes))
    assert model.history_[-1]["nmi_y"] == pytest.approx(expected)


def test_boolean_classes_have_gaps(data):
    pandas = pytest.importorskip("pandas")
    images, classes = data
    y = pandas.Series(with_gaps(classes > 4, None, bool), dtype="boolean")
    model = fit(images, y)
    expected = normalized_mutual_info_score(
        classes[IS_KNOWN] > 4, model.labels_[IS_KNOWN]
    )
    assert model.history_[-1]["nmi_y"] == pytest.approx(expected)


def test_skipped_images_have_no_class(data, tmp_path):
    image_module = pytest.importorskip("PIL.Image")
    images, classes = data
    for row, image in enumerate(images):
        image_module.fromarray(image).save(tmp_path / f"{row:02}.png")
    # Row 1 has a class, and row 3 has none.
    for row in (1, 3):
        (tmp_path / f"{row:02}.png").write_bytes(b"broken")
    with pytest.warns(UserWarning, match="2 of 60"):
        model = fit(tmp_path, FORMS["list of strings"](classes))
    counts = IS_KNOWN & (model.labels_ >= 0)
    assert counts.sum() == IS_KNOWN.sum() - 1
    expected = normalized_mutual_info_score(classes[counts], model.labels_[counts])
    assert model.history_[-1]["nmi_y"] == pytest.approx(expected)


@pytest.mark.parametrize("y", [[None] * N, np.full(N, np.nan), np.full(N, 0.5)])
def test_without_known_classes_there_is_no_nmi(data, y):
    model = fit(data[0], y)
    assert "nmi_y" not in model.history_[-1]
    assert_array_equal(model.labels_, fit(data[0], None).labels_)


def test_indicator_matrix_is_ignored_with_a_warning(data):
    images, classes = data
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = fit(images, np.eye(10)[classes])
    messages = [str(w.message) for w in caught if "y has shape" in str(w.message)]
    assert len(messages) == 1
    assert "argmax" in messages[0]
    assert "nmi_y" not in model.history_[-1]


@pytest.mark.parametrize("y", [[None] * (N - 1), np.zeros((N + 1, 1)), np.zeros(1)])
def test_wrong_length_is_refused(data, y):
    with pytest.raises(ValueError, match=f"X has {N}"):
        fit(data[0], y)
