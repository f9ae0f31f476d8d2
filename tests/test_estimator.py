"""DeepClusterEstimator: parameters, fitted attributes, guarantees and errors."""

import contextlib
import copy
import pickle
import random
import warnings
from typing import ClassVar

import joblib
import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from PIL import Image
from sklearn.base import clone
from sklearn.cluster import KMeans, MiniBatchKMeans
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import normalized_mutual_info_score
from sklearn.model_selection import GridSearchCV, cross_validate
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import estimator_html_repr
from torch import nn

from skdeepcluster import DeepClusterEstimator, FaissKMeans, _estimator
from skdeepcluster._fit import loop as loop_module
from skdeepcluster._training.network import small_convnet
from skdeepcluster._utils.threads import limit_threads

QUICK = {
    "n_clusters": 5,
    "n_pseudo_labels": 20,
    "max_iter": 2,
    "epochs_per_iter": 1,
    "random_state": 0,
}
TORCH_KMEANS = FaissKMeans(backend="torch")


def quick(**parameters) -> DeepClusterEstimator:
    """Return an estimator that fits in less than a second."""
    return DeepClusterEstimator(**QUICK | parameters)


def as_rows(images):
    return images.reshape(len(images), -1)


class TinyConvnet(nn.Module):
    """A network from gray images to 6 features, which `output` may change."""

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


@pytest.fixture(scope="module")
def frame(images):
    pandas = pytest.importorskip("pandas")
    names = [f"pixel{number}" for number in range(64)]
    return pandas.DataFrame(as_rows(images), columns=names)


# Results of fit.


def test_fitted_attributes(fitted, images):
    assert fitted.labels_.dtype == np.int32
    assert fitted.labels_.shape == (200,)
    assert_array_equal(np.unique(fitted.labels_), np.arange(5))
    embedding = fitted.transform(images)
    assert embedding.dtype == np.float32
    assert embedding.shape == (200, fitted.cluster_centers_.shape[1])
    for label, center in enumerate(fitted.cluster_centers_):
        mean = embedding[fitted.labels_ == label].mean(axis=0)
        np.testing.assert_allclose(center, mean, atol=1e-5)
    assert fitted.n_clusters_ == 5
    assert_array_equal(fitted.predict_proba(images).argmax(axis=1), fitted.labels_)
    # The objective of k-means depends on the number of pseudo-labels.
    assert not hasattr(fitted, "inertia_")
    assert all(record["inertia"] > 0 for record in fitted.history_)
    assert fitted.n_iter_ == 2
    assert fitted.image_shape_ == (1, 8, 8)
    assert fitted.n_features_in_ == 64
    assert isinstance(fitted.module_, nn.Module)
    names = fitted.get_feature_names_out()
    assert names[0] == "deepclusterestimator0"
    assert len(names) == embedding.shape[1]


def test_history_has_one_record_per_round(images, digits):
    history = quick(max_iter=3).fit(images, digits).history_
    assert [record["round"] for record in history] == [1, 2, 3]
    phases = ["sample", "train", "embed", "cluster", "stability"]
    for record in history:
        assert np.isfinite(record["loss"])
        assert record["loss"] > 0
        assert 0 <= record["nmi_previous"] <= 1
        assert 0 <= record["nmi_y"] <= 1
        assert record["n_empty_after"] == 0 <= record["n_empty_before"]
        assert 0 < record["smallest_cluster"] <= 200 / 20 <= record["largest_cluster"]
        names = [name for name in record if name.startswith("seconds_")]
        assert names == [f"seconds_{phase}" for phase in phases]
        assert min(record[name] for name in names) >= 0


def test_y_is_recorded_but_not_learned_from(fitted, images, digits):
    model = quick().fit(images, digits)
    assert_array_equal(model.labels_, fitted.labels_)
    assert_array_equal(model.transform(images), fitted.transform(images))
    assert "nmi_y" in model.history_[0]
    assert "nmi_y" not in fitted.history_[0]


def test_y_without_classes_is_not_recorded(images):
    model = quick(max_iter=1).fit(images, np.linspace(0, 1, 200))
    assert "nmi_y" not in model.history_[0]


@pytest.mark.parametrize("n", [61, 64, 129])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_predict_equals_labels(images, n, precision):
    model = quick(precision=precision).fit(images[:n])
    assert_array_equal(model.predict(images[:n]), model.labels_)


def test_predict_and_transform_do_not_depend_on_the_batch(fitted, images):
    embedding, labels = fitted.transform(images), fitted.predict(images)
    probabilities = fitted.predict_proba(images)
    for rows in ([0], [3, 1], np.arange(7), np.arange(199, -1, -1)):
        assert_array_equal(fitted.transform(images[rows]), embedding[rows])
        assert_array_equal(fitted.predict(images[rows]), labels[rows])
        # Rounding differs, and rounds probabilities below 0.001 to 0.
        np.testing.assert_allclose(
            fitted.predict_proba(images[rows]), probabilities[rows], atol=2e-3
        )


def test_fit_transform_and_fit_predict_equal_fit(fitted, images):
    model = quick()
    embedding = model.fit_transform(images)
    assert_array_equal(embedding, model.transform(images))
    assert_array_equal(embedding, fitted.transform(images))
    assert_array_equal(quick().fit_predict(images), model.labels_)


def test_digits_are_clustered_better_than_by_kmeans_without_warning(digits_images):
    images, digits = digits_images
    baseline = KMeans(10, n_init=10, random_state=0).fit_predict(as_rows(images))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = DeepClusterEstimator(10, max_iter=2, random_state=0)
        labels = model.fit_predict(images)
    nmi = normalized_mutual_info_score(digits, labels)
    assert nmi > normalized_mutual_info_score(digits, baseline) + 0.03


