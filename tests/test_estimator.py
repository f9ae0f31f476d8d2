"""DeepClusterEstimator: parameters, fitted state, promises and errors."""

import contextlib
import copy
import pickle
import random
import warnings

import joblib
import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from sklearn.base import clone
from sklearn.cluster import KMeans, MiniBatchKMeans
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import normalized_mutual_info_score
from sklearn.model_selection import GridSearchCV, cross_validate
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from skdeepcluster import DeepClusterEstimator, _estimator
from skdeepcluster._fit import loop as loop_module

QUICK = {
    "n_clusters": 5,
    "n_pseudo_labels": 20,
    "max_iter": 2,
    "epochs_per_iter": 1,
    "random_state": 0,
}


def quick(**parameters) -> DeepClusterEstimator:
    return DeepClusterEstimator(**{**QUICK, **parameters})


class Tiny(nn.Module):
    """Pixels -> (n, 6), for images of one channel."""

    def __init__(self, output=None):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )
        self.output = output

    def forward(self, x):
        features = self.layers(x)
        return features if self.output is None else self.output(features)


@pytest.fixture(scope="module")
def images(digits_images):
    return digits_images[0][:200]


@pytest.fixture(scope="module")
def digits(digits_images):
    return digits_images[1][:200]


@pytest.fixture(scope="module")
def fitted(images):
    return quick().fit(images)


# What fit returns and stores.


def test_fitted_attributes(fitted, images):
    assert fitted.labels_.dtype == np.int32
    assert fitted.labels_.shape == (200,)
    assert_array_equal(np.unique(fitted.labels_), np.arange(5))
    embedding = fitted.transform(images)
    assert embedding.dtype == np.float32
    assert embedding.shape == (200, fitted.cluster_centers_.shape[1])
    for group, center in enumerate(fitted.cluster_centers_):
        mean = embedding[fitted.labels_ == group].mean(axis=0)
        np.testing.assert_allclose(center, mean, atol=1e-5)
    assert fitted.inertia_ > 0
    assert fitted.n_iter_ == 2
    assert fitted.image_shape_ == (1, 8, 8)
    assert fitted.n_features_in_ == 64
    assert isinstance(fitted.module_, nn.Module)
    names = fitted.get_feature_names_out()
    assert names[0] == "deepclusterestimator0"
    assert len(names) == embedding.shape[1]


def test_history_has_one_complete_row_a_round(images, digits):
    history = quick(max_iter=3).fit(images, digits).history_
    assert [row["round"] for row in history] == [1, 2, 3]
    for row in history:
        assert np.isfinite(row["loss"])
        assert row["loss"] > 0
        assert 0 <= row["nmi_previous"] <= 1
        assert 0 <= row["nmi_y"] <= 1
        assert row["n_empty_after"] == 0 <= row["n_empty_before"]
        assert 0 < row["smallest_cluster"] <= 200 / 20 <= row["largest_cluster"]
        seconds = [v for name, v in row.items() if name.startswith("seconds_")]
        assert len(seconds) >= 4
        assert min(seconds) >= 0


def test_y_is_logged_but_never_learned_from(images, digits):
    with_y = quick().fit(images, digits)
    without = quick().fit(images)
    assert_array_equal(with_y.labels_, without.labels_)
    assert_array_equal(with_y.transform(images), without.transform(images))
    assert "nmi_y" not in without.history_[0]
    assert "nmi_y" not in quick().fit(images, np.linspace(0, 1, 200)).history_[0]


@pytest.mark.parametrize("n", [61, 64, 129])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_predict_on_training_images_equals_labels_exactly(images, n, precision):
    model = quick(precision=precision).fit(images[:n])
    assert_array_equal(model.predict(images[:n]), model.labels_)


def test_predict_and_transform_do_not_depend_on_batching(fitted, images):
    embedding, labels = fitted.transform(images), fitted.predict(images)
    for rows in ([0], [3, 1], np.arange(7), np.arange(199, -1, -1)):
        assert_array_equal(fitted.transform(images[rows]), embedding[rows])
        assert_array_equal(fitted.predict(images[rows]), labels[rows])


