"""A saved estimator is loaded unchanged; a damaged or hostile file does no harm.

`tests/data/format_1` is a file of the first version. Until this version is released, a
change of the format or of the clusters writes the file anew::

    python -c "import tests.test_persistence as t; t.write_format_1()"
"""

import contextlib
import copy
import json
import os
import re
import struct
import sys
from pathlib import Path

import joblib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from PIL import Image
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_digits
from torch import nn

from skdeepcluster import DeepClusterEstimator
from skdeepcluster._utils import tensors as tensor_files

# Fits of a few steps warn that they did not converge.
pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

N = 60
FORMAT_1 = Path(__file__).parent / "data" / "format_1"


def make_model(**params):
    params = {"max_iter": 1, "epochs_per_iter": 1, "random_state": 0, **params}
    return DeepClusterEstimator(**{"n_clusters": 3, **params})


def make_backbone():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5))


def write_format_1():
    images = (load_digits().images * 255 / 16).astype(np.uint8)[:N]
    model = make_model(max_iter=2, n_pseudo_labels=12, backbone=make_backbone())
    model.fit(images).name_clusters({1: "zweites ß"}).save(FORMAT_1)


@pytest.fixture(scope="module")
def images(digits_images):
    return digits_images[0][:N]


@pytest.fixture(scope="module")
def model(images):
    return make_model(n_clusters=4, n_pseudo_labels=20).fit(images)