# Reproducibility.


@pytest.mark.parametrize("balance", ["uniform", "loss"])
@pytest.mark.parametrize(
    "backbone",
    ["auto", nn.Sequential(TinyConvnet(), nn.Dropout(0.5))],
    ids=["auto", "dropout"],
)
def test_same_random_state_gives_the_same_bits(images, balance, backbone):
    model = quick(balance=balance, backbone=backbone).fit(images)
    repeated = quick(balance=balance, backbone=backbone).fit(images)
    assert_array_equal(repeated.labels_, model.labels_)
    assert_array_equal(repeated.transform(images), model.transform(images))
    assert_array_equal(repeated.probabilities_, model.probabilities_)


def test_worker_processes_give_the_same_bits(images):
    model = quick(n_jobs=1).fit(images)
    jobs = [joblib.delayed(quick(n_jobs=1).fit)(images) for _ in range(2)]
    for repeated in joblib.Parallel(n_jobs=2, backend="loky")(jobs):
        assert_array_equal(repeated.labels_, model.labels_)
        assert_array_equal(repeated.transform(images), model.transform(images))


def test_another_random_state_gives_other_bits(fitted, images):
    model = quick(random_state=1).fit(images)
    assert not np.array_equal(model.transform(images), fitted.transform(images))


@pytest.mark.parametrize("random_state", [None, 0])
def test_global_random_states_are_unchanged(images, random_state):
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    model = quick(random_state=random_state, max_iter=1).fit(images)
    model.predict(images)
    model.score(images)
    after = random.getstate(), np.random.get_state(), torch.get_rng_state()
    assert before[0] == after[0]
    assert_array_equal(before[1][1], after[1][1])
    assert before[1][2:] == after[1][2:]
    assert torch.equal(before[2], after[2])


def test_random_state_instance(images):
    model = quick(random_state=np.random.RandomState(3)).fit(images)
    repeated = quick(random_state=np.random.RandomState(3)).fit(images)
    assert_array_equal(repeated.labels_, model.labels_)
    embedding = model.transform(images)
    # A fit advances the instance, so that the next fit draws other numbers.
    assert not np.array_equal(model.fit_transform(images), embedding)


# Parameters.


def test_single_k_without_graph_is_kmeans_of_features(images):
    # The method of the paper.
    model = quick(n_pseudo_labels=5, n_neighbors=None, init="features").fit(images)
    assert_array_equal(np.unique(model.labels_), np.arange(5))
    leaf_model = model._cluster_model.leaf_model
    points, centers = leaf_model.projection(model.transform(images)), leaf_model.centers
    distances = np.linalg.norm(points[:, None] - centers[None], axis=2)
    assert_array_equal(model.labels_, distances.argmin(axis=1))
    np.testing.assert_allclose(
        model.history_[-1]["inertia"], (distances.min(axis=1) ** 2).sum(), rtol=1e-4
    )


@pytest.mark.parametrize("n_clusters", [1, 2, 200])
def test_extreme_numbers_of_clusters(images, n_clusters):
    model = quick(
        n_clusters=n_clusters, n_pseudo_labels="auto", max_iter=1, backbone="mlp"
    ).fit(images)
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
    model = quick(balance=balance, empty_clusters=empty_clusters, backbone="mlp")
    model.fit(images)
    assert_array_equal(np.unique(model.labels_), np.arange(5))
    assert np.isfinite(model.transform(images)).all()


@pytest.fixture(scope="module")
def repeated_images(images):
    """100 images, of which 61 are equal."""
    return np.concatenate([images[:40], np.repeat(images[40:41], 60, axis=0)])


# One pseudo-label holds the equal images, which the fit warns about.
@pytest.mark.filterwarnings("ignore:After round . one pseudo-label holds")
@pytest.mark.parametrize("empty_clusters", ["split", "farthest", "drop"])
def test_empty_clusters_of_repeated_images(repeated_images, empty_clusters):
    model = quick(n_pseudo_labels=60, empty_clusters=empty_clusters)
    # "drop" promises no number of clusters, so that there is no warning.
    expected_warning = (
        contextlib.nullcontext()
        if empty_clusters == "drop"
        else pytest.warns(ConvergenceWarning, match="distinct")
    )
    with expected_warning:
        model.fit(repeated_images)
    assert_array_equal(model.predict(repeated_images), model.labels_)
    assert_array_equal(np.unique(model.labels_), np.arange(5))
    assert model.history_[-1]["n_empty_before"] > 0


def test_empty_clusters_of_repeated_images_raise(repeated_images):
    model = quick(n_pseudo_labels=60, empty_clusters="raise")
    with pytest.raises(ValueError, match="empty_clusters"):
        model.fit(repeated_images)