def test_fit_variants_agree(images):
    model = quick()
    embedding = model.fit_transform(images)
    assert_array_equal(embedding, model.transform(images))
    assert_array_equal(quick().fit_predict(images), model.labels_)


def test_learns_digits_better_than_kmeans_on_pixels_and_warns_of_nothing(digits_images):
    images, digits = digits_images
    pixels = images.reshape(len(images), -1)
    baseline = KMeans(10, n_init=10, random_state=0).fit_predict(pixels)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = DeepClusterEstimator(10, max_iter=2, random_state=0)
        labels = model.fit_predict(images)
    ours = normalized_mutual_info_score(digits, labels)
    assert ours > normalized_mutual_info_score(digits, baseline) + 0.03


# Reproducibility.


@pytest.mark.parametrize("balance", ["uniform", "loss"])
def test_same_random_state_gives_the_same_bits(images, balance):
    dropout = nn.Sequential(Tiny(), nn.Dropout(0.5))
    for backbone in ("auto", dropout):
        one, two = (
            quick(balance=balance, backbone=backbone).fit(images) for _ in range(2)
        )
        assert_array_equal(one.labels_, two.labels_)
        assert_array_equal(one.transform(images), two.transform(images))


def test_same_bits_in_worker_processes(images):
    model = quick(n_jobs=1).fit(images)
    jobs = [joblib.delayed(quick(n_jobs=1).fit)(images) for _ in range(2)]
    for other in joblib.Parallel(n_jobs=2, backend="loky")(jobs):
        assert_array_equal(other.labels_, model.labels_)
        assert_array_equal(other.transform(images), model.transform(images))


def test_other_random_state_gives_other_bits(fitted, images):
    other = quick(random_state=1).fit(images)
    assert not np.array_equal(other.transform(images), fitted.transform(images))


@pytest.mark.parametrize("random_state", [None, 0])
def test_global_random_states_are_untouched(images, random_state):
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    model = quick(random_state=random_state, max_iter=1).fit(images)
    model.predict(images)
    model.score(images)
    after = random.getstate(), np.random.get_state(), torch.get_rng_state()
    assert before[0] == after[0]
    assert_array_equal(before[1][1], after[1][1])
    assert before[1][2:] == after[1][2:]
    assert torch.equal(before[2], after[2])


def test_random_state_instance_is_drawn_from(images):
    one = quick(random_state=np.random.RandomState(3)).fit(images)
    two = quick(random_state=np.random.RandomState(3)).fit(images)
    assert_array_equal(one.labels_, two.labels_)


# Parameters.


def test_the_papers_single_k_is_kmeans_on_the_features(images):
    model = quick(n_pseudo_labels=5, n_neighbors=None, init="features").fit(images)
    assert_array_equal(np.unique(model.labels_), np.arange(5))
    points, centers = (
        model._groups.projection(model.transform(images)),
        model._groups.centers,
    )
    distances = np.linalg.norm(points[:, None] - centers[None], axis=2)
    assert_array_equal(model.labels_, distances.argmin(axis=1))
    np.testing.assert_allclose(
        model.inertia_, (distances.min(axis=1) ** 2).sum(), rtol=1e-4
    )


@pytest.mark.parametrize("n_clusters", [1, 2, 200])
def test_extreme_numbers_of_clusters(images, n_clusters):
    model = quick(n_clusters=n_clusters, n_pseudo_labels="auto", max_iter=1)
    model.fit(images)
    assert_array_equal(np.unique(model.labels_), np.arange(n_clusters))
    assert_array_equal(model.predict(images), model.labels_)


@pytest.mark.parametrize(
    ("balance", "empty_clusters"),
    [
        *(("uniform", policy) for policy in ("split", "farthest", "drop", "raise")),
        *(("loss", "split"), ("loss", "drop"), (None, "split"), (None, "drop")),
    ],
)
def test_balance_and_empty_clusters(images, balance, empty_clusters):
    model = quick(balance=balance, empty_clusters=empty_clusters).fit(images)
    assert_array_equal(np.unique(model.labels_), np.arange(5))
    assert np.isfinite(model.transform(images)).all()