@pytest.fixture(scope="module")
def saved_path(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "model.skdc"
    model.save(path)
    return path


def make_frame(images):
    rows = images.reshape(len(images), -1)
    return pytest.importorskip("pandas").DataFrame(rows).add_prefix("x")


def is_equal(value, other):
    """Return whether values are equal, which may be arrays."""
    if isinstance(value, np.ndarray):
        assert_array_equal(value, other)
        return value.dtype == other.dtype
    return value == other


MODELS = {
    "images": (lambda x: x, {}),
    "float images": (lambda x: x / 255, {}),
    "color": (lambda x: np.stack([x] * 3, axis=1), {"sobel": True}),
    "rows": (lambda x: x.reshape(N, -1).astype(np.float32), {}),
    "flattened": (lambda x: x.reshape(N, -1), {"image_shape": (1, 8, 8)}),
    "frame": (make_frame, {}),
    "one cluster": (lambda x: x, {"n_clusters": 1}),
    "single k": (lambda x: x, {"n_pseudo_labels": 3, "n_neighbors": None}),
    "single k, no scale": (
        lambda x: x,
        {"n_pseudo_labels": 3, "n_neighbors": None, "normalize": False},
    ),
    "paper's head": (lambda x: x, {"head_norm": None}),
    "centroids": (
        lambda x: x,
        {"head": "centroids", "n_components": 9, "n_pseudo_labels": (5, 7)},
    ),
    "torchvision": (lambda x: x.repeat(2, 1).repeat(2, 2), {"backbone": "resnet18"}),
    "module": (lambda x: x, {"backbone": make_backbone()}),
    "numpy's numbers": (
        lambda x: x,
        {"n_clusters": np.int64(3), "learning_rate": np.float32(0.01)},
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_loaded_estimator_equals_the_saved_one(name, images, tmp_path):
    convert, params = MODELS[name]
    X, model = convert(images), make_model(**params)
    model.fit(X).save(tmp_path / "model")
    backbone = make_backbone() if name == "module" else None
    loaded = DeepClusterEstimator.load(str(tmp_path / "model"), backbone=backbone)
    assert_array_equal(loaded.transform(X), model.transform(X))
    assert_array_equal(loaded.predict(X), model.labels_)
    assert loaded.score(X) == model.score(X)
    for attribute, value in vars(model).items():
        if attribute.endswith("_") and attribute != "module_":
            assert is_equal(value, getattr(loaded, attribute)), attribute
    for param, value in model.get_params().items():
        if param != "backbone":
            assert getattr(loaded, param) == value, param
    assert_array_equal(loaded.get_feature_names_out(), model.get_feature_names_out())
    assert_array_equal(loaded.probabilities_, model.probabilities_)
    for attribute in ("_cluster_model", "_membership"):
        saved, other = getattr(model, attribute), getattr(loaded, attribute)
        assert joblib.hash(saved) == joblib.hash(other), attribute


def scale_down(batch):
    return batch / 255


# Another valid value for each parameter.
CHANGED = {
    "n_clusters": 5,
    "n_pseudo_labels": (9, 11),
    "init": "features",
    "clusterer": "pic",
    "n_neighbors": None,
    "max_iter": 2,
    "epochs_per_iter": 0.5,
    "backbone": "mlp",
    "weights": "DEFAULT",
    "fine_tune": False,
    "preprocess": "imagenet",
    "image_shape": (1, 4, 16),
    "image_size": 16,
    "resize": "pad",
    "on_error": "skip",
    "cache_dir": "folder",
    "sobel": True,
    "augment": None,
    "n_crops": (1, 2),
    "n_components": 3,
    "whiten": False,
    "normalize": False,
    "balance": None,
    "empty_clusters": "drop",
    "head": "centroids",
    "temperature": 0.5,
    "head_norm": None,
    "batch_size": 32,
    "learning_rate": 0.1,
    "schedule": "constant",
    "momentum": 0.5,
    "weight_decay": 0.0,
    "device": "cpu",
    "precision": "bfloat16",
    "n_jobs": 1,
    "random_state": 1,
    "verbose": 1,
    "callbacks": None,
    "warm_start": True,
    "checkpoint_dir": "folder",
    "tol": 0.1,
}
# Models in which other parameters than the defaults make the network.
CHANGED_MODELS = {
    "images": (lambda x: x, {}),
    "flattened": (lambda x: x.reshape(N, -1), {"image_shape": (1, 8, 8)}),
    "projection": (
        lambda x: np.stack([x] * 3, axis=1),
        {"head": "centroids", "n_components": 9, "sobel": True, "head_norm": None},
    ),
    "objects": (
        lambda x: x,
        {"backbone": make_backbone(), "preprocess": scale_down, "fine_tune": True},
    ),
}


@pytest.mark.parametrize("name", CHANGED_MODELS)
def test_parameters_that_change_after_the_fit_do_no_harm(name, images, tmp_path):
    convert, params = CHANGED_MODELS[name]
    X, model = convert(images), make_model(**params)
    model.fit(X)
    assert CHANGED.keys() == model.get_params().keys()
    objects = {}
    if name == "objects":
        objects = {"backbone": params["backbone"], "preprocess": scale_down}
    for parameter, value in CHANGED.items():
        if value == getattr(model, parameter):
            value = DeepClusterEstimator().get_params()[parameter]
        changed = copy.copy(model).set_params(**{parameter: value})
        assert_array_equal(changed.predict(X), model.labels_, err_msg=parameter)
        changed.save(tmp_path / "model")
        loaded = DeepClusterEstimator.load(tmp_path / "model", **objects)
        assert_array_equal(loaded.predict(X), model.labels_, err_msg=parameter)
        # A file does not choose the folders of the next fit.
        expected = changed.get_params() | dict.fromkeys(["cache_dir", "checkpoint_dir"])
        assert loaded.get_params() == expected, parameter
        loaded.set_params(**{parameter: getattr(model, parameter)}).save(
            tmp_path / "again"
        )
        again = DeepClusterEstimator.load(tmp_path / "again", **objects)
        assert again.get_params() == model.get_params(), parameter


def test_backbone_that_is_set_after_the_fit_is_not_saved(model, images, tmp_path):
    changed = copy.copy(model).set_params(backbone=make_backbone())
    with pytest.warns(UserWarning, match="has backbone='auto'"):
        changed.save(tmp_path / "model")
    loaded = DeepClusterEstimator.load(tmp_path / "model")
    assert loaded.backbone == "auto"
    assert_array_equal(loaded.predict(images), model.labels_)


def test_history_with_numbers_of_other_packages_is_saved(model, images, tmp_path):
    changed = copy.copy(model)
    changed.history_ = copy.deepcopy(model.history_)
    values = {"a": np.float32(0.5), "b": torch.tensor(2), "c": np.arange(2), "d": "e"}
    changed.history_[-1].update(values)
    changed.save(tmp_path / "model")
    loaded = DeepClusterEstimator.load(tmp_path / "model")
    plain = {"a": 0.5, "b": 2, "c": [0, 1], "d": "e"}
    assert loaded.history_[-1] == model.history_[-1] | plain
    changed.history_[-1]["figure"] = nn.Identity()
    with pytest.raises(ValueError, match=r"history_\[0\]\['figure'\] is a Identity"):
        changed.save(tmp_path / "model")
    assert_array_equal(changed.predict(images), model.labels_)


def test_edited_estimator_is_saved(images, tmp_path):
    model = make_model(n_pseudo_labels=20).fit(images)
    largest = np.bincount(model._cluster_model.clusters).argmax()
    split = model.split_cluster(largest, 2)
    edited = split.merge_clusters([[0, 1]]).name_clusters({0: "é"})
    edited.save(tmp_path / "model")
    loaded = DeepClusterEstimator.load(tmp_path / "model")
    assert loaded.n_clusters == loaded.n_clusters_ == 3
    assert loaded.cluster_names_.tolist() == ["é", "1", "2"]
    for name in ("labels_", "cluster_centers_", "probabilities_"):
        assert_array_equal(getattr(loaded, name), getattr(edited, name))
    assert_array_equal(loaded.predict(images), edited.labels_)
    assert_array_equal(loaded.cut(3).labels_, model.labels_)


def test_file_of_format_1_is_loaded(images):
    # `write_format_1` wrote the file.
    model = DeepClusterEstimator.load(FORMAT_1, backbone=make_backbone())
    assert model.n_clusters == model.n_clusters_ == 3
    assert model.cluster_names_.tolist() == ["0", "zweites ß", "2"]
    assert len(model.distances_) == len(model.children_) == model.leaf_labels_.max()
    assert model.cut(2).n_clusters_ == 2
    assert model.n_iter_ == len(model.history_) == 2
    # The file has an objective of k-means, which is no attribute any more.
    assert not hasattr(model, "inertia_")
    assert model.image_shape_ == (1, 8, 8)
    assert model.transform(images).shape == (60, 5)
    # Rounding differs by processor.
    assert np.mean(model.predict(images) == model.labels_) > 0.95
    assert_array_equal(model.probabilities_.argmax(axis=1), model.labels_)


def test_loaded_estimator_continues_with_warm_start(model, saved_path, images):
    loaded = DeepClusterEstimator.load(saved_path).set_params(warm_start=True)
    assert loaded.fit(images).n_iter_ == 2
    expected = copy.deepcopy(model).set_params(warm_start=True).fit(images)
    assert_array_equal(loaded.labels_, expected.labels_)


def test_paths_and_skipped_rows_are_saved(images, tmp_path):
    (tmp_path / "ü <&>").mkdir()
    for i, values in enumerate(images):
        Image.fromarray(values).save(tmp_path / "ü <&>" / f"{i:02d} ß.png")
    (tmp_path / "ü <&>" / "03 ß.png").write_bytes(b"")
    with pytest.warns(UserWarning, match="1 of 60 images"):
        model = make_model(on_error="skip").fit(tmp_path / "ü <&>")
    model.save(tmp_path / "model")
    loaded = DeepClusterEstimator.load(tmp_path / "model")
    assert_array_equal(loaded.paths_, model.paths_)
    assert loaded.skipped_.tolist() == [3]
    assert_array_equal(loaded.labels_, model.labels_)


@pytest.mark.filterwarnings("ignore:resize='auto' pads")
@pytest.mark.parametrize(
    ("sizes", "choice"), [([(40, 10), (10, 40)], "pad"), ([(12, 10)], "crop")]
)
def test_choice_of_resize_is_saved(tmp_path, sizes, choice):
    rng = np.random.default_rng(0)
    X = [
        rng.integers(0, 256, sizes[i % len(sizes)]).astype(np.uint8) for i in range(40)
    ]
    X.append(rng.integers(0, 256, (10, 10)).astype(np.uint8))
    model = make_model().fit(X)
    assert model.recipe_["resize"] == choice
    model.save(tmp_path / "model")
    loaded = DeepClusterEstimator.load(tmp_path / "model")
    assert loaded.resize == "auto"
    assert loaded.recipe_["resize"] == choice
    assert_array_equal(loaded.transform(X), model.transform(X))
    # Images whose own shapes would lead to the other choice.
    other = [np.full((10, 40), 9, np.uint8), np.eye(40, 20, dtype=np.uint8)]
    for images in (other, X[-1:]):
        assert_array_equal(loaded.transform(images), model.transform(images))


def test_functions_and_generators_are_not_saved(images, tmp_path):
    model = make_model(augment=lambda x: x, random_state=np.random.RandomState(0))
    model.fit(images)
    with (
        pytest.warns(UserWarning, match="augment is a function, which is not saved"),
        pytest.warns(UserWarning, match="random_state is a RandomState"),
    ):
        model.save(tmp_path / "model")
    assert DeepClusterEstimator.load(tmp_path / "model").augment is None


def test_module_for_augmentation_is_not_saved(images, tmp_path):
    model = make_model(augment=nn.Identity()).fit(images)
    with pytest.warns(UserWarning, match="augment is a Identity, which is not saved"):
        model.save(tmp_path / "model")
    assert DeepClusterEstimator.load(tmp_path / "model").augment is None


def test_backbone_module_is_passed_again(images, saved_path, tmp_path):
    make_model(backbone=make_backbone()).fit(images).save(tmp_path / "model")
    load = DeepClusterEstimator.load
    with pytest.raises(ValueError, match=r"pass a module of the same architecture"):
        load(tmp_path / "model")
    other = nn.Sequential(nn.Flatten(), nn.Linear(64, 5))
    with pytest.raises(ValueError, match="weights do not fit the backbone: trunk"):
        load(tmp_path / "model", backbone=other)
    with pytest.raises(ValueError, match="its backbone is 'auto': remove backbone="):
        load(saved_path, backbone=make_backbone())


def test_device_of_a_loaded_estimator(saved_path, monkeypatch, images):
    loaded = DeepClusterEstimator.load(saved_path, device="cpu")
    assert loaded.device_ == torch.device("cpu")
    with pytest.raises(ValueError, match="device='gpu'"):
        DeepClusterEstimator.load(saved_path, device="gpu")
    model = make_model().fit(images)
    model.device_ = torch.device("meta")  # not available on any machine
    model.save(saved_path.parent / "elsewhere")
    loaded = DeepClusterEstimator.load(saved_path.parent / "elsewhere")
    assert loaded.device_ == torch.device("cpu")
    assert_array_equal(loaded.predict(images), model.labels_)


def test_failed_save_keeps_the_old_file(model, tmp_path, monkeypatch):
    path = tmp_path / "model"
    model.save(path)
    before = path.read_bytes()
    with pytest.raises(FileNotFoundError):
        model.save(tmp_path / "nowhere" / "model")

    def full(number):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        model.save(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_unfitted_estimator_is_not_saved(tmp_path):
    with pytest.raises(Exception, match="not fitted yet"):
        make_model().save(tmp_path / "model")


# Damaged and hostile files.


def load_bytes(content, path):
    path.write_bytes(content)
    return DeepClusterEstimator.load(path)


def test_other_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match="is no file"):
        DeepClusterEstimator.load(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="is no file"):
        DeepClusterEstimator.load(tmp_path)
    save_file({"x": torch.ones(3)}, tmp_path / "other")
    with pytest.raises(ValueError, match="no estimator was saved in it"):
        DeepClusterEstimator.load(tmp_path / "other")


@settings(max_examples=30)
@given(share=st.floats(0, 0.9999))
def test_truncated_file_is_refused(saved_path, tmp_path_factory, share):
    content = saved_path.read_bytes()
    path = tmp_path_factory.mktemp("cut") / "model"
    with pytest.raises(ValueError, match="cannot be loaded"):
        load_bytes(content[: int(share * len(content))], path)


@settings(max_examples=60)
@given(data=st.data())
def test_flipped_bit_is_refused(saved_path, tmp_path_factory, data):
    content = bytearray(saved_path.read_bytes())
    header = 8 + struct.unpack("<Q", content[:8])[0]
    end = data.draw(st.sampled_from([8, header, len(content)]))
    position = data.draw(st.integers(0, end - 1))
    content[position] ^= 1 << data.draw(st.integers(0, 7))
    path = tmp_path_factory.mktemp("flip") / "model"
    with pytest.raises(ValueError, match="cannot be loaded"):
        load_bytes(bytes(content), path)


def forge(saved_path, path, change):
    """Write the saved estimator with a changed header and a valid checksum."""
    content = saved_path.read_bytes()
    size = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + size])
    metadata = json.loads(header["__metadata__"]["skdeepcluster"])
    change(metadata)
    text = json.dumps(metadata)
    tensors = load_file(saved_path)
    digest = tensor_files._digest(text, tensors)
    save_file(tensors, path, metadata={"skdeepcluster": text, "digest": digest})


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats()
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)
FIELDS = ["format", "params", "custom_backbone", "clusters", "dtype", "image_dtype"]
FIELDS += ["image_shape", "feature_names", "n_features_in", "n_iter", "history"]
FIELDS += ["device", "cluster_names", "decoding"]