@pytest.mark.filterwarnings("ignore:After round . one pseudo-label holds")
@pytest.mark.parametrize(
    "parameters",
    [
        {"init": "features"},
        {"n_neighbors": None},
        {"n_neighbors": 10**6},
        {"n_pseudo_labels": 5},
        {"n_pseudo_labels": 200},
        {"clusterer": TORCH_KMEANS},
        {"clusterer": FaissKMeans(init="random", n_init=2, max_iter=5)},
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
        {"epochs_per_iter": 1.25},
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
        {"backbone": TinyConvnet()},
    ],
    ids=str,
)
def test_each_parameter_has_an_effect(fitted, images, parameters):
    model = quick(**parameters).fit(images)
    assert_array_equal(np.unique(model.labels_), np.arange(5))
    assert_array_equal(model.predict(images), model.labels_)
    embedding = model.transform(images)
    assert np.isfinite(embedding).all()
    # "auto" is "convnet" for images. The torch backend computes the same, and may only
    # round differently.
    if parameters not in ({"backbone": "convnet"}, {"clusterer": TORCH_KMEANS}):
        default = fitted.transform(images)
        is_same_shape = embedding.shape == default.shape
        assert not is_same_shape or not np.array_equal(embedding, default)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize(("head", "n_passes"), [("reset", 2), ("centroids", 1)])
def test_number_of_passes_per_round(images, monkeypatch, head, n_passes):
    monkeypatch.setattr(loop_module, "CALIBRATION_ROWS", 10)
    monkeypatch.setattr(loop_module, "STABILITY_ROWS", 10)

    class CountingConvnet(TinyConvnet):
        n_images = 0

        def forward(self, x):
            CountingConvnet.n_images += len(x)
            return super().forward(x)

    def count_passes(n_rounds):
        CountingConvnet.n_images = 0
        quick(max_iter=n_rounds, backbone=CountingConvnet(), head=head).fit(images)
        return CountingConvnet.n_images / len(images)

    n_additional = count_passes(3) - count_passes(2)
    assert n_additional == pytest.approx(n_passes, abs=0.2)


@pytest.mark.parametrize(
    ("n_components", "min_size", "max_size"), [(3, 3, 3), (10**6, 4, 199)]
)
def test_n_components_bounds_the_points(images, n_components, min_size, max_size):
    model = quick(n_components=n_components, n_pseudo_labels=5, n_neighbors=None)
    n_dimensions = model.fit(images)._cluster_model.leaf_model.centers.shape[1]
    assert min_size <= n_dimensions <= max_size
    assert model.recipe_["n_components"] == n_dimensions


def test_sobel_ignores_brightness(images):
    images = images.astype(np.float32)
    model = quick(sobel=True, precision="float32").fit(images)
    brighter, original = model.transform(images + 3), model.transform(images)
    # Only the zero padding at the border sees the offset.
    assert np.corrcoef(brighter.ravel(), original.ravel())[0, 1] > 0.7


def test_backbone_module_is_copied(images):
    module = TinyConvnet()
    state = copy.deepcopy(module.state_dict())
    model = quick(backbone=module).fit(images)
    for name, value in module.state_dict().items():
        assert torch.equal(value, state[name])
    assert model.get_params()["backbone"] is module
    assert model.transform(images).shape == (200, 6)


def test_augment_receives_pixels_as_float32(images):
    batches = []

    def augment(batch):
        batches.append(batch.clone())
        return batch

    quick(augment=augment, balance=None, max_iter=1).fit(images)
    received = torch.cat(batches)
    assert received.dtype == torch.float32
    assert received.shape == (200, 1, 8, 8)
    pixels = np.sort(received.numpy().ravel())
    assert_array_equal(pixels, np.sort(images.ravel()))


def test_tol_ends_training(images):
    model = quick(backbone="mlp", max_iter=3, tol=1.0)
    assert model.fit(images).n_iter_ == 1
    assert model.set_params(tol=0.0).fit(images).n_iter_ == 3


@pytest.mark.parametrize("head", ["reset", "centroids"])
def test_warm_start_continues_with_the_network(images, head):
    model = quick(warm_start=True, max_iter=1, head=head).fit(images)
    embedding = model.transform(images)
    model.fit(images)
    assert model.n_iter_ == 2
    assert [record["round"] for record in model.history_] == [1, 2]
    assert not np.array_equal(embedding, model.transform(images))
    assert_array_equal(model.predict(images), model.labels_)


def test_fit_without_warm_start_begins_anew(images):
    assert quick(max_iter=1).fit(images).fit(images).n_iter_ == 1


def double(batch):
    return 2 * batch


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({}, {"head": "centroids"}),
        ({"head": "centroids"}, {"n_components": 5}),
        ({}, {"backbone": "mlp"}),
        ({}, {"backbone": nn.Sequential(nn.Flatten(), nn.Linear(64, 5))}),
        ({}, {"sobel": True}),
        ({"head_norm": None}, {"head_norm": "batch"}),
        ({}, {"weights": "DEFAULT"}),
        ({}, {"preprocess": "imagenet"}),
        ({"preprocess": double}, {"preprocess": "auto"}),
        ({}, {"image_size": 16}),
        ({}, {"image_shape": (1, 4, 16)}),
        ({"resize": "crop"}, {"resize": "pad"}),
    ],
    # The text of a function holds its address, which differs between processes.
    ids=lambda params: ", ".join(params),
)
def test_warm_start_with_another_network_raises(images, first, second):
    model = quick(warm_start=True, max_iter=1, epochs_per_iter=0.1, **first)
    model.fit(images[:60])
    before = dict(vars(model))
    (name,) = second
    # Nothing is read before.
    with pytest.raises(ValueError, match=f"warm_start=True continues .*{name}="):
        model.set_params(**second).fit(None)
    assert vars(model) == before | second


def test_warm_start_with_the_same_values_in_another_form(images):
    model = quick(warm_start=True, max_iter=1, epochs_per_iter=0.1, image_size=8)
    model.fit(images[:60])
    model.set_params(image_size=np.int64(8), image_shape=[1, 8, 8], n_components=3)
    assert model.fit(images[:60]).n_iter_ == 2


