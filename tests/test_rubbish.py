"""Any X gives a fit that keeps every promise, or an error that names the cause."""

import traceback
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from sklearn.utils import validation

import skdeepcluster
from skdeepcluster import DeepClusterEstimator, FaissKMeans

# Repeated rows make fewer clusters, with a warning. Other warnings are errors.
pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
PACKAGE = Path(skdeepcluster.__file__).parent
N = 12
QUICK = {"max_iter": 1, "epochs_per_iter": 1, "random_state": 0, "backbone": "mlp"}


def check_labels(model, X, n):
    labels = model.labels_
    assert labels.dtype == np.int32
    assert labels.shape == (n,)
    assert_array_equal(np.unique(labels), np.arange(labels.max() + 1))
    assert_array_equal(model.predict(X), labels)
    assert np.isfinite(model.cluster_centers_).all()
    assert len(model.cluster_centers_) == labels.max() + 1
    if isinstance(model, FaissKMeans):
        assert np.isfinite(model.inertia_)
    else:
        assert all(np.isfinite(record["inertia"]) for record in model.history_)


def check_embedding(model, X, n, embedding):
    assert embedding.dtype == np.float32
    assert embedding.shape == (n, len(model.get_feature_names_out()))
    assert np.isfinite(embedding).all()
    assert_array_equal(model.transform(X), embedding)


def check_estimator(model, X):
    check_embedding(model, X, len(X), model.fit_transform(X))
    check_labels(model, X, len(X))
    assert model.cluster_centers_.shape[1] == len(model.get_feature_names_out())
    assert 0 <= model.score(X) < 1
    for record in model.history_:
        assert np.isfinite(list(record.values())).all()


def check_kmeans(model, X):
    check_embedding(model, X, len(X), model.fit_transform(X))
    check_labels(model, X, len(X))
    assert np.isfinite(model.score(X))


def is_explained(error):
    """Return whether this package, or the validation of scikit-learn, raised it."""
    file = traceback.extract_tb(error.__traceback__)[-1].filename
    return PACKAGE in Path(file).parents or file == validation.__file__


def fit_or_explain(check, model, X):
    """Return True if X is fitted, False if an error explains why it cannot be.

    The number of clusters may depend on the number of images.
    """
    counts = {"n - 1": len(X) - 1, "n": len(X)}
    params = model.get_params().items()
    model.set_params(**{k: counts[v] for k, v in params if v in list(counts)})
    try:
        check(model, X)
    except (TypeError, ValueError) as error:
        if not is_explained(error):
            raise
        assert not hasattr(model, "labels_")
        return False
    return True


# Drawn data -------------------------------------------------------------------------

DTYPES = [
    *("uint8", "bool", "int8", "int64", "uint64", ">i4"),
    *("float16", "float32", "float64", ">f4", ">f8", "longdouble"),
]
SIZES = [0.0, 1e-300, 1e-42, 1e-30, 1e-10, 1.0, 100.0, 1e10, 2e19, 2e29, 1e38]
OFFSETS = [0.0, 0.0, 0.0, 0.0, -1.0, 1e6, 1e30]
OUTLIERS = [None, None, None, None, 1e-42, 1e10, -1e30, -3.4e38, np.nan]
REPEATS = ["all differ", "all differ", "one differs", "all same", "each constant"]
LAYOUTS = ["C", "Fortran", "reversed", "strided", "read-only"]


def make_array(shape, size, offset, outlier, fills_image, repeats, dtype, layout):
    """Return an array of random numbers with extreme values, repeats and layouts."""
    values = np.random.default_rng(0).standard_normal(shape)
    if repeats in ("one differs", "all same"):
        values[:] = values[:1]
    if repeats == "one differs":
        values[-1] *= -1
    if repeats == "each constant":
        values[:] = values.reshape(len(values), -1)[:, :1].reshape(
            -1, *[1] * (len(shape) - 1)
        )
    # Values may be too large for the data type.
    with np.errstate(all="ignore"):
        values = values * size + offset
        if outlier is not None:
            values[(1,) if fills_image else (1, *[0] * (len(shape) - 1))] = outlier
        values = values.astype(dtype)
    if layout == "Fortran":
        return np.asfortranarray(values)
    if layout == "reversed":
        return values[tuple([slice(None, None, -1)] * values.ndim)]
    if layout == "strided":
        return np.repeat(np.repeat(values, 2, axis=0), 2, axis=-1)[::2, ..., ::2]
    values.flags.writeable = layout != "read-only"
    return values


def arrays(shapes):
    return st.builds(
        make_array,
        shape=st.sampled_from(shapes),
        size=st.sampled_from(SIZES),
        offset=st.sampled_from(OFFSETS),
        outlier=st.sampled_from(OUTLIERS),
        fills_image=st.booleans(),
        repeats=st.sampled_from(REPEATS),
        dtype=st.sampled_from(DTYPES),
        layout=st.sampled_from(LAYOUTS),
    )