@pytest.mark.filterwarnings("ignore:After round . one pseudo-label holds")  # 61 of 100
@pytest.mark.parametrize("empty_clusters", ["split", "farthest", "drop", "raise"])
def test_empty_clusters_on_repeated_images(images, empty_clusters):
    repeated = np.concatenate([images[:40], np.repeat(images[40:41], 60, axis=0)])
    model = quick(n_pseudo_labels=60, empty_clusters=empty_clusters)
    if empty_clusters == "raise":
        with pytest.raises(ValueError, match="empty_clusters"):
            model.fit(repeated)
    else:
        # "drop" promises no number of clusters, and so has nothing to warn of.
        expected = (
            contextlib.nullcontext()
            if empty_clusters == "drop"
            else pytest.warns(ConvergenceWarning, match="distinct")
        )
        with expected:
            model.fit(repeated)
        assert_array_equal(model.predict(repeated), model.labels_)
        assert_array_equal(np.unique(model.labels_), np.arange(5))
        assert model.history_[-1]["n_empty_before"] > 0


@pytest.mark.filterwarnings("ignore:After round . one pseudo-label holds")
@pytest.mark.parametrize(
    "parameters",
    [
        {"init": "features"},
        {"n_neighbors": None},
        {"n_neighbors": 10**6},
        {"n_pseudo_labels": 5},
        {"n_pseudo_labels": 200},
        {"kmeans_backend": "torch"},
        {"sobel": True},
        {"augment": None},
        {"n_components": 1},
        {"n_components": 4},
        {"n_components": None},
        {"whiten": False},
        {"normalize": False},
        {"head_norm": None},
        {"batch_size": 7},
        {"epochs_per_iter": 2},
        {"updates_per_iter": 5},
        {"schedule": "constant"},
        {"augment": "crops"},
        {"n_crops": 2},
        {"n_crops": (1, 2)},
        {"n_pseudo_labels": (10, 20)},
        {"clusterer": "pic"},
        {"clusterer": MiniBatchKMeans(n_init=1)},
        {"head": "centroids"},
        {"head": "centroids", "temperature": 0.5, "init": "features"},
        {"head": "centroids", "n_components": 16, "balance": "loss", "n_crops": (2, 1)},
        {"head": "centroids", "n_pseudo_labels": (10, 20), "clusterer": "pic"},
        {"head": "centroids", "n_pseudo_labels": 5, "head_norm": None},
        {"momentum": 0.0},
        {"weight_decay": 0.0},
        {"backbone": "mlp"},
        {"backbone": "convnet"},
        {"backbone": "resnet18", "max_iter": 1},
        {"backbone": Tiny()},
    ],
    ids=str,
)
def test_parameters_have_their_effect_and_keep_the_promises(fitted, images, parameters):
    model = quick(**parameters).fit(images)
    assert_array_equal(np.unique(model.labels_), np.arange(5))
    assert_array_equal(model.predict(images), model.labels_)
    embedding = model.transform(images)
    assert np.isfinite(embedding).all()
    # What "auto" is for images, and what may round otherwise but computes the same.
    if parameters not in ({"backbone": "convnet"}, {"kmeans_backend": "torch"}):
        before = fitted.transform(images)
        assert embedding.shape != before.shape or not np.array_equal(embedding, before)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_images_are_passed_once_a_round_where_points_are_remembered(
    images, monkeypatch
):
    monkeypatch.setattr(loop_module, "CALIBRATION_ROWS", 10)
    monkeypatch.setattr(loop_module, "STABILITY_ROWS", 10)

    class Counting(Tiny):
        seen = 0

        def forward(self, x):
            Counting.seen += len(x)
            return super().forward(x)

    def passes(n_rounds, **params):
        Counting.seen = 0
        params |= {"max_iter": n_rounds, "backbone": Counting()}
        quick(**params).fit(images)
        return Counting.seen / len(images)

    for head, n_passes in (("reset", 2), ("centroids", 1)):
        more = passes(3, head=head) - passes(2, head=head)
        assert more == pytest.approx(n_passes, abs=0.2)


def test_n_components_bounds_the_clustered_space(images):
    for n_components, least, most in ((3, 3, 3), (10**6, 4, 199)):
        model = quick(n_components=n_components, n_pseudo_labels=5, n_neighbors=None)
        assert least <= model.fit(images)._groups.centers.shape[1] <= most