def test_verbose_prints_one_line_per_round(images, capfd):
    quick().fit(images)
    assert capfd.readouterr() == ("", "")
    quick(verbose=1).fit(images)
    out, err = capfd.readouterr()
    assert len(out.splitlines()) == 2
    assert err == ""


def test_small_images_take_one_thread(images):
    n_threads = []

    def augment(batch):
        n_threads.append(torch.get_num_threads())
        return batch

    with limit_threads(2):
        quick(augment=augment).fit(images)
        assert set(n_threads) == {1}
        n_threads.clear()
        quick(augment=augment, n_jobs=2).fit(images)
        assert set(n_threads) == {2}


class ThreadCountingKMeans(KMeans):
    """KMeans that notes the number of threads that it runs on."""

    n_threads: ClassVar[set[int]] = set()

    def fit(self, X, y=None, sample_weight=None):
        self.n_threads.add(torch.get_num_threads())
        return super().fit(X, y, sample_weight)


@pytest.mark.parametrize(("n_jobs", "n_expected"), [(None, 1), (2, 2)])
def test_few_images_are_clustered_by_one_thread(images, n_jobs, n_expected):
    n_training_threads = set()

    def augment(batch):
        n_training_threads.add(torch.get_num_threads())
        return batch

    # 32x32 pixels are work for two threads.
    large = images.repeat(4, axis=-1).repeat(4, axis=-2)
    ThreadCountingKMeans.n_threads.clear()
    model = quick(
        augment=augment, n_jobs=n_jobs, clusterer=ThreadCountingKMeans(4, n_init=1)
    )
    with limit_threads(2):
        model.fit(large[:60])
    assert n_training_threads == {n_jobs or min(2, joblib.cpu_count())}
    assert ThreadCountingKMeans.n_threads == {n_expected}


def test_n_jobs_limits_threads(images):
    n_threads = []

    def augment(batch):
        n_threads.append(torch.get_num_threads())
        return batch

    before = torch.get_num_threads()
    quick(n_jobs=1, augment=augment, max_iter=1).fit(images)
    assert set(n_threads) == {1}
    assert torch.get_num_threads() == before


# Input forms.


def copy_to_memory_map(images, folder):
    memory_map = np.memmap(folder / "x", np.uint8, "w+", shape=images.shape)
    memory_map[:] = images
    return memory_map


LAYOUTS = {
    "channels first": lambda images, folder: images[:, None],
    "channels last": lambda images, folder: images[..., None],
    "tensor": lambda images, folder: torch.from_numpy(images.copy()),
    "4-D tensor": lambda images, folder: torch.from_numpy(images.copy())[:, None],
    "memory map": copy_to_memory_map,
    "list": lambda images, folder: list(images),
    "Fortran order": lambda images, folder: np.asfortranarray(images),
    "float32": lambda images, folder: images.astype(np.float32),
    "big-endian float64": lambda images, folder: images.astype(">f8"),
}


@pytest.fixture(scope="module")
def fitted_without_graph(images):
    return quick(max_iter=1, n_pseudo_labels=5, n_neighbors=None).fit(images)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout_of_pixels_does_not_matter(
    fitted_without_graph, images, tmp_path, layout
):
    X = LAYOUTS[layout](images, tmp_path)
    model = clone(fitted_without_graph).fit(X)
    assert_array_equal(model.labels_, fitted_without_graph.labels_)
    assert_array_equal(model.predict(X), fitted_without_graph.labels_)


def test_rows_with_image_shape_are_images(fitted, images):
    rows = as_rows(images)
    model = quick(image_shape=(1, 8, 8)).fit(rows)
    assert_array_equal(model.labels_, fitted.labels_)
    assert_array_equal(model.predict(images), fitted.labels_)
    assert quick().fit(rows).recipe_["backbone"] == "mlp"


def test_data_frame(fitted, frame):
    model = quick(image_shape=(1, 8, 8)).fit(frame)
    assert_array_equal(model.feature_names_in_, frame.columns)
    assert_array_equal(model.labels_, fitted.labels_)
    with pytest.raises(ValueError, match="feature names"):
        model.predict(frame[frame.columns[::-1]])


def test_array_after_data_frame_has_no_feature_names(images, frame):
    model = quick(image_shape=(1, 8, 8), max_iter=1).fit(frame)
    assert not hasattr(model.fit(images), "feature_names_in_")


@pytest.mark.parametrize(
    "shape", [(40, 3, 32, 32), (40, 32, 32, 3), (40, 28, 20), (40, 5, 12, 12)]
)
def test_color_and_other_shapes(shape):
    X = np.random.default_rng(0).integers(0, 255, shape, np.uint8)
    model = quick(n_pseudo_labels=8, max_iter=1).fit(X)
    assert_array_equal(model.predict(X), model.labels_)
    n_channels = min(shape[1], shape[-1]) if len(shape) == 4 else 1
    assert model.image_shape_[0] == n_channels


FEW_CLUSTERS = {"n_clusters": 2, "n_pseudo_labels": 3, "max_iter": 1}


def test_large_color_images():
    X = np.random.default_rng(0).integers(0, 255, (12, 3, 224, 224), np.uint8)
    model = quick(**FEW_CLUSTERS)
    with pytest.warns(UserWarning, match="weights='DEFAULT'"):
        model.fit(X)
    assert_array_equal(model.predict(X), model.labels_)