@settings(max_examples=60)
@given(field=st.sampled_from(FIELDS), value=JSON_VALUES)
def test_invalid_header_raises_value_error(saved_path, tmp_path_factory, field, value):
    path = tmp_path_factory.mktemp("forged") / "model"
    forge(saved_path, path, lambda metadata: metadata.__setitem__(field, value))
    # The value may be valid, but no other error may be raised.
    with contextlib.suppress(ValueError):
        DeepClusterEstimator.load(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.update(format=2), "its format is 2, but this version reads 1"),
        (lambda t: t["params"].update(n_clusters=-1), "n_clusters"),
        (lambda t: t["network_params"].update(backbone="os.system"), "is unknown"),
        (lambda t: t["network_params"].update(sobel=3), "sobel"),
        (lambda t: t["network_params"].pop("head"), "head"),
        (lambda t: t["params"].update(evil=1), "evil"),
        (lambda t: t.update(image_shape=[10**9, 8, 8]), "too large"),
        (lambda t: t.update(image_shape=[10**6, 8, 8]), "do not fit|does not take"),
        (lambda t: t.update(image_shape=[1, 8]), "three sides"),
        (
            lambda t: t["clusters"]["leaf_model"].update(kind="pickle"),
            "unknown kind, 'pickle'",
        ),
        (lambda t: t["clusters"].update(temperature=0), "temperature is 0"),
        (
            lambda t: t["clusters"].update(temperature=float("nan")),
            "temperature is nan",
        ),
        (lambda t: t.update(cluster_names=["a", "b"]), "cluster_names do not fit"),
        (lambda t: t.update(cluster_names=["a", "a", "2", "3"]), "'a' to the clusters"),
        (lambda t: t.update(cluster_names=["1", "0", "2", "3"]), "is a number"),
        (lambda t: t.update(cluster_names=[0, 1, 2, 3]), "not str"),
        (lambda t: t.update(dtype="float64"), "float64"),
        (lambda t: t["decoding"].update(resize="auto"), "resize='auto'"),
        (lambda t: t["decoding"].update(interpolation=3), "interpolation=3"),
        (lambda t: t["decoding"].update(shorter_side=7), "7 pixels"),
        (lambda t: t["decoding"].update(number_types=["words"]), "words"),
        (lambda t: t["decoding"].update(white=-1), "white is -1"),
        (lambda t: t["decoding"].update(path="x"), "path"),
        (lambda t: t["decoding"].pop("has_alpha"), "decoding"),
        (lambda t: t["decoding"].update(shorter_side=8.5), "in place of a number"),
    ],
)
def test_forged_header_is_refused(saved_path, tmp_path, change, message):
    forge(saved_path, tmp_path / "model", change)
    with pytest.raises(ValueError, match=message):
        DeepClusterEstimator.load(tmp_path / "model")