def test_sobel_sees_no_brightness(images):
    model = quick(sobel=True, precision="float32").fit(images.astype(np.float32))
    brighter = model.transform(images.astype(np.float32) + 3)
    original = model.transform(images.astype(np.float32))
    inside = np.corrcoef(brighter.ravel(), original.ravel())[0, 1]
    assert inside > 0.7  # only the zero padding at the border sees the offset


def test_user_module_is_copied(images):
    module = Tiny()
    before = copy.deepcopy(module.state_dict())
    model = quick(backbone=module).fit(images)
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name])
    assert model.get_params()["backbone"] is module
    assert model.transform(images).shape == (200, 6)


def test_user_augment_gets_raw_float_batches(images):
    seen = []

    def augment(batch):
        seen.append(batch.clone())
        return batch

    quick(augment=augment, balance=None, max_iter=1).fit(images)
    received = torch.cat(seen)
    assert received.dtype == torch.float32
    assert received.shape == (200, 1, 8, 8)
    pixels = np.sort(received.numpy().ravel())
    assert_array_equal(pixels, np.sort(images.ravel()))


def test_tol_ends_training(images):
    assert quick(max_iter=6, tol=1.0).fit(images).n_iter_ == 1
    assert quick(max_iter=3, tol=0.0).fit(images).n_iter_ == 3


def test_warm_start_goes_on(images):
    model = quick(warm_start=True, max_iter=1).fit(images)
    first = model.transform(images)
    model.fit(images)
    assert model.n_iter_ == 2
    assert [row["round"] for row in model.history_] == [1, 2]
    assert not np.array_equal(first, model.transform(images))
    assert_array_equal(model.predict(images), model.labels_)
    fresh = quick(max_iter=1).fit(images).fit(images)
    assert fresh.n_iter_ == 1


def test_warm_start_with_another_head(images):
    model = quick(warm_start=True, max_iter=1).fit(images)
    before = model.labels_
    with pytest.raises(ValueError, match=r"warm_start=True .*head='centroids'"):
        model.set_params(head="centroids").fit(images)
    assert model.labels_ is before
    model = quick(warm_start=True, head="centroids", max_iter=1).fit(images)
    assert model.fit(images).n_iter_ == 2
    assert_array_equal(model.predict(images), model.labels_)


def test_verbose_prints_a_line_a_round(images, capfd):
    quick().fit(images)
    assert capfd.readouterr() == ("", "")
    quick(verbose=1).fit(images)
    out, err = capfd.readouterr()
    assert len(out.splitlines()) == 2
    assert err == ""


def test_n_jobs_limits_threads(images):
    counts = []

    def augment(batch):
        counts.append(torch.get_num_threads())
        return batch

    before = torch.get_num_threads()
    quick(n_jobs=1, augment=augment, max_iter=1).fit(images)
    assert set(counts) == {1}
    assert torch.get_num_threads() == before


# Input forms.


def test_every_layout_of_the_same_pixels_gives_the_same_labels(images, tmp_path):
    memmap = np.memmap(tmp_path / "x", np.uint8, "w+", shape=images.shape)
    memmap[:] = images
    plain = quick(max_iter=1, n_pseudo_labels=5, n_neighbors=None)
    expected = clone(plain).fit(images)
    for form in (
        images[:, None],
        images[..., None],
        torch.from_numpy(images.copy()),
        torch.from_numpy(images.copy())[:, None],
        memmap,
        list(images),
        np.asfortranarray(images),
        images.astype(np.float32),
        images.astype(">f8"),
    ):
        model = clone(plain).fit(form)
        assert_array_equal(model.labels_, expected.labels_)
        assert_array_equal(model.predict(form), expected.labels_)


def test_rows_with_image_shape_are_images(images):
    rows = images.reshape(200, -1)
    expected = quick().fit(images)
    model = quick(image_shape=(1, 8, 8)).fit(rows)
    assert_array_equal(model.labels_, expected.labels_)
    assert_array_equal(model.predict(images), expected.labels_)
    assert not np.array_equal(quick().fit(rows).labels_, expected.labels_)