@pytest.mark.parametrize("form", ["array", "folder", "resized array"])
def test_fresh_network_on_large_color_images_suggests_given_weights(form, tmp_path):
    X = np.random.default_rng(0).integers(0, 255, (12, 96, 96, 3), np.uint8)
    parameters = FEW_CLUSTERS | ({} if form == "array" else {"image_size": 32})
    if form == "folder":
        for i, image in enumerate(X):
            Image.fromarray(image).save(tmp_path / f"{i:02}.png")
        X = tmp_path
    with pytest.warns(UserWarning, match="weights='DEFAULT'") as caught:
        quick(**parameters).fit(X)
    assert len(caught) == 1
    assert "96 pixels" in str(caught[0].message)
    # It points to the line of the user.
    assert caught[0].filename == __file__


def test_weights_are_not_suggested_where_they_would_not_help(tmp_path):
    # Any warning is an error here.
    rng = np.random.default_rng(0)
    large = rng.integers(0, 255, (12, 3, 96, 96), np.uint8)
    quick(**FEW_CLUSTERS).fit(large[:, :, :64, :64])
    quick(**FEW_CLUSTERS).fit(large[:, 0])
    gray = list(map(Image.fromarray, large.transpose(0, 2, 3, 1)))
    quick(**FEW_CLUSTERS, image_shape=(1, 32, 32)).fit(gray)
    module = nn.Sequential(nn.Conv2d(3, 6, 3, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    quick(**FEW_CLUSTERS, backbone=module).fit(large)
    torch.save(small_convnet((3, 96, 96)).state_dict(), tmp_path / "weights.pt")
    weights = {"backbone": "convnet", "weights": tmp_path / "weights.pt"}
    DeepClusterEstimator(2, **weights).fit(large)


def test_scale_of_pixels_does_not_matter(images):
    scaled = quick(precision="float32").fit(images / 16.0)
    original = quick(precision="float32").fit(images)
    nmi = normalized_mutual_info_score(scaled.labels_, original.labels_)
    assert nmi > 0.8


# Errors. Each names its cause and leaves the estimator unchanged.


def add_nan(images):
    X = images.astype(np.float32)
    X[17, 3, 3] = np.nan
    return X


BAD_INPUT = {
    "NaN": (add_nan, ValueError, r"NaN in row 17"),
    "infinity": (lambda X: add_nan(X) * np.inf, ValueError, r"row 0"),
    "too large": (lambda X: X * 1e300, ValueError, r"inf.* float32.* row 0"),
    "no images": (lambda X: X[:0], ValueError, r"empty"),
    "no rows": (lambda X: as_rows(X)[:0], ValueError, r"0 sample"),
    "1-D": (lambda X: X[:, 0, 0], ValueError, r"Reshape your data"),
    "5-D": (lambda X: X[:, None, None], ValueError, r"dim"),
    "objects": (lambda X: X.astype(object), TypeError, r"object"),
    "strings": (lambda X: X.astype(str), TypeError, r"not numbers"),
    "complex": (lambda X: X * 1j, ValueError, r"Complex"),
    "missing folder": (lambda X: "some/folder", ValueError, r"'some/folder' is no"),
    "missing file": (lambda X: ["a.png"] * 9, ValueError, r"row 0: a.png: No such"),
    "missing .npy": (lambda X: "some.npy", ValueError, r"'some.npy' is no"),
    "mixed channels": (
        lambda X: [X[0], X[1][:5], *np.ones((9, 2, 8, 8), np.uint8)],
        ValueError,
        r"row 0: an image of 1 channels.* 2",
    ),
    "no pixels": (lambda X: X[:, :0], ValueError, r"without pixels"),
    "too few images": (lambda X: X[:4], ValueError, r"n_samples=4 .* n_clusters=5"),
}

BAD_PARAMETERS = {
    "n_clusters": ({"n_clusters": 0}, ValueError, r"n_clusters"),
    "no n_pseudo_labels": (
        {"n_pseudo_labels": ()},
        ValueError,
        r"n_pseudo_labels is empty",
    ),
    "float in n_pseudo_labels": (
        {"n_pseudo_labels": (9, 9.5)},
        ValueError,
        r"n_pseudo_labels=9.5",
    ),
    "few n_pseudo_labels": ({"n_pseudo_labels": 4}, ValueError, r"n_pseudo_labels=4"),
    "many n_pseudo_labels": ({"n_pseudo_labels": 999}, ValueError, r"_labels=999"),
    "no crops": ({"n_crops": (0, 2)}, ValueError, r"n_crops=\(0, 2\)"),
    "three n_crops": ({"n_crops": (1, 2, 3)}, ValueError, r"n_crops=\(1, 2, 3\)"),
    "crops without augment": (
        {"n_crops": 2, "augment": None},
        ValueError,
        r"n_crops=2 needs random crops.* n_crops=1",
    ),
    "small crops with a function": (
        {"n_crops": (1, 2), "augment": lambda batch: batch},
        ValueError,
        r"n_crops=\(1, 2\) asks for small crops.* augment='crops'",
    ),
    "clusterer": ({"clusterer": nn.ReLU()}, ValueError, r"clusterer"),
    "clusterer class": ({"clusterer": KMeans}, TypeError, r"an instance: KMeans\(\)"),
    "temperature": ({"temperature": 0}, ValueError, r"temperature"),
    "2-D image_shape": ({"image_shape": (8, 8)}, ValueError, r"image_shape"),
    "resize": ({"resize": "squash"}, ValueError, r"resize.*'crop'"),
    "other image_shape": ({"image_shape": (1, 9, 9)}, ValueError, r"image_shape"),
    "backbone": ({"backbone": "resnet17"}, ValueError, r"resnet17.*resn"),
    "backbone with 4-D output": (
        {"backbone": nn.Conv2d(1, 2, 3)},
        ValueError,
        r"\(2, 2, 6, 6\).*\(n, d\)",
    ),
    "backbone with tuple output": (
        {"backbone": TinyConvnet(lambda features: (features, features))},
        ValueError,
        r"tuple",
    ),
    "backbone for color": (
        {"backbone": nn.Conv2d(3, 2, 3)},
        ValueError,
        r"backbone='Conv2d' rejects .*\(n, 1, 8, 8\)",
    ),
    "backbone without weights": (
        {"backbone": nn.Flatten(), "fine_tune": True},
        ValueError,
        "fine_tune=True .*Flatten has no parameters",
    ),
    "device": ({"device": "gpu"}, ValueError, r"device='gpu'"),
    "precision": ({"precision": "fp8"}, ValueError, r"precision"),
    "balance": ({"balance": "both"}, ValueError, r"balance"),
    "batch_size": ({"batch_size": 1}, ValueError, r"batch_size"),
    "epochs_per_iter": ({"epochs_per_iter": 0.0}, ValueError, r"epochs_per_iter"),
    "shape of augmented images": (
        {"augment": lambda batch: batch[:, :, :4]},
        ValueError,
        r"augment must return",
    ),
    "NaN in augmented images": (
        {"augment": lambda batch: batch / 0},
        ValueError,
        r"augment returned .*NaN",
    ),
    "learning_rate": ({"learning_rate": 1e300}, ValueError, r"learning_rate"),
    "weight_decay": ({"weight_decay": 1e300}, ValueError, r"weight_decay"),
    **{
        f"{name} as bool": ({name: True}, ValueError, rf"{name} should be a number")
        for name in ("n_clusters", "image_size", "n_jobs", "random_state", "tol")
    },
    "divergence": (
        {"learning_rate": 1e30, "head_norm": None},
        ValueError,
        r"round 1.*learning_rate",
    ),
}

# Parameters that do not suit an X which is valid by itself.
BAD_COMBINATIONS = {
    "one image": (lambda X: X[:1], {"n_clusters": 1}, r"1 sample"),
    "rows of another size": (
        as_rows,
        {"image_shape": (3, 8, 8)},
        r"image_shape=\(3, 8, 8\) takes rows of 192",
    ),
    "crops of rows": (as_rows, {"augment": "crops"}, r"augment='crops' needs images"),
    "backbone for images": (as_rows, {"backbone": "resnet18"}, r"image_shape"),
    "sobel of rows": (as_rows, {"sobel": True}, r"sobel"),
}


def assert_same_attributes(model, attributes):
    """Compare the attributes of a model with earlier ones, by identity."""
    assert vars(model).keys() == attributes.keys()
    for name, value in vars(model).items():
        assert value is attributes[name], name


def assert_fit_raises(fitted, X, parameters, error, message):
    """Check that the error leaves unfitted and fitted estimators unchanged."""
    unfitted = quick(**parameters)
    attributes = dict(vars(unfitted))
    with pytest.raises(error, match=message):
        unfitted.fit(X)
    assert_same_attributes(unfitted, attributes)
    with pytest.raises(NotFittedError):
        unfitted.predict(X)

    refitted = copy.deepcopy(fitted).set_params(**parameters)
    attributes = dict(vars(refitted))
    with pytest.raises(error, match=message):
        refitted.fit(X)
    assert_same_attributes(refitted, attributes)
    assert_array_equal(refitted.labels_, fitted.labels_)
    assert refitted.history_ == fitted.history_


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_raises(images, fitted, case):
    make_input, error, message = BAD_INPUT[case]
    with np.errstate(all="ignore"):
        X = make_input(images)
    assert_fit_raises(fitted, X, {}, error, message)


@pytest.mark.parametrize("case", BAD_PARAMETERS)
def test_bad_parameters_raise(images, fitted, case):
    parameters, error, message = BAD_PARAMETERS[case]
    assert_fit_raises(fitted, images, parameters, error, message)


@pytest.mark.parametrize("case", BAD_COMBINATIONS)
def test_parameters_that_do_not_suit_the_input_raise(images, fitted, case):
    make_input, parameters, message = BAD_COMBINATIONS[case]
    assert_fit_raises(fitted, make_input(images), parameters, ValueError, message)


def test_sparse_input_raises(images):
    sparse = pytest.importorskip("scipy.sparse")
    with pytest.raises(TypeError, match=r"[Ss]parse"):
        quick().fit(sparse.csr_array(as_rows(images)))


def test_y_of_another_length_raises(images):
    with pytest.raises(ValueError, match="inconsistent"):
        quick().fit(images, [0, 1])


def fail(*args):
    raise RuntimeError("This function fails.")


class FailingClusterer(KMeans):
    """A clusterer that fails in its second call, after the training of a round."""

    def fit_predict(self, X, y=None, sample_weight=None):
        FailingClusterer.n_calls += 1
        if FailingClusterer.n_calls == 2:
            fail()
        return super().fit_predict(X)


FAILURES = {
    "augment": {"augment": fail},
    "clusterer": {"clusterer": FailingClusterer(n_init=1)},
    "callback": {"callbacks": fail},
    "callback with estimator": {"callbacks": lambda history, fitted: fail(fitted())},
    "checkpoint_dir": {"checkpoint_dir": __file__},
}


@pytest.fixture(scope="module")
def fitted_to_frame(frame):
    return quick(image_shape=(1, 8, 8), max_iter=1).fit(frame)


@pytest.mark.parametrize("warm_start", [False, True])
@pytest.mark.parametrize("failure", FAILURES)
def test_error_inside_a_fit_changes_nothing(
    fitted_to_frame, images, failure, warm_start
):
    model = copy.deepcopy(fitted_to_frame)
    model.set_params(warm_start=warm_start, **FAILURES[failure])
    attributes, history = dict(vars(model)), copy.deepcopy(model.history_)
    FailingClusterer.n_calls = 0
    with pytest.raises((RuntimeError, ValueError), match=r"fails|checkpoint_dir"):
        model.fit(images)
    assert_same_attributes(model, attributes)
    assert model.history_ == history
    # Weights of the network are unchanged as well.
    assert_array_equal(model.transform(images), fitted_to_frame.transform(images))


def test_error_while_reading_changes_nothing(fitted_to_frame, frame, images):
    model = copy.deepcopy(fitted_to_frame)
    attributes = dict(vars(model))
    for X in (add_nan(images), images[:, :5], frame.iloc[:, :9], as_rows(images)[:1]):
        with pytest.raises(ValueError, match=r"NaN|image_shape|sample"):
            model.fit(X)
        assert_same_attributes(model, attributes)
    assert_array_equal(model.feature_names_in_, frame.columns)
    assert model.n_features_in_ == 64


def test_interrupted_fit_changes_nothing(images):
    def interrupt(batch):
        raise KeyboardInterrupt

    model = quick(augment=interrupt)
    attributes = dict(vars(model))
    with pytest.raises(KeyboardInterrupt):
        model.fit(images)
    assert_same_attributes(model, attributes)


@pytest.mark.parametrize(
    ("X", "error", "message"),
    [
        (None, TypeError, "X is of type NoneType"),
        ({"images": []}, TypeError, "X is of type dict"),
        (np.arange(4), ValueError, "Labels belong into y"),
    ],
)
def test_predict_names_the_type_of_wrong_input(fitted, X, error, message):
    with pytest.raises(error, match=message):
        fitted.predict(X)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((4, 4, 8, 8), r"\(4, 8, 8\), but fit saw images of shape \(1, 8, 8\)"),
        ((4, 9, 9, 2), r"\(2, 9, 9\), but fit saw"),
        ((4, 64), r"2 dimensions, but fit saw images of shape \(1, 8, 8\)"),
    ],
)
@pytest.mark.parametrize("method", ["predict", "predict_proba", "transform", "score"])
def test_other_shapes_than_in_fit_raise(fitted, method, shape, message):
    with pytest.raises(ValueError, match=message):
        getattr(fitted, method)(np.zeros(shape, np.uint8))