@pytest.mark.parametrize("size", [0, 3])
def test_mean_of_another_size_is_refused(model, tmp_path, size):
    model.save(tmp_path / "model")
    metadata, tensors = tensor_files.read_tensors(tmp_path / "model")
    tensors["module.front.0.mean"] = torch.zeros(size, 1, 1)
    tensor_files.write_tensors(tmp_path / "model", metadata, tensors)
    with pytest.raises(ValueError, match="mean and scale do not fit its images"):
        DeepClusterEstimator.load(tmp_path / "model")


FLOAT_ARRAYS = [
    "module.trunk.0.weight",
    "cluster_classifier.weights",
    "leaf_classifier.bias",
    "leaf_centers",
    "distances",
    "probabilities.data",
]


@pytest.mark.parametrize("name", FLOAT_ARRAYS)
def test_infinite_values_are_refused(model, tmp_path, name):
    model.save(tmp_path / "model")
    metadata, tensors = tensor_files.read_tensors(tmp_path / "model")
    tensors[name].view(-1)[0] = torch.nan
    tensor_files.write_tensors(tmp_path / "model", metadata, tensors)
    with pytest.raises(ValueError, match="are not finite"):
        DeepClusterEstimator.load(tmp_path / "model")


def set_last(value):
    """Return a function that sets the last entry of a tensor."""

    def change(tensor):
        tensor.view(-1)[-1] = value
        return tensor

    return change