IMAGE_SHAPES = [
    *[(N, 6, 6), (N, 1, 1), (N, 1, 6), (N, 6, 1), (N, 1, 5, 5)],
    *[(N, 5, 6, 6), (N, 6, 6, 3), (2, 4, 4), (3, 4, 4), (2, 1, 1)],
]
ROW_SHAPES = [(N, 36), (N, 36), (N, 1), (N, 2), (N, 99), (2, 3), (2, 1), (40, 4)]

CLUSTERS = st.sampled_from([1, 2, 2, 3, "n - 1", "n"])
EMPTY_CLUSTERS = st.sampled_from(
    ["split", "split", "farthest", "farthest", "drop", "raise"]
)
PARAMS = {
    "n_clusters": CLUSTERS,
    "n_pseudo_labels": st.sampled_from(["auto", "auto", "auto", 3, "n - 1", "n"]),
    "n_neighbors": st.sampled_from([None, 1, 10]),
    "init": st.sampled_from(["pixels", "features"]),
    "whiten": st.booleans(),
    "normalize": st.booleans(),
    "n_components": st.sampled_from(["auto", None, 1, 5]),
    "balance": st.sampled_from(["uniform", "loss", None]),
    "empty_clusters": EMPTY_CLUSTERS,
    "head_norm": st.sampled_from(["batch", None]),
    "batch_size": st.sampled_from([2, 5, 64]),
    "precision": st.sampled_from(["float32", "bfloat16"]),
    "clusterer": st.sampled_from(["kmeans", FaissKMeans(backend="torch")]),
}


def draw_params(**params):
    return st.fixed_dictionaries(PARAMS | params)


@settings(max_examples=60)
@given(
    X=arrays(IMAGE_SHAPES),
    params=draw_params(
        sobel=st.booleans(),
        augment=st.sampled_from(["auto", None]),
        backbone=st.sampled_from(["mlp", "mlp", "convnet", "auto"]),
    ),
)
def test_images(X, params):
    fit_or_explain(check_estimator, DeepClusterEstimator(**QUICK | params), X)


@settings(max_examples=70)
@given(
    X=arrays(ROW_SHAPES),
    params=draw_params(
        image_shape=st.sampled_from([None, None, None, (1, 6, 6), (4, 9, 1)])
    ),
)
def test_rows(X, params):
    fit_or_explain(check_estimator, DeepClusterEstimator(**QUICK | params), X)


@settings(max_examples=300)
@given(
    X=arrays(ROW_SHAPES),
    params=st.fixed_dictionaries(
        {
            "n_clusters": CLUSTERS,
            "init": st.sampled_from(["k-means++", "random"]),
            "n_init": st.sampled_from([1, 3]),
            "tol": st.sampled_from([0, 1e-4, 1e308]),
            "spherical": st.booleans(),
            "empty_clusters": EMPTY_CLUSTERS,
            "backend": st.sampled_from(["faiss", "torch"]),
        }
    ),
)
def test_rows_for_kmeans(X, params):
    fit_or_explain(check_kmeans, FaissKMeans(**params, random_state=0), X)


@pytest.mark.filterwarnings("ignore:X holds values from")
@settings(max_examples=20)
@given(
    X=arrays([(N, 5, 5)]),
    inputs=st.lists(arrays([(N, 5, 5)]), min_size=3, max_size=6),
    params=draw_params(backbone=st.sampled_from(["mlp", "mlp", "convnet"])),
)
def test_transform_after_a_fit_on_other_values(X, inputs, params):
    model = DeepClusterEstimator(**QUICK | params)
    if not fit_or_explain(check_estimator, model, X):
        return
    for values in inputs:
        try:
            embedding = model.transform(values)
        except ValueError as error:
            if not is_explained(error):
                raise
            continue
        assert np.isfinite(embedding).all()
        assert set(model.predict(values)) <= set(range(len(model.cluster_centers_)))
        assert 0 <= model.score(values) < 1


# Named cases ------------------------------------------------------------------------

RNG = np.random.default_rng(0)
IMAGES = RNG.standard_normal((N, 6, 6)).astype(np.float32)
SIGNS = np.where(IMAGES > 0, np.float32(1), np.float32(-1))


def with_outlier(value, index):
    images = IMAGES.copy()
    images[index] = value
    return images


EXTREMES = {
    "black": np.zeros((N, 6, 6), np.uint8),
    "constant 1e30": np.full((N, 6, 6), 1e30, np.float32),
    "duplicates": np.repeat(IMAGES[:1], N, axis=0),
    "all but one the same": with_outlier(IMAGES[1], slice(1, N)),
    "two": IMAGES[:2],
    "two the same": np.zeros((2, 6, 6)),
    "a pixel of 1e30": with_outlier(1e30, (3, 2, 2)),
    "an image of 1e30": with_outlier(1e30, 3),
    "1e-30": IMAGES * np.float32(1e-30),
    "denormal": IMAGES * np.float32(1e-42),
    "1e-300": IMAGES.astype(float) * 1e-300,
    "1e6 and noise": 1e6 + 1e-3 * IMAGES.astype(float),
    "1e30 and noise": np.float32(1e30) * (1 + IMAGES * np.float32(1e-6)),
    "a column of 1e30": with_outlier(1e30, np.s_[:, :, 0]),
    "from -1e30 to 1e30": SIGNS * np.float32(1e30),
    "float16 at its limit": SIGNS.astype(np.float16) * np.float16(65504),
    "int64": (IMAGES * 2e18).astype(np.int64),
    "bool": IMAGES > 0,
    "big-endian": IMAGES.astype(">f8"),
    "reversed": IMAGES[::-1, ::-1, ::-1],
    "one pixel": IMAGES[:, :1, :1],
    "a constant channel": np.stack([IMAGES, 0 * IMAGES, IMAGES * 1e20], axis=1),
    "bfloat16": torch.from_numpy(IMAGES).to(torch.bfloat16) * 1e30 / 9,
}