def test_images_after_a_fit_of_rows_raise(images):
    model = quick(max_iter=1).fit(as_rows(images))
    with pytest.raises(ValueError, match="fit saw rows of 64"):
        model.predict(images)


@pytest.mark.parametrize("method", ["predict", "predict_proba", "transform", "score"])
def test_unfitted_estimator_raises(images, method):
    with pytest.raises(NotFittedError):
        getattr(quick(), method)(images)


@pytest.mark.parametrize("n_distinct", [1, 3])
def test_few_distinct_images_give_few_clusters(images, n_distinct):
    X = np.tile(images[:n_distinct], (60 // n_distinct, 1, 1))
    model = quick(max_iter=1)
    with pytest.warns(ConvergenceWarning, match=rf"distinct points \({n_distinct}\)"):
        model.fit(X)
    assert_array_equal(np.unique(model.labels_), np.arange(n_distinct))
    assert_array_equal(model.predict(X), model.labels_)
    assert np.isfinite(model.transform(X)).all()


# Tools of scikit-learn.


def test_clone_and_params(images):
    model = quick(backbone=TinyConvnet(), augment=None)
    cloned = clone(model)
    assert set(cloned.get_params()) == set(model.get_params())
    assert cloned.set_params(n_clusters=3).n_clusters == 3
    assert len(np.unique(cloned.fit(images).labels_)) == 3


@pytest.mark.parametrize("method", ["pickle", "joblib", "joblib memory map"])
def test_pickle(fitted, images, tmp_path, method):
    if method == "pickle":
        loaded = pickle.loads(pickle.dumps(fitted))
    else:
        joblib.dump(fitted, tmp_path / "model")
        mode = "r" if method == "joblib memory map" else None
        loaded = joblib.load(tmp_path / "model", mmap_mode=mode)
    assert_array_equal(loaded.predict(images), fitted.labels_)
    assert_array_equal(loaded.transform(images), fitted.transform(images))
    refitted = loaded.fit(images)
    assert_array_equal(refitted.labels_, fitted.labels_)


def test_pickle_from_a_device_that_is_not_available(fitted, images):
    state = {**fitted.__getstate__(), "device_": torch.device("cuda:7")}
    loaded = DeepClusterEstimator.__new__(DeepClusterEstimator)
    loaded.__setstate__(state)
    assert_array_equal(loaded.predict(images), fitted.labels_)


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_set_output(fitted, images, library):
    frames = pytest.importorskip(library)
    model = quick().set_output(transform=library)
    frame = model.fit_transform(images)
    assert isinstance(frame, frames.DataFrame)
    assert frame.columns[1] == "deepclusterestimator1"
    assert isinstance(model.transform(images), frames.DataFrame)
    assert_array_equal(model.transform(images).to_numpy(), frame.to_numpy())
    assert_array_equal(fitted.transform(images), frame.to_numpy())
    assert_array_equal(model.predict(images), model.labels_)


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"backbone": TinyConvnet(), "clusterer": FaissKMeans(n_init=3)},
        {"callbacks": [fail], "random_state": np.random.RandomState(0)},
    ],
    ids=["default", "module", "callbacks"],
)
def test_html_repr_names_each_parameter(parameters):
    model = quick(**parameters)
    html = model._repr_html_()
    assert "DeepClusterEstimator" in html
    for name in model.get_params(deep=False):
        assert name in html