def test_data_frames(images):
    pandas = pytest.importorskip("pandas")
    names = [f"pixel{i}" for i in range(64)]
    frame = pandas.DataFrame(images.reshape(200, -1), columns=names)
    model = quick(image_shape=(1, 8, 8)).fit(frame)
    assert_array_equal(model.feature_names_in_, names)
    assert_array_equal(model.labels_, quick().fit(images).labels_)
    with pytest.raises(ValueError, match="feature names"):
        model.predict(frame[names[::-1]])


@pytest.mark.parametrize(
    "shape", [(40, 3, 32, 32), (40, 32, 32, 3), (40, 28, 20), (40, 5, 12, 12)]
)
def test_color_and_other_shapes(shape):
    X = np.random.default_rng(0).integers(0, 255, shape, np.uint8)
    model = quick(n_pseudo_labels=8, max_iter=1).fit(X)
    assert_array_equal(model.predict(X), model.labels_)
    channels = min(shape[1], shape[-1]) if len(shape) == 4 else 1
    assert model.image_shape_[0] == channels


def test_large_color_images():
    X = np.random.default_rng(0).integers(0, 255, (12, 3, 224, 224), np.uint8)
    model = quick(n_clusters=2, n_pseudo_labels=3, max_iter=1).fit(X)
    assert_array_equal(model.predict(X), model.labels_)


def test_the_scale_of_pixels_does_not_matter(images):
    scaled = quick(precision="float32").fit(images / 16.0)
    original = quick(precision="float32").fit(images)
    nmi = normalized_mutual_info_score(scaled.labels_, original.labels_)
    assert nmi > 0.8


# Bad input: each says what to do, and leaves the estimator as it was.


def nan_image(images):
    X = images.astype(np.float32)
    X[17, 3, 3] = np.nan
    return X