@pytest.mark.parametrize("n_clusters", [1, 2, "n - 1", "n"])
@pytest.mark.parametrize("name", EXTREMES)
def test_extreme_images(name, n_clusters):
    X = EXTREMES[name]
    k = {"n - 1": len(X) - 1, "n": len(X)}.get(n_clusters, n_clusters)
    check_estimator(DeepClusterEstimator(k, **QUICK), X)


@pytest.mark.parametrize(
    "name", [name for name, X in EXTREMES.items() if name != "bfloat16"]
)
def test_extreme_rows(name):
    rows = EXTREMES[name].reshape(len(EXTREMES[name]), -1)
    check_estimator(DeepClusterEstimator(2, **QUICK), rows)
    image_shape = (1, 1, rows.shape[1])
    check_estimator(DeepClusterEstimator(2, image_shape=image_shape, **QUICK), rows)


TOO_LARGE = r"too large .*\(3.*e\+38, beyond 1e30\) in row 3\. Remove that row"
INVALID = {
    "a pixel of 3e38": (with_outlier(3e38, (3, 2, 2)), TOO_LARGE),
    "no data": (with_outlier(-3.4028e38, 3), TOO_LARGE),
    "3e38": (SIGNS * np.float32(3e38), r"too large .* in row 0\."),
    "beyond float32": (
        with_outlier(1, 0).astype(float) * 1e300,
        "infinity .* in row 0",
    ),
    "beyond float64": (IMAGES.astype("longdouble") * 2, "infinity .* in row 3"),
    "NaN": (with_outlier(np.nan, (3, 0, 0)), "contains NaN in row 3"),
    "infinite": (with_outlier(-np.inf, (3, 0, 0)), "infinity .* in row 3"),
    "no width": (IMAGES[:, :, :0], "without pixels"),
    "no channel": (np.zeros((N, 0, 6, 6)), "without pixels"),
    "none": (IMAGES[:0], "X is empty"),
    "one": (IMAGES[:1], "minimum of 2 is required"),
}
if np.finfo(np.longdouble).maxexp > 1024:
    INVALID["beyond float64"][0][3, 2, 2] = np.longdouble("1e400")
else:
    del INVALID["beyond float64"]


@pytest.mark.parametrize("name", INVALID)
def test_invalid_values(name):
    X, message = INVALID[name]
    rows = [X.reshape(len(X), -1)] if X.size and len(X) > 1 else []
    for data in [X, *rows]:
        with pytest.raises(ValueError, match=message):
            DeepClusterEstimator(2, **QUICK).fit(data)


@pytest.mark.parametrize("n_neighbors", [None, 10])
@pytest.mark.parametrize("init", ["pixels", "features"])
@pytest.mark.parametrize("exponent", [-90, 90])
def test_unit_of_the_pixels_does_not_matter(exponent, init, n_neighbors):
    """Units that differ by a power of two give the same result, bit for bit."""
    params = {"init": init, "n_neighbors": n_neighbors, "n_pseudo_labels": 5}
    expected, model = (DeepClusterEstimator(3, **QUICK, **params) for _ in range(2))
    embedding = expected.fit_transform(IMAGES)
    assert len(np.unique(expected.labels_)) == 3
    X = IMAGES * np.float32(2.0**exponent)
    assert_array_equal(model.fit_transform(X), embedding)
    assert_array_equal(model.labels_, expected.labels_)


def test_outlier_in_a_data_frame():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"a": np.arange(N), "b": np.arange(N) % 2 == 0, "c": 1.0})
    check_estimator(DeepClusterEstimator(2, **QUICK), frame)
    frame.loc[3, "c"] = -3.4e38
    for model in DeepClusterEstimator(2, **QUICK), FaissKMeans(2):
        with pytest.raises(ValueError, match=r"too large .*in row 3"):
            model.fit(frame)


def test_tiny_and_huge_images_are_clustered():
    classes = np.repeat([0, 1, 2], 20)
    images = RNG.standard_normal((3, 6, 6))[classes] + 0.1 * RNG.random((60, 6, 6))
    for size in (1e-30, 1.0, 1e29):
        model = DeepClusterEstimator(3, **QUICK).fit(size * images)
        assert len(set(zip(model.labels_, classes, strict=True))) == 3
    for size in (1e-40, 1e-30, 1e16):
        model = FaissKMeans(3, n_init=5, random_state=0)
        model.fit((size * images).reshape(60, -1))
        assert len(set(zip(model.labels_, classes, strict=True))) == 3