def test_html_repr_of_fitted_estimator(fitted):
    html = fitted._repr_html_()
    assert "DeepClusterEstimator" in html
    assert "n_pseudo_labels" in html
    html = estimator_html_repr(make_pipeline(StandardScaler(), fitted))
    assert "StandardScaler" in html
    assert "DeepClusterEstimator" in html


def test_last_step_after_a_scaler(images):
    pipeline = make_pipeline(StandardScaler(), quick(image_shape=(1, 8, 8)))
    rows = as_rows(images)
    labels = pipeline.fit_predict(rows)
    assert_array_equal(pipeline.predict(rows), labels)


def test_transformer_before_a_classifier(images, digits):
    pipeline = make_pipeline(quick(n_clusters=10), LogisticRegression(max_iter=500))
    assert pipeline.fit(images[:150], digits[:150]).score(images[150:], digits[150:])
    scores = cross_validate(pipeline, images, digits, cv=2, error_score="raise")
    assert min(scores["test_score"]) > 0.4


def test_grid_search_without_labels(images):
    grid = {"n_clusters": [2, 5], "balance": ["uniform", None]}
    model = quick(max_iter=1, backbone="mlp")
    search = GridSearchCV(model, grid, cv=2, error_score="raise")
    search.fit(images)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    assert_array_equal(search.predict(images), search.best_estimator_.labels_)