def set_first(value):
    """Return a function that sets the first entry of a tensor."""

    def change(tensor):
        tensor.view(-1)[0] = value
        return tensor

    return change


BAD_ARRAYS = {
    "leaf_centers": [lambda x: x[:, :-1], lambda x: x[:-1], lambda x: x.double()],
    "leaf_sizes": [set_first(0), set_first(-1), lambda x: x[:-1], lambda x: x.int()],
    "children": [
        set_first(-1),
        set_last(0),
        set_last(10**12),
        # A node that is its own child, and a node before the merge that makes it.
        lambda x: set_first(int(x.max()))(x),
        lambda x: x.flip(0),
        lambda x: x[:-1],
        lambda x: x[:, :1],
        lambda x: x.float(),
    ],
    "distances": [set_first(-1.0), set_last(0.0), lambda x: x[:-1], lambda x: x[None]],
    "clusters": [
        set_first(-1),
        set_first(2**31 - 1),
        set_first(4),
        lambda x: x * 2,
        lambda x: x[:-1],
        lambda x: x.long(),
    ],
    "leaf_labels": [
        set_first(-2),
        # The probabilities have one row too many.
        set_first(-1),
        set_last(2**31 - 1),
        lambda x: x[:-1],
        lambda x: x.long(),
    ],
    "cluster_classifier.weights": [lambda x: x[:-1], lambda x: x[:, :-1]],
    "leaf_classifier.weights": [lambda x: x[:-1], lambda x: x.float()],
    "leaf_classifier.bias": [lambda x: x[:-1], lambda x: x[None]],
    "parents": [set_first(-1), set_last(9), lambda x: x[:-1], lambda x: x.long()],
    "probabilities.data": [
        set_first(0.0),
        set_first(-0.5),
        set_first(1.5),
        lambda x: x[:-1],
        lambda x: x.double(),
    ],
    "probabilities.indices": [
        set_first(-1),
        set_last(10**6),
        lambda x: x[1:],
        lambda x: x.long(),
    ],
    "probabilities.indptr": [
        set_first(1),
        set_last(0),
        set_last(10**12),
        lambda x: x.flip(0),
        lambda x: x[:-1],
        lambda x: x.clip(max=3),
        lambda x: x.int(),
    ],
}