BAD_INPUT = {
    "nan": (nan_image, {}, ValueError, r"NaN in row 17"),
    "inf": (lambda X: nan_image(X) * np.inf, {}, ValueError, r"row 0"),
    "too large": (lambda X: X * 1e300, {}, ValueError, r"inf.* float32.* row 0"),
    "empty": (lambda X: X[:0], {}, ValueError, r"empty"),
    "empty rows": (lambda X: X[:0].reshape(0, 64), {}, ValueError, r"0 sample"),
    "one image": (lambda X: X[:1], {"n_clusters": 1}, ValueError, r"1 sample"),
    "1-D": (lambda X: X[:, 0, 0], {}, ValueError, r"Reshape your data"),
    "5-D": (lambda X: X[:, None, None], {}, ValueError, r"dim"),
    "objects": (lambda X: X.astype(object), {}, TypeError, r"object"),
    "strings": (lambda X: X.astype(str), {}, TypeError, r"not numbers"),
    "complex": (lambda X: X * 1j, {}, ValueError, r"Complex"),
    "text": (lambda X: "some/folder", {}, ValueError, r"'some/folder' is not a folder"),
    "no file": (lambda X: ["a.png"] * 9, {}, ValueError, r"row 0: a.png: No such file"),
    "no .npy": (lambda X: "some.npy", {}, ValueError, r"'some.npy' is no file"),
    "other channels": (
        lambda X: [X[0], X[1][:5], *np.ones((9, 2, 8, 8))],
        {},
        ValueError,
        r"row 0: an image of 1 channels, where others have 2",
    ),
    "no pixels": (lambda X: X[:, :0], {}, ValueError, r"without pixels"),
    "too few": (lambda X: X[:4], {}, ValueError, r"n_samples=4 .* n_clusters=5"),
    "k of 0": (lambda X: X, {"n_clusters": 0}, ValueError, r"n_clusters"),
    "no fine": (lambda X: X, {"n_pseudo_labels": ()}, ValueError, r"is empty"),
    "half fine": (lambda X: X, {"n_pseudo_labels": (9, 9.5)}, ValueError, r"=9.5"),
    "no crops": (lambda X: X, {"n_crops": (0, 2)}, ValueError, r"n_crops=\(0, 2\)"),
    "three crops": (lambda X: X, {"n_crops": (1, 2, 3)}, ValueError, r"n_crops="),
    "crops of what": (
        lambda X: X,
        {"n_crops": 2, "augment": None},
        ValueError,
        r"n_crops=2 needs random crops",
    ),
    "small crops of what": (
        lambda X: X,
        {"n_crops": (1, 2), "augment": lambda batch: batch},
        ValueError,
        r"n_crops=\(1, 2\) asks for small crops",
    ),
    "crops of rows": (
        lambda X: X.reshape(200, 64),
        {"augment": "crops"},
        ValueError,
        r"augment='crops' needs images",
    ),
    "clusterer": (lambda X: X, {"clusterer": nn.ReLU()}, ValueError, r"clusterer"),
    "class": (lambda X: X, {"clusterer": KMeans}, TypeError, r"Pass an instance: KM"),
    "temperature": (lambda X: X, {"temperature": 0}, ValueError, r"temperature"),
    "few fine": (lambda X: X, {"n_pseudo_labels": 4}, ValueError, r"n_pseudo_labels=4"),
    "many fine": (lambda X: X, {"n_pseudo_labels": 999}, ValueError, r"=999"),
    "wrong shape": (
        lambda X: X.reshape(200, 64),
        {"image_shape": (3, 8, 8)},
        ValueError,
        r"image_shape=\(3, 8, 8\) takes rows of 192",
    ),
    "bad shape": (lambda X: X, {"image_shape": (8, 8)}, ValueError, r"image_shape"),
    "other shape": (lambda X: X, {"image_shape": (1, 9, 9)}, ValueError, r"image_sha"),
    "backbone": (lambda X: X, {"backbone": "resnet17"}, ValueError, r"resnet17.*resn"),
    "rows": (
        lambda X: X.reshape(200, 64),
        {"backbone": "resnet18"},
        ValueError,
        r"image_shape",
    ),
    "sobel": (lambda X: X.reshape(200, 64), {"sobel": True}, ValueError, r"sobel"),
    "4-D output": (
        lambda X: X,
        {"backbone": nn.Conv2d(1, 2, 3)},
        ValueError,
        r"\(2, 2, 6, 6\).*\(n, d\)",
    ),
    "tuple output": (
        lambda X: X,
        {"backbone": Tiny(lambda f: (f, f))},
        ValueError,
        r"tuple",
    ),
    "channels": (
        lambda X: X,
        {"backbone": nn.Conv2d(3, 2, 3)},
        ValueError,
        r"does not take",
    ),
    "no weights": (lambda X: X, {"backbone": nn.Flatten()}, ValueError, r"parameters"),
    "device": (lambda X: X, {"device": "gpu"}, ValueError, r"device='gpu'"),
    "precision": (lambda X: X, {"precision": "fp8"}, ValueError, r"precision"),
    "balance": (lambda X: X, {"balance": "both"}, ValueError, r"balance"),
    "batch size": (lambda X: X, {"batch_size": 1}, ValueError, r"batch_size"),
    "augment": (
        lambda X: X,
        {"augment": lambda batch: batch[:, :, :4]},
        ValueError,
        r"augment must return",
    ),
    "learning rate": (lambda X: X, {"learning_rate": 1e300}, ValueError, r"learning_r"),
    "weight decay": (lambda X: X, {"weight_decay": 1e300}, ValueError, r"weight_dec"),
    "augment's values": (
        lambda X: X,
        {"augment": lambda batch: batch / 0},
        ValueError,
        r"augment returned values that are NaN",
    ),
    "diverged": (
        lambda X: X,
        {"learning_rate": 1e30, "head_norm": None},
        ValueError,
        r"round 1.*learning_rate",
    ),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input(images, fitted, case):
    make, parameters, error, message = BAD_INPUT[case]
    with np.errstate(all="ignore"):
        X = make(images)
    unfitted = quick(**parameters)
    with pytest.raises(error, match=message):
        unfitted.fit(X)
    assert not [name for name in vars(unfitted) if name.endswith("_")]
    with pytest.raises(NotFittedError):
        unfitted.predict(images)

    refitted = copy.deepcopy(fitted).set_params(**parameters)
    with pytest.raises(error, match=message):
        refitted.fit(X)
    assert_array_equal(refitted.labels_, fitted.labels_)
    assert refitted.history_ == fitted.history_


def test_sparse_input(images):
    sparse = pytest.importorskip("scipy.sparse")
    with pytest.raises(TypeError, match=r"[Ss]parse"):
        quick().fit(sparse.csr_array(images.reshape(200, -1)))


def test_wrong_length_of_y(images):
    with pytest.raises(ValueError, match="inconsistent"):
        quick().fit(images, [0, 1])


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((4, 3, 8, 8), r"\(3, 8, 8\), but fit saw images of shape \(1, 8, 8\)"),
        ((4, 9, 9), r"\(1, 9, 9\), but fit saw"),
        ((4, 64), r"2 dimensions, but fit saw images of shape \(1, 8, 8\)"),
    ],
)
@pytest.mark.parametrize("method", ["predict", "transform", "score"])
def test_shape_changed_after_fit(fitted, method, shape, message):
    with pytest.raises(ValueError, match=message):
        getattr(fitted, method)(np.zeros(shape, np.uint8))