def test_grid_search_in_two_processes_is_reproducible(images, digits):
    pipeline = Pipeline(
        [("dc", quick(max_iter=1)), ("lr", LogisticRegression(max_iter=500))]
    )
    grid = {"dc__n_clusters": [5, 10]}

    def find_best_score():
        search = GridSearchCV(
            pipeline, grid, cv=2, n_jobs=2, refit=False, error_score="raise"
        )
        return search.fit(images, digits).best_score_

    assert find_best_score() == find_best_score()


def test_worker_processes_share_the_processors():
    # A nested function is sent by value.
    def count_threads() -> tuple[int, int]:
        import faiss

        import skdeepcluster  # noqa: F401

        return torch.get_num_threads(), faiss.omp_get_max_threads()

    n_jobs = 2
    max_threads = max(1, joblib.cpu_count() // n_jobs)
    parallel = joblib.Parallel(n_jobs=n_jobs, backend="loky")
    for torch_threads, faiss_threads in parallel(
        joblib.delayed(count_threads)() for _ in range(4)
    ):
        assert torch_threads <= max_threads
        assert faiss_threads <= max_threads


# Score.

# Score of three perfect clusters of equal size.
BEST_SCORE = np.log(3) / (np.log(3) + 1)


@pytest.fixture(scope="module")
def noise():
    rng = np.random.default_rng(0)
    return rng.standard_normal((180, 12, 12)).astype(np.float32)


@pytest.fixture(scope="module")
def shapes(noise):
    """Three patterns in turn, with some noise."""
    shapes = noise / 10
    shapes[::3, ::3] += 1
    shapes[1::3, :, ::3] += 1
    shapes[2::3, 3:9, 3:9] += 1
    return shapes


def test_score_of_distinct_shapes_is_the_best(shapes):
    model = quick(n_clusters=3, epochs_per_iter=10).fit(shapes[:90])
    assert_array_equal(model.predict(shapes[90:93]), model.predict(shapes[93:96]))
    assert model.score(shapes[90:]) == pytest.approx(BEST_SCORE, abs=0.03)
    assert model.score(shapes[90:]) == model.score(shapes[90:])


def test_score_of_noise_is_low(noise):
    model = quick(n_clusters=3, epochs_per_iter=10).fit(noise[:90])
    assert model.score(noise[90:]) < 0.6 * BEST_SCORE


def test_score_of_a_single_cluster_is_zero(shapes):
    model = quick(n_clusters=1).fit(shapes)
    assert model.score(shapes) == 0


def test_score_of_one_image_raises(fitted, images):
    with pytest.raises(ValueError, match="at least 2"):
        fitted.score(images[:1])


def test_score_of_many_images_uses_a_sample(fitted, images, monkeypatch):
    score = fitted.score(images)
    monkeypatch.setattr(_estimator, "SCORE_ROWS", 150)
    sample_score = fitted.score(images)
    assert sample_score != score
    assert sample_score == pytest.approx(score, abs=0.1)


def test_score_is_highest_for_the_true_number_of_clusters(images):
    # Two clusters of three digits are as stable as three, but hold less information.
    originals = np.repeat(images[[0, 1, 2]], 40, axis=0)
    noise = np.random.default_rng(0).integers(0, 40, originals.shape)
    noisy = np.clip(originals.astype(int) + noise, 0, 255).astype(np.uint8)
    scores = {}
    for n_clusters in (2, 3, 9):
        model = DeepClusterEstimator(
            n_clusters, max_iter=2, epochs_per_iter=5, random_state=0
        )
        scores[n_clusters] = model.fit(noisy).score(noisy)
    assert max(scores, key=scores.get) == 3