@pytest.mark.parametrize(
    ("name", "change"),
    [(name, change) for name, changes in BAD_ARRAYS.items() for change in changes],
)
def test_invalid_array_is_refused(saved_path, tmp_path, name, change):
    metadata, tensors = tensor_files.read_tensors(saved_path)
    tensors[name] = change(tensors[name])
    tensor_files.write_tensors(tmp_path / "model", metadata, tensors)
    with pytest.raises(ValueError, match=r"cannot be loaded: .*\bits\b"):
        DeepClusterEstimator.load(tmp_path / "model")


@pytest.mark.parametrize("name", BAD_ARRAYS)
def test_missing_array_is_refused(saved_path, tmp_path, name):
    metadata, tensors = tensor_files.read_tensors(saved_path)
    del tensors[name]
    tensor_files.write_tensors(tmp_path / "model", metadata, tensors)
    with pytest.raises(ValueError, match="cannot be loaded"):
        DeepClusterEstimator.load(tmp_path / "model")


@settings(max_examples=100)
@given(data=st.data())
def test_random_array_is_refused_or_harmless(
    saved_path, images, tmp_path_factory, data
):
    metadata, tensors = tensor_files.read_tensors(saved_path)
    name = data.draw(st.sampled_from(sorted(BAD_ARRAYS)))
    values = tensors[name].view(-1).numpy()
    rows = st.integers(0, len(values) - 1)
    entries = st.integers(-3, 30)
    for row, entry in data.draw(st.lists(st.tuples(rows, entries), max_size=3)):
        values[row] = entry
    path = tmp_path_factory.mktemp("random") / "model"
    tensor_files.write_tensors(path, metadata, tensors)
    with contextlib.suppress(ValueError):
        loaded = DeepClusterEstimator.load(path)
        labels, n_leaves = loaded.labels_, len(loaded.children_) + 1
        assert_array_equal(loaded.probabilities_.argmax(axis=1), labels)
        assert_array_equal(
            loaded.predict_proba(images).argmax(axis=1), loaded.predict(images)
        )
        for n_clusters in range(1, n_leaves + 1):
            assert loaded.cut(n_clusters).n_clusters_ == n_clusters