def test_images_after_rows(images):
    model = quick().fit(images.reshape(200, -1))
    with pytest.raises(ValueError, match="fit saw rows of 64"):
        model.predict(images)


@pytest.mark.parametrize("method", ["predict", "transform", "score"])
def test_unfitted(images, method):
    with pytest.raises(NotFittedError):
        getattr(quick(), method)(images)


@pytest.mark.parametrize("n_distinct", [1, 3])
def test_few_distinct_images_warn_and_stay_consecutive(images, n_distinct):
    X = np.tile(images[:n_distinct], (60 // n_distinct, 1, 1))
    model = quick(max_iter=1)
    with pytest.warns(ConvergenceWarning, match=f"distinct points \\({n_distinct}\\)"):
        model.fit(X)
    assert_array_equal(np.unique(model.labels_), np.arange(n_distinct))
    assert_array_equal(model.predict(X), model.labels_)
    assert np.isfinite(model.transform(X)).all()


def test_interrupted_fit_leaves_nothing(images):
    def augment(batch):
        raise KeyboardInterrupt

    model = quick(augment=augment)
    with pytest.raises(KeyboardInterrupt):
        model.fit(images)
    assert not [name for name in vars(model) if name.endswith("_")]


# scikit-learn's tools around it.


def test_clone_and_params(images):
    model = quick(backbone=Tiny(), augment=None)
    copied = clone(model)
    assert set(copied.get_params()) == set(model.get_params())
    assert copied.set_params(n_clusters=3).n_clusters == 3
    assert len(np.unique(copied.fit(images).labels_)) == 3


@pytest.mark.parametrize("how", ["pickle", "joblib", "joblib memmap"])
def test_pickling(fitted, images, tmp_path, how):
    if how == "pickle":
        loaded = pickle.loads(pickle.dumps(fitted))
    else:
        joblib.dump(fitted, tmp_path / "model")
        mode = "r" if how == "joblib memmap" else None
        loaded = joblib.load(tmp_path / "model", mmap_mode=mode)
    assert_array_equal(loaded.predict(images), fitted.labels_)
    assert_array_equal(loaded.transform(images), fitted.transform(images))
    refitted = loaded.fit(images)
    assert_array_equal(refitted.labels_, fitted.labels_)


def test_fitted_on_a_device_that_is_not_here(fitted, images):
    state = {**fitted.__getstate__(), "device_": torch.device("cuda:7")}
    loaded = DeepClusterEstimator.__new__(DeepClusterEstimator)
    loaded.__setstate__(state)
    assert_array_equal(loaded.predict(images), fitted.labels_)


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_set_output(images, library):
    frames = pytest.importorskip(library)
    frame = quick().set_output(transform=library).fit_transform(images)
    assert isinstance(frame, frames.DataFrame)
    assert frame.columns[1] == "deepclusterestimator1"
    model = quick().set_output(transform=library).fit(images)
    assert_array_equal(model.transform(images).to_numpy(), frame.to_numpy())
    assert_array_equal(model.predict(images), model.labels_)


def test_html_repr(fitted):
    html = fitted._repr_html_()
    assert "DeepClusterEstimator" in html
    assert "n_pseudo_labels" in html


def test_as_last_step_after_a_scaler(images):
    pipeline = make_pipeline(StandardScaler(), quick(image_shape=(1, 8, 8)))
    rows = images.reshape(200, -1)
    labels = pipeline.fit_predict(rows)
    assert_array_equal(pipeline.predict(rows), labels)


def test_as_transformer_before_a_classifier(images, digits):
    pipeline = make_pipeline(quick(n_clusters=10), LogisticRegression(max_iter=500))
    assert pipeline.fit(images[:150], digits[:150]).score(images[150:], digits[150:])
    scores = cross_validate(pipeline, images, digits, cv=2, error_score="raise")
    assert min(scores["test_score"]) > 0.4


def test_grid_search_without_labels(images):
    grid = {"n_clusters": [2, 5], "balance": ["uniform", None]}
    search = GridSearchCV(quick(max_iter=1), grid, cv=2, error_score="raise")
    search.fit(images)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    assert_array_equal(search.predict(images), search.best_estimator_.labels_)


def test_grid_search_through_a_classifier_in_two_processes(images, digits):
    pipeline = Pipeline([("dc", quick()), ("lr", LogisticRegression(max_iter=500))])
    grid = {"dc__n_clusters": [5, 10]}

    def best():
        search = GridSearchCV(pipeline, grid, cv=2, n_jobs=2, error_score="raise")
        return search.fit(images, digits).best_score_

    assert best() == best()


def test_worker_processes_do_not_oversubscribe():
    def threads() -> tuple[int, int]:  # in here, so that it is sent by its code
        import faiss

        import skdeepcluster  # noqa: F401

        return torch.get_num_threads(), faiss.omp_get_max_threads()

    n_jobs = 2
    allowed = max(1, joblib.cpu_count() // n_jobs)
    parallel = joblib.Parallel(n_jobs=n_jobs, backend="loky")
    for torch_threads, faiss_threads in parallel(
        joblib.delayed(threads)() for _ in range(4)
    ):
        assert torch_threads <= allowed
        assert faiss_threads <= allowed


def test_score_tells_groups_from_noise_and_is_zero_for_one_group():
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((180, 12, 12)).astype(np.float32)
    shapes = noise / 10
    shapes[::3, ::3] += 1
    shapes[1::3, :, ::3] += 1
    shapes[2::3, 3:9, 3:9] += 1
    three = quick(n_clusters=3, epochs_per_iter=10)
    clear = clone(three).fit(shapes[:90])
    assert_array_equal(clear.predict(shapes[90:93]), clear.predict(shapes[93:96]))
    best = np.log(3) / (np.log(3) + 1)
    assert clear.score(shapes[90:]) == pytest.approx(best, abs=0.03)
    assert clear.score(shapes[90:]) == clear.score(shapes[90:])
    unclear = clone(three).fit(noise[:90])
    assert unclear.score(noise[90:]) < 0.6 * best
    assert clone(three).set_params(n_clusters=1).fit(shapes).score(shapes) == 0


def test_score_of_one_image_is_refused_and_of_many_a_sample_is_enough(
    images, monkeypatch
):
    fitted = quick().fit(images)
    with pytest.raises(ValueError, match="at least 2"):
        fitted.score(images[:1])
    every = fitted.score(images)
    monkeypatch.setattr(_estimator, "SCORE_ROWS", 150)
    some = fitted.score(images)
    assert some != every
    assert some == pytest.approx(every, abs=0.1)


def test_score_prefers_the_number_of_groups_that_there_are(images):
    """Of three kinds of image, two groups are as stable as three, but tell less."""
    kinds = np.repeat(images[[0, 1, 2]], 40, axis=0)
    noise = np.random.default_rng(0).integers(0, 40, kinds.shape)
    noisy = np.clip(kinds.astype(int) + noise, 0, 255).astype(np.uint8)
    model = DeepClusterEstimator(max_iter=2, epochs_per_iter=5, random_state=0)
    scores = {
        k: clone(model).set_params(n_clusters=k).fit(noisy).score(noisy)
        for k in (2, 3, 9)
    }
    assert max(scores, key=scores.get) == 3