def test_paths_of_another_number_are_refused(model, images, tmp_path):
    for i, values in enumerate(images):
        Image.fromarray(values).save(tmp_path / f"{i:02d}.png")
    make_model().fit(tmp_path).save(tmp_path / "model")
    metadata, tensors = tensor_files.read_tensors(tmp_path / "model")
    # A zero byte separates two paths.
    tensors["paths"] = tensors["paths"][tensors["paths"].tolist().index(0) + 1 :]
    tensor_files.write_tensors(tmp_path / "model", metadata, tensors)
    with pytest.raises(ValueError, match="paths do not fit its labels"):
        DeepClusterEstimator.load(tmp_path / "model")


def test_loaded_estimator_does_not_change_with_its_file(model, images, tmp_path):
    model.save(tmp_path / "model")
    loaded = DeepClusterEstimator.load(tmp_path / "model")
    with open(tmp_path / "model", "r+b") as file:
        file.write(bytes((tmp_path / "model").stat().st_size))
    assert_array_equal(loaded.transform(images), model.transform(images))
    assert_array_equal(loaded.predict(images), model.labels_)
    assert_array_equal(loaded.cluster_centers_, model.cluster_centers_)


def read_peak_memory():
    """Return the peak memory of this process, in kB, since the previous call."""
    status = Path("/proc/self/status").read_text()
    Path("/proc/self/clear_refs").write_text("5")
    return int(re.search(r"VmHWM:\s+(\d+)", status)[1])


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc of Linux")
def test_huge_sizes_in_a_header_take_no_memory(saved_path, tmp_path):
    content = saved_path.read_bytes()
    size = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + size])
    header["module.trunk.0.weight"]["shape"] = [10**6, 10**6]
    text = json.dumps(header).encode()
    for name, backbone in (("0", "resnet18"), ("4", "vgg16")):
        forge(
            saved_path,
            tmp_path / name,
            lambda t, backbone=backbone: t["network_params"].update(backbone=backbone),
        )
    (tmp_path / "1").write_bytes(
        struct.pack("<Q", len(text)) + text + content[8 + size :]
    )
    (tmp_path / "2").write_bytes(struct.pack("<Q", 2**62) + content[8:])
    forge(saved_path, tmp_path / "3", lambda t: t.update(image_shape=[10**8, 64, 64]))
    peaks = []
    for path in sorted(tmp_path.iterdir()):
        read_peak_memory()
        with pytest.raises(ValueError, match="cannot be loaded"):
            DeepClusterEstimator.load(path)
        peaks.append(read_peak_memory())
    # The weights of VGG-16 alone would be 500 MB.
    assert max(peaks) - peaks[0] < 100_000
